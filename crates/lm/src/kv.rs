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

/// Columns of room that a layer gets at least when it grows.
const ROOM: i64 = 64;

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
            if len == 0 {
                *layer = None;
            }
            if let Some(layer) = layer
                && layer.len() > len
            {
                layer.keys = layer.keys.f_narrow(2, 0, len)?;
                layer.values = layer.values.f_narrow(2, 0, len)?;
                // Others may look at what lies behind, so it is not written over.
                layer.room = None;
            }
        }
        self.mask = match &self.mask {
            Some(mask) if len > 0 => Some(mask.f_narrow(1, 0, len)?),
            _ => None,
        };
        Ok(())
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

impl Layer {
    /// Makes room for `more` columns, in steps that double so that a long text is not copied at each token.
    fn grow(&mut self, more: i64) -> Result<()> {
        let len = self.len();
        let columns = self.room.as_ref().map_or(0, |room| room[0].size()[2]);
        if columns >= len + more {
            return Ok(());
        }
        let wide = |xs: &Tensor| -> Result<Tensor> {
            let mut size = xs.size();
            size[2] = (len + more).max(2 * len).max(len + ROOM);
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
