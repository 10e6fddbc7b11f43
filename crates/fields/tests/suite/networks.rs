//! The coordinate networks and their encodings: against their references, how they start, what they count and refuse.

use densely_core::{Model, Result, Tensors, nn, seeded, weights};
use densely_fields::cam::{CamConfig, Grid, Norm};
use densely_fields::encodings::{self, FourierForm};
use densely_fields::ffn::FfnConfig;
use densely_fields::finer::FinerConfig;
use densely_fields::siren::{SirenConfig, SirenForm};
use densely_fields::wire::WireConfig;
use densely_testkit::{Golden, assert_bits, assert_close, assert_near, goldens};
use tch::nn::{Path, VarStore};
use tch::{Device, Kind, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// The network of a golden's metadata.
fn build(golden: &Golden, vs: &Path) -> Result<Box<dyn Model>> {
    Ok(match golden.meta("model") {
        "ffn" => Box::new(golden.config::<FfnConfig>().build(vs)?),
        "siren" => Box::new(golden.config::<SirenConfig>().build(vs)?),
        "finer" => Box::new(golden.config::<FinerConfig>().build(vs)?),
        "wire" => Box::new(golden.config::<WireConfig>().build(vs)?),
        other => panic!("a model called {other}"),
    })
}

fn kind_of(golden: &Golden) -> (Kind, f64) {
    match golden.meta("dtype") {
        "float64" => (Kind::Double, 1e-9),
        _ => (Kind::Float, 1e-5),
    }
}

fn values(model: &dyn Model, coords: &Tensor) -> Result<Tensor> {
    let inputs = Tensors::from([("coords".to_owned(), coords.shallow_clone())]);
    let mut outputs = model.forward_named(&inputs, false)?;
    assert_eq!(outputs.len(), 1);
    Ok(outputs.remove("values").expect("values"))
}

#[test]
fn networks_and_their_gradients_equal_the_references() -> Result<()> {
    for name in goldens(HERE, "networks_net_", 18) {
        let golden = Golden::open(HERE, &name);
        let (kind, tolerance) = kind_of(&golden);
        let vs = VarStore::new(Device::Cpu);
        let model = seeded(0, || build(&golden, &vs.root()))?;
        nn::check_names(&vs)?;
        nn::set_float_kind(&vs, kind);
        let theirs = golden.group("weight.");
        weights::load_tensors(&vs, golden.path(), &theirs, weights::Strictness::All)?;
        let coords = golden.tensor("coords").set_requires_grad(true);
        let found = values(model.as_ref(), &coords)?;
        assert_near(&found, &golden.tensor("values"), tolerance);
        (found * golden.tensor("cotangent")).sum(kind).backward();
        assert_near(&coords.grad(), &golden.tensor("grad_coords"), tolerance);
        let grads = golden.group("grad.");
        let ours = weights::named(&vs);
        assert_eq!(grads.len(), vs.trainable_variables().len(), "{name}");
        for (parameter, expected) in &grads {
            assert_near(&ours[parameter].grad(), expected, tolerance);
        }
    }
    Ok(())
}

/// The same draws from the same generator as in PyTorch, so that bounds, distributions and constants are those of the references.
#[test]
fn networks_start_as_the_references_do_at_the_same_seed() -> Result<()> {
    for name in goldens(HERE, "networks_init_", 8) {
        let golden = Golden::open(HERE, &name);
        let vs = VarStore::new(Device::Cpu);
        let _model = seeded(3, || build(&golden, &vs.root()))?;
        let (ours, theirs) = (weights::named(&vs), golden.group("weight."));
        assert!(ours.keys().eq(theirs.keys()), "{name}: {:?}", ours.keys());
        for (parameter, expected) in &theirs {
            assert_close(&ours[parameter], expected, 1e-6, 1e-7);
        }
    }
    Ok(())
}

/// Bounds and spreads from the formulas, at the published sizes.
#[test]
fn weights_start_within_their_bounds_and_fill_them() -> Result<()> {
    let store = |config: &SirenConfig| -> Result<Tensors> {
        let vs = VarStore::new(Device::Cpu);
        let _model = seeded(0, || config.build(&vs.root()))?;
        Ok(weights::named(&vs))
    };
    let uniform = |xs: &Tensor, bound: f64| {
        let largest = xs.abs().max().double_value(&[]);
        assert!(largest <= bound && largest > 0.98 * bound, "{largest}");
        let spread = xs.square().mean(Kind::Double).double_value(&[]).sqrt();
        assert!((spread * 3f64.sqrt() / bound - 1.0).abs() < 0.05);
    };
    let siren = store(&SirenConfig::siren())?;
    uniform(&siren["layers.0.weight"], 0.5);
    uniform(&siren["layers.2.weight"], (6f64 / 256.0).sqrt() / 30.0);
    uniform(&siren["last_layer.weight"], (6f64 / 256.0).sqrt() / 30.0);
    uniform(&siren["layers.0.bias"], 0.5f64.sqrt());
    uniform(&siren["layers.1.bias"], 1.0 / 16.0);
    // Of Beta(β, β) over ±1 the variance is 1 / (2β + 1); over D inputs it is D² times smaller.
    for beta in [0.25, 1.0, 20.0] {
        let fresh = store(&SirenConfig {
            beta,
            hidden: 4096,
            layers: 1,
            ..SirenConfig::siren_fresh()
        })?;
        let first = &fresh["_net.0.linear.weight"];
        let variance = first.square().mean(Kind::Double).double_value(&[]) * 4.0;
        assert!((variance * (2.0 * beta + 1.0) - 1.0).abs() < 0.05);
        assert!(first.abs().max().double_value(&[]) <= 0.5);
    }
    let vs = VarStore::new(Device::Cpu);
    let config = FinerConfig {
        first_bias: Some(2.5),
        ..FinerConfig::finer()
    };
    let _model = seeded(0, || config.build(&vs.root()))?;
    let finer = weights::named(&vs);
    uniform(&finer["_net.0.linear.bias"], 2.5);
    uniform(&finer["_net.1.linear.bias"], 1.0 / 16.0);
    let vs = VarStore::new(Device::Cpu);
    let _model = seeded(0, || FfnConfig::cam_image().build(&vs.root()))?;
    let cam = weights::named(&vs);
    let spread = |xs: &Tensor| xs.square().mean(Kind::Double).double_value(&[]).sqrt();
    assert!((spread(&cam["pos_enc.proj"]) / std::f64::consts::TAU - 1.0).abs() < 0.1);
    for layer in 0..3 {
        let grid = &cam[&format!("FC_{layer}.affine")];
        assert_eq!(grid.size(), [1, 2, 32, 32]);
        assert_bits(&grid.select(1, 0), &grid.select(1, 0).ones_like());
        assert_bits(&grid.select(1, 1), &grid.select(1, 1).zeros_like());
    }
    Ok(())
}

#[test]
fn encodings_and_their_gradients_equal_the_references() -> Result<()> {
    for name in goldens(HERE, "networks_encodings_", 2) {
        let golden = Golden::open(HERE, &name);
        let (kind, tolerance) = kind_of(&golden);
        let input = |field: &str| golden.tensor(field).set_requires_grad(true);
        let check = |case: &str, features: &Tensor, inputs: &[(&str, &Tensor)]| {
            let expected = golden.tensor(&format!("{case}.features"));
            assert_eq!(features.kind(), kind);
            assert_near(features, &expected, tolerance);
            let cotangent = golden.tensor(&format!("{case}.cotangent"));
            (features * cotangent).sum(kind).backward();
            for (field, xs) in inputs {
                let expected = golden.tensor(&format!("{case}.grad_{field}"));
                assert_near(&xs.grad(), &expected, tolerance);
            }
        };
        let xs = input("sinusoidal.xs");
        let features = encodings::sinusoidal(&xs, 0..10)?;
        check("sinusoidal", &features, &[("xs", &xs)]);
        let xs = input("sinusoidal_2_4.xs");
        let features = encodings::sinusoidal(&xs, 2..4)?;
        check("sinusoidal_2_4", &features, &[("xs", &xs)]);
        assert_bits(&encodings::sinusoidal(&xs, 3..3)?, &xs);
        let (mean, variance) = (input("integrated.mean"), input("integrated.variance"));
        let features = encodings::integrated(&mean, &variance, 0..16)?;
        let inputs = [("mean", &mean), ("variance", &variance)];
        check("integrated", &features, &inputs);
        let directions = input("harmonics.directions");
        let features = encodings::spherical_harmonics(&directions, 4)?;
        check("harmonics", &features, &[("directions", &directions)]);
        for degree in 1..4 {
            let fewer = encodings::spherical_harmonics(&directions, degree)?;
            assert_bits(&fewer, &features.narrow(-1, 0, degree * degree));
        }
    }
    Ok(())
}

/// Over the whole sphere the harmonics are orthonormal; a rule of 4 × 16 points integrates their products exactly.
#[test]
fn spherical_harmonics_are_orthonormal() -> Result<()> {
    // The Gauss-Legendre rule of four points in z is exact to degree 7, sixteen even steps around the axis to order 15.
    let nodes = [
        -0.861_136_311_594_052_6,
        -0.339_981_043_584_856_3,
        0.339_981_043_584_856_3,
        0.861_136_311_594_052_6f64,
    ];
    let shares = [
        0.347_854_845_137_453_85,
        0.652_145_154_862_546_2,
        0.652_145_154_862_546_2,
        0.347_854_845_137_453_85,
    ];
    let (mut points, mut weights) = (Vec::new(), Vec::new());
    for (z, share) in nodes.iter().zip(shares) {
        for step in 0..16 {
            let angle = std::f64::consts::TAU * f64::from(step) / 16.0;
            let radius = (1.0 - z * z).sqrt();
            points.extend([radius * angle.cos(), radius * angle.sin(), *z]);
            weights.push(share * std::f64::consts::TAU / 16.0);
        }
    }
    let directions = Tensor::from_slice(&points).view([-1, 3]);
    let values = encodings::spherical_harmonics(&directions, 4)?;
    let products = (&values * Tensor::from_slice(&weights).unsqueeze(1))
        .tr()
        .matmul(&values);
    let identity = Tensor::eye(16, (Kind::Double, Device::Cpu));
    assert_close(&products, &identity, 0.0, 1e-12);
    Ok(())
}

/// Halves are encoded in single precision, so that they differ from it by no more than their own rounding.
#[test]
fn numbers_of_16_bits_are_encoded_in_single_precision() -> Result<()> {
    let xs = seeded(0, || Tensor::rand([64, 3], tch::kind::FLOAT_CPU)).to_kind(Kind::BFloat16);
    let half = encodings::sinusoidal(&xs, 0..10)?;
    assert_eq!(half.kind(), Kind::BFloat16);
    let full = encodings::sinusoidal(&xs.to_kind(Kind::Float), 0..10)?;
    assert_close(&half, &full, 1.0 / 256.0, 1e-6);
    Ok(())
}

#[test]
fn wrong_configs_and_inputs_are_errors_that_name_the_field() {
    let vs = VarStore::new(Device::Cpu);
    let message = |result: Result<()>| result.expect_err("a wrong setting").to_string();
    let ffn = |config: FfnConfig| message(config.build(&vs.root()).map(|_| ()));
    let image = FfnConfig::ffn_image;
    for (config, field) in [
        (
            FfnConfig {
                inputs: 0,
                ..image()
            },
            "`inputs`",
        ),
        (
            FfnConfig {
                hidden: 0,
                ..image()
            },
            "`hidden`",
        ),
        (
            FfnConfig {
                layers: 0,
                ..image()
            },
            "`layers`",
        ),
        (
            FfnConfig {
                outputs: -1,
                ..image()
            },
            "`outputs`",
        ),
        (
            FfnConfig {
                frequencies: 0,
                ..image()
            },
            "`frequencies`",
        ),
        (
            FfnConfig {
                sigma: f64::NAN,
                ..image()
            },
            "`sigma`",
        ),
        (
            FfnConfig {
                inputs: 1,
                ..FfnConfig::cam_image()
            },
            "`cam.grid`",
        ),
    ] {
        let text = ffn(config);
        assert!(text.contains(field), "{text}");
    }
    let with_cam = |cam: CamConfig| FfnConfig {
        cam: Some(cam),
        ..image()
    };
    for (cam, field) in [
        (
            CamConfig {
                domain: [1.0, 0.0],
                ..CamConfig::image()
            },
            "`cam.domain`",
        ),
        (
            CamConfig {
                eps: 0.0,
                ..CamConfig::image()
            },
            "`cam.eps`",
        ),
        (
            CamConfig {
                norm: Norm::Ray,
                ..CamConfig::image()
            },
            "`cam.norm`",
        ),
        (
            CamConfig {
                grid: Grid::Line { cells: 0 },
                ..CamConfig::image()
            },
            "`cam.grid.cells`",
        ),
    ] {
        let text = ffn(with_cam(cam));
        assert!(text.contains(field), "{text}");
    }
    let siren = |config: SirenConfig| message(config.build(&vs.root()).map(|_| ()));
    for (config, field) in [
        (
            SirenConfig {
                omega: 0.0,
                ..SirenConfig::siren()
            },
            "`omega`",
        ),
        (
            SirenConfig {
                first_omega: f64::INFINITY,
                ..SirenConfig::siren()
            },
            "`first_omega`",
        ),
        (
            SirenConfig {
                beta: 2.0,
                ..SirenConfig::siren()
            },
            "`beta`",
        ),
        (
            SirenConfig {
                beta: 0.0,
                ..SirenConfig::siren_fresh()
            },
            "`beta`",
        ),
        (
            SirenConfig {
                form: SirenForm::Fresh,
                layers: 0,
                ..SirenConfig::siren()
            },
            "`layers`",
        ),
    ] {
        let text = siren(config);
        assert!(text.contains(field), "{text}");
    }
    let finer = FinerConfig {
        first_bias: Some(-1.0),
        ..FinerConfig::finer()
    };
    let text = message(finer.build(&vs.root()).map(|_| ()));
    assert!(text.contains("`first_bias`"), "{text}");
    let wire = WireConfig {
        scale: -1.0,
        ..WireConfig::wire()
    };
    let text = message(wire.build(&vs.root()).map(|_| ()));
    assert!(text.contains("`scale`"), "{text}");
    assert!(
        vs.variables().is_empty(),
        "a refused network left parameters"
    );
    let xs = Tensor::zeros([4, 2], tch::kind::FLOAT_CPU);
    for (result, part) in [
        (encodings::spherical_harmonics(&xs, 4), "`directions`"),
        (encodings::spherical_harmonics(&xs, 5), "`degree`"),
        (
            encodings::integrated(&xs, &xs.narrow(0, 0, 3), 0..2),
            "`variance`",
        ),
        (encodings::sinusoidal(&Tensor::from(1.0), 0..2), "`xs`"),
    ] {
        let text = result.expect_err("a wrong input").to_string();
        assert!(text.contains(part), "{text}");
    }
    let config = FfnConfig {
        frequencies: 4,
        hidden: 8,
        ..image()
    };
    let model = config.build(&vs.root()).expect("a network");
    for (coords, part) in [
        (Tensor::zeros([4, 3], tch::kind::FLOAT_CPU), "[_, 2]"),
        (Tensor::zeros([4, 2], tch::kind::DOUBLE_CPU), "Float"),
    ] {
        let text = model
            .forward(&coords)
            .expect_err("wrong coordinates")
            .to_string();
        assert!(text.contains("`coords`") && text.contains(part), "{text}");
    }
}

/// A network on no points gives no values, and one on a part of the points gives that part.
#[test]
fn points_do_not_see_each_other() -> Result<()> {
    for cam in [None, Some(CamConfig::image())] {
        let vs = VarStore::new(Device::Cpu);
        let config = FfnConfig {
            frequencies: 6,
            hidden: 10,
            cam,
            ..FfnConfig::ffn_image()
        };
        let model = seeded(0, || config.build(&vs.root()))?;
        nn::set_float_kind(&vs, Kind::Double);
        let coords = seeded(1, || Tensor::rand([9, 2], tch::kind::DOUBLE_CPU));
        let all = model.forward(&coords)?;
        let part = model.forward(&coords.narrow(0, 3, 4))?;
        assert_close(&part, &all.narrow(0, 3, 4), 1e-12, 1e-12);
        assert_eq!(model.forward(&coords.narrow(0, 0, 0))?.size(), [0, 3]);
    }
    Ok(())
}

/// The enum's names in a config file.
#[test]
fn configs_read_back_from_toml() {
    let text = "form = \"package\"\nsigma = 4.0\n[cam]\nnorm = \"none\"\n[cam.grid]\nkind = \"line\"\ncells = 9\n";
    let config: FfnConfig = toml::from_str(text).expect("a config");
    assert_eq!(config.form, FourierForm::Package);
    let cam = config.cam.expect("a grid");
    assert_eq!((cam.grid, cam.norm), (Grid::Line { cells: 9 }, Norm::None));
    assert!(cam.eps.total_cmp(&CamConfig::image().eps).is_eq());
    assert!(toml::from_str::<FfnConfig>("width = 3").is_err());
    let whole = toml::to_string(&config).expect("text");
    assert_eq!(
        toml::from_str::<FfnConfig>(&whole).expect("a config"),
        config
    );
}
