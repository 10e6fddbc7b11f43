//! What fields are judged by: PSNR of pictures, sounds and views, overlap of occupancies, distances between surfaces.
//!
//! Sums are kept over batches, so that nothing has to be held for a whole picture or grid, and are in double precision.

use densely_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use crate::mesh::{Tree, points_of};
use crate::parallel;

fn same_size(outputs: &Tensor, targets: &Tensor) -> Result<()> {
    let (got, expected) = (outputs.size(), targets.size());
    if got == expected && targets.numel() > 0 {
        return Ok(());
    }
    Err(Error::Shape {
        what: "outputs".to_owned(),
        expected: format!("{expected:?}, with at least one value"),
        got: format!("{got:?}"),
    })
}

/// The squared error of outputs clamped to 0..1, summed over batches.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SquaredError {
    sum: f64,
    count: u64,
}

impl SquaredError {
    /// Adds a batch of `outputs`, which are clamped to 0..1, and `targets` of the same shape, which lie there.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes differ, and for outputs that are no numbers and targets outside 0..1.
    pub fn add(&mut self, outputs: &Tensor, targets: &Tensor) -> Result<()> {
        same_size(outputs, targets)?;
        let [outputs, targets] = [outputs, targets].map(|xs| xs.detach().to_kind(Kind::Double));
        let (low, high) = (targets.min(), targets.max());
        let (low, high) = (low.double_value(&[]), high.double_value(&[]));
        if !(low >= 0.0 && high <= 1.0) {
            return Err(Error::Shape {
                what: "targets".to_owned(),
                expected: "values from 0 to 1".to_owned(),
                got: format!("values from {low} to {high}"),
            });
        }
        // Clamping hides infinities, not NaN.
        let error = (outputs.clamp(0.0, 1.0) - targets).square();
        let sum = error.sum(Kind::Double).double_value(&[]);
        if sum.is_nan() {
            return Err(Error::Shape {
                what: "outputs".to_owned(),
                expected: "numbers".to_owned(),
                got: "NaN".to_owned(),
            });
        }
        self.sum += sum;
        self.count += error.numel() as u64;
        Ok(())
    }

    /// Mean squared error; NaN before the first batch.
    pub fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// Peak signal-to-noise ratio, -10 log₁₀(mean squared error), dB; infinite without error.
    pub fn psnr(&self) -> f64 {
        -10.0 * self.mean().log10()
    }
}

/// Peak signal-to-noise ratio, dB, of `outputs` clamped to 0..1 against `targets`; infinite without error.
///
/// # Errors
/// Those of [`SquaredError::add`].
/// # Examples
/// ```
/// # use tch::Tensor;
/// let (outputs, targets) = (Tensor::from_slice(&[0.1f32, 1.5]), Tensor::from_slice(&[0.0f32, 1.0]));
/// let psnr = densely_fields::metrics::psnr(&outputs, &targets)?;
/// assert!((psnr - 23.0103).abs() < 1e-4);
/// # Ok::<(), densely_core::Error>(())
/// ```
pub fn psnr(outputs: &Tensor, targets: &Tensor) -> Result<f64> {
    let mut error = SquaredError::default();
    error.add(outputs, targets)?;
    Ok(error.psnr())
}

/// Points that two solids share, counted over batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overlap {
    both: u64,
    either: u64,
}

impl Overlap {
    /// Adds a batch: whether each point lies in one and in the other, Bool tensors of the same shape. For signed distances that is `xs.le(0.0)`.
    ///
    /// # Errors
    /// [`Error::Shape`] for other kinds and different shapes.
    pub fn add(&mut self, one: &Tensor, other: &Tensor) -> Result<()> {
        densely_core::check::kind("occupancy", one, Kind::Bool)?;
        densely_core::check::kind("occupancy", other, Kind::Bool)?;
        same_size(one, other)?;
        let count = |xs: Tensor| xs.sum(Kind::Int64).int64_value(&[]) as u64;
        self.both += count(one.logical_and(other));
        self.either += count(one.logical_or(other));
        Ok(())
    }

    /// Intersection over union, from 0 to 1; 1 when both are empty.
    pub fn iou(&self) -> f64 {
        if self.either == 0 {
            return 1.0;
        }
        self.both as f64 / self.either as f64
    }
}

/// Distances between two sets of points, from each point to the nearest one of the other set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chamfer {
    /// Mean distance from the first set to the second.
    pub forward: f64,
    /// Mean distance from the second set to the first.
    pub backward: f64,
    /// Mean squared distance from the first set to the second.
    pub forward_squared: f64,
    /// Mean squared distance from the second set to the first.
    pub backward_squared: f64,
}

impl Chamfer {
    /// Chamfer-L1: the mean of both mean distances (Mescheder et al. 2019).
    pub fn l1(&self) -> f64 {
        f64::midpoint(self.forward, self.backward)
    }

    /// Chamfer-L2: the sum of both mean squared distances (Fan, Su, Guibas 2017).
    pub fn l2(&self) -> f64 {
        self.forward_squared + self.backward_squared
    }
}

/// Distances between the points `one` `[n, 3]` and `other` `[m, 3]`. To compare surfaces, draw 100,000 points of each or more with
/// [`SurfaceSampler`](crate::mesh::SurfaceSampler).
///
/// # Errors
/// [`Error::Shape`] for other shapes, no points, and values that are not finite.
pub fn chamfer(one: &Tensor, other: &Tensor) -> Result<Chamfer> {
    let [one, other] = [("one", one), ("other", other)].map(|(name, points)| {
        let points = points_of(name, &points.to_device(Device::Cpu))?;
        if points.is_empty() {
            return Err(Error::Shape {
                what: name.to_owned(),
                expected: "at least one point".to_owned(),
                got: "[0, 3]".to_owned(),
            });
        }
        Ok(points)
    });
    let (one, other) = (one?, other?);
    let means = |from: &[[f64; 3]], to: &[[f64; 3]]| {
        let tree = Tree::new(to.to_vec());
        let nearest = |p: &[f64; 3]| tree.nearest(*p).map_or(f64::NAN, |(_, distance)| distance);
        let distances = parallel::map(from, parallel::POINTS, nearest);
        let n = distances.len() as f64;
        let squared: f64 = distances.iter().map(|d| d * d).sum();
        (distances.iter().sum::<f64>() / n, squared / n)
    };
    let (forward, forward_squared) = means(&one, &other);
    let (backward, backward_squared) = means(&other, &one);
    Ok(Chamfer {
        forward,
        backward,
        forward_squared,
        backward_squared,
    })
}
