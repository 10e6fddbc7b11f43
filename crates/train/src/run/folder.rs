//! The files of a run: lock, settings, log, checkpoints, and what a kill leaves of them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use densely_core::{Error, Result, weights};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Best, Progress, Sums, fault};
use crate::machine::Env;
use crate::schedule::PlateauState;

pub(super) const CONFIG: &str = "config.toml";
pub(super) const ENV: &str = "env.json";
pub(super) const LOG: &str = "metrics.jsonl";
pub(super) const TIMING: &str = "timing.jsonl";
pub(super) const MODEL: &str = "model.safetensors";
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
pub(super) const PREPROCESS: &str = "preprocess.json";
pub(super) const STATE: &str = "state.json";
pub(super) const FORMAT_VERSION: u32 = 1;

/// The lines of a run's log.
///
/// # Errors
/// [`Error::Io`]; [`Error::Corrupt`] when a line is not JSON.
pub fn read_log(dir: &Path) -> Result<Vec<Value>> {
    let path = dir.join(LOG);
    let text = read_text(&path)?;
    let parse = |(row, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|e| Error::corrupt(&path, format!("line {}: {e}", row + 1)))
    };
    text.lines().enumerate().map(parse).collect()
}

/// What `state.json` holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub(super) format_version: u32,
    pub(super) files: BTreeMap<String, String>,
    pub(super) progress: Progress,
    pub(super) sums: Sums,
    pub(super) log_bytes: u64,
    pub(super) log_sha256: String,
    pub(super) schedule: Option<PlateauState>,
    pub(super) extra: Value,
}

/// The log, its length and its running SHA-256.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    pub(super) bytes: u64,
    sha256: Sha256,
}

impl Log {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::io(path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes: 0,
            sha256: Sha256::new(),
        })
    }

    /// Cuts off what was written after the checkpoint; the resumed run writes it again.
    pub(super) fn resume(path: &Path, bytes: u64, digest: &str) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .open(path)
            .map_err(Error::io(path))?;
        let mut sha256 = Sha256::new();
        let copied = io::copy(
            &mut Read::by_ref(&mut file).take(bytes),
            &mut HashWriter(&mut sha256),
        );
        let log = Self {
            path: path.to_owned(),
            file,
            bytes,
            sha256,
        };
        if copied.map_err(Error::io(path))? < bytes || log.digest() != digest {
            let reason = "its beginning differs from what the checkpoint saw; restore it from a copy, or start a new run";
            return Err(Error::corrupt(path, reason));
        }
        log.file.set_len(bytes).map_err(Error::io(path))?;
        Ok(log)
    }

    pub(super) fn line(&mut self, value: &Value) -> Result<()> {
        let line = format!("{value}\n");
        self.file
            .write_all(line.as_bytes())
            .map_err(Error::io(&self.path))?;
        self.bytes += line.len() as u64;
        self.sha256.update(line.as_bytes());
        fault::point("log line written");
        Ok(())
    }

    pub(super) fn flush(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.path))
    }

    pub(super) fn digest(&self) -> String {
        weights::hex(&self.sha256.clone().finalize())
    }
}

pub(super) struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A folder that is taken.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file alone would leave the lock to a program that is just being started, which has a copy of the open file until it
        // runs. A destructor has nobody to tell of an error, and the system frees the lock at the end in any case.
        let _ = self.0.unlock();
    }
}

/// Takes the folder for this process. The system frees the lock when the process ends in whatever way, so there are
/// no stale locks; the number in the file is for messages.
pub(super) fn lock(dir: &Path) -> Result<Lock> {
    fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path);
    let mut file = file.map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            // Without the number the message is still right.
            let _ = file.read_to_string(&mut owner);
            let reason = format!(
                "{} is in use by process {}; wait for it, or give another name",
                dir.display(),
                owner.trim()
            );
            return Err(Error::config("run", reason));
        }
        // Some network file systems know no locks; training alone there must still be possible.
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
            tracing::warn!("{}: cannot be locked ({e})", path.display());
        }
        Err(TryLockError::Error(e)) => return Err(Error::io(&path)(e)),
    }
    file.set_len(0).map_err(Error::io(&path))?;
    writeln!(file, "{}", std::process::id()).map_err(Error::io(&path))?;
    Ok(Lock(file))
}

pub(super) struct Config {
    pub(super) text: String,
    pub(super) table: toml::Table,
}

pub(super) fn to_toml(config: &impl Serialize) -> Result<Config> {
    let invalid = |e: toml::ser::Error| Error::config("config", e.to_string());
    let text = toml::to_string_pretty(config).map_err(invalid)?;
    let table = text
        .parse()
        .map_err(|e: toml::de::Error| Error::config("config", e.to_string()))?;
    Ok(Config { text, table })
}

pub(super) fn flatten(prefix: &str, table: &toml::Table, into: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let key = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}.{key}")
        };
        match value {
            toml::Value::Table(table) => flatten(&key, table, into),
            other => {
                into.insert(key, other.to_string());
            }
        }
    }
}

pub(super) fn check_config(dir: &Path, config: &Config, may_change: &[String]) -> Result<()> {
    let path = dir.join(CONFIG);
    let old: toml::Table = read_text(&path)?
        .parse()
        .map_err(|e: toml::de::Error| Error::corrupt(&path, e.message().to_owned()))?;
    let (mut ours, mut theirs) = (BTreeMap::new(), BTreeMap::new());
    flatten("", &old, &mut ours);
    flatten("", &config.table, &mut theirs);
    let allowed = |key: &str| {
        may_change.iter().any(|prefix| {
            key.strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    let keys: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let differing: Vec<&String> = keys
        .into_iter()
        .filter(|key| ours.get(*key) != theirs.get(*key) && !allowed(key))
        .collect();
    if differing.is_empty() {
        return Ok(());
    }
    let absent = || "nothing".to_owned();
    let words: Vec<String> = differing
        .iter()
        .map(|key| {
            let (old, new) = (ours.get(*key).cloned(), theirs.get(*key).cloned());
            format!(
                "`{key}` was {} and is now {}",
                old.unwrap_or_else(absent),
                new.unwrap_or_else(absent)
            )
        })
        .collect();
    let fields: Vec<&str> = differing.iter().map(|key| key.as_str()).collect();
    let reason = format!(
        "the run in {} has other settings: {}; take its settings, or give another name",
        dir.display(),
        words.join(", ")
    );
    Err(Error::config(fields.join(", "), reason))
}

/// Another library, device or number of threads is allowed, but the bits may then differ.
pub(super) fn warn_if_elsewhere(dir: &Path, env: &Env) {
    let old = fs::read_to_string(dir.join(ENV)).ok();
    let Some(old) = old.and_then(|text| serde_json::from_str::<Env>(&text).ok()) else {
        return;
    };
    let essence = |env: &Env| {
        let Env {
            crate_version,
            libtorch_version,
            threads,
            device,
            cpu,
            ..
        } = env;
        format!(
            "densely {crate_version}, libtorch {libtorch_version}, {threads} threads, {device}, {cpu}"
        )
    };
    let (old, new) = (essence(&old), essence(env));
    if old != new {
        tracing::warn!("the run began on {old} and goes on with {new}: its bits may differ");
    }
}

/// Puts in order what a kill between two renames leaves.
pub(super) fn recover(dir: &Path) -> Result<()> {
    let [last, last_tmp, best, best_tmp, best_old] =
        ["last", "last.tmp", "best", "best.tmp", "best.old"].map(|name| dir.join(name));
    // `last.tmp` is renamed only when it is whole; if `last` is not there, it was on its way.
    if !last.exists() && verify(&last_tmp).is_ok() {
        rename(&last_tmp, &last)?;
        // At the first checkpoint of all, `best` may have been on its way too.
        if !best.exists() && !best_old.exists() && verify(&best_tmp).is_ok() {
            rename(&best_tmp, &best)?;
        }
    }
    if !best.exists() && best_old.exists() {
        rename(&best_old, &best)?;
    }
    for leftover in [last_tmp, best_tmp, dir.join("discarded.tmp")] {
        remove(&leftover)?;
    }
    sync(dir)
}

/// Makes `best/` the one that the checkpoint speaks of. A newer one is left alone: training will write it again.
///
/// With `tolerant`, going back to `previous/`, a damaged one is only warned of: it may be the same file as in the
/// damaged `last/`, and newer. `load_best` checks again.
pub(super) fn settle_best(dir: &Path, progress: &Progress, tolerant: bool) -> Result<()> {
    let (best, old) = (dir.join("best"), dir.join("best.old"));
    let Some(expected) = &progress.best else {
        remove(&best)?;
        return remove(&old);
    };
    let fits = |state: &State| state.files.get(MODEL) == Some(&expected.model_sha256);
    if old.exists() && verify(&old).is_ok_and(|state| fits(&state)) {
        remove(&best)?;
        return rename(&old, &best);
    }
    remove(&old)?;
    let checked = read_state(&best, BEST_LOST).and_then(|state| {
        if state.progress.step > progress.step {
            return Ok(());
        }
        if !fits(&state) {
            let reason = "it is not the best epoch that the checkpoint speaks of";
            return Err(Error::corrupt(&best, format!("{reason}{BEST_LOST}")));
        }
        check_files(&best, state, BEST_LOST).map(drop)
    });
    match checked {
        Err(error @ Error::Corrupt { .. }) if tolerant => {
            tracing::warn!("{error}; training goes on, since a better epoch would replace them");
            Ok(())
        }
        other => other,
    }
}

/// Fails unless the weights in `best/` are those that the run speaks of.
pub(super) fn check_best(dir: &Path, best: &Best) -> Result<PathBuf> {
    let path = dir.join("best").join(MODEL);
    if sha256_of(&path)? == best.model_sha256 {
        return Ok(path);
    }
    Err(Error::corrupt(
        path,
        format!(
            "its checksum is not that of epoch {}{BEST_LOST}",
            best.epoch
        ),
    ))
}

const BEST_LOST: &str =
    "; the best weights so far are lost: restore the folder from a copy, or start a new run";

/// What to do about a damaged checkpoint.
pub(super) fn offer(folder: &Path) -> String {
    let Some((dir, name)) = folder.parent().zip(folder.file_name()) else {
        return String::new();
    };
    let (other, flag) = if name == "previous" {
        ("last", "last")
    } else {
        ("previous", "previous")
    };
    let sound =
        read_state(&dir.join(other), "").and_then(|state| check_files(&dir.join(other), state, ""));
    match sound {
        Ok(state) => format!(
            "; the checkpoint `{other}` of step {} is sound: use it with `--resume-from {flag}`",
            state.progress.step
        ),
        Err(_) => "; there is no other sound checkpoint: start a new run".to_owned(),
    }
}

/// Reads a checkpoint's state after checking every file of it.
pub(super) fn verify(folder: &Path) -> Result<State> {
    let plain = |error: Error| match error {
        Error::Corrupt { path, reason } => {
            Error::corrupt(path, format!("{reason}{}", offer(folder)))
        }
        other => other,
    };
    read_state(folder, "")
        .and_then(|state| check_files(folder, state, ""))
        .map_err(plain)
}

pub(super) fn read_state(folder: &Path, advice: &str) -> Result<State> {
    let path = folder.join(STATE);
    let corrupt = |reason: &str| Error::corrupt(&path, format!("{reason}{advice}"));
    let text = match fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(corrupt("the file is missing"));
        }
        Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(corrupt("it is not text")),
        other => other.map_err(Error::io(&path))?,
    };
    let mut whole: Value = serde_json::from_str(&text).map_err(|e| corrupt(&e.to_string()))?;
    let state = whole.get_mut("state").map(Value::take).unwrap_or_default();
    if whole.get("sha256").and_then(Value::as_str) != Some(&hash(state.to_string().as_bytes())) {
        return Err(corrupt("its checksum does not match"));
    }
    match state.get("format_version").and_then(Value::as_u64) {
        Some(version) if version == u64::from(FORMAT_VERSION) => {}
        other => {
            let reason = format!("it has format {other:?}, this version reads {FORMAT_VERSION}");
            return Err(corrupt(&reason));
        }
    }
    serde_json::from_value(state).map_err(|e| corrupt(&e.to_string()))
}

pub(super) fn check_files(folder: &Path, state: State, advice: &str) -> Result<State> {
    for (name, expected) in &state.files {
        let path = folder.join(name);
        if !path.exists() {
            return Err(Error::corrupt(
                &path,
                format!("the file is missing{advice}"),
            ));
        }
        if sha256_of(&path)? != *expected {
            let reason =
                format!("its checksum does not match: it was truncated or altered{advice}");
            return Err(Error::corrupt(&path, reason));
        }
    }
    Ok(state)
}

pub(super) fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io(path))
}

pub(super) fn hash(bytes: &[u8]) -> String {
    weights::hex(&Sha256::digest(bytes))
}

pub(super) fn sha256_of(path: &Path) -> Result<String> {
    let mut sha256 = Sha256::new();
    let mut file = File::open(path).map_err(Error::io(path))?;
    io::copy(&mut file, &mut HashWriter(&mut sha256)).map_err(Error::io(path))?;
    Ok(weights::hex(&sha256.finalize()))
}

/// An empty folder, in place of whatever had its name.
pub(super) fn make_folder(folder: &Path) -> Result<()> {
    remove(folder)?;
    fs::create_dir(folder).map_err(Error::io(folder))?;
    fault::point("folder made");
    Ok(())
}

pub(super) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(folder)(e)),
        _ => {
            fault::point("folder removed");
            Ok(())
        }
    }
}

pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(path)(e)),
        _ => Ok(()),
    }
}

/// Seconds of all epochs in the file of times. It is for people: a line that is damaged counts nothing.
pub(super) fn seconds_so_far(dir: &Path) -> f64 {
    let text = fs::read_to_string(dir.join(TIMING)).unwrap_or_default();
    let seconds = |line| serde_json::from_str::<Value>(line).ok()?["seconds"].as_f64();
    text.lines().filter_map(seconds).filter(|s| *s > 0.0).sum()
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io(from))?;
    fault::point("folder renamed");
    Ok(())
}

pub(super) fn sync(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io(folder))
}
