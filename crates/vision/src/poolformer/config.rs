//! Sizes of a PoolFormer, and its first weights.

use densely_core::nn::{self, Conv, ConvConfig, Linear, at, buffer, parameter};
use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Device, Kind, Tensor};

use super::fast::EPS;
use super::{Act, Block, Head, HeadNorm, Mix, PoolFormer, Scales, Stage, Step};
use crate::layers::{PictureNorm, ScaledGroupNorm, normal, pixel_norm, star_relu};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
const STD: f64 = 0.02;
const V2_EPS: f64 = 1e-6;

/// Which of the two papers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// Layer scale, GELU, biases everywhere.
    #[default]
    V1,
    /// StarReLU, no biases but the head's, norms before each downsampling, scaled skips in the last two stages.
    V2,
}

/// How a block mixes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mixer {
    /// The average over neighbours.
    #[default]
    Pooling,
    /// Not at all: the paper's lower bound, `metaformer_id_s12`. The normed input is the branch.
    Identity,
    /// By one fixed matrix per block that is drawn once, a softmax of numbers from U(0, 1): the paper's ablation. Its size is that of the
    /// map, so the pictures must all have the sides of `img_size`.
    Random,
}

/// What the head of version 1 does first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadOrder {
    /// Norm over the picture, then the mean over its pixels: the original, by which the published accuracies were measured.
    #[default]
    Original,
    /// The mean, then a layer norm with eps 1e-6: timm's, which gives other logits from the same weights.
    Timm,
}

/// Sizes of a PoolFormer. Defaults are those of `poolformer_s12`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolFormerConfig {
    /// Which paper's blocks.
    pub version: Version,
    /// Blocks of each of the four stages.
    pub layers: Vec<i64>,
    /// Channels of each stage.
    pub embed_dims: Vec<i64>,
    /// Hidden channels of an MLP over its channels.
    pub mlp_ratio: i64,
    /// How tokens are mixed.
    pub token_mixer: Mixer,
    /// Side of the window, odd.
    pub pool_size: i64,
    /// Side of the square pictures, for the random mixer alone: others take any size.
    pub img_size: i64,
    /// Side of the stem's window; small pictures want a small one.
    pub in_patch_size: i64,
    /// Pixels from one window of the stem to the next.
    pub in_stride: i64,
    /// Zeros around a picture at the stem.
    pub in_pad: i64,
    /// Probability with which the last block is left out in training; it rises linearly from 0 at the first.
    pub drop_path_rate: f64,
    /// First value of the layer scales of version 1.
    pub layer_scale_init_value: f64,
    /// Channels of a picture.
    pub in_chans: i64,
    /// Classes.
    pub num_classes: i64,
    /// Order in the head of version 1.
    pub head_order: HeadOrder,
    /// Whether it gives the maps of the four stages instead of logits: no head, and in version 1 a norm of each map.
    pub features: bool,
    /// Whether the maps of version 1 are normed; timm gives them without, and so did the first map of the published `RetinaNet`.
    pub feature_norms: bool,
}

impl Default for PoolFormerConfig {
    fn default() -> Self {
        Self {
            version: Version::V1,
            layers: vec![2, 2, 6, 2],
            embed_dims: vec![64, 128, 320, 512],
            mlp_ratio: 4,
            token_mixer: Mixer::Pooling,
            pool_size: 3,
            img_size: 224,
            in_patch_size: 7,
            in_stride: 4,
            in_pad: 2,
            drop_path_rate: 0.1,
            layer_scale_init_value: 1e-5,
            in_chans: 3,
            num_classes: 1000,
            head_order: HeadOrder::Original,
            features: false,
            feature_norms: true,
        }
    }
}

const NARROW: [i64; 4] = [64, 128, 320, 512];
const WIDE: [i64; 4] = [96, 192, 384, 768];

impl PoolFormerConfig {
    fn published(layers: [i64; 4], embed_dims: [i64; 4], drop_path_rate: f64, scale: f64) -> Self {
        Self {
            layers: layers.to_vec(),
            embed_dims: embed_dims.to_vec(),
            drop_path_rate,
            layer_scale_init_value: scale,
            ..Self::default()
        }
    }

    /// `poolformer_s12`.
    pub fn s12() -> Self {
        Self::default()
    }

    /// `metaformer_id_s12`.
    pub fn identity_s12() -> Self {
        Self {
            token_mixer: Mixer::Identity,
            ..Self::default()
        }
    }

    /// `poolformer_s24`.
    pub fn s24() -> Self {
        Self::published([4, 4, 12, 4], NARROW, 0.1, 1e-5)
    }

    /// `poolformer_s36`.
    pub fn s36() -> Self {
        Self::published([6, 6, 18, 6], NARROW, 0.2, 1e-6)
    }

    /// `poolformer_m36`.
    pub fn m36() -> Self {
        Self::published([6, 6, 18, 6], WIDE, 0.3, 1e-6)
    }

    /// `poolformer_m48`.
    pub fn m48() -> Self {
        Self::published([8, 8, 24, 8], WIDE, 0.4, 1e-6)
    }

    /// The same sizes by the second paper.
    #[must_use]
    pub fn v2(self) -> Self {
        Self {
            version: Version::V2,
            ..self
        }
    }

    /// The same without a head: see [`features`](Self::features).
    #[must_use]
    pub fn with_features(self) -> Self {
        Self {
            features: true,
            ..self
        }
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for (field, sizes) in [("layers", &self.layers), ("embed_dims", &self.embed_dims)] {
            if sizes.len() != 4 {
                let reason = format!(
                    "must have four entries, one of each stage, got {}",
                    sizes.len()
                );
                return Err(Error::config(field, reason));
            }
            for size in sizes {
                check::positive(field, *size)?;
            }
        }
        for (field, size) in [
            ("mlp_ratio", self.mlp_ratio),
            ("pool_size", self.pool_size),
            ("img_size", self.img_size),
            ("in_patch_size", self.in_patch_size),
            ("in_stride", self.in_stride),
            ("in_chans", self.in_chans),
            ("num_classes", self.num_classes),
        ] {
            check::positive(field, size)?;
        }
        if self.pool_size % 2 == 0 {
            let reason = format!(
                "must be odd, or the window has no middle, got {}",
                self.pool_size
            );
            return Err(Error::config("pool_size", reason));
        }
        if !(0..self.in_patch_size).contains(&self.in_pad) {
            let reason = format!(
                "must lie between 0 and in_patch_size - 1 = {}, got {}",
                self.in_patch_size - 1,
                self.in_pad
            );
            return Err(Error::config("in_pad", reason));
        }
        if self.token_mixer == Mixer::Random {
            if self.img_size < self.smallest_side() {
                let reason = format!(
                    "must be at least {}, got {}",
                    self.smallest_side(),
                    self.img_size
                );
                return Err(Error::config("img_size", reason));
            }
            if self.sides(self.img_size)[0] > 256 {
                let reason = format!(
                    "is too large for the random mixer, whose matrix has the square of the pixels of a map, got {}",
                    self.img_size
                );
                return Err(Error::config("img_size", reason));
            }
        }
        check::dropout("drop_path_rate", self.drop_path_rate)?;
        if self.version == Version::V2 && self.head_order == HeadOrder::Timm {
            let reason = "is a choice of version 1: version 2 always pools first";
            return Err(Error::config("head_order", reason));
        }
        if !self.layer_scale_init_value.is_finite() {
            return Err(Error::config(
                "layer_scale_init_value",
                "must be a finite number",
            ));
        }
        Ok(())
    }

    /// Sides of the four stages' maps for a picture of height and width `side`.
    pub fn sides(&self, side: i64) -> [i64; 4] {
        let first = (side + 2 * self.in_pad - self.in_patch_size) / self.in_stride + 1;
        let next = |side: i64| (side - 1) / 2 + 1;
        let second = next(first);
        [first, second, next(second), next(next(second))]
    }

    /// The smallest side of a picture that the stem takes.
    pub const fn smallest_side(&self) -> i64 {
        let side = self.in_patch_size - 2 * self.in_pad;
        if side > 1 { side } else { 1 }
    }

    /// Multiply-accumulates of all convolutions and the head for a picture of `side` × `side`.
    pub fn macs(&self, side: i64) -> u64 {
        let mut before = self.in_chans;
        let mut macs = 0;
        for (stage, side) in self.sides(side).into_iter().enumerate() {
            let dim = self.embed_dims[stage];
            let window = if stage == 0 { self.in_patch_size } else { 3 };
            let pixels = side * side;
            if self.token_mixer == Mixer::Random {
                macs += self.layers[stage] * pixels * pixels * dim;
            }
            macs += pixels * before * dim * window * window;
            macs += self.layers[stage] * pixels * 2 * dim * dim * self.mlp_ratio;
            before = dim;
        }
        if !self.features {
            macs += before * self.num_classes;
        }
        macs as u64
    }

    /// Creates the parameters under `vs`.
    ///
    /// # Errors
    /// [`Error::Config`] when [`validate`](Self::validate) fails.
    pub fn build(&self, vs: &Path) -> Result<PoolFormer> {
        self.validate()?;
        let stem = self.step(vs, 0);
        let last = self.layers.iter().sum::<i64>() - 1;
        let mut number = 0;
        let mut stages = Vec::with_capacity(4);
        for stage in 0..4 {
            let down = (stage > 0).then(|| self.step(vs, stage));
            let mut blocks = Vec::new();
            for place in 0..self.layers[stage] {
                let p = if last > 0 {
                    self.drop_path_rate * number as f64 / last as f64
                } else {
                    0.0
                };
                blocks.push(self.block(&at(vs, &self.block_name(stage, place)), stage, p));
                number += 1;
            }
            let norm = (self.features && self.feature_norms && self.version == Version::V1)
                .then(|| self.norm(&(vs / format!("norm{}", 2 * stage)), self.embed_dims[stage]));
            stages.push(Stage { down, blocks, norm });
        }
        let head = (!self.features).then(|| self.head(vs));
        Ok(PoolFormer {
            stem,
            stages,
            head,
            config: self.clone(),
        })
    }

    pub(super) fn block_name(&self, stage: usize, place: i64) -> String {
        match self.version {
            Version::V1 => format!("network.{}.{place}", 2 * stage),
            Version::V2 => format!("stages.{stage}.blocks.{place}"),
        }
    }

    /// The stem (stage 0) or the convolution before a stage.
    fn step(&self, vs: &Path, stage: usize) -> Step {
        let (before, kernel, stride, padding) = match stage {
            0 => (
                self.in_chans,
                self.in_patch_size,
                self.in_stride,
                self.in_pad,
            ),
            _ => (self.embed_dims[stage - 1], 3, 2, 1),
        };
        let dim = self.embed_dims[stage];
        let config = ConvConfig {
            stride,
            padding,
            ..ConvConfig::default()
        };
        match self.version {
            Version::V1 => {
                let name = match stage {
                    0 => "patch_embed.proj".to_owned(),
                    _ => format!("network.{}.proj", 2 * stage - 1),
                };
                Step {
                    conv: nn::conv2d(&at(vs, &name), before, dim, kernel, config),
                    before: None,
                    after: None,
                }
            }
            Version::V2 => {
                let name = match stage {
                    0 => "stem".to_owned(),
                    _ => format!("stages.{stage}.downsample"),
                };
                let vs = at(vs, &name);
                let norm = |channels| Some(pixel_norm(&(&vs / "norm"), channels, V2_EPS));
                let (first, second) = if stage == 0 {
                    (None, norm(dim))
                } else {
                    (norm(before), None)
                };
                Step {
                    conv: drawn_conv(&(&vs / "conv"), [dim, before, kernel, kernel], config),
                    before: first,
                    after: second,
                }
            }
        }
    }

    fn norm(&self, vs: &Path, channels: i64) -> PictureNorm {
        match self.version {
            Version::V1 => PictureNorm::Affine(nn::group_norm(vs, 1, channels, EPS)),
            Version::V2 => PictureNorm::Scaled(ScaledGroupNorm {
                weight: parameter(vs, "weight", &Tensor::ones([channels], CPU)),
                eps: V2_EPS,
            }),
        }
    }

    fn block(&self, vs: &Path, stage: usize, drop_path: f64) -> Block {
        let dim = self.embed_dims[stage];
        let hidden = dim * self.mlp_ratio;
        let norm1 = self.norm(&(vs / "norm1"), dim);
        let norm2 = self.norm(&(vs / "norm2"), dim);
        let one = |name: &str, outputs, inputs| {
            let config = ConvConfig {
                bias: self.version == Version::V1,
                ..ConvConfig::default()
            };
            drawn_conv(&at(vs, name), [outputs, inputs, 1, 1], config)
        };
        let fc1 = one("mlp.fc1", hidden, dim);
        let act = match self.version {
            Version::V1 => Act::Gelu,
            Version::V2 => Act::Star(star_relu(&at(vs, "mlp.act"))),
        };
        let fc2 = one("mlp.fc2", dim, hidden);
        let scale = |name: &str, value: f64| parameter(vs, name, &Tensor::full([dim], value, CPU));
        let scales = match self.version {
            Version::V1 => {
                let value = self.layer_scale_init_value;
                Scales::Branches([scale("layer_scale_1", value), scale("layer_scale_2", value)])
            }
            Version::V2 if stage >= 2 => Scales::Skips(
                ["res_scale1", "res_scale2"]
                    .map(|name| parameter(&(vs / name), "scale", &Tensor::ones([dim], CPU))),
            ),
            Version::V2 => Scales::None,
        };
        Block {
            norms: [norm1, norm2],
            mixer: match self.token_mixer {
                Mixer::Pooling => Mix::Pool(self.pool_size),
                Mixer::Identity => Mix::Identity,
                Mixer::Random => {
                    let side = self.sides(self.img_size)[stage];
                    let drawn = Tensor::rand([side * side, side * side], CPU).softmax(-1, None);
                    Mix::Random(buffer(&(vs / "token_mixer"), "random_matrix", &drawn))
                }
            },
            fc1,
            act,
            fc2,
            scales,
            drop_path,
        }
    }

    fn head(&self, vs: &Path) -> Head {
        let dim = self.embed_dims[3];
        let linear = |vs: &Path| Linear {
            weight: normal(vs, "weight", &[self.num_classes, dim], STD),
            bias: Some(parameter(
                vs,
                "bias",
                &Tensor::zeros([self.num_classes], CPU),
            )),
        };
        match (self.version, self.head_order) {
            (Version::V2, _) => Head {
                norm: HeadNorm::Pooled(nn::layer_norm(&at(vs, "head.norm"), &[dim], V2_EPS)),
                linear: linear(&at(vs, "head.fc")),
            },
            (Version::V1, HeadOrder::Timm) => Head {
                norm: HeadNorm::Pooled(nn::layer_norm(&(vs / "norm"), &[dim], 1e-6)),
                linear: linear(&(vs / "head")),
            },
            (Version::V1, HeadOrder::Original) => Head {
                norm: HeadNorm::Picture(self.norm(&(vs / "norm"), dim)),
                linear: linear(&(vs / "head")),
            },
        }
    }
}

/// A convolution with weight N(0, 0.02²) and bias 0.
fn drawn_conv(vs: &Path, size: [i64; 4], config: ConvConfig) -> Conv {
    let weight = normal(vs, "weight", &size, STD);
    let bias = config
        .bias
        .then(|| parameter(vs, "bias", &Tensor::zeros([size[0]], CPU)));
    Conv::of(weight, bias, config)
}
