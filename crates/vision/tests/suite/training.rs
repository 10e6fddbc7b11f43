//! Small trainings: what is learnt, resumed, averaged and kept.

use std::path::Path;
use std::sync::Arc;

use densely_core::{Device, Error, Result, weights};
use densely_data::Image;
use densely_data::image::{read, write_png};
use densely_train::event::Event;
use densely_train::optim::{OptimConfig, SgdConfig};
use densely_train::run::{FitOptions, ResumeFrom};
use densely_train::schedule::ScheduleConfig;
use densely_vision::classify::{self, Classifier, ClassifySettings, ModelSettings};
use densely_vision::data::{Batches, DataSettings, Part, Prepare, Prepared, Source};
use densely_vision::features::FeatureExtractor;
use densely_vision::restoration::{self, RestoreOptions, RestoreSettings, Restorer};
use densely_vision::tiles::Tiling;
use densely_vision::transforms::{EvalTransform, TrainTransform};
use serde_json::json;
use tch::Tensor;

/// Three classes of pictures of 16 × 16 pixels: one of the three colours is the brightest.
fn pictures(folder: &Path, each: usize) {
    for (class, name) in ["red", "green", "blue"].iter().enumerate() {
        std::fs::create_dir_all(folder.join(name)).expect("a folder");
        for number in 0..each {
            let value = |i: usize| {
                let noise = (i * 7919 + number * 104_729 + class * 31) % 97;
                (noise + if i % 3 == class { 110 } else { 40 }) as u8
            };
            let pixels = (0..16 * 16 * 3).map(value).collect();
            let image = Image::new(16, 16, 3, pixels).expect("a picture");
            write_png(&folder.join(name).join(format!("{number:03}.png")), &image).expect("a file");
        }
    }
}

fn settings() -> ClassifySettings {
    let mut settings = ClassifySettings {
        data: DataSettings::new(Source::Folder {
            path: "train".to_owned(),
        }),
        model: ModelSettings::default(),
        train: classify::TrainSettings::default(),
    };
    settings.data.valid_share = 0.25;
    let config = json!({
        "layers": [1, 1, 1, 1], "embed_dims": [8, 8, 12, 16], "in_patch_size": 3, "in_stride": 2, "in_pad": 1,
        "layer_scale_init_value": 0.5, "drop_path_rate": 0.1,
    });
    settings
        .model
        .config
        .clone_from(config.as_object().expect("an object"));
    let train = &mut settings.train;
    (train.epochs, train.batch_size, train.ema_decay) = (4, 8, 0.9);
    train.schedule = ScheduleConfig::default();
    train.augment = TrainTransform::small(16, 3);
    train.eval = EvalTransform::small(16, 3);
    settings
}

fn fit(
    data: &Path,
    settings: &ClassifySettings,
    folder: &Path,
    resume: Option<ResumeFrom>,
    observe: &mut dyn FnMut(&Event),
) -> Result<classify::Outcome> {
    let prepared = Prepared::open(data, &settings.data)?;
    let options = FitOptions {
        folder,
        table: data,
        seed: 3,
        device: tch::Device::Cpu,
        resume,
    };
    classify::fit(&prepared, settings, &options, observe)
}

/// What a kill at this moment would leave.
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

fn assert_same_run(whole: &Path, cut: &Path) {
    for file in [
        "best/model.safetensors",
        "last/optimizer.safetensors",
        "metrics.jsonl",
    ] {
        assert!(bytes(&whole.join(file)) == bytes(&cut.join(file)), "{file}");
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("a file")
}

#[test]
fn a_classifier_learns_resumes_to_the_same_bits_and_classifies() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    pictures(&at("train"), 24);
    let mut settings = settings();
    settings.train.eval_batch_size = 7;
    // The batches, the augmentation, drop path and the average of the weights go on where they stopped.
    let mut copy = |event: &Event| {
        if matches!(event, Event::Epoch { epoch: 1, .. }) {
            copy_folder(&at("whole"), &at("cut"));
        }
    };
    let whole = fit(folder.path(), &settings, &at("whole"), None, &mut copy)?;
    assert!(whole.valid.top1 > 0.9, "{}", whole.valid.top1);
    assert_eq!(whole.valid.pictures, 18);
    let from = Some(ResumeFrom::Last);
    let resumed = fit(folder.path(), &settings, &at("cut"), from, &mut |_| {})?;
    assert_eq!(resumed.epochs, whole.epochs);
    assert_same_run(&at("whole"), &at("cut"));

    let classifier = Classifier::open(&at("whole"), tch::Device::Cpu)?;
    assert_eq!(classifier.pipeline.classes, ["blue", "green", "red"]);
    let image = classifier.prepare(&read(&at("train/green/003.png"))?)?;
    let shares = classifier.probabilities(&image.unsqueeze(0))?;
    assert_eq!(shares.argmax(1, false).int64_value(&[0]), 1);
    let part = Part::all(
        Source::Folder {
            path: "train".to_owned(),
        }
        .open(folder.path(), &[])?,
    );
    let (found, logits) = classifier.evaluate(&part, true)?;
    assert_eq!((found.pictures, logits.size()), (72, vec![72, 3]));
    assert!(found.top1 > 0.9);
    assert_eq!(classifier.pipeline.eval_batch_size, 7);
    let mut older = json!(classifier.pipeline);
    let fields = older.as_object_mut().expect("an object");
    fields.remove("eval_batch_size").expect("the field");
    let older: classify::Pipeline = serde_json::from_value(older).expect("a pipeline");
    assert_eq!(older.eval_batch_size, 250);

    let extractor = FeatureExtractor::open(&at("whole"), tch::Device::Cpu)?;
    let maps = extractor.maps(&image.unsqueeze(0))?;
    assert_eq!(maps.len(), 4);
    assert_eq!(extractor.pooled(&image.unsqueeze(0))?.size(), [1, 16]);
    Ok(())
}

#[test]
fn pieces_give_the_gradients_of_the_whole_batch() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    pictures(&at("train"), 8);
    let mut settings = settings();
    settings.train.epochs = 1;
    // Without drop path nothing is drawn inside the network.
    settings.model.config["drop_path_rate"] = json!(0.0);
    settings.train.mixup.prob = 1.0;
    // Adam would make steps of one size of what is only rounding, such as the gradient of a shift before the mixing.
    settings.train.optimizer = OptimConfig::Sgd(SgdConfig {
        lr: 0.1,
        ..SgdConfig::default()
    });
    fit(folder.path(), &settings, &at("whole"), None, &mut |_| {})?;
    settings.train.pieces = 3;
    fit(folder.path(), &settings, &at("pieces"), None, &mut |_| {})?;
    let read = |name: &str| weights::read(&at(name).join("last/model.safetensors"));
    let (whole, pieces) = (read("whole")?.tensors, read("pieces")?.tensors);
    for (name, xs) in &whole {
        let difference = (xs - &pieces[name]).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{name}: {difference}");
    }
    Ok(())
}

#[test]
fn a_probe_leaves_the_body_and_a_new_head_is_drawn_for_other_classes() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    pictures(&at("train"), 8);
    let mut settings = settings();
    settings.train.epochs = 1;
    fit(folder.path(), &settings, &at("first"), None, &mut |_| {})?;
    let weights_file = at("first/best/model.safetensors");

    std::fs::remove_dir_all(at("train/blue")).expect("a folder");
    settings.model.weights = Some(weights_file.to_string_lossy().into_owned());
    settings.model.freeze_body = true;
    settings.train.ema_decay = 0.0;
    let outcome = fit(folder.path(), &settings, &at("probe"), None, &mut |_| {})?;
    assert_eq!(outcome.logits.size()[1], 2);
    let before = weights::read(&weights_file)?.tensors;
    let after = weights::read(&at("probe/last/model.safetensors"))?.tensors;
    for (name, xs) in &after {
        let head = name.starts_with("head.");
        assert_eq!(
            before[name].size() == xs.size() && before[name] == *xs,
            !head,
            "{name}"
        );
    }

    // The layers below the head learn less, and biases never decay.
    settings.model.freeze_body = false;
    settings.train.layer_decay = 1e-3;
    fit(folder.path(), &settings, &at("tuned"), None, &mut |_| {})?;
    let tuned = weights::read(&at("tuned/last/model.safetensors"))?.tensors;
    let moved = |name: &str| (&tuned[name] - &before[name]).abs().max().double_value(&[]);
    assert!(moved("patch_embed.proj.weight") < 1e-9);
    assert!(moved("network.6.0.mlp.fc1.weight") > 1e-7);
    Ok(())
}

#[test]
fn bad_pictures_are_counted_and_bad_data_is_named() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    pictures(&at("train"), 6);
    let broken = at("train/red/002.png");
    let half = bytes(&broken);
    std::fs::write(&broken, &half[..half.len() / 2]).expect("a file");
    let mut settings = settings();
    let prepared = Prepared::open(folder.path(), &settings.data)?;
    assert_eq!(prepared.bad.len(), 1);
    assert!(prepared.bad[0].reason.contains("002.png"));
    assert_eq!(prepared.train.len() + prepared.valid.len(), 17);
    assert!(
        prepared.train.name(0).contains("00"),
        "kept pictures have their names"
    );
    settings.data.strict = true;
    let strict = Prepared::open(folder.path(), &settings.data);
    assert!(strict.is_err_and(|e| e.to_string().contains("002.png")));

    // A test set may lack a class, but not have another one.
    settings.data.strict = false;
    pictures(&at("test"), 2);
    std::fs::remove_dir_all(at("test/green")).expect("a folder");
    settings.data.test = Some(Source::Folder {
        path: "test".to_owned(),
    });
    let test = Prepared::open(folder.path(), &settings.data)?.test;
    let labels: Vec<i64> = test
        .iter()
        .flat_map(|test| (0..test.len()).map(|place| test.label(place).expect("a label")))
        .collect();
    assert_eq!(labels, [0, 0, 2, 2], "blue and red");
    std::fs::rename(at("test/red"), at("test/rose")).expect("a folder");
    let other = Prepared::open(folder.path(), &settings.data);
    assert!(other.is_err_and(|e| e.to_string().contains("rose")));
    settings.data.test = None;

    settings.model.preset = "maxim_s1".to_owned();
    let wrong = fit(folder.path(), &settings, &at("wrong"), None, &mut |_| {});
    assert!(wrong.is_err_and(|e| e.to_string().contains("does not classify")));
    settings.model.preset = "poolformer_s12".to_owned();
    settings
        .model
        .config
        .insert("num_classes".to_owned(), json!(3));
    let twice = fit(folder.path(), &settings, &at("wrong"), None, &mut |_| {});
    assert!(matches!(twice, Err(Error::Config { .. })));
    Ok(())
}

/// Grey pictures of 4 × 4 pixels with these class numbers, in files as MNIST has them.
fn numbers(folder: &Path, labels: &[u8]) -> Source {
    let count = labels.len() as u8;
    let mut images = vec![0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 4, 0, 0, 0, 4];
    images.resize(images.len() + 16 * labels.len(), 90);
    std::fs::write(folder.join("images"), images).expect("a file");
    let labels = [&[0, 0, 8, 1, 0, 0, 0, count][..], labels].concat();
    std::fs::write(folder.join("labels"), labels).expect("a file");
    Source::Idx {
        images: "images".to_owned(),
        labels: "labels".to_owned(),
    }
}

#[test]
fn class_numbers_mean_the_classes_in_their_order_and_names_are_not_replaced() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let train = folder.path().join("train");
    let folders = |names: &[&str]| {
        for name in names {
            let class = train.join(name);
            std::fs::create_dir_all(&class).expect("a folder");
            let image = Image::new(4, 4, 1, vec![90; 16]).expect("a picture");
            for number in 0..4 {
                write_png(&class.join(format!("{number}.png")), &image).expect("a file");
            }
        }
    };
    let mut data = settings().data;
    data.test = Some(numbers(folder.path(), &[0, 1, 2]));
    let cases: [(&[&str], bool); 4] = [
        (&["ant", "bee", "cat"], true),
        (&["0", "1", "2", "3"], true),
        (&["1", "2", "3"], false),
        // In the order of texts.
        (&["0", "1", "10", "2"], false),
    ];
    for (names, fit) in cases {
        folders(names);
        let found = Prepared::open(folder.path(), &data);
        std::fs::remove_dir_all(&train).expect("a folder");
        match found {
            Ok(found) if fit => assert_eq!(found.classes, names),
            Err(error) if !fit => assert!(error.to_string().contains("are not those"), "{error}"),
            other => panic!("{names:?}: {other:?}"),
        }
    }

    data.test = None;
    data.classes = ["x", "y", "z"].map(str::to_owned).to_vec();
    folders(&["ant", "bee", "cat"]);
    let error = Prepared::open(folder.path(), &data).expect_err("two names for each class");
    let words = "(x, y, z) that the files name themselves (ant, bee, cat)";
    assert!(error.to_string().contains(words), "{error}");
    data.train = numbers(folder.path(), &[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]);
    assert_eq!(Prepared::open(folder.path(), &data)?.classes, data.classes);
    data.classes.pop();
    let few = Prepared::open(folder.path(), &data);
    assert!(few.is_err_and(|e| e.to_string().contains("at least 3")));
    Ok(())
}

#[test]
fn a_batch_of_bad_pictures_alone_ends_neither_evaluation_nor_training() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    pictures(&folder.path().join("train"), 2);
    std::fs::write(folder.path().join("train/red/001.png"), "no picture").expect("a file");
    let part = Part::all(settings().data.train.open(folder.path(), &[])?);
    let eval = EvalTransform::small(16, 3);
    let prepare: Arc<Prepare> = Arc::new(move |_, picture| eval.apply(&picture.to_rgb8()));
    let plan = || vec![vec![4], vec![5], vec![1, 5]];
    let seen: Result<Vec<_>> = Batches::to_see(&part, plan(), &prepare, false).collect();
    let seen: Vec<_> = seen?
        .into_iter()
        .map(|batch| batch.map(|batch| batch.places))
        .collect();
    assert_eq!(seen, [Some(vec![4]), None, Some(vec![1])]);
    let taken: Result<Vec<_>> = Batches::to_train(&part, plan(), &prepare, false).collect();
    let taken: Vec<_> = taken?.into_iter().map(|batch| batch.places).collect();
    assert_eq!(
        taken,
        [[4], [0], [1]],
        "the first picture stands in for the last"
    );
    let strict = Batches::to_see(&part, plan(), &prepare, true).nth(1);
    assert!(strict.is_some_and(|batch| batch.is_err_and(|e| e.to_string().contains("001.png"))));
    let only_bad = Batches::to_train(&part.chosen(&[5]), vec![vec![0]], &prepare, false).next();
    assert!(only_bad.is_some_and(|batch| batch.is_err()));
    Ok(())
}

/// Smooth pictures of 48 × 48 pixels.
fn scenes(folder: &Path, count: usize) {
    std::fs::create_dir_all(folder).expect("a folder");
    for number in 0..count {
        let value = |i: usize| {
            let (x, y) = ((i % 48) as f64, (i / 48) as f64);
            let wave = (x * 0.11 * (1.0 + number as f64 * 0.2)).sin() * (y * 0.09).cos();
            (127.0 + 100.0 * wave) as u8
        };
        let image = Image::new(48, 48, 1, (0..48 * 48).map(value).collect()).expect("a picture");
        write_png(&folder.join(format!("{number}.png")), &image).expect("a file");
    }
}

#[test]
fn a_restorer_takes_noise_away_resumes_to_the_same_bits_and_tiles() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    scenes(&at("clean"), 8);
    let settings: RestoreSettings = serde_json::from_value(json!({
        "data": { "train": { "clean": "clean" }, "valid_share": 0.25,
            "test": [{ "clean": "clean", "name": "same" }, { "clean": "clean", "spoilt": "clean", "name": "pairs" }], "channels": 1 },
        "model": { "preset": "maxim_s1", "config": {
            "features": 8, "num_groups": 1, "num_bottleneck_blocks": 1, "block_size_hr": 4, "block_size_lr": 2 } },
        "train": {
            "optimizer": { "name": "adam", "lr": 2e-3 }, "schedule": { "name": "constant" }, "batch_size": 4, "epoch_squares": 160,
            "epochs": 4, "augment": { "size": 32 }, "ema_decay": 0.5 },
    }))
    .expect("settings");
    let fit = |run: &Path, resume, observe: &mut dyn FnMut(&Event)| {
        let prepared = restoration::Prepared::open(folder.path(), &settings.data)?;
        let options = FitOptions {
            folder: run,
            table: folder.path(),
            seed: 1,
            device: tch::Device::Cpu,
            resume,
        };
        restoration::fit(&prepared, &settings, &options, observe)
    };
    let whole = fit(&at("whole"), None, &mut |event| {
        if matches!(event, Event::Epoch { epoch: 0, .. }) {
            copy_folder(&at("whole"), &at("cut"));
        }
    })?;
    let [came, restored] = whole.test[0].means();
    assert!(restored.psnr > came.psnr + 3.0, "{came:?} {restored:?}");
    let [_, classical] = whole.baseline[0].as_ref().expect("a method").means();
    assert!(classical.psnr > came.psnr + 3.0, "{classical:?}");
    assert!(
        whole.baseline[1].is_none(),
        "pairs may be spoilt by anything"
    );
    fit(&at("cut"), Some(ResumeFrom::Last), &mut |_| {})?;
    assert_same_run(&at("whole"), &at("cut"));

    let restorer = Restorer::open(&at("whole"), Device::Cpu.open()?)?;
    let noisy = Tensor::rand([1, 70, 51], (tch::Kind::Float, tch::Device::Cpu));
    let once = restorer.restore(&noisy, RestoreOptions::default(), &mut |_, _| {})?;
    assert_eq!(once.size(), [1, 70, 51]);
    let mut tiles = 0;
    let options = RestoreOptions {
        tiling: Tiling {
            tile: 40,
            overlap: 12,
        },
        ensemble: true,
    };
    let tiled = restorer.restore(&noisy, options, &mut |done, _| tiles = done)?;
    assert_eq!((tiled.size(), tiles), (vec![1, 70, 51], 6));
    assert!(
        restorer
            .restore(&noisy.repeat([3, 1, 1]), options, &mut |_, _| {})
            .is_err()
    );
    Ok(())
}

#[test]
fn restoration_that_cannot_work_is_refused_by_the_name_of_the_setting() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    scenes(&folder.path().join("clean"), 4);
    let fit = |data: serde_json::Value, model: serde_json::Value| {
        let settings =
            json!({ "data": data, "model": model, "train": { "augment": { "size": 32 } } });
        let settings: RestoreSettings = serde_json::from_value(settings).expect("settings");
        let prepared = restoration::Prepared::open(folder.path(), &settings.data)?;
        let options = FitOptions {
            folder: &folder.path().join("run"),
            table: folder.path(),
            seed: 1,
            device: tch::Device::Cpu,
            resume: None,
        };
        restoration::fit(&prepared, &settings, &options, &mut |_| {})
    };
    let clean = json!({ "clean": "clean" });
    for (data, model, word) in [
        (
            json!({ "train": clean, "valid_share": 5.0 }),
            json!({}),
            "valid_share",
        ),
        (
            json!({ "train": clean, "valid_share": 0.5, "degrade": [] }),
            json!({}),
            "degrade",
        ),
        (
            json!({ "train": clean, "valid_share": 0.5 }),
            json!({ "config": { "block_size_hr": 0, "block_size_lr": 0 } }),
            "block_size_hr",
        ),
    ] {
        let error = fit(data, model).expect_err(word);
        assert!(error.to_string().contains(word), "{error}");
    }
    pictures(&folder.path().join("train"), 4);
    let part = Part::all(settings().data.train.open(folder.path(), &[])?);
    for share in [5.0, -1.0, f64::NAN] {
        assert!(part.split(share, 0).is_err() && part.divide(share, 0).is_err());
    }
    Ok(())
}
