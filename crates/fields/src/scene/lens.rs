//! From pixels to directions.

use std::path::Path;

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// Steps of Newton's method that a pixel gets. Real lenses take three or four.
const STEPS: usize = 20;

/// Most pixels of a picture, whose rays are made all at once.
const MOST_PIXELS: usize = 1 << 26;

/// Names of the models of lenses that [`Lens`] can be, as COLMAP and instant-ngp's and Nerfstudio's files have them.
const MODELS: [&str; 6] = [
    "SIMPLE_PINHOLE",
    "PINHOLE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "OPENCV",
    "PERSPECTIVE",
];

/// A pinhole camera with the distortion of a real lens, as `OpenCV` and COLMAP have it.
///
/// With (x, y) = (X/Z, Y/Z), y down and r² = x² + y²:
///
/// ```text
/// x' = x (1 + k₁ r² + k₂ r⁴) + 2 p₁ x y + p₂ (r² + 2 x²)
/// y' = y (1 + k₁ r² + k₂ r⁴) + p₁ (r² + 2 y²) + 2 p₂ x y
/// column = fₓ x' + cₓ - ½,  row = f_y y' + c_y - ½
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lens {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Focal lengths, pixels: of columns and of rows.
    pub focal: [f64; 2],
    /// Where the axis meets the picture, pixels from the left and upper rim.
    pub centre: [f64; 2],
    /// k₁, k₂.
    pub radial: [f64; 2],
    /// p₁, p₂.
    pub tangential: [f64; 2],
}

impl Lens {
    /// A lens without distortion, with the focal length `focal`, pixels, and its axis in the middle.
    pub const fn pinhole(width: usize, height: usize, focal: f64) -> Self {
        Self {
            width,
            height,
            focal: [focal; 2],
            centre: [width as f64 / 2.0, height as f64 / 2.0],
            radial: [0.0; 2],
            tangential: [0.0; 2],
        }
    }

    /// # Errors
    /// [`Error::Config`] naming the first field that is out of its range.
    pub fn validate(&self) -> Result<()> {
        let pixels = self.width.checked_mul(self.height);
        if !pixels.is_some_and(|pixels| (1..=MOST_PIXELS).contains(&pixels)) {
            let reason = format!(
                "must be 1 to {MOST_PIXELS} pixels, got {} × {}",
                self.height, self.width
            );
            return Err(Error::config("size", reason));
        }
        if !self.focal.iter().all(|f| *f > 0.0 && f.is_finite()) {
            let reason = format!("must be positive, got {:?}", self.focal);
            return Err(Error::config("focal", reason));
        }
        for (field, values) in [
            ("centre", self.centre),
            ("radial", self.radial),
            ("tangential", self.tangential),
        ] {
            if !values.iter().all(|value| value.is_finite()) {
                let reason = format!("must be finite, got {values:?}");
                return Err(Error::config(field, reason));
            }
        }
        Ok(())
    }

    /// The direction through the middle of a pixel, in the camera's axes of OpenGL, with z = -1; none where the distortion has no inverse.
    pub fn direction(&self, row: usize, column: usize) -> Option<[f64; 3]> {
        let [x, y] = self.undistorted([
            (column as f64 + 0.5 - self.centre[0]) / self.focal[0],
            (row as f64 + 0.5 - self.centre[1]) / self.focal[1],
        ])?;
        Some([x, -y, -1.0])
    }

    /// (x, y) of (x', y') by Newton's method.
    fn undistorted(&self, seen: [f64; 2]) -> Option<[f64; 2]> {
        let ([k1, k2], [p1, p2]) = (self.radial, self.tangential);
        if [k1, k2, p1, p2].iter().all(|k| k.abs() == 0.0) {
            return Some(seen);
        }
        let [mut x, mut y] = seen;
        for _ in 0..STEPS {
            let r2 = x * x + y * y;
            let (stretch, slope) = (1.0 + r2 * (k1 + r2 * k2), 2.0 * (k1 + 2.0 * r2 * k2));
            let error_x = x * stretch + 2.0 * p1 * x * y + p2 * (r2 + 2.0 * x * x) - seen[0];
            let error_y = y * stretch + p1 * (r2 + 2.0 * y * y) + 2.0 * p2 * x * y - seen[1];
            let dx_dx = stretch + slope * x * x + 2.0 * p1 * y + 6.0 * p2 * x;
            let dy_dy = stretch + slope * y * y + 6.0 * p1 * y + 2.0 * p2 * x;
            let cross = slope * x * y + 2.0 * p1 * x + 2.0 * p2 * y;
            let determinant = dx_dx * dy_dy - cross * cross;
            // Beyond the place where the picture folds back, nothing is seen.
            if !(determinant > 0.0 && dx_dx > 0.0) {
                return None;
            }
            if error_x.abs().max(error_y.abs()) < 1e-13 {
                return Some([x, y]);
            }
            x -= (dy_dy * error_x - cross * error_y) / determinant;
            y -= (dx_dx * error_y - cross * error_x) / determinant;
        }
        None
    }
}

/// What a file says of a lens; the names are those of Blender's and instant-ngp's files.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Optics {
    /// Angle of view from left to right, radians.
    pub camera_angle_x: Option<f64>,
    /// Angle of view from top to bottom, radians.
    pub camera_angle_y: Option<f64>,
    /// Focal length along rows, pixels; before the angle where both are given.
    pub fl_x: Option<f64>,
    /// Focal length along columns, pixels; that of rows where it is absent.
    pub fl_y: Option<f64>,
    /// Where the axis meets the picture, pixels from the left; the middle where it is absent.
    pub cx: Option<f64>,
    /// Where the axis meets the picture, pixels from the top; the middle where it is absent.
    pub cy: Option<f64>,
    /// Pixels in a row.
    pub w: Option<f64>,
    /// Rows.
    pub h: Option<f64>,
    /// Radial distortion.
    pub k1: Option<f64>,
    /// Radial distortion.
    pub k2: Option<f64>,
    /// Radial distortion of sixth order, which is not read.
    pub k3: Option<f64>,
    /// Radial distortion of eighth order, which is not read.
    pub k4: Option<f64>,
    /// Tangential distortion.
    pub p1: Option<f64>,
    /// Tangential distortion.
    pub p2: Option<f64>,
    /// COLMAP's name of the model.
    pub camera_model: Option<String>,
    /// Whether it is a fisheye, which is not read.
    pub is_fisheye: Option<bool>,
}

impl Optics {
    /// What `self` does not say, as `other` says it.
    #[must_use]
    pub(super) fn or(self, other: &Self) -> Self {
        Self {
            camera_angle_x: self.camera_angle_x.or(other.camera_angle_x),
            camera_angle_y: self.camera_angle_y.or(other.camera_angle_y),
            fl_x: self.fl_x.or(other.fl_x),
            fl_y: self.fl_y.or(other.fl_y),
            cx: self.cx.or(other.cx),
            cy: self.cy.or(other.cy),
            w: self.w.or(other.w),
            h: self.h.or(other.h),
            k1: self.k1.or(other.k1),
            k2: self.k2.or(other.k2),
            k3: self.k3.or(other.k3),
            k4: self.k4.or(other.k4),
            p1: self.p1.or(other.p1),
            p2: self.p2.or(other.p2),
            camera_model: self.camera_model.or_else(|| other.camera_model.clone()),
            is_fisheye: self.is_fisheye.or(other.is_fisheye),
        }
    }

    /// What no [`Lens`] can be.
    fn unread(&self) -> Option<String> {
        let higher = |k: Option<f64>| k.is_some_and(|k| k != 0.0);
        if let Some(model) = &self.camera_model
            && !MODELS.contains(&model.as_str())
        {
            return Some(format!("a lens of the model {model}"));
        }
        if self.is_fisheye == Some(true) {
            return Some("a fisheye, as `is_fisheye` says,".to_owned());
        }
        let high = higher(self.k3) || higher(self.k4);
        high.then(|| "a lens with distortion by k3 and k4".to_owned())
    }

    /// The lens of a picture of `height` × `width` pixels; `path` and `frame` stand in errors.
    ///
    /// # Errors
    /// [`Error::Data`] when the picture has another size than is said here, nothing says the focal length, or a value is out of its range;
    /// [`Error::Unsupported`] for models of lenses that are not read.
    pub fn lens(&self, height: usize, width: usize, path: &Path, frame: &str) -> Result<Lens> {
        let fail = |reason: String| Err(Error::data(path, reason));
        if let Some(what) = self.unread() {
            return Err(Error::Unsupported {
                what: format!("{}: `{frame}`: {what}", path.display()),
                hint: format!(
                    "undistort the pictures first, as `colmap image_undistorter` does; lenses that are read: {}",
                    MODELS.join(", ")
                ),
            });
        }
        for (said, is, what) in [(self.w, width, "columns"), (self.h, height, "rows")] {
            if let Some(said) = said
                && (said - is as f64).abs() > 0.0
            {
                return fail(format!("`{frame}` has {is} {what}, but should have {said}"));
            }
        }
        let by_angle = |angle: Option<f64>, pixels: usize, name: &str| match angle {
            None => Ok(None),
            Some(angle) if angle > 0.0 && angle < std::f64::consts::PI => {
                Ok(Some(0.5 * pixels as f64 / (0.5 * angle).tan()))
            }
            Some(angle) => {
                let reason = format!("`{name}` must lie between 0 and π radians, got {angle}");
                Err(Error::data(path, reason))
            }
        };
        let angle_x = by_angle(self.camera_angle_x, width, "camera_angle_x")?;
        let angle_y = by_angle(self.camera_angle_y, height, "camera_angle_y")?;
        let Some(focal_x) = self.fl_x.or(angle_x).or(self.fl_y).or(angle_y) else {
            return fail(format!(
                "nothing says the focal length of `{frame}`: expected `fl_x` in pixels or `camera_angle_x` in radians"
            ));
        };
        let middle = Lens::pinhole(width, height, focal_x);
        let lens = Lens {
            focal: [focal_x, self.fl_y.or(angle_y).unwrap_or(focal_x)],
            centre: [
                self.cx.unwrap_or(middle.centre[0]),
                self.cy.unwrap_or(middle.centre[1]),
            ],
            radial: [self.k1.unwrap_or(0.0), self.k2.unwrap_or(0.0)],
            tangential: [self.p1.unwrap_or(0.0), self.p2.unwrap_or(0.0)],
            ..middle
        };
        lens.validate().map(|()| lens).map_err(|error| match error {
            Error::Config { field, reason } => {
                Error::data(path, format!("the lens of `{frame}`: `{field}` {reason}"))
            }
            other => other,
        })
    }
}
