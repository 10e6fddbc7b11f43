//! What holds for every preset, at a small size.

use densely_core::forward::{Request, forward};
use densely_core::{Result, Tensors, registry, seeded};
use densely_tabular::PRESETS;
use densely_tabular::models::ModelConfig;
use densely_testkit::assert_close;
use densely_testkit::contract::{Case, check, check_on_a_gpu};
use serde_json::{Value, json};
use tch::Tensor;
use tch::nn::VarStore;

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

fn case(preset: &'static registry::Preset) -> Case {
    Case {
        preset,
        small: small(preset.name),
        inputs: |_, rows| inputs(rows),
        optional: &[],
        any_width: &[],
    }
}

#[test]
fn every_preset_keeps_the_contract() -> Result<()> {
    PRESETS.iter().try_for_each(|preset| check(&case(preset)))
}

#[test]
#[ignore = "needs CUDA"]
fn a_gpu_gives_what_the_processor_gives() -> Result<()> {
    check_on_a_gpu(PRESETS.iter().map(case))
}

#[test]
fn macs_are_those_of_the_config() -> Result<()> {
    for preset in PRESETS {
        let macs = match ModelConfig::of(preset.name, &json!({}))? {
            ModelConfig::TabM(config) => config.macs(),
            ModelConfig::Mlp(config) => config.macs(),
        };
        assert_eq!(macs, preset.macs, "{}", preset.name);
    }
    Ok(())
}

#[test]
fn training_without_dropout_is_evaluation() -> Result<()> {
    for preset in PRESETS {
        let ys = |train| -> Result<Tensor> {
            let request = Request {
                train,
                ..case(preset).request()
            };
            Ok(forward(&request, &inputs(64))?.tensors["y"].shallow_clone())
        };
        // Close, not equal: without gradients the fused inference sums in another order.
        assert_close(&ys(true)?, &ys(false)?, 1e-6, 1e-6);
    }
    Ok(())
}

#[test]
fn rows_and_codes_that_do_not_fit_are_named() {
    for preset in PRESETS {
        let message = |x_cat: Tensor| {
            let mut inputs = inputs(4);
            inputs.insert("x_cat".to_owned(), x_cat);
            forward(&case(preset).request(), &inputs)
                .expect_err("wrong input")
                .to_string()
        };
        assert!(message(Tensor::zeros([3, 2], tch::kind::INT64_CPU)).contains("as many rows"));
        assert!(message(Tensor::full([4, 2], 9, tch::kind::INT64_CPU)).contains("codes 0 to 2"));
        assert!(message(Tensor::full([4, 2], -1, tch::kind::INT64_CPU)).contains("codes -1"));
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
