//! Strip-MLP: rows and columns of a map are mixed by MLPs whose strips reach into their neighbours.
//!
//! Cao et al., "Strip-MLP: efficient token interaction for vision MLP", ICCV 2023, arXiv 2307.11458; after the released code:
//!
//! ```text
//! x = x + token(x)      token: depthwise 3 × 3 of gelu(bn(x)), then the strip block
//! x = x + channel(x)    channel: depthwise 7 × 7, norm of each pixel, C → 3C, GELU, response normalisation, 3C → C
//!
//! strip block: (a, b) = gelu(bn(conv x)); a's rows are mixed, then its columns, each with three neighbours;
//!              b is a weighted sum of itself and two depthwise convolutions; both are joined
//! ```
//!
//! Its matrices belong to one size of picture.

use densely_core::nn::{self, BatchNorm, Conv, ConvConfig, LayerNorm, Linear, at, parameter};
use densely_core::{Error, Model, Result, Tensors, check};
use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Device, Kind, Tensor};

use crate::layers::{RectConv, drop_path, normal, rect_conv, stages, the_image};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Hidden channels of the channel mixing over its channels; the released code's response normalisation takes no other number.
const EXPANSION: i64 = 3;

/// Sizes of a Strip-MLP. Defaults are those of T*, `strip_mlp_tstar`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StripMlpConfig {
    /// Side of the pictures, a multiple of 8 · `patch_size`.
    pub img_size: i64,
    /// Side of a patch.
    pub patch_size: i64,
    /// Channels of a picture.
    pub in_chans: i64,
    /// Classes.
    pub num_classes: i64,
    /// Channels of the first stage; each further one has twice as many.
    pub embed_dim: i64,
    /// Blocks of each of the four stages.
    pub layers: Vec<i64>,
    /// Probability with which a branch is left out in training, in all blocks alike.
    pub drop_path_rate: f64,
    /// Whether it gives the maps of the four stages instead of logits, and has no head.
    pub features: bool,
}

impl Default for StripMlpConfig {
    fn default() -> Self {
        Self {
            img_size: 224,
            patch_size: 4,
            in_chans: 3,
            num_classes: 1000,
            embed_dim: 80,
            layers: vec![2, 2, 6, 2],
            drop_path_rate: 0.1,
            features: false,
        }
    }
}

impl StripMlpConfig {
    fn published(embed_dim: i64, third: i64) -> Self {
        Self {
            embed_dim,
            layers: vec![2, 2, third, 2],
            ..Self::default()
        }
    }

    /// T*: `strip_mlp_tstar`.
    pub fn tstar() -> Self {
        Self::default()
    }

    /// `strip_mlp_t`.
    pub fn t() -> Self {
        Self::published(80, 12)
    }

    /// `strip_mlp_s`.
    pub fn s() -> Self {
        Self::published(96, 18)
    }

    /// `strip_mlp_b`.
    pub fn b() -> Self {
        Self::published(112, 18)
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
        for (field, size) in [
            ("patch_size", self.patch_size),
            ("img_size", self.img_size),
            ("in_chans", self.in_chans),
            ("num_classes", self.num_classes),
            ("embed_dim", self.embed_dim),
        ] {
            check::positive(field, size)?;
        }
        let multiple = 8 * self.patch_size;
        if self.img_size % multiple != 0 {
            let reason = format!(
                "must be a multiple of {multiple}, 8 patches, got {}",
                self.img_size
            );
            return Err(Error::config("img_size", reason));
        }
        if self.embed_dim % 8 != 0 {
            let reason = format!("must be a multiple of 8, got {}", self.embed_dim);
            return Err(Error::config("embed_dim", reason));
        }
        if self.layers.len() != 4 {
            let reason = format!(
                "must have four entries, one of each stage, got {}",
                self.layers.len()
            );
            return Err(Error::config("layers", reason));
        }
        for count in &self.layers {
            check::positive("layers", *count)?;
        }
        check::dropout("drop_path_rate", self.drop_path_rate)
    }

    /// Channels and side of a stage's map.
    fn size(&self, stage: usize) -> [i64; 2] {
        let times = 1 << stage;
        [
            self.embed_dim * times,
            self.img_size / self.patch_size / times,
        ]
    }

    /// Multiply-accumulates of all convolutions, strips and layers for one picture.
    pub fn macs(&self) -> u64 {
        let mut macs = 0;
        let mut before = self.in_chans * self.patch_size * self.patch_size;
        for stage in 0..4 {
            let [c, side] = self.size(stage);
            let (pixels, half) = (side * side, c / 2);
            macs += before * c * pixels;
            before = 4 * c;
            let strips = 2 * 3 * half * side; // of each pixel, along rows and along columns
            let joins = c * c + 2 * c * half + c * c; // mlp, fuse_h, fuse_w, fuse
            let token = 9 * c + strips + joins + 2 * 21 * half;
            let channel = 49 * c + 2 * EXPANSION * c * c;
            let weights = half * (half / 2) + (half / 2) * 3 * half;
            macs += self.layers[stage] * (pixels * (token + channel) + weights);
        }
        // Of the skips each output channel sees one channel of 2 × 2 pixels.
        let [third, fourth] = [2, 3].map(|stage| {
            let [c, side] = self.size(stage);
            4 * c * side * side
        });
        macs += third + 2 * fourth;
        if !self.features {
            macs += self.size(3)[0] * self.num_classes;
        }
        macs as u64
    }

    /// Creates the parameters under `vs`.
    ///
    /// # Errors
    /// [`Error::Config`] when [`validate`](Self::validate) fails.
    pub fn build(&self, vs: &Path) -> Result<StripMlp> {
        self.validate()?;
        let dims = [0, 1, 2, 3].map(|stage| self.size(stage)[0]);
        let cut = |name: &str, inputs, outputs, side, groups| {
            let config = ConvConfig {
                stride: side,
                groups,
                bias: false,
                ..ConvConfig::default()
            };
            nn::conv2d(&(vs / name), inputs, outputs, side, config)
        };
        let patches = cut("patch_embed", self.in_chans, dims[0], self.patch_size, 1);
        let stages = (0..4).map(|stage| {
            let blocks = (0..self.layers[stage])
                .map(|place| self.block(&at(vs, &format!("blocks{}.{place}", stage + 1)), stage));
            blocks.collect()
        });
        let stages: Vec<Vec<Block>> = stages.collect();
        let merging = [1, 2, 3].map(|stage| {
            cut(
                &format!("merging{stage}"),
                dims[stage - 1],
                dims[stage],
                2,
                1,
            )
        });
        let skip =
            |name: &str, stage: usize| cut(name, dims[stage - 1], dims[stage], 2, dims[stage - 1]);
        let skips = [
            skip("conv_s1_28", 2),
            skip("conv_s1_14", 3),
            skip("conv_s2_14", 3),
        ];
        let head = (!self.features).then(|| {
            (
                nn::batch_norm(&(vs / "norm"), dims[3], 0.1, 1e-5),
                nn::linear(&(vs / "head"), dims[3], self.num_classes),
            )
        });
        Ok(StripMlp {
            patches,
            stages,
            merging,
            skips,
            head,
            config: self.clone(),
        })
    }

    fn block(&self, vs: &Path, stage: usize) -> Block {
        let [c, side] = self.size(stage);
        let plain = |name: &str, inputs, outputs, bias| {
            let config = ConvConfig {
                bias,
                ..ConvConfig::default()
            };
            nn::conv2d(&at(vs, name), inputs, outputs, 1, config)
        };
        let norm = |name: &str, channels| nn::batch_norm(&at(vs, name), channels, 0.1, 1e-5);
        let strips = "token_mixing.smlp_block";
        let of = |part: &str| format!("{strips}.{part}");
        let half = c / 2;
        let shared = if c % 80 == 0 { 2 } else { 4 };
        let groups = half / shared;
        let strip = |part: &str| {
            rect_conv(
                &at(vs, &of(part)),
                [groups * side, side, 1, 3],
                groups,
                true,
            )
        };
        let depthwise = |name: &str, channels, height, width| {
            rect_conv(&at(vs, name), [channels, 1, height, width], channels, false)
        };
        let table = |part: &str| {
            let vs = at(vs, &of(part));
            normal(&vs, "embeddings_table", &[2 * side + 1, half], 0.02)
        };
        let token = Token {
            norm: norm("token_mixing.dwsc.conv_merge.BN", c),
            near: depthwise("token_mixing.dwsc.conv_merge.Conv", c, 3, 3),
            mlp: plain(&of("mlp.0"), c, c, true),
            mlp_norm: norm(&of("mlp.1"), c),
            rows: strip("proj_h"),
            columns: strip("proj_w"),
            row_places: table("relate_pos_h"),
            column_places: table("relate_pos_w"),
            fuse_rows: plain(&of("fuse_h"), c, half, false),
            rows_norm: norm(&of("BN"), half),
            fuse_columns: plain(&of("fuse_w"), c, half, false),
            wide: depthwise(&of("fc_h"), half, 3, 7),
            tall: depthwise(&of("fc_w"), half, 7, 3),
            weights: [
                plain(&of("reweight.fc1"), half, half / 2, true),
                plain(&of("reweight.fc2"), half / 2, 3 * half, true),
            ],
            fuse: plain(&of("fuse"), c, c, false),
            shared,
        };
        let hidden = EXPANSION * c;
        let response = |part: &str| {
            let vs = at(vs, "channel_mixing.grn");
            parameter(&vs, part, &Tensor::zeros([1, 1, 1, hidden], CPU))
        };
        let channel = Channel {
            far: depthwise("channel_mixing.conv_77", c, 7, 7),
            norm: nn::layer_norm(&at(vs, "channel_mixing.layer_norm"), &[c], 1e-5),
            fc1: nn::linear(&at(vs, "channel_mixing.fc1"), c, hidden),
            fc2: nn::linear(&at(vs, "channel_mixing.fc2"), hidden, c),
            gamma: response("gamma"),
            beta: response("beta"),
        };
        Block {
            token,
            channel,
            drop_path: self.drop_path_rate,
        }
    }
}

/// A built Strip-MLP.
#[derive(Debug)]
pub struct StripMlp {
    patches: Conv,
    stages: Vec<Vec<Block>>,
    merging: [Conv; 3],
    /// From the first merged map to the third stage, from there to the fourth, and from the second merged map to the fourth.
    skips: [Conv; 3],
    head: Option<(BatchNorm, Linear)>,
    config: StripMlpConfig,
}

#[derive(Debug)]
struct Block {
    token: Token,
    channel: Channel,
    drop_path: f64,
}

impl Block {
    /// `[batch, channels, side, side]`, and so it stays.
    fn forward(&self, xs: &Tensor, train: bool) -> Tensor {
        let xs = xs + drop_path(&self.token.forward(xs, train), self.drop_path, train);
        &xs + drop_path(&self.channel.forward(&xs), self.drop_path, train)
    }
}

/// Mixes pixels.
#[derive(Debug)]
struct Token {
    norm: BatchNorm,
    near: RectConv,
    mlp: Conv,
    mlp_norm: BatchNorm,
    rows: RectConv,
    columns: RectConv,
    row_places: Tensor,
    column_places: Tensor,
    fuse_rows: Conv,
    rows_norm: BatchNorm,
    fuse_columns: Conv,
    wide: RectConv,
    tall: RectConv,
    weights: [Conv; 2],
    fuse: Conv,
    /// Channels that share a strip's matrix.
    shared: i64,
}

impl Token {
    fn forward(&self, xs: &Tensor, train: bool) -> Tensor {
        let xs = self
            .near
            .forward(&xs.apply_t(&self.norm, train).gelu("none"));
        let xs = self
            .mlp
            .forward(&xs)
            .apply_t(&self.mlp_norm, train)
            .gelu("none");
        let halves = xs.chunk(2, 1);
        let joined = [self.strips(&halves[0], train), self.neighbours(&halves[1])];
        self.fuse.forward(&Tensor::cat(&joined, 1))
    }

    /// Along the rows, then along the columns: `[batch, half, side, side]`, and so it stays.
    fn strips(&self, xs: &Tensor, train: bool) -> Tensor {
        let size = xs.size();
        let [batch, half, side] = [size[0], size[1], size[2]];
        let groups = half / self.shared;
        let parts = [batch, self.shared, groups, side, side];
        // A pixel of a row is a channel of the convolution, which slides over rows.
        let turned = (xs + places(&self.row_places, side))
            .view(parts)
            .permute([0, 2, 4, 1, 3])
            .reshape([batch, groups * side, self.shared, side]);
        let rows = self
            .rows
            .forward(&turned)
            .view([batch, groups, side, self.shared, side])
            .permute([0, 3, 1, 4, 2])
            .reshape(&size);
        let ys = self.fuse_rows.forward(&Tensor::cat(&[&rows, xs], 1));
        let ys =
            ys.apply_t(&self.rows_norm, train).gelu("none") + places(&self.column_places, side);
        let turned = ys
            .view([batch, self.shared, groups * side, side])
            .transpose(1, 2);
        let columns = self.columns.forward(&turned).transpose(1, 2).reshape(&size);
        self.fuse_columns.forward(&Tensor::cat(&[xs, &columns], 1))
    }

    /// Each pixel with those around it: weights of the three parts by channel, from the whole map.
    fn neighbours(&self, xs: &Tensor) -> Tensor {
        let (wide, tall) = (self.wide.forward(xs), self.tall.forward(xs));
        let mean = (&tall + &wide + xs).mean_dim([-2i64, -1].as_slice(), true, None);
        let hidden = self.weights[0].forward(&mean).gelu("none");
        let weights = self.weights[1]
            .forward(&hidden)
            .view([xs.size()[0], -1, 3, 1, 1])
            .softmax(2, None);
        let of = |part| weights.select(2, part); // [batch, half, 1, 1]
        tall * of(0) + wide * of(1) + xs * of(2)
    }
}

/// What is added at row h and column w: the table's row w - h. `[half, side, side]`.
fn places(table: &Tensor, side: i64) -> Tensor {
    let line = Tensor::arange(side, (Kind::Int64, table.device()));
    let apart = line.unsqueeze(0) - line.unsqueeze(1) + side; // [h, w]
    table
        .index_select(0, &apart.flatten(0, 1))
        .view([side, side, -1])
        .permute([2, 0, 1])
}

/// Mixes channels.
#[derive(Debug)]
struct Channel {
    far: RectConv,
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    gamma: Tensor,
    beta: Tensor,
}

impl Channel {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let xs = self.far.forward(xs).permute([0, 2, 3, 1]); // channels last
        let hidden = self.fc1.forward(&self.norm.forward(&xs)).gelu("none");
        // Response normalisation: each channel by its length over the map, against the mean of all channels.
        let length = hidden.norm_scalaropt_dim(2.0, [1i64, 2], true);
        let relative = &length / (length.mean_dim([-1i64].as_slice(), true, None) + 1e-6);
        let hidden = &self.gamma * (&hidden * relative) + &self.beta + hidden;
        self.fc2.forward(&hidden).permute([0, 3, 1, 2])
    }
}

impl StripMlp {
    /// Logits `[batch, classes]` of pictures `[batch, in_chans, img_size, img_size]`, normalised.
    ///
    /// # Errors
    /// [`Error::Shape`] for pictures that do not fit; [`Error::Config`] when it was built without a head.
    pub fn logits(&self, image: &Tensor, train: bool) -> Result<Tensor> {
        let (norm, linear) = self.head.as_ref().ok_or_else(|| {
            Error::config(
                "features",
                "this model has no head; ask it for its features",
            )
        })?;
        let maps = self.features(image, train)?;
        let pooled = maps[3]
            .apply_t(norm, train)
            .mean_dim([-2i64, -1].as_slice(), false, None);
        Ok(linear.forward(&pooled))
    }

    /// Maps of the four stages, `[batch, embed_dim · 2^i, side / 2^i, side / 2^i]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for pictures that do not fit.
    pub fn features(&self, image: &Tensor, train: bool) -> Result<Vec<Tensor>> {
        let config = &self.config;
        let side = Some(config.img_size);
        check::shape("image", image, &[None, Some(config.in_chans), side, side])?;
        check::kind("image", image, self.patches.weight.kind())?;
        let through = |stage: usize, xs: Tensor| {
            let blocks = self.stages[stage].iter();
            blocks.fold(xs, |xs, block| block.forward(&xs, train))
        };
        let first = through(0, self.patches.forward(image));
        let merged = self.merging[0].forward(&first);
        let to_third = self.skips[0].forward(&merged);
        let to_fourth = self.skips[1].forward(&to_third);
        let second = through(1, merged);
        let merged = self.merging[1].forward(&second);
        let to_fourth = to_fourth + self.skips[2].forward(&merged);
        let third = through(2, merged + to_third);
        let fourth = through(3, self.merging[2].forward(&third) + to_fourth);
        Ok(vec![first, second, third, fourth])
    }

    /// The config it was built from.
    pub fn config(&self) -> &StripMlpConfig {
        &self.config
    }
}

impl Model for StripMlp {
    fn forward_named(&self, inputs: &Tensors, train: bool) -> Result<Tensors> {
        let image = the_image(inputs)?;
        if self.config.features {
            return Ok(stages(self.features(image, train)?));
        }
        let logits = self.logits(image, train)?;
        Ok(Tensors::from([("logits".to_owned(), logits)]))
    }
}
