//! `densely field`: a network fitted to a signal, and what can be made of it.

pub(crate) mod fit;
mod render;

use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use densely_fields::fit::radiance::SceneSettings;
use densely_fields::fit::{
    DataSettings, Evaluation, Field, ImageSettings, MeshSettings, Precision, SoundSettings,
    VideoSettings, evaluate,
};
use densely_fields::signals::Split;
use serde_json::{Map, Value, json};

use crate::Common;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Fit a field to a picture, sound, film, mesh or posed photographs, and write a run folder with report and reconstruction.
    Fit(Box<fit::Fit>),
    /// Write a picture of any size, a sound, frames, a mesh or views of a field.
    Render(render::Render),
    /// Print how a field compares with its signal.
    Eval(Eval),
    /// Write a field as one small file, which `render` and `eval` take in place of its run folder.
    Compress(Compress),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: densely field eval runs/photo photo.png")]
pub(crate) struct Eval {
    /// Run folder of a fit, or a file of `densely field compress`.
    field: PathBuf,
    /// The signal: a picture, WAV file, folder of frames, mesh or scene.
    signal: PathBuf,
    /// Points along an axis of the grid on which insides are compared, of meshes; as fitted, or 128.
    #[arg(long)]
    resolution: Option<usize>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: densely field compress runs/photo photo.field --bits 8")]
pub(crate) struct Compress {
    /// Run folder of a fit.
    field: PathBuf,
    /// File to write.
    out: PathBuf,
    /// Bits per weight: 32 as they are, 16 as half precision, 2 to 15 as whole numbers with a scale for each tensor, deflated.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=32))]
    bits: u32,
}

pub(crate) fn run(command: &Command, common: &Common) -> Result<()> {
    match command {
        Command::Fit(arguments) => fit::run(arguments, common),
        Command::Render(arguments) => render::run(arguments, common),
        Command::Eval(arguments) => eval(arguments, common),
        Command::Compress(arguments) => compress(arguments, common),
    }
}

/// The folder that the paths of a signal are relative to, and its name there.
fn place_of(signal: &Path) -> Result<(PathBuf, String)> {
    let whole = signal.canonicalize().map_err(Error::io(signal))?;
    let name = whole.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| {
        Error::data(
            signal,
            "has no name that is text; give it one, or run from the folder above",
        )
    })?;
    // As it was given, so that messages name it so.
    let folder = match signal.parent() {
        Some(parent) if signal.file_name().is_some_and(|own| own == name) => parent.to_owned(),
        _ => whole.parent().unwrap_or(Path::new("/")).to_owned(),
    };
    Ok((folder, name.to_owned()))
}

/// What a file or folder holds, by its name and content.
fn data_of(signal: &Path, split: Split) -> Result<(PathBuf, DataSettings)> {
    let (folder, file) = place_of(signal)?;
    let lower = file.to_lowercase();
    let ends = |endings: &[&str]| endings.iter().any(|ending| lower.ends_with(ending));
    let data = if signal.is_dir() {
        let has = |names: &[&str]| names.iter().any(|name| signal.join(name).exists());
        let poses = [
            "transforms.json",
            "transforms_train.json",
            "cameras.bin",
            "cameras.txt",
            "sparse",
        ];
        if has(&poses) {
            DataSettings::Scene(SceneSettings::new(file))
        } else {
            DataSettings::Video(VideoSettings { file, split })
        }
    } else if ends(&[".wav"]) {
        DataSettings::Sound(SoundSettings { file, split })
    } else if ends(&[".obj", ".ply", ".obj.gz", ".ply.gz"]) {
        DataSettings::Mesh(MeshSettings::new(file))
    } else if ends(&[".npz", ".json"]) {
        DataSettings::Scene(SceneSettings::new(file))
    } else {
        DataSettings::Image(ImageSettings {
            split,
            ..ImageSettings::new(file)
        })
    };
    if split != Split::All && data.split().is_none() {
        let reason = format!(
            "are for pictures, sounds and films; this is a {}",
            data.kind()
        );
        return Err(Error::config("--held-out and --every", reason));
    }
    Ok((folder, data))
}

/// The signal, cut and reduced as the one was that the field was fitted to.
fn as_fitted(field: &Field, data: DataSettings) -> DataSettings {
    let Some(own) = field.pipeline().data.clone() else {
        return data;
    };
    match (data, own) {
        (DataSettings::Image(given), DataSettings::Image(own)) => {
            DataSettings::Image(ImageSettings {
                file: given.file,
                ..own
            })
        }
        (DataSettings::Mesh(given), DataSettings::Mesh(own)) => DataSettings::Mesh(MeshSettings {
            file: given.file,
            ..own
        }),
        // With the folder of its photographs and the views that are judged by.
        (DataSettings::Scene(given), DataSettings::Scene(own)) if given.file == own.file => {
            DataSettings::Scene(own)
        }
        (data, _) => data,
    }
}

fn eval(arguments: &Eval, common: &Common) -> Result<()> {
    let field = Field::open(&arguments.field, common.device.open()?)?;
    let (folder, data) = data_of(&arguments.signal, Split::All)?;
    let mut data = as_fitted(&field, data);
    match (&mut data, arguments.resolution) {
        (DataSettings::Mesh(mesh), resolution) => {
            mesh.resolution = resolution.unwrap_or(mesh.resolution);
            mesh.validate()?;
        }
        (_, Some(_)) => {
            let reason = format!("is for meshes; this is a {}", data.kind());
            return Err(Error::config("--resolution", reason));
        }
        (_, None) => {}
    }
    let found = evaluate(&field, &data, &folder)?;
    if common.json {
        println!("{}", found_as_json(&found, &field));
        return Ok(());
    }
    for (name, psnr, ssim) in &found.views {
        println!("{name}: psnr {psnr:.2} dB, ssim {ssim:.4}");
    }
    println!("{}", line(&found.scores));
    Ok(())
}

fn found_as_json(found: &Evaluation, field: &Field) -> Value {
    let views = found
        .views
        .iter()
        .map(|(name, psnr, ssim)| json!({ "view": name, "psnr": psnr, "ssim": ssim }));
    let mut all = as_json(&found.scores);
    all.insert("params".to_owned(), json!(field.parameters()));
    if !found.views.is_empty() {
        all.insert("views".to_owned(), views.collect());
    }
    Value::Object(all)
}

/// Scores by name.
pub(crate) fn as_json(scores: &[(&'static str, f64)]) -> Map<String, Value> {
    scores
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect()
}

/// Scores in a line, with their units.
pub(crate) fn line(scores: &[(&'static str, f64)]) -> String {
    let words: Vec<String> = scores
        .iter()
        .map(|(name, value)| format!("{name} {}", in_words(name, *value)))
        .collect();
    words.join(", ")
}

fn in_words(name: &str, value: f64) -> String {
    if name.starts_with("psnr") {
        return format!("{value:.2} dB");
    }
    match name {
        "chamfer" | "distance_error" => format!("{value:.6}"),
        _ => format!("{value:.4}"),
    }
}

fn compress(arguments: &Compress, common: &Common) -> Result<()> {
    let field = Field::open(&arguments.field, common.device.open()?)?;
    densely_core::fs::refuse_overwriting("out", &arguments.out, &[&arguments.field])?;
    if arguments.out.is_dir() {
        return Err(Error::config("out", "must be a file, and is a folder"));
    }
    let precision = match arguments.bits {
        32 => Precision::Full,
        16 => Precision::Half,
        bits @ 2..=15 => Precision::Bits(bits),
        bits => {
            let reason = format!("must be 32, 16 or 2 to 15, got {bits}");
            return Err(Error::config("--bits", reason));
        }
    };
    let bytes = field.save(&arguments.out, precision)?;
    let params = field.parameters();
    if common.json {
        println!(
            "{}",
            json!({ "out": arguments.out, "bytes": bytes, "params": params })
        );
        return Ok(());
    }
    println!(
        "{params} parameters in {bytes} bytes, {:.2} bits each, in {}",
        8.0 * bytes as f64 / params.max(1) as f64,
        arguments.out.display()
    );
    Ok(())
}
