//! Numbers against PyTorch and scikit-learn, and a run that nothing can break.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod goldens;
mod metrics;
mod resume;
mod trainer;
