//! Finetuning of MLP matrices: what ROME and MEMIT are compared with.
//!
//! Follows: kmeng01/rome `baselines/ft/ft_main.py`, and for several layers, the sequence loss and noised subjects
//! google/belief-localization. Adam trains the second matrices of some layers; after each step every entry is put back to within ε of what it
//! was. The matrices are trained in at least single precision beside the model, which stays as it is.

use std::cell::RefCell;

use densely_core::{Error, Result, check};
use densely_lm::{Lm, Run};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::adam::Adam;
use super::request::Request;
use super::rows::{Batch, Noised, chosen, joined, target_places};
use super::star::Objective;
use super::{Change, Delta, Edit, double, wide};

/// How the tokens of a target enter the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetLoss {
    /// Every token is read from the one distribution behind the prompt, averaged: the released code of ROME. Right for targets of one
    /// token only.
    SinglePosition,
    /// Each token after those before it, averaged.
    #[default]
    SequenceMean,
    /// Each token after those before it, summed.
    SequenceSum,
}

impl TargetLoss {
    /// As in options and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SinglePosition => "single-position",
            Self::SequenceMean => "sequence-mean",
            Self::SequenceSum => "sequence-sum",
        }
    }
}

/// Settings of finetuning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinetuneOptions {
    /// The layers whose matrices are trained, in ascending order.
    pub layers: Vec<usize>,
    /// Learning rate of Adam.
    pub lr: f64,
    /// Steps at most.
    pub steps: usize,
    /// Most that an entry may differ from what it was; `None` for no limit.
    pub clamp: Option<f64>,
    /// How the tokens of a target enter the loss.
    pub loss: TargetLoss,
    /// Train the bias too, as the released code does because it looks for a part of the matrix's name.
    pub bias: bool,
    /// A loss below it counts as reached; no update is made then.
    pub stop: f64,
    /// So many evaluations below it, one after the other, end the training.
    pub patience: usize,
    /// Whether the target shall become likely or unlikely. [`Objective::Lower`] makes the loss the probability itself.
    pub objective: Objective,
}

impl FinetuneOptions {
    /// The released settings at some layers, with a limit for each entry.
    pub fn new(layers: Vec<usize>, clamp: Option<f64>) -> Self {
        Self {
            layers,
            lr: 5e-4,
            steps: 25,
            clamp,
            loss: TargetLoss::default(),
            bias: false,
            stop: 1e-2,
            patience: 1,
            objective: Objective::default(),
        }
    }

    fn validate(&self) -> Result<()> {
        check::above_zero("lr", self.lr)?;
        check::positive("steps", self.steps as i64)?;
        check::positive("patience", self.patience as i64)?;
        if let Some(clamp) = self.clamp {
            check::above_zero("clamp", clamp)?;
        }
        if self.objective == Objective::Lower && self.loss == TargetLoss::SinglePosition {
            let reason = "cannot be of a single position where the target shall become unlikely";
            return Err(Error::config("loss", reason));
        }
        let ascending = self.layers.windows(2).all(|pair| pair[0] < pair[1]);
        if self.layers.is_empty() || !ascending {
            let reason = format!(
                "must be at least one, in ascending order, got {:?}",
                self.layers
            );
            return Err(Error::config("layers", reason));
        }
        Ok(())
    }
}

/// An edit by finetuning.
#[derive(Debug)]
pub struct Finetuned {
    /// The change.
    pub edit: Edit,
    /// The loss of each evaluation, averaged over the requests.
    pub losses: Vec<f64>,
}

/// Rows of all requests, and what they should be followed by.
struct Prepared {
    batch: Batch,
    /// Residual that enters the first trained layer.
    residual: Tensor,
    places: Vec<(usize, usize)>,
    targets: Vec<i64>,
    /// `[rows, entries of places]`: sums the logarithms of a row.
    sums: Tensor,
    /// `[rows]`: weights of the rows, 1 in all.
    weights: Tensor,
}

impl Prepared {
    fn new(model: &Lm, requests: &[Request], options: &FinetuneOptions) -> Result<Self> {
        let noise = match requests {
            [one] => one.noise.as_ref(),
            _ if requests.iter().any(|request| request.noise.is_some()) => {
                let reason = "with noise on the subject must come alone";
                return Err(Error::config("requests", reason));
            }
            _ => None,
        };
        let draws = noise.map_or(1, |noise| noise.size().first().copied().unwrap_or(1)) as usize;
        let single = options.loss == TargetLoss::SinglePosition;
        let mut rows: Vec<Vec<i64>> = Vec::new();
        let mut places: Vec<(usize, usize)> = Vec::new();
        let mut targets: Vec<i64> = Vec::new();
        let mut lengths: Vec<usize> = Vec::new();
        for request in requests {
            let prompt = &request.bare()?.ids;
            for _ in 0..draws {
                let count = request.target.len();
                if single {
                    places.extend(std::iter::repeat_n((rows.len(), prompt.len() - 1), count));
                    rows.push(prompt.clone());
                } else {
                    places.extend(target_places(rows.len(), prompt.len(), count));
                    rows.push(joined(prompt, &request.target));
                }
                targets.extend(&request.target);
                lengths.push(count);
            }
        }
        let start = requests.first().map_or(0, |request| request.subject.start);
        let noised = noise.map(|draws| Noised {
            start,
            draws,
            rows: rows.len(),
        });
        let batch = Batch::new(model, &rows, noised)?;
        let first = options.layers.first().copied().unwrap_or(0);
        let (residual, _) = batch.enter(model, first, &[])?;
        let mean = options.loss != TargetLoss::SequenceSum && options.objective == Objective::Raise;
        let mut sums = vec![0.0f64; rows.len() * targets.len()];
        let mut at = 0;
        for (row, length) in lengths.iter().enumerate() {
            for place in at..at + length {
                if let Some(entry) = sums.get_mut(row * targets.len() + place) {
                    *entry = if mean { 1.0 / *length as f64 } else { 1.0 };
                }
            }
            at += length;
        }
        let kind = wide(model.kind());
        let to = |values: &[f64]| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(values)?
                .f_to(model.device())?
                .f_totype(kind)?)
        };
        let sums = to(&sums)?.f_reshape([rows.len() as i64, targets.len() as i64])?;
        let weights = to(&vec![1.0 / rows.len() as f64; rows.len()])?;
        Ok(Self {
            batch,
            residual,
            places,
            targets,
            sums,
            weights,
        })
    }

    /// The loss with matrices and biases in the place of the model's.
    fn loss(
        &self,
        model: &Lm,
        options: &FinetuneOptions,
        trained: &[(Tensor, Option<Tensor>)],
    ) -> Result<Tensor> {
        let kept: Vec<RefCell<Option<Tensor>>> =
            options.layers.iter().map(|_| RefCell::new(None)).collect();
        let mut run = Run::new().stop_at(model.config().n_layers).with_gradients();
        for ((layer, slot), (matrix, bias)) in options.layers.iter().zip(&kept).zip(trained) {
            run = run
                .hook(
                    format!("blocks.{layer}.mlp.hook_post"),
                    move |xs: &Tensor| {
                        *slot.borrow_mut() = Some(xs.shallow_clone());
                        Ok(None)
                    },
                )
                .hook(
                    format!("blocks.{layer}.hook_mlp_out"),
                    move |xs: &Tensor| {
                        let Some(post) = slot.take() else {
                            let reason = "came before the hidden values that it is made of";
                            return Err(Error::config("hook_mlp_out", reason));
                        };
                        let weight = matrix.f_totype(xs.kind())?.f_tr()?;
                        let bias = bias
                            .as_ref()
                            .map(|bias| bias.f_totype(xs.kind()))
                            .transpose()?;
                        Ok(Some(post.f_linear(&weight, bias.as_ref())?))
                    },
                );
        }
        let first = options.layers.first().copied().unwrap_or(0);
        let last = model.run_from(first, &self.residual, &mut run)?;
        let log_probs = self.batch.log_probs(model, &last, &self.places)?;
        let own = chosen(&log_probs, &self.targets)?.f_unsqueeze(1)?;
        let rows = self.sums.f_matmul(&own)?.f_squeeze_dim(1)?; // [rows]
        let rows = match options.objective {
            Objective::Raise => rows.f_neg()?,
            Objective::Lower => rows.f_exp()?,
        };
        Ok(rows.f_dot(&self.weights)?)
    }
}

/// Computes the change of finetuning a model on some requests. The model is left as it is; prefixes are not used.
///
/// # Errors
/// [`Error::Config`] when settings are out of range, a layer is none of the model's or a prompt does not fit; [`Error::Diverged`].
pub fn finetune(model: &Lm, requests: &[Request], options: &FinetuneOptions) -> Result<Finetuned> {
    options.validate()?;
    if requests.is_empty() {
        return Err(Error::config("requests", "must be at least one, got none"));
    }
    let kind = wide(model.kind());
    let mut originals = Vec::new();
    for layer in &options.layers {
        let _guard = tch::no_grad_guard();
        let own = |xs: &Tensor| -> Result<Tensor> {
            Ok(xs.f_detach()?.f_contiguous()?.f_totype(kind)?.copy())
        };
        let bias = model.mlp_out_bias(*layer)?;
        let bias = bias.as_ref().map(own).transpose()?;
        originals.push((own(&model.mlp_out(*layer)?)?, bias));
    }
    let prepared = Prepared::new(model, requests, options)?;
    let trained = originals
        .iter()
        .map(|(matrix, bias)| {
            let bias = match bias {
                Some(bias) if options.bias => Some(bias.copy().f_set_requires_grad(true)?),
                other => other.as_ref().map(Tensor::shallow_clone),
            };
            Ok((matrix.copy().f_set_requires_grad(true)?, bias))
        })
        .collect::<Result<Vec<(Tensor, Option<Tensor>)>>>()?;
    // What Adam changes, each with what it was; they share the memory of `trained`.
    let (mut params, mut starts) = (Vec::new(), Vec::new());
    for ((matrix, bias), (old, old_bias)) in trained.iter().zip(&originals) {
        params.push(matrix.shallow_clone());
        starts.push(old.shallow_clone());
        if options.bias
            && let (Some(bias), Some(old)) = (bias, old_bias)
        {
            params.push(bias.shallow_clone());
            starts.push(old.shallow_clone());
        }
    }
    let mut adam = Adam::new(options.lr, &params)?;
    let mut losses = Vec::new();
    let mut reached = 0;
    for step in 0..options.steps {
        let loss = prepared.loss(model, options, &trained)?;
        let value = loss.f_double_value(&[])?;
        losses.push(value);
        if !value.is_finite() {
            return Err(Error::Diverged {
                step: step as u64,
                loss: value,
            });
        }
        if value < options.stop {
            reached += 1;
            if reached >= options.patience {
                break;
            }
            continue;
        }
        reached = 0;
        let gradients = Tensor::f_run_backward(&[&loss], &params, false, false)?;
        adam.step(&mut params, &gradients)?;
        if let Some(clamp) = options.clamp {
            let _guard = tch::no_grad_guard();
            for (param, start) in params.iter_mut().zip(&starts) {
                let low = start.f_sub_scalar(clamp)?;
                let high = start.f_add_scalar(clamp)?;
                let cut = param.f_clamp_tensor(Some(&low), Some(&high))?;
                param.f_copy_(&cut)?;
            }
        }
    }
    let mut changes = Vec::new();
    let all = options.layers.iter().zip(trained.iter().zip(&originals));
    for (layer, ((matrix, bias), (old, old_bias))) in all {
        let _guard = tch::no_grad_guard();
        let name = model.mlp_out_name(*layer)?;
        if options.bias
            && let (Some(bias), Some(old)) = (bias, old_bias)
        {
            let stem = name.strip_suffix("weight").unwrap_or(&name);
            changes.push(Change {
                name: format!("{stem}bias"),
                layer: *layer,
                delta: Delta::Whole(double(bias)?.f_sub(&double(old)?)?),
            });
        }
        changes.push(Change {
            name,
            layer: *layer,
            delta: Delta::Whole(double(matrix)?.f_sub(&double(old)?)?),
        });
    }
    Ok(Finetuned {
        edit: Edit::new(model, "finetune", changes),
        losses,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_position_has_no_probability_of_a_sequence() {
        let mut options = FinetuneOptions::new(vec![0], None);
        assert!(options.validate().is_ok());
        options.loss = TargetLoss::SinglePosition;
        options.objective = Objective::Lower;
        let error = options.validate().expect_err("no sequence");
        assert!(error.to_string().contains("single position"), "{error}");
        options = FinetuneOptions::new(vec![2, 1], None);
        assert!(options.validate().is_err());
        options = FinetuneOptions::new(vec![1], Some(0.0));
        assert!(options.validate().is_err());
    }

    #[test]
    fn adam_takes_its_first_step_by_the_learning_rate() -> Result<()> {
        let mut params = [Tensor::from_slice(&[1.0, -2.0])];
        let mut adam = Adam::new(0.1, &params)?;
        adam.step(&mut params, &[Tensor::from_slice(&[4.0, -0.5])])?;
        let got = Vec::<f64>::try_from(&params[0])?;
        assert!((got[0] - 0.9).abs() < 1e-8 && (got[1] + 1.9).abs() < 1e-8);
        Ok(())
    }
}
