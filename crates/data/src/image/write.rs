//! Pictures into files; every file is whole or absent.

use std::path::Path;

use ::image::codecs::jpeg::JpegEncoder;
use ::image::codecs::png::PngEncoder;
use ::image::codecs::webp::WebPEncoder;
use ::image::error::{ParameterError, ParameterErrorKind};
use ::image::{ExtendedColorType, ImageBuffer, ImageEncoder, ImageError, ImageResult, Luma, Rgb};
use densely_core::{Error, Result, fs};

use super::Image;

/// Quality of the JPEG files that [`write()`] makes.
pub const JPEG_QUALITY: u8 = 95;

/// Longest side of a PNG.
const MAX_SIDE_PNG: usize = i32::MAX as usize;
/// Longest side of a lossless WebP.
const MAX_SIDE_WEBP: usize = 16_383;
/// Longest side of a JPEG.
const MAX_SIDE_JPEG: usize = 65_535;

/// Writes `image` in the format that the ending of `path` names: `png`, `jpg` or `jpeg` (with [`JPEG_QUALITY`]), `webp`
/// (lossless).
///
/// # Errors
/// [`Error::Config`] for another ending or sides too long for the format; [`Error::Io`] when the file cannot be written.
pub fn write(path: &Path, image: &Image<u8>) -> Result<()> {
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    let bytes = match ending.to_ascii_lowercase().as_str() {
        "png" => encode_png(image)?,
        "jpg" | "jpeg" => encode_jpeg(image, JPEG_QUALITY)?,
        "webp" => encode_webp(image)?,
        _ => {
            let path = path.display();
            let reason =
                format!("expected a name that ends in .png, .jpg, .jpeg or .webp, got `{path}`");
            return Err(Error::config("path", reason));
        }
    };
    fs::write(path, &bytes)
}

/// Writes `image` as PNG, whatever the ending of `path`.
///
/// # Errors
/// [`Error::Config`] when a side is longer than PNG can say; [`Error::Io`] when the file cannot be written.
pub fn write_png(path: &Path, image: &Image<u8>) -> Result<()> {
    fs::write(path, &encode_png(image)?)
}

/// Writes `image` as PNG with 16 bits per value, whatever the ending of `path`.
///
/// # Errors
/// [`Error::Config`] when a side is longer than PNG can say; [`Error::Io`] when the file cannot be written.
pub fn write_png16(path: &Path, image: &Image<u16>) -> Result<()> {
    let pixels = image.pixels.as_slice();
    let bytes = encode(image, MAX_SIDE_PNG, "PNG", |to, width, height, _| {
        let encoder = PngEncoder::new(to);
        let written = if image.channels == 1 {
            ImageBuffer::<Luma<u16>, _>::from_raw(width, height, pixels)
                .map(|image| image.write_with_encoder(encoder))
        } else {
            ImageBuffer::<Rgb<u16>, _>::from_raw(width, height, pixels)
                .map(|image| image.write_with_encoder(encoder))
        };
        written.unwrap_or_else(|| {
            let kind = ParameterErrorKind::DimensionMismatch;
            Err(ImageError::Parameter(ParameterError::from_kind(kind)))
        })
    })?;
    fs::write(path, &bytes)
}

/// `image` as a PNG file.
///
/// # Errors
/// [`Error::Config`] when a side is longer than PNG can say.
pub fn encode_png(image: &Image<u8>) -> Result<Vec<u8>> {
    encode(image, MAX_SIDE_PNG, "PNG", |to, width, height, kind| {
        PngEncoder::new(to).write_image(&image.pixels, width, height, kind)
    })
}

/// `image` as a baseline JPEG file of `quality` 1 to 100 (the scale of libjpeg), colours not subsampled.
///
/// # Errors
/// [`Error::Config`] for another quality, or more than 65535 pixels a side.
pub fn encode_jpeg(image: &Image<u8>, quality: u8) -> Result<Vec<u8>> {
    if !(1..=100).contains(&quality) {
        let reason = format!("expected 1 to 100, got {quality}");
        return Err(Error::config("quality", reason));
    }
    encode(image, MAX_SIDE_JPEG, "JPEG", |to, width, height, kind| {
        let encoder = JpegEncoder::new_with_quality(to, quality);
        encoder.write_image(&image.pixels, width, height, kind)
    })
}

fn encode_webp(image: &Image<u8>) -> Result<Vec<u8>> {
    encode(image, MAX_SIDE_WEBP, "WebP", |to, width, height, kind| {
        WebPEncoder::new_lossless(to).write_image(&image.pixels, width, height, kind)
    })
}

fn encode<T>(
    image: &Image<T>,
    most: usize,
    format: &str,
    write: impl FnOnce(&mut Vec<u8>, u32, u32, ExtendedColorType) -> ImageResult<()>,
) -> Result<Vec<u8>> {
    let (width, height) = (image.width, image.height);
    if width.max(height) > most {
        let reason = format!("{format} has at most {most} pixels a side, got {width} × {height}");
        return Err(Error::config("picture", reason));
    }
    let kind = match image.channels {
        1 => ExtendedColorType::L8,
        _ => ExtendedColorType::Rgb8,
    };
    let mut bytes = Vec::new();
    write(&mut bytes, width as u32, height as u32, kind)
        .map_err(|e| Error::config("picture", format!("{format} cannot hold it: {e}")))?;
    Ok(bytes)
}
