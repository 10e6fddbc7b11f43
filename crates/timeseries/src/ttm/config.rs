//! Sizes and choices of a TTM.

use densely_core::{Error, Result, check, registry};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::patch_tsmixer::{Mode, NormKind, Scaling};

/// Sizes of a TTM, by the names of the package. Defaults are those of the preset `ttm-forecast`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the fields are the reference's"
)]
pub struct TtmConfig {
    /// Steps that the model sees, L.
    pub context_length: i64,
    /// Steps in a patch, P; patches do not overlap, and where they do not fill the context its first steps are unused.
    pub patch_length: i64,
    /// Series, C; those whose future is known count too.
    pub num_input_channels: i64,
    /// Steps that are forecast, H.
    pub prediction_length: i64,
    /// Features of a patch in the encoder, d.
    pub d_model: i64,
    /// Hidden width of the MLPs in units of their input, e.
    pub expansion_factor: i64,
    /// Layers of the encoder, or of each of its levels.
    pub num_layers: i64,
    /// Probability of dropping an activation in the encoder.
    pub dropout: f64,
    /// Whether the encoder mixes channels.
    pub mode: Mode,
    /// Whether the blocks have gates.
    pub gated_attn: bool,
    /// What is normalised before each block.
    pub norm_mlp: NormKind,
    /// Added to the variance in the norms.
    pub norm_eps: f64,
    /// Whether patches attend to each other too.
    pub self_attn: bool,
    /// Heads of that attention.
    pub self_attn_heads: i64,
    /// How each window is scaled.
    pub scaling: Scaling,
    /// Levels on which patches are split, A; 0 for plain layers.
    pub adaptive_patching_levels: i64,
    /// Whether the first patch is a token of the series' frequency.
    pub resolution_prefix_tuning: bool,
    /// Frequencies that there are tokens for.
    pub frequency_token_vocab_size: i64,
    /// Probability of dropping an activation in decoder and head.
    pub head_dropout: f64,
    /// Whether there is a decoder.
    pub use_decoder: bool,
    /// Layers of the decoder, or of each of its levels.
    pub decoder_num_layers: i64,
    /// Features of a patch in the decoder, d'.
    pub decoder_d_model: i64,
    /// As `adaptive_patching_levels`, in the decoder.
    pub decoder_adaptive_patching_levels: i64,
    /// Whether the decoder sees the patches themselves beside their embeddings.
    pub decoder_raw_residual: bool,
    /// Whether the decoder mixes channels.
    pub decoder_mode: Mode,
    /// The channels that are forecast, ascending; `None` forecasts all whose future is not known.
    pub prediction_channel_indices: Option<Vec<i64>>,
    /// The channels whose future is known, ascending.
    pub exogenous_channel_indices: Option<Vec<i64>>,
    /// Steps of the forecast that are kept, from its start; `None` keeps all.
    pub prediction_filter_length: Option<i64>,
    /// Whether forecasts are mixed over channels, with the known futures.
    pub enable_forecast_channel_mixing: bool,
    /// Whether that mixing has gates.
    pub fcm_gated_attn: bool,
    /// Steps before and after each that it sees, c.
    pub fcm_context_length: i64,
    /// Whether it has layers of its own.
    pub fcm_use_mixer: bool,
    /// Those layers.
    pub fcm_mix_layers: i64,
    /// Whether the last past steps stand before the forecast; zeros without.
    pub fcm_prepend_past: bool,
}

impl Default for TtmConfig {
    fn default() -> Self {
        Self {
            context_length: 512,
            patch_length: 64,
            num_input_channels: 7,
            prediction_length: 96,
            d_model: 192,
            expansion_factor: 2,
            num_layers: 2,
            dropout: 0.2,
            mode: Mode::CommonChannel,
            gated_attn: true,
            norm_mlp: NormKind::LayerNorm,
            norm_eps: 1e-5,
            self_attn: false,
            self_attn_heads: 1,
            scaling: Scaling::Std,
            adaptive_patching_levels: 3,
            resolution_prefix_tuning: false,
            frequency_token_vocab_size: 5,
            head_dropout: 0.2,
            use_decoder: true,
            decoder_num_layers: 2,
            decoder_d_model: 128,
            decoder_adaptive_patching_levels: 0,
            decoder_raw_residual: false,
            decoder_mode: Mode::CommonChannel,
            prediction_channel_indices: None,
            exogenous_channel_indices: None,
            prediction_filter_length: None,
            enable_forecast_channel_mixing: false,
            fcm_gated_attn: true,
            fcm_context_length: 1,
            fcm_use_mixer: false,
            fcm_mix_layers: 2,
            fcm_prepend_past: true,
        }
    }
}

/// Settings of the package that change the model and are not here, with the value at which they do nothing.
const ABSENT: [(&str, Value); 10] = [
    ("use_positional_encoding", Value::Bool(false)),
    ("multi_scale", Value::Bool(false)),
    ("multi_quantile_head", Value::Bool(false)),
    ("enable_base_norm_always", Value::Bool(false)),
    ("decompose", Value::Bool(false)),
    ("use_register_context_gating", Value::Bool(false)),
    ("register_tokens", Value::Null),
    ("fft_length", Value::Null),
    ("categorical_vocab_size_list", Value::Null),
    ("fcm_prepend_past_offset", Value::Null),
];

impl TtmConfig {
    /// Preset `ttm-forecast`.
    pub fn ttm() -> Self {
        Self::default()
    }

    /// The config of a model that the package saved: its `config.json` as JSON.
    ///
    /// Fields that say nothing about this model are passed over; fields that are absent take the package's defaults.
    /// # Errors
    /// [`Error::Config`] for a value of another type, another `model_type`, or patches that overlap; [`Error::Unsupported`] for what the package
    /// added in its third release.
    pub fn from_transformers(config: &Value) -> Result<Self> {
        let Value::Object(fields) = config else {
            return Err(Error::config("config", "must be a JSON object"));
        };
        match fields.get("model_type").and_then(Value::as_str) {
            None | Some("tinytimemixer") => {}
            Some(other) => {
                let reason = format!("must be `tinytimemixer`, got `{other}`");
                return Err(Error::config("model_type", reason));
            }
        }
        for (name, nothing) in &ABSENT {
            let value = fields.get(*name).unwrap_or(nothing);
            if value != nothing && !value.is_null() && value.as_f64() != Some(0.0) {
                return Err(Error::Unsupported {
                    what: format!("a TTM with `{name}` = {value}"),
                    hint: "take a model of the first or second release".to_owned(),
                });
            }
        }
        if let Some(gate) = fields.get("gate_mode").and_then(Value::as_str)
            && gate != "softmax"
        {
            return Err(Error::config(
                "gate_mode",
                format!("must be `softmax`, got `{gate}`"),
            ));
        }
        let defaults = Self {
            context_length: 64,
            patch_length: 8,
            num_input_channels: 1,
            prediction_length: 16,
            d_model: 16,
            num_layers: 3,
            adaptive_patching_levels: 0,
            decoder_num_layers: 8,
            decoder_d_model: 8,
            ..Self::default()
        };
        let Ok(Value::Object(mut known)) = serde_json::to_value(&defaults) else {
            return Err(Error::config("config", "cannot be written as JSON"));
        };
        for (name, value) in fields {
            if known.contains_key(name) {
                known.insert(name.clone(), value.clone());
            }
        }
        match known.get("scaling") {
            Some(Value::Bool(true)) => known.insert("scaling".to_owned(), "std".into()),
            Some(Value::Bool(false) | Value::Null) => {
                known.insert("scaling".to_owned(), "none".into())
            }
            _ => None,
        };
        let mut config: Self = registry::parse_config(&Value::Object(known))?;
        let stride = fields.get("patch_stride").and_then(Value::as_i64);
        if stride.unwrap_or(8) != config.patch_length {
            let reason = format!("must be patch_length ({})", config.patch_length);
            return Err(Error::config("patch_stride", reason));
        }
        for channels in [
            &mut config.prediction_channel_indices,
            &mut config.exogenous_channel_indices,
        ]
        .into_iter()
        .flatten()
        {
            channels.sort_unstable();
        }
        config.validate()?;
        Ok(config)
    }

    /// Patches of a window, n, with the token of the frequency.
    pub fn num_patches(&self) -> i64 {
        self.context_length / self.patch_length + i64::from(self.resolution_prefix_tuning)
    }

    /// The channels that are forecast.
    pub fn targets(&self) -> Vec<i64> {
        let known = self.known();
        match &self.prediction_channel_indices {
            Some(channels) => channels.clone(),
            None => (0..self.num_input_channels)
                .filter(|channel| !known.contains(channel))
                .collect(),
        }
    }

    /// The channels whose future is known.
    pub(super) fn known(&self) -> &[i64] {
        self.exogenous_channel_indices.as_deref().unwrap_or(&[])
    }

    /// Steps of the forecast that is given.
    pub fn horizon(&self) -> i64 {
        self.prediction_filter_length
            .unwrap_or(self.prediction_length)
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for (field, size) in [
            ("context_length", self.context_length),
            ("patch_length", self.patch_length),
            ("num_input_channels", self.num_input_channels),
            ("prediction_length", self.prediction_length),
            ("d_model", self.d_model),
            ("expansion_factor", self.expansion_factor),
            ("num_layers", self.num_layers),
            ("self_attn_heads", self.self_attn_heads),
            (
                "frequency_token_vocab_size",
                self.frequency_token_vocab_size,
            ),
            ("decoder_num_layers", self.decoder_num_layers),
            ("decoder_d_model", self.decoder_d_model),
            ("fcm_context_length", self.fcm_context_length),
            ("fcm_mix_layers", self.fcm_mix_layers),
            ("prediction_filter_length", self.horizon()),
        ] {
            check::positive(field, size)?;
        }
        check::dropout("dropout", self.dropout)?;
        check::dropout("head_dropout", self.head_dropout)?;
        let fail = |field: &str, reason: String| Err(Error::config(field, reason));
        if !(self.norm_eps > 0.0 && self.norm_eps.is_finite()) {
            let reason = format!("must be above 0 and finite, got {}", self.norm_eps);
            return fail("norm_eps", reason);
        }
        if self.context_length <= self.patch_length {
            let reason = format!(
                "must be above patch_length ({}), got {}",
                self.patch_length, self.context_length
            );
            return fail("context_length", reason);
        }
        if self.fcm_context_length > self.context_length {
            let reason = format!(
                "must be at most context_length ({}), got {}",
                self.context_length, self.fcm_context_length
            );
            return fail("fcm_context_length", reason);
        }
        if self.horizon() > self.prediction_length {
            let reason = format!(
                "must be at most prediction_length ({}), got {}",
                self.prediction_length,
                self.horizon()
            );
            return fail("prediction_filter_length", reason);
        }
        for (field, levels, d_model) in [
            (
                "adaptive_patching_levels",
                self.adaptive_patching_levels,
                self.d_model,
            ),
            (
                "decoder_adaptive_patching_levels",
                self.decoder_adaptive_patching_levels,
                self.decoder_d_model,
            ),
        ] {
            if !(0..=16).contains(&levels) {
                return fail(field, format!("must lie in 0 to 16, got {levels}"));
            }
            for level in 0..levels {
                let factor = split_factor(d_model, level);
                if d_model % factor != 0 {
                    let reason = format!(
                        "{levels} levels split {d_model} features into {factor}, which does not divide them"
                    );
                    return fail(field, reason);
                }
            }
        }
        let widths = [
            self.d_model,
            if self.use_decoder {
                self.decoder_d_model
            } else {
                self.d_model
            },
        ];
        if self.self_attn && widths.iter().any(|width| width % self.self_attn_heads != 0) {
            let reason = format!(
                "must divide the features ({} and {}), got {}",
                widths[0], widths[1], self.self_attn_heads
            );
            return fail("self_attn_heads", reason);
        }
        for (field, channels) in [
            (
                "prediction_channel_indices",
                &self.prediction_channel_indices,
            ),
            ("exogenous_channel_indices", &self.exogenous_channel_indices),
        ] {
            let Some(channels) = channels else { continue };
            let ascending = channels.windows(2).all(|pair| pair[0] < pair[1]);
            let range = 0..self.num_input_channels;
            if channels.is_empty() || !ascending || channels.iter().any(|c| !range.contains(c)) {
                let reason = format!(
                    "must be ascending numbers of channels 0 to {}, got {channels:?}",
                    self.num_input_channels - 1
                );
                return fail(field, reason);
            }
        }
        if self.targets().is_empty() {
            return fail(
                "exogenous_channel_indices",
                "leave no channel to forecast".to_owned(),
            );
        }
        if self.exogenous_channel_indices.is_some() && !self.enable_forecast_channel_mixing {
            let reason = "known futures enter through the channel mixing alone: switch it on";
            return fail("enable_forecast_channel_mixing", reason.to_owned());
        }
        Ok(())
    }
}

/// Into how many patches each is split on `level`: 2^level, but 1 where 4 features or fewer would be left.
pub(super) fn split_factor(d_model: i64, level: i64) -> i64 {
    let factor = 1 << level;
    if d_model / factor <= 4 { 1 } else { factor }
}
