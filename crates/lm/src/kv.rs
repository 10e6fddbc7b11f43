//! Keys and values of the tokens so far, so that a longer text costs only its new tokens.

use densely_core::{Error, Result, check};
use tch::Tensor;

/// Keys and values of one layer.
#[derive(Debug)]
struct Layer {
    /// `[batch, heads, time, width]`, after rotary positions.
    keys: Tensor,
    values: Tensor,
    /// Memory whose first columns are the two above, with room for more.
    room: Option<[Tensor; 2]>,
}

impl Layer {
    fn len(&self) -> i64 {
        self.keys.size()[2]
    }
}

/// Keys and values by layer. One cache goes with one model and one batch of texts.
#[derive(Debug, Default)]
pub struct KvCache {
    layers: Vec<Option<Layer>>,
    /// `[batch, len]` booleans where some token is padding.
    mask: Option<Tensor>,
}

/// Room comes in multiples of so many columns.
const STEP: i64 = 16;

impl KvCache {
    /// An empty cache of a model of `n_layers` layers.
    pub fn new(n_layers: usize) -> Self {
        Self {
            layers: (0..n_layers).map(|_| None).collect(),
            mask: None,
        }
    }

    /// Tokens that the first set layer holds.
    pub fn len(&self) -> i64 {
        self.layers.iter().flatten().next().map_or(0, Layer::len)
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the keys and values take, without room for more.
    pub fn bytes(&self) -> u64 {
        let bytes = |xs: &Tensor| (xs.numel() * xs.kind().elt_size_in_bytes()) as u64;
        let layers = self.layers.iter().flatten();
        layers
            .map(|layer| bytes(&layer.keys) + bytes(&layer.values))
            .sum()
    }

    /// Forgets all tokens from position `len` on.
    ///
    /// # Errors
    /// [`Error::Config`] when fewer are held.
    pub fn truncate(&mut self, len: i64) -> Result<()> {
        if !(0..=self.len()).contains(&len) {
            let reason = format!(
                "must lie in 0 to {}, the tokens held, got {len}",
                self.len()
            );
            return Err(Error::config("len", reason));
        }
        for layer in &mut self.layers {
            cut(layer, len)?;
        }
        self.mask = match &self.mask {
            Some(mask) if len > 0 => Some(mask.f_narrow(1, 0, len.min(mask.size()[1]))?),
            _ => None,
        };
        Ok(())
    }

    /// Cuts off what a pass without gradients has appended to layers `from` to before `to`, which held `past` tokens.
    pub(crate) fn undo(&mut self, [from, to]: [usize; 2], past: i64) -> Result<()> {
        for layer in self.layers.iter_mut().take(to).skip(from) {
            cut(layer, past)?;
        }
        Ok(())
    }

    /// The cache as it is, of the same tensors: what to go back to from a pass with gradients, which puts others in their place.
    pub(crate) fn snapshot(&self) -> Self {
        let layers = self.layers.iter();
        Self {
            layers: layers.map(|held| held.as_ref().map(Layer::share)).collect(),
            mask: self.mask.as_ref().map(Tensor::shallow_clone),
        }
    }

    /// Keys and values of a layer, `[batch, kv heads, time, width]` each, the keys after rotary positions; `None` where nothing is held.
    pub fn layer(&self, layer: usize) -> Option<(&Tensor, &Tensor)> {
        let held = self.layers.get(layer)?.as_ref()?;
        Some((&held.keys, &held.values))
    }

    /// Puts keys and values in the place of what a layer holds; see [`layer`](Self::layer) for their shapes. Their tokens count as real.
    pub fn set_layer(&mut self, layer: usize, keys: Tensor, values: Tensor) {
        if self.layers.len() <= layer {
            self.layers.resize_with(layer + 1, || None);
        }
        self.layers[layer] = Some(Layer {
            keys,
            values,
            room: None,
        });
    }

    /// The cache of `n` copies of its one text, sharing its memory.
    ///
    /// # Errors
    /// [`Error::Shape`] when it holds several texts.
    pub fn expand(&self, n: i64) -> Result<Self> {
        let wide = |xs: &Tensor| -> Result<Tensor> {
            let mut size = xs.size();
            check::shape("the cache's texts", xs, &expected(&size))?;
            size[0] = n;
            Ok(xs.f_expand(size, false)?)
        };
        let layers = self.layers.iter().map(|layer| {
            let Some(layer) = layer else { return Ok(None) };
            Ok(Some(Layer {
                keys: wide(&layer.keys)?,
                values: wide(&layer.values)?,
                room: None,
            }))
        });
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            mask: self.mask.as_ref().map(wide).transpose()?,
        })
    }

    /// Tokens that layers `from` to `to` hold.
    ///
    /// # Errors
    /// [`Error::Config`] when they hold different numbers.
    pub(crate) fn past(&self, from: usize, to: usize) -> Result<i64> {
        let held = |layer: usize| match self.layers.get(layer) {
            Some(Some(layer)) => layer.len(),
            _ => 0,
        };
        let past = held(from);
        match (from..to).find(|layer| held(*layer) != past) {
            None => Ok(past),
            Some(layer) => {
                let reason = format!(
                    "layer {from} holds {past} tokens and layer {layer} {}: no pass can take up after both",
                    held(layer)
                );
                Err(Error::config("kv", reason))
            }
        }
    }

    /// What earlier passes were told of padding: `[batch, past]` booleans.
    pub(crate) fn mask(&self) -> Option<&Tensor> {
        self.mask.as_ref()
    }

    pub(crate) fn set_mask(&mut self, mask: Option<Tensor>) {
        self.mask = mask;
    }

    /// Appends new keys and values `[batch, heads, time, width]` to a layer and gives all.
    ///
    /// # Errors
    /// [`Error::Shape`] when they are not of the batch, heads and width of those held.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        keys: Tensor,
        values: Tensor,
        gradients: bool,
    ) -> Result<(Tensor, Tensor)> {
        if self.layers.len() <= layer {
            self.layers.resize_with(layer + 1, || None);
        }
        let slot = &mut self.layers[layer];
        let Some(held) = slot else {
            // The values are often a view of a wider product; holding that would hold it whole.
            let (kept_keys, kept_values) = if gradients {
                (keys.shallow_clone(), values.shallow_clone())
            } else {
                (keys.f_contiguous()?, values.f_contiguous()?)
            };
            *slot = Some(Layer {
                keys: kept_keys,
                values: kept_values,
                room: None,
            });
            return Ok((keys, values));
        };
        let size = keys.size();
        let expected = [Some(size[0]), Some(size[1]), None, Some(size[3])];
        check::shape("the cache's keys", &held.keys, &expected)?;
        check::shape("the cache's values", &held.values, &expected)?;
        check::kind("the cache's keys", &held.keys, keys.kind())?;
        if gradients {
            held.keys = Tensor::f_cat(&[&held.keys, &keys], 2)?;
            held.values = Tensor::f_cat(&[&held.values, &values], 2)?;
            held.room = None;
        } else {
            held.grow(size[2])?;
            held.write(&keys, &values)?;
        }
        Ok((held.keys.shallow_clone(), held.values.shallow_clone()))
    }
}

/// The size with one text.
fn expected(size: &[i64]) -> Vec<Option<i64>> {
    let mut expected: Vec<Option<i64>> = size.iter().copied().map(Some).collect();
    if let Some(first) = expected.first_mut() {
        *first = Some(1);
    }
    expected
}

/// Forgets a layer's tokens from position `len` on.
fn cut(slot: &mut Option<Layer>, len: i64) -> Result<()> {
    if len == 0 {
        *slot = None;
    }
    if let Some(layer) = slot
        && layer.len() > len
    {
        layer.keys = layer.keys.f_narrow(2, 0, len)?;
        layer.values = layer.values.f_narrow(2, 0, len)?;
        // Others may look at what lies behind, so it is not written over.
        layer.room = None;
    }
    Ok(())
}

/// Columns that a layer of `len` gets when `more` come. Half as many again as there are, so that a text that comes token by token is not
/// copied at each; and few beyond the need, since traces append some tokens once to short prompts in hundreds of rows.
fn columns(len: i64, more: i64) -> i64 {
    let wanted = (len + more).max(len + len / 2);
    (wanted + STEP - 1) / STEP * STEP
}

impl Layer {
    /// The same tensors.
    fn share(&self) -> Self {
        let room = self.room.as_ref();
        Self {
            keys: self.keys.shallow_clone(),
            values: self.values.shallow_clone(),
            room: room.map(|room| room.each_ref().map(Tensor::shallow_clone)),
        }
    }

    /// Makes room for `more` columns.
    fn grow(&mut self, more: i64) -> Result<()> {
        let len = self.len();
        let there = self.room.as_ref().map_or(0, |room| room[0].size()[2]);
        if there >= len + more {
            return Ok(());
        }
        let wide = |xs: &Tensor| -> Result<Tensor> {
            let mut size = xs.size();
            size[2] = columns(len, more);
            let room = Tensor::f_empty(size, (xs.kind(), xs.device()))?;
            room.f_narrow(2, 0, len)?.f_copy_(xs)?;
            Ok(room)
        };
        self.room = Some([wide(&self.keys)?, wide(&self.values)?]);
        Ok(())
    }

    /// Writes new columns into the room.
    fn write(&mut self, keys: &Tensor, values: &Tensor) -> Result<()> {
        let (len, more) = (self.len(), keys.size()[2]);
        let Some([all_keys, all_values]) = &self.room else {
            return Err(Error::config("kv", "a layer has no room for new tokens"));
        };
        all_keys.f_narrow(2, len, more)?.f_copy_(keys)?;
        all_values.f_narrow(2, len, more)?.f_copy_(values)?;
        self.keys = all_keys.f_narrow(2, 0, len + more)?;
        self.values = all_values.f_narrow(2, 0, len + more)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_come_one_by_one_keep_their_places() -> Result<()> {
        let column = |value: i64| Tensor::full([1i64, 1, 1, 1], value, tch::kind::FLOAT_CPU);
        let mut kv = KvCache::new(1);
        for step in 0..100 {
            let (keys, values) = kv.append(0, column(step), column(-step), false)?;
            let expected = Tensor::arange(step + 1, tch::kind::FLOAT_CPU);
            assert_eq!(keys.flatten(0, -1), expected);
            assert_eq!(values.flatten(0, -1), -expected);
        }
        assert_eq!((kv.len(), kv.bytes()), (100, 800));
        Ok(())
    }

    #[test]
    fn room_is_near_the_need() {
        for (len, more, expected) in [
            (3, 4, 16),
            (5, 1, 16),
            (16, 1, 32),
            (40, 1, 64),
            (100, 1, 160),
            (100, 300, 400),
        ] {
            assert_eq!(columns(len, more), expected, "{len} {more}");
        }
    }
}
