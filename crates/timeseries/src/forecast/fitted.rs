//! A trained forecaster from its run folder: what comes next, errors on a table, errors from many origins.

use std::collections::HashMap;
use std::path::Path;

use densely_core::{Error, Result, check, seeded};
use densely_data::Output;
use densely_data::table::Table;
use densely_train::run::Kept;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::columns::TableSettings;
use super::encode::Encoders;
use super::fit::{EVALUATED, scale_of};
use super::future::extended;
use super::grid::Step;
use super::network::Network;
use super::panel::{Panel, Series};
use super::score::{Means, Scores};
use super::stamps::Clock;
use super::windows::{Batch, Place, Scale, Store, Windows};
use crate::distributions::Distribution;

/// What prediction needs beside the weights; saved in each checkpoint as `preprocess.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Name of the preset.
    pub preset: String,
    /// Its whole config.
    pub config: Value,
    /// How tables are read; all columns are named.
    pub data: TableSettings,
    /// From one time to the next.
    pub step: Step,
    /// What times are counted in.
    pub clock: Clock,
    /// The grid's number of the first step that the model was neither trained nor chosen on.
    pub seen_until: i64,
    /// Steps that the model sees.
    pub lookback: i64,
    /// Steps that it forecasts.
    pub horizon: i64,
    /// Steps of the naive forecast's season.
    pub season: i64,
    /// Quantiles that it forecasts; none: the mean.
    pub quantiles: Vec<f64>,
    /// The distribution that it forecasts; the quantiles are its, and its mean stands behind them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution: Option<Distribution>,
    /// How covariates become numbers.
    pub encoders: Encoders,
    /// What each series is standardised by.
    pub series: Vec<Scaled>,
}

/// Level and spread of the targets of a series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scaled {
    /// Its values in the columns that tell series apart.
    pub name: Vec<String>,
    /// Means.
    pub mean: Vec<f64>,
    /// Population standard deviations.
    pub std: Vec<f64>,
}

impl Pipeline {
    /// Forecasts per step and channel.
    pub fn outputs(&self) -> i64 {
        let mean = i64::from(self.distribution.is_some());
        (self.quantiles.len() as i64 + mean).max(1)
    }

    /// Which of them is the point forecast: the mean, or the median of quantiles.
    pub fn point(&self) -> i64 {
        let median = |q: &f64| (q - 0.5).abs() < f64::EPSILON;
        let at = match self.distribution {
            Some(_) => Some(self.quantiles.len()),
            None => self.quantiles.iter().position(median),
        };
        at.unwrap_or(0) as i64
    }

    /// The network, its parameters under `vs`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn network(&self, vs: &VarStore) -> Result<Network> {
        Network::build(
            &self.preset,
            &self.config,
            self.distribution,
            &self.quantiles,
            &vs.root(),
        )
    }

    const fn sizes(&self) -> [i64; 2] {
        [self.lookback, self.horizon]
    }

    /// Reads `table` on the run's grid.
    fn panel(&self, table: &Table) -> Result<Panel> {
        let panel = self.same_clock(Panel::like(table, &self.data, self.step)?, table)?;
        if let Some(distribution) = self.distribution {
            distribution.check(&panel, table)?;
        }
        Ok(panel)
    }

    fn same_clock(&self, panel: Panel, table: &Table) -> Result<Panel> {
        if panel.clock == self.clock {
            return Ok(panel);
        }
        let words = |clock: &Clock| match clock {
            Clock::Plain => "have no offsets",
            Clock::Utc | Clock::Zone(_) => "have offsets from universal time",
        };
        let reason = format!(
            "the times {}, but those of the fitted table {}; write them alike",
            words(&panel.clock),
            words(&self.clock)
        );
        Err(Error::column(
            table.path(),
            self.data.time_column()?,
            reason,
        ))
    }

    /// What the series of a panel are standardised by, and how many the run does not know: those by what `rows` gives of their history.
    fn scales(
        &self,
        panel: &Panel,
        rows: impl Fn(&Series) -> std::ops::Range<usize>,
    ) -> (Vec<Scale>, usize) {
        let known: HashMap<&[String], &Scaled> = self
            .series
            .iter()
            .map(|scaled| (scaled.name.as_slice(), scaled))
            .collect();
        let mut cold = 0;
        let scale = |series: &Series| {
            if let Some(scaled) = known.get(series.name.as_slice()) {
                return Scale {
                    mean: scaled.mean.clone(),
                    std: scaled.std.clone(),
                };
            }
            cold += 1;
            scale_of(panel, rows(series))
        };
        let scales = panel.series.iter().map(scale).collect();
        (scales, cold)
    }
}

/// Evaluates windows; `each` sees every batch with its forecasts `[batch, horizon, outputs, channels]`.
pub(super) fn evaluate(
    network: &Network,
    pipeline: &Pipeline,
    store: &Store,
    windows: &Windows,
    batch: i64,
    each: &mut dyn FnMut(&Batch, &Tensor) -> Result<()>,
) -> Result<Scores> {
    let _no_grad = tch::no_grad_guard();
    let mut scores = Scores::new(pipeline);
    for numbers in windows.chunks(batch) {
        let batch = store.batch(&windows.places(&numbers));
        let law = network.law(&batch, false)?;
        let ys = match &law {
            Some(law) => law.outputs(&pipeline.quantiles, &batch),
            None => network.forecast(&batch, false)?,
        };
        let nll = law.map(|law| law.nll(&batch).double_value(&[]));
        scores.add(&batch, &ys, nll)?;
        each(&batch, &ys)?;
    }
    scores.checked("table")
}

/// A trained forecaster.
#[derive(Debug)]
pub struct Fitted {
    /// What turns rows into windows.
    pub pipeline: Pipeline,
    network: Network,
    device: Device,
}

/// Windows that are forecast at once.
const BATCH: i64 = 256;

/// What comes next.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecasts {
    /// The columns that tell series apart, the time, and `<target>_forecast` and `<target>_q<quantile>` of each target; a row per series
    /// and step.
    pub columns: Vec<(String, Output)>,
    /// Series that were forecast.
    pub series: usize,
    /// What was found and done, one sentence each.
    pub notes: Vec<String>,
}

/// Errors from many origins.
#[derive(Debug)]
pub struct Backtest {
    /// For each origin, the oldest first: the time of its first forecast step, and its errors.
    pub origins: Vec<(String, Scores)>,
    /// All of them.
    pub all: Scores,
    /// What was found and done, one sentence each.
    pub notes: Vec<String>,
}

impl Fitted {
    /// Opens the best epoch of the run in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no such folder or it holds no finished epoch; [`Error::Corrupt`] and [`Error::Weights`] for files that
    /// are damaged or do not belong together.
    pub fn open(folder: &Path, device: Device) -> Result<Self> {
        let kept = Kept::<Pipeline>::open(folder, "densely forecast")?;
        let vs = VarStore::new(device);
        // Drawn under a seed, so that no other thread's draws change.
        let network = seeded(0, || kept.pipeline.network(&vs))?;
        kept.load_weights(&vs)?;
        Ok(Self {
            pipeline: kept.pipeline,
            network,
            device,
        })
    }

    /// Forecasts what comes after the last target of each series in `table`.
    ///
    /// The future of known columns stands in rows of `table` behind the last target, or in `future`, a table of its own with the columns
    /// that tell series apart, the time and the known columns.
    /// # Errors
    /// Those of [`Panel::new`]; [`Error::Data`] naming the series, the time and the column of a known value that is missing.
    pub fn predict(&self, table: &Table, future: Option<&Table>) -> Result<Forecasts> {
        let pipeline = &self.pipeline;
        let panel = pipeline.panel(table)?;
        let future = future
            .map(|table| {
                pipeline.same_clock(
                    super::read::read_future(table, &pipeline.data, pipeline.step)?,
                    table,
                )
            })
            .transpose()?;
        let mut notes = panel.notes.clone();
        let panel = extended(panel, pipeline.horizon as usize, future.as_ref(), table)?;
        let (scales, cold) = pipeline.scales(&panel, |series| {
            series.start..series.start + series.observed
        });
        if cold > 0 {
            notes.push(format!(
                "{cold} {} new since the fit: standardised by the history in the table",
                if cold == 1 { "series is" } else { "series are" }
            ));
        }
        let store = Store::new(
            &panel,
            &pipeline.encoders,
            &scales,
            pipeline.sizes(),
            self.device,
        )?;
        let mut places = Vec::new();
        let (mut short, mut empty) = (0, 0);
        for (number, series) in panel.series.iter().enumerate() {
            let Some(piece) = series
                .pieces
                .last()
                .filter(|piece| piece.end == series.observed)
            else {
                empty += 1;
                continue;
            };
            short += usize::from((piece.len() as i64) < pipeline.lookback);
            places.push(Place {
                series: number,
                row: series.start + series.observed,
                floor: series.start + piece.start,
            });
        }
        if short > 0 {
            notes.push(format!(
                "{short} series {} a shorter history than the lookback of {} steps: the first value is repeated before it",
                if short == 1 { "has" } else { "have" },
                pipeline.lookback
            ));
        }
        if empty > 0 {
            notes.push(format!(
                "{empty} series {} no value of all targets: not forecast",
                if empty == 1 { "has" } else { "have" }
            ));
        }
        if places.is_empty() {
            return Err(Error::data(
                table.path(),
                "no series has a value to forecast from",
            ));
        }
        let _no_grad = tch::no_grad_guard();
        let mut all: Option<Vec<(String, Output)>> = None;
        for places in places.chunks(BATCH as usize) {
            let batch = store.batch(places);
            let ys = self.network.forecast(&batch, false)?;
            let columns = forecast_columns(pipeline, &panel, &batch, &ys, false)?;
            match &mut all {
                None => all = Some(columns),
                Some(all) => {
                    for ((_, all), (_, more)) in all.iter_mut().zip(columns) {
                        all.append(more)?;
                    }
                }
            }
        }
        Ok(Forecasts {
            columns: all.unwrap_or_default(),
            series: places.len(),
            notes,
        })
    }

    fn ready(&self, table: &Table) -> Result<(Panel, Store, Vec<String>)> {
        let pipeline = &self.pipeline;
        let panel = pipeline.panel(table)?;
        let mut notes = panel.notes.clone();
        let (scales, cold) = pipeline.scales(&panel, |series| {
            let first = series.pieces.first().map_or(0, |piece| piece.start);
            series.start + first
                ..series.start
                    + (first + pipeline.lookback as usize)
                        .min(series.observed)
                        .max(first)
        });
        if cold > 0 {
            notes.push(format!(
                "{cold} series {} new since the fit: standardised by the first {} steps",
                if cold == 1 { "is" } else { "are" },
                pipeline.lookback
            ));
        }
        let store = Store::new(
            &panel,
            &pipeline.encoders,
            &scales,
            pipeline.sizes(),
            self.device,
        )?;
        Ok((panel, store, notes))
    }

    /// Errors over the windows of `table`, and what was found and done, one sentence each.
    ///
    /// # Errors
    /// Those of [`Panel::new`]; [`Error::Config`] when no window fits into a series.
    pub fn evaluate(&self, table: &Table) -> Result<(Scores, Vec<String>)> {
        let pipeline = &self.pipeline;
        let (panel, store, mut notes) = self.ready(table)?;
        let span = panel.span();
        let most = EVALUATED / (pipeline.horizon * panel.channels() as i64).max(1);
        let windows = Windows::new(&panel, &span, pipeline.sizes(), false).thinned(most);
        if windows.is_empty() {
            return Err(self.no_window(table, &panel));
        }
        if windows.stride() > 1 {
            notes.push(format!("one window in {} is evaluated", windows.stride()));
        }
        if span.start + pipeline.lookback < pipeline.seen_until {
            notes.push(self.flattering(&panel, "some windows"));
        }
        let scores = evaluate(
            &self.network,
            pipeline,
            &store,
            &windows,
            BATCH,
            &mut |_, _| Ok(()),
        )?;
        Ok((scores, notes))
    }

    fn no_window(&self, table: &Table, panel: &Panel) -> Error {
        let longest = panel
            .series
            .iter()
            .flat_map(|series| &series.pieces)
            .map(std::ops::Range::len)
            .max()
            .unwrap_or(0);
        let reason = format!(
            "no series holds a window of {} + {} steps (lookback and horizon); the longest run has {longest}",
            self.pipeline.lookback, self.pipeline.horizon
        );
        Error::data(table.path(), reason)
    }

    fn flattering(&self, panel: &Panel, what: &str) -> String {
        let text = panel.step_text(self.pipeline.seen_until);
        format!(
            "{what} forecast steps before {text}, which the model was trained or chosen on: such errors flatter"
        )
    }

    /// Forecasts from `origins` origins, `stride` steps apart, the last one a horizon before the end of `table`. The model is not trained
    /// anew in between. `each` sees every batch with its forecasts.
    ///
    /// # Errors
    /// Those of [`Panel::new`]; [`Error::Config`] when there are not so many origins.
    pub fn backtest(&self, table: &Table, origins: i64, stride: i64) -> Result<Backtest> {
        check::positive("origins", origins)?;
        check::positive("stride", stride)?;
        let pipeline = &self.pipeline;
        let (panel, store, mut notes) = self.ready(table)?;
        let span = panel.span();
        let last = span.end - pipeline.horizon;
        let of = |origin: i64| {
            Windows::new(
                &panel,
                &(origin..origin + pipeline.horizon),
                pipeline.sizes(),
                false,
            )
        };
        let mut found = Vec::new();
        let mut all = Scores::new(pipeline);
        for number in (0..origins).rev() {
            let origin = stride
                .checked_mul(number)
                .map_or(i64::MIN, |back| last.saturating_sub(back));
            let windows = of(origin);
            if windows.is_empty() {
                if origin > span.start + pipeline.lookback {
                    let reason = format!(
                        "no series has {} + {} steps without a cut around {}",
                        pipeline.lookback,
                        pipeline.horizon,
                        panel.step_text(origin)
                    );
                    return Err(Error::config("origins", reason));
                }
                let room = (last - span.start - pipeline.lookback).div_euclid(stride) + 1;
                if room < 1 {
                    return Err(self.no_window(table, &panel));
                }
                let reason = format!(
                    "the history has room for {room} origins that are {stride} steps apart and look back {} steps, got {origins}; take fewer, or a smaller `--stride`",
                    pipeline.lookback
                );
                return Err(Error::config("origins", reason));
            }
            let scores = evaluate(
                &self.network,
                pipeline,
                &store,
                &windows,
                BATCH,
                &mut |_, _| Ok(()),
            )?;
            all.join(&scores);
            found.push((panel.step_text(origin), scores));
        }
        let early = (0..origins)
            .filter(|number| last - number * stride < pipeline.seen_until)
            .count();
        if early > 0 {
            notes.push(self.flattering(&panel, &format!("{early} of {origins} origins")));
        }
        Ok(Backtest {
            origins: found,
            all,
            notes,
        })
    }
}

impl Backtest {
    /// Errors of each step, over all origins and targets, on the standardised scale.
    pub fn by_step(&self) -> Vec<Means> {
        self.all.by_step()
    }
}

/// Forecasts of a batch as columns, a row per window and step, with what came where `targets`.
///
/// # Errors
/// [`Error::Data`] when two columns would have one name.
pub fn forecast_columns(
    pipeline: &Pipeline,
    panel: &Panel,
    batch: &Batch,
    ys: &Tensor,
    targets: bool,
) -> Result<Vec<(String, Output)>> {
    let horizon = pipeline.horizon as usize;
    let mut columns = Vec::new();
    for (at, name) in pipeline.data.series_id.iter().enumerate() {
        let texts = batch.places.iter().flat_map(|place| {
            std::iter::repeat_n(panel.series[place.series].name[at].clone(), horizon)
        });
        columns.push((name.clone(), Output::Texts(texts.collect())));
    }
    let times = batch.places.iter().flat_map(|place| {
        let series = &panel.series[place.series];
        let first = series.first + (place.row - series.start) as i64;
        (first..first + pipeline.horizon).map(|index| panel.step.time(index, series.phase))
    });
    columns.push((
        pipeline.data.time_column()?.to_owned(),
        panel.times(times.collect()),
    ));
    if targets {
        let steps = batch
            .places
            .iter()
            .flat_map(|_| (1..=horizon).map(|step| step as f64));
        columns.push(("step".to_owned(), Output::Numbers(steps.collect())));
    }
    let raw = |xs: &Tensor| xs.to_kind(Kind::Double) * &batch.std + &batch.mean; // [batch, horizon, channels]
    let column = |xs: &Tensor, channel: usize| -> Result<Output> {
        let xs = xs
            .select(2, channel as i64)
            .flatten(0, 1)
            .contiguous()
            .to_device(Device::Cpu);
        Ok(Output::Numbers(Vec::try_from(xs)?))
    };
    let forecasts: Vec<Tensor> = (0..pipeline.outputs())
        .map(|output| raw(&ys.select(2, output)))
        .collect();
    let came = targets.then(|| raw(&batch.target));
    let middle = pipeline.point() as usize;
    for (channel, name) in pipeline.data.target.iter().enumerate() {
        if let Some(came) = &came {
            columns.push((name.clone(), column(came, channel)?));
        }
        columns.push((
            format!("{name}_forecast"),
            column(&forecasts[middle], channel)?,
        ));
        for (output, q) in pipeline
            .quantiles
            .iter()
            .enumerate()
            .filter(|(output, _)| *output != middle)
        {
            columns.push((format!("{name}_q{q}"), column(&forecasts[output], channel)?));
        }
    }
    let mut names: Vec<&String> = columns.iter().map(|(name, _)| name).collect();
    names.sort();
    if let Some([name, _]) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let reason = format!(
            "two columns of forecasts would be called `{name}`; rename a column of the table"
        );
        return Err(Error::data("", reason));
    }
    Ok(columns)
}
