//! `densely field fit`.

use std::path::{Path, PathBuf};

use densely_core::{Error, Result, tch};
use densely_data::Image;
use densely_data::image::{self, encode_png, write_png};
use densely_fields::fit::{
    AutoOptions, DataSettings, Described, Field, FieldSettings, Outcome, PreviewOptions, Window,
    choose_frequency, fit,
};
use densely_fields::fresh::Choice;
use densely_fields::signals::{Split, write_wav};
use densely_train::optim::OptimConfig;
use densely_train::plot::grid::{self, Cell};
use densely_train::plot::{self, Axes, Series, run_plots};
use densely_train::report::{self, Report, Section};
use densely_train::run::{FitOptions, ResumeFrom};
use serde_json::json;

use super::{as_json, data_of, line};
use crate::commands::tabular::ResumeArguments;
use crate::commands::vision::fit::thumbnail;
use crate::fitting::{say_if_out_of_time, watched_with};
use crate::{Common, recipe};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely field fit photo.png --model cam-image --preview preview\n\
                  A signal is a picture, a WAV file, a folder of numbered frames, a mesh (OBJ or PLY, gzip-compressed or not), or photographs with their cameras:\n\
                  a transforms.json, a folder that holds one or a COLMAP model, or an NPZ file with `images`, `poses` and `focal`."
)]
pub(crate) struct Fit {
    /// The signal.
    signal: PathBuf,
    /// Folder for the run; `runs/<name of the signal>` when left out.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Model; `densely models` lists those of the domain fields. When left out: hashgrid for pictures and films, siren for sounds, gnf-sdf for meshes, ngp for scenes.
    #[arg(long)]
    model: Option<String>,
    /// Choose the frequencies of the model by comparing spectra before training (FreSh); without a model, choose the model too.
    #[arg(long)]
    auto: bool,
    /// Compare at the full size with ten draws each, as published; slow.
    #[arg(long, requires = "auto")]
    auto_full: bool,
    /// Steps in all; judged ten to twenty times where their number allows it, else rounded up to twenty judgements, which is said.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    steps: Option<u64>,
    /// Samples (of scenes rays) of a step; 0 takes all in each.
    #[arg(long)]
    batch_size: Option<i64>,
    /// Learning rate.
    #[arg(long)]
    lr: Option<f64>,
    /// Seconds after which training ends with the best so far.
    #[arg(long, value_name = "SECONDS")]
    time_budget: Option<f64>,
    /// Share of the samples, at random, that are not trained on and judged by.
    #[arg(long, conflicts_with = "every", value_name = "SHARE")]
    held_out: Option<f64>,
    /// Train on every so-many-th sample along each axis and judge by all.
    #[arg(long, value_name = "N")]
    every: Option<usize>,
    /// Write a picture of the field to this folder now and then while it trains.
    #[arg(long, value_name = "DIR")]
    preview: Option<PathBuf>,
    /// Seconds between two of them; 10 when left out.
    #[arg(long, requires = "preview", value_name = "SECONDS")]
    preview_every: Option<f64>,
    /// Change any setting of the run, such as `model.config.first_omega=60`; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    #[command(flatten)]
    resume: ResumeArguments,
}

/// Judgements of a training whose number of steps was given: at most, and at least where the steps divide into as many.
const JUDGEMENTS: [u64; 2] = [20, 10];

/// How often a training of so many steps is judged: as often as allowed where that divides the steps, else as often as divides them.
fn judgements(steps: u64) -> u64 {
    let [most, least] = JUDGEMENTS;
    let dividing = (least..=most)
        .rev()
        .find(|count| steps.is_multiple_of(*count));
    dividing.unwrap_or(most).min(steps)
}

pub(super) fn run(arguments: &Fit, common: &Common) -> Result<()> {
    let split = match (arguments.every, arguments.held_out) {
        (Some(every), _) => Split::Every(every),
        (_, Some(held_out)) => Split::Kept { held_out, seed: 0 },
        _ => Split::All,
    };
    let (folder, data) = data_of(&arguments.signal, split)?;
    let mut settings = arguments.settings(data, common)?;
    let device = common.device.open()?;
    let choice = if arguments.auto && !is_sized(&settings.model.preset) {
        let options = if arguments.auto_full {
            AutoOptions::paper()
        } else {
            AutoOptions::default()
        };
        Some(choose(&mut settings, &folder, &options, device, common)?)
    } else {
        if arguments.auto && !common.quiet {
            eprintln!(
                "{}: it has no frequency to choose; its grids reach from 16 cells to the size of the signal, so that all its frequencies are there",
                settings.model.preset
            );
        }
        None
    };
    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => Path::new("runs").join(run_name(&arguments.signal)?),
    };
    let job = Job {
        title: &format!(
            "{} on {}",
            settings.model.preset,
            arguments.signal.display()
        ),
        settings: &settings,
        folder: &folder,
        signal: &arguments.signal,
        choice: choice.as_ref(),
        preview: arguments.preview.as_ref().map(|folder| PreviewOptions {
            folder: folder.clone(),
            seconds: arguments.preview_every.unwrap_or(10.0),
        }),
    };
    let seed = common.seed.unwrap_or(0);
    let fitted = job.run(&out, seed, device, arguments.resume.from()?, common)?;
    print(&out, &fitted, choice.as_ref(), common);
    Ok(())
}

/// Whether the network follows the size of the signal by itself.
fn is_sized(preset: &str) -> bool {
    preset == "hashgrid"
}

/// What the run of this signal is called.
fn run_name(signal: &Path) -> Result<String> {
    let (_, name) = super::place_of(signal)?;
    let stem = if signal.is_dir() {
        name.as_str()
    } else {
        name.split('.')
            .find(|part| !part.is_empty())
            .unwrap_or(&name)
    };
    Ok(stem.to_owned())
}

impl Fit {
    fn settings(&self, data: DataSettings, common: &Common) -> Result<FieldSettings> {
        let mut settings = FieldSettings::suggest(data, self.model.as_deref())?;
        let train = &mut settings.train;
        if let Some(steps) = self.steps {
            train.epochs = judgements(steps);
            train.epoch_steps = steps.div_ceil(train.epochs);
            let all = train.epochs * train.epoch_steps;
            if all != steps {
                let each = train.epoch_steps;
                tracing::warn!(
                    "{steps} steps are rounded up to {all}: a judgement after every {each}"
                );
            }
        }
        if let Some(batch_size) = self.batch_size {
            train.batch_size = batch_size;
        }
        if let Some(seconds) = self.time_budget {
            train.time_budget = seconds;
        }
        if let Some(lr) = self.lr {
            match &mut train.optimizer {
                OptimConfig::Adam(config) => config.lr = lr,
                OptimConfig::AdamW(config) => config.lr = lr,
                OptimConfig::Sgd(config) => config.lr = lr,
            }
        }
        let preset = settings.model.preset.clone();
        let settings = recipe::changed(&settings, &self.changes)?;
        if settings.model.preset != preset {
            let reason = "is named by --model, which also suggests how it is trained";
            return Err(Error::config("model.preset", reason));
        }
        if self.model.is_none() && !common.quiet {
            eprintln!(
                "model {}: what reaches most in minutes for a signal of kind {}; --model takes another",
                settings.model.preset,
                settings.data.kind()
            );
        }
        Ok(settings)
    }
}

/// Chooses a frequency, and tells how.
pub(crate) fn choose(
    settings: &mut FieldSettings,
    folder: &Path,
    options: &AutoOptions,
    device: tch::Device,
    common: &Common,
) -> Result<Choice> {
    if !common.quiet {
        eprintln!(
            "comparing spectra of {} before training",
            settings.model.preset
        );
    }
    let choice = choose_frequency(settings, folder, options, device, &mut |score| {
        if !common.quiet {
            let left = if score.abandoned { ", left early" } else { "" };
            eprintln!(
                "  {} {}: distance {:.3} ± {:.3}{left}",
                score.setting, score.value, score.mean, score.standard_error
            );
        }
    })?;
    if !common.quiet {
        eprintln!(
            "chosen: {} = {}",
            choice.chosen.setting, choice.chosen.value
        );
    }
    Ok(choice)
}

/// What is fitted.
pub(crate) struct Job<'a> {
    pub(crate) title: &'a str,
    pub(crate) settings: &'a FieldSettings,
    /// That the paths of the settings are relative to.
    pub(crate) folder: &'a Path,
    pub(crate) signal: &'a Path,
    pub(crate) choice: Option<&'a Choice>,
    pub(crate) preview: Option<PreviewOptions>,
}

/// What came of it.
pub(crate) struct Fitted {
    pub(crate) outcome: Outcome,
    pub(crate) plots: Vec<PathBuf>,
    /// Pictures, sounds, meshes of the field.
    pub(crate) made: Vec<PathBuf>,
}

/// Says a score in the words of the signal.
const fn words(data: &DataSettings) -> fn(f64) -> String {
    match data {
        DataSettings::Mesh(_) => |score| format!("distances wrong by {score:.5}"),
        _ => |score| format!("PSNR {score:.2} dB"),
    }
}

impl Job<'_> {
    /// Trains one seed in `folder` and writes reconstruction, plots and report.
    pub(crate) fn run(
        &self,
        folder: &Path,
        seed: u64,
        device: tch::Device,
        resume: Option<ResumeFrom>,
        common: &Common,
    ) -> Result<Fitted> {
        let options = FitOptions {
            folder,
            table: self.signal,
            seed,
            device,
            resume,
        };
        let settings = self.settings;
        let outcome = watched_with(&options, common, Some(words(&settings.data)), |observe| {
            fit(
                settings,
                self.folder,
                &options,
                self.preview.as_ref(),
                observe,
            )
        })?;
        let field = Field::open(folder, device)?;
        let mut plots = run_plots(folder)?;
        let made = self.reconstruct(&field, folder, &mut plots)?;
        if let Some(choice) = self.choice {
            plots.extend(spectra(choice, folder)?);
        }
        self.report(&outcome, folder, seed)?;
        Ok(Fitted {
            outcome,
            plots,
            made,
        })
    }

    /// Writes what the field makes of its signal, at its own size.
    fn reconstruct(
        &self,
        field: &Field,
        folder: &Path,
        plots: &mut Vec<PathBuf>,
    ) -> Result<Vec<PathBuf>> {
        let mut made = Vec::new();
        match &field.pipeline().signal {
            Described::Image { height, width, .. } => {
                let picture =
                    field.picture([*height, *width], Window::WHOLE, 0.0, &mut |_, _| ())?;
                let path = folder.join("reconstruction.png");
                write_png(&path, &picture)?;
                made.push(path);
                plots.push(self.compare(&picture, folder)?);
            }
            Described::Sound { sample_rate, .. } => {
                let path = folder.join("reconstruction.wav");
                write_wav(&path, &field.sound(*sample_rate)?, *sample_rate)?;
                made.push(path);
            }
            Described::Video {
                frames,
                height,
                width,
                ..
            } => {
                let path = folder.join("reconstruction");
                super::render::write_frames(&path, field, *frames, [*height, *width])?;
                made.push(path);
            }
            Described::Mesh { .. } => match field.surface(MESH) {
                Ok(surface) => {
                    let path = folder.join("reconstruction.ply");
                    surface.write(&path)?;
                    made.push(path);
                }
                Err(error @ Error::Data { .. }) => tracing::warn!("no mesh is written: {error}"),
                Err(error) => return Err(error),
            },
            Described::Scene { views, test, .. } => {
                let shown = if test.is_empty() { &[0][..] } else { test };
                let mut cells = Vec::new();
                for view in shown.iter().take(VIEWS).filter_map(|view| views.get(*view)) {
                    let seen = field.view(view)?;
                    let lens = &view.lens;
                    let picture = super::render::picture_of(&seen.rgb, lens.height, lens.width)?;
                    cells.push(Cell {
                        png: thumbnail(&picture, 400)?,
                        caption: vec![view.name.clone()],
                        wrong: false,
                    });
                }
                let path = folder.join("plots").join("views.svg");
                grid::pictures(&path, "Views of the field", &cells, VIEWS, 200)?;
                plots.push(path);
            }
        }
        Ok(made)
    }

    /// The picture, the field, and eight times their difference, side by side.
    fn compare(&self, made: &Image, folder: &Path) -> Result<PathBuf> {
        let DataSettings::Image(data) = &self.settings.data else {
            return Err(Error::config("data", "is no picture"));
        };
        let given = densely_fields::fit::picture(data, self.folder)?.into_eight();
        let difference = given
            .pixels()
            .iter()
            .zip(made.pixels())
            .map(|(a, b)| a.abs_diff(*b).saturating_mul(8))
            .collect();
        let difference = Image::new(given.width(), given.height(), given.channels(), difference)?;
        let cells = [
            ("signal", &given),
            ("field", made),
            ("8 × the difference", &difference),
        ]
        .into_iter()
        .map(|(name, picture)| {
            Ok(Cell {
                png: shown(picture)?,
                caption: vec![name.to_owned()],
                wrong: false,
            })
        })
        .collect::<Result<Vec<_>>>()?;
        let path = folder.join("plots").join("reconstruction.svg");
        grid::pictures(&path, self.title, &cells, 3, 320)?;
        Ok(path)
    }

    fn report(&self, outcome: &Outcome, folder: &Path, seed: u64) -> Result<()> {
        let fact = |name: &str, value: String| (name.to_owned(), value);
        let mut facts = vec![
            fact("signal", self.signal.display().to_string()),
            fact("kind", self.settings.data.kind().to_owned()),
            fact("model", self.settings.model.preset.clone()),
            fact("parameters", outcome.parameters.to_string()),
        ];
        if let Some(values) = outcome.signal_values {
            facts.push(fact("values of the signal", values.to_string()));
        }
        facts.extend([
            fact("seed", seed.to_string()),
            fact(
                "best judgement",
                format!("{} of {}", outcome.best_epoch + 1, outcome.epochs),
            ),
            fact("seconds", format!("{:.1}", outcome.seconds)),
        ]);
        if let Some(peak) = outcome.peak_mb {
            facts.push(fact(
                "peak memory of the last process",
                format!("{peak:.0} MB"),
            ));
        }
        let rows = outcome
            .scores
            .iter()
            .map(|(name, value)| vec![(*name).to_owned(), super::in_words(name, *value)]);
        let mut sections = vec![Section {
            title: "Against the whole signal".to_owned(),
            header: ["score", "value"].map(str::to_owned).to_vec(),
            rows: rows.collect(),
            text: String::new(),
        }];
        sections.extend(self.choice.map(choice_section));
        let report = Report {
            title: self.title.to_owned(),
            facts,
            scores: Vec::new(),
            sections,
            notes: outcome.notes.clone(),
        };
        report::write(folder, &report).map(|_| ())
    }
}

/// Points along an axis of the grid that a mesh is made on.
const MESH: usize = 192;
/// Views in a plot.
const VIEWS: usize = 4;

/// A picture in a plot: made smaller, but never larger.
fn shown(picture: &Image) -> Result<Vec<u8>> {
    const SIDE: usize = 384;
    let longest = picture.width().max(picture.height());
    if longest <= SIDE {
        return encode_png(picture);
    }
    let scaled = |side: usize| (side * SIDE / longest).max(1);
    let (width, height) = (scaled(picture.width()), scaled(picture.height()));
    encode_png(&image::resize(picture, width, height, image::Filter::Box)?)
}

/// How the frequency was chosen, as a table.
fn choice_section(choice: &Choice) -> Section {
    let rows = choice.scores.iter().map(|score| {
        let mark = if score.value.total_cmp(&choice.chosen.value).is_eq() {
            "chosen"
        } else if score.abandoned {
            "left early"
        } else {
            ""
        };
        vec![
            format!("{} {}", score.setting, score.value),
            format!("{:.4}", score.mean),
            format!("{:.4}", score.standard_error),
            mark.to_owned(),
        ]
    });
    Section {
        title: "Frequency by spectra (FreSh)".to_owned(),
        header: ["setting", "distance", "standard error", ""]
            .map(str::to_owned)
            .to_vec(),
        rows: rows.collect(),
        text: format!(
            "Wasserstein distance between the spectrum of the signal, {} × {} samples, and that of fresh networks, over {} draws of each.",
            choice.side, choice.side, choice.draws
        ),
    }
}

/// Plots of the distances by value, and of the signal's spectrum.
fn spectra(choice: &Choice, folder: &Path) -> Result<Vec<PathBuf>> {
    let plots = folder.join("plots");
    let distances = plots.join("fresh.svg");
    let points: Vec<(f64, f64)> = choice
        .scores
        .iter()
        .map(|score| (score.value, score.mean))
        .collect();
    let axes = Axes::new(
        format!(
            "FreSh: {} {} is nearest",
            choice.chosen.setting, choice.chosen.value
        ),
        choice.chosen.setting.clone(),
        "distance of the spectra",
    );
    let series = Series {
        name: "fresh networks".to_owned(),
        points,
    };
    plot::line(&distances, &axes, &[series])?;
    let spectrum = plots.join("spectrum.svg");
    let points: Vec<(f64, f64)> = choice
        .target
        .iter()
        .enumerate()
        .map(|(k, value)| ((k + 1) as f64, value.max(1e-12).log10()))
        .collect();
    let axes = Axes::new(
        "Spectrum of the signal",
        "k = u + v",
        "log₁₀ of the sum of amplitudes",
    );
    let series = Series {
        name: "signal".to_owned(),
        points,
    };
    plot::line(&spectrum, &axes, &[series])?;
    Ok(vec![distances, spectrum])
}

fn print(folder: &Path, fitted: &Fitted, choice: Option<&Choice>, common: &Common) {
    let outcome = &fitted.outcome;
    if common.json {
        let summary = json!({
            "run": folder,
            "params": outcome.parameters,
            "signal_values": outcome.signal_values,
            "best_epoch": outcome.best_epoch,
            "epochs": outcome.epochs,
            "scores": as_json(&outcome.scores),
            "seconds": outcome.seconds,
            "peak_mb": outcome.peak_mb,
            "out_of_time": outcome.out_of_time,
            "chosen": choice.map(|choice| json!({ choice.chosen.setting.clone(): choice.chosen.value })),
            "made": fitted.made,
            "plots": fitted.plots,
            "notes": outcome.notes,
        });
        println!("{summary}");
        return;
    }
    say_if_out_of_time(outcome.out_of_time);
    println!("{}", line(&outcome.scores));
    let values = outcome
        .signal_values
        .map_or_else(String::new, |values| format!(" for {values} values"));
    println!(
        "{} parameters{values}; {:.1} s; report in {}",
        outcome.parameters,
        outcome.seconds,
        folder.join("report.md").display()
    );
}

#[cfg(test)]
mod tests {
    use super::judgements;

    #[test]
    fn steps_stay_what_was_asked_where_they_divide() {
        let cases = [
            (1, 1),
            (5, 5),
            (1000, 20),
            (100, 20),
            (130, 13),
            (101, 20),
            (360, 20),
            (221, 17),
        ];
        for (steps, count) in cases {
            assert_eq!(judgements(steps), count, "{steps}");
        }
    }
}
