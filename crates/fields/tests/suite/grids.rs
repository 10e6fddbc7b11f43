//! Hash grids and planes against their references, the fast path against the plain one, and what holds for radiance fields upon them.

use densely_core::weights::{self, Strictness};
use densely_core::{Result, nn, seeded};
use densely_fields::hashgrid::{
    Growth, HashFieldConfig, HashGrid, HashGridConfig, NgpConfig, NgpHeadConfig,
};
use densely_fields::planes::{KPlanesConfig, PlanesConfig};
use densely_testkit::{Golden, assert_bits, assert_close, assert_near, goldens};
use densely_torch_ext::fused::PlainPaths;
use tch::nn::{Path, VarStore};
use tch::{Device, Kind, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");
const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

fn largest(xs: &Tensor) -> f64 {
    xs.abs().max().double_value(&[])
}

/// A model of `kind` with the golden's weights, or fresh ones.
fn build<T>(
    kind: Kind,
    golden: Option<&Golden>,
    build: impl FnOnce(&Path) -> Result<T>,
) -> Result<(VarStore, T)> {
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(3, || build(&vs.root()))?;
    nn::check_names(&vs)?;
    nn::set_float_kind(&vs, kind);
    if let Some(golden) = golden {
        let theirs = golden.group("weight.");
        weights::load_tensors(&vs, golden.path(), &theirs, Strictness::All)?;
    }
    Ok((vs, model))
}

fn leaf(golden: &Golden, name: &str, kind: Kind) -> Tensor {
    golden
        .tensor(name)
        .to_kind(kind)
        .copy()
        .set_requires_grad(true)
}

/// Compares the gradients of all parameters and of the coordinates.
fn assert_gradients(golden: &Golden, vs: &VarStore, coords: &Tensor, tolerance: f64) {
    let ours = weights::named(vs);
    let theirs = golden.group("grad.");
    assert_eq!(theirs.len(), ours.len() + 1, "and one of the coordinates");
    for (name, expected) in &theirs {
        let actual = ours.get(name).unwrap_or(coords).grad();
        assert_near(&actual, expected, tolerance);
    }
}

fn hash_grids() -> Vec<String> {
    goldens(HERE, "hashgrid_", 6)
}

#[test]
fn levels_are_those_of_the_rules() {
    let (mut dense, mut hashed) = (0, 0);
    for name in hash_grids() {
        let golden = Golden::open(HERE, &name);
        let levels = golden.config::<HashGridConfig>().levels();
        let theirs: Vec<(i64, bool, f32)> =
            serde_json::from_str(golden.meta("levels")).expect("levels");
        let ours: Vec<(i64, bool, f32)> = levels
            .iter()
            .map(|level| (level.entries, level.hashed, level.scale))
            .collect();
        assert_eq!(ours, theirs, "{name}");
        dense += ours.iter().filter(|level| !level.1).count();
        hashed += ours.iter().filter(|level| level.1).count();
    }
    assert!(dense > 5 && hashed > 5, "{dense} and {hashed} levels");
}

#[test]
fn hash_grids_equal_the_rules_in_f64() -> Result<()> {
    for name in hash_grids() {
        let golden = Golden::open(HERE, &name);
        let config: HashGridConfig = golden.config();
        let (vs, grid) = build(Kind::Double, Some(&golden), |vs| config.build(vs))?;
        let coords = leaf(&golden, "coords", Kind::Double);
        let features = grid.forward(&coords)?;
        assert_near(&features, &golden.tensor("features"), 1e-9);
        (features * golden.tensor("cotangent.features"))
            .sum(Kind::Double)
            .backward();
        assert_gradients(&golden, &vs, &coords, 1e-9);
    }
    Ok(())
}

#[test]
fn hash_grids_equal_the_rules_in_f32_on_both_paths() -> Result<()> {
    // Places of numbers as large as those of `far` have no fraction in f32.
    for name in hash_grids().iter().filter(|name| !name.ends_with("far")) {
        let golden = Golden::open(HERE, name);
        let config: HashGridConfig = golden.config();
        for plain in [false, true] {
            let _plain = plain.then(PlainPaths::new);
            let (vs, grid) = build(Kind::Float, Some(&golden), |vs| config.build(vs))?;
            let coords = leaf(&golden, "coords", Kind::Float);
            let features = grid.forward(&coords)?;
            assert_near(&features, &golden.tensor("features"), 1e-5);
            (features * golden.tensor("cotangent.features").to_kind(Kind::Float))
                .sum(Kind::Float)
                .backward();
            assert_gradients(&golden, &vs, &coords, 1e-5);
        }
    }
    Ok(())
}

/// Features, and gradients of the table and the coordinates.
fn run(grid: &HashGrid, vs: &VarStore, coords: &Tensor) -> Result<[Tensor; 3]> {
    let coords = coords.copy().set_requires_grad(true);
    let mut table = vs.variables()["params"].shallow_clone();
    table.zero_grad();
    let features = grid.forward(&coords)?;
    let places = Tensor::arange(features.numel() as i64, FLOAT);
    let cotangent = (places * 0.37).sin().view_as(&features);
    (&features * cotangent).sum(Kind::Float).backward();
    Ok([features.detach(), table.grad().copy(), coords.grad()])
}

/// Points in the unit cube and around it.
fn points(n: i64, inputs: i64) -> Tensor {
    seeded(1, || Tensor::rand([n, inputs], FLOAT) * 1.25 - 0.125)
}

#[test]
fn the_fast_path_equals_the_plain_one() -> Result<()> {
    for inputs in 2..=4 {
        for features in [1, 2, 4, 8] {
            for smoothstep in [false, true] {
                let config = HashGridConfig {
                    inputs,
                    levels: 6,
                    features,
                    log2_table: 11,
                    base: 3,
                    growth: Growth::Scale(1.7),
                    smoothstep,
                };
                let (vs, grid) = build(Kind::Float, None, |vs| config.build(vs))?;
                let coords = points(4500, inputs); // more than one piece of work, and no whole one
                let fast = run(&grid, &vs, &coords)?;
                let plain = {
                    let _plain = PlainPaths::new();
                    run(&grid, &vs, &coords)?
                };
                for (fast, plain) in fast.iter().zip(&plain) {
                    assert!(largest(plain) > 0.0);
                    assert_near(fast, plain, 2e-6);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn more_points_than_are_held_at_a_time_are_the_same_points() -> Result<()> {
    let config = HashGridConfig {
        inputs: 2,
        levels: 2,
        features: 1,
        log2_table: 6,
        base: 5,
        ..HashGridConfig::default()
    };
    let (vs, grid) = build(Kind::Float, None, |vs| config.build(vs))?;
    let coords = points((1 << 18) + 77, 2);
    let fast = run(&grid, &vs, &coords)?;
    let _plain = PlainPaths::new();
    let plain = run(&grid, &vs, &coords)?;
    assert_near(&fast[0], &plain[0], 2e-6);
    assert_near(&fast[2], &plain[2], 2e-6);
    // Each entry has thousands of addends.
    assert_near(&fast[1], &plain[1], 1e-4);
    Ok(())
}

#[test]
fn bits_do_not_depend_on_the_threads() -> Result<()> {
    // Two levels, so that more threads than that share a level.
    let config = HashGridConfig {
        levels: 2,
        log2_table: 10,
        base: 9,
        ..HashGridConfig::default()
    };
    let (vs, grid) = build(Kind::Float, None, |vs| config.build(vs))?;
    let coords = points(20_000, 3);
    let before = tch::get_num_threads();
    let mut runs = Vec::new();
    for threads in [1, 1, 2, 2, 5] {
        tch::set_num_threads(threads);
        runs.push(run(&grid, &vs, &coords));
    }
    tch::set_num_threads(before);
    let runs: Vec<[Tensor; 3]> = runs.into_iter().collect::<Result<_>>()?;
    for other in &runs[1..] {
        for (xs, ys) in runs[0].iter().zip(other) {
            assert_bits(ys, xs);
        }
    }
    Ok(())
}

#[test]
fn no_points_are_a_batch_too() -> Result<()> {
    let (vs, grid) = build(Kind::Float, None, |vs| small().grid.build(vs))?;
    for plain in [false, true] {
        let _plain = plain.then(PlainPaths::new);
        let [features, table, coords] = run(&grid, &vs, &Tensor::zeros([0, 3], FLOAT))?;
        assert_eq!(features.size(), [0, 6]);
        assert_eq!(coords.size(), [0, 3]);
        assert_bits(&table, &table.zeros_like());
    }
    let (_vs, planes) = build(Kind::Float, None, |vs| PlanesConfig::default().build(vs))?;
    assert_eq!(
        planes.forward(&Tensor::zeros([0, 4], FLOAT))?.size(),
        [0, 128]
    );
    Ok(())
}

#[test]
fn a_coordinate_that_is_no_number_spoils_its_point_alone() -> Result<()> {
    let (_vs, grid) = build(Kind::Float, None, |vs| small().grid.build(vs))?;
    for plain in [false, true] {
        let _plain = plain.then(PlainPaths::new);
        let coords = points(9, 3);
        let clean = grid.forward(&coords)?;
        for (row, value) in [(2, f64::NAN), (4, f64::INFINITY), (7, -1e30)] {
            let _ = coords.get(row).get(1).fill_(value);
        }
        let spoilt = grid.forward(&coords)?;
        for row in [2, 4] {
            assert_eq!(spoilt.get(row).isnan().all().int64_value(&[]), 1);
        }
        for row in [0, 1, 3, 5, 6, 8] {
            assert_bits(&spoilt.get(row), &clean.get(row));
        }
        assert_eq!(spoilt.get(7).isfinite().all().int64_value(&[]), 1);
    }
    Ok(())
}

#[test]
fn second_derivatives_are_refused_on_the_fast_path_and_right_on_the_plain_one() -> Result<()> {
    let config = HashGridConfig {
        smoothstep: true,
        ..small().grid
    };
    let (_vs, grid) = build(Kind::Float, None, |vs| config.build(vs))?;
    let coords = points(5, 3).set_requires_grad(true);
    let slope = |coords: &Tensor| {
        let sum = grid.forward(coords)?.sum(Kind::Float);
        let slopes = Tensor::f_run_backward(&[sum], &[coords], true, true)?;
        Ok::<_, densely_core::Error>(slopes[0].select(1, 0).sum(Kind::Float))
    };
    let message = slope(&coords).expect_err("no second derivatives");
    assert!(
        message.to_string().contains("second derivatives"),
        "{message}"
    );
    let _plain = PlainPaths::new();
    let curve = Tensor::f_run_backward(&[slope(&coords)?], &[&coords], false, false)?;
    assert!(largest(&curve[0]) > 0.0);
    Ok(())
}

#[test]
fn half_precision_takes_places_in_f32() -> Result<()> {
    let (vs, model) = build(Kind::Float, None, |vs| small().build(vs))?;
    let coords = points(50, 3);
    let single = model.forward(&coords)?;
    nn::set_float_kind(&vs, Kind::BFloat16);
    let half = model.forward(&coords)?;
    assert_eq!(half.kind(), Kind::BFloat16);
    assert_near(&half, &single, 0.03);
    Ok(())
}

fn small() -> HashFieldConfig {
    HashFieldConfig {
        grid: HashGridConfig {
            levels: 3,
            log2_table: 7,
            base: 4,
            ..HashGridConfig::default()
        },
        hidden: 8,
        ..HashFieldConfig::default()
    }
}

#[test]
fn sizes_are_the_published_ones() -> Result<()> {
    let (vs, grid) = build(Kind::Float, None, |vs| HashGridConfig::default().build(vs))?;
    assert_eq!(nn::parameter_count(&vs), 12_196_240);
    assert_eq!(grid.config().width(), 32);
    // U(±1e-4): deviation 1e-4 / √3.
    let table = vs.variables()["params"].shallow_clone();
    assert!(largest(&table) <= 1e-4);
    assert!((table.std(true).double_value(&[]) / 1e-4 * 3f64.sqrt() - 1.0).abs() < 1e-3);
    assert!(table.mean(Kind::Double).double_value(&[]).abs() < 1e-7);
    let preset = HashFieldConfig::hashgrid();
    let (vs, _) = build(Kind::Float, None, |vs| preset.build(vs))?;
    assert_eq!(nn::parameter_count(&vs), 12_202_576);
    assert_eq!(preset.macs(), 6_336);
    let (vs, _) = build(Kind::Float, None, |vs| NgpConfig::default().build(vs))?;
    assert_eq!(nn::parameter_count(&vs), 12_196_240 + 9_408);
    assert_eq!(NgpConfig::default().macs(), 9_408);
    Ok(())
}

#[test]
fn the_last_level_of_a_growth_to_the_finest_is_that_fine() {
    for (finest, levels) in [(512, 16), (2048, 16), (100, 2), (16, 1), (16, 5)] {
        let config = HashGridConfig {
            levels,
            growth: Growth::Finest(finest),
            ..HashGridConfig::default()
        };
        let last = config.levels().pop().expect("a level");
        let cells = (finest - 1) as f32;
        assert!((last.scale - cells).abs() <= 1e-6 * cells, "{last:?}");
    }
}

#[test]
fn a_field_is_the_network_of_the_features() -> Result<()> {
    let (vs, model) = build(Kind::Float, None, |vs| small().build(vs))?;
    let coords = points(40, 3);
    let weights = weights::named(&vs);
    let layer = |i: i64| &weights[&format!("network.{i}.weight")];
    let features = model.forward_features(&coords)?;
    let hidden = features.matmul(&layer(0).tr()).relu();
    let expected = hidden.matmul(&layer(1).tr()).relu().matmul(&layer(2).tr());
    assert!(largest(&expected) > 0.0);
    assert_near(&model.forward(&coords)?, &expected, 1e-5);
    // Xavier: ±√(6 / (in + out)).
    let bound = (6.0f64 / 14.0).sqrt();
    assert!((0.9 * bound..=bound).contains(&largest(layer(0))));
    Ok(())
}

#[test]
fn wrong_sizes_are_errors_that_name_them() -> Result<()> {
    let grid = |change: &dyn Fn(&mut HashGridConfig)| {
        let mut config = HashGridConfig::default();
        change(&mut config);
        let vs = VarStore::new(Device::Cpu);
        let refused = config.build(&vs.root()).expect_err("a wrong config");
        refused.to_string()
    };
    for inputs in [1, 8] {
        assert!(grid(&|c| c.inputs = inputs).contains("`inputs`"));
    }
    assert!(grid(&|c| c.levels = 0).contains("`levels`"));
    assert!(grid(&|c| c.features = 3).contains("`features`"));
    assert!(grid(&|c| c.log2_table = 29).contains("`log2_table`"));
    assert!(grid(&|c| c.base = 0).contains("`base`"));
    // The last is so large a factor that cells have no numbers of 32 bits.
    for growth in [
        Growth::Finest(15),
        Growth::Scale(0.9),
        Growth::Scale(f64::NAN),
        Growth::Scale(8.0),
    ] {
        assert!(grid(&|c| c.growth = growth).contains("`growth`"));
    }
    let planes = |change: &dyn Fn(&mut PlanesConfig)| {
        let mut config = PlanesConfig::default();
        change(&mut config);
        let vs = VarStore::new(Device::Cpu);
        let refused = config.build(&vs.root()).expect_err("a wrong config");
        refused.to_string()
    };
    assert!(planes(&|c| c.resolution.truncate(2)).contains("`resolution`"));
    assert!(planes(&|c| c.resolution[3] = 0).contains("`resolution`"));
    assert!(planes(&|c| c.multipliers.clear()).contains("`multipliers`"));
    assert!(planes(&|c| c.features.truncate(3)).contains("`features`"));
    let head = NgpHeadConfig {
        harmonics: 5,
        ..NgpHeadConfig::default()
    };
    let message = head.validate().expect_err("five degrees").to_string();
    assert!(message.contains("`harmonics`"), "{message}");

    let (_vs, grid) = build(Kind::Float, None, |vs| small().grid.build(vs))?;
    for coords in [
        Tensor::zeros([4, 2], FLOAT),
        Tensor::zeros([3], FLOAT),
        Tensor::zeros([4, 3], (Kind::Double, Device::Cpu)),
        Tensor::zeros([4, 3], (Kind::Int64, Device::Cpu)),
    ] {
        let message = grid.forward(&coords).expect_err("other sizes").to_string();
        assert!(message.contains("`coords`"), "{message}");
    }
    let (_vs, field) = build(Kind::Float, None, |vs| NgpConfig::default().build(vs))?;
    let (coords, dirs) = (Tensor::zeros([4, 3], FLOAT), Tensor::zeros([5, 3], FLOAT));
    let message = field.forward(&coords, &dirs).expect_err("five directions");
    assert!(message.to_string().contains("`dirs`"), "{message}");
    Ok(())
}

fn assert_radiance(
    golden: &Golden,
    vs: &VarStore,
    coords: &Tensor,
    outputs: (Tensor, Tensor),
    tolerance: f64,
) {
    let kind = coords.kind();
    let mut loss = Tensor::zeros([], (kind, Device::Cpu));
    for (name, xs) in [("density", outputs.0), ("rgb", outputs.1)] {
        let expected = golden.tensor(&format!("output.{name}"));
        // Densities are exponentials: each is near by its own size.
        assert_close(&xs, &expected, tolerance, 0.0);
        let cotangent = golden.tensor(&format!("cotangent.{name}")).to_kind(kind);
        loss += (xs * cotangent).sum(kind);
    }
    loss.backward();
    assert_gradients(golden, vs, coords, tolerance);
}

#[test]
fn radiance_fields_equal_their_references() -> Result<()> {
    let golden = Golden::open(HERE, "ngp");
    let (vs, field) = build(Kind::Double, Some(&golden), |vs| {
        golden.config::<NgpConfig>().build(vs)
    })?;
    let coords = leaf(&golden, "coords", Kind::Double);
    let outputs = field.forward(&coords, &golden.tensor("dirs"))?;
    assert_bits(&field.density(&coords)?, &outputs.0);
    assert_radiance(&golden, &vs, &coords, outputs, 1e-9);

    let golden = Golden::open(HERE, "kplanes");
    let (vs, field) = build(Kind::Double, Some(&golden), |vs| {
        golden.config::<KPlanesConfig>().build(vs)
    })?;
    let coords = leaf(&golden, "coords", Kind::Double);
    let outputs = field.forward(&coords, &golden.tensor("dirs"))?;
    assert_bits(&field.density(&coords)?, &outputs.0);
    assert_radiance(&golden, &vs, &coords, outputs, 1e-9);
    Ok(())
}

#[test]
fn planes_equal_torch() -> Result<()> {
    for name in goldens(HERE, "planes_", 2) {
        let golden = Golden::open(HERE, &name);
        let config: PlanesConfig = golden.config();
        for (kind, tolerance) in [(Kind::Double, 1e-9), (Kind::Float, 1e-5)] {
            let (vs, planes) = build(kind, Some(&golden), |vs| config.build(vs))?;
            let coords = leaf(&golden, "coords", kind);
            let features = planes.forward(&coords)?;
            assert_near(&features, &golden.tensor("features"), tolerance);
            let mut loss = (features * golden.tensor("cotangent.features").to_kind(kind)).sum(kind);
            for (name, value, weight) in [
                ("total_variation", planes.total_variation(), 0.1),
                ("time_smoothness", planes.time_smoothness(), 0.2),
                ("motion", planes.motion(), 0.3),
            ] {
                assert_near(&value, &golden.tensor(name), tolerance);
                loss += value * weight;
            }
            loss.backward();
            assert_gradients(&golden, &vs, &coords, tolerance);
        }
    }
    Ok(())
}

#[test]
fn planes_of_one_moment_have_nothing_to_smooth() -> Result<()> {
    let config = PlanesConfig {
        resolution: vec![4, 4, 4, 1],
        ..PlanesConfig::default()
    };
    let (_vs, planes) = build(Kind::Float, None, |vs| config.build(vs))?;
    assert_bits(&planes.time_smoothness(), &Tensor::zeros([], FLOAT));
    assert!(planes.total_variation().double_value(&[]) > 0.0);
    Ok(())
}

#[test]
fn planes_start_as_published() -> Result<()> {
    let config = KPlanesConfig::default();
    let (vs, field) = build(Kind::Float, None, |vs| config.build(vs))?;
    let named = weights::named(&vs);
    for scale in 0..4 {
        for plane in 0..6 {
            let xs = &named[&format!("grids.{scale}.{plane}")];
            if [2, 4, 5].contains(&plane) {
                assert_eq!(xs.size(), [1, 32, 25, 64 << scale]);
                assert_bits(xs, &xs.ones_like());
            } else {
                assert_eq!(xs.size(), [1, 32, 64 << scale, 64 << scale]);
                assert!(xs.min().double_value(&[]) >= 0.1 && largest(xs) <= 0.5);
                assert!((xs.mean(Kind::Double).double_value(&[]) - 0.3).abs() < 2e-3);
            }
        }
    }
    let planes: i64 = (0..4).map(|s| 3 * 32 * (64 << s) * ((64 << s) + 25)).sum();
    let head = 128 * 64 + 64 * 16 + 32 * 64 + 64 * 64 + 64 * 3;
    assert_eq!(nn::parameter_count(&vs), (planes + head) as u64);
    assert_eq!(config.macs(), head as u64);
    // Nothing moves yet: no plane with time has anything to smooth.
    let nothing = Tensor::zeros([], FLOAT);
    assert_bits(&field.planes().time_smoothness(), &nothing);
    assert_bits(&field.planes().motion(), &nothing);
    Ok(())
}
