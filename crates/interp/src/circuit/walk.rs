//! Targets of an attribution graph on their way down, many at once.

use std::collections::BTreeMap;

use densely_core::{Error, Result};
use tch::{Kind, Tensor};

use super::attribution::{GraphOptions, Node};
use super::local::{Active, Direction, Local};
use super::numbers;

/// The linear model of a prompt, to walk backwards through.
pub(super) struct Walk<'l, 'a> {
    local: &'l Local<'a>,
    /// The first token whose features and errors are nodes.
    first: usize,
    /// Layer and entry of each active feature.
    pub(super) features: Vec<(usize, usize)>,
    /// Of each layer, the column of its first feature.
    offsets: Vec<usize>,
    /// Features, errors, tokens.
    pub(super) columns: usize,
}

/// A batch of targets on its way down.
struct Batch {
    /// `[targets, tokens, d]`.
    gradient: Tensor,
    /// `[targets]`.
    bias: Tensor,
    /// `[targets, columns]`.
    out: Tensor,
}

impl Batch {
    fn inject(
        &mut self,
        rows: &[i64],
        tokens: &[i64],
        vectors: &Tensor,
        offsets: &Tensor,
    ) -> Result<()> {
        let device = vectors.device();
        let rows = Tensor::f_from_slice(rows)?.f_to(device)?;
        let tokens = Tensor::f_from_slice(tokens)?.f_to(device)?;
        let places = [Some(&rows), Some(&tokens)];
        let _ = self.gradient.f_index_put_(&places, vectors, true)?;
        let _ = self.bias.f_index_add_(0, &rows, offsets)?;
        Ok(())
    }

    /// Adds `[targets, tokens]`, summed over tokens.
    fn add(&mut self, more: &Tensor) -> Result<()> {
        let sums = more.f_sum_dim_intlist([1i64].as_slice(), false, None::<Kind>)?;
        self.bias = self.bias.f_add(&sums)?;
        Ok(())
    }

    /// Writes the values `[targets, n]` of columns.
    fn put(&self, column: usize, values: &Tensor) -> Result<()> {
        let count = values.size()[1];
        let mut place = self.out.f_narrow(1, column as i64, count)?;
        Ok(place.f_copy_(values)?)
    }

    /// The product with `[tokens, d]` at each token, `[targets, tokens]`.
    fn times(&self, xs: &Tensor) -> Result<Tensor> {
        let product = self.gradient.f_mul(xs)?;
        Ok(product.f_sum_dim_intlist([-1i64].as_slice(), false, None::<Kind>)?)
    }
}

impl<'l, 'a> Walk<'l, 'a> {
    pub(super) fn new(local: &'l Local<'a>, options: &GraphOptions) -> Self {
        let first = usize::from(!options.first_token);
        let mut features = Vec::new();
        let mut offsets = Vec::with_capacity(local.layers.len());
        for (layer, own) in local.layers.iter().enumerate() {
            offsets.push(features.len());
            if let Some(active) = &own.active {
                let entries = active.of(first).start..active.values.len();
                features.extend(entries.map(|entry| (layer, entry)));
            }
        }
        let length = local.ids.len();
        Self {
            columns: features.len() + (local.layers.len() + 1) * length,
            local,
            first,
            features,
            offsets,
        }
    }

    fn entry(&self, feature: usize) -> Result<(usize, &'l Active, usize)> {
        let (layer, entry) = self.features.get(feature).copied().ok_or_else(|| {
            let reason = format!("must be below {}, got {feature}", self.features.len());
            Error::config("feature", reason)
        })?;
        Ok((layer, self.local.active(layer)?, entry))
    }

    pub(super) fn node(&self, feature: usize) -> Result<Node> {
        let (layer, active, entry) = self.entry(feature)?;
        Ok(Node::Feature {
            layer,
            token: active.tokens[entry] as usize,
            feature: active.features[entry],
            activation: active.values[entry],
        })
    }

    fn batch(&self, targets: usize) -> Result<Batch> {
        let options = self.local.replacement.options();
        let width = self.local.replacement.model.config().d_model;
        let (targets, length) = (targets as i64, self.local.ids.len() as i64);
        Ok(Batch {
            gradient: Tensor::f_zeros([targets, length, width], options)?,
            bias: Tensor::f_zeros([targets], options)?,
            out: Tensor::f_zeros([targets, self.columns as i64], options)?,
        })
    }

    /// Rows and biases of directions of the last residual.
    pub(super) fn of_logits(&self, directions: &[Direction]) -> Result<(Tensor, Vec<f64>)> {
        let mut batch = self.batch(directions.len())?;
        let rows: Vec<i64> = (0..directions.len() as i64).collect();
        let place = |direction: &Direction| direction.place.token as i64;
        let tokens: Vec<i64> = directions.iter().map(place).collect();
        let vectors: Vec<&Tensor> = directions.iter().map(|own| &own.vector).collect();
        let offsets: Vec<f64> = directions.iter().map(|own| own.offset).collect();
        let (kind, device) = self.local.replacement.options();
        let offsets = Tensor::f_from_slice(&offsets)?
            .f_to(device)?
            .f_to_kind(kind)?;
        batch.inject(&rows, &tokens, &Tensor::f_stack(&vectors, 0)?, &offsets)?;
        self.down(batch, true, &BTreeMap::new())
    }

    /// Rows and biases of features.
    pub(super) fn of_features(&self, features: &[usize]) -> Result<(Tensor, Vec<f64>)> {
        let mut by_layer = BTreeMap::<usize, Vec<(i64, usize)>>::new();
        for (row, feature) in features.iter().enumerate() {
            let (layer, _, entry) = self.entry(*feature)?;
            by_layer.entry(layer).or_default().push((row as i64, entry));
        }
        self.down(self.batch(features.len())?, false, &by_layer)
    }

    /// Walks a batch from the last residual to the embeddings; features join at their layers. `reached` says whether there are targets above.
    fn down(
        &self,
        mut batch: Batch,
        mut reached: bool,
        by_layer: &BTreeMap<usize, Vec<(i64, usize)>>,
    ) -> Result<(Tensor, Vec<f64>)> {
        for layer in (0..self.local.layers.len()).rev() {
            if reached {
                self.through_mlp(layer, &mut batch)?;
            }
            if let Some(joining) = by_layer.get(&layer) {
                self.join(layer, joining, &mut batch)?;
                reached = true;
            }
            if reached {
                self.through_attention(layer, &mut batch)?;
            }
        }
        let length = self.local.ids.len();
        batch.put(self.columns - length, &batch.times(&self.local.embedded)?)?;
        if let Some(positions) = &self.local.positions {
            let more = batch.times(positions)?;
            batch.add(&more)?;
        }
        Ok((batch.out, numbers(&batch.bias)?))
    }

    /// Features start where their transcoder reads.
    fn join(&self, layer: usize, joining: &[(i64, usize)], batch: &mut Batch) -> Result<()> {
        let (replacement, own) = (self.local.replacement, self.local.layer(layer)?);
        let active = self.local.active(layer)?;
        let rows: Vec<i64> = joining.iter().map(|(row, _)| *row).collect();
        let tokens: Vec<i64> = joining.iter().map(|(_, at)| active.tokens[*at]).collect();
        let features: Vec<i64> = joining.iter().map(|(_, at)| active.features[*at]).collect();
        let (kind, device) = replacement.options();
        let features = Tensor::f_from_slice(&features)?.f_to(device)?;
        let places = Tensor::f_from_slice(&tokens)?.f_to(device)?;
        let encoder = replacement.encoder_rows(layer, &features)?; // [joining, d]
        let scale = own.scales[1].f_index_select(0, &places)?; // [joining, 1]
        let (vectors, shift) = self.local.pull(layer, &encoder, &scale)?;
        let bias = &replacement.reader(layer)?.encoder_bias;
        let offsets = bias
            .f_index_select(0, &features)?
            .f_to_kind(kind)?
            .f_add(&shift)?;
        batch.inject(&rows, &tokens, &vectors, &offsets)
    }

    /// What the MLP's place writes, multiplied; what is linear in the residual goes on.
    fn through_mlp(&self, layer: usize, batch: &mut Batch) -> Result<()> {
        let (replacement, own) = (self.local.replacement, self.local.layer(layer)?);
        let length = self.local.ids.len();
        let kept = (length - self.first.min(length)) as i64;
        let errors = batch.times(&own.error)?; // [targets, tokens]
        let column = self.features.len() + layer * length + self.first;
        batch.put(column, &errors.f_narrow(1, self.first as i64, kept)?)?;
        // What is no node at the first token: all that its MLP writes, but for bias and skip.
        let mut lost = own.written.f_select(0, 0)?;
        if let Some(active) = &own.active {
            let reader = replacement.reader(layer)?;
            let before = active.of(self.first).start;
            for token in self.first..length {
                let range = active.of(token);
                if range.is_empty() {
                    continue;
                }
                let (start, count) = (range.start as i64, range.len() as i64);
                let writes = active.writes.f_narrow(0, start, count)?.f_tr()?; // [d, features]
                let values = batch
                    .gradient
                    .f_select(1, token as i64)?
                    .f_matmul(&writes)?;
                let column = self.offsets[layer] + range.start - before;
                batch.put(column, &values)?;
            }
            let more = batch.gradient.f_matmul(&reader.output_bias)?; // [targets, tokens]
            batch.add(&more)?;
            lost = lost.f_sub(&reader.output_bias)?;
            if let Some(skip) = &reader.skip {
                let past = active.read.f_narrow(0, 0, 1)?.f_matmul(&skip.f_tr()?)?;
                lost = lost.f_sub(&past.f_select(0, 0)?)?;
            }
        }
        if self.first > 0 {
            let more = batch.gradient.f_narrow(1, 0, 1)?.f_matmul(&lost)?; // [targets, 1]
            batch.add(&more)?;
        }
        let reader = replacement.transcoders.get(layer).and_then(Option::as_ref);
        if let Some(skip) = reader.and_then(|reader| reader.skip.as_ref()) {
            let read = batch.gradient.f_matmul(skip)?; // [targets, tokens, d]
            let (past, shift) = self.local.pull(layer, &read, &own.scales[1])?;
            batch.add(&shift)?;
            batch.gradient = batch.gradient.f_add(&past)?;
        }
        Ok(())
    }

    /// Hands the gradient of each token to those that it looks at.
    fn through_attention(&self, layer: usize, batch: &mut Batch) -> Result<()> {
        let (replacement, own) = (self.local.replacement, self.local.layer(layer)?);
        let heads = replacement.heads(layer)?;
        let [norm, _] = replacement.norms(layer)?;
        let config = replacement.model.config();
        let (count, kv, width) = (config.n_heads, config.n_kv_heads, config.d_head);
        let (targets, length) = (batch.gradient.size()[0], self.local.ids.len() as i64);
        let more = batch.gradient.f_matmul(&heads.b_o)?; // [targets, tokens]
        batch.add(&more)?;
        let write = heads.w_o.f_flatten(0, 1)?.f_tr()?; // [d, heads × d_head]
        let mixed = batch
            .gradient
            .f_matmul(&write)?
            .f_reshape([targets, length, count, width])?
            .f_transpose(1, 2)?; // [targets, heads, tokens, d_head]
        let values = own
            .pattern
            .f_transpose(1, 2)?
            .f_matmul(&mixed)? // [targets, heads, sources, d_head]
            .f_reshape([targets, kv, count / kv, length, width])?
            .f_sum_dim_intlist([2i64].as_slice(), false, None::<Kind>)?
            .f_transpose(1, 2)?; // [targets, sources, kv heads, d_head]
        let values = values.f_reshape([targets, length, kv * width])?;
        let more = values.f_matmul(&heads.b_v.f_reshape([-1])?)?;
        batch.add(&more)?;
        let read = heads.w_v.f_transpose(1, 2)?.f_reshape([kv * width, -1])?; // [kv heads × d_head, d]
        let asked = values.f_matmul(&read)?; // [targets, sources, d]
        batch.add(&norm.shift(&asked)?)?;
        batch.gradient = batch.gradient.f_add(&norm.pull(&asked, &own.scales[0])?)?;
        Ok(())
    }
}
