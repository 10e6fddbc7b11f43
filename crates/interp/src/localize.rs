//! Does the place where tracing finds a fact say where to edit it?
//!
//! Paper: Hase et al. 2023, arXiv 2301.04213. Follows: google/belief-localization.
//!
//! Each fact is traced, then edited at each of some layers by each method for each of five tasks, and every edit is judged and taken back. Points
//! (fact, layer) are then regressed: how much of the edits' success does the layer explain, how much the tracing effect at that layer, and
//! how much does the effect add to the layer? The paper's finding is that it adds next to nothing.
//!
//! Where this differs: the text that a noised run gives (tracing reversal) is the greedy one of the mean over draws of noise; with fact forcing, prefixes give way
//! to the draws of noise on the prompt alone; essence is not measured; facts that the model does not answer token by token are left out, where the reference
//! looks for the answer in a longer generation; finetuning is of MLP matrices alone, without the embedding layer (the reference's layer -1) and without the
//! attention form of ROME's baselines.

mod cases;
mod job;
mod relations;
mod report;
mod table;

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use densely_core::{Error, Result, check};
use densely_lm::{Architecture, Lm, LmConfig, Tokenizer};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::average::Averages;
use crate::edit::memit::MomentsOf;
use crate::edit::{Defaults, KeyMode};
use crate::facts::{CounterFact, Fact};
use crate::noise::{Noise, NoiseKind};
use crate::sweep::Row;
use crate::trace::{Restore, Score, Trace, TraceOptions};

use relations::Relations;

pub use job::localize;
pub use report::{LayerFound, Pair, Summary, summarise, write_report};
pub use table::Point;

/// What an edit shall do to a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// A new, false answer becomes likely.
    ErrorInjection,
    /// What the model says with a noised subject becomes likely.
    TracingReversal,
    /// The true answer becomes unlikely.
    FactErasure,
    /// The true answer becomes likelier.
    FactAmplification,
    /// The true answer becomes likely although the subject is noised.
    FactForcing,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::ErrorInjection,
        Self::TracingReversal,
        Self::FactErasure,
        Self::FactAmplification,
        Self::FactForcing,
    ];

    /// As in options and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ErrorInjection => "error-injection",
            Self::TracingReversal => "tracing-reversal",
            Self::FactErasure => "fact-erasure",
            Self::FactAmplification => "fact-amplification",
            Self::FactForcing => "fact-forcing",
        }
    }

    /// Most that an entry changes in finetuning one layer, and five.
    const fn clamps(self) -> (f64, f64) {
        match self {
            Self::ErrorInjection => (1e-4, 5e-5),
            Self::TracingReversal => (1e-3, 1e-3),
            Self::FactErasure => (1e-5, 1e-5),
            Self::FactAmplification => (5e-5, 1e-5),
            Self::FactForcing => (1e-4, 1e-4),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Variant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|v| v.name() == text);
        found.ok_or_else(|| unknown("variants", &Self::ALL.map(Self::name), text))
    }
}

/// How a fact is edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Method {
    /// Finetuning of one layer.
    #[serde(rename = "ft-1")]
    Ft1,
    /// Finetuning of the five layers around it.
    #[serde(rename = "ft-5")]
    Ft5,
    /// ROME.
    #[serde(rename = "rome")]
    Rome,
    /// MEMIT on the five layers around it.
    #[serde(rename = "memit")]
    Memit,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ft1, Self::Ft5, Self::Rome, Self::Memit];

    /// As in options and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ft1 => "ft-1",
            Self::Ft5 => "ft-5",
            Self::Rome => "rome",
            Self::Memit => "memit",
        }
    }

    /// The layers that an edit at `layer` changes: one, or five around it, fewer at the ends.
    pub fn layers(self, layer: usize, n_layers: usize) -> Range<usize> {
        match self {
            Self::Ft1 | Self::Rome => layer..(layer + 1).min(n_layers),
            Self::Ft5 | Self::Memit => Restore::Mlp.layers(layer, 5, n_layers),
        }
    }

    /// Whether it needs second moments.
    pub const fn needs_moments(self) -> bool {
        matches!(self, Self::Rome | Self::Memit)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|m| m.name() == text);
        found.ok_or_else(|| unknown("methods", &Self::ALL.map(Self::name), text))
    }
}

fn unknown(field: &str, names: &[&str], text: &str) -> Error {
    Error::config(
        field,
        format!("must be of {}, got `{text}`", names.join(", ")),
    )
}

/// Settings of a study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalizeOptions {
    /// What edits shall do.
    pub variants: Vec<Variant>,
    /// How facts are edited.
    pub methods: Vec<Method>,
    /// Where.
    pub layers: Vec<usize>,
    /// How facts are traced: MLP outputs, five layers at a time, by the product over the answer's tokens.
    pub trace: TraceOptions,
    /// Facts whose answer is less probable are left out.
    pub min_probability: f64,
    /// Which key ROME writes for.
    pub key: KeyMode,
    /// Most that ROME's change may be, in norms of the MLP's output.
    pub rome_clamp: f64,
    /// Weight of the change elsewhere in ROME.
    pub rome_kl: f64,
    /// Texts before the prompt in ROME, beside the bare prompt: 20 in the paper; fewer are quicker.
    pub prefixes: usize,
    /// Weight of the second moment in MEMIT.
    pub memit_lambda: f64,
    /// Evaluations of MEMIT's loss.
    pub memit_steps: usize,
    /// Learning rate of finetuning.
    pub finetune_lr: f64,
    /// Seed of the prefixes.
    pub seed: u64,
    /// What the second moments are, in words.
    pub moments: String,
}

impl LocalizeOptions {
    /// The paper's settings for a model, at layers by [`layers_of`].
    pub fn new(config: &LmConfig) -> Self {
        let defaults = Defaults::of(config);
        Self {
            variants: Variant::ALL.to_vec(),
            methods: Method::ALL.to_vec(),
            layers: layers_of(config),
            trace: TraceOptions {
                kinds: vec![Restore::Mlp],
                window: 5,
                score: Score::Product,
                ..TraceOptions::default()
            },
            min_probability: 0.02,
            key: KeyMode::default(),
            rome_clamp: defaults.rome_clamp,
            rome_kl: 1.0,
            prefixes: 20,
            memit_lambda: defaults.memit_lambda,
            memit_steps: defaults.memit_steps,
            finetune_lr: 5e-4,
            seed: 0,
            moments: String::new(),
        }
    }

    /// Fails on settings that mean nothing.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting.
    pub fn validate(&self, model: &Lm) -> Result<()> {
        self.trace.validate()?;
        if self.trace.kinds != [Restore::Mlp] {
            return Err(Error::config("kinds", "must be mlp alone"));
        }
        if self.trace.replace {
            return Err(Error::config("replace", "noise is added in this study"));
        }
        for (name, count) in [
            ("variants", self.variants.len()),
            ("methods", self.methods.len()),
            ("layers", self.layers.len()),
        ] {
            if count == 0 {
                return Err(Error::config(name, "must name at least one"));
            }
        }
        let layers = model.config().n_layers;
        if let Some(layer) = self.layers.iter().find(|layer| **layer >= layers) {
            let reason = format!("must be below {layers}, got {layer}");
            return Err(Error::config("layers", reason));
        }
        if !(0.0..1.0).contains(&self.min_probability) {
            let reason = format!("must lie in [0, 1), got {}", self.min_probability);
            return Err(Error::config("min_probability", reason));
        }
        check::above_zero("rome_clamp", self.rome_clamp)?;
        check::above_zero("memit_lambda", self.memit_lambda)?;
        check::positive("memit_steps", self.memit_steps as i64)?;
        check::above_zero("finetune_lr", self.finetune_lr)
    }

    /// All layers whose second moments the study needs.
    pub fn moment_layers(&self, n_layers: usize) -> Vec<usize> {
        let methods = self.methods.iter().filter(|method| method.needs_moments());
        let mut all: Vec<usize> = methods
            .flat_map(|method| self.layers.iter().map(|layer| (*method, *layer)))
            .flat_map(|(method, layer)| method.layers(layer, n_layers))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// The paper's layers for GPT-J and GPT-2 XL; for other models about eight, evenly spread, with ROME's and the last.
pub fn layers_of(config: &LmConfig) -> Vec<usize> {
    let n = config.n_layers;
    let step = match (config.architecture, n) {
        (Architecture::GptJ, 28) | (Architecture::Gpt2, 48) => 4,
        _ => n.div_ceil(8).max(1),
    };
    let mut layers: Vec<usize> = (0..n).step_by(step).collect();
    layers.push(Defaults::of(config).rome_layer);
    layers.push(n.saturating_sub(1));
    layers.sort_unstable();
    layers.dedup();
    layers
}

/// The paper's noise: a standard deviation of 0.094 for GPT-J and 0.1 for GPT-2 XL; for other models, which it does not have, three times that of
/// the subjects' embeddings.
pub fn noise_of(config: &LmConfig) -> NoiseKind {
    match (config.architecture, config.n_layers, config.d_model) {
        (Architecture::GptJ, 28, 4096) => NoiseKind::Fixed(0.094),
        (Architecture::Gpt2, 48, 1600) => NoiseKind::Fixed(0.1),
        _ => NoiseKind::default(),
    }
}

/// Another prompt whose answer should stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// The prompt. What is judged there is the probability of the edit's target, which should stay as it was.
    pub prompt: String,
    /// Its true answer, by which the prompt is cut into tokens and told from others.
    pub answer: String,
}

/// A fact with what its edits are judged by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The fact; it has an attribute.
    pub fact: Fact,
    /// The false answer of error injection; `None` leaves that out.
    pub new: Option<String>,
    /// The same question in other words; `None` is not measured.
    pub paraphrase: Option<String>,
    /// Another question; `None` is not measured.
    pub neighbour: Option<Neighbour>,
}

impl Case {
    /// Cases of CounterFact's records: their new target, first paraphrase and first neighbourhood prompt, whose true answer is the
    /// record's own. Records without a true target are left out.
    pub fn of_counterfact(records: &[CounterFact]) -> Vec<Self> {
        let with_truth = records
            .iter()
            .filter_map(|record| Some((record, record.requested_rewrite.target_true.as_ref()?)));
        with_truth
            .map(|(record, truth)| Self {
                fact: record.fact(),
                new: Some(record.requested_rewrite.target_new.str.trim().to_owned()),
                paraphrase: record.paraphrase_prompts.first().cloned(),
                neighbour: record.neighborhood_prompts.first().map(|prompt| Neighbour {
                    prompt: prompt.clone(),
                    answer: truth.str.trim().to_owned(),
                }),
            })
            .collect()
    }

    /// Cases of facts alone, which have no paraphrases.
    ///
    /// The new answer is the attribute of another fact of the same relation with another attribute, and the neighbour another fact of the same
    /// relation and template, with the same attribute where there is one; both are drawn by the seed and the fact's place. What has no such fact is `None`. Facts
    /// without an attribute are left out.
    pub fn of_facts(facts: &[Fact], seed: u64) -> Vec<Self> {
        let relations = Relations::new(facts);
        let mut cases = Vec::new();
        for (place, fact) in facts.iter().enumerate() {
            if fact.attribute.is_none() {
                continue;
            }
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(place as u64);
            let new = relations.attribute(fact, &mut rng);
            let neighbour = relations.neighbour(fact, &mut rng);
            cases.push(Self {
                fact: fact.clone(),
                new: new.map(str::to_owned),
                paraphrase: None,
                neighbour: neighbour.and_then(|other| {
                    Some(Neighbour {
                        prompt: other.prompt.clone(),
                        answer: other.attribute.clone()?,
                    })
                }),
            });
        }
        cases
    }

    /// The template that gives the fact's prompt.
    fn template(&self) -> String {
        let fact = &self.fact;
        if fact.template.replacen("{}", &fact.subject, 1) == fact.prompt {
            return fact.template.clone();
        }
        fact.prompt.replacen(&fact.subject, "{}", 1)
    }
}

/// How much of what noise takes away is restored at each layer: the largest over the tokens from the subject on of
/// max(0, (restored - low) / |high - low|).
pub fn fractions(trace: &Trace) -> Vec<f64> {
    let gap = (trace.high - trace.low).abs();
    let Some(grid) = trace.scores.get(&Restore::Mlp) else {
        return Vec::new();
    };
    let layers = grid.first().map_or(0, Vec::len);
    let mut best = vec![0.0f64; layers];
    if gap <= 0.0 {
        return best;
    }
    for row in grid.iter().skip(trace.subject.start) {
        for (best, score) in best.iter_mut().zip(row) {
            *best = best.max((score - trace.low) / gap);
        }
    }
    best
}

/// Least score of an edit that shall raise a probability.
const FLOOR: f64 = 2e-8;

/// How far an edit came: 1 - (1 - after) / (1 - before), at least 2e-8; or of erasure max(0, (before - after) / before).
pub fn rewrite_score(variant: Variant, before: f64, after: f64) -> f64 {
    match variant {
        Variant::FactErasure => ((before - after) / before.max(f64::MIN_POSITIVE)).max(0.0),
        // Nothing to win.
        _ if before >= 1.0 => FLOOR,
        _ => (1.0 - (1.0 - after) / (1.0 - before)).max(FLOOR),
    }
}

/// How well a neighbour stayed, of the probabilities of the edit's target there: 1 - |after - before| / (|before - ½| + ½).
pub fn neighbourhood_score(before: f64, after: f64) -> f64 {
    1.0 - (after - before).abs() / ((before - 0.5).abs() + 0.5)
}

/// What a study says while it goes on.
#[derive(Debug)]
pub enum Event<'a> {
    /// A fact was traced or left out; the number done, and of all.
    Traced(&'a Row, usize, usize),
    /// An edit was judged; the number done, and of all.
    Edited(&'a Point, usize, usize),
}

/// What a study needs beside its settings.
pub struct Study<'a> {
    /// The model.
    pub model: &'a Lm,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The facts.
    pub cases: &'a [Case],
    /// The noise of traces, and of edits with a noised subject.
    pub noise: &'a Noise,
    /// Gives the second moments of a layer.
    pub moments: &'a mut MomentsOf<'a>,
    /// Folder of `settings.json`, `traces.jsonl`, `cases.jsonl` and `edits.csv`.
    pub folder: &'a Path,
}

impl fmt::Debug for Study<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Study")
            .field("cases", &self.cases.len())
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// What came of a study.
#[derive(Debug)]
pub struct Outcome {
    /// Points of the cases and settings that were asked for, in the order of the file.
    pub points: Vec<Point>,
    /// Average indirect effects of the facts that were traced and whose answer is probable enough; `None` where there are none.
    pub averages: Option<Averages>,
    /// Facts that were edited.
    pub edited: usize,
    /// Facts that were left out, and why.
    pub skipped: Vec<(String, String)>,
}
