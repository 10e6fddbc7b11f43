//! Chooses the frequency of a SIREN by the spectrum of a picture, trains it on every second pixel and judges it by all.
//!
//! ```text
//! cargo run --example fit_image -- photo.png
//! ```
//!
//! Without an argument it draws a picture of waves.
#![expect(clippy::print_stderr, reason = "an example talks")]

use std::path::Path;

use densely_core::tch::nn::VarStore;
use densely_core::tch::{Device, Kind, Tensor, no_grad};
use densely_core::{Error, Result, seeded};
use densely_data::Image;
use densely_data::image::{AnyImage, read};
use densely_fields::fresh::{Candidate, FreshOptions, Network, choose};
use densely_fields::metrics::SquaredError;
use densely_fields::signals::{Convention, Signal, Split, to_grid, to_unit};
use densely_fields::siren::SirenConfig;
use densely_train::optim::{AdamWConfig, OptimConfig};

fn main() -> Result<()> {
    let picture = match std::env::args().nth(1) {
        Some(path) => read(Path::new(&path))?,
        None => waves()?,
    };
    let convention = Convention::SYMMETRIC;
    let signal = Signal::from_image(picture, convention);
    let outputs = signal.channels() as i64;
    let settings = |first_omega: f64| SirenConfig {
        hidden: 64,
        outputs,
        first_omega,
        ..SirenConfig::siren_fresh()
    };

    let target = to_grid(&signal, &signal.select(Split::All)?.all()?.values)?.permute([2, 0, 1]);
    let omegas = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0];
    let candidates: Vec<Candidate> = omegas
        .map(|omega| {
            Candidate::new("first_omega", omega, move |seed| {
                let vs = VarStore::new(Device::Cpu);
                let field = seeded(seed, || settings(omega).build(&vs.root()))?;
                Ok(Box::new(move |xs: &Tensor| field.forward(xs)) as Network)
            })
        })
        .into();
    let options = FreshOptions {
        draws: 3,
        ..FreshOptions::default()
    };
    let choice = choose(&target, &candidates, &options, &mut |score| {
        eprintln!(
            "ω {:>3}: distance {:.3} ± {:.3}",
            score.value, score.mean, score.standard_error
        );
    })?;
    let omega = choice.chosen.value;

    let vs = VarStore::new(Device::Cpu);
    let field = seeded(0, || settings(omega).build(&vs.root()))?;
    let adam = AdamWConfig {
        lr: 1e-3,
        weight_decay: 0.0,
        ..AdamWConfig::default()
    };
    let mut optimizer = OptimConfig::AdamW(adam).build(&vs, &[])?;
    let every_second = signal.select(Split::Every(2))?;
    for step in 0..400 {
        let batch = every_second.draw(2048, step)?;
        optimizer.zero_grad()?;
        let error = field.forward(&batch.coordinates)? - &batch.values;
        let loss = error.square().mean(Kind::Float);
        loss.f_backward()?;
        optimizer.step()?;
    }

    let mut error = SquaredError::default();
    no_grad(|| {
        for batch in signal.select(Split::All)?.batches(1 << 14, None)? {
            let batch = batch?;
            let values = to_unit(&field.forward(&batch.coordinates)?, convention);
            error.add(&values, &to_unit(&batch.values, convention))?;
        }
        Ok::<_, Error>(())
    })?;
    eprintln!(
        "SIREN with ω {omega}: {:.1} dB on all pixels after 400 steps",
        error.psnr()
    );
    Ok(())
}

/// Two waves that cross, 96 × 128 pixels.
fn waves() -> Result<AnyImage> {
    let (width, height) = (128, 96);
    let pixels = (0..width * height).map(|i| {
        let (x, y) = ((i % width) as f64, (i / width) as f64);
        let value = 0.5 + 0.3 * (0.35 * x + 0.1 * y).sin() + 0.2 * (0.25 * y).cos();
        (value * 255.0) as u8
    });
    Ok(AnyImage::Eight(Image::new(
        width,
        height,
        1,
        pixels.collect(),
    )?))
}
