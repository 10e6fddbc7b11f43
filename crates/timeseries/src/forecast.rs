//! Forecasts of one's own table: long or wide, with gaps, doubled rows and zones as tables have them.
//!
//! ```text
//! table → Panel (series on one grid) → windows, a batch at a time → network → quantiles or means → Scores, Forecasts
//! ```
//!
//! Series are divided in time: the oldest steps train, the newest test. Each series is standardised by its own training steps. Windows are
//! numbers into the stored series; only a batch of them is ever made.

mod api;
mod columns;
mod encode;
mod fit;
mod fitted;
mod future;
mod grid;
mod law;
mod network;
mod panel;
mod read;
mod score;
mod settings;
mod stamps;
mod windows;

pub use api::{Model, Options};
pub use columns::{Duplicates, Gaps, TableSettings};
pub use encode::{Code, Encoder, Encoders};
pub use fit::{Event, FitOptions, Outcome, Prepared, Sample, fit};
pub use fitted::{Backtest, Fitted, Forecasts, Pipeline, Scaled, forecast_columns};
pub use grid::{Phase, Step};
pub use network::{Network, pinball};
pub use panel::{Covariate, Covariates, Panel, Series};
pub use score::{Means, Scores};
pub use settings::{AUTO, ForecastSettings};
pub use stamps::Clock;
pub use windows::{Batch, Store, Windows};
