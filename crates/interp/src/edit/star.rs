//! The value that a layer should write for the subject so that the target follows: found by Adam on what is added to it.

use densely_core::{Error, Result, check};
use densely_lm::{Lm, Run};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::adam::Adam;
use super::request::Request;
use super::rows::{Batch, Noised, chosen, joined, target_places};
use super::wide;

/// Where something is added at the subject's last token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The output of the MLP.
    Mlp,
    /// The output of the block.
    Block,
}

/// What shall become of the target's probability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// It rises: the loss is the negative logarithm of the target's tokens.
    #[default]
    Raise,
    /// It falls: the loss is the probability itself, the product over the target's tokens.
    Lower,
}

/// Settings of the search for the value. Defaults are ROME's, without the clamp of a certain model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StarOptions {
    /// Learning rate of Adam.
    pub lr: f64,
    /// Evaluations of the loss; the last one makes no update.
    pub steps: usize,
    /// Most that is added, in norms of the value as it was.
    pub clamp: f64,
    /// Weight of the change in what follows the subject elsewhere.
    pub kl_factor: f64,
    /// Weight of the norm of what is added, over the square of the norm of the value as it was.
    pub weight_decay: f64,
    /// The search ends when the loss is below it.
    pub stop: f64,
    /// Whether the target shall become likely or unlikely.
    pub objective: Objective,
}

impl Default for StarOptions {
    fn default() -> Self {
        Self {
            lr: 0.5,
            steps: 20,
            clamp: 4.0,
            kl_factor: 0.0625,
            weight_decay: 0.5,
            stop: 5e-2,
            objective: Objective::Raise,
        }
    }
}

impl StarOptions {
    /// Fails on settings that mean nothing.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        check::above_zero("lr", self.lr)?;
        check::positive("steps", self.steps as i64)?;
        check::above_zero("clamp", self.clamp)?;
        for (name, value) in [
            ("kl_factor", self.kl_factor),
            ("weight_decay", self.weight_decay),
        ] {
            if !value.is_finite() || value < 0.0 {
                let reason = format!("must be at least 0, got {value}");
                return Err(Error::config(name, reason));
            }
        }
        if self.stop.is_nan() {
            return Err(Error::config("stop", "must be a number"));
        }
        Ok(())
    }
}

/// What the search found.
#[derive(Debug)]
pub(crate) struct Star {
    /// The value that should be written, `[d]`.
    pub value: Tensor,
    /// The value as it was, of the prompt alone, `[d]`.
    pub initial: Tensor,
    /// The loss of each evaluation.
    pub losses: Vec<f64>,
}

/// Searches for what is added to the output of `layer` at the subject's last token, in each of the request's rows and in its KL prompt.
///
/// Nothing below changes from step to step, so that it is computed once: a step costs the layers above. Adding to an MLP's output is
/// adding to the residual that leaves its block, in every architecture here.
pub(crate) fn optimise(
    model: &Lm,
    request: &Request,
    layer: usize,
    place: Place,
    options: &StarOptions,
) -> Result<Star> {
    options.validate()?;
    let kind = wide(model.kind());
    let layers = model.config().n_layers;
    let target = &request.target;
    let contexts: Vec<_> = request.contexts()?.into_iter().flatten().collect();
    let mut rows: Vec<Vec<i64>> = contexts.iter().map(|r| joined(&r.ids, target)).collect();
    let mut subjects: Vec<(usize, usize)> = contexts
        .iter()
        .enumerate()
        .map(|(i, r)| (i, r.place))
        .collect();
    let mut places = Vec::new();
    for (row, context) in contexts.iter().enumerate() {
        places.extend(target_places(row, context.ids.len(), target.len()));
    }
    let kl_weight = options.kl_factor;
    let kl = request.kl.as_ref().filter(|_| kl_weight > 0.0);
    if let Some(kl) = kl {
        subjects.push((rows.len(), kl.place));
        // Its own place comes behind those of the targets.
        places.push((rows.len(), kl.place));
        rows.push(kl.ids.clone());
    }
    let noised = request.noise.as_ref().map(|draws| Noised {
        start: request.subject.start,
        draws,
        rows: contexts.len(),
    });
    let batch = Batch::new(model, &rows, noised)?;
    let point = format!("blocks.{layer}.hook_mlp_out");
    let points: Vec<String> = match place {
        Place::Mlp => vec![point.clone()],
        Place::Block => Vec::new(),
    };
    let (residual, cache) = batch.enter(model, layer + 1, &points)?;
    let first = subjects.get(..1).unwrap_or_default();
    let initial = match place {
        Place::Mlp => batch.pick(cache.get(&point)?, first)?,
        Place::Block => batch.pick(&residual, first)?,
    };
    let initial = initial.f_select(0, 0)?.f_totype(kind)?; // [d]
    let norm = initial.f_norm()?.f_double_value(&[])?;
    check::above_zero("norm of the value at the subject", norm)?;
    let limit = options.clamp * norm;
    let marks = batch.marks(&subjects, model.kind())?;
    let repeated: Vec<i64> = contexts
        .iter()
        .flat_map(|_| target.iter().copied())
        .collect();
    let count = [contexts.len() as i64, target.len() as i64];

    let width = model.config().d_model;
    let zeros = Tensor::f_zeros([width], (kind, model.device()))?;
    let mut delta = [zeros.f_set_requires_grad(true)?];
    let mut adam = Adam::new(options.lr, &delta)?;
    let mut before: Option<Tensor> = None;
    let mut losses = Vec::new();
    for step in 0..options.steps {
        let added = delta[0].f_totype(model.kind())?.f_mul(&marks)?; // [rows, tokens, d]
        let entering = residual.f_add(&added)?;
        let mut run = Run::new().stop_at(layers).with_gradients();
        let last = model.run_from(layer + 1, &entering, &mut run)?;
        let log_probs = batch.log_probs(model, &last, &places)?;
        let own = log_probs.f_narrow(0, 0, repeated.len() as i64)?;
        let own = chosen(&own, &repeated)?.f_reshape(count)?; // [rows, target]
        let fit = match options.objective {
            Objective::Raise => own.f_mean(None::<Kind>)?.f_neg()?,
            Objective::Lower => own
                .f_sum_dim_intlist([1i64].as_slice(), false, None::<Kind>)?
                .f_exp()?
                .f_mean(None::<Kind>)?,
        };
        let decay = delta[0]
            .f_norm()?
            .f_mul_scalar(options.weight_decay / (norm * norm))?;
        let mut loss = fit.f_add(&decay)?;
        if kl.is_some() {
            let now = log_probs.f_select(0, repeated.len() as i64)?; // [vocabulary]
            let before = before.get_or_insert_with(|| now.detach());
            let divergence = now
                .f_exp()?
                .f_mul(&now.f_sub(before)?)?
                .f_sum(None::<Kind>)?;
            loss = loss.f_add(&divergence.f_mul_scalar(kl_weight)?)?;
        }
        let value = loss.f_double_value(&[])?;
        losses.push(value);
        if !value.is_finite() {
            return Err(Error::Diverged {
                step: step as u64,
                loss: value,
            });
        }
        if value < options.stop || step + 1 == options.steps {
            break;
        }
        let gradients = Tensor::f_run_backward(&[&loss], &[&delta[0]], false, false)?;
        adam.step(&mut delta, &gradients)?;
        let _guard = tch::no_grad_guard();
        let length = delta[0].f_norm()?.f_double_value(&[])?;
        if length > limit {
            let cut = delta[0].f_mul_scalar(limit / length)?;
            delta[0].f_copy_(&cut)?;
        }
    }
    let _guard = tch::no_grad_guard();
    let value = initial.f_add(&delta[0].f_detach()?)?;
    Ok(Star {
        value,
        initial,
        losses,
    })
}

/// The keys, inputs of a layer's second MLP matrix at the subject's last token, `[rows of a group, m]` for each group, and of the prompt
/// alone the MLP's output there, `[d]`.
pub(crate) fn keys(model: &Lm, request: &Request, layer: usize) -> Result<(Vec<Tensor>, Tensor)> {
    let _guard = tch::no_grad_guard();
    let contexts = request.contexts()?;
    let flat: Vec<_> = contexts.iter().flatten().collect();
    let rows: Vec<Vec<i64>> = flat.iter().map(|row| row.ids.clone()).collect();
    let places: Vec<(usize, usize)> = flat.iter().enumerate().map(|(i, r)| (i, r.place)).collect();
    let noised = request.noise.as_ref().map(|draws| Noised {
        start: request.subject.start,
        draws,
        rows: rows.len(),
    });
    let batch = Batch::new(model, &rows, noised)?;
    let points = [
        format!("blocks.{layer}.mlp.hook_post"),
        format!("blocks.{layer}.hook_mlp_out"),
    ];
    let (_, cache) = batch.enter(model, layer + 1, &points)?;
    let [post, out] = &points;
    let all = batch.pick(cache.get(post)?, &places)?; // [rows, m]
    let first = places.get(..1).unwrap_or_default();
    let value = batch.pick(cache.get(out)?, first)?.f_select(0, 0)?;
    let mut groups = Vec::with_capacity(contexts.len());
    let mut start = 0;
    for group in &contexts {
        let length = group.len() as i64;
        groups.push(all.f_narrow(0, start, length)?);
        start += length;
    }
    Ok((groups, value))
}
