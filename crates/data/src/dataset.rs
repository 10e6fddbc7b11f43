//! Rows as tensors, and batches of them. The order of rows is a function of seed and epoch alone.

use std::collections::VecDeque;

use densely_core::Result;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

/// Preprocessed rows.
#[derive(Debug)]
pub struct Dataset {
    /// Numerical features `[rows, n]`, f32.
    pub x_num: Option<Tensor>,
    /// Codes `[rows, m]`, i32 to save memory; batches hold i64.
    pub x_cat: Option<Tensor>,
    /// Targets `[rows]`: standardised f32, or class numbers i64.
    pub y: Option<Tensor>,
    /// Weights `[rows]`, f32.
    pub weight: Option<Tensor>,
}

/// Batches whose rows are gathered at a time: a small model's step is about as short as the gathering of one.
const AHEAD: usize = 16;

/// How the rows of a step relate to the members of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// All members see the same rows: one permutation per epoch.
    Shared,
    /// Each of `k` members has a permutation of its own; row `b·k + i` of a batch belongs to member i.
    PerMember {
        /// Members.
        k: usize,
    },
}

/// Some rows, ready for a model.
#[derive(Debug)]
pub struct Batch {
    /// Numerical features `[batch, n]`, f32.
    pub x_num: Option<Tensor>,
    /// Codes `[batch, m]`, i64.
    pub x_cat: Option<Tensor>,
    /// Targets `[batch]`.
    pub y: Option<Tensor>,
    /// Weights `[batch]`.
    pub weight: Option<Tensor>,
}

impl Batch {
    /// Its tensors in the order of the fields, for what treats them alike.
    pub fn tensors(&self) -> [Option<Tensor>; 4] {
        let Self {
            x_num,
            x_cat,
            y,
            weight,
        } = self;
        [x_num, x_cat, y, weight].map(|xs| xs.as_ref().map(Tensor::shallow_clone))
    }

    /// The batch of [`tensors`](Self::tensors).
    pub fn of(tensors: &[Option<Tensor>]) -> Self {
        let at = |place: usize| tensors.get(place)?.as_ref().map(Tensor::shallow_clone);
        Self {
            x_num: at(0),
            x_cat: at(1),
            y: at(2),
            weight: at(3),
        }
    }
}

impl Dataset {
    /// Number of rows.
    pub fn len(&self) -> usize {
        let first = self
            .x_num
            .as_ref()
            .or(self.x_cat.as_ref())
            .or(self.y.as_ref());
        first.map_or(0, |xs| xs.size()[0] as usize)
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the rows are.
    pub fn device(&self) -> Device {
        self.x_num
            .as_ref()
            .or(self.x_cat.as_ref())
            .map_or(Device::Cpu, Tensor::device)
    }

    /// The same rows on another device. To a GPU they go through memory that it reads by itself, so that nobody waits.
    #[must_use]
    pub fn to_device(&self, device: Device) -> Self {
        let move_to = |xs: &Option<Tensor>| {
            xs.as_ref().map(|xs| match (xs.device(), device) {
                (Device::Cpu, Device::Cuda(_)) => {
                    let pinned = xs.pin_memory(device);
                    pinned.to_device_(device, xs.kind(), true, false)
                }
                _ => xs.to_device(device),
            })
        };
        Self {
            x_num: move_to(&self.x_num),
            x_cat: move_to(&self.x_cat),
            y: move_to(&self.y),
            weight: move_to(&self.weight),
        }
    }

    fn batch(&self, pick: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Batch> {
        let some = |xs: &Option<Tensor>| xs.as_ref().map(&pick).transpose();
        let codes = some(&self.x_cat)?;
        Ok(Batch {
            x_num: some(&self.x_num)?,
            x_cat: codes.map(|codes| codes.to_kind(Kind::Int64)),
            y: some(&self.y)?,
            weight: some(&self.weight)?,
        })
    }

    /// The rows of an epoch in batches of `batch_size` (times k where each member has its own), the last one
    /// as small as it comes, without the first `skip` batches.
    pub fn epoch(
        &self,
        batch_size: usize,
        order: Order,
        seed: u64,
        epoch: u64,
        skip: u64,
    ) -> impl Iterator<Item = Result<Batch>> + '_ {
        let rows = self.len();
        let indices = Tensor::from_slice(&permutations(rows, order, seed, epoch));
        let indices = indices.to_device(self.device());
        let k = match order {
            Order::Shared => 1,
            Order::PerMember { k } => k,
        };
        let mut ahead = VecDeque::new();
        (skip as usize..rows.div_ceil(batch_size)).map(move |step| {
            if ahead.is_empty() {
                // The same batches are gathered together wherever an epoch is taken up again: where rows lie in memory can
                // matter to the last bit.
                let first = step / AHEAD * AHEAD;
                let start = first * batch_size;
                let length = (AHEAD * batch_size).min(rows - start);
                let chosen = indices.narrow(0, (start * k) as i64, (length * k) as i64);
                ahead.extend(self.gather(&chosen, (batch_size * k) as i64)?);
                ahead.drain(..step - first);
            }
            match ahead.pop_front() {
                Some(batch) => Ok(batch),
                None => unreachable!("gathered above"),
            }
        })
    }

    /// The chosen rows in batches of `size`.
    fn gather(&self, chosen: &Tensor, size: i64) -> Result<Vec<Batch>> {
        let rows = self.batch(|xs| Ok(xs.f_index_select(0, chosen)?))?;
        let mut parts = Vec::new();
        for xs in rows.tensors() {
            let split = xs.map(|xs| xs.f_split(size, 0)).transpose()?;
            parts.push(split.map(Vec::into_iter));
        }
        let count = (chosen.size()[0] as usize).div_ceil(size as usize);
        let next = |_| {
            let tensors: Vec<Option<Tensor>> = parts
                .iter_mut()
                .map(|xs| xs.as_mut().and_then(Iterator::next))
                .collect();
            Batch::of(&tensors)
        };
        Ok((0..count).map(next).collect())
    }

    /// All rows in order, in batches of at most `batch_size`.
    pub fn chunks(&self, batch_size: usize) -> impl Iterator<Item = Result<Batch>> + '_ {
        let rows = self.len();
        (0..rows.div_ceil(batch_size)).map(move |step| {
            let start = step * batch_size;
            let length = batch_size.min(rows - start);
            self.batch(|xs| Ok(xs.f_narrow(0, start as i64, length as i64)?))
        })
    }
}

/// Row numbers in the order of the epoch: one permutation, or k of them interleaved.
pub fn permutations(rows: usize, order: Order, seed: u64, epoch: u64) -> Vec<i64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch);
    let mut one = || {
        let mut order: Vec<i64> = (0..rows as i64).collect();
        order.shuffle(&mut rng);
        order
    };
    match order {
        Order::Shared => one(),
        Order::PerMember { k } => {
            let members: Vec<Vec<i64>> = (0..k).map(|_| one()).collect();
            (0..rows)
                .flat_map(|row| members.iter().map(move |member| member[row]))
                .collect()
        }
    }
}
