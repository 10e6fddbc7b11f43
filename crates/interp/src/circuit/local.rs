//! One prompt's pass through a replaced model, with all that is held fixed in it, and the directions that are looked at.

use std::ops::Range;

use densely_core::{Error, Result, check};
use densely_lm::{Cache, Run};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{Reader, Reads, Replacement, dot, numbers, residual_vector};

/// Where in a block the residual is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sublayer {
    /// What enters the block: `hook_resid_pre`.
    Pre,
    /// Between attention and MLP: `hook_resid_mid`.
    Mid,
    /// What leaves it: `hook_resid_post`.
    Post,
}

/// A place in the residual stream of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The block.
    pub layer: usize,
    /// Where in it.
    pub sublayer: Sublayer,
    /// The token, from 0.
    pub token: usize,
}

/// A linear function of the residual at a place: `vector · residual + offset`. What the papers call a feature vector.
#[derive(Debug)]
pub struct Direction {
    /// Where the residual is taken.
    pub place: Place,
    /// `[d]`, in the kind of circuits: f32, or f64 for a model in f64.
    pub vector: Tensor,
    /// What does not depend on the residual: biases of encoder and norms.
    pub offset: f64,
}

impl Clone for Direction {
    fn clone(&self) -> Self {
        Self {
            place: self.place,
            vector: self.vector.shallow_clone(),
            offset: self.offset,
        }
    }
}

/// A prompt's pass through a [`Replacement`]: residuals, patterns and scales as the model computes them, features and errors of the transcoders.
///
/// The model itself runs unchanged: each MLP's output is its features' writing, the decoder's bias, the linear way past the features, and an error that is
/// whatever is left. All that follows from it is exact for this prompt.
#[derive(Debug)]
pub struct Local<'a> {
    pub(super) replacement: &'a Replacement<'a>,
    pub(super) ids: Vec<i64>,
    pub(super) layers: Vec<Layer>,
    /// Token embeddings `[tokens, d]`.
    pub(super) embedded: Tensor,
    /// Embeddings of positions `[tokens, d]`; rotary models have none.
    pub(super) positions: Option<Tensor>,
    /// The residual behind the last block, `[tokens, d]`.
    pub(super) last: Tensor,
    /// What the last norm divides by, `[tokens, 1]`.
    pub(super) last_scale: Tensor,
    /// Of the last token, `[vocab]`.
    logits: Tensor,
}

/// What is held fixed in a layer.
#[derive(Debug)]
pub(super) struct Layer {
    /// `[heads, tokens, tokens]`, from each token (row) to those it looks at.
    pub pattern: Tensor,
    /// `[tokens, kv heads, d_head]`, biases included.
    pub values: Tensor,
    /// The residual that enters, `[tokens, d]`.
    pub pre: Tensor,
    /// The residual between attention and MLP, `[tokens, d]`.
    pub mid: Tensor,
    /// What the norms before attention and MLP divide by, `[tokens, 1]` each.
    pub scales: [Tensor; 2],
    /// What the MLP writes, `[tokens, d]`.
    pub written: Tensor,
    /// What of it the transcoder misses, `[tokens, d]`; all of it where there is none.
    pub error: Tensor,
    /// `None` where the layer has no transcoder.
    pub active: Option<Active>,
}

/// The active features of a layer, in the order of tokens and then features.
#[derive(Debug)]
pub(super) struct Active {
    /// What the transcoder reads, `[tokens, d]`.
    pub read: Tensor,
    pub tokens: Vec<i64>,
    pub features: Vec<i64>,
    pub values: Vec<f64>,
    /// Their rows of the decoder times their values, `[active, d]`.
    pub writes: Tensor,
    /// Of each token, where its features start; one more for the end.
    starts: Vec<usize>,
}

impl Active {
    fn new(
        replacement: &Replacement<'_>,
        layer: usize,
        read: Tensor,
        places: &[Tensor; 3],
    ) -> Result<Self> {
        let [rows, columns, values] = places;
        let whole =
            |xs: &Tensor| -> Result<Vec<i64>> { Ok(Vec::<i64>::try_from(&xs.f_to(Device::Cpu)?)?) };
        let tokens = whole(rows)?;
        let count = read.size().first().copied().unwrap_or(0);
        let starts = (0..=count)
            .map(|token| tokens.partition_point(|own| *own < token))
            .collect();
        let scale = values.f_to_kind(replacement.kind())?.f_unsqueeze(1)?;
        Ok(Self {
            read,
            features: whole(columns)?,
            values: numbers(values)?,
            writes: replacement.decoder_rows(layer, columns)?.f_mul(&scale)?,
            tokens,
            starts,
        })
    }

    /// Which entries are a token's.
    pub(super) fn of(&self, token: usize) -> Range<usize> {
        let at = |token: usize| self.starts.get(token).copied().unwrap_or(self.tokens.len());
        at(token)..at(token + 1)
    }

    /// The entry of a feature at a token, if it is active there.
    pub(super) fn find(&self, token: usize, feature: i64) -> Option<usize> {
        let range = self.of(token);
        let own = self.features.get(range.clone())?;
        own.binary_search(&feature)
            .ok()
            .map(|place| range.start + place)
    }
}

fn point(layer: usize, own: &str) -> String {
    format!("blocks.{layer}.{own}")
}

const POINTS: [&str; 8] = [
    "blocks.*.hook_resid_pre",
    "blocks.*.hook_resid_mid",
    "blocks.*.ln1.hook_scale",
    "blocks.*.ln2.hook_scale",
    "blocks.*.attn.hook_v",
    "blocks.*.attn.hook_pattern",
    "blocks.*.hook_mlp_out",
    "hook_embed",
];

impl<'a> Local<'a> {
    /// Runs a prompt.
    ///
    /// # Errors
    /// [`Error::Config`] when the prompt is empty, too long, or holds what is no token.
    pub fn new(replacement: &'a Replacement<'a>, ids: &[i64]) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let model = replacement.model;
        let input = Tensor::f_from_slice(ids)?
            .f_unsqueeze(0)?
            .f_to(model.device())?;
        let mut names = POINTS.to_vec();
        let learned = model.config().learned_positions();
        if learned {
            names.push("hook_pos_embed");
        }
        let layers = replacement.layers();
        let mut run = Run::new().stop_at(layers).cache(&names);
        let last = model.run(&input, &mut run)?;
        let cache = run.take_cache();
        let end = last.f_narrow(1, ids.len() as i64 - 1, 1)?;
        let logits = model.unembed(&end)?.f_reshape([-1])?;
        let own = |xs: &Tensor| -> Result<Tensor> {
            Ok(xs.f_select(0, 0)?.f_to_kind(replacement.kind())?)
        };
        Ok(Self {
            ids: ids.to_vec(),
            layers: (0..layers)
                .map(|layer| Layer::new(replacement, layer, &cache, &own))
                .collect::<Result<_>>()?,
            embedded: own(cache.get("hook_embed")?)?,
            positions: if learned {
                Some(own(cache.get("hook_pos_embed")?)?)
            } else {
                None
            },
            last_scale: own(&model.final_scale(&last)?)?,
            last: own(&last)?,
            logits: logits.f_to_kind(replacement.kind())?,
            replacement,
        })
    }

    /// The replaced model.
    pub const fn replacement(&self) -> &'a Replacement<'a> {
        self.replacement
    }

    /// The prompt's tokens.
    pub fn ids(&self) -> &[i64] {
        &self.ids
    }

    /// Logits `[vocab]` after the last token.
    pub const fn logits(&self) -> &Tensor {
        &self.logits
    }

    /// The features that are active at a token, and their activations.
    ///
    /// # Errors
    /// [`Error::Config`] for a layer without a transcoder, or a token beyond the prompt.
    pub fn features(&self, layer: usize, token: usize) -> Result<Vec<(i64, f64)>> {
        self.check_token(token)?;
        let active = self.active(layer)?;
        let range = active.of(token);
        let features = active.features.get(range.clone()).unwrap_or_default();
        let values = active.values.get(range).unwrap_or_default();
        Ok(features
            .iter()
            .copied()
            .zip(values.iter().copied())
            .collect())
    }

    /// A feature's activation at a token; 0 where it is not active.
    ///
    /// # Errors
    /// [`Error::Config`] for a layer without a transcoder, a feature that it lacks, or a token beyond the prompt.
    pub fn activation(&self, layer: usize, token: usize, feature: i64) -> Result<f64> {
        self.check_token(token)?;
        self.replacement.check_feature(layer, feature)?;
        let active = self.active(layer)?;
        let place = active.find(token, feature);
        Ok(place
            .and_then(|at| active.values.get(at).copied())
            .unwrap_or(0.0))
    }

    /// A feature's value before the activation at a token, as its dictionary computes it.
    ///
    /// # Errors
    /// Those of [`activation`](Self::activation).
    pub fn pre_activation(&self, layer: usize, token: usize, feature: i64) -> Result<f64> {
        let _guard = tch::no_grad_guard();
        self.check_token(token)?;
        self.replacement.check_feature(layer, feature)?;
        let dictionary = self.replacement.reader(layer)?.dictionary;
        let (w_enc, _) = dictionary.weights();
        let read = self.active(layer)?.read.f_narrow(0, token as i64, 1)?;
        let pre = dictionary.pre_activations(&read.f_to_kind(w_enc.kind())?)?;
        Ok(pre.f_double_value(&[0, feature])?)
    }

    /// What makes a feature fire at a token: its value before the activation as a function of the residual between attention and MLP.
    ///
    /// # Errors
    /// Those of [`activation`](Self::activation).
    pub fn feature(&self, layer: usize, token: usize, feature: i64) -> Result<Direction> {
        let _guard = tch::no_grad_guard();
        self.check_token(token)?;
        let index = self.replacement.one_feature(layer, feature)?;
        let row = self.replacement.encoder_rows(layer, &index)?; // [1, d]
        let bias = &self.replacement.reader(layer)?.encoder_bias;
        let bias = bias.f_double_value(&[feature])?;
        self.reading(layer, token, &row, bias)
    }

    /// A direction `[1, d]` of what the transcoder reads, as one of the residual.
    pub(super) fn reading(
        &self,
        layer: usize,
        token: usize,
        row: &Tensor,
        offset: f64,
    ) -> Result<Direction> {
        let scale = self.layer(layer)?.scales[1].f_narrow(0, token as i64, 1)?;
        let (vector, shift) = self.pull(layer, row, &scale)?;
        Ok(Direction {
            place: Place {
                layer,
                sublayer: Sublayer::Mid,
                token,
            },
            vector: vector.f_reshape([-1])?,
            offset: offset + shift.f_sum(Kind::Double)?.f_double_value(&[])?,
        })
    }

    /// Directions `[.., d]` of what a layer's transcoder reads, as directions of the residual at scales `[.., 1]`, and what the norm's bias adds, `[..]`.
    pub(super) fn pull(
        &self,
        layer: usize,
        us: &Tensor,
        scale: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let [_, norm] = self.replacement.norms(layer)?;
        let none = || us.f_select(-1, 0)?.f_zeros_like();
        Ok(match self.replacement.reader(layer)?.reads {
            Reads::Residual => (us.shallow_clone(), none()?),
            Reads::Normalized => (norm.normalized(us, scale)?, none()?),
            Reads::MlpInput => (norm.pull(us, scale)?, norm.shift(us)?),
        })
    }

    /// A weighted sum of logits after a token (a logit itself, or a difference of two), the last norm's scale held.
    ///
    /// Its value is the model's own, biases of norm and head included.
    /// # Errors
    /// [`Error::Config`] for a token that the vocabulary lacks, or beyond the prompt.
    pub fn logit(&self, token: usize, weights: &[(i64, f64)]) -> Result<Direction> {
        let _guard = tch::no_grad_guard();
        let replacement = self.replacement;
        let (matrix, bias) = (replacement.model.w_u()?, replacement.model.b_u()?);
        let (kind, device) = replacement.options();
        let mut sum = Tensor::f_zeros([replacement.model.config().d_model], (kind, device))?;
        let mut offset = 0.0;
        let vocabulary = replacement.model.config().vocab_size;
        for (id, weight) in weights {
            if !(0..vocabulary).contains(id) {
                let reason = format!("must lie in 0 to {}, got {id}", vocabulary - 1);
                return Err(Error::config("logit", reason));
            }
            let column = matrix.f_select(1, *id)?.f_detach()?.f_to_kind(kind)?;
            sum = sum.f_add(&column.f_mul_scalar(*weight)?)?;
            offset += weight * bias.f_double_value(&[*id])?;
        }
        let mut direction = self.unembedded(token, &sum)?;
        direction.offset += offset;
        Ok(direction)
    }

    /// The difference of two logits after a token.
    ///
    /// # Errors
    /// Those of [`logit`](Self::logit).
    pub fn logit_difference(&self, token: usize, more: i64, less: i64) -> Result<Direction> {
        self.logit(token, &[(more, 1.0), (less, -1.0)])
    }

    /// A direction `[d]` of the last norm's output as one of the last residual.
    pub(super) fn unembedded(&self, token: usize, direction: &Tensor) -> Result<Direction> {
        self.check_token(token)?;
        let norm = &self.replacement.last_norm;
        let scale = self.last_scale.f_select(0, token as i64)?; // [1]
        Ok(Direction {
            place: Place {
                layer: self.replacement.layers() - 1,
                sublayer: Sublayer::Post,
                token,
            },
            vector: norm.pull(direction, &scale)?,
            offset: norm.shift(direction)?.f_double_value(&[])?,
        })
    }

    /// A direction `[d]` of the residual as it stands, such as `W_U[a] - W_U[b]` where the last norm is left aside.
    ///
    /// # Errors
    /// [`Error::Shape`] for another width; [`Error::Config`] for a place that the prompt lacks.
    pub fn residual(&self, place: Place, vector: &Tensor) -> Result<Direction> {
        self.check(place)?;
        Ok(Direction {
            place,
            vector: residual_vector(self.replacement, vector)?,
            offset: 0.0,
        })
    }

    /// What a direction gives on this prompt, from the residual itself.
    ///
    /// # Errors
    /// [`Error::Config`] for a place that the prompt lacks; [`Error::Shape`] for another width.
    pub fn value(&self, direction: &Direction) -> Result<f64> {
        let _guard = tch::no_grad_guard();
        let Place {
            layer,
            sublayer,
            token,
        } = direction.place;
        self.check(direction.place)?;
        let vector = residual_vector(self.replacement, &direction.vector)?;
        let own = self.layer(layer)?;
        let residual = match sublayer {
            Sublayer::Pre => &own.pre,
            Sublayer::Mid => &own.mid,
            Sublayer::Post => match self.layers.get(layer + 1) {
                Some(next) => &next.pre,
                None => &self.last,
            },
        };
        Ok(dot(&residual.f_select(0, token as i64)?, &vector)? + direction.offset)
    }

    pub(super) fn layer(&self, layer: usize) -> Result<&Layer> {
        self.replacement.check_layer(layer)?;
        let own = self.layers.get(layer);
        own.ok_or_else(|| Error::config("layer", format!("layer {layer} was not run")))
    }

    pub(super) fn active(&self, layer: usize) -> Result<&Active> {
        self.replacement.reader(layer)?;
        let active = self.layer(layer)?.active.as_ref();
        active.ok_or_else(|| check::absent("features"))
    }

    pub(super) fn check(&self, place: Place) -> Result<()> {
        self.replacement.check_layer(place.layer)?;
        self.check_token(place.token)
    }

    fn check_token(&self, token: usize) -> Result<()> {
        if token < self.ids.len() {
            return Ok(());
        }
        let reason = format!("the prompt has {} tokens, got {token}", self.ids.len());
        Err(Error::config("token", reason))
    }
}

impl Layer {
    fn new(
        replacement: &Replacement<'_>,
        layer: usize,
        cache: &Cache,
        own: &dyn Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        let get = |name: &str| own(cache.get(&point(layer, name))?);
        let mid = get("hook_resid_mid")?;
        let scales = [get("ln1.hook_scale")?, get("ln2.hook_scale")?];
        let written = get("hook_mlp_out")?;
        let reader = replacement.transcoders.get(layer).and_then(Option::as_ref);
        let (active, error) = match reader {
            None => (None, written.shallow_clone()),
            Some(reader) => {
                let read = read(replacement, layer, reader, &mid, &scales[1])?;
                let (w_enc, _) = reader.dictionary.weights();
                let coded = reader.dictionary.forward(&read.f_to_kind(w_enc.kind())?)?;
                let error = written.f_sub(&coded.reconstruction.f_to_kind(written.kind())?)?;
                let places = coded.features.places()?;
                let active = Active::new(replacement, layer, read, &places)?;
                (Some(active), error)
            }
        };
        Ok(Self {
            pattern: get("attn.hook_pattern")?,
            values: get("attn.hook_v")?,
            pre: get("hook_resid_pre")?,
            mid,
            scales,
            written,
            error,
            active,
        })
    }
}

/// What a layer's transcoder reads, `[tokens, d]`.
fn read(
    replacement: &Replacement<'_>,
    layer: usize,
    reader: &Reader<'_>,
    mid: &Tensor,
    scale: &Tensor,
) -> Result<Tensor> {
    let [_, norm] = replacement.norms(layer)?;
    Ok(match reader.reads {
        Reads::Residual => mid.shallow_clone(),
        Reads::Normalized => norm.normalized(mid, scale)?,
        Reads::MlpInput => norm.affine(&norm.normalized(mid, scale)?)?,
    })
}
