//! Fused operations for the CPU: each computes what a chain of tensor operations computes, without their
//! temporaries. Models call them behind the same methods as the plain chain; [`enabled`] says which one runs.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

use tch::{Device, Kind, Tensor};

use crate::bridge::ffi;
use crate::{address, owned};

thread_local! {
    static PLAIN: Cell<u32> = const { Cell::new(0) };
}

/// While it lives, this thread's models run their plain chains of operations, for comparison.
///
/// The environment variable `DENSELY_FAST=0` does the same for a whole process.
#[derive(Debug)]
#[must_use = "the fast paths are back when the guard is dropped"]
pub struct PlainPaths(PhantomData<*const ()>);

impl PlainPaths {
    /// Switches the fast paths of this thread off.
    #[expect(clippy::new_without_default, reason = "a guard is not a default value")]
    pub fn new() -> Self {
        PLAIN.with(|depth| depth.set(depth.get() + 1));
        Self(PhantomData)
    }
}

impl Drop for PlainPaths {
    fn drop(&mut self) {
        PLAIN.with(|depth| depth.set(depth.get() - 1));
    }
}

/// Whether the fused operations may replace the plain chain for `xs`: a CPU tensor of f32 or f64, autocast (if on) to
/// bf16, and nobody has switched them off.
pub fn enabled(xs: &Tensor) -> bool {
    wanted()
        && !crate::casts_to_half()
        && xs.device() == Device::Cpu
        && matches!(xs.kind(), Kind::Float | Kind::Double)
}

/// As [`enabled`], for operations that do not compute in autocast's kind: never under autocast.
pub fn enabled_without_autocast(xs: &Tensor) -> bool {
    enabled(xs) && !ffi::autocast_enabled(0).unwrap_or(true)
}

/// As [`enabled_without_autocast`], for operations that take f32 alone: whether all of `tensors` are that.
pub fn enabled_for_f32(tensors: &[&Tensor]) -> bool {
    let fits = |xs: &&Tensor| xs.kind() == Kind::Float && enabled_without_autocast(xs);
    tensors.iter().all(fits)
}

/// Whether nobody has switched the fast paths off, by [`PlainPaths`] or `DENSELY_FAST=0`.
pub fn wanted() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| std::env::var("DENSELY_FAST").as_deref() != Ok("0"))
        && PLAIN.with(Cell::get) == 0
}

/// Whether libtorch records gradients on this thread.
pub fn records_gradients() -> bool {
    ffi::grad_enabled()
}

/// `xs Wᵀ + b` by the faster of the machine's matrix products, differentiable once. For f32.
///
/// # Shapes
/// `xs`: `[rows, in]`; `weight`: `[out, in]`; `bias`: `[out]` → `[rows, out]`.
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, String> {
    // SAFETY: the addresses are those of tensors borrowed for the call, or 0.
    unsafe {
        owned(ffi::linear(
            address(xs),
            address(weight),
            bias.map_or(0, address),
        ))
    }
}

/// Σ_h x_h W_h y_hᵀ + left · x + right · y, the heads h being equal parts of the rows; differentiable once. For f32.
///
/// # Shapes
/// `xs`: `[rows, h · m]`; `ys`: `[rows, h · n]`; `form`: `[h, m, n]`; `linear`: `[h · m]` and `[h · n]` → `[rows]`.
///
/// Made for narrow heads: nothing of the inputs' size is kept, but wide products are faster by a library's.
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn bilinear(
    xs: &Tensor,
    ys: &Tensor,
    form: &Tensor,
    linear: [&Tensor; 2],
) -> Result<Tensor, String> {
    let [left, right] = linear.map(address);
    // SAFETY: the addresses are those of tensors borrowed for the call.
    unsafe {
        owned(ffi::bilinear(
            address(xs),
            address(ys),
            address(form),
            left,
            right,
        ))
    }
}

/// Parameters of a block of k members that share a matrix.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// `[out, in]`.
    pub weight: &'a Tensor,
    /// Scaling of the inputs, `[k, in]`.
    pub r: Option<&'a Tensor>,
    /// Scaling of the outputs, `[k, out]`.
    pub s: Option<&'a Tensor>,
    /// `[k, out]` or `[out]`.
    pub bias: &'a Tensor,
}

impl Block<'_> {
    fn addresses(&self) -> [usize; 4] {
        let Self { weight, r, s, bias } = self;
        [
            address(weight),
            r.map_or(0, address),
            s.map_or(0, address),
            address(bias),
        ]
    }
}

/// `dropout(relu(((x ∘ r) Wᵀ) ∘ s + b))`, differentiable once.
///
/// # Shapes
/// `xs`: `[k, batch, in]`, or `[1, batch, in]` when all members see the same rows → `[k, batch, out]`. Under
/// CPU autocast products and activations take its kind.
///
/// Dropout (probability `dropout`) is a function of `seed` and the place in the output. Makes no copy of the
/// size of the activations beside the output.
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn block(xs: &Tensor, block: &Block, dropout: f64, seed: i64) -> Result<Tensor, String> {
    let [weight, r, s, bias] = block.addresses();
    // SAFETY: the addresses are those of tensors borrowed for the call, or 0.
    unsafe {
        owned(ffi::members_block(
            address(xs),
            weight,
            r,
            s,
            bias,
            dropout,
            seed,
        ))
    }
}

/// All blocks without dropout, then each member's head, without gradients: `[batch, k, outputs]`.
///
/// # Shapes
/// `xs` as in [`block`]; `head_weight`: `[k, in, outputs]`; `head_bias`: `[k, outputs]`.
///
/// Runs tile by tile through the whole network, so that activations stay in the processor's cache.
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn infer(
    xs: &Tensor,
    blocks: &[Block],
    head_weight: &Tensor,
    head_bias: &Tensor,
) -> Result<Tensor, String> {
    let blocks: Vec<usize> = blocks.iter().flat_map(Block::addresses).collect();
    // SAFETY: the addresses are those of tensors borrowed for the call, or 0.
    unsafe {
        owned(ffi::members_infer(
            address(xs),
            &blocks,
            address(head_weight),
            address(head_bias),
        ))
    }
}

/// Parameters of a piecewise-linear embedding.
#[derive(Debug, Clone, Copy)]
pub struct Piecewise<'a> {
    /// 1 / width of each bin, `[features, columns]`; the last bin of a feature stands in the last column.
    pub slope: &'a Tensor,
    /// -left edge / width of each bin, `[features, columns]`.
    pub shift: &'a Tensor,
    /// Bins of each feature, `[features]` i64.
    pub bins: &'a Tensor,
    /// `[features, columns, width]`.
    pub weight: &'a Tensor,
    /// `[features, width]`.
    pub bias: Option<&'a Tensor>,
    /// Weight and bias of a linear embedding that is added behind the activation, `[features, width]`.
    pub linear: Option<(&'a Tensor, &'a Tensor)>,
    /// Whether a ReLU follows the piecewise part.
    pub relu: bool,
}

/// The embedding of `xs` `[batch, features]`: `[batch, features, width]`, differentiable once.
///
/// Finds the bin of each value and reads two rows, where the plain chain multiplies by a dense encoding.
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn piecewise(xs: &Tensor, embedding: &Piecewise) -> Result<Tensor, String> {
    let Piecewise {
        slope,
        shift,
        bins,
        weight,
        bias,
        linear,
        relu,
    } = embedding;
    let (weight0, bias0) = linear.map_or((0, 0), |(w, b)| (address(w), address(b)));
    // SAFETY: the addresses are those of tensors borrowed for the call, or 0.
    unsafe {
        owned(ffi::piecewise_embed(
            address(xs),
            address(slope),
            address(shift),
            address(bins),
            address(weight),
            bias.map_or(0, address),
            weight0,
            bias0,
            *relu,
        ))
    }
}

/// The batch norm of each point of a plane `[channels, steps]` over windows, or the layer norm of each window's plane.
#[derive(Debug)]
pub struct PlaneNorm {
    /// Scale, `[channels, steps]`.
    pub gamma: Tensor,
    /// Shift, `[channels, steps]`.
    pub beta: Tensor,
    /// Running mean and (biased) variance of the batch norm, `[channels, steps]`: views of the buffers, which training moves. None for
    /// the layer norm.
    pub running: Option<[Tensor; 2]>,
    /// Added to the variance.
    pub eps: f64,
    /// Weight of the new batch in the running averages.
    pub momentum: f64,
}

impl PlaneNorm {
    fn addresses(&self) -> [usize; 4] {
        let running = self.running.as_ref();
        let [mean, variance] = running.map_or([0, 0], |[mean, variance]| {
            [address(mean), address(variance)]
        });
        [address(&self.gamma), address(&self.beta), mean, variance]
    }

    /// The same norm where it is given for `[steps, channels]`.
    pub fn transposed(self) -> Self {
        let turn = |xs: Tensor| xs.transpose(0, 1);
        Self {
            gamma: turn(self.gamma),
            beta: turn(self.beta),
            running: self.running.map(|running| running.map(turn)),
            ..self
        }
    }
}

/// `x + dropout(relu(norm(x) Wᵀ + b))` over the steps of each channel, differentiable once.
///
/// # Shapes
/// `xs`: `[batch, channels, steps]`; `weight`: `[steps, steps]`; `bias`: `[steps]`.
///
/// In training the norm takes the statistics of the batch and moves the running ones. Dropout is a function of `seed` and the place.
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn mix_time(
    xs: &Tensor,
    norm: &PlaneNorm,
    [weight, bias]: [&Tensor; 2],
    dropout: f64,
    seed: i64,
    train: bool,
) -> Result<Tensor, String> {
    mixer_block(xs, norm, &[weight, bias], dropout, seed, train)
}

/// `x + dropout(W2 dropout(relu(W1 norm(x) + b1)) + b2)` over the channels of each step, differentiable once.
///
/// # Shapes
/// `xs`: `[batch, channels, steps]`; the layers: W1 `[hidden, channels]`, b1 `[hidden]`, W2 `[channels, hidden]`, b2 `[channels]`.
///
/// Never holds the hidden layer: a tile of steps passes through it in the processor's cache, forward and backward.
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn mix_features(
    xs: &Tensor,
    norm: &PlaneNorm,
    layers: [&Tensor; 4],
    dropout: f64,
    seed: i64,
    train: bool,
) -> Result<Tensor, String> {
    mixer_block(xs, norm, &layers, dropout, seed, train)
}

fn mixer_block(
    xs: &Tensor,
    norm: &PlaneNorm,
    layers: &[&Tensor],
    dropout: f64,
    seed: i64,
    train: bool,
) -> Result<Tensor, String> {
    let layers: Vec<usize> = layers.iter().map(|layer| address(layer)).collect();
    // SAFETY: the addresses are those of tensors borrowed for the call, or 0.
    unsafe {
        owned(ffi::mixer_block(
            address(xs),
            &layers,
            &norm.addresses(),
            norm.eps,
            norm.momentum,
            dropout,
            seed,
            train,
        ))
    }
}

/// Parameters of a mixer block with a gate: norm, MLP and gate.
#[derive(Debug, Clone, Copy)]
pub struct PatchBlock<'a> {
    /// Weight and bias of the layer norm, `[features]`.
    pub norm: [&'a Tensor; 2],
    /// Weight `[hidden, mixed]` and bias of the first layer.
    pub fc1: [&'a Tensor; 2],
    /// Weight `[mixed, hidden]` and bias of the second layer.
    pub fc2: [&'a Tensor; 2],
    /// Weight `[mixed, mixed]` and bias of the gate.
    pub gate: [&'a Tensor; 2],
    /// Added to the variance.
    pub eps: f64,
    /// Whether features are mixed, or patches.
    pub along_features: bool,
}

/// `x + u ∘ softmax(Wg u + bg)` with `u = dropout(W2 dropout(gelu(W1 layer_norm(x) + b1)) + b2)` along the patches or the features,
/// differentiable once.
///
/// # Shapes
/// `xs`: `[…, patches, features]`; the norm is over the features, MLP and gate over what is mixed.
///
/// Dropout is a function of `seed` and the place. Holds nothing of the hidden layer's size.
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn mix_patches(
    xs: &Tensor,
    block: &PatchBlock,
    dropout: f64,
    seed: i64,
) -> Result<Tensor, String> {
    let params = [block.norm, block.fc1, block.fc2, block.gate].concat();
    let params: Vec<usize> = params.into_iter().map(address).collect();
    // SAFETY: the addresses are those of tensors borrowed for the call.
    unsafe {
        owned(ffi::patch_block(
            address(xs),
            &params,
            block.eps,
            dropout,
            seed,
            block.along_features,
        ))
    }
}
