//! Tests that go through the crate's public doors.

mod contract;
mod counts;
mod din;
mod feature_map;
mod fused;
mod goldens;
mod metrics;
mod own_table;
mod steps;
