//! One training of a classifier as a person sees it.

use std::path::{Path, PathBuf};

use densely_core::tch::Tensor;
use densely_core::{Error, Result, tch};
use densely_data::image::encode_png;
use densely_data::{Image, Output, write_columns};
use densely_train::metrics::Metric;
use densely_train::plot::grid::{self, Cell};
use densely_train::plot::{self, Axes};
use densely_train::report::{self, Report, Score, Section};
use densely_train::run::{FitOptions, ResumeFrom};
use densely_vision::classify::{ClassifySettings, Outcome, fit};
use densely_vision::data::{Bad, Part, Prepared};
use densely_vision::metrics::Classified;
use densely_vision::transforms::{Sampling, resize_shorter};

use crate::Common;
use crate::fitting::watched;

/// What is fitted.
pub(crate) struct Job<'a> {
    pub(crate) title: &'a str,
    pub(crate) prepared: &'a Prepared,
    pub(crate) settings: &'a ClassifySettings,
    pub(crate) data: &'a Path,
}

/// What came of it.
pub(crate) struct Fitted {
    pub(crate) outcome: Outcome,
    pub(crate) plots: Vec<PathBuf>,
}

/// Says what was understood of the data set.
pub(crate) fn describe(prepared: &Prepared, common: &Common) {
    warn(&prepared.bad);
    if common.quiet {
        return;
    }
    let names = &prepared.classes;
    let shown: Vec<&str> = names.iter().take(10).map(String::as_str).collect();
    let more = if names.len() > shown.len() {
        ", …"
    } else {
        ""
    };
    let test = prepared.test.as_ref().map_or(0, Part::len);
    eprintln!(
        "{} classes ({}{more}); pictures: {} train, {} valid, {test} test",
        names.len(),
        shown.join(", "),
        prepared.train.len(),
        prepared.valid.len()
    );
}

/// Names pictures that were left out, the first ones.
pub(crate) fn warn(bad: &[Bad]) {
    const NAMED: usize = 10;
    for Bad { name, reason } in bad.iter().take(NAMED) {
        // Errors of files name them themselves.
        if reason.contains(name.as_str()) {
            tracing::warn!("left out: {reason}");
        } else {
            tracing::warn!("left out: {name}: {reason}");
        }
    }
    if bad.len() > NAMED {
        tracing::warn!("left out: {} more pictures", bad.len() - NAMED);
    }
}

/// The part whose scores are told: the test pictures, where there are any.
pub(crate) const fn judged_part(has_test: bool) -> &'static str {
    if has_test { "test" } else { "validation" }
}

/// Scores in a line.
pub(crate) fn line(found: &Classified) -> String {
    format!(
        "accuracy {:.4}, top 5 {:.4}, log loss {:.4} on {} pictures",
        found.top1, found.top5, found.loss, found.pictures
    )
}

/// Metrics that reports know.
pub(crate) fn scores(found: &Classified) -> Vec<(Metric, f64)> {
    vec![
        (Metric::Accuracy, found.top1),
        (Metric::LogLoss, found.loss),
    ]
}

impl Job<'_> {
    /// Trains one seed in `folder` and writes predictions, plots and report.
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
            table: self.data,
            seed,
            device,
            resume,
        };
        let outcome = watched(&options, common, |observe| {
            fit(self.prepared, self.settings, &options, observe)
        })?;
        let part = &outcome.judged;
        write_predictions(part, &outcome.logits, &self.prepared.classes, folder)?;
        let plots = self.plots(part, &outcome, folder)?;
        self.report(&outcome, folder, seed)?;
        Ok(Fitted { outcome, plots })
    }

    fn plots(&self, part: &Part, outcome: &Outcome, folder: &Path) -> Result<Vec<PathBuf>> {
        let mut plots = plot::run_plots(folder)?;
        let (found, words) = judged(outcome);
        let path = folder.join("plots").join("confusion.svg");
        let axes = Axes::new(
            format!("{words}: which class was taken for which"),
            "taken for",
            "class",
        );
        grid::matrix(
            &path,
            &axes,
            &self.prepared.classes,
            &found.confusion.counts,
        )?;
        plots.push(path);
        let path = folder.join("plots").join("samples.svg");
        let cells = samples(part, &outcome.logits, &self.prepared.classes)?;
        grid::pictures(
            &path,
            &format!("{words}: samples, and those it was most wrong about"),
            &cells,
            COLUMNS,
            SIDE,
        )?;
        plots.push(path);
        Ok(plots)
    }

    fn report(&self, outcome: &Outcome, folder: &Path, seed: u64) -> Result<()> {
        let Prepared {
            train,
            valid,
            test,
            classes,
            bad,
        } = self.prepared;
        let fact = |name: &str, value: String| (name.to_owned(), value);
        let pictures = format!(
            "{} train, {} valid, {} test",
            train.len(),
            valid.len(),
            test.as_ref().map_or(0, Part::len)
        );
        let mut facts = vec![
            fact("data", self.data.display().to_string()),
            fact("model", self.settings.model.preset.clone()),
            fact("parameters", outcome.parameters.to_string()),
            fact("pictures", pictures),
            fact("classes", classes.len().to_string()),
            fact("seed", seed.to_string()),
            fact(
                "best epoch",
                format!("{} of {}", outcome.best_epoch + 1, outcome.epochs),
            ),
            fact("seconds", format!("{:.1}", outcome.seconds)),
        ];
        if let Some(peak) = outcome.peak_mb {
            facts.push(fact(
                "peak memory of the last process",
                format!("{peak:.0} MB"),
            ));
        }
        let mut all = Vec::new();
        for (part, found) in [
            ("validation", Some(&outcome.valid)),
            ("test", outcome.test.as_ref()),
        ] {
            for (metric, value) in found.map(scores).into_iter().flatten() {
                all.push(Score {
                    part: part.to_owned(),
                    metric,
                    value,
                });
            }
        }
        let (found, words) = judged(outcome);
        let percent = |share: Option<f64>| {
            share.map_or("–".to_owned(), |share| format!("{:.1} %", 100.0 * share))
        };
        let by_class = classes.iter().enumerate().map(|(class, name)| {
            vec![
                name.clone(),
                found.confusion.counts[class]
                    .iter()
                    .sum::<u64>()
                    .to_string(),
                percent(found.confusion.recall(class)),
                percent(found.confusion.precision(class)),
            ]
        });
        let worst = found
            .confusion
            .worst(10)
            .into_iter()
            .map(|(label, prediction, count)| {
                vec![
                    classes[label].clone(),
                    classes[prediction].clone(),
                    count.to_string(),
                ]
            });
        let sections = vec![
            Section {
                title: format!("{words} by class"),
                header: [
                    "class",
                    "pictures",
                    "found (recall)",
                    "right when named (precision)",
                ]
                .map(str::to_owned)
                .to_vec(),
                rows: by_class.collect(),
                text: format!(
                    "Among the five likeliest classes: {:.2} %.",
                    100.0 * found.top5
                ),
            },
            Section {
                title: "Most frequent mistakes".to_owned(),
                header: ["class", "taken for", "pictures"]
                    .map(str::to_owned)
                    .to_vec(),
                rows: worst.collect(),
                text: String::new(),
            },
        ];
        let whole = test.as_ref().unwrap_or(valid).len();
        let unread = whole - outcome.judged.len();
        let unread = (unread > 0).then(|| {
            format!("{unread} of {whole} pictures that were to be judged could not be read")
        });
        let notes = bad
            .iter()
            .map(|bad| format!("left out: {}: {}", bad.name, bad.reason))
            .chain(unread);
        let report = Report {
            title: self.title.to_owned(),
            facts,
            scores: all,
            sections,
            notes: notes.collect(),
        };
        report::write(folder, &report).map(|_| ())
    }
}

/// What is shown in detail: the test pictures, where there are any.
fn judged(outcome: &Outcome) -> (&Classified, &'static str) {
    match &outcome.test {
        Some(test) => (test, "Test pictures"),
        None => (&outcome.valid, "Validation pictures"),
    }
}

/// The name, class and probabilities of each picture.
pub(crate) fn write_predictions(
    part: &Part,
    logits: &Tensor,
    classes: &[String],
    folder: &Path,
) -> Result<()> {
    let shares = logits.to_kind(tch::Kind::Double).softmax(-1, None);
    let places = 0..part.len();
    let mut columns = vec![
        (
            "picture".to_owned(),
            Output::Texts(places.clone().map(|place| part.name(place)).collect()),
        ),
        (
            "class".to_owned(),
            Output::Texts(
                places
                    .map(|place| Ok(classes[part.label(place)? as usize].clone()))
                    .collect::<Result<_>>()?,
            ),
        ),
    ];
    columns.extend(probability_columns(&shares, classes)?);
    write_columns(&folder.join("predictions.parquet"), &columns)
}

/// The likeliest class, and the probability of each.
pub(crate) fn probability_columns(
    shares: &Tensor,
    classes: &[String],
) -> Result<Vec<(String, Output)>> {
    let best: Vec<i64> = Vec::try_from(shares.argmax(1, false))?;
    let names = best.iter().map(|class| classes[*class as usize].clone());
    let mut columns = vec![("prediction".to_owned(), Output::Texts(names.collect()))];
    for (class, name) in classes.iter().enumerate() {
        let of: Vec<f64> = Vec::try_from(shares.select(1, class as i64).contiguous())?;
        columns.push((format!("p_{name}"), Output::Numbers(of)));
    }
    Ok(columns)
}

/// Pixels that a sample takes in its plot.
const SIDE: usize = 88;
const COLUMNS: usize = 8;
const ROWS: usize = 3;

/// Two rows of evenly spread pictures and one of those whose class was least likely.
fn samples(part: &Part, logits: &Tensor, classes: &[String]) -> Result<Vec<Cell>> {
    let shares = logits.to_kind(tch::Kind::Double).softmax(-1, None);
    let best: Vec<i64> = Vec::try_from(shares.argmax(1, false))?;
    let labels = (0..part.len())
        .map(|place| part.label(place))
        .collect::<Result<Vec<_>>>()?;
    let right = shares
        .gather(1, &Tensor::from_slice(&labels).unsqueeze(1), false)
        .squeeze_dim(1);
    let right: Vec<f64> = Vec::try_from(right)?;
    let count = part.len().min(COLUMNS * (ROWS - 1));
    let mut places: Vec<usize> = (0..count).map(|i| i * part.len() / count).collect();
    let mut worst: Vec<usize> = (0..part.len()).collect();
    worst.sort_by(|a, b| right[*a].total_cmp(&right[*b]));
    places.extend(worst.into_iter().take(COLUMNS));
    let mut cells = Vec::new();
    for place in places {
        let Ok(picture) = part.picture(place) else {
            continue;
        };
        let (label, taken) = (labels[place] as usize, best[place] as usize);
        let mut caption = vec![classes[label].clone()];
        if label != taken {
            caption.push(format!("not {}", classes[taken]));
        }
        cells.push(Cell {
            png: thumbnail(&picture.into_eight(), 2 * SIDE)?,
            caption,
            wrong: label != taken,
        });
    }
    if cells.is_empty() {
        return Err(Error::data("", "no picture can be read"));
    }
    Ok(cells)
}

/// A PNG file of the picture, made smaller where its shorter side has more than `side` pixels: plots hold whole files.
pub(crate) fn thumbnail(image: &Image, side: usize) -> Result<Vec<u8>> {
    if image.width().min(image.height()) <= side {
        return encode_png(image);
    }
    encode_png(&resize_shorter(image, side, Sampling::Bilinear)?)
}
