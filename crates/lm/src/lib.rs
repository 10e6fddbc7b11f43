#![doc = include_str!("../README.md")]

pub mod analysis;
mod attention;
mod block;
pub mod config;
pub mod folder;
pub mod generate;
pub mod gguf;
pub mod hooks;
pub mod kv;
mod linear;
mod mlp;
mod model;
pub mod models;
mod names;
mod norm;
pub mod open;
pub mod patching;
pub mod perplexity;
mod positions;
pub mod process;
pub mod tokenizer;
pub mod views;

pub use config::{Activation, Architecture, LmConfig, RopeScaling, Rotary};
pub use densely_core::{Device, Error, Result};
pub use generate::{Sampling, generate};
pub use hooks::{Cache, HookFn, Run};
pub use kv::KvCache;
pub use model::Lm;
pub use models::PRESETS;
pub use open::{Opened, open};
pub use perplexity::{Perplexity, perplexity};
pub use tokenizer::Tokenizer;
