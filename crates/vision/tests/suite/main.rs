//! Tests that go through the crate's public doors.

mod contract;
mod drawn;
mod fused;
mod goldens;
mod maxim;
mod strip_mlp;
