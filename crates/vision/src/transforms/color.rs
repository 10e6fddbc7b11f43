//! Changes of brightness and colour, with the results of Pillow.
//!
//! A grey picture is what Pillow calls mode L: contrast and the like work on it, saturation and hue leave it as it is.

use densely_core::{Error, Result};
use densely_data::Image;
use serde::{Deserialize, Serialize};

use super::checks::not_negative;
use super::rng::Rng;

/// A value for each value of a channel.
type Table = [u8; 256];

fn table(value: impl Fn(usize) -> u8) -> Table {
    std::array::from_fn(value)
}

/// Looks every value up in its channel's table, which is made from the channel's histogram.
fn map_channels(image: &Image, make: impl Fn(&[u32; 256]) -> Table) -> Image {
    let channels = image.channels();
    let mut mapped = image.clone();
    for channel in 0..channels {
        let mut histogram = [0; 256];
        for value in image.pixels().iter().skip(channel).step_by(channels) {
            histogram[usize::from(*value)] += 1;
        }
        let table = make(&histogram);
        for value in mapped
            .pixels_mut()
            .iter_mut()
            .skip(channel)
            .step_by(channels)
        {
            *value = table[usize::from(*value)];
        }
    }
    mapped
}

fn map(image: &Image, table: &Table) -> Image {
    let mut mapped = image.clone();
    for value in mapped.pixels_mut() {
        *value = table[usize::from(*value)];
    }
    mapped
}

/// Stretches each channel so that its darkest value becomes 0 and its brightest 255.
pub fn auto_contrast(image: &Image) -> Image {
    map_channels(image, |histogram| {
        let darkest = histogram.iter().position(|n| *n > 0).unwrap_or(0);
        let brightest = histogram.iter().rposition(|n| *n > 0).unwrap_or(0);
        if brightest <= darkest {
            return table(|i| i as u8);
        }
        let scale = 255.0 / (brightest - darkest) as f64;
        let offset = -(darkest as f64) * scale;
        table(|i| (i as f64 * scale + offset) as u8)
    })
}

/// Spreads the values of each channel so that all are about equally frequent.
pub fn equalize(image: &Image) -> Image {
    map_channels(image, |histogram| {
        let total: u32 = histogram.iter().sum();
        let last = histogram.iter().rev().find(|n| **n > 0).copied();
        let step = (total - last.unwrap_or(0)) / 255;
        if step == 0 {
            return table(|i| i as u8);
        }
        let mut below = step / 2;
        histogram.map(|count| {
            let value = (below / step).min(255) as u8;
            below += count;
            value
        })
    })
}

/// The negative.
pub fn invert(image: &Image) -> Image {
    map(image, &table(|i| 255 - i as u8))
}

/// Keeps the `bits` highest bits of each value; none gives black.
pub fn posterize(image: &Image, bits: u32) -> Image {
    let mask = 0xff_u32 << 8_u32.saturating_sub(bits);
    map(image, &table(|i| (i as u32 & mask) as u8))
}

/// Inverts the values from `threshold` on; 256 leaves all as they are.
pub fn solarize(image: &Image, threshold: u32) -> Image {
    let value = |i: usize| if i < threshold as usize { i } else { 255 - i };
    map(image, &table(|i| value(i) as u8))
}

/// Adds to the values below 128, up to 255.
pub fn solarize_add(image: &Image, add: u32) -> Image {
    let value = |i: usize| {
        if i < 128 {
            (i + add as usize).min(255)
        } else {
            i
        }
    };
    map(image, &table(|i| value(i) as u8))
}

/// How bright a pixel is, by ITU-R 601.
fn luma(pixel: &[u8]) -> u8 {
    match *pixel {
        [r, g, b] => densely_data::image::luma([r, g, b]) as u8,
        _ => pixel[0],
    }
}

/// From `from` (0) over `to` (1) and beyond, by Pillow's rounding: towards 0, in f32.
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    // A cast of a float stays within 0 and 255.
    (f32::from(from) + factor * (f32::from(to) - f32::from(from))) as u8
}

/// All values between 0 and themselves, or beyond.
pub fn brightness(image: &Image, factor: f64) -> Image {
    map(image, &table(|i| blend(0, i as u8, factor as f32)))
}

/// All values between the mean brightness of the picture and themselves, or beyond.
pub fn contrast(image: &Image, factor: f64) -> Image {
    let pixels = image.pixels().chunks_exact(image.channels());
    let count = pixels.len();
    let sum: u64 = pixels.map(|pixel| u64::from(luma(pixel))).sum();
    let mean = (sum as f64 / count as f64 + 0.5) as u8;
    map(image, &table(|i| blend(mean, i as u8, factor as f32)))
}

/// All pixels between grey and themselves, or beyond. A grey picture stays as it is.
pub fn saturation(image: &Image, factor: f64) -> Image {
    let mut mapped = image.clone();
    if image.channels() == 1 {
        return mapped;
    }
    for pixel in mapped.pixels_mut().chunks_exact_mut(3) {
        let grey = luma(pixel);
        for value in pixel {
            *value = blend(grey, *value, factor as f32);
        }
    }
    mapped
}

/// All pixels between their mean with their neighbours and themselves, or beyond. The outermost pixels stay as they are.
pub fn sharpness(image: &Image, factor: f64) -> Image {
    let mut mapped = image.clone();
    let (height, channels) = (image.height(), image.channels());
    let line = image.width() * channels;
    let from = image.pixels();
    let [side, middle] = [1.0_f32 / 13.0, 5.0 / 13.0];
    for y in 1..height.saturating_sub(1) {
        for i in channels..line.saturating_sub(channels) {
            let place = y * line + i;
            let row = |place: usize, middle: f32| {
                f32::from(from[place - channels]) * side
                    + f32::from(from[place]) * middle
                    + f32::from(from[place + channels]) * side
            };
            // Pillow's order: 0.5 for rounding, then the rows from below.
            let smooth =
                0.5 + row(place + line, side) + row(place, middle) + row(place - line, side);
            mapped.pixels_mut()[place] = blend(smooth as u8, from[place], factor as f32);
        }
    }
    mapped
}

/// The colours turned by `turn` of the circle, between −0.5 and 0.5. A grey picture stays as it is.
///
/// As in torchvision the hue is a number of 8 bits: even a turn by 0 changes some colours by a little.
///
/// # Errors
/// [`Error::Config`] when `turn` is out of its range.
pub fn hue(image: &Image, turn: f64) -> Result<Image> {
    if !(-0.5..=0.5).contains(&turn) {
        return Err(Error::config(
            "hue",
            format!("must lie in [-0.5, 0.5], got {turn}"),
        ));
    }
    let mut mapped = image.clone();
    if image.channels() == 3 {
        let turn = ((turn * 255.0) as i32) as u8;
        for pixel in mapped.pixels_mut().chunks_exact_mut(3) {
            let [h, s, v] = to_hsv([pixel[0], pixel[1], pixel[2]]);
            pixel.copy_from_slice(&from_hsv([h.wrapping_add(turn), s, v]));
        }
    }
    Ok(mapped)
}

/// Hue, saturation and value of 8 bits each, by Pillow's mixture of f32 and f64.
fn to_hsv(rgb: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = rgb;
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most - least);
    let saturation = range / f32::from(most);
    let [from_r, from_g, from_b] = rgb.map(|value| f32::from(most - value) / range);
    let sixths = if r == most {
        from_b - from_g
    } else if g == most {
        (2.0 + f64::from(from_r) - f64::from(from_b)) as f32
    } else {
        (4.0 + f64::from(from_g) - f64::from(from_r)) as f32
    };
    let hue = ((f64::from(sixths) / 6.0 + 1.0) % 1.0) as f32;
    let byte = |x: f32| (f64::from(x) * 255.0) as u8;
    [byte(hue), byte(saturation), most]
}

fn from_hsv(hsv: [u8; 3]) -> [u8; 3] {
    let [h, s, v] = hsv;
    if s == 0 {
        return [v; 3];
    }
    let sixths = f64::from(h) * 6.0 / 255.0;
    let sector = sixths.floor();
    let part = (sixths - f64::from(sector as f32)) as f32;
    let saturation = (f64::from(s) / 255.0) as f32;
    let value = |share: f64| (f64::from(v) * share).round() as u8;
    let low = value(1.0 - f64::from(saturation));
    let falling = value(1.0 - f64::from(saturation * part));
    let rising = value(1.0 - f64::from(saturation) * (1.0 - f64::from(part)));
    match sector as u8 % 6 {
        0 => [v, rising, low],
        1 => [falling, v, low],
        2 => [low, v, rising],
        3 => [low, falling, v],
        4 => [rising, low, v],
        _ => [v, low, falling],
    }
}

/// Random brightness, contrast, saturation and hue in random order; as torchvision's `ColorJitter`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColorJitter {
    /// Factors lie between 1 − this (at least 0) and 1 + this; 0 leaves the brightness.
    pub brightness: f64,
    /// Likewise of the contrast.
    pub contrast: f64,
    /// Likewise of the saturation.
    pub saturation: f64,
    /// The hue turns by up to this part of the circle either way, at most 0.5; 0 leaves it.
    pub hue: f64,
}

impl Default for ColorJitter {
    /// What timm means by a jitter of 0.4.
    fn default() -> Self {
        Self {
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.4,
            hue: 0.0,
        }
    }
}

impl ColorJitter {
    /// Leaves every picture as it is.
    pub const OFF: Self = Self {
        brightness: 0.0,
        contrast: 0.0,
        saturation: 0.0,
        hue: 0.0,
    };

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] for negative numbers and a hue above 0.5.
    pub fn validate(&self) -> Result<()> {
        not_negative("brightness", self.brightness)?;
        not_negative("contrast", self.contrast)?;
        not_negative("saturation", self.saturation)?;
        if (0.0..=0.5).contains(&self.hue) {
            return Ok(());
        }
        Err(Error::config(
            "hue",
            format!("must lie in [0, 0.5], got {}", self.hue),
        ))
    }

    /// A random change of the picture.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate).
    pub fn apply(&self, image: &Image, rng: &mut Rng) -> Result<Image> {
        self.validate()?;
        let order: [usize; 4] = rng.permutation();
        let spreads = [self.brightness, self.contrast, self.saturation, self.hue];
        let factors = spreads.map(|spread| rng.uniform((1.0 - spread).max(0.0), 1.0 + spread));
        let turn = rng.uniform(-self.hue, self.hue);
        let mut image = image.clone();
        for i in order.into_iter().filter(|i| spreads[*i] > 0.0) {
            image = match i {
                0 => brightness(&image, factors[0]),
                1 => contrast(&image, factors[1]),
                2 => saturation(&image, factors[2]),
                _ => hue(&image, turn)?,
            };
        }
        Ok(image)
    }
}
