//! Where a camera is.

use std::path::Path;

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::mesh::vectors::{V3, cross, dot};

/// How far the axes of a pose may be from length 1 and from right angles: single precision with six digits in text, and repeated products of such.
const TOLERANCE: f64 = 1e-3;

/// A rigid motion from a camera to the world, in the axes of OpenGL: a rotation and the camera's position. Written as its [`matrix`](Self::matrix).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "[[f64; 4]; 4]", into = "[[f64; 4]; 4]")]
pub struct Pose {
    /// Rows of the rotation; the camera's x, y and z axes are its columns.
    rotation: [V3; 3],
    origin: V3,
}

impl Pose {
    /// From a matrix `[4][4]`, row by row.
    ///
    /// # Errors
    /// [`Error::Config`] when a number is not finite, the last row is not 0 0 0 1, or the rest is no rotation: it stretches, shears or mirrors.
    pub fn new(matrix: [[f64; 4]; 4]) -> Result<Self> {
        let fail = |reason: String| Err(Error::config("pose", reason));
        if let Some(value) = matrix.iter().flatten().find(|value| !value.is_finite()) {
            return fail(format!("must be finite numbers, got {value}"));
        }
        let last = matrix[3];
        if (0..4).any(|i| (last[i] - f64::from(i == 3)).abs() > TOLERANCE) {
            return fail(format!("must have the last row 0 0 0 1, got {last:?}"));
        }
        let rotation =
            [0, 1, 2].map(|row: usize| [0, 1, 2].map(|column: usize| matrix[row][column]));
        let axis = |i: usize| rotation.map(|row| row[i]);
        for i in 0..3 {
            for j in 0..=i {
                let product = dot(axis(i), axis(j));
                if (product - f64::from(i == j)).abs() > TOLERANCE {
                    let what = if i == j {
                        format!("axis {i} has length {}", product.sqrt())
                    } else {
                        format!("axes {j} and {i} have the product {product}")
                    };
                    return fail(format!("must be a rigid motion, but {what}"));
                }
            }
        }
        if dot(axis(0), cross(axis(1), axis(2))) < 0.0 {
            return fail("must be a rigid motion, but mirrors".to_owned());
        }
        Ok(Self {
            rotation,
            origin: [matrix[0][3], matrix[1][3], matrix[2][3]],
        })
    }

    /// From the rotation (a quaternion w, x, y, z) and translation from the world to a camera in the axes of COLMAP and `OpenCV`, which looks along its z with y
    /// down.
    ///
    /// # Errors
    /// [`Error::Config`] when a number is not finite or the quaternion is not of length 1.
    pub fn from_colmap(quaternion: [f64; 4], translation: V3) -> Result<Self> {
        let norm = quaternion.iter().map(|q| q * q).sum::<f64>().sqrt();
        let finite = translation.iter().all(|x| x.is_finite());
        if !finite || norm.is_nan() || (norm - 1.0).abs() > TOLERANCE {
            let reason = format!(
                "must be a quaternion of length 1 and a translation, got {quaternion:?} of length {norm} and {translation:?}"
            );
            return Err(Error::config("pose", reason));
        }
        let [w, x, y, z] = quaternion.map(|q| q / norm);
        // Rows: the camera's axes in the world.
        let to_camera = [
            [
                1.0 - 2.0 * (y * y + z * z),
                2.0 * (x * y - w * z),
                2.0 * (x * z + w * y),
            ],
            [
                2.0 * (x * y + w * z),
                1.0 - 2.0 * (x * x + z * z),
                2.0 * (y * z - w * x),
            ],
            [
                2.0 * (x * z - w * y),
                2.0 * (y * z + w * x),
                1.0 - 2.0 * (x * x + y * y),
            ],
        ];
        let column = |i: usize| to_camera.map(|row| row[i]);
        // y up and z back.
        let rotation = [0, 1, 2].map(|i| [to_camera[0][i], -to_camera[1][i], -to_camera[2][i]]);
        Ok(Self {
            rotation,
            origin: [0, 1, 2].map(|i| -dot(column(i), translation)),
        })
    }

    /// The error of one of several poses, with the file and the frame.
    pub(super) fn of_frame(path: &Path, frame: &str, pose: Result<Self>) -> Result<Self> {
        pose.map_err(|error| match error {
            Error::Config { reason, .. } => {
                Error::data(path, format!("the pose of `{frame}` {reason}"))
            }
            other => other,
        })
    }

    /// The camera's position.
    pub const fn origin(&self) -> [f64; 3] {
        self.origin
    }

    /// A direction of the camera in the world.
    pub fn turn(&self, direction: [f64; 3]) -> [f64; 3] {
        self.rotation.map(|row| dot(row, direction))
    }

    /// The matrix `[4][4]`, row by row.
    pub fn matrix(&self) -> [[f64; 4]; 4] {
        let row = |i: usize| {
            let [x, y, z] = self.rotation[i];
            [x, y, z, self.origin[i]]
        };
        [row(0), row(1), row(2), [0.0, 0.0, 0.0, 1.0]]
    }
}

impl TryFrom<[[f64; 4]; 4]> for Pose {
    type Error = Error;

    fn try_from(matrix: [[f64; 4]; 4]) -> Result<Self> {
        Self::new(matrix)
    }
}

impl From<Pose> for [[f64; 4]; 4] {
    fn from(pose: Pose) -> Self {
        pose.matrix()
    }
}
