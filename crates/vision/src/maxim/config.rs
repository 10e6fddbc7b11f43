//! Sizes of a MAXIM, and its first weights.

use densely_core::nn::{self, Conv, ConvConfig, LayerNorm, Linear, at, parameter};
use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Device, Kind, Tensor};

use super::{
    Axis, Body, ChannelAttention, CrossGate, Decoder, Encoder, Gate, Gmlp, Half, LEVELS, Maxim,
    Mixing, Output, Rcab, Rdcab, Resize, Sam, Stage, Up,
};
use crate::layers::normal;

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
const EPS: f64 = 1e-6;
const STD: f64 = 0.02;

/// Sizes of a MAXIM. Defaults are those of S-2, `maxim_s2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaximConfig {
    /// Channels at full size; each smaller scale has twice as many.
    pub features: i64,
    /// Stages, each of which restores the image.
    pub num_stages: i64,
    /// Pairs of mixing and channel attention in a block.
    pub num_groups: i64,
    /// Blocks at 1/8 of the size.
    pub num_bottleneck_blocks: i64,
    /// Channels over those inside the channel attention.
    pub channels_reduction: i64,
    /// Side of a block, and cells of the grid along a side, at sides of 1 and 1/2.
    pub block_size_hr: i64,
    /// The same at 1/4 and 1/8.
    pub block_size_lr: i64,
    /// Channels of an image.
    pub num_outputs: i64,
}

impl Default for MaximConfig {
    fn default() -> Self {
        Self {
            features: 32,
            num_stages: 2,
            num_groups: 2,
            num_bottleneck_blocks: 2,
            channels_reduction: 4,
            block_size_hr: 16,
            block_size_lr: 8,
            num_outputs: 3,
        }
    }
}

impl MaximConfig {
    fn stages(num_stages: i64) -> Self {
        Self {
            num_stages,
            ..Self::default()
        }
    }

    /// S-1.
    pub fn s1() -> Self {
        Self::stages(1)
    }

    /// S-2: deraining, dehazing, enhancement.
    pub fn s2() -> Self {
        Self::stages(2)
    }

    /// S-3: denoising, deblurring.
    pub fn s3() -> Self {
        Self::stages(3)
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for (field, size) in [
            ("features", self.features),
            ("num_stages", self.num_stages),
            ("num_groups", self.num_groups),
            ("num_bottleneck_blocks", self.num_bottleneck_blocks),
            ("channels_reduction", self.channels_reduction),
            ("block_size_hr", self.block_size_hr),
            ("block_size_lr", self.block_size_lr),
            ("num_outputs", self.num_outputs),
        ] {
            check::positive(field, size)?;
        }
        if self.features % self.channels_reduction != 0 {
            let reason = format!(
                "must be a multiple of channels_reduction, got {}",
                self.features
            );
            return Err(Error::config("features", reason));
        }
        Ok(())
    }

    /// Sides that the network itself takes are multiples of this: 64 as published. Others are padded.
    pub fn multiple(&self) -> i64 {
        let (a, b) = (2 * self.block_size_hr, 8 * self.block_size_lr);
        let (mut x, mut y) = (a, b);
        while y != 0 {
            (x, y) = (y, x % y);
        }
        a / x * b
    }

    fn width(&self, level: usize) -> i64 {
        self.features << level
    }

    fn block(&self, level: usize) -> i64 {
        if level < 2 {
            self.block_size_hr
        } else {
            self.block_size_lr
        }
    }

    /// Multiply-accumulates of all convolutions and layers for an image of these sides, multiples of [`multiple`](Self::multiple).
    pub fn macs(&self, height: i64, width: i64) -> u64 {
        let r = self.channels_reduction;
        let pixels = |level: usize| (height >> level) * (width >> level);
        let mixing = |c: i64, n: i64, b: i64| n * (10 * c * c + 2 * c * b * b);
        let attention = |c: i64| 2 * c * (c / r);
        let body = |level: usize, inputs: i64| {
            let (c, n, b) = (self.width(level), pixels(level), self.block(level));
            n * inputs * c + self.num_groups * (mixing(c, n, b) + n * 18 * c * c + attention(c))
        };
        let cross = |level: usize, inputs: i64| {
            let (c, n, b) = (self.width(level), pixels(level), self.block(level));
            n * (inputs * c + 4 * c * c + 2 * (4 * c * c + 2 * c * b * b))
        };
        let to_all = |level: usize| {
            let all: i64 = (0..LEVELS).map(|other| self.width(other)).sum();
            pixels(level) * all * self.width(level)
        };
        let image = |level: usize| pixels(level) * 9 * self.width(level) * self.num_outputs;
        let mut macs = 0;
        for number in 0..self.num_stages {
            for level in 0..LEVELS {
                let (c, n) = (self.width(level), pixels(level));
                // Inputs, encoder, and both uses of all scales with their gating and decoding.
                let above = if level == 0 { c } else { c / 2 };
                let below = self.width((level + 1).min(LEVELS - 1));
                macs += image(level) + body(level, above + c) + pixels(level + 1) * 16 * c * c;
                macs += 2 * to_all(level)
                    + 2 * n * below * c
                    + cross(level, 4 * c)
                    + body(level, 4 * c);
                if number > 0 {
                    macs += 2 * cross(level, 2 * c);
                }
                macs += if number + 1 < self.num_stages {
                    2 * image(level) + n * 9 * c * c
                } else {
                    image(level)
                };
            }
            let (c, n) = (self.width(2), pixels(3));
            let group = mixing(c, n, self.block_size_lr) + 2 * n * c * c + attention(c);
            macs += self.num_bottleneck_blocks * (n * c * c + self.num_groups * group);
        }
        macs as u64
    }

    /// Creates the parameters under `vs`.
    ///
    /// # Errors
    /// [`Error::Config`] when [`validate`](Self::validate) fails.
    pub fn build(&self, vs: &Path) -> Result<Maxim> {
        self.validate()?;
        let mut resizes = 0;
        let stages = (0..self.num_stages).map(|number| self.stage(vs, number, &mut resizes));
        Ok(Maxim {
            stages: stages.collect(),
            config: self.clone(),
        })
    }

    fn stage(&self, vs: &Path, number: i64, resizes: &mut i64) -> Stage {
        let of = |name: String| vs / format!("stage_{number}_{name}");
        let mut resize = |to: usize, from: usize| {
            let vs = vs / format!("UpSampleRatio_{resizes}");
            *resizes += 1;
            let conv = conv(&(&vs / "Conv_0"), self.width(from), self.width(to), 1);
            Resize { to, from, conv }
        };
        let later = number > 0;
        let inputs = [0, 1, 2].map(|level| {
            let conv = conv(
                &of(format!("input_conv_{level}")),
                self.num_outputs,
                self.width(level),
                3,
            );
            let width = self.width(level);
            let fuse = later.then(|| {
                self.cross(
                    &of(format!("input_fuse_sam_{level}")),
                    level,
                    [width; 2],
                    false,
                )
            });
            (conv, fuse)
        });
        let encoders = [0, 1, 2].map(|level| {
            // The level above gives its width, and the image's features of this level stand beside it.
            let above = if level == 0 {
                self.width(0)
            } else {
                self.width(level - 1)
            };
            let vs = of(format!("encoder_block_{level}"));
            let width = self.width(level);
            let down = conv_with(&(&vs / "Conv_1"), width, width, 4, 2);
            let cross =
                later.then(|| self.cross(&(&vs / "cross_gating_block"), level, [width; 2], false));
            Encoder {
                body: self.body(&vs, above + width, level),
                cross,
                down,
            }
        });
        let bottlenecks = (0..self.num_bottleneck_blocks)
            .map(|place| self.bottleneck(&of(format!("global_block_{place}"))));
        let bottlenecks = bottlenecks.collect();
        let mut gates = Vec::new();
        let mut from = self.width(2);
        for level in [2, 1, 0] {
            let resizes = [0, 1, 2].map(|other| resize(level, other));
            let vs = of(format!("cross_gating_block_{level}"));
            let gate = self.cross(&vs, level, [3 * self.width(level), from], true);
            from = self.width(level);
            gates.push((resizes, gate));
        }
        let mut decoders = Vec::new();
        let mut from = self.width(2);
        for level in [2, 1, 0] {
            let resizes = [2, 1, 0].map(|other| resize(level, other));
            let vs = of(format!("decoder_block_{level}"));
            let width = self.width(level);
            let up = up(&(&vs / "ConvTranspose_0"), from, width);
            from = width;
            let body = self.body(&(&vs / "UNetEncoderBlock_0"), 4 * width, level);
            let output = if number + 1 < self.num_stages {
                let vs = of(format!("supervised_attention_module_{level}"));
                Output::Sam(Sam {
                    features: conv(&(&vs / "Conv_0"), width, width, 3),
                    image: conv(&(&vs / "Conv_1"), width, self.num_outputs, 3),
                    attention: conv(&(&vs / "Conv_2"), self.num_outputs, width, 3),
                })
            } else {
                Output::Last(conv(
                    &of(format!("output_conv_{level}")),
                    width,
                    self.num_outputs,
                    3,
                ))
            };
            decoders.push(Decoder {
                resizes,
                up,
                body,
                output,
            });
        }
        Stage {
            inputs,
            encoders,
            bottlenecks,
            gates,
            decoders,
        }
    }

    /// The pairs of a block; digits are glued as in the released names.
    fn body(&self, vs: &Path, inputs: i64, level: usize) -> Body<Rcab> {
        let width = self.width(level);
        let groups = (0..self.num_groups).map(|group| {
            let mixing = mixing(
                &(vs / format!("SplitHeadMultiAxisGmlpLayer_{group}")),
                width,
                self.block(level),
            );
            let vs = vs / format!("channel_attention_block_1{group}");
            let attention = Rcab {
                norm: norm(&vs, "LayerNorm", width),
                first: conv(&(&vs / "conv1"), width, width, 3),
                second: conv(&(&vs / "conv2"), width, width, 3),
                attention: self.attention(&(&vs / "channel_attention"), width),
            };
            (mixing, attention)
        });
        Body {
            groups: groups.collect(),
            input: conv(&(vs / "Conv_0"), inputs, width, 1),
        }
    }

    fn bottleneck(&self, vs: &Path) -> Body<Rdcab> {
        let width = self.width(2);
        let groups = (0..self.num_groups).map(|group| {
            let mixing = mixing(
                &(vs / format!("SplitHeadMultiAxisGmlpLayer_{group}")),
                width,
                self.block_size_lr,
            );
            let vs = vs / format!("channel_attention_block_1_{group}");
            let attention = Rdcab {
                norm: norm(&vs, "LayerNorm", width),
                first: dense(&at(&vs, "channel_mixing.Dense_0"), width, width, 0.0),
                second: dense(&at(&vs, "channel_mixing.Dense_1"), width, width, 0.0),
                attention: self.attention(&(&vs / "channel_attention"), width),
            };
            (mixing, attention)
        });
        Body {
            groups: groups.collect(),
            input: conv(&(vs / "input_proj"), width, width, 1),
        }
    }

    fn attention(&self, vs: &Path, width: i64) -> ChannelAttention {
        let inner = width / self.channels_reduction;
        ChannelAttention {
            squeeze: conv(&(vs / "Conv_0"), width, inner, 1),
            excite: conv(&(vs / "Conv_1"), inner, width, 1),
        }
    }

    /// `inputs` of x and of y; with `upsample` y comes from the scale below.
    fn cross(&self, vs: &Path, level: usize, inputs: [i64; 2], upsample: bool) -> CrossGate {
        let width = self.width(level);
        let side = self.block(level);
        let [from_x, mut from_y] = inputs;
        let up = upsample.then(|| {
            let layer = up(&(vs / "ConvTranspose_0"), from_y, width);
            from_y = width;
            layer
        });
        let half = |name: &str, number: i64, inputs: i64| {
            let gate = vs / format!("SplitHeadMultiAxisGating_{name}");
            Half {
                conv: conv(&(vs / format!("Conv_{number}")), inputs, width, 1),
                norm: norm(vs, &format!("LayerNorm_{name}"), width),
                input: projection(&(vs / format!("in_project_{name}")), width, width),
                gate: Gate {
                    norm: norm(&gate, "LayerNorm_in", width),
                    input: projection(&(&gate / "in_project"), width, 2 * width),
                    grid: dense(&(&gate / "Dense_0"), side * side, side * side, 1.0),
                    block: dense(&(&gate / "Dense_1"), side * side, side * side, 1.0),
                    output: projection(&(&gate / "out_project"), 2 * width, width),
                    side,
                },
                output: projection(&(vs / format!("out_project_{name}")), width, width),
            }
        };
        CrossGate {
            up,
            x: half("x", 0, from_x),
            y: half("y", 1, from_y),
        }
    }
}

fn mixing(vs: &Path, width: i64, block: i64) -> Mixing {
    let gmlp = |axis: Axis| {
        let name = axis.name();
        let vs = vs / format!("{name}GmlpLayer");
        let unit = &vs / format!("{name}GatingUnit");
        Gmlp {
            norm: norm(&vs, "LayerNorm", width),
            input: dense(&(&vs / "in_project"), width, 2 * width, 0.0),
            inner_norm: norm(&unit, "intermediate_layernorm", width),
            mix: dense(&(&unit / "Dense_0"), block * block, block * block, 0.0),
            output: dense(&(&vs / "out_project"), width, width, 0.0),
            axis,
        }
    };
    Mixing {
        norm: norm(vs, "LayerNorm_in", width),
        input: dense(&(vs / "in_project"), width, 2 * width, 0.0),
        grid: gmlp(Axis::Grid),
        block: gmlp(Axis::Block),
        output: dense(&(vs / "out_project"), 2 * width, width, 0.0),
        side: block,
    }
}

/// A weight from a normal distribution cut at two deviations, of variance 1 / fan-in (`LeCun`).
fn lecun(vs: &Path, size: &[i64], fan_in: i64) -> Tensor {
    const SHARE: f64 = 0.954_499_736_103_641_6; // of a normal distribution within two deviations
    const DEVIATION: f64 = 0.879_625_661_034_239_8; // of it, cut there
    let std = 1.0 / (fan_in as f64).sqrt() / DEVIATION;
    let drawn = nn::uniform(size, SHARE).erfinv() * (std * std::f64::consts::SQRT_2);
    parameter(vs, "weight", &drawn)
}

fn zeros(vs: &Path, count: i64) -> Tensor {
    parameter(vs, "bias", &Tensor::zeros([count], CPU))
}

fn conv_with(vs: &Path, inputs: i64, outputs: i64, side: i64, stride: i64) -> Conv {
    let weight = lecun(vs, &[outputs, inputs, side, side], inputs * side * side);
    let config = ConvConfig {
        stride,
        padding: (side - 1) / 2,
        ..ConvConfig::default()
    };
    Conv::of(weight, Some(zeros(vs, outputs)), config)
}

fn conv(vs: &Path, inputs: i64, outputs: i64, side: i64) -> Conv {
    conv_with(vs, inputs, outputs, side, 1)
}

/// A layer of the mixing parts: weight N(0, 0.02²).
fn dense(vs: &Path, inputs: i64, outputs: i64, bias: f64) -> Linear {
    Linear {
        weight: normal(vs, "weight", &[outputs, inputs], STD),
        bias: Some(parameter(vs, "bias", &Tensor::full([outputs], bias, CPU))),
    }
}

/// A layer of the gating parts.
fn projection(vs: &Path, inputs: i64, outputs: i64) -> Linear {
    Linear {
        weight: lecun(vs, &[outputs, inputs], inputs),
        bias: Some(zeros(vs, outputs)),
    }
}

fn norm(vs: &Path, name: &str, width: i64) -> LayerNorm {
    nn::layer_norm(&(vs / name), &[width], EPS)
}

fn up(vs: &Path, inputs: i64, outputs: i64) -> Up {
    Up {
        weight: lecun(vs, &[inputs, outputs, 2, 2], inputs * 4),
        bias: zeros(vs, outputs),
    }
}
