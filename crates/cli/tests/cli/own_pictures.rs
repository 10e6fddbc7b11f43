//! `densely vision` and `densely restore` on one's own pictures.

use std::path::Path;

use densely_data::Image;
use densely_data::image::{encode_jpeg, encode_png, read, write_png, write_png16};
use serde_json::Value;

use crate::{Bench, stderr, stdout};

/// A network that trains in a blink.
const TINY: [&str; 8] = [
    "--set",
    "model.config={ layers = [1, 1, 1, 1], embed_dims = [8, 8, 8, 12], in_patch_size = 3, in_stride = 2, in_pad = 1 }",
    "--epochs",
    "6",
    "--batch-size",
    "8",
    "--device",
    "cpu",
];

/// One colour is the brightest.
fn picture(brightest: usize, number: usize, side: usize) -> Image {
    let value = |i: usize| {
        let noise = (i * 7919 + number * 104_729) % 97;
        (noise + if i % 3 == brightest { 120 } else { 30 }) as u8
    };
    let pixels = (0..side * side * 3).map(value).collect();
    Image::new(side, side, 3, pixels).unwrap()
}

fn classes(folder: &Path, each: usize, side: usize) {
    for (class, name) in ["red", "green"].iter().enumerate() {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        for number in 0..each {
            let path = folder.join(name).join(format!("{number:02}.png"));
            write_png(&path, &picture(class, number, side)).unwrap();
        }
    }
}

impl Bench {
    fn vision(&self, words: &[&str]) -> assert_cmd::assert::Assert {
        let all: Vec<&str> = ["vision", "train"]
            .iter()
            .chain(words)
            .chain(&TINY)
            .copied()
            .collect();
        self.densely(&all)
    }
}

#[test]
fn from_folders_to_classes_and_vectors() {
    let bench = Bench::new();
    for part in ["data/train", "data/val", "data/test"] {
        classes(&bench.path(part), 16, 16);
    }
    // One bad picture in the folder is named, counted and left out.
    std::fs::write(bench.path("data/train/red/99.png"), "this is no picture").unwrap();
    let trained = bench.vision(&["data", "--out", "run", "--json"]).success();
    assert!(stderr(&trained).contains("99.png"), "{}", stderr(&trained));
    let summary: Value = serde_json::from_str(&stdout(&trained)).unwrap();
    assert_eq!(summary["part"], "test");
    assert!(summary["accuracy"].as_f64().unwrap() > 0.9, "{summary}");
    for file in [
        "report.md",
        "predictions.parquet",
        "plots/confusion.svg",
        "plots/samples.svg",
        "plots/accuracy.svg",
    ] {
        assert!(bench.path("run").join(file).is_file(), "{file}");
    }
    let report = std::fs::read_to_string(bench.path("run/report.md")).unwrap();
    assert!(report.contains("99.png") && report.contains("Most frequent mistakes"));

    let judged = bench
        .densely(&["vision", "evaluate", "run", "data/test", "--json"])
        .success();
    let judged: Value = serde_json::from_str(&stdout(&judged)).unwrap();
    assert_eq!(judged["accuracy"], summary["accuracy"]);

    let found = bench
        .densely(&[
            "vision",
            "classify",
            "run",
            "data/test/green/03.png",
            "--top",
            "1",
        ])
        .success();
    assert!(
        stdout(&found).contains("03.png: green"),
        "{}",
        stdout(&found)
    );
    let found = bench
        .densely(&[
            "vision",
            "classify",
            "run",
            "data/test",
            "--out",
            "found.csv",
        ])
        .success();
    assert_eq!(stdout(&found), "");
    let table = std::fs::read_to_string(bench.path("found.csv")).unwrap();
    assert!(table.starts_with("picture,prediction,p_green,p_red") && table.lines().count() == 33);

    bench
        .densely(&[
            "vision",
            "features",
            "run",
            "data/test",
            "--out",
            "vectors.csv",
        ])
        .success();
    let table = std::fs::read_to_string(bench.path("vectors.csv")).unwrap();
    assert!(table.starts_with("picture,f0,f1") && table.lines().count() == 33);

    let strict = bench
        .vision(&["data", "--out", "strict", "--strict"])
        .failure()
        .code(1);
    assert!(stderr(&strict).contains("99.png"));
    let again = bench.vision(&["data", "--out", "run"]).failure().code(1);
    assert!(stderr(&again).contains("--resume"));
}

#[test]
fn bad_pictures_have_a_sentence_each() {
    let bench = Bench::new();
    classes(&bench.path("data"), 12, 12);
    bench.vision(&["data", "--out", "run"]).success();
    let good = picture(0, 0, 20);
    let jpeg = encode_jpeg(&good, 90).unwrap();
    let mut bomb = encode_png(&good).unwrap();
    // Sides of a million pixels, in the header.
    bomb[16..24].copy_from_slice(&[0, 15, 66, 64, 0, 15, 66, 64]);
    // So thin that its longer side would be resized to more pixels than any picture has.
    let thin = Image::new(6000, 1, 3, vec![90; 18_000]).unwrap();
    let cases: [(&str, &[u8], &str); 6] = [
        ("thin.png", &encode_png(&thin).unwrap(), "thin.png"),
        ("cut.jpg", &jpeg[..jpeg.len() / 2], "cut.jpg"),
        ("text.png", b"hello, I am a text", "text.png"),
        ("empty.png", b"", "empty.png"),
        ("bomb.png", &bomb, "bomb.png"),
        ("half.png", &encode_png(&good).unwrap()[..60], "half.png"),
    ];
    for (name, bytes, word) in cases {
        std::fs::write(bench.path(name), bytes).unwrap();
        let refused = bench
            .densely(&["vision", "classify", "run", name, "--strict"])
            .failure()
            .code(1);
        let text = stderr(&refused);
        let error = text
            .lines()
            .find(|line| line.starts_with("error:"))
            .unwrap();
        assert!(error.contains(word), "{name}: {error}");
        bench
            .densely(&["vision", "classify", "run", name])
            .failure()
            .code(1);
    }
    // Extreme shapes are pictures like others.
    for (name, width, height) in [("dot.png", 1, 1), ("long.png", 3000, 2)] {
        let pixels = vec![90; width * height * 3];
        write_png(
            &bench.path(name),
            &Image::new(width, height, 3, pixels).unwrap(),
        )
        .unwrap();
        bench
            .densely(&["vision", "classify", "run", name])
            .success();
    }
    // Bad ones among good ones do not end the run.
    std::fs::create_dir(bench.path("mixed")).unwrap();
    std::fs::copy(bench.path("text.png"), bench.path("mixed/a.png")).unwrap();
    std::fs::copy(bench.path("dot.png"), bench.path("mixed/b.png")).unwrap();
    let mixed = bench
        .densely(&["vision", "classify", "run", "mixed"])
        .success();
    assert!(
        stderr(&mixed).contains("1 of 2 pictures"),
        "{}",
        stderr(&mixed)
    );
    assert_eq!(stdout(&mixed).lines().count(), 1);

    std::fs::create_dir(bench.path("nothing")).unwrap();
    for words in [
        ["vision", "classify", "run", "nothing"],
        ["vision", "evaluate", "run", "nothing"],
    ] {
        let refused = bench.densely(&words).failure().code(1);
        assert!(
            stderr(&refused).contains("no picture"),
            "{}",
            stderr(&refused)
        );
    }
    std::fs::create_dir(bench.path("data/blue")).unwrap();
    let empty = bench.vision(&["data", "--out", "other"]).failure().code(1);
    assert!(stderr(&empty).contains("blue"), "{}", stderr(&empty));
    std::fs::remove_dir(bench.path("data/blue")).unwrap();
    let absent = bench
        .vision(&["absent", "--out", "other"])
        .failure()
        .code(1);
    assert!(stderr(&absent).contains("absent"));
    let unknown = bench
        .vision(&["data", "--out", "other", "--model", "poolfromer_s12"])
        .failure()
        .code(1);
    assert!(stderr(&unknown).contains("poolformer_s12"));
    bench.vision(&["data", "--linear-probe"]).failure().code(2);
}

/// Trains a tiny network on `data` without saying for how long.
fn own(bench: &Bench, words: &[&str]) -> assert_cmd::assert::Assert {
    let tiny = TINY.iter().enumerate();
    let tiny = tiny.filter(|(place, _)| !matches!(place, 2 | 3));
    let all: Vec<&str> = ["vision", "train", "data"]
        .iter()
        .chain(words)
        .chain(tiny.map(|(_, word)| word))
        .copied()
        .collect();
    bench.densely(&all)
}

#[test]
fn a_size_that_is_not_the_pictures_own_resizes_them() {
    let bench = Bench::new();
    classes(&bench.path("data"), 12, 12);
    for (size, kind) in [("12", "padded"), ("8", "resized"), ("24", "resized")] {
        let words = ["--size", size, "--out", size, "--epochs", "1"];
        let trained = own(&bench, &words).success();
        assert!(!stderr(&trained).contains("left out"), "{size}");
        let settings = std::fs::read_to_string(bench.path(size).join("config.toml")).unwrap();
        let kind = format!("kind = \"{kind}\"");
        assert!(settings.contains(&kind), "{size}: {settings}");
    }
}

#[test]
fn a_run_may_go_on_for_more_epochs_and_be_as_short_as_a_step() {
    let bench = Bench::new();
    classes(&bench.path("data"), 12, 12);
    own(&bench, &["--out", "run", "--epochs", "1"]).success();
    own(&bench, &["--out", "run", "--epochs", "40", "--resume"]).success();
    let short = ["--out", "short", "--set", "train.epochs=1"];
    own(&bench, &short).success();
    let step = [
        "--out",
        "step",
        "--set",
        "train.epochs=1",
        "--set",
        "train.batch_size=22",
    ];
    own(&bench, &step).success();
}

const COLOURS: &str = r#"
name = "colours"
title = "Colours"
domain = "vision"
seeds = [0]
[data]
train = { folder = { path = "data" } }
valid_share = 0.25
[model.config]
layers = [1, 1, 1, 1]
embed_dims = [8, 8, 8, 12]
in_patch_size = 3
in_stride = 2
in_pad = 1
[train]
batch_size = 8
epochs = 1
augment = { crop = { kind = "padded", size = 12 } }
eval = { size = 12 }
"#;

#[test]
fn models_of_a_comparison_have_names_of_their_own_and_stay_in_their_folder() {
    let bench = Bench::new();
    bench.write("colours.toml", COLOURS);
    let train = |models: &str| {
        let models = format!("compare.models=[{models}]");
        let words = ["train", "colours.toml", "--set", &models];
        bench.densely(&[words.as_slice(), &["--device", "cpu", "--json"]].concat())
    };
    // Before any picture is read: there is none yet.
    for (models, part) in [
        ("{ train = { epochs = 2 } }", "each must have a `name`"),
        (
            "{ name = \"a\" }, { name = \"a\" }",
            "`a` and `a` would share the folder `a`",
        ),
        (
            "{ name = \"a\", forecast = { horizon = 3 } }",
            "is for recipes of the domain forecast",
        ),
    ] {
        let said = stderr(&train(models).failure().code(1));
        assert!(said.contains(part), "{said}");
    }
    classes(&bench.path("data"), 12, 12);
    let trained = train("{ name = \"../x\" }").success();
    assert!(
        bench
            .path("runs/colours/comparison/---x/seed-0/report.md")
            .is_file()
    );
    // Without test pictures nothing is said of such.
    let summary: Value = serde_json::from_str(&stdout(&trained)).unwrap();
    let comparison = &summary["comparison"];
    assert_eq!(comparison["part"], "validation");
    assert_eq!(comparison["rows"][1]["split"], "validation");
}

const RECIPE: &str = r#"
name = "denoise"
title = "Noise of 25/255"
domain = "restoration"
seeds = [0]
[data]
train = { clean = "clean" }
test = [{ clean = "clean" }]
valid_share = 0.25
channels = 3
[model.config]
features = 4
num_groups = 1
num_bottleneck_blocks = 1
block_size_hr = 4
block_size_lr = 2
[train]
batch_size = 4
epoch_squares = 8
epochs = 1
mixup = 0.0
augment = { size = 32 }
"#;

#[test]
fn a_restorer_is_trained_by_a_recipe_and_restores_folders() {
    let bench = Bench::new();
    std::fs::create_dir_all(bench.path("clean")).unwrap();
    for number in 0..4 {
        let name = format!("clean/{number}.png");
        write_png(&bench.path(&name), &picture(number % 3, number, 40)).unwrap();
    }
    bench.write("denoise.toml", RECIPE);
    let trained = bench
        .densely(&[
            "train",
            "denoise.toml",
            "--data-dir",
            ".",
            "--device",
            "cpu",
            "--json",
        ])
        .success();
    // It has no table of a schedule whose warm-up could be too long for few steps.
    bench
        .densely(&[
            "train",
            "denoise.toml",
            "--smoke",
            "--out",
            "smoke",
            "--device",
            "cpu",
        ])
        .success();
    let summary: Value = serde_json::from_str(&stdout(&trained)).unwrap();
    assert!(
        summary["metrics"]["psnr_clean"]["mean"].as_f64().unwrap() > 5.0,
        "{summary}"
    );
    assert!(
        bench
            .path("runs/denoise/seed-0/plots/pictures.svg")
            .is_file()
    );
    let rows = summary["comparison"]["rows"].as_array().unwrap();
    assert_eq!(
        rows.len(),
        3,
        "as it came, the classical method, the network"
    );

    let run = "runs/denoise/seed-0";
    let deep = Image::new(50, 33, 3, (0..50 * 33 * 3).map(|i| i as u16 * 13).collect()).unwrap();
    std::fs::create_dir_all(bench.path("clean/deep")).unwrap();
    write_png16(&bench.path("clean/deep/sixteen.png"), &deep).unwrap();
    std::fs::write(bench.path("clean/broken.png"), "no picture").unwrap();
    let words = [
        "restore",
        "clean",
        "--run",
        run,
        "--out",
        "restored",
        "--tile",
        "24",
        "--overlap",
        "8",
        "--side-by-side",
    ];
    let done = bench.densely(&words).success();
    assert!(
        stdout(&done).contains("5 pictures restored, 1 left out"),
        "{}",
        stdout(&done)
    );
    assert!(stderr(&done).contains("broken.png"));
    let sixteen = read(&bench.path("restored/deep/sixteen.png")).unwrap();
    assert!(matches!(sixteen, densely_data::image::AnyImage::Sixteen(_)));
    assert_eq!((sixteen.width(), sixteen.height()), (50, 33));
    assert_eq!(
        read(&bench.path("restored/1.before-after.png"))
            .unwrap()
            .width(),
        80
    );

    bench
        .densely(&[words.as_slice(), &["--strict"]].concat())
        .failure()
        .code(1);
    let same = bench
        .densely(&["restore", "clean/1.png", "--run", run, "--out", "clean"])
        .failure()
        .code(1);
    assert!(stderr(&same).contains("1.png"), "{}", stderr(&same));
    let wide = bench
        .densely(&[
            "restore",
            "clean/1.png",
            "--run",
            run,
            "--out",
            "x",
            "--overlap",
            "400",
        ])
        .failure()
        .code(1);
    assert!(stderr(&wide).contains("overlap"));
    bench
        .densely(&["restore", "clean/1.png", "--out", "x"])
        .failure()
        .code(2);
    bench
        .densely(&["restore", "clean/1.png", "--out", "x", "--task", "denoise"])
        .failure()
        .code(2);
    let weights = bench.path(run).join("best/model.safetensors");
    let other = bench.densely(&[
        "restore",
        "clean/1.png",
        "--out",
        "x",
        "--task",
        "derain",
        "--weights",
        weights.to_str().unwrap(),
    ]);
    assert!(stderr(&other.failure().code(1)).contains("weights do not fit"));
}
