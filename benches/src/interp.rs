//! Sparse dictionaries: training steps, and activations taken from a model; the Python side is `peers/interp.py`.

use densely_core::{Error, Result, nn, registry, seeded, weights};
use densely_interp::dictionary::fit::{FitSettings, Style, Trainer};
use densely_interp::dictionary::{Activation, Dead};
use densely_lm::{Lm, LmConfig, PRESETS, Run};
use densely_train::optim::Optimizer;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::lm::draw as draw_model;
use crate::{About, Phase, Work, Workload};

/// Width and features: 16 for each value of SmolLM2-135M.
const WIDTH: i64 = 576;
const FEATURES: i64 = 9216;
/// Tokens of a text, and the layer whose MLP is read.
const TOKENS: i64 = 128;
const LAYER: usize = 8;
const POINTS: [&str; 2] = ["blocks.8.ln2.hook_normalized", "blocks.8.hook_mlp_out"];

/// What is done.
#[derive(Debug, Clone, Copy)]
enum Task {
    /// A step of an autoencoder: ReLU with L1, of which one feature in a hundred is active, as behind some hundred steps of training.
    Relu,
    /// A step of an autoencoder of the 32 largest features.
    TopK,
    /// A step of a transcoder of the 32 largest features with a linear way past them.
    Skip,
    /// The first nine layers of a language model, and what enters and leaves the last one's MLP kept, or not.
    Harvest(bool),
}

/// A dictionary on random rows, or a model on random texts.
#[derive(Debug)]
pub(crate) struct Dictionaries {
    name: &'static str,
    model: &'static str,
    task: Task,
    cases: &'static [(Phase, i64)],
}

const STEP: &[(Phase, i64)] = &[(Phase::Train, 4096)];
const TEXTS: &[(Phase, i64)] = &[(Phase::Infer, 16)];

pub(crate) static WORKLOADS: [Dictionaries; 5] = [
    Dictionaries {
        name: "sae-relu",
        model: "sae",
        task: Task::Relu,
        cases: STEP,
    },
    Dictionaries {
        name: "sae-topk",
        model: "sae",
        task: Task::TopK,
        cases: STEP,
    },
    Dictionaries {
        name: "skip-transcoder",
        model: "skip-transcoder",
        task: Task::Skip,
        cases: STEP,
    },
    Dictionaries {
        name: "layers-smollm2",
        model: "llama",
        task: Task::Harvest(false),
        cases: TEXTS,
    },
    Dictionaries {
        name: "layers-smollm2-kept",
        model: "llama",
        task: Task::Harvest(true),
        cases: TEXTS,
    },
];

impl Dictionaries {
    fn settings(&self) -> FitSettings {
        let [read, write] = POINTS;
        let (style, read) = match self.task {
            Task::Skip => (Style::Sparsify, read),
            _ => (Style::SaeLens, write),
        };
        let mut settings = FitSettings::new(style, read, write, (WIDTH, WIDTH), FEATURES);
        settings.dead_after = u64::MAX >> 1;
        settings.sparsity_warmup = 0;
        match self.task {
            Task::TopK => {
                settings.dictionary.activation = Activation::TopK {
                    k: 32,
                    rescale: true,
                };
                settings.dictionary.objective.sparsity =
                    densely_interp::dictionary::Sparsity::None {};
                settings.dictionary.objective.dead = Dead::AuxK { coefficient: 1.0 };
            }
            Task::Skip => settings.dictionary.skip = true,
            Task::Relu | Task::Harvest(_) => (),
        }
        settings
    }
}

impl Workload for Dictionaries {
    fn about(&self) -> About {
        About {
            name: self.name,
            model: self.model,
            peer: "interp.py",
            cases: self.cases,
        }
    }

    fn build(&self, rows: i64, device: Device, _bf16: bool) -> Result<Box<dyn Work>> {
        let store = VarStore::new(device);
        if let Task::Harvest(kept) = self.task {
            let preset = registry::find(PRESETS, "llama")?;
            let mut config = LmConfig::from_hugging(&(preset.config)())?;
            config.n_layers = LAYER + 1;
            let vocabulary = config.vocab_size;
            let model = Lm::undrawn(config, &store.root(), Kind::Float)?;
            nn::check_names(&store)?;
            draw_model(&store)?;
            let draw = || Tensor::f_randint(vocabulary, [rows, TOKENS], (Kind::Int64, Device::Cpu));
            let ids = seeded(1, draw)?.to_device(device);
            return Ok(Box::new(Texts {
                store,
                model,
                ids,
                kept,
            }));
        }
        let settings = self.settings();
        let trainer = Trainer::new(&settings, &store)?;
        let _no_grad = tch::no_grad_guard();
        seeded(0, || -> Result<()> {
            for (name, mut xs) in weights::named(&store) {
                if !xs.requires_grad() {
                    continue;
                }
                let scale = if xs.dim() > 1 { 1.0 / 24.0 } else { 0.01 };
                let mut values = Tensor::f_randn(xs.size(), tch::kind::FLOAT_CPU)? * scale;
                if name == "b_enc" && matches!(self.task, Task::Relu) {
                    // Of normal values 1 in 100 is above 2.33.
                    values -= 2.33;
                }
                xs.f_copy_(&values)?;
            }
            Ok(())
        })?;
        let (x, target) = seeded(1, || -> Result<_> {
            let draw = || Tensor::f_randn([rows, WIDTH], tch::kind::FLOAT_CPU);
            Ok((draw()?, draw()?))
        })?;
        let same = settings.read == settings.write;
        let x = x.to_device(device);
        let optimizer = settings.optim.build(&store, &[])?;
        Ok(Box::new(Step {
            target: if same {
                x.shallow_clone()
            } else {
                target.to_device(device)
            },
            x,
            trainer,
            optimizer,
            settings,
            store,
            steps: 0,
        }))
    }

    /// What must be multiplied densely: to find the active features all are computed.
    fn products(&self, _phase: Phase, rows: i64) -> Vec<[i64; 4]> {
        match self.task {
            Task::Skip => vec![[1, rows, WIDTH, FEATURES], [1, rows, WIDTH, WIDTH]],
            Task::Relu | Task::TopK => vec![[1, rows, WIDTH, FEATURES]],
            Task::Harvest(_) => {
                let preset = registry::find(PRESETS, "llama");
                let Ok(config) = preset.and_then(|p| LmConfig::from_hugging(&(p.config)())) else {
                    return Vec::new();
                };
                let mut block = crate::lm::layer(&config, rows * TOKENS);
                let heads = rows * config.n_heads;
                block.push([heads, TOKENS, config.d_head, TOKENS]);
                block.push([heads, TOKENS, TOKENS, config.d_head]);
                block.repeat(LAYER + 1)
            }
        }
    }
}

/// A training step.
#[derive(Debug)]
struct Step {
    x: Tensor,
    target: Tensor,
    trainer: Trainer,
    optimizer: Optimizer,
    settings: FitSettings,
    store: VarStore,
    steps: u64,
}

impl Work for Step {
    fn train_step(&mut self) -> Result<()> {
        self.steps += 1;
        self.trainer.step(
            &self.settings,
            &mut self.optimizer,
            &self.x,
            &self.target,
            self.steps,
            self.settings.optim.lr(),
        )?;
        Ok(())
    }

    fn infer(&self) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let coded = self.trainer.dictionary.forward(&self.x)?;
        Ok(coded.reconstruction.f_flatten(0, -1)?)
    }

    fn loss(&self, _train: bool) -> Result<Tensor> {
        let (_, losses) = self
            .trainer
            .dictionary
            .losses(&self.x, &self.target, None, 1.0)?;
        Ok(losses.total)
    }

    fn store(&self) -> &VarStore {
        &self.store
    }
}

/// The first layers of a language model on texts.
#[derive(Debug)]
struct Texts {
    store: VarStore,
    model: Lm,
    ids: Tensor,
    kept: bool,
}

impl Texts {
    fn not_trained() -> Error {
        Error::Unsupported {
            what: "training a language model".to_owned(),
            hint: "these workloads have the phase `infer` alone".to_owned(),
        }
    }
}

impl Work for Texts {
    fn train_step(&mut self) -> Result<()> {
        Err(Self::not_trained())
    }

    fn infer(&self) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let mut run = Run::new().stop_at(LAYER + 1);
        if self.kept {
            run = run.cache(&POINTS);
        }
        let residual = self.model.run(&self.ids, &mut run)?;
        let mut all = vec![residual.f_flatten(0, -1)?];
        let cache = run.take_cache();
        if self.kept {
            for point in POINTS {
                all.push(cache.get(point)?.f_flatten(0, -1)?);
            }
        }
        // What is compared; to put all of them side by side is no part of the work.
        let first = all
            .iter()
            .map(|xs| xs.f_narrow(0, 0, 4096))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(Tensor::f_cat(&first, 0)?)
    }

    fn loss(&self, _train: bool) -> Result<Tensor> {
        Err(Self::not_trained())
    }

    fn store(&self) -> &VarStore {
        &self.store
    }
}
