//! Small models: weights and grids as integers of few bits, trained with them, and the bits they take when they are coded.
//!
//! ```text
//! symmetric   s = max |w|,  n = 2^(bits-1) - 1:   level = round(w/s · n),        value = level/n · s     (CAM's 8-bit scenes, one s per tensor)
//! tanh                                            level = trunc(tanh(w) · n),    value = level/n         (FFNeRV and CAM's videos)
//! ```
//!
//! Gradients pass the rounding as if it were not there, and through tanh as they should. Under the second rule a grid's scale of 1 starts as
//! tanh(1) = 0.76, as in the released code.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use densely_core::{Error, Result, weights};
use serde::{Deserialize, Serialize};
use tch::nn::VarStore;
use tch::{Kind, Tensor};

/// How real numbers become integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "snake_case", deny_unknown_fields)]
pub enum Quantiser {
    /// Rounded to equal steps between ± the tensor's largest magnitude.
    Symmetric {
        /// Bits of an integer, with its sign.
        bits: u32,
    },
    /// The hyperbolic tangent, cut towards 0 to equal steps between ±1.
    Tanh {
        /// Bits of an integer, with its sign.
        bits: u32,
    },
}

impl Quantiser {
    /// Checks the bits.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(self) -> Result<()> {
        let bits = self.bits();
        if (2..=16).contains(&bits) {
            return Ok(());
        }
        let reason = format!("must lie in 2 to 16, got {bits}");
        Err(Error::config("bits", reason))
    }

    /// Bits of an integer, with its sign.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Symmetric { bits } | Self::Tanh { bits } => bits,
        }
    }

    /// Largest level.
    fn most(self) -> f64 {
        2f64.powi(self.bits() as i32 - 1) - 1.0
    }

    /// What is rounded, in units of [`Self::scale`].
    fn smooth(self, ws: &Tensor) -> Tensor {
        match self {
            Self::Symmetric { .. } => ws.shallow_clone(),
            Self::Tanh { .. } => ws.tanh(),
        }
    }

    /// The value of the largest level; no gradient goes through it.
    fn scale(self, ws: &Tensor) -> Tensor {
        let ws = ws.detach();
        match self {
            Self::Symmetric { .. } if ws.numel() > 0 => ws.abs().max().clamp_min(1e-6),
            _ => Tensor::ones([], (ws.kind(), ws.device())),
        }
    }

    fn round(self, smooth: &Tensor, scale: &Tensor) -> Tensor {
        let places = smooth.detach() / scale * self.most();
        match self {
            Self::Symmetric { .. } => places.round(),
            Self::Tanh { .. } => places.trunc(),
        }
    }

    /// The integers, of the same shape: 0 to ±(2^(bits-1) - 1).
    pub fn levels(self, ws: &Tensor) -> Tensor {
        let levels = self.round(&self.smooth(ws), &self.scale(ws));
        levels.to_kind(Kind::Int64)
    }

    /// The values that the integers stand for; the gradient is that of the rule without its rounding.
    pub fn quantise(self, ws: &Tensor) -> Tensor {
        let (smooth, scale) = (self.smooth(ws), self.scale(ws));
        let rounded = self.round(&smooth, &scale) / self.most() * scale;
        let step = rounded - smooth.detach();
        smooth + step
    }
}

/// A store whose values are exchanged for quantised ones for the time of a forward and a backward pass; dropping it puts the values back and the
/// gradients through the quantisation, so that an optimiser can step.
///
/// ```
/// use densely_fields::cam::compress::{Exchanged, Quantiser};
/// # use densely_fields::ffn::FfnConfig;
/// # use tch::{Device, Kind, Tensor, nn::VarStore};
/// # let vs = VarStore::new(Device::Cpu);
/// # let config = FfnConfig { frequencies: 4, hidden: 8, ..FfnConfig::cam_image() };
/// # let model = config.build(&vs.root())?;
/// # let coords = Tensor::rand([9, 2], (Kind::Float, Device::Cpu));
/// let exchanged = Exchanged::new(&vs, |name| {
///     (!name.ends_with("bias")).then_some(Quantiser::Symmetric { bits: 8 })
/// })?;
/// model.forward(&coords)?.square().mean(Kind::Float).backward();
/// drop(exchanged); // then the optimiser's step
/// # Ok::<(), densely_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Exchanged {
    parts: Vec<Part>,
}

/// A parameter, its own value and that value quantised.
#[derive(Debug)]
struct Part {
    param: Tensor,
    own: Tensor,
    quantised: Tensor,
}

impl Exchanged {
    /// Quantises each trainable parameter by the rule for its name; those without a rule keep their values. Gradients must be zero.
    ///
    /// # Errors
    /// [`Error::Config`] when a rule's bits are out of range; nothing is exchanged then.
    pub fn new(vs: &VarStore, rule: impl Fn(&str) -> Option<Quantiser>) -> Result<Self> {
        let mut parts = Vec::new();
        let params = weights::named(vs).into_iter();
        for (name, param) in params.filter(|(_, param)| param.requires_grad()) {
            let Some(rule) = rule(&name) else {
                continue;
            };
            rule.validate()?;
            let own = param.detach().copy().set_requires_grad(true);
            let quantised = tch::with_grad(|| rule.quantise(&own));
            parts.push(Part {
                param,
                own,
                quantised,
            });
        }
        let _no_grad = tch::no_grad_guard();
        for Part {
            param, quantised, ..
        } in &mut parts
        {
            param.copy_(quantised);
        }
        Ok(Self { parts })
    }
}

impl Drop for Exchanged {
    fn drop(&mut self) {
        for Part {
            param,
            own,
            quantised,
        } in &mut self.parts
        {
            let mut grad = param.grad();
            if grad.defined() {
                let product = tch::with_grad(|| (&*quantised * &grad).sum(None));
                let through = Tensor::run_backward(&[&product], &[&*own], false, false);
                let _no_grad = tch::no_grad_guard();
                grad.copy_(&through[0]);
            }
            let _no_grad = tch::no_grad_guard();
            param.copy_(own);
        }
    }
}

/// What integers take when each has a code word of its own length.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct CodedSize {
    /// Integers.
    pub values: u64,
    /// Different ones.
    pub distinct: u64,
    /// Bits that no code can go below: n times the entropy of the shares.
    pub shannon_bits: f64,
    /// Bits of Huffman's code, without its table.
    pub huffman_bits: u64,
}

/// Size of integers of any shape, such as [`Quantiser::levels`] gives.
///
/// # Errors
/// [`Error::Shape`] when they are not integers.
pub fn coded_size(levels: &Tensor) -> Result<CodedSize> {
    densely_core::check::kind("levels", levels, Kind::Int64)?;
    if levels.numel() == 0 {
        return Ok(CodedSize::default());
    }
    let (_, _, counts) = levels.flatten(0, -1).f_unique_dim(0, true, false, true)?;
    let counts: Vec<i64> = Vec::try_from(counts)?;
    let values = levels.numel() as f64;
    let entropy = |count: &i64| {
        let count = *count as f64;
        count * (values / count).log2()
    };
    Ok(CodedSize {
        values: values as u64,
        distinct: counts.len() as u64,
        shannon_bits: counts.iter().map(entropy).sum(),
        huffman_bits: huffman(counts.iter().map(|count| *count as u64)),
    })
}

/// Bits of all values: each merging of the two rarest adds one bit to every value below it.
fn huffman(counts: impl Iterator<Item = u64>) -> u64 {
    let mut heap: BinaryHeap<Reverse<u64>> = counts.map(Reverse).collect();
    if heap.len() == 1 {
        // A code word has at least one bit.
        return heap.pop().map_or(0, |Reverse(count)| count);
    }
    let mut bits = 0;
    while let (Some(Reverse(a)), Some(Reverse(b))) = (heap.pop(), heap.pop()) {
        bits += a + b;
        if !heap.is_empty() {
            heap.push(Reverse(a + b));
        }
    }
    bits
}

/// What a model takes: quantised tensors coded one by one, the others as they are.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct ModelSize {
    /// Integers, coded.
    pub coded: CodedSize,
    /// Bits of the tensors without a rule, in their own kinds.
    pub plain_bits: u64,
}

impl ModelSize {
    /// Bits of all, with Huffman's code.
    pub const fn bits(&self) -> u64 {
        self.coded.huffman_bits + self.plain_bits
    }
}

/// Size of the trained parameters of a store under a rule per name, as [`Exchanged::new`] takes it. Code tables are not counted.
///
/// # Errors
/// [`Error::Config`] when a rule's bits are out of range.
pub fn model_size(vs: &VarStore, rule: impl Fn(&str) -> Option<Quantiser>) -> Result<ModelSize> {
    let mut size = ModelSize::default();
    let params = weights::named(vs).into_iter();
    for (name, param) in params.filter(|(_, param)| param.requires_grad()) {
        let Some(rule) = rule(&name) else {
            size.plain_bits += (param.numel() * param.kind().elt_size_in_bytes() * 8) as u64;
            continue;
        };
        rule.validate()?;
        let part = coded_size(&rule.levels(&param.detach()))?;
        size.coded.values += part.values;
        size.coded.distinct = size.coded.distinct.max(part.distinct);
        size.coded.shannon_bits += part.shannon_bits;
        size.coded.huffman_bits += part.huffman_bits;
    }
    Ok(size)
}
