//! Traces a fact in a model of random weights, or in one's own, and writes the pictures.
//!
//! `cargo run --example trace` takes a tiny model, whose answer means nothing; `cargo run --example trace -- gpt2 "The Space Needle is in
//! the city of" "The Space Needle"` a folder or GGUF file, a prompt and its subject.
#![expect(clippy::print_stdout, reason = "an example")]

use std::path::Path;

use densely_core::tch::nn::VarStore;
use densely_core::tch::{Device, Kind};
use densely_core::{Error, Result, seeded};
use densely_interp::heatmap::Heatmap;
use densely_interp::noise::{Noise, NoiseKind};
use densely_interp::trace::{Prompt, Restore, Trace, TraceOptions, trace};
use densely_lm::{Lm, LmConfig, open};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let found = match arguments.as_slice() {
        [] => random()?,
        [model, prompt, subject] => own(Path::new(model), prompt, subject)?,
        _ => {
            let reason = "are a model, a prompt and its subject, or none";
            return Err(Error::config("arguments", reason));
        }
    };
    println!(
        "p({}) is {:.4} on the prompt and {:.4} with the subject corrupted",
        found.answer, found.high, found.low
    );
    let folder = std::env::temp_dir().join("densely-trace");
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    for kind in [Restore::Block, Restore::Mlp, Restore::Attention] {
        let path = folder.join(format!("{kind}.svg"));
        Heatmap::of_trace(&found, kind, "the model")?.write(&path)?;
        if let Some((token, layer, score)) = found.best(kind) {
            println!(
                "{kind}: {score:.4} with token {token} of layer {layer} restored; {}",
                path.display()
            );
        }
    }
    Ok(())
}

/// Eight layers of random weights.
fn random() -> Result<Trace> {
    let sizes = serde_json::json!({
        "model_type": "gpt2", "vocab_size": 100, "n_positions": 32, "n_embd": 32, "n_layer": 8, "n_head": 4,
        "initializer_range": 0.2
    });
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(1, || Lm::new(LmConfig::from_hugging(&sizes)?, &vs.root()))?;
    let subject = vec![14, 15, 92];
    let noise = Noise::measure(&model, NoiseKind::default(), std::slice::from_ref(&subject))?;
    let ids = [&[3][..], subject.as_slice(), &[65, 35, 89]].concat();
    let prompt = Prompt::from_ids(ids, 1..4, Vec::new())?;
    trace(&model, &prompt, &noise, &TraceOptions::default())
}

/// A model of the disk, with noise measured on the subject alone.
fn own(path: &Path, prompt: &str, subject: &str) -> Result<Trace> {
    let opened = open(path, Device::Cpu, Kind::Float)?;
    let samples = [opened.tokenizer.encode_plain(subject)?];
    let noise = Noise::measure(&opened.model, NoiseKind::default(), &samples)?;
    let prompt = Prompt::new(&opened.tokenizer, prompt, subject, None)?;
    let mut found = trace(&opened.model, &prompt, &noise, &TraceOptions::default())?;
    found.name(&opened.tokenizer);
    Ok(found)
}
