//! The run folder: settings, surroundings, log and checkpoints of one training, which a kill at any instant leaves
//! in a state that resumes and ends in the bits of a run that was never stopped.
//!
//! ```text
//! config.toml env.json       written once
//! metrics.jsonl              one line per `log_every` steps and per epoch; holds no times, so it too is reproducible
//! timing.jsonl               seconds and memory per epoch
//! last/ previous/ best/      model.safetensors optimizer.safetensors state.json preprocess.json
//! lock                       held by the process that trains
//! ```
//!
//! A checkpoint is written as `last.tmp/`, flushed to the disk and moved into place by renames; what a kill leaves
//! between two renames is put in order when the folder is opened again. `state.json` holds the SHA-256 of each file
//! beside it, of the log up to then and of itself: a truncated or altered file is refused by name.

mod diverged;
mod fault;
mod folder;
mod kept;
mod options;
mod scalars;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use densely_core::{Error, Result, weights};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::Tensor;
use tch::nn::VarStore;

use crate::machine::{Env, peak_rss_mb};
use crate::metrics::Direction;
use crate::optim::OptimizerState;
use crate::schedule::{PlateauState, Schedule};
pub use folder::read_log;
use folder::{
    CONFIG, Config, ENV, FORMAT_VERSION, LOG, Lock, Log, MODEL, OPTIMIZER, PREPROCESS, STATE,
    State, TIMING, check_config, hash, lock, make_folder, offer, read_text, recover, remove,
    remove_file, rename, seconds_so_far, settle_best, sha256_of, sync, to_toml, verify,
    warn_if_elsewhere,
};
pub use kept::Kept;
pub use options::{FitOptions, ResumeFrom, RunOptions};
use scalars::read_scalars;

/// The best epoch so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Epoch, counted from 0.
    pub epoch: u64,
    /// Steps that had been made at its end.
    pub step: u64,
    /// Its score.
    pub score: f64,
    /// SHA-256 of its `model.safetensors`.
    pub model_sha256: String,
}

/// Where a run stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// The epoch that is running or comes next, counted from 0.
    pub epoch: u64,
    /// Optimiser steps made since the start.
    pub step: u64,
    /// Steps made in the running epoch: as many batches must be skipped on resume.
    pub step_in_epoch: u64,
    /// The best epoch.
    pub best: Option<Best>,
    /// Epochs in a row without a better score.
    pub bad_epochs: u64,
    /// Whether [`Run::finish`] was reached.
    pub finished: bool,
}

/// What the end of an epoch decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// The score is the best so far.
    pub improved: bool,
    /// Patience is over: end the training.
    pub stop: bool,
}

/// Sums since the last log line, and of the epoch; exact, so that a resume goes on from the same numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sums {
    loss: f64,
    steps: u64,
    norm: f64,
    norms: u64,
    epoch_loss: f64,
    epoch_steps: u64,
}

/// A training in its folder. It holds the folder's lock until it is dropped.
#[derive(Debug)]
pub struct Run {
    dir: PathBuf,
    options: RunOptions,
    progress: Progress,
    sums: Sums,
    pending: Vec<(u64, Tensor, Option<Tensor>)>,
    log: Log,
    schedule: Option<PlateauState>,
    extra: Value,
    preprocess: Option<String>,
    /// The checkpoint that [`Run::restore`] reads.
    resumed: Option<PathBuf>,
    seconds_before: f64,
    saved: Instant,
    epoch_started: Instant,
    waited: Duration,
    _lock: Lock,
}

impl Run {
    /// Starts a run in `dir` on `device`, or goes on with the one there.
    ///
    /// # Errors
    /// Those of [`create`](Self::create) and [`resume`](Self::resume).
    pub fn open(
        dir: &Path,
        config: &impl Serialize,
        device: tch::Device,
        options: RunOptions,
        resume: Option<ResumeFrom>,
    ) -> Result<Self> {
        let commit = option_env!("DENSELY_COMMIT").map(str::to_owned);
        let env = Env::collect(&crate::machine::device_name(device), commit);
        match resume {
            None => Self::create(dir, config, &env, options),
            Some(from) => Self::resume(dir, config, &env, options, from),
        }
    }

    /// Starts a run in `dir`, which is made when absent.
    ///
    /// # Errors
    /// [`Error::Config`] when the folder holds a run already or another process uses it; [`Error::Io`].
    pub fn create(
        dir: &Path,
        config: &impl Serialize,
        env: &Env,
        options: RunOptions,
    ) -> Result<Self> {
        let lock = lock(dir)?;
        if [CONFIG, "last", "previous", "best"]
            .iter()
            .any(|name| dir.join(name).exists())
        {
            let reason = format!(
                "{} already holds a run; continue it with `--resume`, or give another name",
                dir.display()
            );
            return Err(Error::config("run", reason));
        }
        Self::start(dir, &to_toml(config)?, env, options, lock)
    }

    /// Goes on with the run in `dir`, or starts it when it was stopped before its first checkpoint.
    ///
    /// # Errors
    /// [`Error::Config`] when the settings differ from the run's, naming each; [`Error::Corrupt`] when a file of the
    /// checkpoint is damaged; [`Error::Io`].
    pub fn resume(
        dir: &Path,
        config: &impl Serialize,
        env: &Env,
        options: RunOptions,
        from: ResumeFrom,
    ) -> Result<Self> {
        let lock = lock(dir)?;
        let config = to_toml(config)?;
        let checkpoint = ["last", "previous"]
            .iter()
            .any(|name| dir.join(name).exists());
        if !dir.join(CONFIG).exists() && !checkpoint {
            tracing::warn!("{}: nothing to resume; the run starts anew", dir.display());
            return Self::start(dir, &config, env, options, lock);
        }
        check_config(dir, &config, &options.may_change)?;
        warn_if_elsewhere(dir, env);
        recover(dir)?;
        let folder = dir.join(match from {
            ResumeFrom::Last => "last",
            ResumeFrom::Previous => "previous",
        });
        if !folder.exists() {
            let other = dir.join(if from == ResumeFrom::Last {
                "previous"
            } else {
                "last"
            });
            if other.exists() {
                let reason = format!("the checkpoint is missing{}", offer(&folder));
                return Err(Error::corrupt(&folder, reason));
            }
            tracing::warn!("{}: no checkpoint yet; the run starts anew", dir.display());
            return Self::start(dir, &config, env, options, lock);
        }
        let state = verify(&folder)?;
        settle_best(dir, &state.progress, from == ResumeFrom::Previous)?;
        let preprocess = if state.files.contains_key(PREPROCESS) {
            Some(read_text(&folder.join(PREPROCESS))?)
        } else {
            None
        };
        densely_core::fs::write(&dir.join(CONFIG), config.text.as_bytes())?;
        let log = Log::resume(&dir.join(LOG), state.log_bytes, &state.log_sha256)?;
        Ok(Self {
            dir: dir.to_owned(),
            options,
            progress: state.progress,
            sums: state.sums,
            pending: Vec::new(),
            log,
            schedule: state.schedule,
            extra: state.extra,
            preprocess,
            resumed: Some(folder),
            seconds_before: seconds_so_far(dir),
            saved: Instant::now(),
            epoch_started: Instant::now(),
            waited: Duration::ZERO,
            _lock: lock,
        })
    }

    fn start(
        dir: &Path,
        config: &Config,
        env: &Env,
        options: RunOptions,
        lock: Lock,
    ) -> Result<Self> {
        for leftover in ["last.tmp", "best.tmp", "best.old", "best", "discarded.tmp"] {
            remove(&dir.join(leftover))?;
        }
        remove_file(&dir.join(TIMING))?;
        let text =
            serde_json::to_string_pretty(env).map_err(|e| Error::config("env", e.to_string()))?;
        densely_core::fs::write(&dir.join(ENV), text.as_bytes())?;
        let log = Log::create(&dir.join(LOG))?;
        // Last, because it is what says that the folder holds a run.
        densely_core::fs::write(&dir.join(CONFIG), config.text.as_bytes())?;
        Ok(Self {
            dir: dir.to_owned(),
            options,
            progress: Progress::default(),
            sums: Sums::default(),
            pending: Vec::new(),
            log,
            schedule: None,
            extra: Value::Null,
            preprocess: None,
            resumed: None,
            seconds_before: 0.0,
            saved: Instant::now(),
            epoch_started: Instant::now(),
            waited: Duration::ZERO,
            _lock: lock,
        })
    }

    /// The run's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the run stands.
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Whether a checkpoint was found that [`restore`](Self::restore) will load.
    pub const fn is_resumed(&self) -> bool {
        self.resumed.is_some()
    }

    /// Mean training loss of the running epoch up to the last line of the log.
    pub fn epoch_loss(&self) -> Option<f64> {
        (self.sums.epoch_steps > 0).then(|| self.sums.epoch_loss / self.sums.epoch_steps as f64)
    }

    /// The fitted preprocessing, as JSON, that each checkpoint keeps beside the weights.
    pub fn set_preprocess(&mut self, json: String) {
        self.preprocess = Some(json);
    }

    /// The preprocessing of the checkpoint that was resumed.
    pub fn preprocess(&self) -> Option<&str> {
        self.preprocess.as_deref()
    }

    /// Seconds of the epochs that earlier processes ended, as `timing.jsonl` tells.
    pub fn seconds_before(&self) -> f64 {
        self.seconds_before
    }

    /// Notes time that the loop waited for a batch; `timing.jsonl` tells the sum of each epoch.
    pub fn waited_for_data(&mut self, time: Duration) {
        self.waited += time;
    }

    /// Anything else that the loop must find again on resume.
    pub fn set_extra(&mut self, extra: Value) {
        self.extra = extra;
    }

    /// What [`set_extra`](Self::set_extra) was given before the checkpoint.
    pub const fn extra(&self) -> &Value {
        &self.extra
    }

    /// Keeps the state of a plateau schedule in the next checkpoint; call it after `observe`.
    pub fn set_schedule(&mut self, schedule: &Schedule) {
        self.schedule = schedule.state();
    }

    /// Loads weights, optimiser and schedule of the checkpoint that was resumed; `false` on a fresh run.
    ///
    /// # Errors
    /// [`Error::Weights`] or [`Error::Config`] when they do not fit; [`Error::Corrupt`]; [`Error::Io`].
    pub fn restore(
        &mut self,
        vs: &VarStore,
        opt: &mut impl OptimizerState,
        schedule: &mut Schedule,
    ) -> Result<bool> {
        let Some(folder) = &self.resumed else {
            return Ok(false);
        };
        let same = weights::same_name;
        weights::load(vs, &folder.join(MODEL), same, weights::Strictness::All)?;
        opt.load_state(&weights::read(&folder.join(OPTIMIZER))?.tensors)?;
        schedule.load_state(self.schedule);
        Ok(true)
    }

    /// Notes one optimiser step with its loss and gradient norm (scalars, on any device).
    ///
    /// Nothing is read from the device until the next line of the log is due.
    ///
    /// # Errors
    /// [`Error::Diverged`] with the first step since the last line whose loss is not finite; [`Error::Io`].
    pub fn log_step(&mut self, loss: &Tensor, grad_norm: Option<&Tensor>, lr: f64) -> Result<()> {
        self.pending.push((
            self.progress.step,
            loss.detach(),
            grad_norm.map(Tensor::detach),
        ));
        self.progress.step += 1;
        self.progress.step_in_epoch += 1;
        self.progress.finished = false;
        if !self
            .progress
            .step
            .is_multiple_of(self.options.log_every.max(1))
        {
            return Ok(());
        }
        self.read_back()?;
        let sums = std::mem::take(&mut self.sums);
        self.sums = Sums {
            epoch_loss: sums.epoch_loss,
            epoch_steps: sums.epoch_steps,
            ..Sums::default()
        };
        self.log.line(&json!({
            "kind": "step",
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "lr": lr,
            "loss": sums.loss / sums.steps.max(1) as f64,
            "grad_norm": (sums.norms > 0).then(|| sums.norm / sums.norms as f64),
        }))
    }

    /// Reads the losses that are still on the device, in one transfer; call it before weights are judged.
    ///
    /// # Errors
    /// [`Error::Diverged`] with the first step whose loss is not finite.
    pub fn read_back(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let losses: Vec<&Tensor> = pending.iter().map(|(_, loss, _)| loss).collect();
        let norms: Vec<&Tensor> = pending
            .iter()
            .filter_map(|(.., norm)| norm.as_ref())
            .collect();
        let (losses, norms) = (read_scalars(&losses)?, read_scalars(&norms)?);
        for ((step, ..), loss) in pending.iter().zip(losses) {
            if !loss.is_finite() {
                return Err(Error::Diverged { step: *step, loss });
            }
            self.sums.loss += loss;
            self.sums.steps += 1;
            self.sums.epoch_loss += loss;
            self.sums.epoch_steps += 1;
        }
        for norm in norms.into_iter().filter(|norm| norm.is_finite()) {
            self.sums.norm += norm;
            self.sums.norms += 1;
        }
        Ok(())
    }

    /// Whether a checkpoint is due, by steps or by the clock. When it is taken does not change what is learnt.
    pub fn should_checkpoint(&self) -> bool {
        let by_steps = self.options.checkpoint_steps.is_some_and(|steps| {
            self.progress.step > 0 && self.progress.step.is_multiple_of(steps.max(1))
        });
        let by_time = self.options.checkpoint_seconds.is_some_and(|seconds| {
            self.saved.elapsed() >= Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
        });
        by_steps || by_time
    }

    /// Whether Ctrl-C was pressed: save with [`checkpoint`](Self::checkpoint) and leave the loop.
    pub fn interrupted(&self) -> bool {
        crate::signal::interrupted()
    }

    /// Whether patience is over; asked before the first epoch too, since a run may be stopped between its last epoch
    /// and its end.
    pub fn should_stop(&self) -> bool {
        self.options
            .patience
            .is_some_and(|patience| self.progress.bad_epochs >= patience.max(1))
    }

    /// Saves everything as `last/`; the `last/` of before becomes `previous/`.
    ///
    /// # Errors
    /// [`Error::Diverged`] when a loss that was not yet read is not finite, and [`Error::Io`]; the older checkpoints
    /// are then untouched.
    pub fn checkpoint(&mut self, vs: &VarStore, opt: &impl OptimizerState) -> Result<()> {
        self.read_back()?;
        self.log.flush()?;
        let tmp = self.dir.join("last.tmp");
        self.write_or_clean(&tmp, |run| {
            let files = run.write_files(&tmp, vs, opt)?;
            run.write_state(&tmp, files)
        })?;
        self.replace_last()?;
        self.saved = Instant::now();
        Ok(())
    }

    /// Ends an epoch: logs its score and `metrics`, keeps the weights as `best/` when the score is strictly better
    /// than all before, saves, and counts patience.
    ///
    /// # Errors
    /// [`Error::Diverged`] when the score or a loss is not finite; [`Error::Io`].
    pub fn end_epoch(
        &mut self,
        score: f64,
        direction: Direction,
        metrics: &[(&str, f64)],
        vs: &VarStore,
        opt: &impl OptimizerState,
    ) -> Result<Decision> {
        self.read_back()?;
        if !score.is_finite() {
            return Err(Error::Diverged {
                step: self.progress.step,
                loss: score,
            });
        }
        let best = self.progress.best.as_ref();
        let improved = best.is_none_or(|best| direction.is_better(score, best.score));
        let enough = self.options.min_improvement;
        let clearly = improved && best.is_none_or(|best| (score - best.score).abs() > enough);
        let metrics: serde_json::Map<String, Value> = metrics
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        let epoch = self.progress.epoch;
        self.log.line(&json!({
            "kind": "epoch",
            "epoch": epoch,
            "step": self.progress.step,
            "train_loss": self.epoch_loss(),
            "score": score,
            "improved": improved,
            "metrics": metrics,
        }))?;
        self.note_time(epoch);
        self.progress.epoch += 1;
        self.progress.step_in_epoch = 0;
        (self.sums.epoch_loss, self.sums.epoch_steps) = (0.0, 0);
        self.progress.bad_epochs = if clearly {
            0
        } else {
            self.progress.bad_epochs + 1
        };
        let stop = self.should_stop();
        if improved {
            self.save_best(epoch, score, vs, opt)?;
        } else if stop || self.should_checkpoint() {
            self.checkpoint(vs, opt)?;
        }
        Ok(Decision { improved, stop })
    }

    /// Marks the run as finished and saves it.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn finish(&mut self, vs: &VarStore, opt: &impl OptimizerState) -> Result<()> {
        self.progress.finished = true;
        self.checkpoint(vs, opt)
    }

    /// Loads the weights of the best epoch; `None` when no epoch has ended.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when they are damaged; [`Error::Weights`]; [`Error::Io`].
    pub fn load_best(&self, vs: &VarStore) -> Result<Option<&Best>> {
        let Some(best) = &self.progress.best else {
            return Ok(None);
        };
        let path = folder::check_best(&self.dir, best)?;
        weights::load(vs, &path, weights::same_name, weights::Strictness::All)?;
        Ok(Some(best))
    }

    /// Writes `best/`, then `last/` with the same files. `best.old/` stays until `last/` speaks of the new best, so
    /// that a kill in between can go back to the one that the old `last/` speaks of.
    fn save_best(
        &mut self,
        epoch: u64,
        score: f64,
        vs: &VarStore,
        opt: &impl OptimizerState,
    ) -> Result<()> {
        self.log.flush()?;
        let [best, tmp, old] = ["best", "best.tmp", "best.old"].map(|name| self.dir.join(name));
        let last = self.dir.join("last.tmp");
        let before = self.progress.best.take();
        let files = self.write_or_clean(&tmp, |run| run.write_files(&tmp, vs, opt));
        let files = match files {
            Ok(files) => files,
            Err(error) => {
                self.progress.best = before;
                return Err(error);
            }
        };
        let model_sha256 = files.get(MODEL).cloned().unwrap_or_default();
        self.progress.best = Some(Best {
            epoch,
            step: self.progress.step,
            score,
            model_sha256,
        });
        self.write_or_clean(&tmp, |run| run.write_state(&tmp, files))?;
        self.write_or_clean(&last, |_| {
            make_folder(&last)?;
            for entry in fs::read_dir(&tmp).map_err(Error::io(&tmp))? {
                let from = entry.map_err(Error::io(&tmp))?.path();
                let to = last.join(from.file_name().unwrap_or_default());
                // Files of a checkpoint are never written in place, so two names for one are safe.
                if fs::hard_link(&from, &to).is_err() {
                    fs::copy(&from, &to).map_err(Error::io(&to))?;
                    File::open(&to)
                        .and_then(|file| file.sync_all())
                        .map_err(Error::io(&to))?;
                }
            }
            sync(&last)
        })?;
        remove(&old)?;
        if best.exists() {
            rename(&best, &old)?;
        }
        rename(&tmp, &best)?;
        sync(&self.dir)?;
        self.replace_last()?;
        remove(&old)?;
        self.saved = Instant::now();
        Ok(())
    }

    /// Runs `write` and removes the half-written folder when it fails, which also frees the space on a full disk.
    fn write_or_clean<T>(
        &self,
        folder: &Path,
        write: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        let result = write(self);
        if result.is_err() {
            // The first error is the one to report.
            for name in ["last.tmp", "best.tmp"] {
                let _ = remove(&folder.with_file_name(name));
            }
        }
        result
    }

    fn write_files(
        &self,
        folder: &Path,
        vs: &VarStore,
        opt: &impl OptimizerState,
    ) -> Result<BTreeMap<String, String>> {
        make_folder(folder)?;
        let none = BTreeMap::new();
        weights::save(&folder.join(MODEL), &weights::named(vs), &none)?;
        fault::point("model written");
        weights::save(&folder.join(OPTIMIZER), &opt.state(), &none)?;
        let mut names = vec![MODEL, OPTIMIZER];
        if let Some(preprocess) = &self.preprocess {
            densely_core::fs::write(&folder.join(PREPROCESS), preprocess.as_bytes())?;
            names.push(PREPROCESS);
        }
        fault::point("files written");
        names
            .into_iter()
            .map(|name| Ok((name.to_owned(), sha256_of(&folder.join(name))?)))
            .collect()
    }

    fn write_state(&self, folder: &Path, files: BTreeMap<String, String>) -> Result<()> {
        let path = folder.join(STATE);
        let state = State {
            format_version: FORMAT_VERSION,
            files,
            progress: self.progress.clone(),
            sums: self.sums.clone(),
            log_bytes: self.log.bytes,
            log_sha256: self.log.digest(),
            schedule: self.schedule,
            extra: self.extra.clone(),
        };
        let invalid = |e: serde_json::Error| Error::corrupt(&path, e.to_string());
        let state = serde_json::to_value(&state).map_err(invalid)?;
        let sha256 = hash(state.to_string().as_bytes());
        let text = serde_json::to_string_pretty(&json!({ "sha256": sha256, "state": state }));
        densely_core::fs::write(&path, text.map_err(invalid)?.as_bytes())?;
        fault::point("state written");
        sync(folder)
    }

    /// `previous/` goes, `last/` becomes `previous/`, `last.tmp/` becomes `last/`. After each of the renames
    /// [`recover`] knows what to do.
    fn replace_last(&self) -> Result<()> {
        let [last, tmp, previous, discarded] =
            ["last", "last.tmp", "previous", "discarded.tmp"].map(|name| self.dir.join(name));
        if last.exists() {
            if previous.exists() {
                remove(&discarded)?;
                rename(&previous, &discarded)?;
            }
            rename(&last, &previous)?;
        }
        rename(&tmp, &last)?;
        sync(&self.dir)?;
        remove(&discarded)
    }

    /// Times stand apart from the log, which must not depend on them; losing a line is no reason to stop.
    fn note_time(&mut self, epoch: u64) {
        let seconds = self.epoch_started.elapsed().as_secs_f64();
        self.epoch_started = Instant::now();
        let line = json!({
            "epoch": epoch, "step": self.progress.step, "seconds": seconds,
            "seconds_waiting_for_data": std::mem::take(&mut self.waited).as_secs_f64(), "peak_rss_mb": peak_rss_mb(),
        });
        let path = self.dir.join(TIMING);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        if let Err(e) = file.and_then(|mut file| writeln!(file, "{line}")) {
            tracing::warn!("{}: {e}", path.display());
        }
    }
}

#[cfg(test)]
#[path = "../tests/train/trainer.rs"]
mod trainer;

#[cfg(test)]
mod tests;
