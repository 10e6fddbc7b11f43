//! The work that is measured, shared by the criterion benchmarks and by the comparison with Python.
//!
//! Run with `cargo xtask bench`; the same work in Python is in `benches/peers`.

use densely_core::{Result, Tensors, nn, seeded};
use densely_tabular::models::{ModelConfig, TabularModel};
use densely_tabular::task::{Task, members_loss};
use densely_train::optim::{AdamWConfig, OptimConfig, Optimizer};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

/// A model of a size, as both sides measure it.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// Name in tables and on the command line.
    pub name: &'static str,
    /// Preset.
    pub model: &'static str,
    /// Numerical features.
    pub features: i64,
    /// Blocks.
    pub n_blocks: i64,
    /// Width of a block.
    pub d_block: i64,
    /// Rows of a training step.
    pub batch: i64,
}

/// What is measured: the size of the quick recipes, and the package's default size.
pub const WORKLOADS: [Workload; 4] = [
    workload("tabm-small", "tabm", 2, 128),
    workload("tabm-mini-small", "tabm-mini", 2, 128),
    workload("tabm-default", "tabm", 3, 512),
    workload("tabm-mini-default", "tabm-mini", 3, 512),
];

const fn workload(
    name: &'static str,
    model: &'static str,
    n_blocks: i64,
    d_block: i64,
) -> Workload {
    Workload {
        name,
        model,
        features: 8,
        n_blocks,
        d_block,
        batch: 256,
    }
}

/// A model with its optimiser and rows to work on.
#[derive(Debug)]
pub struct Bench {
    /// The parameters.
    pub store: VarStore,
    model: Box<dyn TabularModel>,
    optimizer: Optimizer,
    x_num: Tensor,
    y: Tensor,
}

impl Workload {
    /// Builds the model and `rows` rows on `device`, all from one seed.
    ///
    /// # Errors
    /// Those of the model's config.
    pub fn build(&self, rows: i64, device: Device) -> Result<Bench> {
        let config = json!({
            "n_num_features": self.features, "cat_cardinalities": [], "d_out": 1,
            "n_blocks": self.n_blocks, "d_block": self.d_block, "dropout": 0.0,
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
        })
    }
}

impl Bench {
    /// One training step: forward, loss, backward, clipping at 1, AdamW.
    ///
    /// # Errors
    /// Those of the model and of libtorch.
    pub fn train_step(&mut self) -> Result<()> {
        let ys = self.model.forward_members(Some(&self.x_num), None, true)?;
        let loss = members_loss(&ys, &self.y, None, Task::Regression);
        self.optimizer.zero_grad();
        loss.f_backward()?;
        let _norm = self.optimizer.clip_grad_norm(1.0)?;
        self.optimizer.step()
    }

    /// Averaged predictions of all rows: `[rows]`.
    ///
    /// # Errors
    /// Those of the model.
    pub fn infer(&self) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let ys = self.model.forward_members(Some(&self.x_num), None, false)?;
        Ok(ys.mean_dim([1i64, 2].as_slice(), false, Kind::Float))
    }

    /// The rows, for the other side.
    pub fn inputs(&self) -> Tensors {
        Tensors::from([
            ("input.x_num".to_owned(), self.x_num.shallow_clone()),
            ("input.y".to_owned(), self.y.shallow_clone()),
        ])
    }
}
