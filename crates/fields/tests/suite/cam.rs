//! CAM's modulations against torch, what its grids can learn, and its compression.

use std::collections::BTreeMap;

use densely_core::{Model, Result, Tensors, nn, seeded, weights};
use densely_fields::cam::compress::{CodedSize, Exchanged, Quantiser, coded_size, model_size};
use densely_fields::cam::{CamConfig, Grid, Modulation, Norm, TemporalConfig};
use densely_fields::ffn::FfnConfig;
use densely_testkit::{Golden, assert_bits, assert_close, assert_near, goldens};
use densely_train::optim::{AdamConfig, GroupRule, OptimConfig};
use serde::Deserialize;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn fill(param: &Tensor, values: &Tensor) {
    let _no_grad = tch::no_grad_guard();
    param.shallow_clone().copy_(values);
}

fn build(config: &CamConfig, kind: Kind) -> Result<(VarStore, Modulation)> {
    let vs = VarStore::new(Device::Cpu);
    let cam = config.build(&vs.root())?;
    nn::set_float_kind(&vs, kind);
    Ok((vs, cam))
}

#[test]
fn modulations_and_their_gradients_equal_torch() -> Result<()> {
    let mut names = goldens(HERE, "cam_", 12);
    names.retain(|name| name != "cam_video" && name != "cam_quantised");
    for name in names {
        let golden = Golden::open(HERE, &name);
        let (kind, tolerance) = match golden.meta("dtype") {
            "float64" => (Kind::Double, 1e-9),
            _ => (Kind::Float, 1e-5),
        };
        let config: CamConfig = golden.config();
        let (_vs, cam) = build(&config, kind)?;
        let affine = golden.tensor("affine");
        assert_eq!(cam.affine.size(), affine.size(), "{name}");
        assert_eq!(config.grid.values(), affine.numel() as i64, "{name}");
        fill(&cam.affine, &affine);
        let input = |field: &str| golden.tensor(field).set_requires_grad(true);
        let (h, coords) = (input("h"), input("coords"));
        let y = cam.forward(&h, &coords)?;
        assert_near(&y, &golden.tensor("y"), tolerance);
        (y * golden.tensor("cotangent")).sum(kind).backward();
        for (field, xs) in [("affine", &cam.affine), ("h", &h), ("coords", &coords)] {
            let expected = golden.tensor(&format!("grad_{field}"));
            assert_near(&xs.grad(), &expected, tolerance);
        }
    }
    Ok(())
}

#[test]
fn temporal_modulation_equals_torch() -> Result<()> {
    let golden = Golden::open(HERE, "cam_video");
    let vs = VarStore::new(Device::Cpu);
    let cam = golden.config::<TemporalConfig>().build(&vs.root())?;
    let keys: Vec<String> = weights::named(&vs).into_keys().collect();
    assert_eq!(keys, ["mod_grid.0", "mod_grid.1"]);
    nn::set_float_kind(&vs, Kind::Double);
    fill(&cam.scale, &golden.tensor("scale"));
    fill(&cam.shift, &golden.tensor("shift"));
    let xs = golden.tensor("xs").set_requires_grad(true);
    let times = golden.tensor("times");
    let y = cam.forward(&xs, &times)?;
    assert_near(&y, &golden.tensor("y"), 1e-9);
    (y * golden.tensor("cotangent"))
        .sum(Kind::Double)
        .backward();
    for (field, part) in [("xs", &xs), ("scale", &cam.scale), ("shift", &cam.shift)] {
        let expected = golden.tensor(&format!("grad_{field}"));
        assert_near(&part.grad(), &expected, 1e-9);
    }
    let beyond = Tensor::from_slice(&[-3.0, 0.0, 0.0, 1.0, 1.0, 7.0]);
    let ends = Tensor::from_slice(&[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    assert_bits(&cam.forward(&xs, &beyond)?, &cam.forward(&xs, &ends)?);
    for (xs, times) in [
        (xs.narrow(1, 0, 2), times.shallow_clone()),
        (xs.shallow_clone(), times.narrow(0, 0, 5)),
        (xs.shallow_clone(), times.to_kind(Kind::Float)),
    ] {
        assert!(cam.forward(&xs, &times).is_err());
    }
    Ok(())
}

/// One cell of a grid of 5 rows and 8 columns is raised; the point there, and no other, is scaled by it. Rows run along the parameter's last axis.
#[test]
fn rows_run_along_the_last_axis() -> Result<()> {
    let config = CamConfig {
        grid: Grid::Plane {
            rows: 5,
            columns: 8,
        },
        norm: Norm::None,
        ..CamConfig::image()
    };
    let (_vs, cam) = build(&config, Kind::Double)?;
    assert_eq!(cam.affine.size(), [1, 2, 8, 5]);
    fill(
        &cam.affine.narrow(1, 0, 1).narrow(2, 6, 1).narrow(3, 1, 1),
        &Tensor::from(3.0),
    );
    let at = |row: f64, column: f64| Tensor::from_slice(&[row / 4.0, column / 7.0]).view([1, 2]);
    let h = Tensor::ones([1, 1], tch::kind::DOUBLE_CPU);
    let y = |row: f64, column: f64| -> Result<f64> {
        Ok(cam.forward(&h, &at(row, column))?.double_value(&[0, 0]))
    };
    assert!((y(1.0, 6.0)? - 3.0).abs() < 1e-12);
    assert!((y(1.0, 5.0)? - 1.0).abs() < 1e-12);
    assert!((y(2.0, 6.0)? - 1.0).abs() < 1e-12);
    assert!((y(1.5, 6.0)? - 2.0).abs() < 1e-12);
    Ok(())
}

/// A fresh modulation only normalises; every kind of grid.
#[test]
fn fresh_modulations_change_nothing_but_the_norm() -> Result<()> {
    let h = seeded(0, || Tensor::randn([6, 3, 5], tch::kind::DOUBLE_CPU));
    for config in [
        CamConfig::image(),
        CamConfig::signal(),
        CamConfig::time(),
        CamConfig::directions(),
        CamConfig {
            grid: Grid::TriPlane {
                side: 8,
                live_shift: true,
            },
            ..CamConfig::tri_plane()
        },
    ] {
        let (_vs, cam) = build(&config, Kind::Double)?;
        let dims = config.grid.dims();
        let coords = seeded(1, || Tensor::rand([6, dims], tch::kind::DOUBLE_CPU));
        let y = cam.forward(&h, &coords)?;
        let over: &[i64] = match config.norm {
            Norm::None => {
                assert_close(&y, &h, 1e-12, 1e-12);
                continue;
            }
            Norm::Point => &[2],
            Norm::Ray => &[1, 2],
        };
        let zeros = y.mean_dim(over, false, Kind::Double);
        assert_close(&zeros, &zeros.zeros_like(), 0.0, 1e-12);
        let ones = y.square().mean_dim(over, false, Kind::Double);
        assert_close(&ones, &ones.ones_like(), 1e-3, 0.0);
    }
    Ok(())
}

/// Three planes of zeros multiplied: nothing ever moves them. Two of ones, and the third learns.
#[test]
fn the_shift_of_three_planes_is_dead_as_released_and_alive_when_asked() -> Result<()> {
    for live_shift in [false, true] {
        let config = CamConfig {
            grid: Grid::TriPlane {
                side: 6,
                live_shift,
            },
            ..CamConfig::tri_plane()
        };
        let (vs, cam) = build(&config, Kind::Double)?;
        let (h, coords) = seeded(0, || {
            let h = Tensor::randn([40, 3], tch::kind::DOUBLE_CPU);
            (h, Tensor::rand([40, 3], tch::kind::DOUBLE_CPU) * 2.0 - 1.0)
        });
        let optim = OptimConfig::Adam(AdamConfig::default());
        let mut optimizer = optim.build(&vs, &[])?;
        let [_, shift] = cam.scale_and_shift(&coords)?;
        assert_close(&shift, &shift.zeros_like(), 0.0, 0.0);
        let mut moved = 0.0;
        for _ in 0..3 {
            optimizer.zero_grad()?;
            (cam.forward(&h, &coords)? - 2.0)
                .square()
                .mean(Kind::Double)
                .backward();
            let grad = cam.affine.grad();
            let of_scale = grad.narrow(0, 0, 3).abs().sum(Kind::Double);
            assert!(of_scale.double_value(&[]) > 0.0);
            moved += grad
                .narrow(0, 3, 3)
                .abs()
                .sum(Kind::Double)
                .double_value(&[]);
            optimizer.step()?;
        }
        let [_, shift] = cam.scale_and_shift(&coords)?;
        let largest = shift.abs().max().double_value(&[]);
        assert_eq!((moved > 0.0, largest > 0.0), (live_shift, live_shift));
    }
    Ok(())
}

/// Upward rays all read the horizon, and azimuths meet the grid's ends at the back.
#[test]
fn directions_read_the_cells_of_their_angles() -> Result<()> {
    let config = CamConfig {
        norm: Norm::None,
        ..CamConfig::directions()
    };
    let (_vs, cam) = build(&config, Kind::Double)?;
    let cells = Tensor::arange(30, tch::kind::DOUBLE_CPU).view([10, 3]);
    fill(&cam.affine.select(1, 0).squeeze(), &cells);
    let read = |x: f64, y: f64, z: f64| -> Result<f64> {
        let [scale, _] = cam.scale_and_shift(&Tensor::from_slice(&[x, y, z]).view([1, 3]))?;
        Ok(scale.double_value(&[0, 0]))
    };
    let near = |found: f64, expected: f64| (found - expected).abs() < 1e-9;
    assert!(near(read(1.0, 0.0, 0.0)?, 13.5), "half way around: row 4.5");
    assert!(near(read(-1.0, -1e-15, 0.0)?, 0.0));
    assert!(near(read(-1.0, 0.0, 0.0)?, 27.0));
    assert!(
        near(read(1.0, 0.0, -1.0)?, 14.5),
        "45° down: the middle column"
    );
    assert!(near(read(0.0, 0.0, -1.0)?, 15.5), "straight down");
    assert!(near(read(1.0, 0.0, 0.5)?, 13.5));
    assert!(near(read(0.0, 0.0, 1.0)?, 13.5));
    Ok(())
}

#[test]
fn inputs_that_do_not_fit_are_errors_that_name_them() -> Result<()> {
    let (_vs, cam) = build(&CamConfig::image(), Kind::Float)?;
    let float = |size: &[i64]| Tensor::zeros(size, tch::kind::FLOAT_CPU);
    for (h, coords, name) in [
        (float(&[4]), float(&[4, 2]), "`h`"),
        (float(&[4, 3, 2, 5]), float(&[4, 2]), "`h`"),
        (float(&[4, 5]), float(&[4, 3]), "`coords`"),
        (float(&[4, 5]), float(&[5, 2]), "`coords`"),
        (float(&[4, 3, 5]), float(&[3, 2]), "`coords`"),
        (float(&[4, 5]), float(&[]), "`coords`"),
        (
            float(&[4, 5]),
            float(&[4, 2]).to_kind(Kind::Double),
            "`coords`",
        ),
    ] {
        let text = cam.forward(&h, &coords).expect_err("a misfit").to_string();
        assert!(text.contains(name), "{text}");
    }
    let (_vs, rays) = build(&CamConfig::directions(), Kind::Float)?;
    let text = rays
        .forward(&float(&[4, 5]), &float(&[4, 3]))
        .expect_err("no rays");
    assert!(
        text.to_string().contains("[rays, samples, channels]"),
        "{text}"
    );
    let inputs =
        |h: Tensor| Tensors::from([("h".to_owned(), h), ("coords".to_owned(), float(&[4, 2]))]);
    let y = cam.forward_named(&inputs(float(&[4, 5])), false)?;
    assert_eq!(y["y"].size(), [4, 5]);
    let wrong = cam.forward_named(&inputs(float(&[4, 5]).to_kind(Kind::Int)), false);
    assert!(wrong.expect_err("integers").to_string().contains("`h`"));
    let mut absent = inputs(float(&[4, 5]));
    absent.remove("coords");
    let wrong = cam
        .forward_named(&absent, false)
        .expect_err("no coordinates");
    assert!(wrong.to_string().contains("`coords`"), "{wrong}");
    Ok(())
}

/// A picture with the edges and scales of photographs: coloured discs that cover each other, with radii of a power law ("dead leaves").
/// Coordinates `[side², 2]` and colours `[side², 3]` in 0..1.
fn picture(side: i64) -> (Tensor, Tensor) {
    let line = (Tensor::arange(side, tch::kind::FLOAT_CPU) + 0.5) / side as f64;
    let grid = Tensor::meshgrid_indexing(&[&line, &line], "ij");
    let coords = Tensor::stack(&grid, -1).view([-1, 2]);
    let discs = seeded(0, || Tensor::rand([300, 6], tch::kind::FLOAT_CPU));
    let (smallest, largest) = (0.02, 0.4f64);
    let mut colours = Tensor::full([side * side, 3], 0.5, tch::kind::FLOAT_CPU);
    for i in 0..300 {
        let disc = discs.select(0, i);
        let share = disc.double_value(&[0]) * (1.0 - (smallest / largest).powi(2));
        let radius = smallest / (1.0 - share).sqrt();
        let away = (&coords - disc.narrow(0, 1, 2)).square();
        let away = away.sum_dim_intlist(1, true, Kind::Float); // [side², 1]
        let colour = disc.narrow(0, 3, 3).unsqueeze(0);
        colours = colour.where_self(&away.lt(radius * radius), &colours);
    }
    (coords, colours)
}

/// Of the published comparison the direction: from the same seed, with the same steps and rates, the network with grids fits a picture better.
/// Sigma and cells are to the picture's side as published for 512 pixels.
#[test]
fn cam_fits_a_picture_at_least_as_well_as_its_baseline() -> Result<()> {
    let side = 48;
    let (coords, target) = picture(side);
    let fit = |cam: Option<CamConfig>| -> Result<f64> {
        let config = FfnConfig {
            frequencies: 64,
            hidden: 64,
            sigma: 10.0 * side as f64 / 512.0,
            cam,
            ..FfnConfig::ffn_image()
        };
        let vs = VarStore::new(Device::Cpu);
        let model = seeded(0, || config.build(&vs.root()))?;
        let grids = GroupRule::new(|name, _| name.ends_with("affine"), 10.0, None);
        let mut optimizer = OptimConfig::Adam(AdamConfig::default()).build(&vs, &[grids])?;
        let mut error = f64::NAN;
        for _ in 0..150 {
            optimizer.zero_grad()?;
            let loss = (model.forward(&coords)? - &target)
                .square()
                .mean(Kind::Float)
                * 0.5;
            loss.backward();
            optimizer.step()?;
            error = loss.double_value(&[]) * 2.0;
        }
        Ok(-10.0 * error.log10())
    };
    let cells = 32 * side / 512;
    let grid = Grid::Plane {
        rows: cells,
        columns: cells,
    };
    let (plain, cam) = (
        fit(None)?,
        fit(Some(CamConfig {
            grid,
            ..CamConfig::image()
        }))?,
    );
    assert!(plain > 14.0, "the baseline learns: {plain:.2} dB");
    assert!(cam > plain + 1.0, "{cam:.2} dB against {plain:.2} dB");
    Ok(())
}

#[derive(Debug, Deserialize)]
struct Size {
    values: u64,
    distinct: u64,
    shannon_bits: f64,
    huffman_bits: u64,
}

#[test]
fn quantised_values_gradients_and_sizes_equal_the_formulas() -> Result<()> {
    let golden = Golden::open(HERE, "cam_quantised");
    let sizes: BTreeMap<String, Size> = serde_json::from_str(golden.meta("sizes")).expect("sizes");
    for (rule, case) in [
        (Quantiser::Symmetric { bits: 8 }, "symmetric.8"),
        (Quantiser::Symmetric { bits: 4 }, "symmetric.4"),
        (Quantiser::Tanh { bits: 8 }, "tanh.8"),
        (Quantiser::Tanh { bits: 6 }, "tanh.6"),
        (Quantiser::Tanh { bits: 2 }, "tanh.2"),
    ] {
        let expected = |field: &str| golden.tensor(&format!("{case}.{field}"));
        let ws = golden.tensor("weights").copy().set_requires_grad(true);
        let quantised = rule.quantise(&ws);
        assert_close(&quantised, &expected("values"), 1e-12, 1e-14);
        let levels = rule.levels(&ws);
        assert_bits(&levels, &expected("levels"));
        (quantised * golden.tensor("cotangent"))
            .sum(Kind::Double)
            .backward();
        assert_close(&ws.grad(), &expected("grad"), 1e-12, 1e-14);
        let (ours, theirs) = (coded_size(&levels)?, &sizes[case]);
        assert_eq!(ours.values, theirs.values);
        assert_eq!(ours.distinct, theirs.distinct);
        assert_eq!(ours.huffman_bits, theirs.huffman_bits);
        assert!((ours.shannon_bits - theirs.shannon_bits).abs() <= 1e-12 * theirs.shannon_bits);
        // What a code by whole bits can lose; two bits and the tangent leave but one level, of no information.
        assert!(ours.huffman_bits as f64 >= ours.shannon_bits - 1e-6);
        assert!(ours.huffman_bits as f64 <= ours.shannon_bits + ours.values as f64);
    }
    Ok(())
}

#[test]
fn sizes_of_few_values_are_right() -> Result<()> {
    let of = |levels: &[i64]| coded_size(&Tensor::from_slice(levels));
    assert_eq!(of(&[])?, CodedSize::default());
    let one = of(&[7, 7, 7])?;
    assert_eq!((one.huffman_bits, one.distinct), (3, 1));
    assert!(one.shannon_bits.abs() < 1e-12);
    // Shares 1/2, 1/4, 1/8, 1/8: Huffman's code reaches the entropy.
    let four = of(&[0, 0, 0, 0, 1, 1, -2, 3])?;
    assert_eq!(four.huffman_bits, 4 + 2 * 2 + 3 + 3);
    assert!((four.shannon_bits - 14.0).abs() < 1e-12);
    assert!(coded_size(&Tensor::from_slice(&[0.5f32])).is_err());
    for bits in [0, 1, 17] {
        assert!(Quantiser::Symmetric { bits }.validate().is_err());
    }
    assert_bits(
        &Quantiser::Symmetric { bits: 8 }.levels(&Tensor::zeros([3], tch::kind::FLOAT_CPU)),
        &Tensor::zeros([3], tch::kind::INT64_CPU),
    );
    Ok(())
}

/// The rule of the 8-bit scenes, and FFNeRV's with an output layer of its own.
fn rule_of(name: &str) -> Option<Quantiser> {
    if name.ends_with("bias") {
        None
    } else if name.starts_with("FC_final") {
        Some(Quantiser::Tanh { bits: 6 })
    } else {
        Some(Quantiser::Symmetric { bits: 8 })
    }
}

#[test]
fn a_network_trains_with_its_quantised_values() -> Result<()> {
    let config = FfnConfig {
        frequencies: 5,
        hidden: 7,
        layers: 1,
        cam: Some(CamConfig {
            grid: Grid::Plane {
                rows: 3,
                columns: 4,
            },
            ..CamConfig::image()
        }),
        ..FfnConfig::ffn_image()
    };
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || config.build(&vs.root()))?;
    nn::set_float_kind(&vs, Kind::Double);
    let own: Tensors = copies(&vs);
    let coords = seeded(1, || Tensor::rand([20, 2], tch::kind::DOUBLE_CPU));
    let exchanged = Exchanged::new(&vs, rule_of)?;
    for (name, xs) in weights::named(&vs) {
        let expected = match rule_of(&name) {
            Some(rule) if xs.requires_grad() => rule.quantise(&own[&name]),
            _ => own[&name].shallow_clone(),
        };
        assert_bits(&xs.detach(), &expected);
    }
    model
        .forward(&coords)?
        .square()
        .mean(Kind::Double)
        .backward();
    let raw: Tensors = weights::named(&vs)
        .into_iter()
        .filter(|(_, xs)| xs.requires_grad())
        .map(|(name, xs)| (name, xs.grad().copy()))
        .collect();
    drop(exchanged);
    for (name, xs) in weights::named(&vs) {
        assert_bits(&xs.detach(), &own[&name]);
        let Some(raw) = raw.get(&name) else {
            continue;
        };
        let expected = match rule_of(&name) {
            Some(Quantiser::Tanh { .. }) => raw * (1.0 - own[&name].tanh().square()),
            _ => raw.shallow_clone(),
        };
        assert_close(&xs.grad(), &expected, 1e-12, 1e-15);
    }
    assert!(Exchanged::new(&vs, |_| Some(Quantiser::Tanh { bits: 1 })).is_err());
    assert_eq!(copies(&vs).len(), own.len());
    for (name, xs) in copies(&vs) {
        assert_bits(&xs, &own[&name]);
    }
    Ok(())
}

fn copies(vs: &VarStore) -> Tensors {
    let named = weights::named(vs).into_iter();
    named.map(|(name, xs)| (name, xs.detach().copy())).collect()
}

#[test]
fn a_models_size_is_the_sum_of_its_parts() -> Result<()> {
    let vs = VarStore::new(Device::Cpu);
    let config = FfnConfig {
        frequencies: 16,
        hidden: 16,
        ..FfnConfig::cam_image()
    };
    let _model = seeded(0, || config.build(&vs.root()))?;
    let plain = model_size(&vs, |_| None)?;
    assert_eq!(plain.bits(), nn::parameter_count(&vs) * 32);
    let small = model_size(&vs, rule_of)?;
    let biases = 3 * 16 + 3;
    assert_eq!(small.plain_bits, biases * 32);
    assert_eq!(small.coded.values + biases, nn::parameter_count(&vs));
    let mut coded = 0;
    for (name, xs) in copies(&vs) {
        if let (Some(rule), false) = (rule_of(&name), name.starts_with("pos_enc")) {
            coded += coded_size(&rule.levels(&xs))?.huffman_bits;
        }
    }
    assert_eq!(small.coded.huffman_bits, coded);
    assert!(small.bits() < plain.bits() / 4);
    assert!(model_size(&vs, |_| Some(Quantiser::Symmetric { bits: 40 })).is_err());
    Ok(())
}
