//! Fits one model to many series with a known covariate, forecasts what comes next, and tells what it took of memory.
//!
//! Run with `cargo run --example forecast_panel [-- SERIES STEPS]`; 30 series of 400 days when left out.
#![expect(clippy::print_stdout, reason = "an example talks")]

use std::path::Path;

use densely_core::{Device, Error, Result};
use densely_data::Table;
use densely_data::table::{Column, Values};
use densely_timeseries::forecast::{Model, Options};
use densely_train::peak_rss_mb;

const DAY: i64 = 86_400_000_000;

/// Sales of shops, day after day: a level of its own, a week, and promotions that are planned ahead. The last `future` days have no sales.
fn made_table(series: usize, steps: usize, future: usize) -> Result<Table> {
    let rows = series * (steps + future);
    let of = |row: usize| (row / (steps + future), row % (steps + future));
    // A cheap hash of shop and day decides on promotions and noise.
    let hash = |row: usize| {
        ((row as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64 / f64::from(1 << 24)
    };
    let promotion = |row: usize| f64::from(u8::from(hash(row) < 0.2));
    let sold = |row: usize| {
        let (shop, day) = of(row);
        let week = 0.3 * (std::f64::consts::TAU * day as f64 / 7.0).sin();
        let level = 20.0 + (shop % 50) as f64;
        level * (1.0 + week + 0.6 * promotion(row)) + hash(row + rows)
    };
    let sold = (0..rows).map(|row| {
        if of(row).1 < steps {
            sold(row)
        } else {
            f64::NAN
        }
    });
    let column = |name: &str, values| Column {
        name: name.to_owned(),
        values,
    };
    let shops = Values::Text {
        codes: (0..rows).map(|row| of(row).0 as u32).collect(),
        names: (0..series).map(|shop| format!("shop {shop}")).collect(),
    };
    let numbers = |values: Vec<f64>| Values::Number {
        values,
        integral: false,
    };
    Table::from_columns(
        Path::new("made"),
        vec![
            column("shop", shops),
            column(
                "day",
                Values::Time((0..rows).map(|row| of(row).1 as i64 * DAY).collect()),
            ),
            column("sold", numbers(sold.collect())),
            column("promotion", numbers((0..rows).map(promotion).collect())),
        ],
    )
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1).map(|word| word.parse::<usize>());
    let (series, steps) = match (words.next(), words.next()) {
        (Some(Ok(series)), Some(Ok(steps))) => (series, steps),
        _ => (30, 400),
    };
    let folder = std::env::temp_dir().join(format!("densely-panel-{}", std::process::id()));
    let mut options = Options::new(14, &folder);
    options.device = Device::Cpu;
    options.settings.quantiles = vec![0.1, 0.5, 0.9];
    options.settings.lookback = Some(28);
    options.settings.train.epochs = 2;
    // An epoch of so many windows, however many there are.
    options.settings.epoch_windows = 6_400;
    let data = &mut options.settings.data;
    data.series_id = vec!["shop".to_owned()];
    data.target = vec!["sold".to_owned()];
    data.known = vec!["promotion".to_owned()];

    let table = made_table(series, steps, 14)?;
    let before = peak_rss_mb();
    let model = Model::fit(&table, &options)?;
    for note in model.notes() {
        println!("{note}");
    }
    if let Some(test) = model.test() {
        let means = test.standardised();
        println!(
            "test: mae {:.3}, naive {:.3} standard deviations",
            means.mae, means.naive_mae
        );
    }
    let next = model.predict(&table, None)?;
    println!(
        "{} series forecast; columns: {}",
        next.series,
        next.columns
            .iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    );
    let rows = (series * (steps + 14)) as f64;
    let windows = (series * steps) as f64;
    if let (Some(before), Some(peak)) = (before, peak_rss_mb()) {
        println!(
            "peak memory {peak:.0} MB, {before:.0} MB of it with the table alone: {:.0} bytes per row; all windows at once would take {:.0} MB",
            (peak - before) * 1e6 / rows,
            windows * (28.0 * 2.0 + 14.0 * 2.0) * 4.0 / 1e6
        );
    }
    std::fs::remove_dir_all(&folder).map_err(Error::io(&folder))
}
