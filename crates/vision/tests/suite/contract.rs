//! What holds for every preset, at a small size.

use densely_core::registry::parse_config;
use densely_core::{Result, Tensors, seeded};
use densely_testkit::contract::{Case, check, refusal};
use densely_vision::{PRESETS, PoolFormerConfig};
use serde_json::{Value, json};
use tch::Tensor;

fn small(name: &str) -> Value {
    let mut config = json!({ "layers": [1, 2, 1, 1], "embed_dims": [4, 6, 8, 10], "num_classes": 7, "drop_path_rate": 0.5 });
    if !name.contains("v2") {
        // At their first values layer scales hide what the blocks do.
        config["layer_scale_init_value"] = json!(1.0);
    }
    config
}

fn inputs(_: &Value, rows: i64) -> Tensors {
    let image = seeded(1, || Tensor::randn([rows, 3, 33, 50], tch::kind::FLOAT_CPU));
    Tensors::from([("image".to_owned(), image)])
}

#[test]
fn every_preset_keeps_the_contract() -> Result<()> {
    for preset in PRESETS {
        check(&Case {
            preset,
            small: small(preset.name),
            inputs,
            optional: &[],
            any_width: &["image"],
        })?;
    }
    Ok(())
}

#[test]
fn macs_are_those_of_the_config() -> Result<()> {
    for preset in PRESETS {
        let config = parse_config::<PoolFormerConfig>(&(preset.config)())?;
        assert_eq!(config.macs(224), preset.macs, "{}", preset.name);
    }
    Ok(())
}

#[test]
fn wrong_configs_are_errors_that_name_the_field() {
    for (name, config, part) in [
        (
            "poolformer_s12",
            json!({ "layers": [1, 2, 3] }),
            "`layers`: must have four entries",
        ),
        (
            "poolformer_s12",
            json!({ "embed_dims": [4, 0, 4, 4] }),
            "`embed_dims`",
        ),
        (
            "poolformer_s12",
            json!({ "pool_size": 4 }),
            "`pool_size`: must be odd",
        ),
        (
            "poolformer_s12",
            json!({ "drop_path_rate": 1.0 }),
            "`drop_path_rate`",
        ),
        (
            "poolformer_s12",
            json!({ "num_classes": 0 }),
            "`num_classes`",
        ),
        (
            "poolformerv2_s12",
            json!({ "head_order": "timm" }),
            "`head_order`",
        ),
        (
            "poolformer_s12",
            json!({ "token_mixer": "attention" }),
            "unknown variant `attention`",
        ),
        ("poolformer_s12", json!({ "layerz": [1] }), "`layerz`"),
    ] {
        let message = refusal(PRESETS, name, &config);
        assert!(message.contains(part), "{message}");
    }
}
