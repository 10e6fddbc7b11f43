//! Parameters, their first values, and what training holds them to.

use densely_core::{Error, Result, check, nn};
use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Device, Kind, Tensor};

use super::config::{Activation, Init, InputBias, Role};
use super::{Dictionary, DictionaryConfig, Features, Gate};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// The middle of some rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Centre {
    /// Their mean.
    #[default]
    Mean,
    /// The place from which the sum of distances is least, by Weiszfeld's steps.
    GeometricMedian,
}

impl Centre {
    /// The middle of rows `[rows, d]`, `[d]`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless it is a matrix.
    pub fn of(self, rows: &Tensor) -> Result<Tensor> {
        check::shape("rows", rows, &[None, None])?;
        let _no_grad = tch::no_grad_guard();
        let mut middle = rows.f_mean_dim([0i64].as_slice(), false, None::<Kind>)?;
        if self == Self::Mean {
            return Ok(middle);
        }
        // As the paper's code: at most 100 steps, and none when the sum of distances changes by less than a millionth of itself.
        let mut before = f64::INFINITY;
        for _ in 0..100 {
            let distances = rows
                .f_sub(&middle)?
                .f_norm_scalaropt_dim(2.0, [-1], true)?
                .f_clamp_min(1e-6)?;
            let sum = distances.f_sum(Kind::Double)?.f_double_value(&[])?;
            if (before - sum).abs() <= 1e-6 * sum {
                break;
            }
            before = sum;
            let weights = distances.f_reciprocal()?;
            let sums =
                rows.f_mul(&weights)?
                    .f_sum_dim_intlist([0i64].as_slice(), false, None::<Kind>)?;
            middle = sums.f_div(&weights.f_sum(None::<Kind>)?)?;
        }
        Ok(middle)
    }
}

impl DictionaryConfig {
    /// Creates the parameters under `vs`, drawing from libtorch's global generator: `W_enc`, `W_dec`, `b_dec` and, as the config says, `b_enc` or `b_gate`,
    /// `b_mag` and `r_mag`, `b_dec_out`, `W_skip` and `threshold`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<Dictionary> {
        self.validate()?;
        let Self {
            d_in, d_out, d_sae, ..
        } = *self;
        let (encoder, decoder) = self.draw();
        // The encoder's columns lie side by side in memory: sparse gradients are whole lines then. A copy: it may be the decoder's own transpose.
        let encoder = encoder.tr().contiguous().copy().tr();
        let zeros = |name: &str, size: &[i64]| nn::parameter(vs, name, &Tensor::zeros(size, CPU));
        let gated = self.activation == Activation::Gated {};
        let own = self.input_bias == InputBias::Own;
        Ok(Dictionary {
            w_enc: nn::parameter(vs, "W_enc", &encoder),
            b_enc: (!gated).then(|| zeros("b_enc", &[d_sae])),
            w_dec: nn::parameter(vs, "W_dec", &decoder),
            b_dec: zeros("b_dec", &[if own { d_in } else { d_out }]),
            b_dec_out: own.then(|| zeros("b_dec_out", &[d_out])),
            w_skip: self.skip.then(|| zeros("W_skip", &[d_out, d_in])),
            threshold: match self.activation {
                Activation::JumpRelu { threshold, .. } => {
                    let value = Tensor::full([d_sae], threshold, CPU);
                    Some(nn::parameter(vs, "threshold", &value))
                }
                _ => None,
            },
            topk_threshold: match self.activation {
                Activation::BatchTopK { .. } => {
                    let zero = Tensor::zeros([], (Kind::Double, Device::Cpu));
                    Some(nn::buffer(vs, "topk_threshold", &zero))
                }
                _ => None,
            },
            gate: gated.then(|| Gate {
                bias: zeros("b_gate", &[d_sae]),
                b_mag: zeros("b_mag", &[d_sae]),
                r_mag: zeros("r_mag", &[d_sae]),
            }),
            config: *self,
        })
    }

    /// First values of the encoder `[d_in, d_sae]` and the decoder `[d_sae, d_out]`.
    fn draw(&self) -> (Tensor, Tensor) {
        let Self {
            d_in, d_out, d_sae, ..
        } = *self;
        // The bound that PyTorch's Kaiming draws have, in its order of rounding.
        let kaiming = |rows: i64, columns: i64| {
            let bound = 3f64.sqrt() * (2f64.sqrt() / (columns as f64).sqrt());
            nn::uniform(&[rows, columns], bound)
        };
        let unit = |rows: &Tensor| rows / rows.norm_scalaropt_dim(2.0, [-1], true);
        match self.init {
            Init::Paper => {
                let encoder = kaiming(d_in, d_sae);
                (encoder, unit(&kaiming(d_sae, d_out)))
            }
            Init::SaeLens if self.role == Role::Autoencoder => {
                let decoder = unit(&kaiming(d_sae, d_out)) * 0.1;
                (decoder.tr(), decoder)
            }
            // The package trains no transcoders; its untrained ones are drawn like this.
            Init::SaeLens => {
                let decoder = kaiming(d_sae, d_out);
                (kaiming(d_in, d_sae), decoder)
            }
            Init::Sparsify => {
                let (encoder, _) = linear(d_in, d_sae);
                let decoder = if self.role == Role::Transcoder {
                    Tensor::zeros([d_sae, d_out], CPU)
                } else {
                    // The package adds the smallest step to the norm.
                    &encoder
                        / (encoder.norm_scalaropt_dim(2.0, [-1], true) + f64::from(f32::EPSILON))
                };
                (encoder.tr(), decoder)
            }
        }
    }
}

/// Weight and bias as PyTorch's linear layer draws them.
fn linear(inputs: i64, outputs: i64) -> (Tensor, Tensor) {
    let store = tch::nn::VarStore::new(Device::Cpu);
    let _no_grad = tch::no_grad_guard();
    let (weight, bias) = nn::linear_parameters(&store.root(), inputs, outputs);
    (weight.detach(), bias.detach())
}

impl Dictionary {
    /// Sets the biases by the first rows, as the conventions of [`Init`] do: `b_dec` (and `b_dec_out`) at the middle of what they stand for, and for
    /// `sparsify` the encoder's bias so that the mean input gives 0.
    ///
    /// # Shapes
    /// `x`: `[rows, d_in]`; `target`: `[rows, d_out]`.
    /// # Errors
    /// [`Error::Shape`] when shapes or kinds do not fit.
    pub fn start_from(&mut self, x: &Tensor, target: &Tensor, centre: Centre) -> Result<()> {
        check::shape("x", x, &[None, Some(self.config.d_in)])?;
        check::shape("target", target, &[None, Some(self.config.d_out)])?;
        let _no_grad = tch::no_grad_guard();
        match &mut self.b_dec_out {
            Some(out) => {
                out.f_copy_(&centre.of(target)?)?;
                self.b_dec.f_copy_(&centre.of(x)?)?;
            }
            None => self.b_dec.f_copy_(&centre.of(target)?)?,
        }
        if self.config.init == Init::Sparsify
            && self.config.role == Role::Transcoder
            && let Some(bias) = &mut self.b_enc
        {
            let mean = Centre::Mean.of(x)?.f_unsqueeze(0)?;
            let image = mean.f_matmul(&self.w_enc)?.f_neg()?.f_squeeze_dim(0)?;
            bias.f_copy_(&image)?;
        }
        Ok(())
    }

    /// Scales the decoder's rows to norm 1; rows of zeros stay.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn unit_rows(&mut self) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let norms = self.w_dec.f_norm_scalaropt_dim(2.0, [-1], true)?;
        let _ = self
            .w_dec
            .f_div_(&norms.f_clamp_min(f64::from(f32::MIN_POSITIVE))?)?;
        Ok(())
    }

    /// Takes from each decoder row's gradient what would only change the row's length.
    ///
    /// # Errors
    /// [`Error::Config`] before any gradient is there.
    pub fn remove_parallel_gradient(&self) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let mut grad = self.w_dec.grad();
        if !grad.defined() {
            let reason = "has no gradient yet";
            return Err(Error::config("W_dec", reason));
        }
        let along =
            grad.f_mul(&self.w_dec)?
                .f_sum_dim_intlist([-1i64].as_slice(), true, None::<Kind>)?;
        let _ = grad.f_addcmul_(&along, &self.w_dec.f_neg()?)?;
        Ok(())
    }

    /// Lets the threshold of `batch-top-k` follow the least feature above 0 of a step: by a hundredth of the way, as `sae_lens`. The first one is taken whole:
    /// `sae_lens` begins at 0, and a short training there ends with too low a threshold.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn follow_threshold(&mut self, features: &Features) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let norms = self.row_norms()?;
        let Some(threshold) = &mut self.topk_threshold else {
            return Ok(());
        };
        let [_, columns, mut values] = features.places()?;
        if values.numel() == 0 {
            return Ok(());
        }
        if let Some(norms) = norms {
            values = values.f_mul(&norms.f_index_select(0, &columns)?)?;
        }
        let least = values.f_min()?.f_to_kind(threshold.kind())?;
        if threshold.f_double_value(&[])? == 0.0 {
            threshold.f_copy_(&least)?;
            return Ok(());
        }
        let _ = threshold
            .f_mul_scalar_(0.99)?
            .f_add_(&least.f_mul_scalar(0.01)?)?;
        Ok(())
    }

    /// The threshold of `batch-top-k` that stands for the choice among a whole batch.
    pub(super) fn batch_threshold(&self) -> Result<f64> {
        let threshold = self
            .topk_threshold
            .as_ref()
            .ok_or_else(|| check::absent("topk_threshold"))?;
        Ok(threshold.f_double_value(&[])?)
    }

    /// The dictionary as it is used and saved, with the same parameters: `batch-top-k` chooses among the tokens of a batch, so that a token's features hang
    /// on the others; a threshold stands in its place.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn settled(&self) -> Result<Self> {
        let share = |xs: &Option<Tensor>| xs.as_ref().map(Tensor::shallow_clone);
        let mut settled = Self {
            config: self.config,
            w_enc: self.w_enc.shallow_clone(),
            b_enc: share(&self.b_enc),
            w_dec: self.w_dec.shallow_clone(),
            b_dec: self.b_dec.shallow_clone(),
            b_dec_out: share(&self.b_dec_out),
            w_skip: share(&self.w_skip),
            threshold: share(&self.threshold),
            topk_threshold: share(&self.topk_threshold),
            gate: self.gate.as_ref().map(|gate| Gate {
                bias: gate.bias.shallow_clone(),
                b_mag: gate.b_mag.shallow_clone(),
                r_mag: gate.r_mag.shallow_clone(),
            }),
        };
        if !matches!(self.config.activation, Activation::BatchTopK { .. }) {
            return Ok(settled);
        }
        let _no_grad = tch::no_grad_guard();
        let one = self.batch_threshold()?;
        let options = (self.w_dec.kind(), self.w_dec.device());
        let all = Tensor::f_full([self.config.d_sae], one, options)?;
        // A feature is compared times the norm of what it writes: so is the threshold. One that writes nothing is never active.
        settled.threshold = Some(match self.row_norms()? {
            Some(norms) => all.f_div(&norms.f_detach()?)?,
            None => all,
        });
        settled.topk_threshold = None;
        settled.config.activation = Activation::JumpRelu {
            threshold: one,
            bandwidth: 0.05,
            ste_to_input: false,
        };
        Ok(settled)
    }

    /// Keeps thresholds at 0 or above, where they have a meaning.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn clamp_threshold(&mut self) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        if let Some(threshold) = &mut self.threshold {
            let _ = threshold.f_clamp_min_(0.0)?;
        }
        Ok(())
    }
}
