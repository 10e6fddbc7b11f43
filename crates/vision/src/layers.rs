//! Blocks of image models that `densely_core::nn` lacks.

use densely_core::nn::{GroupNorm, parameter, uniform};
use densely_core::registry::take_inputs;
use densely_core::{Error, Result, Tensors};
use tch::nn::{Module, Path};
use tch::{Device, Kind, Tensor};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// A weight from N(0, std), whose values beyond ±2 would be drawn again: at the usual 0.02 there are none.
pub(crate) fn normal(vs: &Path, name: &str, size: &[i64], std: f64) -> Tensor {
    parameter(vs, name, &Tensor::empty(size, CPU).normal_(0.0, std))
}

/// Normalises all channels and pixels of a picture together, then scales channels; without a shift.
#[derive(Debug)]
pub struct ScaledGroupNorm {
    /// `[channels]`, starts at 1.
    pub weight: Tensor,
    /// Added to the variance.
    pub eps: f64,
}

impl Module for ScaledGroupNorm {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.group_norm(1, Some(&self.weight), None::<&Tensor>, self.eps, true)
    }
}

/// Normalises the channels of each pixel, then scales them; without a shift.
#[derive(Debug)]
pub struct PixelNorm {
    /// `[channels]`, starts at 1.
    pub weight: Tensor,
    /// Added to the variance.
    pub eps: f64,
}

/// A [`PixelNorm`].
pub fn pixel_norm(vs: &Path, channels: i64, eps: f64) -> PixelNorm {
    PixelNorm {
        weight: parameter(vs, "weight", &Tensor::ones([channels], CPU)),
        eps,
    }
}

impl Module for PixelNorm {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.permute([0, 2, 3, 1])
            .layer_norm(
                self.weight.size(),
                Some(&self.weight),
                None::<&Tensor>,
                self.eps,
                true,
            )
            .permute([0, 3, 1, 2])
    }
}

/// One group per picture, with a shift or without.
#[derive(Debug)]
pub enum PictureNorm {
    /// Scale and shift.
    Affine(GroupNorm),
    /// Scale alone.
    Scaled(ScaledGroupNorm),
}

impl Module for PictureNorm {
    fn forward(&self, xs: &Tensor) -> Tensor {
        match self {
            Self::Affine(norm) => norm.forward(xs),
            Self::Scaled(norm) => norm.forward(xs),
        }
    }
}

/// s · relu(x)² + b with trained numbers s and b: StarReLU.
#[derive(Debug)]
pub struct StarRelu {
    /// `[1]`, starts at 1.
    pub scale: Tensor,
    /// `[1]`, starts at 0.
    pub bias: Tensor,
}

/// A [`StarRelu`].
pub fn star_relu(vs: &Path) -> StarRelu {
    StarRelu {
        scale: parameter(vs, "scale", &Tensor::ones([1], CPU)),
        bias: parameter(vs, "bias", &Tensor::zeros([1], CPU)),
    }
}

impl Module for StarRelu {
    fn forward(&self, xs: &Tensor) -> Tensor {
        &self.scale * xs.relu().square() + &self.bias
    }
}

/// In training leaves the branch out of whole rows with probability `p`, and scales those that stay by 1 / (1 - p).
///
/// # Shapes
/// `[batch, channels, height, width]`.
pub fn drop_path(xs: &Tensor, p: f64, train: bool) -> Tensor {
    match drop_path_shares(xs, p, train) {
        Some(shares) => xs * shares,
        None => xs.shallow_clone(),
    }
}

/// By what [`drop_path`] multiplies each row of `xs`, `[batch, 1, 1, 1]`; `None` where it does nothing.
pub(crate) fn drop_path_shares(xs: &Tensor, p: f64, train: bool) -> Option<Tensor> {
    if !train || p <= 0.0 {
        return None;
    }
    let rows = Tensor::rand([xs.size()[0], 1, 1, 1], (Kind::Float, xs.device()));
    Some(rows.ge(p).to_kind(xs.kind()) / (1.0 - p))
}

/// Of each window the mean over the pixels that lie in the picture, minus the middle: what PoolFormer mixes tokens by.
pub fn pool_difference(xs: &Tensor, size: i64) -> Tensor {
    let pad = size / 2;
    xs.avg_pool2d([size, size], [1, 1], [pad, pad], false, false, None::<i64>) - xs
}

/// A convolution with a window of any height and width, both odd, that keeps the map's size.
#[derive(Debug)]
pub struct RectConv {
    /// `[out, in/groups, height, width]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
    groups: i64,
}

/// A [`RectConv`] of a weight of this size; weight and bias start at U(±1/√fan-in), as `torch.nn.Conv2d` starts them.
pub fn rect_conv(vs: &Path, size: [i64; 4], groups: i64, bias: bool) -> RectConv {
    let bound = 1.0 / ((size[1] * size[2] * size[3]) as f64).sqrt();
    RectConv {
        weight: parameter(vs, "weight", &uniform(&size, bound)),
        bias: bias.then(|| parameter(vs, "bias", &uniform(&size[..1], bound))),
        groups,
    }
}

impl Module for RectConv {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let window = self.weight.size();
        let padding = [window[2] / 2, window[3] / 2];
        xs.conv2d(
            &self.weight,
            self.bias.as_ref(),
            [1, 1],
            padding,
            [1, 1],
            self.groups,
        )
    }
}

/// The only input of the models of this crate.
pub(crate) fn the_image(inputs: &Tensors) -> Result<&Tensor> {
    let [image] = take_inputs(inputs, ["image"])?;
    image.ok_or_else(|| Error::Shape {
        what: "image".to_owned(),
        expected: "a tensor".to_owned(),
        got: "none".to_owned(),
    })
}

/// Maps by the names `stage0` and so on.
pub(crate) fn stages(maps: Vec<Tensor>) -> Tensors {
    let maps = maps.into_iter().enumerate();
    maps.map(|(stage, map)| (format!("stage{stage}"), map))
        .collect()
}
