//! From and to the `config.json` of Hugging Face's `transformers`. What a file leaves out has the default of the reference's class.

use densely_core::{Error, Result};
use serde_json::{Map, Value, json};

use super::{Activation, Architecture, LmConfig, MAX_LAYERS, RopeScaling, Rotary, size};

/// The fields of a file, with errors that name them.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The field, where it is there and not null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn wrong(key: &str, expected: &str, got: &Value) -> Error {
        let mut text = got.to_string();
        if let Some((end, _)) = text.char_indices().nth(80) {
            text.truncate(end);
        }
        Error::config(key, format!("must be {expected}, got {text}"))
    }

    fn whole(&self, key: &str) -> Result<Option<i64>> {
        let read = |value: &Value| {
            let number = value.as_i64();
            number.ok_or_else(|| Self::wrong(key, "a whole number", value))
        };
        self.get(key).map(read).transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let read = |value: &Value| {
            let number = value.as_f64();
            number.ok_or_else(|| Self::wrong(key, "a number", value))
        };
        self.get(key).map(read).transpose()
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let read = |value: &Value| {
            let flag = value.as_bool();
            flag.ok_or_else(|| Self::wrong(key, "true or false", value))
        };
        Ok(self.get(key).map(read).transpose()?.unwrap_or(default))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let read = |value: &'a Value| {
            let text = value.as_str();
            text.ok_or_else(|| Self::wrong(key, "text", value))
        };
        self.get(key).map(read).transpose()
    }

    fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let read = |value: &'a Value| match value {
            Value::Object(fields) => Ok(Fields(fields)),
            _ => Err(Self::wrong(key, "an object", value)),
        };
        self.get(key).map(read).transpose()
    }

    /// A size within bounds.
    fn size(&self, key: &str, default: i64, most: i64) -> Result<i64> {
        let value = self.whole(key)?.unwrap_or(default);
        size(key, value, most)?;
        Ok(value)
    }

    /// Fails where a switch is not as this crate computes.
    fn only(&self, key: &str, default: bool, taken: bool) -> Result<()> {
        if self.flag(key, default)? == taken {
            return Ok(());
        }
        Err(Error::Unsupported {
            what: format!("a model with `{key}` = {}", !taken),
            hint: format!("only `{key}` = {taken} is known here"),
        })
    }

    fn activation(&self, key: &str, default: Activation) -> Result<Activation> {
        let Some(name) = self.text(key)? else {
            return Ok(default);
        };
        Ok(match name {
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluNew,
            "gelu" | "gelu_python" => Activation::Gelu,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            _ => {
                return Err(Error::Unsupported {
                    what: format!("the activation `{name}` of `{key}`"),
                    hint: "gelu_new, gelu, relu and silu are".to_owned(),
                });
            }
        })
    }

    /// One token or a list of them.
    fn tokens(&self, key: &str, default: Option<i64>) -> Result<Vec<i64>> {
        let Some(value) = self.0.get(key) else {
            return Ok(default.into_iter().collect());
        };
        let wrong = || Self::wrong(key, "a token's number or a list of them", value);
        match value {
            Value::Null => Ok(Vec::new()),
            Value::Array(list) => list
                .iter()
                .map(|value| value.as_i64().ok_or_else(wrong))
                .collect(),
            _ => Ok(vec![value.as_i64().ok_or_else(wrong)?]),
        }
    }

    fn names(&self, key: &str) -> Result<Vec<String>> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let wrong = || Self::wrong(key, "a list of names", value);
        let list = value.as_array().ok_or_else(wrong)?;
        let texts = list.iter().map(|name| name.as_str().map(str::to_owned));
        texts.map(|name| name.ok_or_else(wrong)).collect()
    }

    /// What `rope_parameters`, or `rope_scaling` and `rope_theta`, say. `dims` of a head are rotated.
    fn rotary(&self, dims: i64, base: f64, interleaved: bool) -> Result<Rotary> {
        let given = match self.object("rope_parameters")? {
            Some(fields) => Some(fields),
            None => self.object("rope_scaling")?,
        };
        let Some(fields) = given else {
            return Ok(Rotary {
                dims,
                base,
                interleaved,
                scaling: RopeScaling::None,
            });
        };
        let base = fields.number("rope_theta")?.unwrap_or(base);
        let kind = match fields.text("rope_type")? {
            Some(kind) => kind,
            None => fields.text("type")?.unwrap_or("default"),
        };
        let needed = |key: &str| {
            let absent = || Error::config(key, format!("is needed by the rope type `{kind}`"));
            fields.number(key)?.ok_or_else(absent)
        };
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear {
                factor: needed("factor")?,
            },
            "llama3" => RopeScaling::Llama3 {
                factor: needed("factor")?,
                low: needed("low_freq_factor")?,
                high: needed("high_freq_factor")?,
                old_ctx: needed("original_max_position_embeddings")?,
            },
            _ => {
                return Err(Error::Unsupported {
                    what: format!("the rope type `{kind}`"),
                    hint: "models with the types default, linear and llama3 are".to_owned(),
                });
            }
        };
        Ok(Rotary {
            dims,
            base,
            interleaved,
            scaling,
        })
    }

    /// The base of rotary positions at the top level.
    fn base(&self, keys: &[&str]) -> Result<f64> {
        for key in keys {
            if let Some(base) = self.number(key)? {
                return Ok(base);
            }
        }
        Ok(10_000.0)
    }
}

const KNOWN: &str = "gpt2, gpt_neox, gptj, opt, llama, qwen2 and mistral are";

/// The model's type, from `model_type` or else from the class that `architectures` names.
fn model_type<'a>(fields: &Fields<'a>) -> Result<&'a str> {
    if let Some(kind) = fields.text("model_type")? {
        return Ok(kind);
    }
    let class = fields
        .get("architectures")
        .and_then(|list| list.get(0))
        .and_then(Value::as_str);
    Ok(match class {
        Some("GPT2LMHeadModel") => "gpt2",
        Some("GPTNeoXForCausalLM") => "gpt_neox",
        Some("GPTJForCausalLM") => "gptj",
        Some("OPTForCausalLM") => "opt",
        Some("LlamaForCausalLM") => "llama",
        Some("Qwen2ForCausalLM") => "qwen2",
        Some("MistralForCausalLM") => "mistral",
        Some(other) => {
            return Err(Error::Unsupported {
                what: format!("the architecture `{other}`"),
                hint: KNOWN.to_owned(),
            });
        }
        None => {
            let reason = "is absent, and `architectures` does not name a class either";
            return Err(Error::config("model_type", reason));
        }
    })
}

const WIDTH: i64 = super::MAX_WIDTH;
const ROWS: i64 = super::MAX_ROWS;

impl LmConfig {
    /// Reads a whole `config.json`; fields without a meaning here are passed over, and `return_hooks` may list hook points.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that has another type, is out of bounds, or does not fit the others; [`Error::Unsupported`] for a
    /// family, an activation, rotary positions or a switch that this crate does not know.
    pub fn from_hugging(json: &Value) -> Result<Self> {
        let Value::Object(fields) = json else {
            return Err(Error::config("config", "must be a JSON object"));
        };
        let fields = Fields(fields);
        let mut config = match model_type(&fields)? {
            "gpt2" => gpt2(&fields)?,
            "gpt_neox" => neox(&fields)?,
            "gptj" => gptj(&fields)?,
            "opt" => opt(&fields)?,
            kind @ ("llama" | "qwen2" | "mistral") => llama(&fields, kind)?,
            other => {
                return Err(Error::Unsupported {
                    what: format!(
                        "the model type `{}`",
                        other.chars().take(80).collect::<String>()
                    ),
                    hint: KNOWN.to_owned(),
                });
            }
        };
        config.initializer_range = fields.number("initializer_range")?.unwrap_or(0.02);
        if config.architecture == Architecture::Opt {
            config.initializer_range = fields.number("init_std")?.unwrap_or(0.02);
        }
        config.return_hooks = fields.names("return_hooks")?;
        config.validate()?;
        Ok(config)
    }

    /// The `config.json` that [`from_hugging`](Self::from_hugging) reads as this config.
    pub fn to_hugging(&self) -> Value {
        let mut json = match self.architecture {
            Architecture::Gpt2 => json!({
                "model_type": "gpt2", "n_positions": self.n_ctx, "n_embd": self.d_model, "n_layer": self.n_layers,
                "n_head": self.n_heads, "n_inner": self.d_mlp, "activation_function": self.activation.name(),
                "layer_norm_epsilon": self.norm_eps,
            }),
            Architecture::GptJ => json!({
                "model_type": "gptj", "n_positions": self.n_ctx, "n_embd": self.d_model, "n_layer": self.n_layers,
                "n_head": self.n_heads, "n_inner": self.d_mlp, "activation_function": self.activation.name(),
                "layer_norm_epsilon": self.norm_eps, "rotary_dim": self.rotary.map(|rotary| rotary.dims),
            }),
            Architecture::GptNeoX => json!({
                "model_type": "gpt_neox", "max_position_embeddings": self.n_ctx, "hidden_size": self.d_model,
                "num_hidden_layers": self.n_layers, "num_attention_heads": self.n_heads, "intermediate_size": self.d_mlp,
                "hidden_act": self.activation.name(), "layer_norm_eps": self.norm_eps, "use_parallel_residual": self.parallel,
                "rotary_pct": self.rotary.map(|rotary| rotary.dims as f64 / self.d_head as f64),
            }),
            Architecture::Opt => json!({
                "model_type": "opt", "max_position_embeddings": self.n_ctx, "hidden_size": self.d_model,
                "num_hidden_layers": self.n_layers, "num_attention_heads": self.n_heads, "ffn_dim": self.d_mlp,
                "activation_function": self.activation.name(), "word_embed_proj_dim": self.d_model, "do_layer_norm_before": true,
            }),
            Architecture::Llama => json!({
                "model_type": if self.qkv_bias { "qwen2" } else { "llama" }, "max_position_embeddings": self.n_ctx,
                "hidden_size": self.d_model, "num_hidden_layers": self.n_layers, "num_attention_heads": self.n_heads,
                "num_key_value_heads": self.n_kv_heads, "head_dim": self.d_head, "intermediate_size": self.d_mlp,
                "hidden_act": self.activation.name(), "rms_norm_eps": self.norm_eps,
            }),
        };
        json["vocab_size"] = json!(self.vocab_size);
        json["tie_word_embeddings"] = json!(self.tied);
        let spread = if self.architecture == Architecture::Opt {
            "init_std"
        } else {
            "initializer_range"
        };
        json[spread] = json!(self.initializer_range);
        json["bos_token_id"] = json!(self.bos);
        json["eos_token_id"] = match self.eos.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        };
        if let Some(rotary) = &self.rotary
            && self.architecture != Architecture::GptJ
        {
            // The reference's GPT-NeoX does not look at the name of the others.
            let base = if self.architecture == Architecture::GptNeoX {
                "rotary_emb_base"
            } else {
                "rope_theta"
            };
            json[base] = json!(rotary.base);
            json["rope_scaling"] = match rotary.scaling {
                RopeScaling::None => Value::Null,
                RopeScaling::Linear { factor } => {
                    json!({ "rope_type": "linear", "factor": factor })
                }
                RopeScaling::Llama3 {
                    factor,
                    low,
                    high,
                    old_ctx,
                } => json!({
                    "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                    "original_max_position_embeddings": old_ctx,
                }),
            };
        }
        json["return_hooks"] = json!(self.return_hooks);
        json
    }
}

impl Activation {
    /// The reference's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GeluNew => "gelu_new",
            Self::Gelu => "gelu",
            Self::Relu => "relu",
            Self::Silu => "silu",
        }
    }
}

/// What all files say in the same words; the family's function sets the rest.
fn common(
    fields: &Fields,
    architecture: Architecture,
    vocab: i64,
    tied: bool,
    ends: (Option<i64>, Option<i64>),
) -> Result<LmConfig> {
    Ok(LmConfig {
        architecture,
        vocab_size: fields.size("vocab_size", vocab, ROWS)?,
        n_ctx: 1,
        d_model: 1,
        n_layers: 1,
        n_heads: 1,
        n_kv_heads: 1,
        d_head: 1,
        d_mlp: 1,
        norm_eps: 1e-5,
        activation: Activation::GeluNew,
        tied: fields.flag("tie_word_embeddings", tied)?,
        rotary: None,
        qkv_bias: false,
        parallel: false,
        initializer_range: 0.02,
        bos: fields.tokens("bos_token_id", ends.0)?.first().copied(),
        eos: fields.tokens("eos_token_id", ends.1)?,
        return_hooks: Vec::new(),
    })
}

/// Width of each of `heads` heads that share `width`.
fn shared(width: i64, heads: i64, field: &str) -> Result<i64> {
    if width % heads == 0 {
        return Ok(width / heads);
    }
    let reason = format!("must divide the width {width}, got {heads}");
    Err(Error::config(field, reason))
}

fn gpt(fields: &Fields, mut config: LmConfig, sizes: [i64; 4]) -> Result<LmConfig> {
    let [positions, width, layers, heads] = sizes;
    config.n_ctx = fields.size("n_positions", positions, ROWS)?;
    config.d_model = fields.size("n_embd", width, WIDTH)?;
    config.n_layers = fields.size("n_layer", layers, MAX_LAYERS)? as usize;
    config.n_heads = fields.size("n_head", heads, WIDTH)?;
    config.n_kv_heads = config.n_heads;
    config.d_head = shared(config.d_model, config.n_heads, "n_head")?;
    config.d_mlp = fields.size("n_inner", 4 * config.d_model, ROWS)?;
    config.norm_eps = fields.number("layer_norm_epsilon")?.unwrap_or(1e-5);
    config.activation = fields.activation("activation_function", Activation::GeluNew)?;
    Ok(config)
}

fn gpt2(fields: &Fields) -> Result<LmConfig> {
    fields.only("scale_attn_weights", true, true)?;
    fields.only("scale_attn_by_inverse_layer_idx", false, false)?;
    fields.only("add_cross_attention", false, false)?;
    let ends = (Some(50_256), Some(50_256));
    let config = common(fields, Architecture::Gpt2, 50_257, true, ends)?;
    gpt(fields, config, [1024, 768, 12, 12])
}

fn gptj(fields: &Fields) -> Result<LmConfig> {
    let ends = (Some(50_256), Some(50_256));
    let config = common(fields, Architecture::GptJ, 50_400, false, ends)?;
    let mut config = gpt(fields, config, [2048, 4096, 28, 16])?;
    config.parallel = true;
    let dims = fields.whole("rotary_dim")?.unwrap_or(64);
    config.rotary = Some(fields.rotary(dims, 10_000.0, true)?);
    Ok(config)
}

fn neox(fields: &Fields) -> Result<LmConfig> {
    fields.only("attention_bias", true, true)?;
    let ends = (Some(0), Some(2));
    let mut config = common(fields, Architecture::GptNeoX, 50_432, false, ends)?;
    config.n_ctx = fields.size("max_position_embeddings", 2048, ROWS)?;
    config.d_model = fields.size("hidden_size", 6144, WIDTH)?;
    config.n_layers = fields.size("num_hidden_layers", 44, MAX_LAYERS)? as usize;
    config.n_heads = fields.size("num_attention_heads", 64, WIDTH)?;
    config.n_kv_heads = config.n_heads;
    config.d_head = shared(config.d_model, config.n_heads, "num_attention_heads")?;
    config.d_mlp = fields.size("intermediate_size", 24_576, ROWS)?;
    config.norm_eps = fields.number("layer_norm_eps")?.unwrap_or(1e-5);
    config.activation = fields.activation("hidden_act", Activation::Gelu)?;
    config.parallel = fields.flag("use_parallel_residual", true)?;
    let newer = match fields.object("rope_parameters")? {
        Some(rope) => rope.number("partial_rotary_factor")?,
        None => None,
    };
    let part = match newer {
        Some(part) => part,
        None => match fields.number("rotary_pct")? {
            Some(part) => part,
            None => fields.number("partial_rotary_factor")?.unwrap_or(0.25),
        },
    };
    if !(part > 0.0 && part <= 1.0) {
        let reason = format!("must lie in (0, 1], got {part}");
        return Err(Error::config("rotary_pct", reason));
    }
    // The small part keeps a quotient of whole numbers from falling short of its whole product.
    let dims = (config.d_head as f64 * part + 1e-9) as i64;
    let base = fields.base(&["rotary_emb_base", "rope_theta"])?;
    config.rotary = Some(fields.rotary(dims, base, false)?);
    Ok(config)
}

fn opt(fields: &Fields) -> Result<LmConfig> {
    fields.only("do_layer_norm_before", true, true)?;
    fields.only("enable_bias", true, true)?;
    fields.only("layer_norm_elementwise_affine", true, true)?;
    fields.only("_remove_final_layer_norm", false, false)?;
    let mut config = common(fields, Architecture::Opt, 50_272, true, (Some(2), Some(2)))?;
    config.n_ctx = fields.size("max_position_embeddings", 2048, ROWS)?;
    config.d_model = fields.size("hidden_size", 768, WIDTH)?;
    config.n_layers = fields.size("num_hidden_layers", 12, MAX_LAYERS)? as usize;
    config.n_heads = fields.size("num_attention_heads", 12, WIDTH)?;
    config.n_kv_heads = config.n_heads;
    config.d_head = shared(config.d_model, config.n_heads, "num_attention_heads")?;
    config.d_mlp = fields.size("ffn_dim", 3072, ROWS)?;
    config.activation = fields.activation("activation_function", Activation::Relu)?;
    let embedding = fields.size("word_embed_proj_dim", config.d_model, WIDTH)?;
    if embedding != config.d_model {
        return Err(Error::Unsupported {
            what: format!(
                "an OPT model whose embeddings ({embedding}) are not as wide as its blocks ({})",
                config.d_model
            ),
            hint: "all sizes but 350m are".to_owned(),
        });
    }
    Ok(config)
}

fn llama(fields: &Fields, kind: &str) -> Result<LmConfig> {
    fields.only("mlp_bias", false, false)?;
    if kind == "qwen2" {
        fields.only("use_sliding_window", false, false)?;
    } else {
        fields.only("attention_bias", false, false)?;
    }
    let ends = match kind {
        "qwen2" => (None, None),
        _ => (Some(1), Some(2)),
    };
    let vocab = if kind == "qwen2" { 151_936 } else { 32_000 };
    let mut config = common(fields, Architecture::Llama, vocab, false, ends)?;
    let context = match kind {
        "llama" => 2048,
        "qwen2" => 32_768,
        _ => 131_072,
    };
    config.n_ctx = fields.size("max_position_embeddings", context, ROWS)?;
    config.d_model = fields.size("hidden_size", 4096, WIDTH)?;
    config.n_layers = fields.size("num_hidden_layers", 32, MAX_LAYERS)? as usize;
    config.n_heads = fields.size("num_attention_heads", 32, WIDTH)?;
    let groups = match kind {
        "llama" => config.n_heads,
        "qwen2" => 32,
        _ => 8,
    };
    config.n_kv_heads = fields.size("num_key_value_heads", groups, WIDTH)?;
    config.d_head = match fields.whole("head_dim")? {
        Some(width) => width,
        None => shared(config.d_model, config.n_heads, "num_attention_heads")?,
    };
    size("head_dim", config.d_head, WIDTH)?;
    let hidden = match kind {
        "llama" => 11_008,
        "qwen2" => 22_016,
        _ => 14_336,
    };
    config.d_mlp = fields.size("intermediate_size", hidden, ROWS)?;
    config.norm_eps = fields.number("rms_norm_eps")?.unwrap_or(1e-6);
    config.activation = fields.activation("hidden_act", Activation::Silu)?;
    config.qkv_bias = kind == "qwen2";
    if kind == "mistral"
        && let Some(window) = fields.whole("sliding_window")?
        && window < config.n_ctx
    {
        return Err(Error::Unsupported {
            what: format!("attention to the last {window} tokens alone (`sliding_window`)"),
            hint: "models whose attention sees all before it are".to_owned(),
        });
    }
    let base = fields.base(&["rope_theta"])?;
    config.rotary = Some(fields.rotary(config.d_head, base, false)?);
    Ok(config)
}
