//! A made table of the shape of `Criteo_x1` through feature map, encoding and one epoch: `cargo run --release --example stream_criteo -- --rows 1000000`.
//!
//! 13 numbers and 26 categories a row. Prints rows per second of each part and the peak memory; `--rows 33003326` is the size of the real
//! training file, which is then kept on the disk, encoded, beside the table.
#![expect(clippy::print_stdout, reason = "an example")]

use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use densely_core::{Error, Result, tch};
use densely_recsys::feature_map::{Column, Dtype, Kind};
use densely_recsys::fit::{FitOptions, fit};
use densely_recsys::optim::Mode;
use densely_recsys::settings::Split;
use densely_recsys::{CtrSettings, Options, Prepared};
use densely_train::machine::peak_rss_mb;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|word| word == "--rows");
    let rows = at
        .and_then(|at| arguments.get(at + 1)?.parse().ok())
        .unwrap_or(20_000);
    let folder = std::env::temp_dir().join(format!("stream_criteo.{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let table = folder.join("train.csv");
    write_table(&table, rows)?;

    let settings = settings(&table)?;
    let start = Instant::now();
    let prepared = Prepared::open(&table, &settings.data, &folder)?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "feature map and encoding: {rows} rows in {seconds:.1} s, {:.0} rows/s; {} table rows; encoded rows {}",
        rows as f64 / seconds,
        prepared.map.total_features(),
        if prepared.train.in_memory() {
            "in memory"
        } else {
            "in a file"
        }
    );
    let run = FitOptions {
        folder: &folder,
        table: &table,
        seed: 0,
        device: tch::Device::Cpu,
        resume: None,
    };
    let outcome = fit(&prepared, &settings, &run, &mut |_| {})?;
    let peak = peak_rss_mb().map_or_else(|| "unknown".to_owned(), |mb| format!("{mb:.0} MB"));
    println!(
        "one epoch, {} parameters, lazy rows: {:.0} rows/s; test AUC {:.3}; peak memory {peak}",
        outcome.parameters,
        outcome.train_rows_per_second.unwrap_or(0.0),
        outcome.test.auc.unwrap_or(f64::NAN),
    );
    drop(prepared);
    std::fs::remove_dir_all(&folder).map_err(Error::io(&folder))
}

/// `FinalMLP` with rows that are touched only where they occur.
fn settings(table: &Path) -> Result<CtrSettings> {
    let (mut settings, _) = Options::new("label").settings(table)?;
    let numbers = (1..=13).map(|at| Column::new(format!("I{at}"), Kind::Numeric));
    let categories = (1..=26).map(|at| Column {
        dtype: Dtype::Float,
        ..Column::new(format!("C{at}"), Kind::Categorical)
    });
    settings.data.columns = numbers.chain(categories).collect();
    settings.data.split = Split::Random {
        valid: 0.05,
        test: 0.05,
        seed: 0,
    };
    settings.train.optimizer.mode = Mode::Lazy;
    settings.train.batch_size = 4096;
    settings.train.epochs = 1;
    Ok(settings)
}

/// Ids come often or seldom, as in logs; a click depends on two of them.
fn write_table(path: &Path, rows: u64) -> Result<()> {
    let file = std::fs::File::create(path).map_err(Error::io(path))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let mut state = 1_u64;
    let mut draw = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f64 / (1_u64 << 24) as f64
    };
    let header = std::iter::once("label".to_owned())
        .chain((1..=13).map(|at| format!("I{at}")))
        .chain((1..=26).map(|at| format!("C{at}")));
    let header: Vec<String> = header.collect();
    let mut write = || -> std::io::Result<()> {
        writeln!(file, "{}", header.join(","))?;
        for _ in 0..rows {
            // The log of an id is uniform: a few ids are frequent, most are rare.
            let sizes = (0..26).map(|at| 10_f64.powi(1 + at % 6));
            let ids: Vec<u64> = sizes.map(|size| size.powf(draw()) as u64).collect();
            let chance = if (ids[0] + ids[1]).is_multiple_of(3) {
                0.5
            } else {
                0.15
            };
            write!(file, "{}", u8::from(draw() < chance))?;
            for _ in 0..13 {
                write!(file, ",{:.4}", draw())?;
            }
            for id in ids {
                write!(file, ",{id}.0")?;
            }
            writeln!(file)?;
        }
        file.flush()
    };
    write().map_err(Error::io(path))
}
