//! `cargo xtask bench`: criterion benchmarks; with `--peers` the same work in Python in turn, as ratios.
//!
//! A side is a program that measures one case whenever a line arrives on its standard input (the lines are described in
//! benches/examples/side.rs). All sides of a case live together and measure alternately, A B C A B C, so that a slow minute of
//! the machine hits all, nothing is compiled twice, and the peak of a process's memory is that of its case.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::cache;
use crate::goldens;
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
    /// Keep criterion's times under this name.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["peers", "against"])]
    save: Option<String>,
    /// Compare criterion's times with those kept under this name, of another commit of ours.
    #[arg(long, value_name = "NAME", conflicts_with = "peers")]
    against: Option<String>,
}

const PEERS: [&str; 2] = ["eager", "compiled"];

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

/// What a side says before it measures.
#[derive(Debug, Clone, Deserialize)]
struct Ready {
    outputs: Vec<f64>,
    loss: f64,
    gradient_norm: f64,
    threads: u32,
}

/// One round of a side.
#[derive(Debug, Clone, Deserialize)]
struct Round {
    ms: Vec<f64>,
    floor_ms: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct End {
    peak_mb: Option<f64>,
}

/// A running side.
struct Side {
    what: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Side {
    fn start(command: &mut Command) -> Result<Self> {
        let what = shell::line_of(command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{what}`"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("`{what}` has no standard input or output")
        };
        let output = BufReader::new(output);
        Ok(Self {
            what,
            child,
            input,
            output,
        })
    }

    fn read<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                bail!("`{}` ended early; its own message is above", self.what);
            }
            if line.starts_with('{') {
                let what = || format!("`{}`: {}", self.what, shell::shorten(&line, 120));
                return serde_json::from_str(&line).with_context(what);
            }
        }
    }

    fn measure(&mut self) -> Result<Round> {
        writeln!(self.input, "measure")?;
        self.read()
    }

    fn end(mut self) -> Result<Option<f64>> {
        drop(self.input);
        let mut rest = String::new();
        self.output.read_line(&mut rest)?;
        let end: End = serde_json::from_str(&rest).with_context(|| self.what.clone())?;
        self.child.wait()?;
        Ok(end.peak_mb)
    }
}

/// An entry of `docs/src/benchmarks.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    workload: String,
    model: String,
    phase: String,
    batch: u64,
    dtype: String,
    device: String,
    threads: u32,
    peer: String,
    /// Peer's time / our time, per round.
    ratio: Ratio,
    /// Our time / the time of the matrix products alone, per round.
    over_floor: Ratio,
    ours_ms: f64,
    peer_ms: f64,
    floor_ms: f64,
    /// Fifth and ninety-fifth percentile of our single repetitions.
    ours_percentiles_ms: [f64; 2],
    peer_percentiles_ms: [f64; 2],
    ours_peak_mb: Option<f64>,
    peer_peak_mb: Option<f64>,
    rounds: u32,
    commit: String,
    cpu: String,
}

impl Entry {
    /// Rows of another commit are replaced by those with the same key.
    fn key(&self) -> (String, String, String, u32, String, u64, String) {
        (
            self.device.clone(),
            self.dtype.clone(),
            self.workload.clone(),
            self.threads,
            self.phase.clone(),
            self.batch,
            self.peer.clone(),
        )
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Ratio {
    median: f64,
    min: f64,
    max: f64,
}

impl Ratio {
    /// Round by round.
    fn of(above: &[f64], below: &[f64]) -> Result<Self> {
        let mut ratios: Vec<f64> = above.iter().zip(below).map(|(a, b)| a / b).collect();
        if ratios.iter().any(|ratio| !ratio.is_finite()) {
            bail!("a time of 0 was measured");
        }
        ratios.sort_by(f64::total_cmp);
        let nothing = || anyhow!("nothing was measured");
        Ok(Self {
            median: quantile(&ratios, 0.5).ok_or_else(nothing)?,
            min: *ratios.first().ok_or_else(nothing)?,
            max: *ratios.last().ok_or_else(nothing)?,
        })
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure()?;
    if arguments.peers {
        return compare(arguments);
    }
    let mut command = shell::cargo(&[
        "bench",
        "--package",
        "densely-benches",
        "--profile",
        "dev",
        "--",
    ]);
    command.args(&arguments.names);
    if let Some(name) = &arguments.save {
        command.args(["--save-baseline", name]);
    }
    if let Some(name) = &arguments.against {
        command.args(["--baseline", name]);
    }
    shell::run(&mut command)
}

fn compare(arguments: &Arguments) -> Result<()> {
    let python = goldens::python()?;
    let example = ["--package", "densely-benches", "--example", "side"];
    shell::run(shell::cargo(&["build"]).args(example))?;
    let side = || {
        let mut command = shell::cargo(&["run", "--quiet"]);
        command.args(example).arg("--");
        command
    };
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
    let (commit, cpu) = (shell::commit(), cpu_name());
    for threads in &arguments.threads {
        for case in &cases {
            let of_case = [
                case.phase.clone(),
                case.batch.to_string(),
                arguments.dtype.clone(),
                arguments.device.clone(),
            ];
            let mut ours = side();
            ours.arg(&case.workload).args(&of_case);
            let mut commands = vec![ours];
            for peer in PEERS {
                let mut command = shell::command(&python);
                command.arg(shell::root().join("benches").join("peers").join(&case.peer));
                command.arg(&case.workload).args(&of_case).arg(peer);
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
            measured.push(side.measure()?);
        }
    }
    let peaks = sides.into_iter().map(Side::end).collect::<Result<_>>()?;
    Ok(Measured {
        rounds: measured,
        peaks,
    })
}

/// Fails unless two sides compute the same function: predictions, loss and norm of the gradient.
fn agree(ours: &Ready, theirs: &Ready, dtype: &str) -> Result<()> {
    let (near, norms) = if dtype == "f32" {
        (1e-4, 1e-4)
    } else {
        (3e-2, 5e-2)
    };
    let largest = ours
        .outputs
        .iter()
        .fold(0.0f64, |most, y| most.max(y.abs()));
    if ours.outputs.len() != theirs.outputs.len() || !(largest > 0.0 && largest.is_finite()) {
        bail!("the sides predict different numbers of rows, or nothing");
    }
    let distances = ours
        .outputs
        .iter()
        .zip(&theirs.outputs)
        .map(|(a, b)| (a - b).abs());
    let distance = distances.fold(0.0, |most: f64, d| {
        if d.is_nan() {
            f64::INFINITY
        } else {
            most.max(d)
        }
    });
    if distance > near * largest {
        bail!("predictions differ by {distance:.3e} where the largest is {largest:.3e}");
    }
    for (what, a, b) in [
        ("loss", ours.loss, theirs.loss),
        ("gradient norm", ours.gradient_norm, theirs.gradient_norm),
    ] {
        if a.is_nan() || b.is_nan() || (a - b).abs() > norms * a.abs() {
            bail!("{what}: ours {a}, theirs {b}");
        }
    }
    Ok(())
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
        .zip(PEERS)
        .map(|(side, peer)| {
            let theirs = medians(&measured.rounds[side])?;
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
                rounds: arguments.rounds,
                commit: commit.to_owned(),
                cpu: cpu.to_owned(),
            })
        })
        .collect()
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// Of sorted values, linear between neighbours.
fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    let place = q * last as f64;
    let (low, high) = (
        *values.get(place.floor() as usize)?,
        *values.get(place.ceil() as usize)?,
    );
    Some(low + (high - low) * place.fract())
}

/// Puts `entries` in the place of those with the same key and writes the page anew, so that a run that is stopped keeps
/// what it has measured.
fn publish(docs: &Path, entries: Vec<Entry>) -> Result<()> {
    let path = docs.join("benchmarks.json");
    let known: Vec<Entry> = std::fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let all: BTreeMap<_, Entry> = known
        .into_iter()
        .chain(entries)
        .map(|entry| (entry.key(), entry))
        .collect();
    let all: Vec<Entry> = all.into_values().collect();
    cache::write(
        &path,
        format!("{}\n", serde_json::to_string_pretty(&all)?).as_bytes(),
    )?;
    cache::write(&docs.join("benchmarks.md"), page(&all).as_bytes())
}

/// Rows of the table: one per case, with all peers in it.
fn rows(entries: &[Entry]) -> String {
    let mut text = String::new();
    let mut cases: Vec<&Entry> = Vec::new();
    for entry in entries {
        let same = |e: &&Entry| {
            e.key().4 == entry.key().4
                && (&e.workload, e.batch, e.threads)
                    == (&entry.workload, entry.batch, entry.threads)
        };
        if !cases.iter().any(same) {
            cases.push(entry);
        }
    }
    for case in cases {
        let of = |peer: &str| {
            entries.iter().find(|e| {
                (&e.workload, &e.phase, e.batch, e.threads, e.peer.as_str())
                    == (&case.workload, &case.phase, case.batch, case.threads, peer)
            })
        };
        let ratio = |peer: &str| of(peer).map_or_else(|| "–".to_owned(), |e| ratio_text(e.ratio));
        let peak =
            |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |mb| format!("{mb:.0}"));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {:.2} | {} / {} / {} | `{}` |",
            case.workload,
            case.phase,
            case.batch,
            case.threads,
            ratio("eager"),
            ratio("compiled"),
            ratio_text(case.over_floor),
            case.ours_ms,
            peak(case.ours_peak_mb),
            peak(of("eager").and_then(|e| e.peer_peak_mb)),
            peak(of("compiled").and_then(|e| e.peer_peak_mb)),
            case.commit,
        );
    }
    text
}

fn ratio_text(ratio: Ratio) -> String {
    format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.min, ratio.max)
}

fn page(entries: &[Entry]) -> String {
    let mut text = String::from(PREFACE);
    let mut groups: BTreeMap<(String, String, String), Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        let key = (entry.device.clone(), entry.dtype.clone(), entry.cpu.clone());
        groups.entry(key).or_default().push(entry.clone());
    }
    for ((device, dtype, cpu), entries) in groups {
        let _ = write!(
            text,
            "\n## {dtype} on {device} ({cpu})\n\n| workload | phase | batch | threads | eager / ours | compiled / ours | ours / floor | ours, ms | peak MB: ours / eager / compiled | commit |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n{}",
            rows(&entries)
        );
    }
    text
}

const PREFACE: &str = "<!-- Generated by `cargo xtask bench --peers`. -->
# Benchmarks

Each row is one case measured on three sides in turn, in one run: Densely, PyTorch 2.11 eager, and `torch.compile`. *eager / ours* is
PyTorch's time divided by Densely's: above 1, Densely is faster. *ours / floor* is Densely's time divided by the time that libtorch
takes for the matrix products alone (training: plus the optimiser's memory traffic at the speed of a large copy): near 1, there is
nothing left to gain but faster products. Medians over the rounds, with the smallest and largest round. Before they are timed, the
sides must agree in predictions, loss and norm of the gradient. Sizes are the `tabm` package's defaults (k = 32, 3 blocks of 512,
dropout 0.1; the MLP: 2 blocks of 512 on piecewise-linear embeddings with 48 bins) with 8 or 100 numerical features; `small` is 2
blocks of 128. Times are of one machine and say little by themselves. [Performance](guide/performance.md) explains what is behind them.

```sh
cargo xtask bench --peers                     # all of it; hours on two cores
cargo xtask bench --peers tabm-8/train        # some of it: rows are replaced, others stay
cargo xtask bench --peers tabm-8 --dtype bf16
cargo xtask bench --save before               # criterion, ours alone ...
cargo xtask bench --against before            # ... and compared after a change
```
";

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(peer: &str, ms: f64) -> Entry {
        let ratio = Ratio {
            median: ms / 10.0,
            min: 1.0,
            max: 3.0,
        };
        Entry {
            workload: "tabm-8".to_owned(),
            model: "tabm".to_owned(),
            phase: "train".to_owned(),
            batch: 256,
            dtype: "f32".to_owned(),
            device: "cpu".to_owned(),
            threads: 1,
            peer: peer.to_owned(),
            ratio,
            over_floor: ratio,
            ours_ms: 10.0,
            peer_ms: ms,
            floor_ms: 9.0,
            ours_percentiles_ms: [9.0, 11.0],
            peer_percentiles_ms: [9.0, 11.0],
            ours_peak_mb: Some(100.0),
            peer_peak_mb: None,
            rounds: 7,
            commit: "abc".to_owned(),
            cpu: "a CPU".to_owned(),
        }
    }

    #[test]
    fn ratios_are_taken_round_by_round() -> Result<()> {
        let ratio = Ratio::of(&[10.0, 20.0, 60.0], &[10.0, 10.0, 20.0])?;
        assert_eq!((ratio.median, ratio.min, ratio.max), (2.0, 1.0, 3.0));
        assert!(Ratio::of(&[], &[]).is_err());
        assert!(Ratio::of(&[1.0], &[0.0]).is_err());
        Ok(())
    }

    #[test]
    fn a_page_has_one_row_per_case_with_both_peers() {
        let text = page(&[entry("compiled", 30.0), entry("eager", 20.0)]);
        let rows: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("| 256 |"))
            .collect();
        assert_eq!(
            rows,
            [
                "| tabm-8 | train | 256 | 1 | 2.00 (1.00–3.00) | 3.00 (1.00–3.00) | 3.00 (1.00–3.00) | 10.00 | 100 / – / – | `abc` |"
            ]
        );
    }

    #[test]
    fn a_new_row_takes_the_place_of_the_old_one_and_others_stay() -> Result<()> {
        let folder = tempfile::tempdir()?;
        publish(
            folder.path(),
            vec![entry("eager", 20.0), entry("compiled", 30.0)],
        )?;
        publish(folder.path(), vec![entry("eager", 25.0)])?;
        let text = std::fs::read_to_string(folder.path().join("benchmarks.json"))?;
        let entries: Vec<Entry> = serde_json::from_str(&text)?;
        let found: Vec<_> = entries
            .iter()
            .map(|e| (e.peer.as_str(), e.peer_ms))
            .collect();
        assert_eq!(found, [("compiled", 30.0), ("eager", 25.0)]);
        Ok(())
    }

    #[test]
    fn sides_that_compute_different_things_are_not_compared() {
        let ours = Ready {
            outputs: vec![0.5, -1.0],
            loss: 0.25,
            gradient_norm: 2.0,
            threads: 1,
        };
        assert!(agree(&ours, &ours, "f32").is_ok());
        let changes: [fn(&mut Ready); 5] = [
            |side| side.outputs[0] = 0.501,
            |side| side.outputs[0] = f64::NAN,
            |side| side.outputs.truncate(1),
            |side| side.loss = 0.2501,
            |side| side.gradient_norm = f64::NAN,
        ];
        for change in changes {
            let mut theirs = ours.clone();
            change(&mut theirs);
            assert!(agree(&ours, &theirs, "f32").is_err(), "{theirs:?}");
        }
        let theirs = Ready {
            loss: 0.251,
            ..ours.clone()
        };
        assert!(agree(&ours, &theirs, "bf16").is_ok());
    }
}
