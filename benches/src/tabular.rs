//! TabM and relatives on rows of numbers; the Python side is `peers/tabular.py`.

use densely_core::{Result, nn, seeded};
use densely_tabular::bins::quantile_bins;
use densely_tabular::models::{ModelConfig, TabularModel};
use densely_tabular::task::{Task, members_loss};
use densely_train::optim::{AdamWConfig, OptimConfig, Optimizer};
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::{About, Phase, Work, Workload, autocast};

/// Rows that the bins of an embedding are made from.
const BIN_ROWS: i64 = 10_000;
/// Bins of an embedding, the package's default.
const BINS: i64 = 48;

/// A model of a size, as both sides measure it. Everything else is the `tabm` package's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tabular {
    name: &'static str,
    model: &'static str,
    /// Numerical features; there are no others.
    features: i64,
    /// Blocks.
    n_blocks: i64,
    /// Width of a block.
    d_block: i64,
    /// Whether features are embedded piecewise-linearly (48 bins, 16 wide, version B).
    embedded: bool,
}

/// What is measured: the package's default sizes, and the size of the quick recipes.
pub(crate) static WORKLOADS: [Tabular; 9] = [
    workload("tabm-8", "tabm", 8, 3, 512),
    workload("tabm-100", "tabm", 100, 3, 512),
    workload("tabm-mini-8", "tabm-mini", 8, 3, 512),
    workload("tabm-mini-100", "tabm-mini", 100, 3, 512),
    workload("tabm-packed-8", "tabm-packed", 8, 3, 512),
    embedded(workload("mlp-ple-8", "mlp", 8, 2, 512)),
    embedded(workload("mlp-ple-100", "mlp", 100, 2, 512)),
    workload("tabm-small", "tabm", 8, 2, 128),
    workload("tabm-mini-small", "tabm-mini", 8, 2, 128),
];

const fn workload(
    name: &'static str,
    model: &'static str,
    features: i64,
    n_blocks: i64,
    d_block: i64,
) -> Tabular {
    Tabular {
        name,
        model,
        features,
        n_blocks,
        d_block,
        embedded: false,
    }
}

const fn embedded(workload: Tabular) -> Tabular {
    Tabular {
        embedded: true,
        ..workload
    }
}

/// A model with its optimiser and rows to work on.
#[derive(Debug)]
struct Bench {
    store: VarStore,
    model: Box<dyn TabularModel>,
    optimizer: Optimizer,
    x_num: Tensor,
    y: Tensor,
    bf16: bool,
}

/// The phases and batch sizes of every workload.
const CASES: [(Phase, i64); 5] = [
    (Phase::Train, 256),
    (Phase::Train, 1024),
    (Phase::Infer, 1),
    (Phase::Infer, 64),
    (Phase::Infer, 4096),
];

impl Workload for Tabular {
    fn about(&self) -> About {
        About {
            name: self.name,
            model: self.model,
            peer: "tabular.py",
            cases: &CASES,
        }
    }

    fn build(&self, rows: i64, device: Device, bf16: bool) -> Result<Box<dyn Work>> {
        let embedding = if self.embedded {
            let x = seeded(2, || {
                Tensor::randn([BIN_ROWS, self.features], tch::kind::FLOAT_CPU)
            });
            json!({"type": "piecewise_linear", "bins": quantile_bins(&x, BINS)?, "d_embedding": 16,
                   "activation": false, "version": "B"})
        } else {
            Value::Null
        };
        let config = json!({
            "n_num_features": self.features, "cat_cardinalities": [], "d_out": 1, "num_embeddings": embedding,
            "n_blocks": self.n_blocks, "d_block": self.d_block, "dropout": 0.1,
        });
        let config = ModelConfig::of(self.model, &config)?;
        let store = VarStore::new(device);
        let model = seeded(0, || config.build(&store.root()))?;
        nn::check_names(&store)?;
        let adamw = AdamWConfig {
            lr: 2e-3,
            weight_decay: 3e-4,
            ..AdamWConfig::default()
        };
        let optimizer = OptimConfig::AdamW(adamw).build(&store, &[])?;
        let (x_num, y) = seeded(1, || {
            let x_num = Tensor::randn([rows, self.features], tch::kind::FLOAT_CPU);
            let y = x_num.sum_dim_intlist(1, false, Kind::Float).sin();
            (x_num.to_device(device), y.to_device(device))
        });
        Ok(Box::new(Bench {
            store,
            model,
            optimizer,
            x_num,
            y,
            bf16,
        }))
    }

    fn products(&self, phase: Phase, rows: i64) -> Vec<[i64; 4]> {
        let packed = self.model == "tabm-packed";
        let k = if self.model == "mlp" { 1 } else { 32 };
        let width = self.features * if self.embedded { 16 } else { 1 };
        // Members that share a matrix make one product of all their rows.
        let (batches, rows) = if packed { (k, rows) } else { (1, k * rows) };
        let mut products = Vec::new();
        for block in 0..self.n_blocks {
            let inputs = if block == 0 { width } else { self.d_block };
            products.push([batches, rows, inputs, self.d_block]);
            if phase == Phase::Train {
                products.push([batches, inputs, rows, self.d_block]); // of the weight
                if block > 0 || self.embedded {
                    products.push([batches, rows, self.d_block, inputs]); // of the input
                }
            }
        }
        products
    }
}

impl Work for Bench {
    /// Clips at 1, then AdamW; dropout 0.1.
    fn train_step(&mut self) -> Result<()> {
        let loss = self.loss(true)?;
        self.optimizer.zero_grad()?;
        loss.f_backward()?;
        let _norm = self.optimizer.clip_grad_norm(1.0)?;
        self.optimizer.step()
    }

    /// Averaged over the members, `[rows]`.
    fn infer(&self) -> Result<Tensor> {
        let _inference = densely_torch_ext::InferenceMode::new();
        let _autocast = autocast(self.bf16, self.store.device())?;
        let ys = self.model.forward_members(Some(&self.x_num), None, false)?;
        Ok(ys.mean_dim([1i64, 2].as_slice(), false, Kind::Float))
    }

    fn loss(&self, train: bool) -> Result<Tensor> {
        let ys = {
            let _autocast = autocast(self.bf16, self.store.device())?;
            self.model.forward_members(Some(&self.x_num), None, train)?
        };
        Ok(members_loss(&ys, &self.y, None, Task::Regression))
    }

    fn store(&self) -> &VarStore {
        &self.store
    }
}
