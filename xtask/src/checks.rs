//! `cargo xtask test`, `lint` and `ci`: what must pass.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::libtorch;
use crate::reproduce;
use crate::setup;
use crate::shell;
use crate::tidy;

/// Example: `cargo xtask test -- tabm`
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct TestArguments {
    /// Run the tests that need CUDA too.
    #[arg(long)]
    gpu: bool,
    /// Passed on to `cargo test`.
    #[arg(last = true)]
    rest: Vec<String>,
}

pub(crate) fn test(arguments: &TestArguments) -> Result<()> {
    let start = Instant::now();
    setup::ensure()?;
    if arguments.gpu
        && !libtorch::link()
            .join("lib")
            .join("libtorch_cuda.so")
            .is_file()
    {
        bail!("--gpu needs the CUDA libraries; run `cargo xtask setup --cuda` first");
    }
    // With a filter only the tests are of interest.
    let whole = arguments.rest.is_empty();
    let mut failed = Vec::new();
    if whole {
        note("tidy", tidy::run(), &mut failed);
        note("examples", examples(), &mut failed);
    }
    let mut counts = Counts::default();
    note(
        "cargo test",
        cargo_test(
            &["test", "--workspace", "--no-fail-fast"],
            &arguments.rest,
            &mut counts,
        ),
        &mut failed,
    );
    if arguments.gpu {
        let ignored = ["--ignored".to_owned()];
        note(
            "GPU tests",
            cargo_test(
                &[
                    "test",
                    "--workspace",
                    "--no-fail-fast",
                    "--",
                    "--test-threads=1",
                ],
                &ignored,
                &mut counts,
            ),
            &mut failed,
        );
    }
    let seconds = start.elapsed().as_secs();
    say!(
        "{} tests passed, {} failed, {} ignored, in {}",
        counts.passed,
        counts.failed,
        counts.ignored,
        minutes(seconds)
    );
    if !failed.is_empty() {
        bail!("{} failed; the messages are above", failed.join(" and "));
    }
    Ok(())
}

pub(crate) fn lint() -> Result<()> {
    setup::ensure()?;
    let mut failed = Vec::new();
    note(
        "rustfmt",
        shell::run(&mut shell::cargo(&["fmt", "--all", "--check"]))
            .context("run `cargo fmt --all`"),
        &mut failed,
    );
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    note(
        "clippy",
        shell::run(&mut shell::cargo(&clippy)),
        &mut failed,
    );
    note(
        "documentation",
        shell::run(
            shell::cargo(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"),
        ),
        &mut failed,
    );
    if !failed.is_empty() {
        bail!("{} failed; the messages are above", failed.join(" and "));
    }
    Ok(())
}

pub(crate) fn ci() -> Result<()> {
    let mut failed = Vec::new();
    note("lint", lint(), &mut failed);
    note("test", test(&TestArguments::default()), &mut failed);
    note(
        "reproduce --smoke",
        reproduce::run(&reproduce::Arguments::smoke()),
        &mut failed,
    );
    if !failed.is_empty() {
        bail!("{} failed; the messages are above", failed.join(" and "));
    }
    Ok(())
}

/// Prints a failure at once and remembers its name: one run shows everything that is wrong.
fn note(name: &str, result: Result<()>, failed: &mut Vec<String>) {
    if let Err(error) = result {
        eprintln!("{name}: {error:#}");
        failed.push(name.to_owned());
    }
}

/// What the lines `test result: …` say together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    fn add(&mut self, line: &str) {
        let Some(rest) = line.trim_start().strip_prefix("test result:") else {
            return;
        };
        for part in rest.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u64>), words.next())
            else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

/// Runs `cargo test` with its output passed through and counted.
fn cargo_test(arguments: &[&str], rest: &[String], counts: &mut Counts) -> Result<()> {
    let mut command = shell::cargo(arguments);
    command.args(rest).stdout(Stdio::piped());
    let line = shell::line_of(&command);
    // A GPU would round convolutions to TF32, and their tests compare f32 with the processor's.
    command.env("NVIDIA_TF32_OVERRIDE", "0");
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let output = child
        .stdout
        .take()
        .ok_or_else(|| anyhow!("`{line}` has no output"))?;
    let mut reader = BufReader::new(output);
    let mut bytes = Vec::new();
    while reader
        .read_until(b'\n', &mut bytes)
        .with_context(|| format!("reading the output of `{line}`"))?
        > 0
    {
        let text = String::from_utf8_lossy(&bytes);
        say_part!("{text}");
        counts.add(&text);
        bytes.clear();
    }
    let status = child
        .wait()
        .with_context(|| format!("waiting for `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// An example program of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Example {
    package: String,
    name: String,
    features: Vec<String>,
}

/// Builds and runs every example: they are offline and take seconds.
fn examples() -> Result<()> {
    let metadata = shell::output(&mut shell::cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
    ]))?;
    let metadata: Value =
        serde_json::from_str(&metadata).context("`cargo metadata` did not print JSON")?;
    let examples = list_examples(&metadata);
    let mut failed = Vec::new();
    for example in &examples {
        let start = Instant::now();
        // Without `--package` the features are those of `cargo test --workspace`, and nothing is compiled twice.
        let mut command = shell::cargo(&["run", "--quiet", "--example", &example.name]);
        if !example.features.is_empty() {
            command.arg("--features").arg(example.features.join(","));
        }
        command.stdin(Stdio::null());
        say!("example {} of {}", example.name, example.package);
        if let Err(error) = shell::run(&mut command) {
            eprintln!("{error:#}");
            failed.push(example.name.as_str());
        } else {
            say!(
                "example {} ended well after {}",
                example.name,
                minutes(start.elapsed().as_secs())
            );
        }
    }
    if !failed.is_empty() {
        bail!("the examples {} failed", failed.join(", "));
    }
    Ok(())
}

/// Examples of `cargo metadata`; those of the benchmarks crate are measuring programs and take long.
fn list_examples(metadata: &Value) -> Vec<Example> {
    let mut examples = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        if name == "densely-benches" {
            continue;
        }
        for target in package["targets"].as_array().into_iter().flatten() {
            let is_example = target["kind"]
                .as_array()
                .is_some_and(|kinds| kinds.iter().any(|kind| kind == "example"));
            if is_example {
                examples.push(Example {
                    package: name.to_owned(),
                    name: target["name"].as_str().unwrap_or_default().to_owned(),
                    features: target["required-features"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|feature| feature.as_str().map(str::to_owned))
                        .collect(),
                });
            }
        }
    }
    examples
}

/// Seconds for people.
pub(crate) fn minutes(seconds: u64) -> String {
    if seconds < 120 {
        format!("{seconds} s")
    } else {
        format!("{} min {} s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn result_lines_are_added_up() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests\n",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n",
            "test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s\n",
            "test a::test_result ... ok\n",
        ] {
            counts.add(line);
        }
        assert_eq!(
            counts,
            Counts {
                passed: 13,
                failed: 2,
                ignored: 1
            }
        );
    }

    #[test]
    fn examples_are_found_with_their_features() {
        let metadata = json!({"packages": [
            {"name": "a", "targets": [{"kind": ["lib"], "name": "a"}, {"kind": ["example"], "name": "fit", "required-features": ["parquet"]}]},
            {"name": "densely-benches", "targets": [{"kind": ["example"], "name": "peer_times"}]},
        ]});
        let expected = Example {
            package: "a".to_owned(),
            name: "fit".to_owned(),
            features: vec!["parquet".to_owned()],
        };
        assert_eq!(list_examples(&metadata), [expected]);
    }

    #[test]
    fn durations_for_people() {
        assert_eq!(
            (minutes(5), minutes(125)),
            ("5 s".to_owned(), "2 min 5 s".to_owned())
        );
    }
}
