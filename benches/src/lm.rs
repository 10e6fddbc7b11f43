//! Language models: plain passes, passes that keep activations, and causal tracing; the Python side is `peers/lm.py`.

use densely_core::{Error, Result, nn, registry, seeded, weights};
use densely_interp::noise::Noise;
use densely_interp::trace::{Prompt, Restore, TraceOptions, trace_with};
use densely_lm::{Lm, LmConfig, PRESETS, Run};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::{About, Phase, Work, Workload, autocast};

/// Tokens of each text.
const TOKENS: i64 = 128;
/// "The Space Needle is in the city of" by SmolLM2's tokeniser.
const PROMPT: [i64; 9] = [504, 414, 46_682, 18_669, 314, 281, 260, 2240, 282];
/// Corrupted runs, and the standard deviation of the noise.
const SAMPLES: i64 = 10;
const SD: f64 = 0.3;

/// What is done with the model.
#[derive(Debug, Clone, Copy)]
enum Task {
    /// Logits of all positions.
    Logits,
    /// Logits, and the values at these points.
    Kept(&'static [&'static str]),
    /// The grid of restored blocks over the subject's corruption.
    Trace,
}

/// A model of random weights on random texts, or on one prompt that is traced.
#[derive(Debug)]
pub(crate) struct Language {
    name: &'static str,
    model: &'static str,
    task: Task,
    cases: &'static [(Phase, i64)],
}

const TEXTS: &[(Phase, i64)] = &[(Phase::Infer, 1), (Phase::Infer, 4)];
const FOUR_TEXTS: &[(Phase, i64)] = &[(Phase::Infer, 4)];

pub(crate) static WORKLOADS: [Language; 5] = [
    Language {
        name: "gpt2",
        model: "gpt2",
        task: Task::Logits,
        cases: TEXTS,
    },
    Language {
        name: "smollm2",
        model: "llama",
        task: Task::Logits,
        cases: TEXTS,
    },
    Language {
        name: "gpt2-cache",
        model: "gpt2",
        task: Task::Kept(&["*"]),
        cases: FOUR_TEXTS,
    },
    Language {
        name: "gpt2-cache-some",
        model: "gpt2",
        task: Task::Kept(&["blocks.*.hook_resid_post", "blocks.*.hook_mlp_out"]),
        cases: FOUR_TEXTS,
    },
    Language {
        name: "trace-smollm2",
        model: "llama",
        task: Task::Trace,
        // The prompt's tokens.
        cases: &[(Phase::Infer, 9)],
    },
];

/// Draws all parameters anew, in the order of their names.
pub(crate) fn draw(store: &VarStore) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    seeded(0, || {
        for (name, mut xs) in weights::named(store) {
            let scale = if name.contains("embed_tokens") {
                0.1
            } else {
                0.02
            };
            let values = Tensor::f_randn(xs.size(), tch::kind::FLOAT_CPU)? * scale;
            let norm = xs.dim() == 1 && name.ends_with("weight");
            xs.f_copy_(&if norm { values + 1.0 } else { values })?;
        }
        Ok(())
    })
}

impl Language {
    /// That of the preset: GPT-2 small, or SmolLM2-135M for `llama`.
    fn config(&self) -> Result<LmConfig> {
        LmConfig::from_hugging(&(registry::find(PRESETS, self.model)?.config)())
    }
}

impl Workload for Language {
    fn about(&self) -> About {
        About {
            name: self.name,
            model: self.model,
            peer: "lm.py",
            cases: self.cases,
        }
    }

    fn build(&self, rows: i64, device: Device, bf16: bool) -> Result<Box<dyn Work>> {
        let config = self.config()?;
        let vocabulary = config.vocab_size;
        let store = VarStore::new(device);
        let model = Lm::undrawn(config, &store.root(), Kind::Float)?;
        nn::check_names(&store)?;
        draw(&store)?;
        if matches!(self.task, Task::Trace) {
            let prompt = Prompt::from_ids(PROMPT.to_vec(), 1..4, Vec::new())?;
            let width = prompt.subject.len() as i64;
            let noise = Noise::fixed(SD)?.sample(1, SAMPLES, width, model.config().d_model)?;
            return Ok(Box::new(Tracing {
                store,
                model,
                prompt,
                noise,
            }));
        }
        let draw = || Tensor::f_randint(vocabulary, [rows, TOKENS], (Kind::Int64, Device::Cpu));
        let ids = seeded(1, draw)?.to_device(device);
        let kept: &'static [&'static str] = match self.task {
            Task::Kept(points) => points,
            Task::Logits | Task::Trace => &[],
        };
        Ok(Box::new(Texts {
            store,
            model,
            ids,
            kept,
            bf16,
        }))
    }

    fn products(&self, _phase: Phase, rows: i64) -> Vec<[i64; 4]> {
        let Ok(config) = self.config() else {
            return Vec::new();
        };
        if matches!(self.task, Task::Trace) {
            // One layer's share: it is passed by as many rows as there are tokens in all cells over all layers, see `passes`.
            let layers = config.n_layers as i64;
            let tokens = PROMPT.len() as i64;
            // A cell restored at layer l goes through the layers above it, from the restored token on; the first token is not corrupted.
            let cells = SAMPLES * layers * (layers - 1) / 2 * tokens * (tokens - 1) / 2;
            let shared = cells / layers + (SAMPLES + 1) * tokens;
            let mut products = layer(&config, shared);
            let scored = SAMPLES * (tokens - 1);
            products.push([1, scored, config.d_model, config.vocab_size]);
            return products;
        }
        let mut block = layer(&config, rows * TOKENS);
        let heads = rows * config.n_heads;
        block.push([heads, TOKENS, config.d_head, TOKENS]);
        block.push([heads, TOKENS, TOKENS, config.d_head]);
        let mut products = block.repeat(config.n_layers);
        products.push([1, rows * TOKENS, config.d_model, config.vocab_size]);
        products
    }

    fn passes(&self) -> f64 {
        match (self.task, self.config()) {
            (Task::Trace, Ok(config)) => config.n_layers as f64,
            _ => 1.0,
        }
    }
}

/// The matrices of a layer, met by `m` rows.
pub(crate) fn layer(config: &LmConfig, m: i64) -> Vec<[i64; 4]> {
    let (d, queries) = (config.d_model, config.n_heads * config.d_head);
    let keys = config.n_kv_heads * config.d_head;
    let mut products = if config.gated() {
        vec![[1, m, d, queries], [1, m, d, keys], [1, m, d, keys]]
    } else {
        vec![[1, m, d, queries + 2 * keys]]
    };
    products.push([1, m, queries, d]);
    products.push([1, m, d, config.d_mlp]);
    if config.gated() {
        products.push([1, m, d, config.d_mlp]);
    }
    products.push([1, m, config.d_mlp, d]);
    products
}

fn not_trained() -> Error {
    Error::Unsupported {
        what: "training a language model".to_owned(),
        hint: "these workloads have the phase `infer` alone".to_owned(),
    }
}

#[derive(Debug)]
struct Texts {
    store: VarStore,
    model: Lm,
    ids: Tensor,
    kept: &'static [&'static str],
    bf16: bool,
}

impl Work for Texts {
    fn train_step(&mut self) -> Result<()> {
        Err(not_trained())
    }

    /// The first 64 logits of each position.
    fn infer(&self) -> Result<Tensor> {
        let _inference = densely_torch_ext::InferenceMode::new();
        let _autocast = autocast(self.bf16, self.store.device())?;
        let logits = if self.kept.is_empty() {
            self.model.forward(&self.ids)?
        } else {
            let mut run = Run::new().cache(self.kept);
            let logits = self.model.run(&self.ids, &mut run)?;
            let _ = run.take_cache();
            logits
        };
        let some = logits.f_narrow(-1, 0, 64)?.f_to_kind(Kind::Float)?;
        Ok(some.f_contiguous()?.f_flatten(0, -1)?)
    }

    fn loss(&self, _train: bool) -> Result<Tensor> {
        Err(not_trained())
    }

    fn store(&self) -> &VarStore {
        &self.store
    }
}

#[derive(Debug)]
struct Tracing {
    store: VarStore,
    model: Lm,
    prompt: Prompt,
    noise: Tensor,
}

impl Work for Tracing {
    fn train_step(&mut self) -> Result<()> {
        Err(not_trained())
    }

    /// High, low, and of each token the cell that the Python side computes.
    fn infer(&self) -> Result<Tensor> {
        let options = TraceOptions {
            kinds: vec![Restore::Block],
            samples: SAMPLES,
            ..TraceOptions::default()
        };
        let trace = trace_with(&self.model, &self.prompt, &self.noise, &options)?;
        let mut values = vec![trace.high as f32, trace.low as f32];
        if let Some(grid) = trace.scores.get(&Restore::Block) {
            let cells = grid.iter().enumerate();
            values.extend(cells.map(|(token, row)| row[(7 * token + 3) % row.len()] as f32));
        }
        Ok(Tensor::f_from_slice(&values)?)
    }

    fn loss(&self, _train: bool) -> Result<Tensor> {
        Err(not_trained())
    }

    fn store(&self) -> &VarStore {
        &self.store
    }
}
