//! `densely field` on one's own signals, and its recipes.

use std::path::Path;

use densely_data::Image;
use densely_data::image::{read, write_png};
use serde_json::Value;

use crate::{Bench, stderr, stdout};

const TINY: [&str; 12] = [
    "--model",
    "siren",
    "--set",
    "model.config.hidden=16",
    "--set",
    "model.config.layers=1",
    "--steps",
    "60",
    "--lr",
    "0.002",
    "--device",
    "cpu",
];

fn waves(side: usize, phase: f64) -> Image {
    let pixels = (0..side * side * 3).map(|i| {
        let (x, y) = (
            (i / 3 % side) as f64 / side as f64,
            (i / 3 / side) as f64 / side as f64,
        );
        (127.0 + 60.0 * (5.0 * x + phase).sin() + 50.0 * (4.0 * y).cos()) as u8
    });
    Image::new(side, side, 3, pixels.collect()).unwrap()
}

impl Bench {
    fn field(&self, words: &[&str]) -> assert_cmd::assert::Assert {
        let all: Vec<&str> = ["field", "fit"]
            .iter()
            .chain(words)
            .chain(&TINY)
            .copied()
            .collect();
        self.densely(&all)
    }
}

fn json(assert: &assert_cmd::assert::Assert) -> Value {
    serde_json::from_str(&stdout(assert)).unwrap()
}

#[test]
fn from_a_picture_to_pictures_of_other_sizes_and_a_small_file() {
    let bench = Bench::new();
    write_png(&bench.path("photo.png"), &waves(32, 0.0)).unwrap();
    let fitted = bench
        .field(&[
            "photo.png",
            "--preview",
            "preview",
            "--preview-every",
            "0.000001",
            "--json",
        ])
        .success();
    let fitted = json(&fitted);
    let psnr = fitted["scores"]["psnr"].as_f64().unwrap();
    assert!(psnr > 18.0, "{fitted}");
    assert!(bench.path("preview/step-0000060.png").exists());
    for file in [
        "report.md",
        "config.toml",
        "reconstruction.png",
        "plots/reconstruction.svg",
        "best/preprocess.json",
    ] {
        assert!(bench.path("runs/photo").join(file).exists(), "{file}");
    }
    let found = bench.densely(&["field", "eval", "runs/photo", "photo.png", "--json"]);
    let found = json(&found.success());
    assert!((found["psnr"].as_f64().unwrap() - psnr).abs() < 1e-9);

    bench
        .densely(&["field", "render", "runs/photo", "twice.png", "--scale", "2"])
        .success();
    let twice = read(&bench.path("twice.png")).unwrap();
    assert_eq!((twice.width(), twice.height()), (64, 64));
    bench
        .densely(&["field", "render", "runs/photo", "once.jpg"])
        .success();
    let jpeg = std::fs::read(bench.path("once.jpg")).unwrap();
    assert!(jpeg.starts_with(&[0xff, 0xd8]));
    let zoom = ["--zoom", "0.25,0.5,0.5,0.25", "--size", "40x20"];
    let words: Vec<&str> = ["field", "render", "runs/photo", "part.png"]
        .iter()
        .chain(&zoom)
        .copied()
        .collect();
    bench.densely(&words).success();
    let part = read(&bench.path("part.png")).unwrap();
    assert_eq!((part.width(), part.height()), (40, 20));

    let packed = bench.densely(&["field", "compress", "runs/photo", "photo.field", "--json"]);
    let packed = json(&packed.success());
    let bytes = std::fs::metadata(bench.path("photo.field")).unwrap().len();
    assert_eq!(packed["bytes"].as_u64(), Some(bytes));
    bench
        .densely(&["field", "render", "photo.field", "again.png"])
        .success();
    bench
        .densely(&["field", "eval", "photo.field", "photo.png"])
        .success();

    // What was cut and reduced is judged so again, from the file too.
    let cut = [
        "photo.png",
        "--set",
        "data.side=24",
        "--set",
        "data.crop=12",
        "--out",
        "runs/cut",
        "--json",
    ];
    let fitted = json(&bench.field(&cut).success());
    let words = ["field", "compress", "runs/cut", "cut.field", "--bits", "32"];
    bench.densely(&words).success();
    for field in ["runs/cut", "cut.field"] {
        let found = bench.densely(&["field", "eval", field, "photo.png", "--json"]);
        let found = json(&found.success())["psnr"].as_f64().unwrap();
        let psnr = fitted["scores"]["psnr"].as_f64().unwrap();
        assert!((found - psnr).abs() < 1e-9, "{field}: {found} and {psnr}");
    }

    // A second fit does not write over the first one.
    let again = bench.field(&["photo.png"]).failure().code(1);
    assert!(stderr(&again).contains("--resume"), "{}", stderr(&again));
    bench.field(&["photo.png", "--resume"]).success();
}

#[test]
fn films_meshes_and_scenes_are_told_apart() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("film")).unwrap();
    for frame in 0..3 {
        let path = bench.path("film").join(format!("frame_{frame}.png"));
        write_png(&path, &waves(16, f64::from(frame))).unwrap();
    }
    bench.field(&["film"]).success();
    assert!(
        bench
            .path("runs/film/reconstruction/frame_0002.png")
            .exists()
    );
    bench
        .densely(&[
            "field",
            "render",
            "runs/film",
            "frames",
            "--frames",
            "5",
            "--size",
            "8x8",
        ])
        .success();
    assert!(bench.path("frames/frame_0004.png").exists());
    // Fewer frames do not end in some of the first film, and as many take their place.
    let again = |count| {
        let words = ["field", "render", "runs/film", "frames", "--frames", count];
        bench.densely(&words)
    };
    let text = stderr(&again("3").failure());
    assert!(
        text.contains("holds frame_0003.png of an earlier render"),
        "{text}"
    );
    again("5").success();

    let cube = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nv 0 0 1\nv 1 0 1\nv 0 1 1\nv 1 1 1\n\
                f 1 3 4\nf 1 4 2\nf 5 6 8\nf 5 8 7\nf 1 2 6\nf 1 6 5\nf 3 7 8\nf 3 8 4\nf 1 5 7\nf 1 7 3\nf 2 4 8\nf 2 8 6\n";
    bench.write("cube.obj", cube);
    let found = bench
        .field(&[
            "cube.obj",
            "--set",
            "data.resolution=16",
            "--set",
            "model.config.first_omega=5.0",
            "--json",
        ])
        .success();
    assert!(json(&found)["scores"]["iou"].as_f64().unwrap() > 0.5);
    bench
        .densely(&[
            "field",
            "render",
            "runs/cube",
            "cube.ply",
            "--resolution",
            "24",
        ])
        .success();
    let words = [
        "field",
        "eval",
        "runs/cube",
        "cube.obj",
        "--resolution",
        "16",
    ];
    assert!(stdout(&bench.densely(&words).success()).contains("chamfer"));

    // A grey wall from both sides.
    let mut frames = Vec::new();
    for number in 0..4 {
        let side = if number % 2 == 0 { 1.0 } else { -1.0 };
        let pose = serde_json::json!([
            [side, 0.0, 0.0, 0.0],
            [0.0, 1.0, 0.0, 0.0],
            [0.0, 0.0, side, 4.0 * side],
            [0.0, 0.0, 0.0, 1.0]
        ]);
        let name = format!("view_{number}.png");
        write_png(&bench.path(&name), &waves(12, f64::from(number))).unwrap();
        frames.push(serde_json::json!({ "file_path": name, "transform_matrix": pose }));
    }
    let text = serde_json::json!({ "camera_angle_x": 0.7, "frames": frames }).to_string();
    bench.write("transforms.json", &text);
    let small = [
        "--set",
        "model.config.grid={ levels = 2, base = 4, log2_table = 8, growth = { finest = 8 } }",
        "--set",
        "train.rays.occupancy={ resolution = 8, step = 0.2 }",
        "--steps",
        "20",
        "--batch-size",
        "64",
        "--device",
        "cpu",
    ];
    let words: Vec<&str> = ["field", "fit", "transforms.json", "--out", "runs/wall"]
        .iter()
        .chain(&small)
        .copied()
        .collect();
    assert!(stdout(&bench.densely(&words).success()).contains("psnr"));
    assert!(bench.path("runs/wall/plots/views.svg").exists());
    let words = [
        "field",
        "render",
        "runs/wall",
        "turn",
        "--turntable",
        "3",
        "--size",
        "8x6",
    ];
    bench.densely(&words).success();
    let frame = read(&bench.path("turn/frame_0002.png")).unwrap();
    assert_eq!((frame.width(), frame.height()), (8, 6));
    let words = ["field", "render", "runs/wall", "turn", "--turntable", "2"];
    assert!(stderr(&bench.densely(&words).failure()).contains("frame_0002.png"));
    bench
        .densely(&["field", "render", "runs/wall", "one.png", "--view", "1"])
        .success();
    let words = ["field", "render", "runs/wall", "one.png", "--view", "9"];
    assert!(stderr(&bench.densely(&words).failure()).contains("below 4"));
    let words = [
        "field",
        "render",
        "runs/wall",
        "a.png",
        "--size",
        "99999x99999",
    ];
    assert!(stderr(&bench.densely(&words).failure()).contains("pixels"));
    let found = bench.densely(&["field", "eval", "runs/wall", "transforms.json"]);
    let found = stdout(&found.success());
    assert!(found.contains("view_0") && !found.contains("view_1"));

    // The first and the last from other places; two that were trained on are known by name and pose.
    let mut others = frames.clone();
    for number in [0, 3] {
        others[number]["transform_matrix"][0][3] = serde_json::json!(0.125);
    }
    let scene_of = |frames: &[Value]| {
        serde_json::json!({ "camera_angle_x": 0.7, "frames": frames }).to_string()
    };
    bench.write("others.json", &scene_of(&others));
    bench.write("trained.json", &scene_of(&frames[1..3]));
    let judged = |run: &str, scene: &str| {
        let found = bench.densely(&["field", "eval", run, scene, "--json"]);
        let found = json(&found.success());
        let views = found["views"].as_array().unwrap();
        let name = |view: &Value| view["view"].as_str().unwrap().to_owned();
        views.iter().map(name).collect::<Vec<String>>()
    };
    assert_eq!(
        judged("runs/wall", "others.json"),
        ["view_0.png", "view_3.png"]
    );
    assert_eq!(
        judged("runs/wall", "trained.json"),
        ["view_1.png", "view_2.png"]
    );

    // Views of another file that were named to judge by are so again.
    let test = ["--set", "data.test=\"others.json\"", "--out", "runs/tested"];
    let words: Vec<&str> = ["field", "fit", "transforms.json"]
        .iter()
        .chain(&test)
        .chain(&small)
        .copied()
        .collect();
    bench.densely(&words).success();
    let found = judged("runs/tested", "transforms.json");
    assert_eq!(found, ["view_0.png", "view_3.png"]);
}

#[test]
fn what_cannot_be_fitted_or_rendered_has_its_sentence() {
    let bench = Bench::new();
    write_png(&bench.path("photo.png"), &waves(16, 0.0)).unwrap();
    bench.write("text.png", "no picture");
    bench.write("empty.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\n");
    bench.write("nan.obj", "v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n");
    std::fs::create_dir(bench.path("film")).unwrap();
    for (frame, side) in [(0, 16), (1, 8)] {
        let path = bench.path("film").join(format!("frame_{frame}.png"));
        write_png(&path, &waves(side, 0.0)).unwrap();
    }
    std::fs::create_dir(bench.path("gap")).unwrap();
    for frame in [0, 2] {
        let path = bench.path("gap").join(format!("frame_{frame}.png"));
        write_png(&path, &waves(8, 0.0)).unwrap();
    }
    for (words, sentence) in [
        (&["nothing.png"][..], "No such file"),
        (&["text.png"], "text.png"),
        (&["empty.obj"], "empty.obj"),
        (&["nan.obj"], "nan"),
        (&["film"], "one size"),
        (&["gap"], "frame 1 is missing"),
        (&["photo.png", "--held-out", "1.5"], "held_out"),
        (&["photo.png", "--every", "0"], "every"),
        (&["photo.png", "--set", "model.config.omegas=3"], "omega"),
        (&["photo.png", "--set", "train.epochz=3"], "epochz"),
        (&["photo.png", "--batch-size=-4"], "batch_size"),
        (&["photo.png", "--set", "model.preset=wire"], "--model"),
        (
            &["photo.png", "--preview", "p", "--preview-every", "0"],
            "--preview-every",
        ),
    ] {
        let failed = bench.field(words).failure();
        let text = stderr(&failed);
        assert!(text.contains(sentence), "{words:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
    }
    let auto = ["field", "fit", "photo.png", "--auto", "--model", "wire"];
    let text = stderr(&bench.densely(&auto).failure());
    assert!(text.contains("siren-fresh"), "{text}");
    let unknown = ["field", "fit", "photo.png", "--model", "sirn"];
    assert!(stderr(&bench.densely(&unknown).failure()).contains("siren"));

    bench.field(&["photo.png"]).success();
    for (words, sentence) in [
        (
            &["runs/photo", "a.png", "--size", "0x4"][..],
            "must lie in 1 to 65535",
        ),
        (&["runs/photo", "a.png", "--size", "four"], "1920x1080"),
        (&["runs/photo", "a.bmp"], ".png, .jpg, .jpeg or .webp"),
        (&["runs/photo", "a.png", "--scale=-1"], "--scale"),
        (&["runs/photo", "a.png", "--zoom", "0,0,2,1"], "from 0 to 1"),
        (&["runs/photo", "a.png", "--zoom", "0,0"], "four numbers"),
        (
            &["runs/photo", "a.png", "--zoom", "0,x,0,1,1"],
            "four numbers",
        ),
        (
            &["runs/photo", "a.png", "--resolution", "9"],
            "--resolution",
        ),
        (&["runs/photo", "a.png", "--turntable", "4"], "--turntable"),
        (&["runs/photo", "a.png", "--time", "0.5"], "--time"),
        (&["runs/nothing", "a.png"], "no such run folder"),
        (&["photo.png", "a.png"], "photo.png"),
    ] {
        let all: Vec<&str> = ["field", "render"].iter().chain(words).copied().collect();
        let text = stderr(&bench.densely(&all).failure());
        assert!(text.contains(sentence), "{words:?}: {text}");
    }
    let other = bench.densely(&["field", "eval", "runs/photo", "film"]);
    assert!(stderr(&other.failure()).contains("kind"));
    let bits = bench.densely(&["field", "compress", "runs/photo", "f", "--bits", "20"]);
    assert!(stderr(&bits.failure()).contains("--bits"));
}

#[test]
fn a_step_that_ruins_the_weights_stops_with_advice() {
    let bench = Bench::new();
    write_png(&bench.path("photo.png"), &waves(32, 0.0)).unwrap();
    // One step between two judgements: the loss before it is a number still.
    let words = "field fit photo.png --model siren --lr 1e38 --steps 20 --device cpu";
    let words: Vec<&str> = words.split(' ').collect();
    let error = stderr(&bench.densely(&words).code(1));
    assert!(
        error.contains("training diverged at step 1: ")
            && error.contains("lower the learning rate"),
        "{error}"
    );
}

#[test]
fn recipes_fit_every_signal_by_every_model_and_sweep() {
    let bench = Bench::new();
    for (number, phase) in [(1, 0.0), (2, 2.0)] {
        write_png(&bench.path(&format!("{number}.png")), &waves(40, phase)).unwrap();
    }
    let recipe = |compare: &str| {
        format!(
            "name = \"small\"\ntitle = \"Small fields\"\ndomain = \"fields\"\nseeds = [0]\n\
             [data]\nkind = \"image\"\nfiles = [\"1.png\", \"2.png\"]\nsplit = {{ every = 2 }}\n\
             [model]\npreset = \"siren-fresh\"\n[model.config]\nhidden = 16\nlayers = 1\n\
             [train]\nepochs = 2\nepoch_steps = 20\nbatch_size = 0\n{compare}"
        )
    };
    let models = "[[compare.models]]\nname = \"FFN\"\nmodel = { preset = \"ffn-image\", config = { hidden = 16, frequencies = 8 } }\n";
    bench.write("small.toml", &recipe(models));
    let words = [
        "train",
        "small.toml",
        "--out",
        "out",
        "--json",
        "--device",
        "cpu",
    ];
    let found = json(&bench.densely(&words).success());
    assert!(
        found["metrics"]["psnr_test"]["mean"].as_f64().unwrap() > 5.0,
        "{found}"
    );
    // Two parts of the mean and two signals, two models each.
    assert_eq!(
        found["comparison"]["rows"].as_array().map(Vec::len),
        Some(8)
    );
    assert!(bench.path("out/comparison.svg").exists());
    assert!(
        bench
            .path("out/comparison/ffn/seed-0/2-png/report.md")
            .exists()
    );

    let sweep = "[compare.sweep]\nsetting = \"first_omega\"\nvalues = [5.0, 20.0, 60.0]\n[compare.sweep.auto]\nside = 0\nfresh = { draws = 2 }\n";
    bench.write(
        "sweep.toml",
        &recipe(sweep).replace("\"small\"", "\"sweep\""),
    );
    let words = [
        "train",
        "sweep.toml",
        "--out",
        "swept",
        "--json",
        "--device",
        "cpu",
    ];
    let found = json(&bench.densely(&words).success());
    let within = found["metrics"]["within_one_step"]["mean"]
        .as_f64()
        .unwrap();
    assert!((0.0..=2.0).contains(&within), "{found}");
    assert_eq!(
        found["comparison"]["rows"].as_array().map(Vec::len),
        Some(4)
    );

    for (wrong, sentence) in [
        (
            recipe(models).replace("files = [\"1.png\", \"2.png\"]", "files = []"),
            "files",
        ),
        (
            recipe(models).replace("siren-fresh", "siren-frsh"),
            "siren-fresh",
        ),
        (
            recipe(models).replace("epoch_steps = 20", "epoch_step = 20"),
            "epoch_step",
        ),
        (
            recipe(models).replace("kind = \"image\"", "kind = \"imag\""),
            "imag",
        ),
        (recipe(&sweep.replace("60.0", "60.0, \"x\"")), "sweep"),
    ] {
        bench.write("wrong.toml", &wrong.replace("\"small\"", "\"wrong\""));
        let words = ["train", "wrong.toml", "--out", "wrong"];
        let text = stderr(&bench.densely(&words).failure());
        assert!(text.contains(sentence), "{sentence}: {text}");
    }
    assert!(Path::new(&bench.path("swept/sweep.svg")).exists());
}
