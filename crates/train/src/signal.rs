//! Ctrl-C: the first one asks the loop to end after its step, the second one ends the program.

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether somebody asked the program to stop.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Asks the running loop to stop after its step, as Ctrl-C does.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Makes Ctrl-C (and a request to terminate, as job schedulers send it) set the flag that
/// [`interrupted`] reads; a second one exits at once with status 130. Call it once, at the start of the program.
///
/// # Errors
/// [`densely_core::Error::Unsupported`] when a handler is already installed.
#[cfg(feature = "signal")]
pub fn install() -> densely_core::Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .map_err(|e| densely_core::Error::Unsupported {
        what: "stopping by Ctrl-C".to_owned(),
        hint: format!("{e}; install the handler once"),
    })
}
