//! Loads a TabReD folder, looks at it, and fits a small TabM on its split.
//!
//! Run with `cargo run --example load_tabred [-- FOLDER [SPLIT]]`; without arguments on a made folder.
#![expect(clippy::print_stdout, reason = "an example talks")]

use std::path::{Path, PathBuf};

use densely_core::{Device, Error, Result};
use densely_tabular::fit::{FitOptions, fit};
use densely_tabular::settings::FitSettings;
use densely_tabular::tabred::{DEFAULT_SPLIT, TARGET, TabRed, npy};
use serde_json::json;

/// A folder as the package `tabred` downloads it: 1,200 rows in the order of time, whose target drifts.
fn made_folder(folder: &Path) -> Result<()> {
    let rows = 1200;
    let wave = |i: usize, step: usize| ((i * step) % 1009) as f32 / 504.0 - 1.0;
    let number = |i: usize| [wave(i, 37), wave(i, 53), wave(i, 71), wave(i, 97)];
    let x_num: Vec<f32> = (0..rows).flat_map(number).collect();
    let x_cat: Vec<i64> = (0..rows).map(|i| (i * i % 5) as i64).collect();
    let hours: Vec<i64> = (0..rows)
        .map(|i| 1_700_000_000_000_000 + i as i64 * 3_600_000_000)
        .collect();
    let target = |i: usize| {
        let x = &x_num[4 * i..4 * i + 4];
        x[0] * x[1] + x[2] + 0.3 * x_cat[i] as f32 + 0.2 * i as f32 / rows as f32
    };
    let y: Vec<f32> = (0..rows).map(target).collect();
    let splits = folder.join("splits").join(DEFAULT_SPLIT);
    std::fs::create_dir_all(&splits).map_err(Error::io(&splits))?;
    npy::write(&folder.join("x_num.npy"), &[rows, 4], &x_num)?;
    npy::write(&folder.join("x_cat.npy"), &[rows, 1], &x_cat)?;
    npy::write(&folder.join("x_meta.npy"), &[rows, 1], &hours)?;
    npy::write(&folder.join("y.npy"), &[rows], &y)?;
    for (part, range) in [
        ("train", 0..800_i64),
        ("val", 800..1000),
        ("test", 1000..1200),
    ] {
        let rows: Vec<i64> = range.collect();
        npy::write(&splits.join(format!("{part}.npy")), &[rows.len()], &rows)?;
    }
    let info = json!({ "name": "made", "task_type": "regression" });
    densely_core::fs::write(&folder.join("info.json"), info.to_string().as_bytes())
}

fn main() -> Result<()> {
    let work = std::env::temp_dir().join(format!("densely-load-tabred-{}", std::process::id()));
    let mut words = std::env::args().skip(1);
    let folder = if let Some(folder) = words.next() {
        PathBuf::from(folder)
    } else {
        made_folder(&work.join("made"))?;
        work.join("made")
    };
    let split = words.next().unwrap_or_else(|| DEFAULT_SPLIT.to_owned());

    let set = TabRed::open(&folder, &split)?;
    println!(
        "{}: {:?}, {} columns, {} rows, of which {} train, {} validate and {} test",
        set.info.name,
        set.info.task,
        set.table.names().len(),
        set.table.row_count(),
        set.split.train.len(),
        set.split.valid.len(),
        set.split.test.len()
    );
    for warning in &set.warnings {
        println!("note: {warning}");
    }

    // Roles, task and score come from the folder; what is set here wins.
    let mut settings: FitSettings = serde_json::from_value(json!({
        "data": { "target": TARGET },
        "model": { "preset": "tabm", "config": { "k": 8, "d_block": 32, "n_blocks": 2 } },
        "train": { "epochs": 30, "patience": 8 },
    }))
    .map_err(|e| Error::config("settings", e.to_string()))?;
    let prepared = set.prepare(&mut settings)?;
    let run = work.join("run");
    let options = FitOptions {
        folder: &run,
        table: &folder,
        seed: 0,
        device: Device::Cpu.open()?,
        resume: None,
    };
    let outcome = fit(&prepared, &settings, &options, &mut |_| {})?;
    for (metric, value) in &outcome.test {
        println!("test {} {value:.3}", metric.name());
    }
    std::fs::remove_dir_all(&work).map_err(Error::io(&work))
}
