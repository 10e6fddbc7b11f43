//! GNF: kernels against torch's broadcasting, grids against its `grid_sample`, radiance against scipy's harmonics.

use densely_core::weights::{self, Strictness};
use densely_core::{Model, Result, Tensors, nn, seeded};
use densely_fields::gnf::{
    DecoderConfig, DifGridConfig, GnfConfig, Kernel, MlpDecoderConfig, RbfDecoderConfig, Tiling,
    colour_loss, distance_loss, radiance,
};
use densely_testkit::{Golden, assert_bits, assert_close, assert_near, goldens};
use densely_train::optim::{AdamConfig, OptimConfig};
use tch::nn::{Path, VarStore};
use tch::{Device, Kind, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn largest(xs: &Tensor) -> f64 {
    xs.abs().max().double_value(&[])
}

/// Loads the golden's weights, and compares outputs and all gradients.
fn assert_golden<M: Model>(name: &str, build: impl Fn(&Golden, &Path) -> Result<M>) -> Result<()> {
    let golden = Golden::open(HERE, name);
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || build(&golden, &vs.root()))?;
    nn::check_names(&vs)?;
    let input = golden.tensor("input");
    let tolerance = if input.kind() == Kind::Double {
        1e-10
    } else {
        1e-5
    };
    nn::set_float_kind(&vs, input.kind());
    let theirs = golden.group("weight.");
    weights::load_tensors(&vs, golden.path(), &theirs, Strictness::All)?;
    let input = input.set_requires_grad(true);
    let inputs = Tensors::from([("coords".to_owned(), input.shallow_clone())]);
    let values = model.forward_named(&inputs, true)?.remove("values");
    let values = values.expect("values");
    assert_near(&values, &golden.tensor("output"), tolerance);
    (&values * golden.tensor("cotangent"))
        .sum(values.kind())
        .backward();
    assert_near(&input.grad(), &golden.tensor("grad_input"), tolerance);
    let expected = golden.group("grad.");
    let found = weights::named(&vs);
    assert_eq!(expected.len(), found.len(), "{name}");
    for (parameter, expected) in expected {
        let grad = found[&parameter].grad();
        if parameter.contains("shifts") {
            assert!(!grad.defined() && largest(&expected) == 0.0, "{name}");
        } else {
            assert_near(&grad, &expected, tolerance);
        }
    }
    Ok(())
}

type Loss = fn(&Tensor, &Tensor) -> Result<Tensor>;

#[test]
fn every_kernel_equals_broadcasting() -> Result<()> {
    for name in goldens(HERE, "gnf_decoder_", 7) {
        assert_golden(&name, |golden, vs| {
            golden.config::<RbfDecoderConfig>().build(vs)
        })?;
    }
    Ok(())
}

#[test]
fn models_equal_torch_at_odd_resolutions() -> Result<()> {
    for name in goldens(HERE, "gnf_model_", 8) {
        assert_golden(&name, |golden, vs| golden.config::<GnfConfig>().build(vs))?;
    }
    Ok(())
}

/// The draws are those of torch with the same seed; normal numbers up to the last bits of another vector unit.
#[test]
fn fresh_weights_are_torchs() -> Result<()> {
    let golden = Golden::open(HERE, "gnf_fresh");
    let seed: i64 = golden.meta("seed").parse().expect("a number");
    let vs = VarStore::new(Device::Cpu);
    seeded(seed, || golden.config::<GnfConfig>().build(&vs.root()))?;
    let (expected, found) = (golden.group("weight."), weights::named(&vs));
    assert!(expected.keys().eq(found.keys()), "{:?}", found.keys());
    for (name, expected) in expected {
        if name.starts_with("encoder") {
            assert_close(&found[&name], &expected, 1e-5, 1e-6);
        } else {
            assert_bits(&found[&name], &expected);
        }
    }
    Ok(())
}

/// Far from the origin the expanded square loses all digits, and must not come out below 0.
#[test]
fn squared_distances_are_not_negative() -> Result<()> {
    let vs = VarStore::new(Device::Cpu);
    let decoder = seeded(0, || RbfDecoderConfig::default().build(&vs.root()))?;
    let _no_grad = tch::no_grad_guard();
    let float = (Kind::Float, Device::Cpu);
    let centers = seeded(1, || Tensor::randn([64, 18], float)) + 1e4;
    let mut stored = weights::named(&vs)["centers.0.weight"].shallow_clone();
    stored.copy_(&centers);
    // Without the clamp some are below 0, else this would test nothing.
    let lengths = centers.square().sum_dim_intlist(1i64, true, None);
    let expanded = &lengths - centers.mm(&centers.transpose(0, 1)) * 2.0 + lengths.transpose(0, 1);
    assert!(expanded.min().double_value(&[]) < 0.0);
    let squared = decoder.squared_distances(&centers)?;
    assert!(squared.min().double_value(&[]) >= 0.0);
    assert!(decoder.kernels(&centers)?.max().double_value(&[]) <= 1.0);
    Ok(())
}

/// The terms of the expanded square are summed in f32: of bf16 nothing would be left of their difference.
#[test]
fn half_precision_keeps_the_digits_of_distances() -> Result<()> {
    let vs = VarStore::new(Device::Cpu);
    let decoder = seeded(0, || RbfDecoderConfig::default().build(&vs.root()))?;
    let _no_grad = tch::no_grad_guard();
    nn::set_float_kind(&vs, Kind::BFloat16);
    let double = (Kind::Double, Device::Cpu);
    let features = seeded(1, || Tensor::randn([50, 18], double)).to_kind(Kind::BFloat16);
    let centers = weights::named(&vs)["centers.0.weight"].to_kind(Kind::Double);
    let away = features.to_kind(Kind::Double).unsqueeze(1) - centers;
    let expected = away.square().sum_dim_intlist(-1i64, false, None);
    let squared = decoder.squared_distances(&features)?;
    assert_eq!(squared.kind(), Kind::Float);
    assert_near(&squared, &expected, 1e-5);
    assert_eq!(decoder.forward(&features)?.kind(), Kind::BFloat16);
    Ok(())
}

/// At a centre the distance is 0, where roots have no slope: values and gradients stay finite for every kernel.
#[test]
fn gradients_at_a_centre_are_finite() -> Result<()> {
    for kernel in [
        Kernel::Gaussian,
        Kernel::Multiquadric,
        Kernel::InverseMultiquadric,
        Kernel::Cubic,
        Kernel::ThinPlateSpline,
        Kernel::WendlandC2,
    ] {
        let config = RbfDecoderConfig {
            kernel,
            features: 3,
            kernels: 2,
            ..RbfDecoderConfig::default()
        };
        let vs = VarStore::new(Device::Cpu);
        let decoder = seeded(0, || config.build(&vs.root()))?;
        let centers = weights::named(&vs)["centers.0.weight"]
            .detach()
            .zeros_like();
        {
            let _no_grad = tch::no_grad_guard();
            weights::named(&vs)["centers.0.weight"]
                .shallow_clone()
                .copy_(&centers);
        }
        let features = centers.set_requires_grad(true);
        decoder.forward(&features)?.sum(Kind::Float).backward();
        let betas = weights::named(&vs)["betas.0"].grad();
        for grad in [features.grad(), betas] {
            assert_eq!(grad.isfinite().all().int64_value(&[]), 1, "{kernel:?}");
        }
    }
    Ok(())
}

fn count(build: impl FnOnce(&Path) -> Result<()>) -> Result<u64> {
    let vs = VarStore::new(Device::Cpu);
    build(&vs.root())?;
    nn::check_names(&vs)?;
    Ok(nn::parameter_count(&vs))
}

#[test]
fn counts_are_the_published_ones() -> Result<()> {
    let image = GnfConfig::image();
    assert_eq!(image.encoder.values(), 106_038);
    assert_eq!((image.encoder.features(), image.macs()), (18, 2_496));
    assert_eq!(count(|vs| image.build(vs).map(drop))?, 108_601);
    let decoder = RbfDecoderConfig::default();
    assert_eq!(count(|vs| decoder.build(vs).map(drop))?, 2_563);
    assert_eq!(decoder.macs(), 2_496);
    let unshifted = RbfDecoderConfig {
        shifts: false,
        ..decoder
    };
    assert_eq!(count(|vs| unshifted.build(vs).map(drop))?, 2_563 - 64);
    let DecoderConfig::Rbf(radiance) = GnfConfig::radiance().decoder else {
        panic!("kernels");
    };
    assert_eq!(count(|vs| radiance.build(vs).map(drop))?, 2_801);
    let sdf = GnfConfig::sdf();
    assert_eq!(count(|vs| sdf.build(vs).map(drop))?, 3_514_853);
    assert_eq!(sdf.macs(), 2_368);
    let mlp = MlpDecoderConfig::default();
    let parameters = 20 * 128 + 128 + 128 * 128 + 128 + 128 * 3 + 3;
    assert_eq!(count(|vs| mlp.build(vs).map(drop))?, parameters);
    assert_eq!(mlp.macs(), 20 * 128 + 128 * 128 + 128 * 3);
    Ok(())
}

#[test]
fn grids_are_sized_to_a_budget() -> Result<()> {
    let volume = DifGridConfig {
        dim: 3,
        ..DifGridConfig::default()
    };
    assert_eq!(volume.values(), 10_157_342);
    assert_eq!(volume.sized(3_500_000)?, GnfConfig::sdf().encoder);
    assert_eq!(volume.sized(10_157_342)?, volume);
    for budget in [100_000, 1_000_000, 8_000_000] {
        let values = volume.sized(budget)?.values() as f64;
        assert!((values / budget as f64 - 1.0).abs() < 0.06, "{values}");
    }
    // Halves go to the even number: 5 / 2 = 2.5.
    let level = DifGridConfig {
        channels: vec![1],
        resolutions: vec![5],
        bands: vec![1.0],
        dim: 2,
        ..DifGridConfig::default()
    };
    let quarter = DifGridConfig {
        resolutions: vec![10],
        ..level.clone()
    };
    assert_eq!(quarter.sized(25)?, level);
    assert!(volume.sized(0).is_err());
    let message = volume.sized(1).expect_err("too small").to_string();
    assert!(message.contains("`resolutions`"), "{message}");
    Ok(())
}

/// A band of 2 shows the whole grid in each half of the domain; the released tiling shows it as often as it has cells.
#[test]
fn levels_tile_the_domain() -> Result<()> {
    let of = |tiling: Tiling| DifGridConfig {
        channels: vec![2],
        resolutions: vec![5],
        bands: vec![2.0],
        tiling,
        ..DifGridConfig::default()
    };
    let coords = seeded(0, || Tensor::rand([40, 2], (Kind::Double, Device::Cpu))) - 1.0;
    let distance = |tiling, shift: f64| -> Result<f64> {
        let vs = VarStore::new(Device::Cpu);
        let grid = seeded(1, || of(tiling).build(&vs.root()))?;
        nn::set_float_kind(&vs, Kind::Double);
        let difference = grid.forward(&coords)? - grid.forward(&(&coords + shift))?;
        Ok(largest(&difference))
    };
    assert!(distance(Tiling::Bands, 1.0)? < 1e-9);
    assert!(distance(Tiling::Bands, 0.4)? > 0.1);
    assert!(distance(Tiling::Resolutions, 0.4)? < 1e-9);
    assert!(distance(Tiling::Resolutions, 1.0)? > 0.1);
    Ok(())
}

/// The first coordinate runs along a grid's last axis.
#[test]
fn the_last_axis_is_the_first_coordinate() -> Result<()> {
    let config = DifGridConfig {
        dim: 3,
        channels: vec![1],
        resolutions: vec![4],
        bands: vec![1.0],
        align_corners: true,
        ..DifGridConfig::default()
    };
    let vs = VarStore::new(Device::Cpu);
    let grid = seeded(0, || config.build(&vs.root()))?;
    let _no_grad = tch::no_grad_guard();
    let ramp = Tensor::arange(4, (Kind::Float, Device::Cpu));
    let mut stored = weights::named(&vs)["basis_functions.0"].shallow_clone();
    stored.copy_(&ramp.expand([1, 4, 4, 4], false));
    let coords =
        Tensor::from_slice(&[-1.0f32, 0.9, 0.3, 0.0, -0.2, 0.5, 0.999, 0.1, -1.0]).view([3, 3]);
    let expected = (coords.narrow(1, 0, 1) + 1.0) * 1.5;
    assert_close(&grid.forward(&coords)?, &expected, 1e-6, 1e-6);
    Ok(())
}

#[test]
fn radiance_equals_scipys_harmonics() -> Result<()> {
    let golden = Golden::open(HERE, "gnf_radiance");
    let outputs = golden.tensor("outputs").set_requires_grad(true);
    let found = radiance(&outputs, &golden.tensor("directions"))?;
    assert_near(&found.density, &golden.tensor("density"), 1e-10);
    assert_near(&found.colour, &golden.tensor("colour"), 1e-10);
    let loss = (found.density * golden.tensor("cotangent.density")).sum(None)
        + (found.colour * golden.tensor("cotangent.colour")).sum(None);
    loss.backward();
    assert_near(&outputs.grad(), &golden.tensor("grad_outputs"), 1e-10);
    Ok(())
}

#[test]
fn losses_equal_torchs() -> Result<()> {
    let golden = Golden::open(HERE, "gnf_losses");
    let target = golden.tensor("target");
    let losses: [(&str, Loss); 2] = [("colour", colour_loss), ("distance", distance_loss)];
    for (name, loss) in losses {
        let values = golden.tensor("values").copy().set_requires_grad(true);
        let found = loss(&values, &target)?;
        assert_near(&found, &golden.tensor(name), 1e-12);
        found.backward();
        let expected = golden.tensor(&format!("grad_{name}"));
        assert_near(&values.grad(), &expected, 1e-12);
        // A row for a column would be broadcast.
        let message = loss(&values, &target.select(1, 0)).expect_err("another shape");
        assert!(message.to_string().contains("`target`: expected [13, 3]"));
    }
    Ok(())
}

/// A smooth picture is learned in a few steps by the kernels: the mean error falls below a tenth of its start.
#[test]
fn a_small_model_learns_a_picture() -> Result<()> {
    let config = GnfConfig {
        encoder: DifGridConfig {
            resolutions: vec![6, 8, 10, 12, 14, 16],
            ..DifGridConfig::default()
        },
        ..GnfConfig::image()
    };
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || config.build(&vs.root()))?;
    let coords = densely_fields::fresh::coordinates(&[24, 20])?;
    let (x, y) = (coords.select(1, 0), coords.select(1, 1));
    let target = Tensor::stack(&[(&x * 3.0).sin(), (&x * &y).cos(), &y * 0.5], 1) * 0.5 + 0.5;
    let adam = AdamConfig {
        lr: 1e-2,
        ..AdamConfig::default()
    };
    let mut optimizer = OptimConfig::Adam(adam).build(&vs, &[])?;
    let mut losses = Vec::new();
    for _ in 0..150 {
        let loss = colour_loss(&model.forward(&coords)?, &target)?;
        losses.push(loss.double_value(&[]));
        loss.backward();
        optimizer.step()?;
        optimizer.zero_grad()?;
    }
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < 0.1 * first, "{first} to {last}");
    Ok(())
}

#[test]
fn wrong_input_is_named() -> Result<()> {
    let grid = DifGridConfig::default;
    let short = |field: &str| {
        let mut config = grid();
        match field {
            "dim" => config.dim = 4,
            "channels" => config.channels.clear(),
            "resolutions" => config.resolutions.truncate(2),
            _ => config.bands[1] = 0.0,
        }
        config
    };
    for field in ["dim", "channels", "resolutions", "bands"] {
        let config = GnfConfig {
            encoder: short(field),
            ..GnfConfig::image()
        };
        let message = config.validate().expect_err(field).to_string();
        assert!(message.contains(&format!("`{field}`")), "{message}");
    }
    let endless = DifGridConfig {
        bands: vec![f64::NAN; 6],
        ..grid()
    };
    assert!(endless.validate().is_err());
    let empty = DifGridConfig {
        resolutions: vec![0, 1, 1, 1, 1, 1],
        ..grid()
    };
    assert!(empty.validate().is_err());
    let huge = DifGridConfig {
        resolutions: vec![i64::MAX; 6],
        ..grid()
    };
    assert_eq!(huge.values(), i64::MAX);
    for (decoder, part) in [
        (
            DecoderConfig::Rbf(RbfDecoderConfig {
                features: 17,
                ..RbfDecoderConfig::default()
            }),
            "`features`: must be 18, as the encoder gives, got 17",
        ),
        (
            DecoderConfig::Rbf(RbfDecoderConfig {
                kernels: 0,
                ..RbfDecoderConfig::default()
            }),
            "`kernels`",
        ),
        (
            DecoderConfig::Mlp(MlpDecoderConfig {
                dim: 3,
                ..MlpDecoderConfig::default()
            }),
            "`dim`: must be 2",
        ),
        (
            DecoderConfig::Mlp(MlpDecoderConfig {
                layers: 0,
                ..MlpDecoderConfig::default()
            }),
            "`layers`",
        ),
    ] {
        let config = GnfConfig {
            decoder,
            ..GnfConfig::image()
        };
        let vs = VarStore::new(Device::Cpu);
        let message = config.build(&vs.root()).expect_err(part).to_string();
        assert!(message.contains(part), "{message}");
        assert!(vs.is_empty());
    }
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || GnfConfig::image().build(&vs.root()))?;
    let float = (Kind::Float, Device::Cpu);
    for (coords, part) in [
        (Tensor::zeros([3, 3], float), "expected [_, 2], got [3, 3]"),
        (Tensor::zeros([2], float), "expected [_, 2], got [2]"),
        (Tensor::zeros([], float), "expected [_, 2], got []"),
        (Tensor::zeros([3, 2], (Kind::Double, Device::Cpu)), "Double"),
    ] {
        let message = model.forward(&coords).expect_err(part).to_string();
        assert!(
            message.contains("`coords`") && message.contains(part),
            "{message}"
        );
    }
    assert_eq!(model.forward(&Tensor::zeros([0, 2], float))?.size(), [0, 3]);
    let vs = VarStore::new(Device::Cpu);
    let mlp = seeded(0, || MlpDecoderConfig::default().build(&vs.root()))?;
    let features = Tensor::zeros([3, 18], float);
    let message = mlp.forward(&Tensor::zeros([], float), &features);
    assert!(
        message
            .expect_err("a scalar")
            .to_string()
            .contains("`coords`")
    );
    let message = mlp.forward(&Tensor::zeros([2, 2], float), &features);
    let message = message.expect_err("more features").to_string();
    assert!(message.contains("`features`: expected [2, 18], got [3, 18]"));
    let message = radiance(&features, &features).expect_err("18 outputs");
    assert!(message.to_string().contains("`outputs`: expected [_, 49]"));
    Ok(())
}

#[test]
fn configs_read_back_and_refuse_unknown_fields() {
    for config in [GnfConfig::image(), GnfConfig::sdf(), GnfConfig::radiance()] {
        config.validate().expect("a valid config");
        let text = serde_json::to_string(&config).expect("JSON");
        let read: GnfConfig = serde_json::from_str(&text).expect("a config");
        assert_eq!(read, config);
    }
    for text in [
        r#"{"encode": {}}"#,
        r#"{"encoder": {"dims": 2}}"#,
        r#"{"decoder": {"rbf": {"kernel": "gaussian", "width": 1}}}"#,
        r#"{"decoder": {"knn": {}}}"#,
    ] {
        assert!(serde_json::from_str::<GnfConfig>(text).is_err(), "{text}");
    }
}

#[test]
fn a_level_that_spans_the_domain_tells_its_ends_apart() -> Result<()> {
    let vs = VarStore::new(Device::Cpu);
    let config = GnfConfig::image().quick_to_learn();
    let grid = seeded(0, || config.encoder.build(&vs.root()))?;
    let ends = Tensor::from_slice(&[-1.0f32, 0.3, 1.0, 0.3]).view([2, 2]);
    let features = grid.forward(&ends)?;
    let difference = (features.get(0) - features.get(1)).abs().max();
    assert!(difference.double_value(&[]) > 1e-3);
    // Beyond the ends lies what is there.
    let beyond = Tensor::from_slice(&[-1.1f32, 0.3, 1.1, 0.3]).view([2, 2]);
    assert_bits(&grid.forward(&beyond)?, &features);
    Ok(())
}
