//! Models against `transformers`; hook points, their gradients and processed weights against `transformer_lens`.

use densely_core::weights::{self, Strictness};
use densely_core::{Result, nn};
use densely_lm::generate::{Sampling, generate};
use densely_lm::process::{Processing, process};
use densely_lm::views::Weight;
use densely_lm::{Lm, LmConfig, Run};
use densely_testkit::{Golden, assert_close, assert_near, goldens};
use serde_json::Value;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::tiny::EVERYTHING;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// The model of a golden with its weights.
fn load(golden: &Golden, kind: Kind) -> Result<(Lm, VarStore)> {
    let config = LmConfig::from_hugging(&golden.config::<Value>())?;
    assert_eq!(LmConfig::from_hugging(&config.to_hugging())?, config);
    let vs = VarStore::new(Device::Cpu);
    let model = Lm::undrawn(config, &vs.root(), kind)?;
    nn::check_names(&vs)?;
    weights::load_tensors(
        &vs,
        golden.path(),
        &golden.group("weight."),
        Strictness::All,
    )?;
    Ok((model, vs))
}

/// How near two computations in f64 come.
const NEAR: f64 = 1e-10;

/// The model that another golden names, with its weights.
fn load_named(golden: &Golden, kind: Kind) -> Result<(Lm, VarStore)> {
    let named = golden.config::<Value>();
    let name = named["model"].as_str().unwrap_or_default();
    load(&Golden::open(HERE, name), kind)
}

/// Mean cross-entropy of each next token.
fn loss(logits: &Tensor, ids: &Tensor) -> Tensor {
    let (time, vocab) = (ids.size()[1], logits.size()[2]);
    let predicted = logits.narrow(1, 0, time - 1).reshape([-1, vocab]);
    // Not tch's cross entropy, which computes in f32.
    let logs = predicted.log_softmax(-1, predicted.kind());
    logs.nll_loss(&ids.narrow(1, 1, time - 1).reshape([-1]))
}

/// [`assert_near`] with what is −∞ in both left aside.
fn assert_point(name: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(actual.size(), expected.size(), "{name}");
    assert_eq!(actual.isinf(), expected.isinf(), "{name}");
    let finite = |xs: &Tensor| xs.masked_fill(&xs.isinf(), 0.0);
    assert_near(&finite(actual), &finite(expected), tolerance);
}

#[test]
fn models_equal_transformers() -> Result<()> {
    for name in goldens(HERE, "model_", 10) {
        let golden = Golden::open(HERE, &name);
        let ids = golden.tensor("input.ids");
        let (single, _vs) = load(&golden, Kind::Float)?;
        let logits = tch::no_grad(|| single.forward(&ids))?;
        assert_near(&logits, &golden.tensor("output.logits"), 1e-5);

        let (model, vs) = load(&golden, Kind::Double)?;
        let logits = model.forward(&ids)?;
        assert_near(&logits, &golden.tensor("output64.logits"), NEAR);
        let loss = loss(&logits, &ids);
        assert_near(&loss, &golden.tensor("loss"), NEAR);
        loss.backward();
        let ours = weights::named(&vs);
        let grads = golden.group("grad.");
        let size = |xs: &Tensor| xs.abs().max().double_value(&[]);
        let largest = grads.values().map(size).fold(0.0, f64::max);
        for (parameter, expected) in grads {
            // Some are zero but for rounding, such as that of a bias of keys, which the softmax does not see.
            let scale = size(&expected).max(1e-6 * largest);
            assert_close(
                &ours[&parameter].grad(),
                &expected,
                0.0,
                10.0 * NEAR * scale,
            );
        }
    }
    Ok(())
}

#[test]
fn padding_on_either_side_changes_nothing() -> Result<()> {
    for name in goldens(HERE, "model_", 10) {
        let golden = Golden::open(HERE, &name);
        let (model, _vs) = load(&golden, Kind::Double)?;
        for side in ["left", "right"] {
            let mask = golden.tensor(&format!("{side}.mask"));
            let ids = golden.tensor(&format!("{side}.ids"));
            let logits = model.run(&ids, &mut Run::new().mask(&mask))?;
            let real = logits * mask.unsqueeze(-1);
            let expected = golden.tensor(&format!("{side}.logits"));
            assert_near(&real, &expected, NEAR);
        }
    }
    Ok(())
}

#[test]
fn greedy_texts_equal_those_made_token_by_token() -> Result<()> {
    for name in goldens(HERE, "model_", 10) {
        let golden = Golden::open(HERE, &name);
        let (model, _vs) = load(&golden, Kind::Float)?;
        let rows = Vec::<Vec<i64>>::try_from(&golden.tensor("greedy.prompt"))?;
        let lengths = Vec::<i64>::try_from(&golden.tensor("greedy.lengths"))?;
        let expected = Vec::<Vec<i64>>::try_from(&golden.tensor("greedy.ids"))?;
        let prompts: Vec<Vec<i64>> = rows
            .iter()
            .zip(&lengths)
            .map(|(row, length)| row[..*length as usize].to_vec())
            .collect();
        let sampling = Sampling::greedy();
        let steps = expected[0].len();
        let texts = generate(&model, &prompts, steps, &sampling, &[])?;
        assert_eq!(texts, expected, "{name}");
    }
    Ok(())
}

#[test]
fn hook_points_equal_transformer_lens() -> Result<()> {
    for name in goldens(HERE, "hooks_", 8) {
        let golden = Golden::open(HERE, &name);
        let expected = golden.group("hook.");
        for kind in [Kind::Float, Kind::Double] {
            let (model, _vs) = load_named(&golden, kind)?;
            let near = match kind {
                Kind::Double => NEAR,
                _ => 1e-5,
            };
            let mut run = Run::new().cache(&EVERYTHING);
            let logits = model.run(&golden.tensor("input.ids"), &mut run)?;
            assert_near(&logits, &golden.tensor("output.logits"), near);
            let cache = run.take_cache();
            let names: Vec<&str> = cache.names().collect();
            let theirs: Vec<&str> = expected.keys().map(String::as_str).collect();
            assert_eq!(names, theirs, "{name}");
            for (point, expected) in &expected {
                let what = format!("{name}: {point}");
                assert_point(&what, cache.get(point)?, expected, near);
            }
        }
    }
    Ok(())
}

#[test]
fn gradients_at_hook_points_equal_transformer_lens() -> Result<()> {
    for name in ["hooks_gpt2", "hooks_llama"] {
        let golden = Golden::open(HERE, name);
        let (model, _vs) = load_named(&golden, Kind::Double)?;
        let ids = golden.tensor("input.ids");
        let expected = golden.group("grad.");
        let points: Vec<&String> = expected.keys().collect();
        let mut run = Run::new().cache(&points).with_gradients();
        let logits = model.run(&ids, &mut run)?;
        let cache = run.take_cache();
        let values = points
            .iter()
            .map(|point| cache.get(point))
            .collect::<Result<Vec<_>>>()?;
        let grads = Tensor::run_backward(&[loss(&logits, &ids)], &values, false, false);
        for (grad, (point, expected)) in grads.iter().zip(&expected) {
            let what = format!("{name}: {point}");
            assert_point(&what, grad, expected, 10.0 * NEAR);
        }
    }
    Ok(())
}

/// The weight that `transformer_lens` calls `name`; grouped keys and values have a low line before their names there.
fn weight(model: &Lm, name: &str) -> Result<Tensor> {
    let absent = || densely_core::Error::config(name, "is no weight that this test knows");
    match name {
        "embed.W_E" => return Ok(model.w_e()),
        "pos_embed.W_pos" => return model.w_pos()?.ok_or_else(absent),
        "unembed.W_U" => return model.w_u(),
        "unembed.b_U" => return model.b_u(),
        _ => (),
    }
    let parts: Vec<&str> = name.split('.').collect();
    let ["blocks", layer, _, last] = parts.as_slice() else {
        return Err(absent());
    };
    let which = match last.trim_start_matches('_') {
        "W_Q" => Weight::Q,
        "W_K" => Weight::K,
        "W_V" => Weight::V,
        "W_O" => Weight::O,
        "b_Q" => Weight::BQ,
        "b_K" => Weight::BK,
        "b_V" => Weight::BV,
        "b_O" => Weight::BO,
        "W_in" => Weight::In,
        "W_gate" => Weight::Gate,
        "W_out" => Weight::Out,
        "b_in" => Weight::BIn,
        "b_out" => Weight::BOut,
        _ => return Err(absent()),
    };
    model.weight(which, layer.parse().map_err(|_| absent())?)
}

#[test]
fn processed_models_equal_transformer_lens() -> Result<()> {
    // The package folds in f32, whatever the model's kind.
    let near = 1e-6;
    for name in goldens(HERE, "processed_", 4) {
        let golden = Golden::open(HERE, &name);
        let (plain, _vs) = load_named(&golden, Kind::Double)?;
        let model = process(&plain, &Processing::transformer_lens(plain.config()))?;
        for (name, expected) in golden.group("weight.") {
            assert_near(&weight(&model, &name)?, &expected, near);
        }
        let mut run = Run::new().cache(&EVERYTHING);
        let logits = model.run(&golden.tensor("input.ids"), &mut run)?;
        assert_near(&logits, &golden.tensor("output.logits"), near);
        let cache = run.take_cache();
        for (point, expected) in golden.group("hook.") {
            let what = format!("{name}: {point}");
            assert_point(&what, cache.get(&point)?, &expected, near);
        }
    }
    Ok(())
}
