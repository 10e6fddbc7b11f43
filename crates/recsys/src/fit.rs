//! From encoded rows to a trained click model: train, choose the epoch, evaluate. The loop is written out.
//!
//! The semantics are those of FuxiCTR's trainer: mean binary cross-entropy, whole tables regularised at every step, the gradient clipped,
//! one evaluation per epoch, a tenth of the learning rate after an epoch without a better score, the best epoch at the end. The loss is
//! computed from logits, which is the same where FuxiCTR's does not saturate.

use std::time::Instant;

use densely_core::{Error, Result, Tensors, nn, seeded};
use densely_train::calibration::{self, Calibration};
use densely_train::event::Event;
use densely_train::machine::{peak_rss_mb, step_seed};
use densely_train::metrics::Direction;
use densely_train::optim::{AdamConfig, OptimConfig};
pub use densely_train::run::FitOptions;
use densely_train::run::{Run, RunOptions};
use densely_train::schedule::{ScheduleConfig, Shape};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Device, Kind, Reduction, Tensor};

use crate::examples::{Batch, Examples};
use crate::logistic::LogisticConfig;
use crate::metrics::Scores;
use crate::models::CtrModel;
use crate::network;
use crate::optim::Optimizer;
use crate::prepare::Prepared;
use crate::settings::{CtrSettings, TrainSettings};

/// What prediction needs beside the weights; saved in each checkpoint as `preprocess.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Name of the preset.
    pub preset: String,
    /// Its config, with the fields of the map.
    pub config: Value,
    /// The feature map, as its file holds it.
    pub feature_map: Value,
    /// From which value of the label on it is a click.
    pub click_from: Option<f64>,
}

/// Settings that may differ when a run is resumed, since they do not change what was learnt so far.
const MAY_CHANGE: [&str; 6] = [
    "table",
    "train.epochs",
    "train.patience",
    "train.min_improvement",
    "train.eval_batch_size",
    "train.calibrate",
];

/// What a finished fit found.
#[derive(Debug)]
pub struct Outcome {
    /// Trainable values of the model.
    pub parameters: u64,
    /// Epoch of the best validation score, counted from 0.
    pub best_epoch: u64,
    /// Epochs trained.
    pub epochs: u64,
    /// On the validation rows, of the best epoch.
    pub valid: Scores,
    /// On the test rows, of the best epoch.
    pub test: Scores,
    /// Probabilities of the test rows.
    pub predictions: Vec<f64>,
    /// Whether probabilities mean what they say; the predictions are scaled where the settings ask for it.
    pub calibration: Calibration,
    /// On the test rows: what needs no network.
    pub baselines: Vec<(&'static str, Scores)>,
    /// Seconds of this process, training and evaluation.
    pub seconds: f64,
    /// Rows per second that training went through, evaluation not counted; of this process.
    pub train_rows_per_second: Option<f64>,
    /// Largest resident memory of this process, MB, where the system tells.
    pub peak_mb: Option<f64>,
}

impl Outcome {
    /// Says so where a baseline orders the test rows better than the network.
    pub fn behind(&self) -> Option<String> {
        let auc = |scores: &Scores| scores.auc.unwrap_or(0.0);
        let (own, best) = (auc(&self.test), self.baselines.iter());
        let (name, best) = best.max_by(|a, b| auc(&a.1).total_cmp(&auc(&b.1)))?;
        (auc(best) > own).then(|| {
            format!(
                "on the test rows {name} has the better auc, {:.4} against {own:.4}: from this table the network learnt no more than that",
                auc(best)
            )
        })
    }
}

/// Trains on `prepared` in the run folder and evaluates the best epoch, beside popularity and logistic regression.
///
/// The same seed and threads give the same bits on a CPU, however often the run was killed and resumed, as long as other threads of the process
/// draw from libtorch's generator only through [`seeded`].
/// # Errors
/// [`Error::Config`] for settings that do not fit; [`Error::Diverged`] when the loss is no longer finite, with the batch saved beside the
/// checkpoints; [`Error::Interrupted`] after Ctrl-C; [`Error::Io`] and [`Error::Corrupt`] of the run folder.
pub fn fit(
    prepared: &Prepared,
    settings: &CtrSettings,
    options: &FitOptions,
    observe: &mut dyn FnMut(&Event),
) -> Result<Outcome> {
    let start = Instant::now();
    let train = &settings.train;
    train.validate(settings.data.group.is_some())?;
    let device = options.device;
    let config = settings.model.resolve(&prepared.map)?;
    let vs = VarStore::new(device);
    let model = seeded(step_seed(options.seed, u64::MAX), || {
        network::build(&settings.model.preset, &config, &vs.root())
    })?;
    nn::check_names(&vs)?;
    let parameters = nn::parameter_count(&vs);

    let run_options = RunOptions {
        patience: Some(train.patience),
        min_improvement: train.min_improvement,
        may_change: MAY_CHANGE.map(str::to_owned).to_vec(),
        ..RunOptions::default()
    };
    let mut run = options.open(settings, run_options)?;
    let map = serde_json::from_str(&prepared.map.to_json()?);
    let pipeline = Pipeline {
        preset: settings.model.preset.clone(),
        config,
        feature_map: map.map_err(|e| Error::config("feature map", e.to_string()))?,
        click_from: settings.data.click_from,
    };
    run.set_preprocess(json!(pipeline).to_string());
    let mut optimizer = Optimizer::new(&train.optimizer, &vs, &model)?;
    if train.optimizer.mini_batch_aware > 0.0 {
        count_ids(&mut optimizer, prepared)?;
    }
    let steps_per_epoch = prepared.train.len().div_ceil(train.batch_size) as u64;
    let steps = steps_per_epoch.saturating_mul(train.epochs);
    let mut schedule = train
        .schedule()
        .bind(train.optimizer.lr, steps, steps_per_epoch)?;
    run.restore(&vs, &mut optimizer, &mut schedule)?;
    observe(&Event::Started {
        parameters,
        steps,
        done: run.progress().step,
    });

    let (mut seconds_training, mut rows_trained) = (0.0, 0.0);
    while !run.progress().finished && run.progress().epoch < train.epochs && !run.should_stop() {
        let epoch = run.progress().epoch;
        let skip = run.progress().step_in_epoch;
        let begun = Instant::now();
        let batches = prepared
            .train
            .epoch(train.batch_size, options.seed, epoch, skip, device);
        let mut last = None;
        for batch in batches {
            let batch = &*last.insert(batch?);
            let step = run.progress().step;
            let lr = schedule.at(step);
            optimizer.set_lr(lr);
            // Dropout is a function of seed and step, so a resumed run needs no generator's state.
            let logits = seeded(step_seed(options.seed, step), || {
                model.forward(&batch.inputs, true)
            })?;
            let loss = loss(&logits, &batch.labels)?;
            let stepped = optimizer.step(&loss);
            rows_trained += batch.labels.numel() as f64;
            let logged = stepped
                .and_then(|norm| run.log_step(&loss.detach(), Some(&Tensor::from(norm)), lr));
            if let Err(error) = logged {
                return Err(run.with_batch(error, || last.map(saved)));
            }
            observe(&Event::Step {
                epoch,
                step: run.progress().step,
                loss: run.epoch_loss(),
            });
            // A checkpoint reads the losses, too.
            let kept = stop_if_interrupted(&mut run, &vs, &optimizer, options).and_then(|()| {
                if run.should_checkpoint() {
                    run.checkpoint(&vs, &optimizer)?;
                }
                Ok(())
            });
            if let Err(error) = kept {
                return Err(run.with_batch(error, || last.map(saved)));
            }
        }
        seconds_training += begun.elapsed().as_secs_f64();
        // Before the weights are judged: of such that are no numbers a metric says something else.
        if let Err(error) = run.read_back() {
            return Err(run.with_batch(error, || last.map(saved)));
        }
        let (found, _) = evaluate(&model, &prepared.valid, train.eval_batch_size, device)?;
        let score = train.monitor.score(&found)?;
        schedule.observe(score, Direction::Higher);
        run.set_schedule(&schedule);
        let metrics: Vec<(&str, f64)> = found.all().iter().map(|(m, v)| (m.name(), *v)).collect();
        let decision = run.end_epoch(score, Direction::Higher, &metrics, &vs, &optimizer)?;
        observe(&Event::Epoch {
            epoch,
            score,
            improved: decision.improved,
        });
        stop_if_interrupted(&mut run, &vs, &optimizer, options)?;
    }
    if !run.progress().finished {
        run.finish(&vs, &optimizer)?;
    }

    let epochs = run.progress().epoch;
    let best_epoch = run.load_best(&vs)?.map_or(0, |best| best.epoch);
    let batch = train.eval_batch_size;
    let (mut valid, of_valid) = evaluate(&model, &prepared.valid, batch, device)?;
    let (mut test, mut predictions) = evaluate(&model, &prepared.test, batch, device)?;
    let calibration = Calibration::new(
        &of_two_classes(&of_valid),
        &targets(&prepared.valid),
        &of_two_classes(&predictions),
        &targets(&prepared.test),
    )?;
    let temperature = train.calibrate.then_some(calibration.temperature);
    if let Some(temperature) = temperature {
        predictions = scaled(&predictions, temperature)?;
        valid = prepared.valid.scores(&scaled(&of_valid, temperature)?)?;
        test = prepared.test.scores(&predictions)?;
    }
    calibration::save_temperature(options.folder, temperature)?;
    Ok(Outcome {
        parameters,
        best_epoch,
        epochs,
        valid,
        test,
        calibration,
        predictions,
        baselines: baselines(prepared, settings, options.seed)?,
        seconds: start.elapsed().as_secs_f64(),
        train_rows_per_second: (seconds_training > 0.0).then(|| rows_trained / seconds_training),
        peak_mb: peak_rss_mb(),
    })
}

impl TrainSettings {
    /// The learning rate after epochs without a better score.
    fn schedule(&self) -> ScheduleConfig {
        if self.lr_factor >= 1.0 {
            return ScheduleConfig::constant();
        }
        ScheduleConfig {
            shape: Shape::Plateau {
                factor: self.lr_factor,
                patience: 0,
                threshold: self.min_improvement,
                absolute: true,
                cooldown: 0,
                min_lr: self.min_lr,
            },
            warmup_steps: 0,
        }
    }
}

/// Mean binary cross-entropy from logits.
fn loss(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    Ok(logits.f_binary_cross_entropy_with_logits(
        labels,
        None::<&Tensor>,
        None::<&Tensor>,
        Reduction::Mean,
    )?)
}

/// Tells how often each id occurs in the training rows, which mini-batch aware regularisation divides by.
fn count_ids(optimizer: &mut Optimizer, prepared: &Prepared) -> Result<()> {
    for field in prepared.map.fields() {
        let Some(size) = field.vocab_size() else {
            continue;
        };
        let mut counts = Tensor::zeros([size], (Kind::Int64, Device::Cpu));
        for batch in prepared.train.chunks(65_536, Device::Cpu) {
            if let Some(ids) = batch?.inputs.get(field.name()) {
                let ids = ids.f_flatten(0, -1)?;
                let _ = counts.f_add_(&ids.f_bincount(None::<&Tensor>, size)?)?;
            }
        }
        let owner = field.share_embedding().unwrap_or(field.name());
        optimizer.add_counts(owner, &counts)?;
    }
    Ok(())
}

/// Probabilities of all rows in order, and what they score.
///
/// # Errors
/// Those of the network and of [`Scores::new`].
pub fn evaluate(
    model: &CtrModel,
    examples: &Examples,
    batch: usize,
    device: Device,
) -> Result<(Scores, Vec<f64>)> {
    score(examples, batch, device, |inputs| {
        model.forward(inputs, false)
    })
}

fn score(
    examples: &Examples,
    batch: usize,
    device: Device,
    logits: impl Fn(&Tensors) -> Result<Tensor>,
) -> Result<(Scores, Vec<f64>)> {
    let _no_grad = tch::no_grad_guard();
    let mut probabilities = Vec::with_capacity(examples.len());
    for rows in examples.chunks(batch, device) {
        probabilities.extend(probabilities_of(&logits(&rows?.inputs)?)?);
    }
    Ok((examples.scores(&probabilities)?, probabilities))
}

/// Sigmoids in the network's precision, as FuxiCTR has them, then f64.
pub(crate) fn probabilities_of(logits: &Tensor) -> Result<Vec<f64>> {
    let p = logits.f_sigmoid()?.f_to_kind(Kind::Double)?;
    let p: Vec<f64> = Vec::try_from(p.f_to_device(Device::Cpu)?)?;
    match p.iter().find(|p| p.is_nan()) {
        None => Ok(p),
        Some(_) => Err(Error::Shape {
            what: "logit".to_owned(),
            expected: "numbers".to_owned(),
            got: "NaN: the network has diverged".to_owned(),
        }),
    }
}

fn of_two_classes(probabilities: &[f64]) -> Tensor {
    let ones = Tensor::from_slice(probabilities);
    Tensor::stack(&[1.0 - &ones, ones], 1)
}

fn scaled(probabilities: &[f64], temperature: f64) -> Result<Vec<f64>> {
    let both = calibration::scale(&of_two_classes(probabilities), temperature);
    Ok(Vec::try_from(both.f_select(1, 1)?)?)
}

fn targets(examples: &Examples) -> Tensor {
    let labels: Vec<i64> = examples
        .clicks()
        .iter()
        .map(|click| i64::from(*click))
        .collect();
    Tensor::from_slice(&labels)
}

/// What is saved of a step that diverged.
fn saved(batch: Batch) -> Tensors {
    let mut tensors = batch.inputs;
    tensors.insert("label".to_owned(), batch.labels);
    tensors
}

fn stop_if_interrupted(
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

/// Rows of the average that popularity mixes into an item's own share of clicks.
const PRIOR_ROWS: f64 = 10.0;
/// Learning rate of the logistic baseline: its weights start at 0 and move by the rate at most, so it must let them get somewhere.
const LOGISTIC_LR: f64 = 0.01;
/// Weight of the squares of its weights.
const LOGISTIC_L2: f64 = 1e-6;
/// Its epochs at most.
const LOGISTIC_EPOCHS: u64 = 30;
/// Rows of all its epochs at most: a baseline must not take longer than the network.
const LOGISTIC_ROWS: usize = 20_000_000;

/// The share of clicks of each item, and logistic regression on all fields; on the test rows.
fn baselines(
    prepared: &Prepared,
    settings: &CtrSettings,
    seed: u64,
) -> Result<Vec<(&'static str, Scores)>> {
    let mut baselines = Vec::new();
    if let Some(item) = &settings.data.item {
        baselines.push(("popularity", popularity(prepared, item)?));
    }
    baselines.push((
        "logistic regression",
        logistic(prepared, &settings.train, seed)?,
    ));
    Ok(baselines)
}

/// A row's probability is the smoothed share of clicks of its item in the training rows.
fn popularity(prepared: &Prepared, item: &str) -> Result<Scores> {
    let Some(vocabulary) = prepared.map.vocabulary(item) else {
        let reason = format!("`{item}` is no categorical field");
        return Err(Error::config("data.item", reason));
    };
    let items = |examples: &Examples| -> Result<Vec<i64>> {
        let mut all = Vec::with_capacity(examples.len());
        for rows in examples.chunks(65_536, Device::Cpu) {
            let rows = rows?;
            let ids = rows.inputs.get(item).ok_or_else(|| {
                Error::config("data.item", format!("`{item}` is no field of the model"))
            })?;
            all.extend(Vec::<i64>::try_from(ids)?);
        }
        Ok(all)
    };
    let mut counts = vec![(0.0, 0.0); vocabulary.size() as usize];
    let train = &prepared.train;
    let mut clicks = 0.0;
    for (id, click) in items(train)?.into_iter().zip(train.clicks()) {
        let (shown, clicked) = &mut counts[id as usize];
        *shown += 1.0;
        *clicked += f64::from(u8::from(*click));
        clicks += f64::from(u8::from(*click));
    }
    let average = clicks / train.len() as f64;
    let share = |id: i64| {
        let (shown, clicked) = counts[id as usize];
        (clicked + PRIOR_ROWS * average) / (shown + PRIOR_ROWS)
    };
    let test = &prepared.test;
    let probabilities: Vec<f64> = items(test)?.into_iter().map(share).collect();
    test.scores(&probabilities)
}

/// Trained in memory, with the epoch that is best on the validation rows.
fn logistic(prepared: &Prepared, train: &TrainSettings, seed: u64) -> Result<Scores> {
    let vs = VarStore::new(Device::Cpu);
    let fields = prepared.map.fields();
    let model = LogisticConfig { fields }.build(&vs.root())?;
    let adam = OptimConfig::Adam(AdamConfig {
        lr: LOGISTIC_LR,
        weight_decay: LOGISTIC_L2,
        ..AdamConfig::default()
    });
    let mut optimizer = adam.build(&vs, &[])?;
    let mut best: Option<(f64, Scores)> = None;
    let mut steps = LOGISTIC_ROWS.div_ceil(train.batch_size);
    for epoch in 0..LOGISTIC_EPOCHS {
        let batches = prepared
            .train
            .epoch(train.batch_size, seed, epoch, 0, Device::Cpu);
        for batch in batches.take(steps) {
            let batch = batch?;
            steps -= 1;
            let loss = loss(&model.forward(&batch.inputs)?, &batch.labels)?;
            optimizer.zero_grad()?;
            loss.f_backward()?;
            optimizer.step()?;
        }
        let of = |examples| {
            let logits = |inputs: &Tensors| model.forward(inputs);
            score(examples, train.eval_batch_size, Device::Cpu, logits)
        };
        let value = train.monitor.score(&of(&prepared.valid)?.0)?;
        if best.as_ref().is_some_and(|(before, _)| value <= *before) {
            break;
        }
        best = Some((value, of(&prepared.test)?.0));
        if steps == 0 {
            break;
        }
    }
    let (_, scores) = best.ok_or_else(|| Error::config("baseline", "has no epoch"))?;
    Ok(scores)
}
