//! Encoded rows for training: in memory, or in a file when they are too many.
//!
//! A row is a line of 32-bit words, so an epoch costs one gather per batch. In memory the rows of an epoch are permuted at random. In a
//! file blocks of rows are, and the rows of many blocks among each other: each batch then mixes rows from all over the table without a
//! seek per row. Both orders are functions of seed and epoch.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Mutex;

use densely_core::{Error, Result, Tensors};
use densely_data::dataset::{Order, permutations};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use crate::feature_map::{Encoded, Layout};
use crate::metrics::Scores;

/// Rows that stay together on the way from a file.
const BLOCK: usize = 4096;
/// Rows from a file that are mixed in memory.
const WINDOW: usize = 1 << 20;

/// Encoded rows with their labels.
#[derive(Debug)]
pub struct Examples {
    layout: Layout,
    words: Words,
    labels: Vec<bool>,
    groups: Vec<u32>,
    window: usize,
}

#[derive(Debug)]
enum Words {
    /// i32 `[rows, width]`.
    Memory(Tensor),
    File {
        file: Mutex<File>,
        path: PathBuf,
    },
}

/// Rows at once.
#[derive(Debug)]
pub struct Batch {
    /// One tensor per field by its name.
    pub inputs: Tensors,
    /// f32 `[B]`, 1 for a click.
    pub labels: Tensor,
}

/// Collects encoded rows; goes on in a file when memory is short.
#[derive(Debug)]
pub(crate) struct Writer {
    layout: Layout,
    words: Vec<i32>,
    file: Option<(BufWriter<File>, PathBuf)>,
    spill: PathBuf,
    most_words: usize,
    labels: Vec<bool>,
    groups: Vec<u32>,
}

impl Writer {
    /// Takes up to `bytes` of memory for the rows, those of more in the file `spill`.
    pub(crate) fn new(layout: Layout, spill: PathBuf, bytes: u64) -> Self {
        Self {
            layout,
            words: Vec::new(),
            file: None,
            spill,
            // A word has four bytes, and `finish` copies them all once.
            most_words: usize::try_from(bytes / 8).unwrap_or(usize::MAX),
            labels: Vec::new(),
            groups: Vec::new(),
        }
    }

    /// Adds the rows of `encoded` for which `chosen` holds.
    pub(crate) fn add(
        &mut self,
        encoded: &Encoded,
        clicks: &[bool],
        groups: &[u32],
        chosen: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let width = self.layout.width();
        for row in (0..encoded.rows).filter(|row| chosen(*row)) {
            self.words
                .extend_from_slice(&encoded.words[row * width..(row + 1) * width]);
            self.labels.push(clicks[row]);
            self.groups.extend(groups.get(row));
        }
        if self.file.is_some() || self.words.len() > self.most_words {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.file.is_none() {
            let path = densely_core::fs::sibling(&self.spill, "rows");
            tracing::info!("the rows are many: they are kept in {}", path.display());
            let file = File::create(&path).map_err(Error::io(&path))?;
            self.file = Some((BufWriter::with_capacity(1 << 20, file), path));
        }
        if let Some((file, path)) = &mut self.file {
            // Taken, so that what the rows held before they moved into the file is given back.
            for word in std::mem::take(&mut self.words) {
                file.write_all(&word.to_le_bytes())
                    .map_err(Error::io(&*path))?;
            }
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Examples> {
        let width = self.layout.width() as i64;
        let words = match self.file.take() {
            None => Words::Memory(Tensor::from_slice(&self.words).view([-1, width.max(1)])),
            Some((file, path)) => {
                file.into_inner()
                    .map_err(|e| Error::io(&path)(e.into_error()))?;
                let file = File::open(&path).map_err(Error::io(&path))?;
                Words::File {
                    file: Mutex::new(file),
                    path,
                }
            }
        };
        Ok(Examples {
            layout: self.layout,
            words,
            labels: self.labels,
            groups: self.groups,
            window: WINDOW,
        })
    }
}

impl Drop for Examples {
    fn drop(&mut self) {
        if let Words::File { path, .. } = &self.words {
            // A file that cannot be removed is no reason to fail.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Examples {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Whether each row was clicked.
    pub fn clicks(&self) -> &[bool] {
        &self.labels
    }

    /// The group of each row, where there are groups.
    pub fn groups(&self) -> Option<&[u32]> {
        (!self.groups.is_empty()).then_some(&*self.groups)
    }

    /// What probabilities of all rows score, in order.
    ///
    /// # Errors
    /// Those of [`Scores::new`].
    pub fn scores(&self, probabilities: &[f64]) -> Result<Scores> {
        Scores::new(probabilities, self.clicks(), self.groups())
    }

    /// Whether the rows are in memory.
    pub fn in_memory(&self) -> bool {
        matches!(self.words, Words::Memory(_))
    }

    /// The rows of an epoch in batches, without the first `skip`; the last one is as small as it comes.
    pub fn epoch(
        &self,
        batch_size: usize,
        seed: u64,
        epoch: u64,
        skip: u64,
        device: Device,
    ) -> impl Iterator<Item = Result<Batch>> + '_ {
        let batch_size = batch_size.max(1);
        let order = self.order(seed, epoch, batch_size);
        let mut held: Option<(usize, Tensor, Vec<i64>)> = None;
        (skip as usize..self.len().div_ceil(batch_size)).map(move |step| {
            let start = step * batch_size;
            let window = start / order.window;
            if held.as_ref().is_none_or(|(at, ..)| *at != window) {
                held = None;
                let (words, rows) = order.load(self, window)?;
                held = Some((window, words, rows));
            }
            let Some((_, words, rows)) = &held else {
                unreachable!("loaded above")
            };
            let from = start - window * order.window;
            let chosen = &rows[from..rows.len().min(from + batch_size)];
            match &self.words {
                Words::Memory(all) => {
                    let at = Tensor::from_slice(chosen);
                    self.batch(&all.f_index_select(0, &at)?, chosen, device)
                }
                Words::File { .. } => {
                    // The window's words stand in the order of its rows already.
                    let words = words.f_narrow(0, from as i64, chosen.len() as i64)?;
                    self.batch(&words, chosen, device)
                }
            }
        })
    }

    /// All rows in order, in batches.
    pub fn chunks(
        &self,
        batch_size: usize,
        device: Device,
    ) -> impl Iterator<Item = Result<Batch>> + '_ {
        let batch_size = batch_size.max(1);
        (0..self.len().div_ceil(batch_size)).map(move |step| {
            let start = step * batch_size;
            let end = self.len().min(start + batch_size);
            let words = self.read(start..end)?;
            let rows: Vec<i64> = (start as i64..end as i64).collect();
            self.batch(&words, &rows, device)
        })
    }

    fn batch(&self, words: &Tensor, rows: &[i64], device: Device) -> Result<Batch> {
        let labels: Vec<f32> = rows
            .iter()
            .map(|row| f32::from(u8::from(self.labels[*row as usize])))
            .collect();
        Ok(Batch {
            inputs: self.layout.tensors(words, device)?,
            labels: Tensor::from_slice(&labels).f_to_device(device)?,
        })
    }

    /// Consecutive rows, i32 `[rows, width]`.
    fn read(&self, rows: std::ops::Range<usize>) -> Result<Tensor> {
        match &self.words {
            Words::Memory(words) => Ok(words.f_narrow(0, rows.start as i64, rows.len() as i64)?),
            Words::File { file, path } => {
                let width = self.layout.width();
                let mut bytes = vec![0; rows.len() * width * 4];
                let mut file = file
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                file.seek(SeekFrom::Start((rows.start * width * 4) as u64))
                    .and_then(|_| file.read_exact(&mut bytes))
                    .map_err(Error::io(path))?;
                let word = |b: &[u8]| i32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                let words: Vec<i32> = bytes.chunks_exact(4).map(word).collect();
                Ok(Tensor::from_slice(&words).view([rows.len() as i64, width as i64]))
            }
        }
    }

    fn order(&self, seed: u64, epoch: u64, batch_size: usize) -> EpochOrder {
        match &self.words {
            Words::Memory(_) => EpochOrder {
                rows: Some(permutations(self.len(), Order::Shared, seed, epoch)),
                blocks: Vec::new(),
                window: self.len().max(1),
                seed,
                epoch,
            },
            Words::File { .. } => {
                let blocks = permutations(self.len().div_ceil(BLOCK), Order::Shared, seed, epoch);
                EpochOrder {
                    rows: None,
                    blocks: blocks.into_iter().map(|block| block as usize).collect(),
                    window: self.window.div_ceil(batch_size) * batch_size,
                    seed,
                    epoch,
                }
            }
        }
    }

    /// Moves the rows into a file and mixes few of them at once, so that tests need no large table.
    #[cfg(test)]
    fn into_file(self, path: &std::path::Path, window: usize) -> Result<Self> {
        let mut writer = Writer::new(self.layout.clone(), path.to_owned(), 0);
        let words: Vec<i32> = match &self.words {
            Words::Memory(words) => Vec::try_from(words.flatten(0, -1))?,
            Words::File { .. } => Vec::new(),
        };
        let encoded = Encoded {
            words,
            rows: self.len(),
            ..Encoded::default()
        };
        writer.add(&encoded, &self.labels, &self.groups, |_| true)?;
        let mut examples = writer.finish()?;
        examples.window = window;
        Ok(examples)
    }
}

/// The order of an epoch.
struct EpochOrder {
    /// Of all rows, in memory.
    rows: Option<Vec<i64>>,
    /// Of the blocks of a file.
    blocks: Vec<usize>,
    /// Rows that are mixed among each other.
    window: usize,
    seed: u64,
    epoch: u64,
}

impl EpochOrder {
    /// The rows of a window in their order, and their words where they come from a file.
    fn load(&self, examples: &Examples, window: usize) -> Result<(Tensor, Vec<i64>)> {
        if let Some(rows) = &self.rows {
            return Ok((Tensor::new(), rows.clone()));
        }
        let total = examples.len();
        let (start, end) = (window * self.window, total.min((window + 1) * self.window));
        let (mut at, mut parts, mut rows) = (0, Vec::new(), Vec::new());
        for block in &self.blocks {
            let length = BLOCK.min(total - block * BLOCK);
            let from = start.max(at).min(at + length);
            let to = end.min(at + length).max(from);
            if from < to {
                let first = block * BLOCK + (from - at);
                parts.push(examples.read(first..first + (to - from))?);
                rows.extend((first..first + (to - from)).map(|row| row as i64));
            }
            at += length;
        }
        let mut mixed: Vec<i64> = (0..rows.len() as i64).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ 0x9e37_79b9_7f4a_7c15);
        rng.set_stream(self.epoch.wrapping_mul(1 << 20).wrapping_add(window as u64));
        mixed.shuffle(&mut rng);
        let words = Tensor::f_cat(&parts, 0)?.f_index_select(0, &Tensor::from_slice(&mixed))?;
        let rows = mixed.iter().map(|place| rows[*place as usize]).collect();
        Ok((words, rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::Field;

    /// Row i holds the id i, the number i / 2 and is clicked when i is odd.
    fn examples(rows: usize) -> Result<Examples> {
        let fields = [
            Field::Categorical {
                name: "id".to_owned(),
                vocab_size: 1 << 20,
                share_embedding: None,
            },
            Field::Numeric {
                name: "half".to_owned(),
            },
        ];
        let mut writer = Writer::new(Layout::new(&fields), PathBuf::new(), u64::MAX);
        let words = (0..rows).flat_map(|i| [i as i32, (i as f32 / 2.0).to_bits() as i32]);
        let encoded = Encoded {
            words: words.collect(),
            rows,
            ..Encoded::default()
        };
        let clicks: Vec<bool> = (0..rows).map(|i| i % 2 == 1).collect();
        writer.add(&encoded, &clicks, &[], |_| true)?;
        writer.finish()
    }

    fn ids(batches: impl Iterator<Item = Result<Batch>>) -> Result<Vec<i64>> {
        let mut all = Vec::new();
        for batch in batches {
            let batch = batch?;
            let ids: Vec<i64> = Vec::try_from(&batch.inputs["id"])?;
            let halves: Vec<f32> = Vec::try_from(&batch.inputs["half"])?;
            let labels: Vec<f32> = Vec::try_from(&batch.labels)?;
            for ((id, half), label) in ids.iter().zip(halves).zip(labels) {
                assert_eq!((half, label), (*id as f32 / 2.0, (id % 2) as f32));
            }
            all.extend(ids);
        }
        Ok(all)
    }

    #[test]
    fn an_epoch_has_every_row_once_in_memory_and_from_a_file() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
        let rows = 3 * BLOCK + 777;
        let memory = examples(rows)?;
        let file = examples(rows)?.into_file(&folder.path().join("x"), 5000)?;
        assert!(memory.in_memory() && !file.in_memory());
        for examples in [&memory, &file] {
            assert_eq!(
                ids(examples.chunks(100, Device::Cpu))?,
                (0..rows as i64).collect::<Vec<_>>()
            );
            let epoch = |epoch, skip| ids(examples.epoch(96, 7, epoch, skip, Device::Cpu));
            let first = epoch(0, 0)?;
            let mut sorted = first.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..rows as i64).collect::<Vec<_>>());
            assert_ne!(first, sorted);
            assert_ne!(first, epoch(1, 0)?);
            // Going on in the middle gives the same batches.
            assert_eq!(epoch(0, 60)?, first[60 * 96..]);
        }
        drop(file);
        let left = std::fs::read_dir(folder.path())
            .map_err(Error::io("x"))?
            .count();
        assert_eq!(left, 0, "the file is gone");
        Ok(())
    }
}
