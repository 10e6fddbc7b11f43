//! A picture of either depth, as files hold them.

use std::borrow::Cow;

use tch::Tensor;

use super::Image;

/// A picture with 8 or 16 bits per value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnyImage {
    /// 0 to 255.
    Eight(Image<u8>),
    /// 0 to 65535.
    Sixteen(Image<u16>),
}

impl From<Image<u8>> for AnyImage {
    fn from(image: Image<u8>) -> Self {
        Self::Eight(image)
    }
}

impl From<Image<u16>> for AnyImage {
    fn from(image: Image<u16>) -> Self {
        Self::Sixteen(image)
    }
}

impl AnyImage {
    /// Pixels in a row.
    pub const fn width(&self) -> usize {
        match self {
            Self::Eight(image) => image.width(),
            Self::Sixteen(image) => image.width(),
        }
    }

    /// Rows.
    pub const fn height(&self) -> usize {
        match self {
            Self::Eight(image) => image.height(),
            Self::Sixteen(image) => image.height(),
        }
    }

    /// 1 for grey, 3 for colours.
    pub const fn channels(&self) -> usize {
        match self {
            Self::Eight(image) => image.channels(),
            Self::Sixteen(image) => image.channels(),
        }
    }

    fn to_eight(&self) -> Cow<'_, Image<u8>> {
        match self {
            Self::Eight(image) => Cow::Borrowed(image),
            Self::Sixteen(image) => {
                let pixels = image.pixels.iter().map(|v| (v >> 8) as u8).collect();
                Cow::Owned(image.with(image.channels, pixels))
            }
        }
    }

    /// With 8 bits. Of 16 bits the upper 8 are taken, as Pillow does when it reads a colour PNG of that depth.
    #[must_use]
    pub fn into_eight(self) -> Image<u8> {
        match self {
            Self::Eight(image) => image,
            deep @ Self::Sixteen(_) => deep.to_eight().into_owned(),
        }
    }

    /// With 3 channels of 8 bits; a grey value becomes all three.
    #[must_use]
    pub fn into_rgb8(self) -> Image<u8> {
        match self {
            Self::Eight(image) if image.channels == 3 => image,
            other => other.to_rgb8().into_owned(),
        }
    }

    /// With 3 channels of 8 bits; a grey value becomes all three. The very same where it is so already.
    #[must_use]
    pub fn to_rgb8(&self) -> Cow<'_, Image<u8>> {
        let image = self.to_eight();
        if image.channels == 3 {
            return image;
        }
        let pixels = image.pixels.iter().flat_map(|v| [*v; 3]).collect();
        Cow::Owned(image.with(3, pixels))
    }

    /// With 1 channel of 8 bits, [`luma`] of colours. The very same where it is so already.
    #[must_use]
    pub fn to_grey8(&self) -> Cow<'_, Image<u8>> {
        let image = self.to_eight();
        if image.channels == 1 {
            return image;
        }
        Cow::Owned(image.grey(|value| value as u8))
    }

    /// With 1 channel, [`luma`] of colours, as deep as it was.
    #[must_use]
    pub fn to_grey(&self) -> Self {
        match self {
            Self::Sixteen(image) if image.channels == 3 => Self::Sixteen(image.grey(|value| value)),
            Self::Sixteen(_) => self.clone(),
            Self::Eight(_) => Self::Eight(self.to_grey8().into_owned()),
        }
    }

    /// f32 `[channels, height, width]` from 0 to 1: divided by 255 or by 65535.
    pub fn to_tensor(&self) -> Tensor {
        match self {
            Self::Eight(image) => image.to_tensor(),
            Self::Sixteen(image) => image.to_tensor(),
        }
    }
}

impl<T> Image<T> {
    /// Other pixels of the same sides.
    fn with<U>(&self, channels: usize, pixels: Vec<U>) -> Image<U> {
        Image {
            width: self.width,
            height: self.height,
            channels,
            pixels,
        }
    }
}

impl<T: Copy + Into<u16>> Image<T> {
    /// Of colours.
    fn grey(&self, value: impl Fn(u16) -> T) -> Self {
        let (pixels, _) = self.pixels.as_chunks::<3>();
        let pixels = pixels.iter().map(|rgb| value(luma(*rgb))).collect();
        self.with(1, pixels)
    }
}

/// How bright red, green and blue of 8 or 16 bits are, as deep as they: ITU-R 601-2 in the whole numbers of Pillow's `convert("L")`,
/// `(19595 R + 38470 G + 7471 B + 32768) / 65536`.
pub fn luma<T: Into<u16>>(rgb: [T; 3]) -> u16 {
    let [r, g, b] = rgb.map(|value| u32::from(value.into()));
    ((19_595 * r + 38_470 * g + 7_471 * b + 0x8000) >> 16) as u16
}
