//! The work that is measured, shared by the criterion benchmarks and by the comparison with Python.
//!
//! Run with `cargo xtask bench`; the same work in Python is in `benches/peers`.

use densely_core::{Error, Result, nn, seeded};
use densely_tabular::bins::quantile_bins;
use densely_tabular::models::{ModelConfig, TabularModel};
use densely_tabular::task::{Task, members_loss};
use densely_torch_ext::Autocast;
use densely_train::optim::{AdamWConfig, OptimConfig, Optimizer};
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

/// Rows that the bins of an embedding are made from.
const BIN_ROWS: i64 = 10_000;
/// Bins of an embedding, the package's default.
const BINS: i64 = 48;

/// A model of a size, as both sides measure it. Everything else is the `tabm` package's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Name in tables and on the command line.
    pub name: &'static str,
    /// Preset.
    pub model: &'static str,
    /// Numerical features; there are no others.
    pub features: i64,
    /// Blocks.
    pub n_blocks: i64,
    /// Width of a block.
    pub d_block: i64,
    /// Whether features are embedded piecewise-linearly (48 bins, 16 wide, version B).
    pub embedded: bool,
}

/// What is measured: the package's default sizes, and the size of the quick recipes.
pub const WORKLOADS: [Workload; 9] = [
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
) -> Workload {
    Workload {
        name,
        model,
        features,
        n_blocks,
        d_block,
        embedded: false,
    }
}

const fn embedded(workload: Workload) -> Workload {
    Workload {
        embedded: true,
        ..workload
    }
}

/// What is done with the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Forward, loss, backward, clipping at 1, AdamW; dropout 0.1.
    Train,
    /// Averaged predictions.
    Infer,
}

impl std::str::FromStr for Phase {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "train" => Ok(Self::Train),
            "infer" => Ok(Self::Infer),
            other => Err(Error::config(
                "phase",
                format!("`train` or `infer`, not `{other}`"),
            )),
        }
    }
}

/// The phases and batch sizes of every workload.
pub const CASES: [(Phase, i64); 5] = [
    (Phase::Train, 256),
    (Phase::Train, 1024),
    (Phase::Infer, 1),
    (Phase::Infer, 64),
    (Phase::Infer, 4096),
];

/// A model with its optimiser and rows to work on.
#[derive(Debug)]
pub struct Bench {
    store: VarStore,
    model: Box<dyn TabularModel>,
    optimizer: Optimizer,
    x_num: Tensor,
    y: Tensor,
    bf16: bool,
}

impl Workload {
    /// Builds the model and `rows` rows on `device`, all from one seed; `bf16` runs under autocast.
    ///
    /// # Errors
    /// Those of the model's config.
    pub fn build(&self, rows: i64, device: Device, bf16: bool) -> Result<Bench> {
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
        Ok(Bench {
            store,
            model,
            optimizer,
            x_num,
            y,
            bf16,
        })
    }

    /// The matrix products that a case must do, as `[batches, m, k, n]` each.
    pub fn products(&self, phase: Phase, rows: i64) -> Vec<[i64; 4]> {
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

impl Bench {
    fn autocast(&self) -> Result<Option<Autocast>> {
        let on = || Autocast::new(self.store.device(), Kind::BFloat16).map_err(Error::torch);
        self.bf16.then(on).transpose()
    }

    fn loss(&self, train: bool) -> Result<Tensor> {
        let ys = {
            let _autocast = self.autocast()?;
            self.model.forward_members(Some(&self.x_num), None, train)?
        };
        Ok(members_loss(&ys, &self.y, None, Task::Regression))
    }

    /// One training step.
    ///
    /// # Errors
    /// Those of the model and of libtorch.
    pub fn train_step(&mut self) -> Result<()> {
        let loss = self.loss(true)?;
        self.optimizer.zero_grad()?;
        loss.f_backward()?;
        let _norm = self.optimizer.clip_grad_norm(1.0)?;
        self.optimizer.step()
    }

    /// Averaged predictions of all rows: `[rows]`.
    ///
    /// # Errors
    /// Those of the model.
    pub fn infer(&self) -> Result<Tensor> {
        let _inference = densely_torch_ext::InferenceMode::new();
        let _autocast = self.autocast()?;
        let ys = self.model.forward_members(Some(&self.x_num), None, false)?;
        Ok(ys.mean_dim([1i64, 2].as_slice(), false, Kind::Float))
    }

    /// Loss and norm of all gradients without dropout, for a check that both sides compute the same function.
    ///
    /// # Errors
    /// Those of the model and of libtorch.
    pub fn loss_and_gradient_norm(&mut self) -> Result<(f64, f64)> {
        let loss = self.loss(false)?;
        self.optimizer.zero_grad()?;
        loss.f_backward()?;
        let norm = self.optimizer.clip_grad_norm(f64::INFINITY)?;
        self.optimizer.zero_grad()?;
        Ok((loss.double_value(&[]), norm.double_value(&[])))
    }

    /// Bytes of all trainable parameters.
    pub fn parameter_bytes(&self) -> u64 {
        4 * nn::parameter_count(&self.store)
    }
}
