//! What a direction of the residual is made of: one term for everything that was written before it.

use std::fmt;

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::local::{Direction, Local, Place, Sublayer};
use super::{dot, numbers, residual_vector};

/// Something that writes into the residual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Component {
    /// A feature of a layer's transcoder, at the direction's own token.
    Feature {
        /// Its layer.
        layer: usize,
        /// Its number.
        feature: i64,
    },
    /// A head, and the token that it looks at.
    Head {
        /// Its layer.
        layer: usize,
        /// Its number there.
        head: i64,
        /// The token.
        source: usize,
    },
    /// The linear way past a transcoder's features.
    Skip {
        /// Its layer.
        layer: usize,
    },
    /// The token's embedding.
    Embedding,
    /// The embedding of the token's position.
    Position,
    /// The bias that attention writes, `b_O`.
    AttentionBias {
        /// Its layer.
        layer: usize,
    },
    /// The bias that the transcoder writes.
    OutputBias {
        /// Its layer.
        layer: usize,
    },
    /// What the transcoder misses of the MLP's output; all of it where there is none.
    Error {
        /// Its layer.
        layer: usize,
    },
    /// The direction's own constant: the encoder's bias and what biases of norms and values add on the way.
    Offset,
}

/// Kinds of components, for filters and tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComponentKind {
    /// Features of transcoders.
    Feature,
    /// Heads.
    Head,
    /// Linear ways past features.
    Skip,
    /// Embeddings of tokens.
    Embedding,
    /// Embeddings of positions.
    Position,
    /// Biases of attention and transcoders, and offsets.
    Bias,
    /// Errors of transcoders.
    Error,
}

impl Component {
    /// Its kind.
    pub const fn kind(self) -> ComponentKind {
        match self {
            Self::Feature { .. } => ComponentKind::Feature,
            Self::Head { .. } => ComponentKind::Head,
            Self::Skip { .. } => ComponentKind::Skip,
            Self::Embedding => ComponentKind::Embedding,
            Self::Position => ComponentKind::Position,
            Self::AttentionBias { .. } | Self::OutputBias { .. } | Self::Offset => {
                ComponentKind::Bias
            }
            Self::Error { .. } => ComponentKind::Error,
        }
    }

    /// Its layer, where it has one.
    pub const fn layer(self) -> Option<usize> {
        match self {
            Self::Feature { layer, .. }
            | Self::Head { layer, .. }
            | Self::Skip { layer }
            | Self::AttentionBias { layer }
            | Self::OutputBias { layer }
            | Self::Error { layer } => Some(layer),
            Self::Embedding | Self::Position | Self::Offset => None,
        }
    }

    /// Whether a path may go to it: it is no bias and no error.
    pub(super) const fn is_on_paths(self) -> bool {
        !matches!(self.kind(), ComponentKind::Bias | ComponentKind::Error)
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Feature { layer, feature } => write!(f, "mlp{layer} feature {feature}"),
            Self::Head {
                layer,
                head,
                source,
            } => write!(f, "attn{layer} head {head} from token {source}"),
            Self::Skip { layer } => write!(f, "mlp{layer} skip"),
            Self::Embedding => f.write_str("embedding"),
            Self::Position => f.write_str("position"),
            Self::AttentionBias { layer } => write!(f, "attn{layer} bias"),
            Self::OutputBias { layer } => write!(f, "mlp{layer} bias"),
            Self::Error { layer } => write!(f, "mlp{layer} error"),
            Self::Offset => f.write_str("offset"),
        }
    }
}

/// What one component adds to a direction's value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Contribution {
    /// What writes it.
    pub component: Component,
    /// How much.
    pub value: f64,
}

/// Whether contributions sum to what they are parts of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Completeness {
    /// The value itself: of a feature, its dictionary's pre-activation.
    pub value: f64,
    /// The sum of all contributions.
    pub sum: f64,
    /// The largest contribution: parts that cancel leave its rounding behind.
    pub largest: f64,
}

impl Completeness {
    /// |value - sum|, in units of the value or the largest part.
    pub fn relative(&self) -> f64 {
        let size = self.value.abs().max(self.largest);
        (self.value - self.sum).abs() / size.max(f64::MIN_POSITIVE)
    }

    fn new(value: f64, parts: &[Contribution]) -> Self {
        let sizes = parts.iter().map(|part| part.value.abs());
        Self {
            value,
            sum: parts.iter().map(|part| part.value).sum(),
            largest: sizes.fold(0.0, f64::max),
        }
    }
}

impl Place {
    /// How many layers' attentions, and how many layers' MLPs, have written there.
    pub(super) const fn below(self) -> (usize, usize) {
        match self.sublayer {
            Sublayer::Pre => (self.layer, self.layer),
            Sublayer::Mid => (self.layer + 1, self.layer),
            Sublayer::Post => (self.layer + 1, self.layer + 1),
        }
    }
}

impl Local<'_> {
    /// All that a direction's value is the sum of: layers from the first up, in each its heads (by head and then source), its bias, its features, its skip,
    /// output bias and error; then embeddings and the direction's offset.
    ///
    /// # Errors
    /// [`Error::Config`] for a place that the prompt lacks; [`Error::Shape`] for another width.
    pub fn contributions(&self, direction: &Direction) -> Result<Vec<Contribution>> {
        let _guard = tch::no_grad_guard();
        self.check(direction.place)?;
        let vector = residual_vector(self.replacement, &direction.vector)?;
        let token = direction.place.token;
        let (attentions, mlps) = direction.place.below();
        let mut found = Vec::new();
        for layer in 0..attentions {
            self.of_heads(layer, token, &vector, &mut found)?;
            if layer < mlps {
                self.of_mlp(layer, token, &vector, &mut found)?;
            }
        }
        let row = |xs: &Tensor| -> Result<f64> { dot(&xs.f_select(0, token as i64)?, &vector) };
        found.push(Contribution {
            component: Component::Embedding,
            value: row(&self.embedded)?,
        });
        if let Some(positions) = &self.positions {
            found.push(Contribution {
                component: Component::Position,
                value: row(positions)?,
            });
        }
        found.push(Contribution {
            component: Component::Offset,
            value: direction.offset,
        });
        Ok(found)
    }

    /// How near the contributions to a direction come to its value.
    ///
    /// # Errors
    /// Those of [`contributions`](Self::contributions).
    pub fn completeness(&self, direction: &Direction) -> Result<Completeness> {
        let parts = self.contributions(direction)?;
        Ok(Completeness::new(self.value(direction)?, &parts))
    }

    /// How near the contributions to a feature come to what its dictionary computes before the activation.
    ///
    /// # Errors
    /// Those of [`activation`](Self::activation).
    pub fn feature_completeness(
        &self,
        layer: usize,
        token: usize,
        feature: i64,
    ) -> Result<Completeness> {
        let parts = self.contributions(&self.feature(layer, token, feature)?)?;
        let value = self.pre_activation(layer, token, feature)?;
        Ok(Completeness::new(value, &parts))
    }

    /// `pattern[h, t, s] (value_s W_O)·v` of all heads and sources, and `b_O·v`.
    fn of_heads(
        &self,
        layer: usize,
        token: usize,
        vector: &Tensor,
        found: &mut Vec<Contribution>,
    ) -> Result<()> {
        let own = self.layer(layer)?;
        let heads = self.replacement.heads(layer)?;
        let size = own.values.size(); // [tokens, kv heads, d_head]
        let (length, kv_heads, width) = match size.as_slice() {
            [length, kv_heads, width] => (*length, *kv_heads, *width),
            _ => return Err(densely_core::check::absent("hook_v")),
        };
        let asked = heads.w_o.f_matmul(vector)?; // [heads, d_head]
        let products = asked
            .f_reshape([kv_heads, -1, width])?
            .f_matmul(&own.values.f_permute([1, 2, 0])?)? // [kv heads, heads of each, tokens]
            .f_reshape([-1, length])?
            .f_mul(&own.pattern.f_select(1, token as i64)?)?; // [heads, tokens]
        let products = products.f_narrow(1, 0, token as i64 + 1)?;
        for (place, value) in numbers(&products)?.into_iter().enumerate() {
            let (head, source) = (place / (token + 1), place % (token + 1));
            let component = Component::Head {
                layer,
                head: head as i64,
                source,
            };
            found.push(Contribution { component, value });
        }
        found.push(Contribution {
            component: Component::AttentionBias { layer },
            value: dot(&heads.b_o, vector)?,
        });
        Ok(())
    }

    /// `f W_dec·v` of all active features, the skip, `b_dec·v` and the error.
    fn of_mlp(
        &self,
        layer: usize,
        token: usize,
        vector: &Tensor,
        found: &mut Vec<Contribution>,
    ) -> Result<()> {
        let own = self.layer(layer)?;
        if let Some(active) = &own.active {
            let reader = self.replacement.reader(layer)?;
            let range = active.of(token);
            let rows = active
                .writes
                .f_narrow(0, range.start as i64, range.len() as i64)?;
            let values = numbers(&rows.f_matmul(vector)?)?;
            let features = active.features.get(range).unwrap_or_default();
            for (feature, value) in features.iter().zip(values) {
                let feature = *feature;
                let component = Component::Feature { layer, feature };
                found.push(Contribution { component, value });
            }
            if let Some(skip) = &reader.skip {
                let read = active.read.f_select(0, token as i64)?;
                found.push(Contribution {
                    component: Component::Skip { layer },
                    value: dot(&read, &skip.f_tr()?.f_mv(vector)?)?,
                });
            }
            found.push(Contribution {
                component: Component::OutputBias { layer },
                value: dot(&reader.output_bias, vector)?,
            });
        }
        found.push(Contribution {
            component: Component::Error { layer },
            value: dot(&own.error.f_select(0, token as i64)?, vector)?,
        });
        Ok(())
    }

    /// A component of a direction as a direction of its own, further down: its value is the component's contribution. `None` where there is nothing further
    /// down, as for embeddings, biases and errors.
    ///
    /// A feature leads to the residual that it reads, times what it writes along the direction; a head to the residual that its source reads, through values
    /// and the norm, times the weight with which it looks there.
    /// # Errors
    /// [`Error::Config`] for a component that does not write below the direction, or a feature that is not active there.
    pub fn follow(&self, direction: &Direction, component: Component) -> Result<Option<Direction>> {
        let _guard = tch::no_grad_guard();
        self.check(direction.place)?;
        let vector = residual_vector(self.replacement, &direction.vector)?;
        let token = direction.place.token;
        let (attentions, mlps) = direction.place.below();
        let limit = match component.kind() {
            ComponentKind::Head => attentions,
            ComponentKind::Feature | ComponentKind::Skip => mlps,
            _ => return Ok(None),
        };
        if component.layer().is_none_or(|layer| layer >= limit) {
            let reason = format!(
                "{component} does not write below layer {}",
                direction.place.layer
            );
            return Err(Error::config("component", reason));
        }
        let next = match component {
            Component::Feature { layer, feature } => {
                if self.active(layer)?.find(token, feature).is_none() {
                    let reason = format!("{component} is not active at token {token}");
                    return Err(Error::config("component", reason));
                }
                let index = self.replacement.one_feature(layer, feature)?;
                let row = self
                    .replacement
                    .decoder_rows(layer, &index)?
                    .f_reshape([-1])?;
                let factor = dot(&row, &vector)?;
                let feature = self.feature(layer, token, feature)?;
                Direction {
                    place: feature.place,
                    vector: feature.vector.f_mul_scalar(factor)?,
                    offset: feature.offset * factor,
                }
            }
            Component::Skip { layer } => {
                let skip = self.replacement.reader(layer)?.skip.as_ref();
                let skip = skip.ok_or_else(|| {
                    let reason = format!("the transcoder of layer {layer} has no skip");
                    Error::config("component", reason)
                })?;
                let asked = skip.f_tr()?.f_mv(&vector)?.f_unsqueeze(0)?; // [1, d]
                self.reading(layer, token, &asked, 0.0)?
            }
            Component::Head {
                layer,
                head,
                source,
            } => self.through_head(layer, head, [token, source], &vector)?,
            _ => return Ok(None),
        };
        Ok(Some(next))
    }

    /// The direction that a head reads of its source, from `[token, source]`.
    fn through_head(
        &self,
        layer: usize,
        head: i64,
        [token, source]: [usize; 2],
        vector: &Tensor,
    ) -> Result<Direction> {
        let config = self.replacement.model.config();
        if !(0..config.n_heads).contains(&head) || source > token {
            let reason = format!(
                "a head lies in 0 to {} and looks at tokens up to {token}, got {head} at {source}",
                config.n_heads - 1
            );
            return Err(Error::config("component", reason));
        }
        let own = self.layer(layer)?;
        let heads = self.replacement.heads(layer)?;
        let [norm, _] = self.replacement.norms(layer)?;
        let shared = head / (config.n_heads / config.n_kv_heads);
        let weight = own
            .pattern
            .f_double_value(&[head, token as i64, source as i64])?;
        let asked = heads
            .w_o
            .f_select(0, head)?
            .f_mv(vector)?
            .f_mul_scalar(weight)?; // [d_head]
        let read = heads.w_v.f_select(0, shared)?.f_mv(&asked)?; // [d]
        let scale = own.scales[0].f_select(0, source as i64)?; // [1]
        let constant = norm.shift(&read)?.f_double_value(&[])?;
        Ok(Direction {
            place: Place {
                layer,
                sublayer: Sublayer::Pre,
                token: source,
            },
            vector: norm.pull(&read, &scale)?,
            offset: constant + dot(&heads.b_v.f_select(0, shared)?, &asked)?,
        })
    }
}
