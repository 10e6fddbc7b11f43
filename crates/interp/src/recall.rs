//! How a prompt about a fact is answered: heads that move the subject, MLPs that weigh what heads wrote, and a last layer that
//! holds back.
//!
//! Paper: Lv et al. 2024, "Interpreting Key Mechanisms of Factual Recall in Transformer-Based Language Models", arXiv 2403.19521.
//! Its code does not give the exact form of the regression; what is computed here is said at each function.
//!
//! - [`head_effects`] finds the heads that carry the answer to the last position, by activation or path patching;
//! - [`head_outputs`] reads what such heads write in the vocabulary, and where subject and answer stand there;
//! - [`decompose`] writes the MLP's output at the last position as a weighted sum of heads, residual and a constant;
//! - [`last_layer`] measures what each part of the last layer does to the answer's logit and probability;
//! - [`mitigate`] scales heads and MLPs down or takes directions out, and gives the answer's probability before and after.
//!
//! All of it looks at the last position only, so that prompts may differ in length.

mod heads;
mod last;
mod regression;
mod words;

use densely_core::{Error, Result, check};
use densely_lm::{Cache, Lm, Run};
use tch::{Device, Kind, Tensor};

pub use heads::{HeadEffects, Metric, Patching, head_effects};
pub use last::{
    LastLayer, Mitigation, Part, frequency_direction, frequent_tokens, last_layer, mitigate,
};
pub use regression::{Decomposition, Term, fit};
pub use words::{HeadOutput, head_outputs};

/// A prompt and the token that answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Tokens of the prompt.
    pub ids: Vec<i64>,
    /// The answer's first token.
    pub answer: i64,
}

/// What the MLP's output is written in.
#[derive(Debug, Clone, PartialEq)]
pub struct DecomposeOptions {
    /// Layers below whose heads are terms too.
    pub earlier: usize,
    /// Whether the residual that enters the layer is a term.
    pub residual: bool,
    /// Added to the diagonal of the normal equations, in units of its mean; 0 for plain least squares.
    pub ridge: f64,
}

impl Default for DecomposeOptions {
    fn default() -> Self {
        Self {
            earlier: 0,
            residual: true,
            ridge: 0.0,
        }
    }
}

/// Writes the output m of a layer's MLP at the last position, over prompts of one task, as `Σ w_h a_h + w_r x + b`: outputs a of
/// heads, the residual x that enters the layer, one weight for each whatever the prompt and dimension, and a free constant b.
///
/// Least squares over prompts × width equations, b eliminated by subtracting means over prompts. A weight below 0 erases what its
/// head wrote, one above 0 amplifies it. Heads and residual are collinear to a degree: see the standard errors and
/// [`Decomposition::condition`], and give a ridge where they are large. In models whose attention and MLP read the same residual the MLP
/// does not see the heads of its own layer; take `earlier` ones there.
///
/// # Errors
/// [`Error::Config`] for a layer that the model lacks, fewer than two prompts, or terms that cannot be told apart.
pub fn decompose(
    model: &Lm,
    prompts: &[Vec<i64>],
    layer: usize,
    options: &DecomposeOptions,
) -> Result<Decomposition> {
    check_layer(model, layer)?;
    let layers = layer.saturating_sub(options.earlier)..=layer;
    let mut names: Vec<String> = layers.clone().map(point_z).collect();
    names.push(format!("blocks.{layer}.hook_mlp_out"));
    names.push(format!("blocks.{layer}.hook_resid_pre"));
    let count = layers.clone().count() * model.config().n_heads as usize + 1;
    let numbers = count as u128 * prompts.len() as u128 * model.config().d_model as u128;
    if numbers > 1 << 29 {
        let reason = format!(
            "{count} terms of {} prompts take more than 4 GB; give fewer prompts or `earlier` layers",
            prompts.len()
        );
        return Err(Error::config("prompts", reason));
    }
    let seen = last_positions(model, prompts, &names)?;
    let mut terms = Vec::new();
    for layer in layers {
        let zs = seen.get(&point_z(layer))?.f_unsqueeze(1)?; // [prompts, 1, heads, d_head]
        let results = tch::no_grad(|| model.head_results(layer, &zs))?.f_squeeze_dim(1)?;
        for head in 0..model.config().n_heads {
            let name = format!("L{layer}H{head}");
            terms.push((name, double(&results.f_select(1, head)?)?));
        }
    }
    if options.residual {
        let residual = seen.get(&format!("blocks.{layer}.hook_resid_pre"))?;
        terms.push(("residual".to_owned(), double(residual)?));
    }
    let target = double(seen.get(&format!("blocks.{layer}.hook_mlp_out"))?)?;
    fit(&target, &terms, options.ridge)
}

/// The tokens that a direction `[d]` of the residual speaks for: those of largest `norm(direction) · W_U`, where the last norm only takes
/// the mean out (in a layer norm) and multiplies by its weight. Each with its value.
///
/// # Errors
/// [`Error::Shape`] for another width.
pub fn top_tokens(model: &Lm, direction: &Tensor, count: i64) -> Result<Vec<(i64, f64)>> {
    top(&read_out(model, direction)?, count)
}

/// Places of tokens, from 0, among all tokens by what a direction `[d]` speaks for; see [`top_tokens`].
///
/// # Errors
/// [`Error::Shape`] for another width; [`Error::Config`] for a token that the model lacks.
pub fn ranks(model: &Lm, direction: &Tensor, tokens: &[i64]) -> Result<Vec<i64>> {
    let logits = read_out(model, direction)?;
    tokens
        .iter()
        .map(|token| {
            check_token(model, *token)?;
            let own = logits.f_select(0, *token)?;
            let above = logits.f_gt_tensor(&own)?.f_sum(Kind::Int64)?;
            Ok(above.f_int64_value(&[])?)
        })
        .collect()
}

/// A direction through the frozen last norm and the head, `[vocab]` of kind double on the CPU.
fn read_out(model: &Lm, direction: &Tensor) -> Result<Tensor> {
    check::shape("direction", direction, &[Some(model.config().d_model)])?;
    let _guard = tch::no_grad_guard();
    let direction = direction.f_to(model.device())?.f_to_kind(model.kind())?;
    let one = Tensor::f_ones([1], (Kind::Float, model.device()))?;
    let normed = model.frozen_norm(&direction, &one)?;
    let matrix = model.w_u()?.f_to_kind(normed.kind())?;
    double(&normed.f_unsqueeze(0)?.f_matmul(&matrix)?.f_squeeze_dim(0)?)
}

/// The largest of logits `[vocab]` of kind double, with their tokens.
fn top(logits: &Tensor, count: i64) -> Result<Vec<(i64, f64)>> {
    let count = count.clamp(0, logits.size()[0]);
    let (values, ids) = logits.f_topk(count, 0, true, true)?;
    let ids = Vec::<i64>::try_from(&ids)?;
    let values = Vec::<f64>::try_from(&values)?;
    Ok(ids.into_iter().zip(values).collect())
}

fn point_z(layer: usize) -> String {
    format!("blocks.{layer}.attn.hook_z")
}

fn double(xs: &Tensor) -> Result<Tensor> {
    Ok(xs.f_to(Device::Cpu)?.f_to_kind(Kind::Double)?)
}

fn check_token(model: &Lm, token: i64) -> Result<()> {
    let count = model.config().vocab_size;
    if (0..count).contains(&token) {
        return Ok(());
    }
    let reason = format!("must lie in 0 to {}, got {token}", count - 1);
    Err(Error::config("token", reason))
}

fn check_layer(model: &Lm, layer: usize) -> Result<()> {
    let n_layers = model.config().n_layers;
    if layer < n_layers {
        return Ok(());
    }
    let reason = format!("must be below {n_layers}, got {layer}");
    Err(Error::config("layer", reason))
}

fn check_head(model: &Lm, layer: usize, head: i64) -> Result<()> {
    check_layer(model, layer)?;
    let n_heads = model.config().n_heads;
    if (0..n_heads).contains(&head) {
        return Ok(());
    }
    let reason = format!("must lie in 0 to {}, got {head}", n_heads - 1);
    Err(Error::config("head", reason))
}

fn check_answers(model: &Lm, questions: &[Question]) -> Result<()> {
    check_prompts(model, questions.iter().map(|question| &question.ids))?;
    questions
        .iter()
        .try_for_each(|question| check_token(model, question.answer))
}

/// Fails unless there are prompts, all of which the model takes.
fn check_prompts<'a>(model: &Lm, prompts: impl Iterator<Item = &'a Vec<i64>>) -> Result<()> {
    let mut count = 0usize;
    for ids in prompts {
        count += 1;
        if ids.is_empty() || ids.len() as i64 > model.config().n_ctx {
            let reason = format!(
                "number {count} has {} tokens, the model takes 1 to {}",
                ids.len(),
                model.config().n_ctx
            );
            return Err(Error::config("prompts", reason));
        }
        ids.iter().try_for_each(|id| check_token(model, *id))?;
    }
    if count == 0 {
        return Err(Error::config("prompts", "must hold at least one"));
    }
    Ok(())
}

/// Most prompts of a pass.
const BATCH: usize = 16;

/// Numbers of prompts in passes, each of prompts of one length.
fn passes(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|place| lengths[*place]);
    order
        .chunk_by(|a, b| lengths[*a] == lengths[*b])
        .flat_map(|same| same.chunks(BATCH).map(<[usize]>::to_vec))
        .collect()
}

/// Token ids `[prompts, tokens]` of prompts of one length.
fn input(model: &Lm, prompts: &[&[i64]]) -> Result<Tensor> {
    let rows = prompts
        .iter()
        .map(|ids| Ok(Tensor::f_from_slice(ids)?))
        .collect::<Result<Vec<Tensor>>>()?;
    Ok(Tensor::f_stack(&rows, 0)?.f_to(model.device())?)
}

/// Values of hook points at the last position of each prompt, `[prompts, ..]` in their order.
fn last_positions(model: &Lm, prompts: &[Vec<i64>], names: &[String]) -> Result<Cache> {
    check_prompts(model, prompts.iter())?;
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    let mut order = Vec::with_capacity(prompts.len());
    let mut found: Vec<Vec<Tensor>> = names.iter().map(|_| Vec::new()).collect();
    for pass in passes(&lengths) {
        let ids: Vec<&[i64]> = pass.iter().map(|i| prompts[*i].as_slice()).collect();
        let mut run = Run::new().cache(names).stop_at(model.config().n_layers);
        let _ = model.run(&input(model, &ids)?, &mut run)?;
        let cache = run.take_cache();
        for (name, kept) in names.iter().zip(&mut found) {
            let xs = cache.get(name)?;
            kept.push(xs.f_select(1, xs.size()[1] - 1)?.copy());
        }
        order.extend(pass);
    }
    // Where each prompt has come to stand.
    let mut back = vec![0i64; order.len()];
    for (place, prompt) in order.iter().enumerate() {
        back[*prompt] = place as i64;
    }
    let back = Tensor::f_from_slice(&back)?.f_to(model.device())?;
    let mut tensors = densely_core::Tensors::new();
    for (name, kept) in names.iter().zip(&found) {
        let xs = Tensor::f_cat(kept, 0)?.f_index_select(0, &back)?;
        tensors.insert(name.clone(), xs);
    }
    Ok(tensors.into())
}

/// Probability of one token in each row of residuals `[rows, d]` behind the last block.
fn probabilities(model: &Lm, residual: &Tensor, tokens: &[i64]) -> Result<Vec<f64>> {
    odds(&tch::no_grad(|| model.unembed(residual))?, tokens)
}

/// Probability of one token in each row of logits `[rows, vocab]`.
fn odds(logits: &Tensor, tokens: &[i64]) -> Result<Vec<f64>> {
    let kind = match logits.kind() {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    };
    let index = Tensor::f_from_slice(tokens)?
        .f_to(logits.device())?
        .f_unsqueeze(1)?;
    let chosen = logits.f_log_softmax(-1, kind)?.f_gather(1, &index, false)?;
    Ok(Vec::<f64>::try_from(
        &double(&chosen.f_squeeze_dim(1)?)?.f_exp()?,
    )?)
}
