//! What holds for every preset, at a small size.

use densely_core::registry::Preset;
use densely_core::registry::{find, parse_config};
use densely_core::{Result, Tensors, seeded};
use densely_recsys::attention::AttentionConfig;
use densely_recsys::models::PRESETS;
use densely_recsys::{DinConfig, FinalMlpConfig};
use densely_testkit::contract::{Case, check, check_on_a_gpu, check_undrawn, refusal};
use serde_json::{Value, json};
use tch::Tensor;
use tch::nn::VarStore;

fn small(name: &str) -> Value {
    match name {
        "finalmlp" => json!({
            "fields": [
                { "type": "categorical", "name": "user", "vocab_size": 7 },
                { "type": "categorical", "name": "item", "vocab_size": 9 },
                { "type": "numeric", "name": "price" },
                { "type": "sequence", "name": "tags", "vocab_size": 5, "max_len": 4 },
            ],
            "embedding_dim": 6, "mlp1_hidden_units": [16, 8], "mlp2_hidden_units": [12], "fs_hidden_units": [10], "num_heads": 4,
            "fs1_context": ["user"], "fs2_context": ["item", "price"],
        }),
        "din" => json!({
            "fields": [
                { "type": "categorical", "name": "user", "vocab_size": 7 },
                { "type": "categorical", "name": "item", "vocab_size": 9 },
                { "type": "categorical", "name": "shop", "vocab_size": 4 },
                { "type": "numeric", "name": "price" },
                { "type": "sequence", "name": "items", "vocab_size": 9, "max_len": 5, "share_embedding": "item" },
                { "type": "sequence", "name": "shops", "vocab_size": 4, "max_len": 5, "share_embedding": "shop" },
            ],
            "din_target_field": [["item", "shop"]], "din_sequence_field": [["items", "shops"]], "embedding_dim": 6,
            "attention_hidden_units": [12, 8], "dnn_hidden_units": [16, 8], "din_use_softmax": false,
        }),
        "din-attention" => {
            json!({ "embedding_dim": 6, "attention_units": [12, 8], "use_softmax": false })
        }
        _ => json!({ "input_dim": 6 }),
    }
}

fn inputs(small: &Value, rows: i64) -> Tensors {
    let randn = |size: &[i64]| Tensor::randn(size, tch::kind::FLOAT_CPU);
    let ids = |most: i64, size: &[i64]| Tensor::randint(most, size, tch::kind::INT64_CPU);
    seeded(1, || {
        let named = |pairs: Vec<(&str, Tensor)>| {
            pairs
                .into_iter()
                .map(|(name, xs)| (name.to_owned(), xs))
                .collect()
        };
        if small.get("input_dim").is_some() {
            return named(vec![("x", randn(&[rows, 6]))]);
        }
        if small.get("attention_units").is_some() {
            return named(vec![
                ("query", randn(&[rows, 6])),
                ("keys", randn(&[rows, 5, 6])),
                ("mask", ids(2, &[rows, 5]).to_kind(tch::Kind::Float)),
            ]);
        }
        let mut all = vec![
            ("user", ids(7, &[rows])),
            ("item", ids(9, &[rows])),
            ("price", randn(&[rows])),
        ];
        if small.get("num_heads").is_some() {
            all.push(("tags", ids(5, &[rows, 4])));
        } else {
            all.push(("shop", ids(4, &[rows])));
            all.push(("items", ids(9, &[rows, 5])));
            all.push(("shops", ids(4, &[rows, 5])));
        }
        named(all)
    })
}

fn case(preset: &'static Preset) -> Case {
    Case {
        preset,
        small: small(preset.name),
        inputs,
        optional: &[],
        any_width: &[],
    }
}

#[test]
fn every_preset_keeps_the_contract() -> Result<()> {
    for preset in PRESETS {
        if preset.name == "dice" {
            check_undrawn(&case(preset))?;
        } else {
            check(&case(preset))?;
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
fn macs_are_those_of_the_config() -> Result<()> {
    for preset in PRESETS {
        let config = (preset.config)();
        let macs = match preset.name {
            "finalmlp" => parse_config::<FinalMlpConfig>(&config)?.macs(),
            "din" => parse_config::<DinConfig>(&config)?.macs(),
            "din-attention" => {
                100 * parse_config::<AttentionConfig>(&config)?.macs_per_step() as u64
            }
            _ => 0,
        };
        assert_eq!(macs, preset.macs, "{}", preset.name);
    }
    Ok(())
}

#[test]
fn wrong_configs_are_errors_that_name_the_field() {
    for (name, config, part) in [
        (
            "finalmlp",
            json!({ "num_heads": 3 }),
            "`num_heads`: must divide the last of mlp1_hidden_units, 400",
        ),
        (
            "finalmlp",
            json!({ "fs1_context": ["nobody"] }),
            "`fs1_context`: `nobody` is no field",
        ),
        (
            "finalmlp",
            json!({ "mlp2_hidden_units": [] }),
            "`mlp2_hidden_units`: must have at least one layer",
        ),
        ("finalmlp", json!({ "mlp1_dropout": 1.0 }), "`mlp1_dropout`"),
        (
            "finalmlp",
            json!({ "fields": [{ "type": "numeric", "name": "a__b" }] }),
            "holds no `__`",
        ),
        (
            "din",
            json!({ "din_target_field": [["item_id"]] }),
            "must have as many fields as",
        ),
        (
            "din",
            json!({ "din_target_field": [] }),
            "din_target_field 0",
        ),
        (
            "din",
            json!({ "din_sequence_field": [["item_history", "cate_id"]] }),
            "`cate_id` is no sequence",
        ),
        (
            "din",
            json!({ "din_sequence_field": [["item_history", "item_history"]] }),
            "`item_history` stands twice",
        ),
        (
            "din",
            json!({ "length": "n" }),
            "`fuxictr` takes its mask from the ids",
        ),
        (
            "din",
            json!({ "variant": "authors" }),
            "`authors` has no dropout",
        ),
        (
            "din",
            json!({ "pretrained": [{ "field": "item_id", "dim": 8 }] }),
            "shares the given vectors of `item_id`",
        ),
        (
            "din",
            json!({ "pretrained": [{ "field": "item_history", "dim": 8 }] }),
            "must have vectors of 8 too",
        ),
        (
            "din-attention",
            json!({ "attention_units": [] }),
            "`attention_units`",
        ),
        (
            "dice",
            json!({ "input_dim": 0 }),
            "`input_dim`: must be at least 1",
        ),
    ] {
        let message = refusal(PRESETS, name, &config);
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn wrong_ids_are_errors_that_name_the_field() -> Result<()> {
    let preset = find(PRESETS, "din")?;
    let config = preset.config_with(&small("din"))?;
    let vs = VarStore::new(tch::Device::Cpu);
    let model = seeded(0, || (preset.build)(&config, &vs.root()))?;
    let complaint = |name: &str, xs: Tensor| {
        let mut inputs = inputs(&small("din"), 3);
        inputs.insert(name.to_owned(), xs);
        model
            .forward_named(&inputs, false)
            .expect_err(name)
            .to_string()
    };
    let ids = |values: &[i64]| Tensor::from_slice(values);
    assert_eq!(
        complaint("item", ids(&[1, -2, 3])),
        "column `item`: id -2 is negative; ids go from 0, the padding, to 8"
    );
    assert!(
        complaint("item", ids(&[1, 2, 9]))
            .contains("column `item`: id 9 is beyond the vocabulary of 9")
    );
    assert!(
        complaint("items", Tensor::zeros([3, 4], tch::kind::INT64_CPU))
            .contains("as many as `items`")
    );
    assert!(
        complaint("items", Tensor::zeros([3, 0], tch::kind::INT64_CPU))
            .contains("1 to 5 ids per row")
    );
    Ok(())
}
