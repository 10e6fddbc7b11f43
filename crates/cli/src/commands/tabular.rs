//! `densely tabular`: fit, evaluate and apply models on one's own table.

mod importance;
mod predict;
mod prune;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use densely_core::{Error, Result};
use densely_data::Table;
use densely_tabular::fit::{Fitted, Prepared};
use densely_tabular::settings::FitSettings;
use densely_tabular::task::scores;
use densely_train::run::ResumeFrom;
use serde_json::{Map, Value, json};
use toml::Table as Toml;

use super::tabred;
use crate::fitting::{self, Job};
use crate::{Common, recipe};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Train a model on a table and write a run folder with report, plots and predictions.
    Fit(Box<Fit>),
    /// Print the metrics of a run on a table that has the target.
    Evaluate(Evaluate),
    /// Write predictions of a run for the rows of a table.
    Predict(predict::Predict),
    /// Tell which columns a run's predictions depend on.
    Importance(importance::Importance),
    /// Keep only the members of a run that serve a table best: a smaller model.
    Prune(prune::Prune),
    /// Print ranks and scores of models on the TabReD benchmark, your own among the published ones.
    TabredRanks(tabred::Ranks),
}

#[derive(Debug, clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
#[command(after_help = "Example: densely tabular fit houses.csv --target price --out runs/houses")]
pub(crate) struct Fit {
    /// CSV, TSV or Parquet file with a header.
    table: PathBuf,
    /// Column to predict.
    #[arg(long)]
    target: String,
    /// Folder for the run; `runs/<name of the table>` when left out.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Model; `densely models` lists them.
    #[arg(long, default_value = "tabm")]
    model: String,
    /// Kind of target; inferred when left out.
    #[arg(long, value_parser = ["regression", "binary", "multiclass"])]
    task: Option<String>,
    /// Column with time: the split is then by time, newest rows for testing.
    #[arg(long)]
    time: Option<String>,
    /// Column whose equal values stay in one part of the split.
    #[arg(long, conflicts_with = "time")]
    group: Option<String>,
    /// How rows are divided: by `--time`, `--group` or the only column of times where there is one (auto), or at random.
    #[arg(long, default_value = "auto", value_parser = ["auto", "random"], conflicts_with_all = ["time", "group"])]
    split: String,
    /// Parts of the time column that become numbers: `minute`, `hour`, `weekday`, `day`, `day_of_year`, `month`, `year`.
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    calendar: Vec<String>,
    /// Predict whether the target, a number, is above this value.
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    target_above: Option<f64>,
    /// Column with a weight per row.
    #[arg(long)]
    weight: Option<String>,
    /// What a column is, where the inference is wrong; may be given again.
    #[arg(long = "role", value_name = "COLUMN=ROLE")]
    roles: Vec<String>,
    /// Embedding of numerical columns.
    #[arg(long, value_enum, default_value_t = Embedding::None)]
    embedding: Embedding,
    /// Share of rows for validation.
    #[arg(long, default_value_t = 0.16)]
    valid: f64,
    /// Share of rows for testing.
    #[arg(long, default_value_t = 0.2)]
    test: f64,
    /// Most epochs.
    #[arg(long)]
    epochs: Option<u64>,
    /// Epochs without a better validation score before training stops.
    #[arg(long)]
    patience: Option<u64>,
    /// Rows per step.
    #[arg(long)]
    batch_size: Option<usize>,
    /// Learning rate.
    #[arg(long)]
    lr: Option<f64>,
    /// bf16 matrix products by autocast.
    #[arg(long)]
    bf16: bool,
    /// Let every class count as much as any other in the loss.
    #[arg(long)]
    balanced: bool,
    /// End training after this time, such as 90s, 10m or 2h, with the best epoch so far.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    time_budget: Option<f64>,
    /// Scale probabilities by the temperature that fits the validation rows.
    #[arg(long)]
    calibrate: bool,
    /// Members that are averaged: all, the best one, or those chosen greedily on the validation rows.
    #[arg(long, value_parser = ["all", "best", "greedy"])]
    averaging: Option<String>,
    /// Leave out rows without a target.
    #[arg(long)]
    drop_missing_target: bool,
    /// Change any setting of the run, such as `train.clip_norm=0.5`; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    #[command(flatten)]
    resume: ResumeArguments,
}

/// How to go on with a run.
#[derive(Debug, clap::Args)]
pub(crate) struct ResumeArguments {
    /// Go on with the run in the folder.
    #[arg(long)]
    resume: bool,
    /// Which checkpoint to go on from: last or previous.
    #[arg(long, value_name = "CHECKPOINT", value_parser = ["last", "previous"])]
    resume_from: Option<String>,
}

impl ResumeArguments {
    pub(crate) fn from(&self) -> Result<Option<ResumeFrom>> {
        match &self.resume_from {
            Some(text) => text.parse().map(Some),
            None => Ok(self.resume.then_some(ResumeFrom::Last)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Embedding {
    /// Numbers as they are.
    None,
    /// Piecewise-linear, 48 quantile bins, 16 columns each.
    PiecewiseLinear,
    /// Linear and ReLU, 32 columns each.
    LinearRelu,
    /// Sines and cosines of trained frequencies, 24 columns each.
    Periodic,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: densely tabular evaluate runs/houses more_houses.csv")]
pub(crate) struct Evaluate {
    /// Run folder of a fit.
    run: PathBuf,
    /// Table with the target.
    table: PathBuf,
}

pub(crate) fn run(command: &Command, common: &Common) -> Result<()> {
    match command {
        Command::Fit(arguments) => fit(arguments, common),
        Command::Evaluate(arguments) => evaluate(arguments, common),
        Command::Predict(arguments) => predict::run(arguments, common),
        Command::Importance(arguments) => importance::run(arguments, common),
        Command::Prune(arguments) => prune::run(arguments, common),
        Command::TabredRanks(arguments) => tabred::run(arguments, common),
    }
}

fn fit(arguments: &Fit, common: &Common) -> Result<()> {
    let settings = arguments.settings()?;
    let device = common.device.open()?;
    let folder = arguments
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(arguments.table.file_stem().unwrap_or_default()));
    let resume = arguments.resume.from()?;
    let table = Table::open(&arguments.table)?;
    let prepared = Prepared::new(&table, &settings.data)?;
    fitting::describe(&prepared, common);
    let title = format!("{} on {}", arguments.model, arguments.table.display());
    let job = Job {
        title: &title,
        prepared: &prepared,
        settings: &settings,
        table: &arguments.table,
    };
    let fitted = fitting::run(
        &job,
        &folder,
        common.seed.unwrap_or(0),
        device,
        resume,
        common,
    )?;
    fitting::print(&folder, &fitted, common);
    Ok(())
}

impl Fit {
    /// The settings of a recipe, made from the arguments, with `--set` applied last.
    fn settings(&self) -> Result<FitSettings> {
        let mut data = Toml::new();
        let text = |value: &str| toml::Value::String(value.to_owned());
        data.insert("target".into(), text(&self.target));
        for (key, value) in [
            ("task", &self.task),
            ("time", &self.time),
            ("group", &self.group),
            ("weight", &self.weight),
        ] {
            if let Some(value) = value {
                data.insert(key.into(), text(value));
            }
        }
        let mut roles = Toml::new();
        for role in &self.roles {
            let (column, role) = role.rsplit_once('=').ok_or_else(|| {
                Error::config("--role", format!("must be COLUMN=ROLE, got `{role}`"))
            })?;
            roles.insert(column.into(), text(role));
        }
        data.insert("roles".into(), roles.into());
        data.insert("auto_time".into(), (self.split == "auto").into());
        if let Some(above) = self.target_above {
            data.insert("target_above".into(), above.into());
        }
        if !self.calendar.is_empty() {
            let parts: Vec<toml::Value> = self.calendar.iter().map(|part| text(part)).collect();
            let preprocess = Toml::from_iter([("calendar".to_owned(), parts.into())]);
            data.insert("preprocess".into(), preprocess.into());
        }
        data.insert("valid".into(), self.valid.into());
        data.insert("test".into(), self.test.into());
        data.insert(
            "drop_missing_target".into(),
            self.drop_missing_target.into(),
        );

        let mut train = Toml::new();
        let integer = |value: u64| toml::Value::Integer(value as i64);
        let mut put = |key: &str, value: Option<toml::Value>| {
            value.map(|value| train.insert(key.into(), value));
        };
        put("epochs", self.epochs.map(integer));
        put("patience", self.patience.map(integer));
        put(
            "batch_size",
            self.batch_size.map(|rows| integer(rows as u64)),
        );
        put("precision", self.bf16.then(|| text("bf16")));
        put("class_weights", self.balanced.then(|| text("balanced")));
        put("time_budget", self.time_budget.map(toml::Value::Float));
        put("calibrate", self.calibrate.then_some(true.into()));
        put("averaging", self.averaging.as_deref().map(text));

        let mut model = Toml::new();
        model.insert("preset".into(), text(&self.model));
        let embedding = match self.embedding {
            Embedding::None => None,
            Embedding::PiecewiseLinear => Some("type = \"piecewise_linear\""),
            Embedding::LinearRelu => Some("type = \"linear_relu\"\nd_embedding = 32"),
            Embedding::Periodic => Some(
                "type = \"periodic\"\nd_embedding = 24\nn_frequencies = 48\nfrequency_init_scale = 0.01\nlite = false",
            ),
        };
        let parse = |text: &str| {
            toml::from_str::<Toml>(text).map_err(|e| Error::config("settings", e.to_string()))
        };
        if let Some(embedding) = embedding {
            model.insert("embedding".into(), parse(embedding)?.into());
        }
        let mut settings = Toml::new();
        settings.insert("data".into(), data.into());
        settings.insert("model".into(), model.into());
        settings.insert("train".into(), train.into());
        if let Some(lr) = self.lr {
            let optimizer = format!("name = \"adamw\"\nlr = {lr:?}\nweight_decay = 3e-4");
            let train = settings
                .get_mut("train")
                .and_then(toml::Value::as_table_mut);
            train
                .map(|train| {
                    Ok::<_, Error>(train.insert("optimizer".into(), parse(&optimizer)?.into()))
                })
                .transpose()?;
        }
        for change in &self.changes {
            recipe::set(&mut settings, change)?;
        }
        settings
            .try_into()
            .map_err(|e: toml::de::Error| Error::config("settings", recipe::sentence(&e)))
    }
}

/// `90s`, `10m`, `2h`, or seconds without a unit.
pub(crate) fn seconds(text: &str) -> std::result::Result<f64, String> {
    let units = [("s", 1.0), ("m", 60.0), ("h", 3600.0), ("", 1.0)];
    let value = units.into_iter().find_map(|(unit, scale)| {
        let value: f64 = text.strip_suffix(unit)?.parse().ok()?;
        Some(value * scale)
    });
    value
        .filter(|value| *value > 0.0 && value.is_finite())
        .ok_or_else(|| format!("expected a time such as 90s, 10m or 2h, got `{text}`"))
}

fn evaluate(arguments: &Evaluate, common: &Common) -> Result<()> {
    let fitted = Fitted::open(&arguments.run, common.device.open()?)?;
    let table = Table::open(&arguments.table)?;
    let (predictions, targets) = fitted.predict(&table, true)?;
    let targets =
        targets.ok_or_else(|| Error::data(&arguments.table, "the rows have no target"))?;
    let values = scores(fitted.pipeline.task, &predictions, &targets);
    if common.json {
        let values: Map<String, Value> = values
            .iter()
            .map(|(metric, value)| (metric.name().to_owned(), json!(value)))
            .collect();
        println!(
            "{}",
            json!({ "rows": targets.size()[0], "metrics": values })
        );
    } else {
        println!(
            "{} rows of {}",
            targets.size()[0],
            arguments.table.display()
        );
        for (metric, value) in values {
            println!("  {:<9} {value:.6} {}", metric.name(), metric.unit());
        }
    }
    Ok(())
}
