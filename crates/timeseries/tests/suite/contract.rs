//! What holds for every preset, at a small size.

use densely_core::registry::Preset;
use densely_core::{Result, Tensors, seeded};
use densely_testkit::contract::{Case, check, check_on_a_gpu, refusal};
use densely_timeseries::linear::LinearConfig;
use densely_timeseries::models::PRESETS;
use densely_timeseries::patch_tsmixer::PatchTsMixerConfig;
use densely_timeseries::tsmixer::TsMixerConfig;
use densely_timeseries::tsmixer_ext::TsMixerExtConfig;
use densely_timeseries::ttm::TtmConfig;
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Kind, Tensor};

fn small(name: &str) -> Value {
    match name {
        "tsmixer" => {
            json!({ "lookback": 12, "horizon": 5, "channels": 3, "ff_dim": 6, "dropout": 0.5 })
        }
        "tsmixer-ext" => json!({ "lookback": 12, "horizon": 5, "ff_dim": 6, "dropout": 0.5 }),
        "dlinear" | "nlinear" => {
            json!({ "lookback": 12, "horizon": 5, "channels": 3, "kernel": 5 })
        }
        "ttm-forecast" => {
            json!({ "context_length": 18, "patch_length": 4, "num_input_channels": 3, "d_model": 20, "adaptive_patching_levels": 2, "decoder_d_model": 6, "num_layers": 1,
            "decoder_raw_residual": true, "enable_forecast_channel_mixing": true, "prediction_length": 5 })
        }
        _ => {
            json!({ "head": name.trim_start_matches("patchtsmixer-"), "context_length": 18, "patch_length": 4, "patch_stride": 4, "num_input_channels": 3, "d_model": 6, "expansion_factor": 2,
            "num_layers": 2, "prediction_length": 5, "init_std": 0.3 })
        }
    }
}

fn inputs(small: &Value, rows: i64) -> Tensors {
    let randn = |size: &[i64]| Tensor::randn(size, tch::kind::FLOAT_CPU);
    seeded(1, || {
        if small.get("context_length").is_some() {
            let mut inputs = Tensors::from([("past".to_owned(), randn(&[rows, 18, 3]))]);
            if small["head"] == "pretrain" {
                inputs.insert(
                    "mask".to_owned(),
                    randn(&[rows, 3, 4]).gt(0.0).to_kind(Kind::Float),
                );
            }
            return inputs;
        }
        if small.get("channels").is_some() {
            return Tensors::from([("past".to_owned(), randn(&[rows, 12, 3]))]);
        }
        Tensors::from([
            ("past".to_owned(), randn(&[rows, 12, 2])),
            ("past_known".to_owned(), randn(&[rows, 12, 2])),
            ("future".to_owned(), randn(&[rows, 5, 2])),
            ("static".to_owned(), randn(&[rows, 3])),
        ])
    })
}

fn case(preset: &'static Preset) -> Case {
    Case {
        preset,
        small: small(preset.name),
        inputs,
        optional: &["mask"],
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
        let config = (preset.config)();
        let macs = match preset.name {
            "tsmixer" => densely_core::registry::parse_config::<TsMixerConfig>(&config)?.macs(),
            "tsmixer-ext" => {
                densely_core::registry::parse_config::<TsMixerExtConfig>(&config)?.macs()
            }
            "dlinear" | "nlinear" => {
                densely_core::registry::parse_config::<LinearConfig>(&config)?.macs()
            }
            "ttm-forecast" => densely_core::registry::parse_config::<TtmConfig>(&config)?.macs(),
            _ => densely_core::registry::parse_config::<PatchTsMixerConfig>(&config)?.macs(),
        };
        assert_eq!(macs, preset.macs, "{}", preset.name);
    }
    Ok(())
}

/// `post_init` chooses between the first weights of `transformers` 5 and those of PyTorch's layers.
#[test]
fn patchtsmixer_starts_from_either_law() -> Result<()> {
    for post_init in [true, false] {
        let vs = VarStore::new(tch::Device::Cpu);
        let preset = densely_core::registry::find(PRESETS, "patchtsmixer-forecast")?;
        let config = preset.config_with(&json!({ "post_init": post_init }))?;
        seeded(0, || (preset.build)(&config, &vs.root()))?;
        let variables = vs.variables();
        let weight = &variables["head.base_forecast_block.weight"]; // [96, 3072]
        let bias = &variables["head.base_forecast_block.bias"];
        let bound = 1.0 / 3072f64.sqrt();
        let (std, largest) = (
            weight.std(true).double_value(&[]),
            weight.abs().max().double_value(&[]),
        );
        let biased = bias.abs().max().double_value(&[]);
        if post_init {
            assert!((std - 0.02).abs() < 2e-4, "{std}");
            assert!(biased <= 0.0, "{biased}");
        } else {
            assert!(
                (std - bound / 3f64.sqrt()).abs() < 1e-4 && largest <= bound,
                "{std} {largest}"
            );
            assert!(biased > 0.0 && biased <= bound, "{biased}");
        }
    }
    Ok(())
}

#[test]
fn wrong_configs_are_errors_that_name_the_field() {
    for (name, config, part) in [
        ("tsmixer", json!({ "lookback": 0 }), "`lookback`"),
        ("tsmixer", json!({ "dropout": 1.0 }), "`dropout`"),
        (
            "tsmixer",
            json!({ "channels": 3, "target": 3 }),
            "`target`: must lie in 0 to 2",
        ),
        (
            "tsmixer",
            json!({ "norm": "group" }),
            "unknown variant `group`",
        ),
        ("tsmixer-ext", json!({ "known": -1 }), "`known`"),
        ("dlinear", json!({ "kernel": 4 }), "`kernel`: must be odd"),
        (
            "patchtsmixer-forecast",
            json!({ "context_length": 8 }),
            "`context_length`: must be above patch_length (8), got 8",
        ),
        (
            "patchtsmixer-forecast",
            json!({ "self_attn": true, "self_attn_heads": 5 }),
            "`self_attn_heads`: must divide",
        ),
        (
            "patchtsmixer-forecast",
            json!({ "prediction_channel_indices": [2, 1] }),
            "ascending",
        ),
        (
            "patchtsmixer-forecast",
            json!({ "prediction_channel_indices": [7] }),
            "channels 0 to 6",
        ),
        (
            "patchtsmixer-regression",
            json!({ "output_range": [1.0, 1.0] }),
            "`output_range`",
        ),
        (
            "patchtsmixer-forecast",
            json!({ "init_std": 0.0 }),
            "`init_std`",
        ),
    ] {
        let message = refusal(PRESETS, name, &config);
        assert!(message.contains(part), "{message}");
    }
}
