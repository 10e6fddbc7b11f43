//! The one error type of the workspace. Variants carry data; the sentence is made in `Display`.

use std::path::{Path, PathBuf};

use crate::weights::LoadReport;

/// Result of everything that can fail in Densely.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, with the values needed to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of its range, or two settings contradict each other.
    #[error("setting `{field}`: {reason}")]
    Config {
        /// Name of the setting.
        field: String,
        /// What was expected and what came.
        reason: String,
    },
    /// A tensor has another shape or kind than the model takes.
    #[error("`{what}`: expected {expected}, got {got}")]
    Shape {
        /// Name of the tensor.
        what: String,
        /// Expected shape or kind.
        expected: String,
        /// Shape or kind that came.
        got: String,
    },
    /// A weight file does not fit the model; the report lists every key that does not.
    #[error("{}: weights do not fit the model: {report}", path.display())]
    Weights {
        /// The weight file.
        path: PathBuf,
        /// All missing, unexpected and mismatched keys.
        report: Box<LoadReport>,
    },
    /// A file's bytes are not what its format promises: truncated, altered or of another format.
    #[error("{}: damaged or of another format: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No preset of this name.
    #[error("no model is called `{name}`; nearest names: {}", nearest.join(", "))]
    UnknownPreset {
        /// The name that was asked for.
        name: String,
        /// Registered names, nearest first.
        nearest: Vec<String>,
    },
    /// A table's content cannot be used.
    #[error("{}", data_message(path, *row, column.as_deref(), reason))]
    Data {
        /// The file, or an empty path for tables that came from memory.
        path: PathBuf,
        /// One-based line or row in the file, where one is to blame.
        row: Option<u64>,
        /// Column, where one is to blame.
        column: Option<String>,
        /// What is wrong.
        reason: String,
    },
    /// The operating system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The loss became infinite or not a number.
    #[error(
        "training diverged at step {step}: loss is {loss}; lower the learning rate or clip gradients"
    )]
    Diverged {
        /// Optimiser step, counted from 0.
        step: u64,
        /// The loss that was seen.
        loss: f64,
    },
    /// The user asked to stop; everything up to then is saved.
    #[error("interrupted; everything is saved in {}: the same command with --resume goes on", folder.display())]
    Interrupted {
        /// The run folder.
        folder: PathBuf,
    },
    /// Something this build or machine cannot do.
    #[error("{what} is not available: {hint}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// libtorch refused an operation. `Display` shows its first line, `Debug` the C++ trace too.
    #[error("libtorch: {message}")]
    Torch {
        /// First line of libtorch's message.
        message: String,
        /// The rest: the C++ stack.
        trace: String,
    },
}

fn data_message(path: &Path, row: Option<u64>, column: Option<&str>, reason: &str) -> String {
    let mut place = Vec::new();
    if !path.as_os_str().is_empty() {
        place.push(path.display().to_string());
    }
    if let Some(row) = row {
        place.push(format!("row {row}"));
    }
    if let Some(column) = column {
        place.push(format!("column `{column}`"));
    }
    if place.is_empty() {
        reason.to_owned()
    } else {
        format!("{}: {reason}", place.join(", "))
    }
}

impl Error {
    /// A setting that cannot be used.
    pub fn config(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// A table that cannot be used, without a row or column to blame.
    pub fn data(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Data {
            path: path.into(),
            row: None,
            column: None,
            reason: reason.into(),
        }
    }

    /// A column of a table that cannot be used.
    pub fn column(
        path: impl Into<PathBuf>,
        column: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self::Data {
            path: path.into(),
            row: None,
            column: Some(column.into()),
            reason: reason.into(),
        }
    }

    /// A file operation that failed; for `map_err(Error::io(path))`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// What libtorch said: its first line, and the C++ stack.
    pub fn torch(text: impl AsRef<str>) -> Self {
        let text = text.as_ref();
        let (message, trace) = text.split_once('\n').unwrap_or((text, ""));
        Self::Torch {
            message: message.to_owned(),
            trace: trace.to_owned(),
        }
    }

    /// A file whose bytes are not what its format promises.
    pub fn corrupt(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.into(),
            reason: reason.into(),
        }
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        let text = match error {
            tch::TchError::Torch(text) => text,
            other => other.to_string(),
        };
        Self::torch(text)
    }
}
