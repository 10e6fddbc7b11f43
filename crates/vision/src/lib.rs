#![doc = include_str!("../README.md")]

pub mod layers;
pub mod models;
pub mod poolformer;

pub use densely_core::{Device, Error, Result};
pub use models::PRESETS;
pub use poolformer::{PoolFormer, PoolFormerConfig};
