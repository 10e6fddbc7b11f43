//! A running side of a comparison, and what it says.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::shell;

/// What a side says before it measures.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Ready {
    pub(super) outputs: Vec<f64>,
    pub(super) loss: f64,
    pub(super) gradient_norm: f64,
    pub(super) threads: u32,
}

/// One round of a side.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Round {
    pub(super) ms: Vec<f64>,
    pub(super) floor_ms: Option<f64>,
    /// Of the predictions; none where the weights change.
    pub(super) checksum: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct End {
    pub(super) peak_mb: Option<f64>,
}

/// A running side.
pub(super) struct Side {
    pub(super) what: String,
    pub(super) child: Child,
    pub(super) input: ChildStdin,
    pub(super) output: BufReader<ChildStdout>,
}

impl Side {
    pub(super) fn start(command: &mut Command) -> Result<Self> {
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

    pub(super) fn read<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
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

    pub(super) fn measure(&mut self) -> Result<Round> {
        writeln!(self.input, "measure")?;
        self.read()
    }

    pub(super) fn end(mut self) -> Result<Option<f64>> {
        drop(self.input);
        let mut rest = String::new();
        self.output.read_line(&mut rest)?;
        let end: End = serde_json::from_str(&rest).with_context(|| self.what.clone())?;
        self.child.wait()?;
        Ok(end.peak_mb)
    }
}

/// Fails when a side predicts something else than in its first round.
pub(super) fn same_predictions(first: Option<&Round>, round: &Round) -> Result<()> {
    match first {
        Some(first) if first.checksum != round.checksum => bail!(
            "the predictions of one round are not those of another: their checksums are {:?} and {:?}",
            first.checksum,
            round.checksum
        ),
        _ => Ok(()),
    }
}

/// Fails unless two sides compute the same function: predictions, loss and norm of the gradient.
pub(super) fn agree(ours: &Ready, theirs: &Ready, dtype: &str) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_whose_predictions_change_is_an_error() {
        let round = |checksum: &str| Round {
            ms: vec![1.0],
            floor_ms: None,
            checksum: Some(checksum.to_owned()),
        };
        assert!(same_predictions(None, &round("a")).is_ok());
        assert!(same_predictions(Some(&round("a")), &round("a")).is_ok());
        assert!(same_predictions(Some(&round("a")), &round("b")).is_err());
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
