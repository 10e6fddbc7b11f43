//! `densely forecast fit`: from a table to a run folder with report, plots and forecasts of the test steps.

use std::path::{Path, PathBuf};

use densely_core::{Error, Result, fs};
use densely_data::Table;
use densely_data::write::{Format, Writer};
use densely_timeseries::forecast::{
    self, FitOptions, ForecastSettings, Outcome, Prepared, Scores, forecast_columns,
};
use densely_train::metrics::Metric;
use densely_train::plot::{self, Axes, Band, Series};
use densely_train::report::{self, Report, Score, Section};
use densely_train::run::ResumeFrom;
use serde_json::{Value, json};
use toml::Table as Toml;

use super::{print_scores, say};
use crate::commands::tabular::{ResumeArguments, seconds};
use crate::fitting::{ending, say_if_out_of_time, watched};
use crate::{Common, recipe};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example, wide: densely forecast fit load.csv --horizon 24 --quantiles 0.1,0.5,0.9\n\
                  Example, long: densely forecast fit sales.csv --horizon 28 --series-id shop --target sold --known price,holiday --static region"
)]
pub(crate) struct Fit {
    /// CSV, TSV or Parquet file with a header: one row per time (wide), or per series and time (long).
    table: PathBuf,
    /// Steps to forecast.
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    horizon: i64,
    /// Folder for the run; `runs/<name of the table>` when left out.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Column with the time; found when there is exactly one. Several, as in year,month,day,hour, are put together.
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    time: Vec<String>,
    /// Columns that tell the series apart: the table is long.
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    series_id: Vec<String>,
    /// Columns to forecast; all numbers of a wide table when left out.
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    target: Vec<String>,
    /// Columns that are known up to the present.
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    past: Vec<String>,
    /// Columns whose future is known, such as prices and holidays.
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    known: Vec<String>,
    /// Columns that do not change in a series.
    #[arg(long = "static", value_delimiter = ',', value_name = "COLUMNS")]
    statics: Vec<String>,
    /// Parts of the time that join the known columns: `minute`, `hour`, `weekday`, `day`, `day_of_year`, `month`, `year`.
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    calendar: Vec<String>,
    /// The step, such as 15min, h, d, workday, w, month; found from the times when left out.
    #[arg(long)]
    frequency: Option<String>,
    /// The zone of times without an offset, such as Europe/Berlin.
    #[arg(long)]
    time_zone: Option<String>,
    /// What becomes of rows of one series and time.
    #[arg(long, default_value = "refuse", value_parser = ["refuse", "mean", "first", "last"])]
    duplicates: String,
    /// How steps without a row or value are filled; `split` cuts the series at long gaps.
    #[arg(long, default_value = "interpolate", value_parser = ["refuse", "interpolate", "last", "split"])]
    gaps: String,
    /// Longest gap that is filled, steps.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i64).range(0..=1_000_000))]
    max_gap: i64,
    /// Steps that the model sees; chosen when left out.
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    lookback: Option<i64>,
    /// Steps of a season, for the naive forecast beside; a day, week or year when left out.
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    season: Option<i64>,
    /// Quantiles to forecast, such as 0.1,0.5,0.9; the mean when left out.
    #[arg(long, value_delimiter = ',', value_name = "QUANTILES")]
    quantiles: Vec<f64>,
    /// Forecast a distribution by its likelihood: its mean and the quantiles (0.1, 0.5, 0.9 when left out). For counts `negative_binomial`.
    #[arg(long, value_parser = ["student_t", "normal", "negative_binomial"])]
    distribution: Option<String>,
    /// Model: tsmixer, tsmixer-ext, patchtsmixer-forecast, dlinear, nlinear; chosen by the data when left out.
    #[arg(long, default_value = forecast::AUTO, hide_default_value = true)]
    model: String,
    /// Share of the time for validation.
    #[arg(long, default_value_t = 0.1)]
    valid: f64,
    /// Share of the time for testing, the newest.
    #[arg(long, default_value_t = 0.2)]
    test: f64,
    /// Most epochs.
    #[arg(long)]
    epochs: Option<u64>,
    /// Epochs without a better validation score before training stops.
    #[arg(long)]
    patience: Option<u64>,
    /// Windows per step.
    #[arg(long)]
    batch_size: Option<i64>,
    /// Learning rate.
    #[arg(long)]
    lr: Option<f64>,
    /// End training after this time, such as 90s, 10m or 2h, with the best epoch so far.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    time_budget: Option<f64>,
    /// Change any setting of the run, such as `model.config.dropout=0.5`; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    #[command(flatten)]
    resume: ResumeArguments,
}

pub(super) fn run(arguments: &Fit, common: &Common) -> Result<()> {
    let (settings, said) = arguments.settings()?;
    let device = common.device.open()?;
    let folder = arguments
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(arguments.table.file_stem().unwrap_or_default()));
    let resume = arguments.resume.from()?;
    let mut prepared = Prepared::new(&Table::open(&arguments.table)?, &settings, device)?;
    prepared.notes.splice(0..0, said);
    let job = Job {
        title: None,
        prepared: &prepared,
        table: &arguments.table,
    };
    job.describe(common);
    let fitted = job.run(&folder, common.seed.unwrap_or(0), resume, common)?;
    print(&prepared, &fitted, &folder, common);
    Ok(())
}

/// What is fitted.
pub(crate) struct Job<'a> {
    /// Above the report; model and table when left out.
    pub(crate) title: Option<&'a str>,
    pub(crate) prepared: &'a Prepared,
    pub(crate) table: &'a Path,
}

/// What came of a seed.
pub(crate) struct Fitted {
    pub(crate) outcome: Outcome,
    pub(crate) test: Scores,
    pub(crate) plots: Vec<PathBuf>,
}

impl Job<'_> {
    /// Says what was found and chosen, before training.
    pub(crate) fn describe(&self, common: &Common) {
        let prepared = self.prepared;
        say(&prepared.notes, common);
        if !common.quiet {
            eprintln!(
                "{}; windows of {} + {} steps: {} train, {} valid, {} test",
                shape(prepared),
                prepared.pipeline.lookback,
                prepared.pipeline.horizon,
                prepared.train.len(),
                prepared.valid.len(),
                prepared.test.len(),
            );
        }
    }

    /// Trains one seed in `folder` and writes predictions, plots and report.
    pub(crate) fn run(
        &self,
        folder: &Path,
        seed: u64,
        resume: Option<ResumeFrom>,
        common: &Common,
    ) -> Result<Fitted> {
        let options = FitOptions {
            folder,
            table: self.table,
            seed,
            device: self.prepared.store.device(),
            resume,
        };
        let outcome = watched(&options, common, |observe| {
            forecast::fit(self.prepared, &options, observe)
        })?;
        let test = write_predictions(self.prepared, &outcome, folder)?;
        let plots = plots(self.prepared, &outcome, folder)?;
        let fitted = Fitted {
            outcome,
            test,
            plots,
        };
        write_report(self, &fitted, folder, seed)?;
        Ok(fitted)
    }
}

impl Fit {
    /// The settings, made from the arguments with `--set` applied last, and what to say of them.
    fn settings(&self) -> Result<(ForecastSettings, Vec<String>)> {
        let mut said = Vec::new();
        let mut settings = ForecastSettings::new(self.horizon);
        let data = &mut settings.data;
        match self.time.as_slice() {
            [] => {}
            [whole] => data.time = Some(whole.clone()),
            parts => data.time_parts = parts.to_vec(),
        }
        data.series_id.clone_from(&self.series_id);
        data.target.clone_from(&self.target);
        data.past.clone_from(&self.past);
        data.known.clone_from(&self.known);
        data.statics.clone_from(&self.statics);
        data.frequency.clone_from(&self.frequency);
        data.time_zone.clone_from(&self.time_zone);
        data.duplicates = self.duplicates.parse()?;
        data.gaps = self.gaps.parse()?;
        data.max_gap = self.max_gap;
        settings.lookback = self.lookback;
        settings.season = self.season;
        settings.valid = self.valid;
        settings.test = self.test;
        settings.quantiles.clone_from(&self.quantiles);
        settings.quantiles.sort_by(f64::total_cmp);
        if self.distribution.is_some() {
            if self.quantiles.is_empty() {
                settings.quantiles = vec![0.1, 0.5, 0.9];
                said.push(
                    "quantiles 0.1, 0.5 and 0.9 of the distribution (`--quantiles` takes others)"
                        .to_owned(),
                );
            }
        } else if !self.quantiles.is_empty() && !self.quantiles.contains(&0.5) {
            settings.quantiles.push(0.5);
            settings.quantiles.sort_by(f64::total_cmp);
            said.push("quantile 0.5 joins the others: it is the point forecast".to_owned());
        }
        settings.model.preset.clone_from(&self.model);
        settings.time_budget = self.time_budget.unwrap_or(0.0);
        let train = &mut settings.train;
        train.epochs = self.epochs.unwrap_or(train.epochs);
        train.patience = self.patience.unwrap_or(train.patience);
        train.batch_size = self.batch_size.unwrap_or(train.batch_size);
        let wrong = |text: String| Error::config("settings", text);
        let mut toml = Toml::try_from(&settings).map_err(|e| wrong(e.to_string()))?;
        if !self.calendar.is_empty() {
            recipe::set(&mut toml, &format!("data.calendar={:?}", self.calendar))?;
        }
        if let Some(distribution) = &self.distribution {
            recipe::set(&mut toml, &format!("distribution={distribution:?}"))?;
        }
        if let Some(lr) = self.lr {
            recipe::set(&mut toml, &format!("train.optimizer.lr={lr:?}"))?;
        }
        for change in &self.changes {
            recipe::set(&mut toml, change)?;
        }
        let settings = toml
            .try_into()
            .map_err(|e: toml::de::Error| wrong(recipe::sentence(&e)))?;
        Ok((settings, said))
    }
}

/// What the table is, in words.
fn shape(prepared: &Prepared) -> String {
    let panel = &prepared.panel;
    let targets = &panel.settings.target;
    match (panel.settings.series_id.as_slice(), targets.as_slice()) {
        ([], [one]) => format!("1 series (`{one}`) of {} steps", panel.rows()),
        ([], _) => format!(
            "{} series of {} steps, side by side",
            targets.len(),
            panel.rows()
        ),
        _ => format!(
            "{} series of {} steps in all, {} of each forecast",
            panel.series.len(),
            panel.rows(),
            targets.len()
        ),
    }
}

/// Writes the forecasts of all test windows with what came, and evaluates them.
fn write_predictions(prepared: &Prepared, outcome: &Outcome, folder: &Path) -> Result<Scores> {
    let path = folder.join("predictions.parquet");
    let mut scores = None;
    fs::write_with(&path, |file| {
        let mut writer = Writer::new(file, &path, Format::Parquet)?;
        scores = Some(prepared.test(&outcome.network, &mut |batch, ys| {
            writer.write(&forecast_columns(
                &prepared.pipeline,
                &prepared.panel,
                batch,
                ys,
                true,
            )?)
        })?);
        writer.finish()
    })?;
    scores.ok_or_else(|| Error::config("test", "there is no window"))
}

/// Windows that are drawn.
const DRAWN: usize = 4;

/// The course of training, and the newest test window of some series with the interval between the outermost quantiles.
fn plots(prepared: &Prepared, outcome: &Outcome, folder: &Path) -> Result<Vec<PathBuf>> {
    let mut plots = plot::run_plots(folder)?;
    let (panel, pipeline) = (&prepared.panel, &prepared.pipeline);
    let mut drawn = 0;
    for (number, series) in panel.series.iter().enumerate() {
        let Some(sample) = prepared.sample(&outcome.network, number)? else {
            continue;
        };
        for (channel, target) in pipeline.data.target.iter().enumerate() {
            if drawn == DRAWN {
                return Ok(plots);
            }
            drawn += 1;
            let line = |name: &str, values: &[f64], from: i64| Series {
                name: name.to_owned(),
                points: values
                    .iter()
                    .enumerate()
                    .map(|(i, y)| ((from + i as i64) as f64, *y))
                    .collect(),
            };
            let past = &sample.past[channel];
            let shown = past.len().min(2 * pipeline.horizon as usize);
            let middle = pipeline.point() as usize;
            let lines = [
                line("past", &past[past.len() - shown..], 1 - shown as i64),
                line("what came", &sample.came[channel], 1),
                line("naive", &sample.naive[channel], 1),
                line("forecast", &sample.forecasts[middle][channel], 1),
            ];
            let bands: Vec<Band> = match pipeline.quantiles.as_slice() {
                [low, .., high] => {
                    let ends = |at: usize| &sample.forecasts[at][channel];
                    let pairs = ends(0).iter().zip(ends(pipeline.quantiles.len() - 1));
                    vec![Band {
                        name: format!("{low} to {high}"),
                        points: pairs
                            .enumerate()
                            .map(|(i, (low, high))| ((i + 1) as f64, *low, *high))
                            .collect(),
                    }]
                }
                _ => Vec::new(),
            };
            let file = if drawn == 1 {
                "forecast.svg".to_owned()
            } else {
                format!("forecast-{drawn}.svg")
            };
            let path = folder.join("plots").join(file);
            let title = if series.name.is_empty() {
                target.clone()
            } else {
                format!("{}: {target}", series.title())
            };
            let x = format!("step; 1 is {}", sample.from);
            plot::line_over(&path, &Axes::new(title, x, target.clone()), &lines, &bands)?;
            plots.push(path);
        }
    }
    Ok(plots)
}

fn write_report(job: &Job, fitted: &Fitted, folder: &Path, seed: u64) -> Result<()> {
    let (prepared, outcome, test) = (job.prepared, &fitted.outcome, &fitted.test);
    let pipeline = &prepared.pipeline;
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let mut facts = vec![
        fact("table", job.table.display().to_string()),
        fact("series", shape(prepared)),
        fact("step", pipeline.step.text()),
        fact("model", pipeline.preset.clone()),
        fact("parameters", outcome.parameters.to_string()),
        fact(
            "lookback and horizon",
            format!("{} + {} steps", pipeline.lookback, pipeline.horizon),
        ),
        fact(
            "windows",
            format!(
                "{} train, {} valid, {} test",
                prepared.train.len(),
                prepared.valid.len(),
                prepared.test.len()
            ),
        ),
        fact("seed", seed.to_string()),
        fact(
            "seconds of the last process",
            format!("{:.1}", outcome.seconds),
        ),
    ];
    if let (Some(distribution), Some(nll)) = (pipeline.distribution, test.nll()) {
        let text = format!(
            "{}: negative log-likelihood {nll:.4} nats per value on the test windows",
            distribution.name()
        );
        facts.push(fact("distribution", text));
    }
    if let Some(peak) = outcome.peak_mb {
        facts.push(fact(
            "peak memory of the last process",
            format!("{peak:.0} MB"),
        ));
    }
    let part = |part: &str, scores: &Scores| {
        let means = scores.standardised();
        [(Metric::Mse, means.mse), (Metric::Mae, means.mae)].map(|(metric, value)| Score {
            part: part.to_owned(),
            metric,
            value,
        })
    };
    let rows = test.by_target().into_iter().map(|(name, means)| {
        let numbers = [
            means.mae,
            means.mse.sqrt(),
            means.naive_mae,
            means.naive_mse.sqrt(),
            means.mae / means.naive_mae,
        ];
        std::iter::once(name)
            .chain(numbers.map(|number| format!("{number:.6}")))
            .collect()
    });
    let mut sections = vec![Section {
        title: "Test errors in the units of the table".to_owned(),
        header: [
            "target",
            "mae",
            "rmse",
            "naive mae",
            "naive rmse",
            "mae / naive mae",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows: rows.collect(),
        text: format!(
            "Naive: {} again.",
            if pipeline.season == 1 {
                "the last value".to_owned()
            } else {
                format!("the last {} steps", pipeline.season)
            }
        ),
    }];
    if let Some(pinball) = test.pinball() {
        sections.push(Section {
            title: "Quantiles on the test windows".to_owned(),
            header: ["quantile", "share of values at or below it"].map(str::to_owned).to_vec(),
            rows: test.coverage().iter().map(|(q, share)| vec![q.to_string(), format!("{share:.4}")]).collect(),
            text: format!("A good quantile has its own share below it. Pinball loss on the standardised scale: {pinball:.5}."),
        });
    }
    let mut notes = prepared.notes.clone();
    notes.push("Results above are means over all windows, steps and series, on the scale on which the training steps of each series have mean 0 and standard deviation 1.".to_owned());
    let report = Report {
        title: job.title.map_or_else(
            || format!("{} on {}", pipeline.preset, job.table.display()),
            str::to_owned,
        ),
        facts,
        scores: [part("validation", &outcome.valid), part("test", test)].concat(),
        sections,
        notes,
    };
    report::write(folder, &report).map(|_| ())
}

fn print(prepared: &Prepared, fitted: &Fitted, folder: &Path, common: &Common) {
    let Fitted {
        outcome,
        test,
        plots,
    } = fitted;
    if common.json {
        let summary: Value = json!({
            "run": folder,
            "model": prepared.pipeline.preset,
            "params": outcome.parameters,
            "lookback": prepared.pipeline.lookback,
            "horizon": prepared.pipeline.horizon,
            "best_epoch": outcome.best_epoch,
            "epochs": outcome.epochs,
            "valid": outcome.valid.json(),
            "test": test.json(),
            "seconds": outcome.seconds,
            "peak_mb": outcome.peak_mb,
            "out_of_time": outcome.out_of_time,
            "plots": plots,
            "notes": prepared.notes,
        });
        println!("{summary}");
        return;
    }
    say_if_out_of_time(outcome.out_of_time);
    println!("test, {} windows:", test.windows);
    print_scores(test);
    ending(
        (outcome.best_epoch, outcome.epochs),
        (outcome.seconds, outcome.peak_mb),
        folder,
    );
}
