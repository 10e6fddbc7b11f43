//! Denoising without training, to compare with: overlapping blocks whose small cosine coefficients are set to zero.
//!
//! Yu and Sapiro, "DCT image denoising: a simple and effective image denoising algorithm", IPOL 2011.

use std::f64::consts::PI;

use densely_core::{Result, check};
use tch::{Device, Kind, Tensor};

/// Side of a block; the paper's larger choice.
const SIDE: i64 = 16;

/// `picture` `[channels, height, width]` with normal noise of standard deviation `sigma`, values in 0..1: in every 16 × 16 block, coefficients below 3 σ become
/// zero, and each pixel is the mean of the blocks that hold it. A picture smaller than a block is returned as it is. Channels are treated apart.
///
/// # Errors
/// [`Error::Shape`](densely_core::Error::Shape) for another rank or kind than f32.
pub fn denoise(picture: &Tensor, sigma: f64) -> Result<Tensor> {
    check::shape("picture", picture, &[None; 3])?;
    check::kind("picture", picture, Kind::Float)?;
    let (channels, height, width) = picture.size3()?;
    if channels == 0 || height < SIDE || width < SIDE {
        return Ok(picture.shallow_clone());
    }
    let _no_grad = tch::no_grad_guard();
    let device = picture.device();
    let basis = basis().to_kind(Kind::Float).to_device(device);
    let fold =
        |xs: &Tensor, sides: [i64; 2]| xs.col2im(sides, [SIDE, SIDE], [1, 1], [0, 0], [1, 1]);
    // A strip of rows at a time: each pixel stands in 256 blocks.
    let sum = picture.zeros_like();
    let mut count = Tensor::zeros([1, height, width], (Kind::Float, device));
    let last = height - SIDE;
    let mut top = 0;
    while top <= last {
        let rows = (last - top + 1).min(SIDE) + SIDE - 1;
        let strip = picture.narrow(1, top, rows);
        let blocks = strip
            .unsqueeze(1)
            .im2col([SIDE, SIDE], [1, 1], [0, 0], [1, 1]); // [channels, 256, blocks]
        let mut coefficients = basis.matmul(&blocks);
        // The first is the block's mean.
        let small = coefficients.abs().lt(3.0 * sigma);
        let mean = coefficients.narrow(1, 0, 1).copy();
        let _ = coefficients.masked_fill_(&small, 0.0);
        coefficients.narrow(1, 0, 1).copy_(&mean);
        let cleaned = basis.tr().matmul(&coefficients);
        let sides = [rows, width];
        let _ = sum
            .narrow(1, top, rows)
            .g_add_(&fold(&cleaned, sides).squeeze_dim(1));
        let ones = cleaned.narrow(0, 0, 1).ones_like();
        let _ = count
            .narrow(1, top, rows)
            .g_add_(&fold(&ones, sides).squeeze_dim(1));
        top += rows - SIDE + 1;
    }
    let _ = count.clamp_min_(1.0);
    Ok(sum / count)
}

/// The orthonormal cosine transform of a block: `[256, 256]`, a row per coefficient.
fn basis() -> Tensor {
    let n = Tensor::arange(SIDE, (Kind::Double, Device::Cpu));
    let k = n.unsqueeze(1);
    let waves = ((&n + 0.5) * PI / SIDE as f64 * &k).cos() * (2.0 / SIDE as f64).sqrt();
    let scale = Tensor::ones([SIDE, 1], (Kind::Double, Device::Cpu));
    let _ = scale.narrow(0, 0, 1).fill_(0.5f64.sqrt());
    let one = waves * scale;
    one.kron(&one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::psnr;

    #[test]
    fn the_basis_is_orthonormal() {
        let basis = basis();
        let product = basis.matmul(&basis.tr());
        let eye = Tensor::eye(SIDE * SIDE, (Kind::Double, Device::Cpu));
        assert!((product - eye).abs().max().double_value(&[]) < 1e-12);
    }

    #[test]
    fn noise_falls_and_clean_pictures_stay() -> Result<()> {
        let side = Tensor::arange(64, (Kind::Float, Device::Cpu)) * 0.1;
        let clean = ((&side.unsqueeze(1) * 0.7).sin() * side.cos() * 0.3 + 0.5).unsqueeze(0);
        let noise = densely_core::seeded(1, || clean.randn_like());
        let noisy = &clean + noise * 0.1;
        let before = psnr(&noisy, &clean)?;
        let after = psnr(&denoise(&noisy, 0.1)?, &clean)?;
        assert!(after > before + 8.0, "{before} dB to {after} dB");
        let same = denoise(&clean, 0.0)?;
        assert!((same - &clean).abs().max().double_value(&[]) < 1e-5);
        let small = clean.narrow(1, 0, 5);
        assert!(denoise(&small, 0.1)? == small);
        for other in [
            clean.squeeze_dim(0),
            clean.unsqueeze(0),
            clean.to_kind(Kind::Double),
        ] {
            assert!(denoise(&other, 0.1).is_err());
        }
        Ok(())
    }
}
