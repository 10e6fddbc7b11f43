#![doc = include_str!("../README.md")]

pub mod bins;
pub mod embeddings;
pub mod fit;
pub mod layers;
pub mod mlp;
pub mod models;
pub mod settings;
pub mod tabm;
pub mod task;
pub mod tune;

pub use densely_core::{Device, Error, Result};
pub use mlp::{Mlp, MlpConfig};
pub use models::PRESETS;
pub use tabm::{TabM, TabMConfig};
