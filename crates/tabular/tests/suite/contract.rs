//! What holds for every preset, at a small size.

use densely_core::forward::{Request, forward};
use densely_core::weights::{self, Strictness};
use densely_core::{Error, Result, Tensors, nn, registry, seeded};
use densely_tabular::models::ModelConfig;
use densely_tabular::{Device, PRESETS};
use densely_testkit::{assert_bits, assert_close};
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Kind, Tensor};

fn small(name: &str) -> Value {
    let mut config = json!({
        "n_num_features": 3, "cat_cardinalities": [2, 4], "d_out": 2, "n_blocks": 2, "d_block": 8,
        "num_embeddings": { "type": "linear_relu", "d_embedding": 4 },
    });
    if name != "mlp" {
        config["k"] = json!(4);
    }
    config
}

fn inputs(rows: i64) -> Tensors {
    seeded(1, || {
        Tensors::from([
            (
                "x_num".to_owned(),
                Tensor::randn([rows, 3], tch::kind::FLOAT_CPU),
            ),
            (
                "x_cat".to_owned(),
                Tensor::randint(2, [rows, 2], tch::kind::INT64_CPU),
            ),
        ])
    })
}

fn request(preset: &'static registry::Preset) -> Request<'static> {
    Request {
        preset,
        overrides: small(preset.name),
        weights: None,
        seed: 0,
        train: false,
        dropout: false,
        grads: false,
        kind: Kind::Float,
        device: tch::Device::Cpu,
    }
}

#[test]
fn presets_state_their_parameters_and_macs() -> Result<()> {
    let _cpu = Device::Cpu.open()?;
    for preset in PRESETS {
        let vs = VarStore::new(tch::Device::Cpu);
        let _model = seeded(0, || (preset.build)(&(preset.config)(), &vs.root()))?;
        assert_eq!(nn::parameter_count(&vs), preset.params, "{}", preset.name);
        let macs = match ModelConfig::of(preset.name, &json!({}))? {
            ModelConfig::TabM(config) => config.macs(),
            ModelConfig::Mlp(config) => config.macs(),
        };
        assert_eq!(macs, preset.macs, "{}", preset.name);
    }
    Ok(())
}

#[test]
fn gradients_reach_every_parameter_and_outputs_are_finite_and_repeatable() -> Result<()> {
    for preset in PRESETS {
        let request = Request {
            grads: true,
            ..request(preset)
        };
        let response = forward(&request, &inputs(5))?;
        let ys = &response.tensors["y"];
        let expected = if preset.name == "mlp" {
            vec![5, 2]
        } else {
            vec![5, 4, 2]
        };
        assert_eq!(ys.size(), expected);
        for (name, xs) in &response.tensors {
            assert_eq!(
                xs.isfinite().all().int64_value(&[]),
                1,
                "{}: {name}",
                preset.name
            );
            if name.starts_with("grad.") {
                assert!(
                    xs.abs().sum(Kind::Float).double_value(&[]) > 0.0,
                    "{}: {name}",
                    preset.name
                );
            }
        }
        assert_bits(&forward(&request, &inputs(5))?.tensors["y"], ys);
    }
    Ok(())
}

#[test]
fn a_batch_of_two_is_two_batches_of_one() -> Result<()> {
    for preset in PRESETS {
        let both = forward(&request(preset), &inputs(2))?.tensors["y"].shallow_clone();
        for row in 0..2 {
            let one = inputs(2)
                .into_iter()
                .map(|(name, xs)| (name, xs.narrow(0, row, 1)))
                .collect();
            let one = forward(&request(preset), &one)?.tensors["y"].shallow_clone();
            assert_close(&one, &both.narrow(0, row, 1), 1e-5, 1e-6);
        }
    }
    Ok(())
}

#[test]
fn saved_weights_load_to_the_same_bits() -> Result<()> {
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    for preset in PRESETS {
        let path = folder.path().join(preset.name);
        let response = forward(
            &Request {
                seed: 5,
                ..request(preset)
            },
            &inputs(3),
        )?;
        weights::save(
            &path,
            &weights::named(&response.store),
            &std::collections::BTreeMap::new(),
        )?;
        let again = forward(
            &Request {
                weights: Some(&path),
                ..request(preset)
            },
            &inputs(3),
        )?;
        assert_bits(&again.tensors["y"], &response.tensors["y"]);
        let other = forward(&request(preset), &inputs(3))?;
        assert!(
            other.tensors["y"] != response.tensors["y"],
            "the seed draws the weights"
        );
        weights::load(&other.store, &path, weights::same_name, Strictness::All)?;
    }
    Ok(())
}

#[test]
fn dropout_runs_only_when_it_is_asked_for() -> Result<()> {
    for preset in PRESETS {
        let ys = |train, dropout| -> Result<Tensor> {
            let request = Request {
                train,
                dropout,
                ..request(preset)
            };
            Ok(forward(&request, &inputs(64))?.tensors["y"].shallow_clone())
        };
        // Close, not equal: without gradients the fused inference sums in another order.
        assert_close(&ys(true, false)?, &ys(false, false)?, 1e-6, 1e-6);
        assert!(ys(true, true)? != ys(false, false)?);
    }
    Ok(())
}

#[test]
fn other_kinds_run_and_stay_near() -> Result<()> {
    for preset in PRESETS {
        let single = forward(&request(preset), &inputs(4))?;
        let double = forward(
            &Request {
                kind: Kind::Double,
                ..request(preset)
            },
            &inputs(4),
        )?;
        assert_eq!(double.tensors["y"].kind(), Kind::Double);
        assert_close(&single.tensors["y"], &double.tensors["y"], 1e-4, 1e-5);
        let half = forward(
            &Request {
                kind: Kind::BFloat16,
                ..request(preset)
            },
            &inputs(4),
        )?;
        assert_eq!(half.tensors["y"].kind(), Kind::BFloat16);
        assert_close(&half.tensors["y"], &double.tensors["y"], 0.1, 0.1);
    }
    Ok(())
}

#[test]
fn wrong_inputs_are_errors_that_name_them() {
    for preset in PRESETS {
        let message = |change: &dyn Fn(&mut Tensors)| {
            let mut inputs = inputs(4);
            change(&mut inputs);
            forward(&request(preset), &inputs)
                .expect_err("wrong input")
                .to_string()
        };
        let insert = |xs: &mut Tensors, name: &str, value: Tensor| {
            xs.insert(name.to_owned(), value);
        };
        assert!(
            message(&|xs| {
                xs.remove("x_num");
            })
            .contains("`x_num`")
        );
        assert!(
            message(&|xs| {
                xs.remove("x_cat");
            })
            .contains("`x_cat`")
        );
        assert!(message(&|xs| insert(xs, "extra", Tensor::from(1.0))).contains("`extra`"));
        assert!(
            message(&|xs| insert(xs, "x_num", Tensor::zeros([4, 5], tch::kind::FLOAT_CPU)))
                .contains("[_, 3], got [4, 5]")
        );
        assert!(
            message(&|xs| insert(xs, "x_cat", Tensor::zeros([4, 2], tch::kind::FLOAT_CPU)))
                .contains("Int64, got Float")
        );
        assert!(
            message(&|xs| insert(xs, "x_cat", Tensor::zeros([3, 2], tch::kind::INT64_CPU)))
                .contains("as many rows")
        );
        assert!(
            message(&|xs| insert(xs, "x_cat", Tensor::full([4, 2], 9, tch::kind::INT64_CPU)))
                .contains("codes 0 to 2")
        );
        assert!(
            message(&|xs| insert(xs, "x_cat", Tensor::full([4, 2], -1, tch::kind::INT64_CPU)))
                .contains("codes -1")
        );
    }
}

#[test]
fn wrong_configs_are_errors_that_name_the_field() {
    let message = |preset: &str, config: Value| {
        let vs = VarStore::new(tch::Device::Cpu);
        seeded(0, || {
            ModelConfig::of(preset, &config)?
                .build(&vs.root())
                .map(|_| ())
        })
        .expect_err("a wrong config")
        .to_string()
    };
    let bins = |bins: Value| json!({ "n_num_features": 1, "num_embeddings": { "type": "piecewise_linear", "d_embedding": 4, "bins": bins } });
    assert!(message("tabm", json!({ "k": 0 })).starts_with("setting `k`"));
    assert!(message("tabm", json!({ "dropout": 1.0 })).starts_with("setting `dropout`"));
    assert!(message("tabm", json!({ "d_blok": 4 })).contains("nearest: `d_block`"));
    assert!(message("tabm", json!({ "d_block": "wide" })).contains("invalid type"));
    assert!(
        message("tabm-packed", json!({ "start_scaling_init": "normal" })).contains("must be null")
    );
    assert!(
        message(
            "mlp",
            json!({ "n_num_features": 0, "cat_cardinalities": [] })
        )
        .contains("n_num_features")
    );
    assert!(
        message("mlp", json!({ "cat_cardinalities": [3, 0] })).contains("cat_cardinalities[1]")
    );
    assert!(
        message("tabm", bins(json!([[0.0, 1.0], [0.0, 1.0]]))).contains("one list per feature")
    );
    assert!(message("tabm", bins(json!([[0.0]]))).contains("at least 2 edges"));
    assert!(message("tabm", bins(json!([[0.0, 0.0]]))).contains("increase"));
    assert!(message("tabm", bins(json!([[0.0, 1e39]]))).contains("finite"));
    assert!(message("tab", json!({})).contains("nearest names: tabm, "));
}
