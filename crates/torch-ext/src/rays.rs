//! Volume rendering of samples that lie ray by ray, each ray with as many as it has. For f32 and f64 on the CPU.

use tch::Tensor;

use crate::bridge::ffi;
use crate::rows::all_owned;
use crate::{address, fused, owned};

/// Where the samples of rays lie: sample i is the piece of its ray from `start[i]` to `end[i]`.
#[derive(Debug, Clone, Copy)]
pub struct Pieces<'a> {
    /// `[samples]`.
    pub start: &'a Tensor,
    /// `[samples]`.
    pub end: &'a Tensor,
    /// i64 `[rays + 1]`: ray r has the samples from `offsets[r]` up to `offsets[r + 1]`.
    pub offsets: &'a Tensor,
}

/// What [`render`] makes of rays.
#[derive(Debug)]
pub struct Rendered {
    /// Σ w c, `[rays, 3]`.
    pub rgb: Tensor,
    /// Σ w, `[rays]`.
    pub opacity: Tensor,
    /// Σ w (start + end) / 2, `[rays]`.
    pub depth: Tensor,
    /// w, `[samples]`.
    pub weights: Tensor,
}

/// With τ = σ (end - start): weights w_i = exp(-Σ_{j<i} τ_j) (1 - exp(-τ_i)) and their sums along each ray; differentiable once in
/// densities and colours. The same bits on any number of threads.
///
/// # Shapes
/// `sigma`: `[samples]`; `rgb`: `[samples, 3]`.
/// # Errors
/// A sentence, when shapes or kinds do not fit, or the offsets do not name every sample once.
pub fn render(sigma: &Tensor, rgb: &Tensor, pieces: Pieces) -> Result<Rendered, String> {
    if fused::records_gradients() && (pieces.start.requires_grad() || pieces.end.requires_grad()) {
        return Err("the distances need a gradient, which this operation does not give".to_owned());
    }
    // SAFETY: the addresses are those of tensors borrowed for the call.
    let made = all_owned(unsafe {
        ffi::render_rays(
            address(sigma),
            address(rgb),
            address(pieces.start),
            address(pieces.end),
            address(pieces.offsets),
        )
    })?;
    match <[Tensor; 5]>::try_from(made) {
        Ok([rgb, opacity, depth, weights, _passing]) => Ok(Rendered {
            rgb,
            opacity,
            depth,
            weights,
        }),
        Err(_) => Err("five tensors were due".to_owned()),
    }
}

/// Whether each sample is seen: light of which `least_passing` comes so far meets an opacity 1 - exp(-τ) of `least_alpha` at least. Bool
/// `[samples]`.
///
/// # Errors
/// Those of [`render`].
pub fn visible(
    sigma: &Tensor,
    pieces: Pieces,
    least_passing: f64,
    least_alpha: f64,
) -> Result<Tensor, String> {
    // SAFETY: the addresses are those of tensors borrowed for the call.
    unsafe {
        owned(ffi::visible_samples(
            address(sigma),
            address(pieces.start),
            address(pieces.end),
            address(pieces.offsets),
            least_passing,
            least_alpha,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    const CPU: (Kind, Device) = (Kind::Double, Device::Cpu);

    fn pieces<'a>(start: &'a Tensor, end: &'a Tensor, offsets: &'a Tensor) -> Pieces<'a> {
        Pieces {
            start,
            end,
            offsets,
        }
    }

    /// Three rays of 2, 0 and 1 samples, worked out by hand.
    #[test]
    fn rays_are_rendered_as_by_hand() {
        let sigma = Tensor::from_slice(&[2.0, 1.0, 0.5]);
        let rgb = Tensor::from_slice(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.5, 0.2, 0.4, 0.6]).view([3, 3]);
        let (start, end) = (
            Tensor::from_slice(&[1.0, 1.5, 4.0]),
            Tensor::from_slice(&[1.5, 3.5, 6.0]),
        );
        let offsets = Tensor::from_slice(&[0i64, 2, 2, 3]);
        let of = pieces(&start, &end, &offsets);
        let made = render(&sigma, &rgb, of).expect("three rays");
        let first = 1.0 - (-1.0f64).exp();
        let second = (-1.0f64).exp() * (1.0 - (-2.0f64).exp());
        for (ray, rgb, opacity, depth) in [
            (
                0,
                [first, second, second / 2.0],
                first + second,
                first * 1.25 + second * 2.5,
            ),
            (1, [0.0; 3], 0.0, 0.0),
            (
                2,
                [0.2 * first, 0.4 * first, 0.6 * first],
                first,
                first * 5.0,
            ),
        ] {
            for (channel, value) in rgb.iter().enumerate() {
                let got = made.rgb.double_value(&[ray, channel as i64]);
                assert!((got - value).abs() < 1e-15, "{ray} {channel}: {got}");
            }
            assert!((made.opacity.double_value(&[ray]) - opacity).abs() < 1e-15);
            assert!((made.depth.double_value(&[ray]) - depth).abs() < 1e-15);
        }
        let seen = |passing, alpha| {
            let seen = visible(&sigma, of, passing, alpha).expect("three rays");
            Vec::<bool>::try_from(seen).expect("booleans")
        };
        assert_eq!(seen(0.0, 0.0), [true, true, true]);
        assert_eq!(seen(0.5, 0.0), [true, false, true]);
        assert_eq!(seen(0.0, 0.7), [false, true, false]);
    }

    #[test]
    fn offsets_that_do_not_fit_are_refused() {
        let xs = Tensor::zeros([3], CPU);
        let rgb = Tensor::zeros([3, 3], CPU);
        for offsets in [&[0i64, 2][..], &[1, 3], &[0, 3, 2, 3], &[0, 4, 3], &[]] {
            let offsets = Tensor::from_slice(offsets);
            let message = render(&xs, &rgb, pieces(&xs, &xs, &offsets));
            let message = message.expect_err("offsets that do not fit");
            assert!(message.contains("offsets"), "{message}");
        }
        let offsets = Tensor::from_slice(&[0i64, 3]);
        let short = Tensor::zeros([2], CPU);
        assert!(render(&xs, &rgb, pieces(&short, &xs, &offsets)).is_err());
        assert!(render(&xs, &rgb.to_kind(Kind::Float), pieces(&xs, &xs, &offsets)).is_err());
        assert!(render(&xs, &rgb.narrow(1, 0, 2), pieces(&xs, &xs, &offsets)).is_err());
    }
}
