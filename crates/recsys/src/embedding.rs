//! From ids and numbers to vectors: a table per field, by the references' names.

use std::cell::Cell;
use std::collections::BTreeMap;

use densely_core::nn::{Linear, at, buffer, parameter};
use densely_core::{Error, Result, Tensors, check};
use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Device, Kind, Tensor};

use crate::fields::Field;
use crate::layers::{Variant, xavier_linear_no_bias};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// A field whose vectors are given and never trained; a linear layer without bias turns them into embeddings.
///
/// The vectors stand in `embedding_layers.<field>.pretrain_embedding.weight` and start at 0, so they come with the weights. A field
/// that shares the table of another has a layer of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pretrained {
    /// Name of the field.
    pub field: String,
    /// Width of the given vectors.
    pub dim: i64,
}

/// The embeddings of some fields.
#[derive(Debug)]
pub struct Embeddings {
    entries: Vec<Entry>,
    variant: Variant,
    sparse: Cell<bool>,
}

#[derive(Debug)]
struct Entry {
    field: Field,
    weights: Weights,
    /// Of given vectors.
    encoder: Option<Linear>,
}

#[derive(Debug)]
enum Weights {
    /// `[rows, dim]`.
    Table { weight: Tensor, padding: bool },
    /// `[dim, 1]`, of a number.
    Number(Tensor),
    /// The number as it is.
    Raw,
}

/// How a model wants its tables.
#[derive(Debug, Clone, Copy)]
pub struct TableSpec<'a> {
    /// Width of an embedding.
    pub dim: i64,
    /// Names, first weights, and whether id 0 is padding.
    pub variant: Variant,
    /// Fields with given vectors.
    pub pretrained: &'a [Pretrained],
}

impl TableSpec<'_> {
    /// Creates the tables of `fields` under `vs`.
    ///
    /// `FuxiCTR`: rows from N(0, 1e-8), row 0 stays 0 without a gradient, numbers have a weight `[dim, 1]`. `DeepCTR-Torch`: rows from the
    /// same law, row 0 too, numbers as they are. The authors: rows from U(±√(6/(rows+dim))).
    pub fn build<'f>(&self, vs: &Path, fields: impl Iterator<Item = &'f Field>) -> Embeddings {
        let mut entries: Vec<Entry> = Vec::new();
        for field in fields {
            let name = field.name();
            let pretrained = self.pretrained.iter().find(|given| given.field == name);
            let owner = field.share_embedding();
            let shared =
                owner.and_then(|owner| entries.iter().find(|entry| entry.field.name() == owner));
            let weights = match (shared.map(|entry| &entry.weights), field.vocab_size()) {
                (Some(Weights::Table { weight, padding }), _) => Weights::Table {
                    weight: weight.shallow_clone(),
                    padding: *padding,
                },
                (_, Some(rows)) => self.table(vs, name, rows, pretrained),
                (_, None) if self.variant == Variant::Deepctr => Weights::Raw,
                (_, None) => {
                    Weights::Number(xavier_linear_no_bias(&self.at(vs, name), 1, self.dim).weight)
                }
            };
            let encoder = pretrained.map(|given| {
                xavier_linear_no_bias(&(vs / "feature_encoders" / name), given.dim, self.dim)
            });
            entries.push(Entry {
                field: field.clone(),
                weights,
                encoder,
            });
        }
        Embeddings {
            entries,
            variant: self.variant,
            sparse: Cell::new(false),
        }
    }

    fn at<'p>(&self, vs: &Path<'p>, name: &str) -> Path<'p> {
        match self.variant {
            Variant::Fuxictr => at(&(vs / "embedding_layers"), name),
            Variant::Deepctr => at(&(vs / "embedding_dict"), name),
            Variant::Authors => at(vs, &format!("{name}_emb_w")),
        }
    }

    fn table(&self, vs: &Path, name: &str, rows: i64, given: Option<&Pretrained>) -> Weights {
        let vs = self.at(vs, name);
        let padding = self.variant == Variant::Fuxictr;
        if let Some(given) = given {
            let zeros = Tensor::zeros([rows, given.dim], CPU);
            let weight = buffer(&(vs / "pretrain_embedding"), "weight", &zeros);
            return Weights::Table { weight, padding };
        }
        let mut values = Tensor::empty([rows, self.dim], CPU);
        values = if self.variant == Variant::Authors {
            let bound = (6.0 / (rows + self.dim) as f64).sqrt();
            values.uniform_(-bound, bound)
        } else {
            values.normal_(0.0, 1e-4)
        };
        if padding {
            let _ = values.narrow(0, 0, 1).zero_();
        }
        Weights::Table {
            weight: parameter(&vs, "weight", &values),
            padding,
        }
    }
}

impl Embeddings {
    /// Whether gradients of tables hold only the rows that occur in the batch, as [`crate::optim`]'s lazy mode takes them. Off at
    /// first: then they are as large as the tables.
    pub fn set_sparse(&self, sparse: bool) {
        self.sparse.set(sparse);
    }

    /// The fields, in order.
    pub fn fields(&self) -> impl Iterator<Item = &Field> {
        self.entries.iter().map(|entry| &entry.field)
    }

    /// Names under which references also save a shared table, and the name it has here; `prefix` stands before both.
    pub fn aliases(&self, prefix: &str) -> Vec<(String, String)> {
        let owners: BTreeMap<&str, &str> = self
            .entries
            .iter()
            .filter_map(|entry| Some((entry.field.name(), entry.field.share_embedding()?)))
            .filter(|(_, owner)| {
                self.entries
                    .iter()
                    .any(|entry| entry.field.name() == *owner)
            })
            .collect();
        let mut aliases = Vec::new();
        for entry in &self.entries {
            let name = entry.field.name();
            let mut owner = name;
            while let Some(next) = owners.get(owner) {
                owner = next;
            }
            let tail = if entry.encoder.is_some() {
                aliases.push((
                    format!("{prefix}.feature_encoders.{name}.0.weight"),
                    format!("{prefix}.feature_encoders.{name}.weight"),
                ));
                "pretrain_embedding.weight"
            } else {
                "weight"
            };
            if owner != name {
                let of = |name: &str| format!("{prefix}.embedding_layers.{name}.{tail}");
                aliases.push((of(name), of(owner)));
            }
        }
        aliases
    }

    /// The embedding of a field for `ids` or numbers of it: `[…]` → `[…, dim]`, and a number that is taken as it is `[…, 1]`.
    ///
    /// # Errors
    /// [`Error::Config`] for a field that is not among them.
    pub fn of(&self, name: &str, xs: &Tensor) -> Result<Tensor> {
        let entry = self.entries.iter().find(|entry| entry.field.name() == name);
        let entry =
            entry.ok_or_else(|| Error::config("fields", format!("there is no `{name}`")))?;
        let ys = match &entry.weights {
            Weights::Table { weight, padding } => {
                let padding = if *padding { 0 } else { -1 };
                let sparse = self.sparse.get() && weight.requires_grad();
                Tensor::embedding(weight, xs, padding, false, sparse)
            }
            Weights::Number(weight) => xs.unsqueeze(-1).linear(weight, None::<Tensor>),
            Weights::Raw => xs.unsqueeze(-1),
        };
        Ok(match &entry.encoder {
            Some(encoder) => encoder.forward(&ys),
            None => ys,
        })
    }

    /// The embedding of a field `[batch, dim]`, of a sequence the mean over its valid steps.
    ///
    /// `FuxiCTR` takes vectors whose values sum to 0 as padding, `DeepCTR-Torch` the id 0; nothing but padding gives 0.
    /// # Errors
    /// Those of [`of`](Self::of).
    pub fn pooled(&self, name: &str, xs: &Tensor) -> Result<Tensor> {
        let vectors = self.of(name, xs)?;
        if vectors.dim() < 3 {
            return Ok(vectors);
        }
        let sum =
            |xs: &Tensor, dim: i64, keep: bool| xs.sum_dim_intlist([dim].as_slice(), keep, None);
        if self.variant == Variant::Deepctr {
            let valid = xs.ne(0).to_kind(vectors.kind());
            let total = sum(&(vectors * valid.unsqueeze(-1)), 1, false);
            return Ok(total / (sum(&valid, 1, true) + 1e-8));
        }
        let valid = sum(&vectors, -1, false).ne(0.0).to_kind(vectors.kind());
        Ok(sum(&vectors, 1, false) / (sum(&valid, 1, true) + 1e-12))
    }

    /// All fields side by side, [`pooled`](Self::pooled): `[batch, width]`.
    ///
    /// # Errors
    /// Those of [`of`](Self::of).
    pub fn flat(&self, inputs: &Tensors) -> Result<Tensor> {
        let parts = self.entries.iter().map(|entry| {
            let name = entry.field.name();
            self.pooled(name, &inputs[name])
        });
        Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, -1))
    }
}

/// Whether a parameter of this name belongs to the embeddings, which have a regulariser of their own.
pub fn is_embedding(name: &str) -> bool {
    [
        "embedding_layers.",
        "feature_encoders.",
        "embedding_dict.",
        "_emb_w.",
    ]
    .iter()
    .any(|part| name.contains(part))
        || name == "item_b"
}

/// Checks a batch at a model's door: every field is there, of its kind and rank, with as many rows as the others and ids inside its
/// table; nothing else is. `more` names further i64 inputs `[batch]`.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Data`], naming the field.
pub fn check_inputs(fields: &[Field], more: &[&str], kind: Kind, inputs: &Tensors) -> Result<i64> {
    let known =
        |name: &str| fields.iter().any(|field| field.name() == name) || more.contains(&name);
    if let Some(name) = inputs.keys().find(|name| !known(name)) {
        return Err(Error::Shape {
            what: name.clone(),
            expected: "a field of the model".to_owned(),
            got: "an input that it does not take".to_owned(),
        });
    }
    let mut first: Option<(&str, i64)> = None;
    let mut extremes: Vec<(&Field, [Tensor; 2])> = Vec::new();
    let named = fields.iter().map(|field| (field.name(), Some(field)));
    for (name, field) in named.chain(more.iter().map(|name| (*name, None))) {
        let xs = inputs.get(name).ok_or_else(|| check::absent(name))?;
        match field {
            Some(Field::Sequence { max_len, .. }) => {
                check::shape(name, xs, &[None, None])?;
                let steps = xs.size()[1];
                if !(1..=*max_len).contains(&steps) {
                    return Err(Error::Shape {
                        what: name.to_owned(),
                        expected: format!("1 to {max_len} ids per row"),
                        got: steps.to_string(),
                    });
                }
            }
            _ => check::shape(name, xs, &[None])?,
        }
        let is_number = matches!(field, Some(Field::Numeric { .. }));
        check::kind(name, xs, if is_number { kind } else { Kind::Int64 })?;
        let rows = xs.size()[0];
        match first {
            None if rows == 0 => {
                return Err(Error::Shape {
                    what: name.to_owned(),
                    expected: "at least one row".to_owned(),
                    got: "none".to_owned(),
                });
            }
            None => first = Some((name, rows)),
            Some((other, expected)) if rows != expected => {
                return Err(Error::Shape {
                    what: name.to_owned(),
                    expected: format!("{expected} rows, as many as `{other}`"),
                    got: rows.to_string(),
                });
            }
            Some(_) => (),
        }
        if let Some(field) = field.filter(|field| field.vocab_size().is_some()) {
            let (least, most) = xs.aminmax(None, false);
            extremes.push((field, [least, most]));
        }
    }
    check_ids(&extremes)?;
    first
        .map(|(_, rows)| rows)
        .ok_or_else(|| Error::config("fields", "must name at least one field"))
}

/// Checks one user and many candidates at a model's door, each by [`check_inputs`]: the number of candidates. A field belongs to one of the
/// two; `more` belongs to the user.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Data`], naming the field.
pub(crate) fn check_sides(
    fields: &[Field],
    more: &[&str],
    kind: Kind,
    user: &Tensors,
    candidates: &Tensors,
) -> Result<i64> {
    if let Some(name) = user.keys().find(|name| candidates.contains_key(*name)) {
        return Err(Error::Shape {
            what: name.clone(),
            expected: "a column of the user or of the candidates".to_owned(),
            got: "one of either".to_owned(),
        });
    }
    let (theirs, ours): (Vec<Field>, Vec<Field>) = fields
        .iter()
        .cloned()
        .partition(|field| candidates.contains_key(field.name()));
    let count = check_inputs(&theirs, &[], kind, candidates)?;
    if ours.is_empty() && more.is_empty() {
        return Ok(count);
    }
    let rows = check_inputs(&ours, more, kind, user)?;
    if rows == 1 {
        return Ok(count);
    }
    Err(Error::Shape {
        what: "user".to_owned(),
        expected: "one row".to_owned(),
        got: rows.to_string(),
    })
}

/// All extremes are read at once, so that a GPU is waited for once.
fn check_ids(extremes: &[(&Field, [Tensor; 2])]) -> Result<()> {
    let tensors: Vec<&Tensor> = extremes.iter().flat_map(|(_, both)| both).collect();
    if tensors.is_empty() {
        return Ok(());
    }
    let values = Vec::<i64>::try_from(Tensor::stack(&tensors, 0))?;
    for ((field, _), both) in extremes.iter().zip(values.chunks(2)) {
        let (rows, name) = (field.vocab_size().unwrap_or(0), field.name());
        if both[0] < 0 {
            let reason = format!(
                "id {} is negative; ids go from 0, the padding, to {}",
                both[0],
                rows - 1
            );
            return Err(Error::column("", name, reason));
        }
        if both[1] >= rows {
            let reason = format!(
                "id {} is beyond the vocabulary of {rows}; was the table made with this model's feature map?",
                both[1]
            );
            return Err(Error::column("", name, reason));
        }
    }
    Ok(())
}
