//! Where rays are sampled: evenly, at random within even pieces, and where earlier samples saw something (NeRF §5.2).
//!
//! What is random is given as uniform numbers in [0, 1), so that results are a function of them; [`even`] gives those of evaluation.

use densely_core::{Result, check};
use tch::{Device, Kind, Tensor};

/// `count` even numbers from 0 to `last` for each of `rays` rays: `[rays, count]`.
pub fn even(rays: i64, count: i64, last: f64, kind: Kind) -> Tensor {
    Tensor::linspace(0.0, last, count, (kind, Device::Cpu)).expand([rays, count], false)
}

/// `count` distances of equal spacing from `near` to `far`, `[rays]` each: `[rays, count]`.
///
/// # Errors
/// [`densely_core::Error`] for other sizes, or less than one distance.
pub fn steps(near: &Tensor, far: &Tensor, count: i64) -> Result<Tensor> {
    check::positive("count", count)?;
    check::shape("near", near, &[None])?;
    check::same_shape("far", far, near)?;
    let share = Tensor::linspace(0.0, 1.0, count, (near.kind(), near.device()));
    let (near, far) = (near.unsqueeze(1), far.unsqueeze(1));
    Ok(near * (-&share + 1.0) + far * share)
}

/// Each distance at random between the middles to its neighbours; the first and the last only inwards.
///
/// # Shapes
/// `t` and `uniforms`: `[rays, count]` → `[rays, count]`, ascending as `t` is.
/// # Errors
/// [`densely_core::Error`] for other sizes or kinds, or less than one distance.
pub fn stratified(t: &Tensor, uniforms: &Tensor) -> Result<Tensor> {
    check::shape("t", t, &[None, None])?;
    check::floating("t", t)?;
    let count = t.size()[1];
    check::positive("count", count)?;
    check::same_shape("uniforms", uniforms, t)?;
    check::kind("uniforms", uniforms, t.kind())?;
    let middles = middles(t);
    let upper = Tensor::cat(&[&middles, &t.narrow(1, count - 1, 1)], 1);
    let lower = Tensor::cat(&[&t.narrow(1, 0, 1), &middles], 1);
    Ok(&lower + (upper - &lower) * uniforms)
}

fn middles(t: &Tensor) -> Tensor {
    let count = t.size()[1];
    (t.narrow(1, 1, count - 1) + t.narrow(1, 0, count - 1)) / 2.0
}

/// NeRF's second round: the distances of the first and those drawn by its weights, sorted, without gradient.
///
/// The density of the new ones is constant between the middles of the first ones, as the weights of all but the first and the last say.
/// # Shapes
/// `t`, `weights`: `[rays, samples]`, at least 3 samples; `uniforms`: `[rays, more]` → `[rays, samples + more]`.
/// # Errors
/// [`densely_core::Error`] for other sizes or kinds.
pub fn hierarchical(t: &Tensor, weights: &Tensor, uniforms: &Tensor) -> Result<Tensor> {
    check::shape("t", t, &[None, None])?;
    check::floating("t", t)?;
    let (rays, samples) = (t.size()[0], t.size()[1]);
    check::positive("samples - 2", samples - 2)?;
    check::same_shape("weights", weights, t)?;
    check::kind("weights", weights, t.kind())?;
    check::shape("uniforms", uniforms, &[Some(rays), None])?;
    check::kind("uniforms", uniforms, t.kind())?;
    let _no_grad = tch::no_grad_guard();
    let more = drawn(&middles(t), &weights.narrow(1, 1, samples - 2), uniforms);
    Ok(Tensor::cat(&[t, &more], 1).sort(1, false).0)
}

/// Draws from a density that is constant in each bin, as NeRF's code: 1e-5 is added to every weight, and in bins of less than 1e-5 of
/// the whole all is at the lower end.
///
/// `bins`: `[rays, n + 1]`; `weights`: `[rays, n]`; `uniforms`: `[rays, more]` → `[rays, more]`.
fn drawn(bins: &Tensor, weights: &Tensor, uniforms: &Tensor) -> Tensor {
    let weights = weights + 1e-5;
    let shares = &weights / weights.sum_dim_intlist(1, true, None);
    let cdf = shares.cumsum(1, None).constant_pad_nd([1, 0]);
    inverse(&cdf, bins, uniforms, 1e-5)
}

/// Where the distribution function, linear between its values `cdf` at `bins`, reaches `uniforms`. A rise of less than `least` counts as 1.
pub(crate) fn inverse(cdf: &Tensor, bins: &Tensor, uniforms: &Tensor, least: f64) -> Tensor {
    let last = bins.size()[1] - 1;
    let cdf = cdf.contiguous();
    let above = uniforms
        .contiguous()
        .searchsorted(&cdf, false, true, "right", None::<&Tensor>);
    let (below, above) = ((&above - 1).clamp(0, last), above.clamp(0, last));
    let at = |xs: &Tensor, place: &Tensor| xs.gather(1, place, false);
    let (low, high) = (at(&cdf, &below), at(&cdf, &above));
    let rise = &high - &low;
    let rise = rise.ones_like().where_self(&rise.lt(least), &rise);
    let share = (uniforms - low) / rise;
    let (start, end) = (at(bins, &below), at(bins, &above));
    &start + share * (end - &start)
}
