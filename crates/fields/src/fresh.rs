//! FreSh: the frequency of a network's embedding, chosen before training.
//!
//! Paper: Kania, Mihajlovic, Prokudin, Tabor, Spurek 2025, arXiv 2410.05050 (ICLR). Follows the released code (gmum/FreSh).
//!
//! A coordinate network learns the frequencies that it already holds when it is drawn. So for each value of a setting, such as
//! SIREN's ω, the σ of Fourier features or the first bias of FINER, draw the network several times, evaluate it on all pixels, take
//! the [`spectrum()`] of what comes out, and compare it with the spectrum of the target:
//!
//! ```text
//! y     target, [channels, n, n]                      s(y)_k = Σ_{u+v=k} Σ_channels |DFT(y)(u, v)|,  k = 1 … S
//! f_e   e-th draw of the network on the pixels of y   W_e    = Σ_k |CDF of s(y) - CDF of s(f_e)|
//! choose the value with the smallest mean of W_1 … W_E, then train it from a new draw
//! ```
//!
//! Differs from the released code: each draw has a seed of its own, which is the same for all values, so that values are compared
//! on the same random numbers in whatever order they run; a real transform of half the coefficients replaces the full one (the sums
//! are equal); the default number of sums shrinks with small pictures, see [`spectrum_size`]; and a value that cannot win any more
//! may be left after a few draws, which is off by default and marked in the result.
//!
//! # Examples
//! ```
//! use densely_fields::fresh::{Candidate, FreshOptions, choose, coordinates};
//! use tch::{Kind, Tensor};
//!
//! // Waves of a drawn direction and phase stand for networks.
//! let wave = |frequency: f64, seed: i64| -> densely_fields::fresh::Network {
//!     let angle = 0.3 + 0.1 * seed as f64;
//!     Box::new(move |xs: &Tensor| {
//!         let along = xs.select(1, 0) * angle.cos() + xs.select(1, 1) * angle.sin();
//!         Ok((along * frequency).sin().unsqueeze(1))
//!     })
//! };
//! let target = wave(30.0, 9)(&coordinates(&[96, 96])?)?.view([1, 96, 96]);
//! let candidates: Vec<Candidate> = [10.0, 30.0, 60.0]
//!     .map(|value| Candidate::new("frequency", value, move |seed| Ok(wave(value, seed))))
//!     .into();
//! let choice = choose(&target, &candidates, &FreshOptions::default(), &mut |_| ())?;
//! assert_eq!(choice.chosen.value, 30.0);
//! # Ok::<(), densely_core::Error>(())
//! ```

mod search;
mod spectrum;

use std::fmt;

use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};
use tch::Tensor;

pub use search::{
    FINER, FINER_WITHOUT_BIAS, FOURIER, SEARCHES, SIREN, SIREN_BETAS, Search, TRAINING, Training,
};
pub use spectrum::{coordinates, distance, is_counted, spectrum, spectrum_size, square};

use spectrum::{Diagonals, sides};

/// How networks are compared with the target. Defaults are the paper's, but for the size of small pictures' spectra.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FreshOptions {
    /// Sums of the spectrum, S; `None` takes [`spectrum_size`] of the smallest side.
    pub spectrum_size: Option<i64>,
    /// Random draws of each network, E.
    pub draws: usize,
    /// Seed of the first draw; the others count up from it.
    pub seed: i64,
    /// Points that a network is evaluated on at once.
    pub chunk: i64,
    /// Whether a value is left, after at least three draws, when its mean distance less two standard errors is above the best mean so far.
    pub abandon: bool,
}

impl Default for FreshOptions {
    fn default() -> Self {
        Self {
            spectrum_size: None,
            draws: TRAINING.draws,
            seed: TRAINING.seed,
            chunk: 1 << 16,
            abandon: false,
        }
    }
}

impl FreshOptions {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check::positive("draws", self.draws as i64)?;
        check::positive("chunk", self.chunk)?;
        self.spectrum_size
            .map_or(Ok(()), |size| check::positive("spectrum_size", size))
    }
}

/// A drawn network: points `[points, axes]`, f32 in [-1, 1], to values `[points, channels]`.
pub type Network = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

/// A value that a setting may take, and how to draw a network that has it.
pub struct Candidate<'a> {
    /// The setting.
    pub setting: String,
    /// Its value.
    pub value: f64,
    build: Box<dyn Fn(i64) -> Result<Network> + 'a>,
}

impl<'a> Candidate<'a> {
    /// `build` draws a network whose weights, and random features if it has them, depend on the seed it is given and on nothing
    /// else; [`densely_core::seeded`] does that. It must be exactly the network that will be trained.
    pub fn new(
        setting: impl Into<String>,
        value: f64,
        build: impl Fn(i64) -> Result<Network> + 'a,
    ) -> Self {
        Self {
            setting: setting.into(),
            value,
            build: Box::new(build),
        }
    }
}

impl fmt::Debug for Candidate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate")
            .field("setting", &self.setting)
            .field("value", &self.value)
            .finish_non_exhaustive()
    }
}

/// How far the networks of one value lie from the target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// The setting.
    pub setting: String,
    /// Its value.
    pub value: f64,
    /// Mean of the distances, in steps of k.
    pub mean: f64,
    /// Standard error of the mean: the distances' deviation (by their number) over the root of their number, as the released code has it.
    pub standard_error: f64,
    /// Distance of each draw, in the order of the seeds.
    pub distances: Vec<f64>,
    /// Whether it was left before all draws; it is not chosen then.
    pub abandoned: bool,
}

impl Score {
    fn new(candidate: &Candidate, distances: Vec<f64>, draws: usize) -> Self {
        let count = distances.len() as f64;
        let mean = distances.iter().sum::<f64>() / count;
        let squares: f64 = distances.iter().map(|d| (d - mean).powi(2)).sum();
        Self {
            setting: candidate.setting.clone(),
            value: candidate.value,
            mean,
            standard_error: squares.sqrt() / count,
            abandoned: distances.len() < draws,
            distances,
        }
    }
}

/// The table of distances, and what it says to take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// The score with the smallest mean, the first of equal ones.
    pub chosen: Score,
    /// All scores in the order of the candidates.
    pub scores: Vec<Score>,
    /// The target's spectrum, k = 1 to S.
    pub target: Vec<f64>,
    /// Side of the square or cube whose spectra were compared.
    pub side: i64,
    /// Draws of each value, unless it was left.
    pub draws: usize,
    /// Seed of the first draw.
    pub seed: i64,
    /// Whether values could be left early, so that means are not all of the same draws.
    pub abandoning: bool,
}

/// Chooses the candidate whose fresh networks have the spectrum nearest to that of `target`, a picture `[channels, height, width]` or
/// a volume `[channels, depth, height, width]` with values in [-1, 1]. `observe` sees each score as it is known.
///
/// Networks are evaluated at all [`coordinates`] of the target, in chunks, without gradients, and brought to equal sides as the target is.
/// The same options, candidates and target give the same bits.
/// # Errors
/// [`Error::Config`] for options out of range or no candidates; [`Error::Shape`] for a target or a network's values that do not
/// fit; [`Error::Data`] for a constant or not finite target or network; what a candidate's `build` fails with.
pub fn choose(
    target: &Tensor,
    candidates: &[Candidate],
    options: &FreshOptions,
    observe: &mut dyn FnMut(&Score),
) -> Result<Choice> {
    options.validate()?;
    let search = Comparison::new(target, options)?;
    let mut chosen: Option<Score> = None;
    let mut scores = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let best = chosen.as_ref().map(|score| score.mean);
        let score = search.score(candidate, best)?;
        observe(&score);
        if !score.abandoned && best.is_none_or(|best| score.mean < best) {
            chosen = Some(score.clone());
        }
        scores.push(score);
    }
    Ok(Choice {
        chosen: chosen.ok_or_else(|| Error::config("candidates", "there are none"))?,
        scores,
        target: search.target,
        side: search.side,
        draws: options.draws,
        seed: options.seed,
        abandoning: options.abandon,
    })
}

/// Values, counting channels, whose transforms are computed at once: enough to use all threads, and 64 MB.
const VALUES_AT_ONCE: i64 = 1 << 24;

/// Draws before which no value is left: a standard error of fewer says little.
const DRAWS_BEFORE_LEAVING: usize = 3;

/// What all candidates are compared with, and where they are evaluated.
struct Comparison<'a> {
    options: &'a FreshOptions,
    sides: Vec<i64>,
    points: Tensor,
    side: i64,
    diagonals: Diagonals,
    target: Vec<f64>,
}

impl<'a> Comparison<'a> {
    fn new(target: &Tensor, options: &'a FreshOptions) -> Result<Self> {
        let sides = sides(target)?;
        let squared = square(target)?;
        let side = squared.size()[1];
        let size = options.spectrum_size.unwrap_or_else(|| spectrum_size(side));
        let diagonals = Diagonals::new(side, sides.len(), size)?;
        let target_spectrum = diagonals.spectra(&squared.unsqueeze(0))?.remove(0);
        // Says that the target is constant before any network is drawn.
        distance(&target_spectrum, &target_spectrum)?;
        Ok(Self {
            options,
            points: coordinates(&sides)?.to_device(target.device()),
            sides,
            side,
            diagonals,
            target: target_spectrum,
        })
    }

    /// Draws and compares one candidate, as long as it may be better than `best`.
    fn score(&self, candidate: &Candidate, best: Option<f64>) -> Result<Score> {
        let draws = self.options.draws;
        let mut distances = Vec::with_capacity(draws);
        while distances.len() < draws {
            let first = self.evaluate(candidate, distances.len())?;
            let together = self.draws_together(&first).min(draws - distances.len());
            let mut outputs = vec![first];
            for draw in 1..together {
                outputs.push(self.evaluate(candidate, distances.len() + draw)?);
            }
            for spectrum in self.diagonals.spectra(&Tensor::f_stack(&outputs, 0)?)? {
                distances.push(distance(&self.target, &spectrum).map_err(|e| of(candidate, &e))?);
            }
            if let Some(best) = best.filter(|_| self.options.abandon) {
                let score = Score::new(candidate, distances.clone(), draws);
                let least = score.mean - 2.0 * score.standard_error;
                if distances.len() >= DRAWS_BEFORE_LEAVING && least > best {
                    break;
                }
            }
        }
        Ok(Score::new(candidate, distances, draws))
    }

    /// How many outputs like `first` are transformed at once.
    fn draws_together(&self, first: &Tensor) -> usize {
        if self.options.abandon {
            return 1;
        }
        (VALUES_AT_ONCE / first.numel() as i64).max(1) as usize
    }

    /// One draw on all points, with equal sides: `[channels, side, …]`.
    fn evaluate(&self, candidate: &Candidate, draw: usize) -> Result<Tensor> {
        let network = (candidate.build)(self.options.seed.wrapping_add(draw as i64))?;
        let _no_grad = tch::no_grad_guard();
        let values = self.points.split(self.options.chunk, 0);
        let values: Vec<Tensor> = values
            .iter()
            .map(|points| {
                let values = network(points)?;
                let points = Some(points.size()[0]);
                check::shape(&name(candidate), &values, &[points, None])?;
                Ok(values)
            })
            .collect::<Result<_>>()?;
        let values = Tensor::f_cat(&values, 0)?.transpose(0, 1).contiguous(); // [channels, points]
        let size = [&values.size()[..1], &self.sides].concat();
        square(&values.f_view(size.as_slice())?)
    }
}

fn name(candidate: &Candidate) -> String {
    format!("{} {}", candidate.setting, candidate.value)
}

/// The error, with the name of the candidate it came from.
fn of(candidate: &Candidate, error: &Error) -> Error {
    Error::data("", format!("{}: {error}", name(candidate)))
}
