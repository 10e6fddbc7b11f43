//! From a wide table to a trained forecaster: prepare, train, evaluate.
//!
//! The protocol is the literature's: channels are standardised by the training steps, windows lie one step apart, the epoch is the
//! best on the validation windows, and errors are means over all test windows, steps and channels on the standardised scale; no
//! window is dropped because it does not fill a batch.

use std::time::Instant;

use densely_core::registry::parse_config;
use densely_core::{Error, Result, Tensors, check, seeded};
use densely_data::dataset::{Order, permutations};
use densely_data::table::Table;
pub use densely_train::event::Event;
use densely_train::machine::{peak_rss_mb, step_seed};
use densely_train::metrics::Metric;
use densely_train::optim::{AdamConfig, OptimConfig};
pub use densely_train::run::FitOptions;
use densely_train::schedule::ScheduleConfig;
use densely_train::training::Task;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tch::nn::{Path as VarPath, VarStore};
use tch::{Kind, Reduction, Tensor};

use crate::linear::{LinearConfig, Ridge, seasonal_naive};
use crate::models::PRESETS;
use crate::panel::{Blocks, Panel, Parts, Scaler, Windows};
use crate::patch_tsmixer::{Head, PatchTsMixerConfig};
use crate::training::{of_windows, training};
use crate::tsmixer::TsMixerConfig;

/// The settings of one fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitSettings {
    /// The table and how it is read.
    pub data: DataSettings,
    /// The network.
    #[serde(default)]
    pub model: ModelSettings,
    /// The training loop.
    #[serde(default)]
    pub train: TrainSettings,
}

/// The table and how it is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Column with the time.
    pub time: String,
    /// Columns of the series; all but the time when empty.
    #[serde(default)]
    pub channels: Vec<String>,
    /// Steps that the model sees.
    pub lookback: i64,
    /// Steps that it forecasts.
    pub horizon: i64,
    /// How steps are divided.
    #[serde(default)]
    pub blocks: Blocks,
    /// Steps of a season, for the naive forecast that stands beside.
    #[serde(default = "one")]
    pub season: i64,
    /// Take the rows as equal steps in their order, also where their times are not equally far apart: the literature does so with Weather,
    /// which lacks some times.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rows_as_steps: bool,
}

fn one() -> i64 {
    1
}

/// The network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// Name of the preset.
    pub preset: String,
    /// Fields that replace those of its config. Lookback, horizon and channels come from the data and must not stand here.
    pub config: Map<String, Value>,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            preset: "tsmixer".to_owned(),
            config: Map::new(),
        }
    }
}

/// What training minimises, on the standardised scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// Mean squared error.
    #[default]
    Mse,
    /// Mean absolute error.
    Mae,
}

/// The training loop. Defaults are those of the released TSMixer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    /// Optimiser and learning rate.
    pub optimizer: OptimConfig,
    /// Learning rate over the steps.
    pub schedule: ScheduleConfig,
    /// Windows per step.
    pub batch_size: i64,
    /// Windows that are evaluated at once; does not change results.
    pub eval_batch_size: i64,
    /// Epochs at most.
    pub epochs: u64,
    /// Epochs without a better validation score after which training stops.
    pub patience: u64,
    /// By how much the validation score must fall below the best for patience to start anew.
    pub min_improvement: f64,
    /// Largest norm of the gradient; 0 does not clip.
    pub clip_norm: f64,
    /// What is minimised.
    pub loss: Loss,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            optimizer: OptimConfig::Adam(AdamConfig {
                lr: 1e-4,
                eps: 1e-7,
                ..AdamConfig::default()
            }),
            schedule: ScheduleConfig::default(),
            batch_size: 32,
            eval_batch_size: 256,
            epochs: 100,
            patience: 5,
            min_improvement: 0.0,
            clip_norm: 0.0,
            loss: Loss::Mse,
        }
    }
}

impl TrainSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check::positive("train.batch_size", self.batch_size)?;
        check::positive("train.eval_batch_size", self.eval_batch_size)?;
        for (field, value) in [
            ("train.epochs", self.epochs),
            ("train.patience", self.patience),
        ] {
            check::positive(field, value.min(1) as i64)?;
        }
        for (field, value) in [
            ("train.clip_norm", self.clip_norm),
            ("train.min_improvement", self.min_improvement),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                let reason = format!("must be at least 0 and finite, got {value}");
                return Err(Error::config(field, reason));
            }
        }
        self.optimizer.validate()?;
        self.schedule.validate()
    }
}

/// A model that forecasts all channels of a window.
pub trait Forecaster: std::fmt::Debug + Send {
    /// `past [batch, lookback, channels]` → `[batch, horizon, channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `past` does not fit the config.
    fn forecast(&self, past: &Tensor, train: bool) -> Result<Tensor>;
}

impl Forecaster for crate::tsmixer::TsMixer {
    fn forecast(&self, past: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(past, train)
    }
}

impl Forecaster for crate::linear::LinearForecaster {
    fn forecast(&self, past: &Tensor, _train: bool) -> Result<Tensor> {
        self.forward(past)
    }
}

impl Forecaster for crate::patch_tsmixer::PatchTsMixer {
    fn forecast(&self, past: &Tensor, train: bool) -> Result<Tensor> {
        let mut outputs = self.forward(past, None, None, train)?;
        outputs
            .remove("forecast")
            .ok_or_else(|| Error::config("head", "must be `forecast`"))
    }
}

impl ModelSettings {
    /// The whole config of the preset, with the sizes that the data has.
    ///
    /// # Errors
    /// [`Error::UnknownPreset`]; [`Error::Config`] for a preset that cannot forecast from the past alone, a field that it lacks, and a size that stands
    /// here and not in the data.
    pub fn resolve(&self, lookback: i64, horizon: i64, channels: i64) -> Result<Value> {
        let preset = densely_core::registry::find(PRESETS, &self.preset)?;
        let sizes = match preset.name {
            "tsmixer" | "dlinear" | "nlinear" => [
                ("lookback", lookback),
                ("horizon", horizon),
                ("channels", channels),
            ],
            "patchtsmixer-forecast" => [
                ("context_length", lookback),
                ("prediction_length", horizon),
                ("num_input_channels", channels),
            ],
            other => {
                let reason = format!(
                    "`{other}` does not forecast from the past alone; take tsmixer, patchtsmixer-forecast, dlinear or nlinear"
                );
                return Err(Error::config("model.preset", reason));
            }
        };
        let mut fields = self.config.clone();
        for (field, size) in sizes {
            if fields.insert(field.to_owned(), size.into()).is_some() {
                return Err(Error::config(
                    format!("model.config.{field}"),
                    "is set by `data` and must not stand here",
                ));
            }
        }
        preset.config_with(&Value::Object(fields))
    }
}

/// Builds a forecaster of `preset` from its whole `config`.
///
/// # Errors
/// [`Error::Config`] naming the field that is out of range.
pub fn build(preset: &str, config: &Value, vs: &VarPath) -> Result<Box<dyn Forecaster>> {
    Ok(match preset {
        "tsmixer" => {
            let config: TsMixerConfig = parse_config(config)?;
            if config.target.is_some() {
                return Err(Error::config(
                    "model.config.target",
                    "a fit forecasts all channels",
                ));
            }
            Box::new(config.build(vs)?)
        }
        "dlinear" | "nlinear" => Box::new(parse_config::<LinearConfig>(config)?.build(vs)?),
        _ => {
            let config: PatchTsMixerConfig = parse_config(config)?;
            let plain = config.head == Head::Forecast
                && config.distribution_output.is_none()
                && config.prediction_channel_indices.is_none();
            if !plain {
                return Err(Error::config(
                    "model.config",
                    "a fit forecasts the values of all channels",
                ));
            }
            Box::new(config.build(vs)?)
        }
    })
}

/// A table made ready.
#[derive(Debug)]
pub struct Prepared {
    /// Names and times.
    pub panel: Panel,
    /// Which steps are for what.
    pub parts: Parts,
    /// Fitted on the training steps.
    pub scaler: Scaler,
    /// Windows of the training steps.
    pub train: Windows,
    /// Windows whose futures are validation steps.
    pub valid: Windows,
    /// Windows whose futures are test steps.
    pub test: Windows,
}

impl Prepared {
    /// Reads, divides and standardises `table`; the values live on `device`.
    ///
    /// # Errors
    /// [`Error::Data`] and [`Error::Config`] that name the column, the row or the setting to blame.
    pub fn new(table: &Table, settings: &DataSettings, device: tch::Device) -> Result<Self> {
        let panel = if settings.rows_as_steps {
            Panel::in_order(table, &settings.time, &settings.channels)?
        } else {
            Panel::new(table, &settings.time, &settings.channels)?
        };
        let parts = settings.blocks.parts(panel.len())?;
        let train = panel
            .values
            .narrow(0, parts.train.start, parts.train.end - parts.train.start);
        let scaler = Scaler::fit(&train);
        let values = scaler.scale(&panel.values).to_device(device);
        let windows = |part| Windows::new(&values, part, settings.lookback, settings.horizon);
        let (train, valid, test) = (
            windows(&parts.train)?,
            windows(&parts.valid)?,
            windows(&parts.test)?,
        );
        Ok(Self {
            panel,
            parts,
            scaler,
            train,
            valid,
            test,
        })
    }
}

/// What prediction needs beside the weights; saved in each checkpoint as `preprocess.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Name of the preset.
    pub preset: String,
    /// Its whole config.
    pub config: Value,
    /// Column with the time.
    pub time: String,
    /// Columns of the series, in the order of the channels.
    pub channels: Vec<String>,
    /// Microseconds from one step to the next.
    pub step: i64,
    /// What the series were standardised by.
    pub scaler: Scaler,
    /// Steps that the model sees.
    pub lookback: i64,
    /// Steps that it forecasts.
    pub horizon: i64,
}

/// Errors over all windows, steps and channels, on the standardised scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Errors {
    /// Mean squared error.
    pub mse: f64,
    /// Mean absolute error.
    pub mae: f64,
    /// Windows.
    pub windows: i64,
}

impl Errors {
    /// As metrics with names.
    pub fn scores(&self) -> Vec<(Metric, f64)> {
        vec![(Metric::Mse, self.mse), (Metric::Mae, self.mae)]
    }
}

/// What a finished fit found.
#[derive(Debug)]
pub struct Outcome {
    /// Trainable values of the model.
    pub parameters: u64,
    /// Epoch of the best validation score, counted from 0.
    pub best_epoch: u64,
    /// Epochs trained.
    pub epochs: u64,
    /// Errors on the validation windows, of the best epoch.
    pub valid: Errors,
    /// Errors on the test windows, of the best epoch.
    pub test: Errors,
    /// Forecasts of all test windows, `[windows, horizon, channels]` on the standardised scale.
    pub predictions: Tensor,
    /// Their targets.
    pub targets: Tensor,
    /// Errors on the test windows of forecasts that need no training: the ridge in closed form, and the last season again.
    pub baselines: Vec<(&'static str, Errors)>,
    /// Seconds of training and evaluation, with the epochs before a resume.
    pub seconds: f64,
    /// Largest resident memory of this process, MB, where the system tells.
    pub peak_mb: Option<f64>,
}

/// Weight of the squared map in the ridge that stands beside a fit.
const RIDGE_PENALTY: f64 = 1000.0;

/// A model after its training, before it has seen a test window.
#[derive(Debug)]
pub struct Trained {
    /// With the weights of the best epoch.
    pub model: Box<dyn Forecaster>,
    /// Its trainable values.
    pub parameters: u64,
    /// Epoch of the best validation score, counted from 0.
    pub best_epoch: u64,
    /// Epochs trained.
    pub epochs: u64,
    /// Errors on the validation windows, of the best epoch.
    pub valid: Errors,
    /// Seconds of training, with the epochs before a resume.
    pub seconds: f64,
    /// Those of the epochs before a resume.
    pub seconds_before: f64,
}

/// Trains on `prepared` in the run folder and evaluates the best epoch; see [`train`].
///
/// # Errors
/// Those of [`train`].
pub fn fit(
    prepared: &Prepared,
    settings: &FitSettings,
    options: &FitOptions,
    observe: &mut dyn FnMut(&Event),
) -> Result<Outcome> {
    let start = Instant::now();
    let trained = train(prepared, settings, options, observe)?;
    let batch = settings.train.eval_batch_size;
    let (predictions, targets) = predict(&*trained.model, &prepared.test, batch)?;
    Ok(Outcome {
        parameters: trained.parameters,
        best_epoch: trained.best_epoch,
        epochs: trained.epochs,
        valid: trained.valid,
        test: errors(
            predictions
                .split(batch, 0)
                .into_iter()
                .zip(targets.split(batch, 0))
                .map(Ok),
        )?,
        baselines: baselines(prepared, &settings.data, batch)?,
        predictions,
        targets,
        seconds: trained.seconds_before + start.elapsed().as_secs_f64(),
        peak_mb: peak_rss_mb(),
    })
}

/// Trains on `prepared` in the run folder, without a look at the test windows.
///
/// The same seed and threads give the same bits on a CPU, however often the run was killed and resumed.
/// # Errors
/// [`Error::Config`] for settings that do not fit; [`Error::Diverged`] when the loss is no longer finite, with the last batch saved beside the
/// checkpoints; [`Error::Interrupted`] after Ctrl-C; [`Error::Io`] and [`Error::Corrupt`] of the run folder.
pub fn train(
    prepared: &Prepared,
    settings: &FitSettings,
    options: &FitOptions,
    observe: &mut dyn FnMut(&Event),
) -> Result<Trained> {
    let start = Instant::now();
    let (data, train) = (&settings.data, &settings.train);
    train.validate()?;
    let config = settings.model.resolve(
        data.lookback,
        data.horizon,
        prepared.panel.names.len() as i64,
    )?;
    let vs = VarStore::new(options.device);
    let model = seeded(step_seed(options.seed, u64::MAX), || {
        build(&settings.model.preset, &config, &vs.root())
    })?;
    let pipeline = Pipeline {
        preset: settings.model.preset.clone(),
        config,
        time: data.time.clone(),
        channels: prepared.panel.names.clone(),
        step: prepared.panel.step,
        scaler: prepared.scaler.clone(),
        lookback: data.lookback,
        horizon: data.horizon,
    };
    let task = WideTask {
        model: &*model,
        prepared,
        train,
        seed: options.seed,
    };
    let found = training(train, options, start, 0.0).run(
        &task,
        &vs,
        settings,
        json!(pipeline).to_string(),
        observe,
    )?;
    let valid = evaluate(&*model, &prepared.valid, train.eval_batch_size)?;
    Ok(Trained {
        model,
        parameters: found.parameters,
        best_epoch: found.best_epoch,
        epochs: found.epochs,
        valid,
        seconds: found.seconds_before + start.elapsed().as_secs_f64(),
        seconds_before: found.seconds_before,
    })
}

/// All channels of the windows of one wide table.
struct WideTask<'a> {
    model: &'a dyn Forecaster,
    prepared: &'a Prepared,
    train: &'a TrainSettings,
    seed: u64,
}

impl Task for WideTask<'_> {
    /// Past and future.
    type Batch = (Tensor, Tensor);

    fn steps(&self) -> u64 {
        (self.prepared.train.len() as u64).div_ceil(self.train.batch_size as u64)
    }

    fn epoch(&self, epoch: u64, skip: u64) -> Result<impl Iterator<Item = Result<Self::Batch>>> {
        let windows = &self.prepared.train;
        let order = permutations(windows.len() as usize, Order::Shared, self.seed, epoch);
        Ok(of_windows(order, self.train.batch_size, skip, |numbers| {
            windows.batch(numbers)
        }))
    }

    fn loss(&self, (past, future): &Self::Batch, _step: u64, _piece: u64) -> Result<Tensor> {
        Ok(self
            .train
            .loss
            .of(&self.model.forecast(past, true)?, future))
    }

    fn tensors((past, future): Self::Batch) -> Tensors {
        Tensors::from([("past".to_owned(), past), ("future".to_owned(), future)])
    }

    fn judge(&self, _steps: u64) -> Result<(f64, Vec<(&'static str, f64)>)> {
        let Errors { mse, mae, .. } =
            evaluate(self.model, &self.prepared.valid, self.train.eval_batch_size)?;
        let score = if self.train.loss == Loss::Mae {
            mae
        } else {
            mse
        };
        Ok((score, vec![("mse", mse), ("mae", mae)]))
    }
}

impl Loss {
    /// The mean over all values.
    pub(crate) fn of(self, ys: &Tensor, targets: &Tensor) -> Tensor {
        match self {
            Self::Mse => ys.mse_loss(targets, Reduction::Mean),
            Self::Mae => ys.l1_loss(targets, Reduction::Mean),
        }
    }
}

/// Forecasts and targets of all windows, `[windows, horizon, channels]`, in main memory.
///
/// # Errors
/// [`Error::Shape`] for windows of another size than the model's.
pub fn predict(model: &dyn Forecaster, windows: &Windows, batch: i64) -> Result<(Tensor, Tensor)> {
    let _no_grad = tch::no_grad_guard();
    let mut ys = Vec::new();
    let mut targets = Vec::new();
    for one in windows.batches(batch) {
        let (past, future) = one?;
        ys.push(model.forecast(&past, false)?.to_device(tch::Device::Cpu));
        targets.push(future.to_device(tch::Device::Cpu));
    }
    Ok((Tensor::cat(&ys, 0), Tensor::cat(&targets, 0)))
}

/// Errors of `model` over all windows, without keeping its forecasts.
///
/// # Errors
/// [`Error::Shape`] for windows of another size than the model's.
pub fn evaluate(model: &dyn Forecaster, windows: &Windows, batch: i64) -> Result<Errors> {
    let _no_grad = tch::no_grad_guard();
    let pairs = windows.batches(batch).map(|one| {
        let (past, future) = one?;
        Ok((model.forecast(&past, false)?, future))
    });
    errors(pairs)
}

/// Errors over pairs of forecasts and targets, summed in f64.
fn errors(pairs: impl Iterator<Item = Result<(Tensor, Tensor)>>) -> Result<Errors> {
    let (mut squared, mut absolute, mut count, mut windows) = (0.0, 0.0, 0, 0);
    for pair in pairs {
        let (ys, targets) = pair?;
        let difference = ys.to_kind(Kind::Double) - targets.to_kind(Kind::Double);
        squared += difference.square().sum(Kind::Double).double_value(&[]);
        absolute += difference.abs().sum(Kind::Double).double_value(&[]);
        count += difference.numel();
        windows += difference.size()[0];
    }
    if count == 0 {
        return Err(Error::config("windows", "there is none to evaluate"));
    }
    Ok(Errors {
        mse: squared / count as f64,
        mae: absolute / count as f64,
        windows,
    })
}

fn baselines(
    prepared: &Prepared,
    data: &DataSettings,
    batch: i64,
) -> Result<Vec<(&'static str, Errors)>> {
    let _no_grad = tch::no_grad_guard();
    let ridge = Ridge::fit(prepared.train.batches(batch), RIDGE_PENALTY)?;
    let test = |forecast: &dyn Fn(&Tensor) -> Result<Tensor>| {
        errors(prepared.test.batches(batch).map(|one| {
            let (past, future) = one?;
            Ok((forecast(&past)?, future))
        }))
    };
    Ok(vec![
        ("ridge", test(&|past| ridge.forward(past))?),
        (
            "naive",
            test(&|past| seasonal_naive(past, data.season, data.horizon))?,
        ),
    ])
}
