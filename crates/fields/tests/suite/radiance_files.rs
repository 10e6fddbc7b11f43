//! Where the scenes of a fit are found.

use std::path::Path;

use densely_core::Result;
use densely_fields::fit::radiance::SceneSettings;

/// Writes a `transforms.json` of so many frames of 4 × 5 pixels.
fn write_frames(folder: &Path, name: &str, frames: usize) {
    let frame = |i: usize| {
        format!(
            r#"{{"file_path": "f{i}.png", "transform_matrix": [[1,0,0,0],[0,1,0,0],[0,0,1,4],[0,0,0,1]]}}"#
        )
    };
    let frames: Vec<usize> = (0..frames).collect();
    for i in &frames {
        let file = folder.join(format!("f{i}.png"));
        image::RgbImage::new(5, 4).save(file).expect("saved");
    }
    let text: Vec<String> = frames.into_iter().map(frame).collect();
    let text = format!(
        r#"{{"camera_angle_x": 0.8, "frames": [{}]}}"#,
        text.join(",")
    );
    std::fs::write(folder.join(name), text).expect("written");
}

fn settings(file: &str) -> SceneSettings {
    SceneSettings::new(file.to_owned())
}

#[test]
fn scenes_are_found_and_parts_of_them_held_out() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for name in ["a", "b"] {
        std::fs::create_dir(at.join(name)).expect("created");
    }
    write_frames(&at.join("a"), "transforms.json", 11);
    write_frames(&at.join("b"), "transforms_train.json", 3);
    for file in ["a", "a/transforms.json"] {
        let (scene, train, test) = settings(file).open(at)?;
        assert_eq!(scene.views().len(), 11);
        assert_eq!(test, [0, 9]);
        assert_eq!(train, [1, 2, 3, 4, 5, 6, 7, 8, 10]);
    }
    let all = SceneSettings {
        test_every: 0,
        ..settings("b")
    };
    let (_, train, test) = all.open(at)?;
    assert_eq!((train.len(), test.len()), (3, 0));
    // Views of another file are judged by, and none is held out.
    let canonical = SceneSettings {
        test: "b".to_owned(),
        ..settings("a")
    };
    let (scene, train, test) = canonical.open(at)?;
    assert_eq!((scene.views().len(), train.len()), (14, 11));
    assert_eq!(test, [11, 12, 13]);
    // COLMAP's photographs beside its model.
    let model = at.join("sparse/0");
    std::fs::create_dir_all(&model).expect("created");
    std::fs::create_dir_all(at.join("images/folder")).expect("created");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/colmap_text");
    for name in ["cameras.txt", "images.txt"] {
        std::fs::copy(fixture.join(name), model.join(name)).expect("copied");
    }
    for i in 1..6 {
        let file = at.join(format!("images/folder/photo {i}.jpg"));
        image::RgbImage::new(41, 31).save(file).expect("saved");
    }
    for pictures in ["", "images"] {
        let settings = SceneSettings {
            pictures: pictures.to_owned(),
            ..settings("sparse/0")
        };
        let (_, train, _) = settings.open(at)?;
        assert_eq!(train, [1, 2, 3, 4]);
    }
    // The folder above, as it is where COLMAP has worked.
    std::fs::create_dir(at.join("work")).expect("created");
    for name in ["sparse", "images"] {
        std::fs::rename(at.join(name), at.join("work").join(name)).expect("moved");
    }
    assert_eq!(settings("work").open(at)?.1, [1, 2, 3, 4]);
    let other = SceneSettings {
        test: "work".to_owned(),
        ..settings("a")
    };
    let error = other.open(at).expect_err("another size").to_string();
    assert!(
        error.contains("31 × 41") && error.contains("4 × 5"),
        "{error}"
    );
    Ok(())
}

#[test]
fn scenes_that_are_not_there_are_explained() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for name in ["empty", "two", "model"] {
        std::fs::create_dir(at.join(name)).expect("created");
    }
    write_frames(&at.join("two"), "transforms.json", 2);
    for name in ["scene.txt", "model/cameras.txt"] {
        std::fs::write(at.join(name), "").expect("written");
    }
    for (file, words) in [
        (
            "nowhere",
            "nowhere: is not there; expected a transforms.json",
        ),
        (
            "empty",
            "has none of transforms.json, transforms_train.json, cameras.bin, cameras.txt",
        ),
        (
            "scene.txt",
            "is no scene: expected a file that ends in .json",
        ),
        ("model", "model/images or "),
        ("two", "has 2 views, of which 1 are left to train on"),
    ] {
        let error = settings(file).open(at).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
    let read: SceneSettings = toml::from_str("file = \"a\"").expect("settings");
    assert_eq!(read, settings("a"));
    assert!(toml::from_str::<SceneSettings>("file = \"a\"\nevery = 3").is_err());
    assert!(toml::from_str::<SceneSettings>("").is_err());
}
