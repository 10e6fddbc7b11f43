//! `cargo xtask data`: list, fetch and verify the data sets.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::cache;
use crate::dataset::{self, Dataset, State};

/// Example: `cargo xtask data get california-housing`
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum Command {
    /// All data sets, with size, licence and whether they are in the cache.
    List,
    /// Fetch a data set into the cache.
    Get {
        /// As `data list` shows it.
        name: String,
        /// Use only the cache and the folder in `DENSELY_DATA_MIRROR`.
        #[arg(long)]
        offline: bool,
        /// Take this file of yours, if it is the one that is meant.
        #[arg(long, value_name = "PATH", conflicts_with = "offline")]
        file: Option<PathBuf>,
    },
    /// Check sizes and hashes; all data sets of the cache when no name is given.
    Verify {
        /// As `data list` shows it.
        name: Option<String>,
    },
    /// Print a data set's folder, fetching it when it is missing.
    Path {
        /// As `data list` shows it.
        name: String,
        /// Use only the cache and the folder in `DENSELY_DATA_MIRROR`.
        #[arg(long)]
        offline: bool,
    },
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::List => list(),
        Command::Get {
            name,
            offline,
            file,
        } => {
            let set = dataset::find(name)?;
            let folder = match file {
                Some(path) => set.take(path)?,
                None => set.get(*offline)?,
            };
            say!(
                "{}: {} in {}",
                set.name,
                cache::human(set.bytes()),
                folder.display()
            );
            Ok(())
        }
        Command::Verify { name } => verify(name.as_deref()),
        Command::Path { name, offline } => {
            say!("{}", dataset::find(name)?.get(*offline)?.display());
            Ok(())
        }
    }
}

fn list() -> Result<()> {
    say!(
        "{:<26} {:>9}  {:<8} {:<52} licence",
        "name",
        "size",
        "cached",
        "title"
    );
    for set in dataset::all()? {
        say!(
            "{:<26} {:>9}  {:<8} {:<52} {}",
            set.name,
            cache::human(set.bytes()),
            cached(&set)?,
            set.title,
            set.licence
        );
    }
    Ok(())
}

fn cached(set: &Dataset) -> Result<&'static str> {
    let states = set.states(false)?;
    Ok(if states.iter().all(|(_, state)| *state == State::Good) {
        "yes"
    } else if states
        .iter()
        .any(|(_, state)| matches!(state, State::Bad(_)))
    {
        "damaged"
    } else if states.iter().any(|(_, state)| *state == State::Good) {
        "in part"
    } else {
        "no"
    })
}

fn verify(name: Option<&str>) -> Result<()> {
    let sets = match name {
        Some(name) => vec![dataset::find(name)?],
        None => dataset::all()?,
    };
    let mut bad = Vec::new();
    for set in &sets {
        let states = set.states(true)?;
        if name.is_none() && states.iter().all(|(_, state)| *state == State::Missing) {
            say!("{}: not in the cache", set.name);
            continue;
        }
        for (file, state) in states {
            let text = match &state {
                State::Good => "ok",
                State::Missing => "missing",
                State::Bad(why) => why.as_str(),
            };
            say!("{}/{}: {text}", set.name, file.path);
            if state != State::Good && !bad.contains(&set.name) {
                bad.push(set.name.clone());
            }
        }
    }
    if let Some(first) = bad.first() {
        bail!(
            "{} not whole in the cache; run `cargo xtask data get {first}` to mend it",
            if bad.len() == 1 {
                format!("{first} is")
            } else {
                format!("{} are", bad.join(", "))
            }
        );
    }
    Ok(())
}
