//! `cargo xtask models`: the table of registered models, as `densely models --json` tells it.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::cache;
use crate::setup;
use crate::shell;

/// Example: `cargo xtask models --markdown`
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Print the table as Markdown.
    #[arg(long)]
    markdown: bool,
    /// Replace the table in README.md and the docs.
    #[arg(long)]
    write: bool,
}

const BEGIN: &str = "<!-- models:begin -->";
const END: &str = "<!-- models:end -->";

/// What the table shows of a preset; the program tells more.
#[derive(Debug, Clone, Deserialize)]
struct Preset {
    name: String,
    domain: String,
    paper: String,
    params: u64,
    macs: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure()?;
    build_program()?;
    let table = table()?;
    if arguments.write {
        for path in files_with_markers()? {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", shell::shown(&path)))?;
            let new = replace(&text, &table).with_context(|| shell::shown(&path))?;
            if new != text {
                cache::write(&path, new.as_bytes())?;
                say!("{} is written", shell::shown(&path));
            }
        }
        return Ok(());
    }
    if arguments.markdown {
        say_part!("{table}");
        return Ok(());
    }
    shell::run(program().arg("models"))
}

/// Builds the `densely` program with the profile of the tests.
pub(crate) fn build_program() -> Result<()> {
    build("--bin", "densely").context("the densely program does not build")
}

/// Builds one target as the tests do: with the whole workspace chosen, crates have the same features and none is compiled twice.
pub(crate) fn build(kind: &str, name: &str) -> Result<()> {
    shell::run(&mut shell::cargo(&[
        "build",
        "--quiet",
        "--workspace",
        kind,
        name,
    ]))
}

/// An example that [`build`] has built.
pub(crate) fn example(name: &str) -> std::process::Command {
    let mut command = shell::command(program_path().with_file_name("examples").join(name));
    shell::with_library_path(&mut command);
    command
}

/// The `densely` program of this checkout.
pub(crate) fn program() -> std::process::Command {
    let mut command = shell::command(program_path());
    shell::with_library_path(&mut command);
    command
}

pub(crate) fn program_path() -> PathBuf {
    // This program is in <target>/<profile>/ too.
    let beside = std::env::current_exe()
        .ok()
        .and_then(|path| Some(path.parent()?.join("densely")));
    beside
        .filter(|path| path.is_file())
        .unwrap_or_else(|| shell::target().join("debug").join("densely"))
}

/// Stale tables. Needs the program: where it is not built this says so and checks nothing.
pub(crate) fn problems() -> Result<Vec<String>> {
    if !program_path().is_file() {
        say!("tidy: the densely program is not built, so the tables of models are not compared");
        return Ok(Vec::new());
    }
    let table = match table() {
        Ok(table) => table,
        Err(error) => {
            say!("tidy: the tables of models are not compared ({error:#})");
            return Ok(Vec::new());
        }
    };
    let mut problems = Vec::new();
    for path in files_with_markers()? {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", shell::shown(&path)))?;
        match replace(&text, &table) {
            Ok(new) if new == text => {}
            Ok(_) => problems.push(format!(
                "the table of models in {} is stale; run `cargo xtask models --write`",
                shell::shown(&path)
            )),
            Err(error) => problems.push(format!("{}: {error:#}", shell::shown(&path))),
        }
    }
    Ok(problems)
}

fn files_with_markers() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for file in shell::repository_files()? {
        let path = shell::root().join(&file);
        if path.extension().is_some_and(|ending| ending == "md")
            && std::fs::read_to_string(&path)
                .is_ok_and(|text| text.lines().any(|line| line.trim() == BEGIN))
        {
            files.push(path);
        }
    }
    Ok(files)
}

fn table() -> Result<String> {
    let text = shell::output(program().args(["models", "--json"]))?;
    let presets: Vec<Preset> = serde_json::from_str(&text)
        .context("`densely models --json` did not print a list of models; build it again")?;
    Ok(markdown(&presets))
}

fn markdown(presets: &[Preset]) -> String {
    let mut table = String::from(
        "| name | domain | paper | parameters | MACs per row |\n| --- | --- | --- | ---: | ---: |\n",
    );
    for Preset {
        name,
        domain,
        paper,
        params,
        macs,
    } in presets
    {
        let paper = paper.replace('|', "\\|");
        let _ = writeln!(
            table,
            "| `{name}` | {domain} | {paper} | {} | {} |",
            grouped(*params),
            grouped(*macs)
        );
    }
    table
}

/// 1234567 → 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `text` with `table` between the markers.
fn replace(text: &str, table: &str) -> Result<String> {
    let line = |mark: &str| {
        text.find(&format!("{mark}\n"))
            .or_else(|| text.ends_with(mark).then(|| text.len() - mark.len()))
    };
    let begin = line(BEGIN).ok_or_else(|| anyhow!("there is no line {BEGIN}"))? + BEGIN.len() + 1;
    let end = line(END).ok_or_else(|| anyhow!("there is no line {END} after {BEGIN}"))?;
    let (Some(before), Some(after)) = (text.get(..begin), text.get(end..)) else {
        bail!("there is nothing after {BEGIN}")
    };
    if begin > end {
        bail!("{END} stands before {BEGIN}");
    }
    Ok(format!("{before}{table}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_replaced_between_its_markers() -> Result<()> {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = replace(&text, "| new |\n")?;
        assert_eq!(new, format!("a\n{BEGIN}\n| new |\n{END}\nb\n"));
        assert_eq!(replace(&new, "| new |\n")?, new);
        assert!(replace("a", "t").is_err());
        assert!(replace(&format!("{END}\n{BEGIN}\n"), "t").is_err());
        assert!(replace(BEGIN, "t").is_err());
        Ok(())
    }

    #[test]
    fn the_table_has_a_row_per_model() {
        let preset = Preset {
            name: "tabm".to_owned(),
            domain: "tabular".to_owned(),
            paper: "A | B".to_owned(),
            params: 1_234_567,
            macs: 999,
        };
        let table = markdown(&[preset]);
        assert!(
            table.ends_with("| `tabm` | tabular | A \\| B | 1,234,567 | 999 |\n"),
            "{table}"
        );
    }
}
