//! Rewritten weights predict what the model's own do.

use densely_core::Result;
use densely_lm::Lm;
use densely_lm::process::{
    Processing, center_unembed, center_writing_weights, fold_ln, fold_value_biases, process,
};
use densely_lm::views::Weight;
use densely_testkit::{assert_bits, assert_near};
use tch::{Kind, Tensor};

use super::tiny::{self, plain, record};

fn predictions(model: &Lm, ids: &Tensor) -> Result<Tensor> {
    Ok(plain(model, ids)?.log_softmax(-1, Kind::Float))
}

fn largest(xs: &Tensor) -> f64 {
    xs.abs().max().double_value(&[])
}

#[test]
fn every_rewriting_leaves_the_predictions() -> Result<()> {
    let ids = tiny::ids(2, 7);
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        let before = plain(&model, &ids)?;
        let expected = predictions(&model, &ids)?;
        let mut others = vec![
            fold_ln(&model)?,
            center_unembed(&model)?,
            fold_value_biases(&model)?,
            process(&model, &Processing::default())?,
            process(&model, &Processing::transformer_lens(model.config()))?,
        ];
        if model.config().rms() {
            let refused = center_writing_weights(&model).map(|_| ());
            assert!(refused.is_err_and(|e| e.to_string().contains("RMS")));
        } else {
            others.push(center_writing_weights(&model)?);
        }
        for other in &others {
            assert_near(&predictions(other, &ids)?, &expected, 1e-4);
            assert!(!other.config().tied);
        }
        assert_bits(&plain(&model, &ids)?, &before);
    }
    Ok(())
}

#[test]
fn processed_weights_are_what_they_say() -> Result<()> {
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        let other = process(&model, &Processing::transformer_lens(model.config()))?;
        let parameters = other.parameters();
        let norms = parameters.iter().filter(|(name, _)| {
            ["ln_", "norm"].iter().any(|part| name.contains(part)) && name.ends_with(".weight")
        });
        for (name, xs) in norms {
            assert_bits(xs, &xs.ones_like());
            if let Some(bias) = parameters.get(&name.replace(".weight", ".bias")) {
                assert_bits(bias, &bias.zeros_like());
            }
        }
        let rms = model.config().rms();
        for layer in 0..2 {
            assert!(largest(&other.weight(Weight::BV, layer)?) <= 0.0);
            if rms {
                continue;
            }
            for weight in [Weight::O, Weight::Out, Weight::BO, Weight::BOut] {
                let mean = other
                    .weight(weight, layer)?
                    .mean_dim(-1i64, false, Kind::Float);
                assert!(largest(&mean) < 1e-6, "{name}: {weight:?}");
            }
            for weight in [Weight::Q, Weight::K, Weight::V, Weight::In] {
                let mean = other
                    .weight(weight, layer)?
                    .mean_dim(-2i64, false, Kind::Float);
                assert!(largest(&mean) < 1e-6, "{name}: {weight:?}");
            }
        }
        let mean = other.w_u()?.mean_dim(1i64, false, Kind::Float);
        assert!(largest(&mean) < 1e-6, "{name}");
        // The new model shares nothing with the old one.
        let _no_grad = tch::no_grad_guard();
        let before = model.w_e().copy();
        let _ = other.w_e().zero_();
        assert_bits(&model.w_e().detach(), &before.detach());
    }
    Ok(())
}

#[test]
fn residuals_lose_their_mean_alone() -> Result<()> {
    let ids = tiny::ids(2, 6);
    for name in ["gpt2", "neox", "serial", "gptj", "opt"] {
        let (model, _vs) = tiny::model(name)?;
        let other = process(&model, &Processing::transformer_lens(model.config()))?;
        let points = ["blocks.*.hook_mlp_out", "blocks.*.hook_resid_post"];
        let before = record(&model, &ids, &points)?;
        let after = record(&other, &ids, &points)?;
        for point in before.names() {
            let xs = before.get(point)?;
            let centred = xs - xs.mean_dim(-1i64, true, Kind::Float);
            assert_near(after.get(point)?, &centred, 1e-4);
        }
    }
    Ok(())
}

#[test]
fn a_processed_model_with_further_biases_is_not_saved_as_what_it_is_not() -> Result<()> {
    let folder = tiny::folder()?;
    let (model, _vs) = tiny::model("gpt2")?;
    densely_lm::folder::save(&model, folder.path())?;
    let folded = process(&model, &Processing::transformer_lens(model.config()))?;
    let Err(error) = densely_lm::folder::save(&folded, folder.path()) else {
        panic!("a head's bias was saved, which GPT-2 has not");
    };
    assert!(error.to_string().contains("processed"), "{error}");
    Ok(())
}
