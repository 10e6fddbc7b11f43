//! Tests that go through the crate's public doors.

mod contract;
mod fit;
mod forecast;
mod goldens;
mod linear;
mod own_table;
