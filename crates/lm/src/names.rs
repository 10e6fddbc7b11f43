//! The names of weights in the reference's files.

use crate::config::{Architecture, LmConfig};

/// Names of a family's parts. Those of a block come after `{trunk}.{layers}.{number}.`.
#[derive(Debug)]
pub(crate) struct Names {
    pub trunk: &'static str,
    pub layers: &'static str,
    pub embed: &'static str,
    pub positions: &'static str,
    pub norm: &'static str,
    /// Not under the trunk.
    pub head: &'static str,
    pub ln1: &'static str,
    /// Empty where there is none.
    pub ln2: &'static str,
    /// One matrix, or three.
    pub read: &'static [&'static str],
    pub write: &'static str,
    pub up: &'static str,
    /// Empty where there is none.
    pub gate: &'static str,
    pub down: &'static str,
    /// Buffers of a block that files hold beside the weights.
    pub block_buffers: &'static [&'static str],
    /// Buffers after `{trunk}.`.
    pub buffers: &'static [&'static str],
}

const GPT2: Names = Names {
    trunk: "transformer",
    layers: "h",
    embed: "wte",
    positions: "wpe",
    norm: "ln_f",
    head: "lm_head",
    ln1: "ln_1",
    ln2: "ln_2",
    read: &["attn.c_attn"],
    write: "attn.c_proj",
    up: "mlp.c_fc",
    gate: "",
    down: "mlp.c_proj",
    block_buffers: &["attn.bias", "attn.masked_bias"],
    buffers: &[],
};

const GPTJ: Names = Names {
    ln2: "",
    read: &["attn.q_proj", "attn.k_proj", "attn.v_proj"],
    write: "attn.out_proj",
    up: "mlp.fc_in",
    down: "mlp.fc_out",
    block_buffers: &["attn.bias", "attn.masked_bias", "attn.embed_positions"],
    ..GPT2
};

const NEOX: Names = Names {
    trunk: "gpt_neox",
    layers: "layers",
    embed: "embed_in",
    positions: "",
    norm: "final_layer_norm",
    head: "embed_out",
    ln1: "input_layernorm",
    ln2: "post_attention_layernorm",
    read: &["attention.query_key_value"],
    write: "attention.dense",
    up: "mlp.dense_h_to_4h",
    gate: "",
    down: "mlp.dense_4h_to_h",
    block_buffers: &[
        "attention.bias",
        "attention.masked_bias",
        "attention.rotary_emb.inv_freq",
    ],
    buffers: &["rotary_emb.inv_freq"],
};

const OPT: Names = Names {
    trunk: "model.decoder",
    layers: "layers",
    embed: "embed_tokens",
    positions: "embed_positions",
    norm: "final_layer_norm",
    head: "lm_head",
    ln1: "self_attn_layer_norm",
    ln2: "final_layer_norm",
    read: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    write: "self_attn.out_proj",
    up: "fc1",
    gate: "",
    down: "fc2",
    block_buffers: &[],
    buffers: &[],
};

const LLAMA: Names = Names {
    trunk: "model",
    layers: "layers",
    embed: "embed_tokens",
    positions: "",
    norm: "norm",
    head: "lm_head",
    ln1: "input_layernorm",
    ln2: "post_attention_layernorm",
    read: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    write: "self_attn.o_proj",
    up: "mlp.up_proj",
    gate: "mlp.gate_proj",
    down: "mlp.down_proj",
    block_buffers: &["self_attn.rotary_emb.inv_freq"],
    buffers: &["rotary_emb.inv_freq"],
};

impl Names {
    pub(crate) const fn of(architecture: Architecture) -> &'static Self {
        match architecture {
            Architecture::Gpt2 => &GPT2,
            Architecture::GptJ => &GPTJ,
            Architecture::GptNeoX => &NEOX,
            Architecture::Opt => &OPT,
            Architecture::Llama => &LLAMA,
        }
    }

    /// A part of a block, such as `transformer.h.3.mlp.c_proj`.
    pub(crate) fn block(&self, layer: usize, part: &str) -> String {
        format!("{}.{}.{layer}.{part}", self.trunk, self.layers)
    }

    /// A part beside the blocks, such as `transformer.wte`.
    pub(crate) fn outer(&self, part: &str) -> String {
        format!("{}.{part}", self.trunk)
    }

    /// `{head}.weight`.
    pub(crate) fn head_weight(&self) -> String {
        format!("{}.weight", self.head)
    }
}

/// The name without the class's prefix, as files of the model without its head have it.
fn short(name: &str) -> Option<&str> {
    ["transformer.", "gpt_neox.", "model."]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
}

/// Further names that files give to the parameters called `names`, each with the name here.
pub(crate) fn aliases<'a>(
    config: &LmConfig,
    tied: bool,
    names: impl Iterator<Item = &'a str>,
) -> Vec<(String, String)> {
    let family = Names::of(config.architecture);
    let mut aliases: Vec<(String, String)> = names
        .filter_map(|name| Some((short(name)?.to_owned(), name.to_owned())))
        .collect();
    let embed = format!("{}.weight", family.outer(family.embed));
    let head = family.head_weight();
    if tied {
        aliases.push(("lm_head.weight".to_owned(), embed.clone()));
        if head != "lm_head.weight" {
            aliases.push((head, embed));
        }
    } else if head != "lm_head.weight" {
        aliases.push(("lm_head.weight".to_owned(), head));
        let bias = format!("{}.bias", family.head);
        aliases.push(("lm_head.bias".to_owned(), bias));
    }
    aliases
}

/// Names of buffers that files hold and this crate computes.
pub(crate) fn ignored(config: &LmConfig) -> Vec<String> {
    let family = Names::of(config.architecture);
    let mut names: Vec<String> = family
        .buffers
        .iter()
        .map(|name| family.outer(name))
        .collect();
    for layer in 0..config.n_layers {
        names.extend(
            family
                .block_buffers
                .iter()
                .map(|name| family.block(layer, name)),
        );
    }
    let shorter: Vec<String> = names
        .iter()
        .filter_map(|name| Some(short(name)?.to_owned()))
        .collect();
    names.extend(shorter);
    names
}
