//! Blocks of PoolFormer on the CPU: the first norm, the pooling, its scale and the sum in one pass, then the second norm, the MLP, its scale and
//! the sum by tiles of pixels that stay in the processor's cache, so that the hidden layer is never written to memory.

use tch::{Device, Kind, Tensor};

use crate::bridge::ffi;
use crate::{address, fused, owned};

/// Parameters of a block: `x' = x + s₁ ∘ (pool(n) - n)`, then `x' + s₂ ∘ (W₂ gelu(W₁ n' + b₁) + b₂)`, where n and n' are x and x' normed over a
/// whole picture, and `pool` is the mean over the 3 × 3 pixels around that lie in the picture.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// Weight and bias of the first norm, `[channels]`.
    pub norm1: [&'a Tensor; 2],
    /// `[channels]`.
    pub scale1: &'a Tensor,
    /// Weight and bias of the second norm, `[channels]`.
    pub norm2: [&'a Tensor; 2],
    /// Weight `[hidden, channels]`, with or without axes of 1 behind, and bias.
    pub fc1: [&'a Tensor; 2],
    /// Weight `[channels, hidden]`, with or without axes of 1 behind, and bias.
    pub fc2: [&'a Tensor; 2],
    /// `[channels]`.
    pub scale2: &'a Tensor,
}

impl Block<'_> {
    fn addresses(&self) -> [usize; 10] {
        let Self {
            norm1,
            scale1,
            norm2,
            fc1,
            fc2,
            scale2,
        } = self;
        [
            norm1[0], norm1[1], scale1, norm2[0], norm2[1], fc1[0], fc1[1], fc2[0], fc2[1], scale2,
        ]
        .map(address)
    }

    /// Whether the fused operations take its sizes: multiples of 16.
    pub fn fits(&self) -> bool {
        match self.fc1[0].size()[..] {
            [hidden, channels, ..] => hidden % 16 == 0 && channels % 16 == 0,
            _ => false,
        }
    }
}

/// The kind of the products by which blocks of `xs` may be computed here; `None` where the plain chain must be. Only f32 without autocast has
/// gradients.
pub fn kind(xs: &Tensor) -> Option<Kind> {
    if !fused::wanted() || xs.device() != Device::Cpu {
        return None;
    }
    let autocast = ffi::autocast_enabled(0).unwrap_or(true);
    match xs.kind() {
        Kind::Float if !autocast => Some(Kind::Float),
        Kind::Float | Kind::BFloat16
            if (!autocast || !crate::casts_to_half()) && ffi::pool_halves().unwrap_or(false) =>
        {
            Some(Kind::BFloat16)
        }
        _ => None,
    }
}

/// One block, differentiable once, for f32. `kept`: for each half `[pictures]`, contiguous f32 on the CPU, by which its branch is multiplied.
///
/// # Shapes
/// `xs`: `[pictures, height, width, channels]`, and so it stays.
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn block(
    xs: &Tensor,
    block: &Block,
    kept: [Option<&Tensor>; 2],
    eps: f64,
) -> Result<Tensor, String> {
    let [kept1, kept2] = kept.map(|kept| kept.map_or(0, address));
    // SAFETY: the addresses are those of tensors borrowed for the call, or 0.
    unsafe {
        owned(ffi::pool_block(
            address(xs),
            &block.addresses(),
            kept1,
            kept2,
            eps,
        ))
    }
}

/// Blocks one after another, without gradients. `products` says in which kind the layers' products are, f32 or bf16; everything else, and every
/// sum, is in f32, as are the maps from block to block.
///
/// # Shapes
/// `xs`: `[pictures, height, width, channels]` of f32 or bf16, and so it stays.
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn stage(xs: &Tensor, blocks: &[Block], products: Kind, eps: f64) -> Result<Tensor, String> {
    let params: Vec<usize> = blocks.iter().flat_map(Block::addresses).collect();
    let halves = products == Kind::BFloat16;
    // SAFETY: the addresses are those of tensors borrowed for the call.
    unsafe { owned(ffi::pool_stage(address(xs), &params, halves, eps)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ones(size: &[i64]) -> Tensor {
        Tensor::ones(size, (Kind::Float, Device::Cpu))
    }

    /// All vectors of it are `one`.
    fn block_of<'a>(fc1: &'a Tensor, fc2: &'a Tensor, one: &'a Tensor) -> Block<'a> {
        Block {
            norm1: [one; 2],
            scale1: one,
            norm2: [one; 2],
            fc1: [fc1, one],
            fc2: [fc2, one],
            scale2: one,
        }
    }

    #[test]
    fn weights_that_are_no_matrix_do_not_fit() {
        let (one, weight) = (ones(&[16]), ones(&[16, 16]));
        let cases: [(&[i64], bool); 5] = [
            (&[16, 16], true),
            (&[16, 16, 1, 1], true),
            (&[16, 8], false),
            (&[256], false),
            (&[], false),
        ];
        for (size, fits) in cases {
            let fc1 = ones(size);
            assert_eq!(block_of(&fc1, &weight, &one).fits(), fits, "{size:?}");
        }
    }

    #[test]
    fn shares_of_another_kind_or_with_gaps_are_refused() {
        let (xs, one, weight) = (ones(&[2, 3, 3, 16]), ones(&[16]), ones(&[16, 16]));
        let params = block_of(&weight, &weight, &one);
        let apply = |kept: &Tensor| block(&xs, &params, [None, Some(kept)], 1e-5);
        assert!(apply(&ones(&[2, 1, 1, 1])).is_ok());
        let wrong = [
            ones(&[2]).to_kind(Kind::Half),
            ones(&[2]).to_kind(Kind::Double),
            ones(&[2, 2]).select(1, 0),
            ones(&[3]),
        ];
        for kept in &wrong {
            let error = apply(kept).expect_err("no such shares");
            assert!(error.contains("one share for each picture"), "{error}");
        }
    }
}
