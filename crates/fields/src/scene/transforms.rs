//! Poses from Blender's `transforms*.json`, as of NeRF's synthetic scenes, D-NeRF and instant-ngp.

use std::fs;
use std::path::Path;

use densely_core::{Error, Result};
use serde::Deserialize;

use super::{Optics, Pose, Shot};

/// A `transforms*.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Transforms {
    /// The frames in the order of the file; there is at least one.
    pub shots: Vec<Shot>,
}

/// The file. Other keys, of which there are many, are left out.
#[derive(Deserialize)]
struct Contents {
    #[serde(flatten)]
    optics: Optics,
    frames: Vec<Frame>,
}

#[derive(Deserialize)]
struct Frame {
    file_path: String,
    transform_matrix: Vec<Vec<f64>>,
    time: Option<f64>,
    #[serde(flatten)]
    optics: Optics,
}

impl Transforms {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, and those of [`parse`](Self::parse).
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        Self::parse(&bytes, path)
    }

    /// Reads the text of a file; `name` stands in errors.
    ///
    /// Of each frame `file_path`, `transform_matrix` (3 × 4 or 4 × 4) and `time` are read, and of the frame or the file the fields of [`Optics`].
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is no such file; [`Error::Data`] for no frame, a matrix that is no rigid motion and a time that is not in 0..1.
    pub fn parse(text: &[u8], name: &Path) -> Result<Self> {
        let contents: Contents = serde_json::from_slice(text).map_err(|error| {
            Error::corrupt(name, format!("expected a transforms.json: {error}"))
        })?;
        if contents.frames.is_empty() {
            return Err(Error::data(name, "has no frames"));
        }
        let shot = |frame: Frame| {
            let file = frame.file_path;
            let pose = matrix(&frame.transform_matrix).and_then(Pose::new);
            let pose = Pose::of_frame(name, &file, pose)?;
            if let Some(time) = frame.time
                && !(0.0..=1.0).contains(&time)
            {
                let reason = format!("the time of `{file}` must lie in [0, 1], got {time}");
                return Err(Error::data(name, reason));
            }
            Ok(Shot {
                file,
                pose,
                time: frame.time,
                optics: frame.optics.or(&contents.optics),
            })
        };
        let shots = contents
            .frames
            .into_iter()
            .map(shot)
            .collect::<Result<_>>()?;
        Ok(Self { shots })
    }

    /// Gives frame i of n the time i / (n - 1), where no frame has one: moving scenes whose file leaves it out.
    #[must_use]
    pub fn with_times(mut self) -> Self {
        let last = self.shots.len().saturating_sub(1).max(1) as f64;
        if self.shots.iter().all(|shot| shot.time.is_none()) {
            for (i, shot) in self.shots.iter_mut().enumerate() {
                shot.time = Some(i as f64 / last);
            }
        }
        self
    }
}

fn matrix(rows: &[Vec<f64>]) -> Result<[[f64; 4]; 4]> {
    let mut matrix = [[0.0, 0.0, 0.0, 1.0]; 4];
    let fits = matches!(rows.len(), 3 | 4) && rows.iter().all(|row| row.len() == 4);
    if !fits {
        let sizes: Vec<usize> = rows.iter().map(Vec::len).collect();
        let reason = format!("must have 3 or 4 rows of 4 numbers, got rows of {sizes:?}");
        return Err(Error::config("pose", reason));
    }
    for (to, from) in matrix.iter_mut().zip(rows) {
        to.copy_from_slice(from);
    }
    Ok(matrix)
}
