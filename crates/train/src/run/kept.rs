//! What prediction needs of a finished run: the pipeline and the weights of its best epoch.

use std::path::{Path, PathBuf};

use densely_core::{Error, Result, weights};
use serde::de::DeserializeOwned;
use tch::nn::VarStore;

use super::folder::{MODEL, PREPROCESS};

/// The best epoch of a run folder.
#[derive(Debug)]
pub struct Kept<P> {
    /// What was saved beside the weights by [`Run::set_preprocess`](super::Run::set_preprocess).
    pub pipeline: P,
    /// Its file.
    pub path: PathBuf,
    folder: PathBuf,
}

impl<P: DeserializeOwned> Kept<P> {
    /// Reads the pipeline of the run in `folder`; `program` names what such runs are made with, such as `densely ctr`.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no such folder or it holds no finished epoch; [`Error::Corrupt`] for another program's pipeline.
    pub fn open(folder: &Path, program: &str) -> Result<Self> {
        let best = folder.join("best");
        let path = best.join(PREPROCESS);
        if !path.exists() {
            let reason = if folder.is_dir() {
                "holds no finished epoch of a fit"
            } else {
                "there is no such run folder"
            };
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, reason);
            return Err(Error::io(folder)(source));
        }
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let pipeline = serde_json::from_str(&text)
            .map_err(|e| Error::corrupt(&path, format!("{e}; is it a run of `{program}`?")))?;
        Ok(Self {
            pipeline,
            path,
            folder: best,
        })
    }

    /// Puts the weights into the parameters of `vs`, all of them.
    ///
    /// # Errors
    /// Those of [`weights::load`].
    pub fn load_weights(&self, vs: &VarStore) -> Result<()> {
        let file = self.folder.join(MODEL);
        weights::load(vs, &file, weights::same_name, weights::Strictness::All)?;
        Ok(())
    }
}
