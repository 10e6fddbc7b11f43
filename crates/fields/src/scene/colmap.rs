//! Poses from COLMAP's sparse models, text or binary.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};

use super::{Optics, Pose, Shot};

/// Models of lenses that are read: COLMAP's number and name, and the meaning of the parameters.
const MODELS: [(i32, &str, &[Meaning]); 5] = {
    use Meaning::{Cx, Cy, Focal, FocalX, FocalY, K1, K2, P1, P2};
    [
        (0, "SIMPLE_PINHOLE", &[Focal, Cx, Cy]),
        (1, "PINHOLE", &[FocalX, FocalY, Cx, Cy]),
        (2, "SIMPLE_RADIAL", &[Focal, Cx, Cy, K1]),
        (3, "RADIAL", &[Focal, Cx, Cy, K1, K2]),
        (4, "OPENCV", &[FocalX, FocalY, Cx, Cy, K1, K2, P1, P2]),
    ]
};

#[derive(Clone, Copy)]
enum Meaning {
    Focal,
    FocalX,
    FocalY,
    Cx,
    Cy,
    K1,
    K2,
    P1,
    P2,
}

/// A sparse model: the folder of `cameras`, `images` and, where there is one, `points3D`.
#[derive(Debug, Clone, PartialEq)]
pub struct Colmap {
    /// The photographs by name; there is at least one. Poses are in the axes of OpenGL.
    pub shots: Vec<Shot>,
    /// Positions of the points, in the file's order; empty where the file is absent.
    pub points: Vec<[f64; 3]>,
}

impl Colmap {
    /// Reads the model in `folder`: its `.bin` files, or else its `.txt` files.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read; [`Error::Corrupt`] when one is truncated or damaged; [`Error::Data`] for words that are no numbers, a
    /// photograph whose camera is not there, a pose that is no rigid motion, and a model without photographs; [`Error::Unsupported`] for models of lenses
    /// other than `SIMPLE_PINHOLE`, `PINHOLE`, `SIMPLE_RADIAL`, `RADIAL` and `OPENCV`.
    pub fn read(folder: &Path) -> Result<Self> {
        let binary = folder.join("cameras.bin").exists();
        let file = |name: &str| {
            folder
                .join(name)
                .with_extension(if binary { "bin" } else { "txt" })
        };
        let read = |path: PathBuf| -> Result<(PathBuf, Vec<u8>)> {
            let bytes = fs::read(&path).map_err(Error::io(&path))?;
            Ok((path, bytes))
        };
        let (cameras_path, cameras) = read(file("cameras"))?;
        let (images_path, images) = read(file("images"))?;
        let points = Some(file("points3D"))
            .filter(|path| path.exists())
            .map(read);
        let points = points.transpose()?;
        let (cameras, images) = if binary {
            (
                binary_cameras(&cameras, &cameras_path)?,
                binary_images(&images, &images_path)?,
            )
        } else {
            (
                text_cameras(&cameras, &cameras_path)?,
                text_images(&images, &images_path)?,
            )
        };
        let points = match points {
            None => Vec::new(),
            Some((path, points)) if binary => binary_points(&points, &path)?,
            Some((path, points)) => text_points(&points, &path)?,
        };
        let mut shots = Vec::new();
        for image in images {
            let Some(optics) = cameras.get(&image.camera) else {
                let reason = format!(
                    "`{}` was taken by camera {}, which {} does not have",
                    image.name,
                    image.camera,
                    cameras_path.display()
                );
                return Err(Error::data(images_path, reason));
            };
            let pose = Pose::from_colmap(image.quaternion, image.translation);
            shots.push(Shot {
                pose: Pose::of_frame(&images_path, &image.name, pose)?,
                file: image.name,
                time: None,
                optics: optics.clone(),
            });
        }
        if shots.is_empty() {
            return Err(Error::data(images_path, "has no frames"));
        }
        shots.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(Self { shots, points })
    }
}

/// A line of `images`.
struct Image {
    quaternion: [f64; 4],
    translation: [f64; 3],
    camera: u32,
    name: String,
}

/// What a camera's parameters say.
fn optics(width: f64, height: f64, meanings: &[Meaning], parameters: &[f64]) -> Optics {
    let mut optics = Optics {
        w: Some(width),
        h: Some(height),
        ..Optics::default()
    };
    for (meaning, value) in meanings.iter().zip(parameters) {
        let value = Some(*value);
        match meaning {
            Meaning::Focal => (optics.fl_x, optics.fl_y) = (value, value),
            Meaning::FocalX => optics.fl_x = value,
            Meaning::FocalY => optics.fl_y = value,
            Meaning::Cx => optics.cx = value,
            Meaning::Cy => optics.cy = value,
            Meaning::K1 => optics.k1 = value,
            Meaning::K2 => optics.k2 = value,
            Meaning::P1 => optics.p1 = value,
            Meaning::P2 => optics.p2 = value,
        }
    }
    optics
}

fn unsupported(path: &Path, model: &str) -> Error {
    let known = MODELS.map(|(_, name, _)| name).join(", ");
    Error::Unsupported {
        what: format!("{}: the lens model {model}", path.display()),
        hint: format!("known are {known}; undistort the pictures with `colmap image_undistorter`"),
    }
}

/// Lines with a content, numbered from 1.
fn lines(text: &[u8]) -> impl Iterator<Item = (usize, String)> {
    let lines = text.split(|byte| *byte == b'\n').enumerate();
    lines.map(|(i, line)| (i + 1, String::from_utf8_lossy(line).trim().to_owned()))
}

fn is_content((_, line): &(usize, String)) -> bool {
    !line.is_empty() && !line.starts_with('#')
}

/// Words of a line of a text file, as numbers.
struct Words<'a> {
    path: &'a Path,
    row: usize,
    rest: &'a str,
}

impl<'a> Words<'a> {
    fn new(path: &'a Path, (row, line): &'a (usize, String)) -> Self {
        Self {
            path,
            row: *row,
            rest: line,
        }
    }

    fn word(&mut self) -> &'a str {
        let rest = self.rest.trim_start();
        let (word, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        self.rest = rest;
        word
    }

    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<T> {
        let word = self.word();
        word.parse().map_err(|_| Error::Data {
            path: self.path.to_owned(),
            row: Some(self.row as u64),
            column: None,
            reason: format!(
                "expected {what}, got `{}`",
                word.chars().take(40).collect::<String>()
            ),
        })
    }

    fn numbers<const N: usize>(&mut self, what: &str) -> Result<[f64; N]> {
        let mut numbers = [0.0; N];
        for number in &mut numbers {
            *number = self.number(what)?;
        }
        Ok(numbers)
    }
}

fn text_cameras(text: &[u8], path: &Path) -> Result<BTreeMap<u32, Optics>> {
    let mut cameras = BTreeMap::new();
    for line in lines(text).filter(is_content) {
        let mut words = Words::new(path, &line);
        let id = words.number("the number of a camera")?;
        let model = words.word();
        let Some((_, _, meanings)) = MODELS.iter().find(|(_, name, _)| *name == model) else {
            return Err(unsupported(path, model));
        };
        let [width, height] = words.numbers("a width and a height")?;
        let what = format!("{} parameters of a {model}", meanings.len());
        let mut parameters = Vec::new();
        for _ in *meanings {
            parameters.push(words.number(&what)?);
        }
        cameras.insert(id, optics(width, height, meanings, &parameters));
    }
    Ok(cameras)
}

fn text_images(text: &[u8], path: &Path) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    let mut lines = lines(text);
    while let Some(line) = lines.next() {
        if !is_content(&line) {
            continue;
        }
        let mut words = Words::new(path, &line);
        let _id: u32 = words.number("the number of a photograph")?;
        images.push(Image {
            quaternion: words.numbers("four numbers of a rotation")?,
            translation: words.numbers("three numbers of a translation")?,
            camera: words.number("the number of a camera")?,
            name: words.rest.trim().to_owned(),
        });
        // The line of its points, which may be empty.
        lines.next();
    }
    Ok(images)
}

fn text_points(text: &[u8], path: &Path) -> Result<Vec<[f64; 3]>> {
    let mut points = Vec::new();
    for line in lines(text).filter(is_content) {
        let mut words = Words::new(path, &line);
        let _id: u64 = words.number("the number of a point")?;
        points.push(words.numbers("three coordinates")?);
    }
    check_points(path, points)
}

fn check_points(path: &Path, points: Vec<[f64; 3]>) -> Result<Vec<[f64; 3]>> {
    match points.iter().find(|p| !p.iter().all(|x| x.is_finite())) {
        None => Ok(points),
        Some(point) => {
            let reason = format!("has the point {point:?}; expected finite numbers");
            Err(Error::data(path, reason))
        }
    }
}

/// What is left of a binary file.
struct Bytes<'a> {
    path: &'a Path,
    rest: &'a [u8],
}

impl<'a> Bytes<'a> {
    fn truncated(&self) -> Error {
        Error::corrupt(self.path, "it ends too early; copy it again")
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let split = self
            .rest
            .split_first_chunk()
            .map(|(bytes, rest)| (*bytes, rest));
        let (bytes, rest) = split.ok_or_else(|| self.truncated())?;
        self.rest = rest;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn f64s<const N: usize>(&mut self) -> Result<[f64; N]> {
        let mut numbers = [0.0; N];
        for number in &mut numbers {
            *number = f64::from_le_bytes(self.take()?);
        }
        Ok(numbers)
    }

    /// Text up to a zero.
    fn text(&mut self) -> Result<&'a [u8]> {
        let end = self.rest.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| self.truncated())?;
        let text = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }

    /// Passes `count` records of `size` bytes.
    fn skip(&mut self, count: u64, size: u64) -> Result<()> {
        let bytes = count
            .checked_mul(size)
            .and_then(|n| usize::try_from(n).ok());
        let rest = bytes.and_then(|bytes| self.rest.get(bytes..));
        self.rest = rest.ok_or_else(|| self.truncated())?;
        Ok(())
    }
}

fn binary_cameras(bytes: &[u8], path: &Path) -> Result<BTreeMap<u32, Optics>> {
    let mut bytes = Bytes { path, rest: bytes };
    let mut cameras = BTreeMap::new();
    for _ in 0..bytes.u64()? {
        let id = bytes.u32()?;
        let model = i32::from_le_bytes(bytes.take()?);
        let Some((_, _, meanings)) = MODELS.iter().find(|(number, _, _)| *number == model) else {
            return Err(unsupported(path, &format!("of number {model}")));
        };
        let (width, height) = (bytes.u64()? as f64, bytes.u64()? as f64);
        let mut parameters = Vec::new();
        for _ in *meanings {
            let [parameter] = bytes.f64s()?;
            parameters.push(parameter);
        }
        cameras.insert(id, optics(width, height, meanings, &parameters));
    }
    Ok(cameras)
}

fn binary_images(bytes: &[u8], path: &Path) -> Result<Vec<Image>> {
    let mut bytes = Bytes { path, rest: bytes };
    let mut images = Vec::new();
    for _ in 0..bytes.u64()? {
        let _id = bytes.u32()?;
        images.push(Image {
            quaternion: bytes.f64s()?,
            translation: bytes.f64s()?,
            camera: bytes.u32()?,
            name: String::from_utf8_lossy(bytes.text()?).into_owned(),
        });
        // Its points: x, y and the number of the point in space.
        let points = bytes.u64()?;
        bytes.skip(points, 24)?;
    }
    Ok(images)
}

fn binary_points(bytes: &[u8], path: &Path) -> Result<Vec<[f64; 3]>> {
    let mut bytes = Bytes { path, rest: bytes };
    let mut points = Vec::new();
    for _ in 0..bytes.u64()? {
        let _id = bytes.u64()?;
        points.push(bytes.f64s()?);
        // Its colour and error, and where it is seen: the numbers of a photograph and of a point there.
        bytes.skip(1, 3 + 8)?;
        let seen = bytes.u64()?;
        bytes.skip(seen, 8)?;
    }
    check_points(path, points)
}
