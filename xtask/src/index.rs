//! The pages of reproductions in the book: one each, a table over all, and their lines in the summary.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache;
use crate::page::{self, Reproduction};
use crate::shell;

fn pages() -> PathBuf {
    shell::root().join("docs").join("src").join("reproduction")
}

pub(crate) fn write_pages(result: &Reproduction, plots: &[String]) -> Result<()> {
    let folder = pages();
    let stem = stem(&folder, result);
    let mut links = Vec::new();
    for (index, plot) in plots.iter().enumerate() {
        let from = shell::root().join(plot);
        let file = from
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let bytes = std::fs::read(&from)
            .with_context(|| format!("cannot read the plot {}", from.display()))?;
        // One seed's plots are enough to look at; the others are in the run folder.
        if plots[..index]
            .iter()
            .any(|earlier| earlier.ends_with(&format!("/{file}")))
        {
            continue;
        }
        let link = format!("plots/{stem}-{file}");
        cache::write(&folder.join(&link), &bytes)?;
        links.push(link);
    }
    write(result, &stem, &links)
}

fn write(result: &Reproduction, stem: &str, links: &[String]) -> Result<()> {
    let folder = pages();
    let json = serde_json::to_string_pretty(result)?;
    cache::write(
        &folder.join(format!("{stem}.json")),
        format!("{json}\n").as_bytes(),
    )?;
    cache::write(
        &folder.join(format!("{stem}.md")),
        page::page(result, links).as_bytes(),
    )
}

/// Writes the page of a result that [`kept`] gave, with the plots that it shows.
pub(crate) fn write_page_again(result: &Reproduction) -> Result<()> {
    let path = pages().join(format!("{}.md", result.stem));
    let old = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", shell::shown(&path)))?;
    let plots = old.lines().filter_map(|line| {
        let (_, link) = line.strip_prefix("![")?.split_once("](")?;
        link.strip_suffix(')').map(str::to_owned)
    });
    write(result, &result.stem, &plots.collect::<Vec<_>>())
}

/// `<name>`; but a smaller size never takes the place of the full one: then `<name>-<size>`.
fn stem(folder: &Path, result: &Reproduction) -> String {
    let there = std::fs::read_to_string(folder.join(format!("{}.json", result.name))).ok();
    let there: Option<Reproduction> = there.and_then(|text| serde_json::from_str(&text).ok());
    match there {
        Some(full) if full.size == "full" && result.size != "full" => {
            format!("{}-{}", result.name, result.size)
        }
        _ => result.name.clone(),
    }
}

const BEGIN: &str = "<!-- reproduction:begin -->";
const END: &str = "<!-- reproduction:end -->";
const INTRODUCTION: &str = "# Reproduction\n\n`cargo xtask reproduce` writes these pages. *Published* is what the paper states, on its own split; *reference* is the authors'\npackage on exactly our rows; *ours* is Densely, mean ± standard deviation over the seeds.\n";

/// The table of all reproductions, and their pages in the book's summary.
pub(crate) fn write_index() -> Result<()> {
    let folder = pages();
    let results = kept()?;
    let index = folder.join("README.md");
    let old = std::fs::read_to_string(&index)
        .unwrap_or_else(|_| format!("{INTRODUCTION}\n{BEGIN}\n{END}\n"));
    cache::write(
        &index,
        with_table(&old, &page::table(&results, true)).as_bytes(),
    )?;
    let summary = shell::root().join("docs").join("src").join("SUMMARY.md");
    if let Ok(old) = std::fs::read_to_string(&summary) {
        let new = with_pages(&old, &results);
        if new != old {
            cache::write(&summary, new.as_bytes())?;
        }
    }
    Ok(())
}

/// Every result that has a page.
pub(crate) fn kept() -> Result<Vec<Reproduction>> {
    let folder = pages();
    let mut results = Vec::new();
    for path in shell::walk(&folder, &["plots"])? {
        if path.extension().is_some_and(|ending| ending == "json") {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", shell::shown(&path)))?;
            let mut result: Reproduction = serde_json::from_str(&text).with_context(|| {
                format!("{} is not a reproduction; delete it", shell::shown(&path))
            })?;
            result.stem = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            results.push(result);
        }
    }
    Ok(results)
}

/// `text` with the table between the markers, or at its end where it has none.
fn with_table(text: &str, table: &str) -> String {
    let parts = text
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    match parts {
        Some((before, after)) => format!("{before}{BEGIN}\n{table}{END}{after}"),
        None => format!("{}\n\n{BEGIN}\n{table}{END}\n", text.trim_end()),
    }
}

/// The book's summary with a line per page below that of the reproductions.
fn with_pages(summary: &str, results: &[Reproduction]) -> String {
    let mut text = String::new();
    for line in summary.lines() {
        // Lines of ours are written anew.
        if line.starts_with("  - [") && line.contains("](reproduction/") {
            continue;
        }
        text += line;
        text.push('\n');
        if line.contains("](reproduction/README.md)") {
            for result in results {
                let _ = writeln!(
                    text,
                    "  - [{}](reproduction/{}.md)",
                    page::heading(result),
                    result.stem
                );
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::tests::example;

    #[test]
    fn index_and_summary_are_rewritten_without_doubles() {
        let text = with_table("# R\n", "| a |\n");
        assert_eq!(text, format!("# R\n\n{BEGIN}\n| a |\n{END}\n"));
        assert_eq!(with_table(&text, "| a |\n"), text);
        let summary = "- [Reproduction](reproduction/README.md)\n  - [Old](reproduction/old.md)\n- [B](b.md)\n";
        let new = with_pages(summary, &[example()]);
        let line =
            "  - [TabM on California Housing, quick size](reproduction/tabm-california.md)\n";
        assert_eq!(
            new,
            format!("- [Reproduction](reproduction/README.md)\n{line}- [B](b.md)\n")
        );
        assert_eq!(with_pages(&new, &[example()]), new);
    }

    #[test]
    fn a_quick_result_does_not_replace_a_full_one() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let quick = example();
        assert_eq!(stem(folder.path(), &quick), "tabm-california");
        let full = Reproduction {
            size: "full".to_owned(),
            ..example()
        };
        std::fs::write(
            folder.path().join("tabm-california.json"),
            serde_json::to_string(&full)?,
        )?;
        assert_eq!(stem(folder.path(), &quick), "tabm-california-quick");
        assert_eq!(stem(folder.path(), &full), "tabm-california");
        Ok(())
    }
}
