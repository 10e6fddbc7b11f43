//! What spoils a clean picture, so that a model can learn to restore it: noise, blur, JPEG, rain.
//!
//! Pictures are `[channels, height, width]`, f32 from 0 to 1. A setting of two numbers is a range that is drawn from for each picture; two equal
//! numbers fix it.

use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::transforms::Rng;
use crate::transforms::checks::{range, within};

/// One way to spoil a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Degradation {
    /// Normal noise.
    Noise(GaussianNoise),
    /// Out of focus.
    Blur(GaussianBlur),
    /// A moving camera.
    MotionBlur(MotionBlur),
    /// Lossy compression.
    Jpeg(Jpeg),
    /// Bright streaks.
    Rain(Rain),
}

impl Degradation {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming what is out of range.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Noise(config) => config.validate(),
            Self::Blur(config) => config.validate(),
            Self::MotionBlur(config) => config.validate(),
            Self::Jpeg(config) => config.validate(),
            Self::Rain(config) => config.validate(),
        }
    }

    /// How far a blur reaches at most, pixels: the sides of a picture must be larger.
    pub(crate) fn reach(&self) -> i64 {
        match self {
            Self::Blur(config) => normal_reach(config.sigma[1]),
            Self::MotionBlur(config) => line_reach(config.length[1]),
            Self::Noise(_) | Self::Jpeg(_) | Self::Rain(_) => 0,
        }
    }

    /// The spoilt picture.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate); [`Error::Shape`] for another rank or kind, or a picture too small for the blur;
    /// [`Error::Unsupported`] for JPEG without the feature `image`.
    pub fn apply(&self, clean: &Tensor, rng: &mut Rng) -> Result<Tensor> {
        self.validate()?;
        check::shape("picture", clean, &[None; 3])?;
        check::kind("picture", clean, Kind::Float)?;
        match self {
            Self::Noise(config) => Ok(config.apply(clean, rng)),
            Self::Blur(config) => gaussian_blur(clean, draw(config.sigma, rng)),
            Self::MotionBlur(config) => {
                let length = draw(config.length, rng);
                motion_blur(clean, length, draw(config.angle, rng))
            }
            Self::Jpeg(config) => {
                let [least, most] = config.quality;
                let quality = least + rng.below(usize::from(most - least) + 1) as u8;
                jpeg(clean, quality)
            }
            Self::Rain(config) => config.apply(clean, rng),
        }
    }
}

/// One degradation after the other.
///
/// # Errors
/// Those of [`Degradation::apply`].
pub fn degrade(clean: &Tensor, degradations: &[Degradation], rng: &mut Rng) -> Result<Tensor> {
    degradations
        .iter()
        .try_fold(clean.shallow_clone(), |xs, step| step.apply(&xs, rng))
}

fn draw(range: [f64; 2], rng: &mut Rng) -> f64 {
    rng.uniform(range[0], range[1])
}

/// Normal noise, independent for each pixel and channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GaussianNoise {
    /// Standard deviation, in steps of 1/255.
    pub sigma: [f64; 2],
    /// Whether values beyond 0 and 1 are cut off. Denoising is usually measured without.
    pub clip: bool,
}

impl Default for GaussianNoise {
    fn default() -> Self {
        Self {
            sigma: [25.0, 25.0],
            clip: false,
        }
    }
}

impl GaussianNoise {
    fn validate(&self) -> Result<()> {
        range("sigma", self.sigma, 0.0, 255.0)
    }

    fn apply(&self, clean: &Tensor, rng: &mut Rng) -> Tensor {
        let sigma = draw(self.sigma, rng) / 255.0;
        let noise = Tensor::from_slice(&rng.normals(clean.numel()))
            .view_as(clean)
            .to_device(clean.device());
        let noisy = clean + noise * sigma;
        if self.clip {
            noisy.clamp(0.0, 1.0)
        } else {
            noisy
        }
    }
}

/// Blur by a normal window that reaches over three standard deviations; the picture is mirrored at its edges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GaussianBlur {
    /// Standard deviation, pixels; 0 leaves the picture.
    pub sigma: [f64; 2],
}

impl Default for GaussianBlur {
    fn default() -> Self {
        Self { sigma: [0.5, 3.0] }
    }
}

/// Largest standard deviation of a blur, pixels.
const MOST_SIGMA: f64 = 100.0;

impl GaussianBlur {
    fn validate(&self) -> Result<()> {
        range("sigma", self.sigma, 0.0, MOST_SIGMA)
    }
}

fn normal_reach(sigma: f64) -> i64 {
    (3.0 * sigma).ceil() as i64
}

/// The picture blurred by a normal window of 2·⌈3 `sigma`⌉ + 1 pixels; `sigma` from 0 to 100.
///
/// # Errors
/// [`Error::Config`] for another `sigma`; [`Error::Shape`] when a side of the picture is not larger than half the window.
pub fn gaussian_blur(clean: &Tensor, sigma: f64) -> Result<Tensor> {
    within("sigma", sigma, 0.0, MOST_SIGMA)?;
    let reach = normal_reach(sigma);
    if reach == 0 {
        return Ok(clean.shallow_clone());
    }
    let weights: Vec<f64> = (-reach..=reach)
        .map(|place| (-0.5 * (place as f64 / sigma).powi(2)).exp())
        .collect();
    let sum: f64 = weights.iter().sum();
    let window = Tensor::from_slice(&weights) / sum;
    let padded = mirrored(clean, reach)?;
    let rows = convolved(&padded, &window.view([1, 1, -1, 1]));
    Ok(convolved(&rows, &window.view([1, 1, 1, -1])))
}

/// The picture with `reach` mirrored pixels at each side.
fn mirrored(xs: &Tensor, reach: i64) -> Result<Tensor> {
    let (_, height, width) = xs.size3()?;
    if height.min(width) <= reach {
        return Err(Error::Shape {
            what: "picture".to_owned(),
            expected: format!("more than {reach} × {reach} pixels for a blur this wide"),
            got: format!("{height} × {width} pixels"),
        });
    }
    Ok(xs.reflection_pad2d([reach; 4]))
}

/// Each channel convolved by `window`, `[1, 1, rows, columns]`, without padding.
fn convolved(xs: &Tensor, window: &Tensor) -> Tensor {
    let window = window.to_kind(xs.kind()).to_device(xs.device());
    xs.unsqueeze(1)
        .conv2d(&window, None::<&Tensor>, [1, 1], [0, 0], [1, 1], 1)
        .squeeze_dim(1)
}

/// Blur of a camera that moves evenly along a line during the exposure; the picture is mirrored at its edges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MotionBlur {
    /// Pixels from one end of the line to the other; 0 leaves the picture.
    pub length: [f64; 2],
    /// Degrees of the line, counter-clockwise from the horizontal.
    pub angle: [f64; 2],
}

impl Default for MotionBlur {
    fn default() -> Self {
        Self {
            length: [5.0, 25.0],
            angle: [0.0, 180.0],
        }
    }
}

/// Longest line, pixels, and largest angle, degrees.
const MOST_LENGTH: f64 = 1000.0;
const MOST_ANGLE: f64 = 360.0;

impl MotionBlur {
    fn validate(&self) -> Result<()> {
        range("length", self.length, 0.0, MOST_LENGTH)?;
        range("angle", self.angle, -MOST_ANGLE, MOST_ANGLE)
    }
}

fn line_reach(length: f64) -> i64 {
    (length / 2.0).ceil() as i64
}

/// Points of the line for each pixel of its length: enough that the weights are right to about 1e-4.
const POINTS: f64 = 32.0;

/// Weights of a [`MotionBlur`], `[side, side]` with an odd side, f32: the line as points, each shared linearly among its four nearest pixels.
///
/// # Errors
/// [`Error::Config`] for a `length` outside of 0 to 1000 pixels or an `angle` outside of −360 to 360 degrees.
pub fn motion_window(length: f64, angle: f64) -> Result<Tensor> {
    within("length", length, 0.0, MOST_LENGTH)?;
    within("angle", angle, -MOST_ANGLE, MOST_ANGLE)?;
    let reach = line_reach(length) as usize;
    let side = 2 * reach + 1;
    let count = (length * POINTS).ceil().max(1.0) as usize;
    let (sine, cosine) = angle.to_radians().sin_cos();
    let mut weights = vec![0.0; side * side];
    for i in 0..count {
        let along = ((i as f64 + 0.5) / count as f64 - 0.5) * length;
        // Rows count downwards.
        let place = [-along * sine, along * cosine].map(|x| x + reach as f64);
        let [row, column] = place.map(|x| (x.floor().max(0.0) as usize).min(side - 1));
        let [down, right] = [place[0] - row as f64, place[1] - column as f64];
        for (y, share) in [(row, 1.0 - down), (row + 1, down)] {
            for (x, part) in [(column, 1.0 - right), (column + 1, right)] {
                if y < side && x < side {
                    weights[y * side + x] += share * part;
                }
            }
        }
    }
    let sum: f64 = weights.iter().sum();
    let weights: Vec<f32> = weights.into_iter().map(|x| (x / sum) as f32).collect();
    Ok(Tensor::from_slice(&weights).view([side as i64, side as i64]))
}

/// The picture blurred along a line of `length` pixels at `angle` degrees; see [`MotionBlur`].
///
/// # Errors
/// Those of [`motion_window`]; [`Error::Shape`] when a side of the picture is not larger than half the line.
pub fn motion_blur(clean: &Tensor, length: f64, angle: f64) -> Result<Tensor> {
    let window = motion_window(length, angle)?;
    let side = window.size()[0];
    let padded = mirrored(clean, side / 2)?;
    Ok(convolved(&padded, &window.view([1, 1, side, side])))
}

/// Lossy compression: rounded to 8 bits, written as JPEG and read again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jpeg {
    /// Quality from 1 to 100, both ends of the range included.
    pub quality: [u8; 2],
}

impl Default for Jpeg {
    fn default() -> Self {
        Self { quality: [10, 40] }
    }
}

impl Jpeg {
    fn validate(&self) -> Result<()> {
        range("quality", self.quality.map(f64::from), 1.0, 100.0)
    }
}

/// The picture after JPEG of `quality` 1 to 100.
///
/// # Errors
/// [`Error::Config`] for another quality; [`Error::Unsupported`] without the feature `image`.
#[cfg(feature = "image")]
pub fn jpeg(clean: &Tensor, quality: u8) -> Result<Tensor> {
    use densely_data::image::{decode, encode_jpeg};
    let bytes = encode_jpeg(&crate::transforms::to_image(clean)?, quality)?;
    let image = decode(&bytes, std::path::Path::new("picture in memory"))?;
    Ok(image.into_eight().to_tensor().to_device(clean.device()))
}

/// The picture after JPEG of `quality` 1 to 100.
///
/// # Errors
/// [`Error::Unsupported`]: the feature `image` is off.
#[cfg(not(feature = "image"))]
pub fn jpeg(_clean: &Tensor, _quality: u8) -> Result<Tensor> {
    Err(Error::Unsupported {
        what: "degradation by JPEG".to_owned(),
        hint: "build with the feature `image`".to_owned(),
    })
}

/// Synthetic rain: bright straight streaks that are added to the picture, alike in all channels; the sum is cut off at 0 and 1.
///
/// A streak falls along a line; the line's middle is anywhere in the picture or up to half its length beyond. What is added falls off across
/// the line as a normal curve and along it as a parabola to 0 at the ends. The model is our own, in the manner of the usual synthetic sets;
/// it has neither veils of far rain nor refraction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rain {
    /// Streaks for each 1000 pixels of the picture.
    pub density: [f64; 2],
    /// Pixels from end to end, drawn for each streak.
    pub length: [f64; 2],
    /// Pixels across at half the brightness, drawn for each streak.
    pub width: [f64; 2],
    /// Degrees from the vertical, one for the whole picture; positive leans to the right downwards. From −60 to 60.
    pub angle: [f64; 2],
    /// A streak's angle differs from the picture's by up to this, degrees; at most 20.
    pub spread: f64,
    /// What is added at a streak's brightest point, drawn for each streak.
    pub intensity: [f64; 2],
}

impl Default for Rain {
    fn default() -> Self {
        Self {
            density: [0.5, 3.0],
            length: [15.0, 45.0],
            width: [1.0, 2.5],
            angle: [-30.0, 30.0],
            spread: 3.0,
            intensity: [0.2, 0.7],
        }
    }
}

impl Rain {
    fn validate(&self) -> Result<()> {
        range("density", self.density, 0.0, 1000.0)?;
        range("length", self.length, 1.0, 10_000.0)?;
        range("width", self.width, 0.1, 100.0)?;
        range("angle", self.angle, -60.0, 60.0)?;
        range("intensity", self.intensity, 0.0, 1.0)?;
        within("spread", self.spread, 0.0, 20.0)
    }

    fn apply(&self, clean: &Tensor, rng: &mut Rng) -> Result<Tensor> {
        let (_, height, width) = clean.size3()?;
        let added = self.streaks(height as usize, width as usize, rng);
        let added = Tensor::from_slice(&added)
            .view([1, height, width])
            .to_device(clean.device());
        Ok((clean + added).clamp(0.0, 1.0))
    }

    /// What is added to each pixel.
    fn streaks(&self, height: usize, width: usize, rng: &mut Rng) -> Vec<f32> {
        let mut added = vec![0.0; height * width];
        let count = draw(self.density, rng) * (height * width) as f64 / 1000.0;
        let angle = draw(self.angle, rng);
        for _ in 0..count.round() as usize {
            let length = draw(self.length, rng);
            let half = length / 2.0;
            let streak = Streak {
                x: rng.uniform(-half, width as f64 + half),
                y: rng.uniform(-half, height as f64 + half),
                angle: (angle + rng.uniform(-self.spread, self.spread)).to_radians(),
                length,
                width: draw(self.width, rng),
                intensity: draw(self.intensity, rng),
            };
            streak.add_to(&mut added, width);
        }
        added
    }
}

struct Streak {
    x: f64,
    y: f64,
    angle: f64,
    length: f64,
    width: f64,
    intensity: f64,
}

impl Streak {
    fn add_to(&self, added: &mut [f32], width: usize) {
        let (sine, cosine) = self.angle.sin_cos();
        let height = added.len() / width;
        // At 1.5 widths from the line less than 1/500 is left.
        let reach = 1.5 * self.width;
        let tall = self.length / 2.0 * cosine + reach;
        let inside = |x: f64, end: usize| x.clamp(0.0, end as f64) as usize;
        for y in inside(self.y - tall, height)..inside(self.y + tall + 1.0, height) {
            let dy = y as f64 + 0.5 - self.y;
            let middle = self.x + dy * sine / cosine;
            let wide = reach / cosine;
            for x in inside(middle - wide, width)..inside(middle + wide + 1.0, width) {
                let dx = x as f64 + 0.5 - self.x;
                let along = 2.0 * (dx * sine + dy * cosine) / self.length;
                let across = (dx * cosine - dy * sine) / self.width;
                if along.abs() < 1.0 {
                    let share =
                        (1.0 - along * along) * (-4.0 * 2.0_f64.ln() * across * across).exp();
                    added[y * width + x] += (self.intensity * share) as f32;
                }
            }
        }
    }
}
