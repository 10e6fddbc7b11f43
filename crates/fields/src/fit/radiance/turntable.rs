//! A camera that goes once around a scene.

use std::f64::consts::TAU;

use densely_core::{Error, Result};

use crate::mesh::vectors::{V3, add, cross, dot, length, scaled, sub, unit};
use crate::scene::{Lens, Pose, View};

/// Cosine of 20°: cameras whose mean has its up this near to an axis of the world stand upright in it.
const NEAR_AXIS: f64 = 0.94;
/// Share of its distance that the camera keeps from the axis at least, so that it knows which way is up.
const LEAST_RADIUS: f64 = 0.1;
/// Most frames of a turn.
const MOST_FRAMES: usize = 100_000;
/// Determinant, for a mean of projections, below which the cameras' axes count as parallel.
const PARALLEL: f64 = 1e-6;

/// `frames` views from a circle around what `views` show, all towards its centre.
///
/// The centre is the point nearest to the axes of all cameras, or the origin where these are parallel; up is the mean of the cameras' up, or the axis of the world
/// that is within 20° of it. Radius and height are the means of the cameras', and the first frame is in the direction of the first camera. The lens is that of the
/// first view without its distortion, [`resized`](View::resized) to `size`, rows and columns. Times, where the views have them, go from 0 to 1.
/// # Errors
/// [`Error::Config`] without a frame and for a size of 0; [`Error::Data`] without a view, and when all cameras stand in the centre.
pub fn turntable(views: &[View], frames: usize, size: Option<(usize, usize)>) -> Result<Vec<View>> {
    if !(1..=MOST_FRAMES).contains(&frames) {
        let reason = format!("must lie in 1 to {MOST_FRAMES}, got {frames}");
        return Err(Error::config("frames", reason));
    }
    let Some(view) = views.first() else {
        return Err(Error::data("", "there is no camera to go around with"));
    };
    let (height, width) = size.unwrap_or((view.lens.height, view.lens.width));
    let lens = Lens {
        radial: [0.0; 2],
        tangential: [0.0; 2],
        ..view.resized(height, width)?.lens
    };
    let up = up(views);
    let centre = centre(views);
    let mean = |of: &dyn Fn(V3) -> f64| {
        let values = views.iter().map(|view| of(sub(view.pose.origin(), centre)));
        values.sum::<f64>() / views.len() as f64
    };
    let aside = |place: V3| sub(place, scaled(up, dot(place, up)));
    let distance = mean(&length);
    if distance <= 0.0 {
        let reason = "all cameras stand in one place: there is nothing to go around";
        return Err(Error::data("", reason));
    }
    let height = mean(&|place| dot(place, up));
    let radius = mean(&|place| length(aside(place))).max(LEAST_RADIUS * distance);
    let first = aside(sub(view.pose.origin(), centre));
    let first = if length(first) > 1e-6 * distance {
        unit(first)
    } else {
        across(up)
    };
    let second = cross(up, first);
    let frame = |i: usize| {
        let (sin, cos) = (TAU * i as f64 / frames as f64).sin_cos();
        let around = add(scaled(first, radius * cos), scaled(second, radius * sin));
        let place = add(around, scaled(up, height));
        let last = frames.saturating_sub(1).max(1) as f64;
        Ok(View {
            name: format!("turntable {i}"),
            lens,
            pose: towards(add(centre, place), scaled(place, -1.0), up)?,
            time: view.time.map(|_| i as f64 / last),
        })
    };
    (0..frames).map(frame).collect()
}

/// The pose at `origin` that looks in `direction`, which is not along `up`.
fn towards(origin: V3, direction: V3, up: V3) -> Result<Pose> {
    let z = unit(scaled(direction, -1.0));
    let x = unit(cross(up, z));
    let y = cross(z, x);
    let row = |i: usize| [x[i], y[i], z[i], origin[i]];
    Pose::new([row(0), row(1), row(2), [0.0, 0.0, 0.0, 1.0]])
}

/// Which way is up, of length 1.
fn up(views: &[View]) -> V3 {
    let sum = views.iter().fold([0.0; 3], |sum, view| {
        add(sum, view.pose.turn([0.0, 1.0, 0.0]))
    });
    if length(sum) < 1e-6 {
        return [0.0, 0.0, 1.0];
    }
    let mean = unit(sum);
    let mut axes = (0..3).map(|axis| {
        let mut upright = [0.0; 3];
        upright[axis] = mean[axis].signum();
        upright
    });
    let near = |upright: &V3| dot(*upright, mean) >= NEAR_AXIS;
    axes.find(near).unwrap_or(mean)
}

/// A direction at a right angle to `up`.
fn across(up: V3) -> V3 {
    let other = if up[0].abs() < 0.5 {
        [1.0, 0.0, 0.0]
    } else {
        [0.0, 1.0, 0.0]
    };
    unit(cross(up, other))
}

/// The point c nearest to the axes of all cameras: Σ (1 - d dᵀ) c = Σ (1 - d dᵀ) o.
fn centre(views: &[View]) -> V3 {
    let count = views.len() as f64;
    // The matrix is symmetric: columns are rows.
    let (mut matrix, mut right) = ([[0.0; 3]; 3], [0.0; 3]);
    for view in views {
        let d = view.pose.turn([0.0, 0.0, -1.0]);
        let o = view.pose.origin();
        right = add(right, sub(o, scaled(d, dot(o, d))));
        for (i, row) in matrix.iter_mut().enumerate() {
            let mut axis = [0.0; 3];
            axis[i] = 1.0;
            *row = add(*row, sub(axis, scaled(d, d[i])));
        }
    }
    let [a, b, c] = matrix.map(|row| scaled(row, 1.0 / count));
    let right = scaled(right, 1.0 / count);
    let determinant = dot(a, cross(b, c));
    if determinant < PARALLEL {
        return [0.0; 3];
    }
    // Cramer's rule.
    let solved = [
        dot(right, cross(b, c)),
        dot(a, cross(right, c)),
        dot(a, cross(b, right)),
    ];
    scaled(solved, 1.0 / determinant)
}
