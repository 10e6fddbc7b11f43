//! `densely lm generate`.

use std::io::Write;
use std::ops::ControlFlow;
use std::time::Instant;

use densely_core::{Error, Result};
use densely_lm::generate::generate_with;
use densely_lm::{Opened, Sampling};
use densely_train::signal;
use serde_json::{Value, json};

use super::Source;
use crate::Common;

/// New tokens where none are asked for.
const MAX_NEW: usize = 64;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples: densely lm generate SmolLM2-135M-Instruct.Q4_1.gguf --prompt \"The capital of France is\"\n\
                  densely lm generate gpt2 --prompt \"Once upon a time\" --max-new 200 --temperature 0.8 --top-p 0.95 --seed 1"
)]
pub(crate) struct Generate {
    #[command(flatten)]
    source: Source,
    /// Text to go on from. With several, they are continued together and printed one after the other.
    #[arg(long, required = true, value_name = "TEXT")]
    prompt: Vec<String>,
    /// Tokens to write at most; 64, or what the model has room for.
    #[arg(long, value_name = "N")]
    max_new: Option<usize>,
    /// Above 0, tokens are drawn: higher is wilder. At 0 the likeliest one is taken.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from the K likeliest tokens alone.
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<i64>,
    /// Draw from the likeliest tokens that have this probability together.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Write on behind tokens that end a text.
    #[arg(long)]
    endless: bool,
}

pub(super) fn run(arguments: &Generate, common: &Common) -> Result<()> {
    let sampling = Sampling {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        seed: common.seed.unwrap_or(0),
    };
    sampling.validate()?;
    let draws = arguments.top_k.is_some() || arguments.top_p.is_some() || common.seed.is_some();
    if arguments.temperature == 0.0 && draws {
        tracing::warn!(
            "--top-k, --top-p and --seed change nothing at --temperature 0, which takes the likeliest token"
        );
    }
    let opened = arguments.source.open(common)?;
    let prompts = encode(arguments, &opened)?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let takes = opened.model.config().n_ctx as usize;
    if longest >= takes {
        let reason =
            format!("has {longest} tokens and the model takes {takes}: there is no room to write");
        return Err(Error::config("--prompt", reason));
    }
    let max_new = arguments.max_new.unwrap_or(MAX_NEW.min(takes - longest));
    let mut ends = opened.model.config().eos.clone();
    if ends.is_empty() {
        ends.extend(opened.tokenizer.eos());
    }
    let stop: &[i64] = if arguments.endless { &[] } else { &ends };

    let streams = !common.json && prompts.len() == 1;
    let mut text = opened.tokenizer.stream();
    let mut out = std::io::stdout();
    let start = Instant::now();
    let new = generate_with(
        &opened.model,
        &prompts,
        max_new,
        &sampling,
        stop,
        &mut |_, id| {
            if streams {
                say(&mut out, &text.push(id))?;
            }
            Ok(if signal::interrupted() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        },
    )?;
    let seconds = start.elapsed().as_secs_f64();
    let count: usize = new.iter().map(Vec::len).sum();
    let rate = count as f64 / seconds.max(1e-9);
    if streams {
        say(&mut out, &text.finish())?;
        say(&mut out, "\n")?;
        tracing::info!("{count} tokens, {rate:.1} a second");
        return Ok(());
    }
    let mut texts = Vec::new();
    for (prompt, ids) in arguments.prompt.iter().zip(&new) {
        let mut stream = opened.tokenizer.stream();
        let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
        text += &stream.finish();
        texts.push((prompt, ids, text));
    }
    if common.json {
        let rows: Vec<Value> = texts
            .iter()
            .map(|(prompt, ids, text)| {
                json!({ "prompt": prompt, "text": text, "tokens": ids, "ended": !signal::interrupted() && ids.len() < max_new })
            })
            .collect();
        let all = json!({
            "model": arguments.source.path(), "continuations": rows, "new_tokens": count,
            "seconds": seconds, "tokens_per_second": rate,
        });
        println!("{all}");
        return Ok(());
    }
    for (prompt, _, text) in &texts {
        println!("{prompt}{text}\n");
    }
    tracing::info!("{count} tokens, {rate:.1} a second");
    Ok(())
}

/// The prompts' tokens. An empty one starts with the token that starts texts.
fn encode(arguments: &Generate, opened: &Opened) -> Result<Vec<Vec<i64>>> {
    let mut all = Vec::new();
    for prompt in &arguments.prompt {
        let mut ids = opened.tokenizer.encode(prompt)?;
        if ids.is_empty() {
            let reason = "is empty, and the tokeniser has no token that starts a text";
            let bos = opened.tokenizer.bos();
            ids.push(bos.ok_or_else(|| Error::config("prompt", reason))?);
        }
        all.push(ids);
    }
    Ok(all)
}

/// Writes at once: a reader sees each word when it comes.
fn say(out: &mut impl Write, text: &str) -> Result<()> {
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(Error::io("standard output"))
}
