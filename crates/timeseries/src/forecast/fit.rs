//! From a table to a trained forecaster: read, divide in time, train, evaluate.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

use densely_core::{Error, Result, Tensors, seeded};
use densely_data::dataset::{Order, permutations};
use densely_data::table::Table;
pub use densely_train::event::Event;
use densely_train::machine::{peak_rss_mb, step_seed};
pub use densely_train::run::FitOptions;
use densely_train::training::Task;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::encode::{Encoders, moments};
use super::fitted::{Pipeline, Scaled, evaluate};
use super::grid::Step;
use super::network::{Network, pinball};
use super::panel::{Panel, plural};
use super::score::Scores;
use super::settings::{AUTO, ForecastSettings, Shape, choose, config};
use super::stamps::DAY;
use super::windows::{Batch, Scale, Store, Windows};
use crate::fit::Loss;
use crate::linear::seasonal_naive;
use crate::training::{of_windows, training};

/// A table made ready for a fit.
#[derive(Debug)]
pub struct Prepared {
    /// The series.
    pub panel: Panel,
    /// The settings with everything that was chosen.
    pub settings: ForecastSettings,
    /// What is saved with the weights.
    pub pipeline: Pipeline,
    /// The series on the device.
    pub store: Store,
    /// Windows within the training steps.
    pub train: Windows,
    /// Windows whose futures are validation steps.
    pub valid: Windows,
    /// Windows whose futures are test steps.
    pub test: Windows,
    /// What was found, chosen and done, one sentence each.
    pub notes: Vec<String>,
}

/// Values that a validation or a test forecasts; with more windows than that every so many are taken.
pub(super) const EVALUATED: i64 = 20_000_000;
/// The longest lookback that is chosen.
const LOOKBACK: i64 = 512;

impl Prepared {
    /// Reads and divides `table`, and chooses what the settings leave open.
    ///
    /// # Errors
    /// Those of [`Panel::new`]; [`Error::Config`] with advice when lookback and horizon do not fit into the series.
    pub fn new(table: &Table, settings: &ForecastSettings, device: Device) -> Result<Self> {
        settings.validate()?;
        let panel = Panel::new(table, &settings.data)?;
        let mut settings = ForecastSettings {
            data: panel.settings.clone(),
            ..settings.clone()
        };
        if let Some(distribution) = settings.distribution {
            distribution.check(&panel, table)?;
        }
        let mut notes = panel.notes.clone();
        let horizon = settings.horizon;
        let span = panel.span();
        let parts = divide(&span, &settings)?;
        let lookback = choose_lookback(&panel, &parts, &mut settings, &mut notes)?;
        let sizes = [lookback, horizon];
        let train = Windows::new(&panel, &parts[0], sizes, true);
        let most = EVALUATED / (horizon * panel.channels() as i64).max(1);
        let most = most.min(settings.epoch_windows);
        let evaluated = |part| Windows::new(&panel, part, sizes, false).thinned(most);
        let (valid, test) = (evaluated(&parts[1]), evaluated(&parts[2]));
        for (part, windows) in [("train", &train), ("valid", &valid), ("test", &test)] {
            if windows.is_empty() {
                return Err(too_short(&panel, &parts, sizes, part));
            }
            if windows.stride() > 1 {
                notes.push(format!(
                    "{part}: one window in {} is evaluated",
                    windows.stride()
                ));
            }
        }
        let left = panel.series.len() - train.series();
        if left > 0 {
            notes.push(format!(
                "{left} of {} series are shorter than lookback and horizon ({lookback} + {horizon} steps) before the validation: not trained on; they are forecast by the same model, with their first value repeated where the history is too short",
                panel.series.len()
            ));
        }
        if train.len() > settings.epoch_windows {
            notes.push(format!(
                "an epoch draws {} of the {} training windows (`epoch_windows`)",
                settings.epoch_windows,
                train.len()
            ));
        }
        let rows: Vec<Range<usize>> = panel
            .series
            .iter()
            .map(|series| {
                let end = (parts[0].end - series.first).clamp(0, series.observed as i64) as usize;
                series.start..series.start + end
            })
            .collect();
        let encoders = Encoders::fit(&panel, &rows)?;
        let scales = scales(&panel, &rows, lookback, &mut notes);
        let shape = Shape {
            lookback,
            horizon,
            channels: panel.channels() as i64,
            outputs: if settings.distribution.is_some() {
                1
            } else {
                settings.quantiles.len().max(1) as i64
            },
            distribution: settings.distribution,
            series: panel.series.len(),
            windows: train.len(),
            encoders: &encoders,
        };
        if settings.model.preset == AUTO {
            let (preset, why) = choose(&shape)?;
            notes.push(format!("model: {preset}, {why} (`--model` takes another)"));
            preset.clone_into(&mut settings.model.preset);
        }
        let used = if settings.model.preset == "tsmixer-ext" {
            encoders.clone()
        } else {
            Encoders::default()
        };
        if used.is_empty() && !encoders.is_empty() {
            notes.push(format!(
                "model {} does not read covariates: they are not used; tsmixer-ext does",
                settings.model.preset
            ));
        }
        let shape = Shape {
            encoders: &used,
            ..shape
        };
        let config = config(&settings.model, &shape)?;
        let store = Store::new(&panel, &used, &scales, sizes, device)?;
        let season = settings.season.unwrap_or(1);
        let pipeline = Pipeline {
            preset: settings.model.preset.clone(),
            config,
            data: settings.data.clone(),
            step: panel.step,
            clock: panel.clock.clone(),
            seen_until: parts[2].start,
            lookback,
            horizon,
            season,
            quantiles: settings.quantiles.clone(),
            distribution: settings.distribution,
            encoders: used,
            series: panel
                .series
                .iter()
                .zip(scales)
                .map(|(series, Scale { mean, std })| Scaled {
                    name: series.name.clone(),
                    mean,
                    std,
                })
                .collect(),
        };
        Ok(Self {
            panel,
            settings,
            pipeline,
            store,
            train,
            valid,
            test,
            notes,
        })
    }

    fn evaluate(
        &self,
        network: &Network,
        windows: &Windows,
        each: &mut dyn FnMut(&Batch, &Tensor) -> Result<()>,
    ) -> Result<Scores> {
        let batch = self.settings.train.eval_batch_size;
        evaluate(network, &self.pipeline, &self.store, windows, batch, each)
    }

    /// Errors on the test windows; `each` sees every batch with its forecasts `[batch, horizon, outputs, channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for a network of other sizes; those of `each`.
    pub fn test(
        &self,
        network: &Network,
        each: &mut dyn FnMut(&Batch, &Tensor) -> Result<()>,
    ) -> Result<Scores> {
        self.evaluate(network, &self.test, each)
    }

    /// The newest test window of a series with its forecast, in the units of the table; `None` where it has none.
    ///
    /// # Errors
    /// [`Error::Shape`] for a network of other sizes.
    pub fn sample(&self, network: &Network, series: usize) -> Result<Option<Sample>> {
        let Some(place) = self.test.last_of(series) else {
            return Ok(None);
        };
        let _no_grad = tch::no_grad_guard();
        let batch = self.store.batch(&[place]);
        let ys = network.forecast(&batch, false)?;
        let naive = seasonal_naive(&batch.past, self.pipeline.season, self.pipeline.horizon)?;
        let lines = |xs: &Tensor| -> Result<Vec<Vec<f64>>> {
            let xs = (xs.to_kind(Kind::Double) * &batch.std + &batch.mean).to_device(Device::Cpu);
            let of = |channel| {
                Ok(Vec::try_from(
                    xs.select(0, 0).select(1, channel).contiguous(),
                )?)
            };
            (0..xs.size()[2]).map(of).collect()
        };
        let forecast = |output| lines(&ys.select(2, output));
        Ok(Some(Sample {
            from: self
                .panel
                .time(series, place.row - self.panel.series[series].start),
            past: lines(&batch.past)?,
            came: lines(&batch.target)?,
            naive: lines(&naive)?,
            forecasts: (0..self.pipeline.outputs())
                .map(forecast)
                .collect::<Result<_>>()?,
        }))
    }
}

/// A window and its forecast in the units of the table, a line per target.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The time of the first step that is forecast.
    pub from: String,
    /// What the model saw.
    pub past: Vec<Vec<f64>>,
    /// What came.
    pub came: Vec<Vec<f64>>,
    /// The last season again.
    pub naive: Vec<Vec<f64>>,
    /// For each quantile, or once.
    pub forecasts: Vec<Vec<Vec<f64>>>,
}

/// Steps of the grid to train, validate and test on.
fn divide(span: &Range<i64>, settings: &ForecastSettings) -> Result<[Range<i64>; 3]> {
    let steps = span.end - span.start;
    let of = |share: f64| ((steps as f64 * share) as i64).max(settings.horizon);
    let (valid, test) = (of(settings.valid), of(settings.test));
    let train = steps - valid - test;
    if train <= settings.horizon {
        let reason = format!(
            "{} steps cannot be divided into parts to train, validate and test on that hold a horizon each; forecast at most {} steps, or bring more history",
            steps,
            (steps / 5).max(1)
        );
        return Err(Error::config("horizon", reason));
    }
    let (a, b) = (span.start + train, span.start + train + valid);
    Ok([span.start..a, a..b, b..span.end])
}

/// The longest run of training steps that any series has.
fn longest(panel: &Panel, part: &Range<i64>) -> i64 {
    let of = |series: &super::panel::Series| {
        let end = (part.end - series.first).max(0);
        series
            .pieces
            .iter()
            .map(|piece| (piece.end as i64).min(end) - piece.start as i64)
            .max()
            .unwrap_or(0)
    };
    panel.series.iter().map(of).max().unwrap_or(0)
}

fn choose_lookback(
    panel: &Panel,
    parts: &[Range<i64>; 3],
    settings: &mut ForecastSettings,
    notes: &mut Vec<String>,
) -> Result<i64> {
    let horizon = settings.horizon;
    let room = longest(panel, &parts[0]) - horizon;
    let usual = panel.step.season();
    let season = settings.season.unwrap_or(usual);
    let lookback = if let Some(lookback) = settings.lookback {
        if lookback > room {
            return Err(too_short(panel, parts, [lookback, horizon], "train"));
        }
        lookback
    } else {
        // Days have weeks around them, weeks months, months years.
        let seasons = match panel.step {
            step if !step.is_daily() => 7,
            Step::Months { .. } => 2,
            Step::Fixed { micros } if micros > DAY => 2,
            _ => 4,
        };
        let wanted = (seasons * season).max((3 * horizon + season - 1) / season * season);
        let wanted = wanted.min(LOOKBACK);
        let chosen = wanted.min(room / 2).max(1);
        if room < 1 {
            return Err(too_short(panel, parts, [1, horizon], "train"));
        }
        notes.push(format!(
            "lookback: {chosen} steps, {} (`--lookback` takes another)",
            if chosen == wanted {
                "whole seasons around three horizons"
            } else {
                "as much as the series have room for"
            }
        ));
        chosen
    };
    settings.lookback = Some(lookback);
    let naive = if season <= lookback { season } else { 1 };
    if settings.season.is_some() && naive != season {
        let reason = format!("must be at most the lookback, {lookback}, got {season}");
        return Err(Error::config("season", reason));
    }
    notes.push(if naive == 1 {
        "naive forecast beside: the last value again".to_owned()
    } else {
        format!("naive forecast beside: the last season of {naive} steps again")
    });
    settings.season = Some(naive);
    Ok(lookback)
}

fn too_short(
    panel: &Panel,
    parts: &[Range<i64>; 3],
    [lookback, horizon]: [i64; 2],
    part: &str,
) -> Error {
    let steps = longest(panel, &parts[0]);
    let most = steps - horizon;
    let advice = if most >= 1 {
        format!(
            "take `--lookback` up to {most}, a shorter `--horizon`, or smaller shares `--valid` and `--test`"
        )
    } else {
        format!(
            "forecast fewer steps than {horizon}, take smaller shares `--valid` and `--test`, or bring more history"
        )
    };
    let reason = format!(
        "no series holds a window of {lookback} + {horizon} steps (lookback and horizon) for `{part}`: the longest run before the validation has {steps}; {advice}"
    );
    Error::config("lookback", reason)
}

/// Level and spread of each series on its training rows; of a series without such rows on its first `lookback` steps.
fn scales(
    panel: &Panel,
    rows: &[Range<usize>],
    lookback: i64,
    notes: &mut Vec<String>,
) -> Vec<Scale> {
    let width = panel.channels();
    let mut constant: BTreeMap<String, usize> = BTreeMap::new();
    let scales = panel
        .series
        .iter()
        .zip(rows)
        .map(|(series, rows)| {
            let known = rows
                .clone()
                .filter(|row| !panel.values[row * width].is_nan())
                .take(2)
                .count();
            let first = series.pieces.first().map_or(0, |piece| piece.start);
            let early = series.start + first
                ..series.start + (first + lookback as usize).min(series.observed).max(first);
            let rows = if known < 2 { early } else { rows.clone() };
            let scale = scale_of(panel, rows.clone());
            for channel in 0..width {
                let value = |row: usize| panel.values[row * width + channel];
                let mut there = rows.clone().map(value).filter(|value| !value.is_nan());
                if let Some(first) = there.next()
                    && there.all(|value| value.to_bits() == first.to_bits())
                {
                    let name = if series.name.is_empty() {
                        panel.settings.target[channel].clone()
                    } else {
                        series.title()
                    };
                    *constant.entry(name).or_default() += 1;
                }
            }
            scale
        })
        .collect();
    if !constant.is_empty() {
        let names: Vec<String> = constant.into_keys().collect();
        notes.push(format!(
            "{} {} constant while training: {}; not divided by a spread",
            names.len(),
            if names.len() == 1 {
                "series is".to_owned()
            } else {
                format!("{} are", plural(2, "serie"))
            },
            super::columns::quoted(&names)
        ));
    }
    scales
}

/// Level and spread of each channel over rows of the storage.
pub(super) fn scale_of(panel: &Panel, rows: Range<usize>) -> Scale {
    let width = panel.channels();
    let of = |channel: usize| moments(rows.clone().map(|row| panel.values[row * width + channel]));
    let (mean, std) = (0..width).map(of).unzip();
    Scale { mean, std }
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
    pub valid: Scores,
    /// The network with the weights of the best epoch.
    pub network: Network,
    /// Whether the time was over before training had ended.
    pub out_of_time: bool,
    /// Seconds of training and evaluation, with the epochs before a resume.
    pub seconds: f64,
    /// Largest resident memory of this process, MB, where the system tells.
    pub peak_mb: Option<f64>,
}

/// Trains on `prepared` in the run folder and evaluates the best epoch on the validation windows; see [`Prepared::test`] for
/// the others.
///
/// The same seed and threads give the same bits on a CPU, however often the run was killed and resumed.
/// # Errors
/// [`Error::Config`] for settings that do not fit; [`Error::Diverged`] when the loss is no longer finite, with the last batch saved beside the
/// checkpoints; [`Error::Interrupted`] after Ctrl-C; [`Error::Io`] and [`Error::Corrupt`] of the run folder.
pub fn fit(
    prepared: &Prepared,
    options: &FitOptions,
    observe: &mut dyn FnMut(&Event),
) -> Result<Outcome> {
    let start = Instant::now();
    let Prepared {
        settings,
        pipeline,
        store,
        ..
    } = prepared;
    let vs = VarStore::new(store.device());
    let network = seeded(step_seed(options.seed, u64::MAX), || pipeline.network(&vs))?;
    let task = PanelTask {
        network: &network,
        prepared,
        seed: options.seed,
    };
    let training = training(&settings.train, options, start, settings.time_budget);
    let found = training.run(&task, &vs, settings, json!(pipeline).to_string(), observe)?;
    Ok(Outcome {
        parameters: found.parameters,
        best_epoch: found.best_epoch,
        epochs: found.epochs,
        valid: prepared.evaluate(&network, &prepared.valid, &mut |_, _| Ok(()))?,
        network,
        out_of_time: found.out_of_time,
        seconds: found.seconds_before + start.elapsed().as_secs_f64(),
        peak_mb: peak_rss_mb(),
    })
}

/// The windows of many series.
struct PanelTask<'a> {
    network: &'a Network,
    prepared: &'a Prepared,
    seed: u64,
}

impl Task for PanelTask<'_> {
    type Batch = Batch;

    fn steps(&self) -> u64 {
        let Prepared {
            train, settings, ..
        } = self.prepared;
        let windows = train.len().min(settings.epoch_windows) as u64;
        windows.div_ceil(settings.train.batch_size as u64)
    }

    fn epoch(&self, epoch: u64, skip: u64) -> Result<impl Iterator<Item = Result<Batch>>> {
        let Prepared {
            train,
            settings,
            store,
            ..
        } = self.prepared;
        let order = order(train.len(), settings.epoch_windows, self.seed, epoch);
        let batch = |numbers: &[i64]| Ok(store.batch(&train.places(numbers)));
        Ok(of_windows(order, settings.train.batch_size, skip, batch))
    }

    fn loss(&self, batch: &Batch, _step: u64, _piece: u64) -> Result<Tensor> {
        loss(self.network, batch, &self.prepared.settings)
    }

    fn tensors(batch: Batch) -> Tensors {
        Tensors::from([
            ("past".to_owned(), batch.past),
            ("future".to_owned(), batch.target),
        ])
    }

    fn judge(&self, _steps: u64) -> Result<(f64, Vec<(&'static str, f64)>)> {
        let Prepared {
            valid, settings, ..
        } = self.prepared;
        let found = self
            .prepared
            .evaluate(self.network, valid, &mut |_, _| Ok(()))?;
        let means = found.standardised();
        let mut metrics = vec![("mse", means.mse), ("mae", means.mae)];
        metrics.extend(found.pinball().map(|loss| ("pinball", loss)));
        metrics.extend(found.nll().map(|nll| ("nll", nll)));
        Ok((found.score(settings.train.loss == Loss::Mae), metrics))
    }
}

fn loss(network: &Network, batch: &Batch, settings: &ForecastSettings) -> Result<Tensor> {
    if let Some(law) = network.law(batch, true)? {
        return Ok(law.nll(batch));
    }
    let ys = network.forecast(batch, true)?;
    Ok(if settings.quantiles.is_empty() {
        settings.train.loss.of(&ys.squeeze_dim(2), &batch.target)
    } else {
        pinball(&ys, &batch.target, &settings.quantiles)
    })
}

/// The windows of an epoch: all in a random order, or `most` that are drawn, so that no list grows with the table.
fn order(windows: i64, most: i64, seed: u64, epoch: u64) -> Vec<i64> {
    if windows <= most {
        return permutations(windows as usize, Order::Shared, seed, epoch);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch);
    (0..most).map(|_| rng.random_range(0..windows)).collect()
}
