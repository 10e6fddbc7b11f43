//! How much of each frequency a signal holds, and how far two such spectra lie apart.
//!
//! With `A(u, v) = Σ_channels |DFT(y)(u, v)|`, not normalised, u and v from 0 to n - 1, the spectrum is the sum of A over the
//! anti-diagonals u + v = k, taken over one of each pair of coefficients that are equal because y is real, without k = 0. Of volumes
//! the diagonals are u + v + w = k.
//!
//! Since y is real, the transform is computed for half of the last axis only, and a coefficient of the other half is read from its
//! conjugate at (-u, -v) mod n. With S sums wanted, only the coefficients with k ≤ S are read.

use densely_core::{Error, Result, check};
use tch::{Device, Kind, Tensor};

use crate::encodings::at_least_single;

/// Larger signals are made smaller before their spectrum is taken.
const LARGEST_SIDE: i64 = 1024;

/// Places of all pixels or voxels of a grid with these `sides`, in the order of memory: evenly from -1 to 1 along each axis, rows first.
///
/// # Shapes
/// `[Π sides, axes]`, f32 on the CPU.
/// # Errors
/// [`Error::Shape`] when there are no sides or one is below 1.
pub fn coordinates(sides: &[i64]) -> Result<Tensor> {
    if sides.is_empty() || sides.iter().any(|side| *side < 1) {
        return Err(Error::Shape {
            what: "sides".to_owned(),
            expected: "at least one axis, each with at least 1 place".to_owned(),
            got: format!("{sides:?}"),
        });
    }
    let axis = |side: &i64| Tensor::linspace(-1.0, 1.0, *side, (Kind::Float, Device::Cpu));
    let axes: Vec<Tensor> = sides.iter().map(axis).collect();
    let places = Tensor::stack(&Tensor::meshgrid_indexing(&axes, "ij"), -1);
    Ok(places.view([-1, sides.len() as i64]))
}

/// The default number of sums for a signal whose smallest side is `side`: 64, but no more than a third of the side. The largest
/// frequencies of a small picture would decide otherwise, and they are those that a network cannot learn from it.
pub fn spectrum_size(side: i64) -> i64 {
    (side / 3).clamp(1, 64)
}

/// Brings a picture `[channels, height, width]` or a volume `[channels, depth, height, width]` to equal sides: the smallest, and no
/// more than 1024. Pictures by bilinear interpolation with antialiasing, volumes by trilinear interpolation, as PyTorch does both;
/// what has equal sides up to 1024 stays as it is.
///
/// # Errors
/// [`Error::Shape`] when the signal has another rank, an empty axis or is not of a floating-point kind.
pub fn square(signal: &Tensor) -> Result<Tensor> {
    let sides = sides(signal)?;
    let smallest = sides.iter().copied().min().unwrap_or(LARGEST_SIDE);
    let side = smallest.min(LARGEST_SIDE);
    if sides.iter().all(|other| *other == side) {
        return Ok(signal.shallow_clone());
    }
    let batch = at_least_single(signal).unsqueeze(0);
    let resized = if sides.len() == 2 {
        batch.f_internal_upsample_bilinear2d_aa([side, side], false, None, None)?
    } else {
        batch.f_upsample_trilinear3d([side, side, side], false, None, None, None)?
    };
    Ok(resized.squeeze_dim(0))
}

/// The first `size` sums of the spectrum, k = 1 to `size`, of a picture `[channels, height, width]` or a volume
/// `[channels, depth, height, width]`, which is brought to equal sides by [`square`] first.
///
/// # Errors
/// [`Error::Shape`] as of [`square`]; [`Error::Config`] when `size` is below 1 or above the number of diagonals.
pub fn spectrum(signal: &Tensor, size: i64) -> Result<Vec<f64>> {
    let signal = square(signal)?;
    let axes = signal.dim() - 1;
    let diagonals = Diagonals::new(signal.size()[1], axes, size)?;
    Ok(diagonals.spectra(&signal.unsqueeze(0))?.remove(0))
}

/// Whether the spectrum of a signal with `side` places along each axis counts the coefficient at `frequency`, each entry from 0 to
/// `side` - 1: of two that are conjugate, and so of equal size, the one with the smaller k; of equal k the first in memory.
///
/// The mean, k = 0, is among them, although spectra leave it out.
pub fn is_counted(side: i64, frequency: &[i64]) -> bool {
    if side < 1 {
        return false;
    }
    let conjugate: Vec<i64> = frequency.iter().map(|u| (side - u) % side).collect();
    let k = |frequency: &[i64]| frequency.iter().sum::<i64>();
    (k(frequency), frequency) <= (k(&conjugate), &conjugate)
}

/// Wasserstein distance of order 1 between two spectra, each divided by its sum: `Σ_k |difference of the cumulative sums|`, in steps of k.
///
/// # Errors
/// [`Error::Shape`] when they differ in length; [`Error::Data`] when one is empty, has no sum above 0 or a value that is not finite.
pub fn distance(a: &[f64], b: &[f64]) -> Result<f64> {
    if a.len() != b.len() {
        return Err(Error::Shape {
            what: "spectrum".to_owned(),
            expected: format!("{} sums", a.len()),
            got: b.len().to_string(),
        });
    }
    let totals = [total(a)?, total(b)?];
    let mut cumulative = [0.0; 2];
    let mut distance = 0.0;
    for (x, y) in a.iter().zip(b) {
        cumulative[0] += x;
        cumulative[1] += y;
        distance += (cumulative[0] / totals[0] - cumulative[1] / totals[1]).abs();
    }
    Ok(distance)
}

fn total(spectrum: &[f64]) -> Result<f64> {
    let total: f64 = spectrum.iter().sum();
    if total.is_finite() && total > 0.0 {
        return Ok(total);
    }
    let reason = format!("the signal is constant or not finite: its spectrum has the sum {total}");
    Err(Error::data("", reason))
}

/// Which coefficients of a real transform are read for the first sums of a spectrum, and to which sum each goes.
#[derive(Debug)]
pub(super) struct Diagonals {
    /// Places in the flattened transform `[n, …, n / 2 + 1]`.
    places: Tensor,
    /// k - 1 of each.
    sums: Vec<usize>,
    side: i64,
    axes: usize,
    size: usize,
}

impl Diagonals {
    /// For signals with `side` places along each of `axes` axes, 2 or 3.
    pub(super) fn new(side: i64, axes: usize, size: i64) -> Result<Self> {
        let most = axes as i64 * (side - 1);
        if !(1..=most).contains(&size) {
            let reason = format!("must lie in 1 to {most} for sides of {side}, got {size}");
            return Err(Error::config("spectrum_size", reason));
        }
        let (mut places, mut sums) = (Vec::new(), Vec::new());
        let stored = side / 2 + 1;
        // A picture is the first plane of a volume.
        let planes = if axes == 3 { side.min(size + 1) } else { 1 };
        for u in 0..planes {
            for v in 0..side.min(size - u + 1) {
                for w in 0..side.min(size - u - v + 1) {
                    let k = u + v + w;
                    if k == 0 || !is_counted(side, &[u, v, w]) {
                        continue;
                    }
                    let [u, v, w] = if w < stored {
                        [u, v, w]
                    } else {
                        [(side - u) % side, (side - v) % side, side - w]
                    };
                    places.push((u * side + v) * stored + w);
                    sums.push(k as usize - 1);
                }
            }
        }
        Ok(Self {
            places: Tensor::from_slice(&places),
            sums,
            side,
            axes,
            size: size as usize,
        })
    }

    /// The spectra of signals `[signals, channels, side, …, side]`; all are transformed at once.
    pub(super) fn spectra(&self, signals: &Tensor) -> Result<Vec<Vec<f64>>> {
        let _no_grad = tch::no_grad_guard();
        let mut expected = vec![None; 2];
        expected.extend(vec![Some(self.side); self.axes]);
        check::shape("signals", signals, &expected)?;
        let axes: Vec<i64> = (2..2 + self.axes as i64).collect();
        let transform = at_least_single(signals).f_fft_rfftn(None::<&[i64]>, &axes, "backward")?;
        let places = self.places.to_device(signals.device());
        let read = transform.flatten(2, -1).f_index_select(2, &places)?; // [signals, channels, places]
        let amplitudes = read.abs().sum_dim_intlist(1i64, false, Kind::Double);
        let amplitudes: Vec<f64> = Vec::try_from(amplitudes.flatten(0, -1))?;
        let varies = varies(signals)?;
        let of_one = |(amplitudes, varies): (&[f64], bool)| {
            let mut spectrum = vec![0.0; self.size];
            if !varies {
                return spectrum;
            }
            for (sum, amplitude) in self.sums.iter().zip(amplitudes) {
                spectrum[*sum] += amplitude;
            }
            spectrum
        };
        let each = amplitudes.chunks(self.sums.len()).zip(varies);
        Ok(each.map(of_one).collect())
    }
}

/// Whether each of `signals` `[signals, channels, …]` is more than a constant and rounding: of a constant, a transform leaves the rounding of its mean in all
/// frequencies, which would be taken for a spectrum.
fn varies(signals: &Tensor) -> Result<Vec<bool>> {
    let values = signals.flatten(2, -1); // [signals, channels, places]
    let eps = match signals.kind() {
        Kind::Double => f64::EPSILON,
        _ => f64::from(f32::EPSILON),
    };
    let (least, most) = values.aminmax(-1, false); // [signals, channels]
    let largest = least.abs().maximum(&most.abs());
    let constant = (most - least).le_tensor(&(largest * (8.0 * eps)));
    Ok(Vec::try_from(constant.all_dim(1, false).logical_not())?)
}

/// The sides of a signal `[channels, …]` of two or three axes.
pub(super) fn sides(signal: &Tensor) -> Result<Vec<i64>> {
    let size = signal.size();
    let fits = matches!(size.len(), 3 | 4) && size.iter().all(|n| *n > 0);
    if fits && signal.is_floating_point() {
        return Ok(size[1..].to_vec());
    }
    Err(Error::Shape {
        what: "signal".to_owned(),
        expected:
            "[channels, height, width] or [channels, depth, height, width] of a floating-point kind"
                .to_owned(),
        got: format!("{size:?} of {:?}", signal.kind()),
    })
}
