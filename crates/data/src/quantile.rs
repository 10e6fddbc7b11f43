//! The noisy quantile transform: each number becomes the normal quantile of its rank among the training rows.
//!
//! Follows scikit-learn's `QuantileTransformer(output_distribution="normal")` on f32 columns, operation by
//! operation, and the TabM paper's recipe around it: noise is added to the training column for fitting only.

use tch::{Kind, Tensor};

/// Distance from the ends of the training range within which a value counts as beyond it.
const BOUNDS: f64 = 1e-7;

/// Number of quantiles for `rows` training rows: a thirtieth of them, between 10 and 1000, and never more.
pub fn quantile_count(rows: usize) -> usize {
    (rows / 30).clamp(10, 1000).min(rows.max(1))
}

/// `n` evenly spaced levels from 0 to 1, as `numpy.linspace` spaces them.
fn levels(n: usize) -> Vec<f64> {
    let step = 1.0 / (n.max(2) - 1) as f64;
    (0..n)
        .map(|i| if i + 1 == n { 1.0 } else { i as f64 * step })
        .collect()
}

/// The `n` quantiles of `values` (NaN left out), by linear interpolation between ranks, never decreasing.
///
/// `values` are the training column plus noise.
pub fn fit(values: &[f32], n: usize) -> Vec<f64> {
    let mut sorted: Vec<f32> = values
        .iter()
        .copied()
        .filter(|value| !value.is_nan())
        .collect();
    sorted.sort_unstable_by(f32::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return vec![0.0; n];
    };
    let mut quantiles: Vec<f64> = levels(n)
        .into_iter()
        .map(|level| {
            // numpy takes percentiles: the level goes through a factor of 100 and back.
            let place = (level * 100.0 / 100.0) * last as f64;
            let low = (place.floor() as usize).min(last);
            let (a, b) = (sorted[low], sorted[(low + 1).min(last)]);
            let (t, difference) = (place - low as f64, f64::from(b - a));
            if t >= 0.5 {
                f64::from(b) - difference * (1.0 - t)
            } else {
                f64::from(a) + difference * t
            }
        })
        .collect();
    for i in 1..quantiles.len() {
        quantiles[i] = quantiles[i].max(quantiles[i - 1]);
    }
    quantiles
}

/// Maps `values` by the `quantiles` of [`fit`]; NaN stays NaN. The result lies in ±5.1993375.
pub fn transform(values: &[f32], quantiles: &[f64]) -> Vec<f32> {
    let levels = levels(quantiles.len());
    let negated = |xs: &[f64]| xs.iter().rev().map(|x| -x).collect::<Vec<f64>>();
    let (mirrored, mirrored_levels) = (negated(quantiles), negated(&levels));
    let (low, high) = (quantiles[0], quantiles[quantiles.len() - 1]);
    let threshold = BOUNDS as f32;
    let ranks: Vec<f64> = values
        .iter()
        .map(|value| {
            let x = f64::from(*value);
            // Forward and mirrored, so that a run of equal quantiles maps to its middle.
            let rank = 0.5
                * (interpolate(x, quantiles, &levels)
                    - interpolate(-x, &mirrored, &mirrored_levels));
            let rank = if f64::from(value + threshold) > high {
                1.0
            } else {
                rank
            };
            let rank = if f64::from(value - threshold) < low {
                0.0
            } else {
                rank
            };
            f64::from(rank as f32) // the reference keeps ranks in the column's f32
        })
        .collect();
    let clip = Tensor::from_slice(&[BOUNDS - f64::EPSILON, 1.0 - (BOUNDS - f64::EPSILON)]);
    let clip: Vec<f64> = Vec::try_from(clip.special_ndtri()).unwrap_or_default();
    let normal = Tensor::from_slice(&ranks)
        .special_ndtri()
        .clamp(clip[0], clip[1]);
    Vec::try_from(normal.to_kind(Kind::Float)).unwrap_or_default()
}

/// `numpy.interp(x, xs, ys)`.
fn interpolate(x: f64, xs: &[f64], ys: &[f64]) -> f64 {
    let last = xs.len() - 1;
    if x.is_nan() {
        return x;
    }
    if x > xs[last] {
        return ys[last];
    }
    if x < xs[0] {
        return ys[0];
    }
    let at = xs.partition_point(|edge| *edge <= x) - 1;
    // At an edge the reference takes its level as it is.
    if at == last || xs[at] >= x {
        return ys[at];
    }
    (ys[at + 1] - ys[at]) / (xs[at + 1] - xs[at]) * (x - xs[at]) + ys[at]
}
