//! The search of hyper-parameters for series; what all domains share of it is [`densely_train::tune`].

use std::collections::BTreeMap;

use densely_core::{Error, Result, seeded};
use densely_train::metrics::Metric;
pub use densely_train::tune::Work;
use densely_train::tune::{Found, RangeSettings, Study, Trial, TuneSettings, to_json};
use tch::Device;
use tch::nn::VarStore;

use crate::fit::{FitSettings, Loss, Prepared, build, train};

/// The score that compares trials; the one that stops training early when `tune` does not say.
///
/// # Errors
/// [`Error::Config`] for another metric than `mse` or `mae`.
pub fn metric(tune: &TuneSettings, settings: &FitSettings) -> Result<Metric> {
    let default = match settings.train.loss {
        Loss::Mse => Metric::Mse,
        Loss::Mae => Metric::Mae,
    };
    tune.metric(&[Metric::Mse, Metric::Mae], default)
}

/// The ranges of `tune`, checked against `base`.
///
/// # Errors
/// [`Error::Config`] naming the range that cannot be used, or saying that there is none: series have no ready-made ranges.
pub fn ranges(tune: &TuneSettings, base: &FitSettings) -> Result<BTreeMap<String, RangeSettings>> {
    if tune.space.is_empty() {
        let reason = "the recipe names no settings to choose; write some into it, such as \"model.config.dropout\" = { choice = [0.1, 0.5] }";
        return Err(Error::config("tune.space", reason));
    }
    tune.space(&tune.space)?
        .check(&to_json(base)?, |settings: &FitSettings| {
            settings.train.validate()?;
            // How many channels there are, only the table knows; nothing that may be chosen depends on it.
            let (data, model) = (&settings.data, &settings.model);
            let config = model.resolve(data.lookback, data.horizon, 1)?;
            let vs = VarStore::new(Device::Cpu);
            seeded(0, || build(&model.preset, &config, &vs.root())).map(|_| ())
        })?;
    Ok(tune.space.clone())
}

/// Runs trials of `study` until none is left to claim; `done` hears of each one that ended here. None of them looks at a test window.
///
/// # Errors
/// Those of [`Work::run`].
pub fn work(
    study: &Study,
    work: &Work<Prepared>,
    done: &mut dyn FnMut(&Trial) -> Result<()>,
) -> Result<()> {
    work.run(
        study,
        &mut |settings, options| {
            let trained = train(work.prepared, settings, options, &mut |_| ())?;
            Ok(Found {
                scores: trained.valid.scores(),
                epochs: trained.epochs,
                parameters: trained.parameters,
                seconds: trained.seconds,
            })
        },
        done,
    )
}
