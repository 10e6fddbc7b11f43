//! `densely tabular predict`: a table in, predictions out, piece by piece.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use densely_core::{Error, Result, fs};
use densely_data::stream::{Piece, Pieces, TextFormat};
use densely_data::write::{Format, Writer};
use densely_data::{Output, RowEncoder};
use densely_tabular::fit::Fitted;
use densely_train::machine::peak_rss_mb;
use serde_json::json;

use crate::{Common, fitting};

/// What stands for standard input and output.
const STANDARD: &str = "-";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely tabular predict runs/houses new_houses.csv --out predictions.csv\n\
                  Through pipes: zcat new.csv.gz | densely tabular predict runs/houses - --keep id > predictions.csv"
)]
pub(crate) struct Predict {
    /// Run folder of a fit.
    run: PathBuf,
    /// Table with the columns that the model was trained on; others are ignored. `-` reads text from standard input.
    table: PathBuf,
    /// CSV, TSV or Parquet file to write; `-` is standard output.
    #[arg(long, default_value = STANDARD)]
    out: PathBuf,
    /// Column of the table that goes along, such as an identifier; may be given again.
    #[arg(long, value_name = "COLUMN")]
    keep: Vec<String>,
    /// Format of standard input.
    #[arg(long, default_value = "csv", value_parser = ["csv", "tsv"])]
    input_format: String,
    /// Format of standard output.
    #[arg(long, default_value = "csv", value_parser = ["csv", "tsv", "parquet"])]
    output_format: String,
    /// Rows that are read and predicted at once.
    #[arg(long, default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    batch_rows: u32,
}

pub(crate) fn run(arguments: &Predict, common: &Common) -> Result<()> {
    let start = Instant::now();
    let to_standard = arguments.out == Path::new(STANDARD);
    if !to_standard {
        fs::refuse_overwriting("out", &arguments.out, &[&arguments.table])?;
    }
    let fitted = Fitted::open(&arguments.run, common.device.open()?)?;
    let pieces = arguments.pieces(fitted.pipeline.preprocessor.row_encoder())?;
    let rows = if to_standard {
        let format = match arguments.output_format.as_str() {
            "tsv" => Format::Tsv,
            "parquet" => Format::Parquet,
            _ => Format::Csv,
        };
        predict(arguments, &fitted, pieces, std::io::stdout(), format)
    } else {
        let format = Format::of(&arguments.out)?;
        let mut rows = 0;
        fs::write_with(&arguments.out, |file| {
            rows = predict(arguments, &fitted, pieces, file, format)?;
            Ok(())
        })
        .map(|()| rows)
    }?;
    let seconds = start.elapsed().as_secs_f64();
    let summary = json!({
        "rows": rows,
        "out": arguments.out,
        "seconds": seconds,
        "peak_mb": peak_rss_mb(),
    });
    match (to_standard, common.json) {
        (false, true) => println!("{summary}"),
        (true, true) => eprintln!("{summary}"),
        (_, false) if !common.quiet => {
            let peak =
                peak_rss_mb().map_or_else(String::new, |mb| format!(", peak memory {mb:.0} MB"));
            let line = format!(
                "{rows} predictions in {} ({seconds:.1} s, {:.0} rows/s{peak})",
                arguments.out.display(),
                rows as f64 / seconds
            );
            if to_standard {
                eprintln!("{line}");
            } else {
                println!("{line}");
            }
        }
        _ => {}
    }
    Ok(())
}

impl Predict {
    fn pieces(&self, encoder: RowEncoder) -> Result<Pieces> {
        let size = self.batch_rows as usize;
        if self.table != Path::new(STANDARD) {
            return Pieces::open(&self.table, encoder, &self.keep, size);
        }
        let format = match self.input_format.as_str() {
            "tsv" => TextFormat::Tsv,
            _ => TextFormat::Csv,
        };
        let (input, name) = (Box::new(std::io::stdin()), Path::new("standard input"));
        Pieces::text(input, name, format, encoder, &self.keep, size)
    }
}

/// Reads in a thread of its own while the model works on the piece before.
fn predict<W: Write + Send>(
    arguments: &Predict,
    fitted: &Fitted,
    pieces: Pieces,
    into: W,
    format: Format,
) -> Result<u64> {
    let mut writer = Writer::new(into, &arguments.out, format)?;
    let mut rows = 0;
    std::thread::scope(|scope| {
        // Two pieces wait at most: memory is that of four.
        let (send, receive) = sync_channel::<Result<Piece>>(2);
        scope.spawn(move || {
            for piece in pieces {
                if send.send(piece).is_err() {
                    break;
                }
            }
        });
        for piece in receive {
            let Piece { rows: data, kept } = piece?;
            let predictions = fitted.predict_rows(&data)?;
            let classes = fitted.pipeline.preprocessor.classes();
            let mut columns: Vec<(String, Output)> = arguments
                .keep
                .iter()
                .cloned()
                .zip(kept.into_iter().map(Output::Texts))
                .collect();
            columns.extend(fitting::prediction_columns(&predictions, None, classes)?);
            writer.write(&columns)?;
            rows += data.len() as u64;
        }
        Ok::<_, Error>(())
    })?;
    if rows == 0 {
        return Err(Error::data(
            &arguments.table,
            "the file has a header but no rows",
        ));
    }
    writer.finish()?;
    Ok(rows)
}
