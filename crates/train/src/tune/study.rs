//! A study in its folder: the plan, a folder per trial, and who works on which.
//!
//! ```text
//! study.json         what all trials share; another plan is refused
//! study.lock         held while a trial is chosen or the tables are written
//! trials/0007/       a run folder, with
//!   trial.json       settings, state and score
//!   trial.lock       held by the process that trains it
//! trials.parquet     a row per trial
//! best.toml          the recipe with the best settings
//! ```
//!
//! Locks end with the process that holds them, however it ends: a trial that is running and not locked was cut off,
//! and whoever comes next goes on with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Method;
use super::space::{Choice, RangeSettings, Space, Tried};
use crate::metrics::{Direction, Metric};

const PLAN: &str = "study.json";
const RECORD: &str = "trial.json";
const LOCK: &str = "trial.lock";
const FORMAT_VERSION: u32 = 1;
/// A trial whose process dies so often is to blame for it: the system ends processes that take too much memory.
const MAX_DEATHS: u32 = 5;

/// What all trials of a study share.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Seed of the proposals, and of initial weights, data order and dropout in each trial.
    pub seed: u64,
    /// How settings are chosen.
    #[serde(skip_serializing_if = "is_tpe")]
    pub method: Method,
    /// Trials at random at the start; a grid has none.
    pub startup: u64,
    /// The validation score that compares trials.
    pub metric: Metric,
    /// What may be chosen.
    pub space: BTreeMap<String, RangeSettings>,
    /// Settings that a trial starts from, as JSON; [`apply`](super::apply) makes a trial's of them.
    pub base: Value,
}

/// Studies that were begun before there were grids name no method.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_tpe(method: &Method) -> bool {
    *method == Method::Tpe
}

/// Trials in all, when the settings do not say.
const TRIALS: u64 = 100;

/// What a finished fit found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Validation scores of its best epoch.
    pub scores: Vec<(Metric, f64)>,
    /// Epochs trained.
    pub epochs: u64,
    /// Trainable values of the model.
    pub parameters: u64,
    /// Seconds of the process that ended it.
    pub seconds: f64,
}

/// A column of the table of trials.
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// Numbers; what a trial does not have is not a number.
    Numbers(Vec<f64>),
    /// Texts; what a trial does not have is empty.
    Texts(Vec<String>),
}

/// Where a trial stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A process works on it, or was cut off.
    Running,
    /// A process that was asked to stop has given it back.
    Waiting,
    /// It has a score.
    Done,
    /// It diverged or ran out of memory.
    Failed,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// A trial, as `trial.json` holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// Counted from 0.
    pub number: u64,
    /// Where it stands.
    pub state: State,
    /// Its settings.
    pub choice: Choice,
    /// Validation score of its best epoch.
    pub score: Option<f64>,
    /// All validation scores of that epoch.
    pub scores: BTreeMap<String, f64>,
    /// Epochs trained.
    pub epochs: Option<u64>,
    /// Trainable values of the model.
    pub parameters: Option<u64>,
    /// Seconds of the process that ended it.
    pub seconds: Option<f64>,
    /// Why it failed.
    pub reason: Option<String>,
    /// Processes that died while they worked on it.
    pub deaths: u32,
}

impl Trial {
    /// Whether it is done or failed.
    pub const fn ended(&self) -> bool {
        matches!(self.state, State::Done | State::Failed)
    }

    fn taken_up(self) -> Self {
        let died = self.state == State::Running;
        Self {
            state: State::Running,
            deaths: self.deaths + u32::from(died),
            ..self
        }
    }
}

/// A study in its folder.
#[derive(Debug)]
pub struct Study {
    folder: PathBuf,
    plan: Plan,
    space: Space,
    trials: u64,
}

impl Study {
    /// Begins the study in `folder`, or goes on with it, up to `trials` trials: 100 when `None`. A grid ends with its last point.
    ///
    /// # Errors
    /// [`Error::Config`] for a bad space, and when the folder's study has another plan, naming what differs;
    /// [`Error::Corrupt`] and [`Error::Io`] of the folder.
    pub fn open(folder: &Path, plan: Plan, trials: Option<u64>) -> Result<Self> {
        let space = Space::new(&plan.space)?;
        let trials = match plan.method {
            Method::Tpe => trials.unwrap_or(TRIALS),
            Method::Grid => {
                let points = space.points()?;
                trials.map_or(points, |trials| trials.min(points))
            }
        };
        if trials == 0 {
            return Err(Error::config("tune.trials", "must be at least 1, got 0"));
        }
        let study = Self {
            folder: folder.to_owned(),
            plan,
            space,
            trials,
        };
        let all = folder.join("trials");
        fs::create_dir_all(&all).map_err(Error::io(&all))?;
        let _lock = study.lock()?;
        let path = folder.join(PLAN);
        let wrong = |e: serde_json::Error| Error::corrupt(&path, e.to_string());
        let ours = serde_json::json!({ "format_version": FORMAT_VERSION, "plan": study.plan });
        if path.exists() {
            let theirs: Value = serde_json::from_str(&read(&path)?).map_err(wrong)?;
            check_same(folder, &theirs, &ours)?;
        } else {
            densely_core::fs::write(&path, format!("{ours:#}\n").as_bytes())?;
        }
        Ok(study)
    }

    /// The study's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What its trials share.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Trials in all.
    pub const fn size(&self) -> u64 {
        self.trials
    }

    fn lock(&self) -> Result<File> {
        let path = self.folder.join("study.lock");
        let file = open_lock(&path)?;
        match file.lock() {
            Err(e) if e.kind() != io::ErrorKind::Unsupported => Err(Error::io(&path)(e)),
            _ => Ok(file),
        }
    }

    fn trial_folder(&self, number: u64) -> PathBuf {
        self.folder.join("trials").join(format!("{number:04}"))
    }

    /// All trials that were begun, by number.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Io`] naming the record that cannot be read.
    pub fn trials(&self) -> Result<Vec<Trial>> {
        let mut trials = Vec::new();
        for number in 0.. {
            let folder = self.trial_folder(number);
            if !folder.exists() {
                break;
            }
            trials.extend(read_record(&folder, number)?);
        }
        Ok(trials)
    }

    /// The best of `trials`; of equals, the first.
    pub fn best<'a>(&self, trials: &'a [Trial]) -> Option<&'a Trial> {
        let direction = self.plan.metric.direction();
        let score = |trial: &Trial| trial.score.filter(|_| trial.state == State::Done);
        trials.iter().fold(None, |best: Option<&Trial>, trial| {
            let better = match (score(trial), best.and_then(score)) {
                (Some(score), Some(best)) => direction.is_better(score, best),
                (score, None) => score.is_some(),
                (None, _) => false,
            };
            if better { Some(trial) } else { best }
        })
    }

    /// Takes a trial for this process: one whose process was cut off, or the next one; `None` when all are done or in
    /// other hands.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Io`] of the folder.
    pub fn claim(&self) -> Result<Option<Claim>> {
        let _lock = self.lock()?;
        let mut tried = Vec::new();
        let mut number = 0;
        loop {
            let folder = self.trial_folder(number);
            if !folder.exists() {
                break;
            }
            let record = read_record(&folder, number)?;
            match &record {
                Some(trial) if trial.ended() => tried.push(self.tried(trial)),
                // Without a record the process was cut off before it had one.
                cut_off => {
                    if let Some(lock) = try_lock(&folder.join(LOCK))? {
                        let trial = match cut_off.clone() {
                            None => self.propose(number, &tried)?,
                            Some(trial) => trial.taken_up(),
                        };
                        let claim = Claim {
                            folder,
                            trial,
                            _lock: lock,
                        };
                        if claim.trial.deaths < MAX_DEATHS {
                            claim.save()?;
                            return Ok(Some(claim));
                        }
                        let reason = format!("{MAX_DEATHS} processes died while they worked on it");
                        tried.push(self.tried(&claim.fail(&reason)?));
                    }
                }
            }
            number += 1;
        }
        if number >= self.trials {
            return Ok(None);
        }
        let trial = self.propose(number, &tried)?;
        let folder = self.trial_folder(number);
        // Only one process can make a folder, even where files cannot be locked.
        fs::create_dir(&folder).map_err(Error::io(&folder))?;
        let path = folder.join(LOCK);
        let Some(lock) = try_lock(&path)? else {
            let reason = "another process holds the lock of a trial that was just made";
            return Err(Error::corrupt(path, reason));
        };
        let claim = Claim {
            folder,
            trial,
            _lock: lock,
        };
        claim.save()?;
        Ok(Some(claim))
    }

    fn propose(&self, number: u64, tried: &[Tried]) -> Result<Trial> {
        let Plan { seed, startup, .. } = self.plan;
        let choice = match self.plan.method {
            Method::Tpe => self.space.propose(seed, number, startup, tried)?,
            Method::Grid => self.space.point(seed, number)?,
        };
        Ok(Trial {
            number,
            state: State::Running,
            choice,
            score: None,
            scores: BTreeMap::new(),
            epochs: None,
            parameters: None,
            seconds: None,
            reason: None,
            deaths: 0,
        })
    }

    fn tried(&self, trial: &Trial) -> Tried {
        let towards_lower = |score: f64| match self.plan.metric.direction() {
            Direction::Lower => score,
            Direction::Higher => -score,
        };
        Tried {
            choice: trial.choice.clone(),
            loss: trial.score.map_or(f64::INFINITY, towards_lower),
        }
    }

    /// Gives the table of trials, a row for each, to `table`, and the best one to `best`, with the study's folder, for them to be
    /// written there; no other process does so meanwhile.
    ///
    /// # Errors
    /// Those of `table` and `best`; [`Error::Corrupt`] and [`Error::Io`] of the folder.
    pub fn publish(
        &self,
        table: impl FnOnce(&Path, Vec<(String, Column)>) -> Result<()>,
        best: impl FnOnce(&Path, &Trial) -> Result<()>,
    ) -> Result<()> {
        let _lock = self.lock()?;
        let trials = self.trials()?;
        table(&self.folder, columns(&self.plan, &trials))?;
        match self.best(&trials) {
            None => Ok(()),
            Some(trial) => best(&self.folder, trial),
        }
    }
}

/// A trial in the hands of this process.
#[derive(Debug)]
pub struct Claim {
    folder: PathBuf,
    trial: Trial,
    _lock: File,
}

impl Claim {
    /// The trial's run folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The trial.
    pub const fn trial(&self) -> &Trial {
        &self.trial
    }

    /// Whether the folder holds a run that was begun.
    pub(super) fn has_run(&self) -> bool {
        ["config.toml", "last", "previous"]
            .iter()
            .any(|name| self.folder.join(name).exists())
    }

    /// Removes the run, so that it can begin anew.
    pub(super) fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(&self.folder).map_err(Error::io(&self.folder))? {
            let path = entry.map_err(Error::io(&self.folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name == Some(RECORD) || name == Some(LOCK) {
                continue;
            }
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(Error::io(&path))?;
        }
        Ok(())
    }

    fn save(&self) -> Result<()> {
        let path = self.folder.join(RECORD);
        let wrong = |e: serde_json::Error| Error::corrupt(&path, e.to_string());
        let text = serde_json::to_string_pretty(&self.trial).map_err(wrong)?;
        densely_core::fs::write(&path, format!("{text}\n").as_bytes())
    }

    /// Notes the scores, and keeps of the run's checkpoints the best one only.
    ///
    /// # Errors
    /// [`Error::Io`] when the record cannot be written.
    pub fn succeed(mut self, found: &Found, metric: Metric) -> Result<Trial> {
        let scores = found.scores.iter();
        self.trial.scores = scores
            .map(|(m, value)| (m.name().to_owned(), *value))
            .collect();
        let Some(score) = self.trial.scores.get(metric.name()).copied() else {
            let reason = format!("{} is not defined on the validation rows", metric.name());
            return self.fail(&reason);
        };
        self.trial.state = State::Done;
        self.trial.score = Some(score);
        self.trial.epochs = Some(found.epochs);
        self.trial.parameters = Some(found.parameters);
        self.trial.seconds = Some(found.seconds);
        self.save()?;
        for name in ["last", "previous"] {
            // What remains takes space and does no harm.
            let _ = fs::remove_dir_all(self.folder.join(name));
        }
        Ok(self.trial)
    }

    /// Notes that the trial has no score, and why.
    ///
    /// # Errors
    /// [`Error::Io`] when the record cannot be written.
    pub fn fail(mut self, reason: &str) -> Result<Trial> {
        self.trial.state = State::Failed;
        self.trial.reason = Some(reason.to_owned());
        self.save()?;
        Ok(self.trial)
    }

    /// Gives the trial back, to be gone on with.
    ///
    /// # Errors
    /// [`Error::Io`] when the record cannot be written.
    pub fn postpone(mut self) -> Result<()> {
        self.trial.state = State::Waiting;
        self.save()
    }
}

fn open_lock(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path);
    file.map_err(Error::io(path))
}

/// The lock, unless a process that lives has it.
fn try_lock(path: &Path) -> Result<Option<File>> {
    let file = open_lock(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        // As for run folders: some network file systems know no locks, and working alone there must be possible.
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
            tracing::warn!(
                "{}: cannot be locked ({e}); let one process work on the study",
                path.display()
            );
            Ok(Some(file))
        }
        Err(TryLockError::Error(e)) => Err(Error::io(path)(e)),
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io(path))
}

fn read_record(folder: &Path, number: u64) -> Result<Option<Trial>> {
    let path = folder.join(RECORD);
    if !path.exists() {
        return Ok(None);
    }
    let wrong = |reason: String| {
        let advice = format!("{reason}; remove {} to run the trial again", path.display());
        Error::corrupt(&path, advice)
    };
    let trial: Trial = serde_json::from_str(&read(&path)?).map_err(|e| wrong(e.to_string()))?;
    if trial.number != number {
        return Err(wrong(format!("it speaks of trial {}", trial.number)));
    }
    Ok(Some(trial))
}

fn check_same(folder: &Path, theirs: &Value, ours: &Value) -> Result<()> {
    fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(table) => {
                for (key, value) in table {
                    flatten(&format!("{prefix}.{key}"), value, into);
                }
            }
            other => {
                let name = prefix
                    .trim_start_matches(".plan")
                    .trim_start_matches(".base");
                into.insert(name.trim_start_matches('.').to_owned(), other.to_string());
            }
        }
    }
    let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
    flatten("", theirs, &mut old);
    flatten("", ours, &mut new);
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differing = keys
        .into_iter()
        .filter(|key| old.get(*key) != new.get(*key));
    let word = |value: Option<&String>| value.cloned().unwrap_or_else(|| "nothing".to_owned());
    let words: Vec<String> = differing
        .map(|key| {
            format!(
                "`{key}` was {} and is now {}",
                word(old.get(key)),
                word(new.get(key))
            )
        })
        .collect();
    if words.is_empty() {
        return Ok(());
    }
    let reason = format!(
        "the study in {} is another one: {}; take its settings, or give another folder by --out",
        folder.display(),
        words.join(", ")
    );
    Err(Error::config("tune", reason))
}

/// A row per trial.
fn columns(plan: &Plan, trials: &[Trial]) -> Vec<(String, Column)> {
    let numbers = |of: &dyn Fn(&Trial) -> Option<f64>| {
        Column::Numbers(
            trials
                .iter()
                .map(|trial| of(trial).unwrap_or(f64::NAN))
                .collect(),
        )
    };
    let texts = |of: &dyn Fn(&Trial) -> String| Column::Texts(trials.iter().map(of).collect());
    let mut columns = vec![
        (
            "number".to_owned(),
            numbers(&|trial| Some(trial.number as f64)),
        ),
        (
            "state".to_owned(),
            texts(&|trial| trial.state.name().to_owned()),
        ),
    ];
    for name in plan.space.keys() {
        let value = |trial: &Trial| trial.choice.get(name).cloned().unwrap_or_default();
        let plain = |value: Value| {
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned)
        };
        let column = if trials.iter().all(|trial| value(trial).is_number()) {
            numbers(&|trial| value(trial).as_f64())
        } else {
            texts(&|trial| plain(value(trial)))
        };
        columns.push((name.clone(), column));
    }
    columns.extend([
        (plan.metric.name().to_owned(), numbers(&|trial| trial.score)),
        (
            "epochs".to_owned(),
            numbers(&|trial| trial.epochs.map(|n| n as f64)),
        ),
        ("seconds".to_owned(), numbers(&|trial| trial.seconds)),
        (
            "parameters".to_owned(),
            numbers(&|trial| trial.parameters.map(|n| n as f64)),
        ),
        (
            "reason".to_owned(),
            texts(&|trial| trial.reason.clone().unwrap_or_default()),
        ),
    ]);
    columns
}
