//! What a GGUF file says of a model: its sizes, and which tensor of the file is which parameter.

use std::collections::{BTreeMap, BTreeSet};
use std::f64::consts::PI;

use densely_core::{Error, Result};
use serde_json::{Value, json};
use tch::Tensor;

use super::Gguf;
use crate::config::LmConfig;
use crate::names::Names;

/// How the values of a tensor lie in the file, against the published weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Alike.
    Same,
    /// The rows of each of so many heads are in the order of interleaved rotary pairs; published are the first halves of all pairs, then the
    /// second halves.
    Interleaved(i64),
    /// Rows are columns.
    Turned,
}

/// How a file becomes a model.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) config: LmConfig,
    /// By the parameter's name: the tensor's name in the file.
    tensors: BTreeMap<String, (String, Order)>,
    /// Tensors of the file that are used otherwise, or follow from others.
    used: Vec<String>,
}

/// Reads the sizes and finds the tensors.
///
/// # Errors
/// [`Error::Unsupported`] for other architectures; [`Error::Corrupt`] when a size is absent; [`Error::Config`] for impossible sizes.
pub(crate) fn plan(file: &Gguf) -> Result<Plan> {
    let architecture = file
        .text("general.architecture")?
        .ok_or_else(|| Error::corrupt(file.path(), "it names no `general.architecture`"))?;
    let mut plan = match architecture {
        "llama" | "qwen2" => llama(file, architecture)?,
        "gpt2" => gpt2(file)?,
        other => {
            return Err(Error::Unsupported {
                what: format!("the architecture `{other}` of {}", file.path().display()),
                hint: "GGUF files of the architectures gpt2, llama and qwen2 are read; others load from the folders of Hugging Face".to_owned(),
            });
        }
    };
    let token = |name: &str| file.integer(&format!("tokenizer.ggml.{name}_token_id"));
    plan.config.bos = token("bos")?;
    plan.config.eos.clear();
    for name in ["eos", "eot", "eom"] {
        if let Some(id) = token(name)?
            && !plan.config.eos.contains(&id)
        {
            plan.config.eos.push(id);
        }
    }
    Ok(plan)
}

impl Plan {
    /// Finds the tensors of all parts that the family has; `order` says how those of a part, by its name in the file, lie there.
    fn new(file: &Gguf, config: LmConfig, order: impl Fn(&str) -> Order) -> Self {
        let family = Names::of(config.architecture);
        let mut tensors = BTreeMap::new();
        // The weight and, where the file has one, the bias.
        let mut put = |source: String, name: String, order: Order| {
            for part in ["weight", "bias"] {
                let source = format!("{source}.{part}");
                // A bias has no columns to turn.
                let order = match order {
                    Order::Turned if part == "bias" => Order::Same,
                    order => order,
                };
                if part == "weight" || file.tensors().contains_key(&source) {
                    tensors.insert(format!("{name}.{part}"), (source, order));
                }
            }
        };
        for (source, part) in [
            ("token_embd", family.embed),
            ("position_embd", family.positions),
            ("output_norm", family.norm),
        ] {
            if !part.is_empty() {
                put(source.to_owned(), family.outer(part), Order::Same);
            }
        }
        let mut used = Vec::new();
        if config.tied {
            used.push("output.weight".to_owned());
        } else {
            put("output".to_owned(), family.head.to_owned(), Order::Same);
        }
        if config.rotary.is_some() {
            used.push("rope_freqs.weight".to_owned());
        }
        let parts = block_parts(family);
        for layer in 0..config.n_layers {
            for (source, part) in &parts {
                let name = family.block(layer, part);
                put(format!("blk.{layer}.{source}"), name, order(source));
            }
        }
        Self {
            config,
            tensors,
            used,
        }
    }

    /// Fails where the type of a tensor of the model is not read.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming both.
    pub(crate) fn check_types(&self, file: &Gguf) -> Result<()> {
        let mut sources = self.tensors.values();
        sources.try_for_each(|(source, _)| file.check_type(source))
    }

    /// Sizes by the names of parameters; tensors that are none stand under their own names.
    pub(crate) fn sizes(&self, file: &Gguf) -> BTreeMap<String, Vec<i64>> {
        let mut sizes = BTreeMap::new();
        let mut known: BTreeSet<&str> = self.used.iter().map(String::as_str).collect();
        for (name, (source, order)) in &self.tensors {
            if let Some(info) = file.tensors().get(source) {
                let mut size = info.size.clone();
                if *order == Order::Turned {
                    size.reverse();
                }
                sizes.insert(name.clone(), size);
                known.insert(source);
            }
        }
        for (name, info) in file.tensors() {
            if !known.contains(name.as_str()) {
                sizes.insert(name.clone(), info.size.clone());
            }
        }
        sizes
    }

    /// The values of the parameter `name`, in the published order.
    pub(crate) fn read(&self, file: &Gguf, name: &str) -> Result<Tensor> {
        let Some((source, order)) = self.tensors.get(name) else {
            return Err(Error::corrupt(file.path(), format!("it holds no `{name}`")));
        };
        let xs = file.tensor(source)?;
        Ok(match order {
            Order::Same => xs,
            Order::Turned => xs.f_transpose(0, 1)?,
            Order::Interleaved(heads) => {
                let size = xs.size();
                let pairs = size.first().copied().unwrap_or(0) / heads / 2;
                let mut split = vec![*heads, pairs, 2];
                split.extend(size.iter().skip(1)); // [heads, pair, half, in]
                xs.f_reshape(&split)?.f_transpose(1, 2)?.f_reshape(&size)?
            }
        })
    }
}

/// Sizes under the keys of an architecture.
struct Sizes<'a> {
    file: &'a Gguf,
    architecture: &'a str,
}

impl Sizes<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn optional(&self, name: &str) -> Result<Option<i64>> {
        self.file.integer(&self.key(name))
    }

    fn whole(&self, name: &str) -> Result<i64> {
        self.optional(name)?.ok_or_else(|| self.absent(name))
    }

    fn number(&self, name: &str) -> Result<f64> {
        let value = self.file.number(&self.key(name))?;
        value.ok_or_else(|| self.absent(name))
    }

    fn absent(&self, name: &str) -> Error {
        let reason = format!("its metadata lack `{}`", self.key(name));
        Error::corrupt(self.file.path(), reason)
    }

    /// Rows of the token embedding.
    fn vocabulary(&self) -> Result<i64> {
        let info = self.file.tensors().get("token_embd.weight");
        let rows = info.and_then(|info| info.size.first().copied());
        rows.ok_or_else(|| Error::corrupt(self.file.path(), "it has no `token_embd.weight`"))
    }

    fn unsupported(&self, what: &str) -> Error {
        Error::Unsupported {
            what: format!("{what}, as {} asks for,", self.file.path().display()),
            hint: "plain models of these architectures are read".to_owned(),
        }
    }
}

/// The parts of a block that the family has: their names in files of GGUF, and the published ones.
fn block_parts(family: &Names) -> Vec<(&'static str, &'static str)> {
    let mut parts = vec![
        ("attn_norm", family.ln1),
        ("attn_output", family.write),
        ("ffn_norm", family.ln2),
        ("ffn_gate", family.gate),
        ("ffn_up", family.up),
        ("ffn_down", family.down),
    ];
    match family.read {
        [all] => parts.push(("attn_qkv", *all)),
        apart => parts.extend(
            ["attn_q", "attn_k", "attn_v"]
                .into_iter()
                .zip(apart.iter().copied()),
        ),
    }
    parts.retain(|(_, name)| !name.is_empty());
    parts
}

fn llama(file: &Gguf, architecture: &str) -> Result<Plan> {
    let sizes = Sizes { file, architecture };
    let heads = sizes.whole("attention.head_count")?;
    let groups = sizes.optional("attention.head_count_kv")?.unwrap_or(heads);
    let width = sizes.whole("embedding_length")?;
    let d_head = match sizes.optional("attention.key_length")? {
        Some(width) => width,
        None if heads > 0 && width % heads == 0 => width / heads,
        None => {
            let reason = format!("{heads} heads cannot share a width of {width}");
            return Err(Error::corrupt(file.path(), reason));
        }
    };
    let values = sizes.optional("attention.value_length")?.unwrap_or(d_head);
    let turned = sizes.optional("rope.dimension_count")?.unwrap_or(d_head);
    if values != d_head || turned != d_head {
        return Err(sizes.unsupported(&format!(
            "heads of {d_head} for keys and {values} for values of which {turned} are rotated"
        )));
    }
    if let Some(experts) = sizes.optional("expert_count")?
        && experts > 0
    {
        return Err(sizes.unsupported(&format!("a mixture of {experts} experts")));
    }
    let base = file.number(&sizes.key("rope.freq_base"))?.unwrap_or(1e4);
    let tied = !file.tensors().contains_key("output.weight");
    let json = json!({
        "model_type": architecture,
        "vocab_size": sizes.vocabulary()?,
        "max_position_embeddings": sizes.whole("context_length")?,
        "hidden_size": width,
        "num_hidden_layers": sizes.whole("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": d_head,
        "intermediate_size": sizes.whole("feed_forward_length")?,
        "hidden_act": "silu",
        "rms_norm_eps": sizes.number("attention.layer_norm_rms_epsilon")?,
        "tie_word_embeddings": tied,
        "rope_theta": base,
        "rope_scaling": scaling(&sizes, base, d_head)?,
    });
    let mut config = LmConfig::from_hugging(&json)?;
    config.qkv_bias = file.tensors().contains_key("blk.0.attn_q.bias");

    // Only for this architecture do the files keep the pairs of rotary positions side by side.
    let side_by_side = architecture == "llama";
    Ok(Plan::new(file, config, |part| match part {
        "attn_q" if side_by_side => Order::Interleaved(heads),
        "attn_k" if side_by_side => Order::Interleaved(groups),
        _ => Order::Same,
    }))
}

/// How rotary frequencies are stretched, as Hugging Face's configs say it.
fn scaling(sizes: &Sizes, base: f64, d_head: i64) -> Result<Value> {
    let file = sizes.file;
    let kind = file.text(&sizes.key("rope.scaling.type"))?;
    let linear = match kind {
        None => file.number(&sizes.key("rope.scale_linear"))?,
        Some("none") => None,
        Some("linear") => Some(sizes.number("rope.scaling.factor")?),
        Some(other) => {
            return Err(sizes.unsupported(&format!("rotary positions scaled by `{other}`")));
        }
    };
    if !file.tensors().contains_key("rope_freqs.weight") {
        return Ok(match linear {
            Some(factor) if (factor - 1.0).abs() > f64::EPSILON => {
                json!({ "rope_type": "linear", "factor": factor })
            }
            _ => Value::Null,
        });
    }
    let divisors = file.tensor("rope_freqs.weight")?;
    let divisors: Vec<f64> =
        Vec::try_from(&divisors.f_flatten(0, -1)?.f_to_kind(tch::Kind::Double)?)?;
    // The slowest pair is divided by the whole factor. The other constants are those of all models of this kind.
    let factor = divisors.last().copied().unwrap_or(1.0);
    let (low, high, old) = (1.0, 4.0, 8192.0);
    let expected = (0..d_head / 2).map(|pair| {
        let wave = 2.0 * PI * base.powf(2.0 * pair as f64 / d_head as f64);
        if wave < old / high {
            1.0
        } else if wave > old / low {
            factor
        } else {
            let smooth = (old / wave - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    });
    let fits = divisors.len() as i64 == d_head / 2
        && expected
            .zip(&divisors)
            .all(|(ours, theirs)| (ours - theirs).abs() <= 1e-3 * ours.abs());
    if !fits || linear.is_some() {
        let what = "rotary frequencies other than those of Llama 3".to_owned();
        return Err(sizes.unsupported(&what));
    }
    Ok(json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": old as i64,
    }))
}

fn gpt2(file: &Gguf) -> Result<Plan> {
    let sizes = Sizes {
        file,
        architecture: "gpt2",
    };
    // Most files hold the head once more, or leave it out. One that was quantised apart from the embedding is another matrix.
    let tied = !file.tensors().contains_key("output.weight")
        || file.same_bytes("output.weight", "token_embd.weight");
    let json = json!({
        "model_type": "gpt2",
        "vocab_size": sizes.vocabulary()?,
        "n_positions": sizes.whole("context_length")?,
        "n_embd": sizes.whole("embedding_length")?,
        "n_layer": sizes.whole("block_count")?,
        "n_head": sizes.whole("attention.head_count")?,
        "n_inner": sizes.whole("feed_forward_length")?,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": sizes.number("attention.layer_norm_epsilon")?,
        "tie_word_embeddings": tied,
    });
    let config = LmConfig::from_hugging(&json)?;
    Ok(Plan::new(file, config, |part| match part {
        "attn_qkv" | "attn_output" | "ffn_up" | "ffn_down" => Order::Turned,
        _ => Order::Same,
    }))
}
