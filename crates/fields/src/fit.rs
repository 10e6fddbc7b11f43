//! Fitting a field to a signal, from files to a run folder, and using it: pictures, sounds, films, surfaces, scenes.
//!
//! ```no_run
//! use std::path::Path;
//! use densely_fields::fit::{DataSettings, Field, FieldSettings, ImageSettings, Window, fit};
//! use densely_train::run::FitOptions;
//! use tch::Device;
//!
//! let data = DataSettings::Image(ImageSettings::new("photo.png".into()));
//! let settings = FieldSettings::suggest(data, Some("cam-image"))?;
//! let options = FitOptions {
//!     folder: Path::new("runs/photo"),
//!     table: Path::new("photo.png"),
//!     seed: 0,
//!     device: Device::Cpu,
//!     resume: None,
//! };
//! let outcome = fit(&settings, Path::new("."), &options, None, &mut |_| ())?;
//! println!("{:?}", outcome.scores);
//!
//! let field = Field::open(Path::new("runs/photo"), Device::Cpu)?;
//! let twice = field.picture([1024, 1536], Window::WHOLE, 0.0, &mut |_, _| ())?;
//! # Ok::<(), densely_fields::Error>(())
//! ```

mod auto;
mod evaluate;
mod field;
mod file;
mod preview;
pub mod radiance;
mod resolve;
mod scene;
mod settings;
mod shape;
mod signal;

use std::path::Path;
use std::time::Instant;

use densely_core::{Error, Result};
use densely_train::event::Event;
use densely_train::machine::{peak_rss_mb, step_seed};
use densely_train::optim::GroupRule;
use densely_train::run::FitOptions;
use densely_train::training::{Finished, Loop, Task};
use serde_json::json;
use tch::nn::VarStore;

pub use auto::{AutoOptions, choose_frequency};
pub use evaluate::{Evaluation, evaluate};
pub use field::{Described, Field, Pipeline, Window, bytes_of};
pub use file::Precision;
pub use preview::PreviewOptions;
pub use resolve::FIELDS;
pub use settings::{
    DataSettings, FieldLoss, FieldSettings, ImageSettings, MeshSettings, ModelSettings,
    SoundSettings, TrainSettings, VideoSettings,
};
pub use shape::ShapeScores;
pub use signal::{Loaded, picture};

use field::Network;
use preview::Preview;
use resolve::{convention_of, resolve};
use scene::{SceneTask, open_scene};
use settings::MAY_CHANGE;
use shape::ShapeTask;
use signal::{Parts, SignalTask};

/// What a finished fit found.
#[derive(Debug)]
pub struct Outcome {
    /// Trainable values of the network.
    pub parameters: u64,
    /// Values of the signal; of surfaces and scenes none.
    pub signal_values: Option<u64>,
    /// The best judgement, counted from 0.
    pub best_epoch: u64,
    /// Judgements made.
    pub epochs: u64,
    /// How the best one compares with all of the signal: `psnr` (of what was trained on, dB), `psnr_test`, `ssim`, `iou`, `chamfer`, …
    pub scores: Vec<(&'static str, f64)>,
    /// What a reader should know of the signal.
    pub notes: Vec<String>,
    /// Seconds of training and evaluation, with those before a resume.
    pub seconds: f64,
    /// Largest resident memory of this process, MB, where the system tells.
    pub peak_mb: Option<f64>,
    /// Whether the time was over before training had ended.
    pub out_of_time: bool,
}

/// Fits a field to the signal that `settings` name, in `folder`, and judges the best of it on the whole signal; `preview` writes pictures while it trains.
///
/// The same seed and threads give the same bits on a CPU, however often the run was killed and resumed.
/// # Errors
/// [`Error::Config`] for settings that do not fit, and for a field that has learnt less than one value everywhere; those of reading the signal and of
/// [`Loop::run`].
pub fn fit(
    settings: &FieldSettings,
    folder: &Path,
    options: &FitOptions,
    preview: Option<&PreviewOptions>,
    observe: &mut dyn FnMut(&Event),
) -> Result<Outcome> {
    let mut settings = settings.clone();
    if settings.model.preset.is_empty() {
        settings.model.preset = settings.data.default_preset().to_owned();
    }
    settings.validate()?;
    let preview = preview.map(Preview::new).transpose()?;
    let fit = Fit {
        settings: &settings,
        folder,
        options,
        start: Instant::now(),
    };
    match &settings.data {
        DataSettings::Image(_) | DataSettings::Sound(_) | DataSettings::Video(_) => {
            fit.signal(preview, observe)
        }
        DataSettings::Mesh(mesh) => fit.shape(mesh, preview, observe),
        DataSettings::Scene(scene) => fit.scene(scene, preview, observe),
    }
}

/// What all kinds of signals are fitted with.
struct Fit<'a> {
    settings: &'a FieldSettings,
    folder: &'a Path,
    options: &'a FitOptions<'a>,
    start: Instant,
}

impl Fit<'_> {
    fn network(&self, pipeline: &Pipeline) -> Result<(VarStore, Network)> {
        let vs = VarStore::new(self.options.device);
        let seed = step_seed(self.options.seed, u64::MAX);
        let network = Network::build(pipeline, &vs, seed)?;
        Ok((vs, network))
    }

    fn train<T: Task>(
        &self,
        task: &T,
        vs: &VarStore,
        pipeline: &Pipeline,
        observe: &mut dyn FnMut(&Event),
    ) -> Result<Finished> {
        let train = &self.settings.train;
        let scale = train.grid_lr_scale;
        let names = densely_core::weights::named(vs);
        if (scale - 1.0).abs() > f64::EPSILON && !names.keys().any(|name| is_grid(name)) {
            tracing::warn!(
                "train.grid_lr_scale = {scale} changes nothing: the network has no grids of CAM"
            );
        }
        let training = Loop {
            optimizer: &train.optimizer,
            schedule: &train.schedule,
            epochs: train.epochs,
            patience: train.patience,
            min_improvement: 0.0,
            clip_norm: train.clip_norm,
            ema_decay: 0.0,
            time_budget: train.time_budget,
            may_change: &MAY_CHANGE,
            options: self.options,
            start: self.start,
        };
        let text = json!(pipeline).to_string();
        training.run(task, vs, self.settings, text, observe)
    }

    fn outcome(
        &self,
        found: Finished,
        scores: Vec<(&'static str, f64)>,
        notes: Vec<String>,
        signal_values: Option<u64>,
    ) -> Outcome {
        Outcome {
            parameters: found.parameters,
            signal_values,
            best_epoch: found.best_epoch,
            epochs: found.epochs,
            scores,
            notes,
            seconds: found.seconds_before + self.start.elapsed().as_secs_f64(),
            peak_mb: peak_rss_mb(),
            out_of_time: found.out_of_time,
        }
    }

    fn signal(&self, preview: Option<Preview>, observe: &mut dyn FnMut(&Event)) -> Result<Outcome> {
        let Self {
            settings, options, ..
        } = self;
        let (data, train) = (&settings.data, &settings.train);
        let convention = settings
            .model
            .convention
            .unwrap_or_else(|| convention_of(&settings.model.preset));
        let loaded = signal::load(data, self.folder, convention)?;
        let signal = &loaded.signal;
        if preview.is_some() && signal.axes().len() < 2 {
            return Err(Error::config("--preview", "is not for sounds"));
        }
        let (_, config) = resolve(&settings.model, signal.axes(), signal.channels())?;
        let pipeline = Pipeline {
            preset: settings.model.preset.clone(),
            config,
            signal: described(&loaded)?,
            data: Some(data.clone()),
        };
        let (vs, network) = self.network(&pipeline)?;
        let Network::Values(network) = &network else {
            return Err(Error::config("model.preset", "gives no values"));
        };
        let parts = Parts::new(signal, data.split().unwrap_or_default())?;
        let flat = signal::flat_psnr(&parts.train, convention, train.judge_limit)?;
        let task = SignalTask {
            network: &**network,
            signal,
            flat,
            parts,
            train,
            seed: options.seed,
            device: options.device,
            preview,
        };
        let found = self.train(&task, &vs, &pipeline, observe)?;
        let judge = |selection| {
            signal::judge(
                &**network,
                selection,
                convention,
                usize::MAX,
                options.device,
            )
        };
        let mut scores = vec![("psnr", judge(&task.parts.train)?.psnr())];
        if let Some(test) = &task.parts.test {
            scores.push(("psnr_test", judge(test)?.psnr()));
        }
        let alike = evaluate::similarity(&**network, signal, options.device)?;
        scores.extend(alike.map(|ssim| ("ssim", ssim)));
        let values = signal.len() * signal.channels();
        Ok(self.outcome(found, scores, Vec::new(), Some(values as u64)))
    }

    fn shape(
        &self,
        mesh: &MeshSettings,
        preview: Option<Preview>,
        observe: &mut dyn FnMut(&Event),
    ) -> Result<Outcome> {
        let Self {
            settings, options, ..
        } = self;
        let train = &settings.train;
        let shape = shape::load(mesh, self.folder, None)?;
        for note in &shape.notes {
            tracing::warn!("{note}");
        }
        let coordinates = settings
            .model
            .convention
            .unwrap_or_else(|| convention_of(&settings.model.preset))
            .coordinates;
        let mut model = settings.model.clone();
        if ["ffn-image", "cam-image"].contains(&&*model.preset) {
            // Distances have signs.
            model.config.entry("sigmoid").or_insert(json!(false));
        }
        let (_, config) = resolve(&model, &[0; 3], 1)?;
        let pipeline = Pipeline {
            preset: model.preset.clone(),
            config,
            signal: Described::Mesh {
                normalisation: shape.normalisation,
                coordinates,
            },
            data: Some(settings.data.clone()),
        };
        let (vs, network) = self.network(&pipeline)?;
        let Network::Values(network) = &network else {
            return Err(Error::config("model.preset", "gives no values"));
        };
        let sampler = crate::mesh::SdfSampler::new(&shape.mesh)?;
        let task = ShapeTask {
            network: &**network,
            sampler: &sampler,
            coordinates,
            train,
            judged: shape::judged(&sampler, train.judge_limit.min(1 << 16)),
            seed: options.seed,
            device: options.device,
            preview,
        };
        let found = self.train(&task, &vs, &pipeline, observe)?;
        let values = |points: &tch::Tensor| {
            let coords = shape::coordinates(points, coordinates);
            let values = field::values_of(&**network, &coords, options.device)?;
            Ok(values.squeeze_dim(1))
        };
        let scores = shape::compare(&shape.mesh, mesh.resolution, &values)?;
        Ok(self.outcome(found, scores.named(), shape.notes, None))
    }

    fn scene(
        &self,
        settings: &radiance::SceneSettings,
        preview: Option<Preview>,
        observe: &mut dyn FnMut(&Event),
    ) -> Result<Outcome> {
        let options = self.options;
        let (pipeline, parts) = open_scene(self.settings, settings, self.folder)?;
        let (vs, network) = self.network(&pipeline)?;
        let Network::Radiance(field) = &network else {
            return Err(Error::config("model.preset", "is no radiance field"));
        };
        let task = SceneTask {
            field,
            parts: &parts,
            train: &self.settings.train,
            seed: options.seed,
            preview,
        };
        let found = self.train(&task, &vs, &pipeline, observe)?;
        let scores = task.scores()?;
        Ok(self.outcome(found, scores, Vec::new(), None))
    }
}

fn described(loaded: &Loaded) -> Result<Described> {
    let signal = &loaded.signal;
    let (channels, convention) = (signal.channels(), signal.convention());
    match (signal.axes(), loaded.sample_rate) {
        ([samples], Some(sample_rate)) => Ok(Described::Sound {
            samples: *samples,
            channels,
            sample_rate,
            convention,
        }),
        ([height, width], None) => Ok(Described::Image {
            height: *height,
            width: *width,
            channels,
            convention,
        }),
        ([frames, height, width], None) => Ok(Described::Video {
            frames: *frames,
            height: *height,
            width: *width,
            channels,
            convention,
        }),
        (axes, _) => Err(Error::config(
            "data",
            format!("no signal has the axes {axes:?}"),
        )),
    }
}

/// The grids of CAM learn at a rate of their own.
fn grid_rules(scale: f64) -> Vec<GroupRule> {
    vec![GroupRule::new(|name, _| is_grid(name), scale, None)]
}

fn is_grid(name: &str) -> bool {
    name.ends_with("affine")
}

/// Share of the steps after which a field must be better than one value everywhere, and steps before which nothing is said.
const PATIENCE: (f64, u64) = (0.2, 100);

/// PSNR of one value, dB, above which a signal counts as constant.
const NEARLY_CONSTANT: f64 = 40.0;

/// Ends a training that learns nothing: of a network whose frequencies are far beyond those of the signal the loss stays finite, and above that of a constant.
fn no_better_than_nothing(steps: u64, train: &TrainSettings, psnr: f64, flat: f64) -> Result<()> {
    let all = train.epochs.saturating_mul(train.epoch_steps);
    let (share, least) = PATIENCE;
    // A signal that hardly differs from one value is fitted by it.
    let nothing_to_learn = flat.is_nan() || flat > NEARLY_CONSTANT;
    if nothing_to_learn
        || steps < least
        || (steps as f64) < share * all as f64
        || psnr >= flat - 0.01
    {
        return Ok(());
    }
    let reason = format!(
        "after {steps} steps the field has {psnr:.1} dB, and one value everywhere has {flat:.1} dB: its frequencies are too high for this signal, or the learning rate is; lower them, or let `--auto` choose the frequency"
    );
    Err(Error::config("train", reason))
}
