//! Fits from files to run folders, and what is made of them.

use std::path::Path;

use densely_core::Result;
use densely_data::Image;
use densely_data::image::write_png;
use densely_fields::fit::radiance::SceneSettings;
use densely_fields::fit::{
    AutoOptions, DataSettings, Field, FieldSettings, ImageSettings, MeshSettings, Outcome,
    Precision, PreviewOptions, SoundSettings, VideoSettings, Window, choose_frequency, evaluate,
    fit,
};
use densely_fields::fresh::FreshOptions;
use densely_fields::mesh::Mesh;
use densely_fields::signals::{Split, write_wav};
use densely_train::event::Event;
use densely_train::optim::OptimConfig;
use densely_train::run::{FitOptions, ResumeFrom};
use serde_json::json;
use tch::{Device, Kind, Tensor};

/// Crossing waves with an edge, of a few periods.
fn waves(height: usize, width: usize, channels: usize, phase: f64) -> Image {
    let pixels = (0..height * width * channels).map(|i| {
        let (place, channel) = (i / channels, i % channels);
        let (y, x) = (
            (place / width) as f64 / height as f64,
            (place % width) as f64 / width as f64,
        );
        let wave = (9.0 * x + phase).sin() * 0.2 + (7.0 * y + channel as f64).cos() * 0.2;
        let edge = if x + y > 1.0 { 0.2 } else { 0.0 };
        ((0.4 + wave + edge) * 255.0) as u8
    });
    Image::new(width, height, channels, pixels.collect()).expect("a picture")
}

fn image_settings(file: &str, preset: &str, split: Split) -> FieldSettings {
    let data = DataSettings::Image(ImageSettings {
        split,
        ..ImageSettings::new(file.to_owned())
    });
    let mut settings = FieldSettings::suggest(data, Some(preset)).expect("a preset");
    small(&mut settings);
    settings
}

/// Networks and trainings of a second.
fn small(settings: &mut FieldSettings) {
    let config = &mut settings.model.config;
    match settings.model.preset.as_str() {
        "siren" | "finer" | "siren-fresh" => {
            config.insert("hidden".to_owned(), json!(32));
            config.insert("layers".to_owned(), json!(2));
        }
        "cam-image" | "ffn-image" => {
            config.insert("hidden".to_owned(), json!(32));
            config.insert("frequencies".to_owned(), json!(16));
            config.insert("sigma".to_owned(), json!(2.0));
        }
        "hashgrid" => {
            config.insert(
                "grid".to_owned(),
                json!({ "levels": 4, "base": 4, "log2_table": 10 }),
            );
            config.insert("hidden".to_owned(), json!(16));
        }
        _ => {}
    }
    if let OptimConfig::Adam(adam) = &mut settings.train.optimizer {
        // Small networks bear large steps, and have few of them here.
        adam.lr = adam.lr.max(1e-3);
    }
    settings.train.batch_size = 1024;
    settings.train.epochs = 3;
    settings.train.epoch_steps = 50;
}

fn run_from(
    settings: &FieldSettings,
    data: &Path,
    folder: &Path,
    resume: Option<ResumeFrom>,
    observe: &mut dyn FnMut(&Event),
) -> Result<Outcome> {
    let options = FitOptions {
        folder,
        table: data,
        seed: 3,
        device: Device::Cpu,
        resume,
    };
    fit(settings, data, &options, None, observe)
}

fn run(settings: &FieldSettings, data: &Path, folder: &Path) -> Result<Outcome> {
    run_from(settings, data, folder, None, &mut |_| ())
}

fn score(outcome: &Outcome, name: &str) -> f64 {
    let found = outcome.scores.iter().find(|(own, _)| *own == name);
    found
        .unwrap_or_else(|| panic!("{name} in {:?}", outcome.scores))
        .1
}

#[test]
fn a_picture_is_fitted_rendered_judged_and_packed() -> Result<()> {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path();
    let picture = waves(40, 56, 3, 0.0);
    write_png(&data.join("waves.png"), &picture)?;
    for preset in ["siren", "cam-image", "hashgrid"] {
        let folder = data.join(preset);
        let settings = image_settings("waves.png", preset, Split::All);
        let outcome = run(&settings, data, &folder)?;
        let psnr = score(&outcome, "psnr");
        assert!(psnr > 24.0, "{preset}: {psnr}");
        assert!(score(&outcome, "ssim") > 0.7, "{preset}");
        assert_eq!(outcome.signal_values, Some(40 * 56 * 3));

        let field = Field::open(&folder, Device::Cpu)?;
        assert_eq!(field.parameters(), outcome.parameters);
        let same = evaluate(&field, &settings.data, data)?;
        assert!((same.scores[0].1 - psnr).abs() < 1e-9, "{:?}", same.scores);

        // At its own size it is what was judged, but for the rounding to bytes.
        let made = field.picture([40, 56], Window::WHOLE, 0.0, &mut |_, _| ())?;
        let difference = (made.to_tensor() - picture.to_tensor()).square();
        let by_hand = -10.0 * difference.mean(Kind::Double).double_value(&[]).log10();
        assert!(
            (by_hand - psnr).abs() < 0.3,
            "{preset}: {by_hand} and {psnr}"
        );

        // A window is a part of the whole: its pixels are those of a larger picture.
        let large = field.picture([80, 112], Window::WHOLE, 0.0, &mut |_, _| ())?;
        let window = Window {
            start: [0.5, 0.25],
            size: [0.25, 0.5],
        };
        let part = field.picture([20, 56], window, 0.0, &mut |_, _| ())?;
        let cut = large.crop(28, 40, 56, 20)?;
        let most = part
            .pixels()
            .iter()
            .zip(cut.pixels())
            .map(|(a, b)| a.abs_diff(*b))
            .max();
        assert!(most.is_some_and(|most| most <= 1), "{preset}: {most:?}");

        // Packed and read again.
        let path = data.join(format!("{preset}.field"));
        let full = field.save(&path, Precision::Full)?;
        let again = Field::open(&path, Device::Cpu)?;
        assert_eq!(
            again
                .picture([40, 56], Window::WHOLE, 0.0, &mut |_, _| ())?
                .pixels(),
            made.pixels()
        );
        let twelve = field.save(&path, Precision::Bits(12))?;
        let packed = evaluate(&Field::open(&path, Device::Cpu)?, &settings.data, data)?;
        assert!(twelve < full, "{twelve} and {full} bytes");
        assert!(
            packed.scores[0].1 > psnr - 1.5,
            "{preset}: {psnr} and {:?}",
            packed.scores
        );
        let half = field.save(&path, Precision::Half)?;
        let halved = evaluate(&Field::open(&path, Device::Cpu)?, &settings.data, data)?;
        assert!(half < full);
        assert!(
            (halved.scores[0].1 - psnr).abs() < 0.5,
            "{preset}: {psnr} and {:?}",
            halved.scores
        );
    }
    Ok(())
}

/// The files of a run that is going on, as a kill would leave them.
fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_folder(&path, &to);
        } else if path.file_name().is_some_and(|name| name != "lock") {
            std::fs::copy(&path, &to).expect("a file");
        }
    }
}

/// Runs a fit, goes on from what it had left after its second judgement, and compares both.
fn assert_resumes(settings: &FieldSettings, data: &Path, name: &str) -> Result<Outcome> {
    let at = |part: &str| data.join(format!("{name}-{part}"));
    let mut copy = |event: &Event| {
        if matches!(event, Event::Epoch { epoch: 1, .. }) {
            copy_folder(&at("whole"), &at("cut"));
        }
    };
    let whole = run_from(settings, data, &at("whole"), None, &mut copy)?;
    let resume = Some(ResumeFrom::Last);
    let resumed = run_from(settings, data, &at("cut"), resume, &mut |_| ())?;
    assert_eq!(whole.scores, resumed.scores, "{name}");
    for file in [
        "best/model.safetensors",
        "last/optimizer.safetensors",
        "metrics.jsonl",
    ] {
        let bytes = |part| std::fs::read(at(part).join(file)).expect("a file");
        assert!(bytes("whole") == bytes("cut"), "{name}: {file}");
    }
    Ok(whole)
}

#[test]
fn a_fit_that_was_stopped_ends_in_the_same_bits() -> Result<()> {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path();
    write_png(&data.join("waves.png"), &waves(24, 24, 1, 0.5))?;
    let settings = image_settings("waves.png", "cam-image", Split::Every(2));
    let outcome = assert_resumes(&settings, data, "image")?;
    assert!(score(&outcome, "psnr_test") > 15.0);

    a_box().write(&data.join("box.ply"))?;
    let mut mesh = MeshSettings::new("box.ply".to_owned());
    mesh.resolution = 16;
    let mut settings = FieldSettings::suggest(DataSettings::Mesh(mesh), Some("siren"))?;
    small(&mut settings);
    assert_resumes(&settings, data, "mesh")?;

    let outcome = assert_resumes(&ball(data)?, data, "scene")?;
    // Light from a ball on white, of which half is seen: 9 dB are white everywhere.
    assert!(score(&outcome, "psnr") > 15.0, "{:?}", outcome.scores);
    let field = Field::open(&data.join("scene-whole"), Device::Cpu)?;
    let found = evaluate(&field, &ball(data)?.data, data)?;
    assert_eq!(found.scores[0].1, score(&outcome, "psnr"));
    assert_eq!(found.views.len(), 2);
    let path = data.join("ball.field");
    field.save(&path, Precision::Full)?;
    let again = evaluate(&Field::open(&path, Device::Cpu)?, &ball(data)?.data, data)?;
    assert_eq!(again, found);
    Ok(())
}

/// Ten views of a ball with a colour for each direction, and how it is fitted in a second.
fn ball(data: &Path) -> Result<FieldSettings> {
    const SIDE: u32 = 16;
    let folder = data.join("ball");
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut frames = Vec::new();
    for view in 0..10 {
        let turn = f64::from(view) / 10.0 * std::f64::consts::TAU;
        let (sin, cos) = turn.sin_cos();
        // Columns: right, up, back; the camera is 4 away.
        let pose = [
            [-sin, 0.0, cos, 4.0 * cos],
            [cos, 0.0, sin, 4.0 * sin],
            [0.0, 1.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 1.0],
        ];
        let mut picture = image::RgbaImage::new(SIDE, SIDE);
        for (column, row, pixel) in picture.enumerate_pixels_mut() {
            let share = |place: u32| (f64::from(place) + 0.5) / f64::from(SIDE) * 2.0 - 1.0;
            // An angle of 0.7 across.
            let slope = 0.35f64.tan();
            let local = [share(column) * slope, -share(row) * slope, -1.0];
            let d: [f64; 3] = std::array::from_fn(|i| (0..3).map(|j| pose[i][j] * local[j]).sum());
            let o = [pose[0][3], pose[1][3], pose[2][3]];
            let dot = |a: [f64; 3], b: [f64; 3]| a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
            let (aa, half, c) = (dot(d, d), dot(d, o), dot(o, o) - 1.0);
            let root = half * half - aa * c;
            if root > 0.0 {
                let t = (-half - root.sqrt()) / aa;
                let colour = |i: usize| ((o[i] + t * d[i]) * 100.0 + 127.0) as u8;
                *pixel = image::Rgba([colour(0), colour(1), colour(2), 255]);
            }
        }
        let file = format!("r_{view}.png");
        picture.save(folder.join(&file)).expect("saved");
        frames.push(json!({ "file_path": file, "transform_matrix": pose }));
    }
    let text = json!({ "camera_angle_x": 0.7, "frames": frames }).to_string();
    std::fs::write(folder.join("transforms.json"), text).expect("written");
    let scene = DataSettings::Scene(SceneSettings::new("ball".to_owned()));
    let mut settings = FieldSettings::suggest(scene, None)?;
    settings.model.config.insert(
        "grid".to_owned(),
        json!({ "levels": 4, "base": 4, "log2_table": 10, "growth": { "finest": 16 } }),
    );
    settings.model.config.insert(
        "head".to_owned(),
        json!({ "hidden": 16, "geometry": 8, "harmonics": 2 }),
    );
    let train = &mut settings.train;
    (train.batch_size, train.epochs, train.epoch_steps) = (128, 4, 20);
    if let Some(rays) = &mut train.rays {
        rays.samples = 4096;
        (rays.occupancy.resolution, rays.occupancy.step) = (16, 0.1);
    }
    Ok(settings)
}

#[test]
fn signals_that_hardly_differ_from_one_value_are_fitted_too() -> Result<()> {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path();
    let black = Image::new(16, 16, 1, vec![0; 256])?;
    write_png(&data.join("black.png"), &black)?;
    let mut settings = image_settings("black.png", "siren", Split::All);
    settings.train.epoch_steps = 100;
    let outcome = run(&settings, data, &data.join("run"))?;
    assert!(score(&outcome, "psnr") > 20.0);
    Ok(())
}

#[test]
fn a_mesh_is_judged_as_it_was_scaled() -> Result<()> {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path();
    a_box().write(&data.join("box.ply"))?;
    let mut mesh = MeshSettings::new("box.ply".to_owned());
    (mesh.resolution, mesh.diagonal) = (24, 1.2);
    let mut settings = FieldSettings::suggest(DataSettings::Mesh(mesh.clone()), Some("siren"))?;
    small(&mut settings);
    let outcome = run(&settings, data, &data.join("run"))?;
    let field = Field::open(&data.join("run"), Device::Cpu)?;
    mesh.diagonal = 1.9;
    let found = evaluate(&field, &DataSettings::Mesh(mesh), data)?;
    assert!(
        (found.scores[0].1 - score(&outcome, "iou")).abs() < 1e-3,
        "{found:?}"
    );
    Ok(())
}

#[test]
fn sounds_and_films_are_fitted() -> Result<()> {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path();
    let times = Tensor::arange(2000, (Kind::Float, Device::Cpu)) / 2000.0;
    let sound = Tensor::stack(
        &[(&times * 200.0).sin() * 0.5, (&times * 90.0).cos() * 0.3],
        1,
    );
    write_wav(&data.join("tone.wav"), &sound, 8000)?;
    let settings = DataSettings::Sound(SoundSettings {
        file: "tone.wav".to_owned(),
        split: Split::All,
    });
    let mut settings = FieldSettings::suggest(settings, None)?;
    small(&mut settings);
    settings
        .model
        .config
        .insert("first_omega".to_owned(), json!(200.0));
    settings.train.epochs = 6;
    let outcome = run(&settings, data, &data.join("sound"))?;
    assert!(score(&outcome, "psnr") > 25.0, "{:?}", outcome.scores);
    let field = Field::open(&data.join("sound"), Device::Cpu)?;
    assert_eq!(field.sound(4000)?.size(), [1000, 2]);
    let difference = (field.sound(8000)? - sound).abs().mean(Kind::Double);
    assert!(difference.double_value(&[]) < 0.1);
    assert!(
        field.surface(16).is_err()
            && field
                .picture([4, 4], Window::WHOLE, 0.0, &mut |_, _| ())
                .is_err()
    );

    let film = data.join("film");
    std::fs::create_dir(&film).expect("a folder");
    for frame in 0..6 {
        let path = film.join(format!("frame_{frame:02}.png"));
        write_png(&path, &waves(20, 24, 3, f64::from(frame) * 0.3))?;
    }
    let settings = DataSettings::Video(VideoSettings {
        file: "film".to_owned(),
        split: Split::All,
    });
    let mut settings = FieldSettings::suggest(settings, None)?;
    small(&mut settings);
    let outcome = run(&settings, data, &data.join("video"))?;
    assert!(score(&outcome, "psnr") > 22.0, "{:?}", outcome.scores);
    let field = Field::open(&data.join("video"), Device::Cpu)?;
    let last = field.picture([20, 24], Window::WHOLE, 1.0, &mut |_, _| ())?;
    let given = waves(20, 24, 3, 1.5).to_tensor();
    let difference = (last.to_tensor() - given).square().mean(Kind::Double);
    assert!(-10.0 * difference.double_value(&[]).log10() > 20.0);
    Ok(())
}

/// A box of twelve triangles, off the middle.
fn a_box() -> Mesh {
    let vertices = (0..8)
        .map(|i| {
            let side = |bit: usize, size: f64| if i >> bit & 1 == 1 { 5.0 + size } else { 5.0 };
            [side(0, 3.0), side(1, 2.0), side(2, 1.5)]
        })
        .collect();
    let quads: [[u32; 4]; 6] = [
        [0, 2, 3, 1],
        [4, 5, 7, 6],
        [0, 1, 5, 4],
        [2, 6, 7, 3],
        [0, 4, 6, 2],
        [1, 3, 7, 5],
    ];
    let faces = quads
        .iter()
        .flat_map(|[a, b, c, d]| [[*a, *b, *c], [*a, *c, *d]])
        .collect();
    Mesh::new(vertices, faces).expect("a mesh")
}

#[test]
fn a_surface_is_fitted_and_comes_back_in_its_own_coordinates() -> Result<()> {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path();
    a_box().write(&data.join("box.ply"))?;
    let mut mesh = MeshSettings::new("box.ply".to_owned());
    mesh.resolution = 32;
    let mut settings = FieldSettings::suggest(DataSettings::Mesh(mesh), Some("siren"))?;
    small(&mut settings);
    settings
        .model
        .config
        .insert("first_omega".to_owned(), json!(10.0));
    settings.train.epochs = 6;
    let outcome = run(&settings, data, &data.join("run"))?;
    assert!(score(&outcome, "iou") > 0.9, "{:?}", outcome.scores);
    assert!(score(&outcome, "chamfer") < 0.05, "{:?}", outcome.scores);
    let field = Field::open(&data.join("run"), Device::Cpu)?;
    let surface = field.surface(48)?;
    let [low, high] = surface.bounds();
    for (axis, size) in [3.0, 2.0, 1.5].into_iter().enumerate() {
        assert!(
            (low[axis] - 5.0).abs() < 0.3 && (high[axis] - 5.0 - size).abs() < 0.3,
            "{low:?} {high:?}"
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs CUDA"]
fn what_a_gpu_fits_is_the_same_on_the_processor() -> Result<()> {
    let gpu = densely_core::Device::Cuda(0).open()?;
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path();
    write_png(&data.join("waves.png"), &waves(24, 32, 3, 0.0))?;
    let image = |preset| image_settings("waves.png", preset, Split::All);
    for settings in [image("cam-image"), image("hashgrid"), ball(data)?] {
        let folder = data.join(&settings.model.preset);
        let options = FitOptions {
            folder: &folder,
            table: data,
            seed: 3,
            device: gpu,
            resume: None,
        };
        let outcome = fit(&settings, data, &options, None, &mut |_| ())?;
        for device in [gpu, Device::Cpu] {
            let found = evaluate(&Field::open(&folder, device)?, &settings.data, data)?;
            let (psnr, own) = (found.scores[0].1, score(&outcome, "psnr"));
            assert!((psnr - own).abs() < 0.01, "{settings:?}: {psnr} and {own}");
        }
    }
    Ok(())
}

#[test]
fn pictures_are_written_while_it_trains() -> Result<()> {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path();
    write_png(&data.join("waves.png"), &waves(24, 32, 3, 0.0))?;
    let settings = image_settings("waves.png", "siren", Split::All);
    let folder = data.join("run");
    let options = FitOptions {
        folder: &folder,
        table: data,
        seed: 0,
        device: Device::Cpu,
        resume: None,
    };
    let preview = PreviewOptions {
        folder: data.join("preview"),
        seconds: 1e-6,
    };
    fit(&settings, data, &options, Some(&preview), &mut |_| ())?;
    let last = densely_data::image::read(&data.join("preview/step-0000150.png"))?;
    assert_eq!((last.width(), last.height(), last.channels()), (32, 24, 3));
    Ok(())
}

#[test]
fn spectra_choose_a_higher_frequency_for_a_finer_picture() -> Result<()> {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path();
    let stripes = |periods: f64| {
        let pixels = (0..96 * 96).map(|i| {
            let (x, y) = (f64::from(i % 96), f64::from(i / 96));
            let phase = (x + 0.6 * y) / 96.0 * periods * std::f64::consts::TAU;
            (127.0 + 100.0 * phase.sin()) as u8
        });
        Image::new(96, 96, 1, pixels.collect())
    };
    let mut chosen = Vec::new();
    for periods in [2.0, 9.0] {
        write_png(&data.join("stripes.png"), &stripes(periods)?)?;
        let mut settings = image_settings("stripes.png", "siren-fresh", Split::All);
        let options = AutoOptions {
            side: 64,
            values: vec![10.0, 40.0, 80.0],
            fresh: FreshOptions {
                draws: 3,
                ..FreshOptions::default()
            },
        };
        let choice = choose_frequency(&mut settings, data, &options, Device::Cpu, &mut |_| ())?;
        assert_eq!(
            settings.model.config["first_omega"],
            json!(choice.chosen.value)
        );
        chosen.push(choice.chosen.value);
        let again = choose_frequency(&mut settings, data, &options, Device::Cpu, &mut |_| ());
        assert!(again.is_err_and(|error| error.to_string().contains("first_omega")));
    }
    assert!(chosen[0] < chosen[1], "{chosen:?}");
    let mut settings = image_settings("stripes.png", "hashgrid", Split::All);
    let options = AutoOptions::default();
    let none = choose_frequency(&mut settings, data, &options, Device::Cpu, &mut |_| ());
    assert!(none.is_err_and(|error| error.to_string().contains("siren-fresh")));
    Ok(())
}

#[test]
fn what_cannot_be_fitted_has_its_sentence() -> Result<()> {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path();
    write_png(&data.join("waves.png"), &waves(24, 32, 3, 0.0))?;
    write_png(&data.join("other.png"), &waves(24, 30, 3, 0.0))?;
    let base = image_settings("waves.png", "siren", Split::All);
    let mut wrong: Vec<(FieldSettings, &str)> = Vec::new();
    let mut with = |word: &'static str, change: &dyn Fn(&mut FieldSettings)| {
        let mut settings = base.clone();
        change(&mut settings);
        wrong.push((settings, word));
    };
    with("nothing.png", &|s| {
        s.data = image_settings("nothing.png", "siren", Split::All).data;
    });
    with("data.crop", &|s| {
        if let DataSettings::Image(image) = &mut s.data {
            image.crop = 25;
        }
    });
    with("data.side", &|s| {
        if let DataSettings::Image(image) = &mut s.data {
            image.side = 25;
        }
    });
    with("held_out", &|s| {
        if let DataSettings::Image(image) = &mut s.data {
            image.split = Split::Kept {
                held_out: 1.0,
                seed: 0,
            };
        }
    });
    with("batch_size", &|s| s.train.batch_size = -1);
    with("epoch_steps", &|s| s.train.epoch_steps = 0);
    with("model.preset", &|s| s.model.preset = "nerf".to_owned());
    with("ranges|no such|omega", &|s| {
        s.model.config.insert("first_omega".to_owned(), json!(-1.0));
    });
    with("train.rays", &|s| {
        s.train.rays = Some(densely_fields::fit::radiance::RayConfig::default());
    });
    // Frequencies far above those of the picture: nothing is learnt, and that is said.
    with("frequencies are too high", &|s| {
        s.model.config.insert("first_omega".to_owned(), json!(1e7));
        s.model.config.insert("omega".to_owned(), json!(3e3));
        s.train.epoch_steps = 120;
    });
    for (number, (settings, words)) in wrong.iter().enumerate() {
        let result = run(settings, data, &data.join(format!("wrong-{number}")));
        let error = result.expect_err(words).to_string();
        assert!(
            words.split('|').any(|word| error.contains(word)),
            "{words}: {error}"
        );
    }

    let folder = data.join("run");
    run(&base, data, &folder)?;
    let field = Field::open(&folder, Device::Cpu)?;
    let other = image_settings("other.png", "siren", Split::All);
    let error = evaluate(&field, &other.data, data)
        .expect_err("another size")
        .to_string();
    assert!(
        error.contains("[24, 30]") && error.contains("[24, 32]"),
        "{error}"
    );
    let window = Window {
        start: [0.5, 0.0],
        size: [0.6, 1.0],
    };
    assert!(field.picture([4, 4], window, 0.0, &mut |_, _| ()).is_err());
    assert!(
        field
            .picture([0, 4], Window::WHOLE, 0.0, &mut |_, _| ())
            .is_err()
    );
    assert!(
        field
            .picture([4, 4], Window::WHOLE, f64::NAN, &mut |_, _| ())
            .is_err()
    );
    Ok(())
}

#[test]
fn damaged_files_of_fields_are_refused() -> Result<()> {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path();
    write_png(&data.join("waves.png"), &waves(16, 16, 1, 0.0))?;
    let mut settings = image_settings("waves.png", "siren", Split::All);
    settings.train.epochs = 1;
    settings.train.epoch_steps = 2;
    run(&settings, data, &data.join("run"))?;
    let field = Field::open(&data.join("run"), Device::Cpu)?;
    let path = data.join("small.field");
    field.save(&path, Precision::Bits(8))?;
    let bytes = std::fs::read(&path).expect("a file");
    for (cut, flip) in [
        (bytes.len() / 2, None),
        (bytes.len(), Some(bytes.len() - 9)),
        (7, None),
    ] {
        let mut bytes = bytes[..cut].to_vec();
        if let Some(place) = flip {
            bytes[place] ^= 1;
        }
        std::fs::write(&path, &bytes).expect("a file");
        assert!(Field::open(&path, Device::Cpu).is_err(), "{cut} {flip:?}");
    }
    // Weights alone do not say what they mean.
    let error = Field::open(&data.join("run/best/model.safetensors"), Device::Cpu);
    assert!(error.is_err_and(|error| error.to_string().contains("what they mean")));
    assert!(Field::open(&data.join("nothing"), Device::Cpu).is_err());
    assert!(field.save(&path, Precision::Bits(17)).is_err());

    // What the metadata claim is checked: sizes, and levels that are not there.
    let file = densely_core::weights::read(&data.join("run/best/model.safetensors"))?;
    let pipeline = std::fs::read_to_string(data.join("run/best/preprocess.json")).expect("text");
    let save = |pipeline: &str, packed: Option<&str>| {
        let mut metadata =
            std::collections::BTreeMap::from([("field".to_owned(), pipeline.to_owned())]);
        metadata.extend(packed.map(|text| ("packed".to_owned(), text.to_owned())));
        densely_core::weights::save(&path, &file.tensors, &metadata)
    };
    save(&pipeline, None)?;
    assert!(Field::open(&path, Device::Cpu).is_ok());
    save(&pipeline.replace("\"height\":16", "\"height\":0"), None)?;
    assert!(Field::open(&path, Device::Cpu).is_err());
    let name = file.tensors.keys().next().expect("a tensor");
    let packed = json!({ name: { "shape": [1_000_000, 1_000_000], "bits": 8, "scale": 1.0 } });
    save(&pipeline, Some(&packed.to_string()))?;
    assert!(Field::open(&path, Device::Cpu).is_err());
    let packed = json!({ name: { "shape": [0, -5], "bits": 8, "scale": 1.0 } });
    save(&pipeline, Some(&packed.to_string()))?;
    assert!(Field::open(&path, Device::Cpu).is_err());
    save(
        &pipeline.replace("\"hidden\":32", "\"hidden\":1000000000000"),
        None,
    )?;
    let error = Field::open(&path, Device::Cpu)
        .expect_err("too large")
        .to_string();
    assert!(error.contains("1000000000000"), "{error}");
    // Each size is one that networks have, and their product is not.
    save(
        &pipeline.replace("\"hidden\":32", "\"hidden\":100000"),
        None,
    )?;
    let error = Field::open(&path, Device::Cpu)
        .expect_err("too many weights")
        .to_string();
    assert!(error.contains("weights"), "{error}");
    Ok(())
}
