//! libtorch's fused optimiser steps and its operations on lists of tensors.

use tch::Tensor;

use crate::bridge::ffi;
use crate::{address, owned};

fn addresses(tensors: &[Tensor]) -> Vec<usize> {
    tensors.iter().map(address).collect()
}

fn text(e: cxx::Exception) -> String {
    e.what().to_owned()
}

/// Numbers of one step of Adam or AdamW.
#[derive(Debug, Clone, Copy)]
pub struct AdamStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Decoupled (AdamW) or added to the gradient (Adam).
    pub weight_decay: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// AdamW instead of Adam.
    pub decoupled: bool,
}

/// One step of Adam or AdamW on all `params`; `steps` are f32 scalars that count this step already.
///
/// # Errors
/// libtorch's, when the lists do not fit.
pub fn fused_adam(
    params: &[Tensor],
    grads: &[Tensor],
    moments: [&[Tensor]; 2],
    steps: &[Tensor],
    step: &AdamStep,
) -> Result<(), String> {
    let [first, second] = moments;
    let AdamStep {
        lr,
        betas: [beta1, beta2],
        weight_decay,
        eps,
        decoupled,
    } = *step;
    let (p, g, t) = (addresses(params), addresses(grads), addresses(steps));
    let (m, v) = (addresses(first), addresses(second));
    // SAFETY: the addresses are those of tensors borrowed for the call.
    unsafe {
        ffi::fused_adam(
            &p,
            &g,
            &m,
            &v,
            &t,
            lr,
            beta1,
            beta2,
            weight_decay,
            eps,
            decoupled,
        )
        .map_err(text)
    }
}

/// Numbers of one step of SGD.
#[derive(Debug, Clone, Copy)]
pub struct SgdStep {
    /// Learning rate.
    pub lr: f64,
    /// Added to the gradient.
    pub weight_decay: f64,
    /// 0 keeps no buffer.
    pub momentum: f64,
    /// Of the gradient in the buffer.
    pub dampening: f64,
    /// Nesterov's momentum.
    pub nesterov: bool,
    /// Whether the buffers are new: then they become the gradient.
    pub first: bool,
}

/// One step of SGD on all `params`; `buffers` is empty without momentum.
///
/// # Errors
/// libtorch's, when the lists do not fit.
pub fn fused_sgd(
    params: &[Tensor],
    grads: &[Tensor],
    buffers: &[Tensor],
    step: &SgdStep,
) -> Result<(), String> {
    let SgdStep {
        lr,
        weight_decay,
        momentum,
        dampening,
        nesterov,
        first,
    } = *step;
    let (p, g, m) = (addresses(params), addresses(grads), addresses(buffers));
    // SAFETY: the addresses are those of tensors borrowed for the call.
    unsafe {
        ffi::fused_sgd(
            &p,
            &g,
            &m,
            weight_decay,
            momentum,
            lr,
            dampening,
            nesterov,
            first,
        )
        .map_err(text)
    }
}

/// Scales `grads` together so that their norm is at most `max_norm` (infinite: leaves them); the norm before.
///
/// # Errors
/// libtorch's.
pub fn clip_grads(grads: &[Tensor], max_norm: f64) -> Result<Tensor, String> {
    // SAFETY: the addresses are those of tensors borrowed for the call.
    unsafe { owned(ffi::clip_grads(&addresses(grads), max_norm)) }
}

/// Multiplies `grads` by `factor` in place; whether all were finite. Waits for the device.
///
/// # Errors
/// libtorch's.
pub fn unscale_grads(grads: &[Tensor], factor: f64) -> Result<bool, String> {
    // SAFETY: the addresses are those of tensors borrowed for the call.
    unsafe { ffi::unscale_grads(&addresses(grads), factor).map_err(text) }
}

/// Takes the gradients of `params` away, which tch cannot.
///
/// # Errors
/// libtorch's.
pub fn clear_grads(params: &[Tensor]) -> Result<(), String> {
    // SAFETY: the addresses are those of tensors borrowed for the call.
    unsafe { ffi::clear_grads(&addresses(params)).map_err(text) }
}
