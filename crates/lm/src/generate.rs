//! Text from a model, token by token.

use std::ops::ControlFlow;

use densely_core::{Error, Result, check};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::hooks::Run;
use crate::kv::KvCache;
use crate::model::Lm;

/// How the next token is chosen. Of tokens with equal logits the one with the lower number counts as likelier, everywhere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it before the draw; 0 takes the likeliest token.
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
        let keys = logits.iter().zip(0..).map(|(logit, id)| key(*logit, id));
        if self.temperature == 0.0 {
            return Ok(keys.min().map_or(0, id_of));
        }
        let mut ranking = Ranking::new(keys.collect());
        let mut kept = logits.len();
        if let Some(k) = self.top_k {
            kept = kept.min(k as usize);
        }
        let Some(likeliest) = ranking.id(0) else {
            return Ok(0);
        };
        let highest = f64::from(logits[likeliest as usize]);
        // Relative to the likeliest token's.
        let weight = |logit: f32| ((f64::from(logit) - highest) / self.temperature).exp();
        let weight_of = |id: i64| weight(logits[id as usize]);
        let mut total: f64 = if kept < logits.len() {
            ranking.first(kept).map(weight_of).sum()
        } else {
            logits.iter().copied().map(weight).sum()
        };
        if let Some(p) = self.top_p
            && p < 1.0
        {
            let mut sum = 0.0;
            let enough = (0..kept).find(|place| {
                sum += ranking.id(*place).map_or(0.0, weight_of);
                sum >= p * total
            });
            if let Some(last) = enough {
                kept = last + 1;
                total = sum;
            }
        }
        // From the likeliest on, so that the same draw gives the same token whatever came before.
        let mut left = uniform() * total;
        let mut drawn = likeliest;
        for id in (0..kept).map_while(|place| ranking.id(place)) {
            let weight = weight_of(id);
            // Rounding may leave the share of the last one empty; one that was ruled out has none.
            if weight > 0.0 {
                drawn = id;
            }
            left -= weight;
            if left < 0.0 || weight == 0.0 {
                break;
            }
        }
        Ok(drawn)
    }
}

/// A number that is the lower the likelier a token is: all logits in their order, the highest first, and the token's number where they are
/// equal.
fn key(logit: f32, id: u32) -> u64 {
    // Minus zero equals zero.
    let bits = (logit + 0.0).to_bits();
    // The bits of negative numbers rise as the numbers fall; those of positive ones are turned round below them.
    let falling = if bits >> 31 == 1 {
        bits
    } else {
        bits ^ 0x7fff_ffff
    };
    (u64::from(falling) << 32) | u64::from(id)
}

/// The token of a [`key`].
fn id_of(key: u64) -> i64 {
    i64::from(key as u32)
}

/// Tokens with the likeliest first, put in order only as far as somebody looks: a draw mostly ends among the first few of many thousands.
struct Ranking {
    /// The first `sorted` are the lowest, in rising order.
    keys: Vec<u64>,
    sorted: usize,
}

impl Ranking {
    fn new(keys: Vec<u64>) -> Self {
        Self { keys, sorted: 0 }
    }

    /// The first `count` tokens.
    fn first(&mut self, count: usize) -> impl Iterator<Item = i64> {
        self.sort(count);
        self.keys.iter().take(count).copied().map(id_of)
    }

    /// The token in this place.
    fn id(&mut self, place: usize) -> Option<i64> {
        if place >= self.sorted {
            // Many times more than before, as each step looks at all that is left.
            self.sort((place + 1).max(8 * self.sorted).max(64));
        }
        self.keys.get(place).copied().map(id_of)
    }

    /// Puts the first `count` in order.
    fn sort(&mut self, count: usize) {
        let count = count.min(self.keys.len());
        if count <= self.sorted {
            return;
        }
        let rest = &mut self.keys[self.sorted..];
        let more = count - self.sorted;
        if more < rest.len() {
            rest.select_nth_unstable(more - 1);
        }
        rest[..more].sort_unstable();
        self.sorted = count;
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
    fn of_equal_logits_the_lower_numbers_are_kept() -> Result<()> {
        let base = Sampling {
            temperature: 1.0,
            ..Sampling::greedy()
        };
        let ties = [1.0, 3.0, 2.0, 3.0, 3.0];
        let two = Sampling {
            top_k: Some(2),
            ..base
        };
        let most = Sampling {
            top_p: Some(0.5),
            ..base
        };
        for sampling in [two, most] {
            assert_eq!(sampling.choose(&ties, || 0.0)?, 1, "{sampling:?}");
            assert_eq!(sampling.choose(&ties, || 0.999_999)?, 3, "{sampling:?}");
        }
        // Below zero too, and at the two zeros.
        let low = [-2.0, -1.0, -1.0, f32::NEG_INFINITY];
        assert_eq!(Sampling::greedy().choose(&low, || 0.0)?, 1);
        assert_eq!(Sampling::greedy().choose(&[-0.0, 0.0], || 0.0)?, 0);
        Ok(())
    }

    #[test]
    fn tokens_that_were_ruled_out_are_not_drawn() -> Result<()> {
        let sampling = Sampling {
            temperature: 1.0,
            ..Sampling::greedy()
        };
        let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        assert_eq!(sampling.choose(&logits, || 1.0)?, 1);
        Ok(())
    }

    /// The draw with all tokens in order.
    fn plainly(sampling: &Sampling, logits: &[f32], uniform: f64) -> i64 {
        let mut ids: Vec<usize> = (0..logits.len()).collect();
        ids.sort_by(|a, b| {
            let (first, second) = (logits[*a] + 0.0, logits[*b] + 0.0);
            second.total_cmp(&first).then(a.cmp(b))
        });
        if sampling.temperature == 0.0 {
            return ids[0] as i64;
        }
        if let Some(k) = sampling.top_k {
            ids.truncate(k as usize);
        }
        let highest = f64::from(logits[ids[0]]);
        let weight = |id: &usize| (f64::from(logits[*id]) - highest) / sampling.temperature;
        let mut weights: Vec<f64> = ids.iter().map(|id| weight(id).exp()).collect();
        if let Some(p) = sampling.top_p {
            let total: f64 = weights.iter().sum();
            let mut sum = 0.0;
            let enough = weights.iter().position(|weight| {
                sum += weight;
                sum >= p * total
            });
            weights.truncate(enough.map_or(ids.len(), |last| last + 1));
        }
        let mut left = uniform * weights.iter().sum::<f64>();
        let drawn = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        ids[drawn.unwrap_or(weights.len() - 1)] as i64
    }

    #[test]
    fn an_order_as_far_as_it_is_looked_at_draws_as_a_whole_one() -> Result<()> {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for round in 0..512 {
            let length: usize = rng.random_range(1..3000);
            // Few levels, so that many are equal; some are ruled out.
            let mut logits: Vec<f32> = (0..length)
                .map(|_| match rng.random_range(0..20u8) {
                    0 => f32::NEG_INFINITY,
                    1 => -0.0,
                    level => (f32::from(level) - 8.0) / 4.0,
                })
                .collect();
            logits[0] = 1.0;
            let sampling = Sampling {
                temperature: [0.0, 0.5, 1.0, 3.0][round % 4],
                top_k: [None, Some(1), Some(70), Some(1000)][round / 4 % 4],
                top_p: [None, Some(0.05), Some(0.9), Some(0.999)][round / 16 % 4],
                seed: 0,
            };
            let uniform = rng.random::<f64>();
            assert_eq!(
                sampling.choose(&logits, || uniform)?,
                plainly(&sampling, &logits, uniform),
                "{sampling:?} of {length}"
            );
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
