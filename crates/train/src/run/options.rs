//! How a run is kept: what is logged and saved when, and where it goes on.

use std::path::Path;

use densely_core::{Error, Result};
use serde::Serialize;
use tch::Device;

use super::Run;

/// How often a run logs and saves, and when it stops early. None of it changes what is learnt.
#[derive(Debug, Clone, PartialEq)]
pub struct RunOptions {
    /// Steps between two lines of the log; the device is waited for only then.
    pub log_every: u64,
    /// Steps between two checkpoints inside an epoch.
    pub checkpoint_steps: Option<u64>,
    /// Seconds between two checkpoints.
    pub checkpoint_seconds: Option<f64>,
    /// Epochs in a row without a better score after which training stops.
    pub patience: Option<u64>,
    /// By how much a score must be better than the best before it for patience to start anew. Any better score is kept as the best.
    pub min_improvement: f64,
    /// Settings (dotted keys, or tables) that may differ when the run is resumed.
    pub may_change: Vec<String>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            log_every: 50,
            checkpoint_steps: None,
            checkpoint_seconds: Some(60.0),
            patience: None,
            min_improvement: 0.0,
            may_change: Vec::new(),
        }
    }
}

/// Which checkpoint a run goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResumeFrom {
    /// The newest.
    #[default]
    Last,
    /// The one before, for when the newest is damaged.
    Previous,
}

impl std::str::FromStr for ResumeFrom {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "last" => Ok(Self::Last),
            "previous" => Ok(Self::Previous),
            other => Err(Error::config(
                "resume-from",
                format!("must be `last` or `previous`, got `{other}`"),
            )),
        }
    }
}

/// Where and how a fit runs.
#[derive(Debug, Clone, Copy)]
pub struct FitOptions<'a> {
    /// The run folder.
    pub folder: &'a Path,
    /// The table's path, for `config.toml`.
    pub table: &'a Path,
    /// Seed of initial weights, data order and dropout.
    pub seed: u64,
    /// Where to compute.
    pub device: Device,
    /// Start anew, or go on from a checkpoint.
    pub resume: Option<ResumeFrom>,
}

/// Settings as the run folder's `config.toml` holds them.
#[derive(Serialize)]
struct RunConfig<'a, T> {
    seed: u64,
    table: &'a Path,
    #[serde(flatten)]
    settings: &'a T,
}

impl FitOptions<'_> {
    /// Opens the run folder for a fit with `settings`, which `config.toml` keeps beside seed and table.
    ///
    /// # Errors
    /// Those of [`Run::open`].
    pub fn open(&self, settings: &impl Serialize, options: RunOptions) -> Result<Run> {
        let config = RunConfig {
            seed: self.seed,
            table: self.table,
            settings,
        };
        Run::open(self.folder, &config, self.device, options, self.resume)
    }

    /// What a fit that Ctrl-C ended returns.
    pub fn interrupted(&self) -> Error {
        Error::Interrupted {
            folder: self.folder.to_owned(),
        }
    }
}
