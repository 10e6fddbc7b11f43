//! `densely tabular tabred-ranks`: where models stand on the TabReD benchmark.

use std::path::PathBuf;

use densely_core::Result;
use densely_tabular::tabred::SETS;
use densely_tabular::tabred::ranks::{self, Standing};
use serde_json::{Map, Value, json};

use crate::Common;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely tabular tabred-ranks crates/tabular/examples/tabm_on_tabred.csv"
)]
pub(crate) struct Ranks {
    /// CSV files with results of further models: model,dataset,mean,sd,runs.
    files: Vec<PathBuf>,
}

/// Prints the table of the published runs and those in the files, as Markdown.
pub(crate) fn run(arguments: &Ranks, common: &Common) -> Result<()> {
    let mut models = ranks::published()?;
    for file in &arguments.files {
        models.extend(ranks::read(file)?);
    }
    let standings = ranks::standings(&models)?;
    if common.json {
        let all: Vec<Value> = standings.iter().map(json_of).collect();
        println!("{}", Value::from(all));
    } else {
        print!("{}", ranks::table(&standings));
    }
    Ok(())
}

fn json_of(standing: &Standing) -> Value {
    let sets: Map<String, Value> = SETS
        .iter()
        .zip(standing.means.iter().zip(standing.ranks))
        .filter_map(|(set, (mean, rank))| {
            Some((
                set.name.to_owned(),
                json!({ "mean": (*mean)?, "rank": rank? }),
            ))
        })
        .collect();
    json!({
        "model": standing.model,
        "rank": standing.rank,
        "score": standing.score,
        "datasets": sets,
    })
}
