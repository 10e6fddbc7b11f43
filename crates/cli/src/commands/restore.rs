//! `densely restore`: noise, blur or rain taken out of pictures of any size.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use densely_core::tch::Tensor;
use densely_core::{Error, Result};
use densely_data::Image;
use densely_data::image::{self, AnyImage};
use densely_train::machine::peak_rss_mb;
use densely_train::progress::Bar;
use densely_vision::restoration::{RestoreOptions, Restorer};
use densely_vision::tiles::Tiling;
use densely_vision::transforms::to_image;
use serde_json::json;

use super::vision::apply::{files, of_file};
use crate::Common;

/// What is wrong with the pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Task {
    /// Noise: MAXIM S-3.
    Denoise,
    /// A moving camera: MAXIM S-3.
    Deblur,
    /// Rain: MAXIM S-2.
    Derain,
    /// Haze: MAXIM S-2.
    Dehaze,
    /// Too little light, or dull colours: MAXIM S-2.
    Enhance,
}

impl Task {
    const fn preset(self) -> &'static str {
        match self {
            Self::Denoise | Self::Deblur => "maxim_s3",
            Self::Derain | Self::Dehaze | Self::Enhance => "maxim_s2",
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples: densely restore photo.jpg --run runs/denoise --out restored\n\
                  densely restore photos --task derain --weights rain13k.safetensors --out restored --side-by-side"
)]
pub(crate) struct Arguments {
    /// Pictures, or folders of them.
    #[arg(required = true)]
    pictures: Vec<PathBuf>,
    /// Run folder of a training.
    #[arg(long, conflicts_with_all = ["task", "weights"], required_unless_present = "weights")]
    run: Option<PathBuf>,
    /// What is wrong with the pictures; chooses the model of `--weights`.
    #[arg(long, value_enum, requires = "weights")]
    task: Option<Task>,
    /// Released weights, as `python/convert_maxim.py` makes them of the authors' archive.
    #[arg(long, value_name = "FILE", requires = "task")]
    weights: Option<PathBuf>,
    /// Folder for the restored pictures, of the same names as PNG.
    #[arg(long)]
    out: PathBuf,
    /// Side of the tiles that large pictures are cut into, pixels; 0 restores them whole.
    #[arg(long, default_value_t = 512)]
    tile: i64,
    /// Pixels that neighbouring tiles share.
    #[arg(long, default_value_t = 64)]
    overlap: i64,
    /// The mean over eight turns and reflections: eight times slower, a little better.
    #[arg(long)]
    ensemble: bool,
    /// Write `NAME.before-after.png`, too: both beside each other.
    #[arg(long)]
    side_by_side: bool,
    /// End at the first picture that cannot be read or restored, instead of going on with the next.
    #[arg(long)]
    strict: bool,
}

pub(crate) fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    let start = Instant::now();
    let device = common.device.open()?;
    let restorer = match (&arguments.run, arguments.task, &arguments.weights) {
        (Some(run), ..) => Restorer::open(run, device)?,
        (None, Some(task), Some(weights)) => {
            Restorer::with_weights(task.preset(), weights, device)?
        }
        // The parser asks for one of both.
        _ => return Ok(()),
    };
    let tiling = Tiling {
        tile: arguments.tile,
        overlap: arguments.overlap,
    };
    let options = RestoreOptions {
        tiling: if arguments.tile == 0 {
            Tiling::WHOLE
        } else {
            tiling
        },
        ensemble: arguments.ensemble,
    };
    options.tiling.validate()?;
    let jobs = jobs(arguments)?;
    std::fs::create_dir_all(&arguments.out).map_err(Error::io(&arguments.out))?;
    let (mut done, mut bad) = (0, 0);
    for (from, to) in &jobs {
        match one(from, to, &restorer, options, arguments.side_by_side, common) {
            Ok(()) => done += 1,
            Err(error) if arguments.strict => return Err(error),
            Err(error) => {
                bad += 1;
                tracing::warn!("left out: {error}");
            }
        }
    }
    if done == 0 {
        return Err(Error::data(
            "",
            format!("none of {bad} pictures was restored; the reasons are above"),
        ));
    }
    if common.json {
        println!(
            "{}",
            json!({
                "restored": done,
                "left_out": bad,
                "out": arguments.out,
                "seconds": start.elapsed().as_secs_f64(),
                "peak_mb": peak_rss_mb(),
            })
        );
    } else {
        let left = if bad > 0 {
            format!(", {bad} left out")
        } else {
            String::new()
        };
        println!(
            "{done} pictures restored{left}, in {}; {:.1} s",
            arguments.out.display(),
            start.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

/// Each picture and the file it becomes; folders keep what is below them.
fn jobs(arguments: &Arguments) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut jobs: Vec<(PathBuf, PathBuf)> = Vec::new();
    let mut taken: HashMap<PathBuf, PathBuf> = HashMap::new();
    for path in &arguments.pictures {
        for from in files(std::slice::from_ref(path))? {
            let below = if path.is_dir() {
                from.strip_prefix(path).ok()
            } else {
                None
            };
            let name = below.map_or_else(
                || PathBuf::from(from.file_name().unwrap_or_default()),
                Path::to_owned,
            );
            let to = arguments.out.join(name.with_extension("png"));
            let mut written = vec![to.clone()];
            if arguments.side_by_side {
                written.push(beside_name(&to));
            }
            for to in written {
                if let Some(other) = taken.insert(to.clone(), from.clone()) {
                    let reason = format!(
                        "{} and {} would both become {}",
                        other.display(),
                        from.display(),
                        to.display()
                    );
                    return Err(Error::config("out", reason));
                }
            }
            jobs.push((from, to));
        }
    }
    let sources: Vec<&Path> = jobs.iter().map(|(from, _)| from.as_path()).collect();
    for (_, to) in &jobs {
        if to.exists() {
            densely_core::fs::refuse_overwriting("out", to, &sources)?;
        }
    }
    Ok(jobs)
}

fn beside_name(to: &Path) -> PathBuf {
    to.with_extension("before-after.png")
}

fn one(
    from: &Path,
    to: &Path,
    restorer: &Restorer,
    options: RestoreOptions,
    side_by_side: bool,
    common: &Common,
) -> Result<()> {
    let picture = image::read(from)?;
    let sixteen = matches!(picture, AnyImage::Sixteen(_));
    let xs = tensor(&picture, restorer.channels());
    // Of a large picture each copy is large: none is kept for longer than it is needed.
    drop(picture);
    let before = side_by_side.then(|| to_image(&xs)).transpose()?;
    let [height, width] = [xs.size()[1], xs.size()[2]];
    let tiles = options.tiling.count(height, width);
    if !common.quiet {
        eprintln!(
            "{}: {width} × {height} pixels, {tiles} tiles",
            from.display()
        );
    }
    let bar = Bar::new(tiles as u64, 0, common.quiet);
    let restored = restorer.restore(&xs, options, &mut |done, _| {
        bar.update(0, done as u64, None);
    });
    let restored = restored.map_err(of_file(from))?;
    bar.finish();
    drop(xs);
    if restored.isfinite().all().int64_value(&[]) == 0 {
        let reason = "the network gives values that are not numbers; are its weights damaged?";
        return Err(Error::data(from, reason));
    }
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    let after = to_image(&restored)?;
    if sixteen {
        image::write_png16(to, &deep(&restored)?)?;
    } else {
        image::write_png(to, &after)?;
    }
    if let Some(before) = before {
        let both = beside(&before, &after)?;
        image::write_png(&beside_name(to), &both)?;
    }
    Ok(())
}

/// `[channels, height, width]`, values in 0..1, with the channels that the model takes.
fn tensor(picture: &AnyImage, channels: i64) -> Tensor {
    match (picture.channels(), channels) {
        (3, 1) => picture.to_grey().to_tensor(),
        (1, 3) => picture.to_tensor().repeat([3, 1, 1]),
        _ => picture.to_tensor(),
    }
}

/// With 16 bits per value; row by row, so that there is no other copy.
fn deep(xs: &Tensor) -> Result<Image<u16>> {
    let (channels, height, width) = xs.size3()?;
    let mut pixels = Vec::with_capacity((channels * height * width) as usize);
    for row in 0..height {
        let row = (xs.select(1, row).clamp(0.0, 1.0) * 65535.0)
            .round()
            .transpose(0, 1)
            .contiguous();
        let values: Vec<f32> = Vec::try_from(row.flatten(0, -1))?;
        pixels.extend(values.into_iter().map(|value| value as u16));
    }
    Image::new(width as usize, height as usize, channels as usize, pixels)
}

fn beside(left: &Image, right: &Image) -> Result<Image> {
    let row = left.width() * left.channels();
    let rows = left.pixels().chunks(row).zip(right.pixels().chunks(row));
    let pixels = rows
        .flat_map(|(left, right)| left.iter().chain(right))
        .copied()
        .collect();
    Image::new(2 * left.width(), left.height(), left.channels(), pixels)
}
