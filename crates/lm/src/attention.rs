//! Causal attention of a block, with the hook points within it.

use densely_core::{Error, Result};
use tch::{Kind, Tensor};

use crate::config::LmConfig;
use crate::hooks::{Point, Tape};
use crate::kv::KvCache;
use crate::linear::Projection;
use crate::norm::Norm;
use crate::positions::{Pass, softmax};

/// Queries, keys, values: which of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Query,
    Key,
    Value,
}

impl Part {
    const ALL: [Self; 3] = [Self::Query, Self::Key, Self::Value];
}

/// The matrices that read queries, keys and values, in the layout of the family's files.
#[derive(Debug)]
pub(crate) enum Reader {
    /// One matrix whose outputs are all queries, then all keys, then all values: GPT-2.
    Blocks(Projection),
    /// One matrix whose outputs are query, key and value of head 0, then of head 1 …: GPT-NeoX.
    ByHead(Projection),
    /// One matrix for each.
    Apart([Projection; 3]),
}

#[derive(Debug)]
pub(crate) struct Attention {
    pub reader: Reader,
    pub out: Projection,
    pub heads: i64,
    pub kv_heads: i64,
    pub width: i64,
}

impl Attention {
    pub(crate) fn new(config: &LmConfig, reader: Reader, out: Projection) -> Self {
        Self {
            reader,
            out,
            heads: config.n_heads,
            kv_heads: config.n_kv_heads,
            width: config.d_head,
        }
    }

    const fn heads_of(&self, part: Part) -> i64 {
        match part {
            Part::Query => self.heads,
            Part::Key | Part::Value => self.kv_heads,
        }
    }

    /// The reading matrix of each head as a view `[heads, d, width]`.
    pub(crate) fn read_matrix(&self, part: Part) -> Result<Tensor> {
        let heads = self.heads_of(part);
        let columns = match &self.reader {
            Reader::Blocks(all) => {
                let side = self.heads * self.width;
                all.matrix()?.f_narrow(1, part as i64 * side, side)?
            }
            Reader::ByHead(all) => {
                let cut = all.matrix()?.f_unflatten(1, [heads, 3, self.width])?;
                return Ok(cut.f_select(2, part as i64)?.f_permute([1, 0, 2])?);
            }
            Reader::Apart(parts) => parts[part as usize].matrix()?,
        };
        let cut = columns.f_unflatten(1, [heads, self.width])?;
        Ok(cut.f_permute([1, 0, 2])?)
    }

    /// The reading bias of each head as a view `[heads, width]`.
    pub(crate) fn read_bias(&self, part: Part) -> Result<Option<Tensor>> {
        let heads = self.heads_of(part);
        let (bias, sizes, axis) = match &self.reader {
            Reader::Blocks(all) => (&all.bias, vec![3, heads, self.width], Some(0)),
            Reader::ByHead(all) => (&all.bias, vec![heads, 3, self.width], Some(1)),
            Reader::Apart(parts) => (&parts[part as usize].bias, vec![heads, self.width], None),
        };
        let Some(bias) = bias else {
            return Ok(None);
        };
        let cut = bias.f_unflatten(0, sizes)?;
        Ok(Some(match axis {
            Some(axis) => cut.f_select(axis, part as i64)?,
            None => cut,
        }))
    }

    /// The writing matrix of each head as a view `[heads, width, d]`.
    pub(crate) fn write_matrix(&self) -> Result<Tensor> {
        let rows = self.out.matrix()?;
        Ok(rows.f_unflatten(0, [self.heads, self.width])?)
    }

    /// Queries, keys and values of all heads, `[batch, time, heads, width]` each.
    fn read(&self, xs: &Tensor) -> Result<[Tensor; 3]> {
        match &self.reader {
            Reader::Blocks(all) => {
                let all = all
                    .forward(xs)?
                    .f_unflatten(-1, [3, self.heads, self.width])?;
                Ok([
                    all.f_select(2, 0)?,
                    all.f_select(2, 1)?,
                    all.f_select(2, 2)?,
                ])
            }
            Reader::ByHead(all) => {
                let all = all
                    .forward(xs)?
                    .f_unflatten(-1, [self.heads, 3, self.width])?;
                Ok([
                    all.f_select(3, 0)?,
                    all.f_select(3, 1)?,
                    all.f_select(3, 2)?,
                ])
            }
            Reader::Apart([query, key, value]) => {
                let cut = |projection: &Projection, heads: i64| -> Result<Tensor> {
                    let ys = projection.forward(xs)?;
                    Ok(ys.f_unflatten(-1, [heads, self.width])?)
                };
                Ok([
                    cut(query, self.heads)?,
                    cut(key, self.kv_heads)?,
                    cut(value, self.kv_heads)?,
                ])
            }
        }
    }

    /// One of the three from inputs of each head's own: `[batch, time, heads, d]` to `[batch, time, heads, width]`.
    fn read_by_head(&self, part: Part, xs: &Tensor) -> Result<Tensor> {
        let ys = by_head(xs, &self.read_matrix(part)?)?;
        Ok(match self.read_bias(part)? {
            Some(bias) => ys.f_add(&bias)?,
            None => ys,
        })
    }

    /// The three where the residual is split by head before the norm. What no hook changes is read from the whole residual, so that
    /// recording leaves the bits alone.
    fn read_split(
        &self,
        plain: [Tensor; 3],
        norm: &Norm,
        residual: &Tensor,
        layer: usize,
        tape: &mut Tape<'_, '_>,
    ) -> Result<[Tensor; 3]> {
        let mut found = plain;
        for (part, point) in Part::ALL.into_iter().zip(INPUTS) {
            let place = point.at(layer);
            if !tape.wants(place) {
                continue;
            }
            let [batch, time, d] = sizes(residual)?;
            let size = [batch, time, self.heads_of(part), d];
            let split = residual.f_unsqueeze(2)?.f_expand(size, false)?;
            let new = tape.change(place, &split)?;
            if new.is_some() || tape.gradients {
                let split = new.unwrap_or(split);
                found[part as usize] = self.read_by_head(part, &norm.forward(&split)?)?;
            }
        }
        Ok(found)
    }

    /// What attention writes: `[batch, time, d]`.
    ///
    /// `xs` is the norm of `residual`; the residual itself is only looked at where queries, keys or values have inputs of their own.
    pub(crate) fn pass(
        &self,
        xs: &Tensor,
        (norm, residual): (&Norm, &Tensor),
        layer: usize,
        pass: &Pass,
        kv: Option<&mut KvCache>,
        tape: &mut Tape<'_, '_>,
    ) -> Result<Tensor> {
        let at = |point: Point| point.at(layer);
        let mut read = self.read(xs)?;
        if INPUTS.iter().any(|point| tape.wants(at(*point))) {
            read = self.read_split(read, norm, residual, layer, tape)?;
        }
        let [query, key, value] = read;
        let mut query = tape.pass(at(Point::Q), query)?;
        let mut key = tape.pass(at(Point::K), key)?;
        let value = tape.pass(at(Point::V), value)?;
        if let Some(rotation) = &pass.rotation {
            query = tape.pass(at(Point::RotQ), rotation.turn(&query)?)?;
            key = tape.pass(at(Point::RotK), rotation.turn(&key)?)?;
        }
        let query = query.f_transpose(1, 2)?; // [batch, heads, time, width]
        let mut key = key.f_transpose(1, 2)?;
        let mut value = value.f_transpose(1, 2)?;
        if let Some(kv) = kv {
            (key, value) = kv.append(layer, key, value, tape.gradients)?;
        }
        let explicit = self.explicit(&query, &key, &value, layer, pass, tape)?;
        let zs = match explicit {
            Some(zs) => zs,
            None => self.fused(&query, &key, &value, pass)?,
        };
        let zs = tape.pass(at(Point::Z), zs.f_transpose(1, 2)?)?; // [batch, time, heads, width]
        if tape.wants(at(Point::Result)) {
            let result = by_head(&zs, &self.write_matrix()?)?;
            let new = tape.change(at(Point::Result), &result)?;
            if new.is_some() || tape.gradients {
                let result = new.as_ref().unwrap_or(&result);
                let ys = result.f_sum_dim_intlist(2i64, false, None::<Kind>)?;
                return Ok(match &self.out.bias {
                    Some(bias) => ys.f_add(bias)?,
                    None => ys,
                });
            }
        }
        self.out.forward(&zs.f_flatten(2, 3)?)
    }

    fn scale(&self) -> f64 {
        1.0 / (self.width as f64).sqrt()
    }

    /// libtorch's own attention: `[batch, heads, time, width]`, keys and values of as many or fewer heads.
    fn fused(&self, query: &Tensor, key: &Tensor, value: &Tensor, pass: &Pass) -> Result<Tensor> {
        let attend = |query: &Tensor, key: &Tensor, value: &Tensor| {
            Tensor::f_scaled_dot_product_attention(
                query,
                key,
                value,
                pass.bias.as_ref(),
                0.0,
                pass.causal,
                self.scale(),
                false,
            )
        };
        let group = self.heads / self.kv_heads;
        if group == 1 {
            return Ok(attend(query, key, value)?);
        }
        if pass.len == 1 {
            // One position: the heads of a group are as good as positions, and nothing is copied for them.
            let size = [pass.batch, self.kv_heads, group, self.width];
            let zs = attend(&query.f_reshape(size)?, key, value)?;
            return Ok(zs.f_reshape([pass.batch, self.heads, 1, self.width])?);
        }
        Ok(attend(query, &self.repeat(key)?, &self.repeat(value)?)?)
    }

    /// Keys or values for each query head: `[batch, kv heads, time, width]` to `[batch, heads, time, width]`.
    fn repeat(&self, xs: &Tensor) -> Result<Tensor> {
        let group = self.heads / self.kv_heads;
        if group == 1 {
            return Ok(xs.shallow_clone());
        }
        let [batch, kv_heads, time, width] = sizes(xs)?;
        let wide = xs
            .f_unsqueeze(2)?
            .f_expand([batch, kv_heads, group, time, width], false)?;
        Ok(wide.f_reshape([batch, self.heads, time, width])?)
    }

    /// Attention step by step where scores or pattern are asked for. `None` where the pass need not go through them: they are recorded
    /// then, and the fused attention gives the result.
    fn explicit(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        layer: usize,
        pass: &Pass,
        tape: &mut Tape<'_, '_>,
    ) -> Result<Option<Tensor>> {
        let (scores_place, pattern_place) = (Point::Scores.at(layer), Point::Pattern.at(layer));
        if !tape.wants(scores_place) && !tape.wants(pattern_place) {
            return Ok(None);
        }
        let key = self.repeat(key)?;
        let scores = query
            .f_matmul(&key.f_transpose(2, 3)?)?
            .f_mul_scalar(self.scale())?;
        let scores = match pass.hidden(scores.device())? {
            Some(hidden) => scores.f_masked_fill(&hidden, f64::NEG_INFINITY)?,
            None => scores,
        };
        let new_scores = tape.change(scores_place, &scores)?;
        let replaced = new_scores.is_some();
        if !replaced && !tape.gradients && !tape.wants(pattern_place) {
            return Ok(None);
        }
        let pattern = softmax(new_scores.as_ref().unwrap_or(&scores))?;
        let new = tape.change(pattern_place, &pattern)?;
        if !replaced && new.is_none() && !tape.gradients {
            return Ok(None);
        }
        let pattern = new.as_ref().unwrap_or(&pattern);
        Ok(Some(pattern.f_matmul(&self.repeat(value)?)?))
    }

    /// What each head writes, without the bias: `[batch, time, heads, width]` to `[batch, time, heads, d]`.
    pub(crate) fn results(&self, zs: &Tensor) -> Result<Tensor> {
        by_head(zs, &self.write_matrix()?)
    }
}

const INPUTS: [Point; 3] = [Point::QInput, Point::KInput, Point::VInput];

/// Each head's values times its matrix: `[batch, time, heads, n]` and `[heads, n, k]` to `[batch, time, heads, k]`.
pub(crate) fn by_head(xs: &Tensor, matrices: &Tensor) -> Result<Tensor> {
    let [batch, time, heads, n] = sizes(xs)?;
    let xs = xs
        .f_permute([2, 0, 1, 3])?
        .f_reshape([heads, batch * time, n])?;
    let ys = xs.f_bmm(matrices)?.f_unflatten(1, [batch, time])?;
    Ok(ys.f_permute([1, 2, 0, 3])?)
}

/// The sizes of a tensor of `N` axes.
pub(crate) fn sizes<const N: usize>(xs: &Tensor) -> Result<[i64; N]> {
    let size = xs.size();
    size.as_slice().try_into().map_err(|_| Error::Shape {
        what: "a tensor".to_owned(),
        expected: format!("{N} axes"),
        got: format!("{size:?}"),
    })
}
