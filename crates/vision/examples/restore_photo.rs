//! Restores a photograph of any size by tiles.
//!
//! ```text
//! cargo run --example restore_photo -- runs/denoise/seed-0 photo.jpg restored.png
//! ```
#![expect(clippy::print_stderr, reason = "an example talks")]

use std::path::Path;

use densely_core::{Device, Error, Result};
use densely_data::image;
use densely_vision::restoration::{RestoreOptions, Restorer};
use densely_vision::transforms::to_image;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
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
