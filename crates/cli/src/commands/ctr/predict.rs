//! `densely ctr predict`: a table in, probabilities out, piece by piece.

use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use densely_core::{Error, Result, fs};
use densely_data::write::{Format, Writer};
use densely_data::{Batches, Output, RowBatch};
use densely_recsys::Fitted;
use densely_recsys::feature_map::texts_of;
use densely_train::machine::peak_rss_mb;
use serde_json::json;

use crate::Common;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely ctr predict runs/ads new_ads.csv --keep user,item --out predictions.csv"
)]
pub(crate) struct Predict {
    /// Run folder of a fit.
    run: PathBuf,
    /// CSV, TSV or Parquet file with the columns that the model was trained on; others are ignored.
    table: PathBuf,
    /// CSV, TSV or Parquet file to write.
    #[arg(long)]
    out: PathBuf,
    /// Columns of the table that go along.
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    keep: Vec<String>,
    /// Rows that are read and predicted at once.
    #[arg(long, default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    batch_rows: u32,
}

pub(super) fn run(arguments: &Predict, common: &Common) -> Result<()> {
    let start = Instant::now();
    fs::refuse_overwriting("out", &arguments.out, &[&arguments.table])?;
    let format = Format::of(&arguments.out)?;
    let fitted = Fitted::open(&arguments.run, common.device.open()?)?;
    let mut columns = fitted.map.sources();
    for name in &arguments.keep {
        if !columns.contains(name) {
            columns.push(name.clone());
        }
    }
    let batches = Batches::open(&arguments.table, &columns, arguments.batch_rows as usize)?;
    let mut rows = 0;
    fs::write_with(&arguments.out, |file| {
        let mut writer = Writer::new(file, &arguments.out, format)?;
        // Reads in a thread of its own while the model works on the piece before.
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel::<Result<RowBatch>>(2);
            scope.spawn(move || {
                for piece in batches {
                    if send.send(piece).is_err() {
                        break;
                    }
                }
            });
            for piece in receive {
                let piece = piece?;
                let mut columns = Vec::new();
                for name in &arguments.keep {
                    columns.push((name.clone(), Output::Texts(texts_of(&piece, name)?)));
                }
                let probabilities = fitted.predict(&piece)?;
                rows += probabilities.len();
                columns.push(("probability".to_owned(), Output::Numbers(probabilities)));
                writer.write(&columns)?;
            }
            Ok::<_, Error>(())
        })?;
        if rows == 0 {
            let reason = "the file has a header but no rows";
            return Err(Error::data(&arguments.table, reason));
        }
        writer.finish()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    if common.json {
        let peak = peak_rss_mb();
        println!(
            "{}",
            json!({ "rows": rows, "out": arguments.out, "seconds": seconds, "peak_mb": peak })
        );
    } else if !common.quiet {
        println!(
            "{rows} predictions in {} ({seconds:.1} s, {:.0} rows/s)",
            arguments.out.display(),
            rows as f64 / seconds
        );
    }
    Ok(())
}
