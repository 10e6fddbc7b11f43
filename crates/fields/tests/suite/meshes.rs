//! Meshes: files, reports, distances, samples and marching cubes.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use densely_core::Result;
use densely_fields::marching::{Inside, MarchingConfig};
use densely_fields::mesh::{Mesh, ReadOptions, SdfSampler, Sign, SignedDistance, SurfaceSampler};
use densely_testkit::{Golden, assert_bits, assert_close};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn rows<const N: usize>(xs: &Tensor) -> Vec<[f64; N]> {
    let flat: Vec<f64> = Vec::try_from(xs.to_kind(Kind::Double).flatten(0, -1)).expect("numbers");
    let row = |row: &[f64]| row.try_into().expect("a row");
    flat.chunks_exact(N).map(row).collect()
}

fn table<const N: usize>(rows: &[[f64; N]]) -> Tensor {
    Tensor::from_slice(rows.as_flattened()).view([-1, N as i64])
}

fn faces(xs: &Tensor) -> Vec<[u32; 3]> {
    rows::<3>(xs)
        .into_iter()
        .map(|f| f.map(|i| i as u32))
        .collect()
}

fn golden_mesh(golden: &Golden) -> Mesh {
    let vertices = rows(&golden.tensor("vertices"));
    Mesh::new(vertices, faces(&golden.tensor("faces"))).expect("a mesh")
}

/// A cube from -1 to 1, facing outwards.
fn cube() -> Mesh {
    let vertices = (0..8)
        .map(|c| [0, 1, 2].map(|axis| if c >> axis & 1 == 1 { 1.0 } else { -1.0 }))
        .collect();
    let mut faces = Vec::new();
    for axis in 0..3u32 {
        let (u, v) = (1 << ((axis + 1) % 3), 1 << ((axis + 2) % 3));
        let far = 1 << axis;
        faces.push([far, far | u, far | u | v]);
        faces.push([far, far | u | v, far | v]);
        faces.push([0, u | v, u]);
        faces.push([0, v, u | v]);
    }
    Mesh::new(vertices, faces).expect("a mesh")
}

#[test]
fn reports_equal_trimesh() {
    for case in ["torus", "box", "hollow", "bowl"] {
        let golden = Golden::open(HERE, &format!("mesh_{case}"));
        let report = golden_mesh(&golden).report();
        let [area, volume, euler, watertight] = rows::<4>(&golden.tensor("numbers"))[0];
        assert!(
            (report.area - area).abs() < 1e-12 * area,
            "{case}: {report:?}"
        );
        assert_eq!(report.euler, euler as i64, "{case}");
        assert_eq!(report.is_watertight(), watertight == 1.0, "{case}");
        if report.is_watertight() {
            assert!(
                (report.volume - volume).abs() < 1e-12 * volume,
                "{case}: {report:?}"
            );
        } else {
            assert!(report.boundary_edges > 0, "{case}: {report:?}");
        }
    }
}

#[test]
fn distances_equal_trimesh_and_pysdf_and_signs_the_winding_number() -> Result<()> {
    for (case, sign) in [
        ("torus", Sign::PseudoNormal),
        ("box", Sign::PseudoNormal),
        ("hollow", Sign::PseudoNormal),
        ("bowl", Sign::WindingNumber),
    ] {
        let golden = Golden::open(HERE, &format!("mesh_{case}"));
        let distance = SignedDistance::new(&golden_mesh(&golden))?;
        assert_eq!(distance.sign(), sign, "{case}");
        let points = golden.tensor("points");
        let found = distance.at(&points)?;
        let winding = golden.tensor("winding");
        let signs: Tensor = 1.0 - winding.gt(0.5).to_kind(Kind::Double) * 2.0;
        assert_close(&found, &(golden.tensor("distance") * signs), 0.0, 1e-10);
        assert_close(&distance.winding_numbers(&points)?, &winding, 0.0, 1e-10);
        let fast = distance.fast_winding_numbers(&points)?;
        // A third of what is left to the exact sum.
        assert_close(&fast, &winding, 0.0, 0.05);
        if golden.has("pysdf") {
            // In single precision, and never too near: pysdf looks at the triangles around the nearest vertex only, and the nearest triangle may be another.
            let pysdf = golden.tensor("pysdf").to_kind(Kind::Double);
            assert_eq!(
                (&found * &pysdf).lt(0.0).any().int64_value(&[]),
                0,
                "{case}"
            );
            let excess = pysdf.abs() - found.abs();
            assert!(excess.min().double_value(&[]) > -1e-6, "{case}");
            let other = excess.gt(1e-6).sum(Kind::Int64).int64_value(&[]);
            assert_eq!(other, i64::from(case == "torus"), "{case}");
        }
        // In the kind of the points.
        let single = distance.at(&points.to_kind(Kind::Float))?;
        assert_eq!(single.kind(), Kind::Float);
        assert_close(&single, &found, 1e-5, 1e-6);
    }
    Ok(())
}

/// Points around a cube against the formula of its distance, for every way of telling inside from outside.
#[test]
fn every_sign_gives_the_distance_of_a_cube() -> Result<()> {
    let mesh = cube();
    assert!(mesh.report().is_watertight());
    let inverted = {
        let faces = mesh.faces().iter().map(|[a, b, c]| [*a, *c, *b]).collect();
        Mesh::new(mesh.vertices().to_vec(), faces)?
    };
    let folded = {
        let mut faces = mesh.faces().to_vec();
        faces[3].swap(0, 1);
        Mesh::new(mesh.vertices().to_vec(), faces)?
    };
    let holed = Mesh::new(mesh.vertices().to_vec(), mesh.faces()[1..].to_vec())?;
    let points = Tensor::rand([4000, 3], (Kind::Double, Device::Cpu)) * 3.0 - 1.5;
    let q = points.abs() - 1.0;
    let outside = q.clamp_min(0.0).square().sum_dim_intlist(1, false, None);
    let expected = outside.sqrt() + q.amax(1, false).clamp_max(0.0);
    for (mesh, sign) in [
        (&mesh, Sign::PseudoNormal),
        (&inverted, Sign::PseudoNormal),
        (&folded, Sign::RayParity),
    ] {
        let distance = SignedDistance::new(mesh)?;
        assert_eq!(distance.sign(), sign);
        assert_close(&distance.at(&points)?, &expected, 0.0, 1e-12);
    }
    // Where half a side is missing, away from it.
    let distance = SignedDistance::new(&holed)?;
    assert_eq!(distance.sign(), Sign::WindingNumber);
    let far = points.select(1, 0).lt(0.0).nonzero().squeeze_dim(1);
    let of = |xs: &Tensor| xs.index_select(0, &far);
    assert_close(&distance.at(&of(&points))?, &of(&expected), 0.0, 1e-12);
    Ok(())
}

#[test]
fn what_is_wrong_with_a_surface_is_counted() -> Result<()> {
    let whole = cube();
    let changed = |change: &dyn Fn(&mut Vec<[f64; 3]>, &mut Vec<[u32; 3]>)| {
        let (mut vertices, mut faces) = (whole.vertices().to_vec(), whole.faces().to_vec());
        change(&mut vertices, &mut faces);
        Mesh::new(vertices, faces).map(|mesh| mesh.report())
    };
    let report = changed(&|_, _| ())?;
    assert_eq!((report.euler, report.area.round() as i64), (2, 24));
    assert!((report.volume - 8.0).abs() < 1e-12);
    let report = changed(&|_, faces| faces.truncate(11))?;
    assert_eq!((report.boundary_edges, report.euler), (3, 1));
    let report = changed(&|_, faces| faces[0].swap(1, 2))?;
    assert_eq!((report.misoriented_edges, report.boundary_edges), (3, 0));
    let report = changed(&|vertices, faces| {
        vertices.push([0.0, 0.0, 3.0]);
        faces.push([0, 1, 8]);
    })?;
    assert_eq!((report.non_manifold_edges, report.boundary_edges), (1, 2));
    // Two tetrahedra that touch in a corner.
    let report = Mesh::new(
        vec![
            [0.0; 3],
            [1.0, 0.0, 0.0],
            [0.0, 1.0, 0.0],
            [0.0, 0.0, 1.0],
            [-1.0, 0.0, 0.0],
            [0.0, -1.0, 0.0],
            [0.0, 0.0, -1.0],
        ],
        vec![
            [0, 2, 1],
            [0, 1, 3],
            [0, 3, 2],
            [1, 2, 3],
            [0, 4, 5],
            [0, 6, 4],
            [0, 5, 6],
            [4, 6, 5],
        ],
    )?
    .report();
    assert_eq!((report.pinched_vertices, report.boundary_edges), (1, 0));
    assert!(!report.is_watertight());
    let report = changed(&|vertices, faces| {
        vertices.push([0.0, 0.0, 1.0]);
        faces.push([1, 1, 2]);
        faces.push([4, 7, 8]);
    })?;
    assert_eq!(report.degenerate_faces, 2);
    Ok(())
}

#[test]
fn vertices_at_one_place_are_one_after_welding() -> Result<()> {
    // Every triangle with corners of its own, and -0 for 0.
    let whole = cube();
    let corners = whole.faces().iter().flatten();
    let mut vertices: Vec<[f64; 3]> = corners.map(|i| whole.vertices()[*i as usize]).collect();
    let apart: Vec<[u32; 3]> = (0..12u32).map(|f| [3 * f, 3 * f + 1, 3 * f + 2]).collect();
    vertices.push([9.0; 3]);
    let mut mesh = Mesh::new(vertices, apart)?;
    assert_eq!(mesh.report().boundary_edges, 36);
    mesh.weld();
    assert_eq!(mesh.vertices().len(), 8);
    assert!(mesh.report().is_watertight());
    assert!((mesh.volume() - 8.0).abs() < 1e-12);
    let mut zeros = Mesh::new(
        vec![[0.0; 3], [1.0; 3], [2.0, 0.0, 0.0], [-0.0, 0.0, -0.0]],
        vec![[0, 1, 2], [3, 2, 1]],
    )?;
    zeros.weld();
    assert_eq!(zeros.vertices().len(), 3);
    Ok(())
}

#[test]
fn normalised_meshes_have_a_diagonal_of_19_around_the_origin() -> Result<()> {
    let golden = Golden::open(HERE, "mesh_torus");
    let vertices: Vec<[f64; 3]> = rows(&golden.tensor("vertices"));
    let moved = vertices
        .iter()
        .map(|[x, y, z]| [1e6 + 7.0 * x, 7.0 * y, 7.0 * z - 3.0]);
    let mut mesh = Mesh::new(moved.collect(), faces(&golden.tensor("faces")))?;
    let before = mesh.clone();
    let done = mesh.normalise(1.9)?;
    let [low, high] = mesh.bounds();
    let diagonal: f64 = (0..3).map(|i| (high[i] - low[i]).powi(2)).sum();
    assert!((diagonal.sqrt() - 1.9).abs() < 1e-9);
    for axis in 0..3 {
        assert!((low[axis] + high[axis]).abs() < 1e-9);
    }
    for (new, old) in mesh.vertices().iter().zip(before.vertices()) {
        for axis in 0..3 {
            let back = new[axis] / done.scale + done.centre[axis];
            assert!((back - old[axis]).abs() < 1e-9);
        }
    }
    let mut point = Mesh::new(vec![[1.0; 3]; 3], vec![[0, 1, 2]])?;
    assert!(point.normalise(1.9).is_err());
    assert!(mesh.normalise(-1.0).is_err());
    Ok(())
}

#[test]
fn files_of_trimesh_read_alike_and_zipped() -> Result<()> {
    let golden = Golden::open(HERE, "mesh_files");
    let options = ReadOptions {
        weld: false,
        ..ReadOptions::default()
    };
    for name in ["ascii.ply", "little.ply", "big.ply", "text.obj"] {
        let bytes: Vec<u8> = Vec::try_from(golden.tensor(name))?;
        let mesh = Mesh::decode(bytes.as_slice(), Path::new(name), &options)?;
        // The text formats hold eight and nine digits.
        let digits = if name.contains("ply") && name != "ascii.ply" {
            0.0
        } else {
            1e-8
        };
        assert_close(
            &table(mesh.vertices()),
            &golden.tensor("vertices"),
            0.0,
            digits,
        );
        assert_eq!(mesh.faces(), faces(&golden.tensor("faces")), "{name}");
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&bytes).expect("written");
        let zipped = gz.finish().expect("zipped");
        let zipped_name = format!("{name}.gz");
        let unzipped = Mesh::decode(zipped.as_slice(), Path::new(&zipped_name), &options)?;
        assert_eq!(unzipped, mesh, "{name}");
        let small = ReadOptions {
            max_bytes: 1000,
            ..options
        };
        for bytes in [&bytes, &zipped] {
            let error = Mesh::decode(bytes.as_slice(), Path::new(&zipped_name), &small);
            let error = error.expect_err("too large").to_string();
            assert!(error.contains("more than 1000 bytes"), "{error}");
        }
    }
    Ok(())
}

#[test]
fn meshes_are_the_same_after_writing_and_reading() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let golden = Golden::open(HERE, "mesh_torus");
    let mesh = golden_mesh(&golden);
    for name in ["a.obj", "a.ply"] {
        let path = folder.path().join(name);
        mesh.write(&path)?;
        let options = ReadOptions {
            weld: false,
            ..ReadOptions::default()
        };
        assert_eq!(Mesh::read_with(&path, &options)?, mesh, "{name}");
        assert_eq!(Mesh::read(&path)?.report(), mesh.report(), "{name}");
    }
    let error = mesh.write(&folder.path().join("a.stl")).expect_err("STL");
    assert!(error.to_string().contains(".obj or .ply"), "{error}");
    let error = Mesh::read(&folder.path().join("none.obj")).expect_err("no file");
    assert!(error.to_string().contains("none.obj"), "{error}");
    Ok(())
}

#[test]
fn obj_polygons_are_fans_and_corners_may_count_back() -> Result<()> {
    let text = b"# comment \xff\nmtllib x.mtl\nv 0 0 0 1.0\r\nv 1 0 0 0.5 0.5 0.5\nv 1 1e0 0\nv 0 1 0\nvn 0 0 1\nvt 0 0\ng side\nusemtl red\n\
                f 1/1/1 2//1 3/1 4\n  f -4 -2 -1\n";
    let options = ReadOptions::default();
    let mesh = Mesh::decode(text.as_slice(), Path::new("a.obj"), &options)?;
    assert_eq!(mesh.faces(), [[0, 1, 2], [0, 2, 3], [0, 2, 3]]);
    assert_eq!(mesh.vertices()[2], [1.0, 1.0, 0.0]);
    Ok(())
}

#[test]
fn hostile_files_have_their_own_sentences() {
    let ply = |body: &str| format!("ply\nformat ascii 1.0\n{body}");
    let xyz = "property float x\nproperty float y\nproperty float z\n";
    let list = "property list uchar int vertex_indices\n";
    let triangle = |vertices: &str, faces: &str| {
        ply(&format!(
            "element vertex 3\n{xyz}element face 1\n{list}end_header\n{vertices}\n{faces}\n"
        ))
    };
    let good = "0 0 0 1 0 0 0 1 0";
    let cases = [
        (
            "a.obj",
            "v 0 0\nf 1 1 1".to_owned(),
            "row 1: a vertex has three numbers, got ``",
        ),
        ("a.obj", "v 0 0 zero".to_owned(), "got `zero`"),
        (
            "a.obj",
            "v 0 0 nan\nv 0 0 0\nv 1 1 1\nf 1 2 3".to_owned(),
            "vertex 0, counted from 0, is [0.0, 0.0, NaN]",
        ),
        ("a.obj", "v 0 0 inf\nf 1 1 1".to_owned(), "inf"),
        ("a.obj", "v 0 0 1e31\nf 1 1 1".to_owned(), "1e30"),
        (
            "a.obj",
            "v 0 0 0\nf 1 1 2".to_owned(),
            "of the vertices [0, 0, 1], of which there are 1",
        ),
        (
            "a.obj",
            "v 0 0 0\nf 1 1 -2".to_owned(),
            "row 2: `-2` is no corner",
        ),
        ("a.obj", "v 0 0 0\nf 0 1 1".to_owned(), "`0` is no corner"),
        (
            "a.obj",
            "v 0 0 0\nf 1 9999999999999999999999 1".to_owned(),
            "is no corner",
        ),
        (
            "a.obj",
            "v 0 0 0\nf 1 1".to_owned(),
            "at least 3 corners, got 2",
        ),
        ("a.obj", "v 0 0 0".to_owned(), "has no face, and 1 vertices"),
        ("a.obj", "nothing".to_owned(), "holds no vertex and no face"),
        ("a.stl", "solid".to_owned(), "is no mesh of a known format"),
        (
            "a.ply",
            "ply\nformat ascii 1.0".to_owned(),
            "no line `end_header`",
        ),
        ("a.ply", "ply\nend_header\n".to_owned(), "no line `format`"),
        (
            "a.ply",
            "ply\nformat morse 1.0\nend_header\n".to_owned(),
            "`morse` is no format",
        ),
        (
            "a.ply",
            ply("element vertex many\nend_header\n"),
            "`many` is no count",
        ),
        (
            "a.ply",
            ply("property float x\nend_header\n"),
            "before the first element",
        ),
        (
            "a.ply",
            ply("element vertex 1\nproperty string x\nend_header\n"),
            "`string` is no type",
        ),
        (
            "a.ply",
            ply("hello\nend_header\n"),
            "`hello` is no line of a PLY header",
        ),
        (
            "a.ply",
            ply("element vertex 1\nproperty float x\nend_header\n0\n"),
            "have no positions",
        ),
        (
            "a.ply",
            ply(&format!(
                "element vertex 99999999999999\n{xyz}end_header\n0 0 0\n"
            )),
            "`vertex` 1 of 99999999999999",
        ),
        (
            "a.ply",
            ply("element thing 18446744073709551615\nend_header\n"),
            "has no face",
        ),
        (
            "a.ply",
            ply("element face 1\nproperty int x\nend_header\n1\n"),
            "have no corners",
        ),
        ("a.ply", triangle(good, "3 0 1"), "`face` 0 of 1"),
        ("a.ply", triangle(good, "4000000000 0 1 2"), "`face` 0 of 1"),
        (
            "a.ply",
            triangle(good, "3 0 1 3"),
            "[0, 1, 3], of which there are 3",
        ),
        ("a.ply", triangle(good, "3 0 1 -1"), "is the vertex -1"),
        ("a.ply", triangle(good, "3 0 1 1.5"), "is the vertex 1.5"),
        ("a.ply", triangle(good, "2 0 1"), "has 2 corners"),
        ("a.ply", triangle("0 0 0 1 nan 0 0 1 0", "3 0 1 2"), "NaN"),
        (
            "a.ply",
            triangle("0 0 0 1 x 0 0 1 0", "3 0 1 2"),
            "`vertex` 1 of 3",
        ),
    ];
    for (name, text, words) in cases {
        let error = Mesh::decode(text.as_bytes(), Path::new(name), &ReadOptions::default());
        let error = error.expect_err(words).to_string();
        assert!(
            error.starts_with(name) && error.contains(words),
            "{error}\n{words}"
        );
    }
}

#[test]
fn points_of_a_surface_are_uniform_by_area() -> Result<()> {
    // Triangles of areas 1/2 and 3/2.
    let vertices = vec![[0.0; 3], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]];
    let mesh = Mesh::new(vertices, vec![[0, 1, 2], [0, 3, 1]])?;
    let sampler = SurfaceSampler::new(&mesh)?;
    let points: Vec<[f64; 3]> = rows(&sampler.draw(20_000, 1));
    let flat: Vec<_> = points.iter().filter(|p| p[2] == 0.0).collect();
    let share = flat.len() as f64 / 20_000.0;
    // Five standard errors.
    assert!((share - 0.25).abs() < 5.0 * 0.0031, "{share}");
    for p in &points {
        let [x, y, z] = *p;
        let on_first = z == 0.0 && x >= 0.0 && y >= 0.0 && x + y <= 1.0 + 1e-12;
        let on_second = y == 0.0 && x >= 0.0 && z >= 0.0 && x + z / 3.0 <= 1.0 + 1e-12;
        assert!(on_first || on_second, "{p:?}");
    }
    // The middle of the flat triangle.
    let mean = |axis: usize| flat.iter().map(|p| p[axis]).sum::<f64>() / flat.len() as f64;
    for axis in [0, 1] {
        assert!(
            (mean(axis) - 1.0 / 3.0).abs() < 5.0 * 0.236 / 70.0,
            "{}",
            mean(axis)
        );
    }
    assert_bits(&sampler.draw(10, 7), &sampler.draw(10, 7));
    assert_ne!(sampler.draw(10, 7), sampler.draw(10, 8));
    Ok(())
}

#[test]
fn an_eighth_of_the_samples_lies_on_the_surface() -> Result<()> {
    let golden = Golden::open(HERE, "mesh_torus");
    let mesh = golden_mesh(&golden);
    let sampler = SdfSampler::new(&mesh)?;
    assert_eq!(sampler.sign(), Sign::PseudoNormal);
    let batch = sampler.draw(803, 5);
    assert_eq!(batch.points.size(), [803, 3]);
    let distance = SignedDistance::new(&mesh)?;
    let expected = distance.at(&batch.points)?;
    // 100 points at 0, which f32 cannot hold exactly.
    assert_close(&batch.distances, &expected, 1e-6, 1e-7);
    let zeros = batch.distances.eq(0.0).nonzero().size()[0];
    assert_eq!(zeros, 100);
    assert!(batch.distances.min().double_value(&[]) < -0.05);
    assert!(batch.points.abs().max().double_value(&[]) <= 1.0);
    let again = sampler.draw(803, 5);
    assert_bits(&again.points, &batch.points);
    assert_bits(&again.distances, &batch.distances);
    let mut large = mesh;
    large.normalise(5.0)?;
    let error = SdfSampler::new(&large).expect_err("too large").to_string();
    assert!(error.contains("normalise it first"), "{error}");
    Ok(())
}

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
