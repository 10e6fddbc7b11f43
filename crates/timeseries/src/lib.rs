#![doc = include_str!("../README.md")]

pub mod distributions;
pub mod fit;
pub mod forecast;
pub mod layers;
pub mod linear;
mod lines;
pub mod m4;
pub mod m5;
pub mod metrics;
pub mod models;
pub mod panel;
pub mod patch_tsmixer;
mod training;
pub mod tsmixer;
pub mod tsmixer_ext;
pub mod ttm;
pub mod tune;

pub use densely_core::{Device, Error, Result};
pub use densely_data as data;
pub use models::PRESETS;
pub use patch_tsmixer::{PatchTsMixer, PatchTsMixerConfig};
pub use tsmixer::{TsMixer, TsMixerConfig};
pub use tsmixer_ext::{TsMixerExt, TsMixerExtConfig};
pub use ttm::{Ttm, TtmConfig};
