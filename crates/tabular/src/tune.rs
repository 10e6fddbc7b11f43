//! The search of hyper-parameters for tables; what all domains share of it is [`densely_train::tune`].
//!
//! The ready-made spaces are those of the TabM paper (arXiv 2410.24210, appendix on implementation details; the
//! released code's `exp` folders).

use std::collections::BTreeMap;

use densely_core::{Error, Result};
use densely_data::dataset::Dataset;
use densely_data::schema::Task;
use densely_train::metrics::Metric;
pub use densely_train::tune::Work;
use densely_train::tune::{Found, RangeSettings, Study, Trial, TuneSettings, to_json};

use crate::fit::{Prepared, fit};
use crate::settings::{Batches, EmbeddingSettings, FitSettings, metrics_of};

/// The score that compares trials of `task`; the one that stops training early when `tune` does not say.
///
/// # Errors
/// [`Error::Config`] when the metric does not fit the task.
pub fn metric(tune: &TuneSettings, settings: &FitSettings, task: Task) -> Result<Metric> {
    tune.metric(metrics_of(task), settings.train.metric(task)?)
}

/// The ranges of `tune`, or the [`ready_made`] ones for the model of `base`, checked against it.
///
/// # Errors
/// [`Error::Config`] naming the range that cannot be used.
pub fn ranges(tune: &TuneSettings, base: &FitSettings) -> Result<BTreeMap<String, RangeSettings>> {
    let ranges = if tune.space.is_empty() {
        ready_made(base)?
    } else {
        tune.space.clone()
    };
    tune.space(&ranges)?
        .check(&to_json(base)?, |settings: &FitSettings| {
            settings.train.validate()?;
            // Without data only the names and types of the model's fields can be checked.
            settings.model.resolve(None, None, &[2], 1)?.validate()
        })?;
    Ok(ranges)
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

/// Runs trials of `study` until none is left to claim; `done` hears of each one that ended here.
///
/// # Errors
/// Those of [`Work::run`].
pub fn work(
    study: &Study,
    work: &Work<Prepared>,
    done: &mut dyn FnMut(&Trial) -> Result<()>,
) -> Result<()> {
    let blind = blind(work.prepared);
    work.run(
        study,
        &mut |settings, options| {
            let outcome = fit(&blind, settings, options, &mut |_| ())?;
            Ok(Found {
                scores: outcome.valid,
                epochs: outcome.epochs,
                parameters: outcome.parameters,
                seconds: outcome.seconds,
            })
        },
        done,
    )
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
