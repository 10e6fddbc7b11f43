//! `densely forward`: any registered model on tensors from a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use densely_core::forward::{Request, forward};
use densely_core::tch::Kind;
use densely_core::{Error, Result, fs, registry, weights};
use serde_json::{Value, json};

use crate::Common;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely forward --model tabm --config config.json --weights model.safetensors \\\n             --input in.safetensors --output out.safetensors --grads"
)]
pub(crate) struct Arguments {
    /// Name of the preset; `densely models` lists them.
    #[arg(long)]
    model: String,
    /// JSON file whose fields replace those of the preset's config.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Weights by the reference's names; fresh ones from the seed when left out.
    #[arg(long)]
    weights: Option<PathBuf>,
    /// safetensors file with the inputs, and `cotangent.<output>` for gradients.
    #[arg(long)]
    input: PathBuf,
    /// safetensors file to write.
    #[arg(long)]
    output: PathBuf,
    /// Use batch statistics, as in training; dropout stays off.
    #[arg(long)]
    train: bool,
    /// With --train, drop out too.
    #[arg(long, requires = "train")]
    dropout: bool,
    /// Also write `grad.<parameter>` and `grad.input.<name>` of the sum of output times cotangent.
    #[arg(long)]
    grads: bool,
    /// Kind of parameters and inputs.
    #[arg(long, default_value = "f32", value_parser = ["f32", "f64", "bf16"])]
    dtype: String,
    /// Also write the weights that were used.
    #[arg(long)]
    save_weights: Option<PathBuf>,
}

impl Arguments {
    /// Neither output may take the place of a file that is read, nor of the other.
    fn check_outputs(&self) -> Result<()> {
        let optional = [&self.config, &self.weights].into_iter().flatten();
        let inputs: Vec<&Path> = optional
            .chain([&self.input])
            .map(PathBuf::as_path)
            .collect();
        fs::refuse_overwriting("output", &self.output, &inputs)?;
        let Some(save_weights) = &self.save_weights else {
            return Ok(());
        };
        if fs::is_same_file(save_weights, &self.output) {
            let reason = "names the file of --output; give it one of its own";
            return Err(Error::config("save-weights", reason));
        }
        fs::refuse_overwriting("save-weights", save_weights, &inputs)
    }
}

pub(crate) fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    arguments.check_outputs()?;
    let presets = super::models::all();
    let preset = registry::find(&presets, &arguments.model)?;
    let overrides = match &arguments.config {
        Some(path) => read_json(path)?,
        None => json!({}),
    };
    let kind = match arguments.dtype.as_str() {
        "f64" => Kind::Double,
        "bf16" => Kind::BFloat16,
        _ => Kind::Float,
    };
    let request = Request {
        preset,
        overrides,
        weights: arguments.weights.as_deref(),
        seed: common.seed.unwrap_or(0) as i64,
        train: arguments.train,
        dropout: arguments.dropout,
        grads: arguments.grads,
        kind,
        device: common.device.open()?,
    };
    let inputs = weights::read(&arguments.input)?.tensors;
    let response = forward(&request, &inputs)?;
    let metadata = BTreeMap::from([
        ("preset".to_owned(), preset.name.to_owned()),
        ("config".to_owned(), response.config.to_string()),
    ]);
    weights::save(&arguments.output, &response.tensors, &metadata)?;
    if let Some(path) = &arguments.save_weights {
        weights::save(path, &weights::named(&response.store), &metadata)?;
    }
    if common.json {
        let shapes: BTreeMap<&String, Vec<i64>> = response
            .tensors
            .iter()
            .map(|(name, xs)| (name, xs.size()))
            .collect();
        println!(
            "{}",
            json!({ "output": arguments.output, "tensors": shapes })
        );
    } else if !common.quiet {
        for (name, xs) in response
            .tensors
            .iter()
            .filter(|(name, _)| !name.starts_with("grad."))
        {
            println!("{name} {:?} {:?}", xs.size(), xs.kind());
        }
    }
    Ok(())
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|e| Error::corrupt(path, format!("not JSON: {e}")))
}
