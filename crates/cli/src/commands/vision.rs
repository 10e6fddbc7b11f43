//! `densely vision`: train, evaluate and apply classifiers on one's own pictures.

pub(crate) mod apply;
pub(crate) mod fit;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use densely_train::optim::OptimConfig;
use densely_train::schedule::{ScheduleConfig, Shape};
use densely_vision::classify::{Classifier, ClassifySettings, ModelSettings, TrainSettings};
use densely_vision::data::{DataSettings, Part, Prepared, Source};
use densely_vision::transforms::{
    ColorJitter, Crop, EvalTransform, RandAugment, RandomErasing, RandomResizedCrop, TrainTransform,
};
use serde_json::json;

use super::tabular::ResumeArguments;
use crate::{Common, recipe};
use fit::{Job, describe, judged_part, line};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Train a classifier on pictures and write a run folder with report, plots and predictions.
    Train(Box<Train>),
    /// Print the accuracy of a run on other pictures with classes.
    Evaluate(Evaluate),
    /// Tell the class of pictures.
    Classify(apply::Classify),
    /// Write what the body of a network makes of pictures: a vector each.
    Features(apply::Features),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely vision train flowers --out runs/flowers --epochs 30\n\
                  `flowers` holds a folder per class, or the folders train, val and test with a folder per class each."
)]
pub(crate) struct Train {
    /// Folder with a folder per class (or with train, val and test), or a Parquet file with columns `image` and `label`.
    data: PathBuf,
    /// Folder for the run; `runs/<name of the data>` when left out.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Model; `densely models poolformer` and `densely models strip` list them.
    #[arg(long, default_value = "poolformer_s12")]
    model: String,
    /// File of weights to begin with, by the names of the authors, timm or transformers; a head of other classes is drawn anew.
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Train the head alone; wants --weights.
    #[arg(long, requires = "weights")]
    linear_probe: bool,
    /// Side of the pictures that the network sees; that of the data where they are small squares of one size, else 224, when left out.
    #[arg(long, value_parser = clap::value_parser!(i64).range(8..=2048))]
    size: Option<i64>,
    /// Share of the pictures for validation, where there is no folder `val`.
    #[arg(long, default_value_t = 0.1)]
    valid: f64,
    /// Pictures are grey.
    #[arg(long)]
    grey: bool,
    /// Most epochs.
    #[arg(long)]
    epochs: Option<u64>,
    /// Pictures per step.
    #[arg(long)]
    batch_size: Option<i64>,
    /// Learning rate.
    #[arg(long)]
    lr: Option<f64>,
    /// Factor on the learning rate from each block to the one below it, such as 0.75 for fine-tuning.
    #[arg(long)]
    layer_decay: Option<f64>,
    /// End at the first picture that cannot be read, instead of leaving it out.
    #[arg(long)]
    strict: bool,
    /// Change any setting of the run, such as `train.clip_norm=1`; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    #[command(flatten)]
    resume: ResumeArguments,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: densely vision evaluate runs/flowers flowers/test")]
pub(crate) struct Evaluate {
    /// Run folder of a training.
    run: PathBuf,
    /// Folder with a folder per class, or a Parquet file.
    data: PathBuf,
    /// End at the first picture that cannot be read, instead of leaving it out.
    #[arg(long)]
    strict: bool,
}

pub(crate) fn run(command: &Command, common: &Common) -> Result<()> {
    match command {
        Command::Train(arguments) => train(arguments, common),
        Command::Evaluate(arguments) => evaluate(arguments, common),
        Command::Classify(arguments) => apply::classify(arguments, common),
        Command::Features(arguments) => apply::features(arguments, common),
    }
}

/// The folder that the paths of a data set are relative to, and its file there; without a name where the folder is the data set.
fn place_of(data: &Path) -> (&Path, String) {
    if !data.is_file() {
        return (data, String::new());
    }
    let name = data.file_name().unwrap_or_default().to_string_lossy();
    let folder = data.parent().unwrap_or(Path::new(""));
    (folder, name.into_owned())
}

/// The pictures of `path`, which is relative to `folder`.
fn source(folder: &Path, path: &str) -> Source {
    let whole = folder.join(path);
    let parquet = whole
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("parquet"));
    if parquet {
        return Source::Parquet {
            path: path.to_owned(),
            image: "image".to_owned(),
            label: "label".to_owned(),
        };
    }
    Source::Folder {
        path: path.to_owned(),
    }
}

/// Steps over which the learning rate rises, where half an epoch has as many; else that half.
const WARMUP: u64 = 100;

/// Pictures up to this side are taken as they are, with a small stem.
const SMALL: usize = 96;

fn train(arguments: &Train, common: &Common) -> Result<()> {
    let (folder, file) = place_of(&arguments.data);
    let mut data = DataSettings::new(source(folder, &file));
    if file.is_empty() && folder.join("train").is_dir() {
        let part = |names: &[&str]| {
            let found = names.iter().find(|name| folder.join(name).is_dir());
            found.map(|name| source(folder, name))
        };
        data.train = source(folder, "train");
        data.valid = part(&["val", "valid", "validation"]);
        data.test = part(&["test"]);
    }
    data.valid_share = arguments.valid;
    data.channels = if arguments.grey { 1 } else { 3 };
    data.strict = arguments.strict;
    let (of_data, others): (Vec<_>, Vec<_>) = arguments
        .changes
        .iter()
        .map(|change| change.trim().to_owned())
        .partition(|change| change.starts_with("data."));
    let of_data: Vec<String> = of_data
        .iter()
        .map(|change| change["data.".len()..].to_owned())
        .collect();
    let data = recipe::changed(&data, &of_data)?;
    let prepared = Prepared::open(folder, &data)?;
    let settings = arguments.settings(data, &prepared, &others, common)?;
    describe(&prepared, common);
    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => Path::new("runs").join(name_of(&arguments.data)?),
    };
    let title = format!("{} on {}", settings.model.preset, arguments.data.display());
    let job = Job {
        title: &title,
        prepared: &prepared,
        settings: &settings,
        data: &arguments.data,
    };
    let device = common.device.open()?;
    let seed = common.seed.unwrap_or(0);
    let fitted = job.run(&out, seed, device, arguments.resume.from()?, common)?;
    let outcome = fitted.outcome;
    let found = outcome.test.as_ref().unwrap_or(&outcome.valid);
    if common.json {
        println!(
            "{}",
            json!({
                "run": out,
                "part": judged_part(outcome.test.is_some()),
                "pictures": found.pictures,
                "accuracy": found.top1,
                "top5": found.top5,
                "log_loss": found.loss,
                "best_epoch": outcome.best_epoch,
                "epochs": outcome.epochs,
                "params": outcome.parameters,
                "seconds": outcome.seconds,
                "peak_mb": outcome.peak_mb,
                "plots": fitted.plots,
            })
        );
    } else {
        println!(
            "{}: {}; best epoch {} of {}; {:.1} s; report in {}",
            judged_part(outcome.test.is_some()),
            line(found),
            outcome.best_epoch + 1,
            outcome.epochs,
            outcome.seconds,
            out.join("report.md").display()
        );
    }
    Ok(())
}

impl Train {
    /// The settings of the fit: what the data suggests, then what was asked for.
    fn settings(
        &self,
        data: DataSettings,
        prepared: &Prepared,
        changes: &[String],
        common: &Common,
    ) -> Result<ClassifySettings> {
        let channels = data.channels as usize;
        let mut sides = HashSet::new();
        let count = prepared.train.len().min(64);
        for place in 0..count {
            // Evenly spread: folders come class by class.
            if let Ok(picture) = prepared.train.picture(place * prepared.train.len() / count) {
                sides.extend([picture.width(), picture.height()]);
            }
        }
        let side = sides.iter().copied().max().unwrap_or(0);
        // Small pictures are taken as they are: none of another size is made of them.
        let small =
            sides.len() == 1 && side <= SMALL && self.size.is_none_or(|size| size == side as i64);
        let size = self.size.unwrap_or(if small { side as i64 } else { 224 });
        let mut model = ModelSettings {
            preset: self.model.clone(),
            weights: self
                .weights
                .as_ref()
                .map(|path| path.to_string_lossy().into_owned()),
            freeze_body: self.linear_probe,
            ..ModelSettings::default()
        };
        if size <= SMALL as i64 && self.model.starts_with("poolformer") && self.weights.is_none() {
            for (field, value) in [("in_patch_size", 3), ("in_stride", 2), ("in_pad", 1)] {
                model.config.insert(field.to_owned(), json!(value));
            }
            if !common.quiet {
                eprintln!(
                    "pictures of {size} pixels: the stem takes windows of 3 pixels in steps of 2 instead of 7 in steps of 4"
                );
            }
        }
        if size <= SMALL as i64 && self.model.starts_with("strip_mlp") && self.weights.is_none() {
            model.config.insert("patch_size".to_owned(), json!(2));
            if !common.quiet {
                eprintln!("pictures of {size} pixels: patches of 2 pixels instead of 4");
            }
        }
        let (augment, eval) = if small {
            (
                TrainTransform::small(size, channels),
                EvalTransform::small(size, channels),
            )
        } else {
            photographs(size, channels)
        };
        let mut train = TrainSettings {
            augment,
            eval,
            batch_size: if small { 128 } else { 32 },
            ..TrainSettings::default()
        };
        if let Some(epochs) = self.epochs {
            train.epochs = epochs;
        }
        if let Some(batch_size) = self.batch_size {
            train.batch_size = batch_size;
        }
        if let Some(layer_decay) = self.layer_decay {
            train.layer_decay = layer_decay;
        }
        if let (Some(lr), OptimConfig::AdamW(config)) = (self.lr, &mut train.optimizer) {
            config.lr = lr;
        }
        let mut settings = ClassifySettings { data, model, train };
        // Twice, as the changes may be of the batch size. The number of epochs must not count: a run may go on for more.
        for _ in 0..2 {
            let batch_size = settings.train.batch_size.max(1) as u64;
            let steps = (prepared.train.len() as u64).div_ceil(batch_size);
            settings.train.schedule = ScheduleConfig {
                shape: Shape::Cosine { min_lr: 0.0 },
                warmup_steps: (steps / 2).min(WARMUP),
            };
            settings = recipe::changed(&settings, changes)?;
        }
        Ok(settings)
    }
}

/// Random parts and mirrors, no more: heavier augmentation is for long trainings on many pictures.
fn photographs(size: i64, channels: usize) -> (TrainTransform, EvalTransform) {
    let base = TrainTransform::default();
    let eval = EvalTransform {
        size,
        ..EvalTransform::default()
    };
    let grey = |values: Vec<f64>| {
        if channels == 1 {
            vec![values.iter().sum::<f64>() / 3.0]
        } else {
            values
        }
    };
    let (mean, std) = (grey(eval.mean.clone()), grey(eval.std.clone()));
    let augment = TrainTransform {
        crop: Crop::Resized(RandomResizedCrop {
            size,
            scale: [0.35, 1.0],
            ..RandomResizedCrop::default()
        }),
        rand_augment: RandAugment::OFF,
        color_jitter: ColorJitter::OFF,
        erase: RandomErasing::OFF,
        mean: mean.clone(),
        std: std.clone(),
        ..base
    };
    (augment, EvalTransform { mean, std, ..eval })
}

fn evaluate(arguments: &Evaluate, common: &Common) -> Result<()> {
    let classifier = Classifier::open(&arguments.run, common.device.open()?)?;
    let (folder, file) = place_of(&arguments.data);
    let classes = &classifier.pipeline.classes;
    let part = Part::all(source(folder, &file).open(folder, classes)?);
    if part.is_empty() {
        return Err(Error::data(&arguments.data, "there is no picture"));
    }
    let (found, _) = classifier.evaluate(&part, arguments.strict)?;
    if common.json {
        println!(
            "{}",
            json!({
                "pictures": found.pictures,
                "accuracy": found.top1,
                "top5": found.top5,
                "log_loss": found.loss,
                "classes": classes,
                "confusion": found.confusion.counts,
            })
        );
        return Ok(());
    }
    println!("{}", line(&found));
    let left = part.len() - found.pictures;
    if left > 0 {
        println!("{left} pictures could not be read and were left out");
    }
    for (label, prediction, count) in found.confusion.worst(5) {
        println!(
            "  {count} × {} taken for {}",
            classes[label], classes[prediction]
        );
    }
    Ok(())
}

/// What the run of this data set is called.
fn name_of(data: &Path) -> Result<std::ffi::OsString> {
    let whole = data.canonicalize().map_err(Error::io(data))?;
    let name = if whole.is_file() {
        whole.file_stem()
    } else {
        whole.file_name()
    };
    let none = || Error::config("--out", "must be given: the data set's folder has no name");
    name.map(ToOwned::to_owned).ok_or_else(none)
}
