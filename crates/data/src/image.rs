//! Pictures: pixels in memory.

use densely_core::{Error, Result};

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
