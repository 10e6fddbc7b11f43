//! What a dictionary is: sizes, activation, biases, and what it minimises.

use std::collections::BTreeMap;

use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Whether a dictionary gives back what it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It does.
    Autoencoder,
    /// It gives what a layer makes of it.
    Transcoder,
}

/// Which features are active, and how much.
// Variants without fields have braces: serde takes unknown fields of the others, whatever `deny_unknown_fields` says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Activation {
    /// max(pre, 0).
    Relu {},
    /// The k largest of each row, where they are above 0; of equal ones the first.
    TopK {
        /// Features of a row.
        k: i64,
        /// Whether features are compared, and shown, times the norm of their decoder row.
        #[serde(default)]
        rescale: bool,
    },
    /// The k largest per row of a batch, wherever they stand. To be used alone a dictionary is saved with one threshold instead.
    BatchTopK {
        /// Features of a row on average.
        k: f64,
        /// As for `top-k`.
        #[serde(default)]
        rescale: bool,
    },
    /// pre where it is above a threshold of the feature.
    JumpRelu {
        /// Each threshold's first value.
        #[serde(default = "first_threshold")]
        threshold: f64,
        /// How near a value must be for the threshold to learn from it, twice the distance.
        #[serde(default = "first_bandwidth")]
        bandwidth: f64,
        /// Whether the estimated gradient of the step goes to the encoder, too.
        #[serde(default)]
        ste_to_input: bool,
    },
    /// max(x (W e^`r_mag`) + `b_mag`, 0) where x W + `b_gate` is above 0. It is read and used, not trained.
    Gated {},
}

const fn first_threshold() -> f64 {
    0.01
}

const fn first_bandwidth() -> f64 {
    0.05
}

/// What is taken from the input before it is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InputBias {
    /// Nothing.
    None,
    /// `b_dec`, which the decoder adds again.
    Shared,
    /// `b_dec`; the decoder adds a `b_dec_out`.
    Own,
}

/// How each input is scaled before all else; undone behind an autoencoder's decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalize {
    /// Not.
    None,
    /// To the norm √d.
    ConstantNorm,
    /// To mean 0 and deviation 1.
    LayerNorm,
}

/// How weights start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// As the paper's code: `W_enc` and `W_dec` from U(±√(6/columns)), the decoder's rows then of norm 1.
    Paper,
    /// As `sae_lens`: the decoder's rows of norm 0.1, the encoder their transpose.
    SaeLens,
    /// As `eai-sparsify`: the encoder from U(±1/√d); the decoder its transpose with rows of norm 1, or zeros for a transcoder.
    Sparsify,
}

/// What is left of the target, in one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorForm {
    /// Mean over rows and dimensions of (y - t)² / ‖t‖, as the paper's code.
    Normalised,
    /// Σ (y - t)² of a row, mean over rows, as `sae_lens`.
    Squared,
    /// Share of the variance that is left, Σ (y - t)² / Σ (t - mean t)², as `eai-sparsify`.
    Fvu,
}

/// What keeps features few.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Sparsity {
    /// Nothing but the activation.
    None {},
    /// Coefficient times Σ f, mean over rows.
    L1 {
        /// The coefficient.
        coefficient: f64,
        /// Whether each feature counts times the norm of its decoder row.
        #[serde(default)]
        by_norm: bool,
    },
    /// Coefficient times the number of active features, mean over rows; for `jump-relu`.
    L0 {
        /// The coefficient.
        coefficient: f64,
    },
    /// Coefficient times Σ tanh(scale · f · norm of the decoder row), mean over rows.
    Tanh {
        /// The coefficient.
        coefficient: f64,
        /// The scale.
        scale: f64,
    },
}

/// What wakes features that fire no more.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Dead {
    /// Nothing.
    Nothing {},
    /// e^pre of dead features shall give what is left, each row scaled to half its norm, in the size of the error ("ghost gradients"). For a transcoder the
    /// paper's code takes x - y for what is left, where t - y is meant.
    Ghost {
        /// Whether to do as the paper's code does.
        #[serde(default)]
        reference_compat: bool,
    },
    /// The d/2 largest dead features shall give what is left (`AuxK`).
    AuxK {
        /// Its weight: 1/32 in the paper.
        coefficient: f64,
    },
}

/// What a dictionary minimises.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objective {
    /// Of the reconstruction.
    pub error: ErrorForm,
    /// Of the features.
    pub sparsity: Sparsity,
    /// Of dead features, when any are named.
    pub dead: Dead,
}

/// Sizes and conventions of a dictionary. Defaults are those of `transcoder`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DictionaryConfig {
    /// Whether it gives back what it reads.
    pub role: Role,
    /// Width of what it reads.
    pub d_in: i64,
    /// Width of what it gives; that of `d_in` for an autoencoder.
    pub d_out: i64,
    /// Features.
    pub d_sae: i64,
    /// Which features are active.
    pub activation: Activation,
    /// What is taken from the input.
    pub input_bias: InputBias,
    /// Whether a linear map of the input is added.
    pub skip: bool,
    /// How inputs are scaled.
    pub normalize: Normalize,
    /// How weights start.
    pub init: Init,
    /// What it minimises.
    pub objective: Objective,
}

impl Default for DictionaryConfig {
    fn default() -> Self {
        Self::transcoder()
    }
}

impl DictionaryConfig {
    /// Preset `transcoder`: the paper's for GPT-2 small.
    pub const fn transcoder() -> Self {
        Self {
            role: Role::Transcoder,
            d_in: 768,
            d_out: 768,
            d_sae: 24_576,
            activation: Activation::Relu {},
            input_bias: InputBias::Own,
            skip: false,
            normalize: Normalize::None,
            init: Init::Paper,
            objective: Objective {
                error: ErrorForm::Normalised,
                sparsity: Sparsity::L1 {
                    coefficient: 1.4e-4,
                    by_norm: false,
                },
                dead: Dead::Ghost {
                    reference_compat: false,
                },
            },
        }
    }

    /// Preset `sae`: an autoencoder as `sae_lens` trains one.
    pub const fn sae() -> Self {
        Self {
            role: Role::Autoencoder,
            input_bias: InputBias::Shared,
            init: Init::SaeLens,
            objective: Objective {
                error: ErrorForm::Squared,
                sparsity: Sparsity::L1 {
                    coefficient: 1.0,
                    by_norm: true,
                },
                dead: Dead::Nothing {},
            },
            ..Self::transcoder()
        }
    }

    /// Preset `skip-transcoder`: 32 features a token and a linear way past them, as `eai-sparsify` trains one.
    pub const fn skip_transcoder() -> Self {
        Self {
            activation: Activation::TopK {
                k: 32,
                rescale: false,
            },
            input_bias: InputBias::None,
            skip: true,
            init: Init::Sparsify,
            objective: Objective {
                error: ErrorForm::Fvu,
                sparsity: Sparsity::None {},
                dead: Dead::AuxK {
                    coefficient: 1.0 / 32.0,
                },
            },
            ..Self::transcoder()
        }
    }

    /// Multiply-accumulates of a token where every product is dense.
    pub const fn macs(&self) -> i64 {
        let skip = if self.skip { self.d_in * self.d_out } else { 0 };
        self.d_sae * (self.d_in + self.d_out) + skip
    }

    /// Checks sizes and that the parts fit each other.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [
            ("d_in", self.d_in),
            ("d_out", self.d_out),
            ("d_sae", self.d_sae),
        ] {
            check::positive(field, value)?;
            if value > i64::from(i32::MAX) {
                return Err(Error::config(field, format!("is too large: {value}")));
            }
        }
        most_values("d_sae", "W_enc", &[self.d_in, self.d_sae])?;
        most_values("d_sae", "W_dec", &[self.d_sae, self.d_out])?;
        if self.skip {
            most_values("skip", "W_skip", &[self.d_out, self.d_in])?;
        }
        if self.role == Role::Autoencoder && self.d_in != self.d_out {
            let reason = format!(
                "must be d_in of an autoencoder, {}, got {}",
                self.d_in, self.d_out
            );
            return Err(Error::config("d_out", reason));
        }
        if self.input_bias == InputBias::Shared && self.role == Role::Transcoder {
            let reason = "a transcoder's input and output lie in different spaces: `none` or `own`";
            return Err(Error::config("input_bias", reason));
        }
        self.check_activation()?;
        self.check_objective()
    }

    /// Names and shapes of the parameters and buffers that [`build`](Self::build) creates.
    pub(super) fn shapes(&self) -> Shapes {
        let Self {
            d_in, d_out, d_sae, ..
        } = *self;
        let own = self.input_bias == InputBias::Own;
        let gated = matches!(self.activation, Activation::Gated {});
        let steps = matches!(self.activation, Activation::JumpRelu { .. });
        let batch = matches!(self.activation, Activation::BatchTopK { .. });
        let all = [
            ("W_enc", true, vec![d_in, d_sae]),
            ("W_dec", true, vec![d_sae, d_out]),
            ("b_enc", !gated, vec![d_sae]),
            ("b_dec", true, vec![if own { d_in } else { d_out }]),
            ("b_dec_out", own, vec![d_out]),
            ("W_skip", self.skip, vec![d_out, d_in]),
            ("threshold", steps, vec![d_sae]),
            ("topk_threshold", batch, vec![]),
            ("b_gate", gated, vec![d_sae]),
            ("b_mag", gated, vec![d_sae]),
            ("r_mag", gated, vec![d_sae]),
        ];
        all.into_iter()
            .filter(|(_, is_there, _)| *is_there)
            .map(|(name, _, shape)| (name.to_owned(), shape))
            .collect()
    }

    fn check_activation(&self) -> Result<()> {
        let range = |k: f64| {
            if k >= 1.0 && k <= self.d_sae as f64 {
                return Ok(());
            }
            let reason = format!("must lie in 1 to d_sae, {}, got {k}", self.d_sae);
            Err(Error::config("activation.k", reason))
        };
        match self.activation {
            Activation::TopK { k, .. } => range(k as f64),
            Activation::BatchTopK { k, .. } => range(k),
            Activation::JumpRelu {
                threshold,
                bandwidth,
                ..
            } => {
                check::above_zero("activation.bandwidth", bandwidth)?;
                at_least_zero("activation.threshold", threshold)
            }
            Activation::Gated {} if self.role == Role::Transcoder => {
                let reason = "gated transcoders are in no format";
                Err(Error::config("activation", reason))
            }
            Activation::Gated {} | Activation::Relu {} => Ok(()),
        }
    }

    fn check_objective(&self) -> Result<()> {
        match self.objective.sparsity {
            Sparsity::None {} => (),
            Sparsity::L1 { coefficient, .. } => {
                at_least_zero("objective.sparsity.coefficient", coefficient)?;
            }
            Sparsity::L0 { coefficient } => {
                at_least_zero("objective.sparsity.coefficient", coefficient)?;
                if !matches!(self.activation, Activation::JumpRelu { .. }) {
                    let reason = "`l0` has a gradient for the activation `jump-relu` alone";
                    return Err(Error::config("objective.sparsity", reason));
                }
            }
            Sparsity::Tanh { coefficient, scale } => {
                at_least_zero("objective.sparsity.coefficient", coefficient)?;
                check::above_zero("objective.sparsity.scale", scale)?;
            }
        }
        match self.objective.dead {
            Dead::AuxK { coefficient } => {
                at_least_zero("objective.dead.coefficient", coefficient)?;
                if self.normalize != Normalize::None {
                    let reason = "`aux-k` compares what is left with features of scaled inputs: take `normalize` = `none`";
                    return Err(Error::config("objective.dead", reason));
                }
            }
            Dead::Ghost {
                reference_compat: true,
            } if self.d_in != self.d_out => {
                let reason = "x - y wants d_in = d_out";
                return Err(Error::config("objective.dead.reference_compat", reason));
            }
            Dead::Ghost { .. } | Dead::Nothing {} => (),
        }
        if matches!(self.activation, Activation::Gated {})
            && !matches!(self.objective.dead, Dead::Nothing {})
        {
            let reason = "a gated dictionary has no pre-activations to wake";
            return Err(Error::config("objective.dead", reason));
        }
        Ok(())
    }
}

/// Shapes of tensors by name.
pub(super) type Shapes = BTreeMap<String, Vec<i64>>;

/// Fails where a tensor would have more than 2^33 values, 32 GiB: memory for it is asked for where a refusal ends the process.
pub(super) fn most_values(field: &str, tensor: &str, shape: &[i64]) -> Result<()> {
    const MOST: i64 = 1 << 33;
    let count = shape
        .iter()
        .try_fold(1i64, |count, size| count.checked_mul(*size));
    if count.is_some_and(|count| count <= MOST) {
        return Ok(());
    }
    let reason = format!(
        "is too large: `{tensor}` would be of shape {shape:?}, where {MOST} values are the most"
    );
    Err(Error::config(field, reason))
}

fn at_least_zero(field: &str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    let reason = format!("must be a finite number of at least 0, got {value}");
    Err(Error::config(field, reason))
}

/// 1/bandwidth where a value is less than half a bandwidth from its threshold, else 0.
pub(super) fn window(seen: &Tensor, threshold: &Tensor, bandwidth: f64) -> Result<Tensor> {
    let distance = seen.f_sub(threshold)?.f_div_scalar(bandwidth)?;
    let inside = distance.f_gt(-0.5)?.f_logical_and(&distance.f_lt(0.5)?)?;
    Ok(inside.f_to_kind(seen.kind())?.f_div_scalar(bandwidth)?)
}
