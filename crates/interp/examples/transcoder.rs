//! Trains a transcoder on a model of random weights, judges it, writes it for `sae_lens`, and follows one of its features back to the prompt.
//!
//! `cargo run --example transcoder` takes a tiny model and a made-up text, whose features mean nothing.
#![expect(clippy::print_stdout, reason = "an example")]

use std::path::Path;

use densely_core::tch::Device;
use densely_core::tch::nn::VarStore;
use densely_core::{Error, Result, seeded};
use densely_interp::activations::{ActivationOptions, Activations};
use densely_interp::circuit::{Local, Replacement, Transcoder};
use densely_interp::corpus::{CorpusOptions, Documents};
use densely_interp::dictionary::Activation;
use densely_interp::dictionary::evaluate::{EvaluateOptions, InPlace, evaluate};
use densely_interp::dictionary::fit::{FitSettings, Style, fit};
use densely_interp::dictionary::folder::{self, Format, Metadata};
use densely_lm::{Lm, LmConfig, Tokenizer};
use densely_train::run::FitOptions;

const READ: &str = "blocks.1.ln2.hook_normalized";
const WRITE: &str = "blocks.1.hook_mlp_out";

fn main() -> Result<()> {
    let sizes = serde_json::json!({
        "model_type": "gpt2", "vocab_size": 50_257, "n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.2,
    });
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || Lm::new(LmConfig::from_hugging(&sizes)?, &vs.root()))?;
    let tokenizer = Tokenizer::gpt2()?;

    // Texts, cut into windows; a tenth is kept for judging.
    let place = std::env::temp_dir().join(format!("densely-transcoder-{}", std::process::id()));
    std::fs::create_dir_all(&place).map_err(Error::io(&place))?;
    let text = place.join("text.txt");
    let words = [
        "the", "old", "bridge", "river", "stands", "under", "a", "stone",
    ];
    let made: Vec<&str> = (0..6000)
        .map(|i: usize| words[i * i % 61 % words.len()])
        .collect();
    std::fs::write(&text, made.join(" ")).map_err(Error::io(&text))?;
    let options = CorpusOptions {
        context: 32,
        ..CorpusOptions::default()
    };
    let documents = Documents::read(&[text], &tokenizer, &options)?;
    let (train, test, _) = documents.split(0.1)?;
    let (train, test) = (
        train.windows(&tokenizer, &options)?,
        test.windows(&tokenizer, &options)?,
    );

    // What enters the MLP and what leaves it, shuffled, and a dictionary between them.
    let points = ActivationOptions::new(&[READ, WRITE]);
    let train = Activations::new(&model, &train, points.clone(), None)?;
    let judged = Activations::new(&model, &test, points, None)?;
    let mut settings = FitSettings::new(Style::Sparsify, READ, WRITE, (32, 32), 256);
    settings.batch = 256;
    settings.epochs = 3;
    settings.dictionary.activation = Activation::TopK {
        k: 8,
        rescale: false,
    };
    let metadata = Metadata {
        hook_name: Some(READ.to_owned()),
        hook_name_out: Some(WRITE.to_owned()),
        ..Metadata::default()
    };
    let run = FitOptions {
        folder: &place.join("run"),
        table: Path::new("text.txt"),
        seed: 0,
        device: Device::Cpu,
        resume: None,
    };
    let fitted = fit(
        &settings,
        &train,
        Some(&judged),
        &metadata,
        &run,
        &mut |_| Ok(()),
    )?;
    let dictionary = &fitted.dictionary;
    let in_place = InPlace {
        dictionary,
        read: READ,
        write: WRITE,
    };
    let found = evaluate(
        &model,
        &test,
        &[in_place],
        &EvaluateOptions::default(),
        &mut |_, _| Ok(()),
    )?;
    println!(
        "{} steps: {:.1} % of the variance explained by {:.1} features a token; cross-entropy {:.4}, of the model itself {:.4}",
        fitted.steps,
        100.0 * found.dictionaries[0].explained,
        found.dictionaries[0].l0,
        found.ce_replaced,
        found.ce_clean
    );
    let format = folder::save(
        dictionary,
        &metadata,
        &place.join("dictionary"),
        Some(Format::Sparsify),
    )?;
    println!(
        "written as {format:?}: {}",
        place.join("dictionary").display()
    );

    // A prompt's strongest feature, and the three parts of the model that it comes from most.
    let transcoder = Transcoder::new(dictionary, READ, WRITE)?;
    let replacement = Replacement::new(&model, vec![None, Some(transcoder), None])?;
    let ids = tokenizer.encode_plain("the old bridge stands under a stone")?;
    let local = Local::new(&replacement, &ids)?;
    let token = ids.len() - 1;
    let features = local.features(1, token)?;
    let strongest = features.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
    let (feature, activation) =
        strongest.ok_or_else(|| Error::config("prompt", "wakes no feature"))?;
    let mut parts = local.contributions(&local.feature(1, token, feature)?)?;
    parts.sort_by(|a, b| b.value.abs().total_cmp(&a.value.abs()));
    println!("feature {feature} is {activation:.3} at the last token, from");
    for part in parts.iter().take(3) {
        println!("  {:+.3} {}", part.value, part.component);
    }
    let check = local.feature_completeness(1, token, feature)?;
    println!("all parts sum to it within {:.1e}", check.relative());
    Ok(())
}
