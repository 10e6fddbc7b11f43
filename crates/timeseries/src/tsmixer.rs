//! TSMixer: MLPs that mix a window of series along time, then across channels.
//!
//! Paper: Chen, Li, Yoder, Arik, Pfister 2023, arXiv 2303.06053 (TMLR). Follows the released code
//! (google-research `tsmixer_basic`), which normalises before each mixing where the paper's appendix does it after the sum. Weights
//! have the names of package `neuralforecast` (`TSMixer`), whose checkpoints load.
//!
//! ```text
//! past [B,T,C] → RevIN → n_block × block → Linear over time T→H, each channel → RevIN undone → forecast [B,H,C]
//! block(x):  y = norm(x);  r = x + drop(act(Linear_T over time))
//!            y = norm(r);  r + drop(Linear(ff,C)(drop(act(Linear(C,ff)(y)))))
//! ```
//!
//! Differs from `neuralforecast`: weights start as in the released code (Glorot uniform, zero bias), and the running
//! variance of the batch norm is the biased one, as in Keras. With the unbiased one a last batch of a single window, which
//! 8,033 windows of ETTh1 in batches of 32 have, makes every later evaluation NaN.
//!
//! | preset | sizes | parameters | MACs per window |
//! | --- | --- | ---: | ---: |
//! | `tsmixer` | T 512, H 96, C 7, 2 blocks, ff 64 (ETTh1) | 605,180 | 4,931,584 |

use densely_core::nn::{Linear, linear_glorot};
use densely_core::random::draw_seed;
use densely_core::{Error, Model, Result, Tensors, check, registry};
use densely_torch_ext::fused;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{Module, ModuleT, Path};

use crate::layers::{Activation, PlaneNorm, PlaneNormKind, RevIn};

/// Sizes of a TSMixer. Defaults are those of the preset `tsmixer`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TsMixerConfig {
    /// Steps that the model sees, T.
    pub lookback: i64,
    /// Steps that it forecasts, H.
    pub horizon: i64,
    /// Series that are read, C.
    pub channels: i64,
    /// Mixing blocks.
    pub n_block: i64,
    /// Hidden width of the feature MLP.
    pub ff_dim: i64,
    /// Probability of dropping an activation.
    pub dropout: f64,
    /// Nonlinearity of both mixings.
    pub activation: Activation,
    /// What is normalised before each mixing.
    pub norm: PlaneNormKind,
    /// Whether each window is standardised by its own statistics, and the forecast put back (all published results).
    pub revin: bool,
    /// Whether channels are mixed; without, this is the paper's univariate TMix-Only.
    pub feature_mixing: bool,
    /// The only channel that is forecast; `None` forecasts all.
    pub target: Option<i64>,
}

impl Default for TsMixerConfig {
    fn default() -> Self {
        Self {
            lookback: 512,
            horizon: 96,
            channels: 7,
            n_block: 2,
            ff_dim: 64,
            dropout: 0.9,
            activation: Activation::Relu,
            norm: PlaneNormKind::Batch,
            revin: true,
            feature_mixing: true,
            target: None,
        }
    }
}

impl TsMixerConfig {
    /// Preset `tsmixer`.
    pub fn tsmixer() -> Self {
        Self::default()
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for (field, size) in [
            ("lookback", self.lookback),
            ("horizon", self.horizon),
            ("channels", self.channels),
            ("n_block", self.n_block),
            ("ff_dim", self.ff_dim),
        ] {
            check::positive(field, size)?;
        }
        check::dropout("dropout", self.dropout)?;
        match self.target {
            Some(target) if !(0..self.channels).contains(&target) => {
                let reason = format!("must lie in 0 to {}, got {target}", self.channels - 1);
                Err(Error::config("target", reason))
            }
            _ => Ok(()),
        }
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<TsMixer> {
        self.validate()?;
        let layers = vs / "mixing_layers";
        Ok(TsMixer {
            norm: self
                .revin
                .then(|| RevIn::new(&(vs / "norm"), self.channels)),
            blocks: (0..self.n_block)
                .map(|i| Block::new(&(&layers / i), self))
                .collect(),
            out: linear_glorot(&(vs / "out"), self.lookback, self.horizon),
            config: self.clone(),
        })
    }

    /// Multiply-accumulates of all matrix products for one window.
    pub fn macs(&self) -> u64 {
        let (t, c) = (self.lookback, self.channels);
        let features = if self.feature_mixing {
            2 * t * c * self.ff_dim
        } else {
            0
        };
        (self.n_block * (c * t * t + features) + self.outputs() * t * self.horizon) as u64
    }

    /// Channels of the forecast.
    pub fn outputs(&self) -> i64 {
        if self.target.is_some() {
            1
        } else {
            self.channels
        }
    }
}

/// A built TSMixer.
#[derive(Debug)]
pub struct TsMixer {
    norm: Option<RevIn>,
    blocks: Vec<Block>,
    out: Linear,
    config: TsMixerConfig,
}

impl TsMixer {
    /// The window after each block: `[batch, lookback, channels]` → `n_block` of the same size, normalised by `RevIN` if the
    /// model has it.
    ///
    /// # Errors
    /// [`Error::Shape`] when `past` does not fit the config.
    pub fn forward_intermediates(&self, past: &Tensor, train: bool) -> Result<Vec<Tensor>> {
        self.check(past)?;
        let start = match &self.norm {
            Some(norm) => norm.normalise(past).0,
            None => past.shallow_clone(),
        };
        let states = self.blocks.iter().scan(start, |xs, block| {
            *xs = block.forward_t(xs, train);
            Some(xs.shallow_clone())
        });
        Ok(states.collect())
    }

    /// The forecast: `past [batch, lookback, channels]` → `[batch, horizon, channels]`, or `[batch, horizon, 1]` with a `target`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `past` does not fit the config.
    pub fn forward(&self, past: &Tensor, train: bool) -> Result<Tensor> {
        self.check(past)?;
        let (xs, moments) = match &self.norm {
            Some(norm) => {
                let (xs, moments) = norm.normalise(past);
                (xs, Some(moments))
            }
            None => (past.shallow_clone(), None),
        };
        let xs = xs.transpose(1, 2); // [batch, channels, lookback]
        let mut blocks = self.blocks.iter();
        let xs = if self.fuses() {
            blocks.try_fold(xs, |xs, block| block.forward_fused(&xs, train))?
        } else {
            let xs = xs.transpose(1, 2);
            blocks
                .fold(xs, |xs, block| block.forward_t(&xs, train))
                .transpose(1, 2)
        };
        let xs = match self.config.target {
            Some(target) => xs.narrow(1, target, 1),
            None => xs,
        };
        let ys = self.out.forward(&xs).transpose(1, 2); // [batch, horizon, outputs]
        Ok(match (&self.norm, moments) {
            (Some(norm), Some(moments)) => norm.undo(&ys, &moments, self.config.target),
            _ => ys,
        })
    }

    /// Whether the blocks run as fused operations: on the CPU, for the activation of all published results.
    fn fuses(&self) -> bool {
        self.config.activation == Activation::Relu
            && fused::enabled_without_autocast(&self.out.weight)
    }

    fn check(&self, past: &Tensor) -> Result<()> {
        let TsMixerConfig {
            lookback, channels, ..
        } = self.config;
        check::shape("past", past, &[None, Some(lookback), Some(channels)])?;
        check::kind("past", past, self.out.weight.kind())
    }
}

impl Model for TsMixer {
    fn forward_named(&self, inputs: &Tensors, train: bool) -> Result<Tensors> {
        let [past] = registry::take_inputs(inputs, ["past"])?;
        let past = past.ok_or_else(|| check::absent("past"))?;
        Ok(Tensors::from([(
            "forecast".to_owned(),
            self.forward(past, train)?,
        )]))
    }
}

#[derive(Debug)]
struct Block {
    time: TemporalMixing,
    features: Option<FeatureMixing>,
}

impl Block {
    fn new(vs: &Path, config: &TsMixerConfig) -> Self {
        Self {
            time: TemporalMixing::new(&(vs / "temporal_mixer"), config),
            features: config
                .feature_mixing
                .then(|| FeatureMixing::new(&(vs / "feature_mixer"), config)),
        }
    }
}

impl Block {
    /// As [`forward_t`](ModuleT::forward_t), for windows that lie channel by channel, `[batch, channels, lookback]`.
    fn forward_fused(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let xs = self.time.forward_fused(xs, train)?;
        match &self.features {
            Some(features) => features.forward_fused(&xs, train),
            None => Ok(xs),
        }
    }
}

impl ModuleT for Block {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let xs = self.time.forward_t(xs, train);
        match &self.features {
            Some(features) => features.forward_t(&xs, train),
            None => xs,
        }
    }
}

/// One linear layer over time, shared by the channels.
#[derive(Debug)]
struct TemporalMixing {
    norm: PlaneNorm,
    linear: Linear,
    activation: Activation,
    dropout: f64,
}

impl TemporalMixing {
    fn new(vs: &Path, config: &TsMixerConfig) -> Self {
        let TsMixerConfig {
            lookback, channels, ..
        } = *config;
        Self {
            norm: PlaneNorm::new(&(vs / "temporal_norm"), config.norm, [channels, lookback]),
            linear: linear_glorot(&(vs / "temporal_lin"), lookback, lookback),
            activation: config.activation,
            dropout: config.dropout,
        }
    }
}

impl TemporalMixing {
    fn forward_fused(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let Self { norm, linear, .. } = self;
        let seed = seed_of(self.dropout, train);
        let weights = weights(linear)?;
        let ys = fused::mix_time(xs, &norm.fused(), weights, self.dropout, seed, train);
        if train {
            norm.count();
        }
        ys.map_err(Error::torch)
    }
}

/// Weight and bias of a layer that has both.
fn weights(linear: &Linear) -> Result<[&Tensor; 2]> {
    let bias = linear.bias.as_ref();
    let absent = || Error::config("bias", "a layer of TSMixer has a bias");
    Ok([&linear.weight, bias.ok_or_else(absent)?])
}

/// A seed for the dropout of a fused operation, where it drops.
fn seed_of(dropout: f64, train: bool) -> i64 {
    if train && dropout > 0.0 {
        draw_seed()
    } else {
        0
    }
}

impl ModuleT for TemporalMixing {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let ys = self.norm.forward_t(&xs.transpose(1, 2), train); // [batch, channels, lookback]
        let ys = self.activation.apply(&self.linear.forward(&ys));
        xs + ys.dropout(self.dropout, train).transpose(1, 2)
    }
}

/// An MLP over the channels, shared by the steps.
#[derive(Debug)]
struct FeatureMixing {
    norm: PlaneNorm,
    linear_1: Linear,
    linear_2: Linear,
    activation: Activation,
    dropout: f64,
}

impl FeatureMixing {
    fn new(vs: &Path, config: &TsMixerConfig) -> Self {
        let TsMixerConfig {
            lookback,
            channels,
            ff_dim,
            ..
        } = *config;
        Self {
            norm: PlaneNorm::new(&(vs / "feature_norm"), config.norm, [lookback, channels]),
            linear_1: linear_glorot(&(vs / "feature_lin_1"), channels, ff_dim),
            linear_2: linear_glorot(&(vs / "feature_lin_2"), ff_dim, channels),
            activation: config.activation,
            dropout: config.dropout,
        }
    }
}

impl FeatureMixing {
    fn forward_fused(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let Self {
            norm,
            linear_1,
            linear_2,
            ..
        } = self;
        let seed = seed_of(self.dropout, train);
        let ([w1, b1], [w2, b2]) = (weights(linear_1)?, weights(linear_2)?);
        let norm_here = norm.fused().transposed();
        let ys = fused::mix_features(xs, &norm_here, [w1, b1, w2, b2], self.dropout, seed, train);
        if train {
            norm.count();
        }
        ys.map_err(Error::torch)
    }
}

impl ModuleT for FeatureMixing {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let ys = self.norm.forward_t(xs, train); // [batch, lookback, channels]
        let ys = self
            .activation
            .apply(&self.linear_1.forward(&ys))
            .dropout(self.dropout, train); // [batch, lookback, ff]
        xs + self.linear_2.forward(&ys).dropout(self.dropout, train)
    }
}
