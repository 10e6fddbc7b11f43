//! Resizing with antialiasing, bit for bit as Pillow's `Image.resize` does it with 8 bits, up to version 12.
//!
//! Across first, then down. Pillow 13 goes down first where that is less work and can differ by rounding, a level of 255;
//! published models were made before.
//! Own code because equality is the point: `fast_image_resize` keeps its weights in 16 bits, Pillow in 22.

use std::f64::consts::PI;

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::Image;

/// How a pixel is computed from its neighbours. All but `Nearest` widen with the scale when a picture shrinks, so
/// that every pixel of the source counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// The pixel under the centre.
    Nearest,
    /// The mean of the pixels that fall into it.
    Box,
    /// A triangle, 1 pixel to each side.
    Bilinear,
    /// A cosine window, as wide as `Bilinear` and sharper.
    Hamming,
    /// Cubic with a = −0.5, 2 pixels to each side.
    Bicubic,
    /// A windowed sinc, 3 pixels to each side.
    Lanczos,
}

impl Filter {
    /// How far it reaches to each side, in pixels.
    const fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// Its height at distance `x`.
    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| {
            if x == 0.0 {
                1.0
            } else {
                (x * PI).sin() / (x * PI)
            }
        };
        let distance = x.abs();
        match self {
            Self::Box if x > -0.5 && x <= 0.5 => 1.0,
            Self::Bilinear if distance < 1.0 => 1.0 - distance,
            Self::Hamming if distance == 0.0 => 1.0,
            Self::Hamming if distance < 1.0 => {
                sinc(distance) * (0.54 + 0.46 * (distance * PI).cos())
            }
            Self::Bicubic if distance < 1.0 => (1.5 * distance - 2.5) * distance * distance + 1.0,
            Self::Bicubic if distance < 2.0 => {
                (((distance - 5.0) * distance + 8.0) * distance - 4.0) * -0.5
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

/// Longest side of a picture that is made.
const MAX_SIDE: usize = 65_535;
/// Bits behind the point of a weight: 32, less 8 of a value, less 2 for sums beyond white and sign.
const BITS: u32 = 22;

/// `image` in `width` × `height` pixels, equal to `image.resize((width, height), filter)` of Pillow up to 12.
///
/// # Errors
/// [`Error::Config`] when a side is not 1 to 65535.
///
/// # Examples
/// ```
/// use densely_data::image::{Filter, Image, resize};
/// let image = Image::new(2, 2, 1, vec![0u8, 100, 100, 200])?;
/// assert_eq!(resize(&image, 1, 1, Filter::Box)?.pixels(), [100]);
/// # Ok::<(), densely_core::Error>(())
/// ```
pub fn resize(image: &Image<u8>, width: usize, height: usize, filter: Filter) -> Result<Image<u8>> {
    let whole = [0.0, 0.0, image.width as f64, image.height as f64];
    resize_box(image, whole, width, height, filter)
}

/// The part of `image` inside `[left, top, right, bottom]`, pixels from the top left corner, in `width` × `height`
/// pixels. Equal to `image.resize((width, height), filter, box)` of Pillow up to 12; pixels around the part count where the
/// filter reaches them, which they do not after [`crop`](Image::crop).
///
/// # Errors
/// [`Error::Config`] when a side is not 1 to 65535, or the box is empty or not inside the picture.
pub fn resize_box(
    image: &Image<u8>,
    [left, top, right, bottom]: [f64; 4],
    width: usize,
    height: usize,
    filter: Filter,
) -> Result<Image<u8>> {
    for (field, side) in [("width", width), ("height", height)] {
        if !(1..=MAX_SIDE).contains(&side) {
            let reason = format!("expected 1 to {MAX_SIDE} pixels, got {side}");
            return Err(Error::config(field, reason));
        }
    }
    let inside = |from: f64, to: f64, side: usize| 0.0 <= from && from < to && to <= side as f64;
    if !inside(left, right, image.width) || !inside(top, bottom, image.height) {
        return Err(Error::config(
            "box",
            format!(
                "expected left < right and top < bottom inside {} × {} pixels, got [{left}, {top}, {right}, {bottom}]",
                image.width, image.height
            ),
        ));
    }
    // The reference keeps the box in single precision.
    let span = |from: f64, to: f64| (from as f32, to as f32);
    let (across, down) = (span(left, right), span(top, bottom));
    Ok(match filter {
        Filter::Nearest => nearest(image, across, down, width, height),
        _ => filtered(image, across, down, width, height, filter),
    })
}

/// Source places of `length` pixels. The reference adds the step again and again, and so does its rounding.
fn nearest_places((from, to): (f32, f32), side: usize, length: usize) -> Vec<usize> {
    let step = f64::from(to - from) / length as f64;
    let mut at = f64::from(from) + step * 0.5;
    (0..length)
        .map(|_| {
            let place = (at as usize).min(side - 1);
            at += step;
            place
        })
        .collect()
}

fn nearest(
    image: &Image<u8>,
    across: (f32, f32),
    down: (f32, f32),
    width: usize,
    height: usize,
) -> Image<u8> {
    let channels = image.channels;
    let columns = nearest_places(across, image.width, width);
    let mut pixels = Vec::with_capacity(width * height * channels);
    for y in nearest_places(down, image.height, height) {
        let row = &image.pixels[y * image.width * channels..][..image.width * channels];
        for x in &columns {
            pixels.extend_from_slice(&row[x * channels..][..channels]);
        }
    }
    Image {
        width,
        height,
        channels,
        pixels,
    }
}

/// Which values make a pixel, and how much of each.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// The taps of `length` pixels that cover `from..to` of a side.
fn taps((from, to): (f32, f32), side: usize, length: usize, filter: Filter) -> Vec<Taps> {
    let scale = f64::from(to - from) / length as f64;
    let widening = scale.max(1.0);
    let support = filter.support() * widening;
    let shrink = 1.0 / widening;
    let tap = |at: usize| {
        let center = f64::from(from) + (at as f64 + 0.5) * scale;
        // Conversions cut towards zero and stop at it.
        let first = (center - support + 0.5) as usize;
        let end = ((center + support + 0.5) as usize).min(side);
        let raw: Vec<f64> = (first..end)
            .map(|x| filter.weight((x as f64 - center + 0.5) * shrink))
            .collect();
        let mut total = 0.0;
        for weight in &raw {
            total += weight;
        }
        let fixed = |weight: &f64| {
            let weight = if total == 0.0 {
                *weight
            } else {
                weight / total
            };
            let scaled = weight * f64::from(1 << BITS);
            (if weight < 0.0 {
                scaled - 0.5
            } else {
                scaled + 0.5
            }) as i32
        };
        Taps {
            first,
            weights: raw.iter().map(fixed).collect(),
        }
    };
    (0..length).map(tap).collect()
}

/// A sum of weighted values as a value. Sums cannot overflow: positive weights add up to less than 1.5.
fn clip(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

fn filtered(
    image: &Image<u8>,
    across: (f32, f32),
    down: (f32, f32),
    width: usize,
    height: usize,
    filter: Filter,
) -> Image<u8> {
    let channels = image.channels;
    let row = image.width * channels;
    let same = |(from, to): (f32, f32), side: usize, length: usize| {
        side == length && from <= 0.0 && to >= length as f32
    };
    let rows = taps(down, image.height, height, filter);
    // Only rows that the second pass reads.
    let first = rows.iter().map(|tap| tap.first).min().unwrap_or(0);
    let end = rows.iter().map(|tap| tap.first + tap.weights.len()).max();
    let used = &image.pixels[first * row..end.unwrap_or(image.height) * row];
    let squeezed = if same(across, image.width, width) {
        used.to_vec()
    } else {
        let columns = taps(across, image.width, width, filter);
        if channels == 1 {
            squeeze_rows::<1>(used, row, &columns)
        } else {
            squeeze_rows::<3>(used, row, &columns)
        }
    };
    let pixels = if same(down, image.height, height) {
        squeezed
    } else {
        squeeze_columns(&squeezed, width * channels, first, &rows)
    };
    Image {
        width,
        height,
        channels,
        pixels,
    }
}

// Wrapping operators in both passes: nothing wraps, and the compiler can use vectors in builds with overflow checks.

fn squeeze_rows<const C: usize>(pixels: &[u8], row: usize, columns: &[Taps]) -> Vec<u8> {
    let mut out = Vec::with_capacity(pixels.len() / row * columns.len() * C);
    for row in pixels.chunks_exact(row) {
        for tap in columns {
            let mut sums = [1 << (BITS - 1); C];
            let (values, _) = row[tap.first * C..].as_chunks::<C>();
            for (value, weight) in values.iter().zip(&tap.weights) {
                for c in 0..C {
                    sums[c] = weight
                        .wrapping_mul(i32::from(value[c]))
                        .wrapping_add(sums[c]);
                }
            }
            out.extend(sums.map(clip));
        }
    }
    out
}

fn squeeze_columns(pixels: &[u8], row: usize, first: usize, rows: &[Taps]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() * row);
    let mut sums = vec![0i32; row];
    for tap in rows {
        sums.fill(1 << (BITS - 1));
        let values = pixels[(tap.first - first) * row..].chunks_exact(row);
        for (values, weight) in values.zip(&tap.weights) {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = weight.wrapping_mul(i32::from(*value)).wrapping_add(*sum);
            }
        }
        out.extend(sums.iter().map(|sum| clip(*sum)));
    }
    out
}
