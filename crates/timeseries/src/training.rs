//! The training loop of every forecaster of this crate, written out.

use std::time::{Duration, Instant};

use densely_core::{Error, Result, Tensors, nn, seeded};
use densely_train::event::Event;
use densely_train::machine::step_seed;
use densely_train::metrics::Direction;
use densely_train::run::{FitOptions, Run, RunOptions};
use serde::Serialize;
use tch::Tensor;
use tch::nn::VarStore;

use crate::fit::TrainSettings;

/// Settings that may differ when a run is resumed, since they do not change what was learnt so far.
const MAY_CHANGE: [&str; 6] = [
    "table",
    "train.epochs",
    "train.patience",
    "train.min_improvement",
    "train.eval_batch_size",
    "time_budget",
];

/// What a loop trains on: windows known by numbers, a loss, and a score where lower is better.
pub(crate) trait Task {
    /// What a step sees.
    type Batch;

    /// Windows of an epoch.
    fn windows(&self) -> u64;
    /// The numbers of an epoch's windows, in order.
    fn order(&self, epoch: u64) -> Vec<i64>;
    /// Some of them.
    fn batch(&self, numbers: &[i64]) -> Result<Self::Batch>;
    /// What a step minimises.
    fn loss(&self, batch: &Self::Batch) -> Result<Tensor>;
    /// What is saved of a step that diverged.
    fn tensors(batch: Self::Batch) -> Tensors;
    /// The score on the validation windows, and metrics by name.
    fn judge(&self) -> Result<(f64, Vec<(&'static str, f64)>)>;
}

/// What a loop needs beside its task.
pub(crate) struct Loop<'a> {
    /// The training loop.
    pub(crate) train: &'a TrainSettings,
    /// Where and how.
    pub(crate) options: &'a FitOptions<'a>,
    /// When the fit began.
    pub(crate) start: Instant,
    /// Seconds after which training ends with the best epoch so far; 0 for no limit.
    pub(crate) time_budget: f64,
}

/// What a finished loop found; the weights are those of the best epoch.
pub(crate) struct Finished {
    /// Trainable values of the model.
    pub(crate) parameters: u64,
    /// Epoch of the best validation score, counted from 0.
    pub(crate) best_epoch: u64,
    /// Epochs trained.
    pub(crate) epochs: u64,
    /// Whether the time was over before training had ended.
    pub(crate) out_of_time: bool,
    /// Seconds of training before this process.
    pub(crate) seconds_before: f64,
}

impl Loop<'_> {
    /// Trains the weights of `vs` in the run folder and loads those of the best epoch.
    ///
    /// `settings` are written to `config.toml`, `pipeline` is saved in each checkpoint as `preprocess.json`. The same seed and threads give the same bits
    /// on a CPU, however often the run was killed and resumed.
    pub(crate) fn run<T: Task>(
        &self,
        task: &T,
        vs: &VarStore,
        settings: &impl Serialize,
        pipeline: String,
        observe: &mut dyn FnMut(&Event),
    ) -> Result<Finished> {
        let Self { train, options, .. } = self;
        nn::check_names(vs)?;
        let parameters = nn::parameter_count(vs);
        let mut run = options.open(
            settings,
            RunOptions {
                patience: Some(train.patience),
                min_improvement: train.min_improvement,
                may_change: MAY_CHANGE.map(str::to_owned).to_vec(),
                ..RunOptions::default()
            },
        )?;
        run.set_preprocess(pipeline);
        let mut optimizer = train.optimizer.build(vs, &[])?;
        let steps_per_epoch = task.windows().div_ceil(train.batch_size as u64);
        let steps = steps_per_epoch.saturating_mul(train.epochs);
        let mut schedule = train
            .schedule
            .bind(train.optimizer.lr(), steps, steps_per_epoch)?;
        run.restore(vs, &mut optimizer, &mut schedule)?;
        observe(&Event::Started {
            parameters,
            steps,
            done: run.progress().step,
        });

        while !run.progress().finished
            && run.progress().epoch < train.epochs
            && !run.should_stop()
            && (!self.over() || run.progress().best.is_none())
        {
            let epoch = run.progress().epoch;
            let order = task.order(epoch);
            for numbers in order
                .chunks(train.batch_size as usize)
                .skip(run.progress().step_in_epoch as usize)
            {
                let step = run.progress().step;
                let lr = schedule.at(step);
                optimizer.set_lr(lr);
                let batch = task.batch(numbers)?;
                // Dropout is a function of seed and step, so a resumed run needs no generator's state.
                let loss = seeded(step_seed(options.seed, step), || task.loss(&batch))?;
                optimizer.zero_grad()?;
                loss.f_backward()?;
                let norm = (train.clip_norm > 0.0)
                    .then(|| optimizer.clip_grad_norm(train.clip_norm))
                    .transpose()?;
                optimizer.step()?;
                if let Err(error) = run.log_step(&loss, norm.as_ref(), lr) {
                    if matches!(error, Error::Diverged { .. }) {
                        let path = run.save_diverged(&T::tensors(batch))?;
                        tracing::warn!("the batch is in {}", path.display());
                    }
                    return Err(error);
                }
                observe(&Event::Step {
                    epoch,
                    step: run.progress().step,
                    loss: run.epoch_loss(),
                });
                self.stop_if_interrupted(&mut run, vs, &optimizer)?;
                if run.should_checkpoint() {
                    run.checkpoint(vs, &optimizer)?;
                }
                // An epoch may be long: the first one is left, too, and judged as far as it came.
                if self.over() {
                    break;
                }
            }
            let (score, metrics) = task.judge()?;
            schedule.observe(score, Direction::Lower);
            run.set_schedule(&schedule);
            let decision = run.end_epoch(score, Direction::Lower, &metrics, vs, &optimizer)?;
            observe(&Event::Epoch {
                epoch,
                score,
                improved: decision.improved,
            });
            self.stop_if_interrupted(&mut run, vs, &optimizer)?;
        }
        let out_of_time = self.over();
        if !run.progress().finished {
            run.finish(vs, &optimizer)?;
        }
        let epochs = run.progress().epoch;
        let best_epoch = run.load_best(vs)?.map_or(0, |best| best.epoch);
        Ok(Finished {
            parameters,
            best_epoch,
            epochs,
            out_of_time,
            seconds_before: run.seconds_before(),
        })
    }

    fn over(&self) -> bool {
        self.time_budget > 0.0 && self.start.elapsed() >= Duration::from_secs_f64(self.time_budget)
    }

    fn stop_if_interrupted(
        &self,
        run: &mut Run,
        vs: &VarStore,
        optimizer: &densely_train::optim::Optimizer,
    ) -> Result<()> {
        if !run.interrupted() {
            return Ok(());
        }
        run.checkpoint(vs, optimizer)?;
        Err(self.options.interrupted())
    }
}
