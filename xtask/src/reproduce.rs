//! `cargo xtask reproduce`: trains the recipes and writes published / reference / ours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};

use crate::cache;
use crate::checks::minutes;
use crate::dataset;
use crate::index;
use crate::models;
use crate::page::{
    self, Machine, Metric, Ours, Outcome, PublishedValue, Reference, Reproduction, Yardstick,
};
use crate::recipe::{self, Recipe};
use crate::setup;
use crate::shell;

/// Example: `cargo xtask reproduce --quick`
#[derive(Debug, Clone, Default, clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub(crate) struct Arguments {
    /// Recipes by name; all (of the chosen size) when none is given.
    names: Vec<String>,
    /// Only list the recipes.
    #[arg(long)]
    list: bool,
    /// Write the pages of kept results again, with the reference's figures as they are now; trains nothing.
    #[arg(long, conflicts_with_all = ["list", "quick", "smoke"])]
    pages: bool,
    /// The smaller size that fits two CPU cores in minutes, on real data.
    #[arg(long, conflicts_with = "smoke")]
    quick: bool,
    /// A few steps of each recipe: does everything run? Writes no pages.
    #[arg(long)]
    smoke: bool,
    /// Where to compute: auto, cpu or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Use only data that is in the cache or the mirror.
    #[arg(long)]
    offline: bool,
}

impl Arguments {
    /// What `ci` runs.
    pub(crate) fn smoke() -> Self {
        Self {
            smoke: true,
            device: "cpu".to_owned(),
            ..Self::default()
        }
    }

    fn size(&self) -> &'static str {
        match (self.smoke, self.quick) {
            (true, _) => "smoke",
            (_, true) => "quick",
            _ => "full",
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let recipes = choose(arguments, recipe::all()?)?;
    if arguments.list {
        list(&recipes);
        return Ok(());
    }
    if arguments.pages {
        return write_pages_again(&arguments.names, &recipes);
    }
    setup::ensure()?;
    models::build_program()?;
    let _lock = cache::lock(
        &shell::root().join("runs").join(".reproduce.lock"),
        "reproduction in this folder",
    )?;
    let start = Instant::now();
    let mut results = Vec::new();
    let mut failed = Vec::new();
    for (index, recipe) in recipes.iter().enumerate() {
        let name = &recipe.head.name;
        say!(
            "[{}/{}] {} ({} size)",
            index + 1,
            recipes.len(),
            recipe.head.title,
            arguments.size()
        );
        if arguments.names.is_empty() && out_of_reach(recipe)? {
            say!(
                "  skipped: its data needs an account or a file of yours; name the recipe to see which, or fetch the data first"
            );
            continue;
        }
        match one(recipe, arguments) {
            Ok(result) => results.push(result),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failed.push(name.clone());
            }
        }
    }
    if !results.is_empty() {
        say!("\n{}", aligned(&page::table(&results, false)));
    }
    say!(
        "{} of {} recipes ran, in {}",
        results.len(),
        recipes.len(),
        minutes(start.elapsed().as_secs())
    );
    if arguments.size() != "smoke" && !results.is_empty() {
        index::write_index()?;
        say!("pages are in docs/src/reproduction, runs in runs");
    }
    if !failed.is_empty() {
        bail!(
            "{} failed; the reasons are above, and the same command goes on where each stopped",
            failed.join(", ")
        );
    }
    Ok(())
}

fn choose(arguments: &Arguments, all: Vec<Recipe>) -> Result<Vec<Recipe>> {
    if arguments.names.is_empty() {
        let quick = arguments.quick;
        return Ok(all
            .into_iter()
            .filter(|recipe| !quick || recipe.head.in_quick)
            .collect());
    }
    let known: Vec<String> = all.iter().map(|recipe| recipe.head.name.clone()).collect();
    if let Some(name) = arguments.names.iter().find(|name| !known.contains(*name)) {
        bail!(
            "there is no recipe {name:?}; there are {}",
            known.join(", ")
        );
    }
    Ok(all
        .into_iter()
        .filter(|recipe| arguments.names.contains(&recipe.head.name))
        .collect())
}

/// Whether the recipe's data is not there and only a person can fetch or bring it.
fn out_of_reach(recipe: &Recipe) -> Result<bool> {
    let mirror = shell::variable("DENSELY_DATA_MIRROR");
    for name in recipe.head.data.sets() {
        let set = dataset::find(name)?;
        if !set.needs_a_person() {
            continue;
        }
        let there = set.states(false)?.iter().all(|(file, state)| {
            let mirrored = mirror
                .as_ref()
                .is_some_and(|mirror| Path::new(mirror).join(&file.mirror).is_file());
            *state == dataset::State::Good || mirrored
        });
        if !there {
            return Ok(true);
        }
    }
    Ok(false)
}

fn list(recipes: &[Recipe]) {
    say!(
        "{:<26} {:<10} {:<26} {:<6} {:<24} title",
        "name",
        "domain",
        "data",
        "quick",
        "published"
    );
    for Recipe { head, .. } in recipes {
        let published = head
            .published
            .as_ref()
            .map_or_else(|| "–".to_owned(), |p| format!("{} {}", p.metric, p.value));
        let sets: Vec<&str> = head.data.sets().map(String::as_str).collect();
        let data = if sets.is_empty() {
            "generated".to_owned()
        } else {
            sets.join(", ")
        };
        say!(
            "{:<26} {:<10} {data:<26} {:<6} {published:<24} {}",
            head.name,
            head.domain,
            if head.in_quick { "yes" } else { "no" },
            head.title
        );
    }
}

/// Trains one recipe and writes its page.
fn one(recipe: &Recipe, arguments: &Arguments) -> Result<Reproduction> {
    let head = &recipe.head;
    let size = arguments.size();
    let folder = run_folder(&head.name, size);
    let commit = shell::commit();
    // Equal text, size, device and code: then an unfinished run may go on.
    let stamp = format!(
        "# {size}, device {}, commit {commit}\n{}",
        arguments.device, recipe.text
    );
    let resumed = prepare(&folder, &stamp)?;
    let mut command = models::program();
    command
        .arg("train")
        .arg(&recipe.path)
        .arg("--out")
        .arg(&folder)
        .args(["--json", "--device", &arguments.device]);
    if let Some(folder) = head.data.get(arguments.offline)? {
        command.arg("--data-dir").arg(folder);
    }
    match size {
        "quick" => drop(command.arg("--quick")),
        "smoke" => drop(command.arg("--smoke")),
        _ => {}
    }
    if resumed {
        command.arg("--resume");
    }
    let printed = shell::output(&mut command)?;
    let outcome = last_json(&printed)?;
    // Finished: the next reproduction starts anew.
    std::fs::remove_file(stamp_path(&folder))
        .with_context(|| format!("cannot remove {}", stamp_path(&folder).display()))?;
    let mut result = assemble(recipe, arguments, &outcome, commit)?;
    if resumed {
        let time = match head.domain.as_str() {
            "interp" => "its time and its peak memory are those of the last part",
            _ => "its time is that of all finished epochs, its peak memory that of the last part",
        };
        result
            .notes
            .push(format!("The run was interrupted and went on; {time}."));
    }
    if let Some(comparison) = &result.comparison {
        say!("\n{}\n", aligned(&page::compared(comparison)));
    }
    if size != "smoke" {
        index::write_pages(&result, &outcome.plots)?;
    }
    Ok(result)
}

fn run_folder(name: &str, size: &str) -> PathBuf {
    let name = if size == "full" {
        name.to_owned()
    } else {
        format!("{name}-{size}")
    };
    shell::root().join("runs").join(name)
}

/// Beside the run folder while its run is unfinished.
fn stamp_path(folder: &Path) -> PathBuf {
    let name = folder
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    folder.with_file_name(format!(".{name}.unfinished"))
}

/// Makes room for a run, or says that the one in the folder goes on. An older run is kept once, as `<name>.previous`.
fn prepare(folder: &Path, stamp: &str) -> Result<bool> {
    let path = stamp_path(folder);
    if folder.exists() {
        if std::fs::read_to_string(&path).is_ok_and(|old| old == stamp) {
            say!("  going on with {}", shell::shown(folder));
            return Ok(true);
        }
        let previous = PathBuf::from(format!("{}.previous", folder.display()));
        if previous.exists() {
            std::fs::remove_dir_all(&previous)
                .map_err(|error| cache::explain("remove", &previous, &error))?;
        }
        std::fs::rename(folder, &previous)
            .map_err(|error| cache::explain("move the earlier run to", &previous, &error))?;
        say!("  the earlier run is now {}", shell::shown(&previous));
    }
    cache::write(&path, stamp.as_bytes())?;
    Ok(false)
}

/// The last line that is a JSON object.
fn last_json(printed: &str) -> Result<Outcome> {
    let line = printed.lines().rev().find(|line| line.starts_with('{'));
    let line = line.ok_or_else(|| {
        anyhow!(
            "the program printed no result; run the same command with the messages above in view"
        )
    })?;
    serde_json::from_str(line)
        .context("the program's result is not of the expected form; build it again")
}

fn assemble(
    recipe: &Recipe,
    arguments: &Arguments,
    outcome: &Outcome,
    commit: String,
) -> Result<Reproduction> {
    let head = &recipe.head;
    let size = arguments.size();
    let mut notes = Vec::new();
    let mut metrics = BTreeMap::new();
    for (name, measured) in &outcome.metrics {
        let published = head
            .published
            .as_ref()
            .filter(|published| published.metric == *name);
        let metric = Metric {
            direction: measured.direction.clone(),
            published: published.map(|p| PublishedValue {
                value: p.value,
                source: p.source.clone(),
                tolerance: p.tolerance,
            }),
            reference: None,
            ours: Ours {
                seeds: measured.seeds.clone(),
                mean: measured.mean,
                sd: measured.sd,
            },
        };
        metrics.insert(name.clone(), metric);
    }
    if let Some(published) = &head.published {
        let remark = match size {
            "full" => {
                "its split and its tuned settings are the paper's own, so the last digits may differ"
            }
            _ => {
                "it is of the full size and of the paper's own split: this run is smaller, so the two are not to be compared"
            }
        };
        notes.push(format!("Published: {} ({remark}).", published.source));
    }
    let mut command = format!("cargo xtask reproduce {}", head.name);
    if size != "full" {
        command = format!("{command} --{size}");
    }
    let mut result = Reproduction {
        name: head.name.clone(),
        title: head.title.clone(),
        size: size.to_owned(),
        command,
        commit,
        machine: Machine {
            cpu: cpu_name(),
            threads: outcome.threads,
            device: outcome.device.clone(),
        },
        metrics,
        seconds: outcome.seconds,
        peak_mb: outcome.peak_mb,
        params: outcome.params,
        comparison: outcome.comparison.clone(),
        report: outcome.report.clone(),
        notes,
        stem: head.name.clone(),
    };
    put_reference(&mut result, recipe)?;
    Ok(result)
}

/// Puts the committed figures of the reference beside ours, in the place of those that stood there.
fn put_reference(result: &mut Reproduction, recipe: &Recipe) -> Result<()> {
    result.notes.retain(|note| !note.starts_with("Reference:"));
    let yardstick = yardstick(recipe, &result.size, &mut result.notes)?;
    for (name, metric) in &mut result.metrics {
        let of_metric = yardstick
            .as_ref()
            .filter(|yardstick| yardstick.metric == *name);
        metric.reference = of_metric.map(|r| Reference {
            package: r.package.clone(),
            version: r
                .versions
                .get(&r.package)
                .cloned()
                .unwrap_or_else(|| "unknown".to_owned()),
            seeds: r.seeds.clone(),
            mean: r.mean,
            sd: r.sd,
        });
    }
    if let Some(yardstick) = &yardstick {
        let versions: Vec<String> = yardstick
            .versions
            .iter()
            .map(|(name, version)| format!("{name} {version}"))
            .collect();
        result.notes.push(format!(
            "Reference: the package {} on the same rows, preprocessing and settings ({}).",
            yardstick.package,
            versions.join(", ")
        ));
    }
    Ok(())
}

/// Writes the pages of kept results again, with the reference's figures as they are now; nothing is trained.
fn write_pages_again(names: &[String], recipes: &[Recipe]) -> Result<()> {
    let mut written = 0;
    for mut result in index::kept()? {
        let recipe = recipes
            .iter()
            .find(|recipe| recipe.head.name == result.name);
        let wanted = names.is_empty() || names.contains(&result.name);
        if let Some(recipe) = recipe.filter(|_| wanted) {
            put_reference(&mut result, recipe)?;
            index::write_page_again(&result)?;
            written += 1;
        }
    }
    index::write_index()?;
    say!("{written} pages in docs/src/reproduction are written again");
    Ok(())
}

/// The reference's figures, when there are any of the same size.
fn yardstick(recipe: &Recipe, size: &str, notes: &mut Vec<String>) -> Result<Option<Yardstick>> {
    let path = recipe.reference_path();
    let Ok(text) = std::fs::read_to_string(&path) else {
        notes.push("Reference: no figures are committed yet.".to_owned());
        return Ok(None);
    };
    let yardstick: Yardstick = serde_json::from_str(&text).with_context(|| {
        format!(
            "{} is not a reference's figures; write it again with its script",
            shell::shown(&path)
        )
    })?;
    if yardstick.size != size {
        if size != "smoke" {
            notes.push(format!(
                "Reference: figures are committed for the {} size only.",
                yardstick.size
            ));
        }
        return Ok(None);
    }
    Ok(Some(yardstick))
}

/// A Markdown table with columns that line up on a terminal.
fn aligned(table: &str) -> String {
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| !line.starts_with("| ---"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let lines = rows.iter().map(|row| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The processor's name, where the system tells it.
pub(crate) fn cpu_name() -> String {
    let linux = std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| cpu_in(&text));
    linux
        .or_else(|| shell::probe("sysctl", &["-n", "machdep.cpu.brand_string"]))
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The name in the text of `/proc/cpuinfo`, with the numbers that tell generations apart: virtual machines often say no more than
/// "AMD EPYC".
fn cpu_in(text: &str) -> Option<String> {
    let field = |key: &str| {
        let mut fields = text.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = fields.find(|(name, _)| name.trim() == key)?;
        Some(value.trim())
    };
    let name = field("model name")?;
    Some(match (field("cpu family"), field("model")) {
        (Some(family), Some(model)) => format!("{name}, family {family} model {model}"),
        _ => name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_of_a_processor_have_different_names() {
        let text = "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n";
        assert_eq!(cpu_in(text).as_deref(), Some("AMD EPYC, family 26 model 2"));
        assert_eq!(cpu_in("model name : Arm\n").as_deref(), Some("Arm"));
        assert_eq!(cpu_in(""), None);
    }

    #[test]
    fn an_unfinished_run_goes_on_only_when_nothing_has_changed() -> Result<()> {
        let root = tempfile::tempdir()?;
        let folder = root.path().join("runs").join("x-quick");
        assert!(!prepare(&folder, "a")?, "nothing there yet");
        std::fs::create_dir_all(&folder)?;
        assert!(prepare(&folder, "a")?, "unfinished and equal");
        assert!(!prepare(&folder, "b")?, "another recipe");
        assert!(!folder.exists() && root.path().join("runs/x-quick.previous").is_dir());
        std::fs::create_dir_all(&folder)?;
        std::fs::remove_file(stamp_path(&folder))?;
        assert!(!prepare(&folder, "b")?, "finished");
        Ok(())
    }

    #[test]
    fn the_result_is_the_last_json_line() {
        let line = r#"{"metrics":{},"seconds":1.0,"device":"cpu","threads":2}"#;
        assert!(last_json(&format!("text\n{line}\n")).is_ok());
        assert!(last_json("text\n").is_err());
        assert!(last_json("{\"a\":1}").is_err());
    }

    #[test]
    fn tables_line_up() {
        assert_eq!(
            aligned("| a | bb |\n| --- | --- |\n| ccc | d |\n"),
            "a    bb\nccc  d"
        );
    }
}
