//! PatchTSMixer: a mixer on patches of series, with gates; heads for forecasts, pretraining, classes and values.
//!
//! Paper: Ekambaram, Jati, Nguyen, Sinthong, Kalagnanam 2023, arXiv 2306.09364 (KDD). Follows `transformers`
//! (`models/patchtsmixer`): weights have its names and a folder that it saved loads as it is ([`PatchTsMixerConfig::from_transformers`]).
//!
//! ```text
//! past [B,L,C] → scaled by loc, scale [B,1,C] → patches [B,C,n,P] → Linear(P,d) (+ positions) → layers → head
//! layer:   [channels: x + MLP_C(gate_C(norm(x)))]      only with mode mix_channel; here the gate comes first
//!          patches:   x + gate_n(MLP_n(norm(x)))       along n; with attention x + norm(… + attention(norm(x)))
//!          features:  x + gate_d(MLP_d(norm(x)))
//! MLP_a = Linear(a,ea), GELU, dropout, Linear(ea,a), dropout;  gate_a(x) = x · softmax(Linear(a,a)(x))
//! ```
//!
//! Beyond the package, a forecast may have the paper's reconciliation heads: `hierarchy_patch_length` (H) and `cross_channel_context` (CC).
//!
//! The softmax makes a gate about 1/a; the reference leaves it so, and so does this.
//!
//! | preset | sizes | parameters | MACs per window |
//! | --- | --- | ---: | ---: |
//! | `patchtsmixer-forecast` | L 512, H 96, P 8, C 7, d 48, 3 layers, e 3 (ETTh1) | 432,096 | 52,813,824 |
//! | `patchtsmixer-pretrain` | the same backbone, the hidden patches back | 137,480 | 50,921,472 |
//! | `patchtsmixer-classification`, `-regression` | the same backbone, 3 classes or values | 147,673 | 54,972,400 |

pub(crate) mod blocks;
mod config;
mod reconcile;

use densely_core::nn::{Linear, buffer, parameter};
use densely_core::{Error, Model, Result, Tensors, check, registry};
use tch::nn::{Module, Path};
use tch::{Kind, Tensor};

use crate::distributions::Distribution;
use crate::layers::linear_from;
use blocks::{InjectScale, Layer, Sizes};
pub use config::{Aggregation, Head, Mode, NormKind, PatchTsMixerConfig, Positions, Scaling};
pub use reconcile::hierarchical_loss;
use reconcile::{CrossChannel, Hierarchy};

impl PatchTsMixerConfig {
    /// Creates the parameters under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<PatchTsMixer> {
        self.validate()?;
        let encoder = vs / "model" / "encoder";
        let positions = self
            .use_positional_encoding
            .then(|| self.positions(&(&encoder / "positional_encoder")));
        let mixers = &encoder / "mlp_mixer_encoder" / "mixers";
        let scaled = self.scaling != Scaling::None;
        let inject = matches!(self.head, Head::Classification | Head::Regression) && scaled;
        Ok(PatchTsMixer {
            patcher: linear_from(
                &(&encoder / "patcher"),
                self.patch_length,
                self.d_model,
                self.initial_std(),
            ),
            positions,
            layers: (0..self.num_layers)
                .map(|i| Layer::new(&(&mixers / i), &self.layer()))
                .collect(),
            inject: inject.then(|| InjectScale::new(&(vs / "inject_scale"), self)),
            projections: self.head_projections(&(vs / "head")),
            hierarchy: (self.hierarchy_patch_length > 0)
                .then(|| Hierarchy::new(&(vs / "head" / "hierarchy_block"), self, &self.layer())),
            channels: (self.cross_channel_context > 0).then(|| {
                CrossChannel::new(
                    &(vs / "head" / "fcm_block"),
                    self.cross_channel_context,
                    self.targets(),
                    &self.layer(),
                )
            }),
            config: self.clone(),
        })
    }

    fn layer(&self) -> Sizes {
        Sizes {
            channels: self.num_input_channels,
            patches: self.num_patches(),
            d_model: self.d_model,
            expansion: self.expansion_factor,
            dropout: self.dropout,
            mix_channels: self.mode == Mode::MixChannel,
            mix_patches: true,
            gates: self.gated_attn,
            norm: self.norm_mlp,
            norm_eps: self.norm_eps,
            attention_heads: self.self_attn.then_some(self.self_attn_heads),
            init_std: self.initial_std(),
        }
    }

    fn positions(&self, vs: &Path) -> Tensor {
        let (n, d) = (self.num_patches(), self.d_model);
        let cpu = tch::kind::FLOAT_CPU;
        match self.positional_encoding_type {
            Positions::Random => parameter(
                vs,
                "position_enc",
                &Tensor::empty([n, d], cpu).normal_(0.0, 0.1),
            ),
            Positions::Sincos => {
                let position = Tensor::arange(n, cpu).unsqueeze(1);
                let rate =
                    (Tensor::arange_start_step(0, d, 2, cpu) * -(10_000f64.ln() / d as f64)).exp();
                let angles = position * rate; // [patches, ⌈d/2⌉]
                let pairs = Tensor::stack(&[angles.sin(), angles.cos()], 2)
                    .flatten(1, 2)
                    .narrow(1, 0, d);
                let centred = &pairs - pairs.mean(Kind::Float);
                buffer(vs, "position_enc", &(&centred / (centred.std(true) * 10.0)))
            }
        }
    }

    /// The head's linear layers: one, or one per parameter of the distribution.
    fn head_projections(&self, vs: &Path) -> Vec<Linear> {
        let (n, d) = (self.num_patches(), self.d_model);
        let patches = if self.head_aggregation.is_none() {
            n
        } else {
            1
        };
        let (name, inputs, outputs) = match self.head {
            Head::Forecast => ("base_forecast_block", n * d, self.prediction_length),
            Head::Pretrain => ("base_pt_block", d, self.patch_length),
            Head::Classification | Head::Regression => (
                "projection",
                self.num_input_channels * d * patches,
                self.num_targets,
            ),
        };
        let vs = vs / name;
        match self.distribution() {
            None => vec![linear_from(&vs, inputs, outputs, self.initial_std())],
            Some(distribution) => {
                let proj = &vs / "proj";
                let parameters = 0..distribution.parameters().len() as i64;
                parameters
                    .map(|j| linear_from(&(&proj / j), inputs, outputs, self.initial_std()))
                    .collect()
            }
        }
    }

    /// The distribution of the head, where its kind has one.
    fn distribution(&self) -> Option<Distribution> {
        matches!(self.head, Head::Forecast | Head::Regression)
            .then_some(self.distribution_output)
            .flatten()
    }

    /// Multiply-accumulates of all matrix products for one window.
    pub fn macs(&self) -> u64 {
        let (c, n, d, p) = (
            self.num_input_channels,
            self.num_patches(),
            self.d_model,
            self.patch_length,
        );
        let each = self
            .distribution()
            .map_or(1, |distribution| distribution.parameters().len() as i64);
        let pooled = if self.head_aggregation.is_none() {
            n
        } else {
            1
        };
        let head = match self.head {
            Head::Forecast => {
                let hierarchy = match self.hierarchy_patch_length {
                    0 => 0,
                    _ => Hierarchy::macs(self, &self.layer()),
                };
                let steps = self.prediction_length;
                let (around, targets) = (self.cross_channel_context, self.targets());
                let channels = match around {
                    0 => 0,
                    _ => CrossChannel::macs(around, targets, steps, &self.layer()),
                };
                each * c * n * d * steps + hierarchy + channels
            }
            Head::Pretrain => c * n * d * p,
            Head::Classification | Head::Regression => {
                let injected = if self.scaling == Scaling::None {
                    0
                } else {
                    c * n * (16 + (d + 2) * 2 * d + 2 * d * d)
                };
                injected + each * c * d * pooled * self.num_targets
            }
        };
        (c * n * p * d + self.num_layers * self.layer().macs() + head) as u64
    }
}

/// A built PatchTSMixer.
#[derive(Debug)]
pub struct PatchTsMixer {
    patcher: Linear,
    positions: Option<Tensor>,
    layers: Vec<Layer>,
    inject: Option<InjectScale>,
    projections: Vec<Linear>,
    hierarchy: Option<Hierarchy>,
    channels: Option<CrossChannel>,
    config: PatchTsMixerConfig,
}

/// What the backbone makes of windows.
#[derive(Debug)]
pub struct Features {
    /// Features of each patch, `[batch, channels, patches, d_model]`.
    pub hidden: Tensor,
    /// The scaled patches before any was hidden, `[batch, channels, patches, patch_length]`.
    pub patches: Tensor,
    /// What was subtracted from each channel, `[batch, 1, channels]`.
    pub loc: Tensor,
    /// What each channel was divided by, `[batch, 1, channels]`.
    pub scale: Tensor,
}

impl PatchTsMixer {
    /// The backbone on `past [batch, context_length, channels]`.
    ///
    /// `observed`: 1 where a value was seen and 0 where it was not, of the same size; all seen when it is `None`.
    /// `hidden`: 1 where a patch is replaced by zeros, `[batch, channels, patches]`.
    /// # Errors
    /// [`Error::Shape`] for an input that does not fit the config.
    pub fn forward_features(
        &self,
        past: &Tensor,
        observed: Option<&Tensor>,
        hidden: Option<&Tensor>,
        train: bool,
    ) -> Result<Features> {
        let config = &self.config;
        let size = [
            None,
            Some(config.context_length),
            Some(config.num_input_channels),
        ];
        check::shape("past", past, &size)?;
        check::kind("past", past, self.patcher.weight.kind())?;
        let batch = past.size()[0];
        if let Some(observed) = observed {
            check::shape("observed", observed, &[Some(batch), size[1], size[2]])?;
        }
        if let Some(hidden) = hidden {
            check::shape(
                "mask",
                hidden,
                &[batch, config.num_input_channels, config.num_patches()].map(Some),
            )?;
            check::kind("mask", hidden, past.kind())?;
        }
        let (scaled, loc, scale) = config.scaling.apply(past, observed);
        let used = config.patch_length + config.patch_stride * (config.num_patches() - 1);
        let patches = scaled
            .narrow(1, config.context_length - used, used)
            .unfold(1, config.patch_length, config.patch_stride) // [batch, patches, channels, patch_length]
            .transpose(1, 2);
        let shown = match hidden {
            None => patches.shallow_clone(),
            Some(hidden) => patches.masked_fill(&hidden.not_equal(0).unsqueeze(3), 0.0),
        };
        let mut xs = self.patcher.forward(&shown); // [batch, channels, patches, d]
        if let Some(positions) = &self.positions {
            xs += positions;
        }
        let mut layers = self.layers.iter();
        let xs = layers.try_fold(xs, |xs, layer| layer.forward(&xs, train))?;
        Ok(Features {
            hidden: xs,
            patches,
            loc,
            scale,
        })
    }

    /// What the head's linear layers see: `[batch, channels, patches · d]` (forecast), `[batch, channels, patches, d]` (pretraining) or
    /// `[batch, channels · d]`, times the patches where they are not summed up.
    fn pooled(&self, features: &Features, train: bool) -> Tensor {
        let config = &self.config;
        let xs = match &self.inject {
            Some(inject) => inject.forward(features),
            None => features.hidden.shallow_clone(),
        };
        let xs = match config.head {
            Head::Forecast => xs.flatten(2, 3), // [batch, channels, patches · d]
            Head::Pretrain => xs,
            Head::Classification | Head::Regression => {
                let xs = xs.transpose(2, 3); // [batch, channels, d, patches]
                match config.head_aggregation {
                    Some(Aggregation::MaxPool) => xs.amax([-1], false).flatten(1, 2),
                    Some(Aggregation::AvgPool) => xs
                        .mean_dim([-1].as_slice(), false, None::<Kind>)
                        .flatten(1, 2),
                    Some(Aggregation::UseLast) => xs.select(-1, -1).flatten(1, 2),
                    None => xs.flatten(1, 3),
                }
            }
        };
        xs.dropout(config.head_dropout, train)
    }

    /// The channels that are forecast, of `[…, channels]`.
    fn chosen(&self, xs: &Tensor) -> Tensor {
        match &self.config.prediction_channel_indices {
            Some(channels) => {
                xs.index_select(-1, &Tensor::from_slice(channels).to_device(xs.device()))
            }
            None => xs.shallow_clone(),
        }
    }

    /// Everything that the head gives, by name: `forecast`, `reconstruction`, `logits` or `values`; `loc` and `scale` of the
    /// window where it was scaled; with a distribution its parameters, and its mean as `forecast` or `values`; with
    /// `hierarchy_patch_length` the sums of the future's patches as `patch_sums` (see [`hierarchical_loss`]).
    ///
    /// Inputs as those of [`forward_features`](Self::forward_features). Pretraining without `hidden` draws which patches to hide, and
    /// gives it as `mask`.
    /// # Errors
    /// [`Error::Shape`] for an input that does not fit the config.
    pub fn forward(
        &self,
        past: &Tensor,
        observed: Option<&Tensor>,
        hidden: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensors> {
        let config = &self.config;
        let drawn = (config.head == Head::Pretrain && hidden.is_none())
            .then(|| self.draw_mask(past.size()[0], past.device()));
        let hidden = hidden.or(drawn.as_ref());
        let features = self.forward_features(past, observed, hidden, train)?;
        let pooled = self.pooled(&features, train);
        let mut ys: Vec<Tensor> = self
            .projections
            .iter()
            .map(|linear| linear.forward(&pooled))
            .collect();
        let mut outputs = Tensors::new();
        let (loc, scale) = (self.chosen(&features.loc), self.chosen(&features.scale));
        let mut give = |name: &str, xs: Tensor| {
            outputs.insert(name.to_owned(), xs);
        };
        if config.scaling != Scaling::None {
            give("loc", loc.shallow_clone());
            give("scale", scale.shallow_clone());
        }
        if let Some(hierarchy) = &self.hierarchy {
            let (sums, correction) = hierarchy.forward(&pooled);
            ys[0] += correction;
            let sums = self.chosen(&sums.transpose(1, 2)); // [batch, future patches, channels]
            let length = config.hierarchy_patch_length as f64;
            give("patch_sums", sums * &scale + &loc * length);
        }
        if config.head == Head::Forecast {
            for ys in &mut ys {
                *ys = self.chosen(&ys.transpose(1, 2)); // [batch, prediction_length, channels]
            }
        }
        if let Some(channels) = &self.channels {
            let around = config.cross_channel_context;
            let last = past.narrow(1, config.context_length - around, around);
            ys[0] = channels.forward(&ys[0], &((self.chosen(&last) - &loc) / &scale));
        }
        if let Some(distribution) = config.distribution() {
            let affine = (config.head == Head::Forecast).then_some((&loc, &scale));
            let parameters = distribution.domain(&ys);
            let name = if config.head == Head::Forecast {
                "forecast"
            } else {
                "values"
            };
            give(name, distribution.mean(&parameters, affine));
            for (name, xs) in distribution.parameters().iter().zip(parameters) {
                give(&format!("{}.{name}", distribution.name()), xs);
            }
            return Ok(outputs);
        }
        let ys = ys.swap_remove(0);
        match config.head {
            Head::Forecast => give("forecast", ys * &scale + &loc),
            Head::Classification => give("logits", ys),
            Head::Regression => give(
                "values",
                match config.output_range {
                    Some([low, high]) => ys.sigmoid() * (high - low) + low,
                    None => ys,
                },
            ),
            Head::Pretrain => {
                give("reconstruction", ys);
                give("patches", features.patches);
                if let Some(hidden) = hidden {
                    give("mask", hidden.shallow_clone());
                }
            }
        }
        Ok(outputs)
    }

    /// Which patches to hide, `[batch, channels, patches]` of 0 and 1: of each sample all but ⌊n·(1 − ratio)⌋.
    fn draw_mask(&self, batch: i64, device: tch::Device) -> Tensor {
        let (c, n) = (self.config.num_input_channels, self.config.num_patches());
        let keep = (n as f64 * (1.0 - self.config.random_mask_ratio)) as i64;
        let rows = if self.config.channel_consistent_masking {
            1
        } else {
            c
        };
        let noise = Tensor::rand([batch, rows, n], (Kind::Float, device));
        let rank = noise.argsort(-1, false).argsort(-1, false);
        let kind = self.patcher.weight.kind();
        rank.ge(keep)
            .to_kind(kind)
            .expand([batch, c, n], false)
            .contiguous()
    }
}

/// Mean squared error of `reconstruction` over the hidden patches, as pretraining minimises it.
///
/// # Shapes
/// `reconstruction`, `patches`: `[batch, channels, patches, patch_length]`; `mask`: `[batch, channels, patches]`, 1 where hidden.
pub fn masked_loss(reconstruction: &Tensor, patches: &Tensor, mask: &Tensor) -> Tensor {
    let each = (reconstruction - patches)
        .square()
        .mean_dim([-1].as_slice(), false, None::<Kind>);
    (each * mask).sum(None::<Kind>) / (mask.sum(None::<Kind>) + 1e-10)
}

impl Model for PatchTsMixer {
    fn forward_named(&self, inputs: &Tensors, train: bool) -> Result<Tensors> {
        let [past, observed, mask] = registry::take_inputs(inputs, ["past", "observed", "mask"])?;
        let past = past.ok_or_else(|| check::absent("past"))?;
        if mask.is_some() && self.config.head != Head::Pretrain {
            return Err(Error::Shape {
                what: "mask".to_owned(),
                expected: "no such input: only pretraining hides patches".to_owned(),
                got: "a mask".to_owned(),
            });
        }
        self.forward(past, observed, mask, train)
    }
}

impl Scaling {
    /// The window scaled, and by what: `[batch, 1, channels]` each.
    pub(crate) fn apply(self, xs: &Tensor, observed: Option<&Tensor>) -> (Tensor, Tensor, Tensor) {
        let size = [xs.size()[0], 1, xs.size()[2]];
        let zeros = || Tensor::zeros(size, (xs.kind(), xs.device()));
        let over_time = |xs: &Tensor| xs.sum_dim_intlist([1].as_slice(), true, None::<Kind>);
        let seen = match observed {
            Some(observed) => observed.to_kind(xs.kind()),
            None => xs.ones_like(),
        };
        let count = over_time(&seen);
        match self {
            Self::None => (xs.shallow_clone(), zeros(), zeros() + 1.0),
            Self::Std => {
                let count = count.clamp_min(1.0);
                let loc = over_time(&(xs * &seen)) / &count;
                let centred = xs - &loc;
                let variance = over_time(&(&centred * &seen).square()) / count;
                let scale = (variance + 1e-5).sqrt();
                (centred / &scale, loc, scale)
            }
            Self::Mean => {
                let total = over_time(&(xs * &seen).abs());
                let own = &total / count.clamp_min(1.0);
                // A channel without an observed step takes the batch's scale.
                let of_batch =
                    |xs: &Tensor| xs.sum_dim_intlist([0].as_slice(), false, None::<Kind>);
                let shared = of_batch(&total) / of_batch(&count).clamp_min(1.0);
                let scale = own.where_self(&count.gt(0), &shared).clamp_min(1e-10);
                (xs / &scale, zeros(), scale)
            }
        }
    }
}
