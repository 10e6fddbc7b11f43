//! PoolFormer: four stages of blocks whose tokens are mixed by an average over their neighbours.
//!
//! Yu et al., "MetaFormer is actually what you need for vision", CVPR 2022, arXiv 2111.11418; version 2 of "MetaFormer baselines for
//! vision", TPAMI 2024, arXiv 2210.13452. After the code with which the weights were released:
//!
//! ```text
//! x = x + ls1 ∘ (pool(n) - n)    n = GN1(x)          version 2: r1 ∘ x + …, no ls
//! x = x + ls2 ∘ mlp(GN2(x))      mlp: E → 4E → E
//! ```
//!
//! `GN` takes its statistics over all channels and pixels of a picture, and `pool` counts no pixel outside of it.

use densely_core::nn::{self, Conv, ConvConfig, LayerNorm, Linear, at, parameter};
use densely_core::registry::take_inputs;
use densely_core::{Error, Model, Result, Tensors, check};
use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Device, Kind, Tensor};

use crate::layers::{
    PictureNorm, PixelNorm, ScaledGroupNorm, StarRelu, absent, drop_path, normal, pixel_norm,
    pool_difference, star_relu,
};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
const STD: f64 = 0.02;

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
            drop_path_rate: 0.1,
            layer_scale_init_value: 1e-5,
            in_chans: 3,
            num_classes: 1000,
            head_order: HeadOrder::Original,
            features: false,
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
        let first = (side + 4 - 7) / 4 + 1;
        let next = |side: i64| (side - 1) / 2 + 1;
        let second = next(first);
        [first, second, next(second), next(next(second))]
    }

    /// Multiply-accumulates of all convolutions and the head for a picture of `side` × `side`.
    pub fn macs(&self, side: i64) -> u64 {
        let mut before = self.in_chans;
        let mut macs = 0;
        for (stage, side) in self.sides(side).into_iter().enumerate() {
            let (dim, window) = (self.embed_dims[stage], if stage == 0 { 7 } else { 3 });
            let pixels = side * side;
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
            let norm = (self.features && self.version == Version::V1)
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

    fn block_name(&self, stage: usize, place: i64) -> String {
        match self.version {
            Version::V1 => format!("network.{}.{place}", 2 * stage),
            Version::V2 => format!("stages.{stage}.blocks.{place}"),
        }
    }

    /// The stem (stage 0) or the convolution before a stage.
    fn step(&self, vs: &Path, stage: usize) -> Step {
        let (before, kernel, stride, padding) = match stage {
            0 => (self.in_chans, 7, 4, 2),
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
            Version::V1 => PictureNorm::Affine(nn::group_norm(vs, 1, channels, 1e-5)),
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
            mixer: self.token_mixer,
            pool_size: self.pool_size,
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

const V2_EPS: f64 = 1e-6;

/// A convolution with weight N(0, 0.02²) and bias 0.
fn drawn_conv(vs: &Path, size: [i64; 4], config: ConvConfig) -> Conv {
    let weight = normal(vs, "weight", &size, STD);
    let bias = config
        .bias
        .then(|| parameter(vs, "bias", &Tensor::zeros([size[0]], CPU)));
    Conv::of(weight, bias, config)
}

/// A built PoolFormer.
#[derive(Debug)]
pub struct PoolFormer {
    stem: Step,
    stages: Vec<Stage>,
    head: Option<Head>,
    config: PoolFormerConfig,
}

/// A convolution that makes maps smaller, with the norms of version 2.
#[derive(Debug)]
struct Step {
    before: Option<PixelNorm>,
    conv: Conv,
    after: Option<PixelNorm>,
}

impl Step {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let normed = self.before.as_ref().map(|norm| norm.forward(xs));
        let ys = self.conv.forward(normed.as_ref().unwrap_or(xs));
        match &self.after {
            Some(norm) => norm.forward(&ys),
            None => ys,
        }
    }
}

#[derive(Debug)]
struct Stage {
    down: Option<Step>,
    blocks: Vec<Block>,
    /// Of the map that is given out; the next stage takes it without.
    norm: Option<PictureNorm>,
}

#[derive(Debug)]
enum Act {
    Gelu,
    Star(StarRelu),
}

/// `[channels]` each, of the two halves of a block.
#[derive(Debug)]
enum Scales {
    None,
    Branches([Tensor; 2]),
    Skips([Tensor; 2]),
}

#[derive(Debug)]
struct Block {
    norms: [PictureNorm; 2],
    mixer: Mixer,
    pool_size: i64,
    fc1: Conv,
    act: Act,
    fc2: Conv,
    scales: Scales,
    drop_path: f64,
}

impl Block {
    /// `[batch, channels, height, width]`, and so it stays.
    fn forward(&self, xs: &Tensor, train: bool) -> Tensor {
        let normed = self.norms[0].forward(xs);
        let mixed = match self.mixer {
            Mixer::Pooling => pool_difference(&normed, self.pool_size),
            Mixer::Identity => normed,
        };
        let xs = self.add(xs, mixed, 0, train);
        let hidden = self.fc1.forward(&self.norms[1].forward(&xs));
        let hidden = match &self.act {
            Act::Gelu => hidden.gelu("none"),
            Act::Star(star) => star.forward(&hidden),
        };
        self.add(&xs, self.fc2.forward(&hidden), 1, train)
    }

    fn add(&self, xs: &Tensor, branch: Tensor, half: usize, train: bool) -> Tensor {
        let wide = |scale: &Tensor| scale.view([-1, 1, 1]);
        match &self.scales {
            Scales::None => xs + drop_path(&branch, self.drop_path, train),
            Scales::Branches(scales) => {
                xs + drop_path(&(branch * wide(&scales[half])), self.drop_path, train)
            }
            Scales::Skips(scales) => {
                xs * wide(&scales[half]) + drop_path(&branch, self.drop_path, train)
            }
        }
    }
}

#[derive(Debug)]
enum HeadNorm {
    /// Before the mean over pixels.
    Picture(PictureNorm),
    /// Behind it.
    Pooled(LayerNorm),
}

#[derive(Debug)]
struct Head {
    norm: HeadNorm,
    linear: Linear,
}

impl Head {
    /// `[batch, channels, height, width]` → `[batch, classes]`.
    fn forward(&self, xs: &Tensor) -> Tensor {
        let mean = |xs: &Tensor| xs.mean_dim([-2i64, -1].as_slice(), false, None);
        let pooled = match &self.norm {
            HeadNorm::Picture(norm) => mean(&norm.forward(xs)),
            HeadNorm::Pooled(norm) => norm.forward(&mean(xs)),
        };
        self.linear.forward(&pooled)
    }
}

impl PoolFormer {
    /// Logits `[batch, classes]` of pictures `[batch, in_chans, height, width]`, normalised, of any size from 3 × 3.
    ///
    /// # Errors
    /// [`Error::Shape`] for pictures that do not fit; [`Error::Config`] when it was built without a head.
    pub fn logits(&self, image: &Tensor, train: bool) -> Result<Tensor> {
        let head = self.head.as_ref().ok_or_else(|| {
            Error::config(
                "features",
                "this model has no head; ask it for its features",
            )
        })?;
        let maps = self.maps(image, train)?;
        Ok(head.forward(&maps[3]))
    }

    /// Maps of the four stages, `[batch, embed_dims[i], height_i, width_i]` ([`PoolFormerConfig::sides`]), normed where the model has norms
    /// for them.
    ///
    /// # Errors
    /// [`Error::Shape`] for pictures that do not fit.
    pub fn features(&self, image: &Tensor, train: bool) -> Result<Vec<Tensor>> {
        let maps = self.maps(image, train)?;
        let stages = self.stages.iter().zip(maps);
        Ok(stages
            .map(|(stage, map)| match &stage.norm {
                Some(norm) => norm.forward(&map),
                None => map,
            })
            .collect())
    }

    fn maps(&self, image: &Tensor, train: bool) -> Result<Vec<Tensor>> {
        self.check(image)?;
        let mut xs = self.stem.forward(image);
        let mut maps = Vec::with_capacity(4);
        for stage in &self.stages {
            if let Some(down) = &stage.down {
                xs = down.forward(&xs);
            }
            for block in &stage.blocks {
                xs = block.forward(&xs, train);
            }
            maps.push(xs.shallow_clone());
        }
        Ok(maps)
    }

    fn check(&self, image: &Tensor) -> Result<()> {
        check::shape(
            "image",
            image,
            &[None, Some(self.config.in_chans), None, None],
        )?;
        check::kind("image", image, self.stem.conv.weight.kind())?;
        let size = image.size();
        if size[0] >= 1 && size[2] >= 3 && size[3] >= 3 {
            return Ok(());
        }
        Err(Error::Shape {
            what: "image".to_owned(),
            expected: "at least one picture of at least 3 × 3".to_owned(),
            got: format!("{size:?}"),
        })
    }

    /// The config it was built from.
    pub fn config(&self) -> &PoolFormerConfig {
        &self.config
    }
}

impl Model for PoolFormer {
    fn forward_named(&self, inputs: &Tensors, train: bool) -> Result<Tensors> {
        let [image] = take_inputs(inputs, ["image"])?;
        let image = image.ok_or_else(|| absent("image"))?;
        if self.config.features {
            let maps = self.features(image, train)?.into_iter().enumerate();
            return Ok(maps.map(|(i, map)| (format!("stage{i}"), map)).collect());
        }
        Ok(Tensors::from([(
            "logits".to_owned(),
            self.logits(image, train)?,
        )]))
    }

    /// Names of timm and of transformers, for version 1; version 2 has timm's.
    fn aliases(&self) -> Vec<(String, String)> {
        if self.config.version == Version::V2 {
            return Vec::new();
        }
        let mut names = vec![(
            "patch_embed.proj".to_owned(),
            ["stem.conv".to_owned(), HF_EMBEDDING.replace("{}", "0")],
        )];
        for (stage, layers) in self.config.layers.iter().enumerate() {
            if stage > 0 {
                let theirs = [
                    format!("stages.{stage}.downsample.conv"),
                    HF_EMBEDDING.replace("{}", &stage.to_string()),
                ];
                names.push((format!("network.{}.proj", 2 * stage - 1), theirs));
            }
            for place in 0..*layers {
                let own = self.config.block_name(stage, place);
                for (ours, timm, hf) in BLOCK_NAMES {
                    let theirs = [
                        format!("stages.{stage}.blocks.{place}.{timm}"),
                        format!("poolformer.encoder.block.{stage}.{place}.{hf}"),
                    ];
                    names.push((format!("{own}.{ours}"), theirs));
                }
            }
        }
        if !self.config.features {
            names.push(("norm".to_owned(), ["head.norm", "norm"].map(str::to_owned)));
            names.push((
                "head".to_owned(),
                ["head.fc", "classifier"].map(str::to_owned),
            ));
        }
        let mut aliases = Vec::new();
        for (own, theirs) in names {
            for theirs in theirs.into_iter().filter(|theirs| *theirs != own) {
                if own.contains("layer_scale") {
                    aliases.push((theirs, own.clone()));
                    continue;
                }
                for part in ["weight", "bias"] {
                    aliases.push((format!("{theirs}.{part}"), format!("{own}.{part}")));
                }
            }
        }
        aliases
    }
}

const HF_EMBEDDING: &str = "poolformer.encoder.patch_embeddings.{}.projection";

/// Parts of a block: here, in timm, in transformers.
const BLOCK_NAMES: [(&str, &str, &str); 6] = [
    ("norm1", "norm1", "before_norm"),
    ("norm2", "norm2", "after_norm"),
    ("mlp.fc1", "mlp.fc1", "output.conv1"),
    ("mlp.fc2", "mlp.fc2", "output.conv2"),
    ("layer_scale_1", "layer_scale1.scale", "layer_scale_1"),
    ("layer_scale_2", "layer_scale2.scale", "layer_scale_2"),
];
