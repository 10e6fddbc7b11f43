//! Tests that go through the crate's public doors.

mod contract;
mod fused;
mod goldens;
mod task;
mod tune;
