//! The pass: sizes, caches of keys and values, padding, parts of a pass, files, mistakes.

use std::collections::BTreeMap;

use densely_core::weights::{self, Tensors};
use densely_core::{Error, Result, nn};
use densely_lm::{KvCache, Lm, LmConfig, RopeScaling, Run};
use densely_testkit::{assert_bits, assert_close, assert_near};
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::tiny::{self, message, plain};

fn gpt(layers: i64, d: i64, heads: i64) -> Value {
    json!({ "model_type": "gpt2", "n_layer": layers, "n_embd": d, "n_head": heads })
}

fn pythia(layers: i64, d: i64, heads: i64, vocab: i64) -> Value {
    json!({
        "model_type": "gpt_neox", "num_hidden_layers": layers, "hidden_size": d, "num_attention_heads": heads,
        "intermediate_size": 4 * d, "vocab_size": vocab,
    })
}

fn llama(sizes: [i64; 6], tied: bool) -> Value {
    let [layers, d, heads, kv, m, vocab] = sizes;
    json!({
        "model_type": "llama", "num_hidden_layers": layers, "hidden_size": d, "num_attention_heads": heads,
        "num_key_value_heads": kv, "intermediate_size": m, "vocab_size": vocab, "tie_word_embeddings": tied,
    })
}

/// Counted from the reference's own config classes.
#[test]
fn sizes_are_those_of_the_published_models() -> Result<()> {
    let gptj = json!({ "model_type": "gptj" });
    let opt = json!({
        "model_type": "opt", "num_hidden_layers": 24, "hidden_size": 2048, "num_attention_heads": 32, "ffn_dim": 8192,
    });
    for (name, config, total, inner) in [
        ("gpt2", gpt(12, 768, 12), 124_439_808, 85_056_000),
        ("gpt2-medium", gpt(24, 1024, 16), 354_823_168, 302_311_424),
        ("gpt2-large", gpt(36, 1280, 20), 774_030_080, 708_390_400),
        ("gpt2-xl", gpt(48, 1600, 25), 1_557_611_200, 1_475_561_600),
        (
            "pythia-70m",
            pythia(6, 512, 8, 50_304),
            70_426_624,
            18_915_328,
        ),
        (
            "pythia-160m",
            pythia(12, 768, 12, 50_304),
            162_322_944,
            85_056_000,
        ),
        (
            "pythia-410m",
            pythia(24, 1024, 16, 50_304),
            405_334_016,
            302_311_424,
        ),
        (
            "pythia-1b",
            pythia(16, 2048, 8, 50_304),
            1_011_781_632,
            805_736_448,
        ),
        (
            "pythia-1.4b",
            pythia(24, 2048, 16, 50_304),
            1_414_647_808,
            1_208_602_624,
        ),
        (
            "pythia-2.8b",
            pythia(32, 2560, 32, 50_304),
            2_775_208_960,
            2_517_652_480,
        ),
        (
            "pythia-6.9b",
            pythia(32, 4096, 32, 50_432),
            6_857_302_016,
            6_444_163_072,
        ),
        ("gpt-j-6b", gptj, 6_050_882_784, 5_637_955_584),
        ("opt-1.3b", opt, 1_315_758_080, 1_208_602_624),
        (
            "Llama-2-7b",
            llama([32, 4096, 32, 32, 11_008, 32_000], false),
            6_738_415_616,
            6_476_271_616,
        ),
        (
            "Llama-3.2-1B",
            llama([16, 2048, 32, 8, 8192, 128_256], true),
            1_235_814_400,
            1_235_814_400 - 2048 * 128_256,
        ),
        (
            "Llama-3.2-3B",
            llama([28, 3072, 24, 8, 8192, 128_256], true),
            3_212_749_824,
            2_818_747_392,
        ),
        (
            "Llama-3.3-70B",
            llama([80, 8192, 64, 8, 28_672, 128_256], false),
            70_553_706_496,
            70_553_706_496 - 2 * 8192 * 128_256,
        ),
    ] {
        let config = LmConfig::from_hugging(&config)?;
        assert_eq!(config.parameter_count(), total, "{name}");
        assert_eq!(config.non_embedding_count(), inner, "{name}");
    }
    let gpt2 = LmConfig::from_hugging(&gpt(12, 768, 12))?;
    let attention = 2 * 12 * 768 * 10 * 10;
    assert_eq!(gpt2.macs(10), 10 * (84_934_656 + 38_597_376) + attention);
    Ok(())
}

#[test]
fn models_have_as_many_parameters_as_their_configs_count() -> Result<()> {
    for name in tiny::ALL {
        let (model, vs) = tiny::model(name)?;
        nn::check_names(&vs)?;
        let counted = model.config().parameter_count();
        assert_eq!(nn::parameter_count(&vs), counted, "{name}");
        let config = model.config();
        assert_eq!(
            LmConfig::from_hugging(&config.to_hugging())?,
            *config,
            "{name}"
        );
    }
    Ok(())
}

#[test]
fn rotary_settings_are_read_in_either_spelling() -> Result<()> {
    let read = |more: Value| -> Result<_> {
        let mut config = tiny::config("llama");
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key.as_str()] = value.clone();
        }
        let rotary = LmConfig::from_hugging(&config)?.rotary;
        rotary.ok_or_else(|| Error::config("rotary", "is absent"))
    };
    let scaled = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let old = read(json!({ "rope_theta": 500_000.0, "rope_scaling": scaled }))?;
    let mut newer = scaled.clone();
    newer["rope_theta"] = json!(500_000.0);
    assert_eq!(read(json!({ "rope_parameters": newer }))?, old);
    assert!(matches!(old.scaling, RopeScaling::Llama3 { .. }));
    let linear = read(json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } }))?;
    assert_eq!(linear.scaling, RopeScaling::Linear { factor: 2.0 });
    assert!(read(json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 } })).is_err());
    Ok(())
}

#[test]
fn steps_with_a_cache_equal_one_pass() -> Result<()> {
    let ids = tiny::ids(2, 9);
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        let whole = plain(&model, &ids)?;
        let mut kv = KvCache::new(2);
        let mut parts = Vec::new();
        for (start, len) in [(0, 3), (3, 1), (4, 4), (8, 1)] {
            let mut run = Run::new().kv(&mut kv);
            parts.push(model.run(&ids.narrow(1, start, len), &mut run)?);
        }
        assert_eq!(kv.len(), 9);
        assert_near(&Tensor::cat(&parts, 1), &whole, 1e-5);

        kv.truncate(5)?;
        let again = model.run(
            &ids.narrow(1, 5, 4),
            &mut Run::new().kv(&mut kv).last_only(),
        )?;
        assert_near(&again, &whole.narrow(1, 8, 1), 1e-5);
        assert!(kv.truncate(10).is_err());
    }
    Ok(())
}

#[test]
fn one_texts_cache_serves_many() -> Result<()> {
    for name in ["gpt2", "llama"] {
        let (model, _vs) = tiny::model(name)?;
        let start = tiny::ids(1, 4);
        let mut kv = KvCache::new(2);
        let _ = model.run(&start, &mut Run::new().kv(&mut kv))?;
        let ends = tiny::ids(3, 2);
        let mut wide = kv.expand(3)?;
        let logits = model.run(&ends, &mut Run::new().kv(&mut wide))?;
        let whole = Tensor::cat(&[start.expand([3, 4], false), ends], 1);
        let expected = plain(&model, &whole)?.narrow(1, 4, 2);
        assert_near(&logits, &expected, 1e-5);
        assert_eq!((kv.len(), wide.len()), (4, 6));
        assert!(wide.expand(2).is_err());
    }
    Ok(())
}

#[test]
fn padded_texts_equal_those_that_stand_alone() -> Result<()> {
    let lengths = [5, 3, 1];
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        for left in [true, false] {
            let ids = tiny::ids(3, 5);
            let mask = Tensor::zeros([3, 5], tch::kind::INT64_CPU);
            let start = |len: i64| if left { 5 - len } else { 0 };
            for (row, len) in lengths.into_iter().enumerate() {
                let _ = mask.get(row as i64).narrow(0, start(len), len).fill_(1);
            }
            let mut kv = KvCache::new(2);
            let logits = model.run(&ids, &mut Run::new().mask(&mask).kv(&mut kv))?;
            assert_eq!(logits.isfinite().all().int64_value(&[]), 1, "{name}");
            let next = tiny::ids(3, 1);
            let more = model.run(&next, &mut Run::new().kv(&mut kv))?;
            for (row, len) in lengths.into_iter().enumerate() {
                let row = row as i64;
                let own = ids.narrow(0, row, 1).narrow(1, start(len), len);
                let alone = plain(&model, &own)?;
                let found = logits.narrow(0, row, 1).narrow(1, start(len), len);
                assert_near(&found, &alone, 1e-5);
                let longer = Tensor::cat(&[own, next.narrow(0, row, 1)], 1);
                let alone = model.run(&longer, &mut Run::new().last_only())?;
                assert_near(&more.narrow(0, row, 1), &alone, 1e-5);
            }
        }
        let ones = Tensor::ones([3, 5], (Kind::Bool, Device::Cpu));
        let ids = tiny::ids(3, 5);
        let masked = model.run(&ids, &mut Run::new().mask(&ones))?;
        assert_bits(&masked, &plain(&model, &ids)?);
    }
    Ok(())
}

#[test]
fn a_pass_in_two_parts_equals_a_whole_one() -> Result<()> {
    let ids = tiny::ids(2, 6);
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        let whole = plain(&model, &ids)?;
        for layer in 0..=2 {
            let residual = model.run(&ids, &mut Run::new().stop_at(layer))?;
            let rest = model.run_from(layer, &residual, &mut Run::new())?;
            assert_bits(&rest, &whole);
            let same = model.run_from(layer, &residual, &mut Run::new().stop_at(layer))?;
            assert_bits(&same, &residual);
        }
        let last = model.run(&ids, &mut Run::new().stop_at(2))?;
        assert_near(&model.unembed(&last)?, &whole, 1e-6);
        let end = model.run(&ids, &mut Run::new().last_only())?;
        assert_near(&end, &whole.narrow(1, 5, 1), 1e-6);

        // Layers may be filled apart: the second layer takes up after its own keys.
        let mut kv = KvCache::new(2);
        let first = model.run(&ids, &mut Run::new().stop_at(1))?;
        let _ = model.run_from(1, &first.narrow(1, 0, 4), &mut Run::new().kv(&mut kv))?;
        assert!(kv.layer(0).is_none() && kv.len() == 4);
        let rest = first.narrow(1, 4, 2);
        let logits = model.run_from(1, &rest, &mut Run::new().kv(&mut kv))?;
        assert_near(&logits, &whole.narrow(1, 4, 2), 1e-5);
        assert!(model.run(&ids, &mut Run::new().kv(&mut kv)).is_err());
    }
    Ok(())
}

#[test]
fn files_load_under_every_name_they_use() -> Result<()> {
    let folder = tiny::folder()?;
    let path = folder.path().join("model.safetensors");
    let ids = tiny::ids(1, 5);
    for name in tiny::ALL {
        let (model, vs) = tiny::model(name)?;
        let expected = plain(&model, &ids)?;
        let aliases: BTreeMap<String, String> = model
            .name_aliases()
            .into_iter()
            .map(|(alias, name)| (name, alias))
            .collect();
        let mut renamed: Tensors = weights::named(&vs)
            .into_iter()
            .map(|(name, xs)| (aliases.get(&name).cloned().unwrap_or(name), xs))
            .collect();
        if model.config().tied {
            renamed.insert("lm_head.weight".to_owned(), model.w_e().detach().copy());
        }
        for name in model.ignored_names() {
            renamed.insert(name, Tensor::from(1.0));
        }
        weights::save(&path, &renamed, &BTreeMap::new())?;
        let other = VarStore::new(Device::Cpu);
        let config = model.config().clone();
        let again = Lm::undrawn(config, &other.root(), Kind::Float)?;
        weights::load_model(&other, &path, &again)?;
        assert_bits(&plain(&again, &ids)?, &expected);
    }
    Ok(())
}

#[test]
fn half_precision_stays_near() -> Result<()> {
    let ids = tiny::ids(2, 6);
    for name in tiny::ALL {
        let (model, vs) = tiny::model(name)?;
        let single = plain(&model, &ids)?;
        nn::set_float_kind(&vs, Kind::BFloat16);
        assert_eq!(model.kind(), Kind::BFloat16);
        let mut run = Run::new().cache(&["blocks.0.ln1.hook_scale"]);
        let half = model.run(&ids, &mut run)?;
        assert_eq!(half.kind(), Kind::BFloat16);
        let largest = single.abs().max().double_value(&[]);
        assert_close(&half, &single, 0.1, 0.1 * largest);
        let cache = run.take_cache();
        assert_eq!(cache.get("blocks.0.ln1.hook_scale")?.kind(), Kind::Float);
    }
    Ok(())
}

#[test]
fn parameters_are_shared_not_copied() -> Result<()> {
    let ids = tiny::ids(1, 4);
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        let before = plain(&model, &ids)?;
        let name = model.mlp_out_name(1)?;
        let parameter = model.parameter(&name)?;
        let view = model.mlp_out(1)?;
        assert_eq!(view.size(), [model.config().d_mlp, model.config().d_model]);
        {
            let _no_grad = tch::no_grad_guard();
            let _ = view.get(0).fill_(3.0);
        }
        assert!(
            model
                .parameter(&name)?
                .eq_tensor(&parameter)
                .all()
                .int64_value(&[])
                == 1
        );
        assert_ne!(plain(&model, &ids)?, before);
        let error = model.parameter(&name.replace("weight", "wieght"));
        let Err(error) = error else {
            panic!("{name} was found under another name");
        };
        assert!(error.to_string().contains(&name), "{error}");
    }
    Ok(())
}

#[test]
fn mistakes_are_sentences() -> Result<()> {
    let (model, _vs) = tiny::model("gpt2")?;
    let ids = tiny::ids(1, 4);
    let plain = |ids: &Tensor| plain(&model, ids);
    let refused = |result: Result<Tensor>, part: &str| {
        let message = message(result);
        assert!(message.contains(part), "{message}");
    };
    refused(plain(&tiny::ids(1, 17)), "at most 16 tokens, got 17");
    refused(plain(&ids.narrow(1, 0, 0)), "at least one");
    refused(plain(&(&ids + 31i64)), "vocabulary, 0 to 30");
    refused(plain(&(&ids - 31i64)), "vocabulary, 0 to 30");
    refused(plain(&ids.to_kind(Kind::Float)), "`input_ids`");
    refused(plain(&ids.get(0)), "`input_ids`");
    let mask = Tensor::ones([1, 3], tch::kind::INT64_CPU);
    refused(
        model.run(&ids, &mut Run::new().mask(&mask)),
        "`attention_mask`",
    );
    refused(
        model.run(&ids, &mut Run::new().stop_at(3)),
        "2 layers, got 3",
    );
    let residual = model.run(&ids, &mut Run::new().stop_at(2))?;
    let run = &mut Run::new().stop_at(1);
    refused(model.run_from(2, &residual, run), "`stop_at`");
    let narrow = residual.narrow(2, 0, 5);
    refused(model.run_from(1, &narrow, &mut Run::new()), "`residual`");
    refused(model.unembed(&narrow), "`residual`");
    let mut kv = KvCache::new(2);
    let _ = model.run(&tiny::ids(1, 14), &mut Run::new().kv(&mut kv))?;
    refused(model.run(&ids, &mut Run::new().kv(&mut kv)), "got 18");
    kv.truncate(2)?;
    refused(
        model.run(&tiny::ids(2, 4), &mut Run::new().kv(&mut kv)),
        "the cache's keys",
    );
    refused(model.mlp_out(2), "below 2");
    Ok(())
}

#[test]
fn bases_of_rotary_positions_are_written_where_the_reference_reads_them() -> Result<()> {
    for (name, key) in [("neox", "rotary_emb_base"), ("llama", "rope_theta")] {
        let mut json = tiny::config(name);
        json[key] = 5e5.into();
        let config = LmConfig::from_hugging(&json)?;
        let base = |config: &LmConfig| config.rotary.as_ref().map(|rotary| rotary.base);
        assert_eq!(base(&config), Some(5e5), "{name}");
        let written = config.to_hugging();
        assert_eq!(written[key], 5e5, "{name}");
        assert_eq!(LmConfig::from_hugging(&written)?, config, "{name}");
    }
    Ok(())
}
