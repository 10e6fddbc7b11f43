//! Where tokens stand: masks, positions, rotations.

use densely_core::{Error, Result, check};
use tch::{Device, Kind, Tensor};

use crate::config::{LmConfig, RopeScaling, Rotary};
use crate::kv::KvCache;
use crate::norm::wide;

/// What all layers of one pass share.
#[derive(Debug)]
pub(crate) struct Pass {
    pub batch: i64,
    pub len: i64,
    /// Tokens in the cache before the first.
    pub past: i64,
    /// Which of the old and new tokens are real, booleans `[batch, past + len]`; `None` where all are.
    pub mask: Option<Tensor>,
    /// `[len]`, or `[batch, len]` where a mask is given; without learned or rotary use it is not looked at.
    pub positions: Option<Tensor>,
    /// Cosines and sines.
    pub rotation: Option<Rotation>,
    /// Added to scores: `[1 or batch, 1, len, past + len]`, 0 or −∞; `None` where nothing but the causal order hides anything.
    pub bias: Option<Tensor>,
    /// Whether the causal order alone hides something.
    pub causal: bool,
}

/// Cosines and sines of a rotation, `[time, 1, dims / 2]` or `[batch, time, 1, dims / 2]`, in the model's kind.
#[derive(Debug)]
pub(crate) struct Rotation {
    cos: Tensor,
    sin: Tensor,
    minus_sin: Tensor,
    dims: i64,
    interleaved: bool,
}

/// The mask of old and new tokens as booleans `[batch, past + len]`; `None` where all are real.
fn whole_mask(
    given: Option<&Tensor>,
    kv: Option<&KvCache>,
    [batch, len, past]: [i64; 3],
    device: Device,
) -> Result<Option<Tensor>> {
    let name = "attention_mask";
    let remembered = kv.and_then(KvCache::mask).filter(|_| past > 0);
    let ones = |len: i64| Tensor::f_ones([batch, len], (Kind::Bool, device));
    let Some(given) = given else {
        let Some(remembered) = remembered else {
            return Ok(None);
        };
        check::shape("the cache's mask", remembered, &[Some(batch), Some(past)])?;
        return Ok(Some(Tensor::f_cat(&[remembered, &ones(len)?], 1)?));
    };
    if given.is_floating_point() {
        return Err(Error::Shape {
            what: name.to_owned(),
            expected: "integers or booleans, 1 at real tokens".to_owned(),
            got: format!("{:?}", given.kind()),
        });
    }
    let size = given.size();
    if size != [batch, len] && size != [batch, past + len] {
        let expected = if past > 0 {
            format!(
                "[{batch}, {len}], or [{batch}, {}] with the cached tokens",
                past + len
            )
        } else {
            format!("[{batch}, {len}]")
        };
        return Err(Error::Shape {
            what: name.to_owned(),
            expected,
            got: format!("{size:?}"),
        });
    }
    let mut mask = given.f_to_device(device)?.f_ne(0)?;
    if past > 0 && size[1] == len {
        let before = match remembered {
            Some(before) => before.shallow_clone(),
            None => ones(past)?,
        };
        mask = Tensor::f_cat(&[before, mask], 1)?;
    }
    let all_real = mask.f_all()?.f_int64_value(&[])? != 0;
    Ok((!all_real).then_some(mask))
}

impl Pass {
    /// # Errors
    /// [`Error::Shape`] for a mask of another shape or kind; [`Error::Config`] for texts longer than the model takes.
    pub(crate) fn new(
        config: &LmConfig,
        [batch, len, past]: [i64; 3],
        mask: Option<&Tensor>,
        kv: Option<&KvCache>,
        (kind, device): (Kind, Device),
    ) -> Result<Self> {
        let shape = [batch, len, past];
        let mask = whole_mask(mask, kv, shape, device)?;
        let positions = match &mask {
            None => {
                refuse_long(config, past + len)?;
                Tensor::f_arange_start(past, past + len, (Kind::Int64, device))?
            }
            Some(mask) => {
                let counted = mask.f_cumsum(1, Kind::Int64)?;
                refuse_long(config, counted.f_max()?.f_int64_value(&[])?)?;
                let counted = counted.f_narrow(1, past, len)?;
                counted.f_sub_scalar(1)?.f_clamp_min(0)?
            }
        };
        let rotation = match &config.rotary {
            Some(rotary) => Some(Rotation::new(rotary, &positions, kind)?),
            None => None,
        };
        let bias = match &mask {
            Some(mask) => Some(hiding(Some(mask), shape, (kind, device))?),
            None if past > 0 && len > 1 => Some(hiding(None, shape, (kind, device))?),
            None => None,
        };
        Ok(Self {
            batch,
            len,
            past,
            mask,
            positions: config.learned_positions().then_some(positions),
            rotation,
            causal: bias.is_none() && len > 1,
            bias,
        })
    }

    /// What is hidden, as booleans `[1 or batch, 1, len, past + len]`; `None` where nothing is.
    pub(crate) fn hidden(&self, device: Device) -> Result<Option<Tensor>> {
        if let Some(bias) = &self.bias {
            return Ok(Some(bias.f_lt(0)?));
        }
        if !self.causal {
            return Ok(None);
        }
        let size = [1, 1, self.len, self.len];
        let all = Tensor::f_ones(size, (Kind::Bool, device))?;
        Ok(Some(all.f_triu(1)?))
    }
}

fn refuse_long(config: &LmConfig, len: i64) -> Result<()> {
    if len <= config.n_ctx {
        return Ok(());
    }
    let reason = format!(
        "the model takes texts of at most {} tokens, got {len}",
        config.n_ctx
    );
    Err(Error::config("input_ids", reason))
}

/// 0 where a query sees a key and −∞ where it does not: `[1 or batch, 1, len, past + len]`.
fn hiding(
    mask: Option<&Tensor>,
    [_, len, past]: [i64; 3],
    (kind, device): (Kind, Device),
) -> Result<Tensor> {
    let square = Tensor::f_ones([len, past + len], (Kind::Bool, device))?;
    let mut seen = square.f_tril(past)?.f_unsqueeze(0)?; // [1, len, past + len]
    if let Some(mask) = mask {
        let keys = mask.f_unsqueeze(1)?;
        let queries = mask.f_narrow(1, past, len)?.f_unsqueeze(2)?;
        // Each token sees itself, so that no row of the softmax is empty.
        let own = square.f_tril(past)?.f_triu(past)?.f_unsqueeze(0)?;
        seen = seen
            .f_logical_and(&keys)?
            .f_logical_and(&queries)?
            .f_logical_or(&own)?;
    }
    let bias = Tensor::f_zeros(seen.size(), (kind, device))?;
    let bias = bias.f_masked_fill(&seen.f_logical_not()?, f64::NEG_INFINITY)?;
    Ok(bias.f_unsqueeze(1)?)
}

/// Turns per position of each pair: in f32 as the reference has them, in f64 where the model is.
fn frequencies(rotary: &Rotary, (kind, device): (Kind, Device)) -> Result<Tensor> {
    let exponent = Tensor::f_arange_start_step(0, rotary.dims, 2, (kind, Device::Cpu))?
        .f_div_scalar(rotary.dims)?;
    let plain = Tensor::f_pow_scalar(rotary.base, &exponent)?.f_reciprocal()?;
    let scaled = match rotary.scaling {
        RopeScaling::None => plain,
        RopeScaling::Linear { factor } => plain.f_div_scalar(factor)?,
        RopeScaling::Llama3 {
            factor,
            low,
            high,
            old_ctx,
        } => {
            let slow = plain.f_div_scalar(factor)?;
            let wave = plain.f_reciprocal()?.f_mul_scalar(std::f64::consts::TAU)?;
            let fade = wave.f_reciprocal()?.f_mul_scalar(old_ctx)?;
            let fade = fade.f_sub_scalar(low)?.f_div_scalar(high - low)?;
            let mixed = fade
                .f_mul(&plain)?
                .f_add(&fade.f_rsub_scalar(1.0)?.f_mul(&slow)?)?;
            let long = wave.f_gt(old_ctx / low)?;
            let short = wave.f_lt(old_ctx / high)?;
            slow.f_where_self(&long, &plain.f_where_self(&short, &mixed)?)?
        }
    };
    Ok(scaled.f_to_device(device)?)
}

impl Rotation {
    fn new(rotary: &Rotary, positions: &Tensor, kind: Kind) -> Result<Self> {
        let frequencies = frequencies(rotary, (wide(kind), positions.device()))?;
        let positions = positions.f_to_kind(wide(kind))?.f_unsqueeze(-1)?;
        let angles = positions.f_mul(&frequencies)?.f_unsqueeze(-2)?; // [.., time, 1, dims / 2]
        let sin = angles.f_sin()?.f_to_kind(kind)?;
        Ok(Self {
            cos: angles.f_cos()?.f_to_kind(kind)?,
            minus_sin: sin.f_neg()?,
            sin,
            dims: rotary.dims,
            interleaved: rotary.interleaved,
        })
    }

    /// Turns the first `dims` values of each head: `[batch, time, heads, width]` to the same.
    pub(crate) fn turn(&self, xs: &Tensor) -> Result<Tensor> {
        let size = xs.size();
        let width = size[3];
        let turned = xs.f_narrow(3, 0, self.dims)?;
        let (first, second) = if self.interleaved {
            let pairs = turned.f_unflatten(3, [self.dims / 2, 2])?;
            (pairs.f_select(4, 0)?, pairs.f_select(4, 1)?)
        } else {
            let half = self.dims / 2;
            (
                turned.f_narrow(3, 0, half)?,
                turned.f_narrow(3, half, half)?,
            )
        };
        let one = first
            .f_mul(&self.cos)?
            .f_addcmul(&second, &self.minus_sin)?;
        let two = second.f_mul(&self.cos)?.f_addcmul(&first, &self.sin)?;
        if self.interleaved {
            let pairs = Tensor::f_stack(&[one, two], 4)?.f_flatten(3, 4)?;
            if self.dims == width {
                return Ok(pairs);
            }
            let rest = xs.f_narrow(3, self.dims, width - self.dims)?;
            return Ok(Tensor::f_cat(&[pairs, rest], 3)?);
        }
        if self.dims == width {
            return Ok(Tensor::f_cat(&[one, two], 3)?);
        }
        let rest = xs.f_narrow(3, self.dims, width - self.dims)?;
        Ok(Tensor::f_cat(&[one, two, rest], 3)?)
    }
}

/// Rows of a table of learned positions: `[len, d]` or `[batch, len, d]`.
pub(crate) fn learned(table: &Tensor, config: &LmConfig, pass: &Pass) -> Result<Tensor> {
    let offset = config.position_offset();
    match &pass.positions {
        Some(positions) if positions.dim() == 2 => {
            let rows = positions.f_add_scalar(offset)?;
            Ok(Tensor::f_embedding(table, &rows, -1, false, false)?)
        }
        _ => Ok(table.f_narrow(0, pass.past + offset, pass.len)?),
    }
}

/// Fails unless `ids` are tokens of the vocabulary, `[batch, time]` and not empty.
pub(crate) fn check_ids(ids: &Tensor, vocab: i64) -> Result<()> {
    let name = "input_ids";
    check::kind(name, ids, Kind::Int64)?;
    check::shape(name, ids, &[None, None])?;
    if ids.numel() == 0 {
        let reason = format!(
            "holds no token ({:?}): a prompt has at least one",
            ids.size()
        );
        return Err(Error::config(name, reason));
    }
    for end in [ids.f_min()?, ids.f_max()?] {
        let token = end.f_int64_value(&[])?;
        if !(0..vocab).contains(&token) {
            let reason = format!("token {token} is not of the vocabulary, 0 to {}", vocab - 1);
            return Err(Error::config(name, reason));
        }
    }
    Ok(())
}

/// Softmax over the last axis in f32 or wider, given back in the kind of `xs`.
pub(crate) fn softmax(xs: &Tensor) -> Result<Tensor> {
    let kind = xs.kind();
    Ok(xs.f_softmax(-1, wide(kind))?.f_to_kind(kind)?)
}
