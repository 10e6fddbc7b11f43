//! `cargo xtask tidy`: rules that no other tool checks.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::docs;
use crate::graph;
use crate::models;
use crate::recipe;
use crate::safetensors;
use crate::shell;

/// Longest Rust file, lines.
const MAX_LINES: usize = 700;
/// Biggest golden, bytes.
const MAX_GOLDEN: u64 = 200 * 1024;

pub(crate) fn run() -> Result<()> {
    let mut problems = graph::problems()?;
    let files = shell::repository_files()?;
    for file in &files {
        problems.extend(file_problems(file)?);
    }
    problems.extend(recipe::problems()?);
    problems.extend(docs::problems()?);
    problems.extend(models::problems()?);
    for problem in &problems {
        eprintln!("tidy: {problem}");
    }
    if !problems.is_empty() {
        bail!(
            "tidy found {} to mend, listed above",
            if problems.len() == 1 {
                "a thing".to_owned()
            } else {
                format!("{} things", problems.len())
            }
        );
    }
    say!("tidy: {} files, no complaint", files.len());
    Ok(())
}

/// Problems of one file, by its name relative to the root.
fn file_problems(file: &Path) -> Result<Vec<String>> {
    let path = shell::root().join(file);
    let shown = file.display().to_string();
    let ending = file
        .extension()
        .map(|ending| ending.to_string_lossy().into_owned())
        .unwrap_or_default();
    if ending == "safetensors" && shown.contains("/goldens/") {
        return golden_problems(file, &path);
    }
    if !matches!(
        ending.as_str(),
        "rs" | "toml" | "md" | "py" | "sh" | "cpp" | "h" | "yml"
    ) && shown != ".ci/run"
    {
        return Ok(Vec::new());
    }
    let text = match std::fs::read(&path).map(String::from_utf8) {
        Ok(Ok(text)) => text,
        Ok(Err(_)) => return Ok(vec![format!("{shown} is not UTF-8")]),
        Err(error) => return Ok(vec![format!("{shown} cannot be read: {error}")]),
    };
    Ok(text_problems(&shown, &ending, &text))
}

fn text_problems(shown: &str, ending: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    // Put together here, so that this file does not find itself.
    let marks = [
        ["TO", "DO"].concat(),
        ["FIX", "ME"].concat(),
        ["XX", "X"].concat(),
        ["HA", "CK"].concat(),
    ];
    let calls = [["to", "do!("].concat(), ["unimple", "mented!("].concat()];
    let outside = [["../", "shared"].concat(), ["/wo", "rk/"].concat()];
    for (index, line) in text.lines().enumerate() {
        let at = format!("{shown}:{}", index + 1);
        let words = || line.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        if words().any(|word| marks.iter().any(|mark| mark == word))
            || (ending == "rs" && calls.iter().any(|call| line.contains(call.as_str())))
        {
            problems.push(format!(
                "{at} has a mark of unfinished work; finish it or open an issue"
            ));
        }
        if outside.iter().any(|path| line.contains(path.as_str())) {
            problems.push(format!(
                "{at} names a folder outside the repository; nothing may need one"
            ));
        }
        if ending == "rs" && !shown.starts_with("crates/torch-ext/") && uses_unsafe(line) {
            problems.push(format!(
                "{at} is unsafe code; it belongs into crates/torch-ext"
            ));
        }
    }
    let lines = text.lines().count();
    if ending == "rs" && lines > MAX_LINES {
        problems.push(format!(
            "{shown} has {lines} lines; split it, {MAX_LINES} is the limit"
        ));
    }
    problems
}

/// Whether a line of Rust holds the keyword, outside comments.
fn uses_unsafe(line: &str) -> bool {
    let keyword = ["un", "safe"].concat();
    let code = line.split("//").next().unwrap_or_default();
    code.match_indices(&keyword).any(|(position, _)| {
        let before = code.get(..position).unwrap_or_default().chars().next_back();
        let after = code.get(position + keyword.len()..).unwrap_or_default();
        let starts_word = before.is_none_or(|c| c.is_whitespace() || "({;=|,".contains(c));
        let block = after.trim_start();
        starts_word
            && (after.starts_with([' ', '{', '(']))
            && ["{", "fn ", "impl ", "extern", "trait "]
                .iter()
                .any(|next| block.starts_with(next))
    })
}

/// A golden is small, readable and names a script that exists.
fn golden_problems(file: &Path, path: &Path) -> Result<Vec<String>> {
    let shown = file.display();
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    let mut problems = Vec::new();
    if bytes.len() as u64 > MAX_GOLDEN {
        problems.push(format!(
            "{shown} has {} bytes; goldens stay below {MAX_GOLDEN}",
            bytes.len()
        ));
    }
    match safetensors::parse(&bytes) {
        Err(error) => problems.push(format!("{shown} is damaged: {error:#}")),
        Ok(parsed) => {
            let script = parsed.metadata.get("script").cloned().unwrap_or_default();
            let name = Path::new(&script)
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            let there = !name.is_empty()
                && shell::root()
                    .join("python")
                    .join("goldens")
                    .join(&name)
                    .is_file();
            if !there {
                problems.push(format!(
                    "{shown} says that {script:?} wrote it, which is not in python/goldens"
                ));
            }
        }
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_unfinished_work_are_found_as_words() {
        let mark = ["TO", "DO"].concat();
        let problems = text_problems("a.rs", "rs", &format!("fn a() {{}} // {mark}: more\n"));
        assert!(
            problems
                .iter()
                .any(|problem| problem.starts_with("a.rs:1 has a mark")),
            "{problems:?}"
        );
        assert!(text_problems("a.rs", "rs", "const MASTODONS: u8 = 1;\n").is_empty());
        let call = ["to", "do!("].concat();
        assert_eq!(text_problems("a.rs", "rs", &format!("{call})\n")).len(), 1);
        let outside = ["../", "shared/x"].concat();
        assert_eq!(text_problems("a.md", "md", &outside).len(), 1);
    }

    #[test]
    fn the_keyword_is_told_from_its_mention() {
        let keyword = ["un", "safe"].concat();
        for code in [" { x() }", " fn f();", " impl Send for X {}", "{ x() }"] {
            assert!(
                uses_unsafe(&format!("let a = {keyword}{code}"))
                    || uses_unsafe(&format!("{keyword}{code}")),
                "{code}"
            );
            assert_eq!(
                text_problems(
                    "crates/torch-ext/src/a.rs",
                    "rs",
                    &format!("{keyword}{code}")
                )
                .len(),
                0
            );
            assert_eq!(
                text_problems("crates/core/src/a.rs", "rs", &format!("{keyword}{code}")).len(),
                1
            );
        }
        for text in [
            "// says SAFE",
            "#![deny(SAFE_code)]",
            "\"no `SAFE` outside\"",
            "is_SAFE(x)",
            "SAFE_fn { }",
        ] {
            assert!(!uses_unsafe(&text.replace("SAFE", &keyword)), "{text}");
        }
    }

    #[test]
    fn long_files_are_named() {
        assert_eq!(
            text_problems("a.rs", "rs", &"\n".repeat(MAX_LINES + 1)).len(),
            1
        );
        assert!(text_problems("a.rs", "rs", &"\n".repeat(MAX_LINES)).is_empty());
        assert!(text_problems("a.md", "md", &"\n".repeat(MAX_LINES + 1)).is_empty());
    }
}
