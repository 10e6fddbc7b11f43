//! Sizes and choices of a PatchTSMixer.

use densely_core::{Error, Result, check, registry};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::distributions::Distribution;

/// Sizes of a PatchTSMixer, by the names of `transformers`. Defaults are those of the preset `patchtsmixer-forecast`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the fields are the reference's"
)]
pub struct PatchTsMixerConfig {
    /// What stands on the backbone.
    pub head: Head,
    /// Steps that the model sees, L.
    pub context_length: i64,
    /// Steps in a patch, P.
    pub patch_length: i64,
    /// Steps from one patch to the next; where patches do not fill the context, its first steps are unused.
    pub patch_stride: i64,
    /// Series, C.
    pub num_input_channels: i64,
    /// Features of a patch, d.
    pub d_model: i64,
    /// Hidden width of the MLPs in units of their input, e.
    pub expansion_factor: i64,
    /// Mixing layers.
    pub num_layers: i64,
    /// Probability of dropping an activation in the backbone.
    pub dropout: f64,
    /// Whether channels are mixed.
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
    /// Whether a table of positions is added to the patches' embeddings.
    pub use_positional_encoding: bool,
    /// Where that table comes from.
    pub positional_encoding_type: Positions,
    /// How each window is scaled.
    pub scaling: Scaling,
    /// Whether linear layers start from N(0, `init_std`) and zero biases, as `transformers` 5 always does. `false` starts them as PyTorch's layers,
    /// the default of `transformers` 4, with which the authors' published runs were made.
    pub post_init: bool,
    /// Standard deviation of the initial weights.
    pub init_std: f64,
    /// Probability of dropping an activation before the head.
    pub head_dropout: f64,
    /// Steps that are forecast, H.
    pub prediction_length: i64,
    /// The channels that are forecast, ascending; `None` forecasts all.
    pub prediction_channel_indices: Option<Vec<i64>>,
    /// Distribution whose parameters a forecast or regression head gives; `None` gives values.
    pub distribution_output: Option<Distribution>,
    /// Classes, or values of a regression.
    pub num_targets: i64,
    /// How classification and regression sum up the patches; `None` keeps all.
    pub head_aggregation: Option<Aggregation>,
    /// Lowest and highest value of a regression, reached by a sigmoid; `None` does not limit.
    pub output_range: Option<[f64; 2]>,
    /// Share of the patches that pretraining hides.
    pub random_mask_ratio: f64,
    /// Whether the same patches of all channels are hidden.
    pub channel_consistent_masking: bool,
    /// Steps of the future whose sums are forecast too, and correct the forecast (the paper's H); 0 for none. Not in the package.
    pub hierarchy_patch_length: i64,
    /// Steps around each that correct its forecast from all channels (the paper's CC); 0 for none. Not in the package.
    pub cross_channel_context: i64,
}

impl Default for PatchTsMixerConfig {
    fn default() -> Self {
        Self {
            head: Head::Forecast,
            context_length: 512,
            patch_length: 8,
            patch_stride: 8,
            num_input_channels: 7,
            d_model: 48,
            expansion_factor: 3,
            num_layers: 3,
            dropout: 0.5,
            mode: Mode::CommonChannel,
            gated_attn: true,
            norm_mlp: NormKind::LayerNorm,
            norm_eps: 1e-5,
            self_attn: false,
            self_attn_heads: 1,
            use_positional_encoding: false,
            positional_encoding_type: Positions::Sincos,
            scaling: Scaling::Std,
            post_init: true,
            init_std: 0.02,
            head_dropout: 0.7,
            prediction_length: 96,
            prediction_channel_indices: None,
            distribution_output: None,
            num_targets: 3,
            head_aggregation: Some(Aggregation::MaxPool),
            output_range: None,
            random_mask_ratio: 0.5,
            channel_consistent_masking: true,
            hierarchy_patch_length: 0,
            cross_channel_context: 0,
        }
    }
}

/// What stands on the backbone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Head {
    /// The next `prediction_length` steps.
    Forecast,
    /// The patches themselves, of which some were hidden.
    Pretrain,
    /// Logits of `num_targets` classes.
    Classification,
    /// `num_targets` values.
    Regression,
}

/// Whether channels are mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Every channel alone, by the same weights.
    CommonChannel,
    /// A block over the channels opens each layer.
    MixChannel,
}

/// Normalisation over the features of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormKind {
    /// Of each patch alone.
    LayerNorm,
    /// Of each feature over batch, channels and patches.
    BatchNorm,
}

/// Where the table of positions comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// Sines and cosines, centred and divided by ten standard deviations; not trained.
    Sincos,
    /// N(0, 0.1), trained.
    Random,
}

/// How a window is scaled before the model and its forecast scaled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scaling {
    /// By mean and √(variance + 1e-5) of each channel's observed steps.
    Std,
    /// By the mean of their absolute values.
    Mean,
    /// Not at all.
    None,
}

/// How patches are summed up for classification and regression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// The largest value of each feature.
    MaxPool,
    /// The mean.
    AvgPool,
    /// The last patch.
    UseLast,
}

impl PatchTsMixerConfig {
    /// Preset `patchtsmixer-forecast`, or the same backbone under another head.
    pub fn with_head(head: Head) -> Self {
        Self {
            head,
            ..Self::default()
        }
    }

    /// The config of a model that `transformers` saved: its `config.json` as JSON, with the head of the class that saved it.
    ///
    /// Fields that say nothing about this model (`architectures`, `torch_dtype`, …) are passed over; fields that are absent take the defaults of
    /// `transformers`.
    /// # Errors
    /// [`Error::Config`] for a value of another type, and for another `model_type`.
    pub fn from_transformers(config: &Value, head: Head) -> Result<Self> {
        let Value::Object(fields) = config else {
            return Err(Error::config("config", "must be a JSON object"));
        };
        match fields.get("model_type").and_then(Value::as_str) {
            None | Some("patchtsmixer") => {}
            Some(other) => {
                let reason = format!("must be `patchtsmixer`, got `{other}`");
                return Err(Error::config("model_type", reason));
            }
        }
        let defaults = Self {
            context_length: 32,
            num_input_channels: 1,
            d_model: 8,
            expansion_factor: 2,
            dropout: 0.2,
            head_dropout: 0.2,
            prediction_length: 16,
            ..Self::with_head(head)
        };
        let Ok(Value::Object(mut known)) = serde_json::to_value(&defaults) else {
            return Err(Error::config("config", "cannot be written as JSON"));
        };
        for (name, value) in fields {
            if name != "head" && known.contains_key(name) {
                known.insert(name.clone(), value.clone());
            }
        }
        // Two fields have more than one spelling there, and a loss says whether the distribution is used.
        match known.get("scaling") {
            Some(Value::Bool(true)) => known.insert("scaling".to_owned(), "std".into()),
            Some(Value::Bool(false) | Value::Null) => {
                known.insert("scaling".to_owned(), "none".into())
            }
            _ => None,
        };
        let batch = fields
            .get("norm_mlp")
            .and_then(Value::as_str)
            .is_some_and(|name| name.to_lowercase().contains("batch"));
        known.insert(
            "norm_mlp".to_owned(),
            if batch { "BatchNorm" } else { "LayerNorm" }.into(),
        );
        let mode = known.get("mode").and_then(Value::as_str);
        if mode == Some("flatten") {
            return Err(Error::config(
                "mode",
                "`flatten` is of an older version and has no code any more",
            ));
        }
        match fields.get("loss").and_then(Value::as_str) {
            // A saved config leaves out what is the package's default.
            Some("nll") => {
                if known.get("distribution_output").is_none_or(Value::is_null) {
                    known.insert("distribution_output".to_owned(), "student_t".into());
                }
            }
            _ => {
                known.insert("distribution_output".to_owned(), Value::Null);
            }
        }
        let mut config: Self = registry::parse_config(&Value::Object(known))?;
        if let Some(channels) = &mut config.prediction_channel_indices {
            channels.sort_unstable();
        }
        config.validate()?;
        Ok(config)
    }

    /// Standard deviation of a linear layer's first weights; `None` draws them as PyTorch does.
    pub(super) fn initial_std(&self) -> Option<f64> {
        self.post_init.then_some(self.init_std)
    }

    /// Patches of a window, n.
    pub fn num_patches(&self) -> i64 {
        (self.context_length - self.patch_length) / self.patch_stride + 1
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for (field, size) in [
            ("context_length", self.context_length),
            ("patch_length", self.patch_length),
            ("patch_stride", self.patch_stride),
            ("num_input_channels", self.num_input_channels),
            ("d_model", self.d_model),
            ("expansion_factor", self.expansion_factor),
            ("num_layers", self.num_layers),
            ("self_attn_heads", self.self_attn_heads),
            ("prediction_length", self.prediction_length),
            ("num_targets", self.num_targets),
        ] {
            check::positive(field, size)?;
        }
        check::dropout("dropout", self.dropout)?;
        check::dropout("head_dropout", self.head_dropout)?;
        check::dropout("random_mask_ratio", self.random_mask_ratio)?;
        if self.context_length <= self.patch_length {
            let reason = format!(
                "must be above patch_length ({}), got {}",
                self.patch_length, self.context_length
            );
            return Err(Error::config("context_length", reason));
        }
        if self.self_attn && self.d_model % self.self_attn_heads != 0 {
            let reason = format!(
                "must divide d_model ({}), got {}",
                self.d_model, self.self_attn_heads
            );
            return Err(Error::config("self_attn_heads", reason));
        }
        for (field, value) in [("init_std", self.init_std), ("norm_eps", self.norm_eps)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(Error::config(
                    field,
                    format!("must be above 0 and finite, got {value}"),
                ));
            }
        }
        if let Some([low, high]) = self.output_range
            && !(low < high && low.is_finite() && high.is_finite())
        {
            return Err(Error::config(
                "output_range",
                format!("must be two finite numbers, the lower first, got {low} and {high}"),
            ));
        }
        self.validate_reconciliation()?;
        let channels = self.prediction_channel_indices.as_deref().unwrap_or(&[]);
        let ascending = channels.windows(2).all(|pair| pair[0] < pair[1]);
        let known = channels
            .iter()
            .all(|channel| (0..self.num_input_channels).contains(channel));
        if !(ascending && known)
            || self
                .prediction_channel_indices
                .as_ref()
                .is_some_and(Vec::is_empty)
        {
            let reason = format!(
                "must be ascending numbers of channels 0 to {}, got {channels:?}",
                self.num_input_channels - 1
            );
            return Err(Error::config("prediction_channel_indices", reason));
        }
        Ok(())
    }

    /// Channels that are forecast.
    pub(super) fn targets(&self) -> i64 {
        self.prediction_channel_indices
            .as_ref()
            .map_or(self.num_input_channels, |channels| channels.len() as i64)
    }

    fn validate_reconciliation(&self) -> Result<()> {
        let (length, around) = (self.hierarchy_patch_length, self.cross_channel_context);
        let plain = self.head == Head::Forecast && self.distribution_output.is_none();
        for (field, value) in [
            ("hierarchy_patch_length", length),
            ("cross_channel_context", around),
        ] {
            if value < 0 {
                let reason = format!("must be at least 0, got {value}");
                return Err(Error::config(field, reason));
            }
            if value > 0 && !plain {
                let reason = "is for heads that forecast values, not distributions";
                return Err(Error::config(field, reason));
            }
        }
        if length > 0 && self.prediction_length % length != 0 {
            let reason = format!(
                "must divide prediction_length ({}), got {length}",
                self.prediction_length
            );
            return Err(Error::config("hierarchy_patch_length", reason));
        }
        if around > self.context_length {
            let reason = format!(
                "must be at most context_length ({}), got {around}",
                self.context_length
            );
            return Err(Error::config("cross_channel_context", reason));
        }
        Ok(())
    }
}
