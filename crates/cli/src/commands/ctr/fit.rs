//! `densely ctr fit`, and one fit as a person sees it.

use std::path::{Path, PathBuf};

use densely_core::tch::{self, Tensor};
use densely_core::{Error, Result};
use densely_data::{Output, write_columns};
use densely_recsys::fit::{FitOptions, Outcome, fit};
use densely_recsys::infer::Explained;
use densely_recsys::metrics::Scores;
use densely_recsys::{CtrSettings, Options, Prepared};
use densely_train::plot::{self, Axes};
use densely_train::report::{self, Report, Section};
use densely_train::run::ResumeFrom;
use serde_json::{Map, json};

use super::{line, object};
use crate::commands::tabular::ResumeArguments;
use crate::compare::mean_sd;
use crate::fitting::{calibration_section, watched};
use crate::{Common, recipe};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely ctr fit ads.csv --label clk --group user --time shown_at --history history=item --out runs/ads"
)]
pub(crate) struct Fit {
    /// CSV, TSV or Parquet file with a header, of any length.
    table: PathBuf,
    /// Column with the label: 1 for a click, else 0.
    #[arg(long)]
    label: String,
    /// The label is a number, and from this value on it is a click.
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    click_from: Option<f64>,
    /// Column with the user or another group, for gAUC.
    #[arg(long)]
    group: Option<String>,
    /// Column with the time: the newest rows then test.
    #[arg(long)]
    time: Option<String>,
    /// Columns that are categorical, where the inference is wrong.
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    categorical: Vec<String>,
    /// Columns that are numbers.
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    numeric: Vec<String>,
    /// A column with tokens and what stands between them (`^` when left out), or with lists; may be given again.
    #[arg(long = "sequence", value_name = "COLUMN[=DELIMITER]")]
    sequences: Vec<String>,
    /// A sequence of what a categorical column holds, such as the items that were clicked before; may be given again.
    #[arg(long = "history", value_name = "SEQUENCE=COLUMN")]
    histories: Vec<String>,
    /// Columns that are left out.
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    ignore: Vec<String>,
    /// finalmlp or din; din where there is a history, else finalmlp.
    #[arg(long)]
    model: Option<String>,
    /// Rows of the training part in which a token must occur to have an id of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    min_count: u64,
    /// Tokens of a sequence that are kept.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    max_len: i64,
    /// Share of rows for validation.
    #[arg(long, default_value_t = 0.1)]
    valid: f64,
    /// Share of rows for testing.
    #[arg(long, default_value_t = 0.1)]
    test: f64,
    /// Folder for the run; `runs/<name of the table>` when left out.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Most epochs.
    #[arg(long)]
    epochs: Option<u64>,
    /// Scale probabilities by the temperature that fits the validation rows.
    #[arg(long)]
    calibrate: bool,
    /// Change any setting of the run, such as `train.batch_size=4096`; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    #[command(flatten)]
    resume: ResumeArguments,
}

impl Fit {
    fn options(&self) -> Result<Options> {
        let sequence = |text: &String| match text.split_once('=') {
            Some((name, delimiter)) => (name.to_owned(), Some(delimiter.to_owned())),
            None => (text.clone(), None),
        };
        let history = |text: &String| {
            let pair = text.split_once('=').ok_or_else(|| {
                Error::config(
                    "--history",
                    format!("must be SEQUENCE=COLUMN, got `{text}`"),
                )
            })?;
            Ok((pair.0.to_owned(), pair.1.to_owned()))
        };
        Ok(Options {
            click_from: self.click_from,
            group: self.group.clone(),
            time: self.time.clone(),
            categorical: self.categorical.clone(),
            numeric: self.numeric.clone(),
            sequences: self.sequences.iter().map(sequence).collect(),
            histories: self.histories.iter().map(history).collect::<Result<_>>()?,
            ignore: self.ignore.clone(),
            model: self.model.clone(),
            min_count: self.min_count,
            max_len: self.max_len,
            shares: (self.valid, self.test),
            ..Options::new(&self.label)
        })
    }
}

pub(super) fn run(arguments: &Fit, common: &Common) -> Result<()> {
    let (settings, explained) = arguments.options()?.settings(&arguments.table)?;
    let settings = changed(&settings, arguments)?;
    let device = common.device.open()?;
    let folder = arguments
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(arguments.table.file_stem().unwrap_or_default()));
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    if !common.quiet {
        explain(&explained);
    }
    let prepared = Prepared::open(&arguments.table, &settings.data, &folder)?;
    let title = format!("{} on {}", settings.model.preset, arguments.table.display());
    let job = Job {
        title: &title,
        prepared: &prepared,
        settings: &settings,
        explained: &explained,
        table: &arguments.table,
    };
    job.describe(common);
    let resume = arguments.resume.from()?;
    let fitted = job.run(&folder, common.seed.unwrap_or(0), device, resume, common)?;
    print(&folder, &fitted, common);
    Ok(())
}

/// The settings with `--epochs`, `--calibrate` and `--set`.
fn changed(settings: &CtrSettings, arguments: &Fit) -> Result<CtrSettings> {
    let wrong = |e: String| Error::config("settings", e);
    let mut table = toml::Table::try_from(settings).map_err(|e| wrong(e.to_string()))?;
    if let Some(epochs) = arguments.epochs {
        recipe::set(&mut table, &format!("train.epochs={epochs}"))?;
    }
    if arguments.calibrate {
        recipe::set(&mut table, "train.calibrate=true")?;
    }
    for change in &arguments.changes {
        recipe::set(&mut table, change)?;
    }
    table
        .try_into()
        .map_err(|e: toml::de::Error| wrong(recipe::sentence(&e)))
}

fn explain(explained: &[Explained]) {
    let width = explained
        .iter()
        .map(|column| column.name.chars().count())
        .max();
    let width = width.unwrap_or(0).clamp(6, 32);
    for Explained { name, role, why } in explained {
        eprintln!("  {name:<width$}  {role:<11}  {why}");
    }
}

/// What is fitted.
pub(crate) struct Job<'a> {
    pub(crate) title: &'a str,
    pub(crate) prepared: &'a Prepared,
    pub(crate) settings: &'a CtrSettings,
    pub(crate) explained: &'a [Explained],
    pub(crate) table: &'a Path,
}

/// What came of it.
pub(crate) struct Fitted {
    pub(crate) outcome: Outcome,
    pub(crate) plots: Vec<PathBuf>,
}

impl Job<'_> {
    pub(crate) fn describe(&self, common: &Common) {
        for note in &self.prepared.notes {
            tracing::warn!("{note}");
        }
        if common.quiet {
            return;
        }
        let Prepared {
            map,
            train,
            valid,
            test,
            ..
        } = self.prepared;
        let clicks = train.clicks().iter().filter(|click| **click).count();
        eprintln!(
            "label `{}`: {:.2} % clicks; {} fields, {} table rows; rows: {} train, {} valid, {} test",
            map.label(),
            100.0 * clicks as f64 / train.len() as f64,
            map.fields().len(),
            map.total_features(),
            train.len(),
            valid.len(),
            test.len()
        );
    }

    /// Trains one seed in `folder` and writes predictions, plots and report.
    pub(crate) fn run(
        &self,
        folder: &Path,
        seed: u64,
        device: tch::Device,
        resume: Option<ResumeFrom>,
        common: &Common,
    ) -> Result<Fitted> {
        let options = FitOptions {
            folder,
            table: self.table,
            seed,
            device,
            resume,
        };
        let outcome = watched(&options, common, |observe| {
            fit(self.prepared, self.settings, &options, observe)
        })?;
        self.write_predictions(&folder.join("predictions.parquet"), &outcome)?;
        let mut plots = plot::run_plots(folder)?;
        plots.push(self.plot(folder, &outcome)?);
        self.write_report(folder, seed, &outcome)?;
        Ok(Fitted { outcome, plots })
    }

    fn write_predictions(&self, path: &Path, outcome: &Outcome) -> Result<()> {
        let test = &self.prepared.test;
        let clicks = test
            .clicks()
            .iter()
            .map(|click| f64::from(u8::from(*click)));
        let mut columns = vec![
            (
                self.prepared.map.label().to_owned(),
                Output::Numbers(clicks.collect()),
            ),
            (
                "probability".to_owned(),
                Output::Numbers(outcome.predictions.clone()),
            ),
        ];
        if let Some(groups) = test.groups() {
            let groups = groups.iter().map(|group| f64::from(*group)).collect();
            columns.push(("group".to_owned(), Output::Numbers(groups)));
        }
        write_columns(path, &columns)
    }

    fn plot(&self, folder: &Path, outcome: &Outcome) -> Result<PathBuf> {
        let path = folder.join("plots").join("calibration.svg");
        let axes = Axes::new(
            "Test rows: calibration",
            "predicted probability of a click",
            "share of rows that are clicked",
        );
        let probabilities = Tensor::from_slice(&outcome.predictions);
        let clicks: Vec<i64> = self
            .prepared
            .test
            .clicks()
            .iter()
            .map(|click| i64::from(*click))
            .collect();
        plot::calibration(
            &path,
            &axes,
            &probabilities,
            &Tensor::from_slice(&clicks),
            10,
        )?;
        Ok(path)
    }

    fn write_report(&self, folder: &Path, seed: u64, outcome: &Outcome) -> Result<()> {
        let Prepared {
            map,
            train,
            valid,
            test,
            ..
        } = self.prepared;
        let fact = |name: &str, value: String| (name.to_owned(), value);
        let mut facts = vec![
            fact("table", self.table.display().to_string()),
            fact("label", map.label().to_owned()),
            fact("model", self.settings.model.preset.clone()),
            fact("parameters", outcome.parameters.to_string()),
            fact(
                "rows",
                format!(
                    "{} train, {} valid, {} test",
                    train.len(),
                    valid.len(),
                    test.len()
                ),
            ),
            fact("seed", seed.to_string()),
            fact(
                "seconds of the last process",
                format!("{:.1}", outcome.seconds),
            ),
        ];
        if let Some(rows) = outcome.train_rows_per_second {
            facts.push(fact("rows per second in training", format!("{rows:.0}")));
        }
        if let Some(peak) = outcome.peak_mb {
            facts.push(fact(
                "peak memory of the last process",
                format!("{peak:.0} MB"),
            ));
        }
        let (mean, _) = mean_sd(&outcome.predictions);
        let share = outcome.test.share();
        let lead = format!("The mean probability is {mean:.4}, the share of clicks {share:.4}. ");
        let applied = self.settings.train.calibrate;
        let mut sections = vec![
            scores_section(outcome),
            calibration_section(&outcome.calibration, applied, &lead),
        ];
        if !self.explained.is_empty() {
            sections.push(Section {
                title: "Columns".to_owned(),
                header: ["column", "role", "why"].map(str::to_owned).to_vec(),
                rows: self
                    .explained
                    .iter()
                    .map(|c| vec![c.name.clone(), c.role.to_owned(), c.why.clone()])
                    .collect(),
                text: String::new(),
            });
        }
        let mut notes = self.prepared.notes.clone();
        notes.extend(outcome.test.groups.and_then(|groups| groups.note()));
        notes.extend(outcome.behind());
        let report = Report {
            title: self.title.to_owned(),
            facts,
            scores: Vec::new(),
            sections,
            notes,
        };
        report::write(folder, &report).map(|_| ())
    }
}

fn scores_section(outcome: &Outcome) -> Section {
    let header = outcome.test.all();
    let row = |name: &str, scores: &Scores| {
        let value = |metric| {
            scores
                .get(metric)
                .map_or_else(String::new, |v| format!("{v:.6}"))
        };
        let values = header.iter().map(|(metric, _)| value(*metric));
        std::iter::once(name.to_owned()).chain(values).collect()
    };
    let mut rows: Vec<Vec<String>> = vec![
        row("validation", &outcome.valid),
        row("test", &outcome.test),
    ];
    let baselines = outcome.baselines.iter();
    rows.extend(baselines.map(|(name, scores)| row(&format!("test, {name}"), scores)));
    let names = header.iter().map(|(metric, _)| metric.name().to_owned());
    Section {
        title: "Results".to_owned(),
        header: std::iter::once("on".to_owned()).chain(names).collect(),
        rows,
        text: "Higher is better but for `log_loss`. Popularity is an item's share of clicks in the training rows; logistic regression has a weight per token.".to_owned(),
    }
}

/// Prints what a fit reached.
fn print(folder: &Path, fitted: &Fitted, common: &Common) {
    let outcome = &fitted.outcome;
    if common.json {
        let baselines: Map<_, _> = outcome
            .baselines
            .iter()
            .map(|(name, scores)| ((*name).to_owned(), object(scores).into()))
            .collect();
        let summary = json!({
            "run": folder,
            "params": outcome.parameters,
            "best_epoch": outcome.best_epoch,
            "epochs": outcome.epochs,
            "valid": object(&outcome.valid),
            "test": object(&outcome.test),
            "baselines": baselines,
            "calibration": outcome.calibration,
            "rows_per_second": outcome.train_rows_per_second,
            "seconds": outcome.seconds,
            "peak_mb": outcome.peak_mb,
            "plots": fitted.plots,
        });
        println!("{summary}");
        return;
    }
    println!("valid: {}", line(&outcome.valid));
    println!("test:  {}", line(&outcome.test));
    for (name, scores) in &outcome.baselines {
        println!("       {name}: {}", line(scores));
    }
    let note = outcome.test.groups.and_then(|groups| groups.note());
    for note in note.into_iter().chain(outcome.behind()) {
        println!("{note}");
    }
    let rate = outcome
        .train_rows_per_second
        .map_or_else(String::new, |rows| {
            format!(", {rows:.0} rows/s in training")
        });
    println!(
        "best epoch {} of {}; {:.1} s{rate}; report in {}",
        outcome.best_epoch + 1,
        outcome.epochs,
        outcome.seconds,
        folder.join("report.md").display()
    );
}
