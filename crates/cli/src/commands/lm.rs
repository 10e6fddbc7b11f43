//! `densely lm`: a language model of a local folder or GGUF file, judged by a text or writing on.

mod eval;
mod generate;

use std::path::{Path, PathBuf};

use densely_core::tch::Kind;
use densely_core::{Error, Result};
use densely_lm::{Opened, open};

use crate::Common;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Write on after a prompt.
    Generate(generate::Generate),
    /// Print how well a model foretells a text.
    Eval(eval::Eval),
}

/// A whole text.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    String::from_utf8(bytes)
        .map_err(|_| Error::data(path, "is not UTF-8; save it as text of this encoding"))
}

/// Which model, and in which numbers.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// Folder with config.json, safetensors and tokeniser, or a GGUF file.
    model: PathBuf,
    /// Numbers to compute in.
    #[arg(long, default_value = "f32", value_parser = ["f32", "f64", "bf16", "f16"])]
    dtype: String,
}

impl Source {
    /// Loads the model and says on standard error what it is.
    pub(crate) fn open(&self, common: &Common) -> Result<Opened> {
        let kind = match self.dtype.as_str() {
            "f64" => Kind::Double,
            "bf16" => Kind::BFloat16,
            "f16" => Kind::Half,
            _ => Kind::Float,
        };
        let opened = open(&self.model, common.device.open()?, kind)?;
        tracing::info!("{}", opened.described);
        Ok(opened)
    }

    /// The path that was given.
    pub(crate) fn path(&self) -> &Path {
        &self.model
    }
}

pub(crate) fn run(command: &Command, common: &Common) -> Result<()> {
    match command {
        Command::Generate(arguments) => generate::run(arguments, common),
        Command::Eval(arguments) => eval::run(arguments, common),
    }
}
