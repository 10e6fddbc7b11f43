//! What a picture goes through before a classifier sees it, in training and after.

use densely_core::{Error, Result};
use densely_data::Image;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::checks::{MAX_SIDE, probability, side};
use super::color::ColorJitter;
use super::erase::RandomErasing;
use super::geometry::{
    Interpolation, Padding, RandomCrop, RandomResizedCrop, Sampling, center_crop, hflip,
    resize_shorter, vflip,
};
use super::rand_augment::RandAugment;
use super::rng::Rng;
use super::{IMAGENET_MEAN, IMAGENET_STD, to_normalized};

/// Which part of a picture trains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Crop {
    /// A part of random area and shape, resized.
    Resized(RandomResizedCrop),
    /// A square of the padded picture.
    Padded(RandomCrop),
}

/// Training: crop, flips, `RandAugment` or colour jitter, normalisation and random erasing, in this order.
///
/// The defaults are those that timm and `DeiT` train with on photographs of 1000 classes. Mixing within a batch is apart:
/// [`Mixup`](super::Mixup).
///
/// # Examples
/// ```
/// use densely_data::Image;
/// use densely_vision::transforms::{Rng, TrainTransform};
/// let picture = Image::new(40, 30, 3, vec![128; 40 * 30 * 3])?;
/// let transform = TrainTransform::small(32, 3);
/// let xs = transform.apply(&picture, &mut Rng::for_picture(0, 0, 17))?;
/// assert_eq!(xs.size(), [3, 32, 32]);
/// # Ok::<(), densely_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainTransform {
    /// Which part of the picture.
    pub crop: Crop,
    /// Probability of left becoming right.
    pub hflip: f64,
    /// Probability of top becoming bottom.
    pub vflip: f64,
    /// Drawn operations, or `off`.
    pub rand_augment: RandAugment,
    /// Only used when `rand_augment` is `off`, as in timm.
    pub color_jitter: ColorJitter,
    /// Overwritten rectangles.
    pub erase: RandomErasing,
    /// Mean of each channel, values from 0 to 1; as many as the pictures have channels.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel.
    pub std: Vec<f64>,
}

impl Default for TrainTransform {
    fn default() -> Self {
        Self {
            crop: Crop::Resized(RandomResizedCrop::default()),
            hflip: 0.5,
            vflip: 0.0,
            rand_augment: RandAugment::default(),
            color_jitter: ColorJitter::default(),
            erase: RandomErasing::default(),
            mean: IMAGENET_MEAN.to_vec(),
            std: IMAGENET_STD.to_vec(),
        }
    }
}

impl TrainTransform {
    /// For small pictures of one size, such as 32 × 32: four black pixels around, a random crop, a random mirror, mean and deviation 0.5.
    pub fn small(size: i64, channels: usize) -> Self {
        Self {
            crop: Crop::Padded(RandomCrop {
                size,
                padding: 4,
                mode: Padding::Zero,
            }),
            hflip: 0.5,
            vflip: 0.0,
            rand_augment: RandAugment::OFF,
            color_jitter: ColorJitter::OFF,
            erase: RandomErasing::OFF,
            mean: vec![0.5; channels],
            std: vec![0.5; channels],
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming what is out of range.
    pub fn validate(&self) -> Result<()> {
        match &self.crop {
            Crop::Resized(crop) => crop.validate()?,
            Crop::Padded(crop) => crop.validate()?,
        }
        probability("hflip", self.hflip)?;
        probability("vflip", self.vflip)?;
        self.rand_augment.validate()?;
        self.color_jitter.validate()?;
        self.erase.validate()?;
        statistics(&self.mean, &self.std)
    }

    /// Side of the square that comes out, pixels.
    pub const fn size(&self) -> i64 {
        match &self.crop {
            Crop::Resized(crop) => crop.size,
            Crop::Padded(crop) => crop.size,
        }
    }

    /// A picture as the model trains on it: `[channels, size, size]`, f32 on the CPU.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate); [`Error::Shape`] when the picture has other channels than `mean`, or is smaller than the crop.
    pub fn apply(&self, image: &Image, rng: &mut Rng) -> Result<Tensor> {
        self.validate()?;
        let mut xs = match &self.crop {
            Crop::Resized(crop) => crop.apply(image, rng)?,
            Crop::Padded(crop) => crop.apply(image, rng)?,
        };
        if rng.chance(self.hflip) {
            xs = hflip(&xs);
        }
        if rng.chance(self.vflip) {
            xs = vflip(&xs);
        }
        if self.rand_augment.is_off() {
            xs = self.color_jitter.apply(&xs, rng)?;
        } else {
            let interpolation = match &self.crop {
                Crop::Resized(crop) => crop.interpolation,
                Crop::Padded(_) => Interpolation::Random,
            };
            xs = self
                .rand_augment
                .apply(&xs, interpolation, self.fill(), rng)?;
        }
        self.erase
            .apply(&to_normalized(&xs, &self.mean, &self.std)?, rng)
    }

    /// The mean colour, which comes in from outside when a picture is turned or shifted.
    fn fill(&self) -> [u8; 3] {
        std::array::from_fn(|i| {
            let mean = self.mean.get(i).or(self.mean.first()).unwrap_or(&0.5);
            (255.0 * mean).round_ties_even() as u8
        })
    }
}

/// Evaluation: the shorter side resized, the middle cropped, normalised.
///
/// The defaults are timm's for a crop of 224 of 256 pixels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalTransform {
    /// Side of the square that comes out, pixels.
    pub size: i64,
    /// This by the shorter side of the resized picture, rounded down, is `size`: in (0, 1].
    pub crop_pct: f64,
    /// How it is resized; not [`Interpolation::Random`].
    pub interpolation: Interpolation,
    /// Mean of each channel, values from 0 to 1; as many as the pictures have channels.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel.
    pub std: Vec<f64>,
}

impl Default for EvalTransform {
    fn default() -> Self {
        Self {
            size: 224,
            crop_pct: 0.875,
            interpolation: Interpolation::Bicubic,
            mean: IMAGENET_MEAN.to_vec(),
            std: IMAGENET_STD.to_vec(),
        }
    }
}

impl EvalTransform {
    /// Goes with [`TrainTransform::small`]: pictures of the right size are only normalised.
    pub fn small(size: i64, channels: usize) -> Self {
        Self {
            size,
            crop_pct: 1.0,
            interpolation: Interpolation::Bilinear,
            mean: vec![0.5; channels],
            std: vec![0.5; channels],
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming what is out of range.
    pub fn validate(&self) -> Result<()> {
        side("size", self.size)?;
        if !(self.crop_pct > 0.0 && self.crop_pct <= 1.0) {
            return Err(Error::config(
                "crop_pct",
                format!("must lie in (0, 1], got {}", self.crop_pct),
            ));
        }
        if self.resized() > MAX_SIDE {
            let reason = format!(
                "makes the shorter side {} pixels of at most {MAX_SIDE}, got {}",
                self.resized(),
                self.crop_pct
            );
            return Err(Error::config("crop_pct", reason));
        }
        self.sampling()?;
        statistics(&self.mean, &self.std)
    }

    fn sampling(&self) -> Result<Sampling> {
        match self.interpolation {
            Interpolation::Bilinear => Ok(Sampling::Bilinear),
            Interpolation::Bicubic => Ok(Sampling::Bicubic),
            Interpolation::Random => Err(Error::config(
                "interpolation",
                "must be bilinear or bicubic in evaluation, got random",
            )),
        }
    }

    /// Shorter side of the picture that is cropped, pixels.
    pub fn resized(&self) -> i64 {
        (self.size as f64 / self.crop_pct).floor() as i64
    }

    /// A picture as the model sees it: `[channels, size, size]`, f32 on the CPU.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate); [`Error::Shape`] when the picture has other channels than `mean`; [`Error::Config`] for a picture
    /// so narrow that its longer side would have more than 65535 pixels, such as 3 × 800 at a `size` of 224.
    pub fn apply(&self, image: &Image) -> Result<Tensor> {
        self.validate()?;
        let size = side("size", self.size)?;
        let image = resize_shorter(image, self.resized() as usize, self.sampling()?)?;
        to_normalized(&center_crop(&image, size, size)?, &self.mean, &self.std)
    }
}

/// Fails unless both have one number or three for channels, within what pictures can have.
fn statistics(mean: &[f64], std: &[f64]) -> Result<()> {
    let fault = |field: &str, expected: &str, got: &[f64]| {
        Err(Error::config(
            field,
            format!("must be {expected}, got {got:?}"),
        ))
    };
    if !matches!(mean.len(), 1 | 3) || !mean.iter().all(|x| (0.0..=1.0).contains(x)) {
        return fault("mean", "one or three numbers in [0, 1]", mean);
    }
    if std.len() != mean.len() || !std.iter().all(|x| *x > 0.0 && x.is_finite()) {
        return fault("std", "as many positive numbers as `mean`", std);
    }
    Ok(())
}
