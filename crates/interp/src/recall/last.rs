//! The last layer against confident answers, and what helps.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use densely_core::{Error, Result, check};
use densely_lm::{Lm, Run};
use serde::Serialize;
use tch::{Kind, Tensor};

use super::{
    Question, check_answers, check_head, check_layer, check_token, double, input, last_positions,
    odds, passes, point_z, probabilities,
};

/// A part of the last residual.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// `residual` (what enters the last layer), `L11H3`, `b_O` (the attention's bias) or `mlp`.
    pub name: String,
    /// What it adds to the answer's logit through the last norm with its scale held fixed, of each prompt.
    pub logits: Vec<f64>,
    /// The same less what it adds to the mean of all logits: only this changes probabilities.
    pub relative: Vec<f64>,
    /// Probability of the answer of each prompt without this part, the norm's scale being made anew.
    pub without: Vec<f64>,
}

/// What the last layer's parts do to the answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LastLayer {
    /// Probability of the answer of each prompt.
    pub probability: Vec<f64>,
    /// The answer's logit of each prompt.
    pub logit: Vec<f64>,
    /// What the last norm's bias and the head's give to that logit: with all parts' `logits` it sums to [`logit`](Self::logit).
    pub constant: Vec<f64>,
    /// The parts.
    pub parts: Vec<Part>,
}

/// Measures the parts of the last layer: its heads, its attention's bias, its MLP, and the residual that enters it.
///
/// A part whose `relative` is below 0 on confident answers is one that holds back ("anti-overconfidence"). `without` takes the part out of
/// the last residual; the MLP is not computed anew without a head, so that it is the head's direct part.
///
/// # Errors
/// [`Error::Config`] when a question does not fit the model.
pub fn last_layer(model: &Lm, questions: &[Question]) -> Result<LastLayer> {
    check_answers(model, questions)?;
    let _guard = tch::no_grad_guard();
    let layer = model.config().n_layers - 1;
    let point = |end: &str| format!("blocks.{layer}.{end}");
    let [z, pre, attn, mlp, post] = [
        point_z(layer),
        point("hook_resid_pre"),
        point("hook_attn_out"),
        point("hook_mlp_out"),
        point("hook_resid_post"),
    ];
    let names = [&z, &pre, &attn, &mlp, &post].map(Clone::clone);
    let prompts: Vec<Vec<i64>> = questions.iter().map(|q| q.ids.clone()).collect();
    let answers: Vec<i64> = questions.iter().map(|q| q.answer).collect();
    let seen = last_positions(model, &prompts, &names)?;
    let post = seen.get(&post)?; // [prompts, d]
    let results = model
        .head_results(layer, &seen.get(&z)?.f_unsqueeze(1)?)?
        .f_squeeze_dim(1)?; // [prompts, heads, d]
    let over_heads = results.f_sum_dim_intlist([1i64].as_slice(), false, None::<Kind>)?;
    let mut parts = vec![("residual".to_owned(), seen.get(&pre)?.shallow_clone())];
    for head in 0..model.config().n_heads {
        parts.push((format!("L{layer}H{head}"), results.f_select(1, head)?));
    }
    parts.push(("b_O".to_owned(), seen.get(&attn)?.f_sub(&over_heads)?));
    parts.push(("mlp".to_owned(), seen.get(&mlp)?.shallow_clone()));

    let scale = model.final_scale(post)?;
    let index = Tensor::f_from_slice(&answers)?.f_to(model.device())?;
    let columns = model.w_u()?.f_index_select(1, &index)?.f_tr()?; // [prompts, d]
    let middle = model
        .w_u()?
        .f_mean_dim([1i64].as_slice(), false, Kind::Float)?; // [d]
    let rows = |normed: &Tensor, matrix: &Tensor| -> Result<Vec<f64>> {
        let product = normed.f_mul(&matrix.f_to_kind(normed.kind())?)?;
        let sums = product.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double)?;
        Ok(Vec::<f64>::try_from(&double(&sums)?)?)
    };
    let mut found = Vec::with_capacity(parts.len());
    for (name, xs) in parts {
        let normed = model.frozen_norm(&xs, &scale)?;
        let logits = rows(&normed, &columns)?;
        let mean = rows(&normed, &middle)?;
        let without = probabilities(model, &post.f_sub(&xs.f_to_kind(post.kind())?)?, &answers)?;
        found.push(Part {
            name,
            relative: logits.iter().zip(&mean).map(|(a, b)| a - b).collect(),
            logits,
            without,
        });
    }
    let logits = model.unembed(post)?;
    let logit = double(
        &logits
            .f_gather(1, &index.f_unsqueeze(1)?, false)?
            .f_squeeze_dim(1)?,
    )?;
    let logit = Vec::<f64>::try_from(&logit)?;
    // Bias of the norm and of the head: the logits of a residual that is all zeros.
    let zeros = Tensor::f_zeros([1, model.config().d_model], (post.kind(), post.device()))?;
    let constant = model
        .unembed(&zeros)?
        .f_select(0, 0)?
        .f_index_select(0, &index)?;
    Ok(LastLayer {
        probability: odds(&logits, &answers)?,
        logit,
        constant: Vec::<f64>::try_from(&double(&constant)?)?,
        parts: found,
    })
}

/// What is turned down; nothing by default.
#[derive(Debug, Default)]
pub struct Mitigation {
    /// Layer, head and the factor of its output.
    pub heads: Vec<(usize, i64, f64)>,
    /// Layer and the factor of its MLP's output.
    pub mlps: Vec<(usize, f64)>,
    /// Directions `[k, d]` taken out of the last residual; they need not be orthogonal.
    pub directions: Option<Tensor>,
}

/// Probability of each answer before and after parts are turned down, at every position.
///
/// # Errors
/// [`Error::Config`] for a layer or head that the model lacks or a factor that is not finite; [`Error::Shape`] for directions of another width.
pub fn mitigate(
    model: &Lm,
    questions: &[Question],
    mitigation: &Mitigation,
) -> Result<Vec<(f64, f64)>> {
    check_answers(model, questions)?;
    let _guard = tch::no_grad_guard();
    let factors = mitigation.factors(model)?;
    let basis = mitigation.basis(model)?;
    let lengths: Vec<usize> = questions.iter().map(|q| q.ids.len()).collect();
    let mut found = vec![(0.0, 0.0); questions.len()];
    for pass in passes(&lengths) {
        let chosen: Vec<&Question> = pass.iter().map(|i| &questions[*i]).collect();
        let answers: Vec<i64> = chosen.iter().map(|q| q.answer).collect();
        let rows: Vec<&[i64]> = chosen.iter().map(|q| q.ids.as_slice()).collect();
        let ids = input(model, &rows)?;
        let n_layers = model.config().n_layers;
        let after = |run: &mut Run<'_>| -> Result<Tensor> {
            let residual = model.run(&ids, run)?;
            Ok(residual.f_select(1, residual.size()[1] - 1)?)
        };
        let before = after(&mut Run::new().stop_at(n_layers))?;
        let mut run = Run::new().stop_at(n_layers);
        for (point, factor) in &factors {
            run = run.hook(point.as_str(), move |xs: &Tensor| {
                Ok(Some(xs.f_mul(factor)?))
            });
        }
        let mut changed = after(&mut run)?;
        if let Some(basis) = &basis {
            // [rows, d] less its part within the directions.
            let within = changed.f_matmul(basis)?.f_matmul(&basis.f_tr()?)?;
            changed = changed.f_sub(&within)?;
        }
        let before = probabilities(model, &before, &answers)?;
        let changed = probabilities(model, &changed, &answers)?;
        for ((place, before), after) in pass.iter().zip(before).zip(changed) {
            found[*place] = (before, after);
        }
    }
    Ok(found)
}

impl Mitigation {
    /// Factors by hook point, in shapes that multiply its value.
    fn factors(&self, model: &Lm) -> Result<Vec<(String, Tensor)>> {
        let options = (model.kind(), model.device());
        let check_factor = |factor: f64| {
            if factor.is_finite() {
                return Ok(());
            }
            let reason = format!("must be finite, got {factor}");
            Err(Error::config("factor", reason))
        };
        let mut found: Vec<(String, Tensor)> = Vec::new();
        for (layer, head, factor) in &self.heads {
            check_head(model, *layer, *head)?;
            check_factor(*factor)?;
            let value = Tensor::f_ones([1, 1, model.config().n_heads, 1], options)?;
            let _ = value.f_select(2, *head)?.f_fill_(*factor)?;
            found.push((point_z(*layer), value));
        }
        for (layer, factor) in &self.mlps {
            check_layer(model, *layer)?;
            check_factor(*factor)?;
            let value = Tensor::f_full([1], *factor, options)?;
            found.push((format!("blocks.{layer}.hook_mlp_out"), value));
        }
        Ok(found)
    }

    /// An orthonormal basis `[d, k]` of the directions.
    fn basis(&self, model: &Lm) -> Result<Option<Tensor>> {
        let Some(directions) = &self.directions else {
            return Ok(None);
        };
        check::shape(
            "directions",
            directions,
            &[None, Some(model.config().d_model)],
        )?;
        let columns = double(directions)?.f_tr()?;
        let (basis, triangle) = Tensor::f_linalg_qr(&columns, "reduced")?;
        let least = triangle
            .f_diagonal(0, 0, 1)?
            .f_abs()?
            .f_min()?
            .f_double_value(&[])?;
        if least.is_nan() || least <= 1e-12 {
            return Err(Error::config(
                "directions",
                "must not be zero or within the span of the others",
            ));
        }
        Ok(Some(basis.f_to(model.device())?.f_to_kind(model.kind())?))
    }
}

/// The direction `[d]` of the residual, of length 1, that raises the logits of some tokens, such as the most frequent ones or those that
/// start texts, above the mean of all.
///
/// # Errors
/// [`Error::Config`] for no token or one that the model lacks.
pub fn frequency_direction(model: &Lm, tokens: &[i64]) -> Result<Tensor> {
    if tokens.is_empty() {
        return Err(Error::config("tokens", "must name at least one"));
    }
    tokens
        .iter()
        .try_for_each(|token| check_token(model, *token))?;
    let _guard = tch::no_grad_guard();
    let index = Tensor::f_from_slice(tokens)?.f_to(model.device())?;
    let matrix = model.w_u()?;
    let over = [1i64];
    let some = matrix
        .f_index_select(1, &index)?
        .f_mean_dim(over.as_slice(), false, Kind::Float)?;
    let all = matrix.f_mean_dim(over.as_slice(), false, Kind::Float)?;
    // The norm with its scale fixed is linear in the residual: row i of this is what it makes of a 1 in place i.
    let options = (Kind::Float, model.device());
    let rows = Tensor::f_eye(model.config().d_model, options)?;
    let norm = model.frozen_norm(&rows, &Tensor::f_ones([1], options)?)?;
    let weight = norm.f_mv(&some.f_sub(&all)?.f_to_kind(norm.kind())?)?;
    let length = weight.f_norm()?.f_double_value(&[])?;
    check::above_zero("length of the direction", length)?;
    double(&weight.f_div_scalar(length)?)
}

/// The `count` tokens that stand most often in a text, the most frequent first; of those equally frequent, the one of the lower number.
pub fn frequent_tokens(ids: &[i64], count: usize) -> Vec<i64> {
    let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
    for id in ids {
        *counts.entry(*id).or_default() += 1;
    }
    let mut all: Vec<(i64, usize)> = counts.into_iter().collect();
    all.sort_by_key(|(_, times)| Reverse(*times));
    all.into_iter().take(count).map(|(id, _)| id).collect()
}
