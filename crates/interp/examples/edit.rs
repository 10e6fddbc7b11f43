//! Writes a fact into a model of random weights, or into one's own, looks, and takes it back.
//!
//! `cargo run --example edit` takes a tiny model, whose answers mean nothing; `cargo run --example edit -- gpt2 "The {} is in the city of"
//! "Eiffel Tower" Rome` a folder or GGUF file, a template with `{}` for the subject, the subject and the new answer.
#![expect(clippy::print_stdout, reason = "an example")]

use std::path::Path;

use densely_core::tch::nn::VarStore;
use densely_core::tch::{self, Device, Kind, Tensor};
use densely_core::{Error, Result, seeded};
use densely_interp::edit::{Defaults, EditHandle, Moments, Prefixes, Request, RomeOptions, rome};
use densely_lm::{Lm, LmConfig, open};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => random(),
        [model, template, subject, target] => own(Path::new(model), template, subject, target),
        _ => {
            let reason = "are a model, a template, its subject and the new answer, or none";
            Err(Error::config("arguments", reason))
        }
    }
}

/// Eight layers of random weights.
fn random() -> Result<()> {
    let sizes = serde_json::json!({
        "model_type": "gpt2", "vocab_size": 100, "n_positions": 32, "n_embd": 32, "n_layer": 8, "n_head": 4,
        "initializer_range": 0.2
    });
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(1, || Lm::new(LmConfig::from_hugging(&sizes)?, &vs.root()))?;
    // A prompt whose subject is the tokens 14 15, behind nothing and behind two prefixes; the answer shall be 42.
    let prefixes = [vec![vec![], vec![7, 8], vec![9, 10, 11]]];
    let kl = [14, 15, 3];
    let request = Request::from_ids(&[3, 14, 15, 92, 65], 1..3, &[42], Some((&kl, 1)), &prefixes)?;
    write(&model, &request)
}

/// Any model; its own words are the prefixes.
fn own(path: &Path, template: &str, subject: &str, target: &str) -> Result<()> {
    let opened = open(path, Device::Cpu, Kind::Float)?;
    println!("{}", opened.described);
    let prefixes = Prefixes::rome(&opened.model, &opened.tokenizer, 0)?;
    let request = Request::new(&opened.tokenizer, template, subject, target, &prefixes)?;
    write(&opened.model, &request)
}

/// ROME without second moments, which would be measured on text: `edit::moments::measure`.
fn write(model: &Lm, request: &Request) -> Result<()> {
    let defaults = Defaults::of(model.config());
    println!("layer {}: {}", defaults.rome_layer, defaults.said);
    let moments = Moments::identity(model.config().d_mlp)?;
    let options = RomeOptions::new(defaults.rome_layer);
    println!("p(answer) {:.6} before", chance(model, request)?);
    let made = rome(model, request, &moments, &options)?;
    println!(
        "loss {:.3} to {:.3} in {} evaluations",
        made.losses.first().copied().unwrap_or_default(),
        made.losses.last().copied().unwrap_or_default(),
        made.losses.len()
    );
    let mut handle = EditHandle::apply(model, made.edit)?;
    println!("p(answer) {:.6} with the edit", chance(model, request)?);
    handle.undo(model)?;
    println!("p(answer) {:.6} without it again", chance(model, request)?);
    println!("every byte as before: {}", handle.is_as_before(model)?);
    Ok(())
}

/// Probability of the first token of the answer.
fn chance(model: &Lm, request: &Request) -> Result<f64> {
    let _guard = tch::no_grad_guard();
    let ids = Tensor::f_from_slice(&request.bare()?.ids)?.f_unsqueeze(0)?;
    let logits = model.forward(&ids)?.f_select(0, 0)?.f_select(0, -1)?;
    let odds = logits.f_softmax(0, Kind::Double)?;
    let first = request.target.first().copied().unwrap_or_default();
    Ok(odds.f_double_value(&[first])?)
}
