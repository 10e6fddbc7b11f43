//! Files of data sets whose hash is not known here, since they may not be passed on or nobody has measured them: what such a table must
//! look like, and the hash of the one that was taken, kept beside it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cache;
use crate::dataset::State;

/// What a CSV without quotes must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shape {
    /// Columns, that of the time included.
    pub(crate) columns: usize,
    /// Rows below the header.
    pub(crate) rows: u64,
}

impl Shape {
    /// # Errors
    /// When the file has other columns or rows, naming the first line with too few or too many fields.
    pub(crate) fn check(self, path: &Path) -> Result<()> {
        let file =
            std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut lines = 0_u64;
        for line in BufReader::new(file).split(b'\n') {
            let line = line.with_context(|| format!("cannot read {}", path.display()))?;
            if line.trim_ascii().is_empty() {
                continue;
            }
            lines += 1;
            let fields = line.split(|byte| *byte == b',').count();
            if fields != self.columns {
                bail!(
                    "its line {lines} has {fields} columns, {} are expected",
                    self.columns
                );
            }
        }
        let rows = lines.saturating_sub(1);
        if rows != self.rows {
            bail!("it has {rows} rows, {} are expected", self.rows);
        }
        Ok(())
    }
}

/// The file that was taken.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Taken {
    bytes: u64,
    sha256: String,
}

/// The note stands beside the file and is written last: without it the file counts as damaged.
fn note_of(place: &Path) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    place.with_file_name(format!(".{name}.taken.json"))
}

/// Notes size and hash of the file at `place`.
pub(crate) fn remember(place: &Path) -> Result<()> {
    let found = cache::digest(place)?;
    let taken = Taken {
        bytes: found.bytes,
        sha256: found.sha256,
    };
    let text = serde_json::to_string_pretty(&taken).context("cannot write down the hash")?;
    cache::write(&note_of(place), text.as_bytes())
}

/// How the file at `place` stands beside what was noted; it is hashed when `deep`.
pub(crate) fn state(place: &Path, deep: bool) -> State {
    let bytes = match std::fs::metadata(place) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return State::Missing,
        Err(error) => return State::Bad(error.to_string()),
        Ok(meta) => meta.len(),
    };
    let note = std::fs::read_to_string(note_of(place)).ok();
    let Some(taken) = note.and_then(|text| serde_json::from_str::<Taken>(&text).ok()) else {
        return State::Bad("nothing is noted of the file that was taken".to_owned());
    };
    if bytes != taken.bytes {
        return State::Bad(format!(
            "it has {bytes} bytes, the file that was taken had {}",
            taken.bytes
        ));
    }
    match deep.then(|| cache::digest(place)) {
        None => State::Good,
        Some(Ok(found)) if found.sha256 == taken.sha256 => State::Good,
        Some(Ok(_)) => State::Bad("it differs from the file that was taken".to_owned()),
        Some(Err(error)) => State::Bad(format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_and_rows_are_counted() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("t.csv");
        let shape = Shape {
            columns: 3,
            rows: 2,
        };
        let complaint = |text: &str| -> Result<String> {
            std::fs::write(&path, text)?;
            Ok(shape
                .check(&path)
                .map_or_else(|error| error.to_string(), |()| "fine".to_owned()))
        };
        assert_eq!(complaint("date,a,b\n1,2,3\n4,5,6\n")?, "fine");
        assert_eq!(complaint("date,a,b\r\n1,2,3\r\n4,5,6\r\n\r\n")?, "fine");
        assert_eq!(
            complaint("date,a,b\n1,2,3\n")?,
            "it has 1 rows, 2 are expected"
        );
        assert_eq!(
            complaint("date,a,b\n1,2,3\n4,5\n")?,
            "its line 3 has 2 columns, 3 are expected"
        );
        assert_eq!(
            complaint("<html>\n")?,
            "its line 1 has 1 columns, 3 are expected"
        );
        assert_eq!(complaint("")?, "it has 0 rows, 2 are expected");
        Ok(())
    }

    #[test]
    fn a_file_is_good_while_it_is_the_one_that_was_taken() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("t.csv");
        assert_eq!(state(&path, true), State::Missing);
        std::fs::write(&path, "date,a\n")?;
        let complaint = |deep| match state(&path, deep) {
            State::Bad(why) => why,
            other => format!("{other:?}"),
        };
        assert!(complaint(false).contains("nothing is noted"));
        remember(&path)?;
        assert_eq!(state(&path, true), State::Good);
        std::fs::write(&path, "date,b\n")?;
        assert_eq!(state(&path, false), State::Good);
        assert!(complaint(true).contains("differs from the file"));
        std::fs::write(&path, "date\n")?;
        assert!(complaint(false).contains("5 bytes, the file that was taken had 7"));
        Ok(())
    }
}
