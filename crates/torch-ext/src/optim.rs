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
pub struct AdamStep<'a> {
    /// Learning rate.
    pub lr: Rate<'a>,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Decoupled (AdamW) or added to the gradient (Adam).
    pub weight_decay: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// AdamW instead of Adam.
    pub decoupled: bool,
}

/// Where a step finds its learning rate.
#[derive(Debug, Clone, Copy)]
pub enum Rate<'a> {
    /// In the call.
    Number(f64),
    /// In a scalar on the parameters' device, so that a recorded step takes another rate each time: f32 on CUDA.
    Device(&'a Tensor),
}

impl Rate<'_> {
    /// Number and address, one of them 0.
    fn parts(self) -> (f64, usize) {
        match self {
            Self::Number(lr) => (lr, 0),
            Self::Device(lr) => (0.0, address(lr)),
        }
    }
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
    let (lr, device_lr) = lr.parts();
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
            device_lr,
        )
        .map_err(text)
    }
}

/// Numbers of one step of SGD.
#[derive(Debug, Clone, Copy)]
pub struct SgdStep<'a> {
    /// Learning rate.
    pub lr: Rate<'a>,
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
    let (lr, device_lr) = lr.parts();
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
            device_lr,
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
