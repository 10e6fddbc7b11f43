//! `cargo xtask docs`: the book's links are checked always, the book is built where mdBook is installed.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell;

/// The version whose settings `docs/book.toml` follows.
const MDBOOK: &str = "0.5";

pub(crate) fn run() -> Result<()> {
    let problems = problems()?;
    for problem in &problems {
        eprintln!("docs: {problem}");
    }
    if !problems.is_empty() {
        bail!(
            "{} in the documentation, listed above",
            if problems.len() == 1 {
                "there is a problem".to_owned()
            } else {
                format!("there are {} problems", problems.len())
            }
        );
    }
    say!("docs: every link leads somewhere");
    if shell::probe("mdbook", &["--version"]).is_none() {
        say!(
            "docs: mdBook is not installed, so the book is not built; install it with `cargo install mdbook --version {MDBOOK} --locked`"
        );
        return Ok(());
    }
    shell::run(shell::command("mdbook").args(["build", "docs"]))?;
    say!("docs: open docs/book/index.html");
    Ok(())
}

/// Links of the README files and the book that lead nowhere, and pages that the book's summary misses.
pub(crate) fn problems() -> Result<Vec<String>> {
    let root = shell::root();
    let source = root.join("docs").join("src");
    let mut problems = Vec::new();
    let mut linked = Vec::new();
    for file in shell::repository_files()? {
        if file.extension().is_none_or(|ending| ending != "md") {
            continue;
        }
        let path = root.join(&file);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", file.display()))?;
        for (line, link) in links(&text) {
            if is_external(&link) {
                continue;
            }
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() {
                continue;
            }
            let to = normal(&path.parent().unwrap_or(root).join(target));
            if !to.starts_with(root) {
                problems.push(format!(
                    "{}:{line} links to {link}, which is outside the repository",
                    file.display()
                ));
            } else if !to.exists() {
                problems.push(format!(
                    "{}:{line} links to {link}, which does not exist",
                    file.display()
                ));
            }
            if path == source.join("SUMMARY.md") {
                linked.push(to);
            }
        }
    }
    for page in shell::walk(&source, &[]).unwrap_or_default() {
        let is_page = page.extension().is_some_and(|ending| ending == "md")
            && page.file_name().is_some_and(|name| name != "SUMMARY.md");
        if is_page && !linked.contains(&page) {
            problems.push(format!(
                "{} is not in docs/src/SUMMARY.md, so the book does not show it",
                shell::shown(&page)
            ));
        }
    }
    Ok(problems)
}

fn is_external(link: &str) -> bool {
    link.contains("://") || link.starts_with("mailto:")
}

/// Markdown links `[text](target)` and images with their line numbers; code is left out.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") || line.trim_start().starts_with("~~~") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            continue;
        }
        // Every second part between backticks is code.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
        let mut rest = prose.as_str();
        while let Some(position) = rest.find("](") {
            rest = rest.get(position + 2..).unwrap_or_default();
            let Some(end) = rest.find(')') else { break };
            let target = rest
                .get(..end)
                .unwrap_or_default()
                .split_whitespace()
                .next()
                .unwrap_or_default();
            if !target.is_empty() {
                links.push((index + 1, target.trim_matches(['<', '>']).to_owned()));
            }
            rest = rest.get(end..).unwrap_or_default();
        }
    }
    links
}

/// Removes `.` and `..` by name, without asking the disk.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_outside_code() {
        let text = "[a](b.md) and ![c](d.svg \"title\")\n`[no](no.md)` [yes](e.md#part)\n```\n[no](no.md)\n```\n[open](unclosed\n";
        let found: Vec<String> = links(text)
            .into_iter()
            .map(|(line, link)| format!("{line}:{link}"))
            .collect();
        assert_eq!(found, ["1:b.md", "1:d.svg", "2:e.md#part"]);
    }

    #[test]
    fn parents_are_resolved_by_name() {
        assert_eq!(normal(Path::new("/a/b/../c/./d")), Path::new("/a/c/d"));
        assert!(is_external("https://x.y") && !is_external("a.md"));
    }
}
