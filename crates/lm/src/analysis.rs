//! What a pass wrote, read in the vocabulary: the logit lens, the parts of the residual, and what each adds to a logit.

use densely_core::{Error, Result, check};
use tch::{Kind, Tensor};

use crate::hooks::Cache;
use crate::model::Lm;
use crate::views::Weight;

/// Names of the residuals that [`logit_lens`] reads: what enters each block, and what leaves the last.
pub fn lens_names(model: &Lm) -> Vec<String> {
    let layers = model.config().n_layers;
    let mut names: Vec<String> = (0..layers)
        .map(|layer| format!("blocks.{layer}.hook_resid_pre"))
        .collect();
    names.push(format!("blocks.{}.hook_resid_post", layers - 1));
    names
}

/// Logits that last norm and head would give after each block, at one position (a negative one counts from the end):
/// `[layers + 1, batch, vocab]`. The last row is the model's own.
///
/// # Errors
/// [`Error::Config`] when the cache lacks one of [`lens_names`], or the position is none of the text.
pub fn logit_lens(model: &Lm, cache: &Cache, position: i64) -> Result<Tensor> {
    let rows: Vec<Tensor> = lens_names(model)
        .iter()
        .map(|name| model.unembed(&pick(cache.get(name)?, position)?))
        .collect::<Result<_>>()?;
    Ok(Tensor::f_stack(&rows, 0)?)
}

/// Names of the parts that sum to the last residual: embeddings, and what attention and MLP of each block write.
pub fn part_names(model: &Lm) -> Vec<String> {
    let mut names = vec!["hook_embed".to_owned()];
    if model.config().learned_positions() {
        names.push("hook_pos_embed".to_owned());
    }
    for layer in 0..model.config().n_layers {
        names.push(format!("blocks.{layer}.hook_attn_out"));
        names.push(format!("blocks.{layer}.hook_mlp_out"));
    }
    names
}

/// The parts of the last residual at one position, `[batch, d]` each, in the order of [`part_names`].
///
/// # Errors
/// [`Error::Config`] when the cache lacks one of them, or the position is none of the text.
pub fn decompose(model: &Lm, cache: &Cache, position: i64) -> Result<Vec<(String, Tensor)>> {
    part_names(model)
        .into_iter()
        .map(|name| {
            let part = pick(cache.get(&name)?, position)?;
            Ok((name, part))
        })
        .collect()
}

/// As [`decompose`], with what attention writes split by head (`blocks.{l}.attn.head.{h}`) and its bias (`blocks.{l}.attn.bias`). The
/// cache holds `blocks.*.attn.hook_z` in the place of `hook_attn_out`.
///
/// # Errors
/// Those of [`decompose`].
pub fn decompose_by_head(
    model: &Lm,
    cache: &Cache,
    position: i64,
) -> Result<Vec<(String, Tensor)>> {
    let mut parts = Vec::new();
    for name in part_names(model) {
        let Some(block) = name.strip_suffix(".hook_attn_out") else {
            let part = pick(cache.get(&name)?, position)?;
            parts.push((name, part));
            continue;
        };
        let layer: usize = block
            .trim_start_matches("blocks.")
            .parse()
            .map_err(|_| Error::config(block, "is not a block's name"))?;
        let zs = cache.get(&format!("{block}.attn.hook_z"))?;
        let zs = pick(zs, position)?.f_unsqueeze(1)?; // [batch, 1, heads, d_head]
        let results = model.head_results(layer, &zs)?.f_squeeze_dim(1)?;
        for head in 0..model.config().n_heads {
            let part = results.f_select(1, head)?;
            parts.push((format!("{block}.attn.head.{head}"), part));
        }
        let batch = results.size()[0];
        let bias = model.weight(Weight::BO, layer)?;
        let bias = bias
            .f_unsqueeze(0)?
            .f_expand([batch, model.config().d_model], false)?;
        parts.push((format!("{block}.attn.bias"), bias));
    }
    Ok(parts)
}

/// What each part adds to the logit of a token, with the scale of the last norm held at its value: `[batch]` for each part, and one more
/// part called `bias`, of last norm and head. They sum to the logit, or to the difference of two logits where `against` is given.
///
/// `parts` come from [`decompose`] or [`decompose_by_head`]; `tokens` and `against` are `[batch]` (i64).
/// # Errors
/// [`Error::Shape`] for tokens of another shape; [`Error::Config`] when there are no parts.
pub fn direct_logits(
    model: &Lm,
    parts: &[(String, Tensor)],
    tokens: &Tensor,
    against: Option<&Tensor>,
) -> Result<Vec<(String, Tensor)>> {
    let Some((_, first)) = parts.first() else {
        return Err(Error::config("parts", "there are none"));
    };
    let batch = first.size()[0];
    let vocab = model.config().vocab_size;
    let column = |tokens: &Tensor| -> Result<(Tensor, Tensor)> {
        check::shape("tokens", tokens, &[Some(batch)])?;
        crate::positions::check_ids(&tokens.f_unsqueeze(0)?, vocab)?;
        let tokens = &tokens.f_to(model.device())?;
        let rows = model.w_u()?.f_index_select(1, tokens)?.f_tr()?; // [batch, d]
        Ok((rows, model.b_u()?.f_index_select(0, tokens)?))
    };
    let (mut direction, mut bias) = column(tokens)?;
    if let Some(against) = against {
        let (rows, other) = column(against)?;
        direction = direction.f_sub(&rows)?;
        bias = bias.f_sub(&other)?;
    }
    let kind = crate::norm::wide(model.kind());
    let direction = direction.f_to_kind(kind)?;
    let mut whole = first.f_to_kind(kind)?;
    for (_, part) in &parts[1..] {
        whole = whole.f_add(&part.f_to_kind(kind)?)?;
    }
    let scale = model.final_scale(&whole)?;
    let along = |xs: &Tensor| -> Result<Tensor> {
        Ok(xs
            .f_mul(&direction)?
            .f_sum_dim_intlist(-1i64, false, None::<Kind>)?)
    };
    let mut found = Vec::with_capacity(parts.len() + 1);
    for (name, part) in parts {
        found.push((name.clone(), along(&model.frozen_norm(part, &scale)?)?));
    }
    let mut rest = bias.f_to_kind(kind)?;
    if let Some(shift) = &model.norm.bias {
        rest = rest.f_add(&along(&shift.f_to_kind(kind)?)?)?;
    }
    found.push(("bias".to_owned(), rest));
    Ok(found)
}

/// One position of `[batch, time, ..]`; a negative one counts from the end.
fn pick(xs: &Tensor, position: i64) -> Result<Tensor> {
    let size = xs.size();
    let time = size.get(1).copied().unwrap_or(0);
    let index = if position < 0 {
        time + position
    } else {
        position
    };
    if (0..time).contains(&index) {
        return Ok(xs.f_select(1, index)?);
    }
    let reason = format!("the text has {time} positions, got {position}");
    Err(Error::config("position", reason))
}
