//! Own clicks, from a CSV file to probabilities and a ranking: `cargo run --example fit_clicks`.
//!
//! Without arguments it makes a table of users who like films of their kind; with `--table FILE --label COLUMN` it takes yours.
#![expect(clippy::print_stdout, reason = "an example")]

use std::fmt::Write;
use std::path::{Path, PathBuf};

use densely_core::{Error, Result, tch};
use densely_data::{Batches, batches};
use densely_recsys::fit::{FitOptions, fit};
use densely_recsys::{Fitted, Options, Prepared};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| {
        let at = arguments.iter().position(|word| word == name)?;
        arguments.get(at + 1).cloned()
    };
    let folder = std::env::temp_dir().join(format!("fit_clicks.{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let mut options = Options::new(after("--label").unwrap_or("clk".to_owned()));
    let table = if let Some(table) = after("--table") {
        PathBuf::from(table)
    } else {
        options.group = Some("user".to_owned());
        options.time = Some("shown".to_owned());
        options.histories = vec![("history".to_owned(), "film".to_owned())];
        made(&folder)?
    };

    let (mut settings, explained) = options.settings(&table)?;
    for column in &explained {
        println!("{:<10} {:<12} {}", column.name, column.role, column.why);
    }
    settings.train.epochs = 5;
    settings.train.batch_size = 256;
    let prepared = Prepared::open(&table, &settings.data, &folder)?;
    let run = FitOptions {
        folder: &folder,
        table: &table,
        seed: 0,
        device: tch::Device::Cpu,
        resume: None,
    };
    let outcome = fit(&prepared, &settings, &run, &mut |_| {})?;
    println!("{}: {:?}", settings.model.preset, outcome.test.all());
    for (name, scores) in &outcome.baselines {
        println!("{name}: {:?}", scores.all());
    }

    let fitted = Fitted::open(&folder, tch::Device::Cpu)?;
    let names = batches::column_names(&table)?;
    if let Some(rows) = Batches::open(&table, &names, 8)?.next() {
        let probabilities = fitted.predict(&rows?)?;
        println!("the first rows: {probabilities:.3?}");
    }
    std::fs::remove_dir_all(&folder).map_err(Error::io(&folder))
}

/// 4,000 rows: a film of the user's kind is clicked four times out of five, another one once out of ten.
fn made(folder: &Path) -> Result<PathBuf> {
    let mut state = 1_u64;
    let mut draw = |n: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % n
    };
    let mut text = "user,film,history,shown,clk\n".to_owned();
    let mut before = vec![Vec::<String>::new(); 50];
    for row in 0..4000 {
        let (user, film) = (draw(50), draw(40));
        let click = draw(10) < if film % 4 == user % 4 { 8 } else { 1 };
        let history = &mut before[user as usize];
        let latest = history[history.len().saturating_sub(10)..].join("^");
        // A text in memory takes every line.
        let _ = writeln!(text, "u{user},f{film},{latest},{row},{}", u8::from(click));
        if click {
            history.push(format!("f{film}"));
        }
    }
    let path = folder.join("clicks.csv");
    std::fs::write(&path, text).map_err(Error::io(&path))?;
    Ok(path)
}
