//! The competition's errors of the simplest forecasts on M4's hourly series.
//!
//! ```text
//! cargo xtask data get m4-hourly
//! cargo run --release --example score_m4 -- "$(cargo xtask data path m4-hourly)"
//! ```
//!
//! Without a folder it makes 20 series with a daily season.
#![expect(clippy::print_stdout, reason = "an example talks")]

use std::path::Path;

use densely_timeseries::Result;
use densely_timeseries::m4::{self, HOURLY_SEASON, M4};

fn main() -> Result<()> {
    let series = match std::env::args().nth(1) {
        Some(folder) => {
            let folder = Path::new(&folder);
            m4::read(
                &folder.join("Hourly-train.csv"),
                &folder.join("Hourly-test.csv"),
                HOURLY_SEASON,
            )?
        }
        None => made(),
    };
    println!(
        "{} series, {} steps ahead",
        series.ids.len(),
        series.horizon()
    );
    println!("{:8} {:>8} {:>8} {:>8}", "", "sMAPE", "MASE", "OWA");
    let benchmarks = series.benchmarks()?;
    let naive2 = benchmarks[2].1;
    for (name, errors) in benchmarks {
        let owa = errors.owa(naive2);
        println!(
            "{name:8} {:8.3} {:8.3} {owa:8.3}",
            errors.smape, errors.mase
        );
    }
    Ok(())
}

/// A day's wave on a slow climb.
fn made() -> M4 {
    let value = |series: usize, hour: usize| {
        let wave = (std::f64::consts::TAU * (hour + series) as f64 / 24.0).sin();
        100.0 + hour as f64 / 20.0 + 30.0 * wave + (hour * 7 % (series + 3)) as f64
    };
    let part = |hours: std::ops::Range<usize>| -> Vec<Vec<f64>> {
        (0..20)
            .map(|series| hours.clone().map(|hour| value(series, hour)).collect())
            .collect()
    };
    M4 {
        ids: (1..=20).map(|n| format!("H{n}")).collect(),
        histories: part(0..700),
        futures: part(700..748),
        season: HOURLY_SEASON,
    }
}
