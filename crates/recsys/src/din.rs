//! DIN, the Deep Interest Network: a user's history is summed with weights that depend on the item at hand.
//!
//! Paper: Zhou et al. 2018, arXiv 1706.06978 (KDD). Three released codes differ, and each is a [`Variant`] here: the authors',
//! `FuxiCTR`'s (the default, in which the public benchmarks were run) and `DeepCTR-Torch`'s. Weights load by the names of the latter two.
//!
//! | | `authors` | `fuxictr` | `deepctr` |
//! | --- | --- | --- | --- |
//! | score of padding | -2³² + 1 | score · 0, with softmax - 1e9 | 0, with softmax -2³² + 1 |
//! | scores divided by | √E | - | - |
//! | softmax | always | `softmax` | `softmax` |
//! | Dice | [`crate::layers::Dice`] | | |
//! | tail sees | u, e, u·e | every field, a history as its sum | the fields, the sum, numbers as they are |
//! | last layer | linear | linear | no bias, and one of its own |
//! | item bias | added to the logit | - | - |

mod config;

use std::cell::Cell;

use densely_core::nn::{self, Linear, parameter};
use densely_core::{Error, Model, Result, Tensors};
use tch::nn::{Module, Path};
use tch::{Device, Kind, Tensor};

use crate::attention::Attention;
use crate::embedding::{Embeddings, TableSpec, check_inputs, check_sides};
use crate::fields::Field;
use crate::layers::{AuthorsNorm, Mlp, Variant};

pub use config::DinConfig;

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

impl DinConfig {
    /// Creates the parameters under `vs`.
    ///
    /// # Errors
    /// [`Error::Config`] when [`validate`](Self::validate) fails.
    pub fn build(&self, vs: &Path) -> Result<Din> {
        self.validate()?;
        let tables = TableSpec {
            dim: self.embedding_dim,
            variant: self.variant,
            pretrained: &self.pretrained,
        };
        let of = |part: &str| vs / part;
        let root = if self.variant == Variant::Fuxictr {
            of("embedding_layer")
        } else {
            vs.clone()
        };
        let embeddings = tables.build(&root, self.fields.iter());
        let attentions = self
            .din_target_field
            .iter()
            .enumerate()
            .map(|(place, target)| {
                let vs = match self.variant {
                    Variant::Authors => vs.clone(),
                    Variant::Fuxictr => &of("attention_layers") / place,
                    Variant::Deepctr => of("attention"),
                };
                self.attention(target).build(&vs)
            });
        let attentions = attentions.collect::<Result<_>>()?;
        let width = self.embedding_dim * self.din_target_field[0].len() as i64;
        let (tail, head) = match self.variant {
            Variant::Fuxictr => (self.tail().build(&of("dnn")), Head::None),
            Variant::Deepctr => {
                let last = self.dnn_hidden_units.last().copied().unwrap_or(0);
                let linear = nn::linear_no_bias(&of("dnn_linear"), last, 1);
                let bias = parameter(&of("out"), "bias", &Tensor::zeros([1], CPU));
                (
                    self.tail().build(&of("dnn")),
                    Head::Deepctr { linear, bias },
                )
            }
            Variant::Authors => {
                let rows = self
                    .field(&self.din_target_field[0][0])
                    .and_then(Field::vocab_size)
                    .unwrap_or(0);
                let head = Head::Authors {
                    norm: AuthorsNorm::new(&of("hist_bn"), width, self.bn_mode),
                    linear: nn::linear_glorot(&of("hist_fcn"), width, width),
                    tail_norm: AuthorsNorm::new(&of("b1"), 3 * width, self.bn_mode),
                    item_bias: parameter(vs, "item_b", &Tensor::zeros([rows], CPU)),
                };
                (self.tail().build(vs), head)
            }
        };
        Ok(Din {
            embeddings,
            attentions,
            tail,
            head,
            packing: Cell::new(false),
            config: self.clone(),
        })
    }
}

/// A built DIN.
#[derive(Debug)]
pub struct Din {
    embeddings: Embeddings,
    attentions: Vec<Attention>,
    tail: Mlp,
    head: Head,
    packing: Cell<bool>,
    config: DinConfig,
}

/// What a variant has beside attention and tail.
#[derive(Debug)]
enum Head {
    None,
    /// The last layer.
    Deepctr {
        linear: Linear,
        bias: Tensor,
    },
    /// What stands between attention and tail, and the bias of the item.
    Authors {
        norm: AuthorsNorm,
        linear: Linear,
        tail_norm: AuthorsNorm,
        item_bias: Tensor,
    },
}

/// The vectors of some fields, side by side.
fn side(names: &[String], vectors: &Tensors) -> Tensor {
    let parts: Vec<&Tensor> = names.iter().map(|name| &vectors[name]).collect();
    Tensor::cat(&parts, -1)
}

impl Din {
    /// Logits `[batch]` of a click; `inputs` holds one tensor per field by its name (i64 `[batch]`, f32 `[batch]` for numbers, i64
    /// `[batch, time]` for sequences) and the lengths where the config names them.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Data`] for inputs that do not fit.
    pub fn forward(&self, inputs: &Tensors, train: bool) -> Result<Tensor> {
        self.check(inputs)?;
        let config = &self.config;
        let mut vectors = Tensors::new(); // [batch, dim] by field
        for field in &config.fields {
            let name = field.name();
            if !config.is_history(name) {
                vectors.insert(
                    name.to_owned(),
                    self.embeddings.pooled(name, &inputs[name])?,
                );
            }
        }
        for (place, attention) in self.attentions.iter().enumerate() {
            let history = &config.din_sequence_field[place];
            let query = side(&config.din_target_field[place], &vectors);
            let keys = self.keys(history, inputs)?;
            let mask = self.mask(&history[0], inputs);
            let pooled = if self.packing.get() && !train {
                attention.forward_packed(&query, &keys, &mask)?
            } else {
                attention.forward(&query, &keys, &mask, train)?
            }; // [batch, E]
            for (name, part) in history.iter().zip(pooled.split(config.embedding_dim, -1)) {
                vectors.insert(name.clone(), part);
            }
        }
        let target = inputs.get(&config.din_target_field[0][0]);
        Ok(self.finish(&vectors, target, train))
    }

    fn check(&self, inputs: &Tensors) -> Result<()> {
        let config = &self.config;
        let more: Vec<&str> = config.length.as_deref().into_iter().collect();
        check_inputs(&config.fields, &more, self.kind(), inputs)?;
        self.check_histories(inputs)
    }

    /// Sequences of one history are equally long, and lengths lie within.
    fn check_histories(&self, inputs: &Tensors) -> Result<()> {
        let config = &self.config;
        for history in &config.din_sequence_field {
            let steps = inputs[&history[0]].size()[1];
            for name in &history[1..] {
                if inputs[name].size()[1] != steps {
                    return Err(Error::Shape {
                        what: name.clone(),
                        expected: format!("{steps} ids per row, as many as `{}`", history[0]),
                        got: inputs[name].size()[1].to_string(),
                    });
                }
            }
            if let Some(length) = &config.length {
                let (least, most) = inputs[length].aminmax(None, false);
                let (least, most) = (least.int64_value(&[]), most.int64_value(&[]));
                if least < 0 || most > steps {
                    let reason = format!(
                        "lengths lie in {least} to {most}, but `{}` has {steps} ids per row",
                        history[0]
                    );
                    return Err(Error::column("", length.clone(), reason));
                }
            }
        }
        Ok(())
    }

    fn kind(&self) -> Kind {
        self.attentions[0].kind()
    }

    /// `[batch, time, E]`.
    fn keys(&self, history: &[String], inputs: &Tensors) -> Result<Tensor> {
        let parts: Vec<Tensor> = history
            .iter()
            .map(|name| self.embeddings.of(name, &inputs[name]))
            .collect::<Result<_>>()?;
        Ok(Tensor::cat(&parts, -1))
    }

    /// Whether evaluation leaves out the padding of histories ([`Attention::forward_packed`]); off at first. It pays where histories
    /// are much shorter than the longest, and equals the other way up to rounding.
    pub fn set_packing(&self, packing: bool) {
        self.packing.set(packing);
    }

    /// Logits `[n]` of many candidates for one user, in evaluation.
    ///
    /// `candidates` holds the target's fields, and others that depend on the candidate, `[n]` each; `user` all the rest, one row each. The
    /// user's side, padding aside, is computed once.
    /// # Errors
    /// [`Error::Shape`] and [`Error::Data`] for inputs that do not fit.
    pub fn score_candidates(&self, user: &Tensors, candidates: &Tensors) -> Result<Tensor> {
        let config = &self.config;
        let more: Vec<&str> = config.length.as_deref().into_iter().collect();
        let count = check_sides(&config.fields, &more, self.kind(), user, candidates)?;
        for name in config.din_target_field.iter().flatten() {
            if !candidates.contains_key(name) {
                return Err(Error::Shape {
                    what: name.clone(),
                    expected: "a column of the candidates: the attention takes its query from it"
                        .to_owned(),
                    got: "a column of the user".to_owned(),
                });
            }
        }
        self.check_histories(user)?;
        let mut vectors = Tensors::new();
        for field in config
            .fields
            .iter()
            .filter(|field| !config.is_history(field.name()))
        {
            let name = field.name();
            let xs = self
                .embeddings
                .pooled(name, candidates.get(name).unwrap_or_else(|| &user[name]))?;
            let xs = if candidates.contains_key(name) {
                xs
            } else {
                xs.expand([count, -1], true)
            };
            vectors.insert(name.to_owned(), xs);
        }
        for (place, attention) in self.attentions.iter().enumerate() {
            let history = &config.din_sequence_field[place];
            let query = side(&config.din_target_field[place], &vectors);
            let keys = self.keys(history, user)?.squeeze_dim(0); // [time, E]
            let valid = self
                .mask(&history[0], user)
                .squeeze_dim(0)
                .nonzero()
                .squeeze_dim(1);
            let pooled = if valid.size()[0] > 0 {
                attention.forward_shared(&query, &keys.index_select(0, &valid))?
            } else {
                // Nothing is valid: the same for all, whatever the variant makes of it.
                let mask = Tensor::zeros([1, keys.size()[0]], (Kind::Int64, keys.device()));
                let one =
                    attention.forward(&query.narrow(0, 0, 1), &keys.unsqueeze(0), &mask, false)?;
                one.expand_as(&query)
            };
            for (name, part) in history.iter().zip(pooled.split(config.embedding_dim, -1)) {
                vectors.insert(name.clone(), part);
            }
        }
        let target = candidates.get(&config.din_target_field[0][0]);
        Ok(self.finish(&vectors, target, false))
    }

    /// Which steps are valid, `[batch, time]`.
    fn mask(&self, first: &str, inputs: &Tensors) -> Tensor {
        let ids = &inputs[first];
        match &self.config.length {
            None => ids.ne(0),
            Some(length) => {
                let steps = Tensor::arange(ids.size()[1], (Kind::Int64, ids.device()));
                steps.unsqueeze(0).lt_tensor(&inputs[length].unsqueeze(1))
            }
        }
    }

    /// From the vectors of all fields, histories as their sums, to logits `[batch]`.
    fn finish(&self, vectors: &Tensors, target: Option<&Tensor>, train: bool) -> Tensor {
        let config = &self.config;
        let logits = match &self.head {
            Head::None => {
                let parts: Vec<&Tensor> = config
                    .fields
                    .iter()
                    .map(|field| &vectors[field.name()])
                    .collect();
                Tensor::cat(&parts, -1).apply_t(&self.tail, train)
            }
            Head::Deepctr { linear, bias } => {
                let is_number = |field: &&Field| field.vocab_size().is_none();
                let is_sequence = |field: &&Field| matches!(field, Field::Sequence { .. });
                let fields = || config.fields.iter();
                let plain = fields().filter(|field| !is_number(field) && !is_sequence(field));
                let means =
                    fields().filter(|field| is_sequence(field) && !config.is_history(field.name()));
                let mut parts: Vec<&Tensor> = plain
                    .chain(means)
                    .map(|field| &vectors[field.name()])
                    .collect();
                parts.extend(
                    config.din_sequence_field[0]
                        .iter()
                        .map(|name| &vectors[name]),
                );
                parts.extend(
                    fields()
                        .filter(is_number)
                        .map(|field| &vectors[field.name()]),
                );
                linear.forward(&Tensor::cat(&parts, -1).apply_t(&self.tail, train)) + bias
            }
            Head::Authors {
                norm,
                linear,
                tail_norm,
                item_bias,
            } => {
                let item = side(&config.din_target_field[0], vectors);
                let history = side(&config.din_sequence_field[0], vectors);
                let user = linear.forward(&history.apply_t(norm, train));
                let xs = Tensor::cat(&[&user, &item, &(&user * &item)], -1);
                let ys = xs.apply_t(tail_norm, train).apply_t(&self.tail, train);
                match target {
                    Some(ids) => ys + item_bias.index_select(0, ids).unsqueeze(1),
                    None => ys,
                }
            }
        };
        logits.squeeze_dim(1)
    }

    /// Its tables.
    pub fn embeddings(&self) -> &Embeddings {
        &self.embeddings
    }

    /// The config it was built from.
    pub fn config(&self) -> &DinConfig {
        &self.config
    }
}

impl Model for Din {
    fn forward_named(&self, inputs: &Tensors, train: bool) -> Result<Tensors> {
        Ok(crate::models::outputs(&self.forward(inputs, train)?))
    }

    fn aliases(&self) -> Vec<(String, String)> {
        match self.config.variant {
            Variant::Fuxictr => self.embeddings.aliases("embedding_layer"),
            _ => Vec::new(),
        }
    }
}
