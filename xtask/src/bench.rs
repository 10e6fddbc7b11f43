//! `cargo xtask bench`: criterion benchmarks; with `--peers` the same work in Python in turn, as ratios.
//!
//! A side is a program that prints JSON lines `{workload, model, phase, batch, threads, dtype, ms: […], checksum}` (peers also
//! `peer`, such as `eager` or `compiled`). The sides run alternately, so that a slow minute of the machine hits both.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::cache;
use crate::goldens;
use crate::reproduce::cpu_name;
use crate::setup;
use crate::shell;

/// Example: `cargo xtask bench --peers tabm-small`
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Benchmarks (without --peers) or workloads (with it) whose name contains one of these.
    names: Vec<String>,
    /// Run both sides in turn and write the ratios to docs/src/benchmarks.md.
    #[arg(long)]
    peers: bool,
    /// How often each side runs.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

/// One line that a side prints.
#[derive(Debug, Clone, Deserialize)]
struct Line {
    workload: String,
    phase: String,
    batch: u64,
    threads: u32,
    dtype: String,
    #[serde(default = "cpu")]
    device: String,
    /// Which peer; ours has none.
    #[serde(default = "eager")]
    peer: String,
    ms: Vec<f64>,
    peak_mb: Option<f64>,
}

fn cpu() -> String {
    "cpu".to_owned()
}

fn eager() -> String {
    "eager".to_owned()
}

/// What both sides must agree on to be compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    workload: String,
    phase: String,
    batch: u64,
    dtype: String,
    device: String,
    threads: u32,
}

/// The median of each round, and the highest memory.
#[derive(Debug, Clone, Default)]
struct Side {
    rounds: Vec<f64>,
    peak_mb: Option<f64>,
}

/// An entry of `docs/src/benchmarks.json`.
#[derive(Debug, Clone, Serialize)]
struct Entry {
    workload: String,
    phase: String,
    batch: u64,
    dtype: String,
    device: String,
    threads: u32,
    peer: String,
    /// Peer's time / our time, per round.
    ratio: Ratio,
    ours_ms: f64,
    peer_ms: f64,
    floor_ms: Option<f64>,
    ours_peak_mb: Option<f64>,
    peer_peak_mb: Option<f64>,
    commit: String,
    cpu: String,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Ratio {
    median: f64,
    min: f64,
    max: f64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure()?;
    if !arguments.peers {
        let mut command =
            shell::cargo(&["bench", "--package", "densely-benches", "--profile", "dev"]);
        if !arguments.names.is_empty() {
            command.arg("--").args(&arguments.names);
        }
        return shell::run(&mut command);
    }
    let python = goldens::python()?;
    let scripts: Vec<PathBuf> = shell::walk(
        &shell::root().join("benches").join("peers"),
        &["__pycache__"],
    )?
    .into_iter()
    .filter(|path| path.extension().is_some_and(|ending| ending == "py"))
    .collect();
    if scripts.is_empty() {
        bail!("there is no script in benches/peers; check the checkout");
    }
    shell::run(&mut shell::cargo(&[
        "build",
        "--package",
        "densely-benches",
        "--example",
        "peer_times",
    ]))?;
    let mut ours: BTreeMap<Key, Side> = BTreeMap::new();
    let mut peers: BTreeMap<(Key, String), Side> = BTreeMap::new();
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}", arguments.rounds);
        let mut mine = shell::cargo(&[
            "run",
            "--quiet",
            "--package",
            "densely-benches",
            "--example",
            "peer_times",
            "--",
        ]);
        for (key, _, line) in measure(mine.args(&arguments.names))? {
            ours.entry(key).or_default().add(&line)?;
        }
        for script in &scripts {
            for (key, peer, line) in
                measure(shell::command(&python).arg(script).args(&arguments.names))?
            {
                peers.entry((key, peer)).or_default().add(&line)?;
            }
        }
    }
    let entries = compare(&ours, &peers, &shell::commit(), &cpu_name())?;
    if entries.is_empty() {
        bail!(
            "the two sides have no workload in common; their lines must agree in workload, phase, batch, dtype, device and threads"
        );
    }
    let table = markdown(&entries);
    say!("{table}");
    let docs = shell::root().join("docs").join("src");
    cache::write(
        &docs.join("benchmarks.json"),
        format!("{}\n", serde_json::to_string_pretty(&entries)?).as_bytes(),
    )?;
    cache::write(
        &docs.join("benchmarks.md"),
        page(&entries, &table, arguments.rounds).as_bytes(),
    )?;
    say!("docs/src/benchmarks.md and .json are written");
    Ok(())
}

/// Runs one side once.
fn measure(command: &mut Command) -> Result<Vec<(Key, String, Line)>> {
    let what = shell::line_of(command);
    let printed = shell::output(command)?;
    parse(&printed).with_context(|| format!("`{what}` did not print times as JSON lines"))
}

fn parse(printed: &str) -> Result<Vec<(Key, String, Line)>> {
    let mut lines = Vec::new();
    for text in printed.lines().filter(|line| line.starts_with('{')) {
        let line: Line = serde_json::from_str(text).with_context(|| shell::shorten(text, 120))?;
        let key = Key {
            workload: line.workload.clone(),
            phase: line.phase.clone(),
            batch: line.batch,
            dtype: line.dtype.clone(),
            device: line.device.clone(),
            threads: line.threads,
        };
        lines.push((key, line.peer.clone(), line));
    }
    Ok(lines)
}

impl Side {
    fn add(&mut self, line: &Line) -> Result<()> {
        let median = median(&line.ms).filter(|median| *median > 0.0);
        self.rounds
            .push(median.ok_or_else(|| {
                anyhow!("{} {} has no positive times", line.workload, line.phase)
            })?);
        self.peak_mb = [self.peak_mb, line.peak_mb]
            .into_iter()
            .flatten()
            .reduce(f64::max);
        Ok(())
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = values
        .iter()
        .copied()
        .filter(|value| value.is_finite())
        .collect();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

fn compare(
    ours: &BTreeMap<Key, Side>,
    peers: &BTreeMap<(Key, String), Side>,
    commit: &str,
    cpu: &str,
) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for ((key, peer), theirs) in peers {
        let Some(mine) = ours.get(key) else { continue };
        let ratios: Vec<f64> = mine
            .rounds
            .iter()
            .zip(&theirs.rounds)
            .map(|(mine, theirs)| theirs / mine)
            .collect();
        let none = || {
            anyhow!(
                "{} {} was not measured in the same rounds",
                key.workload,
                key.phase
            )
        };
        let ratio = Ratio {
            median: median(&ratios).ok_or_else(none)?,
            min: ratios.iter().copied().reduce(f64::min).ok_or_else(none)?,
            max: ratios.iter().copied().reduce(f64::max).ok_or_else(none)?,
        };
        entries.push(Entry {
            workload: key.workload.clone(),
            phase: key.phase.clone(),
            batch: key.batch,
            dtype: key.dtype.clone(),
            device: key.device.clone(),
            threads: key.threads,
            peer: peer.clone(),
            ratio,
            ours_ms: median(&mine.rounds).ok_or_else(none)?,
            peer_ms: median(&theirs.rounds).ok_or_else(none)?,
            floor_ms: None,
            ours_peak_mb: mine.peak_mb,
            peer_peak_mb: theirs.peak_mb,
            commit: commit.to_owned(),
            cpu: cpu.to_owned(),
        });
    }
    Ok(entries)
}

fn markdown(entries: &[Entry]) -> String {
    let mut table = String::from(
        "| workload | phase | batch | dtype | threads | PyTorch | ratio (min–max) | ours, ms | theirs, ms | peak MB, ours / theirs |\n| --- | --- | ---: | --- | ---: | --- | ---: | ---: | ---: | ---: |\n",
    );
    for entry in entries {
        let peak =
            |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |peak| format!("{peak:.0}"));
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} | {:.2} ({:.2}–{:.2}) | {:.2} | {:.2} | {} / {} |",
            entry.workload,
            entry.phase,
            entry.batch,
            entry.dtype,
            entry.threads,
            entry.peer,
            entry.ratio.median,
            entry.ratio.min,
            entry.ratio.max,
            entry.ours_ms,
            entry.peer_ms,
            peak(entry.ours_peak_mb),
            peak(entry.peer_peak_mb)
        );
    }
    table
}

fn page(entries: &[Entry], table: &str, rounds: u32) -> String {
    let (commit, cpu) = entries.first().map_or(("unknown", "unknown"), |entry| {
        (entry.commit.as_str(), entry.cpu.as_str())
    });
    format!(
        "<!-- Generated by `cargo xtask bench --peers`. -->\n# Benchmarks\n\nRatio = PyTorch's time / Densely's time: above 1 Densely is faster. Both sides ran in turn, {rounds} rounds, same sizes, same\nthreads; the ratio is the median over the rounds, with the smallest and the largest. Times are of this machine and say little by\nthemselves.\n\n{table}\nMachine: {cpu}; commit `{commit}`.\n\n```sh\ncargo xtask bench           # criterion, ours alone\ncargo xtask bench --peers   # both sides, writes this page\n```\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = r#"{"workload":"tabm-small","model":"tabm","phase":"train","batch":256,"threads":2,"dtype":"f32","ms":[10.0,12.0,11.0],"checksum":1.5}"#;

    #[test]
    fn ratios_are_taken_round_by_round() -> Result<()> {
        let mut ours = BTreeMap::new();
        let mut peers = BTreeMap::new();
        for factor in [1.0, 2.0, 3.0] {
            for (key, _, line) in parse(&format!("noise\n{OURS}\n"))? {
                ours.entry(key).or_insert_with(Side::default).add(&line)?;
            }
            let theirs = OURS.replace("[10.0,12.0,11.0]", &format!("[{}]", 11.0 * factor));
            for (key, peer, line) in parse(&theirs)? {
                peers
                    .entry((key, peer))
                    .or_insert_with(Side::default)
                    .add(&line)?;
            }
        }
        let entries = compare(&ours, &peers, "abc", "a CPU")?;
        let [entry] = entries.as_slice() else {
            bail!("one entry is expected: {entries:?}")
        };
        assert_eq!(
            (
                entry.ratio.median,
                entry.ratio.min,
                entry.ratio.max,
                entry.peer.as_str()
            ),
            (2.0, 1.0, 3.0, "eager")
        );
        assert!(markdown(&entries).contains("| 2.00 (1.00–3.00) | 11.00 | 22.00 |"));
        assert!(page(&entries, "", 3).contains("`abc`"));
        Ok(())
    }

    #[test]
    fn lines_that_cannot_be_read_are_named() {
        assert!(parse("{\"workload\":1}").is_err());
        assert!(parse("").is_ok_and(|lines| lines.is_empty()));
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0, 10.0]), Some(2.5));
    }
}
