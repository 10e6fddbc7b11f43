//! The training loop of domains whose steps have one loss: epochs of batches in a run folder, the best epoch at the end.

use std::time::{Duration, Instant};

use densely_core::{Error, Result, Tensors, nn, seeded};
use serde::Serialize;
use tch::Tensor;
use tch::nn::VarStore;

use crate::average::Averaged;
use crate::event::Event;
use crate::machine::step_seed;
use crate::metrics::Direction;
use crate::optim::{GroupRule, OptimConfig};
use crate::run::{FitOptions, Run, RunOptions};
use crate::schedule::ScheduleConfig;

/// What a loop trains on.
pub trait Task {
    /// What a step sees.
    type Batch;

    /// Steps of an epoch.
    fn steps(&self) -> u64;
    /// The batches of an epoch without the first `skip`; a function of the epoch alone.
    ///
    /// # Errors
    /// Those of the data; a single batch may fail, too.
    fn epoch(&self, epoch: u64, skip: u64) -> Result<impl Iterator<Item = Result<Self::Batch>>>;
    /// Pieces of a batch whose gradients are added, for batches that memory does not hold at once.
    fn pieces(&self, _batch: &Self::Batch) -> u64 {
        1
    }
    /// What a step minimises: of the piece, times its share of the batch.
    ///
    /// # Errors
    /// Those of the model.
    fn loss(&self, batch: &Self::Batch, step: u64, piece: u64) -> Result<Tensor>;
    /// Called behind each step with the number of steps made, for those who look on: pictures of a training that goes on.
    ///
    /// # Errors
    /// Whatever the task cannot do; it ends the training.
    fn made(&self, _steps: u64) -> Result<()> {
        Ok(())
    }
    /// What is saved of the last step of a training that diverged.
    fn tensors(batch: Self::Batch) -> Tensors;
    /// Parameters that learn by settings of their own.
    fn rules(&self) -> Vec<GroupRule> {
        Vec::new()
    }
    /// The score on the validation part after so many steps, and metrics by name.
    ///
    /// # Errors
    /// Those of the model.
    fn judge(&self, steps: u64) -> Result<(f64, Vec<(&'static str, f64)>)>;
    /// Which scores are better.
    fn direction(&self) -> Direction {
        Direction::Lower
    }
}

/// What a loop needs beside its task.
#[derive(Debug)]
pub struct Loop<'a> {
    /// Optimiser and learning rate.
    pub optimizer: &'a OptimConfig,
    /// Learning rate over the steps.
    pub schedule: &'a ScheduleConfig,
    /// Epochs at most.
    pub epochs: u64,
    /// Epochs without a better score after which training stops.
    pub patience: u64,
    /// By how much a score must be better than the best for patience to start anew.
    pub min_improvement: f64,
    /// Largest norm of the gradient; 0 does not clip.
    pub clip_norm: f64,
    /// Share of the average of the weights that a step keeps ([`Averaged`]); 0 keeps no average.
    pub ema_decay: f64,
    /// Seconds after which training ends with the best epoch so far; 0 for no limit.
    pub time_budget: f64,
    /// Settings that may differ when a run is resumed.
    pub may_change: &'a [&'a str],
    /// Where and how.
    pub options: &'a FitOptions<'a>,
    /// When the fit began.
    pub start: Instant,
}

/// What a finished loop found; the weights are those of the best epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Finished {
    /// Trainable values of the model.
    pub parameters: u64,
    /// Epoch of the best validation score, counted from 0.
    pub best_epoch: u64,
    /// Epochs trained.
    pub epochs: u64,
    /// Whether the time was over before training had ended.
    pub out_of_time: bool,
    /// Seconds of training before this process.
    pub seconds_before: f64,
}

impl Loop<'_> {
    /// Trains the weights of `vs` in the run folder and loads those of the best epoch.
    ///
    /// `settings` are written to `config.toml`, `pipeline` is saved in each checkpoint as `preprocess.json`. The same seed and threads give the same bits
    /// on a CPU, however often the run was killed and resumed.
    /// # Errors
    /// [`Error::Config`] for settings that do not fit; [`Error::Diverged`] when the loss is no longer finite, with the last batch saved beside the
    /// checkpoints; [`Error::Interrupted`] after Ctrl-C; [`Error::Io`] and [`Error::Corrupt`] of the run folder.
    pub fn run<T: Task>(
        &self,
        task: &T,
        vs: &VarStore,
        settings: &impl Serialize,
        pipeline: String,
        observe: &mut dyn FnMut(&Event),
    ) -> Result<Finished> {
        let options = self.options;
        nn::check_names(vs)?;
        let parameters = nn::parameter_count(vs);
        let mut run = options.open(
            settings,
            RunOptions {
                patience: Some(self.patience),
                min_improvement: self.min_improvement,
                may_change: self.may_change.iter().map(|&key| key.to_owned()).collect(),
                ..RunOptions::default()
            },
        )?;
        run.set_preprocess(pipeline);
        let optimizer = self.optimizer.build(vs, &task.rules())?;
        let mut state = Averaged::new(optimizer, vs, self.ema_decay);
        let steps = task.steps().saturating_mul(self.epochs);
        let mut schedule = self
            .schedule
            .bind(self.optimizer.lr(), steps, task.steps())?;
        run.restore(vs, &mut state, &mut schedule)?;
        observe(&Event::Started {
            parameters,
            steps,
            done: run.progress().step,
        });

        while !run.progress().finished
            && run.progress().epoch < self.epochs
            && !run.should_stop()
            && (!self.over() || run.progress().best.is_none())
        {
            state.train();
            let epoch = run.progress().epoch;
            let mut batches = task.epoch(epoch, run.progress().step_in_epoch)?;
            let mut last: Option<T::Batch> = None;
            loop {
                let asked = Instant::now();
                let Some(batch) = batches.next().transpose()? else {
                    break;
                };
                let batch = &*last.insert(batch);
                run.waited_for_data(asked.elapsed());
                let step = run.progress().step;
                let lr = schedule.at(step);
                let optimizer = state.optimizer();
                optimizer.set_lr(lr);
                optimizer.zero_grad()?;
                // Dropout is a function of seed and step, so a resumed run needs no generator's state.
                let loss = seeded(step_seed(options.seed, step), || {
                    backward(task, batch, step)
                })?;
                let norm = (self.clip_norm > 0.0)
                    .then(|| optimizer.clip_grad_norm(self.clip_norm))
                    .transpose()?;
                optimizer.step()?;
                state.average(step + 1);
                if let Err(error) = run.log_step(&loss, norm.as_ref(), lr) {
                    return Err(run.with_batch(error, || last.take().map(T::tensors)));
                }
                task.made(run.progress().step)?;
                observe(&Event::Step {
                    epoch,
                    step: run.progress().step,
                    loss: run.epoch_loss(),
                });
                // A checkpoint reads the losses, too.
                let kept = self
                    .stop_if_interrupted(&mut run, vs, &mut state)
                    .and_then(|()| {
                        if run.should_checkpoint() {
                            state.evaluate();
                            run.checkpoint(vs, &state)?;
                            state.train();
                        }
                        Ok(())
                    });
                if let Err(error) = kept {
                    return Err(run.with_batch(error, || last.take().map(T::tensors)));
                }
                // An epoch may be long: the first one is left, too, and judged as far as it came.
                if self.over() {
                    break;
                }
            }
            drop(batches);
            // Before the weights are judged: of such that are no numbers a task says something else.
            if let Err(error) = run.read_back() {
                return Err(run.with_batch(error, || last.map(T::tensors)));
            }
            state.evaluate();
            let (score, metrics) = task.judge(run.progress().step)?;
            let direction = task.direction();
            schedule.observe(score, direction);
            run.set_schedule(&schedule);
            let decision = run.end_epoch(score, direction, &metrics, vs, &state)?;
            observe(&Event::Epoch {
                epoch,
                score,
                improved: decision.improved,
            });
            self.stop_if_interrupted(&mut run, vs, &mut state)?;
        }
        if run.progress().finished && run.progress().epoch < self.epochs && !run.should_stop() {
            tracing::warn!(
                "the run had ended after {} epochs; more want a run of their own",
                run.progress().epoch
            );
        }
        let out_of_time = self.over();
        if !run.progress().finished {
            state.evaluate();
            run.finish(vs, &state)?;
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
        let budget = Duration::try_from_secs_f64(self.time_budget).unwrap_or(Duration::MAX);
        self.time_budget > 0.0 && self.start.elapsed() >= budget
    }

    fn stop_if_interrupted(
        &self,
        run: &mut Run,
        vs: &VarStore,
        state: &mut Averaged,
    ) -> Result<()> {
        if !run.interrupted() {
            return Ok(());
        }
        state.evaluate();
        run.checkpoint(vs, state)?;
        Err(self.options.interrupted())
    }
}

/// Adds up the gradients of a batch's pieces; their losses in one.
fn backward<T: Task>(task: &T, batch: &T::Batch, step: u64) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for piece in 0..task.pieces(batch).max(1) {
        let loss = task.loss(batch, step, piece)?;
        loss.f_backward()?;
        let loss = loss.detach();
        sum = Some(match sum {
            Some(sum) => sum + loss,
            None => loss,
        });
    }
    sum.ok_or_else(|| Error::config("batch", "has no piece"))
}
