//! The competition's error of the simplest forecasts on M5: the last day, and the last week, again.
//!
//! ```text
//! cargo run --release --example score_m5 -- FOLDER [TRAIN_DAYS]
//! ```
//!
//! `FOLDER` holds `sales_train_evaluation.csv`, `calendar.csv` and `sell_prices.csv` as the competition gives them out; training days are all but
//! the last 28 when they are not given (1,913: the first phase). Without a folder it takes the small one of the tests.
#![expect(clippy::print_stdout, reason = "an example talks")]

use std::path::PathBuf;

use densely_timeseries::linear::seasonal_naive;
use densely_timeseries::{Error, Result, m5};

const HORIZON: usize = 28;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/m5"),
        PathBuf::from,
    );
    let sales = m5::read(&folder)?;
    let train_days = match arguments.next() {
        Some(text) => text
            .parse()
            .map_err(|_| Error::config("TRAIN_DAYS", format!("must be a number, got `{text}`")))?,
        None => sales.units.days().saturating_sub(HORIZON),
    };
    let error = sales.wrmsse(train_days)?;
    let actual = sales.actual(train_days, HORIZON)?;
    // The last week is all that these forecasts see; every series is a window of one channel.
    let past = sales
        .units
        .tensor(train_days.saturating_sub(7), train_days)?
        .unsqueeze(2);
    let again = |season| -> Result<m5::Score> {
        let forecast = seasonal_naive(&past, season, HORIZON as i64)?.squeeze_dim(2);
        error.score(&forecast, &actual)
    };
    let (day, week) = (again(1)?, again(7)?);
    println!(
        "{:24} {:>8} {:>10} {:>10}",
        "", "series", "last day", "last week"
    );
    for (at, level) in error.levels().iter().enumerate() {
        let (day, week) = (day.levels[at].1, week.levels[at].1);
        println!(
            "{:24} {:8} {day:10.4} {week:10.4}",
            level.name,
            level.names.len()
        );
    }
    println!("{:33} {:10.4} {:10.4}", "WRMSSE", day.wrmsse, week.wrmsse);
    Ok(())
}
