//! Fits a table from a file to predictions with the run folder, as `densely tabular fit` does, from Rust.
//!
//! Run with `cargo run --example fit_table [-- TABLE.csv TARGET]`; without arguments on a made table.
#![expect(clippy::print_stdout, reason = "an example talks")]

use std::fmt::Write;
use std::path::{Path, PathBuf};

use densely_core::{Device, Error, Result};
use densely_data::Table;
use densely_tabular::fit::{Event, FitOptions, Fitted, Prepared, fit};
use densely_tabular::settings::FitSettings;
use serde_json::json;

/// A table of houses, written to the temporary folder.
fn made_table(folder: &Path) -> Result<PathBuf> {
    let mut text = String::from("size,age,kind,price\n");
    for i in 0..600u32 {
        let (size, age) = (f64::from(i * 37 % 101) / 10.0, i * 53 % 89);
        let kind = ["house", "flat", "hut"][i as usize % 3];
        let price = 3.0 * size - 0.1 * f64::from(age) + f64::from(i % 3);
        let _ = writeln!(text, "{size},{age},{kind},{price}"); // writing to a String cannot fail
    }
    let path = folder.join("houses.csv");
    densely_core::fs::write(&path, text.as_bytes())?;
    Ok(path)
}

fn main() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("densely-fit-table-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let mut words = std::env::args().skip(1);
    let (path, target) = match (words.next(), words.next()) {
        (Some(path), Some(target)) => (PathBuf::from(path), target),
        _ => (made_table(&folder)?, "price".to_owned()),
    };
    // Every setting has a default; recipes and `config.toml` hold the same structure.
    let settings: FitSettings = serde_json::from_value(json!({
        "data": { "target": target },
        "model": { "preset": "tabm", "config": { "k": 8, "d_block": 32, "n_blocks": 2 } },
        "train": { "epochs": 30, "batch_size": 64 },
    }))
    .map_err(|e| Error::config("settings", e.to_string()))?;

    let table = Table::open(&path)?;
    let prepared = Prepared::new(&table, &settings.data)?;
    let run = folder.join("run");
    let device = Device::Cpu.open()?;
    let options = FitOptions {
        folder: &run,
        table: &path,
        seed: 0,
        device,
        resume: None,
    };
    let mut observe = |event: &Event| {
        if let Event::Epoch {
            epoch,
            score,
            improved: true,
        } = event
        {
            println!("epoch {epoch}: validation score {score:.3}");
        }
    };
    let outcome = fit(&prepared, &settings, &options, &mut observe)?;
    for (metric, value) in &outcome.test {
        println!("test {} {value:.3}", metric.name());
    }
    // The run folder is all that prediction needs.
    let (predictions, _) = Fitted::open(&run, device)?.predict(&table, false)?;
    println!(
        "first predictions: {:?}",
        Vec::<f64>::try_from(predictions.narrow(0, 0, 3))?
    );
    std::fs::remove_dir_all(&folder).map_err(Error::io(&folder))
}
