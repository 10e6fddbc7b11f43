//! Tests that go through the crate's public doors.

mod contract;
mod fit;
mod forecast;
mod fused;
mod goldens;
mod law;
mod linear;
mod m5;
mod metrics;
mod own_table;
mod own_times;
mod recipes;
mod reconcile;
mod tune;
