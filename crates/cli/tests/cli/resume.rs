//! A run that is killed at any moment and resumed ends in the bits of one that was not.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::{Bench, table};

/// `densely tabular fit` on a table large enough that a run takes a second or two, with checkpoints all the time.
fn fit(bench: &Bench, out: &str, resume: bool) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_densely"));
    command
        .current_dir(bench.path("").as_path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.args([
        "tabular",
        "fit",
        "t.csv",
        "--target",
        "price",
        "--role",
        "sold=ignore",
    ]);
    command.args([
        "--set",
        "model.config={ d_block = 16, k = 8, n_blocks = 2 }",
    ]);
    command.args([
        "--set",
        "train.checkpoint_steps=3",
        "--epochs",
        "12",
        "--batch-size",
        "64",
    ]);
    command.args(["--device", "cpu", "--threads", "1", "--out", out]);
    if resume {
        command.arg("--resume");
    }
    command
}

fn files(run: &Path) -> Vec<(String, Vec<u8>)> {
    [
        "last/model.safetensors",
        "last/optimizer.safetensors",
        "best/model.safetensors",
        "metrics.jsonl",
        "predictions.parquet",
    ]
    .iter()
    .map(|name| ((*name).to_owned(), std::fs::read(run.join(name)).unwrap()))
    .collect()
}

#[test]
fn kill_at_twenty_random_moments_then_resume_ends_in_the_same_bits() {
    let bench = Bench::new();
    bench.write("t.csv", &table(1500));
    let start = std::time::Instant::now();
    assert!(fit(&bench, "whole", false).status().unwrap().success());
    let whole = start.elapsed();
    let expected = files(&bench.path("whole"));

    let mut kills = 0;
    let mut state = 0x2545_f491_4f6c_dd1du64; // moments differ from kill to kill, not from run to run
    for attempt in 0.. {
        assert!(attempt < 200, "the run never ends");
        let mut child = fit(&bench, "broken", attempt > 0).spawn().unwrap();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Late enough that most runs reach a checkpoint, early enough that few reach the end.
        let share = 0.25 + (state % 1000) as f64 / 1000.0 * 0.35;
        let deadline = whole.mul_f64(share) + Duration::from_millis(state % 40);
        let begin = std::time::Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if kills < 20 && begin.elapsed() >= deadline {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                break None;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        if let Some(status) = status {
            assert!(status.success(), "a resumed run failed");
            if kills >= 20 {
                break;
            }
            // It came to its end before twenty kills: the bits must be right, and it begins anew.
            assert!(
                files(&bench.path("broken")) == expected,
                "after {kills} kills"
            );
            std::fs::remove_dir_all(bench.path("broken")).unwrap();
            let mut child = fit(&bench, "broken", false).spawn().unwrap();
            std::thread::sleep(whole.mul_f64(0.4));
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
        }
    }
    for ((name, got), (_, want)) in files(&bench.path("broken")).iter().zip(&expected) {
        assert!(got == want, "{name} differs from the unbroken run");
    }
}
