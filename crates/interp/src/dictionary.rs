//! Sparse dictionaries: autoencoders and transcoders, which write activations as sums of few directions out of many.
//!
//! Papers: Bricken et al. 2023, "Towards Monosemanticity" (autoencoders); Dunefsky, Chlenski, Nanda 2024, "Transcoders Find Interpretable LLM Feature
//! Circuits", arXiv 2406.11944; Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv 2406.04093 (`top-k`, `AuxK`); Rajamanoharan et al.
//! 2024, arXiv 2407.14435 (`jump-relu`) and arXiv 2404.16014 (`gated`); Bussmann, Leask, Nanda 2024, arXiv 2412.06410 (`batch-top-k`); Paulo, Shabalin,
//! Belrose 2025, arXiv 2501.18823 (skip transcoders). Follows `jacobdunefsky/transcoder_circuits` and the packages `sae_lens` and `eai-sparsify`, each where
//! its conventions are asked for.
//!
//! ```text
//! pre = (x - b) W_enc + b_enc        f = activation(pre)        y = f W_dec + b' (+ x W_skipᵀ)
//! ```
//! An autoencoder has y ≈ x, and b and b' are one `b_dec` (or b is 0). A transcoder reads what enters an MLP and writes what leaves it: b is 0 and b' is
//! `b_dec`, or, in the paper's released code, b is `b_dec` and b' is `b_dec_out`.
//!
//! | preset | sizes | parameters | MACs per token |
//! | --- | --- | ---: | ---: |
//! | `transcoder` | 768 → 24,576 → 768, as in the paper for GPT-2 small | 37,774,848 | 37,748,736 |
//! | `sae` | the same, the conventions of `sae_lens` | 37,774,080 | 37,748,736 |
//! | `skip-transcoder` | the same, 32 features a token, the conventions of `eai-sparsify` | 38,363,904 | 38,338,560 |
//!
//! Where few features are active, as they are after some hundred steps, only those are decoded and get gradients: the dense products of the decoder and
//! of all gradients are never made ([`densely_torch_ext::sparse`]).

mod active;
mod build;
pub mod config;
pub mod cross;
pub mod evaluate;
pub mod examples;
pub mod fit;
pub mod folder;
mod objective;

use densely_core::registry::take_inputs;
use densely_core::{Error, Model, Result, Tensors, check};
use densely_torch_ext::fused;
use densely_torch_ext::sparse::{self, Select};
use tch::{Kind, Tensor};

pub use active::Features;
pub use build::Centre;
pub use config::{
    Activation, Dead, DictionaryConfig, ErrorForm, Init, InputBias, Normalize, Objective, Role,
    Sparsity,
};
pub use objective::Losses;

/// Share of active values above which dense products are the faster ones.
const SPARSE_BELOW: f64 = 0.08;

/// A sparse dictionary with its weights.
#[derive(Debug)]
pub struct Dictionary {
    pub(crate) w_enc: Tensor,         // [d_in, features], laid out by feature
    pub(crate) b_enc: Option<Tensor>, // [features]; not of gated ones
    pub(crate) w_dec: Tensor,         // [features, d_out]
    pub(crate) b_dec: Tensor,         // [d_out], or [d_in] where b_dec_out stands beside it
    pub(crate) b_dec_out: Option<Tensor>, // [d_out]
    pub(crate) w_skip: Option<Tensor>, // [d_out, d_in]
    pub(crate) threshold: Option<Tensor>, // [features]
    /// The least value that the k largest of a batch had, a running mean in f64; of `batch-top-k`.
    topk_threshold: Option<Tensor>,
    gate: Option<Gate>,
    pub(crate) config: DictionaryConfig,
}

/// The second set of biases of a gated autoencoder.
#[derive(Debug)]
struct Gate {
    /// `b_gate`.
    bias: Tensor,
    b_mag: Tensor,
    r_mag: Tensor,
}

/// What a dictionary gives for some rows.
#[derive(Debug)]
pub struct Coded {
    /// Features of each row.
    pub features: Features,
    /// `[rows, d_out]`.
    pub reconstruction: Tensor,
}

/// How activations were scaled before they were encoded, to undo it behind the decoder; `[rows, 1]` each.
struct Scaled {
    factor: Option<Tensor>,
    shift: Option<Tensor>,
}

impl Dictionary {
    /// Its sizes and conventions.
    pub const fn config(&self) -> &DictionaryConfig {
        &self.config
    }

    /// The encoder's columns and the decoder's rows: `W_enc` `[d_in, features]` and `W_dec` `[features, d_out]`.
    pub const fn weights(&self) -> (&Tensor, &Tensor) {
        (&self.w_enc, &self.w_dec)
    }

    /// What the decoder adds, `[d_out]`.
    pub fn output_bias(&self) -> &Tensor {
        self.b_dec_out.as_ref().unwrap_or(&self.b_dec)
    }

    /// The linear way past the features, `[d_out, d_in]`.
    pub const fn skip(&self) -> Option<&Tensor> {
        self.w_skip.as_ref()
    }

    /// What is added to the product of `x` and the encoder, all in one, `[features]`: `b_enc - b W_enc`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for gated dictionaries, which have two.
    pub fn encoder_bias(&self) -> Result<Tensor> {
        let bias = self.b_enc.as_ref().ok_or_else(|| Error::Unsupported {
            what: "the one encoder bias of a gated dictionary".to_owned(),
            hint: "gated dictionaries encode and decode, and no more".to_owned(),
        })?;
        Ok(match self.input_bias() {
            Some(b) => bias.f_sub(&b.f_matmul(&self.w_enc)?)?,
            None => bias.shallow_clone(),
        })
    }

    /// What is taken from the input.
    fn input_bias(&self) -> Option<&Tensor> {
        (self.config.input_bias != InputBias::None).then_some(&self.b_dec)
    }

    /// Rows as the encoder reads them: scaled as the dictionary was trained, less its bias.
    fn read(&self, x: &Tensor) -> Result<(Tensor, Scaled)> {
        check::shape("x", x, &[None, Some(self.config.d_in)])?;
        check::kind("x", x, self.w_enc.kind())?;
        let (mut x, scaled) = match self.config.normalize {
            Normalize::None => (
                x.shallow_clone(),
                Scaled {
                    factor: None,
                    shift: None,
                },
            ),
            Normalize::ConstantNorm => {
                let norm = x.f_norm_scalaropt_dim(2.0, [-1], true)?;
                let root = (self.config.d_in as f64).sqrt();
                let scaled = x.f_mul(&norm.f_reciprocal()?.f_mul_scalar(root)?)?;
                let factor = Some(norm.f_div_scalar(root)?);
                (
                    scaled,
                    Scaled {
                        factor,
                        shift: None,
                    },
                )
            }
            Normalize::LayerNorm => {
                let mean = x.f_mean_dim([-1i64].as_slice(), true, None::<Kind>)?;
                let x = x.f_sub(&mean)?;
                let deviation = x.f_std_dim([-1i64].as_slice(), true, true)?;
                let scaled = x.f_div(&deviation.f_add_scalar(1e-5)?)?;
                (
                    scaled,
                    Scaled {
                        factor: Some(deviation),
                        shift: Some(mean),
                    },
                )
            }
        };
        if let Some(b) = self.input_bias() {
            x = x.f_sub(b)?;
        }
        Ok((x, scaled))
    }

    /// The values before the activation, `[rows, features]`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless x is `[rows, d_in]` of the weights' kind; [`Error::Unsupported`] for gated dictionaries.
    pub fn pre_activations(&self, x: &Tensor) -> Result<Tensor> {
        let (read, _) = self.read(x)?;
        let bias = self.b_enc.as_ref().ok_or_else(|| Error::Unsupported {
            what: "one pre-activation for each feature of a gated dictionary".to_owned(),
            hint: "ask for its features".to_owned(),
        })?;
        Ok(bias.f_addmm(&read, &self.w_enc)?)
    }

    /// The features of rows.
    ///
    /// # Shapes
    /// `x`: `[rows, d_in]`.
    /// # Errors
    /// [`Error::Shape`] for another shape or kind.
    pub fn encode(&self, x: &Tensor) -> Result<Features> {
        let (read, _) = self.read(x)?;
        self.encode_read(&read)
    }

    fn encode_read(&self, read: &Tensor) -> Result<Features> {
        if let Some(features) = self.encode_few(read)? {
            return Ok(features);
        }
        self.encode_all(read)
    }

    /// The norms of the decoder's rows where features are compared by how much they write.
    pub(crate) fn row_norms(&self) -> Result<Option<Tensor>> {
        let rescales = match self.config.activation {
            Activation::TopK { rescale, .. } | Activation::BatchTopK { rescale, .. } => rescale,
            _ => false,
        };
        Ok(rescales
            .then(|| self.w_dec.f_norm_scalaropt_dim(2.0, [-1], false))
            .transpose()?)
    }

    /// Features by their active values alone, where that is exact and quicker.
    fn encode_few(&self, read: &Tensor) -> Result<Option<Features>> {
        let Some(bias) = &self.b_enc else {
            return Ok(None);
        };
        if !fused::enabled_for_f32(&[read, &self.w_enc, bias, &self.w_dec]) {
            return Ok(None);
        }
        let norms = tch::no_grad(|| self.row_norms())?;
        let rows = read.size()[0];
        let bound = match (&self.config.activation, &self.threshold) {
            // Values below the threshold count where the threshold learns from them.
            (Activation::JumpRelu { bandwidth, .. }, Some(threshold)) => {
                let window = if fused::records_gradients() {
                    bandwidth / 2.0
                } else {
                    0.0
                };
                Some(threshold.f_detach()?.f_sub_scalar(window)?.f_contiguous()?)
            }
            _ => None,
        };
        let select = match self.config.activation {
            Activation::TopK { k, .. } => Select::PerRow {
                k,
                scale: norms.as_ref(),
            },
            Activation::BatchTopK { k, .. } => Select::OfAll {
                k: ((k * rows as f64) as i64).max(1),
                scale: norms.as_ref(),
            },
            _ => Select::Above(bound.as_ref()),
        };
        let found = sparse::encode(read, &self.w_enc, bias, select, SPARSE_BELOW);
        let Some(active) = found.map_err(Error::torch)? else {
            return Ok(None);
        };
        let features = Features::few(active, self.config.d_sae);
        Ok(Some(match (self.config.activation, &self.threshold) {
            (
                Activation::JumpRelu {
                    bandwidth,
                    ste_to_input,
                    ..
                },
                Some(threshold),
            ) => features.map(|pre, columns| {
                jump(
                    pre,
                    &threshold.f_index_select(0, &columns)?,
                    bandwidth,
                    ste_to_input,
                )
            })?,
            _ => features,
        }))
    }

    /// The pre-activations that a learning threshold sees, sparse where that is quicker.
    fn near_threshold(&self, read: &Tensor) -> Result<Option<Features>> {
        let (Some(bias), Some(threshold), Activation::JumpRelu { bandwidth, .. }) =
            (&self.b_enc, &self.threshold, self.config.activation)
        else {
            return Ok(None);
        };
        if !fused::enabled_for_f32(&[read, &self.w_enc, bias]) {
            return Ok(None);
        }
        let bound = threshold.f_detach()?.f_sub_scalar(bandwidth / 2.0)?;
        let select = Select::Above(Some(&bound));
        let found = sparse::encode(read, &self.w_enc, bias, select, SPARSE_BELOW);
        let found = found.map_err(Error::torch)?;
        Ok(found.map(|active| Features::few(active, self.config.d_sae)))
    }

    /// Features by dense products.
    fn encode_all(&self, read: &Tensor) -> Result<Features> {
        if let Some(Gate { bias, b_mag, r_mag }) = &self.gate {
            let gate = bias.f_addmm(read, &self.w_enc)?.f_gt(0.0)?;
            let magnitude = b_mag.f_addmm(read, &self.w_enc.f_mul(&r_mag.f_exp()?)?)?;
            let features = magnitude.f_relu()?.f_mul(&gate.f_to_kind(read.kind())?)?;
            return Ok(Features::all(features));
        }
        let bias = self.b_enc.as_ref().ok_or_else(|| check::absent("b_enc"))?;
        let pre = bias.f_addmm(read, &self.w_enc)?; // [rows, features]
        let features = match (self.config.activation, &self.threshold) {
            (
                Activation::JumpRelu {
                    bandwidth,
                    ste_to_input,
                    ..
                },
                Some(threshold),
            ) => jump(&pre, threshold, bandwidth, ste_to_input)?,
            (Activation::TopK { k, .. }, _) => {
                let mask = largest(&self.scores(&pre)?, k)?;
                pre.f_relu()?.f_mul(&mask)?
            }
            (Activation::BatchTopK { k, .. }, _) => {
                let scores = self.scores(&pre)?.f_relu()?.f_reshape([1, -1])?;
                let count = ((k * pre.size()[0] as f64) as i64).max(1);
                let mask = largest(&scores, count)?.f_reshape(pre.size())?;
                pre.f_relu()?.f_mul(&mask)?
            }
            _ => pre.f_relu()?,
        };
        Ok(Features::all(features))
    }

    /// By what values before the activation are compared.
    fn scores(&self, pre: &Tensor) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        Ok(match self.row_norms()? {
            Some(norms) => pre.f_mul(&norms)?,
            None => pre.shallow_clone(),
        })
    }

    /// Features and reconstruction of rows.
    ///
    /// # Shapes
    /// `x`: `[rows, d_in]`; the reconstruction is `[rows, d_out]`.
    /// # Errors
    /// [`Error::Shape`] for another shape or kind.
    pub fn forward(&self, x: &Tensor) -> Result<Coded> {
        let (read, scaled) = self.read(x)?;
        let features = self.encode_read(&read)?;
        let mut ys = features.times(&self.w_dec)?.f_add(self.output_bias())?;
        // The package that scales activations undoes it for autoencoders alone: a transcoder's output has a size of its own.
        if self.config.role == Role::Autoencoder {
            if let Some(factor) = scaled.factor {
                ys = ys.f_mul(&factor)?;
            }
            if let Some(shift) = scaled.shift {
                ys = ys.f_add(&shift)?;
            }
        }
        if let Some(skip) = &self.w_skip {
            ys = ys.f_add(&x.f_matmul(&skip.f_tr()?)?)?;
        }
        Ok(Coded {
            features,
            reconstruction: ys,
        })
    }

    /// Features as the conventions show them: `[rows, features]`, times the norms of the decoder's rows where they are compared by those.
    ///
    /// # Errors
    /// [`Error::Torch`] when there is no memory for them.
    pub fn shown(&self, features: &Features) -> Result<Tensor> {
        let dense = features.dense()?;
        Ok(match self.row_norms()? {
            Some(norms) => dense.f_mul(&norms)?,
            None => dense,
        })
    }
}

/// pre where it is above the threshold, else 0. The threshold's gradient is that of a straight line as wide as the bandwidth: -(threshold / bandwidth) inside.
fn jump(pre: &Tensor, threshold: &Tensor, bandwidth: f64, ste_to_input: bool) -> Result<Tensor> {
    let fixed = threshold.f_detach()?;
    let seen = pre.f_detach()?;
    let mask = seen.f_gt_tensor(&fixed)?.f_to_kind(pre.kind())?;
    let mut features = pre.f_mul(&mask)?;
    if !fused::records_gradients() {
        return Ok(features);
    }
    let slope = config::window(&seen, &fixed, bandwidth)?.f_mul(&fixed)?;
    // Of value 0: it carries the gradient alone.
    features = features.f_add(&slope.f_mul(&fixed.f_sub(threshold)?)?)?;
    if ste_to_input {
        features = features.f_add(&slope.f_mul(&pre.f_sub(&seen)?)?)?;
    }
    Ok(features)
}

/// 1 at the k largest of each row, 0 elsewhere; of equal ones the first.
fn largest(scores: &Tensor, k: i64) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let k = k.min(scores.size()[1]);
    let (_, order) = scores.f_sort_stable(true, -1, true)?;
    let first = order.f_narrow(1, 0, k)?;
    let ones = first.f_ones_like()?.f_to_kind(scores.kind())?;
    Ok(scores.f_zeros_like()?.f_scatter(1, &first, &ones)?)
}

impl Model for Dictionary {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        let [x, target, dead] = take_inputs(inputs, ["x", "target", "dead"])?;
        let x = x.ok_or_else(|| check::absent("x"))?;
        let target = match (target, self.config.role) {
            (Some(target), _) => target,
            (None, Role::Autoencoder) => x,
            (None, Role::Transcoder) => return Err(check::absent("target")),
        };
        let dead = dead
            .map(|dead| {
                check::shape("dead", dead, &[Some(self.config.d_sae)])?;
                check::kind("dead", dead, self.w_enc.kind())?;
                Ok::<_, Error>(dead.f_gt(0.0)?)
            })
            .transpose()?;
        let (coded, losses) = self.losses(x, target, dead.as_ref(), 1.0)?;
        Ok(Tensors::from([
            ("features".to_owned(), self.shown(&coded.features)?),
            ("reconstruction".to_owned(), coded.reconstruction),
            ("loss".to_owned(), losses.total),
            ("loss_mse".to_owned(), losses.error),
            ("loss_sparsity".to_owned(), losses.sparsity),
        ]))
    }
}
