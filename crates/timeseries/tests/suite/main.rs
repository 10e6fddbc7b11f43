//! Tests that go through the crate's public doors.

mod contract;
mod fit;
mod fused;
mod goldens;
mod linear;
mod m5;
mod metrics;
mod reconcile;
