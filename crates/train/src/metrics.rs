//! Exact metrics over all predictions of a set, in double precision.
//!
//! Each takes predictions and targets of the same length and refuses predictions that are not numbers: a metric of
//! a diverged model must be an error, not a score.

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Lower is better, as for errors.
    Lower,
    /// Higher is better, as for accuracy.
    Higher,
}

impl Direction {
    /// Whether `score` is strictly better than `best`; never, when it is not a number.
    pub fn is_better(self, score: f64, best: f64) -> bool {
        match self {
            Self::Lower => score < best,
            Self::Higher => score > best,
        }
    }
}

/// A metric by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// [`rmse`].
    Rmse,
    /// [`mse`].
    Mse,
    /// [`mae`].
    Mae,
    /// [`r2`].
    R2,
    /// [`accuracy`].
    Accuracy,
    /// [`log_loss`].
    LogLoss,
    /// [`roc_auc`].
    RocAuc,
}

impl Metric {
    /// All metrics.
    pub const ALL: [Self; 7] = [
        Self::Rmse,
        Self::Mse,
        Self::Mae,
        Self::R2,
        Self::Accuracy,
        Self::LogLoss,
        Self::RocAuc,
    ];

    /// The name in settings, logs and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rmse => "rmse",
            Self::Mse => "mse",
            Self::Mae => "mae",
            Self::R2 => "r2",
            Self::Accuracy => "accuracy",
            Self::LogLoss => "log_loss",
            Self::RocAuc => "roc_auc",
        }
    }

    /// The unit, in words.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Rmse | Self::Mae => "unit of the target",
            Self::Mse => "square of the target's unit",
            Self::R2 => "share of variance explained",
            Self::Accuracy => "share of rows",
            Self::LogLoss => "nats per row",
            Self::RocAuc => "probability",
        }
    }

    /// Which way is better.
    pub const fn direction(self) -> Direction {
        match self {
            Self::Rmse | Self::Mse | Self::Mae | Self::LogLoss => Direction::Lower,
            Self::R2 | Self::Accuracy | Self::RocAuc => Direction::Higher,
        }
    }

    /// Whether `score` is strictly better than `best`.
    pub fn is_better(self, score: f64, best: f64) -> bool {
        self.direction().is_better(score, best)
    }

    /// The metric of `predictions` against `targets`; see the function of its name for shapes.
    ///
    /// # Errors
    /// Those of that function.
    pub fn compute(self, predictions: &Tensor, targets: &Tensor) -> Result<f64> {
        match self {
            Self::Rmse => rmse(predictions, targets),
            Self::Mse => mse(predictions, targets),
            Self::Mae => mae(predictions, targets),
            Self::R2 => r2(predictions, targets),
            Self::Accuracy => accuracy(predictions, targets),
            Self::LogLoss => log_loss(predictions, targets),
            Self::RocAuc => roc_auc(predictions, targets),
        }
    }
}

impl std::str::FromStr for Metric {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|metric| metric.name() == text)
            .ok_or_else(|| {
                let names: Vec<_> = Self::ALL.iter().map(|metric| metric.name()).collect();
                Error::config(
                    "metric",
                    format!("must be one of {}, got `{text}`", names.join(", ")),
                )
            })
    }
}

/// Root of the mean squared error, in the target's unit.
/// # Shapes
/// Both `[n]`, any float kind.
/// # Errors
/// [`Error::Shape`] when they are empty, differ in shape or hold a value that is not finite.
pub fn rmse(predictions: &Tensor, targets: &Tensor) -> Result<f64> {
    mse(predictions, targets).map(f64::sqrt)
}

/// Mean squared error, in the square of the target's unit.
/// # Shapes
/// Both `[n]`, any float kind.
/// # Errors
/// As [`rmse`].
pub fn mse(predictions: &Tensor, targets: &Tensor) -> Result<f64> {
    let (p, t) = values(predictions, targets)?;
    Ok((&p - &t).square().mean(Kind::Double).double_value(&[]))
}

/// Mean absolute error, in the target's unit.
/// # Shapes
/// Both `[n]`, any float kind.
/// # Errors
/// As [`rmse`].
pub fn mae(predictions: &Tensor, targets: &Tensor) -> Result<f64> {
    let (p, t) = values(predictions, targets)?;
    Ok((&p - &t).abs().mean(Kind::Double).double_value(&[]))
}

/// Coefficient of determination: 1 - squared error / squared deviation of the targets from their mean.
/// # Shapes
/// Both `[n]`, any float kind.
/// # Errors
/// As [`rmse`]; and when all targets are equal, which leaves it undefined.
pub fn r2(predictions: &Tensor, targets: &Tensor) -> Result<f64> {
    let (p, t) = values(predictions, targets)?;
    let total = (&t - t.mean(Kind::Double))
        .square()
        .sum(Kind::Double)
        .double_value(&[]);
    if total == 0.0 {
        return Err(shape(
            "targets",
            "at least two different values",
            "all equal",
        ));
    }
    Ok(1.0 - (&p - &t).square().sum(Kind::Double).double_value(&[]) / total)
}

/// Share of rows whose highest score is at the true class.
///
/// Ties take the lowest class, as `argmax` of numpy.
/// # Shapes
/// `scores`: `[n, classes]`, or `[n]` with the probability of class 1 (class 1 above 0.5); `labels`: `[n]` integer.
/// # Errors
/// [`Error::Shape`] when they are empty, do not fit, hold a score that is not finite or a label out of range.
pub fn accuracy(scores: &Tensor, labels: &Tensor) -> Result<f64> {
    let scores = finite("scores", scores)?;
    let predicted = if scores.dim() == 1 {
        labels_of(&scores, labels, 2)?;
        scores.gt(0.5).to_kind(Kind::Int64)
    } else {
        labels_of(&scores, labels, classes_of(&scores)?)?;
        scores.argmax(1, false)
    };
    let labels = double(labels).to_kind(Kind::Int64);
    let correct = predicted
        .eq_tensor(&labels)
        .sum(Kind::Int64)
        .int64_value(&[]);
    Ok(correct as f64 / labels.numel() as f64)
}

/// Mean negative logarithm of the probability of the true class, in nats.
///
/// Probabilities are clipped to the machine epsilon of f64 and rows are divided by their sum first, as in
/// scikit-learn, whose input for f32 is clipped at the epsilon of f32; here all is computed in f64.
/// # Shapes
/// `probabilities`: `[n, classes]`, or `[n]` for class 1 of two; `labels`: `[n]` integer.
/// # Errors
/// [`Error::Shape`] as for [`accuracy`], and when a probability lies outside [0, 1].
pub fn log_loss(probabilities: &Tensor, labels: &Tensor) -> Result<f64> {
    let p = finite("probabilities", probabilities)?;
    if p.min().double_value(&[]) < 0.0 || p.max().double_value(&[]) > 1.0 {
        return Err(shape("probabilities", "values in [0, 1]", "values outside"));
    }
    let p = if p.dim() == 1 {
        Tensor::stack(&[1.0 - &p, p], 1)
    } else {
        p
    };
    labels_of(&p, labels, classes_of(&p)?)?;
    let p = p.clamp(f64::EPSILON, 1.0 - f64::EPSILON);
    let p = &p / p.sum_dim_intlist(1, true, Kind::Double);
    let labels = double(labels).to_kind(Kind::Int64).unsqueeze(1);
    Ok(-p
        .gather(1, &labels, false)
        .log()
        .mean(Kind::Double)
        .double_value(&[]))
}

/// Area under the ROC curve of `scores` for 0/1 `labels`; ties count half.
///
/// Exact over all pairs (by mid-ranks), so it must see the whole set, not a batch.
/// # Shapes
/// `scores`: `[n]` float, higher means class 1; `labels`: `[n]`, 0 or 1.
/// # Errors
/// [`Error::Shape`] when they do not fit, a score is not finite, a label is neither 0 nor 1, or only one class
/// is there.
pub fn roc_auc(scores: &Tensor, labels: &Tensor) -> Result<f64> {
    let scores = finite("scores", scores)?;
    if scores.dim() != 1 {
        return Err(shape("scores", "[n]", &format!("{:?}", scores.size())));
    }
    labels_of(&scores, labels, 2)?;
    let scores = to_vec(&scores)?;
    let labels = to_vec(&double(labels))?;
    let mut pairs: Vec<(f64, bool)> = scores
        .into_iter()
        .zip(labels.iter().map(|label| *label > 0.5))
        .collect();
    pairs.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    auc_of_sorted(&pairs).ok_or_else(|| {
        let positives = labels.iter().filter(|label| **label > 0.5).count();
        shape(
            "labels",
            "both classes",
            &format!("{positives} of class 1 only"),
        )
    })
}

/// Area under the ROC curve of scores that stand in order, with whether each is of class 1; ties count half. `None` when only one class
/// is there.
#[expect(clippy::float_cmp, reason = "a tie is a tie only when it is exact")]
pub fn auc_of_sorted(sorted: &[(f64, bool)]) -> Option<f64> {
    let positives = sorted.iter().filter(|(_, one)| *one).count();
    let negatives = sorted.len() - positives;
    if positives == 0 || negatives == 0 {
        return None;
    }
    // Pairs won, doubled so that ties stay whole numbers: exact up to 2^63 pairs.
    let (mut doubled, mut below) = (0u128, 0u128);
    for tied in sorted.chunk_by(|a, b| a.0 == b.0) {
        let ones = tied.iter().filter(|(_, one)| *one).count() as u128;
        let zeros = tied.len() as u128 - ones;
        doubled += ones * (2 * below + zeros);
        below += zeros;
    }
    Some(doubled as f64 / 2.0 / (positives as f64 * negatives as f64))
}

fn shape(what: &str, expected: &str, got: &str) -> Error {
    Error::Shape {
        what: what.to_owned(),
        expected: expected.to_owned(),
        got: got.to_owned(),
    }
}

fn double(xs: &Tensor) -> Tensor {
    xs.detach()
        .to_device(tch::Device::Cpu)
        .to_kind(Kind::Double)
}

fn finite(what: &str, xs: &Tensor) -> Result<Tensor> {
    let xs = double(xs);
    if xs.numel() == 0 {
        return Err(shape(what, "at least one value", "none"));
    }
    let bad = xs
        .isfinite()
        .logical_not()
        .sum(Kind::Int64)
        .int64_value(&[]);
    if bad > 0 {
        return Err(shape(
            what,
            "finite values",
            &format!("{bad} that are infinite or NaN"),
        ));
    }
    Ok(xs)
}

fn values(predictions: &Tensor, targets: &Tensor) -> Result<(Tensor, Tensor)> {
    let (p, t) = (
        finite("predictions", predictions)?,
        finite("targets", targets)?,
    );
    if p.size() != t.size() {
        let (p, t) = (format!("{:?}", p.size()), format!("{:?}", t.size()));
        return Err(shape("predictions", &format!("the targets' shape {t}"), &p));
    }
    Ok((p, t))
}

fn classes_of(scores: &Tensor) -> Result<i64> {
    match scores.size().as_slice() {
        [_, classes] => Ok(*classes),
        other => Err(shape(
            "scores",
            "[n] or [n, classes]",
            &format!("{other:?}"),
        )),
    }
}

fn labels_of(scores: &Tensor, labels: &Tensor, classes: i64) -> Result<()> {
    let (n, got) = (scores.size().first().copied().unwrap_or(0), labels.size());
    if got != [n] {
        return Err(shape("labels", &format!("[{n}]"), &format!("{got:?}")));
    }
    let labels = double(labels);
    let whole = labels.floor().eq_tensor(&labels);
    let bad = whole
        .logical_and(&labels.ge(0))
        .logical_and(&labels.lt(classes))
        .logical_not();
    let bad = bad.sum(Kind::Int64).int64_value(&[]);
    if bad > 0 {
        return Err(shape(
            "labels",
            &format!("whole numbers from 0 to {}", classes - 1),
            &format!("{bad} others"),
        ));
    }
    Ok(())
}

fn to_vec(xs: &Tensor) -> Result<Vec<f64>> {
    let mut values = vec![0.0; xs.numel()];
    let count = values.len();
    xs.contiguous().f_copy_data(&mut values, count)?;
    Ok(values)
}
