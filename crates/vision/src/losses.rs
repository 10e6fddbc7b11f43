//! What training minimises.

use tch::{Kind, Tensor};

/// Cross entropy of `logits` `[batch, classes]` and shares of classes `[batch, classes]`, such as mixed labels: its mean over the batch.
pub fn soft_cross_entropy(logits: &Tensor, targets: &Tensor) -> Tensor {
    let log_shares = logits.log_softmax(-1, None);
    -(targets * log_shares)
        .sum_dim_intlist(-1i64, false, None)
        .mean(None)
}

/// Labels `[batch]` as shares `[batch, classes]`: `1 - smoothing` for the class and `smoothing` spread over all.
pub fn smoothed(labels: &Tensor, classes: i64, smoothing: f64, kind: Kind) -> Tensor {
    labels.one_hot(classes).to_kind(kind) * (1.0 - smoothing) + smoothing / classes as f64
}

/// Mean of √((a - b)² + ε²): Charbonnier's loss. ε² must be above 0 in the pictures' kind, or the gradients of equal pixels are no numbers.
pub fn charbonnier(restored: &Tensor, clean: &Tensor, eps: f64) -> Tensor {
    ((restored - clean).square() + eps * eps).sqrt().mean(None)
}

/// Mean magnitude of the difference of both pictures' two-dimensional Fourier coefficients, not normalised.
///
/// # Shapes
/// Both `[…, height, width]`.
pub fn frequency(restored: &Tensor, clean: &Tensor) -> Tensor {
    // The transform is linear, so that one of the difference will do.
    (restored - clean)
        .fft_fft2(None::<&[i64]>, [-2, -1].as_slice(), "backward")
        .abs()
        .mean(None)
}

/// Weights of [`restoration`]; defaults are those of MAXIM's paper.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RestorationLoss {
    /// ε of Charbonnier's loss; its square must be a normal number in f32.
    pub eps: f64,
    /// Factor on the loss of Fourier coefficients.
    pub frequency: f64,
}

impl Default for RestorationLoss {
    fn default() -> Self {
        Self {
            eps: 1e-3,
            frequency: 0.1,
        }
    }
}

/// Σ over all stages and scales of Charbonnier's loss and the weighted one of Fourier coefficients; each output is compared with `clean` made smaller by
/// bilinear interpolation (MAXIM, equation 5).
///
/// # Shapes
/// `clean` `[batch, channels, height, width]`, `outputs` the same or smaller.
pub fn restoration(outputs: &[Tensor], clean: &Tensor, loss: RestorationLoss) -> Option<Tensor> {
    let one = |output: &Tensor| {
        let size = output.size();
        let target = if size == clean.size() {
            clean.shallow_clone()
        } else {
            clean.upsample_bilinear2d(&size[2..], false, None, None)
        };
        let spatial = charbonnier(output, &target, loss.eps);
        if loss.frequency > 0.0 {
            spatial + frequency(output, &target) * loss.frequency
        } else {
            spatial
        }
    };
    outputs.iter().map(one).reduce(|sum, loss| sum + loss)
}
