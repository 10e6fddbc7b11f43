//! Tests that go through the crate's public doors.
#![expect(
    clippy::float_cmp,
    reason = "what is set, chosen or read back is exactly what it was"
)]

mod cam;
mod contract;
#[cfg(feature = "image")]
mod fitting;
mod fresh;
mod fused;
mod gnf;
mod grids;
mod meshes;
mod networks;
mod radiance;
#[cfg(feature = "image")]
mod radiance_files;
#[cfg(feature = "image")]
mod radiance_fit;
mod rendering;
mod scenes;
mod signals;
