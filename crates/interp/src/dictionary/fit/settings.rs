//! How a dictionary is trained.

use densely_core::{Error, Result, Tensors, check};
use densely_train::optim::{AdamConfig, OptimConfig};
use densely_train::schedule::{ScheduleConfig, Shape};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::dictionary::folder::holds;
use crate::dictionary::{
    Activation, Centre, Dead, DictionaryConfig, ErrorForm, Init, InputBias, Objective, Role,
    Sparsity,
};

/// Whose recipe is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Style {
    /// Of `eai-sparsify`: the k largest features, share of variance left, `AuxK`.
    Sparsify,
    /// Of the paper: ReLU, L1, ghost gradients, rows of norm 1.
    Paper,
    /// Of `sae_lens`: ReLU, L1 by the decoder's norms with a warm-up.
    SaeLens,
}

impl std::str::FromStr for Style {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "sparsify" => Ok(Self::Sparsify),
            "paper" => Ok(Self::Paper),
            "sae-lens" => Ok(Self::SaeLens),
            other => {
                let reason = format!("must be `sparsify`, `paper` or `sae-lens`, got `{other}`");
                Err(Error::config("style", reason))
            }
        }
    }
}

/// Features that fire no more are set anew.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resample {
    /// Steps between two times.
    pub every: u64,
    /// What is left of the learning rate behind it.
    pub factor: f64,
    /// Steps in which it climbs back.
    pub recovery: u64,
}

impl Default for Resample {
    fn default() -> Self {
        Self {
            every: 25_000,
            factor: 1e-4,
            recovery: 10_000,
        }
    }
}

/// How a dictionary is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitSettings {
    /// The hook point that it reads.
    pub read: String,
    /// The hook point that it gives; the one that it reads for an autoencoder.
    pub write: String,
    /// Tokens of a step, about.
    pub batch: usize,
    /// Passes over the texts.
    pub epochs: u64,
    /// Largest norm of the gradient; 0 does not clip.
    pub clip_norm: f64,
    /// Steps over which the coefficient of sparsity climbs in a line.
    pub sparsity_warmup: u64,
    /// Whether the decoder's rows are held at norm 1.
    pub unit_rows: bool,
    /// Tokens without firing behind which a feature is dead; 0: none ever is.
    pub dead_after: u64,
    /// By what the first biases are set.
    pub centre: Centre,
    /// Whether dead features are set anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resample: Option<Resample>,
    /// The optimiser.
    pub optim: OptimConfig,
    /// The learning rate over the steps.
    pub schedule: ScheduleConfig,
    /// What is trained.
    pub dictionary: DictionaryConfig,
}

impl FitSettings {
    /// The settings of a recipe for a dictionary of so many features between two points of these widths; one point for an autoencoder.
    pub fn new(style: Style, read: &str, write: &str, widths: (i64, i64), d_sae: i64) -> Self {
        let (d_in, d_out) = widths;
        let role = if read == write {
            Role::Autoencoder
        } else {
            Role::Transcoder
        };
        let shared = match role {
            Role::Autoencoder => InputBias::Shared,
            Role::Transcoder => InputBias::None,
        };
        let base = DictionaryConfig {
            role,
            d_in,
            d_out,
            d_sae,
            ..DictionaryConfig::transcoder()
        };
        let adam = |lr: f64| {
            OptimConfig::Adam(AdamConfig {
                lr,
                ..AdamConfig::default()
            })
        };
        let constant = |warmup_steps: u64| ScheduleConfig {
            shape: Shape::Constant,
            warmup_steps,
        };
        let common = Self {
            read: read.to_owned(),
            write: write.to_owned(),
            batch: 4096,
            epochs: 1,
            clip_norm: 0.0,
            sparsity_warmup: 0,
            unit_rows: false,
            dead_after: 10_000_000,
            centre: Centre::Mean,
            resample: None,
            optim: adam(4e-4),
            schedule: constant(0),
            dictionary: base,
        };
        match style {
            // The package's other optimiser has no learning rate to set; this is the rule of its Adam.
            Style::Sparsify => Self {
                optim: adam(2e-4 / (d_sae as f64 / f64::from(1 << 14)).sqrt()),
                unit_rows: role == Role::Autoencoder,
                dictionary: DictionaryConfig {
                    activation: Activation::TopK {
                        k: 32.min(d_sae),
                        rescale: false,
                    },
                    input_bias: shared,
                    init: Init::Sparsify,
                    objective: Objective {
                        error: ErrorForm::Fvu,
                        sparsity: Sparsity::None {},
                        dead: Dead::AuxK {
                            coefficient: 1.0 / 32.0,
                        },
                    },
                    ..base
                },
                ..common
            },
            Style::Paper => Self {
                unit_rows: true,
                dead_after: 5000 * 4096,
                schedule: constant(5000),
                dictionary: DictionaryConfig {
                    input_bias: match role {
                        Role::Autoencoder => InputBias::Shared,
                        Role::Transcoder => InputBias::Own,
                    },
                    ..base
                },
                ..common
            },
            Style::SaeLens => Self {
                optim: adam(3e-4),
                clip_norm: 1.0,
                sparsity_warmup: 1000,
                dead_after: 1000 * 4096,
                dictionary: DictionaryConfig {
                    input_bias: shared,
                    init: Init::SaeLens,
                    objective: DictionaryConfig::sae().objective,
                    ..base
                },
                ..common
            },
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        self.dictionary.validate()?;
        // Not behind the training.
        holds(&self.dictionary)?;
        self.optim.validate()?;
        self.schedule.validate()?;
        check::positive("batch", self.batch as i64)?;
        check::positive("epochs", self.epochs as i64)?;
        if self.clip_norm < 0.0 || !self.clip_norm.is_finite() {
            let reason = format!("must be 0 or above, got {}", self.clip_norm);
            return Err(Error::config("clip_norm", reason));
        }
        if (self.dictionary.role == Role::Autoencoder) != (self.read == self.write) {
            let reason = "an autoencoder gives what it reads, a transcoder another point";
            return Err(Error::config("write", reason));
        }
        if matches!(self.dictionary.activation, Activation::Gated {}) {
            let reason = "gated dictionaries are read and used, not trained";
            return Err(Error::config("dictionary.activation", reason));
        }
        if let Some(resample) = &self.resample {
            check::positive("resample.every", resample.every as i64)?;
            if !(0.0..=1.0).contains(&resample.factor) {
                let reason = format!("must lie in 0 to 1, got {}", resample.factor);
                return Err(Error::config("resample.factor", reason));
            }
            if self.dead_after == 0 {
                let reason = "wants `dead_after` above 0: else no feature is ever dead";
                return Err(Error::config("resample", reason));
            }
        }
        Ok(())
    }

    /// The hook points that it needs.
    pub(super) fn points(&self) -> Vec<&str> {
        let mut points = vec![self.read.as_str(), self.write.as_str()];
        points.dedup();
        points
    }

    /// Input and target among the activations of some tokens.
    pub(super) fn pair<'a>(&self, held: &'a Tensors) -> Result<(&'a Tensor, &'a Tensor)> {
        let of = |point: &str, width: i64| {
            let xs = held.get(point).ok_or_else(|| check::absent(point))?;
            check::shape(point, xs, &[None, Some(width)])?;
            Ok::<_, Error>(xs)
        };
        Ok((
            of(&self.read, self.dictionary.d_in)?,
            of(&self.write, self.dictionary.d_out)?,
        ))
    }
}
