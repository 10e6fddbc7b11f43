//! Tests that go through the crate's public doors.

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
