#![doc = include_str!("../README.md")]

pub mod batches;
pub mod calendar;
pub mod dataset;
pub mod image;
mod matrix;
pub mod preprocess;
pub mod quantile;
pub mod rows;
pub mod schema;
pub mod split;
pub mod stream;
pub mod table;
pub mod write;

pub use batches::{Batches, RowBatch};
pub use dataset::{Batch, Dataset, Order};
pub use image::Image;
pub use preprocess::{NumericTransform, PreprocessConfig, Preprocessor};
pub use rows::{RowEncoder, Rows};
pub use schema::{Role, Schema, SchemaOptions, Task};
pub use split::{Split, SplitConfig};
pub use table::Table;
pub use write::{Output, write_columns};
