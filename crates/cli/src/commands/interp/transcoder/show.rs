//! `densely interp transcoder show`.

use std::fmt::Write;
use std::path::PathBuf;

use densely_core::tch::Kind;
use densely_core::{Error, Result};
use densely_interp::dictionary::examples::logit_effects;
use densely_interp::dictionary::fit;
use densely_lm::open;
use serde_json::json;

use crate::Common;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples: densely interp transcoder show runs/mlp8\n\
                  densely interp transcoder show runs/mlp8 --feature 5315 --model gpt2")]
pub(crate) struct Show {
    /// Run folder, or dictionary of another package.
    dictionary: PathBuf,
    /// A feature.
    #[arg(long, value_name = "N")]
    feature: Option<usize>,
    /// The model, to say which tokens the feature promotes.
    #[arg(long, value_name = "DIR", requires = "feature")]
    model: Option<PathBuf>,
}

pub(super) fn run(arguments: &Show, common: &Common) -> Result<()> {
    let opened = fit::open(&arguments.dictionary, common.device)?;
    let dictionary = &opened.dictionary;
    let config = dictionary.config();
    let mut whole = json!({
        "format": opened.described,
        "config": config,
        "metadata": opened.metadata,
        "parameters": densely_core::nn::parameter_count(&opened.vs),
    });
    let (encoder, decoder) = dictionary.weights();
    let mut words = format!(
        "{}\n{} parameters, {} multiply-accumulates a token where all are computed",
        opened.described,
        densely_core::nn::parameter_count(&opened.vs),
        config.macs()
    );
    if let Some(write) = &opened.metadata.hook_name_out {
        let _ = write!(words, "\ngives {write}");
    }
    if let Some(feature) = arguments.feature {
        if feature as i64 >= config.d_sae {
            let reason = format!("must be below {}, got {feature}", config.d_sae);
            return Err(Error::config("--feature", reason));
        }
        let index = feature as i64;
        let norm = |xs: &tch::Tensor| xs.f_norm().and_then(|norm| norm.f_double_value(&[]));
        let (reads, writes) = (
            norm(&encoder.f_select(1, index)?)?,
            norm(&decoder.f_select(0, index)?)?,
        );
        let _ = write!(
            words,
            "\nfeature {feature}: encoder's norm {reads:.4}, decoder's norm {writes:.4}"
        );
        whole["feature"] =
            json!({ "index": feature, "encoder_norm": reads, "decoder_norm": writes });
        if let Some(model) = &arguments.model {
            let model = open(model, common.device.open()?, Kind::Float)?;
            let (up, down) =
                logit_effects(&model.model, &model.tokenizer, dictionary, feature, 10)?;
            let list = |side: &[(String, f64)]| {
                let each: Vec<String> = side
                    .iter()
                    .map(|(token, value)| format!("{token:?} {value:+.3}"))
                    .collect();
                each.join(", ")
            };
            let _ = write!(words, "\npromotes {}\ndemotes {}", list(&up), list(&down));
            whole["feature"]["promotes"] = json!(up);
            whole["feature"]["demotes"] = json!(down);
        }
    }
    if common.json {
        println!("{whole}");
    } else {
        println!("{words}");
    }
    Ok(())
}
