//! Crops, resizes, flips, turns and affine maps of pictures, with the results of Pillow and torchvision.

use densely_core::{Error, Result, check};
use densely_data::Image;
use densely_data::image::{Filter, resize};
use serde::{Deserialize, Serialize};

use super::checks::{MAX_SIDE, at_most, probability_range, side};
use super::rng::Rng;

/// How values between pixels are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// From the two nearest pixels along each side.
    Bilinear,
    /// From the four nearest pixels along each side.
    Bicubic,
    /// One of the two, drawn for each picture and each operation.
    Random,
}

/// An [`Interpolation`] after the draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampling {
    /// From the two nearest pixels along each side.
    Bilinear,
    /// From the four nearest pixels along each side.
    Bicubic,
}

impl Interpolation {
    /// Draws where there is something to draw.
    pub fn draw(self, rng: &mut Rng) -> Sampling {
        match self {
            Self::Bilinear => Sampling::Bilinear,
            Self::Bicubic => Sampling::Bicubic,
            Self::Random => [Sampling::Bilinear, Sampling::Bicubic][rng.below(2)],
        }
    }
}

impl Sampling {
    const fn filter(self) -> Filter {
        match self {
            Self::Bilinear => Filter::Bilinear,
            Self::Bicubic => Filter::Bicubic,
        }
    }
}

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Window {
    /// All pixels of a picture of `height` times `width` pixels.
    pub const fn whole(height: usize, width: usize) -> Self {
        Self {
            top: 0,
            left: 0,
            height,
            width,
        }
    }

    /// A random square of `size` times `size` pixels; at the edge along a side that is shorter.
    pub(super) fn square(size: usize, height: usize, width: usize, rng: &mut Rng) -> Self {
        Self {
            top: rng.below(height.saturating_sub(size) + 1),
            left: rng.below(width.saturating_sub(size) + 1),
            height: size,
            width: size,
        }
    }

    /// The middle of a picture, where the larger margin is at the bottom and right by torchvision's rounding: half to even.
    fn middle(image: &Image, height: usize, width: usize) -> Self {
        let margin = |whole: usize, part: usize| {
            (whole.saturating_sub(part) as f64 / 2.0).round_ties_even() as usize
        };
        Self {
            top: margin(image.height(), height),
            left: margin(image.width(), width),
            height,
            width,
        }
    }
}

/// The pixels in `window`.
///
/// # Errors
/// [`Error::Config`] when it is empty or not inside the picture.
pub fn crop(image: &Image, window: Window) -> Result<Image> {
    image.crop(window.left, window.top, window.width, window.height)
}

/// The picture with the shorter side of `side` pixels and the longer one in proportion, rounded down as torchvision's `Resize` does.
///
/// # Errors
/// [`Error::Config`] when `side` is 0, or one side would have more than 65535 pixels: a strip of 3 × 800 pixels cannot be 256 pixels high.
pub fn resize_shorter(image: &Image, side: usize, sampling: Sampling) -> Result<Image> {
    check::positive("side", side as i64)?;
    at_most("side", side as i64, MAX_SIDE)?;
    let (width, height) = (image.width(), image.height());
    let short = width.min(height);
    resize_to(image, side * height / short, side * width / short, sampling)
}

/// The picture at another size; the very same when it has this size already.
fn resize_to(image: &Image, height: usize, width: usize, sampling: Sampling) -> Result<Image> {
    if (image.height(), image.width()) == (height, width) {
        return Ok(image.clone());
    }
    resize(image, width, height, sampling.filter())
}

/// The middle `height` times `width` pixels, with black around where the picture is smaller; as torchvision's `center_crop`.
///
/// # Errors
/// [`Error::Config`] when a side is 0.
pub fn center_crop(image: &Image, height: usize, width: usize) -> Result<Image> {
    let missing = |whole: usize, part: usize| {
        let missing = part.saturating_sub(whole);
        [missing / 2, missing.div_ceil(2)]
    };
    let [top, bottom] = missing(image.height(), height);
    let [left, right] = missing(image.width(), width);
    if [left, top, right, bottom] == [0; 4] {
        return crop(image, Window::middle(image, height, width));
    }
    let image = pad(image, [left, top, right, bottom], Padding::Zero)?;
    crop(&image, Window::middle(&image, height, width))
}

/// What lies around a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// Black.
    Zero,
    /// The nearest pixel.
    Edge,
    /// The picture mirrored in the middle of its outermost pixels: c b | a b c.
    Reflect,
    /// The picture mirrored in its edge: b a | a b c.
    Symmetric,
}

impl Padding {
    /// Which of `length` pixels is seen at `place`.
    fn source(self, place: isize, length: usize) -> Option<usize> {
        let length = length as isize;
        let place = match self {
            _ if (0..length).contains(&place) => place,
            Self::Zero => return None,
            Self::Edge => place.clamp(0, length - 1),
            Self::Reflect if length == 1 => 0,
            Self::Reflect => {
                let period = 2 * (length - 1);
                let place = place.rem_euclid(period);
                if place < length {
                    place
                } else {
                    period - place
                }
            }
            Self::Symmetric => {
                let place = place.rem_euclid(2 * length);
                if place < length {
                    place
                } else {
                    2 * length - 1 - place
                }
            }
        };
        Some(place as usize)
    }
}

/// The picture with `margins` more pixels at its left, top, right and bottom; as NumPy's `pad`.
///
/// # Errors
/// Those of [`Image::new`].
pub fn pad(image: &Image, margins: [usize; 4], padding: Padding) -> Result<Image> {
    let [left, top, right, bottom] = margins;
    let channels = image.channels();
    let (width, height) = (left + image.width() + right, top + image.height() + bottom);
    let columns: Vec<Option<usize>> = (0..width)
        .map(|x| padding.source(x as isize - left as isize, image.width()))
        .collect();
    let mut pixels = vec![0; width * height * channels];
    for (y, row) in pixels.chunks_exact_mut(width * channels).enumerate() {
        let Some(from) = padding.source(y as isize - top as isize, image.height()) else {
            continue;
        };
        let from = &image.pixels()[from * image.width() * channels..];
        for (pixel, x) in row.chunks_exact_mut(channels).zip(&columns) {
            if let Some(x) = x {
                pixel.copy_from_slice(&from[x * channels..(x + 1) * channels]);
            }
        }
    }
    Image::new(width, height, channels, pixels)
}

/// A random square of a padded picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomCrop {
    /// Side of the square, pixels.
    pub size: i64,
    /// Pixels added at each side of the picture.
    pub padding: i64,
    /// What is added.
    pub mode: Padding,
}

impl Default for RandomCrop {
    /// The usual one for pictures of 32 × 32 pixels.
    fn default() -> Self {
        Self {
            size: 32,
            padding: 4,
            mode: Padding::Zero,
        }
    }
}

impl RandomCrop {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] when the size is not positive, the padding negative, or one of them more than 65535 pixels.
    pub fn validate(&self) -> Result<()> {
        side("size", self.size)?;
        if self.padding < 0 {
            let reason = format!("must not be negative, got {}", self.padding);
            return Err(Error::config("padding", reason));
        }
        at_most("padding", self.padding, MAX_SIDE)
    }

    /// Where to crop a picture of `height` times `width` pixels that is padded already.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is smaller than the square.
    pub fn draw(&self, height: usize, width: usize, rng: &mut Rng) -> Result<Window> {
        let size = side("size", self.size)?;
        if height < size || width < size {
            return Err(Error::Shape {
                what: "picture".to_owned(),
                expected: format!("at least {size} × {size} pixels with its padding"),
                got: format!("{height} × {width} pixels"),
            });
        }
        Ok(Window::square(size, height, width, rng))
    }

    /// A square of the padded picture.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate) and [`draw`](Self::draw).
    pub fn apply(&self, image: &Image, rng: &mut Rng) -> Result<Image> {
        self.validate()?;
        let margin = self.padding as usize;
        if margin == 0 {
            return crop(image, self.draw(image.height(), image.width(), rng)?);
        }
        let image = pad(image, [margin; 4], self.mode)?;
        crop(&image, self.draw(image.height(), image.width(), rng)?)
    }
}

/// A part of a picture of random area and shape, resized to a square: the usual crop for photographs; as torchvision's of this name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomResizedCrop {
    /// Side of the square, pixels.
    pub size: i64,
    /// Least and largest share of the picture's area.
    pub scale: [f64; 2],
    /// Least and largest width by height, drawn uniformly in its logarithm.
    pub ratio: [f64; 2],
    /// How it is resized.
    pub interpolation: Interpolation,
}

impl Default for RandomResizedCrop {
    fn default() -> Self {
        Self {
            size: 224,
            scale: [0.08, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            interpolation: Interpolation::Bicubic,
        }
    }
}

impl RandomResizedCrop {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming what is out of range.
    pub fn validate(&self) -> Result<()> {
        side("size", self.size)?;
        probability_range("scale", self.scale)?;
        let [least, most] = self.ratio;
        if least > 0.0 && least <= most && most.is_finite() {
            return Ok(());
        }
        Err(Error::config(
            "ratio",
            format!(
                "must be two positive numbers in order, got {:?}",
                self.ratio
            ),
        ))
    }

    /// The part of a picture of `height` times `width` pixels: ten tries, then [`fallback`](Self::fallback).
    pub fn draw(&self, height: usize, width: usize, rng: &mut Rng) -> Window {
        let area = (height * width) as f64;
        for _ in 0..10 {
            let part = area * rng.uniform(self.scale[0], self.scale[1]);
            let ratio = rng.uniform(self.ratio[0].ln(), self.ratio[1].ln()).exp();
            let w = (part * ratio).sqrt().round_ties_even() as usize;
            let h = (part / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                return Window {
                    top: rng.below(height - h + 1),
                    left: rng.below(width - w + 1),
                    height: h,
                    width: w,
                };
            }
        }
        self.fallback(height, width)
    }

    /// What is taken when no try lies in the picture: its middle, as large as `ratio` allows.
    pub fn fallback(&self, height: usize, width: usize) -> Window {
        let ratio = width as f64 / height as f64;
        let round = |x: f64| (x.round_ties_even() as usize).max(1);
        let (h, w) = if ratio < self.ratio[0] {
            (round(width as f64 / self.ratio[0]).min(height), width)
        } else if ratio > self.ratio[1] {
            (height, round(height as f64 * self.ratio[1]).min(width))
        } else {
            (height, width)
        };
        Window {
            top: (height - h) / 2,
            left: (width - w) / 2,
            height: h,
            width: w,
        }
    }

    /// The part in `window`, resized.
    ///
    /// # Errors
    /// Those of [`crop`] and of the size.
    pub fn resize(&self, image: &Image, window: Window, sampling: Sampling) -> Result<Image> {
        let size = side("size", self.size)?;
        resize_to(&crop(image, window)?, size, size, sampling)
    }

    /// A random part, resized.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate).
    pub fn apply(&self, image: &Image, rng: &mut Rng) -> Result<Image> {
        self.validate()?;
        let window = self.draw(image.height(), image.width(), rng);
        self.resize(image, window, self.interpolation.draw(rng))
    }
}

/// The picture mirrored: left becomes right.
pub fn hflip(image: &Image) -> Image {
    let mut flipped = image.clone();
    let channels = image.channels();
    for row in flipped
        .pixels_mut()
        .chunks_exact_mut(image.width() * channels)
    {
        row.reverse();
        row.chunks_exact_mut(channels).for_each(<[u8]>::reverse);
    }
    flipped
}

/// The picture mirrored: top becomes bottom.
pub fn vflip(image: &Image) -> Image {
    let mut flipped = image.clone();
    let row = image.width() * image.channels();
    for (to, from) in flipped
        .pixels_mut()
        .chunks_exact_mut(row)
        .zip(image.pixels().chunks_exact(row).rev())
    {
        to.copy_from_slice(from);
    }
    flipped
}

/// The picture turned counter-clockwise by `turns` times 90 degrees.
///
/// # Errors
/// None but those of [`Image::new`], which do not happen.
pub fn rot90(image: &Image, turns: usize) -> Result<Image> {
    let (width, height, channels) = (image.width(), image.height(), image.channels());
    match turns % 4 {
        0 => return Ok(image.clone()),
        2 => return Ok(hflip(&vflip(image))),
        _ => {}
    }
    let mut pixels = Vec::with_capacity(image.pixels().len());
    for row in 0..width {
        for column in 0..height {
            let (x, y) = if turns % 4 == 1 {
                (width - 1 - row, column)
            } else {
                (row, height - 1 - column)
            };
            let from = (y * width + x) * channels;
            pixels.extend_from_slice(&image.pixels()[from..from + channels]);
        }
    }
    Image::new(height, width, channels, pixels)
}

/// The picture whose pixel (x, y) is the given one's at (a·x + b·y + c, d·x + e·y + f) for `matrix` [a, b, c, d, e, f], pixels being at the
/// middle of their squares; `fill` where that is outside.
///
/// Equal to Pillow's `transform` by an affine matrix. A grey picture takes the first value of `fill`.
pub fn affine(image: &Image, matrix: [f64; 6], sampling: Sampling, fill: [u8; 3]) -> Image {
    match image.channels() {
        1 => mapped::<1>(image, matrix, sampling, [fill[0]]),
        _ => mapped::<3>(image, matrix, sampling, fill),
    }
}

fn mapped<const C: usize>(
    image: &Image,
    matrix: [f64; 6],
    sampling: Sampling,
    fill: [u8; C],
) -> Image {
    let mut mapped = image.clone();
    let (width, height) = (image.width(), image.height());
    let [a, b, c, d, e, f] = matrix;
    let (pixels, _) = mapped.pixels_mut().as_chunks_mut::<C>();
    for (row, line) in pixels.chunks_exact_mut(width).enumerate() {
        for (column, pixel) in line.iter_mut().enumerate() {
            let (x, y) = (column as f64 + 0.5, row as f64 + 0.5);
            let (x, y) = (a * x + b * y + c, d * x + e * y + f);
            let inside = x >= 0.0 && x < width as f64 && y >= 0.0 && y < height as f64;
            *pixel = match sampling {
                _ if !inside => fill,
                Sampling::Bilinear => between(image, [y - 0.5, x - 0.5], linear),
                Sampling::Bicubic => between(image, [y - 0.5, x - 0.5], cubic),
            };
        }
    }
    mapped
}

/// The pixel at a row and column between pixels, from `N` rows and columns about it; those outside are the nearest inside.
fn between<const C: usize, const N: usize>(
    image: &Image,
    place: [f64; 2],
    line: impl Fn([f64; N], f64) -> f64,
) -> [u8; C] {
    let before = N as i64 / 2 - 1;
    let first = place.map(f64::floor);
    let nearest = |first: f64, length: usize| {
        let first = first as i64 - before;
        std::array::from_fn::<_, N, _>(|i| (first + i as i64).clamp(0, length as i64 - 1) as usize)
    };
    let rows = nearest(first[0], image.height());
    let columns = nearest(first[1], image.width());
    let (pixels, _) = image.pixels().as_chunks::<C>();
    let values = rows.map(|row| columns.map(|column| pixels[row * image.width() + column]));
    std::array::from_fn(|channel| {
        let across = values.map(|row| {
            let row = row.map(|pixel| f64::from(pixel[channel]));
            line(row, place[1] - first[1])
        });
        // A cast of a float stays within 0 and 255.
        line(across, place[0] - first[0]) as u8
    })
}

fn linear(v: [f64; 2], d: f64) -> f64 {
    v[0] + (v[1] - v[0]) * d
}

/// The value at `d` between `v[1]` and `v[2]` of the cubic with a = −1 through them, in Pillow's order of operations.
fn cubic(v: [f64; 4], d: f64) -> f64 {
    let second = -v[0] + v[2];
    let third = 2.0 * (v[0] - v[1]) + v[2] - v[3];
    let fourth = -v[0] + v[1] - v[2] + v[3];
    v[1] + d * (second + d * (third + d * fourth))
}

/// The picture turned counter-clockwise about its middle by `degrees`, at the same size; equal to Pillow's `rotate`.
///
/// # Errors
/// None but those of [`Image::new`], which do not happen.
pub fn rotate(image: &Image, degrees: f64, sampling: Sampling, fill: [u8; 3]) -> Result<Image> {
    let degrees = degrees.rem_euclid(360.0);
    let turns = (degrees / 90.0) as usize;
    if degrees % 90.0 == 0.0 && (turns.is_multiple_of(2) || image.width() == image.height()) {
        return rot90(image, turns);
    }
    let angle = -(degrees.to_radians());
    // Pillow rounds to 15 digits, so that quarter turns are exact.
    let round = |x: f64| format!("{x:.15}").parse().unwrap_or(x);
    let (a, b) = (round(angle.cos()), round(angle.sin()));
    let (d, e) = (round(-angle.sin()), round(angle.cos()));
    let (x, y) = (image.width() as f64 / 2.0, image.height() as f64 / 2.0);
    let matrix = [a, b, a * -x + b * -y + x, d, e, d * -x + e * -y + y];
    Ok(affine(image, matrix, sampling, fill))
}
