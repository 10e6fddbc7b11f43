//! NeRF, T-NeRF and mip-NeRF against the equations in torch: values, all gradients, names, counts; and mip-NeRF along whole rays.

use densely_core::weights::{self, Strictness};
use densely_core::{Model, Result, Tensors, nn, seeded};
use densely_fields::cam::CamConfig;
use densely_fields::mip_nerf::{self, MipNerf, MipNerfConfig};
use densely_fields::nerf::{NerfConfig, WarpConfig};
use densely_fields::render::Background;
use densely_fields::render::rays::Rays;
use densely_testkit::{Golden, assert_bits, assert_near, goldens};
use tch::nn::{Path, VarStore};
use tch::{Device, Kind, Tensor};

use crate::rendering::tolerance_of;

const HERE: &str = env!("CARGO_MANIFEST_DIR");
const SINGLE: (Kind, Device) = tch::kind::FLOAT_CPU;

fn random(size: &[i64], seed: i64) -> Tensor {
    seeded(seed, || Tensor::rand(size, SINGLE))
}

/// The model with the golden's weights, under the reference's names and no others.
fn loaded<M>(golden: &Golden, build: impl FnOnce(&Path) -> Result<M>) -> Result<(VarStore, M)> {
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || build(&vs.root()))?;
    nn::check_names(&vs)?;
    nn::set_float_kind(&vs, tolerance_of(golden).0);
    let theirs = golden.group("weight.");
    weights::load_tensors(&vs, golden.path(), &theirs, Strictness::All)?;
    Ok((vs, model))
}

fn assert_gradients(golden: &Golden, vs: &VarStore, tolerance: f64) {
    let found = vs.variables();
    for (name, xs) in weights::named(vs) {
        if xs.requires_grad() {
            let expected = golden.tensor(&format!("grad.{name}"));
            assert_near(&found[&name].grad(), &expected, tolerance);
        }
    }
}

#[test]
fn networks_and_their_gradients_equal_the_equations() -> Result<()> {
    let names: Vec<String> = goldens(HERE, "radiance_", 16)
        .into_iter()
        .filter(|name| !name.contains("render"))
        .collect();
    assert_eq!(names.len(), 14);
    for name in names {
        let golden = Golden::open(HERE, &name);
        let (_, tolerance) = tolerance_of(&golden);
        let (vs, model) = loaded(&golden, |vs| {
            Ok(match golden.meta("model") {
                "nerf" => Box::new(golden.config::<NerfConfig>().build(vs)?) as Box<dyn Model>,
                _ => Box::new(golden.config::<MipNerfConfig>().build(vs)?),
            })
        })?;
        let inputs: Tensors = golden
            .group("input.")
            .into_iter()
            .map(|(name, xs)| (name, xs.set_requires_grad(true)))
            .collect();
        let outputs = model.forward_named(&inputs, false)?;
        let values = &outputs["values"];
        assert_near(values, &golden.tensor("output.values"), tolerance);
        (values * golden.tensor("cotangent.values"))
            .sum(None)
            .backward();
        for (name, expected) in golden.group("grad.input.") {
            assert_near(&inputs[&name].grad(), &expected, tolerance);
        }
        assert_gradients(&golden, &vs, tolerance);
    }
    Ok(())
}

/// Cones, both levels, the draws between them and the loss.
#[test]
fn mip_nerf_renders_rays_as_the_equations_do() -> Result<()> {
    for name in goldens(HERE, "radiance_mip_render_", 2) {
        let golden = Golden::open(HERE, &name);
        let (_, tolerance) = tolerance_of(&golden);
        let (vs, model) = loaded(&golden, |vs| golden.config::<MipNerfConfig>().build(vs))?;
        let of = |name: &str| golden.tensor(name);
        let rays = Rays::new(of("origins"), of("dirs"))?;
        let (near, far, radius) = (of("near"), of("far"), of("radius"));
        for level in 0..2 {
            let t = of(&format!("t{level}"));
            let (means, vars) = mip_nerf::cast(&t, &rays, &radius)?;
            assert_near(&means, &of(&format!("means{level}")), tolerance);
            assert_near(&vars, &of(&format!("vars{level}")), tolerance);
        }
        let drawn = mip_nerf::resample(&of("t0"), &of("weights0"), Some(&of("jitter1")), 0.01)?;
        assert_near(&drawn, &of("t1"), tolerance);
        let jitter = [of("jitter0"), of("jitter1")];
        let levels = model.render(&rays, &radius, [&near, &far], Some(&jitter))?;
        assert_eq!(levels.len(), 2);
        for (level, seen) in levels.iter().enumerate() {
            let rgb = seen.over(Background::White);
            for (name, xs) in [
                ("rgb", &rgb),
                ("opacity", &seen.opacity),
                ("depth", &seen.depth),
                ("weights", &seen.weights),
            ] {
                assert_near(xs, &of(&format!("{name}{level}")), tolerance);
            }
        }
        let loss = mip_nerf::loss(&levels, Background::White, &of("pixels"))?;
        assert_near(&loss, &of("loss"), tolerance);
        loss.backward();
        assert_gradients(&golden, &vs, tolerance);
        // Evaluation draws nothing.
        let even = || model.render(&rays, &radius, [&near, &far], None);
        assert_bits(&even()?[1].rgb, &even()?[1].rgb);
        let one = model.render(&rays, &radius, [&near, &far], Some(&jitter[..1]));
        let message = one.expect_err("a level without jitter").to_string();
        assert!(message.contains("`jitter`"), "{message}");
    }
    Ok(())
}

/// A ray that saw nothing is drawn from evenly, and one that saw a wall mostly there.
#[test]
fn draws_follow_the_weights() -> Result<()> {
    let t = Tensor::from_slice(&[0.0, 1.0, 2.0, 3.0, 4.0]).view([1, 5]);
    let even = mip_nerf::resample(
        &t,
        &Tensor::zeros([1, 4], (Kind::Double, Device::Cpu)),
        None,
        0.0,
    )?;
    assert_near(&even, &t, 1e-6);
    let wall = Tensor::from_slice(&[0.0, 0.0, 0.0, 1.0]).view([1, 4]);
    let drawn = mip_nerf::resample(&t, &wall, None, 0.0)?;
    // Blurred: 0, 0, 1/2, 1.
    let expected = Tensor::from_slice(&[2.0, 2.75, 3.25, 3.625, 4.0]).view([1, 5]);
    assert_near(&drawn, &expected, 1e-6);
    // Sizes that fit, in another kind.
    let single = t.to_kind(Kind::Float);
    for (t, jitter, name) in [(&single, &t, "`t`"), (&t, &single, "`jitter`")] {
        let error = mip_nerf::resample(t, &wall, Some(jitter), 0.0).expect_err(name);
        assert!(error.to_string().contains(name), "{error}");
    }
    Ok(())
}

#[test]
fn presets_have_the_published_sizes() -> Result<()> {
    for (config, params, macs) in [
        (NerfConfig::nerf(), 595_844, 593_408),
        (NerfConfig::t_nerf(), 613_191, 610_496),
        (NerfConfig::nerf_cam(), 595_844 + 8 * 6 * 512 * 512, 593_408),
        (NerfConfig::t_nerf_cam(), 613_271, 610_496),
    ] {
        let vs = VarStore::new(Device::Cpu);
        config.build(&vs.root())?;
        assert_eq!((nn::parameter_count(&vs), config.macs()), (params, macs));
    }
    for (config, params) in [
        (MipNerfConfig::mip_nerf(), 612_740),
        (MipNerfConfig::mip_nerf_cam(), 613_220),
    ] {
        let vs = VarStore::new(Device::Cpu);
        config.build(&vs.root())?;
        assert_eq!((nn::parameter_count(&vs), config.macs()), (params, 610_304));
    }
    let vs = VarStore::new(Device::Cpu);
    NerfConfig::t_nerf().build(&(vs.root() / "part"))?;
    let warp: i64 = weights::named(&vs)
        .iter()
        .filter(|(name, xs)| name.starts_with("part.warp.") && xs.requires_grad())
        .map(|(_, xs)| xs.numel() as i64)
        .sum();
    assert_eq!(warp, 17_347);
    Ok(())
}

/// Glorot's bounds, zero biases, and a warp that hardly moves anything, always outwards.
#[test]
fn weights_start_as_nerfaccs() -> Result<()> {
    let vs = VarStore::new(Device::Cpu);
    seeded(0, || NerfConfig::t_nerf_cam().build(&vs.root()))?;
    let named = weights::named(&vs);
    for (name, xs) in &named {
        if name.ends_with("bias") {
            assert_eq!(xs.abs().max().double_value(&[]), 0.0, "{name}");
        } else if name == "warp.output_layer.weight" {
            let (low, high) = (xs.min().double_value(&[]), xs.max().double_value(&[]));
            assert!(low >= 0.0 && high <= 1e-4 && high > 9e-5, "{low} {high}");
        } else if name.ends_with("weight") {
            let [out, into] = <[i64; 2]>::try_from(xs.size()).expect("a matrix");
            let bound = (6.0 / (out + into) as f64).sqrt();
            let largest = xs.abs().max().double_value(&[]);
            assert!(
                largest <= bound * (1.0 + 1e-6) && largest > 0.95 * bound,
                "{name}: {largest}"
            );
        }
    }
    let scales = named["nerf.posi_encoder.scales"].copy();
    let powers: Vec<i64> = (0..10).map(|i| 1 << i).collect();
    assert_bits(&scales, &Tensor::from_slice(&powers));
    // Grids that scale by 1 and shift by 0 change nothing.
    let (plain, same) = (VarStore::new(Device::Cpu), random(&[5, 3], 0));
    let without = seeded(0, || NerfConfig::t_nerf().build(&plain.root()))?;
    let with = seeded(0, || {
        NerfConfig::t_nerf_cam().build(&VarStore::new(Device::Cpu).root())
    })?;
    let time = random(&[5, 1], 1);
    let values = [&without, &with].map(|model| model.forward(&same, &same, Some(&time)));
    let [without, with] = values;
    assert_near(&with?, &without?, 1e-6);
    Ok(())
}

#[test]
fn the_density_alone_is_that_of_the_whole_network() -> Result<()> {
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || NerfConfig::t_nerf_cam().build(&vs.root()))?;
    let (coords, time) = (random(&[40, 3], 0), random(&[40, 1], 1));
    let values = model.forward(&coords, &coords, Some(&time))?;
    let density = model.density(&coords, Some(&time))?;
    assert_eq!(density.size(), [40]);
    assert_bits(&density, &values.select(1, 3).contiguous());
    let values = model.forward(
        &coords.narrow(0, 0, 0),
        &coords.narrow(0, 0, 0),
        Some(&time.narrow(0, 0, 0)),
    )?;
    assert_eq!(values.size(), [0, 4]);
    Ok(())
}

/// Variance makes waves fade: a Gaussian as wide as the scene shows nothing of its place.
#[test]
fn wide_cones_do_not_see_detail() -> Result<()> {
    let vs = VarStore::new(Device::Cpu);
    let model: MipNerf = seeded(0, || MipNerfConfig::mip_nerf().build(&vs.root()))?;
    let (coords, dirs) = (random(&[2, 3], 0), Tensor::ones([2, 3], SINGLE));
    let wide = model.forward(&coords, Some(&Tensor::full([2, 3], 1e3, SINGLE)), &dirs)?;
    assert_near(&wide.select(0, 0), &wide.select(0, 1), 1e-6);
    let sharp = model.forward(&coords, None, &dirs)?;
    let apart = (sharp.select(0, 0) - sharp.select(0, 1)).abs().max();
    assert!(apart.double_value(&[]) > 1e-3);
    Ok(())
}

#[test]
fn wrong_configs_and_inputs_are_errors_that_name_them() -> Result<()> {
    let vs = VarStore::new(Device::Cpu);
    let refused = |message: String, part: &str| {
        assert!(message.contains(part), "{message} does not name {part}");
    };
    let nerf = NerfConfig::nerf;
    for (field, config) in [
        ("`depth`", NerfConfig { depth: 0, ..nerf() }),
        ("`width`", NerfConfig { width: 0, ..nerf() }),
        ("`skip`", NerfConfig { skip: 0, ..nerf() }),
        (
            "`colour_width`",
            NerfConfig {
                colour_width: -1,
                ..nerf()
            },
        ),
        (
            "`place_degrees`",
            NerfConfig {
                place_degrees: 0,
                ..nerf()
            },
        ),
        (
            "`direction_degrees`",
            NerfConfig {
                direction_degrees: 40,
                ..nerf()
            },
        ),
        (
            "`warp.degrees`",
            NerfConfig {
                warp: Some(WarpConfig {
                    degrees: 0,
                    ..WarpConfig::default()
                }),
                ..nerf()
            },
        ),
        (
            "`cam.grid`",
            NerfConfig {
                cam: Some(CamConfig::time()),
                ..nerf()
            },
        ),
        (
            "`cam.grid`",
            NerfConfig {
                cam: Some(CamConfig::image()),
                ..nerf()
            },
        ),
        (
            "`cam.norm`",
            NerfConfig {
                cam: Some(CamConfig::directions()),
                ..nerf()
            },
        ),
    ] {
        refused(
            config.build(&vs.root()).expect_err(field).to_string(),
            field,
        );
    }
    let mip = MipNerfConfig::mip_nerf;
    for (field, config) in [
        (
            "`samples`",
            MipNerfConfig {
                samples: 0,
                ..mip()
            },
        ),
        ("`levels`", MipNerfConfig { levels: 0, ..mip() }),
        (
            "`resample_padding`",
            MipNerfConfig {
                resample_padding: -1.0,
                ..mip()
            },
        ),
        (
            "`cam.grid`",
            MipNerfConfig {
                cam: Some(CamConfig::time()),
                ..mip()
            },
        ),
    ] {
        refused(
            config.build(&vs.root()).expect_err(field).to_string(),
            field,
        );
    }
    let small = NerfConfig {
        width: 8,
        depth: 2,
        ..nerf()
    };
    let still = small.build(&(vs.root() / "still"))?;
    let moving = NerfConfig {
        warp: Some(WarpConfig::default()),
        ..small
    }
    .build(&(vs.root() / "moving"))?;
    let cones = MipNerfConfig {
        width: 8,
        depth: 2,
        ..mip()
    }
    .build(&(vs.root() / "cones"))?;
    let xs = Tensor::rand([4, 3], SINGLE);
    let time = Tensor::rand([4, 1], SINGLE);
    let all = |names: &[(&str, &Tensor)]| -> Tensors {
        names
            .iter()
            .map(|(name, xs)| ((*name).to_owned(), xs.shallow_clone()))
            .collect()
    };
    let message = |model: &dyn Model, names: &[(&str, &Tensor)]| {
        model
            .forward_named(&all(names), false)
            .expect_err("inputs that do not fit")
            .to_string()
    };
    refused(message(&still, &[("coords", &xs)]), "`dirs`");
    refused(message(&still, &[("dirs", &xs)]), "`coords`");
    refused(
        message(&still, &[("coords", &xs), ("dirs", &xs), ("time", &time)]),
        "`time`",
    );
    refused(
        still
            .forward(&xs, &xs, Some(&time))
            .expect_err("no time")
            .to_string(),
        "`time`",
    );
    refused(
        message(&moving, &[("coords", &xs), ("dirs", &xs)]),
        "`time`",
    );
    refused(
        message(&moving, &[("coords", &xs), ("dirs", &xs), ("time", &xs)]),
        "`time`",
    );
    refused(
        message(&still, &[("coords", &xs), ("dirs", &time)]),
        "`dirs`",
    );
    let double = xs.to_kind(Kind::Double);
    refused(
        message(&still, &[("coords", &double), ("dirs", &xs)]),
        "`coords`",
    );
    refused(
        message(&cones, &[("coords", &xs), ("dirs", &double)]),
        "`dirs`",
    );
    refused(
        message(&cones, &[("coords", &xs.unsqueeze(0)), ("dirs", &xs)]),
        "`coords`",
    );
    refused(
        message(&cones, &[("coords", &xs), ("dirs", &xs.unsqueeze(0))]),
        "`dirs`",
    );
    refused(
        message(&cones, &[("coords", &xs), ("dirs", &xs), ("vars", &time)]),
        "`vars`",
    );
    Ok(())
}

#[test]
fn configs_read_back_and_refuse_unknown_fields() {
    for config in [
        NerfConfig::t_nerf_cam(),
        NerfConfig::nerf_cam(),
        NerfConfig::nerf(),
    ] {
        let text = serde_json::to_string(&config).expect("JSON");
        assert_eq!(
            serde_json::from_str::<NerfConfig>(&text).expect("a config"),
            config
        );
    }
    let text = serde_json::to_string(&MipNerfConfig::mip_nerf_cam()).expect("JSON");
    assert_eq!(
        serde_json::from_str::<MipNerfConfig>(&text).expect("a config"),
        MipNerfConfig::mip_nerf_cam()
    );
    assert!(serde_json::from_str::<NerfConfig>(r#"{"widht": 3}"#).is_err());
    assert!(serde_json::from_str::<MipNerfConfig>(r#"{"widht": 3}"#).is_err());
}
