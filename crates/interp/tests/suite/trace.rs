//! Causal tracing: the fast way against the plain one, on tiny models of all families, and what must hold of a grid.

use densely_core::{Error, Result, seeded};
use densely_interp::facts::Fact;
use densely_interp::noise::{Noise, RandomState};
use densely_interp::sweep::{fingerprint, sweep};
use densely_interp::trace::{
    Prompt, Restore, Score, Trace, TraceOptions, plain, trace, trace_with,
};
use densely_lm::{Lm, LmConfig};
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Device, Tensor};

use crate::edit::speaking;

/// Names of the families in `config.json`.
pub(crate) const FAMILIES: [&str; 6] = [
    "gpt2",
    "gpt_neox",
    "gpt_neox serial",
    "gptj",
    "opt",
    "llama",
];

fn sizes(family: &str) -> Value {
    match family {
        "gpt2" => {
            json!({ "model_type": "gpt2", "vocab_size": 40, "n_positions": 24, "n_embd": 8, "n_layer": 5, "n_head": 2 })
        }
        "gptj" => {
            json!({ "model_type": "gptj", "vocab_size": 40, "n_positions": 24, "n_embd": 8, "n_layer": 5, "n_head": 2, "rotary_dim": 2 })
        }
        "opt" => {
            json!({ "model_type": "opt", "vocab_size": 40, "max_position_embeddings": 24, "hidden_size": 8, "word_embed_proj_dim": 8, "num_hidden_layers": 5, "num_attention_heads": 2, "ffn_dim": 16 })
        }
        "llama" => {
            json!({ "model_type": "llama", "vocab_size": 40, "max_position_embeddings": 24, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2 })
        }
        other => {
            json!({ "model_type": "gpt_neox", "vocab_size": 40, "max_position_embeddings": 24, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "rotary_pct": 0.5, "use_parallel_residual": other == "gpt_neox" })
        }
    }
}

/// A model of five layers with weights large enough that restoring matters.
pub(crate) fn tiny(family: &str) -> Result<(Lm, VarStore)> {
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(7, || {
        Lm::new(LmConfig::from_hugging(&sizes(family))?, &vs.root())
    })?;
    let _guard = tch::no_grad_guard();
    for (_, mut xs) in model.parameters() {
        if xs.dim() > 1 {
            let _ = xs.f_mul_scalar_(15.0)?;
        }
    }
    Ok((model, vs))
}

fn prompt(answer: &[i64]) -> Result<Prompt> {
    Prompt::from_ids(vec![5, 9, 30, 2, 17, 8, 21], 1..4, answer.to_vec())
}

fn noise(samples: i64) -> Result<Tensor> {
    Ok(RandomState::new(1).randn(&[samples, 3, 8])? * 0.5)
}

fn options() -> TraceOptions {
    TraceOptions {
        kinds: Restore::ALL.to_vec(),
        window: 2,
        ..TraceOptions::default()
    }
}

fn assert_same(a: &Trace, b: &Trace, tolerance: f64) {
    let near = |x: f64, y: f64, what: &str| {
        assert!((x - y).abs() <= tolerance, "{what}: {x} and {y}");
    };
    near(a.high, b.high, "high");
    near(a.low, b.low, "low");
    assert_eq!(a.answer_ids, b.answer_ids);
    assert_eq!(a.scores.len(), b.scores.len());
    for (kind, grid) in &a.scores {
        for (token, row) in grid.iter().enumerate() {
            for (layer, score) in row.iter().enumerate() {
                let other = b.scores[kind][token][layer];
                near(
                    *score,
                    other,
                    &format!("{kind} of token {token}, layer {layer}"),
                );
            }
        }
    }
}

#[test]
fn fast_equals_plain_in_all_families() -> Result<()> {
    for family in FAMILIES {
        let (model, _vs) = tiny(family)?;
        for (answer, score) in [(&[][..], Score::First), (&[3, 11, 4][..], Score::Product)] {
            let options = TraceOptions { score, ..options() };
            let slow = plain::trace_with(&model, &prompt(answer)?, &noise(3)?, &options)?;
            let quick = trace_with(&model, &prompt(answer)?, &noise(3)?, &options)?;
            assert_same(&quick, &slow, 1e-4 * slow.high.max(1e-3));
            // The test would pass on a model that nothing changes.
            let spread = slow.scores[&Restore::Block]
                .iter()
                .flatten()
                .map(|score| (score - slow.low).abs())
                .fold(0.0, f64::max);
            assert!(spread > 1e-2 * slow.high, "{family}: {spread}");
        }
    }
    Ok(())
}

#[test]
fn windows_and_batches_of_any_size_give_the_same_cells() -> Result<()> {
    let (model, _vs) = tiny("gpt2")?;
    for window in [1, 3, 4, 10, 100] {
        let options = TraceOptions {
            window,
            ..options()
        };
        let slow = plain::trace_with(&model, &prompt(&[])?, &noise(2)?, &options)?;
        for batch_rows in [1, 4, 7, 1000] {
            let options = TraceOptions {
                batch_rows,
                ..options.clone()
            };
            let quick = trace_with(&model, &prompt(&[])?, &noise(2)?, &options)?;
            assert_same(&quick, &slow, 1e-4 * slow.high);
        }
    }
    Ok(())
}

#[test]
fn a_subject_at_either_end_is_traced() -> Result<()> {
    let (model, _vs) = tiny("llama")?;
    for subject in [0..2, 3..5, 0..5] {
        let width = subject.len() as i64;
        let prompt = Prompt::from_ids(vec![5, 9, 30, 2, 17], subject, vec![3, 4])?;
        let noise = RandomState::new(4).randn(&[2, width, 8])?;
        for score in [Score::First, Score::Product] {
            for replace in [false, true] {
                let options = TraceOptions {
                    score,
                    replace,
                    ..options()
                };
                let slow = plain::trace_with(&model, &prompt, &noise, &options)?;
                let quick = trace_with(&model, &prompt, &noise, &options)?;
                assert_same(&quick, &slow, 1e-4 * slow.high.max(1e-3));
            }
        }
    }
    Ok(())
}

#[test]
fn restoring_all_is_clean_and_restoring_nothing_is_low() -> Result<()> {
    let (model, _vs) = tiny("gpt2")?;
    // One token, corrupted whole: its first block's output is all that the answer depends on.
    let one = Prompt::from_ids(vec![9], 0..1, Vec::new())?;
    let drawn = RandomState::new(1).randn(&[3, 1, 8])?;
    let trace = trace_with(&model, &one, &drawn, &options())?;
    assert!(trace.high - trace.low > 1e-3);
    for score in &trace.scores[&Restore::Block][0] {
        assert!((score - trace.high).abs() < 1e-5 * trace.high, "{score}");
    }
    // The last token's output of the last block is what the answer is read from; other tokens' are not read any more.
    let trace = trace_with(&model, &prompt(&[])?, &noise(3)?, &options())?;
    let last = |token: usize| trace.scores[&Restore::Block][token][4];
    assert!((last(6) - trace.high).abs() < 1e-5 * trace.high);
    for token in 0..6 {
        assert!(
            (last(token) - trace.low).abs() < 1e-5 * trace.high,
            "{token}"
        );
    }
    // Nothing is corrupted before the subject.
    for grid in trace.scores.values() {
        assert_eq!(grid[0], vec![trace.low; 5]);
    }
    // Noise of nothing corrupts nothing.
    let none = Tensor::zeros([3, 3, 8], tch::kind::DOUBLE_CPU);
    let trace = trace_with(&model, &prompt(&[])?, &none, &options())?;
    assert!((trace.high - trace.low).abs() < 1e-5 * trace.high);
    Ok(())
}

#[test]
fn windows_are_cut_at_the_borders() {
    let layers = |layer: usize, window: usize| Restore::Mlp.layers(layer, window, 48);
    assert_eq!(layers(20, 10), 15..25);
    assert_eq!(layers(2, 10), 0..7);
    assert_eq!(layers(47, 10), 42..48);
    assert_eq!(layers(20, 1), 20..21);
    assert_eq!(layers(20, 3), 19..22);
    assert_eq!(Restore::Block.layers(20, 10, 48), 20..21);
}

#[test]
fn draws_are_averaged() -> Result<()> {
    let (model, _vs) = tiny("gpt2")?;
    let noise = Noise::fixed(0.5)?;
    let options = TraceOptions {
        draws: 2,
        samples: 2,
        seed: 3,
        ..options()
    };
    let both = trace(&model, &prompt(&[])?, &noise, &options)?;
    let each = [3, 4].map(|seed| -> Result<Trace> {
        let options = TraceOptions {
            seed,
            draws: 1,
            ..options.clone()
        };
        trace(&model, &prompt(&[])?, &noise, &options)
    });
    let [a, b] = each;
    let (a, b) = (a?, b?);
    assert_eq!(both.low_of_draws, [a.low, b.low]);
    let mean = |x: f64, y: f64| f64::midpoint(x, y);
    assert!((both.low - mean(a.low, b.low)).abs() < 1e-15);
    let of = |trace: &Trace| trace.scores[&Restore::Mlp][2][1];
    assert!((of(&both) - mean(of(&a), of(&b))).abs() < 1e-15);
    Ok(())
}

#[test]
fn a_trace_repeats_to_the_bit_and_goes_through_json() -> Result<()> {
    let (model, _vs) = tiny("gptj")?;
    let run = || trace_with(&model, &prompt(&[])?, &noise(3)?, &options());
    let first = run()?;
    assert_eq!(first, run()?);
    let text = serde_json::to_string(&first).expect("JSON");
    assert!(text.contains("\"severed-mlp\""));
    let back: Trace = serde_json::from_str(&text).expect("a trace");
    assert_eq!(back, first);
    Ok(())
}

#[test]
fn settings_that_change_cells_change_the_fingerprint() -> Result<()> {
    let (model, _vs) = tiny("gpt2")?;
    let noise = Noise::fixed(0.5)?;
    let of = |options: &TraceOptions| fingerprint(&model, &noise, options);
    let plain = of(&options())?;
    let batch = TraceOptions {
        batch_rows: 3,
        ..options()
    };
    assert_eq!(of(&batch)?, plain);
    let seed = TraceOptions {
        seed: 2,
        ..options()
    };
    assert_ne!(of(&seed)?, plain);
    assert_ne!(fingerprint(&model, &Noise::fixed(0.6)?, &options())?, plain);
    let (other, _vs) = tiny("llama")?;
    assert_ne!(fingerprint(&other, &noise, &options())?, plain);
    Ok(())
}

#[test]
fn an_answer_of_several_tokens_is_skipped_with_what_would_follow_it() -> Result<()> {
    let (model, _vs, tokenizer) = speaking()?;
    let answer = |id: &str, words: &str| {
        let words = Some(words.to_owned());
        Fact::new(id, "The Louvre stands in", "Louvre", words)
    };
    let facts = [answer("1", "Clermont-Ferrand")?, answer("2", "Rome")?];
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    let path = folder.path().join("traces.jsonl");
    let options = TraceOptions {
        samples: 1,
        ..TraceOptions::default()
    };
    let noise = Noise::fixed(0.5)?;
    let rows = sweep(
        &model,
        &tokenizer,
        &facts,
        &noise,
        &options,
        &path,
        false,
        &mut |_, _, _| {},
    )?;
    let several = rows[0].skipped.as_deref().expect("another answer");
    assert!(several.starts_with("the model gives"), "{several}");
    assert!(
        several.contains("tokens where one is compared"),
        "{several}"
    );
    let one = rows[1].skipped.as_deref().expect("another answer");
    assert!(one.ends_with("instead of \"Rome\""), "{one}");
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let (model, _vs) = tiny("gpt2")?;
    let refused = |prompt: &Prompt, noise: &Tensor, options: &TraceOptions, part: &str| {
        let error = trace_with(&model, prompt, noise, options)
            .expect_err(part)
            .to_string();
        assert!(error.contains(part), "{error}");
    };
    let (good, drawn) = (prompt(&[])?, noise(2)?);
    refused(&good, &drawn.narrow(1, 0, 2), &options(), "noise");
    refused(&good, &drawn.narrow(0, 0, 0), &options(), "samples");
    refused(&good, &drawn.to_kind(tch::Kind::Int64), &options(), "noise");
    let none = TraceOptions {
        kinds: Vec::new(),
        ..options()
    };
    refused(&good, &drawn, &none, "kinds");
    let window = TraceOptions {
        window: 0,
        ..options()
    };
    refused(&good, &drawn, &window, "window");
    let unknown = Prompt::from_ids(vec![1, 2, 3, 400], 1..4, Vec::new())?;
    refused(&unknown, &drawn, &options(), "token 400");
    let long = Prompt::from_ids(vec![1; 25], 1..4, Vec::new())?;
    refused(&long, &drawn, &options(), "25 tokens");
    assert!(Prompt::from_ids(vec![1, 2], 1..1, Vec::new()).is_err());
    assert!(Prompt::from_ids(vec![1, 2], 1..3, Vec::new()).is_err());
    assert!("blocks".parse::<Restore>().is_err());
    Ok(())
}
