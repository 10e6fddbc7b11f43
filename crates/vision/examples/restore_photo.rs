//! Restores a photograph of any size by tiles.
//!
//! ```text
//! cargo run --example restore_photo -- runs/denoise/seed-0 photo.jpg restored.png
//! ```
//!
//! Without arguments it shows the tiles alone: a small network with its first weights on a made picture.
#![expect(clippy::print_stderr, reason = "an example talks")]

use std::path::Path;

use densely_core::{Device, Error, Result};
use densely_data::image;
use densely_vision::MaximConfig;
use densely_vision::restoration::{RestoreOptions, Restorer};
use densely_vision::tiles::Tiling;
use densely_vision::transforms::to_image;
use tch::Tensor;
use tch::nn::VarStore;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.is_empty() {
        return show();
    }
    let [run, from, to] = words.as_slice() else {
        return Err(Error::config(
            "arguments",
            "must be a run folder, a picture and a file to write",
        ));
    };
    let restorer = Restorer::open(Path::new(run), Device::Auto.open()?)?;
    let picture = image::read(Path::new(from))?;
    let picture = if restorer.channels() == 1 {
        picture.to_grey8()
    } else {
        picture.to_rgb8()
    };
    let restored = restorer.restore(
        &picture.to_tensor(),
        RestoreOptions::default(),
        &mut |done, all| {
            eprint!("\r{done} of {all} tiles");
        },
    )?;
    eprintln!();
    image::write_png(Path::new(to), &to_image(&restored)?)
}

fn show() -> Result<()> {
    let config = MaximConfig {
        features: 8,
        num_groups: 1,
        num_bottleneck_blocks: 1,
        ..MaximConfig::s1()
    };
    let vs = VarStore::new(tch::Device::Cpu);
    let model = densely_core::seeded(0, || config.build(&vs.root()))?;
    let picture = Tensor::rand([1, 3, 150, 270], tch::kind::FLOAT_CPU);
    let tiling = Tiling {
        tile: 128,
        overlap: 32,
    };
    let tiled = tiling.restore(
        &picture,
        &mut |tile| model.restore(tile),
        &mut |done, all| {
            eprint!("\r{done} of {all} tiles");
        },
    )?;
    let _no_grad = tch::no_grad_guard();
    let difference = (tiled - model.restore(&picture)?).abs();
    eprintln!(
        "; an untrained network: difference from the whole picture at once: mean {:.3}, largest {:.3}",
        difference.mean(None).double_value(&[]),
        difference.max().double_value(&[])
    );
    Ok(())
}
