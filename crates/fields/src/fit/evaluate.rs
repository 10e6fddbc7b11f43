//! How a field compares with files.

use std::path::Path;

use densely_core::{Error, Model, Result};
use densely_train::fidelity::ssim;
use tch::{Device, Tensor};

use super::field::{Described, Field, values_of};
use super::settings::DataSettings;
use super::shape;
use super::signal::{judge, load};
use crate::metrics::SquaredError;
use crate::render::Background;
use crate::scene::{Scene, View, composite};
use crate::signals::{Signal, Split, to_grid, to_unit};

/// How a field compares with a signal.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Means over all of it, by name.
    pub scores: Vec<(&'static str, f64)>,
    /// The parts of a scene: name of the view, PSNR in dB, SSIM.
    pub views: Vec<(String, f64, f64)>,
}

/// Compares a field with the signal that `data` names in `folder`; of scenes with the views that the field was not trained on, or all
/// where it was trained on each.
///
/// # Errors
/// Those of reading the signal; [`Error::Config`] when it is of another kind or size than the field's.
pub fn evaluate(field: &Field, data: &DataSettings, folder: &Path) -> Result<Evaluation> {
    let of = &field.pipeline().signal;
    if of.kind() != data.kind() {
        let reason = format!(
            "is of kind {}, and the field of kind {}",
            data.kind(),
            of.kind()
        );
        return Err(Error::config("signal", reason));
    }
    match (of, data) {
        (
            Described::Image { convention, .. }
            | Described::Sound { convention, .. }
            | Described::Video { convention, .. },
            _,
        ) => {
            let loaded = load(data, folder, *convention)?;
            check_size(of, &loaded.signal)?;
            let (network, device) = field.network()?;
            let all = loaded.signal.select(Split::All)?;
            let found = judge(network, &all, *convention, usize::MAX, device)?;
            let mut scores = vec![("psnr", found.psnr())];
            scores.extend(similarity(network, &loaded.signal, device)?.map(|ssim| ("ssim", ssim)));
            Ok(Evaluation {
                scores,
                views: Vec::new(),
            })
        }
        (Described::Mesh { normalisation, .. }, DataSettings::Mesh(settings)) => {
            let shape = shape::load(settings, folder, Some(*normalisation))?;
            let values = |points: &Tensor| field.distances(points);
            let found = shape::compare(&shape.mesh, settings.resolution, &values)?;
            Ok(Evaluation {
                scores: found.named(),
                views: Vec::new(),
            })
        }
        (
            Described::Scene {
                rays, test, views, ..
            },
            DataSettings::Scene(settings),
        ) => {
            let scene = settings.all(folder)?;
            let chosen = unseen(scene.views(), views, test);
            let views = judge_views(&scene, &chosen, rays.background, &|view| {
                Ok(field.view(&scene.views()[view])?.rgb)
            })?;
            Ok(Evaluation {
                scores: means(&views),
                views,
            })
        }
        _ => Err(Error::config(
            "signal",
            "is of another kind than the field's",
        )),
    }
}

/// Numbers of the views that a field was not trained on, where `known` without `test` are those that it was; all where it was trained on each.
fn unseen(views: &[View], known: &[View], test: &[usize]) -> Vec<usize> {
    let trained: Vec<&View> = known
        .iter()
        .enumerate()
        .filter(|(number, _)| !test.contains(number))
        .map(|(_, view)| view)
        .collect();
    let is_new = |number: &usize| !trained.iter().any(|view| same(view, &views[*number]));
    let new: Vec<usize> = (0..views.len()).filter(is_new).collect();
    if new.is_empty() {
        tracing::info!("the field was trained on all of these views: it is judged by them");
        return (0..views.len()).collect();
    }
    new
}

/// Whether two views have one name, moment and place.
fn same(one: &View, other: &View) -> bool {
    // Poses and times come from text, which may round them.
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0);
    let in_time = match (one.time, other.time) {
        (Some(one), Some(other)) => near(one, other),
        (None, None) => true,
        _ => false,
    };
    let (matrix, others) = (one.pose.matrix(), other.pose.matrix());
    let mut entries = matrix.iter().flatten().zip(others.iter().flatten());
    one.name == other.name && in_time && entries.all(|(a, b)| near(*a, *b))
}

fn check_size(of: &Described, signal: &Signal) -> Result<()> {
    let (axes, channels) = match of {
        Described::Image {
            height,
            width,
            channels,
            ..
        } => (vec![*height, *width], *channels),
        Described::Sound {
            samples, channels, ..
        } => (vec![*samples], *channels),
        Described::Video {
            frames,
            height,
            width,
            channels,
            ..
        } => (vec![*frames, *height, *width], *channels),
        Described::Mesh { .. } | Described::Scene { .. } => return Ok(()),
    };
    if signal.axes() == axes && signal.channels() == channels {
        return Ok(());
    }
    let reason = format!(
        "has the sizes {:?} and {} channels, and the field was fitted to {axes:?} and {channels}",
        signal.axes(),
        signal.channels()
    );
    Err(Error::config("signal", reason))
}

/// SSIM of a picture; nothing of other signals and of pictures that are too small for its windows.
pub(super) fn similarity(
    network: &dyn Model,
    signal: &Signal,
    device: Device,
) -> Result<Option<f64>> {
    let [height, width] = signal.axes() else {
        return Ok(None);
    };
    if *height.min(width) < 11 {
        return Ok(None);
    }
    let convention = signal.convention();
    let (mut made, mut given) = (Vec::new(), Vec::new());
    for batch in signal.select(Split::All)?.batches(1 << 17, None)? {
        let batch = batch?;
        let values = values_of(network, &batch.coordinates, device)?;
        made.push(to_unit(&values, convention).clamp(0.0, 1.0));
        given.push(to_unit(&batch.values, convention));
    }
    let picture = |parts: &[Tensor]| -> Result<Tensor> {
        Ok(to_grid(signal, &Tensor::f_cat(parts, 0)?)?.permute([2, 0, 1]))
    };
    Ok(Some(ssim(&picture(&made)?, &picture(&given)?)?))
}

/// Of a score, dB: an infinite one cannot be written down.
pub(super) const MOST: f64 = 200.0;

/// Name, PSNR and SSIM of views, of which `render` gives the colours of all pixels `[n, 3]`.
pub(super) fn judge_views(
    scene: &Scene,
    views: &[usize],
    background: Background,
    render: &dyn Fn(usize) -> Result<Tensor>,
) -> Result<Vec<(String, f64, f64)>> {
    let (height, width) = (scene.height() as i64, scene.width() as i64);
    let level = Tensor::from_slice(&[background.level() as f32; 3]);
    let mut found = Vec::with_capacity(views.len());
    for view in views {
        let target = composite(&scene.view_pixels(*view)?.rgba, &level)?;
        let made = render(*view)?.to_device(target.device());
        let mut error = SquaredError::default();
        error.add(&made, &target)?;
        let picture = |xs: &Tensor| xs.view([height, width, 3]).permute([2, 0, 1]);
        let alike = if height.min(width) < 11 {
            f64::NAN
        } else {
            ssim(&picture(&made).clamp(0.0, 1.0), &picture(&target))?
        };
        // A view without an error would hide all others in a mean.
        let psnr = error.psnr().min(MOST);
        found.push((scene.views()[*view].name.clone(), psnr, alike));
    }
    Ok(found)
}

/// Outputs that are no numbers, as training that has diverged: the loss of the last step was of the weights before it.
pub(super) fn diverged_at(step: u64) -> impl Fn(Error) -> Error {
    move |error| match error {
        Error::Shape { what, .. } if what == "outputs" => Error::Diverged {
            step,
            loss: f64::NAN,
        },
        other => other,
    }
}

/// Means over views.
pub(super) fn means(views: &[(String, f64, f64)]) -> Vec<(&'static str, f64)> {
    let mean = |of: fn(&(String, f64, f64)) -> f64| {
        views.iter().map(of).sum::<f64>() / views.len().max(1) as f64
    };
    let mut scores = vec![("psnr", mean(|view| view.1))];
    let ssim = mean(|view| view.2);
    if ssim.is_finite() {
        scores.push(("ssim", ssim));
    }
    scores
}
