//! Settings of a fit: the signal, the network, the training loop.

use densely_core::registry::find;
use densely_core::{Error, Result, check};
use densely_train::optim::{AdamConfig, OptimConfig};
use densely_train::schedule::{ScheduleConfig, Shape};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use super::radiance::{RayConfig, SceneSettings};
use crate::models::PRESETS;
use crate::occupancy::OccupancyConfig;
use crate::signals::{Convention, Split};

/// The settings of one fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldSettings {
    /// The signal.
    pub data: DataSettings,
    /// The network.
    #[serde(default)]
    pub model: ModelSettings,
    /// The training loop.
    #[serde(default)]
    pub train: TrainSettings,
}

/// What is fitted; paths are relative to the data's folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum DataSettings {
    /// A picture.
    Image(ImageSettings),
    /// A WAV file.
    Sound(SoundSettings),
    /// A folder of numbered pictures.
    Video(VideoSettings),
    /// A surface, as its signed distance.
    Mesh(MeshSettings),
    /// Photographs with their cameras.
    Scene(SceneSettings),
}

impl DataSettings {
    /// What it is called in front of people.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Image(_) => "image",
            Self::Sound(_) => "sound",
            Self::Video(_) => "video",
            Self::Mesh(_) => "mesh",
            Self::Scene(_) => "scene",
        }
    }

    /// The preset that is taken when none is named: the one that reaches most in minutes.
    pub const fn default_preset(&self) -> &'static str {
        match self {
            Self::Image(_) | Self::Video(_) => "hashgrid",
            Self::Sound(_) => "siren",
            Self::Mesh(_) => "gnf-sdf",
            Self::Scene(_) => "ngp",
        }
    }

    /// Which samples are trained on, of signals on a grid.
    pub const fn split(&self) -> Option<Split> {
        match self {
            Self::Image(image) => Some(image.split),
            Self::Sound(sound) => Some(sound.split),
            Self::Video(video) => Some(video.split),
            Self::Mesh(_) | Self::Scene(_) => None,
        }
    }
}

/// A picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSettings {
    /// Its file.
    pub file: String,
    /// Side of the square in its middle that is taken, pixels; 0 takes all of it.
    #[serde(default)]
    pub crop: usize,
    /// Pixels that its shorter side is reduced to before, with antialiasing; 0 leaves its size.
    #[serde(default)]
    pub side: usize,
    /// Which pixels are trained on.
    #[serde(default)]
    pub split: Split,
    /// Most pixels that the file may claim to have: a small file can claim any number of them.
    #[serde(default = "max_pixels")]
    pub max_pixels: u64,
}

const fn max_pixels() -> u64 {
    200_000_000
}

impl ImageSettings {
    /// The picture of a file, all of it.
    pub const fn new(file: String) -> Self {
        Self {
            file,
            crop: 0,
            side: 0,
            split: Split::All,
            max_pixels: max_pixels(),
        }
    }
}

/// A WAV file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoundSettings {
    /// Its file.
    pub file: String,
    /// Which samples are trained on.
    #[serde(default)]
    pub split: Split,
}

/// A folder of numbered pictures of one size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VideoSettings {
    /// The folder.
    pub file: String,
    /// Which pixels are trained on.
    #[serde(default)]
    pub split: Split,
}

/// A surface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeshSettings {
    /// An OBJ or PLY file, gzip-compressed or not.
    pub file: String,
    /// Diagonal of the bounding box that it is scaled to, in the cube from -1 to 1.
    #[serde(default = "diagonal")]
    pub diagonal: f64,
    /// Points along an axis of the grid on which inside and outside are compared.
    #[serde(default = "resolution")]
    pub resolution: usize,
}

impl MeshSettings {
    /// The mesh of a file, as the defaults have it.
    pub const fn new(file: String) -> Self {
        Self {
            file,
            diagonal: diagonal(),
            resolution: resolution(),
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check::above_zero("data.diagonal", self.diagonal)?;
        if self.diagonal > 2.0 {
            let reason = format!(
                "must be at most 2, so that the mesh lies in the cube from -1 to 1, got {}",
                self.diagonal
            );
            return Err(Error::config("data.diagonal", reason));
        }
        if self.resolution > 512 {
            let reason = format!("must be at most 512 to compare, got {}", self.resolution);
            return Err(Error::config("data.resolution", reason));
        }
        check_resolution("data.resolution", self.resolution)
    }
}

const fn diagonal() -> f64 {
    1.9
}

const fn resolution() -> usize {
    128
}

/// The network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// Name of the preset; [`DataSettings::default_preset`] when empty.
    pub preset: String,
    /// Settings of its config that differ. Numbers of coordinates and of values come from the signal and must not stand here.
    pub config: Map<String, Value>,
    /// How places and values become numbers; the preset's own way when left out. Of surfaces only its coordinates count: distances are as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub convention: Option<Convention>,
}

/// What is minimised: means over the samples of a step and their values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldLoss {
    /// (f - y)².
    #[default]
    Mse,
    /// (f - y)² / 2, as CAM has it.
    HalfMse,
    /// |f - y|, as Gaussian RBF networks have it for pictures.
    L1,
    /// (f - y)² / (|y| + 0.1), for signed distances.
    Distance,
}

impl FieldLoss {
    /// The loss of `values` against `target` of the same shape.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes differ.
    pub fn of(self, values: &Tensor, target: &Tensor) -> Result<Tensor> {
        check::same_shape("target", target, values)?;
        Ok(match self {
            Self::Mse => (values - target).square().mean(None::<Kind>),
            Self::HalfMse => (values - target).square().mean(None::<Kind>) * 0.5,
            Self::L1 => crate::gnf::colour_loss(values, target)?,
            Self::Distance => crate::gnf::distance_loss(values, target)?,
        })
    }
}

/// The training loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    /// Optimiser and learning rate.
    pub optimizer: OptimConfig,
    /// Learning rate over the steps.
    pub schedule: ScheduleConfig,
    /// Samples of a step; of scenes rays, of which as many are rendered as `rays.samples` allows. 0 takes all samples in each step.
    pub batch_size: i64,
    /// Steps between two judgements.
    pub epoch_steps: u64,
    /// Judgements at most.
    pub epochs: u64,
    /// Judgements without a better score after which training stops.
    pub patience: u64,
    /// What is minimised; scenes have losses of their own.
    pub loss: FieldLoss,
    /// Factor on the learning rate of the grids of CAM.
    pub grid_lr_scale: f64,
    /// Largest norm of the gradient; 0 does not clip.
    pub clip_norm: f64,
    /// Seconds after which training ends with the best judgement so far; 0 for no limit.
    pub time_budget: f64,
    /// Samples that a judgement during training looks at, at most; of scenes views. At the end all are looked at.
    pub judge_limit: usize,
    /// How rays are rendered, of scenes; its defaults when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rays: Option<RayConfig>,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            optimizer: adam(1e-3),
            schedule: ScheduleConfig {
                shape: Shape::Cosine { min_lr: 0.0 },
                warmup_steps: 0,
            },
            batch_size: 1 << 15,
            epoch_steps: 100,
            epochs: 20,
            patience: 1_000_000,
            loss: FieldLoss::Mse,
            grid_lr_scale: 1.0,
            clip_norm: 0.0,
            time_budget: 0.0,
            judge_limit: 1 << 18,
            rays: None,
        }
    }
}

const fn adam(lr: f64) -> OptimConfig {
    OptimConfig::Adam(AdamConfig {
        lr,
        betas: [0.9, 0.999],
        eps: 1e-8,
        weight_decay: 0.0,
    })
}

/// Adam as instant-ngp trains its tables: most entries get a gradient now and then only.
const fn sparse_adam(lr: f64) -> OptimConfig {
    OptimConfig::Adam(AdamConfig {
        lr,
        betas: [0.9, 0.99],
        eps: 1e-15,
        weight_decay: 0.0,
    })
}

impl TrainSettings {
    /// For scenes of a few hundred pixels on a processor: steps of 10 mm of a scene of 3 m, of which 32,768 at once.
    fn for_scenes(self, rays: i64) -> Self {
        Self {
            batch_size: rays,
            judge_limit: 2,
            rays: Some(RayConfig {
                samples: 1 << 15,
                occupancy: OccupancyConfig {
                    resolution: 64,
                    step: 1e-2,
                    ..OccupancyConfig::default()
                },
                ..RayConfig::default()
            }),
            ..self
        }
    }

    /// What a network of this preset is trained by when nothing is said: its paper's optimiser and loss, with batches and a number of steps for minutes
    /// on a processor.
    pub fn of_preset(preset: &str, data: &DataSettings) -> Self {
        let base = Self::default();
        let mesh = matches!(data, DataSettings::Mesh(_));
        let loss = if mesh { FieldLoss::Distance } else { base.loss };
        match preset {
            "cam-image" => Self {
                loss: FieldLoss::HalfMse,
                grid_lr_scale: 10.0,
                ..base
            },
            "ffn-image" => Self {
                loss: FieldLoss::HalfMse,
                ..base
            },
            "siren" | "siren-fresh" | "finer" => Self {
                optimizer: adam(3e-4),
                loss,
                ..base
            },
            "ffn-fresh" => Self {
                optimizer: adam(3e-3),
                loss,
                ..base
            },
            "hashgrid" => Self {
                optimizer: sparse_adam(1e-2),
                batch_size: 1 << 17,
                loss,
                ..base
            },
            "gnf-image" => Self {
                optimizer: adam(1e-2),
                batch_size: 1 << 17,
                loss: FieldLoss::L1,
                ..base
            },
            "gnf-sdf" => Self {
                optimizer: adam(5e-3),
                batch_size: 1 << 17,
                loss,
                ..base
            },
            "ngp" => Self {
                optimizer: sparse_adam(1e-2),
                ..base.for_scenes(1024)
            },
            "gnf-radiance" => Self {
                optimizer: OptimConfig::Adam(AdamConfig {
                    lr: 1e-2,
                    betas: [0.9, 0.99],
                    ..AdamConfig::default()
                }),
                ..base.for_scenes(1024)
            },
            "nerf" | "nerf+cam" | "t-nerf" | "t-nerf+cam" | "mip-nerf" | "mip-nerf+cam" => Self {
                optimizer: adam(5e-4),
                ..base.for_scenes(512)
            },
            _ => Self { loss, ..base },
        }
    }
}

/// Settings that may differ when a run is resumed, since they do not change what was learnt so far.
pub(super) const MAY_CHANGE: [&str; 5] = [
    "table",
    "train.epochs",
    "train.patience",
    "train.time_budget",
    "train.judge_limit",
];

impl FieldSettings {
    /// What is suggested for a signal, with the preset of this name or the default one.
    ///
    /// # Errors
    /// [`Error::UnknownPreset`] with the nearest names.
    pub fn suggest(data: DataSettings, preset: Option<&str>) -> Result<Self> {
        let preset = find(PRESETS, preset.unwrap_or_else(|| data.default_preset()))?;
        Ok(Self {
            train: TrainSettings::of_preset(preset.name, &data),
            model: ModelSettings {
                preset: preset.name.to_owned(),
                ..ModelSettings::default()
            },
            data,
        })
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let Self { data, train, .. } = self;
        if let Some(Split::HeldOut { .. }) = data.split() {
            let reason = "names what is not trained on; say `kept`, and the rest is held out";
            return Err(Error::config("data.split", reason));
        }
        if let DataSettings::Mesh(mesh) = data {
            mesh.validate()?;
        }
        for (field, value) in [
            ("train.epoch_steps", train.epoch_steps.min(1) as i64),
            ("train.epochs", train.epochs.min(1) as i64),
            ("train.patience", train.patience.min(1) as i64),
            ("train.judge_limit", train.judge_limit.min(1) as i64),
        ] {
            check::positive(field, value)?;
        }
        let whole = matches!(
            data,
            DataSettings::Image(_) | DataSettings::Sound(_) | DataSettings::Video(_)
        );
        if train.batch_size < i64::from(!whole) || train.batch_size > MOST_SAMPLES {
            let reason = format!(
                "must lie in {} to {MOST_SAMPLES}, got {}",
                i64::from(!whole),
                train.batch_size
            );
            return Err(Error::config("train.batch_size", reason));
        }
        for (field, value) in [
            ("train.clip_norm", train.clip_norm),
            ("train.time_budget", train.time_budget),
            ("train.grid_lr_scale", train.grid_lr_scale),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                let reason = format!("must be at least 0 and finite, got {value}");
                return Err(Error::config(field, reason));
            }
        }
        match &train.rays {
            Some(rays) if matches!(data, DataSettings::Scene(_)) => rays.validate()?,
            Some(_) => return Err(Error::config("train.rays", "is for scenes")),
            None => {}
        }
        if matches!(data, DataSettings::Scene(_)) && train.loss != FieldLoss::Mse {
            let reason = "is not for scenes, whose networks have losses of their own";
            return Err(Error::config("train.loss", reason));
        }
        train.optimizer.validate()?;
        train.schedule.validate()
    }
}

/// Most samples of a step.
const MOST_SAMPLES: i64 = 1 << 26;

/// Checks the number of points along an axis of a grid on which a surface is looked for.
pub(super) fn check_resolution(field: &str, resolution: usize) -> Result<()> {
    if (2..=2048).contains(&resolution) {
        return Ok(());
    }
    let reason = format!("must lie in 2 to 2048, got {resolution}");
    Err(Error::config(field, reason))
}
