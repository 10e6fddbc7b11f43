//! Models of three architectures in GGUF files, and a trained one.

use std::path::PathBuf;

use densely_core::{Error, Result, seeded};
use densely_lm::perplexity::perplexity;
use densely_lm::{Lm, LmConfig, RopeScaling, Tokenizer, open};
use densely_testkit::{assert_bits, assert_close};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::{Place, Writer, text_bytes};
use crate::tokenizer::{END, SMALL};

/// A model whose every parameter is drawn, norms and biases too, with the store that keeps it.
pub(crate) fn drawn(config: &serde_json::Value) -> Result<(Lm, VarStore)> {
    let vs = VarStore::new(Device::Cpu);
    let config = LmConfig::from_hugging(config)?;
    let model = seeded(3, || -> Result<Lm> {
        let model = Lm::new(config, &vs.root())?;
        let _no_grad = tch::no_grad_guard();
        for xs in model.parameters().into_values() {
            let noise = xs.f_randn_like()? * 0.2;
            let _ = xs.shallow_clone().f_add_(&noise)?;
        }
        Ok(model)
    })?;
    Ok((model, vs))
}

/// Rows of each head from halves to neighbouring pairs, as files have them.
fn interleaved(xs: &Tensor, heads: i64) -> Tensor {
    let size = xs.size();
    xs.reshape([heads, 2, size[0] / heads / 2, -1])
        .transpose(1, 2)
        .reshape(&size)
}

fn llama_json(kind: &str, tied: bool) -> serde_json::Value {
    json!({
        "model_type": kind, "vocab_size": SMALL, "max_position_embeddings": 32, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "rms_norm_eps": 1e-5,
        "rope_theta": 5e5, "tie_word_embeddings": tied,
    })
}

/// A file of a Llama or Qwen2.
fn llama_file(model: &Lm, architecture: &str) -> Result<Writer> {
    let config = model.config();
    let mut writer = Writer::default();
    writer.text("general.architecture", architecture);
    for (name, value) in [
        ("block_count", config.n_layers as i64),
        ("context_length", config.n_ctx),
        ("embedding_length", config.d_model),
        ("feed_forward_length", config.d_mlp),
        ("attention.head_count", config.n_heads),
        ("attention.head_count_kv", config.n_kv_heads),
        ("rope.dimension_count", config.d_head),
    ] {
        writer.u32(&format!("{architecture}.{name}"), value as u32);
    }
    let base = config.rotary.map_or(1e4, |rotary| rotary.base);
    writer.f32(&format!("{architecture}.rope.freq_base"), base as f32);
    let eps = config.norm_eps as f32;
    writer.f32(
        &format!("{architecture}.attention.layer_norm_rms_epsilon"),
        eps,
    );
    writer.tokenizer();
    for (name, xs) in model.parameters() {
        let source = name
            .replace("model.layers.", "blk.")
            .replace("model.embed_tokens", "token_embd")
            .replace("model.norm", "output_norm")
            .replace("lm_head", "output")
            .replace("input_layernorm", "attn_norm")
            .replace("post_attention_layernorm", "ffn_norm")
            .replace("self_attn.o_proj", "attn_output")
            .replace("self_attn.", "attn_")
            .replace("mlp.", "ffn_")
            .replace("_proj", "");
        let xs = match architecture {
            "llama" if name.contains("q_proj") => interleaved(&xs, config.n_heads),
            "llama" if name.contains("k_proj") => interleaved(&xs, config.n_kv_heads),
            _ => xs,
        };
        writer.floats(&source, &xs)?;
    }
    Ok(writer)
}

/// Asserts that the file opens as a model that computes the same bits.
fn assert_same(model: &Lm, writer: &Writer) -> Result<LmConfig> {
    let place = Place::new()?;
    let opened = open(&place.write(&writer.bytes())?, Device::Cpu, Kind::Float)?;
    let ids = Tensor::from_slice(&[5i64, 200, 31, 260, 7, 7, 104]).reshape([1, 7]);
    let _no_grad = tch::no_grad_guard();
    assert_bits(&opened.model.forward(&ids)?, &model.forward(&ids)?);
    assert_eq!(opened.tokenizer.encode("hello 12")?, [259, 111, 32, 49, 50]);
    assert_eq!(
        (opened.tokenizer.bos(), opened.tokenizer.eos()),
        (Some(END), Some(END))
    );
    let config = opened.model.config().clone();
    assert_eq!(
        (config.bos, config.eos.as_slice()),
        (Some(END), [END].as_slice())
    );
    assert!(opened.described.contains("F32"), "{}", opened.described);
    Ok(config)
}

#[test]
fn llama_and_qwen2_compute_the_same_bits() -> Result<()> {
    for (architecture, tied) in [
        ("llama", true),
        ("llama", false),
        ("qwen2", true),
        ("qwen2", false),
    ] {
        let (model, _vs) = drawn(&llama_json(architecture, tied))?;
        let config = assert_same(&model, &llama_file(&model, architecture)?)?;
        assert_eq!(
            (config.tied, config.qkv_bias),
            (tied, architecture == "qwen2")
        );
        assert_eq!(config.rotary, model.config().rotary);
        assert!((config.norm_eps - 1e-5).abs() < 1e-18);
    }
    Ok(())
}

#[test]
fn stretched_frequencies_are_recognised() -> Result<()> {
    let mut json = llama_json("llama", true);
    json["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    });
    let (model, _vs) = drawn(&json)?;
    let mut writer = llama_file(&model, "llama")?;
    let divisors: Vec<f32> = (0..4)
        .map(|pair| {
            let wave = std::f64::consts::TAU * 5e5f64.powf(2.0 * f64::from(pair) / 8.0);
            if wave < 2048.0 {
                1.0
            } else if wave > 8192.0 {
                32.0
            } else {
                let smooth = (8192.0 / wave - 1.0) / 3.0;
                (1.0 / ((1.0 - smooth) / 32.0 + smooth)) as f32
            }
        })
        .collect();
    writer.floats("rope_freqs.weight", &Tensor::from_slice(&divisors))?;
    let config = assert_same(&model, &writer)?;
    assert_eq!(config.rotary, model.config().rotary);

    let (model, _vs) = drawn(&llama_json("llama", true))?;
    let mut linear = llama_file(&model, "llama")?;
    linear.text("llama.rope.scaling.type", "linear");
    linear.f32("llama.rope.scaling.factor", 4.0);
    let place = Place::new()?;
    let opened = open(&place.write(&linear.bytes())?, Device::Cpu, Kind::Float)?;
    let scaling = opened.model.config().rotary.map(|rotary| rotary.scaling);
    assert_eq!(scaling, Some(RopeScaling::Linear { factor: 4.0 }));

    let mut other = llama_file(&model, "llama")?;
    other.floats(
        "rope_freqs.weight",
        &Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]),
    )?;
    let error = open(&place.write(&other.bytes())?, Device::Cpu, Kind::Float).expect_err("unknown");
    assert!(error.to_string().contains("Llama 3"), "{error}");
    let mut yarn = llama_file(&model, "llama")?;
    yarn.text("llama.rope.scaling.type", "yarn");
    let error = open(&place.write(&yarn.bytes())?, Device::Cpu, Kind::Float).expect_err("unknown");
    assert!(error.to_string().contains("`yarn`"), "{error}");
    Ok(())
}

#[test]
fn gpt2_computes_the_same_bits() -> Result<()> {
    let (model, _vs) = drawn(&json!({
        "model_type": "gpt2", "vocab_size": SMALL, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4,
    }))?;
    let mut writer = Writer::default();
    writer.text("general.architecture", "gpt2");
    for (name, value) in [
        ("block_count", 2),
        ("context_length", 32),
        ("embedding_length", 32),
        ("feed_forward_length", 128),
        ("attention.head_count", 4),
    ] {
        writer.u32(&format!("gpt2.{name}"), value);
    }
    writer.f32("gpt2.attention.layer_norm_epsilon", 1e-5);
    writer.tokenizer();
    for (name, xs) in model.parameters() {
        let source = name
            .replace("transformer.h.", "blk.")
            .replace("transformer.wte", "token_embd")
            .replace("transformer.wpe", "position_embd")
            .replace("transformer.ln_f", "output_norm")
            .replace("ln_1", "attn_norm")
            .replace("ln_2", "ffn_norm")
            .replace("attn.c_attn", "attn_qkv")
            .replace("attn.c_proj", "attn_output")
            .replace("mlp.c_fc", "ffn_up")
            .replace("mlp.c_proj", "ffn_down");
        let is_matrix = name.contains(".c_") && name.ends_with("weight");
        let xs = if is_matrix { xs.transpose(0, 1) } else { xs };
        if source == "token_embd.weight" {
            writer.floats("output.weight", &xs)?;
        }
        writer.floats(&source, &xs)?;
    }
    let config = assert_same(&model, &writer)?;
    assert!(config.tied);
    Ok(())
}

#[test]
fn prompts_start_as_the_file_asks_and_do_not_end() -> Result<()> {
    let place = Place::new()?;
    let text = [259i64, 111];
    let started = [END, 259, 111];
    for (bos, eos, expected) in [
        (None, None, text.as_slice()),
        (Some(false), Some(true), &text),
        (Some(true), None, &started),
        (Some(true), Some(true), &started),
        (Some(true), Some(false), &started),
    ] {
        let mut writer = Writer::default();
        writer.tokenizer();
        for (name, asked) in [("add_bos_token", bos), ("add_eos_token", eos)] {
            if let Some(asked) = asked {
                writer.flag(&format!("tokenizer.ggml.{name}"), asked);
            }
        }
        let tokenizer = Tokenizer::from_gguf(&place.open(&writer.bytes())?)?;
        assert_eq!(tokenizer.encode("hello")?, expected, "{bos:?} {eos:?}");
        assert_eq!(tokenizer.encode_plain("hello")?, text);
        assert_eq!(tokenizer.eos(), Some(END));
    }
    Ok(())
}

#[test]
fn models_that_do_not_fit_are_refused() -> Result<()> {
    let (model, _vs) = drawn(&llama_json("llama", true))?;
    let good = llama_file(&model, "llama")?;
    let place = Place::new()?;
    let refused = |writer: &Writer| -> Result<String> {
        let path = place.write(&writer.bytes())?;
        let error = open(&path, Device::Cpu, Kind::Float).expect_err("unfit");
        Ok(error.to_string())
    };
    let mut lacking = good.clone();
    lacking.tensors.retain(|row| row.0 != "blk.1.ffn_up.weight");
    lacking
        .tensors
        .push(("extra.weight".to_owned(), vec![1], 0, vec![0; 4]));
    let message = refused(&lacking)?;
    for part in [
        "missing from the file: model.layers.1.mlp.up_proj.weight",
        "unknown to the model: extra.weight",
    ] {
        assert!(message.contains(part), "{message}");
    }
    let mut wide = Writer {
        tensors: good.tensors.clone(),
        ..Writer::default()
    };
    wide.text("general.architecture", "llama");
    for (name, value) in [
        ("block_count", 2),
        ("context_length", 32),
        ("embedding_length", 1 << 16),
        ("feed_forward_length", 1 << 16),
        ("attention.head_count", 64),
    ] {
        wide.u32(&format!("llama.{name}"), value);
    }
    wide.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    wide.tokenizer();
    let message = refused(&wide)?;
    assert!(message.contains("its sizes make a model of"), "{message}");

    let mut foreign = Writer::default();
    foreign.text("general.architecture", "mamba");
    let message = refused(&foreign)?;
    assert!(message.contains("`mamba`"), "{message}");
    assert!(refused(&Writer::default())?.contains("general.architecture"));

    let renamed = |key: &str, value: &str| {
        let mut writer = Writer {
            tensors: good.tensors.clone(),
            ..Writer::default()
        };
        let key_bytes = text_bytes(key);
        let at = good
            .metadata
            .windows(key_bytes.len())
            .position(|part| part == key_bytes)
            .expect("the key");
        let start = at + key_bytes.len() + 4;
        let length = good.metadata[start] as usize;
        writer.metadata = good.metadata[..start].to_vec();
        writer.metadata.extend(text_bytes(value));
        writer.metadata.extend(&good.metadata[start + 8 + length..]);
        writer.values = good.values;
        writer
    };
    let message = refused(&renamed("tokenizer.ggml.pre", "chatglm-bpe"))?;
    assert!(message.contains("`chatglm-bpe`"), "{message}");
    let message = refused(&renamed("tokenizer.ggml.model", "llama"))?;
    assert!(message.contains("tokeniser `llama`"), "{message}");
    Ok(())
}

/// A file of a data set: in the folder that `variable` names, or in the cache.
fn data(variable: &str, set: &str, file: &str) -> PathBuf {
    if let Some(given) = std::env::var_os(variable).map(PathBuf::from) {
        return if given.is_dir() {
            given.join(file)
        } else {
            given
        };
    }
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let sets = named("DENSELY_DATA")
        .or_else(|| Some(named("DENSELY_CACHE")?.join("data")))
        .or_else(|| Some(named("HOME")?.join(".cache/densely/data")));
    sets.unwrap_or_default().join(set).join(file)
}

/// Needs the data sets: `cargo xtask data get smollm2 wikitext2`, then `cargo test --workspace -- --ignored smollm2`. Files elsewhere are named by
/// `DENSELY_SMOLLM2` and `DENSELY_WIKITEXT2`.
#[test]
#[ignore = "needs the data sets smollm2 and wikitext2 in the cache, or in DENSELY_SMOLLM2 and DENSELY_WIKITEXT2"]
fn smollm2_has_the_published_logits_and_perplexity() -> Result<()> {
    let path = data(
        "DENSELY_SMOLLM2",
        "smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
    );
    let opened = open(&path, Device::Cpu, Kind::Float)?;
    let _no_grad = tch::no_grad_guard();
    for (prompt, ids, top) in [
        (
            "The capital of France is",
            vec![504, 3575, 282, 4649, 314],
            [
                (" Paris", 17.3713),
                (" the", 14.8886),
                (" London", 13.245),
                (" Le", 13.0095),
                (" New", 12.9515),
            ],
        ),
        (
            "The Eiffel Tower is in the city of",
            vec![504, 414, 46682, 18669, 314, 281, 260, 2240, 282],
            [
                (" Paris", 13.6863),
                (" Rome", 10.8295),
                (" Barcelona", 10.6681),
                (" Berlin", 10.3935),
                (" New", 10.0939),
            ],
        ),
    ] {
        assert_eq!(opened.tokenizer.encode(prompt)?, ids);
        let logits = opened
            .model
            .forward(&Tensor::from_slice(&ids).unsqueeze(0))?;
        let (values, best) = logits.select(0, 0).select(0, -1).topk(5, 0, true, true);
        let best: Vec<i64> = Vec::try_from(&best)?;
        for (id, (word, _)) in best.iter().zip(top) {
            assert_eq!(opened.tokenizer.piece(*id)?, word);
        }
        let expected: Vec<f32> = top.iter().map(|(_, logit)| *logit).collect();
        assert_close(&values, &Tensor::from_slice(&expected), 0.0, 2e-3);
    }
    let path = data("DENSELY_WIKITEXT2", "wikitext2", "test.txt");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let text: String = text.chars().take(12_000).collect();
    let ids = opened.tokenizer.encode(&text)?;
    let found = perplexity(&opened.model, &ids[..2048], 512)?;
    assert_eq!(found.predictions, 2044);
    assert!(
        (found.nll - 3.23846).abs() < 2e-4 && (found.perplexity - 25.494).abs() < 5e-3,
        "{found:?}"
    );
    Ok(())
}
