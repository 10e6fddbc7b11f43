//! Text from a model, token by token.

use std::ops::ControlFlow;

use densely_core::{Error, Result, check};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::hooks::Run;
use crate::kv::KvCache;
use crate::model::Lm;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it before the draw; 0 takes the likeliest token, of equal ones the first.
    pub temperature: f64,
    /// Only so many of the likeliest tokens are drawn from.
    pub top_k: Option<i64>,
    /// Only the likeliest tokens whose probabilities together reach this are drawn from; 1 is all.
    pub top_p: Option<f64>,
    /// Of the draws. Each prompt has a stream of its own, by its place in the list.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self::greedy()
    }
}

impl Sampling {
    /// The likeliest token at each step.
    pub const fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            seed: 0,
        }
    }

    /// Fails unless every value is in its range.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            let reason = format!("must be at least 0, got {}", self.temperature);
            return Err(Error::config("temperature", reason));
        }
        if let Some(k) = self.top_k {
            check::positive("top_k", k)?;
        }
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => {
                let reason = format!("must lie in (0, 1], got {p}");
                Err(Error::config("top_p", reason))
            }
            _ => Ok(()),
        }
    }

    /// The next token by its logits; `uniform` gives a number in [0, 1) for the draw.
    fn choose(&self, logits: &[f32], uniform: impl FnOnce() -> f64) -> Result<i64> {
        // Minus infinity is a token that was ruled out.
        let is_wrong = |x: &f32| x.is_nan() || *x == f32::INFINITY;
        if let Some(id) = logits.iter().position(is_wrong) {
            let reason = format!("the model's logit of token {id} is {}", logits[id]);
            return Err(Error::data("", reason));
        }
        let likelier = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        let mut ids: Vec<usize> = (0..logits.len()).collect();
        if self.temperature == 0.0 {
            let best = ids.into_iter().min_by(likelier);
            return Ok(best.unwrap_or_default() as i64);
        }
        if let Some(k) = self.top_k
            && (k as usize) < ids.len()
        {
            ids.select_nth_unstable_by(k as usize - 1, likelier);
            ids.truncate(k as usize);
        }
        // In one order, so that the same draw gives the same token whatever came before.
        ids.sort_unstable_by(likelier);
        let highest = ids.first().map_or(0.0, |id| f64::from(logits[*id]));
        let mut weights: Vec<f64> = ids
            .iter()
            .map(|id| ((f64::from(logits[*id]) - highest) / self.temperature).exp())
            .collect();
        let mut total: f64 = weights.iter().sum();
        if let Some(p) = self.top_p
            && p < 1.0
        {
            let mut sum = 0.0;
            let enough = weights.iter().position(|weight| {
                sum += weight;
                sum >= p * total
            });
            if let Some(last) = enough {
                weights.truncate(last + 1);
                total = weights.iter().sum();
            }
        }
        let mut left = uniform() * total;
        let drawn = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave the last one's share empty.
        let drawn = drawn.unwrap_or(weights.len().saturating_sub(1));
        Ok(ids.get(drawn).copied().unwrap_or_default() as i64)
    }
}

/// Writes on after each prompt, up to `max_new` tokens or until one of `stop` comes, which is left out. Gives the new tokens alone.
///
/// Prompts may differ in length: shorter ones are padded on the left, where nothing sees the padding. Keys and values are kept, so that a
/// token costs one position.
/// # Errors
/// [`Error::Config`] for an empty prompt, tokens that are none of the model's, settings out of range, and for more tokens than the model
/// takes.
pub fn generate(
    model: &Lm,
    prompts: &[Vec<i64>],
    max_new: usize,
    sampling: &Sampling,
    stop: &[i64],
) -> Result<Vec<Vec<i64>>> {
    generate_with(model, prompts, max_new, sampling, stop, &mut |_, _| {
        Ok(ControlFlow::Continue(()))
    })
}

/// As [`generate`], telling `each` of every new token as it comes: the prompt's place in the list and the token. A `Break` ends the work with
/// what there is.
///
/// # Errors
/// Those of [`generate`] and of `each`.
pub fn generate_with(
    model: &Lm,
    prompts: &[Vec<i64>],
    max_new: usize,
    sampling: &Sampling,
    stop: &[i64],
    each: &mut dyn FnMut(usize, i64) -> Result<ControlFlow<()>>,
) -> Result<Vec<Vec<i64>>> {
    sampling.validate()?;
    let mut texts: Vec<Vec<i64>> = vec![Vec::new(); prompts.len()];
    let Some(longest) = prompts.iter().map(Vec::len).max() else {
        return Ok(texts);
    };
    if let Some(empty) = prompts.iter().position(Vec::is_empty) {
        let reason = format!("number {empty} is empty; start it with the token that starts texts");
        return Err(Error::config("prompts", reason));
    }
    let limit = model.config().n_ctx as usize;
    if longest.saturating_add(max_new) > limit {
        let reason = format!(
            "must leave room for the prompt: the model takes {limit} tokens, the longest prompt has {longest}, got {max_new}"
        );
        return Err(Error::config("max_new", reason));
    }
    if max_new == 0 {
        return Ok(texts);
    }
    let mut draws: Vec<ChaCha8Rng> = (0..prompts.len() as u64)
        .map(|place| {
            let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
            rng.set_stream(place);
            rng
        })
        .collect();

    let (mut ids, mask) = padded(prompts, longest)?;
    ids = ids.f_to_device(model.device())?;
    let mut kv = KvCache::new(model.config().n_layers);
    let mut done = vec![false; prompts.len()];
    for step in 0..max_new {
        let mut run = Run::new().kv(&mut kv).last_only();
        if step == 0
            && let Some(mask) = &mask
        {
            run = run.mask(&mask.f_to_device(model.device())?);
        }
        let logits = model.run(&ids, &mut run)?; // [batch, 1, vocab]
        drop(run);
        let logits = logits.f_squeeze_dim(1)?.f_to_kind(Kind::Float)?;
        let rows: Vec<Vec<f32>> = Vec::try_from(&logits.f_to_device(tch::Device::Cpu)?)?;
        let mut next = Vec::with_capacity(rows.len());
        for (place, row) in rows.iter().enumerate() {
            if done[place] {
                next.push(0);
                continue;
            }
            let rng = &mut draws[place];
            let id = sampling.choose(row, || rng.random::<f64>())?;
            next.push(id);
            if stop.contains(&id) {
                done[place] = true;
                continue;
            }
            texts[place].push(id);
            if each(place, id)?.is_break() {
                return Ok(texts);
            }
        }
        if done.iter().all(|done| *done) {
            break;
        }
        ids = Tensor::f_from_slice(&next)?
            .f_unsqueeze(1)?
            .f_to_device(model.device())?; // [batch, 1]
    }
    Ok(texts)
}

/// The prompts as a table `[batch, longest]`, shorter ones with zeros before them, and where they are real, if any is shorter.
fn padded(prompts: &[Vec<i64>], longest: usize) -> Result<(Tensor, Option<Tensor>)> {
    let mut ids = Vec::with_capacity(prompts.len() * longest);
    let mut mask = Vec::with_capacity(prompts.len() * longest);
    for prompt in prompts {
        let gap = longest - prompt.len();
        ids.resize(ids.len() + gap, 0);
        ids.extend(prompt);
        mask.resize(mask.len() + gap, 0i64);
        mask.resize(mask.len() + prompt.len(), 1);
    }
    let size = [prompts.len() as i64, longest as i64];
    let uneven = prompts.iter().any(|prompt| prompt.len() < longest);
    let mask = uneven
        .then(|| Tensor::f_from_slice(&mask)?.f_reshape(size))
        .transpose()?;
    Ok((Tensor::f_from_slice(&ids)?.f_reshape(size)?, mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [1.0, 3.0, 3.0, 2.0];

    fn chosen(sampling: &Sampling, uniform: f64) -> Result<i64> {
        sampling.choose(&LOGITS, || uniform)
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() -> Result<()> {
        assert_eq!(chosen(&Sampling::greedy(), 0.9)?, 1);
        Ok(())
    }

    #[test]
    fn draws_follow_the_probabilities() -> Result<()> {
        let sampling = Sampling {
            temperature: 1.0,
            ..Sampling::greedy()
        };
        // exp(0), exp(0), exp(-1), exp(-2) of tokens 1, 2, 3, 0.
        let total = 2.0 + (-1f64).exp() + (-2f64).exp();
        for (uniform, id) in [
            (0.0, 1),
            (0.99 / total, 1),
            (1.01 / total, 2),
            (2.01 / total, 3),
            ((total - 0.01) / total, 0),
        ] {
            assert_eq!(chosen(&sampling, uniform)?, id, "{uniform}");
        }
        Ok(())
    }

    #[test]
    fn only_the_likeliest_are_drawn_from() -> Result<()> {
        let base = Sampling {
            temperature: 2.0,
            ..Sampling::greedy()
        };
        let few = Sampling {
            top_k: Some(3),
            ..base
        };
        assert_eq!(chosen(&few, 0.999_999)?, 3);
        let fewer = Sampling {
            top_k: Some(1),
            ..base
        };
        assert_eq!(chosen(&fewer, 0.999_999)?, 1);
        // At temperature 1 the first two have 0.399 each: 0.5 is reached by both, 0.39 by the first.
        for (p, id) in [(0.5, 2), (0.39, 1), (1.0, 0)] {
            let part = Sampling {
                temperature: 1.0,
                top_p: Some(p),
                ..base
            };
            assert_eq!(chosen(&part, 0.999_999)?, id, "{p}");
        }
        Ok(())
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let base = Sampling::greedy();
        for (sampling, field) in [
            (
                Sampling {
                    temperature: -1.0,
                    ..base
                },
                "temperature",
            ),
            (
                Sampling {
                    temperature: f64::NAN,
                    ..base
                },
                "temperature",
            ),
            (
                Sampling {
                    top_k: Some(0),
                    ..base
                },
                "top_k",
            ),
            (
                Sampling {
                    top_p: Some(0.0),
                    ..base
                },
                "top_p",
            ),
        ] {
            let error = sampling.validate().expect_err(field).to_string();
            assert!(error.contains(field), "{error}");
        }
        let nan = base
            .choose(&[0.0, f32::NAN], || 0.0)
            .expect_err("no number");
        assert!(nan.to_string().contains("token 1"), "{nan}");
    }
}
