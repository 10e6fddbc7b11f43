//! A picture of either depth, as files hold them.

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

    /// With 8 bits. Of 16 bits the upper 8 are taken, as Pillow does when it reads a colour PNG of that depth.
    #[must_use]
    pub fn into_eight(self) -> Image<u8> {
        match self {
            Self::Eight(image) => image,
            Self::Sixteen(image) => Image {
                width: image.width,
                height: image.height,
                channels: image.channels,
                pixels: image.pixels.iter().map(|v| (v >> 8) as u8).collect(),
            },
        }
    }

    /// With 3 channels of 8 bits; a grey value becomes all three.
    #[must_use]
    pub fn into_rgb8(self) -> Image<u8> {
        let image = self.into_eight();
        if image.channels == 3 {
            return image;
        }
        Image {
            channels: 3,
            pixels: image.pixels.iter().flat_map(|v| [*v; 3]).collect(),
            ..image
        }
    }

    /// With 3 channels of 8 bits; a grey value becomes all three.
    #[must_use]
    pub fn to_rgb8(&self) -> Image<u8> {
        self.clone().into_rgb8()
    }

    /// With 1 channel of 8 bits: luma by ITU-R 601-2 in the whole numbers of Pillow's `convert("L")`,
    /// `(19595 R + 38470 G + 7471 B + 32768) / 65536`.
    #[must_use]
    pub fn to_grey8(&self) -> Image<u8> {
        let image = self.clone().into_eight();
        if image.channels == 1 {
            return image;
        }
        let luma = |rgb: &[u8]| {
            let [r, g, b] = [0, 1, 2].map(|c| u32::from(rgb[c]));
            ((19_595 * r + 38_470 * g + 7_471 * b + 0x8000) >> 16) as u8
        };
        Image {
            channels: 1,
            pixels: image.pixels.chunks_exact(3).map(luma).collect(),
            ..image
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
