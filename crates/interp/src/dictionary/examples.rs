//! Where features fire most: the texts by which they are read.

use std::collections::BTreeMap;

use densely_core::{Result, check};
use densely_lm::{Lm, Run, Tokenizer};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::Dictionary;
use crate::activations::layer_of;
use crate::corpus::Corpus;

/// What is surveyed: a dictionary that reads a point of a model over a corpus.
#[derive(Debug, Clone, Copy)]
pub struct Surveyed<'a> {
    /// The model.
    pub model: &'a Lm,
    /// The dictionary.
    pub dictionary: &'a Dictionary,
    /// The hook point that it reads.
    pub read: &'a str,
    /// The texts.
    pub corpus: &'a Corpus,
}

/// Features over a corpus: how often each fires, and where most.
#[derive(Debug)]
pub struct Survey {
    /// Tokens of the corpus.
    pub tokens: u64,
    /// In how many of them each feature fires.
    pub counts: Vec<u64>,
    /// The places where each fires most, the strongest first; of equal ones the first in the corpus. One for each window.
    pub tops: Vec<Vec<Top>>,
}

/// A place where a feature fires.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Top {
    /// How much.
    pub value: f32,
    /// The window of the corpus.
    pub window: usize,
    /// The token of the window.
    pub position: usize,
}

/// A window in which a feature fires, as people read it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Its tokens.
    pub tokens: Vec<String>,
    /// How much the feature fires at each.
    pub activations: Vec<f32>,
    /// Where it fires most.
    pub peak: usize,
}

impl Survey {
    /// Surveys a dictionary. The token that begins each window does not count.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] when the point is none of the model's; those of the model; `tell` hears of windows done and of all, and its error ends
    /// the work.
    pub fn new(
        of: &Surveyed,
        per_feature: usize,
        tell: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Self> {
        check::positive("examples of a feature", per_feature as i64)?;
        let corpus = of.corpus;
        let features = of.dictionary.config().d_sae as usize;
        let mut survey = Self {
            tokens: corpus.tokens() as u64,
            counts: vec![0; features],
            tops: vec![Vec::new(); features],
        };
        let all: Vec<usize> = (0..corpus.windows()).collect();
        let mut done = 0;
        for part in all.chunks(ROWS) {
            for (window, places) in part.iter().zip(encode(of, part)?) {
                let mut best = BTreeMap::<usize, Top>::new();
                for (position, feature, value) in places {
                    if let Some(count) = survey.counts.get_mut(feature) {
                        *count += 1;
                    }
                    let top = Top {
                        value,
                        window: *window,
                        position,
                    };
                    let own = best.entry(feature).or_insert(top);
                    if value > own.value {
                        *own = top;
                    }
                }
                for (feature, top) in best {
                    if let Some(tops) = survey.tops.get_mut(feature) {
                        keep(tops, top, per_feature);
                    }
                }
            }
            done += part.len();
            tell(done, all.len())?;
        }
        Ok(survey)
    }

    /// log10 of the share of tokens at which each feature fires; `None` for those that never do.
    pub fn log_frequencies(&self) -> Vec<Option<f64>> {
        let of = |count: &u64| (*count > 0).then(|| (*count as f64 / self.tokens as f64).log10());
        self.counts.iter().map(of).collect()
    }

    /// The texts of some features, in the order of their places: `around` tokens on both sides of each peak.
    ///
    /// # Errors
    /// Those of the model and the tokeniser.
    pub fn examples(
        &self,
        of: &Surveyed,
        tokenizer: &Tokenizer,
        features: &[usize],
        around: usize,
    ) -> Result<BTreeMap<usize, Vec<Example>>> {
        let corpus = of.corpus;
        let mut wanted = BTreeMap::<usize, Vec<(usize, usize, Top)>>::new();
        for feature in features {
            for (rank, top) in self.tops.get(*feature).into_iter().flatten().enumerate() {
                wanted
                    .entry(top.window)
                    .or_default()
                    .push((*feature, rank, *top));
            }
        }
        let mut found = BTreeMap::<usize, BTreeMap<usize, Example>>::new();
        let windows: Vec<usize> = wanted.keys().copied().collect();
        for part in windows.chunks(ROWS) {
            for (window, places) in part.iter().zip(encode(of, part)?) {
                let ids = corpus.window(*window);
                for (feature, rank, top) in wanted.get(window).into_iter().flatten() {
                    let first = top.position.saturating_sub(around).max(corpus.skip());
                    let end = (top.position + around + 1).min(ids.len());
                    let tokens = ids
                        .get(first..end)
                        .unwrap_or_default()
                        .iter()
                        .map(|id| tokenizer.piece(i64::from(*id)))
                        .collect::<Result<Vec<_>>>()?;
                    let mut activations = vec![0.0; tokens.len()];
                    for (position, own, value) in &places {
                        let place = position.checked_sub(first);
                        if own == feature
                            && let Some(slot) = place.and_then(|place| activations.get_mut(place))
                        {
                            *slot = *value;
                        }
                    }
                    let example = Example {
                        tokens,
                        activations,
                        peak: top.position - first,
                    };
                    found.entry(*feature).or_default().insert(*rank, example);
                }
            }
        }
        Ok(found
            .into_iter()
            .map(|(feature, examples)| (feature, examples.into_values().collect()))
            .collect())
    }
}

/// Windows that go through the model at once.
const ROWS: usize = 16;

/// Puts a place among the strongest.
fn keep(tops: &mut Vec<Top>, top: Top, most: usize) {
    let place = tops.partition_point(|other| other.value >= top.value);
    if place < most {
        tops.insert(place, top);
        tops.truncate(most);
    }
}

/// Token, feature and value of all that fires in some windows, window by window.
fn encode(of: &Surveyed, windows: &[usize]) -> Result<Vec<Vec<(usize, usize, f32)>>> {
    let Surveyed {
        model,
        dictionary,
        read,
        corpus,
    } = *of;
    let _no_grad = tch::no_grad_guard();
    let layer = layer_of(model, read)?;
    let ids = corpus.ids(windows)?.f_to_device(model.device())?;
    let mut run = Run::new().stop_at(layer + 1).cache(&[read]);
    let _ = model.run(&ids, &mut run)?;
    let xs = run.take_cache();
    let xs = xs.get(read)?;
    let (context, skip) = (corpus.context(), corpus.skip());
    let xs = xs
        .f_flatten(0, 1)?
        .f_flatten(1, -1)?
        .f_to_kind(dictionary.weights().0.kind())?;
    let [rows, features, values] = dictionary.encode(&xs)?.places()?;
    let rows = Vec::<i64>::try_from(&rows)?;
    let features = Vec::<i64>::try_from(&features)?;
    let values = Vec::<f32>::try_from(&values.f_to_kind(Kind::Float)?.f_to(tch::Device::Cpu)?)?;
    let mut found = vec![Vec::new(); windows.len()];
    for ((row, feature), value) in rows.into_iter().zip(features).zip(values) {
        let (window, position) = (row as usize / context, row as usize % context);
        if position >= skip
            && let Some(places) = found.get_mut(window)
        {
            places.push((position, feature as usize, value));
        }
    }
    Ok(found)
}

/// Promoted and demoted tokens of a direction, with how much.
pub type LogitEffects = (Vec<(String, f64)>, Vec<(String, f64)>);

/// The tokens whose logits a feature's decoder row raises and lowers most, with how much for one unit of it; through the unembedding alone, without the last norm.
///
/// # Errors
/// [`densely_core::Error::Config`] when there is no such feature, or it writes no residual.
pub fn logit_effects(
    model: &Lm,
    tokenizer: &Tokenizer,
    dictionary: &Dictionary,
    feature: usize,
    count: usize,
) -> Result<LogitEffects> {
    let _no_grad = tch::no_grad_guard();
    let (_, decoder) = dictionary.weights();
    if feature as i64 >= decoder.size()[0] {
        let reason = format!("must be below {}, got {feature}", decoder.size()[0]);
        return Err(densely_core::Error::config("feature", reason));
    }
    let row = decoder
        .f_select(0, feature as i64)?
        .f_to_kind(Kind::Float)?;
    check::shape("the decoder's row", &row, &[Some(model.config().d_model)])?;
    let logits = row
        .f_unsqueeze(0)?
        .f_matmul(&model.w_u()?.f_to_kind(Kind::Float)?)?
        .f_squeeze_dim(0)?; // [vocab]
    let logits = logits.f_sub(&logits.f_mean(None::<Kind>)?)?;
    let count = (count as i64).min(logits.size()[0]);
    let of = |largest: bool| -> Result<Vec<(String, f64)>> {
        let (values, ids): (Tensor, Tensor) = logits.f_topk(count, 0, largest, true)?;
        let (values, ids) = (Vec::<f32>::try_from(&values)?, Vec::<i64>::try_from(&ids)?);
        ids.into_iter()
            .zip(values)
            .map(|(id, value)| Ok((tokenizer.piece(id)?, f64::from(value))))
            .collect()
    };
    Ok((of(true)?, of(false)?))
}
