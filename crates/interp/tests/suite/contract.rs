//! What holds for every preset, at a small size.

use densely_core::registry::{Preset, parse_config};
use densely_core::{Result, Tensors};
use densely_interp::PRESETS;
use densely_interp::dictionary::DictionaryConfig;
use densely_interp::dictionary::cross::CrossConfig;
use densely_testkit::contract::{Case, check, check_on_a_gpu, check_with_idle, refusal};
use serde_json::{Value, json};
use tch::Tensor;

fn small(name: &str) -> Value {
    match name {
        // All features may be active: rounding in bf16 does not choose others then.
        "skip-transcoder" => json!({
            "d_in": 6, "d_out": 6, "d_sae": 12, "activation": { "kind": "top-k", "k": 12 },
        }),
        "clt" => json!({
            "layers": 3, "d": 6, "features": 5, "activation": { "kind": "relu" },
        }),
        _ => json!({ "d_in": 6, "d_out": 6, "d_sae": 12 }),
    }
}

fn inputs(config: &Value, rows: i64) -> Tensors {
    let size = match config["layers"].as_i64() {
        Some(layers) => vec![rows, layers, 6],
        None => vec![rows, 6],
    };
    let count: i64 = size.iter().product();
    let values = |shift: f64| {
        let steps = Tensor::arange(count, tch::kind::FLOAT_CPU) * 0.37 + shift;
        steps.sin().reshape(size.as_slice())
    };
    Tensors::from([
        ("x".to_owned(), values(0.3)),
        ("target".to_owned(), values(1.1)),
    ])
}

fn case(preset: &'static Preset) -> Case {
    Case {
        preset,
        small: small(preset.name),
        inputs,
        optional: if preset.name == "sae" {
            &["target"]
        } else {
            &[]
        },
        any_width: &[],
    }
}

#[test]
fn every_preset_keeps_the_contract() -> Result<()> {
    for preset in PRESETS {
        match preset.name {
            // No features are dead and none of a threshold: what is left has its gradients.
            "skip-transcoder" => check_with_idle(&case(preset), true, &[])?,
            _ => check(&case(preset))?,
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs CUDA"]
fn a_gpu_gives_what_the_processor_gives() -> Result<()> {
    check_on_a_gpu(PRESETS.iter().map(case))
}

#[test]
fn counts_are_those_of_the_config() -> Result<()> {
    for preset in PRESETS {
        let config = (preset.config)();
        let macs = match preset.name {
            "clt" => parse_config::<CrossConfig>(&config)?.macs(),
            _ => parse_config::<DictionaryConfig>(&config)?.macs(),
        };
        assert_eq!(macs as u64, preset.macs, "{}", preset.name);
    }
    Ok(())
}

#[test]
fn wrong_configs_are_named() {
    let said = |name: &str, config: Value| refusal(PRESETS, name, &config);
    let case = |name: &str, config: Value, field: &str| {
        let message = said(name, config);
        assert!(message.contains(field), "{name}: {message}");
    };
    case("transcoder", json!({ "d_sae": 0 }), "`d_sae`");
    case(
        "transcoder",
        json!({ "input_bias": "shared" }),
        "`input_bias`",
    );
    case("sae", json!({ "d_out": 5 }), "`d_out`");
    case(
        "transcoder",
        json!({ "activation": { "kind": "top-k", "k": 0 } }),
        "`activation.k`",
    );
    case(
        "sae",
        json!({ "activation": { "kind": "jump-relu", "bandwidth": 0.0 } }),
        "`activation.bandwidth`",
    );
    case(
        "transcoder",
        json!({ "activation": { "kind": "gated" } }),
        "`activation`",
    );
    let l0 = json!({ "error": "squared", "sparsity": { "kind": "l0", "coefficient": 1.0 }, "dead": { "kind": "nothing" } });
    case("sae", json!({ "objective": l0 }), "`objective.sparsity`");
    case(
        "clt",
        json!({ "activation": { "kind": "top-k", "k": 3 } }),
        "`activation`",
    );
    case(
        "transcoder",
        json!({ "activation": { "kind": "top-k", "k": 2, "slope": 2 } }),
        "slope",
    );
}
