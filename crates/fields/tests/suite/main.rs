//! Tests that go through the crate's public doors.
#![expect(
    clippy::float_cmp,
    reason = "what is set, chosen or read back is exactly what it was"
)]

mod cam;
mod contract;
mod fresh;
mod fused;
mod gnf;
mod grids;
mod meshes;
mod networks;
mod radiance;
mod rendering;
mod scenes;
mod signals;
