//! Tests that go through the crate's public doors.
#![expect(
    clippy::float_cmp,
    reason = "what is set, chosen or read back is exactly what it was"
)]

mod circuit;
mod contract;
mod dictionaries;
mod edit;
mod facts;
mod fitting;
mod goldens;
mod localize;
mod noise;
mod recall;
mod regress;
mod trace;
