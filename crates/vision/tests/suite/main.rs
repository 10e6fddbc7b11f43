//! Tests that go through the crate's public doors.

mod contract;
mod goldens;
