//! `densely ctr rank`: for each user the candidates with the highest probability of a click.

use std::path::PathBuf;

use densely_core::{Error, Result, fs};
use densely_data::write::{Format, Writer};
use densely_data::{Batches, Output, batches};
use densely_recsys::Fitted;
use densely_recsys::feature_map::texts_of;
use serde_json::json;

use crate::Common;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely ctr rank runs/ads --users users.csv --user user_id --candidates items.csv --item item_id --top 10 --out top.csv"
)]
pub(crate) struct Rank {
    /// Run folder of a fit.
    run: PathBuf,
    /// Table with a row per user: the columns of the model that do not belong to the candidates, histories among them.
    #[arg(long)]
    users: PathBuf,
    /// Its column that names the user in the result.
    #[arg(long)]
    user: String,
    /// Table with a row per candidate: the columns of the model that belong to them.
    #[arg(long)]
    candidates: PathBuf,
    /// Its column that names the candidate in the result.
    #[arg(long)]
    item: String,
    /// Candidates per user.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// CSV, TSV or Parquet file to write: user, candidate, rank and probability.
    #[arg(long)]
    out: PathBuf,
}

/// Most candidates that are ranked for a user.
const MOST: usize = 1 << 20;

pub(super) fn run(arguments: &Rank, common: &Common) -> Result<()> {
    let (users, items) = (&arguments.users, &arguments.candidates);
    fs::refuse_overwriting("out", &arguments.out, &[users, items])?;
    let format = Format::of(&arguments.out)?;
    let fitted = Fitted::open(&arguments.run, common.device.open()?)?;
    let wanted = fitted.map.sources();
    let there = |path: &PathBuf, also: &String| -> Result<Vec<String>> {
        let names = batches::column_names(path)?;
        if !names.contains(also) {
            let nearest = densely_core::registry::nearest(names.iter().map(String::as_str), also);
            let reason = format!("no column `{also}`; nearest: `{}`", nearest.join("`, `"));
            return Err(Error::data(path, reason));
        }
        let used = |name: &String| wanted.contains(name) || name == also;
        Ok(names.into_iter().filter(used).collect())
    };
    let mut batches = Batches::open(items, &there(items, &arguments.item)?, MOST)?;
    let rows = batches.next();
    let rows = rows.ok_or_else(|| Error::data(items, "there is no candidate"))??;
    if batches.next().is_some() {
        let reason = format!("there are more than {MOST} candidates; choose some first");
        return Err(Error::data(items, reason));
    }
    let names = texts_of(&rows, &arguments.item)?;
    let candidates = fitted.candidates(&rows)?;
    let mut ranked = 0;
    fs::write_with(&arguments.out, |file| {
        let mut writer = Writer::new(file, &arguments.out, format)?;
        for rows in Batches::open(users, &there(users, &arguments.user)?, 1024)? {
            let rows = rows?;
            let user_names = texts_of(&rows, &arguments.user)?;
            for (row, user) in user_names.iter().enumerate() {
                let best = fitted.rank(&rows, row, &candidates, arguments.top as usize)?;
                let columns = [
                    (
                        &arguments.user,
                        Output::Texts(vec![user.clone(); best.len()]),
                    ),
                    (
                        &arguments.item,
                        Output::Texts(best.iter().map(|(at, _)| names[*at].clone()).collect()),
                    ),
                    (
                        &"rank".to_owned(),
                        Output::Numbers((1..=best.len()).map(|place| place as f64).collect()),
                    ),
                    (
                        &"probability".to_owned(),
                        Output::Numbers(best.iter().map(|(_, p)| *p).collect()),
                    ),
                ];
                let columns = columns.map(|(name, values)| (name.clone(), values));
                writer.write(&columns)?;
                ranked += 1;
            }
        }
        if ranked == 0 {
            return Err(Error::data(users, "there is no user"));
        }
        writer.finish()
    })?;
    if common.json {
        println!(
            "{}",
            json!({ "users": ranked, "candidates": candidates.len(), "out": arguments.out })
        );
    } else if !common.quiet {
        println!(
            "{ranked} users, the best {} of {} candidates each, in {}",
            (arguments.top as usize).min(candidates.len()),
            candidates.len(),
            arguments.out.display()
        );
    }
    Ok(())
}
