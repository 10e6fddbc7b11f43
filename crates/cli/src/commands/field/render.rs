//! `densely field render`.

use std::path::{Path, PathBuf};

use densely_core::tch::Tensor;
use densely_core::{Error, Result};
use densely_data::Image;
use densely_data::image::{self, write_png};
use densely_fields::fit::radiance::turntable;
use densely_fields::fit::{Described, Field, Window, bytes_of};
use densely_fields::signals::write_wav;
use densely_train::progress::Bar;
use serde_json::json;

use crate::Common;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples: densely field render runs/photo twice.png --scale 2\n\
                  densely field render runs/photo eye.png --zoom 0.4,0.3,0.2,0.2 --size 512x512\n\
                  densely field render runs/spot spot.obj --resolution 256\n\
                  densely field render runs/lego frames --turntable 60"
)]
pub(crate) struct Render {
    /// Run folder of a fit, or a file of `densely field compress`.
    field: PathBuf,
    /// File to write: PNG, JPEG or WebP of pictures and views, WAV of sounds, OBJ or PLY of meshes; a folder of films and turntables.
    out: PathBuf,
    /// Size of pictures, such as 1920x1080, width first.
    #[arg(long, value_name = "WIDTHxHEIGHT", conflicts_with = "scale")]
    size: Option<String>,
    /// Size in multiples of that of the signal.
    #[arg(long)]
    scale: Option<f64>,
    /// Part of the picture: left, top, width and height in shares from 0 to 1.
    #[arg(long, value_name = "LEFT,TOP,WIDTH,HEIGHT")]
    zoom: Option<String>,
    /// Moment of a film in shares of its length, which makes one picture.
    #[arg(long)]
    time: Option<f64>,
    /// Frames of a film.
    #[arg(long, conflicts_with = "time")]
    frames: Option<usize>,
    /// Points along an axis of the grid that a mesh is made on; 256 when left out.
    #[arg(long)]
    resolution: Option<usize>,
    /// Samples a second of a sound; those of the signal when left out.
    #[arg(long)]
    sample_rate: Option<u32>,
    /// Number of the camera of a scene; the first that was held out when left out.
    #[arg(long, conflicts_with = "turntable")]
    view: Option<usize>,
    /// Circle around a scene in so many frames.
    #[arg(long, value_name = "FRAMES")]
    turntable: Option<usize>,
}

pub(super) fn run(arguments: &Render, common: &Common) -> Result<()> {
    let field = Field::open(&arguments.field, common.device.open()?)?;
    arguments.check(&field)?;
    densely_core::fs::refuse_overwriting("out", &arguments.out, &[&arguments.field])?;
    let out = &arguments.out;
    let what = match &field.pipeline().signal {
        Described::Image { height, width, .. } => {
            arguments.picture(&field, [*height, *width], 0.0, common)?
        }
        Described::Video {
            frames,
            height,
            width,
            ..
        } => {
            if let Some(time) = arguments.time {
                arguments.picture(&field, [*height, *width], time, common)?
            } else {
                let size = arguments.size_of([*height, *width])?;
                let count = arguments.frames.unwrap_or(*frames);
                write_frames(out, &field, count, size)?;
                format!("{count} frames of {} × {} pixels", size[1], size[0])
            }
        }
        Described::Sound { sample_rate, .. } => {
            let rate = arguments.sample_rate.unwrap_or(*sample_rate);
            let sound = field.sound(rate)?;
            write_wav(out, &sound, rate)?;
            format!("{} samples, {rate} a second", sound.size()[0])
        }
        Described::Mesh { .. } => {
            let surface = field.surface(arguments.resolution.unwrap_or(256))?;
            surface.write(out)?;
            format!(
                "{} vertices, {} triangles",
                surface.vertices().len(),
                surface.faces().len()
            )
        }
        Described::Scene { .. } => arguments.scene(&field, common)?,
    };
    if common.json {
        println!("{}", json!({ "out": out, "what": what }));
    } else {
        println!("{what}, in {}", out.display());
    }
    Ok(())
}

impl Render {
    /// Refuses what does not go with the kind of field.
    fn check(&self, field: &Field) -> Result<()> {
        let kind = field.pipeline().signal.kind();
        let pictures = ["image", "video", "scene"];
        let given: [(&str, bool, &[&str]); 9] = [
            ("--size", self.size.is_some(), &pictures),
            ("--scale", self.scale.is_some(), &pictures),
            ("--zoom", self.zoom.is_some(), &["image", "video"]),
            ("--time", self.time.is_some(), &["video"]),
            ("--resolution", self.resolution.is_some(), &["mesh"]),
            ("--frames", self.frames.is_some(), &["video"]),
            ("--sample-rate", self.sample_rate.is_some(), &["sound"]),
            ("--view", self.view.is_some(), &["scene"]),
            ("--turntable", self.turntable.is_some(), &["scene"]),
        ];
        if kind == "video" && self.zoom.is_some() && self.time.is_none() {
            return Err(Error::config(
                "--zoom",
                "is for one picture of a film: say when by --time",
            ));
        }
        for (name, is_given, kinds) in given {
            if is_given && !kinds.contains(&kind) {
                let reason = format!(
                    "is for fields of kind {}; this is a {kind}",
                    kinds.join(", ")
                );
                return Err(Error::config(name, reason));
            }
        }
        Ok(())
    }

    /// Height and width of what is made.
    fn size_of(&self, [height, width]: [usize; 2]) -> Result<[usize; 2]> {
        if let Some(text) = &self.size {
            let sides = text
                .split_once(['x', '×'])
                .and_then(|(width, height)| Some([height.parse().ok()?, width.parse().ok()?]));
            return sides.ok_or_else(|| {
                let reason = format!("must be like 1920x1080, got `{text}`");
                Error::config("--size", reason)
            });
        }
        let scale = self.scale.unwrap_or(1.0);
        if !(scale > 0.0 && scale <= 65_535.0) {
            let reason = format!("must lie above 0 and at most 65535, got {scale}");
            return Err(Error::config("--scale", reason));
        }
        Ok([height, width].map(|side| ((side as f64 * scale).round() as usize).max(1)))
    }

    fn window(&self) -> Result<Window> {
        let Some(text) = &self.zoom else {
            return Ok(Window::WHOLE);
        };
        let numbers: Option<Vec<f64>> = text
            .split(',')
            .map(|part| part.trim().parse().ok())
            .collect();
        if let Some(&[left, top, width, height]) = numbers.as_deref() {
            return Ok(Window {
                start: [top, left],
                size: [height, width],
            });
        }
        let reason = format!("must be four numbers like 0.4,0.3,0.2,0.2, got `{text}`");
        Err(Error::config("--zoom", reason))
    }

    fn picture(
        &self,
        field: &Field,
        size: [usize; 2],
        time: f64,
        common: &Common,
    ) -> Result<String> {
        check_ending(&self.out)?;
        let size = self.size_of(size)?;
        let bar = Bar::new(size[0] as u64, 0, common.quiet);
        let picture = field.picture(size, self.window()?, time, &mut |done, _| {
            bar.update(0, done as u64, None);
        })?;
        bar.finish();
        image::write(&self.out, &picture)?;
        Ok(format!("{} × {} pixels", size[1], size[0]))
    }

    fn scene(&self, field: &Field, common: &Common) -> Result<String> {
        let Described::Scene { views, test, .. } = &field.pipeline().signal else {
            return Err(Error::config("field", "is no scene"));
        };
        let Some(first) = views.first() else {
            return Err(Error::data(&self.field, "holds no camera"));
        };
        let size = self.size_of([first.lens.height, first.lens.width])?;
        let Some(frames) = self.turntable else {
            check_ending(&self.out)?;
            let number = self
                .view
                .unwrap_or_else(|| test.first().copied().unwrap_or(0));
            let view = views.get(number).ok_or_else(|| {
                let reason = format!("must be below {}, got {number}", views.len());
                Error::config("--view", reason)
            })?;
            let view = view.resized(size[0], size[1])?;
            let seen = field.view(&view)?;
            image::write(&self.out, &picture_of(&seen.rgb, size[0], size[1])?)?;
            return Ok(format!("{}, {} × {} pixels", view.name, size[1], size[0]));
        };
        let turned = turntable(views, frames, Some((size[0], size[1])))?;
        refuse_stale(&self.out, frames)?;
        std::fs::create_dir_all(&self.out).map_err(Error::io(&self.out))?;
        let bar = Bar::new(frames as u64, 0, common.quiet);
        for (number, view) in turned.iter().enumerate() {
            let seen = field.view(view)?;
            let picture = picture_of(&seen.rgb, size[0], size[1])?;
            write_png(&self.out.join(frame(number)), &picture)?;
            bar.update(0, number as u64 + 1, None);
        }
        bar.finish();
        Ok(format!(
            "{frames} frames of {} × {} pixels",
            size[1], size[0]
        ))
    }
}

/// Colours `[height · width, 3]` from 0 to 1 as a picture.
pub(super) fn picture_of(rgb: &Tensor, height: usize, width: usize) -> Result<Image> {
    Image::new(width, height, 3, bytes_of(rgb)?)
}

/// Refuses names of pictures whose format cannot be written, before anything is rendered.
fn check_ending(out: &Path) -> Result<()> {
    let ending = out.extension().unwrap_or_default().to_string_lossy();
    if ["png", "jpg", "jpeg", "webp"].contains(&ending.to_ascii_lowercase().as_str()) {
        return Ok(());
    }
    let reason = format!(
        "must end in .png, .jpg, .jpeg or .webp, got `{}`",
        out.display()
    );
    Err(Error::config("out", reason))
}

/// Name of a frame's file.
fn frame(number: usize) -> String {
    format!("frame_{number:04}.png")
}

/// Refuses a folder that holds more than `count` frames: those that are not written over would be taken for part of the film.
fn refuse_stale(folder: &Path, count: usize) -> Result<()> {
    let next = frame(count);
    if !folder.join(&next).exists() {
        return Ok(());
    }
    let reason = format!(
        "`{}` holds {next} of an earlier render, which does not belong to the {count} frames of this one; take another folder",
        folder.display()
    );
    Err(Error::config("out", reason))
}

/// Frames of a film, in a folder.
pub(super) fn write_frames(
    folder: &Path,
    field: &Field,
    count: usize,
    size: [usize; 2],
) -> Result<()> {
    if count == 0 {
        return Err(Error::config("--frames", "must be at least 1, got 0"));
    }
    refuse_stale(folder, count)?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    for number in 0..count {
        let time = number as f64 / (count - 1).max(1) as f64;
        let picture = field.picture(size, Window::WHOLE, time, &mut |_, _| ())?;
        write_png(&folder.join(frame(number)), &picture)?;
    }
    Ok(())
}
