//! Noise that corrupts a subject, bit for bit as numpy's old generator draws it.
//!
//! Causal tracing adds noise to the token embeddings of the subject. The reference code draws it with
//! `numpy.random.RandomState(1)`; [`RandomState`] repeats that generator (MT19937 seeded by Knuth's recurrence, normals by
//! the polar method), so that its grids can be met number by number. How large and of which shape the noise is, says
//! [`NoiseKind`]; [`Noise`] is a kind that was measured on a model.

use std::fmt;
use std::str::FromStr;

use densely_core::{Error, Result, check};
use densely_lm::Lm;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Words of the generator's state.
const WORDS: usize = 624;
/// How far apart the words lie that are mixed.
const SHIFT: usize = 397;

/// numpy's `RandomState` of a whole-number seed.
#[derive(Debug, Clone)]
pub struct RandomState {
    words: Vec<u32>,
    place: usize,
    /// The second normal of a pair.
    kept: Option<f64>,
}

impl RandomState {
    /// The generator of a seed, as `numpy.random.RandomState(seed)`.
    pub fn new(seed: u32) -> Self {
        let mut words = Vec::with_capacity(WORDS);
        let mut word = seed;
        for i in 0..WORDS as u32 {
            words.push(word);
            word = (word ^ (word >> 30))
                .wrapping_mul(1_812_433_253)
                .wrapping_add(i + 1);
        }
        Self {
            words,
            place: WORDS,
            kept: None,
        }
    }

    fn refill(&mut self) {
        for i in 0..WORDS {
            let upper = self.words[i] & 0x8000_0000;
            let lower = self.words[(i + 1) % WORDS] & 0x7fff_ffff;
            let mixed = upper | lower;
            let odd = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.words[i] = self.words[(i + SHIFT) % WORDS] ^ (mixed >> 1) ^ odd;
        }
        self.place = 0;
    }

    /// 32 random bits.
    pub fn word(&mut self) -> u32 {
        if self.place == WORDS {
            self.refill();
        }
        let mut word = self.words[self.place];
        self.place += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    /// A number in [0, 1) of 53 bits, from two words; `random_sample()`.
    pub fn double(&mut self) -> f64 {
        let high = f64::from(self.word() >> 5);
        let low = f64::from(self.word() >> 6);
        (high * 67_108_864.0 + low) / 9_007_199_254_740_992.0
    }

    /// A number in [low, high); `uniform(low, high)`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.double()
    }

    /// A standard normal number by the polar method, whose pairs are given second first; `standard_normal()`.
    pub fn normal(&mut self) -> f64 {
        if let Some(kept) = self.kept.take() {
            return kept;
        }
        loop {
            let x = 2.0 * self.double() - 1.0;
            let y = 2.0 * self.double() - 1.0;
            let square = x * x + y * y;
            if square < 1.0 && square != 0.0 {
                let factor = (-2.0 * square.ln() / square).sqrt();
                self.kept = Some(factor * x);
                return factor * y;
            }
        }
    }

    fn exponential(&mut self) -> f64 {
        -(1.0 - self.double()).ln()
    }

    /// A number of the gamma distribution of `shape` above 0 and scale 1; `standard_gamma(shape)`.
    fn gamma(&mut self, shape: f64) -> f64 {
        // Exactly 1 is a case of its own there, with another use of the generator.
        if shape.total_cmp(&1.0).is_eq() {
            return self.exponential();
        }
        if shape < 1.0 {
            loop {
                let u = self.double();
                let v = self.exponential();
                if u <= 1.0 - shape {
                    let x = u.powf(1.0 / shape);
                    if x <= v {
                        return x;
                    }
                } else {
                    let y = -((1.0 - u) / shape).ln();
                    let x = (1.0 - shape + shape * y).powf(1.0 / shape);
                    if x <= v + y {
                        return x;
                    }
                }
            }
        }
        let b = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * b).sqrt();
        loop {
            let (x, v) = loop {
                let x = self.normal();
                let v = 1.0 + c * x;
                if v > 0.0 {
                    break (x, v * v * v);
                }
            };
            let u = self.double();
            if u < 1.0 - 0.0331 * (x * x) * (x * x) || u.ln() < 0.5 * x * x + b * (1.0 - v + v.ln())
            {
                return b * v;
            }
        }
    }

    /// A number of the chi-squared distribution of `degrees` above 0; `chisquare(degrees)`.
    ///
    /// # Errors
    /// [`Error::Config`] when `degrees` is not above 0.
    pub fn chi_square(&mut self, degrees: f64) -> Result<f64> {
        check::above_zero("degrees of freedom", degrees)?;
        Ok(2.0 * self.gamma(degrees / 2.0))
    }

    /// A number of Student's distribution of `degrees` above 0; `standard_t(degrees)`.
    ///
    /// # Errors
    /// [`Error::Config`] when `degrees` is not above 0.
    pub fn student(&mut self, degrees: f64) -> Result<f64> {
        check::above_zero("degrees of freedom", degrees)?;
        let normal = self.normal();
        let gamma = self.gamma(degrees / 2.0);
        Ok((degrees / 2.0).sqrt() * normal / gamma.sqrt())
    }

    /// Standard normal numbers in C order; `randn(*size)`. Of kind double, on the CPU.
    ///
    /// # Errors
    /// [`Error::Config`] when a size is negative or there are more numbers than memory could hold.
    pub fn randn(&mut self, size: &[i64]) -> Result<Tensor> {
        self.fill(size, Self::normal)
    }

    fn fill(&mut self, size: &[i64], mut draw: impl FnMut(&mut Self) -> f64) -> Result<Tensor> {
        // 2^34 numbers are 128 GB.
        let count = size
            .iter()
            .try_fold(1usize, |count, n| {
                count.checked_mul(usize::try_from(*n).ok()?)
            })
            .filter(|count| *count < 1 << 34)
            .ok_or_else(|| {
                Error::config("size of the noise", format!("cannot be drawn: {size:?}"))
            })?;
        let numbers: Vec<f64> = (0..count).map(|_| draw(self)).collect();
        Ok(Tensor::f_from_slice(&numbers)?.f_reshape(size)?)
    }
}

/// Size and shape of the noise, as the reference's option names them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NoiseKind {
    /// `s3`: normal, with so many times the standard deviation over all entries of the embeddings of all subjects' tokens.
    Measured(f64),
    /// `0.1`: normal with this standard deviation.
    Fixed(f64),
    /// `m`: normal with the mean and covariance of token embeddings.
    Covariance,
    /// `t5`: Student's distribution of so many degrees, above 2, with that mean and covariance.
    Student(f64),
    /// `u1`: uniform between minus and plus this number.
    Uniform(f64),
}

impl Default for NoiseKind {
    fn default() -> Self {
        Self::Measured(3.0)
    }
}

impl fmt::Display for NoiseKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Measured(factor) => write!(f, "s{factor}"),
            Self::Fixed(sd) => write!(f, "{sd}"),
            Self::Covariance => f.write_str("m"),
            Self::Student(degrees) => write!(f, "t{degrees}"),
            Self::Uniform(scale) => write!(f, "u{scale}"),
        }
    }
}

impl From<NoiseKind> for String {
    fn from(kind: NoiseKind) -> Self {
        kind.to_string()
    }
}

impl TryFrom<String> for NoiseKind {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl FromStr for NoiseKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let above = |text: &str, least: f64| {
            let number: Option<f64> = text.parse().ok();
            number.filter(|number| number.is_finite() && *number > least)
        };
        let one_or = |text: &str| {
            if text.is_empty() {
                Some(1.0)
            } else {
                above(text, 0.0)
            }
        };
        let kind = match text.chars().next() {
            Some('s') => one_or(&text[1..]).map(Self::Measured),
            Some('u') => one_or(&text[1..]).map(Self::Uniform),
            Some('t') => above(&text[1..], 2.0).map(Self::Student),
            Some('m') => (text == "m").then_some(Self::Covariance),
            _ => above(text, 0.0).map(Self::Fixed),
        };
        kind.ok_or_else(|| {
            Error::config(
                "noise",
                format!(
                    "must be `s3` (times the measured standard deviation), a number above 0 (standard deviation), `m` (covariance), `t5` (Student, degrees above 2) or `u1` (uniform), got `{text}`"
                ),
            )
        })
    }
}

/// Noise of a kind, measured on a model where the kind asks for it.
#[derive(Debug)]
pub struct Noise {
    kind: NoiseKind,
    scale: f64,
    /// Mean `[d]` and matrix `[d, d]`, of kind double on the CPU, that turn independent numbers into those of a covariance.
    shape: Option<(Tensor, Tensor)>,
}

impl Noise {
    /// Normal noise of a standard deviation.
    ///
    /// # Errors
    /// [`Error::Config`] when it is not above 0.
    pub fn fixed(sd: f64) -> Result<Self> {
        check::above_zero("noise", sd)?;
        Ok(Self {
            kind: NoiseKind::Fixed(sd),
            scale: sd,
            shape: None,
        })
    }

    /// Measures what `kind` needs on the token embeddings of `model`.
    ///
    /// `samples` are token ids: of the subjects for `s3`, of ordinary text for `m` and `t5` (the reference takes 1,000
    /// articles of WikiText-103, cut to the context length, and reads them through 100-token batches). Every occurrence
    /// of a token counts. Other kinds need none.
    ///
    /// # Errors
    /// [`Error::Config`] when there are too few samples; what the model says of ids it does not know.
    pub fn measure(model: &Lm, kind: NoiseKind, samples: &[Vec<i64>]) -> Result<Self> {
        let (scale, shape) = match kind {
            NoiseKind::Fixed(sd) => return Self::fixed(sd),
            NoiseKind::Uniform(scale) => {
                check::above_zero("noise", scale)?;
                (scale, None)
            }
            NoiseKind::Measured(factor) => {
                check::above_zero("noise", factor)?;
                (factor * embedding_sd(model, samples)?, None)
            }
            NoiseKind::Student(degrees) if degrees.is_nan() || degrees <= 2.0 => {
                let reason = format!("has a variance above 2 degrees only, got {degrees}");
                return Err(Error::config("noise", reason));
            }
            NoiseKind::Covariance | NoiseKind::Student(_) => {
                (1.0, Some(embedding_shape(model, samples)?))
            }
        };
        Ok(Self { kind, scale, shape })
    }

    /// The kind it is of.
    pub const fn kind(&self) -> NoiseKind {
        self.kind
    }

    /// Standard deviation of normal noise, or half the width of uniform noise; 1 where a covariance sets the scale.
    pub const fn scale(&self) -> f64 {
        self.scale
    }

    /// Draws noise `[rows, width, d]`, of kind double on the CPU: the same for the same seed.
    ///
    /// Kinds without a covariance are the reference's to the bit (as far as the platform's logarithm is numpy's). With
    /// one, each direction's sign is libtorch's choice, so that draws agree in distribution only. Student's factors come from
    /// seed 2 whatever the seed, as there.
    ///
    /// # Errors
    /// [`Error::Config`] when sizes are not positive; [`Error::Shape`] when `d` is not the measured width.
    pub fn sample(&self, seed: u32, rows: i64, width: i64, d: i64) -> Result<Tensor> {
        for (name, size) in [("samples", rows), ("subject tokens", width), ("width", d)] {
            check::positive(name, size)?;
        }
        let mut random = RandomState::new(seed);
        let size = [rows, width, d];
        let drawn = match self.kind {
            NoiseKind::Uniform(_) => random.fill(&size, |random| random.uniform(-1.0, 1.0))?,
            _ => random.randn(&size)?,
        };
        let Some((mean, matrix)) = &self.shape else {
            return Ok(drawn.f_mul_scalar(self.scale)?);
        };
        check::shape("noise", mean, &[Some(d)])?;
        let shaped = drawn.f_matmul(&matrix.f_transpose(0, 1)?)?.f_add(mean)?;
        let NoiseKind::Student(degrees) = self.kind else {
            return Ok(shaped);
        };
        let mut random = RandomState::new(2);
        let factors = (0..rows * width)
            .map(|_| Ok(((degrees - 2.0) / random.chi_square(degrees)?).sqrt()))
            .collect::<Result<Vec<f64>>>()?;
        let factors = Tensor::f_from_slice(&factors)?.f_reshape([rows, width, 1])?;
        Ok(shaped.f_mul(&factors)?)
    }
}

/// Embeddings of one sample, `[tokens, d]`, of kind double on the CPU.
fn embedded(model: &Lm, ids: &[i64]) -> Result<Tensor> {
    let ids = Tensor::f_from_slice(ids)?
        .f_unsqueeze(0)?
        .f_to(model.device())?;
    let xs = tch::no_grad(|| model.embed_tokens(&ids))?;
    Ok(xs
        .f_squeeze_dim(0)?
        .f_to(Device::Cpu)?
        .f_totype(Kind::Double)?)
}

/// The unbiased standard deviation over all entries, without holding all of them.
fn embedding_sd(model: &Lm, samples: &[Vec<i64>]) -> Result<f64> {
    let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for ids in samples.iter().filter(|ids| !ids.is_empty()) {
        let xs = embedded(model, ids)?;
        let n = xs.numel() as f64;
        let own = xs.f_mean(Kind::Double)?.f_double_value(&[])?;
        let spread = xs
            .f_sub_scalar(own)?
            .f_square()?
            .f_sum(Kind::Double)?
            .f_double_value(&[])?;
        let (sum, gap) = (count + n, own - mean);
        squares += spread + gap * gap * count * n / sum;
        mean += gap * n / sum;
        count = sum;
    }
    if count < 2.0 {
        return Err(Error::config(
            "noise",
            "needs the subject of at least one fact to measure embeddings on",
        ));
    }
    let sd = (squares / (count - 1.0)).sqrt();
    check::above_zero("measured standard deviation of the embeddings", sd)?;
    Ok(sd)
}

/// Mean of the embeddings, and `V·√s` of their covariance's eigenvectors, largest first.
fn embedding_shape(model: &Lm, samples: &[Vec<i64>]) -> Result<(Tensor, Tensor)> {
    let d = model.config().d_model;
    let options = (Kind::Double, Device::Cpu);
    let mut count = 0.0;
    let mut mean = Tensor::f_zeros([d], options)?;
    let mut products = Tensor::f_zeros([d, d], options)?;
    for ids in samples.iter().filter(|ids| !ids.is_empty()) {
        let xs = embedded(model, ids)?;
        let n = ids.len() as f64;
        let own = xs.f_mean_dim([0i64].as_slice(), false, Kind::Double)?;
        let centred = xs.f_sub(&own)?;
        let sum = count + n;
        let gap = own.f_sub(&mean)?;
        let between = gap.f_outer(&gap)?.f_mul_scalar(count * n / sum)?;
        products = products
            .f_add(&centred.f_transpose(0, 1)?.f_matmul(&centred)?)?
            .f_add(&between)?;
        mean = mean.f_add(&gap.f_mul_scalar(n / sum)?)?;
        count = sum;
    }
    if count < 2.0 {
        return Err(Error::config(
            "noise",
            "needs text of at least two tokens to measure the embeddings' covariance on",
        ));
    }
    if count <= d as f64 {
        tracing::warn!(
            "the covariance of embeddings of width {d} is measured on {count} tokens only: it has no full rank"
        );
    }
    let (values, vectors) = products.f_div_scalar(count - 1.0)?.f_linalg_eigh("L")?;
    // Ascending there; the reference's decomposition is descending. Rounding makes small values negative.
    let values = values.f_flip([0])?.f_clamp_min(0.0)?.f_sqrt()?;
    let matrix = vectors.f_flip([1])?.f_mul(&values)?;
    Ok((mean, matrix))
}
