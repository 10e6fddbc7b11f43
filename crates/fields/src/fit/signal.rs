//! Fitting signals on a grid: pictures, sounds, films.

use std::path::Path;

use densely_core::{Error, Model, Result, Tensors};
use densely_data::image::{self, AnyImage, Filter, ReadOptions};
use densely_train::metrics::Direction;
use densely_train::optim::GroupRule;
use densely_train::training::Task;
use tch::{Device, Kind, Tensor};

use super::evaluate::MOST;
use super::evaluate::diverged_at;
use super::field::{values_of, write_picture};
use super::preview::{Preview, show};
use super::settings::{DataSettings, ImageSettings, TrainSettings};
use super::{grid_rules, no_better_than_nothing};
use crate::metrics::SquaredError;
use crate::signals::{Batch, Convention, Selection, Signal, Split, read_frames, read_wav, to_unit};

/// A signal and what its file says beside.
#[derive(Debug)]
pub struct Loaded {
    /// The samples.
    pub signal: Signal,
    /// Samples a second, of sounds.
    pub sample_rate: Option<u32>,
}

/// Reads a picture, sound or film.
///
/// # Errors
/// Those of reading it; [`Error::Config`] for a size that it has not, and for settings of a mesh or a scene.
pub(super) fn load(data: &DataSettings, folder: &Path, convention: Convention) -> Result<Loaded> {
    let plain = |signal| Loaded {
        signal,
        sample_rate: None,
    };
    match data {
        DataSettings::Image(settings) => {
            let picture = picture(settings, folder)?;
            Ok(plain(Signal::from_image(picture, convention)))
        }
        DataSettings::Sound(settings) => {
            let sound = read_wav(&folder.join(&settings.file), convention)?;
            Ok(Loaded {
                signal: sound.signal,
                sample_rate: Some(sound.sample_rate),
            })
        }
        DataSettings::Video(settings) => Ok(plain(read_frames(
            &folder.join(&settings.file),
            convention,
        )?)),
        DataSettings::Mesh(_) | DataSettings::Scene(_) => {
            let reason = format!("a {} is no signal on a grid", data.kind());
            Err(Error::config("data.kind", reason))
        }
    }
}

/// The picture, reduced and cut out as the settings say.
///
/// # Errors
/// Those of reading it; [`Error::Config`] for a side that is larger than the picture.
pub fn picture(settings: &ImageSettings, folder: &Path) -> Result<AnyImage> {
    let path = folder.join(&settings.file);
    let options = ReadOptions {
        max_pixels: settings.max_pixels,
    };
    let mut picture = image::read_with(&path, &options)?;
    if settings.side > 0 {
        let (width, height) = (picture.width(), picture.height());
        let shorter = width.min(height);
        if settings.side > shorter {
            let reason = format!(
                "must be at most {shorter}, the shorter side of {}, got {}",
                path.display(),
                settings.side
            );
            return Err(Error::config("data.side", reason));
        }
        let scaled = |side: usize| (side * settings.side + shorter / 2) / shorter;
        let eight = picture.into_eight();
        picture = image::resize(&eight, scaled(width), scaled(height), Filter::Lanczos)?.into();
    }
    if settings.crop > 0 {
        let (width, height, side) = (picture.width(), picture.height(), settings.crop);
        if side > width.min(height) {
            let reason = format!(
                "must be at most {}, the shorter side of the picture, got {side}",
                width.min(height)
            );
            return Err(Error::config("data.crop", reason));
        }
        let (left, top) = ((width - side) / 2, (height - side) / 2);
        picture = match picture {
            AnyImage::Eight(image) => image.crop(left, top, side, side)?.into(),
            AnyImage::Sixteen(image) => image.crop(left, top, side, side)?.into(),
        };
    }
    Ok(picture)
}

/// What is trained on and what is judged by.
pub(super) struct Parts<'a> {
    pub(super) train: Selection<'a>,
    /// All samples, or those that were held out; absent where all are trained on.
    pub(super) test: Option<Selection<'a>>,
}

impl<'a> Parts<'a> {
    pub(super) fn new(signal: &'a Signal, split: Split) -> Result<Self> {
        let test = match split {
            Split::All => None,
            Split::Every(_) => Some(Split::All),
            Split::Kept { held_out, seed } | Split::HeldOut { held_out, seed } => {
                Some(Split::HeldOut { held_out, seed })
            }
        };
        Ok(Self {
            train: signal.select(split)?,
            test: test.map(|split| signal.select(split)).transpose()?,
        })
    }
}

/// Shows the samples of a selection to `see`, batch by batch; of more than `limit` as many at random, always the same.
fn sampled(
    selection: &Selection,
    limit: usize,
    see: &mut dyn FnMut(Batch) -> Result<()>,
) -> Result<()> {
    if selection.len() <= limit {
        return selection
            .batches(AT_ONCE, None)?
            .try_for_each(|batch| see(batch?));
    }
    (0..limit.div_ceil(AT_ONCE)).try_for_each(|number| {
        let count = AT_ONCE.min(limit - number * AT_ONCE);
        see(selection.draw(count, number as u64)?)
    })
}

/// The error on a selection, of `limit` samples at random at most.
pub(super) fn judge(
    network: &dyn Model,
    selection: &Selection,
    convention: Convention,
    limit: usize,
    device: Device,
) -> Result<SquaredError> {
    let mut error = SquaredError::default();
    sampled(selection, limit, &mut |batch| {
        let values = values_of(network, &batch.coordinates, device)?;
        error.add(
            &to_unit(&values, convention),
            &to_unit(&batch.values, convention),
        )
    })?;
    Ok(error)
}

/// PSNR of the mean value of each channel, on the samples that [`judge`] looks at.
pub(super) fn flat_psnr(
    selection: &Selection,
    convention: Convention,
    limit: usize,
) -> Result<f64> {
    let (mut count, mut sums): (f64, Option<[Tensor; 2]>) = (0.0, None);
    sampled(selection, limit, &mut |batch| {
        let values = to_unit(&batch.values, convention).to_kind(Kind::Double);
        let own = [&values, &values.square()].map(|xs| xs.sum_dim_intlist(0, false, Kind::Double));
        count += values.size()[0] as f64;
        sums = Some(match sums.take() {
            Some(sums) => [&sums[0] + &own[0], &sums[1] + &own[1]],
            None => own,
        });
        Ok(())
    })?;
    let [sum, squares] = sums.ok_or_else(|| Error::config("data", "holds no sample"))?;
    let variance = squares / count - (sum / count).square();
    Ok(-10.0
        * variance
            .mean(Kind::Double)
            .double_value(&[])
            .max(0.0)
            .log10())
}

/// Samples that are read from a signal at once.
const AT_ONCE: usize = 1 << 17;

/// Samples whose gradients are computed at once: about 1 GB in a network of four layers of 256.
const PIECE: i64 = 1 << 17;

pub(super) struct SignalTask<'a> {
    pub(super) network: &'a dyn Model,
    pub(super) signal: &'a Signal,
    pub(super) parts: Parts<'a>,
    pub(super) train: &'a TrainSettings,
    pub(super) seed: u64,
    pub(super) device: Device,
    pub(super) preview: Option<Preview>,
    /// PSNR of one value everywhere: what a field must beat.
    pub(super) flat: f64,
}

impl SignalTask<'_> {
    const fn convention(&self) -> Convention {
        self.signal.convention()
    }
}

impl Task for SignalTask<'_> {
    type Batch = Batch;

    fn steps(&self) -> u64 {
        self.train.epoch_steps
    }

    fn epoch(&self, epoch: u64, skip: u64) -> Result<impl Iterator<Item = Result<Batch>>> {
        let steps = self.train.epoch_steps;
        let size = self.train.batch_size as usize;
        let selection = &self.parts.train;
        let whole = size == 0 || size >= selection.len();
        let all = whole.then(|| selection.all()).transpose()?;
        let seed = self.seed;
        Ok((skip..steps).map(move |step| match &all {
            Some(all) => Ok(Batch {
                places: Vec::new(),
                coordinates: all.coordinates.shallow_clone(),
                values: all.values.shallow_clone(),
            }),
            None => selection.draw(
                size,
                densely_train::machine::step_seed(seed, epoch * steps + step) as u64,
            ),
        }))
    }

    fn pieces(&self, batch: &Batch) -> u64 {
        (batch.coordinates.size()[0] as u64).div_ceil(PIECE as u64)
    }

    fn loss(&self, batch: &Batch, _step: u64, piece: u64) -> Result<Tensor> {
        let count = batch.coordinates.size()[0];
        let start = piece as i64 * PIECE;
        let length = PIECE.min(count - start);
        let part = |xs: &Tensor| xs.narrow(0, start, length).to_device(self.device);
        let inputs = Tensors::from([("coords".to_owned(), part(&batch.coordinates))]);
        let mut outputs = self.network.forward_named(&inputs, true)?;
        let values = outputs
            .remove("values")
            .ok_or_else(|| densely_core::check::absent("values"))?;
        let loss = self.train.loss.of(&values, &part(&batch.values))?;
        // A mean over the piece counts by its share of the step.
        Ok(if length == count {
            loss
        } else {
            loss * (length as f64 / count as f64)
        })
    }

    fn tensors(batch: Batch) -> Tensors {
        Tensors::from([
            ("coords".to_owned(), batch.coordinates),
            ("values".to_owned(), batch.values),
        ])
    }

    fn rules(&self) -> Vec<GroupRule> {
        grid_rules(self.train.grid_lr_scale)
    }

    fn made(&self, steps: u64) -> Result<()> {
        show(self.preview.as_ref(), steps, &mut |path| {
            write_picture(path, self.network, self.signal, self.device)
        })
    }

    fn judge(&self, steps: u64) -> Result<(f64, Vec<(&'static str, f64)>)> {
        let of = |selection: &Selection| {
            judge(
                self.network,
                selection,
                self.convention(),
                self.train.judge_limit,
                self.device,
            )
            .map_err(diverged_at(steps))
        };
        let psnr = of(&self.parts.train)?.psnr();
        let mut metrics = vec![("psnr", psnr)];
        if let Some(test) = &self.parts.test {
            metrics.push(("psnr_test", of(test)?.psnr()));
        }
        no_better_than_nothing(steps, self.train, psnr, self.flat)?;
        Ok((psnr.min(MOST), metrics))
    }

    fn direction(&self) -> Direction {
        Direction::Higher
    }
}
