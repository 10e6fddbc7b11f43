//! The fused operations against the plain chains of operations that they replace.

use densely_core::{Result, Tensors, nn, seeded, weights};
use densely_testkit::assert_close;
use densely_timeseries::fit::Forecaster;
use densely_timeseries::layers::PlaneNormKind;
use densely_timeseries::patch_tsmixer::{Head, Mode, PatchTsMixerConfig};
use densely_timeseries::tsmixer::TsMixerConfig;
use densely_torch_ext::InferenceMode;
use densely_torch_ext::fused::PlainPaths;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

struct Trial {
    vs: VarStore,
    model: Box<dyn Forecaster>,
    past: Tensor,
}

impl Trial {
    /// A model whose parameters and running averages are all random, so that no part of it is hidden by a zero or a one.
    fn new(config: &Config, windows: i64, kind: Kind) -> Result<Self> {
        let vs = VarStore::new(Device::Cpu);
        let model = seeded(0, || config.build(&vs))?;
        let trial = seeded(1, || {
            let _no_grad = tch::no_grad_guard();
            for (name, mut xs) in weights::named(&vs) {
                if name.ends_with("running_var") || name.ends_with("affine_weight") {
                    xs += xs.rand_like();
                } else if xs.kind() == Kind::Float {
                    xs += xs.randn_like() * 0.1;
                }
            }
            let size = config.window(windows);
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
        let ys = seeded(2, || self.model.forecast(&past, train))?;
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

/// A small model that is not square anywhere.
#[derive(Debug, Clone)]
enum Config {
    Steps(TsMixerConfig),
    Patches(PatchTsMixerConfig),
}

impl Config {
    fn build(&self, vs: &VarStore) -> Result<Box<dyn Forecaster>> {
        Ok(match self {
            Self::Steps(config) => Box::new(config.build(&vs.root())?),
            Self::Patches(config) => Box::new(config.build(&vs.root())?),
        })
    }

    fn window(&self, windows: i64) -> [i64; 3] {
        match self {
            Self::Steps(config) => [windows, config.lookback, config.channels],
            Self::Patches(config) => [windows, config.context_length, config.num_input_channels],
        }
    }
}

fn steps() -> TsMixerConfig {
    TsMixerConfig {
        lookback: 37,
        horizon: 5,
        channels: 3,
        ff_dim: 21,
        dropout: 0.0,
        ..TsMixerConfig::default()
    }
}

fn patches() -> PatchTsMixerConfig {
    PatchTsMixerConfig {
        context_length: 44,
        patch_length: 4,
        patch_stride: 4,
        num_input_channels: 3,
        d_model: 7,
        expansion_factor: 2,
        num_layers: 2,
        prediction_length: 5,
        dropout: 0.0,
        head_dropout: 0.0,
        ..PatchTsMixerConfig::with_head(Head::Forecast)
    }
}

fn configs() -> Vec<Config> {
    let step = [
        steps(),
        TsMixerConfig {
            channels: 1,
            ff_dim: 1,
            n_block: 1,
            ..steps()
        },
        TsMixerConfig {
            channels: 9,
            revin: false,
            ..steps()
        },
        TsMixerConfig {
            norm: PlaneNormKind::Layer,
            ..steps()
        },
        TsMixerConfig {
            feature_mixing: false,
            lookback: 600,
            ..steps()
        },
        TsMixerConfig {
            lookback: 1030,
            channels: 2,
            ff_dim: 40,
            ..steps()
        },
    ];
    let patch = [
        patches(),
        PatchTsMixerConfig {
            d_model: 2,
            expansion_factor: 1,
            ..patches()
        },
        PatchTsMixerConfig {
            d_model: 48,
            expansion_factor: 3,
            context_length: 256,
            ..patches()
        },
        PatchTsMixerConfig {
            d_model: 90,
            context_length: 9,
            mode: Mode::MixChannel,
            ..patches()
        },
    ];
    let step = step.into_iter().map(Config::Steps);
    step.chain(patch.into_iter().map(Config::Patches)).collect()
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
        let with_gradients = trial.model.forecast(&trial.past, false)?.detach();
        let without = {
            let _inference = InferenceMode::new();
            trial.model.forecast(&trial.past, false)?
        };
        let size = with_gradients.abs().max().double_value(&[]);
        assert_close(&without, &with_gradients, 1e-5, 1e-5 * size);
    }
    Ok(())
}

/// Dropout is a function of a seed: gradients with it equal differences with it, which a place that dropped in one direction only
/// would not.
#[test]
fn fused_dropout_drops_the_same_places_on_the_way_back() -> Result<()> {
    let step = Config::Steps(TsMixerConfig {
        dropout: 0.4,
        ..steps()
    });
    let patch = Config::Patches(PatchTsMixerConfig {
        dropout: 0.4,
        ..patches()
    });
    for config in [step, patch] {
        let trial = Trial::new(&config, 3, Kind::Double)?;
        let value = || -> Result<Tensor> {
            let ys = seeded(5, || trial.model.forecast(&trial.past, true))?;
            Ok(ys.sin().sum(None::<Kind>))
        };
        for (name, mut param) in weights::named(&trial.vs) {
            if !param.requires_grad() {
                continue;
            }
            densely_torch_ext::optim::clear_grads(&[param.shallow_clone()]).expect("gradients go");
            value()?.backward();
            let direction = seeded(6, || param.randn_like());
            let expected = (param.grad() * &direction)
                .sum(None::<Kind>)
                .double_value(&[]);
            let _no_grad = tch::no_grad_guard();
            let h = 1e-6;
            let mut at = |shift: f64| -> Result<f64> {
                let before = param.copy();
                param += &direction * shift;
                let found = value()?.double_value(&[]);
                param.copy_(&before);
                Ok(found)
            };
            let slope = (at(h)? - at(-h)?) / (2.0 * h);
            assert!(
                (slope - expected).abs() <= 1e-5 * expected.abs().max(1.0),
                "{name}: {slope} by differences, {expected} by the gradient"
            );
        }
        let of = |seed| seeded(seed, || trial.model.forecast(&trial.past, true));
        assert_eq!(of(1)?, of(1)?);
        assert_ne!(of(1)?, of(2)?);
    }
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
        running: Some([plane(0.0), plane(1.0)]),
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
