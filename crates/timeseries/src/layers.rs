//! Blocks that several forecasting models use.

use densely_core::nn::{self, Linear, buffer, parameter};
use densely_torch_ext::fused;
use serde::{Deserialize, Serialize};
use tch::nn::{ModuleT, Path};
use tch::{Device, Kind, Tensor};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// A nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// x Φ(x), exact.
    Gelu,
}

impl Activation {
    /// The function, value by value.
    pub fn apply(self, xs: &Tensor) -> Tensor {
        match self {
            Self::Relu => xs.relu(),
            Self::Gelu => xs.gelu("none"),
        }
    }
}

/// Reversible instance normalisation (Kim et al. 2022): each window's channels get mean 0 and variance 1 over time, then a trained
/// scale and shift; the forecast goes the way back.
///
/// Gradients stop at the statistics. A scale that training drove to 0 makes the way back infinite, as in the reference.
#[derive(Debug)]
pub struct RevIn {
    /// `[1, 1, channels]`, starts at 1.
    pub weight: Tensor,
    /// `[1, 1, channels]`, starts at 0.
    pub bias: Tensor,
}

/// What [`RevIn::undo`] needs of the window: mean and standard deviation, `[batch, 1, channels]` each.
#[derive(Debug)]
pub struct Moments {
    mean: Tensor,
    deviation: Tensor,
}

impl RevIn {
    /// Added to the variance.
    const EPS: f64 = 1e-5;

    /// Creates scale and shift under `vs`.
    pub fn new(vs: &Path, channels: i64) -> Self {
        Self {
            weight: parameter(vs, "affine_weight", &Tensor::ones([1, 1, channels], CPU)),
            bias: parameter(vs, "affine_bias", &Tensor::zeros([1, 1, channels], CPU)),
        }
    }

    /// `[batch, time, channels]` normalised over time, and what it was normalised by.
    pub fn normalise(&self, xs: &Tensor) -> (Tensor, Moments) {
        let (variance, mean) = xs.detach().var_mean_correction([1].as_slice(), 0.0, true);
        let deviation = (variance + Self::EPS).sqrt();
        let ys = (xs - &mean) / &deviation * &self.weight + &self.bias;
        (ys, Moments { mean, deviation })
    }

    /// The way back for a forecast `[batch, steps, channels]`, or `[batch, steps, 1]` of channel `target`.
    pub fn undo(&self, ys: &Tensor, moments: &Moments, target: Option<i64>) -> Tensor {
        let of = |xs: &Tensor| match target {
            Some(target) => xs.narrow(2, target, 1),
            None => xs.shallow_clone(),
        };
        (ys - of(&self.bias)) / of(&self.weight) * of(&moments.deviation) + of(&moments.mean)
    }
}

/// What [`PlaneNorm`] takes statistics over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlaneNormKind {
    /// The batch, for each point of the plane; running averages for evaluation.
    Batch,
    /// The plane, for each window.
    Layer,
}

/// Normalises `[batch, plane…]`, where the plane is time × channels or channels × time, with a scale and a shift per point.
///
/// The batch norm is Keras's with `axis=[-2, -1]`: eps 1e-3, running averages that move by 0.01 a step. Keras averages the biased variance,
/// `torch.nn.BatchNorm1d` the unbiased one (NaN for a batch of one window); this follows Keras.
#[derive(Debug)]
pub struct PlaneNorm {
    plane: [i64; 2],
    /// `[plane]` flattened, or `plane` for the layer norm; starts at 1.
    pub weight: Tensor,
    /// As the weight; starts at 0.
    pub bias: Tensor,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    mean: Tensor,
    variance: Tensor,
    batches: Tensor,
}

impl PlaneNorm {
    const EPS: f64 = 1e-3;
    /// Weight of the new batch in the running averages.
    const MOMENTUM: f64 = 0.01;

    /// Creates the parameters under `vs` for a plane of this size.
    pub fn new(vs: &Path, kind: PlaneNormKind, plane: [i64; 2]) -> Self {
        let size = match kind {
            PlaneNormKind::Batch => vec![plane[0] * plane[1]],
            PlaneNormKind::Layer => plane.to_vec(),
        };
        let (ones, zeros) = (Tensor::ones(&size, CPU), Tensor::zeros(&size, CPU));
        let running = (kind == PlaneNormKind::Batch).then(|| Running {
            mean: buffer(vs, "running_mean", &zeros),
            variance: buffer(vs, "running_var", &ones),
            batches: buffer(vs, "num_batches_tracked", &Tensor::from(0i64)),
        });
        Self {
            plane,
            weight: parameter(vs, "weight", &ones.copy()),
            bias: parameter(vs, "bias", &zeros.copy()),
            running,
        }
    }

    /// The norm as the fused operations take it, views with the plane's axes as they stand.
    pub fn fused(&self) -> fused::PlaneNorm {
        let view = |xs: &Tensor| xs.view(self.plane);
        let running = self.running.as_ref();
        fused::PlaneNorm {
            gamma: view(&self.weight),
            beta: view(&self.bias),
            running: running.map(|running| [view(&running.mean), view(&running.variance)]),
            eps: Self::EPS,
            momentum: Self::MOMENTUM,
        }
    }

    /// Counts a batch that a fused operation has seen.
    pub fn count(&self) {
        if let Some(running) = &self.running {
            running.count();
        }
    }
}

impl ModuleT for PlaneNorm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        let Some(running) = &self.running else {
            return xs.layer_norm(self.plane, weight, bias, Self::EPS, true);
        };
        let flat = xs.flatten(1, 2); // [batch, plane]
        let ys = if train {
            running.update(&flat.detach());
            // Without running averages libtorch's kernel is defined for a batch of one window too.
            flat.batch_norm(
                weight,
                bias,
                None::<&Tensor>,
                None::<&Tensor>,
                true,
                0.0,
                Self::EPS,
                false,
            )
        } else {
            let (mean, variance) = (Some(&running.mean), Some(&running.variance));
            flat.batch_norm(weight, bias, mean, variance, false, 0.0, Self::EPS, false)
        };
        ys.unflatten(1, self.plane)
    }
}

impl Running {
    fn update(&self, flat: &Tensor) {
        let _no_grad = tch::no_grad_guard();
        let (variance, mean) = flat.var_mean_correction([0].as_slice(), 0.0, false);
        let _ = self.mean.shallow_clone().lerp_(&mean, PlaneNorm::MOMENTUM);
        let _ = self
            .variance
            .shallow_clone()
            .lerp_(&variance, PlaneNorm::MOMENTUM);
        self.count();
    }

    fn count(&self) {
        let _no_grad = tch::no_grad_guard();
        let _ = self.batches.shallow_clone().g_add_scalar_(1);
    }
}

/// A [`Linear`] with weight N(0, `std`) and bias 0, or with PyTorch's own first weights.
pub fn linear_from(vs: &Path, inputs: i64, outputs: i64, std: Option<f64>) -> Linear {
    let Some(std) = std else {
        return nn::linear(vs, inputs, outputs);
    };
    Linear {
        weight: parameter(
            vs,
            "weight",
            &Tensor::empty([outputs, inputs], CPU).normal_(0.0, std),
        ),
        bias: Some(parameter(vs, "bias", &Tensor::zeros([outputs], CPU))),
    }
}
