//! Tests that go through the crate's public doors.

mod contract;
mod degrade;
mod drawn;
mod fused;
mod goldens;
mod limits;
mod maxim;
mod metrics;
#[cfg(feature = "image")]
mod recipes;
mod state_dicts;
mod strip_mlp;
#[cfg(feature = "image")]
mod training;
mod transforms;
