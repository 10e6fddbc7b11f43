//! Tests that go through the crate's public doors.

mod contract;
mod fused;
mod goldens;
mod tabred;
mod task;
mod tune;
