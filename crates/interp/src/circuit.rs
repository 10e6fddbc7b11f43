//! Circuits: which features, heads and tokens make a feature fire or a token likely, through MLPs that transcoders stand in for.
//!
//! Papers: Dunefsky, Chlenski, Nanda 2024, "Transcoders Find Interpretable LLM Feature Circuits", arXiv 2406.11944 (contributions, greedy paths, views that
//! hold for any input); Ameisen et al. 2025, "Circuit Tracing: Revealing Computational Graphs in Language Models" (attribution graphs). Follows
//! `jacobdunefsky/transcoder_circuits` and the package `circuit-tracer`, whose graph files are written too.
//!
//! On one prompt, with attention patterns and the scales of norms held at what they are, a pre-activation is linear in all that was written into the
//! residual before it. With v the feature's column of `W_enc` pulled back through the norm, and a sum over everything below,
//!
//! ```text
//! pre = Σ f_j (W_dec[j]·v)  +  Σ pattern[t, s] (value_s W_O)·v  +  embedding·v  +  biases·v  +  errors·v  +  b_enc
//!       features of MLPs       heads and the tokens they look at     tokens         constants     what transcoders miss
//! ```
//! Each term is a [`Contribution`], and those of features and heads are linear in turn, so that paths go on through them.
//!
//! - [`Replacement`] puts a transcoder in the place of some or all MLPs of a model;
//! - [`Local`] is one prompt's pass through it, with everything held that is not linear;
//! - [`Local::contributions`] lists the terms above, and [`Local::completeness`] measures that they sum to the whole;
//! - [`greedy_paths`] follows the largest ones down, [`PathGraph`] merges the paths;
//! - [`Graph`] is the attribution graph from tokens to logits, [`Graph::prune`] keeps what matters of it, [`export`] and [`page`] write it;
//! - [`Replacement::deembed`] and its neighbours look at weights alone.
//!
//! The norm is pulled back exactly, its mean included. The paper's code multiplies by one number instead, which is the same on models whose writing weights
//! are centred ([`densely_lm::process`]), those that its transcoders were trained on.

mod attribution;
mod contributions;
pub mod export;
mod invariant;
mod local;
mod merge;
pub mod page;
mod paths;
mod prune;
mod walk;

use densely_core::{Error, Result, check};
use densely_lm::views::Weight;
use densely_lm::{Architecture, Lm};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::dictionary::{Dictionary, Normalize, Role};
use crate::edit::wide;

pub use attribution::{Graph, GraphOptions, Memory, Node, Sizes};
pub use contributions::{Completeness, Component, ComponentKind, Contribution};
pub use invariant::{HeadRank, MeanAttribution, TokenEffects};
pub use local::{Direction, Local, Place, Sublayer};
pub use merge::{PathEdge, PathErrors, PathGraph, PathNode};
pub use paths::{Compare, Filter, Path, PathOptions, Step, containing, ending, greedy_paths};
pub use prune::{Pruned, Scores, influence, prune, scores};

/// What a transcoder reads. It always writes what `blocks.{l}.hook_mlp_out` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reads {
    /// `blocks.{l}.ln2.hook_normalized`: the residual between attention and MLP, less its mean (in a `LayerNorm`) and divided by its scale, before the
    /// norm's weight and bias.
    #[default]
    Normalized,
    /// `blocks.{l}.mlp.hook_in`: what the MLP itself reads, the norm's weight and bias included.
    MlpInput,
    /// `blocks.{l}.hook_resid_mid` or `hook_mlp_in`: the residual before the norm.
    Residual,
}

impl Reads {
    /// What the hook point of this name holds; it may start with `blocks.{l}.`.
    ///
    /// # Errors
    /// [`Error::Config`] for a point that no transcoder of an MLP reads.
    pub fn from_point(name: &str) -> Result<Self> {
        match own_name(name) {
            "ln2.hook_normalized" => Ok(Self::Normalized),
            "mlp.hook_in" => Ok(Self::MlpInput),
            "hook_resid_mid" | "hook_mlp_in" => Ok(Self::Residual),
            _ => {
                let reason = format!(
                    "a transcoder reads `ln2.hook_normalized`, `mlp.hook_in`, `hook_mlp_in` or `hook_resid_mid`, got `{name}`"
                );
                Err(Error::config("hook_point", reason))
            }
        }
    }
}

/// The name of a point without the block before it.
fn own_name(name: &str) -> &str {
    match name.strip_prefix("blocks.") {
        Some(rest) => rest.split_once('.').map_or(rest, |(_, own)| own),
        None => name,
    }
}

/// A transcoder and where it stands in its layer.
#[derive(Debug, Clone, Copy)]
pub struct Transcoder<'a> {
    /// The dictionary, of role [`Role::Transcoder`].
    pub dictionary: &'a Dictionary,
    /// What it reads.
    pub reads: Reads,
}

impl<'a> Transcoder<'a> {
    /// A transcoder between two hook points, as the files of dictionaries name them.
    ///
    /// # Errors
    /// [`Error::Config`] when it reads something else than an MLP's input, or does not write `hook_mlp_out`.
    pub fn new(dictionary: &'a Dictionary, reads: &str, writes: &str) -> Result<Self> {
        if own_name(writes) != "hook_mlp_out" {
            let reason = format!(
                "a transcoder stands in for an MLP and writes `hook_mlp_out`, got `{writes}`"
            );
            return Err(Error::config("hook_point_out", reason));
        }
        let reads = Reads::from_point(reads)?;
        Ok(Self { dictionary, reads })
    }
}

/// A model whose MLPs are replaced by transcoders, layer by layer; where a layer has none, what its MLP writes is one error.
#[derive(Debug)]
pub struct Replacement<'a> {
    model: &'a Lm,
    transcoders: Vec<Option<Reader<'a>>>,
    /// Of each layer, before attention and before the MLP.
    norms: Vec<[Norm; 2]>,
    last_norm: Norm,
}

/// A transcoder with what is made of its weights once.
#[derive(Debug)]
struct Reader<'a> {
    dictionary: &'a Dictionary,
    reads: Reads,
    /// `[features]`, in the dictionary's kind.
    encoder_bias: Tensor,
    /// `[d]`.
    output_bias: Tensor,
    /// `[d, d]`, `x W_skipᵀ`.
    skip: Option<Tensor>,
}

impl<'a> Replacement<'a> {
    /// A model and a transcoder (or none) for each of its layers, in their order.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for models whose attention and MLP read the same residual, and for dictionaries that scale their inputs or are gated;
    /// [`Error::Config`] when their number, role, width or device does not fit.
    pub fn new(model: &'a Lm, transcoders: Vec<Option<Transcoder<'a>>>) -> Result<Self> {
        let config = model.config();
        if config.is_parallel() {
            return Err(Error::Unsupported {
                what: "a circuit through a model whose attention and MLP read the same residual"
                    .to_owned(),
                hint: "take a GPT-2, OPT, Llama, Qwen2 or Mistral, whose MLPs read what attention wrote"
                    .to_owned(),
            });
        }
        if transcoders.len() != config.n_layers {
            let reason = format!(
                "must be one entry (a transcoder or none) for each of {} layers, got {}",
                config.n_layers,
                transcoders.len()
            );
            return Err(Error::config("transcoders", reason));
        }
        let _guard = tch::no_grad_guard();
        let kind = wide(model.kind());
        let readers = transcoders.into_iter().enumerate();
        let readers = readers
            .map(|(layer, one)| one.map(|one| Reader::new(model, layer, one)).transpose())
            .collect::<Result<Vec<_>>>()?;
        let names = NormNames::of(config.architecture)?;
        let norms = (0..config.n_layers)
            .map(|layer| {
                let of =
                    |own: &str| Norm::new(model, &format!("{}.{layer}.{own}", names.blocks), kind);
                Ok([of(names.first)?, of(names.second)?])
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            model,
            transcoders: readers,
            norms,
            last_norm: Norm::new(model, names.last, kind)?,
        })
    }

    /// The model.
    pub const fn model(&self) -> &Lm {
        self.model
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.transcoders.len()
    }

    /// The dictionary of a layer, where it has one.
    pub fn dictionary(&self, layer: usize) -> Option<&Dictionary> {
        let reader = self.transcoders.get(layer)?.as_ref()?;
        Some(reader.dictionary)
    }

    /// The kind that circuits are computed in.
    fn kind(&self) -> Kind {
        wide(self.model.kind())
    }

    /// The kind and device of all tensors of circuits.
    fn options(&self) -> (Kind, Device) {
        (self.kind(), self.model.device())
    }

    /// The transcoder of a layer.
    fn reader(&self, layer: usize) -> Result<&Reader<'a>> {
        self.check_layer(layer)?;
        let reader = self.transcoders.get(layer).and_then(Option::as_ref);
        reader.ok_or_else(|| Error::config("layer", format!("layer {layer} has no transcoder")))
    }

    fn check_layer(&self, layer: usize) -> Result<()> {
        if layer < self.layers() {
            return Ok(());
        }
        let reason = format!("must be below {}, got {layer}", self.layers());
        Err(Error::config("layer", reason))
    }

    /// The norms before attention and MLP of a layer.
    fn norms(&self, layer: usize) -> Result<&[Norm; 2]> {
        self.norms.get(layer).ok_or_else(|| {
            let reason = format!("must be below {}, got {layer}", self.layers());
            Error::config("layer", reason)
        })
    }

    /// The matrices of a layer's heads.
    fn heads(&self, layer: usize) -> Result<Heads> {
        let of = |weight| -> Result<Tensor> {
            let weight = self.model.weight(weight, layer)?;
            Ok(weight.f_detach()?.f_to_kind(self.kind())?)
        };
        Ok(Heads {
            w_v: of(Weight::V)?,
            w_o: of(Weight::O)?,
            b_v: of(Weight::BV)?,
            b_o: of(Weight::BO)?,
        })
    }

    /// Columns of the encoder as rows, `[features, d]`.
    fn encoder_rows(&self, layer: usize, features: &Tensor) -> Result<Tensor> {
        let (w_enc, _) = self.reader(layer)?.dictionary.weights();
        Ok(w_enc
            .f_index_select(1, features)?
            .f_detach()?
            .f_tr()?
            .f_to_kind(self.kind())?)
    }

    /// Rows of the decoder, `[features, d]`.
    fn decoder_rows(&self, layer: usize, features: &Tensor) -> Result<Tensor> {
        let (_, w_dec) = self.reader(layer)?.dictionary.weights();
        Ok(w_dec
            .f_index_select(0, features)?
            .f_detach()?
            .f_to_kind(self.kind())?)
    }

    fn check_feature(&self, layer: usize, feature: i64) -> Result<()> {
        let count = self.reader(layer)?.dictionary.config().d_sae;
        if (0..count).contains(&feature) {
            return Ok(());
        }
        let reason = format!(
            "must lie in 0 to {} in layer {layer}, got {feature}",
            count - 1
        );
        Err(Error::config("feature", reason))
    }

    /// A feature's number as a tensor `[1]`.
    fn one_feature(&self, layer: usize, feature: i64) -> Result<Tensor> {
        self.check_feature(layer, feature)?;
        Ok(Tensor::f_from_slice(&[feature])?.f_to(self.model.device())?)
    }
}

impl<'a> Reader<'a> {
    fn new(model: &Lm, layer: usize, transcoder: Transcoder<'a>) -> Result<Self> {
        let Transcoder { dictionary, reads } = transcoder;
        let config = dictionary.config();
        let name = format!("transcoder of layer {layer}");
        if config.role != Role::Transcoder {
            let reason =
                "must be a transcoder, got an autoencoder, which cannot stand in for an MLP";
            return Err(Error::config(name, reason));
        }
        let d = model.config().d_model;
        if (config.d_in, config.d_out) != (d, d) {
            let reason = format!(
                "must read and write the model's width, {d}, got {} and {}",
                config.d_in, config.d_out
            );
            return Err(Error::config(name, reason));
        }
        if config.normalize != Normalize::None {
            return Err(Error::Unsupported {
                what: format!("a circuit through the {name}, which scales its inputs"),
                hint: "fold the scale into its weights, or take one with `normalize` = `none`"
                    .to_owned(),
            });
        }
        let (w_enc, _) = dictionary.weights();
        if w_enc.device() != model.device() {
            let reason = format!(
                "must be where the model is, {:?}, got {:?}",
                model.device(),
                w_enc.device()
            );
            return Err(Error::config(name, reason));
        }
        let kind = wide(model.kind());
        let fixed = |xs: &Tensor| -> Result<Tensor> { Ok(xs.f_detach()?.f_to_kind(kind)?) };
        Ok(Self {
            dictionary,
            reads,
            encoder_bias: dictionary.encoder_bias()?.f_detach()?,
            output_bias: fixed(dictionary.output_bias())?,
            skip: dictionary.skip().map(fixed).transpose()?,
        })
    }
}

/// The matrices of one layer's heads, in row-vector order.
struct Heads {
    /// `[kv heads, d, d_head]`.
    w_v: Tensor,
    /// `[heads, d_head, d]`.
    w_o: Tensor,
    /// `[kv heads, d_head]`.
    b_v: Tensor,
    /// `[d]`.
    b_o: Tensor,
}

/// Names of a family's norms.
struct NormNames {
    blocks: &'static str,
    first: &'static str,
    second: &'static str,
    last: &'static str,
}

impl NormNames {
    fn of(architecture: Architecture) -> Result<Self> {
        Ok(match architecture {
            Architecture::Gpt2 => Self {
                blocks: "transformer.h",
                first: "ln_1",
                second: "ln_2",
                last: "transformer.ln_f",
            },
            Architecture::Opt => Self {
                blocks: "model.decoder.layers",
                first: "self_attn_layer_norm",
                second: "final_layer_norm",
                last: "model.decoder.final_layer_norm",
            },
            Architecture::GptNeoX => Self {
                blocks: "gpt_neox.layers",
                first: "input_layernorm",
                second: "post_attention_layernorm",
                last: "gpt_neox.final_layer_norm",
            },
            Architecture::Llama => Self {
                blocks: "model.layers",
                first: "input_layernorm",
                second: "post_attention_layernorm",
                last: "model.norm",
            },
            Architecture::GptJ => {
                return Err(Error::Unsupported {
                    what: "a circuit through GPT-J, which has one norm a block".to_owned(),
                    hint: "take a GPT-2, OPT, Llama, Qwen2 or Mistral".to_owned(),
                });
            }
        })
    }
}

/// A norm as a linear map, its scale held fixed.
#[derive(Debug)]
struct Norm {
    /// `[d]`.
    weight: Tensor,
    /// `[d]`.
    bias: Option<Tensor>,
    rms: bool,
}

impl Norm {
    fn new(model: &Lm, name: &str, kind: Kind) -> Result<Self> {
        let rms = model.config().rms();
        let of = |part: &str| -> Result<Tensor> {
            let value = model.parameter(&format!("{name}.{part}"))?;
            Ok(value.f_detach()?.f_to_kind(kind)?)
        };
        Ok(Self {
            weight: of("weight")?,
            bias: if rms { None } else { Some(of("bias")?) },
            rms,
        })
    }

    /// `[.., d]` less the mean that the norm takes out. The map is its own transpose.
    fn centred(&self, xs: &Tensor) -> Result<Tensor> {
        if self.rms {
            return Ok(xs.shallow_clone());
        }
        let mean = xs.f_mean_dim([-1i64].as_slice(), true, None::<Kind>)?;
        Ok(xs.f_sub(&mean)?)
    }

    /// Values `[.., d]` before weight and bias, at scales `[.., 1]`.
    fn normalized(&self, xs: &Tensor, scale: &Tensor) -> Result<Tensor> {
        Ok(self.centred(xs)?.f_div(scale)?)
    }

    /// The norm's output.
    fn affine(&self, normalized: &Tensor) -> Result<Tensor> {
        let scaled = normalized.f_mul(&self.weight)?;
        Ok(match &self.bias {
            Some(bias) => scaled.f_add(bias)?,
            None => scaled,
        })
    }

    /// Directions `[.., d]` that read the norm's output as directions that read its input, at scales `[.., 1]`: `u·norm(x) = pulled·x + u·bias`.
    fn pull(&self, us: &Tensor, scale: &Tensor) -> Result<Tensor> {
        self.normalized(&us.f_mul(&self.weight)?, scale)
    }

    /// `u·bias` of directions `[.., d]`, `[..]`.
    fn shift(&self, us: &Tensor) -> Result<Tensor> {
        let product = match &self.bias {
            Some(bias) => us.f_mul(bias)?,
            None => us.f_zeros_like()?,
        };
        Ok(product.f_sum_dim_intlist([-1i64].as_slice(), false, None::<Kind>)?)
    }
}

/// All values in double precision, in order.
fn numbers(xs: &Tensor) -> Result<Vec<f64>> {
    let flat = xs.f_reshape([-1])?.f_to_kind(Kind::Double)?;
    Ok(Vec::<f64>::try_from(&flat.f_to(Device::Cpu)?)?)
}

/// The product of two vectors.
fn dot(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(a.f_dot(b)?.f_to_kind(Kind::Double)?.f_double_value(&[])?)
}

/// Fails unless `vector` is `[d]`, and gives it in the kind of circuits.
fn residual_vector(replacement: &Replacement<'_>, vector: &Tensor) -> Result<Tensor> {
    let width = replacement.model.config().d_model;
    check::shape("vector", vector, &[Some(width)])?;
    let (kind, device) = replacement.options();
    Ok(vector.f_detach()?.f_to(device)?.f_to_kind(kind)?)
}
