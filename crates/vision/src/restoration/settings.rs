//! Settings of a training: pictures, network, loop.

use densely_core::registry::{find, parse_config};
use densely_core::{Error, Result, check};
use densely_train::optim::{AdamConfig, OptimConfig};
use densely_train::schedule::{ScheduleConfig, Shape};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::Tensor;

use crate::degrade::{Degradation, GaussianNoise};
use crate::losses::RestorationLoss;
use crate::maxim::MaximConfig;
use crate::metrics::{Fidelity, fidelity, luma, to_bytes};
use crate::models::PRESETS;
use crate::transforms::PairTransform;

/// The settings of one fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreSettings {
    /// The pictures.
    pub data: DataSettings,
    /// The network.
    #[serde(default)]
    pub model: ModelSettings,
    /// The training loop.
    #[serde(default)]
    pub train: TrainSettings,
}

/// Folders with pictures; paths are relative to the data set's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairSource {
    /// The name in reports; the folder's when left out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The clean pictures.
    pub clean: String,
    /// The spoilt ones, of the same names or at least in the same order; made from the clean ones by `degrade` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spoilt: Option<String>,
}

impl PairSource {
    pub(super) fn name(&self) -> String {
        if self.name.is_empty() {
            let last = self.clean.rsplit('/').find(|part| !part.is_empty());
            return last.unwrap_or("pictures").to_owned();
        }
        self.name.clone()
    }
}

/// The pictures, and how they are spoilt and judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Pictures to train on.
    pub train: PairSource,
    /// Pictures that choose the epoch; a share of the former when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<PairSource>,
    /// That share.
    #[serde(default = "twentieth")]
    pub valid_share: f64,
    /// Sets of pictures that are judged at the end.
    #[serde(default)]
    pub test: Vec<PairSource>,
    /// What spoils the clean pictures of sources without spoilt ones, one after the other.
    #[serde(default = "noise")]
    pub degrade: Vec<Degradation>,
    /// 3 for colours, 1 for grey: pictures are converted.
    #[serde(default = "three")]
    pub channels: i64,
    /// What is compared.
    #[serde(default)]
    pub judge: Judge,
    /// Pictures of the validation and test sets each at most, evenly spread; 0 for all.
    #[serde(default)]
    pub test_limit: usize,
    /// End at the first picture that cannot be read, instead of leaving it out. Pairs, and sets of more than 2 GB, always end there.
    #[serde(default)]
    pub strict: bool,
}

fn twentieth() -> f64 {
    0.05
}

fn three() -> i64 {
    3
}

fn noise() -> Vec<Degradation> {
    vec![Degradation::Noise(GaussianNoise::default())]
}

impl DataSettings {
    /// Checks the ranges, and that something spoils the pictures of each source.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if !matches!(self.channels, 1 | 3) {
            let reason = format!("must be 1 or 3, got {}", self.channels);
            return Err(Error::config("data.channels", reason));
        }
        check::dropout("data.valid_share", self.valid_share)?;
        for step in &self.degrade {
            step.validate()?;
        }
        let mut sources = std::iter::once(&self.train)
            .chain(&self.valid)
            .chain(&self.test);
        let clean = sources.find(|source| source.spoilt.is_none());
        if let Some(source) = clean.filter(|_| self.degrade.is_empty()) {
            let reason = format!(
                "must say what spoils the pictures of `{}`, which come without spoilt ones",
                source.clean
            );
            return Err(Error::config("data.degrade", reason));
        }
        let names: Vec<String> = self.test.iter().map(PairSource::name).collect();
        if let Some(name) = names
            .iter()
            .enumerate()
            .find_map(|(place, name)| names[..place].contains(name).then_some(name))
        {
            let reason =
                format!("has two sets that are called `{name}`: give each a `name` of its own");
            return Err(Error::config("data.test", reason));
        }
        Ok(())
    }
}

/// What restored pictures are compared as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Judge {
    /// As files of 8 bits: clipped and rounded; the protocol of `DnCNN` and most others.
    #[default]
    Bytes,
    /// As they come from the network: MAXIM's released evaluation.
    Plain,
    /// Their luma, clipped: deraining.
    Luma,
}

impl Judge {
    /// PSNR and SSIM of `restored` `[channels, height, width]` against `clean`.
    ///
    /// # Errors
    /// Those of [`fidelity`].
    pub fn fidelity(self, restored: &Tensor, clean: &Tensor) -> Result<Fidelity> {
        match self {
            Self::Bytes => fidelity(&to_bytes(restored), clean),
            Self::Plain => fidelity(restored, clean),
            Self::Luma => fidelity(&luma(&restored.clamp(0.0, 1.0)), &luma(clean)),
        }
    }
}

/// The network: a preset of MAXIM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// Name of the preset.
    pub preset: String,
    /// Fields that replace those of its config. Channels come from the data and must not stand here.
    pub config: Map<String, Value>,
    /// A file of weights to begin with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            preset: "maxim_s1".to_owned(),
            config: Map::new(),
            weights: None,
        }
    }
}

/// The training loop. Defaults are MAXIM's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    /// Optimiser and learning rate.
    pub optimizer: OptimConfig,
    /// Learning rate over the steps.
    pub schedule: ScheduleConfig,
    /// Squares per step.
    pub batch_size: i64,
    /// Squares of an epoch; each is of the next picture of a random order, which goes on in the next epoch.
    pub epoch_squares: i64,
    /// Epochs at most.
    pub epochs: u64,
    /// Epochs without a better validation PSNR after which training stops.
    pub patience: u64,
    /// Largest norm of the gradient; 0 does not clip.
    pub clip_norm: f64,
    /// What is minimised.
    pub loss: RestorationLoss,
    /// Squares, flips and turns.
    pub augment: PairTransform,
    /// Probability that the pairs of a batch are blended with each other.
    pub mixup: f64,
    /// Share of the average of the weights that a step keeps; 0 judges the weights themselves.
    pub ema_decay: f64,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            optimizer: OptimConfig::Adam(AdamConfig {
                lr: 2e-4,
                ..AdamConfig::default()
            }),
            schedule: ScheduleConfig {
                shape: Shape::Cosine { min_lr: 1e-7 },
                warmup_steps: 0,
            },
            batch_size: 64,
            epoch_squares: 4096,
            epochs: 100,
            patience: 1000,
            clip_norm: 0.0,
            loss: RestorationLoss::default(),
            augment: PairTransform::default(),
            mixup: 0.5,
            ema_decay: 0.0,
        }
    }
}

/// Settings that may differ when a run is resumed, since they do not change what was learnt so far.
pub(super) const MAY_CHANGE: [&str; 4] = ["table", "train.epochs", "train.patience", "data.strict"];

impl RestoreSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let Self { data, train, .. } = self;
        data.validate()?;
        for (field, value) in [
            ("train.batch_size", train.batch_size),
            ("train.epoch_squares", train.epoch_squares),
            ("train.epochs", train.epochs.min(1) as i64),
            ("train.patience", train.patience.min(1) as i64),
        ] {
            check::positive(field, value)?;
        }
        for (field, value) in [
            ("train.clip_norm", train.clip_norm),
            ("train.loss.frequency", train.loss.frequency),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                let reason = format!("must be at least 0 and finite, got {value}");
                return Err(Error::config(field, reason));
            }
        }
        let eps = train.loss.eps;
        if !(eps > 0.0 && ((eps * eps) as f32).is_normal()) {
            let reason = format!("must be positive, and its square a normal f32, got {eps}");
            return Err(Error::config("train.loss.eps", reason));
        }
        if !(0.0..=1.0).contains(&train.mixup) {
            let reason = format!("must lie in [0, 1], got {}", train.mixup);
            return Err(Error::config("train.mixup", reason));
        }
        check::dropout("train.ema_decay", train.ema_decay)?;
        train.augment.validate()?;
        let reach = data.degrade.iter().map(Degradation::reach).max();
        let reach = reach.filter(|_| data.train.spoilt.is_none()).unwrap_or(0);
        if train.augment.size <= reach {
            let reason = format!(
                "must be more than the {reach} pixels that `data.degrade` blurs over, got {}",
                train.augment.size
            );
            return Err(Error::config("train.augment.size", reason));
        }
        train.optimizer.validate()?;
        train.schedule.validate()
    }
}

/// The config of a preset that restores.
pub(super) fn resolve(model: &ModelSettings, channels: i64) -> Result<(MaximConfig, Value)> {
    let preset = find(PRESETS, &model.preset)?;
    if !preset
        .outputs
        .iter()
        .any(|output| output.name == "restored")
    {
        let reason = format!(
            "`{}` does not restore; take maxim_s1, maxim_s2 or maxim_s3",
            model.preset
        );
        return Err(Error::config("model.preset", reason));
    }
    let mut fields = model.config.clone();
    if fields
        .insert("num_outputs".to_owned(), channels.into())
        .is_some()
    {
        return Err(Error::config(
            "model.config.num_outputs",
            "is set by `data.channels` and must not stand here",
        ));
    }
    let value = preset.config_with(&Value::Object(fields))?;
    let config: MaximConfig = parse_config(&value)?;
    config.validate()?;
    Ok((config, value))
}
