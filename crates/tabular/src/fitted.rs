//! A trained model from its run folder: the network, the preprocessing, and how predictions are put together.

use std::path::Path;

use densely_core::{Error, Result, seeded};
use densely_data::dataset::Dataset;
use densely_data::preprocess::Preprocessor;
use densely_data::rows::Rows;
use densely_data::schema::Task;
use densely_data::table::Table;
use densely_train::run::Kept;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::Tensor;
use tch::nn::VarStore;

use crate::calibration;
use crate::models::{ModelConfig, TabularModel};
use crate::settings::{Averaging, metrics_of};
use crate::task;

/// What prediction needs beside the weights; saved in each checkpoint as `preprocess.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Name of the preset.
    pub preset: String,
    /// Its whole config, with what came from the data.
    pub config: Value,
    /// What is predicted.
    pub task: Task,
    /// Fitted on the training rows.
    pub preprocessor: Preprocessor,
}

/// A trained model from its run folder.
#[derive(Debug)]
pub struct Fitted {
    /// What turns rows into features.
    pub pipeline: Pipeline,
    model: Box<dyn TabularModel>,
    members: Vec<i64>,
    temperature: Option<f64>,
    device: tch::Device,
}

impl Fitted {
    /// Opens the best epoch of the run in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no such folder or it holds no finished epoch; [`Error::Corrupt`] and [`Error::Weights`] for files that
    /// are damaged or do not belong together.
    pub fn open(folder: &Path, device: tch::Device) -> Result<Self> {
        let kept = Kept::<Pipeline>::open(folder, "densely tabular")?;
        let config = ModelConfig::of(&kept.pipeline.preset, &kept.pipeline.config)?;
        let vs = VarStore::new(device);
        // Loaded weights replace the first ones; drawing them must not disturb a training of another thread.
        let model = seeded(0, || config.build(&vs.root()))?;
        kept.load_weights(&vs)?;
        let members = folder.join(MEMBERS);
        let members = if members.exists() {
            let members: std::collections::BTreeMap<String, Vec<i64>> = read_json(&members)?;
            members.get("averaged").cloned().unwrap_or_default()
        } else {
            Vec::new()
        };
        if let Some(member) = members.iter().find(|m| !(0..config.members()).contains(*m)) {
            let reason = format!("there is no member {member}");
            return Err(Error::corrupt(folder.join(MEMBERS), reason));
        }
        Ok(Self {
            pipeline: kept.pipeline,
            model,
            members,
            temperature: calibration::read_temperature(folder)?,
            device,
        })
    }

    /// Predicts every row of `table`: values `[rows]`, or probabilities `[rows, classes]`, f64.
    ///
    /// With `with_target` also gives the targets, for metrics.
    /// # Errors
    /// [`Error::Data`] naming the column or row that does not fit what the model was trained on.
    pub fn predict(&self, table: &Table, with_target: bool) -> Result<(Tensor, Option<Tensor>)> {
        let data = self
            .pipeline
            .preprocessor
            .transform(table, None, with_target)?;
        let data = data.to_device(self.device);
        let scale = self.pipeline.preprocessor.target_scale();
        let predictions = self.predict_data(&data)?;
        let targets = with_target
            .then(|| task::targets(&data, scale))
            .transpose()?;
        Ok((predictions, targets))
    }

    /// Predicts rows that were checked one by one, as [`predict`](Self::predict) does those of a table.
    ///
    /// # Errors
    /// [`Error::Shape`] for rows of another model's encoder; [`Error::Torch`] when memory runs out.
    pub fn predict_rows(&self, rows: &Rows) -> Result<Tensor> {
        let data = self.pipeline.preprocessor.features(rows)?;
        self.predict_data(&data.to_device(self.device))
    }

    /// Predicts rows that were transformed already; they must be on the model's device.
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit the model; [`Error::Torch`] when memory runs out.
    pub fn predict_data(&self, data: &Dataset) -> Result<Tensor> {
        let scale = self.pipeline.preprocessor.target_scale();
        let (task, members) = (self.pipeline.task, &self.members);
        let predictions = task::predict(&*self.model, data, task, scale, members, 8192)?;
        Ok(match self.temperature {
            Some(temperature) => calibration::scale(&predictions, temperature),
            None => predictions,
        })
    }

    /// The members of the run that have the best averaged score on the rows of `table`, by `rule`.
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict), and [`Error::Shape`] when the score is not defined on the rows.
    pub fn choose_members(&self, table: &Table, rule: Averaging) -> Result<Vec<i64>> {
        let preprocessor = &self.pipeline.preprocessor;
        let data = preprocessor
            .transform(table, None, true)?
            .to_device(self.device);
        let (task, scale) = (self.pipeline.task, preprocessor.target_scale());
        let metric = metrics_of(task)[0];
        task::select_members(rule, metric, &*self.model, &data, task, scale, 8192)
    }

    /// Features and targets of a table, on the model's device.
    ///
    /// # Errors
    /// Those of [`Preprocessor::transform`].
    pub fn transform(&self, table: &Table) -> Result<Dataset> {
        let data = self.pipeline.preprocessor.transform(table, None, true)?;
        Ok(data.to_device(self.device))
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|e| Error::corrupt(path, e.to_string()))
}

const MEMBERS: &str = "members.json";

pub(crate) fn save_members(folder: &Path, members: &[i64]) -> Result<()> {
    let text = json!({ "averaged": members }).to_string();
    densely_core::fs::write(&folder.join(MEMBERS), text.as_bytes())
}
