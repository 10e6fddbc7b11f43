//! `densely tune`: many short fits of a recipe, each with other settings, until the best are found.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use densely_core::{Error, Result};
use densely_data::{Output, write_columns};
use densely_tabular::settings::FitSettings as TableSettings;
use densely_tabular::tune as tables;
use densely_timeseries::fit::{FitSettings as SeriesSettings, Prepared};
use densely_timeseries::tune as series;
use densely_train::signal;
use densely_train::tune::{Column, Method, Plan, State, Study, Trial, TuneSettings, Work, apply};
use serde_json::json;

use super::train::{self, forecast};
use crate::recipe::{Recipe, Size};
use crate::{Common, fitting};

/// Set for the workers that this program starts: their threads.
const WORKER: &str = "DENSELY_TUNE_WORKER";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely tune crates/tabular/recipes/mlp-california.toml --data-dir data/california-housing --quick

The same command goes on with a study that was stopped, and works beside others that run on it."
)]
pub(crate) struct Arguments {
    /// TOML file of the recipe; its section `[tune]` says what may be chosen.
    recipe: PathBuf,
    /// Folder with the recipe's data set; `cargo xtask data get NAME` fetches it and says where it is.
    #[arg(long, default_value = ".")]
    data_dir: PathBuf,
    /// Folder for the study; `runs/<name>-tune` when left out.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Trials in all; as the recipe says when left out, else 100 or every point of a grid.
    #[arg(long)]
    trials: Option<u64>,
    /// Processes that work on the study; they share the threads.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    workers: u32,
    /// Tune the recipe at its quick size.
    #[arg(long, conflicts_with = "smoke")]
    quick: bool,
    /// Two trials of one epoch at the quick size.
    #[arg(long)]
    smoke: bool,
    /// Change a setting that all trials share, such as `train.batch_size=512`; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// Go on with the study in the folder: what happens anyway.
    #[arg(long)]
    resume: bool,
}

/// What a trial of `plan` is as a recipe: its text, under a comment.
type AsRecipe = fn(&Recipe, &Plan, &Trial, &str) -> Result<String>;

/// Calls back for each trial that ended.
type Ended<'a> = &'a mut dyn FnMut(&Trial) -> Result<()>;

pub(crate) fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    let size = match (arguments.quick, arguments.smoke) {
        (_, true) => Size::Smoke,
        (true, _) => Size::Quick,
        _ => Size::Full,
    };
    let recipe = Recipe::read(&arguments.recipe, size, &arguments.changes)?;
    let mut tune = recipe.tune.clone().unwrap_or_default();
    if let (Size::Smoke, None) = (size, &recipe.tune) {
        tune.trials = Some(2);
    }
    tune.trials = arguments.trials.or(tune.trials);
    let search = Search {
        arguments,
        recipe: &recipe,
        tune,
        seed: common.seed.unwrap_or(recipe.seeds[0]),
        common,
    };
    match recipe.domain.as_str() {
        "tabular" => search.tables(),
        "timeseries" => search.series(),
        other => {
            let reason = format!("recipes of the domain {other} have no search");
            Err(Error::config("domain", reason))
        }
    }
}

/// What is asked for.
struct Search<'a> {
    arguments: &'a Arguments,
    recipe: &'a Recipe,
    tune: TuneSettings,
    seed: u64,
    common: &'a Common,
}

impl Search<'_> {
    fn tables(&self) -> Result<()> {
        let (files, mut base) = self.recipe.fit_settings(&self.arguments.recipe)?;
        let space = tables::ranges(&self.tune, &base)?;
        let folder = &self.arguments.data_dir;
        let path = folder.join(&files.file);
        let (_, prepared) = train::prepare(&files, folder, &mut base)
            .map_err(|error| self.recipe.explain(error))?;
        let metric = tables::metric(&self.tune, &base, prepared.task)?;
        let device = self.common.device.open()?;
        self.search(
            self.tune.plan(self.seed, metric, space, &base)?,
            |recipe, plan, trial, comment| {
                let TableSettings { model, train, .. } = apply(&plan.base, &trial.choice)?;
                recipe.with(&model, &train, comment)
            },
            prepared,
            |prepared| fitting::describe(prepared, self.common),
            |prepared, study, ended| {
                let work = Work {
                    prepared,
                    table: &path,
                    device,
                };
                tables::work(study, &work, ended)
            },
        )
    }

    fn series(&self) -> Result<()> {
        let (files, base): (_, SeriesSettings) =
            self.recipe.fit_settings(&self.arguments.recipe)?;
        let space = series::ranges(&self.tune, &base)?;
        let metric = series::metric(&self.tune, &base)?;
        let folder = &self.arguments.data_dir;
        let path = folder.join(&files.file);
        let device = self.common.device.open()?;
        let table = files.open(folder);
        let table = table.map_err(|error| self.recipe.explain(error))?;
        let prepared = Prepared::new(&table, &base.data, device)?;
        drop(table);
        self.search(
            self.tune.plan(self.seed, metric, space, &base)?,
            |recipe, plan, trial, comment| {
                let SeriesSettings { model, train, .. } = apply(&plan.base, &trial.choice)?;
                recipe.with(&model, &train, comment)
            },
            prepared,
            |prepared| forecast::describe(prepared, &base, self.common),
            |prepared, study, ended| {
                let work = Work {
                    prepared,
                    table: &path,
                    device,
                };
                series::work(study, &work, ended)
            },
        )
    }

    /// Opens the study and works on it, alone or by workers.
    fn search<P>(
        &self,
        plan: Plan,
        as_recipe: AsRecipe,
        prepared: P,
        describe: impl FnOnce(&P),
        work: impl FnOnce(&P, &Study, Ended) -> Result<()>,
    ) -> Result<()> {
        let Self {
            arguments, recipe, ..
        } = self;
        let out = arguments
            .out
            .clone()
            .unwrap_or_else(|| Path::new("runs").join(format!("{}-tune", recipe.name)));
        let study = Study::open(&out, plan, self.tune.trials)?;
        let session = Session {
            study: &study,
            recipe,
            as_recipe,
            common: self.common,
        };
        if let Ok(threads) = std::env::var(WORKER) {
            tch::set_num_threads(threads.parse().unwrap_or(1));
            stop_when_left_alone();
            return work(&prepared, &study, &mut |trial| session.ended(trial));
        }
        describe(&prepared);
        session.announce();
        if arguments.workers > 1 {
            // The workers have their own.
            drop(prepared);
            session.start_workers(arguments.workers)?;
        } else {
            work(&prepared, &study, &mut |trial| session.ended(trial))?;
        }
        session.report(arguments)
    }
}

struct Session<'a> {
    study: &'a Study,
    recipe: &'a Recipe,
    as_recipe: AsRecipe,
    common: &'a Common,
}

impl Session<'_> {
    fn announce(&self) {
        let plan = self.study.plan();
        if !self.common.quiet {
            let trials = match plan.method {
                Method::Tpe => "trials",
                Method::Grid => "points of the grid",
            };
            eprintln!(
                "study in {}: {} {trials} over {} settings, by {} on validation rows",
                self.study.folder().display(),
                self.study.size(),
                plan.space.len(),
                plan.metric.name(),
            );
        }
    }

    /// One line for a trial that ended, and the study's tables.
    fn ended(&self, trial: &Trial) -> Result<()> {
        self.publish()?;
        if self.common.quiet {
            return Ok(());
        }
        let metric = self.study.plan().metric.name();
        let found = match (trial.score, &trial.reason) {
            (Some(score), _) => format!("{metric} {score:.4}"),
            (None, reason) => format!("failed ({})", reason.as_deref().unwrap_or("no reason")),
        };
        let seconds = trial
            .seconds
            .map_or_else(String::new, |seconds| format!(" in {seconds:.1} s"));
        let trials = self.study.trials()?;
        let best = self.study.best(&trials).and_then(|best| {
            let score = best.score?;
            Some(format!("; best {score:.4} of trial {}", best.number))
        });
        let best = best.unwrap_or_default();
        eprintln!("trial {}: {found}{seconds}{best}", trial.number);
        Ok(())
    }

    fn publish(&self) -> Result<()> {
        let plan = self.study.plan();
        let table = |folder: &Path, columns: Vec<(String, Column)>| {
            let columns = columns.into_iter().map(|(name, column)| {
                let output = match column {
                    Column::Numbers(values) => Output::Numbers(values),
                    Column::Texts(values) => Output::Texts(values),
                };
                (name, output)
            });
            write_columns(&folder.join("trials.parquet"), &columns.collect::<Vec<_>>())
        };
        let best = |folder: &Path, best: &Trial| {
            let comment = format!(
                "The settings of trial {}: {} {:.6} on validation rows. Train it with `densely train`.",
                best.number,
                plan.metric.name(),
                best.score.unwrap_or(f64::NAN),
            );
            let text = (self.as_recipe)(self.recipe, plan, best, &comment)?;
            densely_core::fs::write(&folder.join("best.toml"), text.as_bytes())
        };
        self.study.publish(table, best)
    }

    /// Starts this very command once per worker and waits for all of them.
    fn start_workers(&self, workers: u32) -> Result<()> {
        let program = std::env::current_exe().map_err(Error::io("densely"))?;
        let threads = (tch::get_num_threads() / workers as i32).max(1);
        let start = |_| {
            let mut command = Command::new(&program);
            command
                .args(std::env::args_os().skip(1))
                .env(WORKER, threads.to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::null());
            // Ctrl-C on the terminal is for this process; the workers hear of it through their closed input.
            #[cfg(unix)]
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            command.spawn().map_err(Error::io(&program))
        };
        let mut running = (0..workers).map(start).collect::<Result<Vec<Child>>>()?;
        let mut failed = 0;
        while !running.is_empty() {
            if signal::interrupted() {
                for child in &mut running {
                    drop(child.stdin.take());
                }
            }
            let mut left = Vec::new();
            for mut child in running {
                match child.try_wait().map_err(Error::io(&program))? {
                    None => left.push(child),
                    Some(status) => failed += u32::from(!status.success()),
                }
            }
            running = left;
            std::thread::sleep(Duration::from_millis(100));
        }
        if signal::interrupted() {
            return Err(Error::Interrupted {
                folder: self.study.folder().to_owned(),
            });
        }
        let unfinished = (self.study.size() as usize)
            .saturating_sub(self.study.trials()?.iter().filter(|t| t.ended()).count());
        if unfinished > 0 {
            let reason = format!(
                "{failed} of {workers} failed and {unfinished} trials are left; the same command goes on with them"
            );
            return Err(Error::config("--workers", reason));
        }
        Ok(())
    }

    fn report(&self, arguments: &Arguments) -> Result<()> {
        self.publish()?;
        let trials = self.study.trials()?;
        let plan = self.study.plan();
        let count = |state| trials.iter().filter(|trial| trial.state == state).count();
        let (done, failed) = (count(State::Done), count(State::Failed));
        let Some(best) = self.study.best(&trials) else {
            let reason = trials.iter().find_map(|trial| trial.reason.clone());
            let reason = reason.unwrap_or_else(|| "none has ended yet".to_owned());
            let reason = format!("none of {} trials has a score: {reason}", trials.len());
            return Err(Error::config("tune", reason));
        };
        let recipe = self.study.folder().join("best.toml");
        let score = best.score.unwrap_or(f64::NAN);
        if self.common.json {
            let summary = json!({
                "study": self.study.folder(),
                "trials": trials.len(),
                "done": done,
                "failed": failed,
                "running": trials.len() - done - failed,
                "metric": plan.metric.name(),
                "direction": plan.metric.direction(),
                "best": { "number": best.number, "score": score, "settings": best.choice },
                "recipe": recipe,
                "seconds": trials.iter().filter_map(|trial| trial.seconds).sum::<f64>(),
            });
            println!("{summary}");
            return Ok(());
        }
        let others: Vec<String> = [
            (failed, "failed"),
            (trials.len() - done - failed, "with other workers"),
        ]
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!(", {count} {word}"))
        .collect();
        println!(
            "best of {done} trials{}: {} {score:.4}, trial {}",
            others.concat(),
            plan.metric.name(),
            best.number
        );
        for (name, value) in &best.choice {
            println!("  {name} = {value}");
        }
        println!(
            "train it: densely train {} --data-dir {}",
            recipe.display(),
            arguments.data_dir.display()
        );
        Ok(())
    }
}

/// A worker whose starter is gone, or closes its input on Ctrl-C, saves and stops.
fn stop_when_left_alone() {
    std::thread::spawn(|| {
        let mut rest = Vec::new();
        // An input that cannot be read is closed too.
        let _ = std::io::stdin().read_to_end(&mut rest);
        signal::interrupt();
    });
}
