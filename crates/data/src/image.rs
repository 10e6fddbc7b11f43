//! Pictures: pixels in memory, files of them, data sets of them.

mod any;
mod pool;
#[cfg(feature = "image")]
mod read;
mod resize;
pub mod sources;
#[cfg(feature = "image")]
mod write;

use densely_core::{Error, Result};
use tch::Tensor;

pub use any::{AnyImage, luma};
pub use pool::decode_ordered;
#[cfg(feature = "image")]
pub use read::{ReadOptions, decode, decode_with, read, read_with};
pub use resize::{Filter, resize, resize_box};
#[cfg(feature = "image")]
pub use write::{JPEG_QUALITY, encode_jpeg, encode_png, write, write_png, write_png16};

/// Pixels of a picture, row by row from the top left, the channels of a pixel side by side: grey (1 channel) or red, green, blue (3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image<T = u8> {
    width: usize,
    height: usize,
    channels: usize,
    pixels: Vec<T>,
}

impl<T> Image<T> {
    /// A picture of `height * width * channels` values.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are more or fewer, no pixel, or another number of channels than 1 or 3.
    pub fn new(width: usize, height: usize, channels: usize, pixels: Vec<T>) -> Result<Self> {
        let count = width
            .checked_mul(height)
            .and_then(|n| n.checked_mul(channels));
        if matches!(channels, 1 | 3) && !pixels.is_empty() && count == Some(pixels.len()) {
            return Ok(Self {
                width,
                height,
                channels,
                pixels,
            });
        }
        Err(Error::Shape {
            what: "picture".to_owned(),
            expected: "height × width × channels values, with 1 or 3 channels".to_owned(),
            got: format!(
                "{} values for {height} × {width} × {channels}",
                pixels.len()
            ),
        })
    }

    /// Pixels in a row.
    pub const fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub const fn height(&self) -> usize {
        self.height
    }

    /// 1 for grey, 3 for colours.
    pub const fn channels(&self) -> usize {
        self.channels
    }

    /// All values.
    pub fn pixels(&self) -> &[T] {
        &self.pixels
    }

    /// All values.
    pub fn pixels_mut(&mut self) -> &mut [T] {
        &mut self.pixels
    }

    /// All values, without the picture.
    pub fn into_pixels(self) -> Vec<T> {
        self.pixels
    }
}

impl<T: Copy> Image<T> {
    /// The `width` × `height` pixels whose top left one is at (`left`, `top`).
    ///
    /// # Errors
    /// [`Error::Config`] when they do not all lie in the picture, or are none.
    pub fn crop(&self, left: usize, top: usize, width: usize, height: usize) -> Result<Self> {
        let inside = |start: usize, length: usize, side: usize| {
            length > 0 && start.checked_add(length).is_some_and(|end| end <= side)
        };
        if !inside(left, width, self.width) || !inside(top, height, self.height) {
            return Err(Error::config(
                "crop",
                format!(
                    "expected a part of a picture of {} × {} pixels, got {width} × {height} from ({left}, {top})",
                    self.width, self.height
                ),
            ));
        }
        let row = self.width * self.channels;
        let (from, length) = (left * self.channels, width * self.channels);
        let rows = self.pixels.chunks_exact(row).skip(top).take(height);
        Ok(Self {
            width,
            height,
            channels: self.channels,
            pixels: rows
                .flat_map(|row| &row[from..from + length])
                .copied()
                .collect(),
        })
    }

    /// The channels one behind the other, `[channels, height, width]`.
    fn planes(&self, value: impl Fn(T) -> f32) -> Tensor {
        let plane = |c| self.pixels.iter().skip(c).step_by(self.channels);
        let planes: Vec<f32> = (0..self.channels)
            .flat_map(plane)
            .map(|pixel| value(*pixel))
            .collect();
        let shape = [self.channels, self.height, self.width].map(|n| n as i64);
        Tensor::from_slice(&planes).view(shape)
    }
}

impl Image<u8> {
    /// f32 `[channels, height, width]` from 0 to 1: divided by 255, as torchvision's `to_tensor`.
    pub fn to_tensor(&self) -> Tensor {
        self.planes(|value| f32::from(value) / 255.0)
    }
}

impl Image<u16> {
    /// f32 `[channels, height, width]` from 0 to 1: divided by 65535.
    pub fn to_tensor(&self) -> Tensor {
        self.planes(|value| f32::from(value) / 65_535.0)
    }
}
