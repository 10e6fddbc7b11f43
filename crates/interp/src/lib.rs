#![doc = include_str!("../README.md")]

pub mod activations;
pub mod average;
pub mod circuit;
pub mod corpus;
pub mod dictionary;
pub mod edit;
pub mod facts;
pub mod heatmap;
mod journal;
pub mod localize;
pub mod models;
pub mod noise;
mod print;
pub mod recall;
pub mod regress;
pub mod sweep;
pub mod trace;

pub use densely_core::{Device, Error, Result};
pub use facts::{CounterFact, Fact};
pub use models::PRESETS;
