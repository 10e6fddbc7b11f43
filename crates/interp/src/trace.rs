//! Causal tracing: which hidden states restore a fact once its subject is corrupted.
//!
//! Paper: Meng et al. 2022, arXiv 2202.05262. Follows: kmeng01/rome `experiments/causal_trace.py` and, for severed modules,
//! `notebooks/causal_trace_frozen_mlp_attn.ipynb`.
//!
//! Noise is added to the subject's token embeddings, before positions. With the answer's probability `high` of the clean run
//! and `low` of the corrupted one, a cell (token, layer) of the grid is the mean probability over the corrupted runs when that
//! one state is set back to what it was in the clean run; its indirect effect is the cell minus `low`.
//!
//! [`plain::trace_with`] is that, word by word: 1 + n rows and a forward pass for each cell. [`trace_with`] reuses all that
//! cannot differ, and is what the rest of the crate uses:
//!
//! - below the first restored layer a cell is the corrupted run, which is made once;
//! - restored values are read from one clean row;
//! - positions before the restored token cannot see it, so that their keys and values are the corrupted run's and only
//!   the rest is computed;
//! - before the subject's first token nothing is corrupted, so that restoring there leaves `low`;
//! - all cells of a token go through a layer together, each joining at the layer above its first restored one;
//! - logits are made of the positions that predict the answer only.
//!
//! Both do the same arithmetic on the same numbers. The noise, its addition and the copies of states are equal to the bit;
//! matrix products have other sizes, so that scores agree within rounding (tests hold them to 1e-4 of the probability). Either
//! repeats itself to the bit on the same machine with the same number of threads.

mod fast;
pub mod plain;
mod prompt;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use densely_core::{Error, Result, check};
use densely_lm::{Lm, Run, Tokenizer};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::noise::Noise;

pub use fast::trace_with;
pub use prompt::Prompt;

/// What is restored in a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Restore {
    /// The output of one block.
    #[serde(rename = "block")]
    Block,
    /// The outputs of the MLPs in a window of layers.
    #[serde(rename = "mlp")]
    Mlp,
    /// The outputs of the attentions in a window of layers.
    #[serde(rename = "attn")]
    Attention,
    /// The output of one block, while the MLPs at that token give what they give in the corrupted run.
    #[serde(rename = "severed-mlp")]
    SeveredMlp,
    /// The output of one block, while the attentions at that token give what they give in the corrupted run.
    #[serde(rename = "severed-attn")]
    SeveredAttention,
}

impl Restore {
    /// All of them, in the order of the paper's figures.
    pub const ALL: [Self; 5] = [
        Self::Block,
        Self::Mlp,
        Self::Attention,
        Self::SeveredMlp,
        Self::SeveredAttention,
    ];

    /// As it is named in options and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Mlp => "mlp",
            Self::Attention => "attn",
            Self::SeveredMlp => "severed-mlp",
            Self::SeveredAttention => "severed-attn",
        }
    }

    /// The layers that cell `layer` restores: one, or the window around it, cut at the borders.
    ///
    /// A window of `w` layers reaches from `layer - ⌊w/2⌋` up to, not including, `layer + ⌈w/2⌉`: with the usual ten, five
    /// below and four above.
    pub fn layers(self, layer: usize, window: usize, n_layers: usize) -> Range<usize> {
        match self {
            Self::Mlp | Self::Attention => {
                layer.saturating_sub(window / 2)..(layer + window.div_ceil(2)).min(n_layers)
            }
            Self::Block | Self::SeveredMlp | Self::SeveredAttention => layer..layer + 1,
        }
    }

    /// The hook point that is set back.
    fn point(self, layer: usize) -> String {
        let end = match self {
            Self::Mlp => "hook_mlp_out",
            Self::Attention => "hook_attn_out",
            Self::Block | Self::SeveredMlp | Self::SeveredAttention => "hook_resid_post",
        };
        format!("blocks.{layer}.{end}")
    }

    /// The hook point that stays as in the corrupted run.
    fn severed(self, layer: usize) -> Option<String> {
        match self {
            Self::SeveredMlp => Some(format!("blocks.{layer}.hook_mlp_out")),
            Self::SeveredAttention => Some(format!("blocks.{layer}.hook_attn_out")),
            Self::Block | Self::Mlp | Self::Attention => None,
        }
    }
}

impl fmt::Display for Restore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Restore {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(", ");
                Error::config("kinds", format!("must be of {known}, got `{text}`"))
            })
    }
}

/// What counts as the answer's probability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Score {
    /// That of its first token, as in the paper.
    #[default]
    First,
    /// The product over all its tokens, each after those before it.
    Product,
}

impl FromStr for Score {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "first" => Ok(Self::First),
            "product" => Ok(Self::Product),
            _ => Err(Error::config(
                "score",
                format!("must be `first` or `product`, got `{text}`"),
            )),
        }
    }
}

/// Settings of a trace. Defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraceOptions {
    /// What is restored; a grid for each.
    pub kinds: Vec<Restore>,
    /// Layers that are restored together, of MLPs and attentions.
    pub window: usize,
    /// Corrupted runs of a draw.
    pub samples: i64,
    /// Draws of noise, of the seeds `seed`, `seed + 1`, …; scores are averaged over them.
    pub draws: u32,
    /// Seed of the first draw; the reference's is 1.
    pub seed: u32,
    /// Put the noise in the embeddings' place instead of adding it.
    pub replace: bool,
    /// What counts as the answer's probability.
    pub score: Score,
    /// Rows (a cell takes `samples` of them) that go through a layer at once: bounds the memory, changes no cell.
    pub batch_rows: usize,
}

impl Default for TraceOptions {
    fn default() -> Self {
        Self {
            kinds: vec![Restore::Block, Restore::Mlp, Restore::Attention],
            window: 10,
            samples: 10,
            draws: 1,
            seed: 1,
            replace: false,
            score: Score::First,
            batch_rows: 256,
        }
    }
}

impl TraceOptions {
    /// Fails on settings that mean nothing.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        let ranges = [
            ("window", self.window as i64, 10_000),
            ("samples", self.samples, 100_000),
            ("draws", i64::from(self.draws), 100_000),
        ];
        for (name, value, most) in ranges {
            check::positive(name, value)?;
            if value > most {
                let reason = format!("must be at most {most}, got {value}");
                return Err(Error::config(name, reason));
            }
        }
        if self.kinds.is_empty() {
            return Err(Error::config("kinds", "must name at least one"));
        }
        if self.batch_rows == 0 {
            return Err(Error::config("batch_rows", "must be at least 1, got 0"));
        }
        Ok(())
    }
}

/// Scores of one kind: a row per token of the prompt, a column per layer.
pub type Grid = Vec<Vec<f64>>;

/// What a trace found. Written as JSON it is the file that the pictures are drawn from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// The text of each token of the prompt.
    pub tokens: Vec<String>,
    /// The subject's tokens, the end excluded.
    pub subject: Range<usize>,
    /// The text whose probability is scored; the numbers of its tokens until [`Trace::name`].
    pub answer: String,
    /// Its tokens.
    pub answer_ids: Vec<i64>,
    /// Probability of the answer in the clean run.
    pub high: f64,
    /// Probability of the answer in the corrupted runs, on average.
    pub low: f64,
    /// `low` of each draw of noise.
    pub low_of_draws: Vec<f64>,
    /// Layers restored together, of MLPs and attentions.
    pub window: usize,
    /// Probability of the answer with the state of a cell restored, by kind.
    pub scores: BTreeMap<Restore, Grid>,
}

impl Trace {
    /// The largest cell of a kind: token, layer and score.
    pub fn best(&self, kind: Restore) -> Option<(usize, usize, f64)> {
        let grid = self.scores.get(&kind)?;
        let cells = grid.iter().enumerate().flat_map(|(token, row)| {
            row.iter()
                .enumerate()
                .map(move |(layer, score)| (token, layer, *score))
        });
        cells.max_by(|a, b| a.2.total_cmp(&b.2))
    }

    /// Puts the answer's text in the place of the numbers of its tokens.
    pub fn name(&mut self, tokenizer: &Tokenizer) {
        self.answer = text_of(tokenizer, &self.answer_ids);
    }

    fn add(&mut self, other: &Self) {
        self.low += other.low;
        self.low_of_draws.extend(&other.low_of_draws);
        for (grid, more) in self.scores.values_mut().zip(other.scores.values()) {
            let cells = grid.iter_mut().flatten();
            for (cell, more) in cells.zip(more.iter().flatten()) {
                *cell += more;
            }
        }
    }

    fn divide(&mut self, by: f64) {
        self.low /= by;
        for cell in self.scores.values_mut().flatten().flatten() {
            *cell /= by;
        }
    }
}

/// Traces a prompt under noise drawn by `options.seed`, over all draws.
///
/// # Errors
/// [`Error::Config`] when a setting is out of range or the prompt does not fit the model.
pub fn trace(model: &Lm, prompt: &Prompt, noise: &Noise, options: &TraceOptions) -> Result<Trace> {
    options.validate()?;
    prompt.validate(model)?;
    let width = prompt.subject.len() as i64;
    let mut sum: Option<Trace> = None;
    for draw in 0..options.draws {
        let seed = options.seed.wrapping_add(draw);
        let drawn = noise.sample(seed, options.samples, width, model.config().d_model)?;
        let one = trace_with(model, prompt, &drawn, options)?;
        match &mut sum {
            None => sum = Some(one),
            Some(sum) => sum.add(&one),
        }
    }
    let Some(mut mean) = sum else {
        return Err(Error::config("draws", "must be at least 1, got 0"));
    };
    mean.divide(f64::from(options.draws));
    Ok(mean)
}

/// Whether the model gives `answer` after the prompt, and if not, what it gives.
///
/// By [`Score::First`] the text of the likeliest token is compared with the answer, spaces at the ends left aside, as the
/// reference does, which leaves out facts whose answers have several tokens; by [`Score::Product`] each of the answer's
/// tokens must be the likeliest one after those before it.
///
/// # Errors
/// [`Error::Config`] when the prompt does not fit the model; what the tokenizer says.
pub fn predicts(
    model: &Lm,
    tokenizer: &Tokenizer,
    prompt: &Prompt,
    answer: &str,
    score: Score,
) -> Result<std::result::Result<(), String>> {
    prompt.validate(model)?;
    let scored = Scored::new(model, prompt, score)?;
    let logits = scored.logits(model, &clean_residual(model, &scored.input(model, 1)?)?)?;
    let likeliest = logits.f_argmax(-1, false)?.f_flatten(0, -1)?;
    let likeliest = Vec::<i64>::try_from(&likeliest.f_to(tch::Device::Cpu)?)?;
    let right = match score {
        Score::First => {
            let first = likeliest.first().copied().unwrap_or_default();
            text_of(tokenizer, &[first]) == answer.trim()
        }
        Score::Product => likeliest == scored.answer,
    };
    Ok(if right {
        Ok(())
    } else {
        Err(text_of(tokenizer, &likeliest))
    })
}

/// The text of tokens without spaces at its ends; their numbers where the model knows more tokens than the tokenizer.
fn text_of(tokenizer: &Tokenizer, ids: &[i64]) -> String {
    match tokenizer.decode(ids) {
        Ok(text) => text.trim().to_owned(),
        Err(_) => numbers(ids),
    }
}

fn numbers(ids: &[i64]) -> String {
    let numbers: Vec<String> = ids.iter().map(i64::to_string).collect();
    numbers.join(" ")
}

/// The answer that is scored, and the tokens that go through the model for it.
struct Scored {
    /// The prompt, and all tokens of the answer but the last.
    ids: Vec<i64>,
    answer: Vec<i64>,
}

impl Scored {
    /// The likeliest token is the answer where the prompt has none.
    fn new(model: &Lm, prompt: &Prompt, score: Score) -> Result<Self> {
        let mut answer = prompt.answer.clone();
        if score == Score::First {
            answer.truncate(1);
        }
        if answer.is_empty() {
            let bare = Self {
                ids: prompt.ids.clone(),
                answer: vec![0],
            };
            let logits = bare.logits(model, &clean_residual(model, &bare.input(model, 1)?)?)?;
            answer = vec![logits.f_argmax(None, false)?.f_int64_value(&[])?];
        }
        let before = answer.iter().copied().take(answer.len() - 1);
        let ids = prompt.ids.iter().copied().chain(before).collect();
        Ok(Self { ids, answer })
    }

    /// Token ids `[rows, tokens]`, of equal rows.
    fn input(&self, model: &Lm, rows: i64) -> Result<Tensor> {
        Ok(Tensor::f_from_slice(&self.ids)?
            .f_unsqueeze(0)?
            .f_expand([rows, self.ids.len() as i64], false)?
            .f_to(model.device())?)
    }

    /// Logits `[rows, answer, vocabulary]` of the positions that predict the answer, which are the last ones of the final
    /// residual `[rows, tokens, d]`.
    fn logits(&self, model: &Lm, residual: &Tensor) -> Result<Tensor> {
        let (k, length) = (self.answer.len() as i64, residual.size()[1]);
        tch::no_grad(|| model.unembed(&residual.f_narrow(1, length - k, k)?))
    }

    /// Probability of the answer in each row, of kind double on the CPU.
    fn probabilities(&self, model: &Lm, residual: &Tensor) -> Result<Vec<f64>> {
        let logits = self.logits(model, residual)?;
        // Narrower kinds are widened first.
        let kind = match logits.kind() {
            Kind::Double => Kind::Double,
            _ => Kind::Float,
        };
        let rows = logits.size()[0];
        let index = Tensor::f_from_slice(&self.answer)?
            .f_to(logits.device())?
            .f_reshape([1, -1, 1])?
            .f_expand([rows, self.answer.len() as i64, 1], false)?;
        let chosen = logits
            .f_log_softmax(-1, kind)?
            .f_gather(-1, &index, false)?
            .f_squeeze_dim(-1)?; // [rows, answer]
        let sums = chosen.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double)?;
        Ok(Vec::<f64>::try_from(
            &sums.f_exp()?.f_to(tch::Device::Cpu)?,
        )?)
    }
}

/// The residual `[rows, tokens, d]` behind the last block.
fn clean_residual(model: &Lm, ids: &Tensor) -> Result<Tensor> {
    model.run(ids, &mut Run::new().stop_at(model.config().n_layers))
}

/// Embeddings `[rows, tokens, d]` with the noise `[rows of it, width, d]` added to (or put in the place of) the subject's in
/// the last rows. The sum is made in double precision and rounded once, as the reference does.
fn corrupted(embedded: &Tensor, noise: &Tensor, start: usize, replace: bool) -> Result<Tensor> {
    let size = noise.size();
    let first = embedded.size()[0] - size[0];
    let out = embedded.copy();
    let mut place = out
        .f_narrow(0, first, size[0])?
        .f_narrow(1, start as i64, size[1])?;
    let noise = noise.f_to(embedded.device())?.f_totype(Kind::Double)?;
    let value = if replace {
        noise
    } else {
        place.f_totype(Kind::Double)?.f_add(&noise)?
    };
    place.f_copy_(&value)?;
    Ok(out)
}

/// Fails unless the noise fits prompt and model.
fn check_noise(model: &Lm, prompt: &Prompt, noise: &Tensor) -> Result<()> {
    let width = prompt.subject.len() as i64;
    check::floating("noise", noise)?;
    check::shape(
        "noise",
        noise,
        &[None, Some(width), Some(model.config().d_model)],
    )?;
    check::positive("samples", noise.size()[0])
}

/// The result, whose scores are filled in by who computes them.
fn result(prompt: &Prompt, scored: &Scored, options: &TraceOptions, high: f64, low: f64) -> Trace {
    Trace {
        tokens: prompt.tokens.clone(),
        subject: prompt.subject.clone(),
        answer: numbers(&scored.answer),
        answer_ids: scored.answer.clone(),
        high,
        low,
        low_of_draws: vec![low],
        window: options.window,
        scores: BTreeMap::new(),
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
