#![doc = include_str!("../README.md")]

pub mod attention;
pub mod din;
pub mod embedding;
pub mod examples;
pub mod feature_map;
pub mod fields;
pub mod finalmlp;
pub mod fit;
pub mod fitted;
pub mod histories;
pub mod infer;
pub mod layers;
pub mod logistic;
pub mod metrics;
pub mod models;
pub mod movielens;
pub mod network;
pub mod optim;
pub mod prepare;
pub mod retail;
pub mod settings;

pub use densely_core::{Device, Error, Result};
pub use din::{Din, DinConfig};
pub use feature_map::FeatureMap;
pub use fields::Field;
pub use finalmlp::{FinalMlp, FinalMlpConfig};
pub use fitted::Fitted;
pub use infer::Options;
pub use models::{CtrConfig, CtrModel, PRESETS};
pub use prepare::Prepared;
pub use settings::CtrSettings;
