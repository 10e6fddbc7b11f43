//! Models of every family that are made in no time, and what many tests do with one.

use densely_core::{Error, Result, seeded};
use densely_lm::{Cache, Lm, LmConfig, Run};
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Device, Tensor};

/// The families and the ways in which one differs within itself.
pub(crate) const ALL: [&str; 7] = ["gpt2", "neox", "serial", "gptj", "opt", "llama", "qwen2"];

/// A small `config.json`; weights are wide enough that every part matters.
pub(crate) fn config(name: &str) -> Value {
    match name {
        "gpt2" => json!({
            "model_type": "gpt2", "vocab_size": 31, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3,
            "initializer_range": 0.3, "architectures": ["GPT2LMHeadModel"], "torch_dtype": "float32", "resid_pdrop": 0.1,
        }),
        "gptj" => json!({
            "model_type": "gptj", "vocab_size": 31, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4,
            "initializer_range": 0.3,
        }),
        "neox" | "serial" => json!({
            "model_type": "gpt_neox", "vocab_size": 31, "max_position_embeddings": 16, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 24, "rotary_pct": 0.25, "initializer_range": 0.2,
            "use_parallel_residual": name == "neox",
        }),
        "opt" => json!({
            "model_type": "opt", "vocab_size": 31, "max_position_embeddings": 16, "hidden_size": 12, "num_hidden_layers": 2,
            "num_attention_heads": 3, "ffn_dim": 20, "init_std": 0.3,
        }),
        _ => json!({
            "model_type": name, "vocab_size": 31, "max_position_embeddings": 16, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 20, "rms_norm_eps": 1e-5,
            "initializer_range": 0.3, "tie_word_embeddings": name == "qwen2",
        }),
    }
}

/// A model of fresh weights whose norms and biases are not the trivial ones.
pub(crate) fn model(name: &str) -> Result<(Lm, VarStore)> {
    let vs = VarStore::new(Device::Cpu);
    let config = LmConfig::from_hugging(&config(name))?;
    let model = seeded(7, || {
        let model = Lm::new(config, &vs.root())?;
        let _no_grad = tch::no_grad_guard();
        for (_, mut xs) in model.parameters() {
            if xs.dim() == 1 {
                let noise = xs.randn_like() * 0.3;
                let _ = xs.f_add_(&noise)?;
            }
        }
        Ok::<Lm, Error>(model)
    })?;
    Ok((model, vs))
}

/// Tokens `[batch, time]`, the same at each call.
pub(crate) fn ids(batch: i64, time: i64) -> Tensor {
    seeded(3, || {
        Tensor::randint(31, [batch, time], tch::kind::INT64_CPU)
    })
}

/// All points with the dear ones, which a star alone leaves out.
pub(crate) const EVERYTHING: [&str; 6] = [
    "*",
    "*hook_result",
    "*hook_q_input",
    "*hook_k_input",
    "*hook_v_input",
    "*hook_mlp_in",
];

/// Logits of a pass without hooks and gradients.
pub(crate) fn plain(model: &Lm, ids: &Tensor) -> Result<Tensor> {
    model.run(ids, &mut Run::new())
}

/// The values of a pass at the points of these names.
pub(crate) fn record(model: &Lm, ids: &Tensor, names: &[&str]) -> Result<Cache> {
    let mut run = Run::new().cache(names);
    let _ = model.run(ids, &mut run)?;
    Ok(run.take_cache())
}

/// What an error says.
pub(crate) fn message<T>(result: Result<T>) -> String {
    result.map_or_else(|e| e.to_string(), |_| "it is taken".to_owned())
}

/// A folder that is removed at the end.
pub(crate) fn folder() -> Result<tempfile::TempDir> {
    tempfile::tempdir().map_err(Error::io("a temporary folder"))
}
