//! `cargo xtask bench`: criterion benchmarks; with `--peers` the same work in Python in turn, as ratios.
//!
//! A side is a program that measures one case whenever a line arrives on its standard input (the lines are described in
//! benches/examples/side.rs). All sides of a case live together and measure alternately, A B C A B C, so that a slow minute of
//! the machine hits all, nothing is compiled twice, and the peak of a process's memory is that of its case.

mod page;
mod side;
mod tables;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use self::page::{Entry, Ratio, publish, quantile, rows, sorted};
use self::side::{Ready, Round, Side, agree, same_predictions};
use crate::goldens;
use crate::models;
use crate::reproduce::cpu_name;
use crate::setup;
use crate::shell;

/// Example: `cargo xtask bench --peers tabm-8 --threads 1`
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Cases whose name (such as `tabm-8/train-256`) contains one of these; all by default.
    names: Vec<String>,
    /// Run PyTorch, eager and compiled, in turn with ours and write the ratios to docs/src/benchmarks.md.
    #[arg(long)]
    peers: bool,
    /// How often each side measures.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Threads of each side, with --peers; may be given several times.
    #[arg(long, default_values_t = [1, 2], value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Vec<u32>,
    /// `f32`, or `bf16` under autocast on both sides, with --peers.
    #[arg(long, default_value = "f32", value_parser = ["f32", "bf16"])]
    dtype: String,
    /// Where to compute, with --peers.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Fit and predict flights beside XGBoost, LightGBM and the package `tabm`, for docs/src/benchmarks-tables.md.
    #[arg(long, conflicts_with_all = ["peers", "predict", "save", "against"])]
    flights: bool,
    /// Predict a table of ROWS rows (10 million) beside pandas and the package `tabm`, for docs/src/benchmarks-tables.md.
    #[arg(
        long, value_name = "ROWS", num_args = 0..=1, default_missing_value = "10000000",
        value_parser = clap::value_parser!(u64).range(10..=1_000_000_000), conflicts_with_all = ["peers", "save", "against"]
    )]
    predict: Option<u64>,
    /// Keep criterion's times under this name.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["peers", "against"])]
    save: Option<String>,
    /// Compare criterion's times with those kept under this name, of another commit of ours.
    #[arg(long, value_name = "NAME", conflicts_with = "peers")]
    against: Option<String>,
}

/// The other sides, by name, and whether each computes in f32 whatever ours does.
fn peers(dtype: &str) -> Vec<(&'static str, bool)> {
    let mut peers = vec![("eager", false), ("compiled", false)];
    if dtype != "f32" {
        peers.extend([(EAGER_F32, true), (COMPILED_F32, true)]);
    }
    peers
}

const EAGER_F32: &str = "eager f32";
const COMPILED_F32: &str = "compiled f32";

/// A line of `side --list`.
#[derive(Debug, Clone, Deserialize)]
struct Case {
    workload: String,
    model: String,
    phase: String,
    batch: u64,
    /// The script in benches/peers that does the same work.
    peer: String,
}

impl Case {
    fn name(&self) -> String {
        format!("{}/{}-{}", self.workload, self.phase, self.batch)
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure()?;
    if arguments.peers {
        return compare(arguments);
    }
    if arguments.flights {
        return tables::flights(&arguments.threads, arguments.rounds);
    }
    if let Some(rows) = arguments.predict {
        return tables::predict(&arguments.threads, arguments.rounds, rows);
    }
    let mut command = shell::cargo(&[
        "bench",
        "--workspace",
        "--bench",
        "models",
        "--profile",
        "dev",
        "--",
    ]);
    command.args(&arguments.names);
    if let Some(name) = &arguments.save {
        command.args(["--save-baseline", name]);
    }
    if let Some(name) = &arguments.against {
        let saved = saved(&shell::target().join("criterion"));
        if !saved.contains(name) {
            let known: Vec<String> = saved.into_iter().collect();
            bail!(
                "no times are kept under `{name}`: {}; keep some with `cargo xtask bench --save {name}`",
                if known.is_empty() {
                    "none are kept at all".to_owned()
                } else {
                    format!("there are {}", known.join(", "))
                }
            );
        }
        command.args(["--baseline", name]);
    }
    shell::run(&mut command)
}

/// Names under which criterion keeps times, in `criterion/GROUP/CASE/NAME`.
fn saved(criterion: &Path) -> BTreeSet<String> {
    let inside = |folder: PathBuf| {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        entries.flatten().map(|entry| entry.path())
    };
    inside(criterion.to_owned())
        .flat_map(inside)
        .flat_map(inside)
        .filter(|folder| folder.join("estimates.json").is_file())
        .filter_map(|folder| Some(folder.file_name()?.to_string_lossy().into_owned()))
        .filter(|name| !["base", "new", "change"].contains(&name.as_str()))
        .collect()
}

/// The name of what computes: the GPU's where `device` is one.
fn processor(device: &str) -> Result<String> {
    let Some(index) = device.strip_prefix("cuda:") else {
        return Ok(cpu_name());
    };
    let asked = ["--query-gpu=name", "--format=csv,noheader", "--id", index];
    shell::probe("nvidia-smi", &asked)
        .filter(|name| !name.is_empty())
        .with_context(|| format!("nvidia-smi knows no GPU {index}"))
}

fn compare(arguments: &Arguments) -> Result<()> {
    let python = goldens::python()?;
    models::build("--example", "side")?;
    let side = || models::example("side");
    let listed = shell::output(side().arg("--list"))?;
    let cases = listed
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect::<Result<Vec<Case>>>()?;
    let all: Vec<String> = cases.iter().map(Case::name).collect();
    let wanted = |case: &&Case| {
        arguments.names.is_empty()
            || arguments
                .names
                .iter()
                .any(|part| case.name().contains(part))
    };
    let cases: Vec<&Case> = cases.iter().filter(wanted).collect();
    if cases.is_empty() {
        bail!(
            "no case's name contains {:?}; there are {}",
            arguments.names,
            all.join(", ")
        );
    }
    let docs = shell::root().join("docs").join("src");
    let (commit, cpu) = (shell::commit(), processor(&arguments.device)?);
    for threads in &arguments.threads {
        for case in &cases {
            let of_case = |dtype: &str| {
                let batch = case.batch.to_string();
                [
                    &case.workload,
                    &case.phase,
                    &batch,
                    dtype,
                    &arguments.device,
                ]
                .map(str::to_owned)
            };
            let mut ours = side();
            ours.args(of_case(&arguments.dtype));
            let mut commands = vec![ours];
            for (peer, in_f32) in peers(&arguments.dtype) {
                let mut command = shell::command(&python);
                command.arg(shell::root().join("benches").join("peers").join(&case.peer));
                command.args(of_case(if in_f32 { "f32" } else { &arguments.dtype }));
                command.arg(peer.split(' ').next().unwrap_or(peer));
                commands.push(command);
            }
            for command in &mut commands {
                let threads = threads.to_string();
                command
                    .env("OMP_NUM_THREADS", &threads)
                    .env("MKL_NUM_THREADS", &threads);
            }
            let measured = measure(&mut commands, arguments.rounds, *threads, &arguments.dtype)
                .with_context(|| format!("{} with {threads} threads", case.name()))?;
            let entries = entries(case, arguments, *threads, &measured, &commit, &cpu)?;
            eprint!("{}", rows(&entries));
            publish(&docs, entries)?;
        }
    }
    say!("docs/src/benchmarks.md and .json are written");
    Ok(())
}

/// What the sides of a case said, ours first.
struct Measured {
    rounds: Vec<Vec<Round>>,
    peaks: Vec<Option<f64>>,
}

fn measure(commands: &mut [Command], rounds: u32, threads: u32, dtype: &str) -> Result<Measured> {
    // One after the other: starting and compiling must not disturb another side's warm-up.
    let mut sides = Vec::new();
    let mut said: Vec<Ready> = Vec::new();
    for command in commands {
        let mut side = Side::start(command)?;
        let ready: Ready = side.read()?;
        if ready.threads != threads {
            bail!(
                "`{}` runs {} threads, not {threads}",
                side.what,
                ready.threads
            );
        }
        if let Some(first) = said.first() {
            agree(first, &ready, dtype).with_context(|| side.what.clone())?;
        }
        said.push(ready);
        sides.push(side);
    }
    let mut measured = vec![Vec::new(); sides.len()];
    for _ in 0..rounds {
        for (side, measured) in sides.iter_mut().zip(&mut measured) {
            let round = side.measure()?;
            same_predictions(measured.first(), &round).with_context(|| side.what.clone())?;
            measured.push(round);
        }
    }
    let peaks = sides.into_iter().map(Side::end).collect::<Result<_>>()?;
    Ok(Measured {
        rounds: measured,
        peaks,
    })
}

fn entries(
    case: &Case,
    arguments: &Arguments,
    threads: u32,
    measured: &Measured,
    commit: &str,
    cpu: &str,
) -> Result<Vec<Entry>> {
    let medians = |rounds: &[Round]| {
        rounds
            .iter()
            .map(|round| {
                quantile(&sorted(&round.ms), 0.5).ok_or_else(|| anyhow!("a round is empty"))
            })
            .collect::<Result<Vec<f64>>>()
    };
    let middle = |values: &[f64]| quantile(&sorted(values), 0.5).unwrap_or(f64::NAN);
    let spread = |rounds: &[Round]| {
        let all = sorted(
            &rounds
                .iter()
                .flat_map(|round| round.ms.clone())
                .collect::<Vec<_>>(),
        );
        [0.05, 0.95].map(|q| quantile(&all, q).unwrap_or(f64::NAN))
    };
    let ours = &measured.rounds[0];
    let mine = medians(ours)?;
    let floors = ours
        .iter()
        .map(|round| {
            round
                .floor_ms
                .ok_or_else(|| anyhow!("our side told no floor"))
        })
        .collect::<Result<Vec<f64>>>()?;
    (1..)
        .zip(peers(&arguments.dtype))
        .map(|(side, (peer, _))| {
            let theirs = medians(&measured.rounds[side])?;
            let checksum = |side: usize| {
                measured.rounds[side]
                    .first()
                    .and_then(|round| round.checksum.clone())
            };
            Ok(Entry {
                workload: case.workload.clone(),
                model: case.model.clone(),
                phase: case.phase.clone(),
                batch: case.batch,
                dtype: arguments.dtype.clone(),
                device: arguments.device.clone(),
                threads,
                peer: peer.to_owned(),
                ratio: Ratio::of(&theirs, &mine)?,
                over_floor: Ratio::of(&mine, &floors)?,
                ours_ms: middle(&mine),
                peer_ms: middle(&theirs),
                floor_ms: middle(&floors),
                ours_percentiles_ms: spread(ours),
                peer_percentiles_ms: spread(&measured.rounds[side]),
                ours_peak_mb: measured.peaks[0],
                peer_peak_mb: measured.peaks[side],
                ours_checksum: checksum(0),
                peer_checksum: checksum(side),
                rounds: arguments.rounds,
                commit: commit.to_owned(),
                cpu: cpu.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_under_the_names_that_keep_them() -> Result<()> {
        let folder = tempfile::tempdir()?;
        assert!(saved(&folder.path().join("none")).is_empty());
        for name in ["before", "base", "new"] {
            let kept = folder.path().join("tabm-8").join("infer-1").join(name);
            std::fs::create_dir_all(&kept)?;
            std::fs::write(kept.join("estimates.json"), "{}")?;
        }
        std::fs::create_dir_all(folder.path().join("tabm-8").join("infer-1").join("report"))?;
        assert_eq!(saved(folder.path()), BTreeSet::from(["before".to_owned()]));
        Ok(())
    }
}
