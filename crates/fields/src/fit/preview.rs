//! Pictures of a training that goes on.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use densely_core::{Error, Result};

/// Where pictures go while a field is fitted, and how often.
#[derive(Debug, Clone)]
pub struct PreviewOptions {
    /// The folder; made when absent.
    pub folder: PathBuf,
    /// Seconds between two pictures.
    pub seconds: f64,
}

/// Writes a picture now and then.
#[derive(Debug)]
pub(super) struct Preview {
    folder: PathBuf,
    every: Duration,
    last: Cell<Instant>,
}

impl Preview {
    pub(super) fn new(options: &PreviewOptions) -> Result<Self> {
        let PreviewOptions { folder, seconds } = options;
        if !(*seconds > 0.0 && *seconds <= 1e9) {
            let reason = format!("must lie above 0 and at most 1e9 seconds, got {seconds}");
            return Err(Error::config("--preview-every", reason));
        }
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        Ok(Self {
            folder: folder.clone(),
            every: Duration::from_secs_f64(*seconds),
            last: Cell::new(Instant::now()),
        })
    }
}

/// Lets `write` write `step-<steps>.png`, where pictures are wanted and it is time for one.
pub(super) fn show(
    preview: Option<&Preview>,
    steps: u64,
    write: &mut dyn FnMut(&Path) -> Result<()>,
) -> Result<()> {
    let Some(preview) = preview.filter(|preview| preview.last.get().elapsed() >= preview.every)
    else {
        return Ok(());
    };
    write(&preview.folder.join(format!("step-{steps:07}.png")))?;
    // Counted from its end: a slow picture must not leave training without time.
    preview.last.set(Instant::now());
    Ok(())
}
