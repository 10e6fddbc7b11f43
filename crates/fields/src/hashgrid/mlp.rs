//! The networks that read a grid.

use densely_core::nn::{Linear, linear_glorot_no_bias};
use tch::nn::{Module, Path};
use tch::{Kind, Tensor};

/// Sizes of an [`Mlp`].
#[derive(Debug, Clone, Copy)]
pub(super) struct MlpSizes {
    pub(super) inputs: i64,
    /// Width of the hidden layers.
    pub(super) hidden: i64,
    /// Hidden layers.
    pub(super) layers: i64,
    pub(super) outputs: i64,
}

impl MlpSizes {
    pub(super) fn build(self, vs: &Path) -> Mlp {
        let width = |layer| if layer == 0 { self.inputs } else { self.hidden };
        let linear =
            |layer: i64, outputs| linear_glorot_no_bias(&(vs / layer), width(layer), outputs);
        Mlp {
            hidden: (0..self.layers).map(|i| linear(i, self.hidden)).collect(),
            last: linear(self.layers, self.outputs),
        }
    }

    /// Multiply-accumulates for one row.
    pub(super) fn macs(self) -> u64 {
        let between = (self.layers - 1) * self.hidden * self.hidden;
        (self.hidden * (self.inputs + self.outputs) + between) as u64
    }
}

/// Linear layers without biases, with ReLU between them, as tiny-cuda-nn has them; weights start Xavier-uniform.
#[derive(Debug)]
pub(super) struct Mlp {
    hidden: Vec<Linear>,
    last: Linear,
}

impl Mlp {
    /// Kind of the weights.
    pub(super) fn kind(&self) -> Kind {
        self.last.weight.kind()
    }
}

impl Module for Mlp {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let hidden = self.hidden.iter();
        let xs = hidden.fold(xs.shallow_clone(), |xs, layer| layer.forward(&xs).relu());
        self.last.forward(&xs)
    }
}
