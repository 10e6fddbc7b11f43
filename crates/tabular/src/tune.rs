//! Hyper-parameter search: many short fits, each with other settings, compared by their validation score.
//!
//! A [`Space`] says what may be chosen and proposes it, a [`Study`] keeps the trials in a folder that several processes
//! share and that a kill at any instant leaves in order, and [`work`] runs trials until all are done. A trial never
//! sees a test row.
//!
//! The ready-made spaces are those of the TabM paper (arXiv 2410.24210, appendix on implementation details; the
//! released code's `exp` folders).

mod space;
mod study;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use densely_core::{Error, Result};
use densely_data::dataset::Dataset;
use densely_data::schema::Task;
use densely_train::metrics::Metric;
use densely_train::run::ResumeFrom;
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::fit::{Event, FitOptions, Outcome, Prepared, fit};
use crate::settings::{Batches, EmbeddingSettings, FitSettings, metrics_of};
use crate::task::is_out_of_memory;
pub use space::{Choice, RangeSettings, Space, Tried, apply};
pub use study::{Claim, Plan, State, Study, Trial};

/// The section `[tune]` of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TuneSettings {
    /// Trials in all.
    pub trials: u64,
    /// Trials at random before the search learns from them.
    pub startup: u64,
    /// Validation score that compares trials; the one that stops training early when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// Ranges by setting; [`ready_made`] when empty.
    pub space: BTreeMap<String, RangeSettings>,
}

impl Default for TuneSettings {
    fn default() -> Self {
        Self {
            trials: 100,
            startup: 20,
            metric: None,
            space: BTreeMap::new(),
        }
    }
}

impl TuneSettings {
    /// The score that compares trials of `task`.
    ///
    /// # Errors
    /// [`Error::Config`] when the metric does not fit the task.
    pub fn metric(&self, settings: &FitSettings, task: Task) -> Result<Metric> {
        match self.metric {
            None => settings.train.metric(task),
            Some(metric) if metrics_of(task).contains(&metric) => Ok(metric),
            Some(metric) => {
                let names: Vec<&str> = metrics_of(task).iter().map(|m| m.name()).collect();
                let (name, names) = (metric.name(), names.join(", "));
                let reason = format!("`{name}` does not fit; take one of: {names}");
                Err(Error::config("tune.metric", reason))
            }
        }
    }

    /// The ranges, or the ready-made ones for the model of `base`, checked against it.
    ///
    /// # Errors
    /// [`Error::Config`] naming the range that cannot be used.
    pub fn space(&self, base: &FitSettings) -> Result<(BTreeMap<String, RangeSettings>, Space)> {
        let ranges = if self.space.is_empty() {
            ready_made(base)?
        } else {
            self.space.clone()
        };
        let space = Space::new(&ranges)?;
        space.check(base)?;
        Ok((ranges, space))
    }
}

/// The paper's ranges for the model, its embedding and its way to draw batches.
///
/// The paper tunes TabM and TabM-mini bare and with piecewise-linear embeddings, the MLP with periodic ones too;
/// combinations that it leaves out take the model's row and the embedding's.
/// # Errors
/// [`Error::Config`] for a model without ranges.
pub fn ready_made(base: &FitSettings) -> Result<BTreeMap<String, RangeSettings>> {
    let embedding = base.model.embedding.as_ref();
    let (blocks, lr) = match (base.model.preset.as_str(), embedding.is_some()) {
        ("mlp", false) => (6, [3e-5, 1e-3]),
        ("mlp", true) => (5, [3e-5, 1e-3]),
        ("tabm-packed", _) => (5, [3e-5, 3e-3]),
        ("tabm" | "tabm-mini", embedded) => {
            let highest = match base.train.batches {
                Batches::Shared => 5e-3,
                Batches::PerMember => 3e-3,
            };
            (if embedded { 4 } else { 5 }, [1e-4, highest])
        }
        (other, _) => {
            let reason = format!("there are no ready-made ranges for `{other}`; write your own");
            return Err(Error::config("tune.space", reason));
        }
    };
    let mut space = BTreeMap::from([
        ("model.config.n_blocks", RangeSettings::int(1, blocks, 1)),
        ("model.config.d_block", RangeSettings::int(64, 1024, 16)),
        ("model.config.dropout", RangeSettings::zero_or(0.0, 0.5)),
        ("train.optimizer.lr", RangeSettings::log(lr[0], lr[1])),
        (
            "train.optimizer.weight_decay",
            RangeSettings::zero_or_log(1e-4, 1e-1),
        ),
    ]);
    let d_embedding = "model.embedding.d_embedding";
    match embedding {
        None => {}
        Some(EmbeddingSettings::PiecewiseLinear { .. }) => {
            space.insert("model.embedding.n_bins", RangeSettings::int(2, 128, 1));
            space.insert(d_embedding, RangeSettings::int(8, 32, 4));
        }
        Some(EmbeddingSettings::LinearRelu { .. }) => {
            space.insert(d_embedding, RangeSettings::int(8, 32, 4));
        }
        Some(EmbeddingSettings::Periodic { .. }) => {
            space.insert(
                "model.embedding.n_frequencies",
                RangeSettings::int(16, 96, 4),
            );
            space.insert(d_embedding, RangeSettings::int(16, 32, 4));
            let scale = RangeSettings::log(0.01, 10.0);
            space.insert("model.embedding.frequency_init_scale", scale);
        }
    }
    Ok(space
        .into_iter()
        .map(|(name, range)| (name.to_owned(), range))
        .collect())
}

/// What all trials of a study share.
#[derive(Debug)]
pub struct Work<'a> {
    /// The table, made ready once.
    pub prepared: &'a Prepared,
    /// Settings that a trial starts from.
    pub base: &'a FitSettings,
    /// The table's path, for the run folders.
    pub table: &'a Path,
    /// Where to compute.
    pub device: Device,
}

/// Runs trials of `study` until none is left to claim; `done` hears of each one that ended here.
///
/// Other processes may work on the same study. A trial that diverges or runs out of memory has failed, and the study goes
/// on.
/// # Errors
/// [`Error::Interrupted`] after Ctrl-C: the running trial is saved, and the next call goes on with it. Every other error of
/// a fit, since the next trial would meet it too; the trial is then taken up again by the next call.
pub fn work(study: &Study, work: &Work, done: &mut dyn FnMut(&Trial) -> Result<()>) -> Result<()> {
    let interrupted = || Error::Interrupted {
        folder: study.folder().to_owned(),
    };
    let blind = blind(work.prepared);
    while !densely_train::signal::interrupted() {
        let Some(claim) = study.claim()? else {
            return Ok(());
        };
        let settings = apply(work.base, &claim.trial().choice)?;
        let trial = match run(&claim, &blind, &settings, work, study.plan().seed) {
            Ok(outcome) => claim.succeed(&outcome, study.plan().metric)?,
            Err(Error::Interrupted { .. }) => {
                claim.postpone()?;
                return Err(interrupted());
            }
            Err(error) if is_the_trials_fault(&error) => claim.fail(&error.to_string())?,
            Err(error) => {
                claim.postpone()?;
                return Err(error);
            }
        };
        done(&trial)?;
    }
    Err(interrupted())
}

/// The same without test rows: validation rows stand in their place, so that nothing can be measured on others.
fn blind(prepared: &Prepared) -> Prepared {
    let alias = |data: &Dataset| data.to_device(data.device());
    let mut split = prepared.split.clone();
    split.test.clone_from(&split.valid);
    Prepared {
        schema: prepared.schema.clone(),
        task: prepared.task,
        preprocessor: prepared.preprocessor.clone(),
        split,
        train: alias(&prepared.train),
        valid: alias(&prepared.valid),
        test: alias(&prepared.valid),
    }
}

fn is_the_trials_fault(error: &Error) -> bool {
    match error {
        Error::Diverged { .. } => true,
        Error::Torch { message, .. } => is_out_of_memory(message),
        _ => false,
    }
}

/// Trains the trial in its folder, from its last checkpoint where there is one.
fn run(
    claim: &Claim,
    prepared: &Prepared,
    settings: &FitSettings,
    work: &Work,
    seed: u64,
) -> Result<Outcome> {
    let attempt = |resume| {
        let options = FitOptions {
            folder: claim.folder(),
            table: work.table,
            seed,
            device: work.device,
            resume,
        };
        let observe = &mut |_: &Event| {};
        // tch panics where libtorch fails; running out of memory must not end the study.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            fit(prepared, settings, &options, observe)
        }));
        outcome.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            if is_out_of_memory(&text) {
                return Err(Error::torch(text));
            }
            resume_unwind(panic)
        })
    };
    if !claim.has_run() {
        return attempt(None);
    }
    match attempt(Some(ResumeFrom::Last)) {
        Err(error @ Error::Corrupt { .. }) => {
            tracing::warn!("{error}");
            tracing::warn!("trial {} starts anew", claim.trial().number);
            claim.clear()?;
            attempt(None)
        }
        other => other,
    }
}
