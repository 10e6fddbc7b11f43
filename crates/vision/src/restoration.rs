//! Restoration: pairs of spoilt and clean pictures, training, evaluation, and restoring new pictures.

use std::path::Path;
use std::time::Instant;

use densely_core::weights::{self, Strictness};
use densely_core::{Error, Model, Result, Tensors, seeded};
use densely_data::dataset::{Order, permutations};
use densely_train::event::Event;
use densely_train::machine::{peak_rss_mb, step_seed};
use densely_train::metrics::Direction;
use densely_train::run::FitOptions;
use densely_train::training::{Loop, Task};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Device, Tensor};

use crate::data::{Batches, in_order};
use crate::degrade::{Degradation, GaussianNoise};
use crate::losses::restoration;
use crate::maxim::Maxim;
use crate::metrics::Fidelity;
use crate::transforms::{Mix, Rng};

mod pairs;
mod restorer;
mod settings;

pub use pairs::{Pairs, Prepared};
pub use restorer::{RestoreOptions, Restorer};
pub use settings::{
    DataSettings, Judge, ModelSettings, PairSource, RestoreSettings, TrainSettings,
};
use settings::{MAY_CHANGE, resolve};

/// What restoring needs beside the weights; saved in each checkpoint as `preprocess.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Name of the preset.
    pub preset: String,
    /// Its whole config.
    pub config: Value,
    /// 3 for colours, 1 for grey.
    pub channels: i64,
}

/// How a set of pictures is restored.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// The set.
    pub name: String,
    /// Of each picture: its name, as it came and as it was restored.
    pub pictures: Vec<(String, Fidelity, Fidelity)>,
}

impl Judged {
    /// Means over the pictures: as they came, and restored. A picture restored without an error counts as one of 100 dB.
    pub fn means(&self) -> [Fidelity; 2] {
        let mean = |of: &dyn Fn(&(String, Fidelity, Fidelity)) -> f64| {
            self.pictures.iter().map(of).sum::<f64>() / self.pictures.len().max(1) as f64
        };
        [
            Fidelity {
                psnr: mean(&|p| p.1.psnr.min(MOST)),
                ssim: mean(&|p| p.1.ssim),
            },
            Fidelity {
                psnr: mean(&|p| p.2.psnr.min(MOST)),
                ssim: mean(&|p| p.2.ssim),
            },
        ]
    }
}

/// Of a PSNR in a mean, dB: an infinite one would hide all others.
const MOST: f64 = 100.0;

/// What a finished fit found.
#[derive(Debug)]
pub struct Outcome {
    /// Trainable values of the model.
    pub parameters: u64,
    /// Epoch of the best validation PSNR, counted from 0.
    pub best_epoch: u64,
    /// Epochs trained.
    pub epochs: u64,
    /// The validation pictures, by the best epoch.
    pub valid: Judged,
    /// The test sets, by the best epoch.
    pub test: Vec<Judged>,
    /// The same sets by a classical method that needs no training, each where there is one that fits what spoils it.
    pub baseline: Vec<Option<Judged>>,
    /// Seconds of training and evaluation, with the epochs before a resume.
    pub seconds: f64,
    /// Largest resident memory of this process, MB, where the system tells.
    pub peak_mb: Option<f64>,
}

/// Trains on `prepared` in the run folder and evaluates the best epoch.
///
/// The same seed and threads give the same bits on a CPU, however often the run was killed and resumed.
/// # Errors
/// [`Error::Config`] for settings that do not fit; [`Error::Weights`] for weights to begin with of another model; those of [`Loop::run`].
pub fn fit(
    prepared: &Prepared,
    settings: &RestoreSettings,
    options: &FitOptions,
    observe: &mut dyn FnMut(&Event),
) -> Result<Outcome> {
    let start = Instant::now();
    settings.validate()?;
    let (data, train) = (&settings.data, &settings.train);
    let (config, value) = resolve(&settings.model, data.channels)?;
    let multiple = config.multiple();
    if train.augment.size % multiple != 0 {
        let reason = format!(
            "must be a multiple of {multiple}, got {}",
            train.augment.size
        );
        return Err(Error::config("train.augment.size", reason));
    }
    let vs = VarStore::new(options.device);
    let model = seeded(step_seed(options.seed, u64::MAX), || {
        config.build(&vs.root())
    })?;
    if let Some(path) = &settings.model.weights {
        weights::load_aliased(&vs, Path::new(path), &model.aliases(), Strictness::All)?;
    }
    let pipeline = Pipeline {
        preset: settings.model.preset.clone(),
        config: value,
        channels: data.channels,
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
    let task = RestoreTask {
        model: &model,
        prepared,
        settings,
        seed: options.seed,
        device: options.device,
    };
    let found = training.run(&task, &vs, settings, json!(pipeline).to_string(), observe)?;
    let judge = |pairs: &Pairs| judge(&model, pairs, data.judge, options.device);
    let baseline = |pairs: &Pairs| {
        let sigma = sigma(&data.degrade).filter(|_| pairs.spoilt.is_none());
        let judged = sigma.map(|sigma| baseline(pairs, data.judge, sigma));
        judged.transpose()
    };
    Ok(Outcome {
        parameters: found.parameters,
        best_epoch: found.best_epoch,
        epochs: found.epochs,
        valid: judge(&prepared.valid)?,
        test: prepared.test.iter().map(judge).collect::<Result<_>>()?,
        baseline: prepared.test.iter().map(baseline).collect::<Result<_>>()?,
        seconds: found.seconds_before + start.elapsed().as_secs_f64(),
        peak_mb: peak_rss_mb(),
    })
}

/// The noise of data that is spoilt by normal noise of one strength alone, in steps of 1/255.
fn sigma(degrade: &[Degradation]) -> Option<f64> {
    match degrade {
        [
            Degradation::Noise(GaussianNoise {
                sigma: [low, high], ..
            }),
        ] if low.total_cmp(high).is_eq() => Some(*low),
        _ => None,
    }
}

/// A set restored whole picture by whole picture.
fn judge(model: &Maxim, pairs: &Pairs, judge: Judge, device: Device) -> Result<Judged> {
    judged(pairs, judge, &mut |spoilt| {
        let _no_grad = tch::no_grad_guard();
        let restored = model.restore(&spoilt.unsqueeze(0).to_device(device))?;
        Ok(restored.squeeze_dim(0))
    })
}

fn baseline(pairs: &Pairs, judge: Judge, sigma: f64) -> Result<Judged> {
    judged(pairs, judge, &mut |spoilt| {
        crate::dct::denoise(spoilt, sigma / 255.0)
    })
}

fn judged(
    pairs: &Pairs,
    judge: Judge,
    restore: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
) -> Result<Judged> {
    let mut pictures = Vec::with_capacity(pairs.len());
    for place in 0..pairs.len() {
        let [spoilt, clean] = pairs.whole(place)?;
        let restored = restore(&spoilt)?;
        pictures.push((
            pairs.clean.name(place),
            judge.fidelity(&spoilt, &clean)?,
            judge.fidelity(&restored, &clean)?,
        ));
    }
    Ok(Judged {
        name: pairs.name.clone(),
        pictures,
    })
}

/// Pictures in a random order, then all again in another, without end; of it a piece.
struct Sequence {
    orders: Vec<Vec<i64>>,
    pictures: usize,
    /// Of the piece in the first order.
    start: usize,
}

impl Sequence {
    fn new(pictures: usize, seed: u64, first: u64, count: usize) -> Self {
        let start = (first % pictures as u64) as usize;
        let rounds = (start + count).div_ceil(pictures) as u64;
        let number = first / pictures as u64;
        let order = |round| permutations(pictures, Order::Shared, seed, number + round);
        Self {
            orders: (0..rounds).map(order).collect(),
            pictures,
            start,
        }
    }

    fn at(&self, place: i64) -> usize {
        let place = self.start + place as usize;
        self.orders[place / self.pictures][place % self.pictures] as usize
    }
}

/// Spoilt and clean squares `[batch, channels, size, size]`.
type Squares = (Tensor, Tensor);

struct RestoreTask<'a> {
    model: &'a Maxim,
    prepared: &'a Prepared,
    settings: &'a RestoreSettings,
    seed: u64,
    device: Device,
}

impl Task for RestoreTask<'_> {
    type Batch = Squares;

    fn steps(&self) -> u64 {
        let TrainSettings {
            epoch_squares,
            batch_size,
            ..
        } = self.settings.train;
        (epoch_squares as u64).div_ceil(batch_size as u64)
    }

    fn epoch(&self, epoch: u64, skip: u64) -> Result<impl Iterator<Item = Result<Squares>>> {
        let train = &self.settings.train;
        let squares = train.epoch_squares as usize;
        let (pairs, augment, seed) = (
            self.prepared.train.clone(),
            train.augment.clone(),
            self.seed,
        );
        let plan = in_order(squares, train.batch_size);
        let plan = plan.into_iter().skip(skip as usize).collect();
        let pictures = Sequence::new(pairs.len(), seed, epoch * squares as u64, squares);
        Ok(Batches::new(plan, move |places| {
            let mut squares = [Vec::new(), Vec::new()];
            for place in places {
                let mut rng = Rng::for_picture(seed, epoch, *place as u64);
                let (spoilt, clean) = pairs.square(pictures.at(*place), &augment, &mut rng)?;
                squares[0].push(spoilt);
                squares[1].push(clean);
            }
            let [spoilt, clean] = squares;
            Ok((Tensor::f_stack(&spoilt, 0)?, Tensor::f_stack(&clean, 0)?))
        }))
    }

    fn loss(&self, (spoilt, clean): &Squares, step: u64, _piece: u64) -> Result<Tensor> {
        let train = &self.settings.train;
        let mut rng = Rng::for_step(self.seed, step);
        let mix = if rng.chance(train.mixup) {
            Mix::Blend {
                lam: rng.beta(MIXUP_ALPHA)?,
            }
        } else {
            Mix::None
        };
        let [spoilt, clean] = [spoilt, clean].map(|xs| mix.apply(&xs.to_device(self.device)));
        let outputs = self.model.outputs(&spoilt?)?.into_iter().flatten();
        let outputs: Vec<Tensor> = outputs.collect();
        restoration(&outputs, &clean?, train.loss)
            .ok_or_else(|| Error::config("model.config.num_stages", "must be at least 1"))
    }

    fn tensors((spoilt, clean): Squares) -> Tensors {
        Tensors::from([("image".to_owned(), spoilt), ("clean".to_owned(), clean)])
    }

    fn judge(&self, _steps: u64) -> Result<(f64, Vec<(&'static str, f64)>)> {
        let found = judge(
            self.model,
            &self.prepared.valid,
            self.settings.data.judge,
            self.device,
        )?;
        let [_, restored] = found.means();
        Ok((
            restored.psnr,
            vec![("psnr", restored.psnr), ("ssim", restored.ssim)],
        ))
    }

    fn direction(&self) -> Direction {
        Direction::Higher
    }
}

/// Of the blended pairs' share. The paper names none; this is usual in restoration.
const MIXUP_ALPHA: f64 = 1.2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_picture_comes_as_often_as_any_other() {
        let (pictures, squares) = (7, 5);
        let mut counts = [0; 7];
        for epoch in 0..14 {
            let sequence = Sequence::new(pictures, 3, epoch * squares, squares as usize);
            for place in 0..squares as i64 {
                counts[sequence.at(place)] += 1;
            }
        }
        assert_eq!(counts, [10; 7]);
    }
}
