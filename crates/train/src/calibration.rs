//! Do probabilities mean what they say? Errors of calibration, and the one-number remedy.

use std::path::Path;

use densely_core::{Error, Result, fs};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Kind, Tensor};

/// How far probabilities are from what came true, as predicted and after temperature scaling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// What the logarithms of the probabilities are divided by; fitted on the validation rows. Above 1 the network is
    /// too sure of itself.
    pub temperature: f64,
    /// On the test rows, as predicted.
    pub as_predicted: CalibrationErrors,
    /// On the test rows, after scaling.
    pub scaled: CalibrationErrors,
}

/// Errors of probabilities; lower is better in all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationErrors {
    /// [`expected_calibration_error`] in 15 bins.
    pub expected: f64,
    /// [`brier`].
    pub brier: f64,
    /// Nats per row.
    pub log_loss: f64,
}

/// Bins of the expected calibration error, as in Guo et al. 2017.
const BINS: usize = 15;
/// Probabilities below this count as it: a network that is wrong for sure would else cost infinitely much.
const LEAST: f64 = 1e-15;

impl Calibration {
    /// Fits the temperature on validation rows and measures on test rows.
    ///
    /// # Shapes
    /// Probabilities `[rows, classes]`, targets `[rows]` i64.
    /// # Errors
    /// [`Error::Shape`] when they do not fit each other or there is no row.
    pub fn new(
        valid: &Tensor,
        valid_targets: &Tensor,
        test: &Tensor,
        test_targets: &Tensor,
    ) -> Result<Self> {
        let temperature = fit_temperature(valid, valid_targets)?;
        Ok(Self {
            temperature,
            as_predicted: CalibrationErrors::of(test, test_targets)?,
            scaled: CalibrationErrors::of(&scale(test, temperature), test_targets)?,
        })
    }
}

impl CalibrationErrors {
    fn of(probabilities: &Tensor, targets: &Tensor) -> Result<Self> {
        Ok(Self {
            expected: expected_calibration_error(probabilities, targets, BINS)?,
            brier: brier(probabilities, targets)?,
            log_loss: log_loss(probabilities, targets),
        })
    }
}

/// Probabilities whose logarithms are divided by `temperature`, normalised again.
///
/// # Shapes
/// `[rows, classes]` in and out, f64.
pub fn scale(probabilities: &Tensor, temperature: f64) -> Tensor {
    let logs = probabilities.to_kind(Kind::Double).clamp_min(LEAST).log();
    (logs / temperature).softmax(-1, Kind::Double)
}

/// The temperature with the least log loss, between 1/20 and 20 (Guo et al. 2017, *On Calibration of Modern Neural
/// Networks*, there on logits; on averaged probabilities it is the same with their logarithms).
///
/// # Shapes
/// Probabilities `[rows, classes]`, targets `[rows]` i64.
/// # Errors
/// [`Error::Shape`] when they do not fit each other or there is no row.
pub fn fit_temperature(probabilities: &Tensor, targets: &Tensor) -> Result<f64> {
    check(probabilities, targets)?;
    let loss = |log_t: f64| log_loss(&scale(probabilities, log_t.exp()), targets);
    // The loss is convex in 1 / T, so it has one valley: golden-section search finds it.
    let shrink = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (-(20f64.ln()), 20f64.ln());
    let (mut a, mut b) = (high - shrink * (high - low), low + shrink * (high - low));
    let (mut at_a, mut at_b) = (loss(a), loss(b));
    while high - low > 1e-4 {
        if at_a < at_b {
            (high, b, at_b) = (b, a, at_a);
            a = high - shrink * (high - low);
            at_a = loss(a);
        } else {
            (low, a, at_a) = (a, b, at_b);
            b = low + shrink * (high - low);
            at_b = loss(b);
        }
    }
    Ok(f64::midpoint(low, high).exp())
}

/// Mean distance of confidence and accuracy over `bins` equal bins of the highest probability, weighted by their rows.
///
/// # Shapes
/// Probabilities `[rows, classes]`, targets `[rows]` i64.
/// # Errors
/// [`Error::Shape`] when they do not fit each other or there is no row.
pub fn expected_calibration_error(
    probabilities: &Tensor,
    targets: &Tensor,
    bins: usize,
) -> Result<f64> {
    check(probabilities, targets)?;
    let (confidence, class) = probabilities.to_kind(Kind::Double).max_dim(1, false);
    let right: Vec<f64> = Vec::try_from(class.eq_tensor(targets).to_kind(Kind::Double))?;
    let confidence: Vec<f64> = Vec::try_from(confidence)?;
    let mut sums = vec![0.0; bins.max(1)];
    for (confidence, right) in confidence.iter().zip(&right) {
        // A bin takes its upper edge, as in the paper.
        let bin = (confidence * sums.len() as f64).ceil() as usize;
        let last = sums.len() - 1;
        sums[bin.saturating_sub(1).min(last)] += right - confidence;
    }
    Ok(sums.iter().map(|sum: &f64| sum.abs()).sum::<f64>() / right.len() as f64)
}

/// Mean squared distance of the probabilities from the truth, summed over the classes (Brier 1950): 0 to 2.
///
/// # Shapes
/// Probabilities `[rows, classes]`, targets `[rows]` i64.
/// # Errors
/// [`Error::Shape`] when they do not fit each other or there is no row.
pub fn brier(probabilities: &Tensor, targets: &Tensor) -> Result<f64> {
    check(probabilities, targets)?;
    let truth = targets
        .one_hot(probabilities.size()[1])
        .to_kind(Kind::Double);
    let squares = (probabilities.to_kind(Kind::Double) - truth).square();
    Ok(squares.sum(Kind::Double).double_value(&[]) / targets.size()[0] as f64)
}

const TEMPERATURE: &str = "calibration.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Applied {
    temperature: f64,
}

/// Keeps the temperature that predictions of the run in `folder` are scaled by; a run that is not calibrated has no such file.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be written.
pub fn save_temperature(folder: &Path, temperature: Option<f64>) -> Result<()> {
    let path = folder.join(TEMPERATURE);
    match temperature {
        Some(temperature) => {
            let text = json!(Applied { temperature }).to_string();
            fs::write(&path, text.as_bytes())
        }
        None if path.exists() => std::fs::remove_file(&path).map_err(Error::io(&path)),
        None => Ok(()),
    }
}

/// The temperature that predictions of the run in `folder` are scaled by, if any.
///
/// # Errors
/// [`Error::Corrupt`] for one that is no positive number; [`Error::Io`] when it cannot be read.
pub fn read_temperature(folder: &Path) -> Result<Option<f64>> {
    let path = folder.join(TEMPERATURE);
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let Applied { temperature } =
        serde_json::from_str(&text).map_err(|e| Error::corrupt(&path, e.to_string()))?;
    if temperature > 0.0 && temperature.is_finite() {
        return Ok(Some(temperature));
    }
    Err(Error::corrupt(
        &path,
        "the temperature is not a positive number",
    ))
}

fn log_loss(probabilities: &Tensor, targets: &Tensor) -> f64 {
    let own = probabilities.gather(1, &targets.unsqueeze(1), false);
    let logs = own.to_kind(Kind::Double).clamp_min(LEAST).log();
    -logs.mean(Kind::Double).double_value(&[])
}

fn check(probabilities: &Tensor, targets: &Tensor) -> Result<()> {
    let size = probabilities.size();
    let fits = size.len() == 2 && targets.size() == size[..1] && size[0] > 0 && size[1] > 1;
    let classes = size.last().copied().unwrap_or(0);
    let known =
        fits && targets.min().int64_value(&[]) >= 0 && targets.max().int64_value(&[]) < classes;
    if known {
        return Ok(());
    }
    Err(Error::Shape {
        what: "probabilities and classes".to_owned(),
        expected: "[rows, classes] and [rows] class numbers, at least one row".to_owned(),
        got: format!("{size:?} and {:?}", targets.size()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twelve rows of which a class of probability 0.9 comes true in 6 of 8, one of 0.6 in 3 of 4.
    fn rows() -> (Tensor, Tensor) {
        let p: Vec<f64> = [0.9; 8]
            .into_iter()
            .chain([0.6; 4])
            .flat_map(|p| [1.0 - p, p])
            .collect();
        let y: [i64; 12] = [1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 0];
        (Tensor::from_slice(&p).view([12, 2]), Tensor::from_slice(&y))
    }

    #[test]
    fn errors_are_those_counted_by_hand() -> Result<()> {
        let (p, y) = rows();
        // |6 - 7.2| + |3 - 2.4|, over 12 rows.
        let expected = expected_calibration_error(&p, &y, 15)?;
        assert!((expected - 0.15).abs() < 1e-12, "{expected}");
        // Twice the squared distance of class 1: 6 · 0.01 + 2 · 0.81 + 3 · 0.16 + 0.36.
        let brier = brier(&p, &y)?;
        assert!((brier - 2.0 * 2.52 / 12.0).abs() < 1e-12, "{brier}");
        assert!(expected_calibration_error(&p, &y.slice(0, 0, 11, 1), 15).is_err());
        assert!(fit_temperature(&p, &(y + 1)).is_err());
        Ok(())
    }

    #[test]
    fn the_temperature_undoes_too_much_confidence() -> Result<()> {
        // Probabilities that are true, sharpened by 1/3: the remedy is a temperature of 3.
        let truth = Tensor::from_slice(&[0.2, 0.8, 0.5, 0.5, 0.7, 0.3]).view([3, 2]);
        let counts: [(i64, [i64; 2]); 3] = [(0, [20, 80]), (1, [50, 50]), (2, [70, 30])];
        let mut rows = Vec::new();
        let mut classes = Vec::new();
        for (row, of) in counts {
            for (class, count) in of.into_iter().enumerate() {
                rows.extend(std::iter::repeat_n(row, count as usize));
                classes.extend(std::iter::repeat_n(class as i64, count as usize));
            }
        }
        let sharp = scale(&truth, 1.0 / 3.0).index_select(0, &Tensor::from_slice(&rows));
        let classes = Tensor::from_slice(&classes);
        let temperature = fit_temperature(&sharp, &classes)?;
        assert!((temperature - 3.0).abs() < 1e-3, "{temperature}");
        let found = Calibration::new(&sharp, &classes, &sharp, &classes)?;
        assert!(
            found.scaled.expected < 1e-3 && found.as_predicted.expected > 0.1,
            "{found:?}"
        );
        Ok(())
    }
}
