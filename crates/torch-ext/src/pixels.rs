//! Chains of layers over the channels of each pixel, by tiles of pixels that pass through all of them in the processor's cache, and layers over
//! the cells of a grid or the pixels of a block that leave the map as it lies. For f32 on the CPU, without gradients.

use tch::{Kind, Tensor};

use crate::bridge::ffi;
use crate::rows::all_owned;
use crate::{address, fused, owned};

/// Whether chains may run on maps like `xs`: f32 on the CPU, and nobody asks for gradients.
pub fn enabled(xs: &Tensor) -> bool {
    xs.kind() == Kind::Float && fused::enabled_for_f32(&[xs]) && !fused::records_gradients()
}

/// More rows than the fused operation takes: it refuses them, and until then no sum of counts can overflow.
const TOO_MANY: i64 = (1 << 20) + 1;

/// Channels of a tile, one row each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "the rows are there to be read"]
pub struct Rows {
    first: i64,
    count: i64,
}

impl Rows {
    /// The two halves, the first channels first.
    pub const fn halves(self) -> [Self; 2] {
        let count = self.count / 2;
        let first = Self {
            first: self.first,
            count,
        };
        let second = Self {
            first: self.first + count,
            count,
        };
        [first, second]
    }

    /// These and the next ones, which must have been made right behind them.
    ///
    /// # Errors
    /// A sentence, when others lie between.
    pub fn beside(self, next: Self) -> Result<Self, String> {
        if self.first + self.count == next.first {
            let count = self.count + next.count;
            return Ok(Self { count, ..self });
        }
        Err("only rows that lie side by side are one".to_owned())
    }
}

/// A chain of steps that every pixel passes through.
///
/// # Examples
/// ```
/// use densely_torch_ext::pixels::Chain;
/// use tch::{Kind, Tensor};
///
/// let of = |size: &[i64]| Tensor::randn(size, (Kind::Float, tch::Device::Cpu));
/// let (xs, weight, bias) = (of(&[1, 5, 7, 16]), of(&[32, 16]), of(&[32]));
/// let mut chain = Chain::new(&xs);
/// let rows = chain.load(&xs, 16);
/// let rows = chain.layer(rows, &weight, Some(&bias));
/// chain.gelu(rows);
/// chain.store(rows);
/// let ys = chain.run()?;
/// let plain = xs.linear(&weight, Some(&bias)).gelu("tanh");
/// assert!((&ys[0] - plain).abs().max().double_value(&[]) < 1e-5);
/// # Ok::<(), String>(())
/// ```
#[derive(Debug)]
pub struct Chain<'a> {
    like: &'a Tensor,
    rows: i64,
    numbers: Vec<i64>,
    tensors: Vec<Option<Tensor>>,
    eps: Vec<f64>,
}

/// As in `pixel_kernels.h`.
#[derive(Debug, Clone, Copy)]
enum Work {
    Load,
    Store,
    Norm,
    Layer,
    Gelu,
    Multiply,
    Add,
}

impl<'a> Chain<'a> {
    /// A chain for maps with the pictures and sides of `like`, `[pictures, height, width, channels]`.
    pub const fn new(like: &'a Tensor) -> Self {
        Self {
            like,
            rows: 0,
            numbers: Vec::new(),
            tensors: Vec::new(),
            eps: Vec::new(),
        }
    }

    fn step(&mut self, work: Work, [from, to]: [Rows; 2], tensors: [Option<&Tensor>; 2], eps: f64) {
        self.numbers
            .extend([work as i64, from.first, to.first, to.count, from.count]);
        // Contiguous ones share what they hold.
        let kept = tensors.map(|xs| xs.map(Tensor::contiguous));
        self.tensors.extend(kept);
        self.eps.push(eps);
    }

    fn made(&mut self, count: i64) -> Rows {
        let (first, count) = (self.rows, count.clamp(0, TOO_MANY));
        self.rows += count;
        Rows { first, count }
    }

    /// The channels of a map.
    pub fn load(&mut self, map: &Tensor, channels: i64) -> Rows {
        let rows = self.made(channels);
        self.step(Work::Load, [rows; 2], [Some(map), None], 0.0);
        rows
    }

    /// A map of the rows, in the order of these calls.
    pub fn store(&mut self, rows: Rows) {
        self.step(Work::Store, [rows; 2], [None; 2], 0.0);
    }

    /// The rows normed over the channels of each pixel.
    pub fn norm(&mut self, rows: Rows, weight: &Tensor, bias: &Tensor, eps: f64) -> Rows {
        let out = self.made(rows.count);
        self.step(Work::Norm, [rows, out], [Some(weight), Some(bias)], eps);
        out
    }

    /// `W x + b`; the weight is `[out, in]`, with or without axes of 1 behind.
    pub fn layer(&mut self, rows: Rows, weight: &Tensor, bias: Option<&Tensor>) -> Rows {
        let out = self.made(weight.size().first().copied().unwrap_or(0));
        self.step(Work::Layer, [rows, out], [Some(weight), bias], 0.0);
        out
    }

    /// GELU by tanh, in place.
    pub fn gelu(&mut self, rows: Rows) {
        self.step(Work::Gelu, [rows; 2], [None; 2], 0.0);
    }

    /// `rows` times `by`, in place.
    pub fn multiply(&mut self, rows: Rows, by: Rows) {
        self.step(Work::Multiply, [by, rows], [None; 2], 0.0);
    }

    /// `rows` and `more`, in place.
    pub fn add(&mut self, rows: Rows, more: Rows) {
        self.step(Work::Add, [more, rows], [None; 2], 0.0);
    }

    /// The maps that were stored, `[pictures, height, width, channels]`.
    ///
    /// # Errors
    /// A sentence, when shapes or kinds do not fit, or all rows are more than 2²⁰.
    pub fn run(&self) -> Result<Vec<Tensor>, String> {
        let tensors = self.tensors.iter();
        let addresses: Vec<usize> = tensors.map(|xs| xs.as_ref().map_or(0, address)).collect();
        // SAFETY: the addresses are those of tensors that the chain owns or borrows, or 0.
        let made = unsafe {
            ffi::pixel_steps(
                &self.numbers,
                &addresses,
                &self.eps,
                address(self.like),
                self.rows,
            )
        };
        all_owned(made)
    }
}

/// A layer over the pixels of each channel that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Mix<'a> {
    /// `[side², side²]`.
    pub weight: &'a Tensor,
    /// `[side²]`.
    pub bias: Option<&'a Tensor>,
    /// Scale, shift and eps of a norm over the channels of each pixel before it.
    pub norm: Option<(&'a Tensor, &'a Tensor, f64)>,
    /// Cells along a side of a grid, or pixels along that of a block.
    pub side: i64,
    /// Whether it is over the cells of a grid, for each place in them; else over the pixels of each block.
    pub grid: bool,
}

impl Mix<'_> {
    /// `W norm(v) + b`, and with a gate `gate ∘ (W norm(v) + b + 1)`.
    ///
    /// # Shapes
    /// `v` and `gate`: `[pictures, height, width, channels]`, sides that are multiples of `side`.
    /// # Errors
    /// A sentence, when shapes or kinds do not fit.
    pub fn apply(&self, v: &Tensor, gate: Option<&Tensor>) -> Result<Tensor, String> {
        let (gamma, beta, eps) = self.norm.map_or((0, 0, 0.0), |(gamma, beta, eps)| {
            (address(gamma), address(beta), eps)
        });
        // SAFETY: the addresses are those of tensors borrowed for the call, or 0.
        unsafe {
            owned(ffi::pixel_mix(
                address(v),
                gate.map_or(0, address),
                address(self.weight),
                self.bias.map_or(0, address),
                gamma,
                beta,
                eps,
                self.side,
                self.grid,
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn drawn(size: &[i64]) -> Tensor {
        Tensor::randn(size, (Kind::Float, Device::Cpu))
    }

    /// The error of a chain over a map of 2 × 2 pixels with 16 channels.
    fn refused(steps: impl FnOnce(&mut Chain, &Tensor)) -> String {
        let xs = drawn(&[1, 2, 2, 16]);
        let mut chain = Chain::new(&xs);
        steps(&mut chain, &xs);
        chain.run().expect_err("no such chain")
    }

    #[test]
    fn rows_beyond_all_memory_are_an_error() {
        for channels in [(1 << 62) + 16, i64::MAX, 1 << 21] {
            let error = refused(|chain, xs| {
                for _ in 0..5 {
                    let rows = chain.load(xs, channels);
                    chain.store(rows.halves()[1]);
                }
            });
            assert!(error.contains("too many channels"), "{error}");
        }
        for channels in [0, -16, i64::MIN] {
            let error = refused(|chain, xs| {
                let rows = chain.load(xs, channels);
                chain.store(rows);
            });
            assert!(error.contains("no channels"), "{error}");
        }
    }

    #[test]
    fn rows_of_other_counts_do_not_go_together() {
        for add in [true, false] {
            let error = refused(|chain, xs| {
                let rows = chain.load(xs, 16);
                let half = rows.halves()[0];
                if add {
                    chain.add(rows, half);
                } else {
                    chain.multiply(rows, half);
                }
            });
            assert!(error.contains("as many channels"), "{error}");
        }
    }

    #[test]
    fn maps_of_other_shapes_and_weights_that_are_numbers_are_refused() {
        for size in [[1, 4, 1, 16], [2, 2, 1, 16], [1, 2, 4, 8]] {
            let other = drawn(&size);
            let error = refused(|chain, _| {
                let rows = chain.load(&other, 16);
                chain.store(rows);
            });
            assert!(error.contains("a map has other"), "{size:?}: {error}");
        }
        let number = drawn(&[]);
        let error = refused(|chain, xs| {
            let rows = chain.load(xs, 16);
            let rows = chain.layer(rows, &number, None);
            chain.store(rows);
        });
        assert!(error.contains("no channels"), "{error}");
    }

    #[test]
    fn mixings_without_channels_and_of_huge_sides_are_refused() {
        let mix = |weight: &Tensor, side: i64, size: &[i64], gate: Option<&Tensor>| {
            let mix = Mix {
                weight,
                bias: None,
                norm: None,
                side,
                grid: true,
            };
            mix.apply(&drawn(size), gate)
        };
        let weight = drawn(&[4, 4]);
        assert!(mix(&weight, 2, &[1, 4, 2, 16], None).is_ok());
        assert!(mix(&weight, 2, &[1, 4, 2, 0], None).is_err());
        let nothing = drawn(&[0]);
        // The cells' square is 2⁶⁴, which wraps to the weight's size.
        assert!(mix(&nothing, 1 << 16, &[1, 0, 0, 16], None).is_err());
        let gate = drawn(&[1, 2, 4, 16]);
        assert!(mix(&weight, 2, &[1, 4, 2, 16], Some(&gate)).is_err());
    }
}
