//! Logistic regression on tokens: a weight per token and per number, the baseline that every click model must beat.

use densely_core::nn::parameter;
use densely_core::{Error, Result, Tensors};
use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Kind, Tensor};

use crate::fields::{self, Field};

const CPU: (Kind, tch::Device) = (Kind::Float, tch::Device::Cpu);

/// The fields of a logistic regression.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogisticConfig {
    /// Inputs in order; a sequence counts as the mean of its tokens' weights.
    pub fields: Vec<Field>,
}

/// Logistic regression: the logit is a bias and the sum of the weights of a row's tokens and numbers.
#[derive(Debug)]
pub struct Logistic {
    weights: Vec<(Field, Tensor)>,
    bias: Tensor,
}

impl LogisticConfig {
    /// Creates the parameters under `vs`, all 0: the loss is convex.
    ///
    /// # Errors
    /// [`Error::Config`] for fields that contradict each other.
    pub fn build(&self, vs: &Path) -> Result<Logistic> {
        fields::validate(&self.fields)?;
        let weights = self.fields.iter().map(|field| {
            let zeros = Tensor::zeros([field.vocab_size().unwrap_or(1)], CPU);
            let path = vs / "weights" / field.name();
            (field.clone(), parameter(&path, "weight", &zeros))
        });
        Ok(Logistic {
            weights: weights.collect(),
            bias: parameter(vs, "bias", &Tensor::zeros([1], CPU)),
        })
    }
}

impl Logistic {
    /// Logits `[batch]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when a field is missing.
    pub fn forward(&self, inputs: &Tensors) -> Result<Tensor> {
        let mut logits = self.bias.shallow_clone();
        for (field, weight) in &self.weights {
            let name = field.name();
            let xs = inputs.get(name).ok_or_else(|| Error::Shape {
                what: name.to_owned(),
                expected: "a tensor for each field".to_owned(),
                got: "none".to_owned(),
            })?;
            let term = match field {
                Field::Numeric { .. } => xs.f_mul(weight)?,
                // Padding weighs nothing, whatever its weight.
                Field::Categorical { .. } => weight
                    .f_take(xs)?
                    .f_mul(&xs.f_ne(0)?.f_to_kind(Kind::Float)?)?,
                Field::Sequence { .. } => {
                    let valid = xs.f_ne(0)?.f_to_kind(Kind::Float)?;
                    let count = valid
                        .f_sum_dim_intlist(1, false, Kind::Float)?
                        .f_clamp_min(1.0)?;
                    let sum = weight.f_take(xs)?.f_mul(&valid)?;
                    sum.f_sum_dim_intlist(1, false, Kind::Float)?
                        .f_div(&count)?
                }
            };
            logits = logits.f_add(&term)?;
        }
        Ok(logits)
    }
}
