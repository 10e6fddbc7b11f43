//! `densely vision classify` and `features`: pictures in, classes or vectors out.

use std::path::{Path, PathBuf};

use densely_core::tch::{Kind, Tensor};
use densely_core::{Error, Result, fs};
use densely_data::image::{self, AnyImage};
use densely_data::{Output, write_columns};
use densely_train::progress::Bar;
use densely_vision::classify::Classifier;
use densely_vision::features::FeatureExtractor;
use densely_vision::transforms::EvalTransform;
use serde_json::{Value, json};

use super::fit::probability_columns;
use crate::Common;

/// Pictures that go through a network at once.
const BATCH: usize = 16;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely vision classify runs/flowers new/*.jpg\n\
                  A folder: densely vision classify runs/flowers new --out classes.csv"
)]
pub(crate) struct Classify {
    /// Run folder of a training.
    run: PathBuf,
    /// Pictures, or folders of them.
    #[arg(required = true)]
    pictures: Vec<PathBuf>,
    /// Classes that are shown of each picture.
    #[arg(long, default_value_t = 3)]
    top: usize,
    /// CSV, TSV or Parquet file with the probability of each class; nothing is printed then.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// End at the first picture that cannot be read, instead of leaving it out.
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely vision features runs/flowers new --out vectors.parquet\n\
                  Published weights: densely vision features poolformer_s12 --weights poolformer_s12.safetensors new --out vectors.parquet"
)]
pub(crate) struct Features {
    /// Run folder of a training, or the name of a model with `--weights`.
    model: String,
    /// Pictures, or folders of them.
    #[arg(required = true)]
    pictures: Vec<PathBuf>,
    /// Weights of the model, by the names of the authors, timm or transformers.
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// CSV, TSV or Parquet file: a row per picture, its name and the mean over the pixels of the last map.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// End at the first picture that cannot be read, instead of leaving it out.
    #[arg(long)]
    strict: bool,
}

/// The files that are meant: pictures as they are, and all pictures below folders.
pub(crate) fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            files.extend(image::sources::pictures_below(path)?);
        } else {
            files.push(path.clone());
        }
    }
    Ok(files)
}

/// For `map_err`: the error with the picture's file in front.
pub(crate) fn of_file(path: &Path) -> impl FnOnce(Error) -> Error {
    move |error| Error::data(path, error.to_string())
}

/// Reads pictures and hands them to `use_batch` in batches of those that can be read; says how many cannot.
fn in_batches(
    files: &[PathBuf],
    strict: bool,
    common: &Common,
    prepare: &dyn Fn(&AnyImage) -> Result<Tensor>,
    use_batch: &mut dyn FnMut(&[PathBuf], &Tensor) -> Result<()>,
) -> Result<usize> {
    let bar = Bar::new(files.len() as u64, 0, common.quiet);
    let mut bad = 0;
    for (place, chunk) in files.chunks(BATCH).enumerate() {
        let (mut names, mut images) = (Vec::new(), Vec::new());
        for path in chunk {
            // Errors of reading name the file themselves.
            let read = image::read(path);
            match read.and_then(|picture| prepare(&picture).map_err(of_file(path))) {
                Ok(image) => {
                    names.push(path.clone());
                    images.push(image);
                }
                Err(error) if strict => return Err(error),
                Err(error) => {
                    bad += 1;
                    tracing::warn!("left out: {error}");
                }
            }
        }
        if !images.is_empty() {
            use_batch(&names, &Tensor::f_stack(&images, 0)?)?;
        }
        bar.update(0, (place * BATCH + chunk.len()) as u64, None);
    }
    bar.finish();
    if bad == files.len() {
        return Err(Error::data(
            "",
            format!("none of {bad} pictures can be read; the reasons are above"),
        ));
    }
    if bad > 0 {
        tracing::warn!(
            "{bad} of {} pictures could not be read and were left out",
            files.len()
        );
    }
    Ok(bad)
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

pub(super) fn classify(arguments: &Classify, common: &Common) -> Result<()> {
    let classifier = Classifier::open(&arguments.run, common.device.open()?)?;
    let files = files(&arguments.pictures)?;
    if let Some(out) = &arguments.out {
        let read: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
        fs::refuse_overwriting("out", out, &read)?;
    }
    let classes = &classifier.pipeline.classes;
    let (mut names, mut shares) = (Vec::new(), Vec::new());
    in_batches(
        &files,
        arguments.strict,
        common,
        &|picture| classifier.prepare(picture),
        &mut |paths, images| {
            names.extend(paths.iter().map(|path| name(path)));
            shares.push(classifier.probabilities(images)?);
            Ok(())
        },
    )?;
    let shares = Tensor::f_cat(&shares, 0)?;
    if let Some(out) = &arguments.out {
        let mut columns = vec![("picture".to_owned(), Output::Texts(names))];
        columns.extend(probability_columns(&shares, classes)?);
        return write_columns(out, &columns);
    }
    let top = arguments.top.clamp(1, classes.len()) as i64;
    let (values, places) = shares.topk(top, 1, true, true);
    for (row, picture) in names.iter().enumerate() {
        let values: Vec<f64> = Vec::try_from(values.get(row as i64))?;
        let places: Vec<i64> = Vec::try_from(places.get(row as i64))?;
        let pairs = places
            .iter()
            .zip(&values)
            .map(|(place, share)| (&classes[*place as usize], share));
        if common.json {
            let found: Vec<Value> = pairs
                .map(|(class, share)| json!({ "class": class, "probability": share }))
                .collect();
            println!("{}", json!({ "picture": picture, "classes": found }));
        } else {
            let words: Vec<String> = pairs
                .map(|(class, share)| format!("{class} {:.1} %", 100.0 * share))
                .collect();
            println!("{picture}: {}", words.join(", "));
        }
    }
    Ok(())
}

pub(super) fn features(arguments: &Features, common: &Common) -> Result<()> {
    let device = common.device.open()?;
    let extractor = match &arguments.weights {
        Some(weights) => FeatureExtractor::with_weights(
            &arguments.model,
            weights,
            EvalTransform::default(),
            device,
        )?,
        None => FeatureExtractor::open(Path::new(&arguments.model), device)?,
    };
    let files = files(&arguments.pictures)?;
    let read: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    fs::refuse_overwriting("out", &arguments.out, &read)?;
    let (mut names, mut vectors) = (Vec::new(), Vec::new());
    in_batches(
        &files,
        arguments.strict,
        common,
        &|picture| extractor.prepare(picture),
        &mut |paths, images| {
            names.extend(paths.iter().map(|path| name(path)));
            vectors.push(extractor.pooled(images)?);
            Ok(())
        },
    )?;
    let vectors = Tensor::f_cat(&vectors, 0)?.to_kind(Kind::Double);
    let count = names.len();
    let mut columns = vec![("picture".to_owned(), Output::Texts(names))];
    for channel in 0..vectors.size()[1] {
        let values: Vec<f64> = Vec::try_from(vectors.select(1, channel).contiguous())?;
        columns.push((format!("f{channel}"), Output::Numbers(values)));
    }
    write_columns(&arguments.out, &columns)?;
    let width = columns.len() - 1;
    if common.json {
        println!(
            "{}",
            json!({ "pictures": count, "features": width, "out": arguments.out })
        );
    } else if !common.quiet {
        println!(
            "{count} pictures, {width} numbers each, in {}",
            arguments.out.display()
        );
    }
    Ok(())
}
