//! Neural fields on points, and rendering of samples along rays; the Python side is `peers/fields.py`.

use std::f64::consts::TAU;

use densely_core::{Model, Result, Tensors, nn, seeded, weights};
use densely_fields::ffn::FfnConfig;
use densely_fields::hashgrid::HashFieldConfig;
use densely_fields::render::packed::Samples;
use densely_fields::siren::SirenConfig;
use densely_train::optim::{AdamConfig, OptimConfig, Optimizer};
use tch::nn::{Path, VarStore};
use tch::{Device, Kind, Reduction, Tensor};

use crate::{About, Phase, Work, Workload, autocast};

/// A field of a preset's size on random points.
#[derive(Debug)]
pub(crate) struct Field {
    model: &'static str,
    build: fn(&Path) -> Result<Box<dyn Model>>,
    /// Coordinates of a point, between these two.
    inputs: i64,
    between: [f64; 2],
    /// Of the weights that are drawn, over 1 / √in.
    gain: f64,
    /// Widths of the layers, from what the first one takes.
    widths: &'static [i64],
    /// Whether the first layer's input needs a gradient.
    deeper: bool,
}

const CASES: [(Phase, i64); 2] = [(Phase::Train, 65_536), (Phase::Infer, 65_536)];

pub(crate) static WORKLOADS: [Field; 3] = [
    Field {
        model: "siren",
        build: |vs| Ok(Box::new(SirenConfig::siren().build(vs)?)),
        inputs: 2,
        between: [-1.0, 1.0],
        gain: std::f64::consts::SQRT_2 / 30.0,
        widths: &[2, 256, 256, 256, 256, 3],
        deeper: false,
    },
    Field {
        model: "cam-image",
        build: |vs| Ok(Box::new(FfnConfig::cam_image().build(vs)?)),
        inputs: 2,
        between: [0.0, 1.0],
        gain: std::f64::consts::SQRT_2,
        widths: &[512, 256, 256, 256, 3],
        deeper: false,
    },
    Field {
        model: "hashgrid",
        build: |vs| Ok(Box::new(HashFieldConfig::hashgrid().build(vs)?)),
        inputs: 3,
        between: [0.0, 1.0],
        gain: std::f64::consts::SQRT_2,
        widths: &[32, 64, 64, 3],
        deeper: true,
    },
];

/// Draws all parameters and random frequencies anew, in the order of their names.
fn draw(store: &VarStore, gain: f64) {
    let _no_grad = tch::no_grad_guard();
    seeded(0, || {
        for (name, mut xs) in weights::named(store) {
            let size = xs.size();
            let values = Tensor::randn(size.as_slice(), tch::kind::FLOAT_CPU);
            let values = if name.ends_with("proj") {
                values * TAU
            } else if name.ends_with("affine") {
                values * 0.1 + 1.0
            } else if size.len() > 1 {
                values * (gain / (size[1] as f64).sqrt())
            } else {
                values * 0.1
            };
            xs.copy_(&values);
        }
    });
}

impl Workload for Field {
    fn about(&self) -> About {
        About {
            name: self.model,
            model: self.model,
            peer: "fields.py",
            cases: &CASES,
        }
    }

    fn build(&self, rows: i64, device: Device, bf16: bool) -> Result<Box<dyn Work>> {
        let store = VarStore::new(device);
        let model = (self.build)(&store.root())?;
        nn::check_names(&store)?;
        draw(&store, self.gain);
        let adam = AdamConfig {
            lr: 1e-4,
            ..AdamConfig::default()
        };
        let optimizer = OptimConfig::Adam(adam).build(&store, &[])?;
        let (coords, target) = seeded(1, || {
            let of = |width| Tensor::rand([rows, width], tch::kind::FLOAT_CPU);
            let [low, high] = self.between;
            let coords = of(self.inputs) * (high - low) + low;
            (coords.to_device(device), of(3).to_device(device))
        });
        Ok(Box::new(OnPoints {
            store,
            model,
            optimizer,
            coords,
            target,
            bf16,
        }))
    }

    fn products(&self, phase: Phase, rows: i64) -> Vec<[i64; 4]> {
        let mut products = Vec::new();
        for (i, pair) in self.widths.windows(2).enumerate() {
            let (inputs, outputs) = (pair[0], pair[1]);
            products.push([1, rows, inputs, outputs]);
            if phase == Phase::Train {
                products.push([1, inputs, rows, outputs]); // of the weight
                if i > 0 || self.deeper {
                    products.push([1, rows, outputs, inputs]); // of the input
                }
            }
        }
        products
    }
}

#[derive(Debug)]
struct OnPoints {
    store: VarStore,
    model: Box<dyn Model>,
    optimizer: Optimizer,
    coords: Tensor,
    target: Tensor,
    bf16: bool,
}

impl OnPoints {
    fn values(&self, train: bool) -> Result<Tensor> {
        let _autocast = autocast(self.bf16, self.store.device())?;
        let inputs = Tensors::from([("coords".to_owned(), self.coords.shallow_clone())]);
        let values = self.model.forward_named(&inputs, train)?.remove("values");
        let absent = || densely_core::Error::config("model", "gives no values");
        Ok(values.ok_or_else(absent)?.to_kind(Kind::Float))
    }
}

impl Work for OnPoints {
    /// The mean squared error, then Adam.
    fn train_step(&mut self) -> Result<()> {
        let loss = self.loss(true)?;
        self.optimizer.zero_grad()?;
        loss.f_backward()?;
        self.optimizer.step()
    }

    fn infer(&self) -> Result<Tensor> {
        let _inference = densely_torch_ext::InferenceMode::new();
        Ok(self.values(false)?.contiguous().flatten(0, -1))
    }

    fn loss(&self, train: bool) -> Result<Tensor> {
        Ok(self.values(train)?.mse_loss(&self.target, Reduction::Mean))
    }

    fn store(&self) -> &VarStore {
        &self.store
    }
}

/// Rays of 0 to 64 samples, as many as an occupancy grid leaves of a few hundred; densities and colours are the parameters.
#[derive(Debug)]
pub(crate) struct Rendering;

pub(crate) static RENDERING: Rendering = Rendering;

impl Workload for Rendering {
    fn about(&self) -> About {
        About {
            name: "render-packed",
            model: "volume-render",
            peer: "fields.py",
            // A forward pass alone has no product, and so no floor to stand beside.
            cases: &[(Phase::Train, 8192)],
        }
    }

    fn build(&self, rows: i64, device: Device, _bf16: bool) -> Result<Box<dyn Work>> {
        let store = VarStore::new(device);
        let (counts, target) = seeded(1, || {
            let counts = Tensor::randint(65, [rows], (Kind::Int64, Device::Cpu));
            (counts, Tensor::rand([rows, 3], tch::kind::FLOAT_CPU))
        });
        let ray = Tensor::arange(rows, (Kind::Int64, Device::Cpu))
            .repeat_interleave_self_tensor(&counts, None, None);
        let first = counts.cumsum(0, Kind::Int64) - &counts;
        let count = ray.size()[0];
        let place = Tensor::arange(count, (Kind::Int64, Device::Cpu)) - first.index_select(0, &ray);
        let start = (place.to_kind(Kind::Float) * 0.02 + 2.0).to_device(device);
        let end = &start + 0.02;
        let samples = Samples::new(ray.to_device(device), start, end, rows)?;
        let (rgb, sigma) = seeded(0, || {
            let of = |size: &[i64]| Tensor::rand(size, tch::kind::FLOAT_CPU);
            (of(&[count, 3]), of(&[count]) * 20.0)
        });
        let root = store.root();
        Ok(Box::new(OnRays {
            rgb: nn::parameter(&root, "rgb", &rgb),
            sigma: nn::parameter(&root, "sigma", &sigma),
            target: target.to_device(device),
            samples,
            store,
        }))
    }

    fn products(&self, _phase: Phase, _rows: i64) -> Vec<[i64; 4]> {
        Vec::new()
    }
}

#[derive(Debug)]
struct OnRays {
    store: VarStore,
    rgb: Tensor,
    sigma: Tensor,
    target: Tensor,
    samples: Samples,
}

impl Work for OnRays {
    /// The mean squared error of the colours and its gradients, without an optimiser: a network's would follow.
    fn train_step(&mut self) -> Result<()> {
        self.loss(true)?.f_backward()?;
        for param in [&mut self.rgb, &mut self.sigma] {
            param.zero_grad();
        }
        Ok(())
    }

    fn infer(&self) -> Result<Tensor> {
        let _inference = densely_torch_ext::InferenceMode::new();
        let seen = self.samples.render(&self.sigma, &self.rgb)?;
        Ok(seen.rgb.contiguous().flatten(0, -1))
    }

    fn loss(&self, _train: bool) -> Result<Tensor> {
        let seen = self.samples.render(&self.sigma, &self.rgb)?;
        Ok(seen.rgb.mse_loss(&self.target, Reduction::Mean))
    }

    fn store(&self) -> &VarStore {
        &self.store
    }
}
