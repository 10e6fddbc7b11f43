//! The fused networks against the plain chains of operations that they replace.

use densely_core::{Model, Result, Tensors, nn, seeded, weights};
use densely_fields::cam::{CamConfig, Grid};
use densely_fields::ffn::FfnConfig;
use densely_fields::finer::FinerConfig;
use densely_fields::siren::SirenConfig;
use densely_torch_ext::fused::PlainPaths;
use densely_torch_ext::optim;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

type Build = Box<dyn Fn(&VarStore) -> Result<Box<dyn Model>>>;

fn networks() -> Vec<(&'static str, Build)> {
    let siren = |config: SirenConfig| -> Build {
        Box::new(move |vs| Ok(Box::new(config.build(&vs.root())?)))
    };
    let small = SirenConfig {
        hidden: 33,
        layers: 2,
        ..SirenConfig::siren()
    };
    let fresh = SirenConfig {
        first_omega: 20.0,
        ..SirenConfig::siren_fresh()
    };
    let finer = FinerConfig {
        hidden: 20,
        first_bias: Some(2.0),
        ..FinerConfig::default()
    };
    let cam = FfnConfig {
        frequencies: 20,
        sigma: 1.0,
        hidden: 40,
        cam: Some(CamConfig {
            grid: Grid::Plane {
                rows: 5,
                columns: 3,
            },
            domain: [-1.0, 2.0],
            ..CamConfig::image()
        }),
        ..FfnConfig::cam_image()
    };
    vec![
        ("siren", siren(small)),
        ("siren-fresh", siren(fresh)),
        (
            "finer",
            Box::new(move |vs| Ok(Box::new(finer.build(&vs.root())?))),
        ),
        (
            "cam",
            Box::new(move |vs| Ok(Box::new(cam.build(&vs.root())?))),
        ),
    ]
}

struct Trial {
    vs: VarStore,
    model: Box<dyn Model>,
    coords: Tensor,
}

impl Trial {
    /// A network whose parameters are all moved, so that no part of it is hidden by a zero or a one.
    fn new(build: &Build, seed: i64, kind: Kind) -> Result<Self> {
        let vs = VarStore::new(Device::Cpu);
        let model = seeded(seed, || build(&vs))?;
        let coords = seeded(seed + 1, || {
            let _no_grad = tch::no_grad_guard();
            for (name, mut xs) in weights::named(&vs) {
                if name.ends_with("affine") {
                    xs += xs.randn_like();
                }
            }
            Tensor::rand([50, 2], tch::kind::FLOAT_CPU) * 2.0 - 1.0
        });
        nn::set_float_kind(&vs, kind);
        Ok(Self {
            vs,
            model,
            coords: coords.to_kind(kind),
        })
    }

    fn values(&self) -> Result<Tensor> {
        let inputs = Tensors::from([("coords".to_owned(), self.coords.shallow_clone())]);
        let mut outputs = self.model.forward_named(&inputs, true)?;
        Ok(outputs.remove("values").expect("there are values"))
    }

    /// The values, and the gradients of all trained parameters.
    fn run(&self) -> Result<Tensors> {
        let params: Vec<Tensor> = weights::named(&self.vs).into_values().collect();
        optim::clear_grads(&params).expect("gradients go");
        let values = self.values()?;
        values.square().mean(None::<Kind>).backward();
        let mut found = Tensors::from([("values".to_owned(), values.detach())]);
        for (name, xs) in weights::named(&self.vs) {
            if xs.requires_grad() {
                found.insert(name, xs.grad().copy());
            }
        }
        Ok(found)
    }
}

fn plain<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let _plain = PlainPaths::new();
    work()
}

#[test]
fn fused_networks_equal_the_plain_ones() -> Result<()> {
    for (name, build) in networks() {
        // Logarithms of how much farther from the truth the fused way is than the plain one.
        let mut logs = std::collections::BTreeMap::<String, Vec<f64>>::new();
        for seed in 0..8 {
            let single = Trial::new(&build, seed, Kind::Float)?;
            let exact = Trial::new(&build, seed, Kind::Double)?.run()?;
            let (fused, chain) = (single.run()?, plain(|| single.run())?);
            assert!(fused.keys().eq(exact.keys()));
            for (tensor, exact) in &exact {
                let away = |found: &Tensor| {
                    let difference = found.to_kind(Kind::Double) - exact;
                    difference.square().sum(Kind::Double).double_value(&[])
                };
                let (ours, theirs) = (away(&fused[tensor]), away(&chain[tensor]));
                let log = (ours / theirs).ln() / 2.0;
                logs.entry(tensor.clone()).or_default().push(log);
            }
        }
        for (tensor, logs) in logs {
            let ratio = (logs.iter().sum::<f64>() / logs.len() as f64).exp();
            assert!(
                ratio <= 2.0,
                "{name}, {tensor}: {ratio} of the plain chain's error"
            );
        }
    }
    Ok(())
}

#[test]
fn the_fused_way_is_taken_and_says_what_it_cannot_do() -> Result<()> {
    for (name, build) in networks() {
        let trial = Trial::new(&build, 0, Kind::Float)?;
        let params = trial.vs.trainable_variables();
        let twice = |loss: &Tensor| Tensor::f_run_backward(&[loss], &params[..1], true, true);
        let error = twice(&trial.values()?.sum(Kind::Float)).expect_err(name);
        assert!(
            error.to_string().contains("no second derivatives"),
            "{error}"
        );
        plain(|| Ok(twice(&trial.values()?.sum(Kind::Float)).map(|_| ())?))?;
    }
    Ok(())
}

#[test]
fn slopes_can_be_trained() -> Result<()> {
    // libtorch itself has no second derivatives of a grid's samples.
    let sines = networks().into_iter().filter(|(name, _)| *name != "cam");
    for (name, build) in sines {
        let slopes = || -> Result<Tensors> {
            let mut trial = Trial::new(&build, 0, Kind::Float)?;
            trial.coords = trial.coords.set_requires_grad(true);
            let values = trial.values()?.sum(Kind::Float);
            let slope = Tensor::f_run_backward(&[values], &[&trial.coords], true, true)?;
            slope[0].square().sum(Kind::Float).backward();
            Ok(weights::named(&trial.vs)
                .into_iter()
                .filter(|(name, _)| name.ends_with("weight"))
                .map(|(name, xs)| (name, xs.grad().copy()))
                .collect())
        };
        let (found, expected) = (slopes()?, plain(slopes)?);
        for (tensor, expected) in &expected {
            assert_eq!(found[tensor], *expected, "{name}, {tensor}");
            assert!(expected.abs().sum(Kind::Float).double_value(&[]) > 0.0);
        }
    }
    Ok(())
}
