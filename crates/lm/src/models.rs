//! The list of presets, and the language model behind the door of named tensors.
//!
//! Configs are Hugging Face's `config.json`, whole or some of its fields, and `return_hooks`, a list of hook points to give beside the
//! logits. Each preset's own sizes are small enough to build in a second; a config of any size of its family is taken. `gpt2` is GPT-2
//! small, `gpt-neox` Pythia-160m, `opt` OPT-125m, `llama` SmolLM2-135M. GPT-J was published at 6 billion parameters alone, so `gptj` is a
//! narrow one of 64 million.

use densely_core::registry::{Preset, TensorSpec, take_inputs};
use densely_core::weights::Tensors;
use densely_core::{Error, Model, Result, check};
use serde_json::{Value, json};
use tch::nn::Path;

use crate::config::{Architecture, LmConfig};
use crate::hooks::Run;
use crate::model::Lm;

impl Model for Lm {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        let [ids, mask] = take_inputs(inputs, ["input_ids", "attention_mask"])?;
        let ids = ids.ok_or_else(|| check::absent("input_ids"))?;
        let mut run = Run::new().cache(&self.config().return_hooks);
        if let Some(mask) = mask {
            run = run.mask(mask);
        }
        let logits = self.run_ambient(ids, &mut run)?;
        let mut outputs = run.take_cache().into_tensors();
        outputs.insert("logits".to_owned(), logits);
        Ok(outputs)
    }

    fn aliases(&self) -> Vec<(String, String)> {
        self.name_aliases()
    }

    fn ignored(&self) -> Vec<String> {
        self.ignored_names()
    }
}

/// A model of one family from its config.
fn build(architecture: Architecture, config: &Value, path: &Path) -> Result<Box<dyn Model>> {
    let config = LmConfig::from_hugging(config)?;
    if config.architecture != architecture {
        let reason = format!(
            "this preset is of the family {architecture:?}, the config of {:?}",
            config.architecture
        );
        return Err(Error::config("model_type", reason));
    }
    Ok(Box::new(Lm::new(config, path)?))
}

const INPUTS: &[TensorSpec] = &[
    TensorSpec {
        name: "input_ids",
        shape: &["B", "T"],
        dtype: "i64",
    },
    TensorSpec {
        name: "attention_mask",
        shape: &["B", "T"],
        dtype: "i64",
    },
];

const OUTPUTS: &[TensorSpec] = &[TensorSpec {
    name: "logits",
    shape: &["B", "T", "V"],
    dtype: "f32",
}];

const fn preset(
    name: &'static str,
    paper: &'static str,
    params: u64,
    macs: u64,
    config: fn() -> Value,
    build: fn(&Value, &Path) -> Result<Box<dyn Model>>,
) -> Preset {
    Preset {
        name,
        domain: "lm",
        paper,
        params,
        macs,
        config,
        inputs: INPUTS,
        outputs: OUTPUTS,
        weights: &[],
        dropout: &[],
        build,
    }
}

/// The presets; multiply-accumulates are those of one token that sees itself alone.
pub static PRESETS: &[Preset] = &[
    preset(
        "gpt2",
        "Radford, Wu, Child, Luan, Amodei, Sutskever 2019, Language Models are Unsupervised Multitask Learners",
        124_439_808,
        123_550_464,
        || {
            json!({
                "model_type": "gpt2", "vocab_size": 50_257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
                "n_inner": null, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "initializer_range": 0.02,
                "tie_word_embeddings": true, "bos_token_id": 50_256, "eos_token_id": 50_256, "return_hooks": [],
            })
        },
        |config, path| build(Architecture::Gpt2, config, path),
    ),
    preset(
        "gpt-neox",
        "Biderman, Schoelkopf, Anthony, Bradley, O'Brien, Hallahan, Khan, Purohit, Prashanth, Raff, Skowron, Sutawika, van der Wal 2023, arXiv 2304.01373",
        162_322_944,
        123_586_560,
        || {
            json!({
                "model_type": "gpt_neox", "vocab_size": 50_304, "max_position_embeddings": 2048, "hidden_size": 768,
                "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu",
                "layer_norm_eps": 1e-5, "rotary_pct": 0.25, "rotary_emb_base": 10_000, "use_parallel_residual": true,
                "initializer_range": 0.02, "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 0, "return_hooks": [],
            })
        },
        |config, path| build(Architecture::GptNeoX, config, path),
    ),
    preset(
        "gptj",
        "Wang, Komatsuzaki 2021, GPT-J-6B",
        64_258_272,
        38_391_808,
        || {
            json!({
                "model_type": "gptj", "vocab_size": 50_400, "n_positions": 2048, "n_embd": 512, "n_layer": 4, "n_head": 8,
                "n_inner": null, "rotary_dim": 32, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
                "initializer_range": 0.02, "tie_word_embeddings": false, "bos_token_id": 50_256, "eos_token_id": 50_256,
                "return_hooks": [],
            })
        },
        |config, path| build(Architecture::GptJ, config, path),
    ),
    preset(
        "opt",
        "Zhang, Roller, Goyal, Artetxe, Chen, Chen, Dewan, Diab, Li, Lin, Mihaylov, Ott, Shleifer, Shuster, Simig, Koura, Sridhar, Wang, Zettlemoyer 2022, arXiv 2205.01068",
        125_239_296,
        123_561_984,
        || {
            json!({
                "model_type": "opt", "vocab_size": 50_272, "max_position_embeddings": 2048, "hidden_size": 768,
                "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072, "activation_function": "relu",
                "do_layer_norm_before": true, "word_embed_proj_dim": null, "init_std": 0.02, "tie_word_embeddings": true,
                "bos_token_id": 2, "eos_token_id": 2, "return_hooks": [],
            })
        },
        |config, path| build(Architecture::Opt, config, path),
    ),
    preset(
        "llama",
        "Touvron, Lavril, Izacard, Martinet, Lachaux, Lacroix, Rozière, Goyal, Hambro, Azhar, Rodriguez, Joulin, Grave, Lample 2023, arXiv 2302.13971",
        134_515_008,
        134_514_432,
        || {
            json!({
                "model_type": "llama", "vocab_size": 49_152, "max_position_embeddings": 8192, "hidden_size": 576,
                "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": null,
                "intermediate_size": 1536, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 100_000.0,
                "rope_scaling": null, "initializer_range": 0.02, "tie_word_embeddings": true, "bos_token_id": 0,
                "eos_token_id": 0, "return_hooks": [],
            })
        },
        |config, path| build(Architecture::Llama, config, path),
    ),
];
