//! Films from folders of numbered pictures.

use std::path::Path;
#[cfg(feature = "image")]
use std::path::PathBuf;

use densely_core::{Error, Result};
use densely_data::Image;

use super::{Convention, Samples, Signal};

/// A film of frames in memory: axes (frames, rows, columns). `names` stand in errors, one for each frame.
///
/// # Errors
/// [`Error::Data`] when there is no frame, or one has another size or number of channels than the first.
pub fn stack_frames<'a>(
    frames: impl IntoIterator<Item = (&'a Path, Result<Image<u8>>)>,
    convention: Convention,
) -> Result<Signal> {
    let sizes = |image: &Image<u8>| [image.height(), image.width(), image.channels()];
    let mut first: Option<(&Path, [usize; 3])> = None;
    let (mut count, mut samples) = (0, Vec::new());
    for (name, frame) in frames {
        let frame = frame?;
        let size = sizes(&frame);
        let (first_name, expected) = *first.get_or_insert((name, size));
        if size != expected {
            let reason = format!(
                "has {}, but {} has {}; all frames of a film have one size",
                words(size),
                first_name.display(),
                words(expected)
            );
            return Err(Error::data(name, reason));
        }
        samples.extend_from_slice(frame.pixels());
        count += 1;
    }
    let Some((_, [height, width, channels])) = first else {
        return Err(Error::data("", "a film needs at least one frame"));
    };
    Ok(Signal {
        axes: vec![count, height, width],
        channels,
        samples: Samples::Eight(samples),
        convention,
    })
}

fn words([height, width, channels]: [usize; 3]) -> String {
    format!("{height} × {width} pixels of {channels} channels")
}

/// The frames in `folder` in the order of their numbers: the last digits of their names, `frame_0012.png` or `12.jpg`.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be read; [`Error::Data`] when there is no picture, a picture lies deeper, has no number or another's, or a number
/// between the first and the last is missing.
#[cfg(feature = "image")]
pub fn frame_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut frames = Vec::new();
    for path in densely_data::image::sources::pictures_below(folder)? {
        if path.parent() != Some(folder) {
            let reason = "lies in a folder of its own; all frames of a film lie in one";
            return Err(Error::data(path, reason));
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let Some(number) = number(&name) else {
            let reason = "has no frame number; expected a name like frame_0012";
            return Err(Error::data(path, reason));
        };
        frames.push((number, path));
    }
    frames.sort();
    for pair in frames.windows(2) {
        let [(before, earlier), (after, later)] = pair else {
            continue;
        };
        if after == before {
            let reason = format!("has number {after}, as {}", earlier.display());
            return Err(Error::data(later, reason));
        }
        if after - before > 1 {
            let reason = format!(
                "frame {} is missing: {} follows {}",
                before + 1,
                later.display(),
                earlier.display()
            );
            return Err(Error::data(folder, reason));
        }
    }
    Ok(frames.into_iter().map(|(_, path)| path).collect())
}

/// Reads the film of [`frame_files`]. All frames are held in memory, 8 bits for each value.
///
/// # Errors
/// Those of [`frame_files`] and [`stack_frames`], and those of reading a picture.
#[cfg(feature = "image")]
pub fn read_frames(folder: &Path, convention: Convention) -> Result<Signal> {
    let files = frame_files(folder)?;
    let frames = files.iter().map(|path| {
        let image = densely_data::image::read(path);
        (
            path.as_path(),
            image.map(densely_data::image::AnyImage::into_eight),
        )
    });
    stack_frames(frames, convention)
}

/// The last digits of `name`.
#[cfg(feature = "image")]
fn number(name: &str) -> Option<u64> {
    let end = name.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = name[..end]
        .rfind(|c: char| !c.is_ascii_digit())
        .map_or(0, |at| {
            at + name[at..].chars().next().map_or(1, char::len_utf8)
        });
    name[start..end].parse().ok()
}
