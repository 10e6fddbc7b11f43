//! MAXIM: images are restored by a U-shaped network that mixes pixels by MLPs, within blocks and across a grid.
//!
//! Tu et al., "MAXIM: multi-axis MLP for image processing", CVPR 2022, arXiv 2201.02973; after the released JAX code, whose names the parameters
//! carry with `.` for `/`, `weight` for `kernel` and `scale`.
//!
//! ```text
//! stage:  inputs at 1, 1/2, 1/4 ─ three encoders ─ two bottlenecks ─ cross gating of all scales ─ three decoders ─ an image at each scale
//! ```
//!
//! Later stages see the former one's images through supervised attention, and its encoders and decoders through cross gating.

use densely_core::nn::{Conv, LayerNorm, Linear};
use densely_core::{Error, Model, Result, Tensors, check};
use tch::nn::Module;
use tch::{Kind, Tensor};

use crate::layers::the_image;

mod config;
mod fast;

pub use config::MaximConfig;

/// Scales of the U: sides of 1, 1/2 and 1/4.
const LEVELS: usize = 3;

/// A transposed convolution that doubles both sides.
#[derive(Debug)]
struct Up {
    weight: Tensor,
    bias: Tensor,
}

impl Module for Up {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.conv_transpose2d(
            &self.weight,
            Some(&self.bias),
            [2, 2],
            [0, 0],
            [0, 0],
            1,
            [1, 1],
        )
    }
}

/// Channels last, as layers and norms take them.
fn last(xs: &Tensor) -> Tensor {
    xs.permute([0, 2, 3, 1])
}

fn first(xs: &Tensor) -> Tensor {
    xs.permute([0, 3, 1, 2])
}

fn gelu(xs: &Tensor) -> Tensor {
    xs.gelu("tanh")
}

/// Which pixels a mixing layer brings together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Axis {
    /// Those at the same place of all cells of a grid of side × side cells.
    Grid,
    /// Those of a block of side × side pixels.
    Block,
}

impl Axis {
    const fn name(self) -> &'static str {
        match self {
            Self::Grid => "Grid",
            Self::Block => "Block",
        }
    }

    /// `[batch, height, width, channels]` → `[batch, cells, pixels of a cell, channels]`.
    fn cut(self, xs: &Tensor, side: i64) -> Tensor {
        let size = xs.size();
        let [batch, height, width, channels] = [size[0], size[1], size[2], size[3]];
        let [high, wide] = self.cell(height, width, side);
        xs.reshape([batch, height / high, high, width / wide, wide, channels])
            .permute([0, 1, 3, 2, 4, 5])
            .reshape([batch, -1, high * wide, channels])
    }

    fn join(self, xs: &Tensor, [height, width]: [i64; 2], side: i64) -> Tensor {
        let (batch, channels) = (xs.size()[0], xs.size()[3]);
        let [high, wide] = self.cell(height, width, side);
        xs.reshape([batch, height / high, width / wide, high, wide, channels])
            .permute([0, 1, 3, 2, 4, 5])
            .reshape([batch, height, width, channels])
    }

    const fn cell(self, height: i64, width: i64, side: i64) -> [i64; 2] {
        match self {
            Self::Grid => [height / side, width / side],
            Self::Block => [side, side],
        }
    }

    /// A layer over the cells, or over the pixels of each.
    fn mix(self, xs: &Tensor, layer: &Linear) -> Tensor {
        let axis = match self {
            Self::Grid => 1,
            Self::Block => 2,
        };
        layer.forward(&xs.transpose(axis, -1)).transpose(axis, -1)
    }
}

#[derive(Debug)]
struct Gmlp {
    norm: LayerNorm,
    input: Linear,
    inner_norm: LayerNorm,
    mix: Linear,
    output: Linear,
    axis: Axis,
}

impl Gmlp {
    /// `[batch, height, width, channels]`, and so it stays.
    fn forward(&self, xs: &Tensor, side: i64) -> Tensor {
        let size = [xs.size()[1], xs.size()[2]];
        let xs = self.axis.cut(xs, side);
        let halves = gelu(&self.input.forward(&self.norm.forward(&xs))).chunk(2, -1);
        let gate = self
            .axis
            .mix(&self.inner_norm.forward(&halves[1]), &self.mix);
        let ys = self.output.forward(&(&halves[0] * (gate + 1.0)));
        self.axis.join(&(xs + ys), size, side)
    }
}

/// The multi-axis block.
#[derive(Debug)]
struct Mixing {
    norm: LayerNorm,
    input: Linear,
    grid: Gmlp,
    block: Gmlp,
    output: Linear,
    side: i64,
}

impl Mixing {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let xs = last(xs);
        let halves = gelu(&self.input.forward(&self.norm.forward(&xs))).chunk(2, -1);
        let mixed = [
            self.grid.forward(&halves[0], self.side),
            self.block.forward(&halves[1], self.side),
        ];
        first(&(self.output.forward(&Tensor::cat(&mixed, -1)) + xs))
    }
}

/// Channels weighted by what they are on average.
#[derive(Debug)]
struct ChannelAttention {
    squeeze: Conv,
    excite: Conv,
}

impl Module for ChannelAttention {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let mean = xs.mean_dim([-2i64, -1].as_slice(), true, None);
        xs * self
            .excite
            .forward(&self.squeeze.forward(&mean).relu())
            .sigmoid()
    }
}

#[derive(Debug)]
struct Rcab {
    norm: LayerNorm,
    first: Conv,
    second: Conv,
    attention: ChannelAttention,
}

impl Module for Rcab {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let ys = self.first.forward(&first(&self.norm.forward(&last(xs))));
        // leaky ReLU with slope 0.2
        let ys = ys.maximum(&(&ys * 0.2));
        xs + self.attention.forward(&self.second.forward(&ys))
    }
}

#[derive(Debug)]
struct Rdcab {
    norm: LayerNorm,
    first: Linear,
    second: Linear,
    attention: ChannelAttention,
}

impl Module for Rdcab {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let ys = gelu(&self.first.forward(&self.norm.forward(&last(xs))));
        xs + self.attention.forward(&first(&self.second.forward(&ys)))
    }
}

/// Pairs of mixing and an attention A, with what enters added again.
#[derive(Debug)]
struct Body<A> {
    input: Conv,
    groups: Vec<(Mixing, A)>,
}

impl<A: Module> Module for Body<A> {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let long = self.input.forward(xs);
        let groups = self.groups.iter();
        let deep = groups.fold(long.shallow_clone(), |xs, (mixing, attention)| {
            attention.forward(&mixing.forward(&xs))
        });
        deep + long
    }
}

#[derive(Debug)]
struct Gate {
    norm: LayerNorm,
    input: Linear,
    grid: Linear,
    block: Linear,
    output: Linear,
    side: i64,
}

impl Gate {
    /// `[batch, height, width, channels]`, and so it stays.
    fn forward(&self, xs: &Tensor) -> Tensor {
        let size = [xs.size()[1], xs.size()[2]];
        let halves = gelu(&self.input.forward(&self.norm.forward(xs))).chunk(2, -1);
        let mixed = [
            (Axis::Grid, &self.grid, &halves[0]),
            (Axis::Block, &self.block, &halves[1]),
        ]
        .map(|(axis, layer, xs)| {
            axis.join(&axis.mix(&axis.cut(xs, self.side), layer), size, self.side)
        });
        self.output.forward(&Tensor::cat(&mixed, -1))
    }
}

#[derive(Debug)]
struct Half {
    conv: Conv,
    norm: LayerNorm,
    input: Linear,
    gate: Gate,
    output: Linear,
}

/// Two signals, each weighted by what the other says.
#[derive(Debug)]
struct CrossGate {
    up: Option<Up>,
    x: Half,
    y: Half,
}

impl CrossGate {
    fn forward(&self, xs: &Tensor, ys: &Tensor) -> [Tensor; 2] {
        let raised = self.up.as_ref().map(|up| up.forward(ys));
        let long_x = last(&self.x.conv.forward(xs));
        let long_y = last(&self.y.conv.forward(raised.as_ref().unwrap_or(ys)));
        let enter = |half: &Half, xs: &Tensor| gelu(&half.input.forward(&half.norm.forward(xs)));
        let (xs, ys) = (enter(&self.x, &long_x), enter(&self.y, &long_y));
        let (of_x, of_y) = (self.x.gate.forward(&xs), self.y.gate.forward(&ys));
        let ys = self.y.output.forward(&(ys * of_x)) + long_y;
        let xs = self.x.output.forward(&(xs * of_y)) + &ys + long_x;
        [first(&xs), first(&ys)]
    }
}

/// Supervised attention: the features behind a stage, weighted by the image that they give.
#[derive(Debug)]
struct Sam {
    features: Conv,
    image: Conv,
    attention: Conv,
}

impl Sam {
    /// Features for the next stage, and the image.
    fn forward(&self, xs: &Tensor, image: &Tensor) -> [Tensor; 2] {
        let restored = self.image.forward(xs) + image;
        let weights = self.attention.forward(&restored).sigmoid();
        [self.features.forward(xs) * weights + xs, restored]
    }
}

/// To another scale by bilinear interpolation, with antialiasing where it becomes smaller.
#[derive(Debug)]
struct Resize {
    to: usize,
    from: usize,
    conv: Conv,
}

impl Resize {
    fn forward(&self, xs: &Tensor) -> Tensor {
        self.conv.forward(&self.interpolated(xs))
    }

    fn interpolated(&self, xs: &Tensor) -> Tensor {
        let size = xs.size();
        let side = |side: i64| (side << self.from) >> self.to;
        let to = [side(size[2]), side(size[3])];
        match self.to.cmp(&self.from) {
            std::cmp::Ordering::Equal => xs.shallow_clone(),
            std::cmp::Ordering::Less => xs.upsample_bilinear2d(to, false, None, None),
            std::cmp::Ordering::Greater => {
                // libtorch has the smaller scales in full kinds only.
                let kind = match xs.kind() {
                    Kind::BFloat16 | Kind::Half => Kind::Float,
                    other => other,
                };
                xs.to_kind(kind)
                    .internal_upsample_bilinear2d_aa(to, false, None, None)
                    .to_kind(xs.kind())
            }
        }
    }
}

#[derive(Debug)]
struct Encoder {
    body: Body<Rcab>,
    cross: Option<CrossGate>,
    down: Conv,
}

#[derive(Debug)]
enum Output {
    Sam(Sam),
    Last(Conv),
}

#[derive(Debug)]
struct Decoder {
    resizes: [Resize; LEVELS],
    up: Up,
    body: Body<Rcab>,
    output: Output,
}

#[derive(Debug)]
struct Stage {
    inputs: [(Conv, Option<CrossGate>); LEVELS],
    encoders: [Encoder; LEVELS],
    bottlenecks: Vec<Body<Rdcab>>,
    /// From the smallest scale up.
    gates: Vec<([Resize; LEVELS], CrossGate)>,
    decoders: Vec<Decoder>,
}

/// What a stage hands on, the largest scale first.
#[derive(Debug)]
struct Handed {
    encoded: Vec<Tensor>,
    decoded: Vec<Tensor>,
    attended: Vec<Tensor>,
}

fn side_by_side(resizes: &[Resize; LEVELS], signals: &[Tensor]) -> Tensor {
    let resized = resizes
        .each_ref()
        .map(|resize| resize.forward(&signals[resize.from]));
    Tensor::cat(&resized, 1)
}

impl Stage {
    /// `images`: the input at the three scales. What the next stage takes, and the restored images, the smallest first.
    fn forward(&self, images: &[Tensor; LEVELS], before: Option<&Handed>) -> (Handed, Vec<Tensor>) {
        let scales: Vec<Tensor> = (0..LEVELS)
            .map(|level| {
                let (conv, fuse) = &self.inputs[level];
                let xs = conv.forward(&images[level]);
                match (fuse, before) {
                    (Some(fuse), Some(before)) => {
                        let [xs, _] = fuse.forward(&xs, &before.attended[level]);
                        xs
                    }
                    _ => xs,
                }
            })
            .collect();
        let mut xs = scales[0].shallow_clone();
        let mut encoded = Vec::with_capacity(LEVELS);
        for (level, encoder) in self.encoders.iter().enumerate() {
            let mut bridge = encoder
                .body
                .forward(&Tensor::cat(&[&xs, &scales[level]], 1));
            if let (Some(cross), Some(before)) = (&encoder.cross, before) {
                let other = &before.encoded[level] + &before.decoded[level];
                let [gated, _] = cross.forward(&bridge, &other);
                bridge = gated;
            }
            xs = encoder.down.forward(&bridge);
            encoded.push(bridge);
        }
        for bottleneck in &self.bottlenecks {
            xs = bottleneck.forward(&xs);
        }
        let mut global = xs.shallow_clone();
        let mut skips = Vec::with_capacity(LEVELS);
        for (resizes, gate) in &self.gates {
            let [skip, next] = gate.forward(&side_by_side(resizes, &encoded), &global);
            skips.insert(0, skip);
            global = next;
        }
        let (mut decoded, mut attended, mut restored) = (Vec::new(), Vec::new(), Vec::new());
        for (decoder, image) in self.decoders.iter().zip(images.iter().rev()) {
            let signal = side_by_side(&decoder.resizes, &skips);
            xs = decoder
                .body
                .forward(&Tensor::cat(&[decoder.up.forward(&xs), signal], 1));
            match &decoder.output {
                Output::Sam(sam) => {
                    let [features, output] = sam.forward(&xs, image);
                    attended.insert(0, features);
                    restored.push(output);
                }
                Output::Last(conv) => restored.push(conv.forward(&xs) + image),
            }
            decoded.insert(0, xs.shallow_clone());
        }
        let handed = Handed {
            encoded,
            decoded,
            attended,
        };
        (handed, restored)
    }
}

/// A built MAXIM.
#[derive(Debug)]
pub struct Maxim {
    stages: Vec<Stage>,
    config: MaximConfig,
}

impl Maxim {
    /// The images of each stage at 1/4, 1/2 and full size, for training: `image` `[batch, channels, height, width]` in [0, 1], with sides that
    /// are multiples of [`MaximConfig::multiple`].
    ///
    /// # Errors
    /// [`Error::Shape`] for images that do not fit.
    pub fn outputs(&self, image: &Tensor) -> Result<Vec<Vec<Tensor>>> {
        self.check(image)?;
        let multiple = self.config.multiple();
        let [height, width] = [image.size()[2], image.size()[3]];
        if height % multiple != 0 || width % multiple != 0 {
            return Err(Error::Shape {
                what: "image".to_owned(),
                expected: format!("sides that are multiples of {multiple}"),
                got: format!("{height} × {width}"),
            });
        }
        // Of each 2 × 2 (4 × 4) pixels the one right below the middle.
        let smaller = |level: i64| {
            let (step, start) = (1 << level, 1 << level >> 1);
            image
                .slice(2, start, None, step)
                .slice(3, start, None, step)
        };
        let images = [image.shallow_clone(), smaller(1), smaller(2)];
        let fast = fast::applies(&self.config, image);
        let mut before = None;
        let mut outputs = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            let (handed, restored) = if fast {
                stage.passed(&images, before.as_ref())?
            } else {
                stage.forward(&images, before.as_ref())
            };
            before = Some(handed);
            outputs.push(restored);
        }
        Ok(outputs)
    }

    /// The restored image `[batch, channels, height, width]` of one of any size, not clipped. Other sides than those of
    /// [`outputs`](Self::outputs) are padded by reflection, as in the released evaluation.
    ///
    /// # Errors
    /// [`Error::Shape`] for images that do not fit.
    pub fn restore(&self, image: &Tensor) -> Result<Tensor> {
        let outputs = self.padded_outputs(image)?;
        outputs
            .into_iter()
            .next_back()
            .and_then(|mut images| images.pop())
            .ok_or_else(|| Error::config("num_stages", "must be at least 1"))
    }

    /// [`outputs`](Self::outputs) of an image of any size, each cut to its part; smaller scales keep whole pixels.
    fn padded_outputs(&self, image: &Tensor) -> Result<Vec<Vec<Tensor>>> {
        self.check(image)?;
        let [rows, columns] =
            [2, 3].map(|axis| Padding::of(image.size()[axis], self.config.multiple()));
        let padded = columns.apply(&rows.apply(image, 2), 3);
        let outputs = self.outputs(&padded)?;
        let cut = |(place, xs): (usize, Tensor)| {
            let level = LEVELS - 1 - place;
            columns.cut(&rows.cut(&xs, 2, level), 3, level)
        };
        let stages = outputs.into_iter();
        Ok(stages
            .map(|images| images.into_iter().enumerate().map(cut).collect())
            .collect())
    }

    fn check(&self, image: &Tensor) -> Result<()> {
        check::shape(
            "image",
            image,
            &[None, Some(self.config.num_outputs), None, None],
        )?;
        check::kind("image", image, self.stages[0].inputs[0].0.weight.kind())?;
        if image.size().iter().all(|side| *side > 0) {
            return Ok(());
        }
        Err(Error::Shape {
            what: "image".to_owned(),
            expected: "at least one image of at least one pixel".to_owned(),
            got: format!("{:?}", image.size()),
        })
    }

    /// The config it was built from.
    pub fn config(&self) -> &MaximConfig {
        &self.config
    }
}

/// How an axis is padded.
#[derive(Debug, Clone, Copy)]
struct Padding {
    size: i64,
    /// Pixels before it; as many stand behind it, and one more where the size is odd.
    before: i64,
    padded: i64,
}

impl Padding {
    fn of(size: i64, multiple: i64) -> Self {
        let even = size + size % 2;
        let padded = (even + multiple - 1) / multiple * multiple;
        Self {
            size,
            before: (padded - even) / 2,
            padded,
        }
    }

    /// Odd sides become even first, then both ends are reflected, again and again where they reach further than the image.
    fn apply(self, xs: &Tensor, axis: i64) -> Tensor {
        if self.padded == self.size {
            return xs.shallow_clone();
        }
        let even = self.size + self.size % 2;
        let reflect = |place: i64, size: i64| {
            let period = (2 * (size - 1)).max(1);
            let place = place.rem_euclid(period);
            place.min(period - place).min(size - 1)
        };
        let places: Vec<i64> = (0..self.padded)
            .map(|place| reflect(reflect(place - self.before, even), self.size))
            .collect();
        xs.index_select(axis, &Tensor::from_slice(&places).to_device(xs.device()))
    }

    fn cut(self, xs: &Tensor, axis: i64, level: usize) -> Tensor {
        if self.padded == self.size {
            return xs.shallow_clone();
        }
        let scale = 1 << level;
        xs.narrow(axis, self.before / scale, (self.size + scale - 1) / scale)
    }
}

impl Model for Maxim {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        let image = the_image(inputs)?;
        let mut named = Tensors::new();
        for (stage, images) in self.padded_outputs(image)?.into_iter().enumerate() {
            for (scale, xs) in images.into_iter().enumerate() {
                named.insert("restored".to_owned(), xs.shallow_clone());
                named.insert(format!("stage{stage}_scale{scale}"), xs);
            }
        }
        Ok(named)
    }
}
