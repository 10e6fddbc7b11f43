//! Posed photographs: files of poses, lenses, pixels.

mod npz;
#[cfg(feature = "image")]
mod photographs;

use std::io::Cursor;
use std::path::Path;

use densely_core::Result;
use densely_fields::render::rays::{Aabb, Camera};
use densely_fields::scene::{Colmap, Lens, Optics, Pose, Scene, Transforms, View, composite};
use densely_testkit::{Golden, assert_bits, assert_close};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(HERE).join("tests/fixtures").join(name)
}

/// Turned by 0.3 around y, at (1, 2, 4).
fn matrix() -> [[f64; 4]; 4] {
    let (s, c) = 0.3f64.sin_cos();
    [
        [c, 0.0, s, 1.0],
        [0.0, 1.0, 0.0, 2.0],
        [-s, 0.0, c, 4.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
}

fn view(name: &str, pose: [[f64; 4]; 4], lens: Lens) -> View {
    View {
        name: name.to_owned(),
        lens,
        pose: Pose::new(pose).expect("a pose"),
        time: None,
    }
}

/// Two views of 4 × 5 pixels, of values 0, 1, 2 and so on.
fn scene() -> Scene {
    let lens = Lens::pinhole(5, 4, 6.0);
    let mut other = matrix();
    other[0][3] = -1.0;
    let views = vec![view("a", matrix(), lens), view("b", other, lens)];
    let pictures = Tensor::arange(160, (Kind::Uint8, Device::Cpu)).view([2, 4, 5, 4]);
    Scene::new(views, &pictures).expect("a scene")
}

#[test]
fn rays_and_colours_are_those_of_the_pixels() -> Result<()> {
    let scene = scene();
    let camera = Camera {
        width: 5,
        height: 4,
        focal: 6.0,
    };
    for (i, view) in scene.views().iter().enumerate() {
        let pixels = scene.view_pixels(i)?;
        let pose = Tensor::from_slice(view.pose.matrix().as_flattened()).view([4, 4]);
        let expected = camera.rays(&pose)?;
        assert_close(pixels.rays.dirs(), expected.dirs(), 1e-6, 1e-7);
        assert_close(pixels.rays.origins(), expected.origins(), 1e-6, 1e-7);
        let picture = scene.picture(i)?.view([20, 4]).to_kind(Kind::Float) / 255.0;
        assert_close(&pixels.rgba, &picture, 1e-6, 1e-7);
        assert!(pixels.times.is_none());
    }
    let some = scene.pixels(&[[1, 2, 3]])?;
    let first = f64::from(80 + (2 * 5 + 3) * 4) / 255.0;
    assert!((some.rgba.double_value(&[0, 0]) - first).abs() < 1e-6);
    let (draw, again) = (scene.draw(300, 4)?, scene.draw(300, 4)?);
    assert_bits(&draw.rgba, &again.rgba);
    assert_bits(draw.rays.dirs(), again.rays.dirs());
    assert_ne!(draw.rgba, scene.draw(300, 5)?.rgba);
    for (place, words) in [
        ([2, 0, 0], "`view`: must be below 2, got 2"),
        ([0, 4, 0], "`row`: must be below 4"),
        ([0, 0, 5], "`column`: must be below 5"),
    ] {
        let error = scene.pixels(&[place]).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
    Ok(())
}

#[test]
fn transparent_pixels_show_the_background() -> Result<()> {
    let rgba = Tensor::from_slice(&[0.2, 0.4, 0.6, 0.25, 1.0, 0.0, 1.0, 1.0]).view([2, 4]);
    let white = Tensor::from_slice(&[1.0, 1.0, 1.0]);
    let expected = Tensor::from_slice(&[0.8, 0.85, 0.9, 1.0, 0.0, 1.0]).view([2, 3]);
    assert_close(&composite(&rgba, &white)?, &expected, 0.0, 1e-12);
    let each = Tensor::from_slice(&[0.0, 0.0, 0.0, 0.5, 0.5, 0.5]).view([2, 3]);
    let expected = Tensor::from_slice(&[0.05, 0.1, 0.15, 1.0, 0.0, 1.0]).view([2, 3]);
    assert_close(&composite(&rgba, &each)?, &expected, 0.0, 1e-12);
    assert!(composite(&rgba, &each.narrow(1, 0, 2)).is_err());
    assert!(composite(&each, &white).is_err());
    Ok(())
}

#[test]
fn poses_that_are_no_rigid_motion_are_refused() {
    let changed = |change: &dyn Fn(&mut [[f64; 4]; 4])| {
        let mut matrix = matrix();
        change(&mut matrix);
        Pose::new(matrix).map_err(|error| error.to_string())
    };
    let pose = changed(&|_| ()).expect("a pose");
    assert_eq!(pose.origin(), [1.0, 2.0, 4.0]);
    assert_eq!(pose.matrix(), matrix());
    for (change, words) in [
        (
            &(|m: &mut [[f64; 4]; 4]| m[1][1] = f64::NAN) as &dyn Fn(&mut _),
            "got NaN",
        ),
        (&|m: &mut [[f64; 4]; 4]| m[2][3] = f64::INFINITY, "got inf"),
        (
            &|m: &mut [[f64; 4]; 4]| m[3][3] = 2.0,
            "the last row 0 0 0 1",
        ),
        (
            &|m: &mut [[f64; 4]; 4]| m[1][1] = 1.01,
            "axis 1 has length 1.01",
        ),
        (
            &|m: &mut [[f64; 4]; 4]| m[1][0] = 0.01,
            "axes 0 and 1 have the product 0.01",
        ),
        (&|m: &mut [[f64; 4]; 4]| m[1][1] = -1.0, "mirrors"),
    ] {
        let error = changed(change).expect_err(words);
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn lenses_are_those_of_colmap() -> Result<()> {
    let golden = Golden::open(HERE, "scene_lenses");
    let colmap = Colmap::read(&fixture("colmap_text"))?;
    for (model, file) in [
        ("SIMPLE_PINHOLE", "folder/photo 5.jpg"),
        ("PINHOLE", "folder/photo 4.jpg"),
        ("SIMPLE_RADIAL", "folder/photo 3.jpg"),
        ("RADIAL", "folder/photo 2.jpg"),
        ("OPENCV", "folder/photo 1.jpg"),
    ] {
        let shot = colmap.shots.iter().find(|shot| shot.file == file);
        let shot = shot.expect("a photograph");
        let lens = shot.optics.lens(31, 41, Path::new("a"), model)?;
        let mut ours = Vec::new();
        for row in 0..31 {
            for column in 0..41 {
                let [x, y, z] = lens.direction(row, column).expect("a direction");
                assert_eq!(z.to_bits(), (-1f64).to_bits());
                ours.extend([x, -y]);
            }
        }
        let ours = Tensor::from_slice(&ours).view([-1, 2]);
        // COLMAP's steps end at 1e-10.
        assert_close(&ours, &golden.tensor(&format!("{model}.xy")), 0.0, 1e-9);
    }
    Ok(())
}

/// What is undistorted and distorted again by the formula is the pixel.
#[test]
fn distortion_is_inverted_to_rounding() {
    let lens = Lens {
        radial: [-0.12, 0.03],
        tangential: [0.004, -0.006],
        ..Lens::pinhole(41, 31, 30.0)
    };
    let ([k1, k2], [p1, p2]) = (lens.radial, lens.tangential);
    for row in 0..31 {
        for column in 0..41 {
            let [x, y, _] = lens.direction(row, column).expect("a direction");
            let y = -y;
            let r2 = x * x + y * y;
            let radial = 1.0 + k1 * r2 + k2 * r2 * r2;
            let u = x * radial + 2.0 * p1 * x * y + p2 * (r2 + 2.0 * x * x);
            let v = y * radial + p1 * (r2 + 2.0 * y * y) + 2.0 * p2 * x * y;
            assert!(
                (30.0 * u + 20.5 - column as f64 - 0.5).abs() < 1e-11,
                "{row} {column}"
            );
            assert!(
                (30.0 * v + 15.5 - row as f64 - 0.5).abs() < 1e-11,
                "{row} {column}"
            );
        }
    }
    // x (1 - x²) is never more than 0.385: beyond, the lens shows nothing.
    let folding = Lens {
        radial: [-1.0, 0.0],
        ..Lens::pinhole(41, 31, 30.0)
    };
    assert!(folding.direction(15, 30).is_some());
    assert!(folding.direction(15, 40).is_none());
    let scene = Scene::new(
        vec![view("fold.png", matrix(), folding)],
        &Tensor::zeros([1, 31, 41, 4], (Kind::Uint8, Device::Cpu)),
    );
    let error = scene
        .expect("a scene")
        .view_pixels(0)
        .expect_err("no inverse");
    assert!(
        error
            .to_string()
            .contains("`fold.png` has no inverse at pixel"),
        "{error}"
    );
}

#[test]
fn cameras_that_look_away_are_named() -> Result<()> {
    let lens = Lens::pinhole(5, 4, 6.0);
    let at = |z: f64, turned: bool| {
        let s = if turned { -1.0 } else { 1.0 };
        [
            [s, 0.0, 0.0, 0.0],
            [0.0, 1.0, 0.0, 0.0],
            [0.0, 0.0, s, z],
            [0.0, 0.0, 0.0, 1.0],
        ]
    };
    let pictures = Tensor::zeros([2, 4, 5, 4], (Kind::Uint8, Device::Cpu));
    let of = |second| {
        let views = vec![view("towards", at(4.0, false), lens), second];
        Scene::new(views, &pictures)
    };
    let aabb = Aabb::centred(1.0);
    of(view("behind", at(-4.0, true), lens))?.check_aim(&aabb, [2.0, 6.0])?;
    // Within the box, every direction meets it.
    of(view("inside", at(0.5, true), lens))?.check_aim(&aabb, [0.0, 6.0])?;
    for (name, pose, span) in [
        ("away", at(4.0, true), [0.0, 100.0]),
        // The box is nearer than `near`, and beyond `far`.
        ("inside", at(0.5, true), [2.0, 6.0]),
        ("far off", at(8.0, false), [2.0, 6.0]),
    ] {
        let error = of(view(name, pose, lens))?.check_aim(&aabb, span);
        let error = error.expect_err(name).to_string();
        let start = format!("`{name}` does not see the scene: from [0.0, 0.0, ");
        let limits = format!("between near {} and far {};", span[0], span[1]);
        assert!(
            error.starts_with(&start) && error.contains(&limits),
            "{error}"
        );
    }
    // Distances are those in space, not along the axis: a corner's ray is longer.
    let wide = Lens {
        centre: [-0.5, 0.5],
        ..Lens::pinhole(1, 1, 1.0)
    };
    let aside = Aabb {
        min: [3.5, -0.5, -0.1],
        max: [4.5, 0.5, 0.1],
    };
    let picture = Tensor::zeros([1, 1, 1, 4], (Kind::Uint8, Device::Cpu));
    let wide = Scene::new(vec![view("wide", at(4.0, false), wide)], &picture)?;
    wide.check_aim(&aside, [5.0, 6.0])?;
    assert!(wide.check_aim(&aside, [3.0, 5.0]).is_err());
    // Only the ray of a corner pixel meets this box.
    let corner = lens.direction(3, 4).expect("a direction");
    let place = corner.map(|x| x * 2.0);
    let aabb = Aabb {
        min: [place[0] - 0.01, place[1] - 0.01, 4.0 + place[2] - 0.01],
        max: [place[0] + 0.01, place[1] + 0.01, 4.0 + place[2] + 0.01],
    };
    let both = of(view("same", at(4.0, false), lens))?;
    both.check_aim(&aabb, [2.0, 6.0])?;
    Ok(())
}

#[test]
fn scenes_of_nothing_or_of_parts_are_refused() {
    let lens = Lens::pinhole(5, 4, 6.0);
    let pictures = |n: i64, h: i64| Tensor::zeros([n, h, 5, 4], (Kind::Uint8, Device::Cpu));
    let one = || view("a", matrix(), lens);
    let timed = View {
        time: Some(0.5),
        ..view("b", matrix(), lens)
    };
    let late = View {
        time: Some(1.5),
        ..view("late", matrix(), lens)
    };
    let broken = Lens {
        focal: [6.0, f64::NAN],
        ..lens
    };
    for (views, pictures, words) in [
        (vec![], pictures(0, 4), "has no frames"),
        (vec![one()], pictures(2, 4), "expected [1, _, _, 4]"),
        (vec![one()], pictures(1, 3), "picture of `a`"),
        (vec![one()], pictures(1, 4).to_kind(Kind::Float), "Uint8"),
        (
            vec![one(), timed],
            pictures(2, 4),
            "`b` has a time and `a` has none",
        ),
        (vec![view("a", matrix(), broken)], pictures(1, 4), "`focal`"),
        (
            vec![late],
            pictures(1, 4),
            "the time of `late` must lie in [0, 1], got 1.5",
        ),
    ] {
        let error = Scene::new(views, &pictures).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
}

fn transforms(frame: &str, rest: &str) -> String {
    format!(
        r#"{{"frames": [{{"file_path": "./train/r_0", "transform_matrix": [[1,0,0,1],[0,1,0,2],[0,0,1,3],[0,0,0,1]]{frame}}}]{rest}}}"#
    )
}

#[test]
fn blender_files_give_poses_times_and_lenses() -> Result<()> {
    let name = Path::new("transforms.json");
    let text = transforms(
        r#", "time": 0.25, "rotation": 0.01, "fl_y": 40.0"#,
        r#", "camera_angle_x": 0.8, "k1": -0.01, "w": 41.0, "h": 31, "aabb_scale": 4"#,
    );
    let read = Transforms::parse(text.as_bytes(), name)?;
    let shot = &read.shots[0];
    assert_eq!((shot.file.as_str(), shot.time), ("./train/r_0", Some(0.25)));
    assert_eq!(shot.pose.origin(), [1.0, 2.0, 3.0]);
    let lens = shot.optics.lens(31, 41, name, "r_0")?;
    let focal = 0.5 * 41.0 / 0.4f64.tan();
    assert_eq!(
        lens.focal.map(f64::to_bits),
        [focal, 40.0].map(f64::to_bits)
    );
    assert_eq!((lens.centre, lens.radial), ([20.5, 15.5], [-0.01, 0.0]));
    // D-NeRF's files that leave times out.
    let frame = r#"{"file_path": "x", "transform_matrix": [[1,0,0,0],[0,1,0,0],[0,0,1,0]]}"#;
    let text = format!(r#"{{"camera_angle_x": 1, "frames": [{frame}, {frame}, {frame}]}}"#);
    let read = Transforms::parse(text.as_bytes(), name)?.with_times();
    let times: Vec<_> = read.shots.iter().map(|shot| shot.time).collect();
    assert_eq!(times, [Some(0.0), Some(0.5), Some(1.0)]);
    Ok(())
}

#[test]
fn blender_files_that_cannot_be_used_are_explained() {
    let name = Path::new("t.json");
    let angle = r#", "camera_angle_x": 0.8"#;
    let matrix = |rows: &str| {
        format!(r#"{{"frames": [{{"file_path": "r_0", "transform_matrix": [{rows}]}}]{angle}}}"#)
    };
    for (text, words) in [
        (r#"{"frames": []}"#.to_owned(), "has no frames"),
        ("{}".to_owned(), "missing field `frames`"),
        ("[".to_owned(), "expected a transforms.json"),
        (
            transforms(r#", "time": 1.5"#, angle),
            "the time of `./train/r_0` must lie in [0, 1], got 1.5",
        ),
        (
            matrix("[1,0,0,0],[0,1,0,0]"),
            "3 or 4 rows of 4 numbers, got rows of [4, 4]",
        ),
        (matrix("[1,0,0,0],[0,1,0],[0,0,1,0]"), "[4, 3, 4]"),
        (
            matrix("[2,0,0,0],[0,2,0,0],[0,0,2,0]"),
            "the pose of `r_0` must be a rigid motion, but axis 0 has length 2",
        ),
        (
            matrix("[1,0,0,0],[0,1,0,0],[0,0,1,null]"),
            "expected a transforms.json",
        ),
    ] {
        let error = Transforms::parse(text.as_bytes(), name)
            .expect_err(words)
            .to_string();
        assert!(
            error.starts_with("t.json: ") && error.contains(words),
            "{error}"
        );
    }
    let optics = |rest: &str| {
        let text = transforms("", rest);
        let read = Transforms::parse(text.as_bytes(), name).expect("a file");
        let error = read.shots[0].optics.lens(31, 41, name, "r_0");
        error.expect_err(rest).to_string()
    };
    for (rest, words) in [
        ("", "nothing says the focal length of `r_0`"),
        (
            r#", "camera_angle_x": 3.2"#,
            "`camera_angle_x` must lie between 0 and π radians, got 3.2",
        ),
        (
            r#", "fl_x": 50, "w": 40"#,
            "`r_0` has 41 columns, but should have 40",
        ),
        (
            r#", "fl_x": 50, "h": 40"#,
            "`r_0` has 31 rows, but should have 40",
        ),
        (
            r#", "fl_x": -50"#,
            "`focal` must be positive, got [-50.0, -50.0]",
        ),
        (r#", "fl_x": 50, "k3": 0.1"#, "k3 and k4"),
        (
            r#", "fl_x": 50, "camera_model": "OPENCV_FISHEYE""#,
            "OPENCV_FISHEYE is not available",
        ),
        (
            r#", "fl_x": 50, "camera_model": "EQUIRECTANGULAR""#,
            "`r_0`: a lens of the model EQUIRECTANGULAR is not available",
        ),
        (
            r#", "fl_x": 50, "camera_model": "OPENCV", "is_fisheye": true"#,
            "`r_0`: a fisheye",
        ),
    ] {
        let error = optics(rest);
        assert!(
            error.starts_with("t.json: ") && error.contains(words),
            "{error}"
        );
    }
}

#[test]
fn colmap_models_read_alike_as_text_and_bytes() -> Result<()> {
    let (text, binary) = (
        Colmap::read(&fixture("colmap_text"))?,
        Colmap::read(&fixture("colmap_binary"))?,
    );
    assert_eq!(text.shots.len(), 5);
    let golden = Golden::open(HERE, "scene_colmap");
    let points = Tensor::from_slice(binary.points.as_flattened()).view([3, 3]);
    assert_close(&points, &golden.tensor("points"), 0.0, 1e-15);
    let poses = golden.tensor("poses");
    for (i, (one, other)) in text.shots.iter().zip(&binary.shots).enumerate() {
        assert_eq!(one.file, format!("folder/photo {}.jpg", i + 1));
        assert_eq!((&one.file, &one.optics), (&other.file, &other.optics));
        for shot in [one, other] {
            let ours = Tensor::from_slice(shot.pose.matrix().as_flattened()).view([4, 4]);
            // Down and forwards instead of up and back.
            let flip = Tensor::from_slice(&[1.0, -1.0, -1.0, 1.0]);
            assert_close(
                &(ours * flip).narrow(0, 0, 3),
                &poses.get(i as i64),
                0.0,
                1e-14,
            );
        }
    }
    Ok(())
}

/// A copy of a fixture with one file changed.
fn damaged(kind: &str, file: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<Colmap> {
    let folder = tempfile::tempdir().expect("a folder");
    densely_testkit::copy_folder(&fixture(kind), folder.path());
    let path = folder.path().join(file);
    let mut bytes = std::fs::read(&path).expect("a file");
    change(&mut bytes);
    std::fs::write(&path, bytes).expect("written");
    Colmap::read(folder.path())
}

#[test]
fn colmap_models_that_cannot_be_used_are_explained() {
    let replace = |kind: &str, file: &str, from: &str, to: &str| {
        damaged(kind, file, |bytes| {
            let text = String::from_utf8(bytes.clone()).expect("text");
            assert!(text.contains(from), "{from}");
            *bytes = text.replacen(from, to, 1).into_bytes();
        })
    };
    let text = |file: &str, from: &str, to: &str| replace("colmap_text", file, from, to);
    let first = "1 -0.96204367718215522";
    for (read, words) in [
        (
            text("cameras.txt", "2 PINHOLE", "2 FISHEYE"),
            "the lens model FISHEYE is not available",
        ),
        (
            text("cameras.txt", "2 PINHOLE", "9 PINHOLE"),
            "`folder/photo 4.jpg` was taken by camera 2",
        ),
        (
            text("cameras.txt", "41 31 35 36.5 19 15", "41 31 35 36.5"),
            "row 5: expected 4 parameters of a PINHOLE, got ``",
        ),
        (
            text("images.txt", first, "1 -9"),
            "the pose of `folder/photo 5.jpg` must be a quaternion of length 1",
        ),
        (
            text("images.txt", first, "1 nan"),
            "the pose of `folder/photo 5.jpg`",
        ),
        (
            text("images.txt", first, "one 1"),
            "expected the number of a photograph, got `one`",
        ),
        (
            text("points3D.txt", "0.99970142215178004", "inf"),
            "has the point [inf",
        ),
        (
            damaged("colmap_text", "images.txt", Vec::clear),
            "has no frames",
        ),
        (
            damaged("colmap_binary", "images.bin", |bytes| bytes.truncate(100)),
            "ends too early",
        ),
        (
            damaged("colmap_binary", "cameras.bin", |bytes| bytes[12] = 5),
            "of number 5",
        ),
        (
            damaged("colmap_binary", "images.bin", |bytes| bytes[7] = 255),
            "ends too early",
        ),
        (
            damaged("colmap_binary", "points3D.bin", |bytes| bytes[0] = 4),
            "ends too early",
        ),
    ] {
        let error = read.expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
    let error = Colmap::read(Path::new("/no/such")).expect_err("no folder");
    assert!(error.to_string().contains("cameras.txt"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_damage_makes_a_reader_of_poses_panic(
        which in 0usize..8,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..5),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let damage = |bytes: &mut Vec<u8>| {
            for (at, flip) in &flips {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
        };
        match which {
            0 => {
                let mut text = transforms(r#", "time": 0.5"#, r#", "fl_x": 30, "k1": 0.1"#).into_bytes();
                damage(&mut text);
                if let Ok(read) = Transforms::parse(&text, Path::new("a")) {
                    let optics: &Optics = &read.shots[0].optics;
                    if let Ok(lens) = optics.lens(31, 41, Path::new("a"), "r") {
                        let _ = lens.direction(30, 40);
                    }
                }
            }
            1 => {
                let mut bytes = npz::npz(&npz::arrays());
                damage(&mut bytes);
                let _ = Scene::decode_npz(Cursor::new(bytes), Path::new("a"));
            }
            _ => {
                let kind = if which < 5 { "binary" } else { "text" };
                let file = ["cameras", "images", "points3D"][which % 3];
                let ending = if which < 5 { "bin" } else { "txt" };
                let _ = damaged(&format!("colmap_{kind}"), &format!("{file}.{ending}"), damage);
            }
        }
    }
}
