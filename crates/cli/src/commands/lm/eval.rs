//! `densely lm eval`.

use std::path::PathBuf;
use std::time::Instant;

use densely_core::{Error, Result};
use densely_lm::perplexity::perplexity_strided;
use densely_train::progress::Bar;
use densely_train::signal;
use serde_json::json;

use super::{Source, read_text};
use crate::Common;

/// Tokens of a window where none are asked for.
const WINDOW: usize = 512;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely lm eval SmolLM2-135M-Instruct.Q4_1.gguf wikitext2/test.txt --window 512"
)]
pub(crate) struct Eval {
    #[command(flatten)]
    source: Source,
    /// Text file, UTF-8.
    text: PathBuf,
    /// Tokens that are read together; 512, or what the model takes.
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// Tokens between the starts of windows; the window when left out, so that each is read on its own. Less gives more context.
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Only the first N tokens of the text.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

pub(super) fn run(arguments: &Eval, common: &Common) -> Result<()> {
    let path = &arguments.text;
    let text = read_text(path)?;
    let opened = arguments.source.open(common)?;
    let takes = opened.model.config().n_ctx as usize;
    let window = arguments.window.unwrap_or(WINDOW.min(takes));
    let stride = arguments.stride.unwrap_or(window);
    let mut ids = opened.tokenizer.encode(&text)?;
    let whole = ids.len();
    ids.truncate(arguments.limit.unwrap_or(whole));
    if ids.len() < 2 {
        let reason = format!("has {} tokens to judge by; two are the least", ids.len());
        return Err(Error::data(path, reason));
    }

    let bar = Bar::new(ids.len() as u64, 0, common.quiet);
    let start = Instant::now();
    let found = perplexity_strided(&opened.model, &ids, window, stride, &mut |done, _| {
        bar.update(0, done as u64, None);
        if signal::interrupted() {
            return Err(Error::data("", "interrupted before the text was read"));
        }
        Ok(())
    });
    bar.finish();
    let found = found?;
    let seconds = start.elapsed().as_secs_f64();
    let rate = ids.len() as f64 / seconds.max(1e-9);
    // Of a token times tokens of a byte, so that windows' first tokens, which are not predicted, do not flatter.
    let per_byte = found.nll / std::f64::consts::LN_2 * whole as f64 / text.len().max(1) as f64;
    if common.json {
        let all = json!({
            "model": arguments.source.path(), "text": path, "nll": found.nll, "perplexity": found.perplexity,
            "predictions": found.predictions, "bits_per_byte": per_byte, "tokens": ids.len(),
            "window": window, "stride": stride, "seconds": seconds, "tokens_per_second": rate,
        });
        println!("{all}");
        return Ok(());
    }
    println!(
        "nll {:.5}, perplexity {:.3}, {per_byte:.4} bits a byte; {} predictions in windows of {window} {stride} apart; {rate:.0} tokens a second",
        found.nll, found.perplexity, found.predictions
    );
    Ok(())
}
