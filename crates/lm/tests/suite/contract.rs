//! What holds for every preset, at a small size.

use densely_core::registry::Preset;
use densely_core::{Result, Tensors};
use densely_lm::PRESETS;
use densely_testkit::contract::{Case, check, check_on_a_gpu, refusal};
use serde_json::{Value, json};
use tch::Tensor;

use super::tiny;

fn small(name: &str) -> Value {
    tiny::config(if name == "gpt-neox" { "neox" } else { name })
}

fn inputs(_: &Value, rows: i64) -> Tensors {
    let mask = Tensor::ones([rows, 6], tch::kind::INT64_CPU);
    if rows > 1 {
        // The second text is padded on the left.
        let _ = mask.narrow(0, 1, 1).narrow(1, 0, 2).fill_(0);
    }
    Tensors::from([
        ("input_ids".to_owned(), tiny::ids(rows, 6)),
        ("attention_mask".to_owned(), mask),
    ])
}

fn case(preset: &'static Preset) -> Case {
    Case {
        preset,
        small: small(preset.name),
        inputs,
        optional: &["attention_mask"],
        any_width: &["input_ids"],
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
fn counts_are_those_of_the_config() -> Result<()> {
    for preset in PRESETS {
        let config = densely_lm::LmConfig::from_hugging(&(preset.config)())?;
        assert_eq!(config.macs(1), preset.macs, "{}", preset.name);
        assert_eq!(config.parameter_count(), preset.params, "{}", preset.name);
    }
    Ok(())
}

#[test]
fn a_whole_config_takes_the_place_of_the_presets() -> Result<()> {
    for preset in PRESETS {
        // A class's defaults, not the preset's, stand in for what a whole file leaves out.
        let whole = preset.config_with(&small(preset.name))?;
        assert_eq!(whole, small(preset.name));
        let part = preset.config_with(&json!({ "vocab_size": 99, "torch_dtype": "float16" }))?;
        assert_eq!(part["vocab_size"], 99);
        assert_eq!(part["model_type"], (preset.config)()["model_type"]);
    }
    Ok(())
}

#[test]
fn hook_points_come_out_by_name() -> Result<()> {
    for preset in PRESETS {
        let mut small = small(preset.name);
        small["return_hooks"] = json!(["blocks.*.hook_mlp_out", "blocks.1.attn.hook_pattern"]);
        let case = Case {
            preset,
            small,
            inputs,
            optional: &[],
            any_width: &[],
        };
        let response = densely_core::forward::forward(&case.request(), &inputs(&case.small, 2))?;
        let names: Vec<&String> = response.tensors.keys().collect();
        let expected = [
            "blocks.0.hook_mlp_out",
            "blocks.1.attn.hook_pattern",
            "blocks.1.hook_mlp_out",
            "logits",
        ];
        assert_eq!(names, expected, "{}", preset.name);
    }
    Ok(())
}

#[test]
fn wrong_configs_are_errors_that_name_the_field() {
    for (name, config, part) in [
        ("gpt2", json!({ "n_layer": 0 }), "`n_layer`"),
        ("gpt2", json!({ "n_head": 7 }), "`n_head`"),
        ("gpt2", json!({ "vocab_size": "many" }), "`vocab_size`"),
        ("gpt2", json!({ "n_embd": i64::MAX }), "`n_embd`"),
        ("gpt2", json!({ "activation_function": "mish" }), "mish"),
        (
            "gpt2",
            json!({ "model_type": "llama", "hidden_size": 8, "num_attention_heads": 2 }),
            "`model_type`",
        ),
        (
            "gpt2",
            json!({ "architectures": ["BertModel"] }),
            "BertModel",
        ),
        ("llama", json!({ "num_key_value_heads": 4 }), "`n_kv_heads`"),
        ("llama", json!({ "mlp_bias": true }), "mlp_bias"),
        (
            "llama",
            json!({ "rope_scaling": { "rope_type": "yarn", "factor": 4.0 } }),
            "`yarn`",
        ),
        (
            "llama",
            json!({ "rope_parameters": { "rope_type": "llama3", "factor": 8.0 } }),
            "`low_freq_factor`",
        ),
        ("gptj", json!({ "rotary_dim": 63 }), "`rotary.dims`"),
        ("gpt-neox", json!({ "rotary_pct": 1.5 }), "`rotary_pct`"),
        ("opt", json!({ "word_embed_proj_dim": 512 }), "350m"),
        (
            "opt",
            json!({ "do_layer_norm_before": false }),
            "do_layer_norm_before",
        ),
        ("opt", json!({ "return_hooks": "all" }), "`return_hooks`"),
    ] {
        let message = refusal(PRESETS, name, &config);
        assert!(message.contains(part), "{name} {config}: {message}");
    }
}
