//! `densely interp transcoder eval`.

use std::path::PathBuf;

use densely_core::{Error, Result};
use densely_interp::dictionary::evaluate::{Ablation, InPlace, evaluate};
use serde_json::json;

use super::{Texts, evaluate_options, evaluation_words, open_dictionary, windows_bar};
use crate::Common;
use crate::commands::lm::Source;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely interp transcoder eval gpt2 --dictionary runs/mlp8 --text wiki.txt\n\
                  Several dictionaries stand in their layers' place together. A dictionary is a run folder, or one of sae_lens, eai-sparsify or Gemma Scope."
)]
pub(crate) struct Eval {
    #[command(flatten)]
    source: Source,
    /// Dictionaries.
    #[arg(long, required = true, value_name = "DIR", value_delimiter = ',')]
    dictionary: Vec<PathBuf>,
    #[command(flatten)]
    texts: Texts,
    /// Hook point that the dictionary reads, when it does not say it.
    #[arg(long, value_name = "POINT")]
    read: Option<String>,
    /// Hook point that it gives, when it does not say it.
    #[arg(long, value_name = "POINT")]
    write: Option<String>,
    /// Windows, at most.
    #[arg(long, default_value_t = 128, value_name = "N")]
    windows: usize,
    /// What stands in the layers' place for comparison: zero or mean.
    #[arg(long, default_value = "zero")]
    ablation: Ablation,
}

pub(super) fn run(arguments: &Eval, common: &Common) -> Result<()> {
    if arguments.dictionary.len() > 1 && (arguments.read.is_some() || arguments.write.is_some()) {
        let reason = "are for one dictionary";
        return Err(Error::config("--read and --write", reason));
    }
    let opened = arguments.source.open(common)?;
    let dictionaries = arguments
        .dictionary
        .iter()
        .map(|path| {
            open_dictionary(
                path,
                arguments.read.as_deref(),
                arguments.write.as_deref(),
                common,
            )
        })
        .collect::<Result<Vec<_>>>()?;
    let corpus = arguments.texts.corpus(&opened)?.first(arguments.windows);
    let places: Vec<InPlace> = dictionaries
        .iter()
        .map(|(dictionary, read, write)| InPlace {
            dictionary: &dictionary.dictionary,
            read,
            write,
        })
        .collect();
    let options = evaluate_options(&arguments.texts, arguments.ablation);
    let mut bar = windows_bar(common.quiet);
    let found = evaluate(&opened.model, &corpus, &places, &options, &mut bar)?;
    if common.json {
        println!("{}", json!(found));
    } else {
        println!("{}", evaluation_words(&found, arguments.ablation));
    }
    Ok(())
}
