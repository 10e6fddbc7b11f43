#![doc = include_str!("../README.md")]

pub mod cam;
pub mod encodings;
pub mod ffn;
pub mod finer;
#[cfg(feature = "image")]
pub mod fit;
pub mod fresh;
pub mod gnf;
pub mod hashgrid;
pub mod marching;
pub mod mesh;
pub mod metrics;
pub mod mip_nerf;
pub mod models;
pub mod nerf;
pub mod occupancy;
mod parallel;
pub mod planes;
pub mod render;
pub mod scene;
pub mod signals;
pub mod siren;
mod sizes;
pub mod wire;

pub use densely_core::{Device, Error, Result};
pub use models::PRESETS;
