//! Numbers against PyTorch and scikit-learn, and a run that nothing can break.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]
#![expect(clippy::float_cmp, reason = "bits are what these tests are about")]

mod goldens;
mod graph;
mod metrics;
mod report;
mod resume;
mod trainer;
mod training;
mod tune;
