//! Embeddings of numerical features: each scalar becomes a vector before the network sees it.
//!
//! Paper: Gorishniy, Rubachev, Babenko 2022, "On Embeddings for Numerical Features in Tabular Deep Learning",
//! arXiv 2203.05556; version B of the piecewise-linear embedding from the TabM paper, arXiv 2410.24210.
//! Follows: package `rtdl_num_embeddings` 0.0.12 (weights load by its names; initial values are its bits).

use densely_core::nn::{self, Linear};
use densely_core::{Error, Result, check};
use densely_torch_ext::fused::{self, Piecewise};
use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Kind, Tensor};

/// Which embedding, and its sizes. Defaults are the package's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum NumEmbeddings {
    /// `w x + b` per feature.
    #[serde(alias = "LinearEmbeddings")]
    Linear {
        /// Size of a feature's vector.
        d_embedding: i64,
    },
    /// `ReLU(w x + b)` per feature.
    #[serde(alias = "LinearReLUEmbeddings")]
    LinearRelu {
        /// Size of a feature's vector.
        #[serde(default = "default_linear_relu")]
        d_embedding: i64,
    },
    /// Piecewise-linear encoding by the feature's bins, then a linear map per feature.
    #[serde(alias = "PiecewiseLinearEmbeddings")]
    PiecewiseLinear {
        /// Edges of each feature's bins, increasing; see [`bins`](crate::bins).
        bins: Vec<Vec<f64>>,
        /// Size of a feature's vector.
        d_embedding: i64,
        /// Whether a ReLU follows; version B is meant to go without.
        #[serde(default)]
        activation: bool,
        /// `A` is the embedding of the first paper, `B` that of TabM.
        #[serde(default = "default_version")]
        version: PiecewiseVersion,
    },
    /// Sines and cosines of trained frequencies, then a linear map.
    #[serde(alias = "PeriodicEmbeddings")]
    Periodic {
        /// Size of a feature's vector.
        #[serde(default = "default_periodic")]
        d_embedding: i64,
        /// Frequencies per feature.
        #[serde(default = "default_frequencies")]
        n_frequencies: i64,
        /// Standard deviation of the initial frequencies; the setting that matters most.
        #[serde(default = "default_frequency_scale")]
        frequency_init_scale: f64,
        /// Whether a ReLU follows.
        #[serde(default = "default_true")]
        activation: bool,
        /// Whether all features share the linear map.
        lite: bool,
    },
}

/// The two piecewise-linear embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PiecewiseVersion {
    /// Encoding, linear map with bias, usually a ReLU.
    A,
    /// A linear embedding plus the encoding's map, which has no bias and starts at zero.
    B,
}

fn default_linear_relu() -> i64 {
    32
}
fn default_version() -> PiecewiseVersion {
    PiecewiseVersion::B
}
fn default_periodic() -> i64 {
    24
}
fn default_frequencies() -> i64 {
    48
}
fn default_frequency_scale() -> f64 {
    0.01
}
fn default_true() -> bool {
    true
}

impl NumEmbeddings {
    /// Size of a feature's vector.
    pub fn d_embedding(&self) -> i64 {
        match self {
            Self::Linear { d_embedding }
            | Self::LinearRelu { d_embedding }
            | Self::PiecewiseLinear { d_embedding, .. }
            | Self::Periodic { d_embedding, .. } => *d_embedding,
        }
    }

    /// Checks the sizes against the number of features.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self, features: i64) -> Result<()> {
        check::positive("num_embeddings.d_embedding", self.d_embedding())?;
        match self {
            Self::PiecewiseLinear { bins, .. } => check_bins(bins, features),
            Self::Periodic {
                n_frequencies,
                frequency_init_scale,
                activation,
                lite,
                ..
            } => {
                check::positive("num_embeddings.n_frequencies", *n_frequencies)?;
                if *frequency_init_scale <= 0.0 || !frequency_init_scale.is_finite() {
                    return Err(Error::config(
                        "num_embeddings.frequency_init_scale",
                        format!("must be positive, got {frequency_init_scale}"),
                    ));
                }
                if *lite && !activation {
                    return Err(Error::config(
                        "num_embeddings.lite",
                        "is allowed only with activation = true",
                    ));
                }
                Ok(())
            }
            Self::Linear { .. } | Self::LinearRelu { .. } => Ok(()),
        }
    }

    /// Creates the parameters under `vs` for `features` features.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate).
    pub fn build(&self, vs: &Path, features: i64) -> Result<NumEmbedding> {
        self.validate(features)?;
        Ok(match self {
            Self::Linear { d_embedding } => {
                NumEmbedding::Linear(LinearEmbedding::new(vs, features, *d_embedding))
            }
            Self::LinearRelu { d_embedding } => NumEmbedding::LinearRelu(LinearEmbedding::new(
                &(vs / "linear"),
                features,
                *d_embedding,
            )),
            Self::PiecewiseLinear {
                bins,
                d_embedding,
                activation,
                version,
            } => NumEmbedding::PiecewiseLinear(PiecewiseLinear::new(
                vs,
                bins,
                *d_embedding,
                *activation,
                *version,
            )),
            Self::Periodic {
                d_embedding,
                n_frequencies,
                frequency_init_scale,
                activation,
                lite,
            } => {
                let weight = truncated_normal(&[features, *n_frequencies], *frequency_init_scale);
                let weight = nn::parameter(&(vs / "periodic"), "weight", &weight);
                let inputs = 2 * n_frequencies;
                let linear = if *lite {
                    PeriodicLinear::Shared(nn::linear(&(vs / "linear"), inputs, *d_embedding))
                } else {
                    let linear =
                        NLinear::new(&(vs / "linear"), features, inputs, *d_embedding, true);
                    PeriodicLinear::PerFeature(linear)
                };
                NumEmbedding::Periodic {
                    weight,
                    linear,
                    activation: *activation,
                }
            }
        })
    }
}

/// A built embedding.
#[derive(Debug)]
#[expect(missing_docs, reason = "the variants are those of `NumEmbeddings`")]
pub enum NumEmbedding {
    Linear(LinearEmbedding),
    LinearRelu(LinearEmbedding),
    PiecewiseLinear(PiecewiseLinear),
    Periodic {
        weight: Tensor,
        linear: PeriodicLinear,
        activation: bool,
    },
}

impl NumEmbedding {
    /// `[batch, features]` → `[batch, features, d_embedding]`.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Linear(linear) => linear.forward(xs),
            Self::LinearRelu(linear) => linear.forward(xs).relu(),
            Self::PiecewiseLinear(embedding) => embedding.forward(xs)?,
            Self::Periodic {
                weight,
                linear,
                activation,
            } => {
                let angle = weight * (2.0 * std::f64::consts::PI) * xs.unsqueeze(-1);
                let waves = Tensor::cat(&[angle.cos(), angle.sin()], -1); // [batch, features, 2F]
                let ys = match linear {
                    PeriodicLinear::Shared(linear) => waves.apply(linear),
                    PeriodicLinear::PerFeature(linear) => linear.forward(&waves),
                };
                if *activation { ys.relu() } else { ys }
            }
        })
    }
}

/// `w x + b` with its own `w` and `b` per feature.
#[derive(Debug)]
pub struct LinearEmbedding {
    weight: Tensor,
    bias: Tensor,
}

impl LinearEmbedding {
    fn new(vs: &Path, features: i64, d_embedding: i64) -> Self {
        // The scale follows the output size, not the single input: the package's choice.
        let draw = |name| {
            let value = nn::uniform(&[features, d_embedding], (d_embedding as f64).powf(-0.5));
            nn::parameter(vs, name, &value)
        };
        Self {
            weight: draw("weight"),
            bias: draw("bias"),
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        self.bias.addcmul(&self.weight, &xs.unsqueeze(-1))
    }
}

/// A linear map of its own per feature: `[batch, features, in]` → `[batch, features, out]`.
#[derive(Debug)]
pub struct NLinear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl NLinear {
    fn new(vs: &Path, features: i64, inputs: i64, outputs: i64, bias: bool) -> Self {
        let bound = (inputs as f64).powf(-0.5);
        let weight = nn::parameter(
            vs,
            "weight",
            &nn::uniform(&[features, inputs, outputs], bound),
        );
        let bias =
            bias.then(|| nn::parameter(vs, "bias", &nn::uniform(&[features, outputs], bound)));
        Self { weight, bias }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let ys = xs.transpose(0, 1).bmm(&self.weight).transpose(0, 1);
        match &self.bias {
            Some(bias) => ys + bias,
            None => ys,
        }
    }
}

/// The map behind the waves of a periodic embedding.
#[derive(Debug)]
pub enum PeriodicLinear {
    /// One for all features (`lite`).
    Shared(Linear),
    /// One per feature.
    PerFeature(NLinear),
}

/// Piecewise-linear embedding: how far the value has come through each bin, then a linear map.
///
/// The last bin of every feature stands in the last column, whatever the feature's number of bins, so that one
/// clamp serves all; columns between are zero.
#[derive(Debug)]
pub struct PiecewiseLinear {
    linear0: Option<LinearEmbedding>,
    weight: Tensor,
    bias: Tensor,
    single_bin_mask: Option<Tensor>,
    /// Bins of each feature, `[features]`, on the CPU.
    bins: Tensor,
    linear: NLinear,
    activation: bool,
}

impl PiecewiseLinear {
    fn new(
        vs: &Path,
        bins: &[Vec<f64>],
        d_embedding: i64,
        activation: bool,
        version: PiecewiseVersion,
    ) -> Self {
        let features = bins.len() as i64;
        let linear0 = (version == PiecewiseVersion::B)
            .then(|| LinearEmbedding::new(&(vs / "linear0"), features, d_embedding));

        let counts: Vec<i64> = bins.iter().map(|edges| edges.len() as i64 - 1).collect();
        let columns = bins.iter().map(|edges| edges.len() - 1).max().unwrap_or(1);
        let mut weight = vec![0f32; bins.len() * columns];
        let mut bias = weight.clone();
        let mut used = vec![0i64; bins.len() * columns];
        for (feature, edges) in bins.iter().enumerate() {
            let count = edges.len() - 1;
            for bin in 0..count {
                let column = if bin + 1 == count { columns - 1 } else { bin };
                let (low, high) = (edges[bin] as f32, edges[bin + 1] as f32);
                let place = feature * columns + column;
                weight[place] = 1.0 / (high - low);
                bias[place] = -low / (high - low);
                used[place] = 1;
            }
        }
        let size = [features, columns as i64];
        let matrix = |values: &[f32]| Tensor::from_slice(values).view(size);
        let impl_path = vs / "impl";
        // The masks stand in the state dict only when some feature needs them, as in the package.
        let single: Vec<i64> = bins
            .iter()
            .map(|edges| i64::from(edges.len() == 2))
            .collect();
        let single_bin_mask = single.contains(&1).then(|| {
            let mask = Tensor::from_slice(&single).to_kind(Kind::Bool);
            nn::buffer(&impl_path, "single_bin_mask", &mask)
        });
        if bins.iter().any(|edges| edges.len() != bins[0].len()) {
            let mask = Tensor::from_slice(&used).view(size).to_kind(Kind::Bool);
            let _ = nn::buffer(&impl_path, "mask", &mask); // only saved: unused columns are zero anyway
        }
        let weight = nn::buffer(&impl_path, "weight", &matrix(&weight));
        let bias = nn::buffer(&impl_path, "bias", &matrix(&bias));

        let bare = version == PiecewiseVersion::A;
        let linear = NLinear::new(
            &(vs / "linear"),
            features,
            columns as i64,
            d_embedding,
            bare,
        );
        if !bare {
            // Version B starts as a linear embedding; the piecewise part is learnt.
            let _no_grad = tch::no_grad_guard();
            let _ = linear.weight.shallow_clone().zero_();
        }
        Self {
            linear0,
            weight,
            bias,
            single_bin_mask,
            bins: Tensor::from_slice(&counts),
            linear,
            activation,
        }
    }

    /// `[batch, features]` → `[batch, features, columns]`. Values outside the bins extrapolate linearly.
    pub fn encode(&self, xs: &Tensor) -> Tensor {
        let xs = self.bias.addcmul(&self.weight, &xs.unsqueeze(-1));
        let columns = xs.size()[2];
        if columns == 1 {
            return xs;
        }
        let last = xs.narrow(2, columns - 1, 1);
        let last = match &self.single_bin_mask {
            None => last.clamp_min(0.0),
            Some(mask) => last.where_self(&mask.unsqueeze(-1), &last.clamp_min(0.0)),
        };
        let first = xs.narrow(2, 0, 1).clamp_max(1.0);
        Tensor::cat(
            &[first, xs.narrow(2, 1, columns - 2).clamp(0.0, 1.0), last],
            2,
        )
    }

    /// The encoding without unused columns: `[batch, features]` → `[batch, bins of all features]`; the package's
    /// `PiecewiseLinearEncoding`.
    pub fn encode_flat(&self, xs: &Tensor) -> Tensor {
        let columns = self.weight.size()[1];
        let place = Tensor::arange(columns, (Kind::Int64, self.bins.device()));
        // All bins but the last stand first, the last one in the last column.
        let used = place
            .lt_tensor(&(self.bins.unsqueeze(1) - 1))
            .logical_or(&place.eq(columns - 1)); // [features, columns]
        let used = used.flatten(0, 1).nonzero().squeeze_dim(1);
        let ys = self.encode(xs).flatten(1, 2);
        ys.index_select(1, &used.to_device(ys.device()))
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (linear, linear0) = (&self.linear, &self.linear0);
        if fused::enabled(&linear.weight) && fused::enabled(xs) {
            let embedding = Piecewise {
                slope: &self.weight,
                shift: &self.bias,
                bins: &self.bins,
                weight: &linear.weight,
                bias: linear.bias.as_ref(),
                linear: linear0
                    .as_ref()
                    .map(|linear0| (&linear0.weight, &linear0.bias)),
                relu: self.activation,
            };
            return fused::piecewise(xs, &embedding).map_err(Error::torch);
        }
        let ys = linear.forward(&self.encode(xs));
        let ys = if self.activation { ys.relu() } else { ys };
        Ok(match linear0 {
            Some(linear0) => linear0.forward(xs) + ys,
            None => ys,
        })
    }
}

fn check_bins(bins: &[Vec<f64>], features: i64) -> Result<()> {
    let wrong = |reason: String| Err(Error::config("num_embeddings.bins", reason));
    if bins.len() as i64 != features {
        return wrong(format!(
            "must hold one list per feature: {features}, got {}",
            bins.len()
        ));
    }
    for (feature, edges) in bins.iter().enumerate() {
        if edges.len() < 2 {
            return wrong(format!(
                "feature {feature} needs at least 2 edges, got {}",
                edges.len()
            ));
        }
        if edges.iter().any(|edge| !(*edge as f32).is_finite()) {
            return wrong(format!(
                "feature {feature} has an edge that is not a finite number"
            ));
        }
        // As single-precision numbers, which the encoding computes in: equal edges would divide by zero.
        if edges
            .windows(2)
            .any(|pair| pair[0] as f32 >= pair[1] as f32)
        {
            return wrong(format!(
                "the edges of feature {feature} must increase strictly"
            ));
        }
    }
    Ok(())
}

/// N(0, scale²) cut at ±3·scale, drawn as `torch.nn.init.trunc_normal_` draws it.
fn truncated_normal(size: &[i64], scale: f64) -> Tensor {
    let cut = Tensor::from(3.0 / 2f64.sqrt()).erf().double_value(&[]);
    let bound = 3.0 * scale;
    nn::uniform(size, cut)
        .erfinv_()
        .g_mul_scalar_(scale * 2f64.sqrt())
        .clamp_(-bound, bound)
}
