//! `densely interp transcoder convert`.

use std::path::PathBuf;

use densely_core::{Error, Result};
use densely_interp::dictionary::fit;
use densely_interp::dictionary::folder::{Format, save};
use serde_json::json;

use crate::Common;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely interp transcoder convert runs/mlp8 mlp8-for-sae-lens --to sae-lens"
)]
pub(crate) struct Convert {
    /// Run folder or dictionary.
    dictionary: PathBuf,
    /// New folder.
    out: PathBuf,
    /// Format: sae-lens or sparsify; the first of them that can hold it when left out.
    #[arg(long)]
    to: Option<Format>,
}

pub(super) fn run(arguments: &Convert, common: &Common) -> Result<()> {
    let opened = fit::open(&arguments.dictionary, common.device)?;
    let held = std::fs::read_dir(&arguments.out).is_ok_and(|mut all| all.next().is_some());
    if held {
        let reason = format!("{} holds something already", arguments.out.display());
        return Err(Error::config("out", reason));
    }
    let format = save(
        &opened.dictionary,
        &opened.metadata,
        &arguments.out,
        arguments.to,
    )?;
    let name = match format {
        Format::SaeLens => "sae_lens",
        Format::Sparsify => "eai-sparsify",
    };
    if common.json {
        println!("{}", json!({ "format": name, "folder": arguments.out }));
    } else {
        println!("{} is a folder of {name}", arguments.out.display());
    }
    Ok(())
}
