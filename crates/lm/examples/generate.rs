//! Opens a model, writes on after a prompt, and shows what each layer would say next.
//!
//! `cargo run --example generate` takes a tiny model of random weights, which writes nonsense; `cargo run --example generate --
//! SmolLM2-135M-Instruct.Q4_1.gguf "The capital of France is"` a folder or GGUF file and a prompt.
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "an example talks"
)]

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use densely_core::tch::nn::VarStore;
use densely_core::tch::{Device, Kind, Tensor};
use densely_core::{Error, Result, seeded};
use densely_lm::generate::{Sampling, generate_with};
use densely_lm::{Lm, LmConfig, Opened, Run, Tokenizer, open};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (opened, prompt) = match arguments.as_slice() {
        [] => (random()?, "Once upon a time"),
        [path, prompt] => {
            let opened = open(Path::new(path), Device::Cpu, Kind::Float)?;
            (opened, prompt.as_str())
        }
        _ => {
            let reason = "are a model and a prompt, or none";
            return Err(Error::config("arguments", reason));
        }
    };
    eprintln!("{}", opened.described);
    let ids = opened.tokenizer.encode(prompt)?;

    print!("{prompt}");
    let mut text = opened.tokenizer.stream();
    let mut out = std::io::stdout();
    let sampling = Sampling::greedy();
    let stop = &opened.model.config().eos;
    generate_with(
        &opened.model,
        std::slice::from_ref(&ids),
        20,
        &sampling,
        stop,
        &mut |_, id| {
            print!("{}", text.push(id));
            out.flush().map_err(Error::io("standard output"))?;
            Ok(ControlFlow::Continue(()))
        },
    )?;
    println!("{}", text.finish());

    // The residual behind each block, read by the last norm and the head.
    let mut run = Run::new().cache(&["blocks.*.hook_resid_post"]);
    let _ = opened
        .model
        .run(&Tensor::from_slice(&ids).unsqueeze(0), &mut run)?;
    let cache = run.take_cache();
    for layer in 0..opened.model.config().n_layers {
        let residual = cache.get(&format!("blocks.{layer}.hook_resid_post"))?;
        let logits = opened.model.unembed(&residual.f_select(1, -1)?)?; // [1, vocab]
        let likeliest = logits.f_argmax(-1, false)?.f_int64_value(&[0])?;
        println!("layer {layer:>2}: {:?}", opened.tokenizer.piece(likeliest)?);
    }
    Ok(())
}

/// A narrow GPT-2 of random weights with the published tokens.
fn random() -> Result<Opened> {
    let sizes = serde_json::json!({
        "model_type": "gpt2", "vocab_size": 50_257, "n_positions": 64, "n_embd": 32, "n_layer": 4, "n_head": 4,
    });
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(1, || Lm::new(LmConfig::from_hugging(&sizes)?, &vs.root()))?;
    Ok(Opened {
        model,
        tokenizer: Tokenizer::gpt2()?,
        vs,
        described: "a GPT-2 of random weights".to_owned(),
    })
}
