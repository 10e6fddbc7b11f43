//! The local activation unit of DIN, and the weighted sum over a history.

use densely_core::nn::Linear;
use densely_core::{Error, Model, Result, Tensors, check, registry};
use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Kind, Tensor};

use crate::layers::{Activation, BnMode, Mlp, MlpSpec, Names, Variant, linear};

/// Sizes of an attention over a history. Defaults are those of `AmazonElectronics_x1` in the BARS benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttentionConfig {
    /// Whose mask, scale and Dice; [`crate::din`] has the table.
    pub variant: Variant,
    /// Width of the query and of the keys, E.
    pub embedding_dim: i64,
    /// Hidden widths.
    pub attention_units: Vec<i64>,
    /// Behind each of them.
    pub hidden_activations: Activation,
    /// Probability behind each of them.
    pub dropout_rate: f64,
    /// Whether scores are normalised over the history; the authors always do.
    pub use_softmax: bool,
    /// Of the authors' Dice.
    pub bn_mode: BnMode,
    /// Whether dropout runs in training.
    pub dropout_on: bool,
}

impl Default for AttentionConfig {
    fn default() -> Self {
        Self {
            variant: Variant::Fuxictr,
            embedding_dim: 128,
            attention_units: vec![512, 256],
            hidden_activations: Activation::Dice,
            dropout_rate: 0.1,
            use_softmax: true,
            bn_mode: BnMode::Frozen,
            dropout_on: true,
        }
    }
}

/// The authors' and `DeepCTR`'s score of a padded step.
const PADDED: f64 = -4_294_967_295.0;

/// Steps of histories that [`Attention::forward_shared`] takes at once, so that memory stays bounded.
const SHARED_ROWS: i64 = 4096;

impl AttentionConfig {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check::positive("embedding_dim", self.embedding_dim)?;
        check::dropout("dropout_rate", self.dropout_rate)?;
        if self.attention_units.is_empty() {
            return Err(Error::config(
                "attention_units",
                "must have at least one layer",
            ));
        }
        self.attention_units
            .iter()
            .try_for_each(|width| check::positive("attention_units", *width))?;
        if self.variant == Variant::Authors && !self.use_softmax {
            return Err(Error::config(
                "use_softmax",
                "`authors` always normalises by a softmax",
            ));
        }
        Ok(())
    }

    fn unit(&self) -> MlpSpec<'_> {
        MlpSpec {
            inputs: 4 * self.embedding_dim,
            hidden: &self.attention_units,
            activation: self.hidden_activations,
            batch_norm: false,
            dropout: self.dropout_rate,
            dropout_on: self.dropout_on,
            output: Some(1),
            names: match self.variant {
                Variant::Authors => Names::Numbered("_att"),
                Variant::Fuxictr => Names::Sequence,
                Variant::Deepctr => Names::Lists { history: true },
            },
            bn_mode: self.bn_mode,
        }
    }

    /// Multiply-accumulates of the local activation unit for one step of a history, as the equations have them.
    pub fn macs_per_step(&self) -> i64 {
        self.unit().macs()
    }

    /// Creates the parameters under `vs`.
    ///
    /// # Errors
    /// [`Error::Config`] when [`validate`](Self::validate) fails.
    pub fn build(&self, vs: &Path) -> Result<Attention> {
        self.validate()?;
        let unit = match self.variant {
            Variant::Authors => self.unit().build(vs),
            Variant::Fuxictr => self.unit().build(&(vs / "attention_layer")),
            Variant::Deepctr => self
                .unit()
                .build_beside(&(vs / "local_att" / "dnn"), &(vs / "local_att")),
        };
        Ok(Attention {
            first: unit.first()?,
            unit,
            config: self.clone(),
        })
    }
}

/// A built attention.
#[derive(Debug)]
pub struct Attention {
    unit: Mlp,
    /// The unit's own first layer.
    first: Linear,
    config: AttentionConfig,
}

impl Attention {
    /// The history as one vector: `query [batch, E]`, `keys [batch, time, E]`, `mask [batch, time]` (0 for padding) → `[batch, E]`.
    ///
    /// A history of padding alone gives the mean of its keys under a softmax, as in the references.
    /// # Errors
    /// [`Error::Shape`] when they do not fit.
    pub fn forward(
        &self,
        query: &Tensor,
        keys: &Tensor,
        mask: &Tensor,
        train: bool,
    ) -> Result<Tensor> {
        self.check(query, keys, mask)?;
        let products = query.unsqueeze(1) * keys;
        let mut first = self.of_keys(&keys.flatten(0, 1));
        let _ = first.g_add_(&self.of_products(&products.flatten(0, 1)));
        let first = first.unflatten(0, &keys.size()[..2]) + self.of_query(query).unsqueeze(1);
        let scores = self.unit.after_first(&first.flatten(0, 1), train);
        Ok(self.sum(&scores.view_as(&keys.select(2, 0)), keys, mask))
    }

    /// As [`forward`](Self::forward), by the equations as they stand: all of q, k, q - k and q ∘ k go into the first layer.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn forward_plain(
        &self,
        query: &Tensor,
        keys: &Tensor,
        mask: &Tensor,
        train: bool,
    ) -> Result<Tensor> {
        self.check(query, keys, mask)?;
        let query = query.unsqueeze(1).expand_as(keys);
        let parts = [&query, keys, &(&query - keys), &(&query * keys)];
        let scores = Tensor::cat(&parts, -1)
            .flatten(0, 1)
            .apply_t(&self.unit, train);
        Ok(self.sum(&scores.view_as(&keys.select(2, 0)), keys, mask))
    }

    /// As [`forward`](Self::forward) in evaluation, without work for padding: its scores count for nothing. In training they count in the
    /// statistics of [`crate::layers::Dice`], so there is no such form.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn forward_packed(&self, query: &Tensor, keys: &Tensor, mask: &Tensor) -> Result<Tensor> {
        self.check(query, keys, mask)?;
        let steps = keys.size()[1];
        let place = mask.ne(0).flatten(0, 1).nonzero().squeeze_dim(1); // [valid]
        let row = place.divide_scalar_mode(steps, "floor");
        let valid = keys.flatten(0, 1).index_select(0, &place); // [valid, E]
        let products = query.index_select(0, &row) * &valid;
        let of_query = self.of_query(query).index_select(0, &row);
        let first = self.of_keys(&valid) + self.of_products(&products) + of_query;
        let scores = self.unit.after_first(&first, false).squeeze_dim(1);
        let all = Tensor::zeros([keys.size()[0] * steps], (scores.kind(), scores.device()));
        let scores = all.index_copy(0, &place, &scores).view([-1, steps]);
        Ok(self.sum(&scores, keys, mask))
    }

    /// As [`forward`](Self::forward) in evaluation, of many queries for one history of valid steps alone: `queries [n, E]`, `keys [time, E]`
    /// → `[n, E]`. What the first layer makes of the keys is computed once.
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit.
    pub fn forward_shared(&self, queries: &Tensor, keys: &Tensor) -> Result<Tensor> {
        let width = Some(self.config.embedding_dim);
        check::shape("queries", queries, &[None, width])?;
        check::shape("keys", keys, &[None, width])?;
        let (count, steps) = (queries.size()[0], keys.size()[0]);
        let of_keys = self.of_keys(keys);
        let at_once = (SHARED_ROWS / steps.max(1)).max(1);
        let mask = Tensor::ones([1, steps], (keys.kind(), keys.device()));
        let mut pooled = Vec::new();
        for from in (0..count).step_by(at_once as usize) {
            let queries = queries.narrow(0, from, at_once.min(count - from));
            let products = (queries.unsqueeze(1) * keys).flatten(0, 1); // [n · time, E]
            let first = self.of_products(&products);
            let scores = self
                .unit
                .after_first_of(first, &of_keys, &self.of_query(&queries));
            let weights = self.weights(&scores.view([-1, steps]), &mask);
            pooled.push(weights.matmul(keys));
        }
        Ok(Tensor::cat(&pooled, 0))
    }

    /// A part of the first layer's weight W = [W1 W2 W3 W4], which are for q, k, q - k and q ∘ k: the layer is
    /// (W1 + W3) q + (W2 - W3) k + W4 (q ∘ k). What depends on the query alone is computed once per row, and two of four products per step
    /// remain.
    fn part(&self, number: i64) -> Tensor {
        let width = self.config.embedding_dim;
        self.first.weight.narrow(1, number * width, width)
    }

    fn of_query(&self, query: &Tensor) -> Tensor {
        let weight = self.part(0) + self.part(2);
        linear(query, &weight, self.first.bias.as_ref())
    }

    fn of_keys(&self, keys: &Tensor) -> Tensor {
        linear(keys, &(self.part(1) - self.part(2)), None)
    }

    fn of_products(&self, products: &Tensor) -> Tensor {
        linear(products, &self.part(3), None)
    }

    /// Weights `[batch, time]` from scores.
    fn weights(&self, scores: &Tensor, mask: &Tensor) -> Tensor {
        let config = &self.config;
        let weights = match config.variant {
            Variant::Fuxictr => {
                let mask = mask.to_kind(scores.kind());
                let masked = scores * &mask;
                if config.use_softmax {
                    masked + (mask.ones_like() - mask) * -1e9
                } else {
                    masked
                }
            }
            Variant::Deepctr => {
                let padded = if config.use_softmax { PADDED } else { 0.0 };
                scores.where_scalarother(&mask.ne(0), padded)
            }
            Variant::Authors => {
                let root = (config.embedding_dim as f64).sqrt();
                scores.where_scalarother(&mask.ne(0), PADDED) / root
            }
        };
        if config.use_softmax {
            weights.softmax(-1, None)
        } else {
            weights
        }
    }

    fn sum(&self, scores: &Tensor, keys: &Tensor, mask: &Tensor) -> Tensor {
        let weights = self.weights(scores, mask);
        weights.unsqueeze(1).bmm(keys).squeeze_dim(1)
    }

    fn check(&self, query: &Tensor, keys: &Tensor, mask: &Tensor) -> Result<()> {
        let width = Some(self.config.embedding_dim);
        check::shape("query", query, &[None, width])?;
        let rows = query.size()[0];
        check::shape("keys", keys, &[Some(rows), None, width])?;
        check::shape("mask", mask, &[Some(rows), Some(keys.size()[1])])?;
        check::kind("query", query, self.kind())?;
        check::kind("keys", keys, self.kind())?;
        if matches!(mask.kind(), Kind::Bool | Kind::Int64) || mask.kind() == self.kind() {
            return Ok(());
        }
        Err(Error::Shape {
            what: "mask".to_owned(),
            expected: "Bool, Int64 or the kind of the keys".to_owned(),
            got: format!("{:?}", mask.kind()),
        })
    }

    /// Kind of its parameters.
    pub fn kind(&self) -> Kind {
        self.first.weight.kind()
    }
}

impl Model for Attention {
    fn forward_named(&self, inputs: &Tensors, train: bool) -> Result<Tensors> {
        let [query, keys, mask] = registry::take_inputs(inputs, ["query", "keys", "mask"])?;
        let [query, keys, mask] = [(query, "query"), (keys, "keys"), (mask, "mask")]
            .map(|(xs, name)| xs.ok_or_else(|| check::absent(name)));
        let pooled = self.forward(query?, keys?, mask?, train)?;
        Ok(Tensors::from([("pooled".to_owned(), pooled)]))
    }
}
