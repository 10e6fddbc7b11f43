//! Classification: settings, training, evaluation, and classes of new pictures.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use densely_core::registry::{Preset, find};
use densely_core::weights::{self, Strictness};
use densely_core::{Error, Model, Result, Tensors, check, seeded};
use densely_data::Image;
use densely_data::image::AnyImage;
use densely_train::event::Event;
use densely_train::machine::{peak_rss_mb, step_seed};
use densely_train::metrics::Direction;
use densely_train::optim::{AdamWConfig, GroupRule, OptimConfig};
use densely_train::run::{FitOptions, Kept};
use densely_train::schedule::ScheduleConfig;
use densely_train::training::{Loop, Task};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::data::{
    Batch, Batches, DataSettings, Part, Prepare, Prepared, in_order, same_classes, shuffled,
};
use crate::groups;
use crate::losses::{smoothed, soft_cross_entropy};
use crate::metrics::{Classified, classified};
use crate::models::PRESETS;
use crate::transforms::{EvalTransform, Mixup, Rng, TrainTransform};

/// The settings of one fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifySettings {
    /// The pictures.
    pub data: DataSettings,
    /// The network.
    #[serde(default)]
    pub model: ModelSettings,
    /// The training loop.
    #[serde(default)]
    pub train: TrainSettings,
}

/// The network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// Name of the preset.
    pub preset: String,
    /// Fields that replace those of its config. Classes and channels come from the data and must not stand here.
    pub config: Map<String, Value>,
    /// A file of weights to begin with, by any of the model's names; its head is taken when it has as many classes, else a new one is drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Train the head alone on what the body sees: a linear probe.
    pub freeze_body: bool,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            preset: "poolformer_s12".to_owned(),
            config: Map::new(),
            weights: None,
            freeze_body: false,
        }
    }
}

/// The training loop. Defaults suit small pictures; the recipes of photographs write out the papers'.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    /// Optimiser and learning rate; what has one dimension, as biases and norms, never decays.
    pub optimizer: OptimConfig,
    /// Learning rate over the steps.
    pub schedule: ScheduleConfig,
    /// Pictures per step.
    pub batch_size: i64,
    /// Pieces that a step's pictures are divided into, for batches that memory does not hold at once: gradients are those of the whole, but for
    /// models whose norms look at the batch.
    pub pieces: i64,
    /// Pictures that are evaluated at once; does not change results.
    pub eval_batch_size: i64,
    /// Epochs at most.
    pub epochs: u64,
    /// Epochs without a better validation accuracy after which training stops.
    pub patience: u64,
    /// Largest norm of the gradient; 0 does not clip.
    pub clip_norm: f64,
    /// Share of a label that is spread over all classes.
    pub label_smoothing: f64,
    /// Mixing of the pictures of a batch, and of their smoothed labels.
    pub mixup: Mixup,
    /// What a picture goes through in training.
    pub augment: TrainTransform,
    /// What it goes through else.
    pub eval: EvalTransform,
    /// Share of the average of the weights that a step keeps; 0 judges the weights themselves.
    pub ema_decay: f64,
    /// Factor on the learning rate from each block to the one below it; 1 for the same everywhere.
    pub layer_decay: f64,
}

const fn eval_batch_size() -> i64 {
    250
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            optimizer: OptimConfig::AdamW(AdamWConfig {
                weight_decay: 0.05,
                ..AdamWConfig::default()
            }),
            schedule: ScheduleConfig::default(),
            batch_size: 128,
            pieces: 1,
            eval_batch_size: eval_batch_size(),
            epochs: 20,
            patience: 1000,
            clip_norm: 0.0,
            label_smoothing: 0.1,
            mixup: Mixup {
                prob: 0.0,
                ..Mixup::default()
            },
            augment: TrainTransform::small(32, 3),
            eval: EvalTransform::small(32, 3),
            ema_decay: 0.0,
            layer_decay: 1.0,
        }
    }
}

impl TrainSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [
            ("train.batch_size", self.batch_size),
            ("train.pieces", self.pieces),
            ("train.eval_batch_size", self.eval_batch_size),
            ("train.epochs", self.epochs.min(1) as i64),
            ("train.patience", self.patience.min(1) as i64),
        ] {
            check::positive(field, value)?;
        }
        if self.pieces > self.batch_size {
            let reason = format!(
                "must be at most batch_size = {}, got {}",
                self.batch_size, self.pieces
            );
            return Err(Error::config("train.pieces", reason));
        }
        if !(self.clip_norm >= 0.0 && self.clip_norm.is_finite()) {
            let reason = format!("must be at least 0 and finite, got {}", self.clip_norm);
            return Err(Error::config("train.clip_norm", reason));
        }
        check::dropout("train.label_smoothing", self.label_smoothing)?;
        check::dropout("train.ema_decay", self.ema_decay)?;
        if !(self.layer_decay > 0.0 && self.layer_decay <= 1.0) {
            let reason = format!("must lie in (0, 1], got {}", self.layer_decay);
            return Err(Error::config("train.layer_decay", reason));
        }
        self.mixup.validate()?;
        self.augment.validate()?;
        self.eval.validate()?;
        if self.augment.size() != self.eval.size {
            let reason = format!(
                "pictures of {} in training and of {} in evaluation: the two must be equal",
                self.augment.size(),
                self.eval.size
            );
            return Err(Error::config("train.eval.size", reason));
        }
        self.optimizer.validate()?;
        self.schedule.validate()
    }
}

/// Settings that may differ when a run is resumed, since they do not change what was learnt so far.
const MAY_CHANGE: [&str; 5] = [
    "table",
    "train.epochs",
    "train.patience",
    "train.eval_batch_size",
    "data.strict",
];

/// What classification needs beside the weights; saved in each checkpoint as `preprocess.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Name of the preset.
    pub preset: String,
    /// Its whole config.
    pub config: Value,
    /// Names of the classes, in the order of the logits.
    pub classes: Vec<String>,
    /// 3 for colours, 1 for grey.
    pub channels: i64,
    /// What a picture goes through.
    pub eval: EvalTransform,
    /// Pictures that are evaluated at once.
    #[serde(default = "eval_batch_size")]
    pub eval_batch_size: i64,
}

/// What a finished fit found.
#[derive(Debug)]
pub struct Outcome {
    /// Trainable values of the model.
    pub parameters: u64,
    /// Epoch of the best validation accuracy, counted from 0.
    pub best_epoch: u64,
    /// Epochs trained.
    pub epochs: u64,
    /// On the validation pictures, of the best epoch.
    pub valid: Classified,
    /// On the test pictures, of the best epoch.
    pub test: Option<Classified>,
    /// The test pictures that could be read, or the validation pictures where there are no others.
    pub judged: Part,
    /// Their logits, `[n, classes]`.
    pub logits: Tensor,
    /// Seconds of training and evaluation, with the epochs before a resume.
    pub seconds: f64,
    /// Largest resident memory of this process, MB, where the system tells.
    pub peak_mb: Option<f64>,
}

impl ModelSettings {
    /// The preset with its whole config, for pictures of these channels and side.
    ///
    /// # Errors
    /// [`Error::UnknownPreset`]; [`Error::Config`] for a preset without logits, a field that it lacks, and one that the data sets.
    pub fn resolve(
        &self,
        classes: usize,
        channels: i64,
        side: i64,
    ) -> Result<(&'static Preset, Value)> {
        let preset = find(PRESETS, &self.preset)?;
        if !preset.outputs.iter().any(|output| output.name == "logits") {
            let reason = format!(
                "`{}` does not classify; take one without `@`, such as poolformer_s12",
                self.preset
            );
            return Err(Error::config("model.preset", reason));
        }
        let mut fields = self.config.clone();
        for (field, value) in [
            ("num_classes", classes as i64),
            ("in_chans", channels),
            ("img_size", side),
        ] {
            if fields.insert(field.to_owned(), value.into()).is_some() {
                let field = format!("model.config.{field}");
                return Err(Error::config(
                    field,
                    "is set by the data and must not stand here",
                ));
            }
        }
        let config = preset.config_with(&Value::Object(fields))?;
        Ok((preset, config))
    }
}

/// Trains on `prepared` in the run folder and evaluates the best epoch.
///
/// The same seed and threads give the same bits on a CPU, however often the run was killed and resumed.
/// # Errors
/// [`Error::Config`] for settings that do not fit; [`Error::Weights`] for weights to begin with of another model; those of [`Loop::run`].
pub fn fit(
    prepared: &Prepared,
    settings: &ClassifySettings,
    options: &FitOptions,
    observe: &mut dyn FnMut(&Event),
) -> Result<Outcome> {
    let start = Instant::now();
    let train = &settings.train;
    train.validate()?;
    let channels = settings.data.channels;
    if train.eval.mean.len() as i64 != channels || train.augment.mean.len() as i64 != channels {
        let reason = format!("must have {channels} numbers, as many as `data.channels`");
        return Err(Error::config(
            "train.augment.mean and train.eval.mean",
            reason,
        ));
    }
    let (preset, config) =
        settings
            .model
            .resolve(prepared.classes.len(), channels, train.eval.size)?;
    let vs = VarStore::new(options.device);
    let model = seeded(step_seed(options.seed, u64::MAX), || {
        (preset.build)(&config, &vs.root())
    })?;
    if let Some(path) = &settings.model.weights {
        begin_with(&vs, &*model, Path::new(path))?;
    }
    if settings.model.freeze_body {
        groups::freeze_body(&vs)?;
    }
    let pipeline = Pipeline {
        preset: preset.name.to_owned(),
        config,
        classes: prepared.classes.clone(),
        channels,
        eval: train.eval.clone(),
        eval_batch_size: train.eval_batch_size,
    };
    let training = Loop {
        optimizer: &train.optimizer,
        schedule: &train.schedule,
        epochs: train.epochs,
        patience: train.patience,
        min_improvement: 0.0,
        clip_norm: train.clip_norm,
        ema_decay: train.ema_decay,
        time_budget: 0.0,
        may_change: &MAY_CHANGE,
        options,
        start,
    };
    let task = ClassifyTask {
        model: &*model,
        prepared,
        settings,
        seed: options.seed,
        device: options.device,
        rules: groups::rules(&vs, train.layer_decay),
    };
    let found = training.run(&task, &vs, settings, json!(pipeline).to_string(), observe)?;
    let judge = |part: &Part| {
        let seen = task.logits(part)?;
        let found = classified(&seen.logits, &seen.labels)?;
        Ok::<_, Error>((found, part.chosen(&seen.places), seen.logits))
    };
    let (valid, judged, logits) = judge(&prepared.valid)?;
    let (test, judged, logits) = match &prepared.test {
        Some(test) => {
            let (test, judged, logits) = judge(test)?;
            (Some(test), judged, logits)
        }
        None => (None, judged, logits),
    };
    Ok(Outcome {
        parameters: found.parameters,
        best_epoch: found.best_epoch,
        epochs: found.epochs,
        valid,
        test,
        judged,
        logits,
        seconds: found.seconds_before + start.elapsed().as_secs_f64(),
        peak_mb: peak_rss_mb(),
    })
}

/// Loads weights of the same model, with its head where that fits.
fn begin_with(vs: &VarStore, model: &dyn Model, path: &Path) -> Result<()> {
    let file = weights::read(path)?;
    let tensors = weights::without_aliases(path, file.tensors, &model.aliases())?;
    let own = weights::named(vs);
    let heads: Vec<&str> = groups::HEADS.to_vec();
    let same_head = own
        .iter()
        .filter(|(name, _)| groups::is_head(name))
        .all(|(name, xs)| {
            tensors
                .get(name)
                .is_some_and(|other| other.size() == xs.size())
        });
    let strictness = if same_head {
        Strictness::All
    } else {
        tracing::info!(
            "{}: the head is of other classes, and a new one is drawn",
            path.display()
        );
        Strictness::Except(&heads)
    };
    weights::load_tensors(vs, path, &tensors, strictness)?;
    Ok(())
}

struct ClassifyTask<'a> {
    model: &'a dyn Model,
    prepared: &'a Prepared,
    settings: &'a ClassifySettings,
    seed: u64,
    device: Device,
    rules: Vec<(String, f64, bool)>,
}

impl ClassifyTask<'_> {
    fn run(&self, image: &Tensor, train: bool) -> Result<Tensor> {
        logits_of(self.model, image.to_device(self.device), train)
    }

    fn logits(&self, part: &Part) -> Result<Seen> {
        let (train, data) = (&self.settings.train, &self.settings.data);
        let prepare = evaluation(&train.eval, data.channels);
        let size = train.eval_batch_size;
        see(part, size, &prepare, data.strict, &mut |image| {
            self.run(image, false)
        })
    }
}

/// What a network made of the pictures of a part that could be read, on the CPU.
struct Seen {
    /// `[n, classes]`
    logits: Tensor,
    /// `[n]`
    labels: Tensor,
    places: Vec<i64>,
}

fn see(
    part: &Part,
    batch_size: i64,
    prepare: &Arc<Prepare>,
    strict: bool,
    run: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
) -> Result<Seen> {
    let _no_grad = tch::no_grad_guard();
    let (mut logits, mut labels, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for batch in Batches::to_see(part, in_order(part.len(), batch_size), prepare, strict) {
        let Some(Batch {
            image,
            label,
            places,
        }) = batch?
        else {
            continue;
        };
        logits.push(run(&image)?.to_device(Device::Cpu));
        labels.push(label);
        all.extend(places);
    }
    if logits.is_empty() {
        return Err(Error::data("", "no picture can be read"));
    }
    Ok(Seen {
        logits: Tensor::f_cat(&logits, 0)?,
        labels: Tensor::f_cat(&labels, 0)?,
        places: all,
    })
}

fn logits_of(model: &dyn Model, image: Tensor, train: bool) -> Result<Tensor> {
    let inputs = Tensors::from([("image".to_owned(), image)]);
    let mut outputs = model.forward_named(&inputs, train)?;
    outputs
        .remove("logits")
        .ok_or_else(|| Error::config("model.preset", "gives no logits"))
}

/// What evaluation makes of a picture.
fn evaluation(eval: &EvalTransform, channels: i64) -> Arc<Prepare> {
    let eval = eval.clone();
    Arc::new(move |_, picture| eval.apply(&converted(picture, channels)))
}

/// With 8 bits and these channels; the very same where it is so already.
pub fn converted(picture: &AnyImage, channels: i64) -> Cow<'_, Image> {
    if channels == 1 {
        picture.to_grey8()
    } else {
        picture.to_rgb8()
    }
}

impl Task for ClassifyTask<'_> {
    type Batch = Batch;

    fn steps(&self) -> u64 {
        (self.prepared.train.len() as u64).div_ceil(self.settings.train.batch_size as u64)
    }

    fn epoch(&self, epoch: u64, skip: u64) -> Result<impl Iterator<Item = Result<Batch>>> {
        let ClassifySettings { data, train, .. } = self.settings;
        let part = &self.prepared.train;
        let (augment, channels, seed) = (train.augment.clone(), data.channels, self.seed);
        let prepare: Arc<Prepare> = Arc::new(move |place, picture| {
            let mut rng = Rng::for_picture(seed, epoch, place as u64);
            augment.apply(&converted(picture, channels), &mut rng)
        });
        let plan = shuffled(part.len(), train.batch_size, seed, epoch, skip);
        Ok(Batches::to_train(part, plan, &prepare, data.strict))
    }

    fn pieces(&self, batch: &Batch) -> u64 {
        self.settings.train.pieces.min(batch.label.size()[0]) as u64
    }

    fn loss(&self, batch: &Batch, step: u64, piece: u64) -> Result<Tensor> {
        let train = &self.settings.train;
        let classes = self.prepared.classes.len() as i64;
        let (image, label) = (
            batch.image.to_device(self.device),
            batch.label.to_device(self.device),
        );
        let shares = smoothed(&label, classes, train.label_smoothing, Kind::Float);
        let (image, targets) = if train.mixup.prob > 0.0 {
            let mut rng = Rng::for_step(self.seed, step);
            train.mixup.apply(&image, &shares, &mut rng)?
        } else {
            (image, shares)
        };
        let pieces = self.pieces(batch);
        if pieces == 1 {
            return Ok(soft_cross_entropy(
                &self.logits_in_training(&image)?,
                &targets,
            ));
        }
        let rows = image.size()[0];
        let [first, end] = [piece, piece + 1].map(|n| rows * n as i64 / pieces as i64);
        let part = |xs: &Tensor| xs.narrow(0, first, end - first);
        let loss = soft_cross_entropy(&self.logits_in_training(&part(&image))?, &part(&targets));
        Ok(loss * ((end - first) as f64 / rows as f64))
    }

    fn tensors(Batch { image, label, .. }: Batch) -> Tensors {
        Tensors::from([("image".to_owned(), image), ("label".to_owned(), label)])
    }

    fn rules(&self) -> Vec<GroupRule> {
        groups::group_rules(&self.rules)
    }

    fn judge(&self, _steps: u64) -> Result<(f64, Vec<(&'static str, f64)>)> {
        let seen = self.logits(&self.prepared.valid)?;
        let found = classified(&seen.logits, &seen.labels)?;
        let metrics = vec![
            ("accuracy", found.top1),
            ("top5", found.top5),
            ("log_loss", found.loss),
        ];
        Ok((found.top1, metrics))
    }

    fn direction(&self) -> Direction {
        Direction::Higher
    }
}

impl ClassifyTask<'_> {
    /// A frozen body is used as in evaluation.
    fn logits_in_training(&self, image: &Tensor) -> Result<Tensor> {
        self.run(image, !self.settings.model.freeze_body)
    }
}

/// A trained classifier from its run folder.
#[derive(Debug)]
pub struct Classifier {
    /// What turns pictures into tensors, and the names of the classes.
    pub pipeline: Pipeline,
    model: Box<dyn Model>,
    device: Device,
}

impl Classifier {
    /// Opens the best epoch of the run in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no such folder or it holds no finished epoch; [`Error::Corrupt`] and [`Error::Weights`] for files that
    /// are damaged or do not belong together.
    pub fn open(folder: &Path, device: Device) -> Result<Self> {
        let kept = Kept::<Pipeline>::open(folder, "densely vision")?;
        let preset = find(PRESETS, &kept.pipeline.preset)?;
        let vs = VarStore::new(device);
        // Loaded weights replace the first ones; drawing them must not disturb a training of another thread.
        let model = seeded(0, || (preset.build)(&kept.pipeline.config, &vs.root()))?;
        kept.load_weights(&vs)?;
        let classes = kept
            .pipeline
            .config
            .get("num_classes")
            .and_then(Value::as_u64);
        if classes != Some(kept.pipeline.classes.len() as u64) {
            let reason = "it names another number of classes than the network has";
            return Err(Error::corrupt(&kept.path, reason));
        }
        Ok(Self {
            pipeline: kept.pipeline,
            model,
            device,
        })
    }

    /// The picture as the model takes it: `[channels, size, size]`.
    ///
    /// # Errors
    /// Those of [`EvalTransform::apply`].
    pub fn prepare(&self, picture: &AnyImage) -> Result<Tensor> {
        let image = converted(picture, self.pipeline.channels);
        self.pipeline.eval.apply(&image)
    }

    /// Probabilities `[batch, classes]`, f64 on the CPU, of [prepared](Self::prepare) pictures `[batch, channels, size, size]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for pictures that do not fit; [`Error::Torch`] when memory runs out.
    pub fn probabilities(&self, images: &Tensor) -> Result<Tensor> {
        Ok(self.logits(images)?.to_kind(Kind::Double).softmax(-1, None))
    }

    /// Logits `[batch, classes]` on the CPU of the same.
    ///
    /// # Errors
    /// Those of [`probabilities`](Self::probabilities).
    pub fn logits(&self, images: &Tensor) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let logits = logits_of(&*self.model, images.to_device(self.device), false)?;
        Ok(logits.to_device(Device::Cpu))
    }

    /// How well it does on all pictures of `part`, and their logits `[n, classes]`.
    ///
    /// # Errors
    /// [`Error::Data`] for pictures without a class or of other classes; those of the model.
    pub fn evaluate(&self, part: &Part, strict: bool) -> Result<(Classified, Tensor)> {
        let pipeline = &self.pipeline;
        same_classes(
            "the pictures",
            part,
            &pipeline.classes,
            pipeline.classes.len(),
        )?;
        let prepare = evaluation(&pipeline.eval, pipeline.channels);
        let size = pipeline.eval_batch_size;
        let seen = see(part, size, &prepare, strict, &mut |image| {
            self.logits(image)
        })?;
        Ok((classified(&seen.logits, &seen.labels)?, seen.logits))
    }
}
