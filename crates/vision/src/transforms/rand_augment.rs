//! `RandAugment`: a few operations drawn from a list, all at about the same magnitude.
//! Paper: Cubuk et al. 2020, arXiv 1909.13719. Follows: timm 1.0.31, `timm/data/auto_augment.py`.
//!
//! timm hands Pillow 0 bits at the highest magnitude of posterising, which newer versions of Pillow refuse; here it gives black, as older ones did.

use std::fmt;
use std::str::FromStr;

use densely_core::{Error, Result};
use densely_data::Image;
use serde::{Deserialize, Serialize};

use super::color;
use super::geometry::{Interpolation, Sampling, affine, rotate};
use super::rng::Rng;

/// Magnitudes run from 0 to this unless `mmax` allows more.
const FULL: f64 = 10.0;

/// Most operations for each picture.
const MOST_LAYERS: u32 = 100;

/// One kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Stretches the contrast.
    AutoContrast,
    /// Equalises the histogram.
    Equalize,
    /// Negative.
    Invert,
    /// Turns by up to 30 degrees.
    Rotate,
    /// Keeps few bits.
    Posterize,
    /// Inverts bright values.
    Solarize,
    /// Adds to dark values.
    SolarizeAdd,
    /// Changes the saturation.
    Color,
    /// Changes the contrast.
    Contrast,
    /// Changes the brightness.
    Brightness,
    /// Blurs or sharpens.
    Sharpness,
    /// Shears rows.
    ShearX,
    /// Shears columns.
    ShearY,
    /// Shifts by a share of the width.
    TranslateX,
    /// Shifts by a share of the height.
    TranslateY,
}

impl Op {
    /// All, in timm's order.
    pub const ALL: [Self; 15] = [
        Self::AutoContrast,
        Self::Equalize,
        Self::Invert,
        Self::Rotate,
        Self::Posterize,
        Self::Solarize,
        Self::SolarizeAdd,
        Self::Color,
        Self::Contrast,
        Self::Brightness,
        Self::Sharpness,
        Self::ShearX,
        Self::ShearY,
        Self::TranslateX,
        Self::TranslateY,
    ];

    /// The operation at a magnitude; `negate` turns the way of those that have one.
    ///
    /// With `increasing` a larger magnitude always changes the picture more; without, posterising and solarising change less, and factors
    /// grow from 0.1 to 1.9.
    pub fn action(self, magnitude: f64, negate: bool, increasing: bool) -> Action {
        let level = magnitude / FULL;
        let signed = |value: f64| if negate { -value } else { value };
        let factor = if increasing {
            (1.0 + signed(level * 0.9)).max(0.1)
        } else {
            level * 1.8 + 0.1
        };
        let bits = (level * 4.0) as u32;
        let threshold = ((level * 256.0) as u32).min(256);
        match self {
            Self::AutoContrast => Action::AutoContrast,
            Self::Equalize => Action::Equalize,
            Self::Invert => Action::Invert,
            Self::Rotate => Action::Rotate(signed(level * 30.0)),
            Self::Posterize if increasing => Action::Posterize(4_u32.saturating_sub(bits)),
            Self::Posterize => Action::Posterize(bits),
            Self::Solarize if increasing => Action::Solarize(256 - threshold),
            Self::Solarize => Action::Solarize(threshold),
            Self::SolarizeAdd => Action::SolarizeAdd(((level * 110.0) as u32).min(128)),
            Self::Color => Action::Color(factor),
            Self::Contrast => Action::Contrast(factor),
            Self::Brightness => Action::Brightness(factor),
            Self::Sharpness => Action::Sharpness(factor),
            Self::ShearX => Action::ShearX(signed(level * 0.3)),
            Self::ShearY => Action::ShearY(signed(level * 0.3)),
            Self::TranslateX => Action::TranslateX(signed(level * 0.45)),
            Self::TranslateY => Action::TranslateY(signed(level * 0.45)),
        }
    }
}

/// An operation with its argument.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action {
    /// [`color::auto_contrast`].
    AutoContrast,
    /// [`color::equalize`].
    Equalize,
    /// [`color::invert`].
    Invert,
    /// [`rotate`] by degrees.
    Rotate(f64),
    /// [`color::posterize`] to bits.
    Posterize(u32),
    /// [`color::solarize`] from a threshold on.
    Solarize(u32),
    /// [`color::solarize_add`] of a number.
    SolarizeAdd(u32),
    /// [`color::saturation`] by a factor.
    Color(f64),
    /// [`color::contrast`] by a factor.
    Contrast(f64),
    /// [`color::brightness`] by a factor.
    Brightness(f64),
    /// [`color::sharpness`] by a factor.
    Sharpness(f64),
    /// Each row is shifted by this many pixels more than the one above.
    ShearX(f64),
    /// Each column is shifted by this many pixels more than the one before.
    ShearY(f64),
    /// Shifts by this share of the width, to the left when positive.
    TranslateX(f64),
    /// Shifts by this share of the height, upwards when positive.
    TranslateY(f64),
}

impl Action {
    /// The changed picture; `fill` is what comes in from outside.
    ///
    /// # Errors
    /// Those of [`rotate`].
    pub fn apply(self, image: &Image, sampling: Sampling, fill: [u8; 3]) -> Result<Image> {
        let mapped = |matrix| affine(image, matrix, sampling, fill);
        Ok(match self {
            Self::AutoContrast => color::auto_contrast(image),
            Self::Equalize => color::equalize(image),
            Self::Invert => color::invert(image),
            Self::Rotate(degrees) => rotate(image, degrees, sampling, fill)?,
            Self::Posterize(bits) => color::posterize(image, bits),
            Self::Solarize(threshold) => color::solarize(image, threshold),
            Self::SolarizeAdd(add) => color::solarize_add(image, add),
            Self::Color(factor) => color::saturation(image, factor),
            Self::Contrast(factor) => color::contrast(image, factor),
            Self::Brightness(factor) => color::brightness(image, factor),
            Self::Sharpness(factor) => color::sharpness(image, factor),
            Self::ShearX(factor) => mapped([1.0, factor, 0.0, 0.0, 1.0, 0.0]),
            Self::ShearY(factor) => mapped([1.0, 0.0, 0.0, factor, 1.0, 0.0]),
            Self::TranslateX(share) => {
                mapped([1.0, 0.0, share * image.width() as f64, 0.0, 1.0, 0.0])
            }
            Self::TranslateY(share) => {
                mapped([1.0, 0.0, 0.0, 0.0, 1.0, share * image.height() as f64])
            }
        })
    }
}

/// Settings of `RandAugment`; in a file they are timm's string, such as `rand-m9-mstd0.5-inc1`, or `off`.
///
/// Sections in any order: `m` magnitude (10), `n` operations drawn for each picture (2), `p` probability of each (0.5), `mstd` standard
/// deviation of the magnitude (0; above 100 it is uniform from 0), `mmax` largest magnitude (10), `inc1` for the list in which a larger
/// magnitude changes more. Lists of operations with weights (`w`, `t`) are not known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RandAugment {
    /// Magnitude, about 0 to 10.
    pub magnitude: u32,
    /// Operations drawn for each picture, with repetition; at most 100.
    pub layers: u32,
    /// Probability of each to be done.
    pub prob: f64,
    /// Standard deviation of the magnitude; above 100 it is drawn uniformly between 0 and `magnitude`.
    pub magnitude_std: f64,
    /// Magnitudes end here.
    pub magnitude_max: u32,
    /// Whether a larger magnitude always changes the picture more.
    pub increasing: bool,
}

impl Default for RandAugment {
    /// `rand-m9-mstd0.5-inc1`.
    fn default() -> Self {
        Self {
            magnitude: 9,
            magnitude_std: 0.5,
            increasing: true,
            ..Self::PLAIN
        }
    }
}

impl RandAugment {
    /// What timm takes when a section is absent.
    const PLAIN: Self = Self {
        magnitude: 10,
        layers: 2,
        prob: 0.5,
        magnitude_std: 0.0,
        magnitude_max: 10,
        increasing: false,
    };

    /// Leaves every picture as it is.
    pub const OFF: Self = Self {
        layers: 0,
        ..Self::PLAIN
    };

    /// Whether it leaves every picture as it is.
    pub const fn is_off(&self) -> bool {
        self.layers == 0
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming what is out of range.
    pub fn validate(&self) -> Result<()> {
        let fault = if !(0.0..=1.0).contains(&self.prob) {
            format!("`p` must lie in [0, 1], got {}", self.prob)
        } else if self.magnitude_std < 0.0 || self.magnitude_std.is_nan() {
            format!("`mstd` must not be negative, got {}", self.magnitude_std)
        } else if self.layers > MOST_LAYERS {
            format!("`n` must be at most {MOST_LAYERS}, got {}", self.layers)
        } else {
            return Ok(());
        };
        Err(Error::config("rand_augment", fault))
    }

    /// What is done to one picture, in this order.
    pub fn draw(&self, rng: &mut Rng) -> Vec<Action> {
        let mut actions = Vec::new();
        for _ in 0..self.layers {
            let op = Op::ALL[rng.below(Op::ALL.len())];
            if !rng.chance(self.prob) {
                continue;
            }
            let middle = f64::from(self.magnitude);
            let magnitude = if self.magnitude_std > 100.0 {
                rng.uniform(0.0, middle)
            } else {
                middle + self.magnitude_std * rng.normal()
            };
            let magnitude = magnitude.clamp(0.0, f64::from(self.magnitude_max));
            actions.push(op.action(magnitude, rng.chance(0.5), self.increasing));
        }
        actions
    }

    /// A random change of the picture; `fill` is what comes in from outside, and interpolation is drawn for each operation.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate).
    pub fn apply(
        &self,
        image: &Image,
        interpolation: Interpolation,
        fill: [u8; 3],
        rng: &mut Rng,
    ) -> Result<Image> {
        self.validate()?;
        let mut image = image.clone();
        for action in self.draw(rng) {
            image = action.apply(&image, interpolation.draw(rng), fill)?;
        }
        Ok(image)
    }
}

impl FromStr for RandAugment {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fault = |reason: String| Error::config("rand_augment", reason);
        if text == "off" {
            return Ok(Self::OFF);
        }
        let mut sections = text.split('-');
        if sections.next() != Some("rand") {
            return Err(fault(format!(
                "must be `off` or start with `rand`, got `{text}`"
            )));
        }
        let mut parsed = Self::PLAIN;
        for section in sections {
            let digits = section.find(|c: char| c.is_ascii_digit());
            let (key, value) = section.split_at(digits.unwrap_or(section.len()));
            let whole = || {
                value
                    .parse::<u32>()
                    .map_err(|_| fault(format!("`{key}` must be a whole number, got `{section}`")))
            };
            let number = || {
                value
                    .parse::<f64>()
                    .map_err(|_| fault(format!("`{key}` must be a number, got `{section}`")))
            };
            match key {
                "m" => parsed.magnitude = whole()?,
                "n" => parsed.layers = whole()?,
                "p" => parsed.prob = number()?,
                "mstd" => parsed.magnitude_std = number()?,
                "mmax" => parsed.magnitude_max = whole()?,
                "inc" => parsed.increasing = whole()? != 0,
                _ if section.starts_with(['w', 't']) => {
                    return Err(fault(format!(
                        "lists of operations with weights are not known, got `{section}`"
                    )));
                }
                _ => {
                    return Err(fault(format!(
                        "sections are m, n, p, mstd, mmax and inc with a number, got `{section}`"
                    )));
                }
            }
        }
        parsed.validate()?;
        Ok(parsed)
    }
}

impl fmt::Display for RandAugment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_off() {
            return f.write_str("off");
        }
        write!(f, "rand-m{}", self.magnitude)?;
        if self.layers != Self::PLAIN.layers {
            write!(f, "-n{}", self.layers)?;
        }
        if (self.prob - Self::PLAIN.prob).abs() > 0.0 {
            write!(f, "-p{}", self.prob)?;
        }
        if self.magnitude_std > 0.0 {
            write!(f, "-mstd{}", self.magnitude_std)?;
        }
        if self.magnitude_max != Self::PLAIN.magnitude_max {
            write!(f, "-mmax{}", self.magnitude_max)?;
        }
        write!(f, "-inc{}", u8::from(self.increasing))
    }
}

impl TryFrom<String> for RandAugment {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<RandAugment> for String {
    fn from(config: RandAugment) -> Self {
        config.to_string()
    }
}
