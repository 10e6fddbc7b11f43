//! Fits a field to a mesh and writes the surface that it has learnt.
//!
//! ```text
//! cargo run --example fit_mesh -- bunny.obj.gz learnt.ply
//! ```
//!
//! Without arguments it draws a box. The run folder is `runs/fit_mesh`; a second run goes on where it was stopped.
#![expect(clippy::print_stderr, reason = "an example talks")]

use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use densely_fields::Device;
use densely_fields::fit::{DataSettings, Field, FieldSettings, MeshSettings, fit};
use densely_fields::mesh::Mesh;
use densely_train::event::Event;
use densely_train::run::{FitOptions, ResumeFrom};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let run = Path::new("runs/fit_mesh");
    std::fs::create_dir_all("runs").map_err(Error::io("runs"))?;
    let mesh = match arguments.next() {
        Some(mesh) => mesh,
        None => a_box(Path::new("runs/box.ply"))?,
    };
    let out = arguments.next().unwrap_or_else(|| "runs/learnt.ply".into());

    let mut data = MeshSettings::new(mesh.to_string_lossy().into_owned());
    data.resolution = 64;
    let mut settings = FieldSettings::suggest(DataSettings::Mesh(data), None)?;
    settings.train.batch_size = 1 << 14;
    settings.train.epochs = 6;
    settings.train.epoch_steps = 50;
    let device = Device::Auto.open()?;
    let options = FitOptions {
        folder: run,
        table: &mesh,
        seed: 0,
        device,
        resume: run.join("last").is_dir().then_some(ResumeFrom::Last),
    };
    let outcome = fit(&settings, Path::new(""), &options, None, &mut |event| {
        if let Event::Epoch { epoch, score, .. } = event {
            eprintln!(
                "after {} steps distances are wrong by {score:.4}",
                (epoch + 1) * 50
            );
        }
    })?;
    eprintln!("{:?}", outcome.scores);

    let surface = Field::open(run, device)?.surface(128)?;
    surface.write(&out)?;
    eprintln!("{} triangles in {}", surface.faces().len(), out.display());
    Ok(())
}

/// A box of twelve triangles.
fn a_box(path: &Path) -> Result<PathBuf> {
    let corner = |i: u32| [i & 1, i >> 1 & 1, i >> 2 & 1].map(f64::from);
    let quads: [[u32; 4]; 6] = [
        [0, 2, 3, 1],
        [4, 5, 7, 6],
        [0, 1, 5, 4],
        [2, 6, 7, 3],
        [0, 4, 6, 2],
        [1, 3, 7, 5],
    ];
    let faces = quads.map(|[a, b, c, d]| [[a, b, c], [a, c, d]]);
    Mesh::new((0..8).map(corner).collect(), faces.as_flattened().to_vec())?.write(path)?;
    Ok(path.to_owned())
}
