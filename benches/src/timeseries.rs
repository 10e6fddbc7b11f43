//! The mixers at the size of ETTh1; the Python side is `peers/timeseries.py`.

use densely_core::{Result, nn, seeded};
use densely_timeseries::fit::{Forecaster, build};
use densely_timeseries::models::PRESETS;
use densely_train::optim::{AdamConfig, OptimConfig, Optimizer};
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Device, Kind, Reduction, Tensor};

use crate::{About, Phase, Work, Workload, autocast};

/// A forecaster on windows of 512 steps of 7 series, 96 steps ahead.
#[derive(Debug)]
pub(crate) struct TimeSeries {
    name: &'static str,
    model: &'static str,
    /// Fields that replace those of the preset.
    config: fn() -> Value,
}

/// The presets, and TSMixer as the recipe for ETTh1 has it.
pub(crate) static WORKLOADS: [TimeSeries; 3] = [
    TimeSeries {
        name: "tsmixer",
        model: "tsmixer",
        config: || json!({}),
    },
    TimeSeries {
        name: "tsmixer-etth1",
        model: "tsmixer",
        config: || json!({"n_block": 6, "ff_dim": 512}),
    },
    TimeSeries {
        name: "patchtsmixer",
        model: "patchtsmixer-forecast",
        config: || json!({}),
    },
];

const CASES: [(Phase, i64); 4] = [
    (Phase::Train, 32),
    (Phase::Infer, 1),
    (Phase::Infer, 32),
    (Phase::Infer, 256),
];

impl TimeSeries {
    fn whole_config(&self) -> Result<Value> {
        densely_core::registry::find(PRESETS, self.model)?.config_with(&(self.config)())
    }
}

impl Workload for TimeSeries {
    fn about(&self) -> About {
        About {
            name: self.name,
            model: self.model,
            peer: "timeseries.py",
            cases: &CASES,
        }
    }

    fn build(&self, rows: i64, device: Device, bf16: bool) -> Result<Box<dyn Work>> {
        let config = self.whole_config()?;
        let store = VarStore::new(device);
        let model = seeded(0, || build(self.model, &config, &store.root()))?;
        nn::check_names(&store)?;
        let adam = AdamConfig {
            lr: 1e-4,
            ..AdamConfig::default()
        };
        let optimizer = OptimConfig::Adam(adam).build(&store, &[])?;
        let of = |steps: i64| Tensor::randn([rows, steps, 7], tch::kind::FLOAT_CPU);
        let (past, future) = seeded(1, || (of(512).to_device(device), of(96).to_device(device)));
        Ok(Box::new(Bench {
            store,
            model,
            optimizer,
            past,
            future,
            bf16,
        }))
    }

    fn products(&self, phase: Phase, rows: i64) -> Vec<[i64; 4]> {
        let (steps, channels, horizon) = (512, 7, 96);
        // [m, k, n] of each layer: m rows meet a matrix [k, n].
        let layers = match self.whole_config() {
            Ok(config) if self.model == "tsmixer" => {
                let (blocks, hidden) = (number(&config, "n_block"), number(&config, "ff_dim"));
                let block = [
                    [rows * channels, steps, steps],
                    [rows * steps, channels, hidden],
                    [rows * steps, hidden, channels],
                ];
                let mut layers = block.repeat(blocks as usize);
                layers.push([rows * channels, steps, horizon]);
                layers
            }
            Ok(config) => {
                let (patch, width) = (number(&config, "patch_length"), number(&config, "d_model"));
                let (blocks, wider) = (
                    number(&config, "num_layers"),
                    number(&config, "expansion_factor"),
                );
                let patches = steps / patch;
                let mixing = |along: i64, others: i64| {
                    let m = rows * channels * others;
                    [
                        [m, along, wider * along],
                        [m, wider * along, along],
                        [m, along, along],
                    ]
                };
                let block = [mixing(patches, width), mixing(width, patches)].concat();
                let mut layers = vec![[rows * channels * patches, patch, width]];
                layers.extend(block.repeat(blocks as usize));
                layers.push([rows * channels, patches * width, horizon]);
                layers
            }
            Err(_) => Vec::new(),
        };
        let mut products = Vec::new();
        for (i, [m, k, n]) in layers.into_iter().enumerate() {
            products.push([1, m, k, n]);
            if phase == Phase::Train {
                products.push([1, k, m, n]); // of the weight
                if i > 0 || self.model == "tsmixer" {
                    products.push([1, m, n, k]); // of the input
                }
            }
        }
        products
    }
}

/// A size of a whole config; 0 if it is none, which no preset has.
fn number(config: &Value, field: &str) -> i64 {
    config[field].as_i64().unwrap_or(0)
}

#[derive(Debug)]
struct Bench {
    store: VarStore,
    model: Box<dyn Forecaster>,
    optimizer: Optimizer,
    past: Tensor,
    future: Tensor,
    bf16: bool,
}

impl Bench {
    fn forecast(&self, train: bool) -> Result<Tensor> {
        let _autocast = autocast(self.bf16, self.store.device())?;
        self.model.forecast(&self.past, train)
    }
}

impl Work for Bench {
    /// The mean squared error, then Adam; the preset's dropout.
    fn train_step(&mut self) -> Result<()> {
        let loss = self.loss(true)?;
        self.optimizer.zero_grad()?;
        loss.f_backward()?;
        self.optimizer.step()
    }

    /// Forecasts, `[rows · horizon · channels]`.
    fn infer(&self) -> Result<Tensor> {
        let _inference = densely_torch_ext::InferenceMode::new();
        let ys = self.forecast(false)?;
        Ok(ys.to_kind(Kind::Float).contiguous().flatten(0, -1))
    }

    fn loss(&self, train: bool) -> Result<Tensor> {
        let ys = self.forecast(train)?.to_kind(Kind::Float);
        Ok(ys.mse_loss(&self.future, Reduction::Mean))
    }

    fn store(&self) -> &VarStore {
        &self.store
    }
}
