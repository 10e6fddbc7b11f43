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

use densely_core::nn::{Conv, LayerNorm, Linear};
use densely_core::{Error, Model, Result, Tensors, check};
use tch::Tensor;
use tch::nn::Module;

use crate::layers::{
    PictureNorm, PixelNorm, StarRelu, drop_path, pool_difference, stages, the_image,
};

mod config;
mod fast;

pub use config::{HeadOrder, Mixer, PoolFormerConfig, Version};

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

/// What mixes the tokens of a block.
#[derive(Debug)]
enum Mix {
    /// The average over a window of this side.
    Pool(i64),
    Identity,
    /// `[pixels, pixels]`, never trained.
    Random(Tensor),
}

impl Mix {
    /// `[batch, channels, height, width]`, and so it stays.
    fn apply(&self, xs: Tensor) -> Tensor {
        match self {
            Self::Pool(side) => pool_difference(&xs, *side),
            Self::Identity => xs,
            Self::Random(matrix) => xs.flatten(2, 3).matmul(&matrix.tr()).view_as(&xs),
        }
    }
}

#[derive(Debug)]
struct Block {
    norms: [PictureNorm; 2],
    mixer: Mix,
    fc1: Conv,
    act: Act,
    fc2: Conv,
    scales: Scales,
    drop_path: f64,
}

impl Block {
    /// `[batch, channels, height, width]`, and so it stays.
    fn forward(&self, xs: &Tensor, train: bool) -> Tensor {
        let mixed = self.mixer.apply(self.norms[0].forward(xs));
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
        let mut xs = self.stem.forward(&fast::entered(self, image)?);
        let mut maps = Vec::with_capacity(4);
        for stage in &self.stages {
            if let Some(down) = &stage.down {
                xs = down.forward(&xs);
            }
            xs = fast::blocks(&stage.blocks, xs, train)?;
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
        let side = self.config.img_size;
        let (fits, expected) = if self.config.token_mixer == Mixer::Random {
            (
                size[2] == side && size[3] == side,
                format!("of {side} × {side}"),
            )
        } else {
            let side = self.config.smallest_side();
            let fits = size[2] >= side && size[3] >= side;
            (fits, format!("of at least {side} × {side}"))
        };
        if size[0] >= 1 && fits {
            return Ok(());
        }
        Err(Error::Shape {
            what: "image".to_owned(),
            expected: format!("at least one picture {expected}"),
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
        let image = the_image(inputs)?;
        if self.config.features {
            return Ok(stages(self.features(image, train)?));
        }
        let logits = self.logits(image, train)?;
        Ok(Tensors::from([("logits".to_owned(), logits)]))
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
