//! PoolFormer, Strip-MLP and MAXIM on pictures; the Python side is `peers/vision.py`.

use densely_core::{Model, Result, Tensors, nn, seeded, weights};
use densely_train::optim::{AdamWConfig, OptimConfig, Optimizer};
use densely_vision::maxim::MaximConfig;
use densely_vision::models::PRESETS;
use densely_vision::poolformer::PoolFormerConfig;
use densely_vision::strip_mlp::StripMlpConfig;
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::{About, Convolution, Phase, Work, Workload, autocast};

/// A preset on square pictures.
#[derive(Debug)]
pub(crate) struct Vision {
    model: &'static str,
    side: i64,
    /// Fields that replace those of the preset, and are the peer's.
    config: fn() -> Value,
    cases: &'static [(Phase, i64)],
    convolutions: fn(rows: i64) -> Vec<Convolution>,
}

const CLASSIFIED: [(Phase, i64); 3] = [(Phase::Train, 16), (Phase::Infer, 1), (Phase::Infer, 16)];

pub(crate) static WORKLOADS: [Vision; 4] = [
    Vision {
        model: "poolformer_s12",
        side: 224,
        config: || json!({"drop_path_rate": 0.0}),
        cases: &CLASSIFIED,
        convolutions: poolformer,
    },
    Vision {
        model: "poolformer_s12@features",
        side: 224,
        config: || json!({"drop_path_rate": 0.0}),
        cases: &[(Phase::Infer, 1), (Phase::Infer, 16)],
        convolutions: poolformer,
    },
    Vision {
        model: "strip_mlp_tstar",
        side: 224,
        config: || json!({"drop_path_rate": 0.0}),
        cases: &CLASSIFIED,
        convolutions: strip_mlp,
    },
    Vision {
        model: "maxim_s2",
        side: 256,
        config: || json!({}),
        cases: &[(Phase::Infer, 1)],
        convolutions: maxim,
    },
];

/// A layer over the channels of each pixel.
const fn pointwise(rows: i64, side: i64, inputs: i64, outputs: i64, times: i64) -> Convolution {
    Convolution {
        rows,
        side,
        inputs,
        outputs,
        window: 1,
        stride: 1,
        times,
    }
}

fn poolformer(rows: i64) -> Vec<Convolution> {
    let config = PoolFormerConfig::s12();
    let sides = config.sides(224);
    let mut found = Vec::new();
    let (mut before, mut side) = (config.in_chans, 224);
    for (stage, outputs) in config.embed_dims.iter().copied().enumerate() {
        let (window, stride) = if stage == 0 { (7, 4) } else { (3, 2) };
        found.push(Convolution {
            window,
            stride,
            ..pointwise(rows, side, before, outputs, 1)
        });
        (before, side) = (outputs, sides[stage]);
        let (hidden, blocks) = (outputs * config.mlp_ratio, config.layers[stage]);
        found.push(pointwise(rows, side, outputs, hidden, blocks));
        found.push(pointwise(rows, side, hidden, outputs, blocks));
    }
    found
}

/// The dense convolutions and layers of T*; those of single channels and of strips are a tenth of the work.
fn strip_mlp(rows: i64) -> Vec<Convolution> {
    let config = StripMlpConfig::tstar();
    let mut found = vec![Convolution {
        window: 4,
        stride: 4,
        ..pointwise(rows, 224, 3, config.embed_dim, 1)
    }];
    for (stage, blocks) in config.layers.iter().copied().enumerate() {
        let (side, width) = (56 >> stage, config.embed_dim << stage);
        found.push(pointwise(rows, side, width, width, 2 * blocks));
        found.push(pointwise(rows, side, width, width / 2, 2 * blocks));
        found.push(pointwise(rows, side, width, 3 * width, blocks));
        found.push(pointwise(rows, side, 3 * width, width, blocks));
        if stage < 3 {
            let down = pointwise(rows, side, width, 2 * width, 1);
            found.push(Convolution {
                window: 2,
                stride: 2,
                ..down
            });
        }
    }
    found
}

/// Every multiplication of S-2 by its level, as convolutions: what is mixed over pixels of n is a layer of n channels.
fn maxim(rows: i64) -> Vec<Convolution> {
    let config = MaximConfig::s2();
    let mut found = Vec::new();
    let window = |side, inputs, outputs, window, times| Convolution {
        window,
        ..pointwise(rows, side, inputs, outputs, times)
    };
    let mixed = |side: i64, width: i64, block: i64, times| {
        let pixels = side * side / (block * block);
        // As many rows as there are other pixels and channels, in a square of one.
        let rows = rows * pixels * width;
        pointwise(rows, 1, block * block, block * block, times)
    };
    let stages = config.num_stages;
    for level in 0..4 {
        let (side, width) = (256 >> level, config.features << level.min(2));
        let block = if level < 2 {
            config.block_size_hr
        } else {
            config.block_size_lr
        };
        // Mixing parts: two encoders' or decoders' bodies of two groups, or two bottlenecks of two groups.
        let groups = 4 * stages;
        found.push(pointwise(rows, side, width, 2 * width, 3 * groups));
        found.push(pointwise(rows, side, width, width, 2 * groups));
        found.push(pointwise(rows, side, 2 * width, width, groups));
        found.push(mixed(side, width, block, 2 * groups));
        if level == 3 {
            found.push(pointwise(rows, side, width, width, 2 * groups + 2 * stages));
            continue;
        }
        found.push(window(side, width, width, 3, 2 * groups));
        let inner = if level == 0 { width } else { width / 2 };
        found.push(pointwise(rows, side, inner + width, width, stages));
        found.push(pointwise(rows, side, 4 * width, width, stages));
        found.push(Convolution {
            stride: 2,
            ..window(side, width, width, 4, stages)
        });
        for other in 0..3 {
            let other = config.features << other;
            found.push(pointwise(rows, side, other, width, 2 * stages));
        }
        let below = config.features << (level + 1).min(2);
        found.push(pointwise(rows, side / 2, below, 4 * width, 2 * stages));
        // Cross gates: one a stage, two more in later stages.
        let crosses = stages + 2 * (stages - 1);
        found.push(pointwise(rows, side, 3 * width, width, stages));
        found.push(pointwise(
            rows,
            side,
            width,
            width,
            stages + 4 * (stages - 1) + 4 * crosses,
        ));
        found.push(pointwise(rows, side, width, 2 * width, 2 * crosses));
        found.push(pointwise(rows, side, 2 * width, width, 2 * crosses));
        found.push(mixed(side, width, block, 4 * crosses));
        found.push(window(side, config.num_outputs, width, 3, 2 * stages - 1));
        found.push(window(side, width, config.num_outputs, 3, stages));
        found.push(window(side, width, width, 3, stages - 1));
    }
    found
}

/// Draws all parameters anew, in the order of their names: norms near 1, layers by their inputs, everything else near 0. A comparison must
/// not rest on scales that start at 0.00001.
fn draw(store: &VarStore) {
    let _no_grad = tch::no_grad_guard();
    seeded(0, || {
        for (name, mut xs) in weights::named(store) {
            if !xs.requires_grad() {
                continue;
            }
            let size = xs.size();
            let values = Tensor::randn(size.as_slice(), tch::kind::FLOAT_CPU);
            let lower = name.to_lowercase();
            let values = if size.len() > 1 {
                let inputs: i64 = size[1..].iter().product();
                values / (inputs as f64).sqrt()
            } else if lower.contains("norm") && lower.ends_with("weight") {
                values * 0.1 + 1.0
            } else {
                values * 0.1
            };
            xs.copy_(&values);
        }
    });
}

impl Workload for Vision {
    fn about(&self) -> About {
        About {
            name: self.model,
            model: self.model,
            peer: "vision.py",
            cases: self.cases,
        }
    }

    fn build(&self, rows: i64, device: Device, bf16: bool) -> Result<Box<dyn Work>> {
        let preset = densely_core::registry::find(PRESETS, self.model)?;
        let store = VarStore::new(device);
        let config = preset.config_with(&(self.config)())?;
        let model = (preset.build)(&config, &store.root())?;
        nn::check_names(&store)?;
        draw(&store);
        let adam = AdamWConfig {
            lr: 1e-4,
            ..AdamWConfig::default()
        };
        let optimizer = OptimConfig::AdamW(adam).build(&store, &[])?;
        let size = [rows, 3, self.side, self.side];
        let (image, labels) = seeded(1, || {
            let image = Tensor::randn(size, tch::kind::FLOAT_CPU);
            let labels = Tensor::randint(1000, [rows], (Kind::Int64, Device::Cpu));
            (image.to_device(device), labels.to_device(device))
        });
        Ok(Box::new(Bench {
            store,
            model,
            optimizer,
            image,
            labels,
            bf16,
        }))
    }

    fn products(&self, phase: Phase, rows: i64) -> Vec<[i64; 4]> {
        if self.model != "poolformer_s12" {
            return Vec::new();
        }
        let head = [
            [1, rows, 512, 1000],
            [1, 512, rows, 1000],
            [1, rows, 1000, 512],
        ];
        head[..if phase == Phase::Train { 3 } else { 1 }].to_vec()
    }

    fn convolutions(&self, rows: i64) -> Vec<Convolution> {
        (self.convolutions)(rows)
    }
}

#[derive(Debug)]
struct Bench {
    store: VarStore,
    model: Box<dyn Model>,
    optimizer: Optimizer,
    image: Tensor,
    labels: Tensor,
    bf16: bool,
}

impl Bench {
    /// What the model gives, the last of its maps or images if it has no logits.
    fn outputs(&self, train: bool) -> Result<Tensor> {
        let _autocast = autocast(self.bf16, self.store.device())?;
        let inputs = Tensors::from([("image".to_owned(), self.image.shallow_clone())]);
        let outputs = self.model.forward_named(&inputs, train)?;
        let wanted = ["logits", "restored", "stage3"];
        let found = wanted.iter().find_map(|name| outputs.get(*name));
        let absent = || densely_core::Error::config("model", "gives none of what is compared");
        Ok(found.ok_or_else(absent)?.to_kind(Kind::Float))
    }
}

impl Work for Bench {
    /// The cross entropy, then AdamW.
    fn train_step(&mut self) -> Result<()> {
        let loss = self.loss(true)?;
        self.optimizer.zero_grad()?;
        loss.f_backward()?;
        self.optimizer.step()
    }

    fn infer(&self) -> Result<Tensor> {
        let _inference = densely_torch_ext::InferenceMode::new();
        Ok(self.outputs(false)?.contiguous().flatten(0, -1))
    }

    fn loss(&self, train: bool) -> Result<Tensor> {
        Ok(self.outputs(train)?.cross_entropy_for_logits(&self.labels))
    }

    fn store(&self) -> &VarStore {
        &self.store
    }
}
