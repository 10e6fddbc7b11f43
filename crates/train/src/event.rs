//! What a fit of any domain tells while it runs.

/// What a fit tells while it runs.
#[derive(Debug)]
pub enum Event {
    /// The loop starts or goes on.
    Started {
        /// Trainable values of the model.
        parameters: u64,
        /// Steps at most.
        steps: u64,
        /// Steps made before.
        done: u64,
    },
    /// A step was made.
    Step {
        /// The running epoch, counted from 0.
        epoch: u64,
        /// Steps made since the start.
        step: u64,
        /// Mean loss of the epoch, as far as it was read from the device.
        loss: Option<f64>,
    },
    /// An epoch ended.
    Epoch {
        /// Counted from 0.
        epoch: u64,
        /// The validation score.
        score: f64,
        /// Whether it is the best so far.
        improved: bool,
    },
}
