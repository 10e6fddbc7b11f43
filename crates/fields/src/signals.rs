//! Signals sampled on a regular grid: a picture, a sound, a film, as pairs of coordinates and values.
//!
//! A field learns `f(coordinates [n, axes]) = values [n, channels]`. A signal keeps its samples as the file has them (8 bits for most pictures) and makes
//! both tensors for the samples of a batch only, so that a picture of a billion pixels needs no more memory than its bytes and a batch. Axes are in the order of
//! the samples: rows before columns, frames before rows.
//!
//! Papers differ in what a coordinate is; see [`Coordinates`]. Which samples are trained on, and which are kept to judge by, says a [`Split`].

mod frames;
mod permutation;
mod wav;

use densely_core::{Error, Result};
use densely_data::image::AnyImage;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

pub use frames::stack_frames;
#[cfg(feature = "image")]
pub use frames::{frame_files, read_frames};
use permutation::Permutation;
pub use wav::{Sound, decode_wav, read_wav, write_wav};

/// How place `i` of `n` along an axis becomes a coordinate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Coordinates {
    /// `(i + 0.5) / n`: the middles of cells that fill 0 to 1 (CAM).
    #[default]
    Centres,
    /// `2 i / (n - 1) - 1`: from -1 to 1, ends included, as `linspace(-1, 1, n)` (SIREN, FreSh, Gaussian RBF networks). -1 for an axis of one place.
    Ends,
}

impl Coordinates {
    /// The coordinate of place `i` of `n`.
    pub fn at(self, i: usize, n: usize) -> f32 {
        let (i, n) = (i as f64, n as f64);
        let coordinate = match self {
            Self::Centres => (i + 0.5) / n,
            Self::Ends => 2.0 * i / (n - 1.0).max(1.0) - 1.0,
        };
        coordinate as f32
    }
}

/// The range of a signal's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Range {
    /// 0 to 1.
    #[default]
    Unit,
    /// -1 to 1.
    Symmetric,
}

/// How samples become numbers. The default is that of CAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Convention {
    /// Of places.
    pub coordinates: Coordinates,
    /// Of values.
    pub values: Range,
}

impl Convention {
    /// Coordinates and values from -1 to 1 (FreSh).
    pub const SYMMETRIC: Self = Self {
        coordinates: Coordinates::Ends,
        values: Range::Symmetric,
    };
}

/// Which samples of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// All.
    #[default]
    All,
    /// Every so-many-th along each axis, from the first. To train on every 2nd pixel of both axes and judge by all is CAM's test of generalisation.
    Every(usize),
    /// All but a random share.
    Kept {
        /// Share that is left out, from 0 to 1.
        held_out: f64,
        /// What is left out is a function of this and of the number of samples.
        seed: u64,
    },
    /// The share that [`Kept`](Self::Kept) leaves out.
    HeldOut {
        /// As there.
        held_out: f64,
        /// As there.
        seed: u64,
    },
}

/// Samples as they are stored.
#[derive(Debug, Clone)]
enum Samples {
    /// 0 to 255, for 0 to 1.
    Eight(Vec<u8>),
    /// 0 to 65535, for 0 to 1.
    Sixteen(Vec<u16>),
    /// -1 to 1.
    Float(Vec<f32>),
}

/// Some samples of a signal.
#[derive(Debug)]
pub struct Batch {
    /// Numbers of the samples in the signal, row by row.
    pub places: Vec<usize>,
    /// f32 `[n, axes]`.
    pub coordinates: Tensor,
    /// f32 `[n, channels]`.
    pub values: Tensor,
}

/// A signal on a regular grid.
#[derive(Debug, Clone)]
pub struct Signal {
    axes: Vec<usize>,
    channels: usize,
    samples: Samples,
    convention: Convention,
}

impl Signal {
    /// A picture: axes (rows, columns), 1 or 3 channels.
    pub fn from_image(image: AnyImage, convention: Convention) -> Self {
        let axes = vec![image.height(), image.width()];
        let channels = image.channels();
        let samples = match image {
            AnyImage::Eight(image) => Samples::Eight(image.into_pixels()),
            AnyImage::Sixteen(image) => Samples::Sixteen(image.into_pixels()),
        };
        Self {
            axes,
            channels,
            samples,
            convention,
        }
    }

    /// Places along each axis.
    pub fn axes(&self) -> &[usize] {
        &self.axes
    }

    /// Values of a sample.
    pub const fn channels(&self) -> usize {
        self.channels
    }

    /// Samples: the product of the axes.
    pub fn len(&self) -> usize {
        self.axes.iter().product()
    }

    /// Whether there is no sample; no constructor gives such a signal.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How samples become numbers.
    pub const fn convention(&self) -> Convention {
        self.convention
    }

    /// The samples of the numbers `places`, in that order.
    ///
    /// # Errors
    /// [`Error::Config`] for a number that no sample has.
    pub fn batch(&self, places: Vec<usize>) -> Result<Batch> {
        let len = self.len();
        if let Some(beyond) = places.iter().find(|place| **place >= len) {
            let reason =
                format!("there are {len} samples, numbered from 0, and no number {beyond}");
            return Err(Error::config("places", reason));
        }
        let (n, dims) = (places.len(), self.axes.len());
        let mut coordinates = vec![0f32; n * dims];
        for (row, place) in coordinates.chunks_exact_mut(dims).zip(&places) {
            let mut rest = *place;
            for (coordinate, size) in row.iter_mut().zip(&self.axes).rev() {
                *coordinate = self.convention.coordinates.at(rest % size, *size);
                rest /= size;
            }
        }
        let values: Vec<f32> = places
            .iter()
            .flat_map(|place| place * self.channels..(place + 1) * self.channels)
            .map(|at| self.value(at))
            .collect();
        Ok(Batch {
            places,
            coordinates: Tensor::from_slice(&coordinates).view([n as i64, dims as i64]),
            values: Tensor::from_slice(&values).view([n as i64, self.channels as i64]),
        })
    }

    fn value(&self, at: usize) -> f32 {
        let symmetric = matches!(self.convention.values, Range::Symmetric);
        let from_unit = |value: f32| if symmetric { 2.0 * value - 1.0 } else { value };
        match &self.samples {
            Samples::Eight(samples) => from_unit(f32::from(samples[at]) / 255.0),
            Samples::Sixteen(samples) => from_unit(f32::from(samples[at]) / 65_535.0),
            Samples::Float(samples) if symmetric => samples[at],
            Samples::Float(samples) => 0.5 * samples[at] + 0.5,
        }
    }

    /// The samples of `split`.
    ///
    /// # Errors
    /// [`Error::Config`] when it holds none, or its setting is out of range.
    pub fn select(&self, split: Split) -> Result<Selection<'_>> {
        let len = self.len();
        let (start, count, places) = match split {
            Split::All => (0, len, Places::All),
            Split::Every(0) => {
                return Err(Error::config("every", "must be at least 1, got 0"));
            }
            Split::Every(step) => {
                let fewer: Vec<usize> = self.axes.iter().map(|n| n.div_ceil(step)).collect();
                (0, fewer.iter().product(), Places::Every(step, fewer))
            }
            Split::Kept { held_out, seed } | Split::HeldOut { held_out, seed } => {
                if !(0.0..=1.0).contains(&held_out) {
                    let reason = format!("must lie in [0, 1], got {held_out}");
                    return Err(Error::config("held_out", reason));
                }
                let out = (held_out * len as f64).round() as usize;
                let order = Places::Mixed(Permutation::new(len, seed));
                match split {
                    Split::HeldOut { .. } => (0, out, order),
                    _ => (out, len - out, order),
                }
            }
        };
        if count == 0 {
            let reason = format!("leaves none of {len} samples");
            return Err(Error::config("held_out", reason));
        }
        Ok(Selection {
            signal: self,
            start,
            count,
            places,
        })
    }
}

/// Where the samples of a selection lie.
#[derive(Debug, Clone)]
enum Places {
    All,
    /// The step, and the places along each axis.
    Every(usize, Vec<usize>),
    Mixed(Permutation),
}

/// Samples of a [`Signal`] that are trained on or judged by. Holds no list of them.
#[derive(Debug, Clone)]
pub struct Selection<'a> {
    signal: &'a Signal,
    start: usize,
    count: usize,
    places: Places,
}

impl Selection<'_> {
    /// Number of samples.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none; [`Signal::select`] gives no such selection.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The number in the signal of sample `i` of `len`.
    fn place(&self, i: usize) -> usize {
        match &self.places {
            Places::All => i,
            Places::Every(step, fewer) => {
                let (mut rest, mut place, mut stride) = (i, 0, 1);
                for (few, size) in fewer.iter().zip(&self.signal.axes).rev() {
                    place += rest % few * step * stride;
                    rest /= few;
                    stride *= size;
                }
                place
            }
            Places::Mixed(order) => order.at(self.start + i),
        }
    }

    /// All samples at once. Takes memory for all of them; see [`batches`](Self::batches).
    ///
    /// # Errors
    /// None at present; as [`Signal::batch`].
    pub fn all(&self) -> Result<Batch> {
        self.signal
            .batch((0..self.count).map(|i| self.place(i)).collect())
    }

    /// `count` random samples, with repetition: a function of `seed`. For step s of a run, give a seed that depends on s.
    ///
    /// # Errors
    /// None at present; as [`Signal::batch`].
    pub fn draw(&self, count: usize, seed: u64) -> Result<Batch> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let places = (0..count).map(|_| self.place(rng.random_range(0..self.count)));
        self.signal.batch(places.collect())
    }

    /// Batches of `size` samples, the last one smaller, that together hold each sample once: in an order that is a function of the seed `shuffle`, or, without
    /// it, one after the other.
    ///
    /// # Errors
    /// [`Error::Config`] when `size` is 0; items as [`Signal::batch`].
    pub fn batches(
        &self,
        size: usize,
        shuffle: Option<u64>,
    ) -> Result<impl Iterator<Item = Result<Batch>>> {
        if size == 0 {
            return Err(Error::config("batch_size", "must be at least 1, got 0"));
        }
        let order = shuffle.map(|seed| Permutation::new(self.count, seed));
        let starts = (0..self.count).step_by(size);
        Ok(starts.map(move |start| {
            let numbers = start..self.count.min(start + size);
            let mixed = numbers.map(|i| order.as_ref().map_or(i, |order| order.at(i)));
            self.signal.batch(mixed.map(|i| self.place(i)).collect())
        }))
    }
}

/// Values of all samples in order, `[n, channels]`, as a grid `[axes…, channels]`.
///
/// # Errors
/// [`Error::Shape`] when there are more or fewer values than samples.
pub fn to_grid(signal: &Signal, values: &Tensor) -> Result<Tensor> {
    let channels = signal.channels as i64;
    densely_core::check::shape(
        "values",
        values,
        &[Some(signal.len() as i64), Some(channels)],
    )?;
    let axes = signal.axes.iter().map(|n| *n as i64);
    let size: Vec<i64> = axes.chain([channels]).collect();
    Ok(values.view(size.as_slice()))
}

/// Values of the range of `convention` as values from 0 to 1, where PSNR is measured; not clamped.
pub fn to_unit(values: &Tensor, convention: Convention) -> Tensor {
    match convention.values {
        Range::Unit => values.shallow_clone(),
        Range::Symmetric => (values.to_kind(Kind::Float) + 1.0) / 2.0,
    }
}
