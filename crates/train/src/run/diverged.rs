//! What is kept of a training that diverged.

use std::collections::BTreeMap;
use std::path::PathBuf;

use densely_core::{Error, Result, Tensors, weights};

use super::Run;

impl Run {
    /// Saves the last batch (or whatever else) of a training that diverged as `diverged.safetensors` and returns its path.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save_diverged(&self, tensors: &Tensors) -> Result<PathBuf> {
        let path = self.dir.join("diverged.safetensors");
        let step = self.progress.step.to_string();
        weights::save(&path, tensors, &BTreeMap::from([("step".to_owned(), step)]))?;
        Ok(path)
    }

    /// The error as it came; where it says that training diverged, the batch of the last step has been saved, so that it can be looked at.
    /// Losses are read many steps at a time: it need not be the one to blame.
    #[must_use]
    pub fn with_batch(&self, error: Error, last: impl FnOnce() -> Option<Tensors>) -> Error {
        if matches!(error, Error::Diverged { .. })
            && let Some(tensors) = last()
        {
            match self.save_diverged(&tensors) {
                Ok(path) => tracing::warn!("the batch of the last step is in {}", path.display()),
                Err(error) => tracing::warn!("the last batch could not be saved: {error}"),
            }
        }
        error
    }
}
