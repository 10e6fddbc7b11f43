//! A small training with everything that could break a resume: dropout, shuffled data, a plateau schedule, early
//! stopping, checkpoints inside epochs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use densely_core::{Error, Result, nn};
use densely_train::{
    Direction, Env, Metric, OptimConfig, ResumeFrom, Run, RunOptions, ScheduleConfig, step_seed,
};
use serde::Serialize;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

/// libtorch's generator belongs to the process: trainings in one process take turns.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that "killed" its training is no reason for the others to stop.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A temporary folder, in memory where the machine offers that: the tests wait for the disk thousands of times, and on
/// a busy one that takes minutes.
pub(crate) fn folder() -> tempfile::TempDir {
    let memory = tempfile::tempdir_in("/dev/shm");
    memory
        .or_else(|_| tempfile::tempdir())
        .expect("a temporary folder")
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Settings {
    pub(crate) epochs: u64,
    pub(crate) seed: u64,
    pub(crate) width: i64,
    pub(crate) optim: OptimConfig,
    pub(crate) schedule: ScheduleConfig,
}

impl Default for Settings {
    fn default() -> Self {
        let optim = r#"{"name":"adamw","lr":0.05}"#;
        let schedule =
            r#"{"name":"plateau","patience":0,"factor":0.5,"threshold":0.05,"warmup_steps":3}"#;
        Self {
            epochs: 5,
            seed: 7,
            width: 8,
            optim: serde_json::from_str(optim).expect("an optimiser"),
            schedule: serde_json::from_str(schedule).expect("a schedule"),
        }
    }
}

pub(crate) fn options() -> RunOptions {
    RunOptions {
        log_every: 3,
        checkpoint_steps: Some(5),
        checkpoint_seconds: None,
        patience: Some(3),
        min_improvement: 0.0,
        may_change: vec!["epochs".to_owned()],
    }
}

pub(crate) const STEPS_PER_EPOCH: u64 = 7;
const BATCH: i64 = 8;

/// How a training ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    Finished,
    Interrupted,
}

/// Trains in `dir`, from its start or from a checkpoint. `before_step` sees each step's number.
pub(crate) fn train(
    dir: &Path,
    settings: &Settings,
    options: RunOptions,
    resume: Option<ResumeFrom>,
    mut before_step: impl FnMut(u64),
) -> Result<End> {
    tch::manual_seed(1);
    let vs = VarStore::new(Device::Cpu);
    let first = nn::linear(&(vs.root() / "first"), 4, settings.width);
    let second = nn::linear(&(vs.root() / "second"), settings.width, 1);
    let forward = |xs: &Tensor, train: bool| {
        xs.apply(&first)
            .relu()
            .dropout(0.2, train)
            .apply(&second)
            .squeeze_dim(1)
    };
    let xs = Tensor::randn(
        [BATCH * STEPS_PER_EPOCH as i64, 4],
        (Kind::Float, Device::Cpu),
    );
    let ys = (&xs * 3.0).sin().sum_dim_intlist(1, false, Kind::Float);

    let mut opt = settings.optim.build(&vs, &[])?;
    let steps = settings.epochs * STEPS_PER_EPOCH;
    let mut schedule = settings.schedule.bind(opt.lr(), steps, STEPS_PER_EPOCH)?;
    let env = Env::collect("cpu", None);
    let mut run = match resume {
        None => Run::create(dir, settings, &env, options)?,
        Some(from) => Run::resume(dir, settings, &env, options, from)?,
    };
    if !run.restore(&vs, &mut opt, &mut schedule)? {
        run.set_preprocess("{\"mean\": 0.1}".to_owned());
    }
    while run.progress().epoch < settings.epochs && !run.should_stop() {
        let epoch = run.progress().epoch;
        tch::manual_seed(step_seed(settings.seed, epoch));
        let order = Tensor::randperm(xs.size()[0], (Kind::Int64, Device::Cpu));
        for batch in run.progress().step_in_epoch..STEPS_PER_EPOCH {
            let step = run.progress().step;
            before_step(step);
            tch::manual_seed(step_seed(settings.seed, step));
            let rows = order.narrow(0, batch as i64 * BATCH, BATCH);
            let predicted = forward(&xs.index_select(0, &rows), true);
            let loss = (predicted - ys.index_select(0, &rows))
                .square()
                .mean(Kind::Float);
            opt.zero_grad()?;
            loss.backward();
            let norm = opt.clip_grad_norm(1.0)?;
            opt.set_lr(schedule.at(step));
            opt.step()?;
            run.log_step(&loss, Some(&norm), opt.lr())?;
            if run.interrupted() {
                run.checkpoint(&vs, &opt)?;
                return Ok(End::Interrupted);
            }
            if run.should_checkpoint() {
                run.checkpoint(&vs, &opt)?;
            }
        }
        let rmse = Metric::Rmse.compute(&tch::no_grad(|| forward(&xs, false)), &ys)?;
        schedule.observe(rmse, Direction::Lower);
        run.set_schedule(&schedule);
        run.end_epoch(rmse, Direction::Lower, &[("rmse", rmse)], &vs, &opt)?;
    }
    run.finish(&vs, &opt)?;
    Ok(End::Finished)
}

/// Everything of a finished run that must not depend on how it came about, by file.
pub(crate) fn snapshot(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for name in ["config.toml", "metrics.jsonl"] {
        files.insert(
            name.to_owned(),
            std::fs::read(dir.join(name)).map_err(Error::io(name))?,
        );
    }
    for folder in ["last", "best"] {
        let path = dir.join(folder);
        for entry in std::fs::read_dir(&path).map_err(Error::io(&path))? {
            let file = entry.map_err(Error::io(&path))?.path();
            let name = file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let bytes = std::fs::read(&file).map_err(Error::io(&file))?;
            files.insert(format!("{folder}/{name}"), bytes);
        }
    }
    Ok(files)
}

/// Fails naming the files that differ.
#[track_caller]
pub(crate) fn assert_same(
    actual: &BTreeMap<String, Vec<u8>>,
    expected: &BTreeMap<String, Vec<u8>>,
    what: &str,
) {
    let keys = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(actual), keys(expected), "{what}");
    let differing: Vec<&String> = actual
        .keys()
        .filter(|name| actual[*name] != expected[*name])
        .collect();
    assert!(
        differing.is_empty(),
        "{what}: {differing:?} differ from the unbroken run"
    );
}
