//! Files of lines that a later process can go on with.
//!
//! A line is appended in one write and flushed to the disk, and nobody else writes while the file is open. A kill at any instant leaves whole
//! lines and at most one torn one at the end, which is cut off when the file is opened again.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Longest line that is read back, bytes: far above a row of a long prompt and a deep model.
const MAX_LINE: u64 = 256 << 20;

/// A file of lines, open for appending and locked.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
    empty: bool,
}

impl Journal {
    /// Opens the file at `path`, or begins it. `each` is told of every whole line that it holds: the line's number, from 1, and its bytes with
    /// the break at their end.
    ///
    /// # Errors
    /// [`Error::Config`] when another process has it open, or when it holds something and `resume` is not given; [`Error::Corrupt`] for
    /// a line without an end; what `each` says; [`Error::Io`]. The file is then as it was.
    pub(crate) fn open(
        path: &Path,
        resume: bool,
        mut each: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io(path))?;
        lock(&file, path)?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        if length > 0 && !resume {
            return Err(needs_resume(path));
        }
        let whole = whole_lines(path, &mut file, &mut each)?;
        if whole < length {
            tracing::warn!(
                "{}: its last line is torn, by a kill or a full disk; it is cut off and made again",
                path.display()
            );
            file.set_len(whole).map_err(Error::io(path))?;
        }
        file.seek(SeekFrom::End(0)).map_err(Error::io(path))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            empty: whole == 0,
        })
    }

    /// Opens a file of JSON lines, of which the first one holds the settings that it was begun with, and gives the rows behind it.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); [`Error::Config`] naming the first setting that differs; [`Error::Corrupt`] naming a line that is no row.
    pub(crate) fn open_json<T: DeserializeOwned>(
        path: &Path,
        settings: &Value,
        resume: bool,
    ) -> Result<(Self, Vec<T>)> {
        let mut rows = Vec::new();
        let mut journal = Self::open(path, resume, |number, line| {
            let broken = |error: serde_json::Error| {
                Error::corrupt(path, format!("line {number} is none of its rows: {error}"))
            };
            if number == 1 {
                let begun: Value = serde_json::from_slice(line).map_err(broken)?;
                return same_settings(path, &begun, settings);
            }
            rows.push(serde_json::from_slice(line).map_err(broken)?);
            Ok(())
        })?;
        if journal.empty {
            journal.append_json(settings)?;
        }
        Ok((journal, rows))
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line, which ends in its one break.
    pub(crate) fn append(&mut self, line: &[u8]) -> Result<()> {
        self.file.write_all(line).map_err(Error::io(&self.path))?;
        self.file.sync_data().map_err(Error::io(&self.path))?;
        if self.empty {
            densely_core::fs::sync_folder(&self.path)?;
            self.empty = false;
        }
        Ok(())
    }

    /// Appends a row of JSON.
    pub(crate) fn append_json(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value).map_err(|error| {
            Error::data(&self.path, format!("a row cannot be written: {error}"))
        })?;
        line.push(b'\n');
        self.append(&line)
    }
}

/// Keeps other processes from writing into the file for as long as it is open.
fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let reason = format!("{} is in use by another process", path.display());
            Err(Error::config("--out", reason))
        }
        // Some network file systems have no locks.
        Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
            Ok(())
        }
        Err(TryLockError::Error(error)) => Err(Error::io(path)(error)),
    }
}

/// Tells `each` of the whole lines of a file and gives their length.
fn whole_lines(
    path: &Path,
    file: &mut File,
    each: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<u64> {
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    let mut whole = 0u64;
    for number in 1u64.. {
        line.clear();
        let count = Read::take(&mut reader, MAX_LINE)
            .read_until(b'\n', &mut line)
            .map_err(Error::io(path))?;
        if line.last() != Some(&b'\n') {
            if count as u64 == MAX_LINE {
                let reason = format!("line {number} is longer than any row");
                return Err(Error::corrupt(path, reason));
            }
            break;
        }
        each(number, &line)?;
        whole += count as u64;
    }
    Ok(whole)
}

/// What is said where somebody's work would be written over.
pub(crate) fn needs_resume(path: &Path) -> Error {
    let reason = format!(
        "is needed to go on with {}, or another folder to begin anew",
        path.display()
    );
    Error::config("--resume", reason)
}

/// Fails, naming the first setting that differs.
pub(crate) fn same_settings(path: &Path, begun: &Value, now: &Value) -> Result<()> {
    let Some(reason) = difference("", begun, now) else {
        return Ok(());
    };
    let reason = format!(
        "cannot go on with {}: {reason}; take the old setting, or another folder",
        path.display()
    );
    Err(Error::config("--resume", reason))
}

/// The first place where two values differ, in words.
fn difference(place: &str, begun: &Value, now: &Value) -> Option<String> {
    let (Some(old), Some(new)) = (begun.as_object(), now.as_object()) else {
        return (begun != now).then(|| format!("{place} was {begun}, now it is {now}"));
    };
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().find_map(|name| {
        let inner = if place.is_empty() {
            name.clone()
        } else {
            format!("{place}.{name}")
        };
        let none = Value::Null;
        difference(
            &inner,
            old.get(name).unwrap_or(&none),
            new.get(name).unwrap_or(&none),
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn folder() -> Result<(tempfile::TempDir, PathBuf)> {
        let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
        let path = folder.path().join("rows.jsonl");
        Ok((folder, path))
    }

    fn bytes(path: &Path) -> Result<Vec<u8>> {
        std::fs::read(path).map_err(Error::io(path))
    }

    fn open(path: &Path, settings: &Value, resume: bool) -> Result<(Journal, Vec<String>)> {
        Journal::open_json(path, settings, resume)
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_the_rest_kept() -> Result<()> {
        let (_folder, path) = folder()?;
        let settings = json!({ "format": 1 });
        let (mut journal, rows) = open(&path, &settings, false)?;
        assert!(rows.is_empty());
        journal.append_json(&"first")?;
        journal.append_json(&"second, and longer than the first")?;
        drop(journal);
        let whole = bytes(&path)?;
        let kept = whole.len() - "\"second, and longer than the first\"\n".len();
        // At any byte of the last line, its break included.
        for cut in kept + 1..whole.len() {
            std::fs::write(&path, &whole[..cut]).map_err(Error::io(&path))?;
            let (mut journal, rows) = open(&path, &settings, true)?;
            assert_eq!(rows, ["first"], "cut at {cut}");
            assert_eq!(bytes(&path)?, &whole[..kept]);
            journal.append_json(&"second, and longer than the first")?;
            drop(journal);
            assert_eq!(bytes(&path)?, whole);
        }
        let (_, rows) = open(&path, &settings, true)?;
        assert_eq!(rows, ["first", "second, and longer than the first"]);
        // Torn settings are no settings: the file begins anew.
        std::fs::write(&path, "{\"format\"").map_err(Error::io(&path))?;
        assert!(open(&path, &settings, true)?.1.is_empty());
        assert_eq!(bytes(&path)?, b"{\"format\":1}\n");
        Ok(())
    }

    #[test]
    fn a_file_that_is_open_is_refused_to_others() -> Result<()> {
        let (_folder, path) = folder()?;
        let settings = json!({ "format": 1 });
        let (journal, _) = open(&path, &settings, false)?;
        let error = open(&path, &settings, true).expect_err("it is open");
        assert!(
            error.to_string().contains("in use by another process"),
            "{error}"
        );
        drop(journal);
        assert!(open(&path, &settings, true).is_ok());
        Ok(())
    }

    #[test]
    fn other_settings_are_refused_and_named() -> Result<()> {
        let (_folder, path) = folder()?;
        let settings = |seed: u32| json!({ "format": 1, "trace": { "seed": seed } });
        drop(open(&path, &settings(1), false)?);
        let before = bytes(&path)?;
        let error = open(&path, &settings(1), false).expect_err("it is there");
        assert!(error.to_string().contains("--resume"), "{error}");
        let error = open(&path, &settings(2), true).expect_err("another seed");
        assert!(
            error.to_string().contains("trace.seed was 1, now it is 2"),
            "{error}"
        );
        let error = open(&path, &json!({ "format": 1 }), true).expect_err("one less");
        assert!(error.to_string().contains("now it is null"), "{error}");
        assert_eq!(bytes(&path)?, before);
        Ok(())
    }

    #[test]
    fn files_of_others_are_refused_and_left_alone() -> Result<()> {
        let (_folder, path) = folder()?;
        let settings = json!({ "format": 1 });
        for (text, line) in [
            ("id,prompt\n1,x\n", "line 1"),
            // What is torn stays too.
            ("{\"format\":1}\n\"a\"\n7\n\"c", "line 3"),
        ] {
            std::fs::write(&path, text).map_err(Error::io(&path))?;
            let error = open(&path, &settings, true).expect_err(line);
            assert!(error.to_string().contains(line), "{error}");
            assert_eq!(bytes(&path)?, text.as_bytes());
        }
        Ok(())
    }
}
