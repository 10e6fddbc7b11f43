//! TSMixer-Ext: TSMixer with past, known-future and static covariates.
//!
//! Paper: Chen, Li, Yoder, Arik, Pfister 2023, arXiv 2303.06053, appendix B.3; its code was never released. Two forms, by
//! [`Form`]: the paper's, and that of package `neuralforecast` (`TSMixerx`), whose weights load by its names.
//!
//! ```text
//! TP: Linear over time T→H                      TM(x) = LN(x + drop(relu(Linear_H over time)))
//! FM_{a→b}(x) = LN(res(x) + drop(W₃ drop(relu(W₂ x)))),  res = identity if a = b, else Linear(a,b)
//! align:  x' = FM(TP(past and past covariates));  z' = FM(future);  s' = FM(static at each step)
//! paper:  CMix(x, s): u = TM(x);  FM([u, FM(s)]);        first CMix on [x', z', s'], n_block in all
//! nf:     first FM(TM([x', z', s'])), then n_block × FM(TM([x, FM(s)]))
//! out:    Linear(ff, C) at each step
//! ```
//!
//! Norms are layer norms over steps × channels, after each sum. Known covariates enter twice, as the future and, over the lookback,
//! beside the past.
//!
//! | preset | sizes | parameters | MACs per window |
//! | --- | --- | ---: | ---: |
//! | `tsmixer-ext` | T 35, H 28, 1 series, 1 past, 2 known and 3 static columns, ff 64, 2 blocks | 123,211 | 2,439,248 |

use densely_core::nn::{self, LayerNorm, Linear};
use densely_core::{Error, Model, Result, Tensors, check, registry};
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{Module, ModuleT, Path};

use crate::layers::RevIn;

/// Sizes of a TSMixer-Ext. Defaults are those of the preset `tsmixer-ext`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TsMixerExtConfig {
    /// Steps that the model sees, T.
    pub lookback: i64,
    /// Steps that it forecasts, H.
    pub horizon: i64,
    /// Series that are forecast, C.
    pub channels: i64,
    /// Covariates known up to the present.
    pub past: i64,
    /// Covariates known over lookback and horizon.
    pub known: i64,
    /// Covariates that do not change.
    pub statics: i64,
    /// Mixing blocks.
    pub n_block: i64,
    /// Width of the features at each step.
    pub ff_dim: i64,
    /// Probability of dropping an activation.
    pub dropout: f64,
    /// Whether the targets are standardised by their own statistics, and the forecast put back.
    pub revin: bool,
    /// How the blocks are put together.
    pub form: Form,
    /// Forecasts per step and channel, such as quantiles.
    pub outputs: i64,
}

/// How the blocks are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// As the paper's appendix says.
    Paper,
    /// As package `neuralforecast` does.
    Neuralforecast,
}

impl Default for TsMixerExtConfig {
    fn default() -> Self {
        Self {
            lookback: 35,
            horizon: 28,
            channels: 1,
            past: 1,
            known: 2,
            statics: 3,
            n_block: 2,
            ff_dim: 64,
            dropout: 0.0,
            revin: true,
            form: Form::Paper,
            outputs: 1,
        }
    }
}

impl TsMixerExtConfig {
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
            ("outputs", self.outputs),
        ] {
            check::positive(field, size)?;
        }
        for (field, size) in [
            ("past", self.past),
            ("known", self.known),
            ("statics", self.statics),
        ] {
            if size < 0 {
                return Err(Error::config(
                    field,
                    format!("must be at least 0, got {size}"),
                ));
            }
        }
        check::dropout("dropout", self.dropout)
    }

    /// Aligned inputs: past, and future and statics where there are some.
    fn parts(&self) -> i64 {
        1 + i64::from(self.known > 0) + i64::from(self.statics > 0)
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<TsMixerExt> {
        self.validate()?;
        let ff = self.ff_dim;
        let align = |name: &str, inputs: i64| FeatureMixing::new(&(vs / name), inputs, ff, self);
        let norm = self
            .revin
            .then(|| RevIn::new(&(vs / "norm"), self.channels));
        let projection = nn::linear(&(vs / "temporal_projection"), self.lookback, self.horizon);
        let past = align("feature_mixer_hist", self.channels + self.past + self.known);
        let future = (self.known > 0).then(|| align("feature_mixer_futr", self.known));
        let statics = (self.statics > 0).then(|| align("feature_mixer_stat", self.statics));
        let blocks = vs / "mixing_block";
        let wide = self.parts() * ff;
        let (first, blocks) = match self.form {
            Form::Neuralforecast => (
                Some(Block::new(&(vs / "first_mixing"), wide, false, self)),
                (0..self.n_block)
                    .map(|i| Block::new(&(&blocks / i), ff, true, self))
                    .collect(),
            ),
            Form::Paper => {
                let inputs = |i: i64| if i == 0 { wide } else { ff };
                (
                    None,
                    (0..self.n_block)
                        .map(|i| Block::new(&(&blocks / i), inputs(i), true, self))
                        .collect(),
                )
            }
        };
        Ok(TsMixerExt {
            norm,
            projection,
            past,
            future,
            statics,
            first,
            blocks,
            out: nn::linear(&(vs / "out"), ff, self.channels * self.outputs),
            config: self.clone(),
        })
    }

    /// Multiply-accumulates of all matrix products for one window.
    pub fn macs(&self) -> u64 {
        let (h, ff) = (self.horizon, self.ff_dim);
        let features = |a: i64, b: i64| h * (a * ff + ff * b + if a == b { 0 } else { a * b });
        let optional = |size: i64| if size > 0 { features(size, ff) } else { 0 };
        let history = self.channels + self.past + self.known;
        let align = history * self.lookback * h
            + features(history, ff)
            + optional(self.known)
            + optional(self.statics);
        let wide = self.parts() * ff;
        let extra = if self.statics > 0 { ff } else { 0 };
        let time = |width: i64| width * h * h;
        let blocks: i64 = match self.form {
            Form::Neuralforecast => {
                let each = optional(self.statics) + time(ff + extra) + features(ff + extra, ff);
                time(wide) + features(wide, ff) + self.n_block * each
            }
            Form::Paper => (0..self.n_block)
                .map(|i| {
                    let inputs = if i == 0 { wide } else { ff };
                    optional(self.statics) + time(inputs) + features(inputs + extra, ff)
                })
                .sum(),
        };
        (align + blocks + h * ff * self.channels * self.outputs) as u64
    }
}

/// A built TSMixer-Ext.
#[derive(Debug)]
pub struct TsMixerExt {
    norm: Option<RevIn>,
    projection: Linear,
    past: FeatureMixing,
    future: Option<FeatureMixing>,
    statics: Option<FeatureMixing>,
    first: Option<Block>,
    blocks: Vec<Block>,
    out: Linear,
    config: TsMixerExtConfig,
}

/// What a TSMixer-Ext reads; covariates are `None` where the config has none.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The targets, then the past covariates: `[batch, lookback, channels + past]`.
    pub past: &'a Tensor,
    /// The known covariates over the lookback: `[batch, lookback, known]`.
    pub past_known: Option<&'a Tensor>,
    /// The known covariates over the horizon: `[batch, horizon, known]`.
    pub future: Option<&'a Tensor>,
    /// What does not change: `[batch, statics]`.
    pub statics: Option<&'a Tensor>,
}

impl TsMixerExt {
    /// The forecast `[batch, horizon · outputs, channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for an input that is absent, superfluous or of another size.
    pub fn forward(&self, inputs: Inputs, train: bool) -> Result<Tensor> {
        self.check(inputs)?;
        let TsMixerExtConfig {
            channels, horizon, ..
        } = self.config;
        let targets = inputs.past.narrow(2, 0, channels);
        let (targets, moments) = match &self.norm {
            Some(norm) => {
                let (xs, moments) = norm.normalise(&targets);
                (xs, Some(moments))
            }
            None => (targets, None),
        };
        let covariates = inputs.past.narrow(2, channels, self.config.past);
        let mut history = vec![targets, covariates];
        history.extend(inputs.past_known.map(Tensor::shallow_clone));
        let history = Tensor::cat(&history, 2).transpose(1, 2); // [batch, channels + past + known, lookback]
        let aligned = self.projection.forward(&history).transpose(1, 2); // [batch, horizon, …]
        let mut parts = vec![self.past.forward_t(&aligned, train)];
        if let (Some(mixing), Some(future)) = (&self.future, inputs.future) {
            parts.push(mixing.forward_t(future, train));
        }
        let statics = inputs
            .statics
            .map(|xs| xs.unsqueeze(1).expand([-1, horizon, -1], false)); // [batch, horizon, statics]
        if let (Some(mixing), Some(statics)) = (&self.statics, &statics) {
            parts.push(mixing.forward_t(statics, train));
        }
        let mut xs = Tensor::cat(&parts, 2); // [batch, horizon, parts · ff]
        if let Some(first) = &self.first {
            xs = first.forward(&xs, None, train);
        }
        let xs = self
            .blocks
            .iter()
            .fold(xs, |xs, block| block.forward(&xs, statics.as_ref(), train));
        let ys = self
            .out
            .forward(&xs)
            .unflatten(2, [-1, channels])
            .flatten(1, 2);
        Ok(match (&self.norm, moments) {
            (Some(norm), Some(moments)) => norm.undo(&ys, &moments, None),
            _ => ys,
        })
    }

    fn check(&self, inputs: Inputs) -> Result<()> {
        let config = &self.config;
        let kind = self.out.weight.kind();
        check::shape(
            "past",
            inputs.past,
            &[
                None,
                Some(config.lookback),
                Some(config.channels + config.past),
            ],
        )?;
        check::kind("past", inputs.past, kind)?;
        let batch = Some(inputs.past.size()[0]);
        let optional = |name: &str, xs: Option<&Tensor>, width: i64, steps: Option<i64>| match xs {
            None if width == 0 => Ok(()),
            None => Err(check::absent(name)),
            Some(xs) => {
                let size: Vec<Option<i64>> = [Some(batch), steps.map(Some), Some(Some(width))]
                    .into_iter()
                    .flatten()
                    .collect();
                check::shape(name, xs, &size)?;
                check::kind(name, xs, kind)
            }
        };
        optional(
            "past_known",
            inputs.past_known,
            config.known,
            Some(config.lookback),
        )?;
        optional("future", inputs.future, config.known, Some(config.horizon))?;
        optional("static", inputs.statics, config.statics, None)
    }
}

impl Model for TsMixerExt {
    fn forward_named(&self, inputs: &Tensors, train: bool) -> Result<Tensors> {
        let [past, past_known, future, statics] =
            registry::take_inputs(inputs, ["past", "past_known", "future", "static"])?;
        let past = past.ok_or_else(|| check::absent("past"))?;
        let ys = self.forward(
            Inputs {
                past,
                past_known,
                future,
                statics,
            },
            train,
        )?;
        Ok(Tensors::from([("forecast".to_owned(), ys)]))
    }
}

/// Time, then features; in a block that is conditioned, the statics join before (neuralforecast) or between (paper).
#[derive(Debug)]
struct Block {
    statics: Option<FeatureMixing>,
    time: TemporalMixing,
    features: FeatureMixing,
    form: Form,
}

impl Block {
    fn new(vs: &Path, inputs: i64, conditioned: bool, config: &TsMixerExtConfig) -> Self {
        let ff = config.ff_dim;
        let conditioned = conditioned && config.statics > 0;
        let joined = inputs + if conditioned { ff } else { 0 };
        let in_time = if config.form == Form::Neuralforecast {
            joined
        } else {
            inputs
        };
        Self {
            statics: conditioned.then(|| {
                FeatureMixing::new(&(vs / "feature_mixer_stat"), config.statics, ff, config)
            }),
            time: TemporalMixing::new(&(vs / "temporal_mixer"), in_time, config),
            features: FeatureMixing::new(&(vs / "feature_mixer"), joined, ff, config),
            form: config.form,
        }
    }

    fn forward(&self, xs: &Tensor, statics: Option<&Tensor>, train: bool) -> Tensor {
        let condition = match (&self.statics, statics) {
            (Some(mixing), Some(statics)) => Some(mixing.forward_t(statics, train)),
            _ => None,
        };
        let join = |xs: Tensor| match &condition {
            Some(condition) => Tensor::cat(&[&xs, condition], 2),
            None => xs,
        };
        let xs = match self.form {
            Form::Neuralforecast => self.time.forward_t(&join(xs.shallow_clone()), train),
            Form::Paper => join(self.time.forward_t(xs, train)),
        };
        self.features.forward_t(&xs, train)
    }
}

/// Added to the variance in the layer norms.
const EPS: f64 = 1e-5;

#[derive(Debug)]
struct TemporalMixing {
    linear: Linear,
    norm: LayerNorm,
    dropout: f64,
}

impl TemporalMixing {
    fn new(vs: &Path, width: i64, config: &TsMixerExtConfig) -> Self {
        let h = config.horizon;
        Self {
            norm: nn::layer_norm(&(vs / "temporal_norm"), &[h, width], EPS),
            linear: nn::linear(&(vs / "temporal_lin"), h, h),
            dropout: config.dropout,
        }
    }
}

impl ModuleT for TemporalMixing {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let ys = self
            .linear
            .forward(&xs.transpose(1, 2))
            .relu()
            .transpose(1, 2); // [batch, horizon, width]
        self.norm.forward(&(ys.dropout(self.dropout, train) + xs))
    }
}

#[derive(Debug)]
struct FeatureMixing {
    linear_1: Linear,
    linear_2: Linear,
    residual: Option<Linear>,
    norm: LayerNorm,
    dropout: f64,
}

impl FeatureMixing {
    fn new(vs: &Path, inputs: i64, outputs: i64, config: &TsMixerExtConfig) -> Self {
        let ff = config.ff_dim;
        Self {
            linear_1: nn::linear(&(vs / "feature_lin_1"), inputs, ff),
            linear_2: nn::linear(&(vs / "feature_lin_2"), ff, outputs),
            residual: (inputs != outputs)
                .then(|| nn::linear(&(vs / "project_residual"), inputs, outputs)),
            norm: nn::layer_norm(&(vs / "feature_norm"), &[config.horizon, outputs], EPS),
            dropout: config.dropout,
        }
    }
}

impl ModuleT for FeatureMixing {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let ys = self
            .linear_1
            .forward(xs)
            .relu()
            .dropout(self.dropout, train);
        let ys = self.linear_2.forward(&ys).dropout(self.dropout, train);
        let residual = match &self.residual {
            Some(linear) => linear.forward(xs),
            None => xs.shallow_clone(),
        };
        self.norm.forward(&(ys + residual))
    }
}
