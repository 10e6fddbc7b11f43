//! Reading the photographs of a scene.

use std::fs;
use std::io::{Cursor, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use image::{ImageError, ImageFormat, ImageReader, Limits};

use super::{Colmap, Scene, Shot, Transforms, View};
use crate::parallel;

/// Endings that are tried where a frame's path has none.
const ENDINGS: [&str; 3] = ["png", "jpg", "jpeg"];
/// Photographs that are decoded before the next ones are begun.
const AT_ONCE: usize = 16;
/// Most bytes that a decoder may take.
const MOST_MEMORY: u64 = 2 << 30;
/// Most bytes of all photographs of a scene.
const MOST_BYTES: usize = 4 << 30;

/// A photograph: rows, columns, and red, green, blue and opacity of each pixel.
struct Photograph {
    size: [usize; 2],
    pixels: Vec<u8>,
}

impl Scene {
    /// Reads a `transforms*.json` and its photographs, whose paths count from the file's folder.
    ///
    /// # Errors
    /// Those of [`Transforms::read`] and [`develop`](Self::develop).
    pub fn read_transforms(path: &Path) -> Result<Self> {
        let transforms = Transforms::read(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::develop(path, transforms.shots, folder)
    }

    /// Reads COLMAP's sparse `model` and its photographs in the folder `pictures`.
    ///
    /// # Errors
    /// Those of [`Colmap::read`] and [`develop`](Self::develop).
    pub fn read_colmap(model: &Path, pictures: &Path) -> Result<Self> {
        let colmap = Colmap::read(model)?;
        let scene = Self::develop(model, colmap.shots, pictures)?;
        Ok(Self {
            points: colmap.points,
            ..scene
        })
    }

    /// Reads the photographs of `shots` in `folder`; `path`, where the poses are from, stands in errors. A path without an ending gets .png, .jpg or .jpeg. Pictures
    /// without transparency are opaque. They are not turned as their EXIF says, for poses belong to the pixels as they are stored.
    ///
    /// # Errors
    /// [`Error::Data`] when photographs are missing, of different sizes or larger than 4 GiB together with four bytes for a pixel, and those of
    /// [`Optics::lens`](super::Optics::lens); [`Error::Io`] and [`Error::Corrupt`] when one cannot be read.
    pub fn develop(path: &Path, shots: Vec<Shot>, folder: &Path) -> Result<Self> {
        let files = find(path, &shots, folder)?;
        let (Some((first, others)), Some(shot)) = (files.split_first(), shots.first()) else {
            return Err(Error::data(path, "has no frames"));
        };
        let Photograph { size, mut pixels } = read(first)?;
        let [height, width] = size;
        shot.optics.lens(height, width, path, &shot.file)?;
        if pixels.len().saturating_mul(files.len()) > MOST_BYTES {
            let reason = format!(
                "has {} photographs of {height} × {width} pixels: more than the {} GiB that a scene may have; reduce the pictures or name fewer",
                files.len(),
                MOST_BYTES >> 30
            );
            return Err(Error::data(path, reason));
        }
        for files in others.chunks(AT_ONCE) {
            let photographs = parallel::map(files, 1, |file| read(file));
            for (file, photograph) in files.iter().zip(photographs) {
                let photograph = photograph?;
                if photograph.size != size {
                    let reason = format!(
                        "has {} × {} pixels, but {} has {height} × {width}; all frames of a scene have one size",
                        photograph.size[0],
                        photograph.size[1],
                        first.display()
                    );
                    return Err(Error::data(file, reason));
                }
                pixels.extend(photograph.pixels);
            }
        }
        let view = |shot: Shot| {
            Ok(View {
                lens: shot.optics.lens(height, width, path, &shot.file)?,
                name: shot.file,
                pose: shot.pose,
                time: shot.time,
            })
        };
        let views = shots.into_iter().map(view).collect::<Result<_>>()?;
        Self::from_parts(path, views, [height, width], pixels)
    }
}

/// The file of each shot.
fn find(path: &Path, shots: &[Shot], folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut missing) = (Vec::new(), Vec::new());
    for shot in shots {
        let plain = folder.join(&shot.file);
        let with = |ending: &&str| {
            let mut name = plain.clone().into_os_string();
            name.push(format!(".{ending}"));
            PathBuf::from(name)
        };
        let mut candidates = std::iter::once(plain.clone()).chain(ENDINGS.iter().map(with));
        match candidates.find(|file| file.is_file()) {
            Some(file) => files.push(file),
            None => missing.push(shot.file.as_str()),
        }
    }
    if missing.is_empty() {
        return Ok(files);
    }
    let reason = format!(
        "{} of {} frames are missing in {}: `{}`, plain or with the ending .{}",
        missing.len(),
        shots.len(),
        folder.display(),
        missing[..missing.len().min(5)].join("`, `"),
        ENDINGS.join(", .")
    );
    Err(Error::data(path, reason))
}

fn read(path: &Path) -> Result<Photograph> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    // The decoders return errors; should one of them panic all the same, it is the file's fault and not the caller's.
    catch_unwind(AssertUnwindSafe(|| decode(&bytes, path))).unwrap_or_else(|_| {
        Err(Error::corrupt(
            path,
            "the decoder could not make sense of it",
        ))
    })
}

fn decode(bytes: &[u8], path: &Path) -> Result<Photograph> {
    let truncated = || Error::corrupt(path, "it ends too early; copy or download it again");
    let wrong = |error: ImageError| match error {
        ImageError::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => truncated(),
        other => {
            let text = other.to_string();
            let line = text.lines().next().unwrap_or_default();
            Error::corrupt(path, line.trim_end_matches('.'))
        }
    };
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(Error::io(path))?;
    // The decoder fills up what is missing and says nothing.
    let end = || bytes.windows(2).any(|pair| pair == [0xff, 0xd9]);
    match reader.format() {
        None => {
            let reason = "is no picture of a known format; expected PNG or JPEG";
            return Err(Error::data(path, reason));
        }
        Some(ImageFormat::Jpeg) if !end() => return Err(truncated()),
        Some(_) => {}
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST_MEMORY);
    reader.limits(limits);
    let image = reader.decode().map_err(wrong)?.into_rgba8();
    Ok(Photograph {
        size: [image.height() as usize, image.width() as usize],
        pixels: image.into_raw(),
    })
}
