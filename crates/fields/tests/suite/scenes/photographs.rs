//! Photographs of scenes in files.

use densely_fields::scene::Shot;

use super::*;

/// A folder with a `transforms.json` of three frames of 4 × 5 pixels, named with and without an ending.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let frame = |file: &str| {
        format!(
            r#"{{"file_path": "{file}", "transform_matrix": [[1,0,0,0],[0,1,0,0],[0,0,1,4],[0,0,0,1]]}}"#
        )
    };
    let frames = ["./a", "b.png", "c"].map(frame).join(",");
    let text = format!(r#"{{"camera_angle_x": 0.8, "frames": [{frames}]}}"#);
    std::fs::write(folder.path().join("transforms.json"), text).expect("written");
    let rgba = image::RgbaImage::from_fn(5, 4, |x, y| image::Rgba([x as u8, y as u8, 3, 128]));
    rgba.save(folder.path().join("a.png")).expect("saved");
    let rgb = image::RgbImage::from_pixel(5, 4, image::Rgb([9, 8, 7]));
    rgb.save(folder.path().join("b.png")).expect("saved");
    rgb.save(folder.path().join("c.jpg")).expect("saved");
    folder
}

#[test]
fn photographs_are_found_and_keep_their_transparency() -> Result<()> {
    let folder = folder();
    let scene = Scene::read_transforms(&folder.path().join("transforms.json"))?;
    assert_eq!(
        (scene.views().len(), scene.height(), scene.width()),
        (3, 4, 5)
    );
    let pixel = |view: i64, row: i64, column: i64| -> Vec<u8> {
        let picture = scene.picture(view as usize).expect("a picture");
        Vec::try_from(picture.get(row).get(column)).expect("a pixel")
    };
    assert_eq!(pixel(0, 2, 3), [3, 2, 3, 128]);
    assert_eq!(pixel(1, 2, 3), [9, 8, 7, 255]);
    assert_eq!(pixel(2, 0, 0)[3], 255);
    scene.check_aim(&Aabb::centred(1.0), [2.0, 6.0])
}

#[test]
fn missing_odd_and_damaged_photographs_are_named() {
    let check = |change: &dyn Fn(&Path), words: &str| {
        let folder = folder();
        change(folder.path());
        let error = Scene::read_transforms(&folder.path().join("transforms.json"));
        let error = error.expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    };
    let cut = |path: std::path::PathBuf| {
        let bytes = std::fs::read(&path).expect("a file");
        std::fs::write(path, &bytes[..bytes.len() / 2]).expect("written");
    };
    let remove = |at: &Path| std::fs::remove_file(at.join("a.png")).expect("removed");
    check(&remove, "1 of 3 frames are missing in ");
    check(&remove, "`./a`, plain or with the ending .png, .jpg, .jpeg");
    check(
        &|at| {
            image::RgbImage::new(4, 4)
                .save(at.join("b.png"))
                .expect("saved");
        },
        "b.png: has 4 × 4 pixels, but ",
    );
    check(&|at| cut(at.join("a.png")), "a.png: damaged");
    // The lens of the first picture, before the others are read.
    check(
        &|at| {
            cut(at.join("c.jpg"));
            let file = at.join("transforms.json");
            let text = std::fs::read_to_string(&file).expect("a file");
            std::fs::write(file, text.replace("0.8", "8.0")).expect("written");
        },
        "`camera_angle_x` must lie between 0 and π radians, got 8",
    );
    check(
        &|at| cut(at.join("c.jpg")),
        "c.jpg: damaged or of another format: it ends too early",
    );
    check(
        &|at| std::fs::write(at.join("b.png"), "text").expect("written"),
        "b.png: is no picture of a known format",
    );
}

#[test]
fn more_photographs_than_memory_should_hold_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.png");
    image::RgbImage::new(512, 512).save(file).expect("saved");
    let shot = Shot {
        file: "a.png".to_owned(),
        pose: Pose::new(matrix()).expect("a pose"),
        time: None,
        optics: Optics {
            fl_x: Some(500.0),
            ..Optics::default()
        },
    };
    // A mebibyte each.
    let error = Scene::develop(Path::new("a.json"), vec![shot; 4097], folder.path());
    let error = error.expect_err("too much").to_string();
    assert!(
        error.starts_with("a.json: has 4097 photographs of 512 × 512 pixels")
            && error.ends_with("4 GiB that a scene may have; reduce the pictures or name fewer"),
        "{error}"
    );
}

#[test]
fn colmap_scenes_have_points_and_photographs() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("folder")).expect("created");
    for i in 1..6 {
        let file = folder.path().join(format!("folder/photo {i}.jpg"));
        image::RgbImage::new(41, 31).save(file).expect("saved");
    }
    let scene = Scene::read_colmap(&fixture("colmap_binary"), folder.path())?;
    assert_eq!((scene.views().len(), scene.points().len()), (5, 3));
    assert_eq!(scene.view_pixels(4)?.rgba.size(), [31 * 41, 4]);
    let shots: Vec<Shot> = Vec::new();
    let error = Scene::develop(Path::new("a.json"), shots, folder.path());
    assert_eq!(
        error.expect_err("nothing").to_string(),
        "a.json: has no frames"
    );
    Ok(())
}
