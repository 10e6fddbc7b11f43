//! How near pictures come to those that they should be: PSNR and SSIM.

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// How near a restored picture comes to the clean one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Fidelity {
    /// Peak signal-to-noise ratio, dB.
    pub psnr: f64,
    /// Structural similarity.
    pub ssim: f64,
}

/// PSNR and SSIM of pictures `[channels, height, width]` with values in 0..1.
///
/// # Errors
/// Those of [`psnr`] and [`ssim`].
pub fn fidelity(restored: &Tensor, clean: &Tensor) -> Result<Fidelity> {
    Ok(Fidelity {
        psnr: psnr(restored, clean)?,
        ssim: ssim(restored, clean)?,
    })
}

/// 10 log₁₀(1 / mean squared error), dB, of pictures of the same shape with values in 0..1; infinite when they are equal.
///
/// # Errors
/// [`Error::Shape`] when they differ in shape or hold a value that is not finite.
pub fn psnr(restored: &Tensor, clean: &Tensor) -> Result<f64> {
    let [restored, clean] = alike(restored, clean)?;
    let error = (restored - clean).square().mean(None).double_value(&[]);
    Ok(-10.0 * error.log10())
}

/// Side of the window of [`ssim`], and its standard deviation in pixels.
const WINDOW: (i64, f64) = (11, 1.5);

/// Structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004) of pictures `[channels, height, width]` with values in 0..1: Gaussian windows of 11 × 11 that
/// lie whole in the picture, the mean over them and the channels.
///
/// As `skimage.metrics.structural_similarity` with `gaussian_weights`, `sigma=1.5`, `use_sample_covariance=False` and `data_range=1`.
/// # Errors
/// [`Error::Shape`] when they differ in shape, a side is below 11 or a value is not finite.
pub fn ssim(restored: &Tensor, clean: &Tensor) -> Result<f64> {
    let size = clean.size();
    if size.len() != 3 || size[1] < WINDOW.0 || size[2] < WINDOW.0 {
        return Err(Error::Shape {
            what: "picture".to_owned(),
            expected: "[channels, height, width] with sides of at least 11".to_owned(),
            got: format!("{size:?}"),
        });
    }
    check_size(restored, clean)?;
    let windows = [size[1] - WINDOW.0 + 1, size[2] - WINDOW.0 + 1];
    let mut sum = 0.0;
    for start in (0..windows[0]).step_by(STRIP as usize) {
        let rows = STRIP.min(windows[0] - start) + WINDOW.0 - 1;
        let part = |xs: &Tensor| xs.narrow(1, start, rows);
        let [xs, ys] = alike(&part(restored), &part(clean))?;
        sum += similarities(&xs, &ys);
    }
    Ok(sum / (size[0] * windows[0] * windows[1]) as f64)
}

/// Sum of the similarities of all windows that lie whole in `[channels, rows, width]`.
fn similarities(xs: &Tensor, ys: &Tensor) -> f64 {
    let (side, sigma) = WINDOW;
    let places = Tensor::arange(side, (Kind::Double, Device::Cpu)) - (side / 2) as f64;
    let weights = (places.square() / (-2.0 * sigma * sigma)).exp();
    let weights = &weights / weights.sum(None);
    let blur = |xs: &Tensor| {
        xs.unsqueeze(1)
            .conv2d(&weights.view([1, 1, side, 1]), None::<&Tensor>, 1, 0, 1, 1)
            .conv2d(&weights.view([1, 1, 1, side]), None::<&Tensor>, 1, 0, 1, 1)
    };
    let (mean_x, mean_y) = (blur(xs), blur(ys));
    let var_x = blur(&xs.square()) - mean_x.square();
    let var_y = blur(&ys.square()) - mean_y.square();
    let both = blur(&(xs * ys)) - &mean_x * &mean_y;
    let (c1, c2) = (0.01 * 0.01, 0.03 * 0.03);
    let top = (&mean_x * &mean_y * 2.0 + c1) * (both * 2.0 + c2);
    let bottom = (mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2);
    (top / bottom).sum(Kind::Double).double_value(&[])
}

/// Rows of windows that are compared at once: what a large picture takes in memory stays small.
const STRIP: i64 = 256;

/// Both in double precision on the CPU.
fn alike(restored: &Tensor, clean: &Tensor) -> Result<[Tensor; 2]> {
    check_size(restored, clean)?;
    let [xs, ys] =
        [restored, clean].map(|xs| xs.detach().to_device(Device::Cpu).to_kind(Kind::Double));
    let finite = |xs: &Tensor| xs.isfinite().all().int64_value(&[]) == 1;
    if finite(&xs) && finite(&ys) {
        return Ok([xs, ys]);
    }
    Err(unlike(clean, "values that are not finite".to_owned()))
}

fn check_size(restored: &Tensor, clean: &Tensor) -> Result<()> {
    if restored.size() == clean.size() && restored.numel() > 0 {
        return Ok(());
    }
    Err(unlike(clean, format!("{:?}", restored.size())))
}

fn unlike(clean: &Tensor, got: String) -> Error {
    Error::Shape {
        what: "restored picture".to_owned(),
        expected: format!("finite values of the shape {:?}", clean.size()),
        got,
    }
}
