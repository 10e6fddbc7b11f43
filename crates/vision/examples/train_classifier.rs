//! Trains a small PoolFormer on a folder of pictures and classifies one.
//!
//! ```text
//! cargo run --example train_classifier -- flowers runs/flowers flowers/rose/1.jpg
//! ```
//!
//! `flowers` holds a folder per class with pictures of 32 × 32 pixels. Without arguments it makes pictures of stripes that rise or fall.
#![expect(clippy::print_stderr, reason = "an example talks")]

use std::path::Path;

use densely_core::{Device, Error, Result};
use densely_data::{Image, image};
use densely_train::event::Event;
use densely_train::run::FitOptions;
use densely_vision::classify::{Classifier, ClassifySettings, ModelSettings, TrainSettings, fit};
use densely_vision::data::{DataSettings, Prepared, Source};
use densely_vision::transforms::{EvalTransform, TrainTransform};
use serde_json::json;

fn main() -> Result<()> {
    let made = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    if words.is_empty() {
        words = make(made.path())?;
    }
    let [data, run, picture] = words.as_slice() else {
        let reason = "must be a folder of classes, a run folder and a picture";
        return Err(Error::config("arguments", reason));
    };
    let (data, run) = (Path::new(data), Path::new(run));
    let config = json!({ "layers": [1, 1, 2, 1], "embed_dims": [32, 64, 128, 256], "in_patch_size": 3, "in_stride": 2, "in_pad": 1 });
    let settings = ClassifySettings {
        data: DataSettings::new(Source::Folder {
            path: String::new(),
        }),
        model: ModelSettings {
            config: config.as_object().cloned().unwrap_or_default(),
            ..ModelSettings::default()
        },
        train: TrainSettings {
            augment: TrainTransform::small(32, 3),
            eval: EvalTransform::small(32, 3),
            epochs: 10,
            ..TrainSettings::default()
        },
    };
    let prepared = Prepared::open(data, &settings.data)?;
    let device = Device::Auto.open()?;
    let options = FitOptions {
        folder: run,
        table: data,
        seed: 0,
        device,
        resume: None,
    };
    let outcome = fit(&prepared, &settings, &options, &mut |event| {
        if let Event::Epoch { epoch, score, .. } = event {
            eprintln!("epoch {epoch}: accuracy {score:.3}");
        }
    })?;
    eprintln!(
        "best epoch {}: accuracy {:.3}",
        outcome.best_epoch, outcome.valid.top1
    );

    let classifier = Classifier::open(run, device)?;
    let picture = image::read(Path::new(picture))?;
    let shares = classifier.probabilities(&classifier.prepare(&picture)?.unsqueeze(0))?;
    let shares: Vec<f64> = Vec::try_from(shares.squeeze_dim(0))?;
    for (class, share) in classifier.pipeline.classes.iter().zip(shares) {
        eprintln!("{class}: {:.1} %", 100.0 * share);
    }
    Ok(())
}

/// Two classes of 60 pictures each; the arguments that go with them.
fn make(folder: &Path) -> Result<Vec<String>> {
    for (class, sign) in [("rising", 1.0), ("falling", -1.0)] {
        let class = folder.join("pictures").join(class);
        std::fs::create_dir_all(&class).map_err(Error::io(&class))?;
        for number in 0..60 {
            let value = |i: usize| {
                let (x, y) = ((i / 3 % 32) as f64, (i / 96) as f64);
                let wave = ((x + sign * y) * 0.4 + f64::from(number)).sin();
                (127.0 + 90.0 * wave) as u8
            };
            let image = Image::new(32, 32, 3, (0..32 * 32 * 3).map(value).collect())?;
            image::write_png(&class.join(format!("{number}.png")), &image)?;
        }
    }
    let paths = ["pictures", "run", "pictures/rising/7.png"];
    Ok(paths
        .map(|path| folder.join(path).display().to_string())
        .to_vec())
}
