//! TinyTimeMixer (TTM): PatchTSMixer's layers on patches that split on the way in, a small decoder, and a head that may mix channels.
//!
//! Paper: Ekambaram, Jati, Dayama, Mukherjee, Nguyen, Gifford, Reddy, Kalagnanam 2024, arXiv 2401.03955 (NeurIPS). Follows package
//! `granite-tsfm` (`tsfm_public/models/tinytimemixer`): weights have its names, and a folder that it saved loads as it is
//! ([`TtmConfig::from_transformers`]).
//!
//! ```text
//! past [B,L,C] → scaled by loc, scale [B,1,C] → patches [B,C,n,P] → Linear(P,d) → [prefix token of the frequency first]
//! encoder: for level i = A−1 … 0: [B,C,n,d] seen as [B,C,n·2ⁱ,d/2ⁱ], num_layers layers of PatchTSMixer, and back
//! decoder: Linear(d,d') [+ Linear(P,d')(patches)] → decoder_num_layers layers
//! head:    [B,C,n·d'] → Linear(n·d',H) → chosen channels [→ channel mixing] → · scale + loc
//! channel mixing: forecasts and known futures, each step with its 2c+1 neighbours (the last past steps before, zeros after)
//!          [→ Linear(2c+1, 2(2c+1)) → layers in which channels stand for patches] → gate → Linear to the chosen channels; + forecast
//! ```
//!
//! The channel mixing sees forecasts on the scaled level and past and known values as they came, as in the package. What the
//! package added for its third release (frequency tokens from a Fourier transform, registers, several scales, quantile heads) is not here.
//!
//! | preset | sizes | parameters | MACs per window |
//! | --- | --- | ---: | ---: |
//! | `ttm-forecast` | L 512, H 96, P 64, d 192, A 3, 2 layers; decoder d' 128, 2 layers (R1) | 805,280 | 54,648,832 |

mod config;

use densely_core::nn::{self, Embedding, Linear};
use densely_core::{Error, Model, Result, Tensors, check, registry};
use tch::nn::{Module, Path};
use tch::{Kind, Tensor};

use crate::patch_tsmixer::Mode;
use crate::patch_tsmixer::blocks::{Gate, Layer, Sizes, gated};
pub use config::TtmConfig;
use config::split_factor;

impl TtmConfig {
    fn encoder_layer(&self) -> Sizes {
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
            init_std: None,
        }
    }

    fn decoder_layer(&self) -> Sizes {
        Sizes {
            d_model: self.decoder_d_model,
            dropout: self.head_dropout,
            mix_channels: self.decoder_mode == Mode::MixChannel,
            ..self.encoder_layer()
        }
    }

    /// Features of a patch that the head sees.
    fn head_width(&self) -> i64 {
        if self.use_decoder {
            self.decoder_d_model
        } else {
            self.d_model
        }
    }

    /// Hidden width between embedding and features of the frequency's token.
    fn prefix_width(&self) -> i64 {
        i64::midpoint(self.patch_length, self.d_model)
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<Ttm> {
        self.validate()?;
        let (encoder, head) = (vs / "backbone" / "encoder", vs / "head");
        let mixers = Mixers::new(
            &(&encoder / "mlp_mixer_encoder"),
            &self.encoder_layer(),
            self.num_layers,
            self.adaptive_patching_levels,
        );
        let prefix = self
            .resolution_prefix_tuning
            .then(|| Prefix::new(&(&encoder / "freq_mod"), self));
        let decoder = self
            .use_decoder
            .then(|| Decoder::new(&(vs / "decoder"), self));
        let mixing = self
            .enable_forecast_channel_mixing
            .then(|| ChannelMixing::new(&(&head / "fcm_block"), self));
        Ok(Ttm {
            patcher: nn::linear(&(&encoder / "patcher"), self.patch_length, self.d_model),
            prefix,
            encoder: mixers,
            decoder,
            forecast: nn::linear(
                &(&head / "base_forecast_block"),
                self.num_patches() * self.head_width(),
                self.prediction_length,
            ),
            mixing,
            config: self.clone(),
        })
    }

    /// Multiply-accumulates of all matrix products for one window.
    pub fn macs(&self) -> u64 {
        let (c, n, p, d) = (
            self.num_input_channels,
            self.num_patches(),
            self.patch_length,
            self.d_model,
        );
        let shown = self.context_length / p;
        let prefix = i64::from(self.resolution_prefix_tuning) * self.prefix_width() * (p + d);
        let encoder = level_sizes(&self.encoder_layer(), self.adaptive_patching_levels)
            .iter()
            .map(Sizes::macs)
            .sum::<i64>()
            * self.num_layers;
        let decoder = if self.use_decoder {
            let width = self.decoder_d_model;
            let adapter = i64::from(d != width) * c * n * d * width;
            let raw = i64::from(self.decoder_raw_residual) * c * n * p * width;
            let sizes = level_sizes(&self.decoder_layer(), self.decoder_adaptive_patching_levels);
            let layers: i64 = sizes.iter().map(Sizes::macs).sum();
            adapter + raw + layers * self.decoder_num_layers
        } else {
            0
        };
        let head = c * n * self.head_width() * self.prediction_length;
        let mixing = if self.enable_forecast_channel_mixing {
            ChannelMixing::macs(self)
        } else {
            0
        };
        (c * shown * p * d + prefix + encoder + decoder + head + mixing) as u64
    }
}

/// A built TTM.
#[derive(Debug)]
pub struct Ttm {
    patcher: Linear,
    prefix: Option<Prefix>,
    encoder: Mixers,
    decoder: Option<Decoder>,
    forecast: Linear,
    mixing: Option<ChannelMixing>,
    config: TtmConfig,
}

/// What a TTM knows beside the past.
#[derive(Debug, Clone, Copy, Default)]
pub struct Aside<'a> {
    /// 1 where a value was seen and 0 where it was not, `[batch, context_length, channels]`; all seen when absent.
    pub observed: Option<&'a Tensor>,
    /// Number of the series' frequency, `[batch]`, integers; for a model with `resolution_prefix_tuning`.
    pub freq_token: Option<&'a Tensor>,
    /// The future, `[batch, prediction_length, channels]`, of which channels that are not known are not read; for a model with
    /// `exogenous_channel_indices`.
    pub future: Option<&'a Tensor>,
}

/// What encoder and decoder make of windows.
#[derive(Debug)]
pub struct TtmFeatures {
    /// Features of each patch, `[batch, channels, patches, features]`, as the head sees them.
    pub hidden: Tensor,
    /// What was subtracted from each channel, `[batch, 1, channels]`.
    pub loc: Tensor,
    /// What each channel was divided by, `[batch, 1, channels]`.
    pub scale: Tensor,
}

impl Ttm {
    /// Encoder and decoder on `past [batch, context_length, channels]`.
    ///
    /// The package fills a shorter history up with zeros before it; here the caller does, who knows what they stand for.
    /// # Errors
    /// [`Error::Shape`] for an input that does not fit the config.
    pub fn forward_features(
        &self,
        past: &Tensor,
        aside: Aside,
        train: bool,
    ) -> Result<TtmFeatures> {
        let config = &self.config;
        let size = [
            None,
            Some(config.context_length),
            Some(config.num_input_channels),
        ];
        check::shape("past", past, &size)?;
        check::kind("past", past, self.patcher.weight.kind())?;
        let batch = past.size()[0];
        if let Some(observed) = aside.observed {
            check::shape("observed", observed, &[Some(batch), size[1], size[2]])?;
        }
        let (scaled, loc, scale) = config.scaling.apply(past, aside.observed);
        let used = config.context_length / config.patch_length * config.patch_length;
        let patches = scaled
            .narrow(1, config.context_length - used, used)
            .unfold(1, config.patch_length, config.patch_length) // [batch, patches, channels, patch_length]
            .transpose(1, 2);
        let xs = self.patcher.forward(&patches); // [batch, channels, patches, d]
        let xs = match (&self.prefix, aside.freq_token) {
            (None, None) => xs,
            (Some(prefix), Some(token)) => {
                let vocabulary = config.frequency_token_vocab_size;
                let token = prefix
                    .forward(token, batch, vocabulary)?
                    .expand([-1, xs.size()[1], -1, -1], false);
                Tensor::cat(&[&token, &xs], 2)
            }
            (Some(_), None) => return Err(check::absent("freq_token")),
            (None, Some(_)) => return Err(unasked("freq_token", "resolution_prefix_tuning")),
        };
        let xs = self.encoder.forward(&xs, train)?;
        let hidden = match &self.decoder {
            Some(decoder) => decoder.forward(&xs, &patches, train)?,
            None => xs,
        };
        Ok(TtmFeatures { hidden, loc, scale })
    }

    /// The forecast `[batch, horizon, targets]` and the window's `loc` and `scale`, `[batch, 1, targets]` each.
    ///
    /// # Errors
    /// [`Error::Shape`] for an input that does not fit the config.
    pub fn forward(&self, past: &Tensor, aside: Aside, train: bool) -> Result<[Tensor; 3]> {
        let config = &self.config;
        let features = self.forward_features(past, aside, train)?;
        let xs = features
            .hidden
            .flatten(2, 3)
            .dropout(config.head_dropout, train); // [batch, channels, patches · features]
        let targets = config.targets();
        let ys = channels(&self.forecast.forward(&xs).transpose(1, 2), &targets).narrow(
            1,
            0,
            config.horizon(),
        ); // [batch, horizon, targets]
        let ys = match &self.mixing {
            Some(mixing) => mixing.forward(&ys, past, aside.future, config, train)?,
            None if aside.future.is_some() => {
                return Err(unasked("future", "exogenous_channel_indices"));
            }
            None => ys,
        };
        let (loc, scale) = (
            channels(&features.loc, &targets),
            channels(&features.scale, &targets),
        );
        Ok([ys * &scale + &loc, loc, scale])
    }
}

/// The channels of these numbers, of `[…, channels]`.
fn channels(xs: &Tensor, numbers: &[i64]) -> Tensor {
    if numbers.len() as i64 == xs.size()[xs.dim() - 1] {
        return xs.shallow_clone();
    }
    xs.index_select(-1, &Tensor::from_slice(numbers).to_device(xs.device()))
}

fn unasked(input: &str, field: &str) -> Error {
    Error::Shape {
        what: input.to_owned(),
        expected: format!("no such input: the config has no `{field}`"),
        got: "a tensor".to_owned(),
    }
}

impl Model for Ttm {
    fn forward_named(&self, inputs: &Tensors, train: bool) -> Result<Tensors> {
        let names = ["past", "observed", "freq_token", "future"];
        let [past, observed, freq_token, future] = registry::take_inputs(inputs, names)?;
        let aside = Aside {
            observed,
            freq_token,
            future,
        };
        let outputs = self.forward(past.ok_or_else(|| check::absent("past"))?, aside, train)?;
        let names = ["forecast", "loc", "scale"].map(str::to_owned);
        Ok(names.into_iter().zip(outputs).collect())
    }
}

/// Sizes of the layers of each level, the one with the most patches first; without levels those of the plain layers.
fn level_sizes(sizes: &Sizes, levels: i64) -> Vec<Sizes> {
    let split = |level| {
        let factor = split_factor(sizes.d_model, level);
        let patches = sizes.patches * factor;
        Sizes {
            patches,
            d_model: sizes.d_model / factor,
            mix_patches: patches > 1,
            ..*sizes
        }
    };
    (0..levels.max(1)).rev().map(split).collect()
}

/// Layers on one or several levels of splitting.
#[derive(Debug)]
struct Mixers(Vec<(Sizes, Vec<Layer>)>);

impl Mixers {
    fn new(vs: &Path, sizes: &Sizes, layers: i64, levels: i64) -> Self {
        let vs = vs / "mixers";
        let stack = |vs: &Path, sizes: &Sizes| -> Vec<Layer> {
            (0..layers).map(|j| Layer::new(&(vs / j), sizes)).collect()
        };
        let groups = level_sizes(sizes, levels);
        let named = |(i, sizes): (usize, Sizes)| {
            let layers = if levels > 0 {
                stack(&(&vs / i as i64 / "mixer_layers"), &sizes)
            } else {
                stack(&vs, &sizes)
            };
            (sizes, layers)
        };
        Self(groups.into_iter().enumerate().map(named).collect())
    }

    fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let size = xs.size();
        let level = |xs: Tensor, (sizes, layers): &(Sizes, Vec<Layer>)| {
            let xs = xs.reshape([size[0], size[1], sizes.patches, sizes.d_model]);
            let mut layers = layers.iter();
            let xs = layers.try_fold(xs, |xs, layer| layer.forward(&xs, train))?;
            Ok(xs.reshape(&size))
        };
        self.0.iter().try_fold(xs.shallow_clone(), level)
    }
}

/// A patch that tells the series' frequency.
#[derive(Debug)]
struct Prefix {
    embedding: Embedding,
    fc1: Linear,
    fc2: Linear,
}

impl Prefix {
    fn new(vs: &Path, config: &TtmConfig) -> Self {
        let (patch, middle) = (config.patch_length, config.prefix_width());
        Self {
            embedding: nn::embedding(&(vs / 0), config.frequency_token_vocab_size, patch),
            fc1: nn::linear(&(vs / 1), patch, middle),
            fc2: nn::linear(&(vs / 3), middle, config.d_model),
        }
    }

    /// `[batch]` → `[batch, 1, 1, d]`.
    fn forward(&self, token: &Tensor, batch: i64, vocabulary: i64) -> Result<Tensor> {
        check::shape("freq_token", token, &[Some(batch)])?;
        check::kind("freq_token", token, Kind::Int64)?;
        let (low, high) = token.aminmax(0, false);
        let (low, high) = (low.int64_value(&[]), high.int64_value(&[]));
        if low < 0 || high >= vocabulary {
            return Err(Error::Shape {
                what: "freq_token".to_owned(),
                expected: format!("numbers from 0 to {}", vocabulary - 1),
                got: format!("{low} to {high}"),
            });
        }
        let xs = self
            .fc1
            .forward(&self.embedding.forward(token))
            .gelu("none");
        Ok(self.fc2.forward(&xs).unsqueeze(1).unsqueeze(1))
    }
}

/// A smaller stack of layers before the head.
#[derive(Debug)]
struct Decoder {
    adapter: Option<Linear>,
    raw: Option<Linear>,
    layers: Mixers,
}

impl Decoder {
    fn new(vs: &Path, config: &TtmConfig) -> Self {
        let (d, width) = (config.d_model, config.decoder_d_model);
        let raw = || nn::linear(&(vs / "decoder_raw_embedding"), config.patch_length, width);
        Self {
            adapter: (d != width).then(|| nn::linear(&(vs / "adapter"), d, width)),
            raw: config.decoder_raw_residual.then(raw),
            layers: Mixers::new(
                &(vs / "decoder_block"),
                &config.decoder_layer(),
                config.decoder_num_layers,
                config.decoder_adaptive_patching_levels,
            ),
        }
    }

    fn forward(&self, xs: &Tensor, patches: &Tensor, train: bool) -> Result<Tensor> {
        let mut ys = match &self.adapter {
            Some(adapter) => adapter.forward(xs),
            None => xs.shallow_clone(),
        };
        if let Some(raw) = &self.raw {
            // The token of the frequency stands for a patch of zeros.
            let missing = ys.size()[2] - patches.size()[2];
            let patches = patches.constant_pad_nd([0, 0, missing, 0]);
            ys += raw.forward(&patches);
        }
        self.layers.forward(&ys, train)
    }
}

/// Mixes forecasts over channels, each step with its neighbours and the known futures.
#[derive(Debug)]
struct ChannelMixing {
    mixer: Option<(Linear, Mixers)>,
    gate: Option<Gate>,
    out: Linear,
}

impl ChannelMixing {
    /// Sizes of its layers, in which each step is a channel and each channel a patch.
    fn layer(config: &TtmConfig) -> Sizes {
        let all = (config.targets().len() + config.known().len()) as i64;
        Sizes {
            channels: config.horizon(),
            patches: all,
            d_model: 2 * Self::window(config),
            dropout: config.head_dropout,
            mix_channels: false,
            gates: config.fcm_gated_attn,
            ..config.encoder_layer()
        }
    }

    /// A step and its neighbours.
    fn window(config: &TtmConfig) -> i64 {
        2 * config.fcm_context_length + 1
    }

    /// Values of a step that are mixed.
    fn width(config: &TtmConfig) -> i64 {
        let sizes = Self::layer(config);
        let each = if config.fcm_use_mixer {
            sizes.d_model
        } else {
            Self::window(config)
        };
        sizes.patches * each
    }

    fn macs(config: &TtmConfig) -> i64 {
        let (sizes, width) = (Self::layer(config), Self::width(config));
        let layers = level_sizes(&sizes, 0)[0].macs() * config.fcm_mix_layers;
        let embedding = sizes.channels * sizes.patches * Self::window(config) * sizes.d_model;
        let mixer = i64::from(config.fcm_use_mixer) * (embedding + layers);
        let gate = i64::from(config.fcm_gated_attn) * width * width;
        mixer + config.horizon() * (gate + width * config.targets().len() as i64)
    }

    fn new(vs: &Path, config: &TtmConfig) -> Self {
        let (sizes, width) = (Self::layer(config), Self::width(config));
        let mixer = || {
            let window = Self::window(config);
            (
                nn::linear(&(vs / "fcm_embedding"), window, sizes.d_model),
                Mixers::new(&(vs / "exog_mixer"), &sizes, config.fcm_mix_layers, 0),
            )
        };
        Self {
            mixer: config.fcm_use_mixer.then(mixer),
            gate: Gate::named(&(vs / "fcm_gating_block"), width, &sizes),
            out: nn::linear(&(vs / "mlp"), width, config.targets().len() as i64),
        }
    }

    /// `forecast [batch, horizon, targets]` → the same size.
    fn forward(
        &self,
        forecast: &Tensor,
        past: &Tensor,
        future: Option<&Tensor>,
        config: &TtmConfig,
        train: bool,
    ) -> Result<Tensor> {
        let (horizon, around) = (config.horizon(), config.fcm_context_length);
        let (targets, known) = (config.targets(), config.known());
        let together = match (future, known) {
            (None, []) => forecast.shallow_clone(),
            (None, _) => return Err(check::absent("future")),
            (Some(_), []) => return Err(unasked("future", "exogenous_channel_indices")),
            (Some(future), _) => {
                let size = [past.size()[0], config.prediction_length, past.size()[2]];
                check::shape("future", future, &size.map(Some))?;
                check::kind("future", future, past.kind())?;
                let known = channels(&future.narrow(1, 0, horizon), known);
                Tensor::cat(&[forecast, &known], 2)
            }
        }; // [batch, horizon, targets + known]
        let zeros = together.narrow(1, 0, 1).zeros_like().repeat([1, around, 1]);
        let before = if config.fcm_prepend_past {
            let last = past.narrow(1, config.context_length - around, around);
            let known = channels(&last, known);
            let targets = channels(&last, &targets);
            if config.known().is_empty() {
                targets
            } else {
                Tensor::cat(&[targets, known], 2)
            }
        } else {
            zeros.shallow_clone()
        };
        let xs = Tensor::cat(&[&before, &together, &zeros], 1).unfold(1, 2 * around + 1, 1); // [batch, horizon, targets + known, window]
        let xs = match &self.mixer {
            Some((embedding, layers)) => layers.forward(&embedding.forward(&xs), train)?,
            None => xs,
        };
        let ys = self
            .out
            .forward(&gated(self.gate.as_ref(), xs.flatten(2, 3)));
        Ok(ys + forecast)
    }
}
