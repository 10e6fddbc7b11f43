//! Decoders of grid features: one layer of kernels in feature space, and the MLP it is compared with.

use densely_core::nn::{Linear, linear, parameter, uniform};
use densely_core::{Model, Result, Tensors, check};
use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Device, Kind, Tensor};

use crate::cam::{check_coords, named};
use crate::encodings::at_least_single;
use crate::sizes::check_weights;

/// Kernel as a function of the squared distance d², with ε = 1e-9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kernel {
    /// exp(-d² / 2).
    Gaussian,
    /// √(d² + 1).
    Multiquadric,
    /// 1 / √(d² + 1).
    InverseMultiquadric,
    /// d³.
    Cubic,
    /// r² ln r with r = √(d² + ε).
    ThinPlateSpline,
    /// (1 - r)⁹ (9 r + 1) for r = √(d² + ε) below 1, else 0: no point farther than 1 sees the kernel. The exponents are those of the
    /// released code.
    WendlandC2,
}

/// Keeps roots and logarithms off 0.
const EPS: f64 = 1e-9;

impl Kernel {
    /// The kernel at squared distances, which are not negative.
    fn at(self, squared: &Tensor) -> Tensor {
        match self {
            Self::Gaussian => (squared * -0.5).exp(),
            Self::Multiquadric => (squared + 1.0).sqrt(),
            Self::InverseMultiquadric => (squared + 1.0).rsqrt(),
            // Not the cube of a root, whose gradient at 0 is not a number.
            Self::Cubic => squared.pow_tensor_scalar(1.5),
            Self::ThinPlateSpline => {
                let squared = squared + EPS;
                squared.log() * 0.5 * squared
            }
            Self::WendlandC2 => {
                let r = (squared + EPS).sqrt();
                let inside: Tensor = 1.0 - &r;
                inside.clamp_min(0.0).pow_tensor_scalar(9) * (r * 9.0 + 1.0)
            }
        }
    }
}

/// Sizes of a decoder of kernels. Defaults are those of the preset `gnf-decoder`: the authors' for pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RbfDecoderConfig {
    /// Features of a point, F.
    pub features: i64,
    /// Kernels, n.
    pub kernels: i64,
    /// Values of a point.
    pub outputs: i64,
    /// The kernel.
    pub kernel: Kernel,
    /// Whether the store holds the vector `betas_shifts.0`, which the released code keeps, counts and never reads.
    pub shifts: bool,
    /// Fresh centres lie within ± this; the released code has 1e-4.
    pub spread: f64,
}

impl Default for RbfDecoderConfig {
    fn default() -> Self {
        Self {
            features: 18,
            kernels: 64,
            outputs: 3,
            kernel: Kernel::Gaussian,
            shifts: true,
            spread: 1e-4,
        }
    }
}

impl RbfDecoderConfig {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check::positive("features", self.features)?;
        check::positive("kernels", self.kernels)?;
        check::above_zero("spread", self.spread)?;
        check::positive("outputs", self.outputs)?;
        let widest = self.features.max(self.outputs);
        check_weights("kernels", &[self.kernels, widest])
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator what the released code draws, in its order: centres
    /// U(±spread), widths 1, the linear layer as PyTorch's.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<RbfDecoder> {
        self.validate()?;
        let size = [self.kernels, self.features];
        let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
        // PyTorch's embedding draws normal numbers before the centres replace them.
        let _replaced = zeros(&size).normal_(0.0, 1.0);
        let sums = linear(&(vs / "weighted_sums" / "0"), self.kernels, self.outputs);
        let centers = vs / "centers" / "0";
        let vector = [self.kernels];
        Ok(RbfDecoder {
            centers: parameter(&centers, "weight", &uniform(&size, self.spread)),
            betas: parameter(&(vs / "betas"), "0", &zeros(&size)),
            _shifts: self
                .shifts
                .then(|| parameter(&(vs / "betas_shifts"), "0", &zeros(&vector))),
            sums,
            config: self.clone(),
        })
    }

    /// Multiply-accumulates of the matrix products for one point. Only for a config that `validate` takes.
    pub fn macs(&self) -> u64 {
        (2 * self.kernels * self.features + self.kernels * self.outputs) as u64
    }
}

/// A layer of kernels in feature space and a linear one: `W φ(d²) + c` with `d_j² = Σ_f exp(b_jf) (h_f - μ_jf)²`.
#[derive(Debug)]
pub struct RbfDecoder {
    /// μ `[kernels, features]`.
    centers: Tensor,
    /// b `[kernels, features]`.
    betas: Tensor,
    /// Held for the reference's names only.
    _shifts: Option<Tensor>,
    sums: Linear,
    config: RbfDecoderConfig,
}

impl RbfDecoder {
    /// The sizes it was built with.
    pub const fn config(&self) -> &RbfDecoderConfig {
        &self.config
    }

    /// Values of points: features `[points, features]` → `[points, outputs]`.
    ///
    /// # Errors
    /// [`densely_core::Error::Shape`] when `features` does not fit the config.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        let kernels = self.kernels(features)?;
        Ok(self.sums.forward(&kernels))
    }

    /// φ: features `[points, features]` → `[points, kernels]`.
    ///
    /// # Errors
    /// [`densely_core::Error::Shape`] when `features` does not fit the config.
    pub fn kernels(&self, features: &Tensor) -> Result<Tensor> {
        let squared = self.squared_distances(features)?;
        Ok(self.config.kernel.at(&squared).to_kind(features.kind()))
    }

    /// d²: features `[points, features]` → `[points, kernels]`; of half precision in f32.
    ///
    /// Evaluated by one product, `[h², h] [e, -2 e μ]ᵀ + Σ e μ²` with e = exp(b), which may come out below 0 by rounding and is then 0.
    /// # Errors
    /// [`densely_core::Error::Shape`] when `features` does not fit the config.
    pub fn squared_distances(&self, features: &Tensor) -> Result<Tensor> {
        check::shape("features", features, &[None, Some(self.config.features)])?;
        check::kind("features", features, self.centers.kind())?;
        // The terms cancel: of half precision nothing would be left.
        let [h, centers, betas] = [features, &self.centers, &self.betas].map(at_least_single);
        let inverse_widths = betas.exp();
        let weighted = &inverse_widths * &centers;
        let constants = (&weighted * &centers).sum_dim_intlist(1i64, false, None); // [kernels]
        let left = Tensor::cat(&[&h.square(), &h], 1); // [points, 2 features]
        let right = Tensor::cat(&[inverse_widths, weighted * -2.0], 1); // [kernels, 2 features]
        Ok(left.linear(&right, Some(&constants)).clamp_min(0.0))
    }
}

/// The features come as `coords`: they are the coordinates that the kernels see.
impl Model for RbfDecoder {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        named(inputs, |coords| {
            check_coords(coords, self.config.features, self.centers.kind())?;
            self.forward(coords)
        })
    }
}

/// Sizes of the MLP that kernels are compared with. Defaults are the authors'.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MlpDecoderConfig {
    /// Coordinates of a point, which the MLP sees before its features.
    pub dim: i64,
    /// Features of a point.
    pub features: i64,
    /// Linear layers, with ReLU between them.
    pub layers: i64,
    /// Width of the hidden ones.
    pub hidden: i64,
    /// Values of a point.
    pub outputs: i64,
}

impl Default for MlpDecoderConfig {
    fn default() -> Self {
        Self {
            dim: 2,
            features: 18,
            layers: 3,
            hidden: 128,
            outputs: 3,
        }
    }
}

impl MlpDecoderConfig {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check::positive("dim", self.dim)?;
        check::positive("features", self.features)?;
        check::positive("layers", self.layers)?;
        check::positive("hidden", self.hidden)?;
        check::positive("outputs", self.outputs)?;
        let widest = self.hidden.max(self.features).max(self.outputs);
        check_weights("hidden", &[self.layers, self.hidden, widest])
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<MlpDecoder> {
        self.validate()?;
        // Layers are numbered with the ReLUs between them.
        let layer = |(i, [inputs, outputs]): (i64, [i64; 2])| {
            linear(&(vs / "mlp" / (2 * i)), inputs, outputs)
        };
        Ok(MlpDecoder {
            layers: (0..).zip(self.widths()).map(layer).collect(),
            config: self.clone(),
        })
    }

    /// Multiply-accumulates of the matrix products for one point. Only for a config that `validate` takes.
    pub fn macs(&self) -> u64 {
        let products = self.widths().into_iter().map(|[a, b]| a * b);
        products.sum::<i64>() as u64
    }

    /// Inputs and outputs of each layer.
    fn widths(&self) -> Vec<[i64; 2]> {
        let mut widths = vec![self.hidden; self.layers as usize + 1];
        widths[0] = self.dim + self.features;
        widths[self.layers as usize] = self.outputs;
        widths.windows(2).map(|pair| [pair[0], pair[1]]).collect()
    }
}

/// Linear layers with ReLU between them, on coordinates and features.
#[derive(Debug)]
pub struct MlpDecoder {
    layers: Vec<Linear>,
    config: MlpDecoderConfig,
}

impl MlpDecoder {
    /// Values of points: coordinates `[points, dim]`, features `[points, features]` → `[points, outputs]`.
    ///
    /// # Errors
    /// [`densely_core::Error::Shape`] when an input does not fit the config.
    pub fn forward(&self, coords: &Tensor, features: &Tensor) -> Result<Tensor> {
        let MlpDecoderConfig {
            dim, features: f, ..
        } = self.config;
        let kind = self.layers[0].weight.kind();
        check_coords(coords, dim, kind)?;
        check::shape("features", features, &[Some(coords.size()[0]), Some(f)])?;
        check::kind("features", features, kind)?;
        let mut xs = Tensor::cat(&[coords, features], 1); // [points, dim + features]
        for (i, layer) in self.layers.iter().enumerate() {
            xs = if i > 0 { xs.relu() } else { xs };
            xs = layer.forward(&xs);
        }
        Ok(xs)
    }
}
