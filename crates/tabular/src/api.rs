//! The short way: a table in, a model out, predictions as values or as an Arrow batch.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use densely_core::{Device, Error, Result};
use densely_data::Table;
use densely_train::metrics::Metric;
use tch::{Kind, Tensor};

use crate::fit::{Event, FitOptions, Fitted, Prepared, fit};
use crate::settings::{DataSettings, FitSettings, ModelSettings, TrainSettings};

/// What to fit and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Column to predict, split, preprocessing; the network; the training loop.
    pub settings: FitSettings,
    /// Seed of initial weights, data order and dropout.
    pub seed: u64,
    /// Where to compute.
    pub device: Device,
    /// The run folder; without one the run lives in the temporary folder as long as the model.
    pub folder: Option<PathBuf>,
}

impl Options {
    /// TabM with the defaults of `densely tabular fit`, to predict the column `target`.
    pub fn new(target: impl Into<String>) -> Self {
        Self {
            settings: FitSettings {
                data: DataSettings {
                    auto_time: true,
                    ..DataSettings::new(target)
                },
                model: ModelSettings::default(),
                train: TrainSettings::default(),
            },
            seed: 0,
            device: Device::Auto,
            folder: None,
        }
    }
}

/// Fits networks to tables.
#[derive(Debug, Clone, Copy)]
pub struct Tabular;

impl Tabular {
    /// Infers what the columns are, splits the rows, fits and evaluates.
    ///
    /// # Errors
    /// [`Error::Data`] and [`Error::Config`] naming the column, the row or the setting to blame; those of
    /// [`fit`].
    /// # Examples
    /// ```
    /// use densely_tabular::{Options, Result, Tabular};
    /// use densely_tabular::data::Table;
    ///
    /// # fn main() -> Result<()> {
    /// # let folder = tempfile::tempdir().map_err(densely_tabular::Error::io("."))?;
    /// # let path = folder.path().join("houses.csv");
    /// # let row = |i: usize| format!("{},{},{}\n", i % 17, ["a", "b"][i % 2], (i % 17) * 2 + i % 2);
    /// # let text: String = (0..120).map(row).collect();
    /// # std::fs::write(&path, format!("size,kind,price\n{text}")).map_err(densely_tabular::Error::io("."))?;
    /// let table = Table::open(&path)?;
    /// let mut options = Options::new("price");
    /// # options.settings.data.task = Some(densely_tabular::data::Task::Regression);
    /// options.settings.train.epochs = 2;
    /// let model = Tabular::fit(&table, &options)?;
    /// let predictions = model.predict(&table)?;
    /// assert_eq!(predictions.values.len(), 120);
    /// # Ok(())
    /// # }
    /// ```
    pub fn fit(table: &Table, options: &Options) -> Result<Model> {
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
    ) -> Result<Model> {
        let prepared = Prepared::new(table, &options.settings.data)?;
        let folder = match &options.folder {
            Some(folder) => Folder {
                path: folder.clone(),
                temporary: false,
            },
            None => Folder::temporary(),
        };
        let device = options.device.open()?;
        let fit_options = FitOptions {
            folder: &folder.path,
            table: table.path(),
            seed: options.seed,
            device,
            resume: None,
        };
        let outcome = fit(&prepared, &options.settings, &fit_options, observe)?;
        Ok(Model {
            fitted: Fitted::open(&folder.path, device)?,
            valid: outcome.valid,
            test: outcome.test,
            folder,
        })
    }
}

/// A fitted model with its preprocessing.
#[derive(Debug)]
pub struct Model {
    fitted: Fitted,
    valid: Vec<(Metric, f64)>,
    test: Vec<(Metric, f64)>,
    folder: Folder,
}

impl Model {
    /// Opens the best epoch of a run folder.
    ///
    /// # Errors
    /// Those of [`Fitted::open`].
    pub fn open(folder: &Path, device: Device) -> Result<Self> {
        Ok(Self {
            fitted: Fitted::open(folder, device.open()?)?,
            valid: Vec::new(),
            test: Vec::new(),
            folder: Folder {
                path: folder.to_owned(),
                temporary: false,
            },
        })
    }

    /// Metrics on the validation rows; empty for a model that was opened.
    pub fn valid(&self) -> &[(Metric, f64)] {
        &self.valid
    }

    /// Metrics on the test rows; empty for a model that was opened.
    pub fn test(&self) -> &[(Metric, f64)] {
        &self.test
    }

    /// The run folder.
    pub fn folder(&self) -> &Path {
        &self.folder.path
    }

    /// The network and what turns rows into its features.
    pub const fn fitted(&self) -> &Fitted {
        &self.fitted
    }

    /// Predicts every row of `table`.
    ///
    /// # Errors
    /// [`Error::Data`] naming the column or row that does not fit what the model was trained on.
    pub fn predict(&self, table: &Table) -> Result<Predictions> {
        let (predictions, _) = self.fitted.predict(table, false)?;
        Predictions::new(&predictions, self.fitted.pipeline.preprocessor.classes())
    }

    /// Predicts every row of an Arrow batch: a column `prediction`, and for classes a column `probability_<class>` each.
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict).
    pub fn predict_batch(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let table = Table::from_batches([batch.clone()])?;
        self.predict(&table)?.to_batch()
    }

    /// Moves a run from the temporary folder to `folder`, where it stays.
    ///
    /// # Errors
    /// [`Error::Config`] when `folder` exists or the run has a folder already; [`Error::Io`].
    pub fn save(&mut self, folder: &Path) -> Result<()> {
        if folder.exists() || !self.folder.temporary {
            let reason = if self.folder.temporary {
                format!("{} exists; name a new folder", folder.display())
            } else {
                format!("the run is in {} already", self.folder.path.display())
            };
            return Err(Error::config("folder", reason));
        }
        copy(&self.folder.path, folder)?;
        self.folder = Folder {
            path: folder.to_owned(),
            temporary: false,
        };
        Ok(())
    }
}

/// What a model says of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    /// Regression: the predicted values. Classes: the place of the most probable one in `classes`.
    pub values: Vec<f64>,
    /// Names of the classes; empty for regression.
    pub classes: Vec<String>,
    /// Per class, the probability of each row.
    pub probabilities: Vec<Vec<f64>>,
}

impl Predictions {
    fn new(predictions: &Tensor, classes: &[String]) -> Result<Self> {
        let values =
            |xs: &Tensor| -> Result<Vec<f64>> { Ok(Vec::try_from(xs.to_kind(Kind::Double))?) };
        if classes.is_empty() {
            return Ok(Self {
                values: values(predictions)?,
                classes: Vec::new(),
                probabilities: Vec::new(),
            });
        }
        let of = |class: usize| values(&predictions.select(1, class as i64));
        Ok(Self {
            values: values(&predictions.argmax(1, false))?,
            classes: classes.to_vec(),
            probabilities: (0..classes.len()).map(of).collect::<Result<_>>()?,
        })
    }

    /// The predicted class of each row; empty for regression.
    pub fn labels(&self) -> Vec<&str> {
        let label = |value: &f64| self.classes.get(*value as usize).map(String::as_str);
        self.values.iter().filter_map(label).collect()
    }

    /// As an Arrow batch: `prediction`, and for classes `probability_<class>` each.
    ///
    /// # Errors
    /// [`Error::Data`] when two classes give one column name.
    pub fn to_batch(&self) -> Result<RecordBatch> {
        let first: ArrayRef = if self.classes.is_empty() {
            Arc::new(Float64Array::from(self.values.clone()))
        } else {
            Arc::new(StringArray::from(self.labels()))
        };
        let mut columns = vec![("prediction".to_owned(), first)];
        for (class, probabilities) in self.classes.iter().zip(&self.probabilities) {
            let array: ArrayRef = Arc::new(Float64Array::from(probabilities.clone()));
            columns.push((format!("probability_{class}"), array));
        }
        RecordBatch::try_from_iter(columns).map_err(|e| Error::data("", e.to_string()))
    }
}

/// A run folder that goes with its model when it is temporary.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    temporary: bool,
}

impl Folder {
    fn temporary() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("densely-run-{}-{count}", std::process::id());
        Self {
            path: std::env::temp_dir().join(name),
            temporary: true,
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary
            && self.path.exists()
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!("{}: {error}", self.path.display());
        }
    }
}

/// Copies a folder beside its place and renames it, so that it is whole or absent.
fn copy(from: &Path, into: &Path) -> Result<()> {
    let half = densely_core::fs::sibling(into, "tmp");
    let copied = copy_files(from, &half)
        .and_then(|()| std::fs::rename(&half, into).map_err(Error::io(into)));
    if copied.is_err() {
        // The first error is the one to report.
        let _ = std::fs::remove_dir_all(&half);
    }
    copied
}

fn copy_files(from: &Path, into: &Path) -> Result<()> {
    std::fs::create_dir_all(into).map_err(Error::io(into))?;
    for entry in std::fs::read_dir(from).map_err(Error::io(from))? {
        let entry = entry.map_err(Error::io(from))?;
        let (path, target) = (entry.path(), into.join(entry.file_name()));
        if path.is_dir() {
            copy_files(&path, &target)?;
        } else {
            std::fs::copy(&path, &target).map_err(Error::io(&target))?;
        }
    }
    Ok(())
}
