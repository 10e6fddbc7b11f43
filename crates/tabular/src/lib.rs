#![doc = include_str!("../README.md")]

pub mod api;
pub mod bins;
pub mod embeddings;
pub mod ensemble;
pub mod fit;
mod fitted;
pub mod importance;
pub mod layers;
pub mod mlp;
pub mod models;
pub mod prune;
pub mod settings;
pub mod tabm;
pub mod tabred;
pub mod task;
#[cfg(feature = "trees")]
pub mod trees;
pub mod tune;

pub use api::{Model, Options, Predictions, Tabular};
pub use densely_core::{Device, Error, Result};
pub use densely_data as data;
pub use densely_train::calibration;
pub use mlp::{Mlp, MlpConfig};
pub use models::PRESETS;
pub use tabm::{TabM, TabMConfig};
