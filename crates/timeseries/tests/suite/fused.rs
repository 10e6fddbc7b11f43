//! The fused operations against the plain chains of operations that they replace.

use densely_core::{Result, Tensors, nn, seeded, weights};
use densely_testkit::assert_close;
use densely_timeseries::tsmixer::{TsMixer, TsMixerConfig};
use densely_torch_ext::InferenceMode;
use densely_torch_ext::fused::PlainPaths;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

struct Trial {
    vs: VarStore,
    model: TsMixer,
    past: Tensor,
}

impl Trial {
    /// A model whose parameters and running averages are all random, so that no part of it is hidden by a zero or a one.
    fn new(config: &TsMixerConfig, windows: i64, kind: Kind) -> Result<Self> {
        let vs = VarStore::new(Device::Cpu);
        let model = seeded(0, || config.build(&vs.root()))?;
        let trial = seeded(1, || {
            let _no_grad = tch::no_grad_guard();
            for (name, mut xs) in weights::named(&vs) {
                if name.ends_with("running_var") || name.ends_with("affine_weight") {
                    xs += xs.rand_like();
                } else if xs.kind() == Kind::Float {
                    xs += xs.randn_like() * 0.1;
                }
            }
            let size = [windows, config.lookback, config.channels];
            Self {
                past: (Tensor::randn(size, tch::kind::FLOAT_CPU) * 2.0 + 1.0).to_kind(kind),
                vs,
                model,
            }
        });
        nn::set_float_kind(&trial.vs, kind);
        Ok(trial)
    }

    /// The forecast, the gradients of all parameters and of the window, and every running average behind it.
    fn run(&self, train: bool) -> Result<Tensors> {
        let before = weights::named(&self.vs)
            .into_iter()
            .map(|(name, xs)| (name, xs.copy()))
            .collect::<Tensors>();
        let past = self.past.copy().set_requires_grad(true);
        let params: Vec<Tensor> = weights::named(&self.vs).into_values().collect();
        densely_torch_ext::optim::clear_grads(&params).expect("gradients go");
        let ys = seeded(2, || self.model.forward(&past, train))?;
        (ys.square() * 0.5).mean(None::<Kind>).backward();
        let mut found = Tensors::from([
            ("forecast".to_owned(), ys.detach()),
            ("grad.past".to_owned(), past.grad()),
        ]);
        let _no_grad = tch::no_grad_guard();
        for (name, mut xs) in weights::named(&self.vs) {
            if xs.requires_grad() {
                found.insert(format!("grad.{name}"), xs.grad().copy());
            } else {
                found.insert(name.clone(), xs.copy());
                xs.copy_(&before[&name]);
            }
        }
        Ok(found)
    }
}

fn configs() -> Vec<TsMixerConfig> {
    let base = TsMixerConfig {
        lookback: 37,
        horizon: 5,
        channels: 3,
        ff_dim: 21,
        dropout: 0.0,
        ..TsMixerConfig::default()
    };
    vec![
        base.clone(),
        TsMixerConfig {
            channels: 1,
            ff_dim: 1,
            n_block: 1,
            ..base.clone()
        },
        TsMixerConfig {
            channels: 9,
            target: Some(4),
            revin: false,
            ..base.clone()
        },
        TsMixerConfig {
            feature_mixing: false,
            lookback: 600,
            ..base.clone()
        },
        TsMixerConfig {
            lookback: 1030,
            channels: 2,
            ff_dim: 40,
            ..base
        },
    ]
}

#[test]
fn fused_blocks_equal_the_plain_ones() -> Result<()> {
    for config in configs() {
        for (windows, train) in [(5, true), (5, false), (1, false), (1, true)] {
            let of = |kind| Trial::new(&config, windows, kind)?.run(train);
            let plain = |kind| {
                let _plain = PlainPaths::new();
                of(kind)
            };
            let (fused, exact) = (of(Kind::Double)?, plain(Kind::Double)?);
            let (fused_f32, plain_f32) = (of(Kind::Float)?, plain(Kind::Float)?);
            assert_eq!(
                fused.keys().collect::<Vec<_>>(),
                exact.keys().collect::<Vec<_>>()
            );
            let largest = |xs: &Tensor| xs.abs().max().double_value(&[]);
            for (name, expected) in &exact {
                assert_close(&fused[name], expected, 1e-8, 1e-11 * largest(expected));
            }
            // In f32 the fused path is as near to the truth as the plain one, within a digit. A single tensor may be near by luck.
            let error = |found: &Tensors| {
                let errors = exact
                    .iter()
                    .map(|(name, xs)| largest(&(&found[name] - xs)) / largest(xs));
                errors.fold(0.0, f64::max)
            };
            let (ours, plain) = (error(&fused_f32), error(&plain_f32));
            assert!(
                ours <= 10.0 * plain,
                "{ours} from the truth, the plain path {plain}"
            );
        }
    }
    Ok(())
}

#[test]
fn predictions_without_gradients_are_those_of_training_mode_off() -> Result<()> {
    for config in configs() {
        let trial = Trial::new(&config, 2, Kind::Float)?;
        let with_gradients = trial.model.forward(&trial.past, false)?.detach();
        let without = {
            let _inference = InferenceMode::new();
            trial.model.forward(&trial.past, false)?
        };
        assert_close(&without, &with_gradients, 1e-5, 1e-6);
    }
    Ok(())
}

/// Dropout in the fused operations: the places that drop are the same in the gradient, the share is the asked one, the mean is kept, and two seeds differ.
#[test]
fn fused_dropout_drops_what_it_should() -> Result<()> {
    let config = TsMixerConfig {
        lookback: 64,
        horizon: 8,
        channels: 4,
        ff_dim: 32,
        dropout: 0.4,
        n_block: 1,
        ..TsMixerConfig::default()
    };
    let trial = Trial::new(&config, 3, Kind::Double)?;
    // The gradient of a function of a seed, by differences: a place that dropped in one direction only would show.
    let past = trial.past.copy().set_requires_grad(true);
    let value = |past: &Tensor| -> Result<Tensor> {
        let ys = seeded(5, || trial.model.forward(past, true))?;
        Ok(ys.sin().sum(None::<Kind>))
    };
    for name in [
        "mixing_layers.0.temporal_mixer.temporal_lin.weight",
        "mixing_layers.0.feature_mixer.feature_lin_1.weight",
        "mixing_layers.0.feature_mixer.feature_lin_2.weight",
        "mixing_layers.0.feature_mixer.feature_norm.weight",
        "mixing_layers.0.temporal_mixer.temporal_norm.bias",
    ] {
        let mut param = weights::named(&trial.vs)
            .remove(name)
            .expect("the weight is there");
        let loss = value(&past)?;
        densely_torch_ext::optim::clear_grads(&[param.shallow_clone()]).expect("gradients go");
        loss.backward();
        let direction = seeded(6, || param.randn_like());
        let expected = (param.grad() * &direction)
            .sum(None::<Kind>)
            .double_value(&[]);
        let _no_grad = tch::no_grad_guard();
        let h = 1e-6;
        let mut at = |shift: f64| -> Result<f64> {
            let moved = param.copy();
            param += &direction * shift;
            let found = value(&trial.past)?.double_value(&[]);
            param.copy_(&moved);
            Ok(found)
        };
        let slope = (at(h)? - at(-h)?) / (2.0 * h);
        assert!(
            (slope - expected).abs() <= 1e-5 * expected.abs().max(1.0),
            "{name}: {slope} by differences, {expected} by the gradient"
        );
    }
    let of = |seed| seeded(seed, || trial.model.forward(&trial.past, true));
    assert_eq!(of(1)?, of(1)?);
    assert_ne!(of(1)?, of(2)?);
    Ok(())
}

/// One linear block of ones makes what the dropouts keep visible: the share and the mean.
#[test]
fn fused_dropout_keeps_its_share_and_the_mean() {
    let (steps, channels, windows) = (256, 4, 32);
    let dropout = 0.9;
    let plane = |value: f64| Tensor::full([channels, steps], value, tch::kind::FLOAT_CPU);
    let norm = densely_torch_ext::fused::PlaneNorm {
        gamma: plane(0.0),
        beta: plane(1.0),
        running_mean: plane(0.0),
        running_variance: plane(1.0),
        eps: 1e-3,
        momentum: 0.01,
    };
    let xs = Tensor::zeros([windows, channels, steps], tch::kind::FLOAT_CPU);
    let (weight, bias) = (
        Tensor::eye(steps, tch::kind::FLOAT_CPU),
        Tensor::zeros([steps], tch::kind::FLOAT_CPU),
    );
    let ys = densely_torch_ext::fused::mix_time(&xs, &norm, [&weight, &bias], dropout, 7, true)
        .expect("the sizes fit");
    let share = ys
        .eq(0.0)
        .to_kind(Kind::Double)
        .mean(None::<Kind>)
        .double_value(&[]);
    let mean = ys
        .to_kind(Kind::Double)
        .mean(None::<Kind>)
        .double_value(&[]);
    let deviation = (dropout * (1.0 - dropout) / (windows * channels * steps) as f64).sqrt();
    assert!((share - dropout).abs() < 4.0 * deviation, "{share} dropped");
    assert!(
        (mean - 1.0).abs() < 4.0 * deviation / (1.0 - dropout),
        "mean {mean}"
    );
    // The hidden layer: each of 64 units gives its input on, so the sum counts the kept ones.
    let hidden = 64;
    let (w1, b1) = (
        Tensor::zeros([hidden, channels], tch::kind::FLOAT_CPU),
        Tensor::ones([hidden], tch::kind::FLOAT_CPU),
    );
    let (w2, b2) = (
        Tensor::full(
            [channels, hidden],
            1.0 / hidden as f64,
            tch::kind::FLOAT_CPU,
        ),
        Tensor::zeros([channels], tch::kind::FLOAT_CPU),
    );
    let ys =
        densely_torch_ext::fused::mix_features(&xs, &norm, [&w1, &b1, &w2, &b2], dropout, 7, true)
            .expect("the sizes fit");
    let share = ys
        .eq(0.0)
        .to_kind(Kind::Double)
        .mean(None::<Kind>)
        .double_value(&[]);
    let mean = ys
        .to_kind(Kind::Double)
        .mean(None::<Kind>)
        .double_value(&[]);
    // A channel's value is 0 where the second dropout took it, or (9 in 10,000) the first took all 64.
    let expected = dropout + (1.0 - dropout) * dropout.powi(hidden as i32);
    assert!(
        (share - expected).abs() < 5.0 * deviation,
        "{share} dropped, not {expected}"
    );
    assert!(
        (mean - 1.0).abs() < 8.0 * deviation / (1.0 - dropout),
        "mean {mean}"
    );
}
