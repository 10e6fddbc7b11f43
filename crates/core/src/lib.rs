#![doc = include_str!("../README.md")]

pub mod check;
pub mod device;
pub mod error;
pub mod forward;
pub mod fs;
pub mod nn;
pub mod random;
pub mod registry;
pub mod weights;

pub use device::Device;
pub use error::{Error, Result};
pub use random::seeded;
pub use registry::{Model, Preset};
pub use weights::Tensors;

pub use tch;
