//! The short way: a table in, a model out, forecasts as columns or as an Arrow batch.

use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use densely_core::{Device, Result};
use densely_data::Table;
use densely_data::write::batch_of;

use super::fit::{Event, FitOptions, Prepared, fit};
use super::fitted::{Fitted, Forecasts};
use super::score::Scores;
use super::settings::ForecastSettings;

/// What to fit and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// How the table is read, the network, the training loop.
    pub settings: ForecastSettings,
    /// Seed of initial weights, order of windows and dropout.
    pub seed: u64,
    /// Where to compute.
    pub device: Device,
    /// The run folder.
    pub folder: PathBuf,
}

impl Options {
    /// The defaults of `densely forecast fit`, to forecast `horizon` steps; the run goes into `folder`.
    pub fn new(horizon: i64, folder: impl Into<PathBuf>) -> Self {
        Self {
            settings: ForecastSettings::new(horizon),
            seed: 0,
            device: Device::Auto,
            folder: folder.into(),
        }
    }
}

/// A trained forecaster with its errors.
#[derive(Debug)]
pub struct Model {
    fitted: Fitted,
    valid: Option<Scores>,
    test: Option<Scores>,
    notes: Vec<String>,
    folder: PathBuf,
}

impl Model {
    /// Reads the table, chooses what the settings leave open, trains and evaluates.
    ///
    /// # Errors
    /// Those of [`Prepared::new`] and [`fit`].
    /// # Examples
    /// ```
    /// use densely_data::Table;
    /// use densely_timeseries::forecast::{Model, Options};
    ///
    /// # fn main() -> densely_timeseries::Result<()> {
    /// # let folder = tempfile::tempdir().map_err(densely_timeseries::Error::io("."))?;
    /// # let path = folder.path().join("load.csv");
    /// # let row = |i: i32| format!("2024-01-{:02} {:02}:00,{}\n", 1 + i / 24, i % 24, i % 24);
    /// # let text: String = (0..24 * 20).map(row).collect();
    /// # std::fs::write(&path, format!("time,load\n{text}")).map_err(densely_timeseries::Error::io("."))?;
    /// let table = Table::open(&path)?;
    /// let mut options = Options::new(6, folder.path().join("run"));
    /// options.settings.quantiles = vec![0.1, 0.5, 0.9];
    /// options.settings.train.epochs = 2;
    /// let model = Model::fit(&table, &options)?;
    /// let next = model.predict(&table, None)?;
    /// assert_eq!(next.columns.len(), 4); // time, load_forecast, load_q0.1, load_q0.9
    /// # Ok(())
    /// # }
    /// ```
    pub fn fit(table: &Table, options: &Options) -> Result<Self> {
        Self::fit_observed(table, options, &mut |_| ())
    }

    /// As [`fit`](Self::fit), and tells `observe` how far it is.
    ///
    /// # Errors
    /// Those of [`fit`](Self::fit).
    pub fn fit_observed(
        table: &Table,
        options: &Options,
        observe: &mut dyn FnMut(&Event),
    ) -> Result<Self> {
        let device = options.device.open()?;
        let prepared = Prepared::new(table, &options.settings, device)?;
        let fit_options = FitOptions {
            folder: &options.folder,
            table: table.path(),
            seed: options.seed,
            device,
            resume: None,
        };
        let outcome = fit(&prepared, &fit_options, observe)?;
        let test = prepared.test(&outcome.network, &mut |_, _| Ok(()))?;
        Ok(Self {
            fitted: Fitted::open(&options.folder, device)?,
            valid: Some(outcome.valid),
            test: Some(test),
            notes: prepared.notes,
            folder: options.folder.clone(),
        })
    }

    /// Opens the best epoch of a run folder.
    ///
    /// # Errors
    /// Those of [`Fitted::open`].
    pub fn open(folder: &Path, device: Device) -> Result<Self> {
        Ok(Self {
            fitted: Fitted::open(folder, device.open()?)?,
            valid: None,
            test: None,
            notes: Vec::new(),
            folder: folder.to_owned(),
        })
    }

    /// Errors on the validation windows; `None` for a model that was opened.
    pub const fn valid(&self) -> Option<&Scores> {
        self.valid.as_ref()
    }

    /// Errors on the test windows; `None` for a model that was opened.
    pub const fn test(&self) -> Option<&Scores> {
        self.test.as_ref()
    }

    /// What was found in the table, chosen and done, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The run folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The network and what turns rows into its windows: evaluation and backtest.
    pub const fn fitted(&self) -> &Fitted {
        &self.fitted
    }

    /// Forecasts what comes after the last target of each series; see [`Fitted::predict`].
    ///
    /// # Errors
    /// Those of [`Fitted::predict`].
    pub fn predict(&self, table: &Table, future: Option<&Table>) -> Result<Forecasts> {
        self.fitted.predict(table, future)
    }

    /// As [`predict`](Self::predict), Arrow in and Arrow out.
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict).
    pub fn predict_batch(
        &self,
        batch: &RecordBatch,
        future: Option<&RecordBatch>,
    ) -> Result<RecordBatch> {
        let table = Table::from_batches([batch.clone()])?;
        let future = future
            .map(|batch| Table::from_batches([batch.clone()]))
            .transpose()?;
        self.predict(&table, future.as_ref())?.to_batch()
    }
}

impl Forecasts {
    /// As an Arrow batch; times are timestamps, in the zone of the table where it has one.
    ///
    /// # Errors
    /// [`Error::Data`](densely_core::Error::Data) when the columns do not make a batch.
    pub fn to_batch(&self) -> Result<RecordBatch> {
        batch_of(&self.columns)
    }
}
