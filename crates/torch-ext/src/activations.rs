//! Activations that take the statistics of their columns: Dice, and ReLU behind a batch norm. And dropout. For f32 on the CPU.

use tch::Tensor;

use crate::bridge::ffi;
use crate::{address, owned};

/// Statistics of columns that move while a model trains, `[channels]` each, and how they are used.
#[derive(Debug, Clone, Copy)]
pub struct Running<'a> {
    /// Mean.
    pub mean: &'a Tensor,
    /// Unbiased variance.
    pub variance: &'a Tensor,
    /// Added to the variance.
    pub eps: f64,
    /// Weight of the new batch.
    pub momentum: f64,
}

/// p x + α (1 - p) x with p = σ((x - mean) / √(variance + eps)), differentiable once.
///
/// In training mean and variance are those of the rows, of which there are two at least, and the running ones move towards them
/// (the variance unbiased).
/// # Shapes
/// `xs`: `[rows, channels]`; `alpha`: `[channels]`.
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn dice(xs: &Tensor, alpha: &Tensor, running: Running, train: bool) -> Result<Tensor, String> {
    // SAFETY: the addresses are those of tensors borrowed for the call.
    unsafe {
        owned(ffi::dice(
            address(xs),
            address(alpha),
            address(running.mean),
            address(running.variance),
            running.eps,
            running.momentum,
            train,
        ))
    }
}

/// In place, [`dice`] in evaluation of `xs + by_step + by_row`, without gradients.
///
/// # Shapes
/// `xs`: `[rows · steps, channels]`; `by_step`: `[steps, channels]`, the same for all rows; `by_row`: `[rows, channels]`, the same for all
/// steps of a row.
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn dice_onto(
    xs: &mut Tensor,
    by_step: &Tensor,
    by_row: Option<&Tensor>,
    alpha: &Tensor,
    running: Running,
) -> Result<(), String> {
    // SAFETY: the addresses are those of tensors borrowed for the call, or 0.
    unsafe {
        ffi::dice_onto(
            address(xs),
            address(by_step),
            by_row.map_or(0, address),
            address(alpha),
            address(running.mean),
            address(running.variance),
            running.eps,
        )
    }
    .map_err(|e| e.what().to_owned())
}

/// `dropout(relu(γ (x - mean) / √(variance + eps) + β))`, differentiable once.
///
/// Mean and variance as of [`dice`]. Dropout (probability `dropout`, below 1) is a function of `seed` and the place.
/// # Shapes
/// `xs`: `[rows, channels]`; `affine`: γ and β, `[channels]` each.
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn norm_relu(
    xs: &Tensor,
    affine: [&Tensor; 2],
    running: Running,
    dropout: f64,
    seed: i64,
    train: bool,
) -> Result<Tensor, String> {
    // SAFETY: the addresses are those of tensors borrowed for the call.
    unsafe {
        owned(ffi::norm_relu(
            address(xs),
            address(affine[0]),
            address(affine[1]),
            address(running.mean),
            address(running.variance),
            running.eps,
            running.momentum,
            dropout,
            seed,
            train,
        ))
    }
}

/// Each value with probability 1 - `p` times 1 / (1 - p), else 0, as a function of `seed` and the place; differentiable once. `p` is below 1.
///
/// Holds no mask, and unlike libtorch's works on all threads.
/// # Errors
/// A sentence, when `xs` is not f32 on the CPU.
pub fn dropout(xs: &Tensor, p: f64, seed: i64) -> Result<Tensor, String> {
    // SAFETY: the address is that of a tensor borrowed for the call.
    unsafe { owned(ffi::dropout(address(xs), p, seed)) }
}
