//! What holds for every preset, at a small size.

use densely_core::registry::{Preset, parse_config};
use densely_core::{Result, Tensors, seeded};
use densely_testkit::contract::{Case, check, check_on_a_gpu, refusal};
use densely_vision::{MaximConfig, PRESETS, PoolFormerConfig, StripMlpConfig};
use serde_json::{Value, json};
use tch::Tensor;

fn small(name: &str) -> Value {
    if name.contains("maxim") {
        return json!({ "features": 16, "channels_reduction": 2, "num_groups": 1, "num_bottleneck_blocks": 1, "block_size_hr": 2, "block_size_lr": 1 });
    }
    if name.contains("strip") {
        return json!({ "img_size": 32, "embed_dim": 8, "layers": [1, 2, 1, 1], "num_classes": 7, "drop_path_rate": 0.5 });
    }
    let mut config = json!({ "layers": [1, 2, 1, 1], "embed_dims": [4, 6, 8, 10], "num_classes": 7, "drop_path_rate": 0.5 });
    if !name.contains("v2") {
        // At their first values layer scales hide what the blocks do.
        config["layer_scale_init_value"] = json!(1.0);
    }
    config
}

fn inputs(small: &Value, rows: i64) -> Tensors {
    let [height, width] = small["img_size"]
        .as_i64()
        .map_or([33, 50], |side| [side; 2]);
    let image = seeded(1, || {
        Tensor::randn([rows, 3, height, width], tch::kind::FLOAT_CPU)
    });
    Tensors::from([("image".to_owned(), image)])
}

fn case(preset: &'static Preset) -> Case {
    Case {
        preset,
        small: small(preset.name),
        inputs,
        optional: &[],
        any_width: if preset.name.contains("strip") {
            &[]
        } else {
            &["image"]
        },
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
        let config = (preset.config)();
        let macs = if preset.name.contains("maxim") {
            parse_config::<MaximConfig>(&config)?.macs(256, 256)
        } else if preset.name.contains("strip") {
            parse_config::<StripMlpConfig>(&config)?.macs()
        } else {
            parse_config::<PoolFormerConfig>(&config)?.macs(224)
        };
        assert_eq!(macs, preset.macs, "{}", preset.name);
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
        (
            "maxim_s2",
            json!({ "features": 30 }),
            "`features`: must be a multiple of channels_reduction",
        ),
        ("maxim_s2", json!({ "block_size_lr": 0 }), "`block_size_lr`"),
        (
            "strip_mlp_t",
            json!({ "img_size": 100 }),
            "`img_size`: must be a multiple of 32",
        ),
        (
            "strip_mlp_t",
            json!({ "embed_dim": 12 }),
            "`embed_dim`: must be a multiple of 8",
        ),
        ("strip_mlp_t", json!({ "layers": [1, 1, 0, 1] }), "`layers`"),
    ] {
        let message = refusal(PRESETS, name, &config);
        assert!(message.contains(part), "{message}");
    }
}
