//! Surfaces of grids and fields.

use densely_core::Result;
use densely_fields::marching::{Inside, MarchingConfig};
use densely_fields::mesh::{Mesh, ReadOptions, SignedDistance};
use densely_testkit::{Golden, assert_close};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use tch::{Device, Kind, Tensor};

use super::{HERE, faces, rows, table};

#[test]
fn marching_cubes_equals_scikit_image() -> Result<()> {
    for (case, euler) in [("sphere", Some(2)), ("torus", Some(0)), ("noise", None)] {
        let golden = Golden::open(HERE, &format!("marching_{case}"));
        let bounds: Vec<[f64; 3]> = rows(&golden.tensor("bounds"));
        let config = MarchingConfig {
            lower: bounds[0],
            upper: bounds[1],
            ..MarchingConfig::default()
        };
        let mesh = config.surface(&golden.tensor("values"))?;
        let report = mesh.report();
        let expected = golden.tensor("vertices");
        assert_eq!(report.vertices, expected.size()[0] as usize, "{case}");
        // In the order of x, y, z, of which the reference's are single: compare sets along each axis.
        for axis in 0..3 {
            let ours: Vec<f64> = mesh.vertices().iter().map(|v| v[axis]).collect();
            let ours = Tensor::from_slice(&ours).sort(0, false).0;
            let theirs = expected.select(1, axis as i64).sort(0, false).0;
            assert_close(&ours, &theirs, 0.0, 1e-5);
        }
        if let Some(euler) = euler {
            let apart = table(mesh.vertices()).unsqueeze(1) - expected.unsqueeze(0);
            let (distance, theirs) = apart.abs().amax(2, false).min_dim(1, false);
            assert!(distance.max().double_value(&[]) < 1e-5, "{case}");
            let theirs: Vec<i64> = Vec::try_from(theirs)?;
            let [count, area, volume] = rows::<3>(&golden.tensor("numbers"))[0];
            assert_eq!(report.faces, count as usize, "{case}");
            // The polygons are the same: their sides lie on faces of cells, where our diagonals do not. Only where inside and outside lie crosswise on a face may
            // they differ: the reference's table has a rule of its own there.
            let edges = |faces: &[[u32; 3]], number: &dyn Fn(u32) -> i64| -> BTreeSet<[i64; 2]> {
                let sides = faces
                    .iter()
                    .flat_map(|f| [[f[0], f[1]], [f[1], f[2]], [f[2], f[0]]]);
                let ordered = |[a, b]: [i64; 2]| [a.min(b), a.max(b)];
                sides.map(|side| ordered(side.map(number))).collect()
            };
            let expected_edges = edges(&faces(&golden.tensor("faces")), &i64::from);
            let values = golden.tensor("values");
            let steps: [f64; 3] = std::array::from_fn(|axis| {
                (values.size()[axis] - 1) as f64 / (bounds[1][axis] - bounds[0][axis])
            });
            let place = |i: i64| -> [f64; 3] {
                let at: Vec<f64> = Vec::try_from(expected.get(i)).expect("a vertex");
                std::array::from_fn(|axis| (at[axis] - bounds[0][axis]) * steps[axis])
            };
            let (mut sides, mut crosswise) = (0, 0);
            for side in edges(mesh.faces(), &|i| theirs[i as usize]) {
                let [a, b] = side.map(place);
                let whole = |x: f64| (x - x.round()).abs() < 1e-3;
                let Some(axis) = (0..3).find(|i| whole(a[*i]) && (a[*i] - b[*i]).abs() < 1e-3)
                else {
                    continue;
                };
                sides += 1;
                if expected_edges.contains(&side) {
                    continue;
                }
                // Insides of the corners around that face of the cell.
                let low: [i64; 3] = std::array::from_fn(|i| (a[i].min(b[i]) + 1e-3).floor() as i64);
                let (u, v) = ((axis + 1) % 3, (axis + 2) % 3);
                let corner = |du: i64, dv: i64| {
                    let mut at = low;
                    at[u] += du;
                    at[v] += dv;
                    values.double_value(&at) <= 0.0
                };
                let around = [corner(0, 0), corner(1, 0), corner(1, 1), corner(0, 1)];
                assert!(
                    around[0] == around[2] && around[1] == around[3] && around[0] != around[1],
                    "{case}: {side:?}"
                );
                crosswise += 1;
            }
            assert!(sides > report.vertices, "{case}: {sides}");
            // Two on each of ten such faces.
            assert_eq!(crosswise, if case == "torus" { 20 } else { 0 }, "{case}");
            // Polygons are not plane and are cut along other diagonals, and those faces make the torus thinner: together a twentieth of its difference to the
            // smooth one.
            assert!(
                (report.area / area - 1.0).abs() < 5e-3,
                "{case}: {report:?} {area}"
            );
            assert!(
                (report.volume / volume - 1.0).abs() < 5e-3,
                "{case}: {report:?} {volume}"
            );
            assert!(report.is_watertight(), "{case}: {report:?}");
            assert_eq!(report.euler, euler, "{case}");
        }
    }
    Ok(())
}

/// Whatever the values: no crack, fold or double edge, and outwards is where the values are larger.
#[test]
fn surfaces_of_noise_are_manifolds() -> Result<()> {
    for seed in 0..20 {
        let values = densely_core::seeded(seed, || {
            Tensor::randn([9, 8, 10], (Kind::Double, Device::Cpu))
        });
        // A border outside closes it.
        let closed = values.constant_pad_nd([1, 1, 1, 1, 1, 1]) + 0.01;
        let report = MarchingConfig::default().surface(&closed)?.report();
        assert!(report.is_watertight(), "{report:?}");
        assert!(report.volume > 0.0, "{report:?}");
        // Without it, rims lie on the border of the grid.
        let mesh = MarchingConfig::default().surface(&values)?;
        let report = mesh.report();
        let sound = report.non_manifold_edges + report.misoriented_edges + report.pinched_vertices;
        assert_eq!(sound, 0, "{report:?}");
        assert!(report.boundary_edges > 0);
        // The other side of the level is the same surface, turned.
        let above = MarchingConfig {
            inside: Inside::Above,
            ..MarchingConfig::default()
        };
        let turned = above.surface(&-&closed)?;
        assert_eq!(
            turned.report().volume.to_bits(),
            MarchingConfig::default()
                .surface(&closed)?
                .report()
                .volume
                .to_bits()
        );
    }
    Ok(())
}

#[test]
fn a_ball_is_found_in_its_place_and_a_field_is_its_grid() -> Result<()> {
    let config = MarchingConfig {
        lower: [-1.0, -2.0, 0.0],
        upper: [1.0, 1.0, 3.0],
        ..MarchingConfig::default()
    };
    let centre = Tensor::from_slice(&[0.1f32, -0.3, 1.2]);
    let mut largest = 0;
    let field = |points: &Tensor| {
        largest = largest.max(points.size()[0]);
        let d = points - &centre;
        Ok(d.square().sum_dim_intlist(1, true, None).sqrt() - 0.7)
    };
    let mesh = config.surface_of([21, 31, 26], 1000, field)?;
    assert_eq!(largest, 1000, "no more at once");
    let report = mesh.report();
    assert!(report.is_watertight() && report.euler == 2, "{report:?}");
    let ball = 4.0 / 3.0 * std::f64::consts::PI * 0.343;
    assert!((report.volume / ball - 1.0).abs() < 0.02, "{report:?}");
    // Second order: the surface is within h²/(8 r) of the ball.
    for v in mesh.vertices() {
        let d: f64 = [0.1, -0.3, 1.2]
            .iter()
            .zip(v)
            .map(|(c, x)| (x - c).powi(2))
            .sum();
        assert!(
            (d.sqrt() - 0.7).abs() < 0.12 * 0.12 / (8.0 * 0.7) * 1.1,
            "{v:?}"
        );
    }
    // Every batch size gives the same.
    for batch in [1, 806, 807, 1_000_000] {
        let field = |points: &Tensor| {
            let d = points - &centre;
            Ok(d.square().sum_dim_intlist(1, false, None).sqrt() - 0.7)
        };
        assert_eq!(
            config.surface_of([21, 31, 26], batch, field)?,
            mesh,
            "{batch}"
        );
    }
    Ok(())
}

#[test]
fn grids_without_a_surface_are_explained() {
    let config = MarchingConfig::default();
    let ones = Tensor::ones([3, 3, 3], (Kind::Float, Device::Cpu));
    let nan = ones.masked_fill(&ones.eq(1.0), f64::NAN);
    for (values, words) in [
        (
            ones.shallow_clone(),
            "there is no surface: the values reach from 1 to 1, and the level is 0",
        ),
        (nan, "got NaN at [0, 0, 0]"),
        (ones.narrow(1, 0, 1), "at least 2 points on each axis"),
        (ones.flatten(0, 1), "[_, _, _]"),
    ] {
        let error = config.surface(&values).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
    let wide = |points: &Tensor| Ok(points.shallow_clone());
    let error = config
        .surface_of([3, 3, 3], 5, wide)
        .expect_err("three values")
        .to_string();
    assert!(
        error.contains("[5] or [5, 1]") && error.contains("[5, 3]"),
        "{error}"
    );
    let error = config
        .surface_of([2, usize::MAX, 2], 5, wide)
        .expect_err("points without number")
        .to_string();
    assert!(error.contains("`points`"), "{error}");
    let flat = MarchingConfig {
        upper: [0.9, -0.9, 0.9],
        ..config
    };
    let error = flat.surface(&ones).expect_err("flat").to_string();
    assert!(error.contains("`upper`"), "{error}");
}

thread_local! {
    static FILES: Vec<(String, Vec<u8>)> = {
        let golden = Golden::open(HERE, "mesh_files");
        let cube = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\nf -1/2/3 -2//4 -3\n";
        let mut files = vec![("a.obj".to_owned(), cube.as_bytes().to_vec())];
        for name in ["ascii.ply", "little.ply", "big.ply"] {
            let bytes = Vec::try_from(golden.tensor(name)).expect("bytes");
            files.push((name.to_owned(), bytes));
        }
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(cube.as_bytes()).expect("written");
        files.push(("a.obj.gz".to_owned(), gz.finish().expect("zipped")));
        files
    };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_damage_makes_a_mesh_reader_panic(
        which in 0usize..5,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        head: bool,
    ) {
        let (name, mut bytes) = FILES.with(|files| files[which].clone());
        for (at, flip) in flips {
            // Headers are where damage is dangerous.
            let range = if head { bytes.len().min(200) } else { bytes.len() };
            bytes[at.index(range)] ^= flip;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(mesh) = Mesh::decode(bytes.as_slice(), Path::new(&name), &ReadOptions::default()) {
            // What is read can be measured.
            let report = mesh.report();
            prop_assert!(report.area.is_finite() && report.volume.is_finite());
            if let Ok(distance) = SignedDistance::new(&mesh) {
                let points = Tensor::from_slice(&[0.1, 0.2, 0.3]).view([1, 3]);
                let found = distance.at(&points).expect("a distance").double_value(&[0]);
                prop_assert!(found.is_finite(), "{found}");
            }
        }
    }

    /// Any small mesh, however crumpled: the nearest distance is that of the nearest triangle by itself.
    #[test]
    fn distances_are_those_of_the_nearest_triangle(
        vertices in prop::collection::vec(prop::array::uniform3(-3i8..=3), 3..9),
        corners in prop::collection::vec(prop::array::uniform3(any::<prop::sample::Index>()), 1..9),
        point in prop::array::uniform3(-4.0..4.0f64),
    ) {
        let n = vertices.len();
        let vertices: Vec<[f64; 3]> = vertices.iter().map(|v| v.map(f64::from)).collect();
        let faces: Vec<[u32; 3]> = corners.iter().map(|f| f.map(|i| i.index(n) as u32)).collect();
        let whole = Mesh::new(vertices.clone(), faces.clone()).expect("a mesh");
        let points = table(&[point]);
        let Ok(distance) = SignedDistance::new(&whole) else {
            return Ok(());
        };
        let found = distance.at(&points).expect("a distance").double_value(&[0]).abs();
        let each = faces.iter().filter_map(|face| {
            let one = Mesh::new(vertices.clone(), vec![*face]).expect("a mesh");
            let one = SignedDistance::new(&one).ok()?;
            Some(one.at(&points).expect("a distance").double_value(&[0]).abs())
        });
        let expected = each.fold(f64::INFINITY, f64::min);
        prop_assert!((found - expected).abs() <= 1e-12, "{found} {expected}");
    }
}
