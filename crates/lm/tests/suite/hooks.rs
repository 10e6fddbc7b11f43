//! Hook points: what is recorded, what is changed, and that neither costs a bit.

use std::cell::Cell;

use densely_core::Result;
use densely_lm::Run;
use densely_lm::views::Weight;
use densely_testkit::{assert_bits, assert_near};
use tch::{Kind, Tensor};

use super::tiny::{self, EVERYTHING, message, plain, record};

#[test]
fn looking_changes_no_bit() -> Result<()> {
    let ids = tiny::ids(2, 6);
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        let expected = plain(&model, &ids)?;
        let forward = tch::no_grad(|| model.forward(&ids))?;
        assert_bits(&forward, &expected);

        let calls = Cell::new(0);
        let mut run = Run::new();
        for point in model.hook_names() {
            run = run.hook(point, |_| {
                calls.set(calls.get() + 1);
                Ok(None)
            });
        }
        assert_bits(&model.run(&ids, &mut run)?, &expected);
        drop(run);
        assert_eq!(calls.get(), model.hook_names().count(), "{name}");

        let mut run = Run::new().cache(&EVERYTHING);
        assert_bits(&model.run(&ids, &mut run)?, &expected);
        assert_eq!(run.take_cache().names().count(), calls.get(), "{name}");
        assert_eq!(run.take_cache().names().count(), 0);
    }
    Ok(())
}

#[test]
fn every_point_is_where_the_pass_goes_through() -> Result<()> {
    let ids = tiny::ids(2, 6);
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        let expected = plain(&model, &ids)?;
        for point in model.hook_names() {
            // Its own value in its place leaves the result, another does not.
            let mut run = Run::new().hook(point, |xs| Ok(Some(xs.copy())));
            assert_near(&model.run(&ids, &mut run)?, &expected, 1e-5);
            let mut run = Run::new().hook(point, |xs| {
                let row = Tensor::arange(xs.numel() as i64, (xs.kind(), xs.device()));
                let other = row.cos().reshape(xs.size()) + 1.5;
                Ok(Some(xs * other))
            });
            let changed = model.run(&ids, &mut run)?;
            let differs = (changed - &expected).abs().max().double_value(&[]);
            // A NaN, from a score of −∞ times something, is a difference too.
            assert!(differs.is_nan() || differs > 1e-6, "{name}: {point}");
        }
    }
    Ok(())
}

#[test]
fn recorded_values_have_the_shapes_of_the_points() -> Result<()> {
    let ids = tiny::ids(2, 5);
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        let config = model.config();
        let cache = record(&model, &ids, &EVERYTHING)?;
        let (d, heads, kv) = (config.d_model, config.n_heads, config.n_kv_heads);
        for point in cache.names() {
            let own = point.rsplit('.').next().unwrap_or(point);
            let expected = match own {
                "hook_scale" => vec![2, 5, 1],
                "hook_q" | "hook_rot_q" | "hook_z" => vec![2, 5, heads, config.d_head],
                "hook_k" | "hook_rot_k" | "hook_v" => vec![2, 5, kv, config.d_head],
                "hook_attn_scores" | "hook_pattern" => vec![2, heads, 5, 5],
                "hook_result" | "hook_q_input" => vec![2, 5, heads, d],
                "hook_k_input" | "hook_v_input" => vec![2, 5, kv, d],
                "hook_pre" | "hook_post" | "hook_pre_linear" => vec![2, 5, config.d_mlp],
                _ => vec![2, 5, d],
            };
            assert_eq!(cache.get(point)?.size(), expected, "{name}: {point}");
            assert!(cache.get(point)?.is_contiguous(), "{name}: {point}");
        }
        let pattern = cache.get("blocks.1.attn.hook_pattern")?;
        let sums = pattern.sum_dim_intlist(-1i64, false, Kind::Float);
        assert_near(&sums, &sums.ones_like(), 1e-6);
        let above = cache.get("blocks.1.attn.hook_attn_scores")?.triu(1);
        let hidden = above.isinf().to_kind(Kind::Float).sum(Kind::Float);
        assert_eq!(hidden.int64_value(&[]), 2 * heads * 10);
        let parallel = ["neox", "gptj"].contains(&name);
        assert_eq!(cache.get("blocks.0.hook_resid_mid").is_err(), parallel);
    }
    Ok(())
}

#[test]
fn stars_leave_dear_points_out() -> Result<()> {
    let (model, _vs) = tiny::model("gpt2")?;
    let ids = tiny::ids(1, 4);
    let recorded = |pattern: &str| -> Result<Vec<String>> {
        let cache = record(&model, &ids, &[pattern])?;
        Ok(cache.names().map(str::to_owned).collect())
    };
    let all = recorded("*")?;
    assert!(
        !all.iter()
            .any(|name| name.ends_with("_input") || name.ends_with("hook_result"))
    );
    assert!(!all.iter().any(|name| name.ends_with("hook_mlp_in")));
    assert_eq!(recorded("blocks.*.attn.hook_result")?.len(), 2);
    assert_eq!(
        recorded("blocks.1.hook_q_input")?,
        ["blocks.1.hook_q_input"]
    );
    assert_eq!(recorded("blocks.*.hook_mlp_out")?.len(), 2);
    assert_eq!(recorded("hook_*embed")?, ["hook_embed", "hook_pos_embed"]);
    Ok(())
}

#[test]
fn a_cache_holds_what_it_counts() -> Result<()> {
    let (model, _vs) = tiny::model("gpt2")?;
    let ids = tiny::ids(2, 6);
    let cache = record(&model, &ids, &["blocks.*.attn.hook_v", "hook_embed"])?;
    // Two layers of values and one embedding, 12 wide, in f32.
    assert_eq!(cache.bytes(), 3 * 2 * 6 * 12 * 4);
    let missing = message(cache.get("blocks.0.attn.hook_w").map(|_| ()));
    assert!(missing.contains("blocks.0.attn.hook_v"), "{missing}");
    assert_eq!(cache.into_tensors().len(), 3);
    Ok(())
}

#[test]
fn values_are_frozen_and_added_in_the_order_asked_for() -> Result<()> {
    let ids = tiny::ids(2, 6);
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        let d = model.config().d_model;
        let last = "blocks.1.hook_resid_post";
        let value = Tensor::randn([2, 6, d], tch::kind::FLOAT_CPU);
        let row = Tensor::randn([d], tch::kind::FLOAT_CPU);
        let mut run = Run::new()
            .freeze(last, value.shallow_clone())
            .add(last, row.shallow_clone())
            .hook(last, |xs| Ok(Some(xs * 2.0)))
            .cache(&[last]);
        let logits = model.run(&ids, &mut run)?;
        let expected = (value + row) * 2.0;
        assert_bits(run.take_cache().get(last)?, &expected);
        let unembedded = tch::no_grad(|| model.unembed(&expected))?;
        assert_near(&logits, &unembedded, 1e-6);
    }
    Ok(())
}

#[test]
fn heads_sum_to_what_attention_writes() -> Result<()> {
    let ids = tiny::ids(2, 6);
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        let points = ["*hook_result", "blocks.*.hook_attn_out", "*hook_z"];
        let cache = record(&model, &ids, &points)?;
        let _no_grad = tch::no_grad_guard();
        for layer in 0..2 {
            let results = cache.get(&format!("blocks.{layer}.attn.hook_result"))?;
            let bias = model.weight(Weight::BO, layer)?;
            let sum = results.sum_dim_intlist(2i64, false, Kind::Float) + bias;
            let written = cache.get(&format!("blocks.{layer}.hook_attn_out"))?;
            assert_near(&sum, written, 1e-5);
            let zs = cache.get(&format!("blocks.{layer}.attn.hook_z"))?;
            assert_near(&model.head_results(layer, zs)?, results, 1e-6);
        }
    }
    Ok(())
}

#[test]
fn views_make_the_scores_of_the_pass() -> Result<()> {
    let ids = tiny::ids(1, 5);
    for name in ["gpt2", "opt", "qwen2", "neox"] {
        let (model, _vs) = tiny::model(name)?;
        let points = [
            "blocks.0.ln1.hook_normalized",
            "*hook_q",
            "*hook_k",
            "*hook_v",
        ];
        let cache = record(&model, &ids, &points)?;
        let _no_grad = tch::no_grad_guard();
        let normalized = cache.get("blocks.0.ln1.hook_normalized")?;
        // The norm's scale and shift come between the point and the matrices.
        let norm = match name {
            "gpt2" => "transformer.h.0.ln_1",
            "opt" => "model.decoder.layers.0.self_attn_layer_norm",
            "neox" => "gpt_neox.layers.0.input_layernorm",
            _ => "model.layers.0.input_layernorm",
        };
        let mut xs = normalized * model.parameter(&format!("{norm}.weight"))?;
        if name != "qwen2" {
            xs += model.parameter(&format!("{norm}.bias"))?;
        }
        for (matrix, bias, point) in [
            (Weight::Q, Weight::BQ, "hook_q"),
            (Weight::K, Weight::BK, "hook_k"),
            (Weight::V, Weight::BV, "hook_v"),
        ] {
            let ys = Tensor::einsum(
                "btd,hdw->bthw",
                &[xs.shallow_clone(), model.weight(matrix, 0)?],
                None::<i64>,
            ) + model.weight(bias, 0)?;
            assert_near(&ys, cache.get(&format!("blocks.0.attn.{point}"))?, 1e-5);
        }
        let ov = model.ov(1, 1)?;
        let values = ov.singular_values()?;
        let (_, whole, _) = ov.product()?.svd(true, false);
        let rank = values.size()[0];
        assert_near(&values, &whole.narrow(0, 0, rank), 1e-4);
        assert!(model.qk(1, 9).is_err());
        assert_eq!(model.weights(Weight::O)?.size()[0], 2);
    }
    Ok(())
}

#[test]
fn gradients_flow_through_the_points() -> Result<()> {
    let ids = tiny::ids(2, 6);
    for name in tiny::ALL {
        let (model, vs) = tiny::model(name)?;
        let point = "blocks.1.hook_resid_pre";
        let gradient = |run: &mut Run<'_>| -> Result<(Tensor, Tensor)> {
            let logits = model.run(&ids, run)?;
            let value = run.take_cache().get(point)?.shallow_clone();
            let loss = logits.square().mean(Kind::Float);
            let found = Tensor::f_run_backward(&[loss], &[&value], false, false)?;
            Ok((value, found[0].shallow_clone()))
        };
        let (value, found) = gradient(&mut Run::new().cache(&[point]).with_gradients())?;
        let leaf = value.detach().set_requires_grad(true);
        let logits = model.run_from(1, &leaf, &mut Run::new().with_gradients())?;
        logits.square().mean(Kind::Float).backward();
        assert_near(&found, &leaf.grad(), 1e-5);

        // Recording all points puts them all into the graph; the gradient stays.
        let mut run = Run::new().cache(&EVERYTHING).with_gradients();
        let logits = model.run(&ids, &mut run)?;
        let cache = run.take_cache().into_tensors();
        let values: Vec<&Tensor> = cache.values().collect();
        let loss = logits.square().mean(Kind::Float);
        let all = Tensor::f_run_backward(&[loss], &values, false, false)?;
        for (name, gradient) in cache.keys().zip(&all) {
            // Split by head, the residual has norms of its own.
            assert!(gradient.defined() || name.contains("ln1"), "{name}");
            if name == point {
                assert_near(gradient, &found, 1e-4);
            }
        }
        let mut vs = vs;
        vs.freeze();
        let (_, frozen) = gradient(&mut Run::new().cache(&[point]).with_gradients())?;
        assert_near(&frozen, &found, 1e-5);
        let cache = record(&model, &ids, &[point])?;
        assert!(!cache.get(point)?.requires_grad());
    }
    Ok(())
}

#[test]
fn mistakes_are_sentences() -> Result<()> {
    let (model, _vs) = tiny::model("gpt2")?;
    let ids = tiny::ids(1, 4);
    let refused = |mut run: Run<'_>, part: &str| {
        let message = message(model.run(&ids, &mut run));
        assert!(message.contains(part), "{message}");
    };
    refused(
        Run::new().cache(&["blocks.0.hook_resid_prre"]),
        "blocks.0.hook_resid_pre",
    );
    refused(Run::new().cache(&["blocks.7.*"]), "no such hook point");
    refused(
        Run::new().hook("hook_embedding", |_| Ok(None)),
        "hook_embed",
    );
    let point = "blocks.0.hook_mlp_out";
    let wrong = |_: &Tensor| Ok(Some(Tensor::zeros([1, 4, 5], tch::kind::FLOAT_CPU)));
    refused(
        Run::new().hook(point, wrong),
        "expected [1, 4, 12], got [1, 4, 5]",
    );
    let double = |xs: &Tensor| Ok(Some(xs.to_kind(Kind::Double)));
    refused(Run::new().hook(point, double), "Double");
    let narrow = Tensor::zeros([5], tch::kind::FLOAT_CPU);
    refused(
        Run::new().freeze(point, narrow.shallow_clone()),
        "broadcasts",
    );
    refused(Run::new().add(point, narrow), "broadcasts");
    Ok(())
}

#[test]
fn changes_at_points_that_a_pass_does_not_come_by_are_refused() -> Result<()> {
    let (model, _vs) = tiny::model("gpt2")?;
    let ids = tiny::ids(1, 4);
    let one = || Tensor::ones([1], (Kind::Float, tch::Device::Cpu));
    let says = |name: &str, run: Run, from: Option<usize>| {
        let mut run = run.add(name, one());
        let found = match from {
            None => model.run(&ids, &mut run),
            Some(layer) => {
                let residual = Tensor::ones([1, 4, 12], (Kind::Float, tch::Device::Cpu));
                model.run_from(layer, &residual, &mut run)
            }
        };
        message(found)
    };
    let refused = "this pass does not come by it";
    for (name, run, from) in [
        ("blocks.1.hook_mlp_out", Run::new().stop_at(1), None),
        ("ln_final.hook_normalized", Run::new().stop_at(2), None),
        ("hook_embed", Run::new(), Some(0)),
        ("blocks.0.hook_resid_pre", Run::new(), Some(1)),
    ] {
        let said = says(name, run, from);
        assert!(said.contains(refused) && said.contains(name), "{said}");
    }
    for (name, run, from) in [
        ("blocks.0.hook_mlp_out", Run::new().stop_at(1), None),
        ("ln_final.hook_normalized", Run::new(), Some(1)),
        ("blocks.1.hook_resid_pre", Run::new(), Some(1)),
    ] {
        assert_eq!(says(name, run, from), "it is taken");
    }
    Ok(())
}
