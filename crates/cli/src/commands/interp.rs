//! `densely interp`: where a language model keeps what it knows, and changing it.

mod circuit;
mod edit;
mod greater_than;
pub(super) mod localize;
mod recall;
pub(super) mod trace;
pub(in crate::commands) mod transcoder;

use std::path::Path;

use clap::ValueEnum;
use densely_core::{Error, Result};
use densely_interp::edit::KeyMode;
use densely_interp::facts::{Fact, read_facts};
use densely_interp::noise::{Noise, NoiseKind};
use densely_lm::Opened;

use crate::Common;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Trace which hidden states restore a fact once its subject is corrupted; one prompt, or averages over many facts.
    Trace(Box<trace::Trace>),
    /// Tell how heads, MLPs and the last layer answer prompts of one kind.
    Recall(Box<recall::Recall>),
    /// Change facts in a model's weights.
    Edit(Box<edit::EditArguments>),
    /// Ask whether the places that tracing finds are those where editing works.
    Localize(Box<localize::Localize>),
    /// Write what layers do as sums of few features: transcoders and sparse autoencoders.
    #[command(subcommand)]
    Transcoder(transcoder::Command),
    /// Trace which features and heads lead from a prompt to its next token, through transcoders.
    Circuit(Box<circuit::Circuit>),
    /// Measure how a model knows that a later year comes behind an earlier one, itself and through transcoders.
    GreaterThan(greater_than::GreaterThan),
}

pub(crate) fn run(command: &Command, common: &Common) -> Result<()> {
    match command {
        Command::Trace(arguments) => trace::run(arguments, common),
        Command::Recall(arguments) => recall::run(arguments, common),
        Command::Edit(arguments) => edit::run(arguments, common),
        Command::Localize(arguments) => localize::run(arguments, common),
        Command::Transcoder(command) => transcoder::run(command, common),
        Command::Circuit(arguments) => circuit::run(arguments, common),
        Command::GreaterThan(arguments) => greater_than::run(arguments, common),
    }
}

/// Which key ROME writes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Key {
    /// The mean over prefixes.
    Averaged,
    /// That of the prompt alone, as in the released code.
    Reference,
}

impl Key {
    const fn mode(self) -> KeyMode {
        match self {
            Self::Averaged => KeyMode::Averaged,
            Self::Reference => KeyMode::Reference,
        }
    }
}

/// Why MEMIT does not go without second moments and without a weight for what stands in their place; `option` is what asks for MEMIT.
fn memit_alone(option: &str, otherwise: &str) -> Error {
    let reason = format!(
        "MEMIT weighs the second moments of ordinary text by a lambda of 15,000 or more; the identity in their place is so much larger that next to nothing would change: give --moments-text FILE (or --moments), or a --lambda that suits the identity, such as 1{otherwise}"
    );
    Error::config(option, reason)
}

/// Facts or records that are left out: the first ones are named.
#[derive(Debug, Default)]
struct Skipped {
    pub(super) count: usize,
}

impl Skipped {
    /// How many are named.
    const NAMED: usize = 10;

    pub(super) fn add(&mut self, reason: &str) {
        if self.count < Self::NAMED {
            tracing::warn!("skipped: {reason}");
        }
        self.count += 1;
    }

    pub(super) fn end(&self) {
        if self.count > Self::NAMED {
            tracing::warn!("skipped: {} more", self.count - Self::NAMED);
        }
    }
}

/// What a model is called in figures: the name of its folder or file.
fn model_name(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = if whole.is_dir() {
        whole.file_name()
    } else {
        whole.file_stem()
    };
    name.map_or_else(
        || "model".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// Says which of the options that were given change nothing beside another one.
fn without_effect<'a>(beside: &str, given: impl IntoIterator<Item = &'a str>) {
    let given: Vec<&str> = given.into_iter().collect();
    if !given.is_empty() {
        tracing::warn!("without effect with {beside}: {}", given.join(", "));
    }
}

/// Measures noise on the subjects (of a covariance, the prompts) of a file or, where there is none, of the facts at hand.
fn measured_noise(
    opened: &Opened,
    kind: NoiseKind,
    file: Option<&Path>,
    own: &[Fact],
) -> Result<Noise> {
    let read;
    let facts = match file {
        Some(file) => {
            read = read_facts(file)?;
            &read
        }
        None => own,
    };
    let is_given = matches!(kind, NoiseKind::Fixed(_) | NoiseKind::Uniform(_));
    if is_given && file.is_some() {
        without_effect(&format!("--noise {kind}"), ["--noise-facts"]);
    }
    let texts: Vec<&str> = match kind {
        NoiseKind::Measured(_) => facts.iter().map(|fact| fact.subject.as_str()).collect(),
        NoiseKind::Covariance | NoiseKind::Student(_) => {
            facts.iter().map(|fact| fact.prompt.as_str()).collect()
        }
        NoiseKind::Fixed(_) | NoiseKind::Uniform(_) => Vec::new(),
    };
    let one = facts.len() == 1 && file.is_none();
    if one && !texts.is_empty() {
        tracing::warn!(
            "noise {kind} is measured on this one prompt; name a list of facts with --noise-facts, or a standard deviation with --noise, to compare with others"
        );
    }
    let samples = texts
        .into_iter()
        .map(|text| opened.tokenizer.encode_plain(text))
        .collect::<Result<Vec<_>>>()?;
    Noise::measure(&opened.model, kind, &samples)
}
