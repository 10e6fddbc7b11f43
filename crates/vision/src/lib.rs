#![doc = include_str!("../README.md")]

#[cfg(feature = "image")]
pub mod classify;
#[cfg(feature = "image")]
pub mod data;
pub mod dct;
pub mod degrade;
#[cfg(feature = "image")]
pub mod features;
#[cfg(feature = "image")]
mod groups;
pub mod layers;
pub mod losses;
pub mod maxim;
pub mod metrics;
pub mod models;
pub mod poolformer;
#[cfg(feature = "image")]
pub mod restoration;
pub mod strip_mlp;
pub mod tiles;
pub mod transforms;

pub use densely_core::{Device, Error, Result};
pub use maxim::{Maxim, MaximConfig};
pub use models::PRESETS;
pub use poolformer::{PoolFormer, PoolFormerConfig};
pub use strip_mlp::{StripMlp, StripMlpConfig};
