//! The second pass: rows of a table as ids and numbers.

use densely_core::{Result, Tensors};
use densely_data::RowBatch;
use tch::{Device, Kind as TensorKind, Tensor};

use super::cells::{self, Cells};
use super::columns::{Column, Kind, Padding};
use super::{Code, FeatureMap};
use crate::fields::Field;

/// Where the values of each field stand in a row of 32-bit words: ids first, then numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    places: Vec<Place>,
    ids: usize,
    numbers: usize,
}

#[derive(Debug, Clone, PartialEq)]
struct Place {
    name: String,
    at: usize,
    shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Id,
    Ids(usize),
    Number,
}

/// Encoded rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Encoded {
    /// Rows by words; numbers as their bits.
    pub(crate) words: Vec<i32>,
    /// Number of rows.
    pub rows: usize,
    /// Sequences without an id, summed over rows and fields.
    pub empty_sequences: usize,
    /// Rows all of whose sequences are empty, where there are sequences.
    pub rows_of_padding: usize,
}

impl Layout {
    /// The layout for these fields.
    pub fn new(fields: &[Field]) -> Self {
        let mut places = Vec::new();
        let (mut ids, mut numbers) = (0, 0);
        for field in fields {
            let (at, shape) = match field {
                Field::Categorical { .. } => (ids, Shape::Id),
                Field::Sequence { max_len, .. } => (ids, Shape::Ids(*max_len as usize)),
                Field::Numeric { .. } => (numbers, Shape::Number),
            };
            match shape {
                Shape::Id => ids += 1,
                Shape::Ids(length) => ids += length,
                Shape::Number => numbers += 1,
            }
            places.push(Place {
                name: field.name().to_owned(),
                at,
                shape,
            });
        }
        Self {
            places,
            ids,
            numbers,
        }
    }

    /// The tensors of `fields` only.
    pub(crate) fn some(
        &self,
        words: &Tensor,
        fields: &[String],
        device: Device,
    ) -> Result<Tensors> {
        let mut tensors = self.tensors(words, device)?;
        tensors.retain(|name, _| fields.contains(name));
        Ok(tensors)
    }

    /// Words in a row.
    pub const fn width(&self) -> usize {
        self.ids + self.numbers
    }

    /// One tensor per field by its name: i64 `[B]`, f32 `[B]`, sequences i64 `[B, T]`.
    ///
    /// `words` is i32 `[B, width]`.
    /// # Errors
    /// Those of libtorch.
    pub fn tensors(&self, words: &Tensor, device: Device) -> Result<Tensors> {
        let words = words.f_to_device(device)?;
        let ids = words
            .f_narrow(1, 0, self.ids as i64)?
            .f_to_kind(TensorKind::Int64)?;
        let numbers = if self.numbers > 0 {
            let bits = words.f_narrow(1, self.ids as i64, self.numbers as i64)?;
            Some(bits.f_contiguous()?.f_view_dtype(TensorKind::Float)?)
        } else {
            None
        };
        let mut tensors = Tensors::new();
        for Place { name, at, shape } in &self.places {
            let at = *at as i64;
            let xs = match (shape, &numbers) {
                (Shape::Ids(length), _) => ids.f_narrow(1, at, *length as i64)?,
                (Shape::Number, Some(numbers)) => numbers.f_select(1, at)?,
                (Shape::Id | Shape::Number, _) => ids.f_select(1, at)?,
            };
            tensors.insert(name.clone(), xs.f_contiguous()?);
        }
        Ok(tensors)
    }
}

impl Encoded {
    /// The rows as a tensor i32 `[rows, width]`.
    pub fn words(&self) -> Tensor {
        let width = self.words.len() / self.rows.max(1);
        Tensor::from_slice(&self.words).view([self.rows as i64, width as i64])
    }
}

impl FeatureMap {
    /// Encodes the rows of a batch; label and group are not looked at.
    ///
    /// # Errors
    /// [`densely_core::Error::Data`] naming the row and column of a value that cannot be read: a number that is none, an id that is negative
    /// or beyond the vocabulary.
    pub fn encode(&self, rows: &RowBatch) -> Result<Encoded> {
        let fields: Vec<String> = self
            .columns
            .iter()
            .map(|column| column.name.clone())
            .collect();
        self.encode_some(rows, &fields)
    }

    /// The fields whose column a batch has.
    pub(crate) fn fields_in(&self, rows: &RowBatch) -> Vec<String> {
        let there = |column: &&Column| {
            column.kind != Kind::Meta && rows.batch.column_by_name(column.source()).is_some()
        };
        let columns = self.columns.iter().filter(there);
        columns.map(|column| column.name.clone()).collect()
    }

    /// As [`encode`](Self::encode), with these fields only; the words of the others are 0.
    pub(crate) fn encode_some(&self, rows: &RowBatch, fields: &[String]) -> Result<Encoded> {
        let layout = Layout::new(&self.fields());
        let (n, width) = (rows.batch.num_rows(), layout.width());
        let mut words = vec![0; n * width];
        let mut filled = vec![false; n];
        let mut empty_sequences = 0;
        let used = self
            .columns
            .iter()
            .zip(&self.codes)
            .filter(|(c, _)| c.kind != Kind::Meta);
        for ((column, code), place) in used.zip(&layout.places) {
            if !fields.contains(&column.name) {
                continue;
            }
            match code {
                Code::Meta => {}
                Code::Number(scale) => {
                    let at = layout.ids + place.at;
                    for (row, value) in cells::numbers(rows, column)?.into_iter().enumerate() {
                        let value = ((value - scale.shift) / scale.scale) as f32;
                        words[row * width + at] = value.to_bits() as i32;
                    }
                }
                Code::Tokens(vocabulary) => {
                    let cells = Cells::new(rows, column)?;
                    let left_out = column.left_out();
                    for (row, filled) in filled.iter_mut().enumerate() {
                        let wrong = |refused: super::vocabulary::Refused| {
                            rows.error(column.source(), row, refused.0)
                        };
                        let start = row * width + place.at;
                        if column.kind == Kind::Categorical {
                            let token = cells.one(row).unwrap_or(column.filled());
                            // An empty cell of a column of ids is padding.
                            let empty = column.vocab_size.is_some() && token.is_empty();
                            words[start] = if empty {
                                0
                            } else {
                                vocabulary.lookup(token).map_err(wrong)?
                            };
                            continue;
                        }
                        let mut ids = Vec::new();
                        cells.each(row, column, |token| {
                            ids.push(if Some(token) == left_out.as_deref() {
                                0
                            } else {
                                vocabulary.lookup(token).map_err(wrong)?
                            });
                            Ok(())
                        })?;
                        pad(
                            &ids,
                            &mut words[start..start + column.max_len as usize],
                            column,
                        );
                        let empty = ids.iter().all(|id| *id == 0);
                        empty_sequences += usize::from(empty);
                        *filled |= !empty;
                    }
                }
            }
        }
        let sequences = self
            .columns
            .iter()
            .any(|column| column.kind == Kind::Sequence);
        let padding = filled.iter().filter(|filled| !**filled).count();
        Ok(Encoded {
            words,
            rows: n,
            empty_sequences,
            rows_of_padding: if sequences { padding } else { 0 },
        })
    }
}

/// Cuts and fills on the column's side, as Keras' `pad_sequences` with `padding` and `truncating` alike.
fn pad(ids: &[i32], into: &mut [i32], column: &Column) {
    let kept = ids.len().min(into.len());
    match column.padding {
        Padding::Post => into[..kept].copy_from_slice(&ids[..kept]),
        Padding::Pre => {
            let (from, to) = (ids.len() - kept, into.len() - kept);
            into[to..].copy_from_slice(&ids[from..]);
        }
    }
}
