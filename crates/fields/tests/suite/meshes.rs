//! Meshes: files, reports, distances, samples and marching cubes.

mod surfaces;

use std::io::Write;
use std::path::Path;

use densely_core::{Result, seeded};
use densely_fields::mesh::{Mesh, ReadOptions, SdfSampler, Sign, SignedDistance, SurfaceSampler};
use densely_testkit::{Golden, assert_bits, assert_close};
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

type Change = dyn Fn(&mut Vec<[f64; 3]>, &mut Vec<[u32; 3]>);

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
    let points = seeded(0, || {
        Tensor::rand([4000, 3], (Kind::Double, Device::Cpu)) * 3.0 - 1.5
    });
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
    let changed = |change: &Change| {
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
