//! Every variant against the reference packages: initial bits, outputs, loss, gradients, parameter counts.

use densely_core::weights::{self, Strictness};
use densely_core::{Error, Result, Tensors, nn, seeded};
use densely_tabular::bins::{TreeOptions, quantile_bins, tree_bins};
use densely_tabular::embeddings::{NumEmbedding, NumEmbeddings};
use densely_tabular::models::ModelConfig;
use densely_tabular::task::{Task, members_loss};
use densely_testkit::{Golden, assert_bits, assert_close, goldens};
use serde_json::Value;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn assert_initial_bits(vs: &VarStore, golden: &Golden) {
    let ours = weights::named(vs);
    let theirs = golden.group("init.");
    assert_eq!(
        ours.keys().collect::<Vec<_>>(),
        theirs.keys().collect::<Vec<_>>()
    );
    for (name, expected) in &theirs {
        assert_bits(&ours[name].detach(), expected);
    }
}

fn assert_gradients(vs: &VarStore, golden: &Golden) {
    let ours = weights::named(vs);
    let theirs = golden.group("grad.");
    assert_eq!(theirs.len(), vs.trainable_variables().len());
    for (name, expected) in &theirs {
        assert_close(&ours[name].grad(), expected, 1e-4, 1e-6);
    }
}

/// With `times` above 1 the golden's rows are repeated, which leaves the mean loss and its gradients as they are, so that
/// there are enough rows for the fused gradient.
fn check_model(name: &str, times: i64) -> Result<()> {
    let golden = Golden::open(HERE, name);
    let config = ModelConfig::of(golden.meta("model"), &golden.config::<Value>())?;
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || config.build(&vs.root()))?;
    nn::check_names(&vs)?;
    assert_initial_bits(&vs, &golden);
    weights::load_tensors(
        &vs,
        golden.path(),
        &golden.group("weight."),
        Strictness::All,
    )?;

    let repeated = |key: &str| {
        let copies: Vec<Tensor> = (0..times).map(|_| golden.tensor(key)).collect();
        Tensor::cat(&copies, 0)
    };
    let input = |key: &str| golden.has(key).then(|| repeated(key));
    let x_num = input("input.x_num").map(|xs| xs.set_requires_grad(true));
    let x_cat = input("input.x_cat");
    let ys = model.forward_members(x_num.as_ref(), x_cat.as_ref(), false)?; // [batch, k, d_out]
    let expected = repeated("output.y");
    let shaped = if expected.dim() == 2 {
        ys.squeeze_dim(1)
    } else {
        ys.shallow_clone()
    };
    assert_close(&shaped, &expected, 1e-5, 1e-6);

    let loss = match input("input.y") {
        Some(y) => {
            let task = if y.kind() == Kind::Int64 {
                Task::Multiclass
            } else {
                Task::Regression
            };
            members_loss(&ys, &y, None, task)
        }
        None => (shaped * repeated("cotangent")).sum(Kind::Float) / times,
    };
    assert_close(&loss, &golden.tensor("loss"), 1e-5, 1e-6);
    loss.backward();
    assert_gradients(&vs, &golden);
    if let Some(xs) = x_num {
        let grad = xs
            .grad()
            .unflatten(0, [times, -1])
            .sum_dim_intlist(0, false, Kind::Float);
        assert_close(&grad, &golden.tensor("grad_input.x_num"), 1e-4, 1e-6);
    }
    Ok(())
}

#[test]
fn models_equal_the_package_in_bits_at_the_start_and_in_outputs_loss_and_gradients() -> Result<()> {
    let names = [goldens(HERE, "tabm_", 42), goldens(HERE, "mlp_", 11)].concat();
    names.iter().try_for_each(|name| {
        check_model(name, 1)?;
        check_model(name, 40)
    })
}

#[test]
fn embeddings_alone_equal_the_package() -> Result<()> {
    for name in goldens(HERE, "emb_", 13)
        .iter()
        .filter(|name| *name != "emb_encoding")
    {
        let golden = Golden::open(HERE, name);
        let features = golden.meta("n_features").parse().expect("a number");
        let vs = VarStore::new(Device::Cpu);
        let config: NumEmbeddings = golden.config();
        let embedding = seeded(0, || config.build(&vs.root(), features))?;
        assert_initial_bits(&vs, &golden);
        weights::load_tensors(
            &vs,
            golden.path(),
            &golden.group("weight."),
            Strictness::All,
        )?;
        let xs = golden.tensor("input.x").set_requires_grad(true);
        let ys = embedding.forward(&xs)?;
        assert_close(&ys, &golden.tensor("output.y"), 1e-5, 1e-6);
        let loss = (ys * golden.tensor("cotangent")).sum(Kind::Float);
        assert_close(&loss, &golden.tensor("loss"), 1e-5, 1e-5);
        loss.backward();
        assert_gradients(&vs, &golden);
        assert_close(&xs.grad(), &golden.tensor("grad_input.x"), 1e-4, 1e-6);
    }
    Ok(())
}

#[test]
fn the_piecewise_linear_encoding_equals_the_package_flat_and_padded() -> Result<()> {
    let golden = Golden::open(HERE, "emb_encoding");
    let bins = golden.config::<Value>()["bins"].clone();
    let config = serde_json::json!({ "type": "piecewise_linear", "bins": bins, "d_embedding": 2 });
    let config: NumEmbeddings = serde_json::from_value(config).expect("a config");
    let vs = VarStore::new(Device::Cpu);
    let NumEmbedding::PiecewiseLinear(encoding) = config.build(&vs.root(), 3)? else {
        panic!("another embedding was built");
    };
    let xs = golden.tensor("input.x");
    assert_close(
        &encoding.encode(&xs),
        &golden.tensor("output.padded"),
        1e-6,
        1e-7,
    );
    assert_close(
        &encoding.encode_flat(&xs),
        &golden.tensor("output.flat"),
        1e-6,
        1e-7,
    );
    // The buffers stand under the package's names, with the masks that unequal counts and a single bin need.
    for (name, expected) in golden.group("weight.") {
        assert_bits(&weights::named(&vs)[&name], &expected);
    }
    // By hand: unequal counts, one single bin, values beyond the edges.
    let x = Tensor::from_slice(&[5f32, 0.1, 7.0]).view([1, 3]);
    let expected = Tensor::from_slice(&[1f32, 1.0, 1.5, 0.1, 1.0, 7.0]).view([1, 6]);
    assert_close(&encoding.encode_flat(&x), &expected, 1e-6, 1e-7);
    Ok(())
}

#[test]
fn quantile_bins_equal_the_package() -> Result<()> {
    let golden = Golden::open(HERE, "bins");
    let cases: serde_json::Map<String, Value> = golden.config();
    let mut checked = 0;
    for (name, case) in cases
        .iter()
        .filter(|(name, _)| name.starts_with("quantile"))
    {
        let bins = quantile_bins(
            &golden.tensor("input.x"),
            case["n_bins"].as_i64().expect("n_bins"),
        )?;
        for (feature, edges) in bins.iter().enumerate() {
            let expected = golden.tensor(&format!("output.{name}.{feature}"));
            assert_bits(&Tensor::from_slice(edges).to_kind(Kind::Float), &expected);
            checked += 1;
        }
    }
    assert_eq!(checked, 20);
    Ok(())
}

#[test]
fn tree_bins_equal_scikit_learn_bit_for_bit() -> Result<()> {
    let mut checked = 0;
    for file in ["bins", "bins_tree"] {
        let golden = Golden::open(HERE, file);
        let cases: serde_json::Map<String, Value> = golden.config();
        for (name, case) in cases
            .iter()
            .filter(|(_, case)| case["tree_kwargs"].is_object())
        {
            let input = |key: &str| {
                golden.tensor(&format!("input.{}", case[key].as_str().expect("a name")))
            };
            let options: TreeOptions =
                serde_json::from_value(case["tree_kwargs"].clone()).expect("options");
            let n_bins = case["n_bins"].as_i64().expect("n_bins");
            let bins = tree_bins(&input("x"), &input("y"), n_bins, options)?;
            for (feature, edges) in bins.iter().enumerate() {
                let expected = golden.tensor(&format!("output.{name}.{feature}"));
                let ours = Tensor::from_slice(edges).to_kind(Kind::Float);
                assert_eq!(ours, expected, "{name}, feature {feature}");
                assert_bits(&ours, &expected);
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 108);
    Ok(())
}

#[test]
fn tree_bins_refuse_what_the_package_refuses() {
    let x = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).unsqueeze(1);
    let y = Tensor::from_slice(&[0i64, 0, 1, 1]);
    let plain = TreeOptions::default();
    let message = |x: &Tensor, y: &Tensor, n, options| {
        tree_bins(x, y, n, options)
            .expect_err("refused")
            .to_string()
    };
    assert!(message(&x.ones_like(), &y, 2, plain).ends_with("has one value only; drop it"));
    assert!(message(&(&x / 0.0), &y, 2, plain).ends_with("has values that are not finite"));
    assert!(message(&x, &y, 1, plain).starts_with("setting `n_bins`"));
    assert!(message(&x, &y, 4, plain).starts_with("setting `n_bins`"));
    assert!(message(&x, &y.narrow(0, 0, 3), 2, plain).starts_with("`y`: expected"));
    assert!(message(&x, &(&y - 1), 2, plain).contains("class number -1"));
    let empty = TreeOptions {
        min_samples_leaf: 0,
        ..plain
    };
    assert!(message(&x, &y, 2, empty).starts_with("setting `min_samples_leaf`"));
    let negative = TreeOptions {
        min_impurity_decrease: -1.0,
        ..plain
    };
    assert!(message(&x, &y, 2, negative).starts_with("setting `min_impurity_decrease`"));
}

#[test]
fn bins_refuse_what_the_package_refuses() {
    let column = |values: &[f32]| Tensor::from_slice(values).unsqueeze(1);
    let message = |x: &Tensor, n| quantile_bins(x, n).expect_err("refused").to_string();
    assert!(message(&column(&[1.0, 1.0, 1.0]), 2).ends_with("has one value only; drop it"));
    assert!(message(&column(&[1.0, f32::NAN, 2.0]), 2).ends_with("has values that are not finite"));
    assert!(message(&column(&[1.0, 2.0, 3.0]), 3).starts_with("setting `n_bins`"));
    assert!(message(&column(&[1.0, 2.0, 3.0]), 1).starts_with("setting `n_bins`"));
}

#[test]
fn parameter_counts_equal_the_package() -> Result<()> {
    let text = std::fs::read_to_string(format!("{HERE}/tests/goldens/counts.json"))
        .map_err(Error::io("counts.json"))?;
    let counts: Value = serde_json::from_str(&text).expect("JSON");
    let models = counts["models"].as_array().expect("models");
    assert!(models.len() >= 5);
    for case in models {
        let mut config = case["config"].clone();
        if let Some(bins) = case["bin_counts"].as_array() {
            let edges = |n: &Value| (0..=n.as_i64().expect("a count")).collect::<Vec<_>>();
            config["num_embeddings"]["bins"] = bins.iter().map(edges).collect();
        }
        let preset = case["model"]
            .as_str()
            .or(config["arch_type"].as_str())
            .unwrap_or("mlp");
        let vs = VarStore::new(Device::Cpu);
        let _model = seeded(0, || ModelConfig::of(preset, &config)?.build(&vs.root()))?;
        assert_eq!(
            nn::parameter_count(&vs),
            case["params"].as_u64().expect("params"),
            "{case}"
        );
    }
    Ok(())
}

#[test]
fn unseen_categories_are_all_zeros() -> Result<()> {
    let config = ModelConfig::of(
        "mlp",
        &serde_json::json!({ "n_num_features": 0, "cat_cardinalities": [2, 3], "d_block": 4 }),
    )?;
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || config.build(&vs.root()))?;
    let ys = |codes: &[i64]| {
        model.forward_members(None, Some(&Tensor::from_slice(codes).view([1, 2])), false)
    };
    // The second feature's unseen code must not light the first column of a third feature, nor fail.
    let unseen = ys(&[0, 3])?;
    let weights: Tensors = weights::named(&vs);
    {
        let _no_grad = tch::no_grad_guard();
        let _ = weights["backbone.blocks.0.0.weight"]
            .narrow(1, 2, 3)
            .fill_(7.0);
    }
    assert_close(&ys(&[0, 3])?, &unseen, 0.0, 0.0);
    assert!(ys(&[0, 2])? != unseen);
    Ok(())
}
