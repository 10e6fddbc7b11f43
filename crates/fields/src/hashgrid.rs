//! Hash grids: features of points from grids of many resolutions, whose corners share the entries of small tables; and networks upon them.
//!
//! Paper: Müller, Evans, Schied, Keller 2022, arXiv 2201.05989. Follows the grid encoding of tiny-cuda-nn, corner by corner:
//!
//! ```text
//! level l:  scale = base · b^l - 1  (f32);  resolution = ⌈scale⌉ + 1;  entries = min(resolution^D rounded up to 8, 2^T)
//!           p = x · scale + ½;  cell = ⌊p⌋;  t = p - cell, or 3t² - 2t³ with smoothstep
//!           share of a corner = Π_d (t_d on its farther side, else 1 - t_d)
//!           entry of a corner = Σ_d corner_d · resolution^d       where resolution^D fits in the table
//!                               ⊕_d corner_d · prime_d            elsewhere;  both in 32 bits without sign, modulo entries
//! features = concat over levels of Σ_corners share · table[entry]
//! ```
//!
//! Coordinates lie in [0, 1]. Outside of it, and at 1 itself, the corners' numbers run on (below 0 modulo 2^32) and meet entries of other
//! places, as in the reference; a coordinate that is no number gives features that are none.
//!
//! The parameter `params` has the reference's layout: one flat vector, level by level, entry by entry, the features of an entry side by side. It starts
//! at U(±1e-4). A plain chain of tensor operations is the oracle; f32 on the CPU with 2 to 4 coordinates runs as one operation.
//!
//! Differs from the reference: sums are in the parameters' kind and not in half precision, networks are not padded to
//! multiples of 16, and b^l, which GPUs round in their own ways, is the correctly rounded one. Other codes have grids of other rules: HashNeRF-pytorch
//! does not shift by ½, and hashes every level; torch-ngp counts one corner more along each axis.
//!
//! | preset | sizes | parameters | MACs per point |
//! | --- | --- | ---: | ---: |
//! | `hashgrid` | D 3, L 16, F 2, T 2^19, base 16, b 1.38191, 2 hidden layers of 64, K 3 | 12,202,576 | 6,336 |
//! | `ngp` | the same grid, 32 → 64 → 16 for the density, 16 + 16 → 64 → 64 → 3 for the colour | 12,205,648 | 9,408 |

mod mlp;
mod ngp;

use densely_core::{Error, Model, Result, Tensors, check, nn};
use densely_torch_ext::{fused, grids};
use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Kind, Tensor};

use crate::cam;
use crate::sizes::check_weights;
use mlp::{Mlp, MlpSizes};

pub use densely_torch_ext::grids::Level;
pub use ngp::{Ngp, NgpConfig, NgpHead, NgpHeadConfig};

/// Factors of the coordinates of a hashed corner; the first keeps neighbours along x side by side.
const PRIMES: [u32; 7] = [
    1,
    2_654_435_761,
    805_459_861,
    3_674_653_429,
    2_097_192_037,
    1_434_869_437,
    2_165_219_737,
];

/// How the resolution grows from level to level.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Growth {
    /// By this factor b, at least 1.
    Scale(f64),
    /// So that the last level has this many corners along an axis, or one more where the f32 of its scale rounds up:
    /// b = (finest / base)^(1 / (levels - 1)).
    Finest(i64),
}

/// Sizes of a hash grid. Defaults are those of the preset `hashgrid`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HashGridConfig {
    /// Coordinates of a point, D; 2 to 7.
    pub inputs: i64,
    /// Levels, L.
    pub levels: i64,
    /// Features of an entry, F; 1, 2, 4 or 8.
    pub features: i64,
    /// Logarithm to base 2 of the most entries of a level, T; at most 28.
    pub log2_table: i64,
    /// Corners along an axis at the first level.
    pub base: i64,
    /// How they grow.
    pub growth: Growth,
    /// Whether features have a continuous gradient, as shares of the form 3t² - 2t³ give it.
    pub smoothstep: bool,
}

impl Default for HashGridConfig {
    fn default() -> Self {
        Self {
            inputs: 3,
            levels: 16,
            features: 2,
            log2_table: 19,
            base: 16,
            growth: Growth::Scale(1.38191),
            smoothstep: false,
        }
    }
}

impl HashGridConfig {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let within = |field: &str, value: i64, least: i64, most: i64| {
            let reason = || format!("must lie in {least} to {most}, got {value}");
            (least..=most)
                .contains(&value)
                .then_some(())
                .ok_or_else(|| Error::config(field, reason()))
        };
        within("inputs", self.inputs, 2, PRIMES.len() as i64)?;
        within("levels", self.levels, 1, 64)?;
        if ![1, 2, 4, 8].contains(&self.features) {
            let reason = format!("must be 1, 2, 4 or 8, got {}", self.features);
            return Err(Error::config("features", reason));
        }
        within("log2_table", self.log2_table, 1, 28)?;
        check::positive("base", self.base)?;
        match self.growth {
            Growth::Scale(b) if !(b.is_finite() && b >= 1.0) => {
                let reason = format!("scale must be at least 1, got {b}");
                return Err(Error::config("growth", reason));
            }
            Growth::Finest(finest) if finest < self.base => {
                let reason = format!(
                    "finest must be at least the base, {}, got {finest}",
                    self.base
                );
                return Err(Error::config("growth", reason));
            }
            _ => {}
        }
        let finest = self.scale(self.levels - 1);
        if finest < 2f32.powi(31) {
            let levels = self.levels();
            let entries = levels.iter().map(|level| level.entries);
            let entries = entries.fold(0, i64::saturating_add);
            return check_weights("log2_table", &[entries, self.features]);
        }
        let reason =
            format!("the last level has {finest:e} cells along an axis, which is 2^31 or more");
        Err(Error::config("growth", reason))
    }

    /// The factor b.
    fn per_level(&self) -> f64 {
        match self.growth {
            Growth::Scale(b) => b,
            Growth::Finest(_) if self.levels == 1 => 1.0,
            Growth::Finest(finest) => {
                ((finest as f64 / self.base as f64).ln() / (self.levels - 1) as f64).exp()
            }
        }
    }

    /// base · b^l - 1, each step rounded to f32 as the reference does.
    fn scale(&self, level: i64) -> f32 {
        let log2 = f64::from(self.per_level() as f32).log2() as f32;
        let power = f64::from(level as f32 * log2).exp2() as f32;
        power * self.base as f32 - 1.0
    }

    /// What each level is made of. Only for a config that [`validate`](Self::validate) takes.
    pub fn levels(&self) -> Vec<Level> {
        let most = 1i64 << self.log2_table;
        let level = |number: i64| {
            let scale = self.scale(number);
            let resolution = scale.ceil() as i64 + 1;
            let powers: Vec<i64> = (0..=self.inputs as u32)
                .map(|d| resolution.saturating_pow(d))
                .collect();
            let (corners, strides) = (powers[powers.len() - 1], &powers[..powers.len() - 1]);
            let entries = (corners.saturating_add(7) / 8 * 8).min(most);
            let hashed = corners > entries;
            let factors = if hashed {
                PRIMES[..strides.len()].to_vec()
            } else {
                strides.iter().map(|stride| *stride as u32).collect()
            };
            Level {
                scale,
                entries,
                hashed,
                factors,
            }
        };
        (0..self.levels).map(level).collect()
    }

    /// Features of a point over all levels, L · F.
    pub fn width(&self) -> i64 {
        self.levels * self.features
    }

    /// Creates the table under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<HashGrid> {
        self.validate()?;
        let levels = self.levels();
        let entries: i64 = levels.iter().map(|level| level.entries).sum();
        let values = nn::uniform(&[entries * self.features], 1e-4);
        Ok(HashGrid {
            params: nn::parameter(vs, "params", &values),
            levels,
            config: self.clone(),
        })
    }
}

/// A hash grid: the bare features, for any network.
///
/// # Examples
/// ```
/// use densely_fields::hashgrid::{Growth, HashGridConfig};
/// use tch::{Device, Kind, Tensor, nn::VarStore};
///
/// let config = HashGridConfig { inputs: 2, growth: Growth::Finest(512), ..HashGridConfig::default() };
/// let vs = VarStore::new(Device::Cpu);
/// let grid = config.build(&vs.root())?;
/// let features = grid.forward(&Tensor::rand([100, 2], (Kind::Float, Device::Cpu)))?;
/// assert_eq!(features.size(), [100, 32]);
/// # Ok::<(), densely_fields::Error>(())
/// ```
#[derive(Debug)]
pub struct HashGrid {
    /// `[Σ entries · features]`, level by level, entry by entry.
    params: Tensor,
    levels: Vec<Level>,
    config: HashGridConfig,
}

impl HashGrid {
    /// Features of points: `coords [N, D]` → `[N, L · F]`, level by level.
    ///
    /// Coordinates are of the table's kind, or f32 beside a table of another kind. In f32 on the CPU with at most four coordinates it is differentiable
    /// once; with `DENSELY_FAST=0`, and elsewhere, twice.
    /// # Errors
    /// [`Error::Shape`] when `coords` has another size or kind.
    pub fn forward(&self, coords: &Tensor) -> Result<Tensor> {
        check_coords(coords, self.config.inputs, self.params.kind())?;
        let HashGridConfig {
            inputs,
            features,
            smoothstep,
            ..
        } = self.config;
        if grids::fits(inputs, features) && fused::enabled_for_f32(&[coords, &self.params]) {
            return grids::encode(coords, &self.params, &self.levels, features, smoothstep)
                .map_err(Error::torch);
        }
        Ok(self.interpolate(coords))
    }

    fn interpolate(&self, coords: &Tensor) -> Tensor {
        let table = self.params.view([-1, self.config.features]);
        let sizes: Vec<i64> = self.levels.iter().map(|level| level.entries).collect();
        let tables = table.split_with_sizes(sizes, 0);
        let levels = self.levels.iter().zip(&tables);
        let parts: Vec<Tensor> = levels
            .map(|(level, table)| interpolate_level(coords, table, level, self.config.smoothstep))
            .collect();
        Tensor::cat(&parts, 1)
    }

    /// The config it was built from.
    pub fn config(&self) -> &HashGridConfig {
        &self.config
    }
}

/// `[N, D]`, in the parameters' kind or in f32: half precision has too few bits for places.
pub(crate) fn check_coords(coords: &Tensor, inputs: i64, kind: Kind) -> Result<()> {
    check::shape("coords", coords, &[None, Some(inputs)])?;
    if coords.kind() == Kind::Float {
        return Ok(());
    }
    check::kind("coords", coords, kind)
}

/// Features at one level: `[N, D]` and `[entries, F]` → `[N, F]`.
fn interpolate_level(coords: &Tensor, table: &Tensor, level: &Level, smoothstep: bool) -> Tensor {
    /// The largest f32 below 2^31: farther cells would not have numbers of 32 bits.
    const FARTHEST: f64 = 2_147_483_520.0;
    let kind = match table.kind() {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    };
    // Rounded once, as by the reference's multiply-add: in f32 the fraction has lost as many bits as the cell's number takes.
    let at = (coords.to_kind(Kind::Double) * f64::from(level.scale) + 0.5).to_kind(kind); // [N, D]
    let low = at.floor();
    let t = at - &low;
    let far = if smoothstep {
        &t * &t * (3.0 - 2.0 * &t)
    } else {
        t
    };
    let near: Tensor = 1.0 - &far;
    let cell = low
        .detach()
        .nan_to_num(0.0, None, None)
        .clamp(-FARTHEST, FARTHEST)
        .to_kind(Kind::Int64);
    let shares = Tensor::stack(&[near, far], 1); // [N, 2, D]
    let cells = Tensor::stack(&[cell.shallow_clone(), cell + 1], 1);
    // By numbers: a tensor of factors would be copied to a GPU at each level, and waited for.
    let term = |d: usize| cells.select(2, d as i64) * i64::from(level.factors[d]);
    // All corners at once: on a GPU asking for an operation costs more than the operation. Those of one axis more lie behind the others.
    let mut share = shares.select(2, 0); // [N, corners]
    let mut entry = term(0);
    for d in 1..level.factors.len() {
        let next = term(d).unsqueeze(2);
        let before = entry.unsqueeze(1);
        entry = if level.hashed {
            before.bitwise_xor_tensor(&next)
        } else {
            before + next
        };
        entry = entry.flatten(1, 2);
        share = (share.unsqueeze(1) * shares.select(2, d as i64).unsqueeze(2)).flatten(1, 2);
    }
    let entry = entry.bitwise_and(0xFFFF_FFFF_i64).remainder(level.entries);
    let values = table.index_select(0, &entry.flatten(0, -1)).to_kind(kind);
    let values = values.view([coords.size()[0], share.size()[1], table.size()[1]]); // [N, corners, F]
    let sum = (share.unsqueeze(2) * values).sum_dim_intlist(1, false, kind);
    sum.to_kind(table.kind())
}

/// Sizes of a hash grid with a network upon it. Defaults are those of the preset `hashgrid`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HashFieldConfig {
    /// The grid.
    pub grid: HashGridConfig,
    /// Width of the hidden layers.
    pub hidden: i64,
    /// Hidden layers.
    pub layers: i64,
    /// Values at a point, K.
    pub outputs: i64,
}

impl Default for HashFieldConfig {
    fn default() -> Self {
        Self {
            grid: HashGridConfig::default(),
            hidden: 64,
            layers: 2,
            outputs: 3,
        }
    }
}

impl HashFieldConfig {
    /// Preset `hashgrid`.
    pub fn hashgrid() -> Self {
        Self::default()
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.grid.validate()?;
        check::positive("hidden", self.hidden)?;
        check::positive("layers", self.layers)?;
        check::positive("outputs", self.outputs)?;
        let widest = self.hidden.max(self.grid.width()).max(self.outputs);
        check_weights("hidden", &[self.layers, self.hidden, widest])
    }

    fn network(&self) -> MlpSizes {
        MlpSizes {
            inputs: self.grid.width(),
            hidden: self.hidden,
            layers: self.layers,
            outputs: self.outputs,
        }
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<HashField> {
        self.validate()?;
        Ok(HashField {
            encoding: self.grid.build(&(vs / "encoding"))?,
            network: self.network().build(&(vs / "network")),
        })
    }

    /// Multiply-accumulates of all matrix products for one point.
    pub fn macs(&self) -> u64 {
        self.network().macs()
    }
}

/// A field of values: a hash grid, and an MLP that reads it.
#[derive(Debug)]
pub struct HashField {
    encoding: HashGrid,
    network: Mlp,
}

impl HashField {
    /// Values at points: `coords [N, D]` in [0, 1] → `[N, K]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `coords` has another size or kind.
    pub fn forward(&self, coords: &Tensor) -> Result<Tensor> {
        Ok(self.encoding.forward(coords)?.apply(&self.network))
    }

    /// The features that the MLP reads; see [`HashGrid::forward`].
    ///
    /// # Errors
    /// [`Error::Shape`] when `coords` has another size or kind.
    pub fn forward_features(&self, coords: &Tensor) -> Result<Tensor> {
        self.encoding.forward(coords)
    }
}

impl Model for HashField {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        cam::named(inputs, |coords| self.forward(coords))
    }
}
