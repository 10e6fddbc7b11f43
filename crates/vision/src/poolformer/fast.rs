//! The blocks of version 1 by fused operations, where they apply; else one operation after another.

use densely_core::{Error, Result, nn};
use densely_torch_ext::{fused, pool};
use tch::{Kind, Tensor};

use super::{Act, Block, Mix, PoolFormer, Scales};
use crate::layers::{PictureNorm, drop_path_shares};

/// Added to the variances of version 1.
pub(super) const EPS: f64 = 1e-5;

impl Block {
    /// The parameters as the fused operations take them; none of version 2, other mixers and widths.
    fn fused(&self) -> Option<pool::Block<'_>> {
        let (
            [PictureNorm::Affine(norm1), PictureNorm::Affine(norm2)],
            Mix::Pool(3),
            Act::Gelu,
            Scales::Branches([scale1, scale2]),
            Some(bias1),
            Some(bias2),
        ) = (
            &self.norms,
            &self.mixer,
            &self.act,
            &self.scales,
            self.fc1.bias.as_ref(),
            self.fc2.bias.as_ref(),
        )
        else {
            return None;
        };
        let block = pool::Block {
            norm1: [&norm1.weight, &norm1.bias],
            scale1,
            norm2: [&norm2.weight, &norm2.bias],
            fc1: [&self.fc1.weight, bias1],
            fc2: [&self.fc2.weight, bias2],
            scale2,
        };
        block.fits().then_some(block)
    }
}

/// The picture as its way through the network is fastest: the channels of each pixel side by side, where the blocks are fused.
pub(super) fn entered(model: &PoolFormer, image: &Tensor) -> Result<Tensor> {
    let blocks = model.stages.iter().flat_map(|stage| &stage.blocks);
    if pool::kind(image).is_some() && blocks.take(1).all(|block| block.fused().is_some()) {
        return nn::channels_last(image);
    }
    Ok(image.shallow_clone())
}

/// All blocks of a stage: `[batch, channels, height, width]`, and so it stays.
pub(super) fn blocks(blocks: &[Block], xs: Tensor, train: bool) -> Result<Tensor> {
    let plain = |xs: Tensor| {
        blocks
            .iter()
            .fold(xs, |xs, block| block.forward(&xs, train))
    };
    let fused: Option<Vec<_>> = blocks.iter().map(Block::fused).collect();
    let (Some(kind), Some(fused)) = (pool::kind(&xs), fused) else {
        return Ok(plain(xs));
    };
    let differentiable = train || fused::records_gradients();
    if differentiable && kind != Kind::Float {
        return Ok(plain(xs));
    }
    let last = xs.permute([0, 2, 3, 1]);
    let ys = if differentiable {
        let mut pairs = blocks.iter().zip(&fused);
        pairs.try_fold(last, |xs, (block, params)| {
            let kept = [(); 2].map(|()| drop_path_shares(&xs, block.drop_path, train));
            pool::block(&xs, params, kept.each_ref().map(Option::as_ref), EPS)
        })
    } else {
        pool::stage(&last, &fused, kind, EPS)
    };
    Ok(ys.map_err(Error::torch)?.permute([0, 3, 1, 2]))
}
