//! Sizes of a decoder language model: one struct for every architecture.

mod hugging;

use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};

/// Families of models whose weights load by the names of the reference's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Architecture {
    /// Learned positions, norm before each part, matrices stored `[in, out]`.
    Gpt2,
    /// GPT-NeoX and Pythia: rotary positions on a part of each head, attention and MLP side by side.
    GptNeoX,
    /// GPT-J: as GPT-NeoX with one norm a block and interleaved rotary positions.
    GptJ,
    /// Learned positions that start in row 2, ReLU.
    Opt,
    /// Llama, and Qwen2 and Mistral, which differ by biases alone: RMS norms, gated MLP, grouped key and value heads.
    Llama,
}

/// The function between the two matrices of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// GELU by its approximation with tanh.
    GeluNew,
    /// GELU by the error function.
    Gelu,
    /// Zero below zero.
    Relu,
    /// `x · sigmoid(x)`.
    Silu,
}

/// Positions as rotations of pairs within queries and keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Values of each head that are rotated, the first ones; even.
    pub dims: i64,
    /// Pair j turns by `position · base^(-2j / dims)`.
    pub base: f64,
    /// Pairs are neighbours `(2j, 2j + 1)`; else `(j, j + dims / 2)`.
    pub interleaved: bool,
    /// How the frequencies are stretched for long texts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched for texts longer than those of the training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All are divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Waves longer than `old_ctx / low` are divided by `factor`, those shorter than `old_ctx / high` are kept, between them it fades.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Waves per old context from which on a frequency is not divided whole.
        low: f64,
        /// Waves per old context from which on a frequency is kept.
        high: f64,
        /// Longest text of the first training.
        old_ctx: f64,
    },
}

/// Sizes of a language model. [`from_hugging`](Self::from_hugging) reads them from a `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct LmConfig {
    /// Which family; sets the names of the weights.
    pub architecture: Architecture,
    /// Tokens.
    pub vocab_size: i64,
    /// Longest text, tokens.
    pub n_ctx: i64,
    /// Width of the residual stream.
    pub d_model: i64,
    /// Blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: i64,
    /// Heads of keys and values; consecutive query heads share one.
    pub n_kv_heads: i64,
    /// Width of a head.
    pub d_head: i64,
    /// Hidden width of the MLP.
    pub d_mlp: i64,
    /// Added to the variance in norms.
    pub norm_eps: f64,
    /// Of the MLP.
    pub activation: Activation,
    /// Whether the head is the token embedding.
    pub tied: bool,
    /// Rotary positions; `None` for learned ones.
    pub rotary: Option<Rotary>,
    /// Llama family: whether queries, keys and values have biases, as in Qwen2. Others have what their family has.
    pub qkv_bias: bool,
    /// GPT-NeoX: whether attention and MLP read the same residual. GPT-J's always do, others' never.
    pub parallel: bool,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// Token that starts a text.
    pub bos: Option<i64>,
    /// Tokens that end one.
    pub eos: Vec<i64>,
    /// Hook points whose values the named forward pass gives beside the logits.
    pub return_hooks: Vec<String>,
}

/// Largest sizes that are taken from a file: far above any model, and low enough that no product overflows.
const MAX_WIDTH: i64 = 1 << 20;
const MAX_LAYERS: i64 = 1 << 12;
const MAX_ROWS: i64 = 1 << 28;
const MAX_PARAMETERS: u64 = 1 << 45;

fn size(field: &str, value: i64, most: i64) -> Result<()> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::config(
        field,
        format!("must lie in 1 to {most}, got {value}"),
    ))
}

impl LmConfig {
    /// Fails unless the sizes fit each other.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        size("vocab_size", self.vocab_size, MAX_ROWS)?;
        size("n_ctx", self.n_ctx, MAX_ROWS)?;
        size("d_model", self.d_model, MAX_WIDTH)?;
        size("n_layers", self.n_layers as i64, MAX_LAYERS)?;
        size("n_heads", self.n_heads, MAX_WIDTH)?;
        size("n_kv_heads", self.n_kv_heads, MAX_WIDTH)?;
        size("d_head", self.d_head, MAX_WIDTH)?;
        size("d_mlp", self.d_mlp, MAX_ROWS)?;
        check::above_zero("norm_eps", self.norm_eps)?;
        if !self.initializer_range.is_finite() || self.initializer_range < 0.0 {
            let reason = format!("must be at least 0, got {}", self.initializer_range);
            return Err(Error::config("initializer_range", reason));
        }
        if self.n_heads % self.n_kv_heads != 0 {
            let reason = format!(
                "must divide n_heads ({}), got {}",
                self.n_heads, self.n_kv_heads
            );
            return Err(Error::config("n_kv_heads", reason));
        }
        if self.architecture != Architecture::Llama {
            if self.n_kv_heads != self.n_heads {
                let reason = format!(
                    "must be n_heads ({}) in this family, got {}",
                    self.n_heads, self.n_kv_heads
                );
                return Err(Error::config("n_kv_heads", reason));
            }
            if self.d_head * self.n_heads != self.d_model {
                let reason = format!(
                    "{} heads must share d_model ({}) without a rest",
                    self.n_heads, self.d_model
                );
                return Err(Error::config("n_heads", reason));
            }
        }
        self.validate_rotary()?;
        if self.parameter_count() > MAX_PARAMETERS {
            let reason = format!(
                "{} parameters are beyond any machine",
                self.parameter_count()
            );
            return Err(Error::config("d_model", reason));
        }
        Ok(())
    }

    fn validate_rotary(&self) -> Result<()> {
        let Some(rotary) = &self.rotary else {
            if self.learned_positions() {
                return Ok(());
            }
            let reason = "this family has rotary positions, none are given";
            return Err(Error::config("rotary", reason));
        };
        if self.learned_positions() {
            let reason = "this family has learned positions, rotary ones are given";
            return Err(Error::config("rotary", reason));
        }
        if rotary.dims < 2 || rotary.dims % 2 != 0 || rotary.dims > self.d_head {
            let reason = format!(
                "must be even and lie in 2 to d_head ({}), got {}",
                self.d_head, rotary.dims
            );
            return Err(Error::config("rotary.dims", reason));
        }
        check::above_zero("rotary.base", rotary.base)?;
        match rotary.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => check::above_zero("rotary.factor", factor),
            RopeScaling::Llama3 {
                factor,
                low,
                high,
                old_ctx,
            } => {
                check::above_zero("rotary.factor", factor)?;
                check::above_zero("rotary.low_freq_factor", low)?;
                check::above_zero("rotary.original_max_position_embeddings", old_ctx)?;
                if high.is_finite() && high > low {
                    return Ok(());
                }
                let reason = format!("must be above low_freq_factor ({low}), got {high}");
                Err(Error::config("rotary.high_freq_factor", reason))
            }
        }
    }

    /// Whether positions are rows of a table.
    pub const fn learned_positions(&self) -> bool {
        matches!(self.architecture, Architecture::Gpt2 | Architecture::Opt)
    }

    /// Whether the MLP is gated.
    pub const fn gated(&self) -> bool {
        matches!(self.architecture, Architecture::Llama)
    }

    /// Whether norms divide by the root of the mean square alone, without mean and bias.
    pub const fn rms(&self) -> bool {
        matches!(self.architecture, Architecture::Llama)
    }

    /// Whether attention and MLP read the same residual.
    pub const fn is_parallel(&self) -> bool {
        match self.architecture {
            Architecture::GptJ => true,
            Architecture::GptNeoX => self.parallel,
            _ => false,
        }
    }

    /// Row of the table of positions that position 0 takes.
    pub const fn position_offset(&self) -> i64 {
        match self.architecture {
            Architecture::Opt => 2,
            _ => 0,
        }
    }

    /// Values of all parameters, counted from the sizes; a tied head counts once.
    pub fn parameter_count(&self) -> u64 {
        let (vocab, d) = (wide(self.vocab_size), wide(self.d_model));
        let mut tables = vocab * d;
        if self.learned_positions() {
            tables += (wide(self.n_ctx) + wide(self.position_offset())) * d;
        }
        if !self.tied {
            tables += vocab * d;
        }
        if self.architecture == Architecture::GptJ {
            tables += vocab;
        }
        narrow(tables + u128::from(self.non_embedding_count()))
    }

    /// Values of the parameters of blocks and last norm: without embeddings, positions and head.
    pub fn non_embedding_count(&self) -> u64 {
        let (d, m) = (wide(self.d_model), wide(self.d_mlp));
        let heads = [self.n_heads, self.n_kv_heads].map(|heads| heads.saturating_mul(self.d_head));
        let [queries, keys] = heads.map(wide);
        let biased = matches!(
            self.architecture,
            Architecture::Gpt2 | Architecture::GptNeoX | Architecture::Opt
        );
        let norm = if self.rms() { d } else { 2 * d };
        let norms = if self.architecture == Architecture::GptJ {
            norm
        } else {
            2 * norm
        };
        let mut block = 2 * d * queries + 2 * d * keys + norms;
        if biased {
            block += queries + 2 * keys + d;
        } else if self.architecture == Architecture::Llama && self.qkv_bias {
            block += queries + 2 * keys;
        }
        block += if self.gated() {
            3 * d * m
        } else {
            2 * d * m + m + d
        };
        narrow(block * wide(self.n_layers as i64) + norm)
    }

    /// Multiply-accumulates of all matrix products for one text of `tokens` tokens, attention counted without leaving out what the
    /// causal mask hides.
    pub fn macs(&self, tokens: u32) -> u64 {
        let (d, m, tokens) = (wide(self.d_model), wide(self.d_mlp), u128::from(tokens));
        let heads = [self.n_heads, self.n_kv_heads].map(|heads| heads.saturating_mul(self.d_head));
        let [queries, keys] = heads.map(wide);
        let matrices = if self.gated() { 3 } else { 2 };
        let block = 2 * d * queries + 2 * d * keys + matrices * d * m;
        let blocks = (block + 2 * queries * tokens).saturating_mul(wide(self.n_layers as i64));
        narrow((blocks + d * wide(self.vocab_size)).saturating_mul(tokens))
    }
}

/// A size for products that cannot overflow.
fn wide(value: i64) -> u128 {
    value.clamp(0, 1 << 40) as u128
}

fn narrow(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}
