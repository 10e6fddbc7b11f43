//! What weights alone say of a feature, whatever the input: tokens that speak for it, heads that bring it, features below that feed it, tokens that it makes
//! likely; and the mean over a corpus of what features below add to it.
//!
//! Scales of norms depend on the input and are left out, so that numbers compare within one list and not between lists. Weights and biases of norms are in.

use densely_core::{Result, check};
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::dictionary::Features;
use crate::recall::top_tokens;

use super::{Reads, Replacement, numbers, residual_vector};

/// The tokens at both ends of a list.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct TokenEffects {
    /// The largest first.
    pub top: Vec<(i64, f64)>,
    /// The smallest first.
    pub bottom: Vec<(i64, f64)>,
}

impl TokenEffects {
    /// The ends of values `[vocab]`.
    fn of(values: &Tensor, count: i64) -> Result<Self> {
        let count = count.clamp(0, values.size().first().copied().unwrap_or(0));
        let end = |largest: bool| -> Result<Vec<(i64, f64)>> {
            let (values, ids) = values.f_topk(count, 0, largest, true)?;
            let ids = Vec::<i64>::try_from(&ids.f_to(tch::Device::Cpu)?)?;
            Ok(ids.into_iter().zip(numbers(&values)?).collect())
        };
        Ok(Self {
            top: end(true)?,
            bottom: end(false)?,
        })
    }
}

/// How much of what a direction reads a head can bring.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct HeadRank {
    /// Its layer.
    pub layer: usize,
    /// Its number there.
    pub head: i64,
    /// ‖OV·v‖, the norm's weight included.
    pub norm: f64,
}

impl Replacement<'_> {
    /// What a feature reads of the residual, `[d]`: its column of `W_enc` behind the norm's weight and mean, the scale left out.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] for a layer without a transcoder, or a feature that it lacks.
    pub fn reading(&self, layer: usize, feature: i64) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let index = self.one_feature(layer, feature)?;
        let row = self.encoder_rows(layer, &index)?.f_reshape([-1])?;
        let [_, norm] = self.norms(layer)?;
        match self.reader(layer)?.reads {
            Reads::Residual => Ok(row),
            Reads::Normalized => norm.centred(&row),
            Reads::MlpInput => norm.centred(&row.f_mul(&norm.weight)?),
        }
    }

    /// What a feature writes into the residual, `[d]`: its row of `W_dec`.
    ///
    /// # Errors
    /// Those of [`reading`](Self::reading).
    pub fn writing(&self, layer: usize, feature: i64) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let index = self.one_feature(layer, feature)?;
        Ok(self.decoder_rows(layer, &index)?.f_reshape([-1])?)
    }

    /// The tokens whose embeddings a direction `[d]` of the residual reads most and least: `W_E·v`. Of a feature's [`reading`](Self::reading), its
    /// de-embedding.
    ///
    /// # Errors
    /// [`densely_core::Error::Shape`] for another width.
    pub fn deembed(&self, direction: &Tensor, count: i64) -> Result<TokenEffects> {
        let _guard = tch::no_grad_guard();
        let vector = residual_vector(self, direction)?;
        let embedding = self.model.w_e().f_detach()?.f_to_kind(self.kind())?;
        TokenEffects::of(&embedding.f_mv(&vector)?, count)
    }

    /// A direction `[d]` of the residual as a head reads it of the token that it looks at: `OV·v`, with the norm's weight and mean, the scale left out. Its
    /// [`deembed`](Self::deembed) names the tokens that the head brings to the direction.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] for a layer or head that the model lacks; [`densely_core::Error::Shape`] for another width.
    pub fn through_head(&self, layer: usize, head: i64, direction: &Tensor) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let vector = residual_vector(self, direction)?;
        let ov = self.model.ov(layer, head)?;
        let kind = self.kind();
        let asked = ov.right.f_detach()?.f_to_kind(kind)?.f_mv(&vector)?; // [d_head]
        let read = ov.left.f_detach()?.f_to_kind(kind)?.f_mv(&asked)?; // [d]
        let [norm, _] = self.norms(layer)?;
        norm.centred(&read.f_mul(&norm.weight)?)
    }

    /// The heads of the layers before `end`, by how much of a direction `[d]` they can bring. For a feature of layer l, `end` is l + 1.
    ///
    /// # Errors
    /// [`densely_core::Error::Shape`] for another width.
    pub fn rank_heads(&self, end: usize, direction: &Tensor) -> Result<Vec<HeadRank>> {
        let mut ranks = Vec::new();
        for layer in 0..end.min(self.layers()) {
            for head in 0..self.model.config().n_heads {
                let read = self.through_head(layer, head, direction)?;
                let norm = read
                    .f_norm()?
                    .f_to_kind(Kind::Double)?
                    .f_double_value(&[])?;
                ranks.push(HeadRank { layer, head, norm });
            }
        }
        ranks.sort_by(|a, b| b.norm.total_cmp(&a.norm));
        Ok(ranks)
    }

    /// How much each feature of a lower layer writes along a direction `[d]`, for each unit of its activation: `W_dec·v`, `[features]`.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] for a layer without a transcoder; [`densely_core::Error::Shape`] for another width.
    pub fn pull_back(&self, layer: usize, direction: &Tensor) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let vector = residual_vector(self, direction)?;
        let (_, w_dec) = self.reader(layer)?.dictionary.weights();
        let vector = vector.f_to_kind(w_dec.kind())?;
        Ok(w_dec.f_detach()?.f_mv(&vector)?.f_to_kind(self.kind())?)
    }

    /// The tokens that a direction `[d]` of the residual makes likely and unlikely: `norm(v)·W_U`, the last norm's scale left out. Of a feature, give its
    /// [`writing`](Self::writing).
    ///
    /// # Errors
    /// [`densely_core::Error::Shape`] for another width.
    pub fn logit_effects(&self, direction: &Tensor, count: i64) -> Result<TokenEffects> {
        let bottom = top_tokens(self.model, &direction.f_neg()?, count)?;
        Ok(TokenEffects {
            top: top_tokens(self.model, direction, count)?,
            bottom: bottom.into_iter().map(|(id, value)| (id, -value)).collect(),
        })
    }
}

/// The mean over tokens of what each feature of a layer adds to a direction, `f·(W_dec·v)`: its mean input times gradient, the scale of the norm left out.
#[derive(Debug)]
pub struct MeanAttribution {
    /// `W_dec·v`, `[features]`.
    weights: Tensor,
    /// Sum of activations, `[features]` of kind double.
    sums: Tensor,
    rows: f64,
}

impl MeanAttribution {
    /// Of the features of a layer to a direction `[d]`, such as a later feature's [`reading`](Replacement::reading).
    ///
    /// # Errors
    /// Those of [`pull_back`](Replacement::pull_back).
    pub fn new(replacement: &Replacement<'_>, layer: usize, direction: &Tensor) -> Result<Self> {
        let weights = replacement
            .pull_back(layer, direction)?
            .f_to_kind(Kind::Double)?;
        Ok(Self {
            sums: weights.f_zeros_like()?,
            weights,
            rows: 0.0,
        })
    }

    /// Adds the features of some tokens. Those count that `chosen` says, booleans `[rows]`: all of them, or the ones at which the direction's feature fires.
    ///
    /// # Errors
    /// [`densely_core::Error::Shape`] when sizes do not fit.
    pub fn add(&mut self, features: &Features, chosen: &Tensor) -> Result<()> {
        let _guard = tch::no_grad_guard();
        check::same_shape("features of each row", &features.counts()?, &self.sums)?;
        check::shape("chosen", chosen, &[None])?;
        let chosen = chosen.f_to_kind(Kind::Double)?;
        let [rows, columns, values] = features.places()?;
        let values = values.f_to_kind(Kind::Double)?;
        let values = values.f_mul(&chosen.f_index_select(0, &rows)?)?;
        self.sums = self.sums.f_index_add(0, &columns, &values)?;
        self.rows += chosen.f_sum(Kind::Double)?.f_double_value(&[])?;
        Ok(())
    }

    /// Tokens that were added.
    pub const fn rows(&self) -> f64 {
        self.rows
    }

    /// The means, `[features]` of kind double; 0 before anything was added.
    ///
    /// # Errors
    /// [`densely_core::Error::Torch`] never for what was added.
    pub fn means(&self) -> Result<Tensor> {
        let sums = self.sums.f_mul(&self.weights)?;
        Ok(sums.f_div_scalar(self.rows.max(1.0))?)
    }
}
