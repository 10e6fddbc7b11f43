#![doc = include_str!("../README.md")]

pub mod layers;
pub mod maxim;
pub mod models;
pub mod poolformer;
pub mod strip_mlp;

pub use densely_core::{Device, Error, Result};
pub use maxim::{Maxim, MaximConfig};
pub use models::PRESETS;
pub use poolformer::{PoolFormer, PoolFormerConfig};
pub use strip_mlp::{StripMlp, StripMlpConfig};
