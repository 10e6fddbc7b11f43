//! The fused operations against the plain chains of operations that they replace.

use densely_core::{Model, Result, Tensors, nn, seeded, weights};
use densely_torch_ext::fused::PlainPaths;
use densely_torch_ext::{InferenceMode, optim};
use densely_vision::maxim::MaximConfig;
use densely_vision::poolformer::PoolFormerConfig;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::drawn::largest;

struct Trial {
    vs: VarStore,
    model: Box<dyn Model>,
    image: Tensor,
}

impl Trial {
    /// A model whose parameters are all random, so that no part of it is hidden by a zero or a one.
    fn new(config: &PoolFormerConfig, size: [i64; 3], kind: Kind) -> Result<Self> {
        let vs = VarStore::new(Device::Cpu);
        let model = seeded(0, || config.build(&vs.root()))?;
        let trial = seeded(1, || {
            let _no_grad = tch::no_grad_guard();
            for (name, mut xs) in weights::named(&vs) {
                let deviation = if name.contains("layer_scale") {
                    0.5
                } else {
                    0.1
                };
                xs += xs.randn_like() * deviation;
            }
            let [batch, height, width] = size;
            let image = Tensor::randn([batch, 3, height, width], tch::kind::FLOAT_CPU) * 2.0 + 1.0;
            Self {
                image: image.to_kind(kind),
                vs,
                model: Box::new(model),
            }
        });
        nn::set_float_kind(&trial.vs, kind);
        Ok(trial)
    }

    fn outputs(&self, image: &Tensor, train: bool) -> Result<Tensors> {
        let inputs = Tensors::from([("image".to_owned(), image.shallow_clone())]);
        seeded(2, || self.model.forward_named(&inputs, train))
    }

    /// The outputs, and the gradients of all parameters and of the picture.
    fn run(&self, train: bool) -> Result<Tensors> {
        let image = self.image.copy().set_requires_grad(true);
        let params: Vec<Tensor> = weights::named(&self.vs).into_values().collect();
        optim::clear_grads(&params).expect("gradients go");
        let outputs = self.outputs(&image, train)?;
        let squares = outputs
            .values()
            .map(|ys| (ys.square() * 0.5).mean(None::<Kind>));
        squares.sum::<Tensor>().backward();
        let mut found: Tensors = outputs
            .iter()
            .map(|(name, ys)| (name.clone(), ys.detach()))
            .collect();
        found.insert("grad.image".to_owned(), image.grad());
        for (name, xs) in weights::named(&self.vs) {
            let grad = xs.grad();
            assert!(grad.defined(), "{name} has a gradient");
            found.insert(format!("grad.{name}"), grad.copy());
        }
        Ok(found)
    }
}

fn plain<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let _plain = PlainPaths::new();
    work()
}

fn configs() -> Vec<PoolFormerConfig> {
    let small = PoolFormerConfig {
        layers: vec![2, 1, 1, 2],
        embed_dims: vec![16, 32, 48, 80],
        mlp_ratio: 4,
        drop_path_rate: 0.4,
        num_classes: 7,
        ..PoolFormerConfig::default()
    };
    vec![
        small.clone(),
        PoolFormerConfig {
            embed_dims: vec![64, 16, 144, 400],
            mlp_ratio: 3,
            ..small.clone().with_features()
        },
    ]
}

const SIZES: [[i64; 3]; 6] = [
    [1, 97, 131],
    [3, 61, 203],
    [3, 7, 7],
    [1, 5, 40],
    [3, 32, 64],
    [2, 224, 224],
];

/// The largest difference over the largest value; gradients that are 0 in truth, as those of a shift before a difference, are compared
/// with what others have.
fn away(found: &Tensors, exact: &Tensors) -> (f64, String) {
    let most = exact.values().map(largest).fold(0.0, f64::max);
    let errors = exact.iter().map(|(name, xs)| {
        let error = largest(&(&found[name].to_kind(Kind::Double) - xs));
        (error / largest(xs).max(1e-6 * most), name.clone())
    });
    errors.fold((0.0, String::new()), |worst, one| {
        if one.0 > worst.0 || one.0.is_nan() {
            one
        } else {
            worst
        }
    })
}

#[test]
fn fused_blocks_equal_the_plain_ones() -> Result<()> {
    for config in configs() {
        for size in SIZES {
            for train in [false, true] {
                let of = |kind| Trial::new(&config, size, kind)?.run(train);
                let exact = plain(|| of(Kind::Double))?;
                let (fused, chain) = (of(Kind::Float)?, plain(|| of(Kind::Float))?);
                assert_eq!(
                    fused.keys().collect::<Vec<_>>(),
                    exact.keys().collect::<Vec<_>>()
                );
                let (ours, theirs) = (away(&fused, &exact), away(&chain, &exact));
                assert!(
                    ours.0 <= (3.0 * theirs.0).max(1e-5),
                    "{size:?}, training {train}: {ours:?} from the truth, the plain path {theirs:?}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn inference_equals_the_plain_path() -> Result<()> {
    for config in configs() {
        for size in SIZES {
            let trial = Trial::new(&config, size, Kind::Float)?;
            let _inference = InferenceMode::new();
            let image = trial.image.copy();
            let fused = trial.outputs(&trial.image, false)?;
            assert_eq!(trial.image, image, "the picture stays as it is");
            let exact = plain(|| trial.outputs(&trial.image, false))?;
            let exact = exact
                .iter()
                .map(|(name, xs)| (name.clone(), xs.to_kind(Kind::Double)));
            let worst = away(&fused, &exact.collect());
            assert!(worst.0 < 1e-5, "{size:?}: {worst:?}");
            let again = trial.outputs(&trial.image, false)?;
            assert!(again.iter().all(|(name, xs)| *xs == fused[name]));
        }
    }
    Ok(())
}

#[test]
fn steps_repeat_to_the_bit() -> Result<()> {
    let trial = Trial::new(&configs()[0], [3, 61, 203], Kind::Float)?;
    let (one, other) = (trial.run(true)?, trial.run(true)?);
    assert!(one.iter().all(|(name, xs)| *xs == other[name]));
    Ok(())
}

/// In bf16 the fused path is nearer to the truth than the plain one: its maps and sums are of f32.
#[test]
fn inference_in_bf16_is_as_near_as_the_plain_path() -> Result<()> {
    for config in configs() {
        for size in SIZES {
            let of = |kind| {
                let _inference = InferenceMode::new();
                let trial = Trial::new(&config, size, kind)?;
                trial.outputs(&trial.image, false)
            };
            let exact = plain(|| of(Kind::Double))?;
            let (fused, chain) = (of(Kind::BFloat16)?, plain(|| of(Kind::BFloat16))?);
            assert!(fused.values().all(|ys| ys.kind() == Kind::BFloat16));
            let (ours, theirs) = (away(&fused, &exact), away(&chain, &exact));
            assert!(
                ours.0 <= 1.5 * theirs.0 + 0.01,
                "{size:?}: {ours:?}, {theirs:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn maxim_without_gradients_equals_the_plain_path() -> Result<()> {
    for (features, size) in [(16, [3, 3, 29, 61]), (32, [1, 3, 32, 64])] {
        let config = MaximConfig {
            features,
            block_size_hr: 8,
            block_size_lr: 4,
            ..MaximConfig::default()
        };
        let vs = VarStore::new(Device::Cpu);
        let model = seeded(0, || config.build(&vs.root()))?;
        let _no_grad = tch::no_grad_guard();
        let image = seeded(1, || {
            for (_, mut xs) in weights::named(&vs) {
                xs += xs.randn_like() * 0.1;
            }
            Tensor::rand(size, tch::kind::FLOAT_CPU)
        });
        let run = |kind| {
            nn::set_float_kind(&vs, kind);
            let inputs = Tensors::from([("image".to_owned(), image.to_kind(kind))]);
            model.forward_named(&inputs, false)
        };
        let exact = run(Kind::Double)?;
        let (fused, chain) = (run(Kind::Float)?, plain(|| run(Kind::Float))?);
        let (ours, theirs) = (away(&fused, &exact), away(&chain, &exact));
        assert!(
            ours.0 <= (3.0 * theirs.0).max(1e-5),
            "{size:?}: {ours:?}, {theirs:?}"
        );
    }
    Ok(())
}
