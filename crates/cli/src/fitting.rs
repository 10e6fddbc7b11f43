//! One fit as a person sees it: what the data is, a progress bar, the report, the files of the run folder.

use std::path::{Path, PathBuf};

use densely_core::Result;
use densely_core::tch::{self, Tensor};
use densely_data::{Output, Role, write_columns};
use densely_tabular::calibration::{Calibration, CalibrationErrors};
use densely_tabular::fit::{Event, FitOptions, Outcome, Prepared, fit};
use densely_tabular::settings::FitSettings;
use densely_tabular::task::Task;
use densely_train::metrics::Metric;
use densely_train::plot::{self, Axes};
use densely_train::progress::Bar;
use densely_train::report::{self, Report, Score, Section};
use densely_train::run::ResumeFrom;
use serde_json::{Map, Value, json};

use crate::Common;

/// What is fitted.
pub(crate) struct Job<'a> {
    pub(crate) title: &'a str,
    pub(crate) prepared: &'a Prepared,
    pub(crate) settings: &'a FitSettings,
    pub(crate) table: &'a Path,
}

/// What came of it.
pub(crate) struct Fitted {
    pub(crate) outcome: Outcome,
    pub(crate) plots: Vec<PathBuf>,
}

/// Says what was understood of the table, so that a wrong inference is seen before training.
pub(crate) fn describe(prepared: &Prepared, common: &Common) {
    for warning in prepared
        .schema
        .warnings()
        .iter()
        .chain(prepared.preprocessor.warnings())
    {
        tracing::warn!("{warning}");
    }
    if common.quiet {
        return;
    }
    print_columns(prepared);
    let classes = prepared.preprocessor.classes();
    let task = if classes.is_empty() {
        "regression".to_owned()
    } else {
        let head = classes
            .iter()
            .take(5)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        let more = if classes.len() > 5 { ", …" } else { "" };
        format!("{} classes ({head}{more})", classes.len())
    };
    eprintln!(
        "target `{}`: {task}; features: {} numerical, {} categorical; rows: {} train, {} valid, {} test",
        prepared.schema.target(),
        prepared.preprocessor.n_num(),
        prepared.preprocessor.cat_cardinalities().len(),
        prepared.train.len(),
        prepared.valid.len(),
        prepared.test.len(),
    );
}

/// Most columns that are listed on a terminal; the report lists all.
const LISTED: usize = 60;

fn print_columns(prepared: &Prepared) {
    let columns: Vec<_> = prepared.schema.explained().collect();
    let width = columns
        .iter()
        .take(LISTED)
        .map(|(name, ..)| name.chars().count())
        .max();
    let width = width.unwrap_or(0).clamp(6, 32);
    for (name, role, reason) in columns.iter().take(LISTED) {
        let role = role_name(*role);
        eprintln!("  {name:<width$}  {role:<11}  {reason}");
    }
    if columns.len() > LISTED {
        eprintln!("  … and {} more, in the report", columns.len() - LISTED);
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Numeric => "numeric",
        Role::Binary => "binary",
        Role::Categorical => "categorical",
        Role::Time => "time",
        Role::Group => "group",
        Role::Target => "target",
        Role::Weight => "weight",
        Role::Ignore => "left out",
    }
}

/// Shows a fit while it runs: what is trained where, and a bar on a terminal.
struct Watch<'a> {
    seed: u64,
    folder: &'a Path,
    quiet: bool,
    bar: Option<Bar>,
    /// Says a score in words.
    words: Option<fn(f64) -> String>,
}

impl<'a> Watch<'a> {
    fn new(seed: u64, folder: &'a Path, common: &Common) -> Self {
        Self {
            seed,
            folder,
            quiet: common.quiet,
            bar: None,
            words: None,
        }
    }

    fn see(&mut self, event: &Event) {
        match event {
            Event::Started {
                parameters,
                steps,
                done,
            } => {
                if !self.quiet {
                    eprintln!(
                        "seed {}: {parameters} parameters, run folder {}",
                        self.seed,
                        self.folder.display()
                    );
                }
                self.bar = Some(Bar::new(*steps, *done, self.quiet));
            }
            Event::Step { epoch, step, loss } => {
                if let Some(bar) = &self.bar {
                    bar.update(*epoch, *step, *loss);
                }
            }
            Event::Epoch {
                epoch,
                score,
                improved,
            } => {
                let best = if *improved { "(best)" } else { "" };
                tracing::debug!("epoch {epoch}: score {score} {best}");
                if let (Some(bar), Some(words)) = (&self.bar, self.words) {
                    bar.say(words(*score));
                }
            }
        }
    }

    fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish();
        }
    }
}

/// Runs `fit`, which tells of its events, and shows them.
pub(crate) fn watched<T>(
    options: &FitOptions,
    common: &Common,
    fit: impl FnOnce(&mut dyn FnMut(&Event)) -> Result<T>,
) -> Result<T> {
    watched_with(options, common, None, fit)
}

/// As [`watched`]; the bar says each score in words.
pub(crate) fn watched_with<T>(
    options: &FitOptions,
    common: &Common,
    words: Option<fn(f64) -> String>,
    fit: impl FnOnce(&mut dyn FnMut(&Event)) -> Result<T>,
) -> Result<T> {
    let mut watch = Watch::new(options.seed, options.folder, common);
    watch.words = words;
    let outcome = fit(&mut |event| watch.see(event))?;
    watch.finish();
    Ok(outcome)
}

/// Trains one seed in `folder` and writes predictions, plots and report.
pub(crate) fn run(
    job: &Job,
    folder: &Path,
    seed: u64,
    device: tch::Device,
    resume: Option<ResumeFrom>,
    common: &Common,
) -> Result<Fitted> {
    let options = FitOptions {
        folder,
        table: job.table,
        seed,
        device,
        resume,
    };
    let outcome = watched(&options, common, |observe| {
        fit(job.prepared, job.settings, &options, observe)
    })?;
    let classes = job.prepared.preprocessor.classes();
    let target = Some((job.prepared.schema.target(), &outcome.targets));
    let columns = prediction_columns(&outcome.predictions, target, classes)?;
    write_columns(&folder.join("predictions.parquet"), &columns)?;
    let plots = plots(job, folder, &outcome)?;
    write_report(job, folder, seed, &outcome)?;
    Ok(Fitted { outcome, plots })
}

fn plots(job: &Job, folder: &Path, outcome: &Outcome) -> Result<Vec<PathBuf>> {
    let mut plots = plot::run_plots(folder)?;
    let target = job.prepared.schema.target();
    let plots_folder = folder.join("plots");
    match job.prepared.task {
        Task::Regression => {
            let path = plots_folder.join("predictions.svg");
            let axes = Axes::new(
                "Test rows: target and prediction",
                format!("{target} (target)"),
                format!("{target} (prediction)"),
            );
            plot::scatter(&path, &axes, &outcome.predictions, &outcome.targets)?;
            plots.push(path);
        }
        Task::Binary => {
            let path = plots_folder.join("calibration.svg");
            let class = &job.prepared.preprocessor.classes()[1];
            let axes = Axes::new(
                "Test rows: calibration",
                format!("predicted probability of {class}"),
                format!("share of rows that are {class}"),
            );
            let probabilities = outcome.predictions.select(1, 1);
            plot::calibration(&path, &axes, &probabilities, &outcome.targets, 10)?;
            plots.push(path);
        }
        Task::Multiclass => {}
    }
    Ok(plots)
}

fn write_report(job: &Job, folder: &Path, seed: u64, outcome: &Outcome) -> Result<()> {
    let prepared = job.prepared;
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let rows = format!(
        "{} train, {} valid, {} test",
        prepared.train.len(),
        prepared.valid.len(),
        prepared.test.len()
    );
    let mut facts = vec![
        fact("table", job.table.display().to_string()),
        fact("target", prepared.schema.target().to_owned()),
        fact("model", job.settings.model.preset.clone()),
        fact("parameters", outcome.parameters.to_string()),
        fact("rows", rows),
        fact("seed", seed.to_string()),
        fact(
            "seconds of the last process",
            format!("{:.1}", outcome.seconds),
        ),
    ];
    if let Some(peak) = outcome.peak_mb {
        facts.push(fact(
            "peak memory of the last process",
            format!("{peak:.0} MB"),
        ));
    }
    let part = |part: &'static str, scores: &[(Metric, f64)]| {
        let score = |(metric, value): &(Metric, f64)| Score {
            part: part.to_owned(),
            metric: *metric,
            value: *value,
        };
        scores.iter().map(score).collect::<Vec<_>>()
    };
    let mut scores = part("validation", &outcome.valid);
    scores.extend(part("test", &outcome.test));
    let mut sections = vec![columns_section(prepared)];
    if let Some(calibration) = &outcome.calibration {
        let applied = job.settings.train.calibrate;
        sections.push(calibration_section(calibration, applied, ""));
    }
    let notes = prepared
        .schema
        .warnings()
        .iter()
        .chain(prepared.preprocessor.warnings());
    let report = Report {
        title: job.title.to_owned(),
        facts,
        scores,
        sections,
        notes: notes.cloned().collect(),
    };
    report::write(folder, &report).map(|_| ())
}

/// What each column became.
fn columns_section(prepared: &Prepared) -> Section {
    let row = |(name, role, reason): (&str, Role, &str)| {
        vec![
            name.to_owned(),
            role_name(role).to_owned(),
            reason.to_owned(),
        ]
    };
    Section {
        title: "Columns".to_owned(),
        header: ["column", "role", "why"].map(str::to_owned).to_vec(),
        rows: prepared.schema.explained().map(row).collect(),
        text: String::new(),
    }
}

/// How true the probabilities are, after the sentences of `lead`.
pub(crate) fn calibration_section(calibration: &Calibration, applied: bool, lead: &str) -> Section {
    let Calibration {
        temperature,
        as_predicted,
        scaled,
    } = calibration;
    let row = |name: &str, errors: &CalibrationErrors| {
        let numbers = [errors.expected, errors.brier, errors.log_loss];
        let numbers = numbers.iter().map(|value| format!("{value:.5}"));
        std::iter::once(name.to_owned()).chain(numbers).collect()
    };
    let what = if applied {
        "Predictions of this run are scaled."
    } else {
        "Predictions of this run are not scaled; `--calibrate` would do so."
    };
    Section {
        title: "Calibration on the test rows".to_owned(),
        header: [
            "probabilities",
            "expected calibration error",
            "Brier score",
            "log loss",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows: vec![
            row("as predicted", as_predicted),
            row(
                &format!("scaled by the temperature {temperature:.3}"),
                scaled,
            ),
        ],
        text: format!(
            "{lead}The temperature fits the validation rows; above 1 the model is too sure of itself. {what}"
        ),
    }
}

/// Predictions as columns: `prediction` for regression; the class and a probability per class otherwise.
pub(crate) fn prediction_columns(
    predictions: &Tensor,
    target: Option<(&str, &Tensor)>,
    classes: &[String],
) -> Result<Vec<(String, Output)>> {
    let numbers = |xs: &Tensor| -> Result<Output> {
        Ok(Output::Numbers(Vec::try_from(
            xs.to_kind(tch::Kind::Double),
        )?))
    };
    let names = |codes: &Tensor| -> Result<Output> {
        let codes: Vec<i64> = Vec::try_from(codes)?;
        Ok(Output::Texts(
            codes
                .iter()
                .map(|code| classes[*code as usize].clone())
                .collect(),
        ))
    };
    let mut columns = Vec::new();
    if let Some((name, targets)) = target {
        let values = if classes.is_empty() {
            numbers(targets)?
        } else {
            names(targets)?
        };
        columns.push((name.to_owned(), values));
    }
    if classes.is_empty() {
        columns.push(("prediction".to_owned(), numbers(predictions)?));
    } else {
        columns.push((
            "prediction".to_owned(),
            names(&predictions.argmax(1, false))?,
        ));
        for (at, class) in classes.iter().enumerate() {
            let column = numbers(&predictions.select(1, at as i64))?;
            columns.push((format!("probability_{class}"), column));
        }
    }
    Ok(columns)
}

/// Prints what a fit reached.
pub(crate) fn print(folder: &Path, fitted: &Fitted, common: &Common) {
    let outcome = &fitted.outcome;
    if common.json {
        let object = |scores: &[(Metric, f64)]| -> Map<String, Value> {
            scores
                .iter()
                .map(|(metric, value)| (metric.name().to_owned(), json!(value)))
                .collect()
        };
        let summary = json!({
            "run": folder,
            "params": outcome.parameters,
            "best_epoch": outcome.best_epoch,
            "epochs": outcome.epochs,
            "valid": object(&outcome.valid),
            "test": object(&outcome.test),
            "seconds": outcome.seconds,
            "peak_mb": outcome.peak_mb,
            "out_of_time": outcome.out_of_time,
            "calibration": outcome.calibration,
            "plots": fitted.plots,
        });
        println!("{summary}");
        return;
    }
    let line = |scores: &[(Metric, f64)]| {
        let texts: Vec<String> = scores
            .iter()
            .map(|(m, v)| format!("{} {v:.4}", m.name()))
            .collect();
        texts.join(", ")
    };
    say_if_out_of_time(outcome.out_of_time);
    println!("valid: {}", line(&outcome.valid));
    println!("test:  {}", line(&outcome.test));
    ending(
        (outcome.best_epoch, outcome.epochs),
        (outcome.seconds, outcome.peak_mb),
        folder,
    );
}

/// Says that more time may help, where the time was over.
pub(crate) fn say_if_out_of_time(out_of_time: bool) {
    if out_of_time {
        println!("the time was over before training had ended; more may help: `--time-budget`");
    }
}

/// The last line of a fit.
pub(crate) fn ending(
    (best_epoch, epochs): (u64, u64),
    (seconds, peak_mb): (f64, Option<f64>),
    folder: &Path,
) {
    let peak = peak_mb.map_or_else(String::new, |mb| format!(", peak memory {mb:.0} MB"));
    println!(
        "best epoch {} of {epochs}; {seconds:.1} s{peak}; report in {}",
        best_epoch + 1,
        folder.join("report.md").display()
    );
}
