//! From a table to a trained model: prepare, train, evaluate. The loop is written out.

use std::time::{Duration, Instant};

use densely_core::{Error, Result, Tensors, nn, seeded};
use densely_data::dataset::{Batch, Dataset, Order};
use densely_data::preprocess::Preprocessor;
use densely_data::schema::{Role, Schema, SchemaOptions, Task};
use densely_data::split::{Split, SplitConfig};
use densely_data::table::Table;
use densely_torch_ext::Autocast;
use densely_train::amp::GradScaler;
pub use densely_train::event::Event;
use densely_train::graph::StepGraph;
use densely_train::machine::{peak_rss_mb, step_seed};
use densely_train::metrics::Metric;
use densely_train::optim::{GroupRule, Optimizer};
pub use densely_train::run::FitOptions;
use densely_train::run::{Run, RunOptions};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use crate::calibration::{self, Calibration};
use crate::fitted::save_members;
pub use crate::fitted::{Fitted, Pipeline};
use crate::models::{ModelConfig, TabularModel};
use crate::settings::{
    Batches, ClassWeights, DataSettings, Decay, EmbeddingSettings, FitSettings, Precision,
    TrainSettings,
};
use crate::task;

/// A table made ready: features and targets of each part as tensors, and what it took to make them.
#[derive(Debug)]
pub struct Prepared {
    /// Roles of the columns.
    pub schema: Schema,
    /// What is predicted.
    pub task: Task,
    /// Fitted on the training rows.
    pub preprocessor: Preprocessor,
    /// Rows of each part.
    pub split: Split,
    /// Training rows.
    pub train: Dataset,
    /// Validation rows.
    pub valid: Dataset,
    /// Test rows.
    pub test: Dataset,
}

impl Prepared {
    /// Infers the schema, splits, fits the preprocessing on the training rows and encodes all parts.
    ///
    /// # Errors
    /// [`Error::Data`] and [`Error::Config`] that name the column, the row or the setting to blame.
    pub fn new(table: &Table, settings: &DataSettings) -> Result<Self> {
        let schema = settings.schema(table)?;
        let split = settings.split(&schema).split(table, &schema)?;
        Self::encode(table, settings, schema, split)
    }

    /// As [`new`](Self::new), with rows that were divided before, such as those of a published split.
    ///
    /// # Errors
    /// Those of [`new`](Self::new), and [`Error::Config`] for a part without rows, and for rows that do not exist, have
    /// no target or stand there twice.
    pub fn with_split(table: &Table, settings: &DataSettings, split: Split) -> Result<Self> {
        let schema = settings.schema(table)?;
        let mut free = vec![false; table.row_count()];
        schema
            .rows()
            .iter()
            .for_each(|row| free[*row as usize] = true);
        let parts = [
            ("train", &split.train),
            ("valid", &split.valid),
            ("test", &split.test),
        ];
        for (name, rows) in parts {
            if rows.is_empty() {
                return Err(Error::config(
                    "split",
                    format!("the part `{name}` is empty"),
                ));
            }
            for row in rows {
                let free = free.get_mut(*row as usize);
                if !free.is_some_and(std::mem::take) {
                    let reason = format!(
                        "row {row} of the part `{name}` does not exist, has no target or is there twice"
                    );
                    return Err(Error::config("split", reason));
                }
            }
        }
        Self::encode(table, settings, schema, split)
    }

    fn encode(
        table: &Table,
        settings: &DataSettings,
        schema: Schema,
        split: Split,
    ) -> Result<Self> {
        let task = schema.task();
        let preprocessor = Preprocessor::fit(table, &schema, &split, &settings.preprocess)?;
        let part = |rows: &[u32]| preprocessor.transform(table, Some(rows), true);
        let (train, valid, test) = (part(&split.train)?, part(&split.valid)?, part(&split.test)?);
        Ok(Self {
            schema,
            task,
            preprocessor,
            split,
            train,
            valid,
            test,
        })
    }

    /// Outputs of a network for this task.
    pub fn outputs(&self) -> i64 {
        match self.task {
            Task::Regression => 1,
            Task::Binary | Task::Multiclass => self.preprocessor.classes().len() as i64,
        }
    }
}

impl DataSettings {
    /// The roles of the table's columns.
    fn schema(&self, table: &Table) -> Result<Schema> {
        let options = SchemaOptions {
            target: self.target.clone(),
            task: self.task,
            roles: self.roles.clone(),
            time: self.time.clone(),
            group: self.group.clone(),
            weight: self.weight.clone(),
            drop_missing_target: self.drop_missing_target,
            target_above: self.target_above,
            time_by_itself: self.auto_time && self.split.is_none(),
            features_from_time: !self.preprocess.calendar.is_empty(),
        };
        Schema::infer(table, &options)
    }

    /// The split that the settings name, or the default: by time or group where there is such a column, else
    /// at random (stratified by class).
    pub fn split(&self, schema: &Schema) -> SplitConfig {
        self.split.clone().unwrap_or_else(|| {
            let (valid, test, seed) = (self.valid, self.test, 0);
            let has = |role| schema.with_role(role).next().is_some();
            match (has(Role::Time), has(Role::Group), schema.task()) {
                (true, ..) => SplitConfig::Time { valid, test },
                (_, true, _) => SplitConfig::Group { valid, test, seed },
                (.., Task::Regression) => SplitConfig::Random { valid, test, seed },
                _ => SplitConfig::Stratified { valid, test, seed },
            }
        })
    }
}

/// Settings that may differ when a run is resumed, since they do not change what was learnt so far.
const MAY_CHANGE: [&str; 7] = [
    "table",
    "train.epochs",
    "train.patience",
    "train.eval_batch_size",
    "train.checkpoint_steps",
    "train.time_budget",
    "train.calibrate",
];

/// Where a checkpoint keeps the loss scaler of half precision.
const SCALER: &str = "scaler";

/// What a finished fit found.
#[derive(Debug)]
pub struct Outcome {
    /// Trainable values of the model.
    pub parameters: u64,
    /// Epoch of the best validation score, counted from 0.
    pub best_epoch: u64,
    /// Epochs trained.
    pub epochs: u64,
    /// The score that chose the epoch.
    pub metric: Metric,
    /// Metrics on the validation rows, of the best epoch.
    pub valid: Vec<(Metric, f64)>,
    /// Metrics on the test rows, of the best epoch.
    pub test: Vec<(Metric, f64)>,
    /// Averaged test predictions: `[rows]`, or probabilities `[rows, classes]`.
    pub predictions: Tensor,
    /// Test targets: `[rows]` values or classes.
    pub targets: Tensor,
    /// Members that are averaged; empty for all.
    pub members: Vec<i64>,
    /// How far the probabilities can be trusted; none for regression.
    pub calibration: Option<Calibration>,
    /// Whether training ended because its time was over.
    pub out_of_time: bool,
    /// Seconds of training and evaluation, with the epochs before a resume.
    pub seconds: f64,
    /// Largest resident memory of this process, MB, where the system tells.
    pub peak_mb: Option<f64>,
}

/// Trains on `prepared` in the run folder and evaluates the best epoch.
///
/// Early stopping watches the validation score; the loop ends after `patience` epochs without a better one. The
/// same seed and threads give the same bits on a CPU, however often the run was killed and resumed.
///
/// # Errors
/// [`Error::Config`] for settings that do not fit; [`Error::Diverged`] when the loss is no longer finite, with the
/// last batch saved beside the checkpoints; [`Error::Interrupted`] after Ctrl-C; [`Error::Io`] and [`Error::Corrupt`] of the run folder.
pub fn fit(
    prepared: &Prepared,
    settings: &FitSettings,
    options: &FitOptions,
    observe: &mut dyn FnMut(&Event),
) -> Result<Outcome> {
    let start = Instant::now();
    settings.train.validate()?;
    let train = &settings.train;
    let metric = train.metric(prepared.task)?;
    let scale = prepared.preprocessor.target_scale();

    let cardinalities = prepared.preprocessor.cat_cardinalities();
    let x_num = prepared.train.x_num.as_ref();
    let y = prepared.train.y.as_ref();
    let config = settings
        .model
        .resolve(x_num, y, &cardinalities, prepared.outputs())?;
    let vs = VarStore::new(options.device);
    let model = seeded(step_seed(options.seed, u64::MAX), || {
        config.build(&vs.root())
    })?;
    nn::check_names(&vs)?;
    let parameters = nn::parameter_count(&vs);

    let mut run = open_run(settings, options)?;
    run.set_preprocess(pipeline_json(prepared, settings, &config)?);
    let mut optimizer = train.optimizer.build(
        &vs,
        &decay_rules(train.decay, settings.model.embedding.as_ref()),
    )?;
    let weights = class_weights(train.class_weights, prepared)?;
    let data = Dataset {
        weight: weights.map(|weights| weights.to_device(options.device)),
        ..prepared.train.to_device(options.device)
    };
    let valid = prepared.valid.to_device(options.device);
    let valid_targets = task::targets(&valid, scale)?;
    let steps_per_epoch = data.len().div_ceil(train.batch_size) as u64;
    let steps = steps_per_epoch.saturating_mul(train.epochs);
    let mut schedule = train
        .schedule
        .bind(train.optimizer.lr(), steps, steps_per_epoch)?;
    run.restore(&vs, &mut optimizer, &mut schedule)?;

    let mut scaler = match (train.precision, run.extra().get(SCALER)) {
        (Precision::F16, None) => Some(GradScaler::default()),
        (Precision::F16, Some(saved)) => {
            let saved = serde_json::from_value(saved.clone());
            Some(saved.map_err(|e| Error::config(SCALER, e.to_string()))?)
        }
        _ => None,
    };

    let mut graph = step_graph(train, options.device);
    let order = match train.batches {
        Batches::Shared => Order::Shared,
        Batches::PerMember => Order::PerMember {
            k: config.members() as usize,
        },
    };
    observe(&Event::Started {
        parameters,
        steps,
        done: run.progress().step,
    });

    let budget = (train.time_budget > 0.0).then(|| Duration::from_secs_f64(train.time_budget));
    let over = || budget.is_some_and(|budget| start.elapsed() >= budget);
    // The first step of a process shows which parameters get gradients: a recording has to know.
    let mut first = true;
    while !run.progress().finished
        && run.progress().epoch < train.epochs
        && !run.should_stop()
        && (!over() || run.progress().best.is_none())
    {
        let epoch = run.progress().epoch;
        let done = run.progress().step_in_epoch;
        let mut batches = data.epoch(train.batch_size, order, options.seed, epoch, done);
        let mut last = None;
        loop {
            let asked = Instant::now();
            let Some(batch) = batches.next() else { break };
            run.waited_for_data(asked.elapsed());
            let batch = &*last.insert(batch?);
            let step = run.progress().step;
            let lr = schedule.at(step);
            optimizer.set_lr(lr);
            // Dropout is a function of seed and step, so a resumed run needs no generator's state.
            let seed = step_seed(options.seed, step);
            let forward = |batch: &Batch| {
                let ys = {
                    let _autocast = autocast(train.precision, options.device)?;
                    forward(&*model, batch, order)?
                };
                let (y, weight) = (target(batch, order)?, batch.weight.as_ref());
                Ok::<_, Error>(task::members_loss(&ys, &y, weight, prepared.task))
            };
            if graph.is_some()
                && !first
                && let Err(error) = optimizer.stage()
            {
                tracing::warn!("steps run one operation at a time: {error}");
                graph = None;
            }
            let recorded = graph.as_mut().filter(|_| !first);
            first = false;
            let (loss, norm) = if let Some(graph) = recorded {
                let mut work = |inputs: &[Option<Tensor>]| {
                    let loss = forward(&Batch::of(inputs))?;
                    optimizer.zero_grad()?;
                    loss.f_backward()?;
                    let norm = clip(&mut optimizer, train.clip_norm)?;
                    optimizer.apply()?;
                    Ok([loss.detach()].into_iter().chain(norm).collect())
                };
                let mut found = seeded(seed, || graph.run(&batch.tensors(), &mut work))?;
                let loss = found.swap_remove(0);
                (loss, found.pop())
            } else {
                let loss = seeded(seed, || forward(batch))?;
                optimizer.zero_grad()?;
                let finite = match &mut scaler {
                    None => loss.f_backward().map(|()| true)?,
                    Some(scaler) => {
                        scaler.scale_loss(&loss).f_backward()?;
                        let finite = scaler.unscale(&mut optimizer, step)?;
                        run.set_extra(json!({ SCALER: scaler }));
                        finite
                    }
                };
                let mut norm = None;
                if finite {
                    norm = clip(&mut optimizer, train.clip_norm)?;
                    optimizer.step()?;
                }
                (loss, norm)
            };
            if let Err(error) = run.log_step(&loss, norm.as_ref(), lr) {
                return Err(run.with_batch(error, || Some(saved(batch))));
            }
            observe(&Event::Step {
                epoch,
                step: run.progress().step,
                loss: run.epoch_loss(),
            });
            let interrupted = run.interrupted();
            // A checkpoint reads the losses, too.
            if (interrupted || run.should_checkpoint())
                && let Err(error) = run.checkpoint(&vs, &optimizer)
            {
                return Err(run.with_batch(error, || Some(saved(batch))));
            }
            if interrupted {
                return Err(options.interrupted());
            }
            if over() {
                break;
            }
        }
        // Before the weights are judged, or a metric would say that it has no numbers.
        if let Err(error) = run.read_back() {
            return Err(run.with_batch(error, || last.as_ref().map(saved)));
        }
        let predictions = task::predict(
            &*model,
            &valid,
            prepared.task,
            scale,
            &[],
            train.eval_batch_size,
        )?;
        let score = task::score(metric, &predictions, &valid_targets)?;
        schedule.observe(score, metric.direction());
        run.set_schedule(&schedule);
        let decision = run.end_epoch(
            score,
            metric.direction(),
            &[(metric.name(), score)],
            &vs,
            &optimizer,
        )?;
        observe(&Event::Epoch {
            epoch,
            score,
            improved: decision.improved,
        });
        if run.interrupted() {
            run.checkpoint(&vs, &optimizer)?;
            return Err(options.interrupted());
        }
    }
    let out_of_time = over();
    if !run.progress().finished {
        run.finish(&vs, &optimizer)?;
    }

    let epochs = run.progress().epoch;
    let best_epoch = run.load_best(&vs)?.map_or(0, |best| best.epoch);
    let batch = train.eval_batch_size;
    let members = task::select_members(
        train.averaging,
        metric,
        &*model,
        &valid,
        prepared.task,
        scale,
        batch,
    )?;
    save_members(options.folder, &members)?;
    let evaluate = |data: &Dataset| -> Result<(Tensor, Tensor)> {
        let predictions = task::predict(&*model, data, prepared.task, scale, &members, batch)?;
        Ok((predictions, task::targets(data, scale)?))
    };
    let (valid_predictions, valid_targets) = evaluate(&valid)?;
    let (mut predictions, targets) = evaluate(&prepared.test.to_device(options.device))?;
    let calibration = match prepared.task {
        Task::Regression => None,
        _ => Some(Calibration::new(
            &valid_predictions,
            &valid_targets,
            &predictions,
            &targets,
        )?),
    };
    let scaled = calibration.as_ref().filter(|_| train.calibrate);
    let mut valid_predictions = valid_predictions;
    if let Some(Calibration { temperature, .. }) = scaled {
        predictions = calibration::scale(&predictions, *temperature);
        valid_predictions = calibration::scale(&valid_predictions, *temperature);
    }
    calibration::save_temperature(
        options.folder,
        scaled.map(|calibration| calibration.temperature),
    )?;
    Ok(Outcome {
        calibration,
        out_of_time,
        parameters,
        best_epoch,
        epochs,
        metric,
        valid: task::scores(prepared.task, &valid_predictions, &valid_targets),
        test: task::scores(prepared.task, &predictions, &targets),
        predictions,
        targets,
        members,
        seconds: run.seconds_before() + start.elapsed().as_secs_f64(),
        peak_mb: peak_rss_mb(),
    })
}

fn open_run(settings: &FitSettings, options: &FitOptions) -> Result<Run> {
    let train = &settings.train;
    let run_options = RunOptions {
        checkpoint_steps: (train.checkpoint_steps > 0).then_some(train.checkpoint_steps),
        patience: Some(train.patience),
        may_change: MAY_CHANGE.map(str::to_owned).to_vec(),
        ..RunOptions::default()
    };
    options.open(settings, run_options)
}

fn pipeline_json(
    prepared: &Prepared,
    settings: &FitSettings,
    config: &ModelConfig,
) -> Result<String> {
    let to_value = serde_json::to_value(config);
    let pipeline = Pipeline {
        preset: settings.model.preset.clone(),
        config: to_value.map_err(|e| Error::config("model", e.to_string()))?,
        task: prepared.task,
        preprocessor: prepared.preprocessor.clone(),
    };
    serde_json::to_string(&pipeline).map_err(|e| Error::config("preprocess", e.to_string()))
}

/// The model on one batch; rows of members that have batches of their own go to their places.
fn forward(model: &dyn TabularModel, batch: &Batch, order: Order) -> Result<Tensor> {
    let per_member = |xs: &Option<Tensor>| {
        xs.as_ref().map(|xs| match order {
            Order::Shared => xs.shallow_clone(),
            Order::PerMember { k } => xs.unflatten(0, [-1, k as i64]), // [batch, k, features]
        })
    };
    model.forward_members(
        per_member(&batch.x_num).as_ref(),
        per_member(&batch.x_cat).as_ref(),
        true,
    )
}

fn clip(optimizer: &mut Optimizer, max_norm: f64) -> Result<Option<Tensor>> {
    let clips = max_norm > 0.0;
    clips
        .then(|| optimizer.clip_grad_norm(max_norm))
        .transpose()
}

/// A recorder of steps where one is asked for and possible.
fn step_graph(train: &TrainSettings, device: tch::Device) -> Option<StepGraph> {
    if !train.cuda_graph {
        return None;
    }
    let graph = match train.precision {
        Precision::F16 => Err(Error::Unsupported {
            what: "recording steps with scaled losses, which are read back".to_owned(),
            hint: "use precision bf16".to_owned(),
        }),
        _ => StepGraph::new(device),
    };
    graph
        .inspect_err(|error| tracing::warn!("steps run one operation at a time: {error}"))
        .ok()
}

fn target(batch: &Batch, order: Order) -> Result<Tensor> {
    let y = batch
        .y
        .as_ref()
        .ok_or_else(|| Error::data("", "the rows have no target"))?;
    Ok(match order {
        Order::Shared => y.shallow_clone(),
        Order::PerMember { k } => y.unflatten(0, [-1, k as i64]),
    })
}

fn autocast(precision: Precision, device: tch::Device) -> Result<Option<Autocast>> {
    let kind = match precision {
        Precision::F32 => return Ok(None),
        Precision::Bf16 => Kind::BFloat16,
        Precision::F16 => Kind::Half,
    };
    let unsupported = |reason| Error::Unsupported {
        what: format!("{kind:?} ({reason})"),
        hint: "use precision f32".into(),
    };
    Autocast::new(device, kind).map(Some).map_err(unsupported)
}

/// The paper's code decays neither biases nor the embeddings whose scale carries meaning; scalings and the
/// piecewise-linear weights are decayed.
fn decay_rules(decay: Decay, embedding: Option<&EmbeddingSettings>) -> Vec<GroupRule> {
    let linear_relu = matches!(embedding, Some(EmbeddingSettings::LinearRelu { .. }));
    let spared = move |name: &str, _: &Tensor| {
        name.ends_with("bias")
            || name.starts_with("num_module.linear0.")
            || name.starts_with("num_module.periodic.")
            || (linear_relu && name.starts_with("num_module.linear."))
    };
    match decay {
        Decay::All => Vec::new(),
        Decay::Paper => vec![GroupRule::new(spared, 1.0, Some(0.0))],
    }
}

/// What is saved of a step that diverged.
fn saved(batch: &Batch) -> Tensors {
    let parts = [
        ("x_num", &batch.x_num),
        ("x_cat", &batch.x_cat),
        ("y", &batch.y),
    ];
    parts
        .into_iter()
        .filter_map(|(name, xs)| Some((name.to_owned(), xs.as_ref()?.shallow_clone())))
        .collect()
}

/// A weight for every training row, its own and its class's; none when all count the same.
fn class_weights(rule: ClassWeights, prepared: &Prepared) -> Result<Option<Tensor>> {
    let own = prepared.train.weight.as_ref().map(Tensor::shallow_clone);
    match (rule, prepared.task) {
        (ClassWeights::None, _) => Ok(own),
        (ClassWeights::Balanced, Task::Regression) => Err(Error::config(
            "train.class_weights",
            "`balanced` needs classes; this is a regression",
        )),
        (ClassWeights::Balanced, _) => {
            let y = task::targets(&prepared.train, None)?;
            let classes = prepared.outputs();
            let counts = y.bincount(None::<&Tensor>, classes).to_kind(Kind::Double);
            let weights = (prepared.train.len() as f64 / (counts * classes as f64))
                .index_select(0, &y)
                .to_kind(Kind::Float);
            Ok(Some(
                own.map_or(weights.shallow_clone(), |own| own * weights),
            ))
        }
    }
}
