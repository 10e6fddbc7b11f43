//! Prompts of different lengths through a model at once, and the probabilities of what should follow them.

use densely_core::{Error, Result};
use densely_lm::{Cache, Lm, Run};
use tch::{Kind, Tensor};

use super::wide;

/// Noise on the embeddings of some tokens of the first rows of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Noised<'a> {
    /// First token.
    pub start: usize,
    /// `[draws, tokens, d]`; row i takes draw i, from the first again when they are used up.
    pub draws: &'a Tensor,
    /// How many rows, the first ones.
    pub rows: usize,
}

/// Rows of token ids, padded on the right: what comes behind a token changes nothing before it.
#[derive(Debug)]
pub(crate) struct Batch {
    /// `[rows, tokens]`.
    ids: Tensor,
    /// `[rows, tokens, d]` in double precision.
    noise: Option<Tensor>,
    tokens: i64,
}

impl Batch {
    /// # Errors
    /// [`Error::Config`] when there is no row, one is empty, or one is longer than the model takes.
    pub(crate) fn new(model: &Lm, rows: &[Vec<i64>], noised: Option<Noised<'_>>) -> Result<Self> {
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        if rows.iter().any(Vec::is_empty) || longest == 0 {
            return Err(Error::config("prompt", "has no token"));
        }
        let most = model.config().n_ctx;
        if longest as i64 > most {
            let reason = format!("has {longest} tokens with its answer, the model takes {most}");
            return Err(Error::config("prompt", reason));
        }
        let mut ids = Vec::with_capacity(rows.len() * longest);
        for row in rows {
            ids.extend(row);
            ids.extend(std::iter::repeat_n(0, longest - row.len()));
        }
        let ids = Tensor::f_from_slice(&ids)?
            .f_reshape([rows.len() as i64, longest as i64])?
            .f_to(model.device())?;
        let noise = match noised {
            None => None,
            Some(noised) => Some(spread(model, rows.len(), longest, noised)?),
        };
        Ok(Self {
            ids,
            noise,
            tokens: longest as i64,
        })
    }

    /// The residual `[rows, tokens, d]` that enters `layer` (behind the last one: what the last norm reads), and the values of `points` below it.
    /// Without gradients.
    pub(crate) fn enter(
        &self,
        model: &Lm,
        layer: usize,
        points: &[String],
    ) -> Result<(Tensor, Cache)> {
        let mut run = Run::new().stop_at(layer).cache(points);
        if let Some(noise) = &self.noise {
            run = run.hook("hook_embed", move |xs: &Tensor| {
                let sum = xs.f_totype(Kind::Double)?.f_add(noise)?;
                Ok(Some(sum.f_totype(xs.kind())?))
            });
        }
        let residual = model.run(&self.ids, &mut run)?;
        let cache = run.take_cache();
        Ok((residual, cache))
    }

    /// The values `[places, width]` of a point `[rows, tokens, width]` at places given as row and token.
    pub(crate) fn pick(&self, xs: &Tensor, places: &[(usize, usize)]) -> Result<Tensor> {
        let index: Vec<i64> = places
            .iter()
            .map(|(row, token)| *row as i64 * self.tokens + *token as i64)
            .collect();
        let index = Tensor::f_from_slice(&index)?.f_to(xs.device())?;
        Ok(xs.f_flatten(0, 1)?.f_index_select(0, &index)?)
    }

    /// `[rows, tokens, 1]`, 1 at the given places and 0 elsewhere.
    pub(crate) fn marks(&self, places: &[(usize, usize)], kind: Kind) -> Result<Tensor> {
        let rows = self.ids.size()[0];
        let mut marks = vec![0.0f32; (rows * self.tokens) as usize];
        for (row, token) in places {
            if let Some(mark) = marks.get_mut(row * self.tokens as usize + token) {
                *mark = 1.0;
            }
        }
        Ok(Tensor::f_from_slice(&marks)?
            .f_reshape([rows, self.tokens, 1])?
            .f_to(self.ids.device())?
            .f_totype(kind)?)
    }

    /// Logarithms of the next token's probabilities, `[places, vocabulary]`, behind the final residual at some places.
    pub(crate) fn log_probs(
        &self,
        model: &Lm,
        residual: &Tensor,
        places: &[(usize, usize)],
    ) -> Result<Tensor> {
        let logits = model.unembed(&self.pick(residual, places)?)?;
        let kind = wide(logits.kind());
        Ok(logits.f_log_softmax(-1, kind)?)
    }
}

/// Noise in the size of a batch, zero where there is none.
fn spread(model: &Lm, rows: usize, tokens: usize, noised: Noised<'_>) -> Result<Tensor> {
    let size = noised.draws.size();
    let [draws, width, d] = <[i64; 3]>::try_from(size.as_slice()).map_err(|_| Error::Shape {
        what: "noise".to_owned(),
        expected: "[draws, tokens, d]".to_owned(),
        got: format!("{size:?}"),
    })?;
    if draws == 0 || d != model.config().d_model || noised.start as i64 + width > tokens as i64 {
        return Err(Error::Shape {
            what: "noise".to_owned(),
            expected: format!(
                "[draws, at most {}, {}]",
                tokens.saturating_sub(noised.start),
                model.config().d_model
            ),
            got: format!("{size:?}"),
        });
    }
    let all = Tensor::f_zeros(
        [rows as i64, tokens as i64, d],
        (Kind::Double, model.device()),
    )?;
    let source = noised.draws.f_to(model.device())?.f_totype(Kind::Double)?;
    for row in 0..noised.rows.min(rows) as i64 {
        let mut place = all
            .f_select(0, row)?
            .f_narrow(0, noised.start as i64, width)?;
        place.f_copy_(&source.f_select(0, row % draws)?)?;
    }
    Ok(all)
}

/// Places that predict the tokens of a target, of a row whose prompt has `prompt` tokens.
pub(crate) fn target_places(row: usize, prompt: usize, target: usize) -> Vec<(usize, usize)> {
    (0..target).map(|i| (row, prompt + i - 1)).collect()
}

/// A prompt and all tokens of its target but the last, which predicts nothing.
pub(crate) fn joined(prompt: &[i64], target: &[i64]) -> Vec<i64> {
    let before = target.len().saturating_sub(1);
    prompt
        .iter()
        .chain(target.iter().take(before))
        .copied()
        .collect()
}

/// The entry of each row `[n, vocabulary]` that belongs to its target, `[n]`.
pub(crate) fn chosen(log_probs: &Tensor, targets: &[i64]) -> Result<Tensor> {
    let vocabulary = log_probs.size().last().copied().unwrap_or(0);
    if let Some(id) = targets.iter().find(|id| !(0..vocabulary).contains(*id)) {
        let reason = format!("holds token {id}; the model's ids are below {vocabulary}");
        return Err(Error::config("target", reason));
    }
    let index = Tensor::f_from_slice(targets)?
        .f_unsqueeze(1)?
        .f_to(log_probs.device())?;
    Ok(log_probs.f_gather(1, &index, false)?.f_squeeze_dim(1)?)
}

/// A target token's logarithm of probability, and whether it is the likeliest token.
pub(crate) type TokenScore = (f64, bool);

/// Rows that go through a model at once where many are scored.
const CHUNK: usize = 32;

/// Scores of each target's tokens after its prompt, each token after those before it. Noise is on every row, of which there are then
/// `draws` for each prompt and target: one after the other.
pub(crate) fn sequence_log_probs(
    model: &Lm,
    pairs: &[(&[i64], &[i64])],
    noised: Option<(usize, &Tensor)>,
) -> Result<Vec<Vec<TokenScore>>> {
    let _guard = tch::no_grad_guard();
    let mut all = Vec::with_capacity(pairs.len());
    let draws = noised.map_or(1, |(_, draws)| draws.size().first().copied().unwrap_or(1)) as usize;
    // Each prompt's draws stay together, so that a row's number says which draw it takes.
    let step = if noised.is_some() { draws } else { CHUNK };
    let wanted: Vec<&(&[i64], &[i64])> = pairs
        .iter()
        .flat_map(|pair| std::iter::repeat_n(pair, draws))
        .collect();
    for chunk in wanted.chunks(step.max(1)) {
        if chunk.iter().any(|(_, target)| target.is_empty()) {
            return Err(Error::config("target", "has no token"));
        }
        let rows: Vec<Vec<i64>> = chunk.iter().map(|(p, t)| joined(p, t)).collect();
        let noised = noised.map(|(start, draws)| Noised {
            start,
            draws,
            rows: rows.len(),
        });
        let batch = Batch::new(model, &rows, noised)?;
        let (residual, _) = batch.enter(model, model.config().n_layers, &[])?;
        let places: Vec<(usize, usize)> = chunk
            .iter()
            .enumerate()
            .flat_map(|(row, (prompt, target))| target_places(row, prompt.len(), target.len()))
            .collect();
        let targets: Vec<i64> = chunk.iter().flat_map(|(_, t)| t.iter().copied()).collect();
        let log_probs = batch.log_probs(model, &residual, &places)?;
        let likeliest = log_probs.f_argmax(-1, false)?.f_to(tch::Device::Cpu)?;
        let likeliest = Vec::<i64>::try_from(&likeliest)?;
        let own = chosen(&log_probs, &targets)?
            .f_to(tch::Device::Cpu)?
            .f_totype(Kind::Double)?;
        let own = Vec::<f64>::try_from(&own)?;
        let mut scores = own
            .into_iter()
            .zip(targets.iter().zip(&likeliest).map(|(a, b)| a == b));
        for (_, target) in chunk {
            all.push(scores.by_ref().take(target.len()).collect());
        }
    }
    Ok(all)
}
