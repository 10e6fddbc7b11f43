//! Scenes in one NPZ file of `NumPy`.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use densely_core::{Error, Result};
use zip::ZipArchive;

use super::{Optics, Pose, Scene, View};

/// Most bytes of an array.
const MOST: usize = 4 << 30;
/// Most bytes of the description before an array.
const MOST_HEADER: usize = 1 << 16;

impl Scene {
    /// Reads an NPZ file with `images` (u8 `[n, height, width, 4]`, or 3 channels for opaque pictures), `poses` (f32 or f64 `[n, 4, 4]`, camera to world in
    /// the axes of OpenGL), `focal` (pixels) or `camera_angle_x` (radians), and, of moving scenes, `times` `[n]`.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read; [`Error::Corrupt`] when it is truncated, damaged or no NPZ file; [`Error::Data`] when an array is
    /// missing, of another type or shape, or larger than 4 GiB, a pose is no rigid motion, a time is not in 0..1, and `focal` contradicts `camera_angle_x`.
    pub fn read_npz(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        Self::decode_npz(BufReader::new(file), path)
    }

    /// Reads an NPZ file from `source`; `name` stands in errors.
    ///
    /// # Errors
    /// Those of [`read_npz`](Self::read_npz).
    pub fn decode_npz(source: impl Read + Seek, name: &Path) -> Result<Self> {
        let fail = |reason: String| Err(Error::data(name, reason));
        let mut zip = ZipArchive::new(source)
            .map_err(|e| Error::corrupt(name, format!("expected an NPZ file: {e}")))?;
        let mut array = |key: &str| Array::read(&mut zip, key, name);
        let required = |array: Option<Array>, key: &str| {
            array.ok_or_else(|| Error::data(name, format!("has no array `{key}`")))
        };
        let images = required(array("images")?, "images")?;
        let poses = required(array("poses")?, "poses")?;
        let (focal, angle) = (array("focal")?, array("camera_angle_x")?);
        let times = array("times")?;

        let ([n, height, width, channels @ (3 | 4)], Items::U8(bytes)) =
            (images.sizes(), images.items)
        else {
            return fail(
                "`images` must be u8 [n, height, width, 4], or with 3 channels".to_owned(),
            );
        };
        let pixels = if channels == 4 {
            bytes
        } else {
            let opaque = |rgb: &[u8]| [rgb[0], rgb[1], rgb[2], 255];
            bytes.chunks_exact(3).flat_map(opaque).collect()
        };
        if poses.sizes() != [n, 4, 4] {
            let shape = poses.shape;
            return fail(format!("`poses` must be [{n}, 4, 4], got {shape:?}"));
        }
        let poses = poses.floats("poses", name)?;
        let number = |array: Option<Array>, key: &str| match array {
            None => Ok(None),
            Some(array) => match array.floats(key, name)?[..] {
                [value] => Ok(Some(value)),
                ref values => {
                    let reason = format!("`{key}` must be one number, got {}", values.len());
                    Err(Error::data(name, reason))
                }
            },
        };
        let optics = Optics {
            fl_x: number(focal, "focal")?,
            camera_angle_x: number(angle, "camera_angle_x")?,
            ..Optics::default()
        };
        let lens = optics.lens(height, width, name, "images")?;
        if let Some(angle) = optics.camera_angle_x {
            let by_angle = 0.5 * width as f64 / (0.5 * angle).tan();
            if (by_angle / lens.focal[0] - 1.0).abs() > 1e-3 {
                let focal = lens.focal[0];
                return fail(format!(
                    "`focal` is {focal} pixels, but `camera_angle_x` says {by_angle}"
                ));
            }
        }
        let times = times.map(|times| times.floats("times", name)).transpose()?;
        if let Some(times) = &times
            && times.len() != n
        {
            return fail(format!("`times` must be [{n}], got {}", times.len()));
        }
        let view = |i: usize| {
            let row = |row: usize| std::array::from_fn(|column| poses[16 * i + 4 * row + column]);
            let view = format!("view {i}");
            let pose = Pose::new([row(0), row(1), row(2), row(3)]);
            Ok(View {
                pose: Pose::of_frame(name, &view, pose)?,
                name: view,
                lens,
                time: times.as_ref().map(|times| times[i]),
            })
        };
        let views = (0..n).map(view).collect::<Result<_>>()?;
        Self::from_parts(name, views, [height, width], pixels)
    }
}

/// An array of an NPZ file, in the order of C.
struct Array {
    shape: Vec<usize>,
    items: Items,
}

enum Items {
    U8(Vec<u8>),
    F32(Vec<u8>),
    F64(Vec<u8>),
}

impl Array {
    /// The array `key`; none where there is none.
    fn read(
        zip: &mut ZipArchive<impl Read + Seek>,
        key: &str,
        name: &Path,
    ) -> Result<Option<Self>> {
        let corrupt = |what: &dyn std::fmt::Display| {
            Error::corrupt(name, format!("`{key}`: {what}; copy or download it again"))
        };
        let mut file = match zip.by_name(&format!("{key}.npy")) {
            Ok(file) => file,
            Err(zip::result::ZipError::FileNotFound) => return Ok(None),
            Err(error) => return Err(corrupt(&error)),
        };
        let mut start = [0; 8];
        file.read_exact(&mut start).map_err(|e| corrupt(&e))?;
        let mut length = [0; 4];
        let used = if start[6] == 1 { 2 } else { 4 };
        file.read_exact(&mut length[..used])
            .map_err(|e| corrupt(&e))?;
        let length = u32::from_le_bytes(length) as usize;
        if !start.starts_with(b"\x93NUMPY") || !(1..=3).contains(&start[6]) || length > MOST_HEADER
        {
            return Err(corrupt(&"expected an array of NumPy"));
        }
        let mut header = vec![0; length];
        file.read_exact(&mut header).map_err(|e| corrupt(&e))?;
        let header = String::from_utf8_lossy(&header);
        let Some((kind, shape)) = description(&header) else {
            let reason = format!(
                "`{key}` must be u8, f32 or f64 in the order of C and little-endian, got {}",
                header.trim()
            );
            return Err(Error::data(name, reason));
        };
        let size = match kind {
            "u1" => 1,
            "f4" => 4,
            _ => 8,
        };
        let bytes = shape
            .iter()
            .try_fold(size, |bytes: usize, n| bytes.checked_mul(*n))
            .filter(|bytes| *bytes <= MOST);
        let Some(count) = bytes else {
            let reason = format!(
                "`{key}` would have the shape {shape:?}: too much, for {} GiB are the most; reduce the pictures or take fewer",
                MOST >> 30
            );
            return Err(Error::data(name, reason));
        };
        // Memory grows with what is there, not with what the description claims.
        let mut items = Vec::new();
        let read = file.take(count as u64 + 1).read_to_end(&mut items);
        read.map_err(|e| corrupt(&e))?;
        if items.len() != count {
            let reason = format!("has not the {count} bytes of its shape {shape:?}");
            return Err(corrupt(&reason));
        }
        let items = match kind {
            "u1" => Items::U8(items),
            "f4" => Items::F32(items),
            _ => Items::F64(items),
        };
        Ok(Some(Self { shape, items }))
    }

    /// The sizes, when there are `N`; else those of nothing.
    fn sizes<const N: usize>(&self) -> [usize; N] {
        self.shape.as_slice().try_into().unwrap_or([0; N])
    }

    fn floats(&self, key: &str, name: &Path) -> Result<Vec<f64>> {
        match &self.items {
            Items::U8(_) => {
                let reason = format!("`{key}` must be f32 or f64, got u8");
                Err(Error::data(name, reason))
            }
            Items::F32(bytes) => {
                let (words, _) = bytes.as_chunks();
                Ok(words
                    .iter()
                    .map(|word| f32::from_le_bytes(*word).into())
                    .collect())
            }
            Items::F64(bytes) => {
                let (words, _) = bytes.as_chunks();
                Ok(words.iter().map(|word| f64::from_le_bytes(*word)).collect())
            }
        }
    }
}

/// Type and shape from a description like `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4, 4), }`.
fn description(header: &str) -> Option<(&'static str, Vec<usize>)> {
    let value = |key: &str| {
        let (_, rest) = header.split_once(&format!("'{key}':"))?;
        Some(rest.trim_start())
    };
    let kind = value("descr")?.strip_prefix('\'')?;
    let (kind, _) = kind.split_once('\'')?;
    let kind = match kind {
        "|u1" | "<u1" => "u1",
        "<f4" => "f4",
        "<f8" => "f8",
        _ => return None,
    };
    if !value("fortran_order")?.starts_with("False") {
        return None;
    }
    let (shape, _) = value("shape")?.strip_prefix('(')?.split_once(')')?;
    let sizes = shape
        .split(',')
        .map(str::trim)
        .filter(|size| !size.is_empty());
    let sizes: Option<Vec<usize>> = sizes.map(|size| size.parse().ok()).collect();
    Some((kind, sizes?))
}
