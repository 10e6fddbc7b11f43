//! Distributions that a head can give instead of values.
//!
//! As in `transformers` (`time_series_utils`): parameters are made positive by squareplus, (x + √(x² + 4))/2, and the window's level
//! and spread go into the distribution, not into the parameters that the head learns.

mod quantiles;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// A distribution by the names of `transformers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distribution {
    /// Student's t: `df` above 2, `loc`, `scale`.
    StudentT,
    /// Normal: `loc`, `scale`.
    Normal,
    /// Negative binomial, for counts: `total_count`, `logits`.
    NegativeBinomial,
}

/// Level and spread of the window, by which a distribution is shifted and stretched; `None` leaves it.
pub type Affine<'a> = Option<(&'a Tensor, &'a Tensor)>;

fn squareplus(xs: &Tensor) -> Tensor {
    (xs + (xs.square() + 4.0).sqrt()) / 2.0
}

impl Distribution {
    /// Name in configs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::StudentT => "student_t",
            Self::Normal => "normal",
            Self::NegativeBinomial => "negative_binomial",
        }
    }

    /// Names of the parameters, in the order of the head's layers.
    pub const fn parameters(self) -> &'static [&'static str] {
        match self {
            Self::StudentT => &["df", "loc", "scale"],
            Self::Normal => &["loc", "scale"],
            Self::NegativeBinomial => &["total_count", "logits"],
        }
    }

    /// Parameters in their range from what the head's layers gave, all of one size.
    ///
    /// # Panics
    /// When there are not as many as [`parameters`](Self::parameters).
    pub fn domain(self, raw: &[Tensor]) -> Vec<Tensor> {
        assert_eq!(
            raw.len(),
            self.parameters().len(),
            "one tensor per parameter"
        );
        let positive = |xs: &Tensor| {
            let smallest = if xs.kind() == Kind::Double {
                f64::EPSILON
            } else {
                f64::from(f32::EPSILON)
            };
            squareplus(xs).clamp_min(smallest)
        };
        match self {
            Self::StudentT => vec![
                squareplus(&raw[0]) + 2.0,
                raw[1].shallow_clone(),
                positive(&raw[2]),
            ],
            Self::Normal => vec![raw[0].shallow_clone(), positive(&raw[1])],
            Self::NegativeBinomial => vec![squareplus(&raw[0]), raw[1].shallow_clone()],
        }
    }

    /// The mean, of the parameters' size.
    pub fn mean(self, parameters: &[Tensor], affine: Affine) -> Tensor {
        match self {
            Self::StudentT => stretched(&parameters[1], affine),
            Self::Normal => stretched(&parameters[0], affine),
            Self::NegativeBinomial => &parameters[0] * scaled_logits(&parameters[1], affine).exp(),
        }
    }

    /// Logarithm of the density (of the probability, for counts) of each of `ys`, which have the parameters' size.
    pub fn log_prob(self, parameters: &[Tensor], affine: Affine, ys: &Tensor) -> Tensor {
        let standard = |loc: &Tensor, scale: &Tensor| {
            let (ys, jacobian) = match affine {
                Some((level, spread)) => ((ys - level) / spread, spread.log()),
                None => (
                    ys.shallow_clone(),
                    Tensor::zeros([1], (ys.kind(), ys.device())),
                ),
            };
            ((ys - loc) / scale, jacobian + scale.log())
        };
        match self {
            Self::Normal => {
                let (zs, jacobian) = standard(&parameters[0], &parameters[1]);
                zs.square() * -0.5 - (2.0 * std::f64::consts::PI).ln() / 2.0 - jacobian
            }
            Self::StudentT => {
                let df = &parameters[0];
                let (zs, jacobian) = standard(&parameters[1], &parameters[2]);
                let normaliser = jacobian
                    + df.log() * 0.5
                    + std::f64::consts::PI.ln() * 0.5
                    + (df * 0.5).lgamma()
                    - ((df + 1.0) * 0.5).lgamma();
                (df + 1.0) * -0.5 * (zs.square() / df).log1p() - normaliser
            }
            Self::NegativeBinomial => {
                let (count, logits) = (&parameters[0], scaled_logits(&parameters[1], affine));
                let unnormalised = count * (-&logits).log_sigmoid() + ys * logits.log_sigmoid();
                let normaliser = (count + ys).lgamma() - (ys + 1.0).lgamma() - count.lgamma();
                unnormalised + normaliser
            }
        }
    }

    /// Negative log likelihood of `ys [batch, …, values]`: the values of a row (a step's channels, or a regression's targets) are
    /// independent, so theirs add up; the mean over all rows, as the reference has it for more than one step.
    pub fn nll(self, parameters: &[Tensor], affine: Affine, ys: &Tensor) -> Tensor {
        let rows = self.log_prob(parameters, affine, ys).sum_dim_intlist(
            [-1].as_slice(),
            false,
            None::<Kind>,
        );
        -rows.mean(None::<Kind>)
    }
}

fn stretched(xs: &Tensor, affine: Affine) -> Tensor {
    match affine {
        Some((level, spread)) => xs * spread + level,
        None => xs.shallow_clone(),
    }
}

/// Counts are not shifted: the spread multiplies their mean.
fn scaled_logits(logits: &Tensor, affine: Affine) -> Tensor {
    match affine {
        Some((_, spread)) => logits + spread.log(),
        None => logits.shallow_clone(),
    }
}
