//! `densely tune`: many short fits of a recipe, each with other settings, until the best are found.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use densely_core::{Error, Result};
use densely_tabular::settings::FitSettings;
use densely_tabular::tune::{self, Plan, State, Study, Trial, Work};
use densely_train::signal;
use serde_json::json;

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
    /// Trials in all; as the recipe says when left out.
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

pub(crate) fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    let size = match (arguments.quick, arguments.smoke) {
        (_, true) => Size::Smoke,
        (true, _) => Size::Quick,
        _ => Size::Full,
    };
    let recipe = Recipe::read(&arguments.recipe, size, &arguments.changes)?;
    let mut settings = recipe.tune.clone().unwrap_or_default();
    if let (Size::Smoke, None) = (size, &recipe.tune) {
        settings.trials = 2;
    }
    settings.trials = arguments.trials.unwrap_or(settings.trials);
    let (files, mut base) = recipe.fit_settings(&arguments.recipe)?;
    let (space, _) = settings.space(&base)?;
    let path = arguments.data_dir.join(&files.file);
    let (_, prepared) = super::train::prepare(&files, &arguments.data_dir, &mut base)?;
    let plan = Plan {
        seed: common.seed.unwrap_or(recipe.seeds[0]),
        startup: settings.startup,
        metric: settings.metric(&base, prepared.task)?,
        space,
        base,
    };
    let device = common.device.open()?;
    let out = arguments
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(format!("{}-tune", recipe.name)));
    let study = Study::open(&out, plan, settings.trials)?;
    let session = Session {
        study: &study,
        recipe: &recipe,
        trials: settings.trials,
        common,
    };

    let worker = std::env::var(WORKER).ok();
    if let Some(threads) = &worker {
        tch::set_num_threads(threads.parse().unwrap_or(1));
        stop_when_left_alone();
    } else {
        fitting::describe(&prepared, common);
        session.announce();
    }
    if worker.is_none() && arguments.workers > 1 {
        drop(prepared);
        session.start_workers(arguments.workers)?;
    } else {
        let work = Work {
            prepared: &prepared,
            base: &study.plan().base,
            table: &path,
            device,
        };
        tune::work(&study, &work, &mut |trial| session.ended(trial))?;
    }
    if worker.is_some() {
        return Ok(());
    }
    session.report(arguments)
}

struct Session<'a> {
    study: &'a Study,
    recipe: &'a Recipe,
    trials: u64,
    common: &'a Common,
}

impl Session<'_> {
    fn announce(&self) {
        let plan = self.study.plan();
        if !self.common.quiet {
            eprintln!(
                "study in {}: {} trials over {} settings, by {} on validation rows",
                self.study.folder().display(),
                self.trials,
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
        self.study.publish(|best| {
            let plan = self.study.plan();
            let settings: FitSettings = tune::apply(&plan.base, &best.choice)?;
            let comment = format!(
                "The settings of trial {}: {} {:.6} on validation rows. Train it with `densely train`.",
                best.number,
                plan.metric.name(),
                best.score.unwrap_or(f64::NAN),
            );
            self.recipe.with(&settings, &comment)
        })
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
        let unfinished = (self.trials as usize)
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
