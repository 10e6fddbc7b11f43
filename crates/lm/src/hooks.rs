//! Hook points: named places of a pass whose values may be recorded and changed.
//!
//! Names and shapes are those of TransformerLens. A [`Run`] says what one pass records and changes; a pass without a `Run` costs nothing
//! for having the points, and none that is not asked for is computed. Recording alone never changes a bit of the result: values that the
//! fast path does not hold, such as attention patterns, are computed beside it.

mod catalog;

use std::collections::BTreeMap;

use densely_core::registry::nearest;
use densely_core::{Error, Result, Tensors, check};
use tch::Tensor;

pub(crate) use catalog::{Catalog, Global, Point};

use crate::kv::KvCache;

/// A function at a hook point: sees the value there and may give another in its place, of the same shape and kind.
pub type HookFn<'a> = Box<dyn FnMut(&Tensor) -> Result<Option<Tensor>> + 'a>;

/// What happens to a value.
pub(crate) enum Action<'a> {
    Hook(HookFn<'a>),
    Freeze(Tensor),
    Add(Tensor),
}

/// What a pass records and changes; made by chaining.
///
/// Changes of one point run in the order in which they were asked for, and what is recorded is the value after them.
/// # Examples
/// ```
/// # use densely_lm::{Lm, LmConfig, Run};
/// # use densely_core::tch::{Device, Tensor, nn::VarStore};
/// # fn main() -> densely_core::Result<()> {
/// # let config = serde_json::json!({ "model_type": "gpt2", "vocab_size": 50, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2 });
/// # let vs = VarStore::new(Device::Cpu);
/// # let model = densely_core::seeded(0, || Lm::new(LmConfig::from_hugging(&config)?, &vs.root()))?;
/// # let ids = Tensor::from_slice(&[1i64, 2, 3]).unsqueeze(0);
/// let mut run = Run::new()
///     .cache(&["blocks.*.hook_mlp_out"])
///     .hook("blocks.0.attn.hook_z", |z| Ok(Some(z.zeros_like())));
/// let logits = model.run(&ids, &mut run)?;
/// let cache = run.take_cache();
/// assert_eq!(cache.get("blocks.1.hook_mlp_out")?.size(), [1, 3, 8]);
/// # assert_eq!(logits.size(), [1, 3, 50]);
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct Run<'a> {
    pub(crate) mask: Option<Tensor>,
    pub(crate) patterns: Vec<String>,
    pub(crate) actions: Vec<(String, Action<'a>)>,
    pub(crate) stop_at: Option<usize>,
    pub(crate) last_only: bool,
    pub(crate) kv: Option<&'a mut KvCache>,
    pub(crate) gradients: bool,
    pub(crate) cache: Cache,
}

impl std::fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let changed: Vec<&String> = self.actions.iter().map(|(name, _)| name).collect();
        f.debug_struct("Run")
            .field("recorded", &self.patterns)
            .field("changed", &changed)
            .field("stop_at", &self.stop_at)
            .field("last_only", &self.last_only)
            .field("gradients", &self.gradients)
            .finish_non_exhaustive()
    }
}

impl<'a> Run<'a> {
    /// A pass that records and changes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Which tokens are real: `[batch, time]`, integers or booleans, 1 at real tokens and 0 at padding on either side.
    ///
    /// Positions count real tokens. A padded position attends to itself alone, and no other sees it; its outputs mean nothing. With a
    /// key-value cache that holds P positions the mask has `time` columns, of the new tokens, or P + `time`; the cache remembers what it was
    /// told of earlier ones.
    #[must_use]
    pub fn mask(mut self, mask: &Tensor) -> Self {
        self.mask = Some(mask.shallow_clone());
        self
    }

    /// Records the points of these names; `*` stands for any text, as in `blocks.*.hook_mlp_out`.
    ///
    /// Points that are dear (`hook_result`, `hook_q_input`, `hook_k_input`, `hook_v_input`, `hook_mlp_in`) are recorded where the name ends
    /// with their own. A name that fits no point is an error of the pass.
    #[must_use]
    pub fn cache(mut self, names: &[impl AsRef<str>]) -> Self {
        let names = names.iter().map(|name| name.as_ref().to_owned());
        self.patterns.extend(names);
        self
    }

    /// Calls `f` with the value at the point of this name.
    #[must_use]
    pub fn hook(
        mut self,
        name: impl Into<String>,
        f: impl FnMut(&Tensor) -> Result<Option<Tensor>> + 'a,
    ) -> Self {
        self.actions.push((name.into(), Action::Hook(Box::new(f))));
        self
    }

    /// Puts `value` in the place of what the pass computes there; it has the point's shape, or broadcasts to it.
    #[must_use]
    pub fn freeze(mut self, name: impl Into<String>, value: Tensor) -> Self {
        self.actions.push((name.into(), Action::Freeze(value)));
        self
    }

    /// Adds `value` to what the pass computes there; it has the point's shape, or broadcasts to it.
    #[must_use]
    pub fn add(mut self, name: impl Into<String>, value: Tensor) -> Self {
        self.actions.push((name.into(), Action::Add(value)));
        self
    }

    /// Ends the pass before `layer` and gives the residual that enters it, `[batch, time, d]`; the number of layers gives the residual that
    /// enters the last norm.
    #[must_use]
    pub fn stop_at(mut self, layer: usize) -> Self {
        self.stop_at = Some(layer);
        self
    }

    /// Computes last norm and head of the last position alone: logits are `[batch, 1, vocab]`.
    #[must_use]
    pub fn last_only(mut self) -> Self {
        self.last_only = true;
        self
    }

    /// Takes up after what `kv` holds, and leaves the keys and values of the new tokens there. A pass that fails leaves it as it was.
    #[must_use]
    pub fn kv(mut self, kv: &'a mut KvCache) -> Self {
        self.kv = Some(kv);
        self
    }

    /// Keeps the graph for gradients with respect to recorded values; else the pass runs without one.
    ///
    /// Every recorded value is then a part of the graph of the result. Where the parameters themselves take no gradients, the graph starts
    /// at the embedding.
    #[must_use]
    pub fn with_gradients(mut self) -> Self {
        self.gradients = true;
        self
    }

    /// What passes have recorded; leaves nothing behind.
    pub fn take_cache(&mut self) -> Cache {
        std::mem::take(&mut self.cache)
    }
}

/// Recorded values by the names of their points.
#[derive(Debug, Default)]
pub struct Cache {
    tensors: Tensors,
}

impl Cache {
    /// The value of this point.
    ///
    /// # Errors
    /// [`Error::Config`] when it was not recorded, with the nearest names that were.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| {
            let near = nearest(self.tensors.keys().map(String::as_str), name);
            let reason = if near.is_empty() {
                "was not recorded; nothing was".to_owned()
            } else {
                format!("was not recorded; nearest: `{}`", near.join("`, `"))
            };
            Error::config(name, reason)
        })
    }

    /// Names of what was recorded, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of the values, each counted whole.
    pub fn bytes(&self) -> u64 {
        let bytes = |xs: &Tensor| (xs.numel() * xs.kind().elt_size_in_bytes()) as u64;
        self.tensors.values().map(bytes).sum()
    }

    /// The values as tensors by name.
    pub fn into_tensors(self) -> Tensors {
        self.tensors
    }
}

impl From<Tensors> for Cache {
    fn from(tensors: Tensors) -> Self {
        Self { tensors }
    }
}

const RECORD: u8 = 1;
const CHANGE: u8 = 2;

/// What one pass does at each place, by the place's number.
pub(crate) struct Tape<'t, 'a> {
    /// Empty where the pass is plain.
    flags: Vec<u8>,
    by_place: BTreeMap<usize, Vec<usize>>,
    actions: &'t mut [(String, Action<'a>)],
    cache: &'t mut Cache,
    catalog: &'t Catalog,
    /// Whether gradients with respect to recorded values are wanted.
    pub gradients: bool,
}

impl<'t, 'a> Tape<'t, 'a> {
    /// Finds the places of all names.
    ///
    /// # Errors
    /// [`Error::Config`] for a name that no point of the model has.
    pub(crate) fn new(
        catalog: &'t Catalog,
        patterns: &[String],
        actions: &'t mut [(String, Action<'a>)],
        cache: &'t mut Cache,
        gradients: bool,
    ) -> Result<Self> {
        let mut flags = Vec::new();
        let mut by_place = BTreeMap::<usize, Vec<usize>>::new();
        if !patterns.is_empty() || !actions.is_empty() {
            flags.resize(catalog.len(), 0);
        }
        for pattern in patterns {
            for place in catalog.matching(pattern)? {
                flags[place] |= RECORD;
            }
        }
        for (index, (name, _)) in actions.iter().enumerate() {
            let place = catalog.place(name)?;
            flags[place] |= CHANGE;
            by_place.entry(place).or_default().push(index);
        }
        Ok(Self {
            flags,
            by_place,
            actions,
            cache,
            catalog,
            gradients,
        })
    }

    /// Whether anything happens there.
    pub(crate) fn wants(&self, place: usize) -> bool {
        self.flags.get(place).is_some_and(|flags| *flags != 0)
    }

    /// Runs the changes of a place on its value and records what they leave; gives the new value where there is one.
    pub(crate) fn change(&mut self, place: usize, xs: &Tensor) -> Result<Option<Tensor>> {
        let flags = self.flags.get(place).copied().unwrap_or(0);
        if flags == 0 {
            return Ok(None);
        }
        let name = self.catalog.name(place);
        let mut new = None;
        for index in self.by_place.get(&place).into_iter().flatten() {
            let now = new.as_ref().unwrap_or(xs);
            let given = match &mut self.actions[*index].1 {
                Action::Hook(f) => f(now)?,
                Action::Freeze(value) => Some(broadcast(name, value, now)?),
                Action::Add(value) => Some(now.f_add(&broadcast(name, value, now)?)?),
            };
            if let Some(given) = given {
                check::same_shape(name, &given, now)?;
                check::kind(name, &given, now.kind())?;
                new = Some(given);
            }
        }
        if flags & RECORD != 0 {
            let now = new.as_ref().unwrap_or(xs);
            // A view would keep the whole tensor alive that it is cut from; with gradients it must stay the graph's own.
            let kept = if self.gradients {
                now.shallow_clone()
            } else {
                now.f_contiguous()?
            };
            self.cache.tensors.insert(name.to_owned(), kept);
        }
        Ok(new)
    }

    /// [`change`](Self::change), giving the value to go on with.
    pub(crate) fn pass(&mut self, place: usize, xs: Tensor) -> Result<Tensor> {
        Ok(self.change(place, &xs)?.unwrap_or(xs))
    }
}

/// `value` in the shape of `like`.
fn broadcast(name: &str, value: &Tensor, like: &Tensor) -> Result<Tensor> {
    check::kind(name, value, like.kind())?;
    let (from, to) = (value.size(), like.size());
    let fits = from.len() <= to.len()
        && from
            .iter()
            .rev()
            .zip(to.iter().rev())
            .all(|(from, to)| from == to || *from == 1);
    if !fits {
        return Err(Error::Shape {
            what: name.to_owned(),
            expected: format!("{to:?} or what broadcasts to it"),
            got: format!("{from:?}"),
        });
    }
    Ok(value.f_expand(to, true)?)
}
