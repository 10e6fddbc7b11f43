//! Files of pictures. The format is told by the content; what a header claims is checked before memory is taken.

use std::fs::{self, File};
use std::io::{Cursor, ErrorKind, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::image::codecs::{bmp, gif, jpeg, png, tiff, webp};
use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, Limits, guess_format};
use densely_core::{Error, Result};

use super::{AnyImage, Image};

/// Longest side of a picture that is read.
const MAX_SIDE: u32 = 65_535;
/// Bytes that a file may have besides 16 for each pixel: metadata, thumbnails.
const BESIDES: u64 = 64 << 20;
const FORMATS: &str = "JPEG, PNG, WebP, GIF, BMP or TIFF";

/// What is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadOptions {
    /// Most pixels, width × height; 200 million. A small file can claim any number of them.
    pub max_pixels: u64,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            max_pixels: 200_000_000,
        }
    }
}

/// Reads the picture at `path` with the default [`ReadOptions`]; see [`decode_with`].
///
/// # Errors
/// Those of [`read_with`].
pub fn read(path: &Path) -> Result<AnyImage> {
    read_with(path, &ReadOptions::default())
}

/// Reads the picture at `path`; see [`decode_with`].
///
/// # Errors
/// [`Error::Io`] when the file cannot be read; [`Error::Data`] for a folder, pipe or device; those of [`decode_with`].
pub fn read_with(path: &Path, options: &ReadOptions) -> Result<AnyImage> {
    let most = options.max_pixels;
    let limit = most.saturating_mul(16).saturating_add(BESIDES);
    let check = |bytes: u64| {
        if bytes <= limit {
            return Ok(());
        }
        let reason = format!(
            "{bytes} bytes are too many for a picture of at most {most} pixels; raise `max_pixels` if it is one"
        );
        Err(Error::data(path, reason))
    };
    let found = fs::metadata(path).map_err(Error::io(path))?;
    // Pipes can block and devices go on for ever.
    if !found.is_file() {
        return Err(Error::data(path, "is no plain file; expected a picture"));
    }
    check(found.len())?;
    let mut bytes = Vec::with_capacity(found.len() as usize);
    // The file may have grown.
    File::open(path)
        .and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(Error::io(path))?;
    check(bytes.len() as u64)?;
    decode_with(&bytes, path, options)
}

/// Decodes the `bytes` of a file with the default [`ReadOptions`]; see [`decode_with`].
///
/// # Errors
/// Those of [`decode_with`].
pub fn decode(bytes: &[u8], name: &Path) -> Result<AnyImage> {
    decode_with(bytes, name, &ReadOptions::default())
}

/// Decodes the `bytes` of a JPEG, PNG, WebP, GIF, BMP or TIFF file; `name` stands in errors.
///
/// The picture is turned as its EXIF orientation says. Palettes are expanded, CMYK becomes RGB. Transparency is
/// dropped and the colours below it kept, as Pillow's `convert("RGB")` does. Of an animation the first frame is taken,
/// with a warning; of a TIFF the first page. JPEGs differ from libjpeg's by rounding: up to 3 levels of 255, most at edges of colours.
///
/// # Errors
/// [`Error::Corrupt`] for an empty, truncated or damaged file; [`Error::Data`] for what is no picture, a format
/// or kind of pixels that is not read, and sizes beyond `options` or 65535 pixels a side.
pub fn decode_with(bytes: &[u8], name: &Path, options: &ReadOptions) -> Result<AnyImage> {
    let format = format_of(bytes, name)?;
    if format == ImageFormat::Jpeg && !jpeg_is_whole(bytes) {
        return Err(truncated(name));
    }
    // The decoders return errors; should one of them panic all the same, it is the file's fault and not the caller's.
    let image = catch_unwind(AssertUnwindSafe(|| pixels(bytes, format, name, *options)));
    image.unwrap_or_else(|_| {
        let reason = format!("the {format:?} decoder could not make sense of it");
        Err(Error::corrupt(name, reason))
    })
}

fn truncated(name: &Path) -> Error {
    Error::corrupt(name, "it ends too early; copy or download it again")
}

fn format_of(bytes: &[u8], name: &Path) -> Result<ImageFormat> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    let other = |kind: &str| {
        let reason = format!("is a {kind} picture, which is not read; convert it to {FORMATS}");
        Err(Error::data(name, reason))
    };
    let start = &bytes[..bytes.len().min(64)];
    match guess_format(bytes) {
        _ if bytes.is_empty() => {
            let reason = "it is empty; copy or download it again";
            Err(Error::corrupt(name, reason))
        }
        Ok(format @ (Jpeg | Png | WebP | Gif | Bmp | Tiff)) => Ok(format),
        Ok(format) => other(&format!("{format:?}")),
        Err(_) if start.get(4..8) == Some(b"ftyp") => other("HEIF"),
        Err(_) if start.starts_with(b"version https://git-lfs") => {
            let reason = "is a Git LFS pointer, not the picture; run `git lfs pull`";
            Err(Error::data(name, reason))
        }
        Err(_)
            if start
                .iter()
                .all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) =>
        {
            let reason = format!("holds text, not a picture; expected {FORMATS}");
            Err(Error::data(name, reason))
        }
        Err(_) => {
            let reason = format!("is no picture of a known format; expected {FORMATS}");
            Err(Error::data(name, reason))
        }
    }
}

/// Whether the end marker is there: the decoder fills up what is missing and says nothing.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        let Some(rest) = bytes.get(at..) else {
            return false;
        };
        let Some(found) = rest.iter().position(|byte| *byte == 0xff) else {
            return false;
        };
        at += found + 1;
        match bytes.get(at) {
            None => return false,
            Some(0xd9) => return true,
            // In the data: an escaped 255, or the marks of a restart; anywhere: filling and markers without content.
            Some(0x00 | 0x01 | 0xd0..=0xd8) => at += 1,
            Some(0xff) => {}
            Some(_) => match bytes.get(at + 1..at + 3) {
                Some(&[high, low]) => at += 1 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
        }
    }
}

/// Whether a GIF has more than one frame, by walking over its blocks without decoding them.
fn gif_is_animated(bytes: &[u8]) -> bool {
    let table = |flags: u8| {
        if flags & 0x80 == 0 {
            0
        } else {
            3 << ((flags & 7) + 1)
        }
    };
    let walk = || -> Option<bool> {
        let mut at = 13 + table(*bytes.get(10)?);
        let mut frames = 0;
        loop {
            at += match *bytes.get(at)? {
                0x21 => 2,
                0x2c if frames == 1 => return Some(true),
                0x2c => {
                    frames += 1;
                    11 + table(*bytes.get(at + 9)?)
                }
                _ => return Some(false),
            };
            loop {
                let length = usize::from(*bytes.get(at)?);
                at += 1 + length;
                if length == 0 {
                    break;
                }
            }
        }
    };
    walk().unwrap_or(false)
}

fn pixels(
    bytes: &[u8],
    format: ImageFormat,
    name: &Path,
    options: ReadOptions,
) -> Result<AnyImage> {
    let wrong = |e: ImageError| sentence(e, format, name);
    let source = Source {
        length: bytes.len() as u64,
        format,
        name,
        options,
    };
    let cursor = Cursor::new(bytes);
    let (image, animated) = match format {
        ImageFormat::Jpeg => {
            let decoder = jpeg::JpegDecoder::new(cursor).map_err(wrong)?;
            (source.decode(decoder)?, false)
        }
        ImageFormat::Png => {
            let decoder = png::PngDecoder::with_limits(cursor, memory(0)).map_err(wrong)?;
            let animated = decoder.is_apng().map_err(wrong)?;
            (source.decode(decoder)?, animated)
        }
        ImageFormat::WebP => {
            let decoder = webp::WebPDecoder::new(cursor).map_err(wrong)?;
            let animated = decoder.has_animation();
            (source.decode(decoder)?, animated)
        }
        ImageFormat::Gif => {
            let decoder = gif::GifDecoder::new(cursor).map_err(wrong)?;
            (source.decode(decoder)?, gif_is_animated(bytes))
        }
        ImageFormat::Bmp => {
            let decoder = bmp::BmpDecoder::new(cursor).map_err(wrong)?;
            (source.decode(decoder)?, false)
        }
        _ => {
            let decoder = tiff::TiffDecoder::new(cursor).map_err(wrong)?;
            (source.decode(decoder)?, false)
        }
    };
    if animated {
        tracing::warn!("{}: animated; its first frame is taken", name.display());
    }
    Ok(image)
}

struct Source<'a> {
    length: u64,
    format: ImageFormat,
    name: &'a Path,
    options: ReadOptions,
}

/// What a decoder may take for a picture of `bytes`.
fn memory(bytes: u64) -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(bytes.saturating_mul(3).saturating_add(BESIDES));
    limits
}

impl Source<'_> {
    fn check_size(&self, width: u32, height: u32) -> Result<()> {
        let count = u64::from(width) * u64::from(height);
        let most = self.options.max_pixels;
        let fail = |reason: String| Err(Error::data(self.name, reason));
        if count == 0 {
            let reason = format!("its header says {width} × {height} pixels: nothing");
            return Err(Error::corrupt(self.name, reason));
        }
        if width > MAX_SIDE || height > MAX_SIDE {
            return fail(format!(
                "has {width} × {height} pixels, more than {MAX_SIDE} a side; cut it into parts"
            ));
        }
        if count > most {
            return fail(format!(
                "has {width} × {height} pixels, more than {most}; scale it down or raise `max_pixels`"
            ));
        }
        // What the formats can squeeze into a byte at best: 1032 bytes of single bits by deflate, and blocks of 8 × 8
        // pixels with a bit each, at most 16 blocks to the first of them by sampling.
        let dense = match self.format {
            ImageFormat::Png => 8 * 1032,
            ImageFormat::Jpeg => 8 * 64 * 16,
            _ => return Ok(()),
        };
        if count > self.length.saturating_mul(dense) {
            let length = self.length;
            let reason = format!(
                "it claims {width} × {height} pixels, more than its {length} bytes can hold"
            );
            return Err(Error::corrupt(self.name, reason));
        }
        Ok(())
    }

    fn decode(&self, mut decoder: impl ImageDecoder) -> Result<AnyImage> {
        let wrong = |e: ImageError| sentence(e, self.format, self.name);
        let (width, height) = decoder.dimensions();
        self.check_size(width, height)?;
        let limits = memory(decoder.total_bytes());
        decoder.set_limits(limits).map_err(wrong)?;
        // Metadata that cannot be read turns nothing.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let mut image = DynamicImage::from_decoder(decoder).map_err(wrong)?;
        image.apply_orientation(orientation);
        let (width, height) = (image.width() as usize, image.height() as usize);
        let eight = |held, kept, pixels| {
            Image::new(width, height, kept, first_channels(pixels, held, kept)).map(AnyImage::Eight)
        };
        let sixteen = |held, kept, pixels| {
            Image::new(width, height, kept, first_channels(pixels, held, kept))
                .map(AnyImage::Sixteen)
        };
        match image {
            DynamicImage::ImageLuma8(image) => eight(1, 1, image.into_raw()),
            DynamicImage::ImageLumaA8(image) => eight(2, 1, image.into_raw()),
            DynamicImage::ImageRgb8(image) => eight(3, 3, image.into_raw()),
            DynamicImage::ImageRgba8(image) => eight(4, 3, image.into_raw()),
            DynamicImage::ImageLuma16(image) => sixteen(1, 1, image.into_raw()),
            DynamicImage::ImageLumaA16(image) => sixteen(2, 1, image.into_raw()),
            DynamicImage::ImageRgb16(image) => sixteen(3, 3, image.into_raw()),
            DynamicImage::ImageRgba16(image) => sixteen(4, 3, image.into_raw()),
            other => {
                let kind = other.color();
                let reason =
                    format!("has {kind:?} pixels, which are not read; save it with 8 or 16 bits");
                Err(Error::data(self.name, reason))
            }
        }
    }
}

/// The first `kept` of every `held` values.
fn first_channels<T: Copy>(mut pixels: Vec<T>, held: usize, kept: usize) -> Vec<T> {
    if held != kept {
        let count = pixels.len() / held;
        for pixel in 0..count {
            for c in 0..kept {
                pixels[pixel * kept + c] = pixels[pixel * held + c];
            }
        }
        pixels.truncate(count * kept);
        pixels.shrink_to_fit();
    }
    pixels
}

/// A decoder's error as one sentence about the file.
fn sentence(error: ImageError, format: ImageFormat, name: &Path) -> Error {
    match error {
        ImageError::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => truncated(name),
        ImageError::Unsupported(e) => {
            let text = first_line(&e.to_string());
            let reason = format!(
                "is a kind of {format:?} that is not read ({text}); save it as plain PNG or JPEG"
            );
            Error::data(name, reason)
        }
        ImageError::Limits(_) => {
            let reason = "it needs far more memory than a picture of its size";
            Error::corrupt(name, reason)
        }
        other => Error::corrupt(name, first_line(&other.to_string())),
    }
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.trim_end_matches('.').to_owned()
}
