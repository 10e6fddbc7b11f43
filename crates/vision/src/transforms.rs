//! Pictures on their way into a model: random changes for training, crops for evaluation, mixing within a batch.
//!
//! Operations on [`Image<u8>`](densely_data::Image) give the values of Pillow, torchvision and timm where those have them, given the same
//! draws. The draws are this crate's own: [`Rng`].

pub(crate) mod checks;
pub mod color;
mod erase;
mod geometry;
mod mixup;
mod pair;
mod pipeline;
mod rand_augment;
mod rng;

use densely_core::{Error, Result, check};
use densely_data::Image;
use tch::{Kind, Tensor};

pub use color::ColorJitter;
pub use erase::{EraseMode, RandomErasing};
pub use geometry::{
    Interpolation, Padding, RandomCrop, RandomResizedCrop, Sampling, Window, affine, center_crop,
    crop, hflip, pad, resize_shorter, rot90, rotate, vflip,
};
pub use mixup::{Mix, Mixup};
pub use pair::PairTransform;
pub use pipeline::{Crop, EvalTransform, TrainTransform};
pub use rand_augment::{Action, Op, RandAugment};
pub use rng::Rng;

/// Mean of red, green and blue over the usual photographs, values from 0 to 1.
pub const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];

/// Standard deviation of red, green and blue over the usual photographs.
pub const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

/// The nearest picture of 8 bits to `xs`, values from 0 to 1; those beyond are cut off, and what is no number becomes 0.
///
/// # Shapes
/// `xs`: `[channels, height, width]`, floats, 1 or 3 channels.
///
/// # Errors
/// [`Error::Shape`] for another size.
pub fn to_image(xs: &Tensor) -> Result<Image> {
    check::shape("picture", xs, &[None; 3])?;
    let (channels, height, width) = xs.size3()?;
    // In place: of a large picture each copy is large.
    let bytes = (xs.to_kind(Kind::Float) * 255.0)
        .nan_to_num_(0.0, None::<f64>, None::<f64>)
        .round_()
        .clamp_(0.0, 255.0)
        .to_kind(Kind::Uint8)
        .permute([1, 2, 0])
        .contiguous()
        .view([-1]);
    let pixels = Vec::<u8>::try_from(bytes)?;
    Image::new(width as usize, height as usize, channels as usize, pixels)
}

/// Each channel minus its mean, by its standard deviation.
///
/// # Shapes
/// `xs`: `[channels, height, width]` or `[batch, channels, height, width]`, floats.
///
/// # Errors
/// [`Error::Shape`] when the channels are not as many as `mean` and `std`.
pub fn normalize(xs: &Tensor, mean: &[f64], std: &[f64]) -> Result<Tensor> {
    let size = xs.size();
    let channels = match size.as_slice() {
        [channels, _, _] | [_, channels, _, _] => *channels,
        _ => {
            return Err(Error::Shape {
                what: "picture".to_owned(),
                expected: "[channels, height, width], with a batch before or without".to_owned(),
                got: format!("{size:?}"),
            });
        }
    };
    same_channels(channels as usize, mean, std)?;
    let row = |values: &[f64]| {
        Tensor::from_slice(values)
            .to_kind(xs.kind())
            .to_device(xs.device())
            .view([-1, 1, 1])
    };
    Ok((xs - row(mean)) / row(std))
}

fn same_channels(channels: usize, mean: &[f64], std: &[f64]) -> Result<()> {
    if channels == mean.len() && channels == std.len() {
        return Ok(());
    }
    Err(Error::Shape {
        what: "picture".to_owned(),
        expected: format!(
            "as many channels as means ({}) and standard deviations ({})",
            mean.len(),
            std.len()
        ),
        got: channels.to_string(),
    })
}

/// [`normalize`] of [`Image::to_tensor`](densely_data::Image::to_tensor), bit for bit: by a table, as there are only 256 values.
fn to_normalized(image: &Image, mean: &[f64], std: &[f64]) -> Result<Tensor> {
    let channels = image.channels();
    same_channels(channels, mean, std)?;
    let mut values = Vec::with_capacity(image.pixels().len());
    for channel in 0..channels {
        let (mean, std) = (mean[channel] as f32, std[channel] as f32);
        let table: [f32; 256] = std::array::from_fn(|i| (i as f32 / 255.0 - mean) / std);
        let plane = image.pixels().iter().skip(channel).step_by(channels);
        values.extend(plane.map(|i| table[usize::from(*i)]));
    }
    let size = [channels, image.height(), image.width()].map(|n| n as i64);
    Ok(Tensor::from_slice(&values).view(size))
}
