//! Training of one dictionary on a model's activations, in a run folder that resumes to the bit.

mod resample;
mod settings;

use std::path::Path;

use densely_core::{Error, Result, Tensors, check, nn, seeded};
use densely_train::machine::step_seed;
use densely_train::metrics::Direction;
use densely_train::optim::Optimizer;
use densely_train::run::{FitOptions, Run, RunOptions};
use serde::Serialize;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::folder::{self, Metadata};
use super::{Dictionary, Features};
use crate::activations::{Activations, Contents};

pub use settings::{FitSettings, Resample, Style};

/// What a fit tells while it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// The training starts or goes on.
    Started {
        /// Trainable values.
        parameters: u64,
        /// Steps in all.
        steps: u64,
        /// Steps made before.
        done: u64,
    },
    /// Activations are taken from the model.
    Harvest {
        /// Windows of the buffer that went through.
        done: usize,
        /// Windows of the buffer.
        all: usize,
        /// Tokens that went through the model since the start.
        tokens: u64,
        /// Seconds that took.
        seconds: f64,
    },
    /// A step was made.
    Step {
        /// Steps made.
        step: u64,
        /// Mean loss of the epoch, as far as it was read from the device.
        loss: Option<f64>,
    },
    /// An epoch was judged.
    Epoch {
        /// Counted from 0.
        epoch: u64,
        /// On the texts kept for judging.
        judged: Judged,
    },
}

/// A dictionary judged by the activations alone.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Judged {
    /// Share of the target's variance that is left; lower is better.
    pub fvu: f64,
    /// Features above 0 of a token, on average.
    pub l0: f64,
    /// Share of features that fired for none of the tokens.
    pub silent: f64,
    /// Tokens.
    pub tokens: u64,
}

/// A fitted dictionary.
#[derive(Debug)]
pub struct Fitted {
    /// With the weights of the best epoch, as [`Dictionary::settled`] gives it.
    pub dictionary: Dictionary,
    /// The store that shares the memory of its parameters.
    pub vs: VarStore,
    /// Of the best epoch, or of the last one where there was nothing to judge by.
    pub judged: Option<Judged>,
    /// Steps made in all.
    pub steps: u64,
    /// Passes over the texts in all.
    pub epochs: u64,
    /// Share of steps of which the active features alone were computed, of this process; none when it made no step.
    pub sparse: Option<f64>,
    /// Share of features that have not fired in the last `dead_after` tokens of training.
    pub dead: f64,
}

/// A dictionary that is being trained, with what is saved beside its weights.
#[derive(Debug)]
pub struct Trainer {
    /// The dictionary.
    pub dictionary: Dictionary,
    /// Tokens since each feature fired, i64 `[features]`.
    since: Tensor,
    /// Step behind which dead features were last set anew, and -1 before that; i64.
    resampled: Tensor,
}

/// What a run folder is begun with: a training goes on with the same activations alone.
#[derive(Serialize)]
struct Begun<'a> {
    #[serde(flatten)]
    settings: &'a FitSettings,
    trained_on: Contents,
    judged_by: Option<Contents>,
}

/// Trains a dictionary on the activations of one point, and of another where it is a transcoder.
///
/// `observe` hears of all that happens; its error behind a step ends the training with all that was done saved. `settings` are written to the run folder; so is the dictionary at the end, in the folder `dictionary` there, in the format that can hold it.
/// # Errors
/// [`Error::Config`] for settings that do not fit; [`Error::Diverged`] when the loss is no longer finite; [`Error::Interrupted`] after Ctrl-C, with all that
/// was done saved; those of the activations, the model and the run folder.
pub fn fit(
    settings: &FitSettings,
    train: &Activations,
    test: Option<&Activations>,
    metadata: &Metadata,
    options: &FitOptions,
    observe: &mut dyn FnMut(&Event) -> Result<()>,
) -> Result<Fitted> {
    settings.validate()?;
    let device = options.device;
    let vs = VarStore::new(device);
    let mut state = seeded(step_seed(options.seed, u64::MAX), || {
        Trainer::new(settings, &vs)
    })?;
    nn::check_names(&vs)?;
    let parameters = nn::parameter_count(&vs);
    let plan: Vec<u64> = (0..train.buffers())
        .map(|buffer| batches(train.tokens(buffer), settings.batch))
        .collect();
    let per_epoch: u64 = plan.iter().sum();
    let steps = per_epoch.saturating_mul(settings.epochs);
    let begun = Begun {
        settings,
        trained_on: train.contents()?,
        judged_by: test.map(Activations::contents).transpose()?,
    };
    let mut run = options.open(
        &begun,
        RunOptions {
            may_change: vec!["epochs".to_owned()],
            ..RunOptions::default()
        },
    )?;
    run.set_preprocess(serde_json::json!(metadata).to_string());
    let mut optimizer = settings.optim.build(&vs, &[])?;
    let mut schedule = settings
        .schedule
        .bind(settings.optim.lr(), steps, per_epoch)?;
    run.restore(&vs, &mut optimizer, &mut schedule)?;
    observe(&Event::Started {
        parameters,
        steps,
        done: run.progress().step,
    })?;
    let mut judged = None;
    let (mut sparse, mut made) = (0u64, 0u64);
    // A run that was stopped in its first harvest has no step, and no first biases.
    let mut fresh = run.progress().step == 0;
    while !run.progress().finished && run.progress().epoch < settings.epochs {
        let epoch = run.progress().epoch;
        let mut before = 0;
        for (buffer, count) in plan.iter().enumerate() {
            // A buffer whose steps were all made is not made again.
            let first = run
                .progress()
                .step_in_epoch
                .saturating_sub(before)
                .min(*count);
            before += count;
            if first == *count {
                continue;
            }
            let held = train.buffer(buffer, &settings.points(), &mut |done, all| {
                observe(&taken(train, done, all))?;
                interrupt(&mut run, &vs, &optimizer, options)
            });
            // The steps behind the last checkpoint are kept where a buffer cannot be.
            let held = or_save(held, &mut run, &vs, &optimizer)?;
            let (x, target) = settings.pair(&held)?;
            if fresh {
                let rows = x.size()[0].min(FIRST_ROWS);
                let part = |xs: &Tensor| -> Result<Tensor> {
                    Ok(xs.f_narrow(0, 0, rows)?.f_to_device(device)?)
                };
                state
                    .dictionary
                    .start_from(&part(x)?, &part(target)?, settings.centre)?;
                fresh = false;
            }
            for index in first..*count {
                let (start, length) = piece(x.size()[0], *count, index);
                let rows = |xs: &Tensor| -> Result<Tensor> {
                    Ok(xs.f_narrow(0, start, length)?.f_to_device(device)?)
                };
                let (x, target) = (rows(x)?, rows(target)?);
                let step = run.progress().step;
                let lr = schedule.at(step);
                let found = seeded(step_seed(options.seed, step), || {
                    state.step(settings, &mut optimizer, &x, &target, step, lr)
                })?;
                made += 1;
                sparse += u64::from(found.sparse);
                if let Err(error) = run.log_step(&found.loss, found.norm.as_ref(), found.lr) {
                    let batch = || {
                        Some(Tensors::from([
                            ("x".to_owned(), x.shallow_clone()),
                            ("target".to_owned(), target.shallow_clone()),
                        ]))
                    };
                    return Err(run.with_batch(error, batch));
                }
                let told = observe(&Event::Step {
                    step: run.progress().step,
                    loss: run.epoch_loss(),
                });
                or_save(told, &mut run, &vs, &optimizer)?;
                interrupt(&mut run, &vs, &optimizer, options)?;
                if run.should_checkpoint() {
                    run.checkpoint(&vs, &optimizer)?;
                }
            }
        }
        run.read_back()?;
        let found = match test {
            Some(test) => {
                let settled = state.dictionary.settled()?;
                let found = judge(&settled, settings, test, device, &mut |done, all| {
                    observe(&taken(test, done, all))?;
                    interrupt(&mut run, &vs, &optimizer, options)
                });
                let found = or_save(found, &mut run, &vs, &optimizer)?;
                observe(&Event::Epoch {
                    epoch,
                    judged: found,
                })?;
                judged = Some(found);
                Some(found)
            }
            None => None,
        };
        let metrics = found.map(|judged| [("l0", judged.l0), ("silent", judged.silent)]);
        let metrics = metrics.as_ref().map_or(&[][..], |metrics| &metrics[..]);
        let loss = run.epoch_loss().unwrap_or(f64::MAX);
        let score = found.map_or(loss, |judged| judged.fvu);
        run.end_epoch(score, Direction::Lower, metrics, &vs, &optimizer)?;
        interrupt(&mut run, &vs, &optimizer, options)?;
    }
    let dead = state.share_dead(settings)?;
    if !run.progress().finished {
        run.finish(&vs, &optimizer)?;
    } else if run.progress().epoch < settings.epochs {
        tracing::warn!(
            "the run had ended after {} epochs; more want a run of their own",
            run.progress().epoch
        );
    }
    let (steps, epochs) = (run.progress().step, run.progress().epoch);
    run.load_best(&vs)?;
    let settled = state.dictionary.settled()?;
    if judged.is_none()
        && let Some(test) = test
    {
        judged = Some(judge(&settled, settings, test, device, &mut |_, _| {
            if run.interrupted() {
                return Err(options.interrupted());
            }
            Ok(())
        })?);
    }
    drop(run);
    folder::save(
        &state.dictionary,
        metadata,
        &options.folder.join(DICTIONARY),
        None,
    )?;
    Ok(Fitted {
        dictionary: settled,
        vs,
        judged,
        steps,
        epochs,
        sparse: (made > 0).then(|| sparse as f64 / made as f64),
        dead,
    })
}

/// The folder of the finished dictionary in a run folder.
pub const DICTIONARY: &str = "dictionary";

/// Rows by which the first biases are set.
const FIRST_ROWS: i64 = 1 << 14;

/// A dictionary from a folder of any format, or from a run folder of [`fit`].
///
/// # Errors
/// Those of [`folder::open`].
pub fn open(path: &Path, device: densely_core::Device) -> Result<folder::Opened> {
    let inner = path.join(DICTIONARY);
    folder::open(if inner.is_dir() { &inner } else { path }, device)
}

/// Saves and ends where somebody asked for it.
fn interrupt(
    run: &mut Run,
    vs: &VarStore,
    optimizer: &Optimizer,
    options: &FitOptions,
) -> Result<()> {
    if !run.interrupted() {
        return Ok(());
    }
    run.checkpoint(vs, optimizer)?;
    Err(options.interrupted())
}

/// What is told while a buffer is made.
fn taken(from: &Activations, done: usize, all: usize) -> Event {
    let (tokens, seconds) = from.harvested();
    Event::Harvest {
        done,
        all,
        tokens,
        seconds,
    }
}

/// What came of some work, or its error with all that was done saved before it. A loss that is no number is not worth a checkpoint.
fn or_save<T>(result: Result<T>, run: &mut Run, vs: &VarStore, optimizer: &Optimizer) -> Result<T> {
    let ended = |error: &Error| {
        // An interrupted run is saved already.
        !matches!(
            error,
            Error::Interrupted { .. } | Error::Diverged { .. } | Error::Data { .. }
        )
    };
    if result.as_ref().is_err_and(ended)
        && let Err(error) = run.checkpoint(vs, optimizer)
    {
        tracing::warn!("what was done since the last checkpoint could not be saved: {error}");
    }
    result
}

/// Steps that so many tokens make: as near to the batch as whole ones come, all of a size but for one token.
fn batches(tokens: usize, batch: usize) -> u64 {
    ((tokens + batch / 2) / batch).max(1) as u64
}

/// Start and length of part `index` of `count` of so many rows.
fn piece(rows: i64, count: u64, index: u64) -> (i64, i64) {
    let at = |index: u64| (rows as i128 * index as i128 / count as i128) as i64;
    let start = at(index);
    (start, at(index + 1) - start)
}

/// What a step found.
#[derive(Debug)]
pub struct Stepped {
    /// The loss, a scalar.
    pub loss: Tensor,
    /// The norm of the gradient, where it is clipped.
    pub norm: Option<Tensor>,
    /// The learning rate that it was made with.
    pub lr: f64,
    /// Whether the active features alone were computed.
    pub sparse: bool,
}

impl Trainer {
    /// Creates all parameters under the root of `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting that is out of range.
    pub fn new(settings: &FitSettings, vs: &VarStore) -> Result<Self> {
        settings.validate()?;
        let dictionary = settings.dictionary.build(&vs.root())?;
        let options = (Kind::Int64, Device::Cpu);
        let features = settings.dictionary.d_sae;
        Ok(Self {
            dictionary,
            since: nn::buffer(&vs.root(), "since", &Tensor::f_zeros([features], options)?),
            resampled: nn::buffer(&vs.root(), "resampled", &Tensor::f_full([], -1, options)?),
        })
    }

    /// Features that have not fired for long, bool `[features]`.
    fn dead(&self, settings: &FitSettings) -> Result<Option<Tensor>> {
        let after = settings.dead_after as i64;
        Ok((after > 0).then(|| self.since.f_ge(after)).transpose()?)
    }

    fn share_dead(&self, settings: &FitSettings) -> Result<f64> {
        let Some(dead) = self.dead(settings)? else {
            return Ok(0.0);
        };
        let count = dead.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        Ok(count as f64 / settings.dictionary.d_sae as f64)
    }

    /// One step of training. The order is the paper's code's: the decoder's rows are brought to norm 1 before the loss, and what would change it is taken
    /// from the gradient behind it. `step` counts from 0, for what goes by steps; `lr` is lower behind a resampling.
    ///
    /// # Shapes
    /// `x`: `[rows, d_in]`; `target`: `[rows, d_out]`.
    /// # Errors
    /// [`Error::Shape`] when shapes or kinds do not fit.
    pub fn step(
        &mut self,
        settings: &FitSettings,
        optimizer: &mut Optimizer,
        x: &Tensor,
        target: &Tensor,
        step: u64,
        lr: f64,
    ) -> Result<Stepped> {
        if settings.unit_rows {
            self.dictionary.unit_rows()?;
        }
        self.resample(settings, optimizer, x, target, step)?;
        let lr = lr * self.recovery(settings, step)?;
        optimizer.set_lr(lr);
        let dead = self.dead(settings)?;
        let sparsity = match settings.sparsity_warmup {
            0 => 1.0,
            warmup => (step as f64 / warmup as f64).min(1.0),
        };
        optimizer.zero_grad()?;
        let (coded, losses) = self.dictionary.losses(x, target, dead.as_ref(), sparsity)?;
        losses.total.f_backward()?;
        if settings.unit_rows {
            self.dictionary.remove_parallel_gradient()?;
        }
        let norm = (settings.clip_norm > 0.0)
            .then(|| optimizer.clip_grad_norm(settings.clip_norm))
            .transpose()?;
        optimizer.step()?;
        self.dictionary.clamp_threshold()?;
        self.dictionary.follow_threshold(&coded.features)?;
        self.note(&coded.features, x.size()[0])?;
        Ok(Stepped {
            loss: losses.total.detach(),
            norm,
            lr,
            sparse: coded.features.is_sparse(),
        })
    }

    /// Counts the tokens since each feature fired.
    fn note(&mut self, features: &Features, rows: i64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let fired = features.fired()?;
        let _ = self.since.f_add_scalar_(rows)?.f_masked_fill_(&fired, 0)?;
        Ok(())
    }
}

/// A dictionary judged by all activations of some texts.
///
/// # Errors
/// Those of the activations; [`Error::Config`] when they lack the dictionary's points.
pub fn judge(
    dictionary: &Dictionary,
    settings: &FitSettings,
    test: &Activations,
    device: Device,
    tell: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Judged> {
    let _no_grad = tch::no_grad_guard();
    let double = (Kind::Double, device);
    let width = dictionary.config().d_out;
    let mut left = Tensor::f_zeros([], double)?;
    let (mut squares, mut sums) = (
        Tensor::f_zeros([], double)?,
        Tensor::f_zeros([width], double)?,
    );
    let (mut active, mut tokens) = (0, 0);
    let mut counts = Tensor::f_zeros([dictionary.config().d_sae], (Kind::Int64, device))?;
    for buffer in 0..test.buffers() {
        let held = test.buffer(buffer, &settings.points(), tell)?;
        let (x, target) = settings.pair(&held)?;
        for (x, target) in x
            .f_split(JUDGED_ROWS, 0)?
            .iter()
            .zip(target.f_split(JUDGED_ROWS, 0)?)
        {
            let (x, target) = (x.f_to_device(device)?, target.f_to_device(device)?);
            let coded = dictionary.forward(&x)?;
            let rest = target
                .f_sub(&coded.reconstruction)?
                .f_to_kind(Kind::Double)?;
            left = left.f_add(&rest.f_square()?.f_sum(Kind::Double)?)?;
            let wide = target.f_to_kind(Kind::Double)?;
            squares = squares.f_add(&wide.f_square()?.f_sum(Kind::Double)?)?;
            sums =
                sums.f_add(&wide.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Double)?)?;
            active += coded.features.active()?;
            counts = counts.f_add(&coded.features.counts()?)?;
            tokens += x.size()[0];
        }
    }
    check::positive("tokens to judge by", tokens)?;
    let mean = sums.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])? / tokens as f64;
    let variance = squares.f_double_value(&[])? - mean;
    let silent = counts.f_eq(0)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    let fvu = left.f_double_value(&[])? / variance;
    if !fvu.is_finite() {
        let reason = "the dictionary gives no finite numbers for the texts to judge by";
        return Err(Error::data("", reason));
    }
    Ok(Judged {
        fvu,
        l0: active as f64 / tokens as f64,
        silent: silent as f64 / dictionary.config().d_sae as f64,
        tokens: tokens as u64,
    })
}

/// Rows that are judged at once.
const JUDGED_ROWS: i64 = 4096;
