//! `densely interp transcoder`: sparse dictionaries trained, judged, read and shown.

pub(crate) mod compare;
mod convert;
mod eval;
mod features;
mod show;
pub(crate) mod train;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use densely_interp::activations::{ActivationOptions, Activations, layer_of};
use densely_interp::corpus::{Corpus, CorpusOptions, Documents};
use densely_interp::dictionary::evaluate::{Ablation, EvaluateOptions, Evaluation};
use densely_interp::dictionary::fit::{self, Event};
use densely_interp::dictionary::folder::Opened as OpenedDictionary;
use densely_lm::{Lm, Opened};
use densely_train::progress::Bar;

use crate::Common;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Train a transcoder or autoencoder on a model's activations over texts.
    Train(Box<train::Train>),
    /// Train autoencoders and transcoders of several sparsities on the same activations, and draw what each loses.
    Compare(Box<compare::Compare>),
    /// Print what a model loses with dictionaries in its layers' place.
    Eval(Box<eval::Eval>),
    /// Write how often each feature fires, where most, and which tokens it promotes.
    Features(Box<features::Features>),
    /// Print what a dictionary is, or one of its features.
    Show(show::Show),
    /// Write a dictionary in the format of another package.
    Convert(convert::Convert),
}

pub(super) fn run(command: &Command, common: &Common) -> Result<()> {
    match command {
        Command::Train(arguments) => train::run(arguments, common),
        Command::Compare(arguments) => compare::run(arguments, common),
        Command::Eval(arguments) => eval::run(arguments, common),
        Command::Features(arguments) => features::run(arguments, common),
        Command::Show(arguments) => show::run(arguments, common),
        Command::Convert(arguments) => convert::run(arguments, common),
    }
}

/// Texts, and how they become windows.
#[derive(Debug, clap::Args)]
struct Texts {
    /// Texts: plain ones, JSON lines or Parquet; several are read one behind the other.
    #[arg(long, value_name = "FILE", required = true, value_delimiter = ',')]
    text: Vec<PathBuf>,
    /// Field or column that holds the text, in JSON lines and Parquet.
    #[arg(long, default_value = "text", value_name = "NAME")]
    field: String,
    /// Tokens of a window.
    #[arg(long, default_value_t = 128)]
    context: usize,
    /// Do not begin windows with the token that begins a text.
    #[arg(long)]
    no_bos: bool,
    /// Count the token that begins each window, too; its activations are like no others in most models.
    #[arg(long)]
    keep_first: bool,
    /// Tokens at most.
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
}

impl Texts {
    fn options(&self) -> CorpusOptions {
        CorpusOptions {
            context: self.context,
            bos: !self.no_bos,
            limit: self.tokens,
            field: self.field.clone(),
        }
    }

    /// All texts as windows.
    fn corpus(&self, opened: &Opened) -> Result<Corpus> {
        let options = self.options();
        let documents = Documents::read(&self.text, &opened.tokenizer, &options)?;
        documents.windows(&opened.tokenizer, &options)
    }

    /// Windows to train on, and windows to judge by: other texts, or a share of these.
    fn parts(&self, opened: &Opened, judging: &Judging) -> Result<(Corpus, Corpus)> {
        let options = self.options();
        let documents = Documents::read(&self.text, &opened.tokenizer, &options)?;
        let (train, test, repeated) = if judging.test_text.is_empty() {
            documents.split(judging.test_share)?
        } else {
            let whole = CorpusOptions {
                limit: None,
                ..options.clone()
            };
            let mut test = Documents::read(&judging.test_text, &opened.tokenizer, &whole)?;
            let repeated = test.leave_out(&documents);
            if test.is_empty() {
                let reason = "holds nothing that is not trained on";
                return Err(Error::config("--test-text", reason));
            }
            (documents, test, repeated)
        };
        if repeated > 0 {
            tracing::warn!(
                "{repeated} documents to judge by are trained on, too; they are left out"
            );
        }
        let train = train.windows(&opened.tokenizer, &options)?;
        let test = test
            .windows(&opened.tokenizer, &options)?
            .first(judging.test_windows);
        Ok((train, test))
    }
}

/// What is judged by.
#[derive(Debug, clap::Args)]
struct Judging {
    /// Texts to judge by; the last share of the others when left out.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    test_text: Vec<PathBuf>,
    /// Share of the texts that is kept for judging.
    #[arg(long, default_value_t = 0.05, conflicts_with = "test_text")]
    test_share: f64,
    /// Windows to judge by, at most.
    #[arg(long, default_value_t = 128, value_name = "N")]
    test_windows: usize,
    /// What stands in the layer's place for comparison: zero or mean.
    #[arg(long, default_value = "zero")]
    ablation: Ablation,
}

/// How activations are taken and kept.
#[derive(Debug, clap::Args)]
struct Storing {
    /// Tokens of a buffer, whose activations are in memory and shuffled together.
    #[arg(long, default_value_t = 65_536, value_name = "N")]
    buffer: usize,
    /// Windows that go through the model at once.
    #[arg(long, default_value_t = 16, value_name = "N")]
    rows: usize,
    /// Folder to keep activations in: later epochs and other trainings over the same points read them there.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

impl Storing {
    fn options(&self, points: &[&str], texts: &Texts, seed: u64) -> ActivationOptions {
        ActivationOptions {
            buffer: self.buffer,
            rows: self.rows,
            seed,
            keep_first: texts.keep_first,
            ..ActivationOptions::new(points)
        }
    }

    /// Activations to train on, and to judge by, of which the second are never kept.
    fn activations<'a>(
        &self,
        opened: &'a Opened,
        (train, test): (&'a Corpus, &'a Corpus),
        options: ActivationOptions,
    ) -> Result<(Activations<'a>, Activations<'a>)> {
        let judged = Activations::new(&opened.model, test, options.clone(), None)?;
        let train = Activations::new(&opened.model, train, options, self.store.as_deref())?;
        Ok((train, judged))
    }
}

/// Shows a training: a bar on a terminal, and what each epoch found.
struct Watch {
    quiet: bool,
    bar: Option<Bar>,
}

impl Watch {
    const fn new(quiet: bool) -> Self {
        Self { quiet, bar: None }
    }

    fn see(&mut self, event: &Event) {
        match event {
            Event::Started {
                parameters,
                steps,
                done,
            } => {
                if !self.quiet {
                    eprintln!("{parameters} parameters, {steps} steps");
                }
                self.bar = Some(Bar::new(*steps, *done, self.quiet));
            }
            Event::Harvest {
                done,
                all,
                tokens,
                seconds,
            } => {
                if let Some(bar) = &self.bar {
                    let speed = *tokens as f64 / seconds.max(1e-9);
                    bar.say(format!(
                        "activations, window {done} of {all}, {speed:.0} tokens/s"
                    ));
                }
            }
            Event::Step { step, loss } => {
                if let Some(bar) = &self.bar {
                    bar.update(0, *step, *loss);
                }
            }
            Event::Epoch { epoch, judged } => {
                let words = format!(
                    "epoch {}: {:.1} % of the variance explained, {:.1} features a token, {:.1} % silent",
                    epoch + 1,
                    100.0 * (1.0 - judged.fvu),
                    judged.l0,
                    100.0 * judged.silent
                );
                if let Some(bar) = &self.bar {
                    bar.say(words);
                }
            }
        }
    }

    fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish();
        }
    }
}

/// Tells of windows on a bar; Ctrl-C ends the work, of which nothing was written.
pub(super) fn windows_bar(quiet: bool) -> impl FnMut(usize, usize) -> Result<()> {
    bar_until(quiet, || {
        Error::config("the work", "was interrupted; nothing was written")
    })
}

/// The same where a run folder holds what was done before.
fn saved_bar(quiet: bool, folder: &Path) -> impl FnMut(usize, usize) -> Result<()> {
    bar_until(quiet, || Error::Interrupted {
        folder: folder.to_owned(),
    })
}

fn bar_until(quiet: bool, ended: impl Fn() -> Error) -> impl FnMut(usize, usize) -> Result<()> {
    let mut bar: Option<Bar> = None;
    move |done, all| {
        if densely_train::signal::interrupted() {
            return Err(ended());
        }
        let bar = bar.get_or_insert_with(|| Bar::new(all as u64, 0, quiet));
        bar.update(0, done as u64, None);
        if done == all {
            bar.finish();
        }
        Ok(())
    }
}

/// A dictionary of a folder or run, and the points of the model that it belongs to: its own, unless others are named.
pub(super) fn open_dictionary(
    path: &Path,
    read: Option<&str>,
    write: Option<&str>,
    common: &Common,
) -> Result<(OpenedDictionary, String, String)> {
    let opened = fit::open(path, common.device)?;
    let (read, write) = points_of(&opened, path, read, write)?;
    Ok((opened, read, write))
}

/// The points that a dictionary belongs to: its own, unless others are named.
pub(super) fn points_of(
    opened: &OpenedDictionary,
    path: &Path,
    read: Option<&str>,
    write: Option<&str>,
) -> Result<(String, String)> {
    tracing::info!("{}: {}", path.display(), opened.described);
    let missing = |option: &str| {
        let reason = format!("is not said by {}: name it", path.display());
        Error::config(option, reason)
    };
    let own = opened.metadata.hook_name.clone();
    let read = read
        .map(str::to_owned)
        .or(own)
        .ok_or_else(|| missing("--read"))?;
    let transcodes =
        opened.dictionary.config().role == densely_interp::dictionary::Role::Transcoder;
    let write = match write {
        Some(write) => write.to_owned(),
        None if !transcodes => read.clone(),
        None => opened
            .metadata
            .hook_name_out
            .clone()
            .or_else(|| behind(&read))
            .ok_or_else(|| missing("--write"))?,
    };
    Ok((read, write))
}

/// The MLP's output of the layer that a point belongs to.
fn behind(read: &str) -> Option<String> {
    let layer = read.strip_prefix("blocks.")?.split_once('.')?.0;
    Some(format!("blocks.{layer}.hook_mlp_out"))
}

/// The point at which a layer's MLP is entered. A block whose MLP reads what attention reads has one norm alone.
pub(super) fn enters(model: &Lm, layer: usize) -> Result<String> {
    // A layer that is not there is told as such.
    let _ = layer_of(model, &format!("blocks.{layer}.hook_mlp_out"))?;
    let known = |end: &str| {
        let name = format!("blocks.{layer}.{end}");
        model.hook_names().any(|own| own == name).then_some(name)
    };
    known("ln2.hook_normalized")
        .or_else(|| known("ln1.hook_normalized"))
        .ok_or_else(|| {
            let reason = format!("no point of the model says what enters the MLP of layer {layer}");
            Error::config("--read", reason)
        })
}

fn evaluate_options(texts: &Texts, ablation: Ablation) -> EvaluateOptions {
    EvaluateOptions {
        ablation,
        keep_first: texts.keep_first,
        ..EvaluateOptions::default()
    }
}

/// What a model loses, in lines for people.
fn evaluation_words(found: &Evaluation, ablation: Ablation) -> String {
    let ablated = match ablation {
        Ablation::Zero => "with zeros instead",
        Ablation::Mean => "with the mean instead",
    };
    let mut words = format!(
        "cross-entropy {:.4} of the model, {:.4} with the dictionary, {:.4} {ablated}: {:.2} % recovered; KL {:.4}; {} predictions",
        found.ce_clean,
        found.ce_replaced,
        found.ce_ablated,
        100.0 * found.recovered,
        found.kl,
        found.predictions
    );
    for layer in &found.dictionaries {
        let _ = write!(
            words,
            "\n{}: L0 {:.2}, {:.2} % of the variance explained, {:.2} % of the features silent",
            layer.write,
            layer.l0,
            100.0 * layer.explained,
            100.0 * layer.silent
        );
    }
    words
}
