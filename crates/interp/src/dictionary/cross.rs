//! Cross-layer transcoders: features read at one layer and write to that layer and all later ones.
//!
//! Paper: Ameisen, Lindsey, Pearce, Gurnee, Turner et al. 2025, "Circuit Tracing: Revealing Computational Graphs in Language Models". Names of parameters
//! follow the files of safety-research/circuit-tracer.
//!
//! ```text
//! f_l = activation(x_l W_enc_lᵀ + b_enc_l)        y_m = Σ_{l ≤ m} f_l W_dec_l[:, m - l] + b_dec_m
//! ```
//!
//! | preset | sizes | parameters | MACs per token |
//! | --- | --- | ---: | ---: |
//! | `clt` | 12 layers of 768, 512 features each | 35,410,944 | 35,389,440 |

use densely_core::registry::take_inputs;
use densely_core::{Error, Model, Result, Tensors, check, nn};
use densely_torch_ext::fused;
use densely_torch_ext::sparse::{self, Select};
use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Device, Kind, Tensor};

use super::config::{Activation, Dead, ErrorForm, Objective, Shapes, Sparsity, most_values};
use super::{Features, SPARSE_BELOW, jump};

/// No model has nearly as many.
const MOST_LAYERS: i64 = 1 << 16;

/// Sizes of a cross-layer transcoder. Defaults are those of `clt`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CrossConfig {
    /// Layers of the model.
    pub layers: i64,
    /// Width of what it reads and gives at each.
    pub d: i64,
    /// Features of a layer.
    pub features: i64,
    /// `relu` or `jump-relu`.
    pub activation: Activation,
    /// What it minimises: a token's layers count as one long row. It wakes no dead features.
    pub objective: Objective,
}

impl Default for CrossConfig {
    fn default() -> Self {
        Self::clt()
    }
}

impl CrossConfig {
    /// Preset `clt`: the layers of GPT-2 small. Published ones have many more features of a layer; each thousand takes 240 MB.
    pub const fn clt() -> Self {
        Self {
            layers: 12,
            d: 768,
            features: 512,
            activation: Activation::JumpRelu {
                threshold: 0.03,
                bandwidth: 1.0,
                ste_to_input: true,
            },
            objective: Objective {
                error: ErrorForm::Squared,
                sparsity: Sparsity::Tanh {
                    coefficient: 1.0,
                    scale: 1.0,
                },
                dead: Dead::Nothing {},
            },
        }
    }

    /// Multiply-accumulates of a token where every product is dense.
    pub const fn macs(&self) -> i64 {
        let ways = self.layers * (self.layers + 1) / 2;
        self.d * self.features * (self.layers + ways)
    }

    /// Checks sizes and that the parts fit each other.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check::positive("layers", self.layers)?;
        check::positive("d", self.d)?;
        check::positive("features", self.features)?;
        if self.layers > MOST_LAYERS {
            let reason = format!("must be at most {MOST_LAYERS}, got {}", self.layers);
            return Err(Error::config("layers", reason));
        }
        most_values("features", "W_dec_0", &[self.features, self.layers, self.d])?;
        if !matches!(
            self.activation,
            Activation::Relu {} | Activation::JumpRelu { .. }
        ) {
            let reason = "of a cross-layer transcoder is `relu` or `jump-relu`";
            return Err(Error::config("activation", reason));
        }
        if !matches!(self.objective.dead, Dead::Nothing {}) {
            let reason = "a cross-layer transcoder wakes no dead features";
            return Err(Error::config("objective.dead", reason));
        }
        if matches!(self.objective.sparsity, Sparsity::L0 { .. }) {
            let reason = "of a cross-layer transcoder is `none`, `l1` or `tanh`";
            return Err(Error::config("objective.sparsity", reason));
        }
        Ok(())
    }

    /// Names and shapes of the parameters that [`build`](Self::build) creates.
    pub(super) fn shapes(&self) -> Shapes {
        let Self {
            layers,
            d,
            features,
            ..
        } = *self;
        let mut all = Shapes::new();
        for i in 0..layers {
            all.insert(format!("W_enc_{i}"), vec![features, d]);
            all.insert(format!("b_enc_{i}"), vec![features]);
            all.insert(format!("W_dec_{i}"), vec![features, layers - i, d]);
            all.insert(format!("b_dec_{i}"), vec![d]);
            if matches!(self.activation, Activation::JumpRelu { .. }) {
                all.insert(format!("threshold_{i}"), vec![features]);
            }
        }
        all
    }

    /// Creates the parameters under `vs`: for each layer i `W_enc_i` `[features, d]`, `b_enc_i`, `b_dec_i` `[d]`, `W_dec_i` `[features, layers - i, d]` and,
    /// for `jump-relu`, `threshold_i`. Encoders from U(±1/√features), decoders from U(±1/√(layers d)), biases 0, as the paper has them.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<CrossLayer> {
        self.validate()?;
        let zeros = |name: String, size: i64| {
            nn::parameter(
                vs,
                &name,
                &Tensor::zeros([size], (Kind::Float, Device::Cpu)),
            )
        };
        let rsqrt = |n: i64| 1.0 / (n as f64).sqrt();
        let layers = (0..self.layers).map(|i| {
            let encoder = nn::uniform(&[self.features, self.d], rsqrt(self.features));
            let size = [self.features, self.layers - i, self.d];
            let decoder = nn::uniform(&size, rsqrt(self.layers * self.d));
            CrossPart {
                w_enc: nn::parameter(vs, &format!("W_enc_{i}"), &encoder),
                b_enc: zeros(format!("b_enc_{i}"), self.features),
                w_dec: nn::parameter(vs, &format!("W_dec_{i}"), &decoder),
                b_dec: zeros(format!("b_dec_{i}"), self.d),
                threshold: match self.activation {
                    Activation::JumpRelu { threshold, .. } => {
                        let value =
                            Tensor::full([self.features], threshold, (Kind::Float, Device::Cpu));
                        Some(nn::parameter(vs, &format!("threshold_{i}"), &value))
                    }
                    _ => None,
                },
            }
        });
        Ok(CrossLayer {
            layers: layers.collect(),
            config: *self,
        })
    }
}

/// A cross-layer transcoder with its weights.
#[derive(Debug)]
pub struct CrossLayer {
    layers: Vec<CrossPart>,
    config: CrossConfig,
}

/// The features of one layer.
#[derive(Debug)]
struct CrossPart {
    w_enc: Tensor,             // [features, d]
    b_enc: Tensor,             // [features]
    w_dec: Tensor,             // [features, layers - i, d]
    b_dec: Tensor,             // [d]
    threshold: Option<Tensor>, // [features]
}

impl CrossLayer {
    /// Its sizes and conventions.
    pub const fn config(&self) -> &CrossConfig {
        &self.config
    }

    /// Features of each layer, and what they give for all layers.
    ///
    /// # Shapes
    /// `x`: `[rows, layers, d]`; features `[rows, features]` of each layer; reconstruction `[rows, layers, d]`.
    /// # Errors
    /// [`Error::Shape`] for another shape or kind.
    pub fn forward(&self, x: &Tensor) -> Result<(Vec<Features>, Tensor)> {
        let CrossConfig { layers, d, .. } = self.config;
        check::shape("x", x, &[None, Some(layers), Some(d)])?;
        let first = self
            .layers
            .first()
            .ok_or_else(|| check::absent("W_enc_0"))?;
        check::kind("x", x, first.w_enc.kind())?;
        let rows = x.size()[0];
        let mut all = Vec::with_capacity(self.layers.len());
        let biases: Vec<&Tensor> = self.layers.iter().map(|part| &part.b_dec).collect();
        let mut ys = Tensor::f_stack(&biases, 0)?
            .f_unsqueeze(0)?
            .f_expand([rows, layers, d], false)?;
        for (i, part) in self.layers.iter().enumerate() {
            let features = part.encode(&x.f_select(1, i as i64)?, self.config.activation)?;
            let later = layers - i as i64;
            let wide = part.w_dec.f_reshape([-1, later * d])?;
            let written = features.times(&wide)?.f_reshape([rows, later, d])?;
            ys = ys.f_add(&written.f_constant_pad_nd([0, 0, i as i64, 0])?)?;
            all.push(features);
        }
        Ok((all, ys))
    }

    /// Reconstruction, and the loss with its parts of error and sparsity.
    ///
    /// # Shapes
    /// `x`, `target`: `[rows, layers, d]`.
    /// # Errors
    /// [`Error::Shape`] when shapes or kinds do not fit.
    pub fn losses(&self, x: &Tensor, target: &Tensor) -> Result<CrossLosses> {
        let (features, reconstruction) = self.forward(x)?;
        check::same_shape("target", target, x)?;
        check::kind("target", target, x.kind())?;
        let rows = x.size()[0];
        let long = |xs: &Tensor| xs.f_reshape([rows, -1]);
        let target = long(target)?;
        let left = target.f_sub(&long(&reconstruction)?)?;
        let form = self.config.objective.error;
        let error = form.reduced(&form.each(&left, &target)?)?;
        let mut sparsity = error.f_zeros_like()?;
        for (part, features) in self.layers.iter().zip(&features) {
            let norms = part
                .w_dec
                .f_flatten(1, -1)?
                .f_norm_scalaropt_dim(2.0, [-1], false)?;
            let (coefficient, sum) = match self.config.objective.sparsity {
                Sparsity::L1 {
                    coefficient,
                    by_norm,
                } => {
                    let sum = features.sum(|f, of| {
                        Ok(if by_norm {
                            f.f_mul(&of.beside(&norms)?)?
                        } else {
                            f.shallow_clone()
                        })
                    })?;
                    (coefficient, sum)
                }
                Sparsity::Tanh { coefficient, scale } => {
                    let sum = features.sum(|f, of| {
                        let size = f.f_mul(&of.beside(&norms)?)?;
                        Ok(size.f_mul_scalar(scale)?.f_tanh()?)
                    })?;
                    (coefficient, sum)
                }
                Sparsity::None {} | Sparsity::L0 { .. } => continue,
            };
            sparsity = sparsity.f_add(&sum.f_mul_scalar(coefficient / rows as f64)?)?;
        }
        Ok(CrossLosses {
            total: error.f_add(&sparsity)?,
            features,
            reconstruction,
            error,
            sparsity,
        })
    }
}

/// What a cross-layer transcoder gives for some rows, and its loss.
#[derive(Debug)]
pub struct CrossLosses {
    /// Of each layer.
    pub features: Vec<Features>,
    /// `[rows, layers, d]`.
    pub reconstruction: Tensor,
    /// The sum of the others, a scalar.
    pub total: Tensor,
    /// Of the reconstruction.
    pub error: Tensor,
    /// Of the features, coefficient included.
    pub sparsity: Tensor,
}

impl CrossPart {
    fn encode(&self, x: &Tensor, activation: Activation) -> Result<Features> {
        let weight = self.w_enc.f_tr()?; // [d, features]
        let step = match (activation, &self.threshold) {
            (
                Activation::JumpRelu {
                    bandwidth,
                    ste_to_input,
                    ..
                },
                Some(threshold),
            ) => Some((bandwidth, ste_to_input, threshold)),
            _ => None,
        };
        let bound = match step {
            Some((bandwidth, _, threshold)) => {
                let learns = fused::records_gradients();
                let window = if learns { bandwidth / 2.0 } else { 0.0 };
                Some(threshold.f_detach()?.f_sub_scalar(window)?)
            }
            None => None,
        };
        let mut few = None;
        if fused::enabled_for_f32(&[x, &weight, &self.b_enc]) {
            let select = Select::Above(bound.as_ref());
            few = sparse::encode(x, &weight, &self.b_enc, select, SPARSE_BELOW)
                .map_err(Error::torch)?;
        }
        let features = match few {
            Some(active) => Features::few(active, self.b_enc.size()[0]),
            None => Features::all(self.b_enc.f_addmm(x, &weight)?),
        };
        match step {
            Some((bandwidth, ste_to_input, threshold)) => features.map(|pre, columns| {
                let own = threshold.f_index_select(0, &columns)?;
                jump(pre, &own, bandwidth, ste_to_input)
            }),
            None => features.map(|pre, _| Ok(pre.f_relu()?)),
        }
    }
}

impl Model for CrossLayer {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        let [x, target] = take_inputs(inputs, ["x", "target"])?;
        let x = x.ok_or_else(|| check::absent("x"))?;
        let target = target.ok_or_else(|| check::absent("target"))?;
        let found = self.losses(x, target)?;
        let dense = found
            .features
            .iter()
            .map(Features::dense)
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensors::from([
            ("features".to_owned(), Tensor::f_stack(&dense, 1)?),
            ("reconstruction".to_owned(), found.reconstruction),
            ("loss".to_owned(), found.total),
            ("loss_mse".to_owned(), found.error),
            ("loss_sparsity".to_owned(), found.sparsity),
        ]))
    }
}
