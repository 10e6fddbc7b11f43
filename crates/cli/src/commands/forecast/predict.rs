//! `densely forecast predict`: a table in, what comes next out.

use std::path::{Path, PathBuf};

use densely_core::{Result, fs};
use densely_data::stream::TextFormat;
use densely_data::write::{Format, Writer};
use densely_data::{Table, write_columns};
use densely_timeseries::forecast::Fitted;
use serde_json::json;

use super::say;
use crate::Common;

/// What stands for standard input and output.
const STANDARD: &str = "-";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely forecast predict runs/sales sales.csv --known-future promotions.csv --out next.csv\n\
                  Through pipes: zcat sales.csv.gz | densely forecast predict runs/sales - > next.csv"
)]
pub(crate) struct Predict {
    /// Run folder of a fit.
    run: PathBuf,
    /// Table with the history, the columns being those of the fit; rows behind the last target may tell the known columns' future. `-` reads text from
    /// standard input.
    table: PathBuf,
    /// Table with the future of the known columns: series, time and these columns.
    #[arg(long, value_name = "FILE")]
    known_future: Option<PathBuf>,
    /// CSV, TSV or Parquet file to write; `-` is standard output, as CSV.
    #[arg(long, default_value = STANDARD)]
    out: PathBuf,
    /// Format of standard input.
    #[arg(long, default_value = "csv", value_parser = ["csv", "tsv"])]
    input_format: String,
}

pub(super) fn run(arguments: &Predict, common: &Common) -> Result<()> {
    let to_standard = arguments.out == Path::new(STANDARD);
    let future = arguments.known_future.as_deref();
    if !to_standard {
        let inputs: Vec<&Path> = std::iter::once(&*arguments.table).chain(future).collect();
        fs::refuse_overwriting("out", &arguments.out, &inputs)?;
        Format::of(&arguments.out)?;
    }
    let fitted = Fitted::open(&arguments.run, common.device.open()?)?;
    let table = if arguments.table == Path::new(STANDARD) {
        let format = match arguments.input_format.as_str() {
            "tsv" => TextFormat::Tsv,
            _ => TextFormat::Csv,
        };
        Table::read(std::io::stdin(), Path::new("standard input"), format)?
    } else {
        Table::open(&arguments.table)?
    };
    let future = future.map(Table::open).transpose()?;
    let forecasts = fitted.predict(&table, future.as_ref())?;
    say(&forecasts.notes, common);
    if to_standard {
        let mut writer = Writer::new(std::io::stdout(), &arguments.out, Format::Csv)?;
        writer.write(&forecasts.columns)?;
        writer.finish()?;
    } else {
        write_columns(&arguments.out, &forecasts.columns)?;
    }
    let summary = json!({
        "series": forecasts.series,
        "steps": fitted.pipeline.horizon,
        "out": arguments.out,
        "notes": forecasts.notes,
    });
    let line = format!(
        "{} series, {} steps each, in {}",
        forecasts.series,
        fitted.pipeline.horizon,
        if to_standard {
            "standard output".to_owned()
        } else {
            arguments.out.display().to_string()
        }
    );
    match (to_standard, common.json) {
        (false, true) => println!("{summary}"),
        (true, true) => eprintln!("{summary}"),
        (false, false) if !common.quiet => println!("{line}"),
        (true, false) if !common.quiet => eprintln!("{line}"),
        _ => {}
    }
    Ok(())
}
