//! The occupancy grid: its updates against nerfacc's, its marching against a walk piece by piece.

use densely_core::weights::{self, Strictness};
use densely_core::{Result, seeded};
use densely_fields::occupancy::{OccupancyConfig, OccupancyGrid};
use densely_fields::render::packed::Samples;
use densely_fields::render::rays::{Aabb, Rays};
use densely_testkit::{Golden, assert_bits, assert_near};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::{DOUBLE, HERE, assert_names};

#[test]
fn updates_of_the_grid_are_nerfaccs() -> Result<()> {
    let golden = Golden::open(HERE, "rendering_occupancy");
    let vs = VarStore::new(Device::Cpu);
    let mut grid = golden.config::<OccupancyConfig>().build(&vs.root())?;
    let steps: Vec<u64> = serde_json::from_str(golden.meta("steps")).expect("numbers");
    let mut occupied = Vec::new();
    for step in &steps {
        let at = |name: &str| golden.tensor(&format!("{step}.{name}"));
        grid.update_cells(&at("cells"), &at("places"), |points| {
            assert_near(points, &at("points"), 1e-6);
            Ok(at("density"))
        })?;
        assert_near(grid.values(), &at("occs"), 1e-6);
        assert_bits(grid.occupied(), &at("binaries"));
        occupied.push(grid.occupied().sum(Kind::Int64).int64_value(&[]));
    }
    occupied.dedup();
    assert_eq!(
        occupied.len(),
        3,
        "every update changes what is occupied: {occupied:?}"
    );
    // Its state is that of nerfacc, by the same names.
    let state = golden.group("state.");
    let own = weights::named(&vs);
    assert!(
        own.keys().eq(state.keys()),
        "{:?} {:?}",
        own.keys(),
        state.keys()
    );
    let other = VarStore::new(Device::Cpu);
    let loaded = OccupancyConfig {
        resolution: 6,
        ..OccupancyConfig::default()
    }
    .build(&other.root())?;
    weights::load_tensors(&other, golden.path(), &state, Strictness::All)?;
    assert_bits(loaded.occupied(), grid.occupied());
    assert_eq!(loaded.aabb()?, grid.aabb()?);
    Ok(())
}

#[test]
fn the_grid_is_updated_in_its_steps_and_at_random() -> Result<()> {
    let config = OccupancyConfig {
        resolution: 8,
        ..OccupancyConfig::default()
    };
    let update = |step: u64, seed: i64, grid: &mut OccupancyGrid| -> Result<Option<Tensor>> {
        let mut seen = None;
        let density = |points: &Tensor| {
            seen = Some(points.copy());
            Ok(points.select(1, 0).gt(0.0).to_kind(Kind::Float) * 100.0)
        };
        let updated = seeded(seed, || grid.update(step, density))?;
        assert_eq!(updated, seen.is_some());
        Ok(seen)
    };
    let vs = VarStore::new(Device::Cpu);
    let mut grid = config.build(&vs.root())?;
    assert!(update(15, 0, &mut grid)?.is_none());
    let points = update(240, 0, &mut grid)?.expect("an update");
    assert_eq!(points.size(), [512, 3], "all cells while it warms up");
    assert!(points.abs().max().double_value(&[]) <= 1.5);
    // The half with x > 0, exactly: cells do not cross 0.
    let half = grid.occupied().sum(Kind::Int64).int64_value(&[]);
    assert_eq!(half, 256);
    let points = update(256, 1, &mut grid)?.expect("an update");
    assert_eq!(
        points.size(),
        [256, 3],
        "a quarter at random and a quarter of the occupied"
    );
    let same = |seed| -> Result<Tensor> {
        let vs = VarStore::new(Device::Cpu);
        let mut grid = config.build(&vs.root())?;
        update(0, 7, &mut grid)?;
        Ok(update(256, seed, &mut grid)?.expect("an update"))
    };
    assert_bits(&same(3)?, &same(3)?);
    assert!(same(3)? != same(4)?);
    // A cell that comes twice takes the larger value, and only fades once.
    let cells = Tensor::from_slice(&[5i64, 5, 6]);
    let places = Tensor::full([3, 3], 0.5, tch::kind::FLOAT_CPU);
    let old = grid.values().double_value(&[6]);
    grid.update_cells(&cells, &places, |_| {
        Ok(Tensor::from_slice(&[900f32, 300.0, 0.0]))
    })?;
    assert!((grid.values().double_value(&[5]) - 4.5).abs() < 1e-6);
    assert!((grid.values().double_value(&[6]) - old * 0.95).abs() < 1e-6);
    Ok(())
}

/// A grid whose cells are occupied where `inside` says so of their middles.
pub(super) fn filled_grid(
    config: &OccupancyConfig,
    inside: impl Fn(&Tensor) -> Tensor,
) -> Result<OccupancyGrid> {
    let vs = VarStore::new(Device::Cpu);
    let mut grid = config.build(&vs.root())?;
    let cells = Tensor::arange(config.cells(), (Kind::Int64, Device::Cpu));
    let middle = Tensor::full([config.cells(), 3], 0.5, tch::kind::FLOAT_CPU);
    grid.update_cells(&cells, &middle, |points| {
        Ok(inside(points).to_kind(Kind::Float) * 1e3)
    })?;
    Ok(grid)
}

#[test]
fn marching_finds_the_pieces_that_a_walk_piece_by_piece_finds() -> Result<()> {
    let golden = Golden::open(HERE, "rendering_marching");
    let config: OccupancyConfig = golden.config();
    let occupied = golden.tensor("occupied");
    let grid = filled_grid(&config, |_| occupied.view(-1))?;
    assert_bits(&grid.occupied().select(0, 0), &occupied);
    let rays = Rays::new(golden.tensor("origins"), golden.tensor("dirs"))?;
    let [near, far] = ["near", "far"].map(|name| golden.meta(name).parse().expect("a number"));
    let jitter = golden.tensor("jitter");
    for (name, jitter) in [("even", None), ("jittered", Some(&jitter))] {
        let found = grid.march(&rays, near, far, jitter)?;
        assert_bits(found.ray(), &golden.tensor(&format!("{name}.ray")));
        assert_near(
            found.start(),
            &golden.tensor(&format!("{name}.start")),
            1e-13,
        );
        assert_near(found.end(), &golden.tensor(&format!("{name}.end")), 1e-13);
        let (points, dirs) = found.points(&rays)?;
        let aabb = grid.aabb()?;
        for axis in 0..3 {
            let along = points.select(1, axis);
            assert!(along.min().double_value(&[]) >= aabb.min[axis as usize] - 1e-12);
            assert!(along.max().double_value(&[]) <= aabb.max[axis as usize] + 1e-12);
        }
        assert_bits(&dirs, &rays.dirs().index_select(0, found.ray()));
    }
    Ok(())
}

#[test]
fn sampling_leaves_out_what_is_not_seen() -> Result<()> {
    let config = OccupancyConfig {
        resolution: 16,
        step: 0.05,
        ..OccupancyConfig::default()
    };
    // Everything in the box is occupied; a thick wall fills x > 0, and thin haze the rest.
    let grid = filled_grid(&config, |points| points.select(1, 0).ones_like())?;
    let rays = Rays::new(
        Tensor::from_slice(&[-3.0, 0.1, 0.1]).view([1, 3]),
        Tensor::from_slice(&[1.0, 0.0, 0.0]).view([1, 3]),
    )?;
    let all = grid.march(&rays, 0.0, 1e10, None)?;
    assert_eq!(all.count(), 60);
    let density = |samples: &Samples| -> Result<Tensor> {
        let wall = samples
            .points(&rays)?
            .0
            .select(1, 0)
            .gt(0.0)
            .to_kind(Kind::Double);
        Ok(wall * 100.0 + 0.01)
    };
    let seen = grid.sample(&rays, [0.0, 1e10], None, 0.0, density)?;
    // 30 of haze, and of the wall two: e^-5 passes the first, e^-10 < 1e-4 the second.
    assert_eq!(seen.count(), 32);
    let seen = grid.sample(&rays, [0.0, 1e10], None, 0.01, density)?;
    assert_eq!(seen.count(), 2);
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() -> Result<()> {
    let reals = |count| Tensor::zeros([count], DOUBLE);
    let rays = Rays::new(Tensor::zeros([2, 3], DOUBLE), Tensor::ones([2, 3], DOUBLE))?;
    let vs = VarStore::new(Device::Cpu);
    for (field, config) in [
        (
            "`resolution`",
            OccupancyConfig {
                resolution: 0,
                ..OccupancyConfig::default()
            },
        ),
        (
            "`every`",
            OccupancyConfig {
                every: 0,
                ..OccupancyConfig::default()
            },
        ),
        (
            "`step`",
            OccupancyConfig {
                step: 0.0,
                ..OccupancyConfig::default()
            },
        ),
        (
            "`decay`",
            OccupancyConfig {
                decay: 1.5,
                ..OccupancyConfig::default()
            },
        ),
        (
            "`threshold`",
            OccupancyConfig {
                threshold: f64::NAN,
                ..OccupancyConfig::default()
            },
        ),
        (
            "`aabb`",
            OccupancyConfig {
                aabb: Aabb::centred(-1.0),
                ..OccupancyConfig::default()
            },
        ),
    ] {
        assert_names(config.build(&vs.root()).map(drop), field);
    }
    let small = OccupancyConfig {
        resolution: 4,
        ..OccupancyConfig::default()
    };
    let mut grid = small.build(&(vs.root() / "small"))?;
    assert_names(grid.march(&rays, 0.0, 1.0, None).map(drop), "`dirs`");
    assert_names(
        grid.march(&rays.unit(), f64::NAN, 1.0, None).map(drop),
        "`near`",
    );
    assert_names(
        grid.march(&rays.unit(), 0.0, f64::NAN, None).map(drop),
        "`near`",
    );
    assert_names(
        grid.march(&rays.unit(), 0.0, 1.0, Some(&reals(3)))
            .map(drop),
        "`jitter`",
    );
    assert_names(grid.update(0, |_| Ok(reals(3))).map(drop), "`density`");
    Ok(())
}

#[test]
fn rays_and_grids_without_end_are_refused() -> Result<()> {
    let vs = VarStore::new(Device::Cpu);
    let config = OccupancyConfig {
        resolution: 4,
        ..OccupancyConfig::default()
    };
    let mut grid = config.build(&vs.root())?;
    let ray = |x: f64| {
        let of = |v: [f64; 3]| Tensor::from_slice(&v).view([1, 3]);
        Rays::new(of([x, 0.0, 0.0]), of([1.0, 0.0, 0.0]))
    };
    let told = |rays: &Rays, jitter: Option<&Tensor>| {
        grid.march(rays, 0.0, f64::INFINITY, jitter)
            .expect_err("no end")
            .to_string()
    };
    assert!(told(&ray(f64::NAN)?, None).contains("`origins`"));
    let nan = Tensor::from_slice(&[f64::NAN]);
    assert!(told(&ray(0.0)?, Some(&nan)).contains("`jitter`"));
    assert!(told(&ray(-1e14)?, None).contains("`step`"));
    let beyond = Tensor::from_slice(&[64i64]);
    let places = Tensor::zeros([1, 3], (Kind::Float, Device::Cpu));
    let update = grid.update_cells(&beyond, &places, |xs| Ok(xs.select(1, 0)));
    assert!(update.is_err_and(|e| e.to_string().contains("`cells`")));
    for resolution in [0, 100_000] {
        let config = OccupancyConfig {
            resolution,
            ..config.clone()
        };
        assert!(
            config
                .validate()
                .is_err_and(|e| e.to_string().contains("`resolution`"))
        );
    }
    Ok(())
}
