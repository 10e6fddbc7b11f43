//! Hyper-parameter search: many fits, each with other settings, compared by their validation score.
//!
//! A [`Space`] says what may be chosen and proposes it, a [`Study`] keeps the trials in a folder that several processes
//! share and that a kill at any instant leaves in order, and [`Work::run`] runs trials until all are done. What a fit is, the
//! domains say.

mod space;
mod study;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use densely_core::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::Device;

use crate::machine::is_out_of_memory;
use crate::metrics::Metric;
use crate::run::{FitOptions, ResumeFrom};
pub use space::{Choice, RangeSettings, Space, Tried, apply};
pub use study::{Claim, Column, Found, Plan, State, Study, Trial};

/// Trials at random before the search learns from them, when the settings do not say.
const STARTUP: u64 = 20;

/// How a study chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// At random first, then by tree-structured Parzen estimators.
    #[default]
    Tpe,
    /// Every combination once, in an order that the seed shuffles: a part of the grid is spread over the whole.
    Grid,
}

/// The section `[tune]` of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TuneSettings {
    /// How settings are chosen.
    pub method: Method,
    /// Trials in all; 100 when left out, or every point of a grid, which has no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trials: Option<u64>,
    /// Trials at random before the search learns from them, 20 when left out; not for a grid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup: Option<u64>,
    /// Validation score that compares trials; the one that stops training early when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// Ranges by setting; the domain may have ready-made ones for an empty table.
    pub space: BTreeMap<String, RangeSettings>,
}

impl TuneSettings {
    /// The score that compares trials, one of `fitting`; `default` when the settings do not say.
    ///
    /// # Errors
    /// [`Error::Config`] when the metric does not fit.
    pub fn metric(&self, fitting: &[Metric], default: Metric) -> Result<Metric> {
        match self.metric {
            None => Ok(default),
            Some(metric) if fitting.contains(&metric) => Ok(metric),
            Some(metric) => {
                let names: Vec<&str> = fitting.iter().map(|m| m.name()).collect();
                let (name, names) = (metric.name(), names.join(", "));
                let reason = format!("`{name}` does not fit; take one of: {names}");
                Err(Error::config("tune.metric", reason))
            }
        }
    }

    /// The ranges as a space that the method can search.
    ///
    /// # Errors
    /// Those of [`Space::new`]; for a grid those of [`Space::points`], and [`Error::Config`] for a `startup`.
    pub fn space(&self, ranges: &BTreeMap<String, RangeSettings>) -> Result<Space> {
        let space = Space::new(ranges)?;
        if self.method == Method::Grid {
            space.points()?;
            if let Some(startup) = self.startup {
                let reason = format!(
                    "is for the method `tpe`: a grid draws nothing at random, got {startup}"
                );
                return Err(Error::config("tune.startup", reason));
            }
        }
        Ok(space)
    }

    /// What all trials share, with the ranges `space` and the settings `base`.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that have no form in JSON.
    pub fn plan(
        &self,
        seed: u64,
        metric: Metric,
        space: BTreeMap<String, RangeSettings>,
        base: &impl Serialize,
    ) -> Result<Plan> {
        Ok(Plan {
            seed,
            method: self.method,
            startup: self.startup.unwrap_or(STARTUP),
            metric,
            space,
            base: to_json(base)?,
        })
    }
}

/// Settings as JSON, for [`Plan::base`] and [`apply`].
///
/// # Errors
/// [`Error::Config`] when they have no form in JSON.
pub fn to_json(settings: &impl Serialize) -> Result<Value> {
    serde_json::to_value(settings).map_err(|e| Error::config("tune", e.to_string()))
}

/// What all trials of a study share.
#[derive(Debug)]
pub struct Work<'a, P> {
    /// The table, made ready once.
    pub prepared: &'a P,
    /// The table's path, for the run folders.
    pub table: &'a Path,
    /// Where to compute.
    pub device: Device,
}

impl<P> Work<'_, P> {
    /// Runs trials of `study` until none is left to claim; `done` hears of each one that ended here.
    ///
    /// `fit` trains with the trial's settings, and never looks at a test row. Other processes may work on the same study. A trial that
    /// diverges or runs out of memory has failed, and the study goes on.
    /// # Errors
    /// [`Error::Interrupted`] after Ctrl-C: the running trial is saved, and the next call goes on with it. Every other error of
    /// a fit, since the next trial would meet it too; the trial is then taken up again by the next call.
    pub fn run<S: DeserializeOwned>(
        &self,
        study: &Study,
        fit: &mut dyn FnMut(&S, &FitOptions) -> Result<Found>,
        done: &mut dyn FnMut(&Trial) -> Result<()>,
    ) -> Result<()> {
        let plan = study.plan();
        let mut attempt = |claim: &Claim, resume| {
            let options = FitOptions {
                folder: claim.folder(),
                table: self.table,
                seed: plan.seed,
                device: self.device,
                resume,
            };
            fit(&apply(&plan.base, &claim.trial().choice)?, &options)
        };
        let interrupted = || Error::Interrupted {
            folder: study.folder().to_owned(),
        };
        while !crate::signal::interrupted() {
            let Some(claim) = study.claim()? else {
                return Ok(());
            };
            let trial = match run(&claim, &mut attempt) {
                Ok(found) => claim.succeed(&found, study.plan().metric)?,
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
    fit: &mut dyn FnMut(&Claim, Option<ResumeFrom>) -> Result<Found>,
) -> Result<Found> {
    let mut attempt = |resume| {
        // tch panics where libtorch fails; running out of memory must not end the study.
        let outcome = catch_unwind(AssertUnwindSafe(|| fit(claim, resume)));
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
