//! Fitting surfaces by their signed distances.

use std::path::Path;

use densely_core::{Error, Model, Result, Tensors};
use densely_train::machine::step_seed;
use densely_train::metrics::Direction;
use densely_train::optim::GroupRule;
use densely_train::training::Task;
use tch::{Device, Kind, Tensor};

use super::field::{slice, values_of};
use super::grid_rules;
use super::preview::{Preview, show};
use super::settings::{MeshSettings, TrainSettings};
use crate::marching::{Inside, MarchingConfig};
use crate::mesh::{Mesh, Normalisation, SdfBatch, SdfSampler, SignedDistance, SurfaceSampler};
use crate::metrics::{Chamfer, Overlap, chamfer};
use crate::signals::Coordinates;

/// A surface, scaled into the cube from -1 to 1.
#[derive(Debug)]
pub(super) struct Shape {
    /// The scaled surface.
    pub(super) mesh: Mesh,
    /// How it was scaled.
    pub(super) normalisation: Normalisation,
    /// What a reader should know of it.
    pub(super) notes: Vec<String>,
}

/// Reads a surface and scales it as the settings say, or as another was.
///
/// # Errors
/// Those of [`Mesh::read`] and [`Mesh::normalise`].
pub(super) fn load(
    settings: &MeshSettings,
    folder: &Path,
    as_other: Option<Normalisation>,
) -> Result<Shape> {
    let path = folder.join(&settings.file);
    let mut mesh = Mesh::read(&path)?;
    let normalisation = if let Some(normalisation) = as_other {
        let Normalisation { centre, scale } = normalisation;
        let moved = |vertex: &[f64; 3]| std::array::from_fn(|i| (vertex[i] - centre[i]) * scale);
        let vertices = mesh.vertices().iter().map(moved).collect();
        mesh = Mesh::new(vertices, mesh.faces().to_vec())?;
        normalisation
    } else {
        mesh.normalise(settings.diagonal)
            .map_err(|error| of_file(&path, error))?
    };
    let found = mesh.report();
    let mut notes = Vec::new();
    if !found.is_watertight() {
        notes.push(format!(
            "{} is not closed: {} edges at rims, {} of more than two triangles, {} turned the wrong way, {} pinched vertices; inside and outside are told apart by {}",
            path.display(),
            found.boundary_edges,
            found.non_manifold_edges,
            found.misoriented_edges,
            found.pinched_vertices,
            match SignedDistance::new(&mesh).map_err(|error| of_file(&path, error))?.sign() {
                crate::mesh::Sign::PseudoNormal => "the normals",
                crate::mesh::Sign::RayParity => "the number of walls on a ray",
                crate::mesh::Sign::WindingNumber => "winding numbers",
            }
        ));
    }
    if found.degenerate_faces > 0 {
        notes.push(format!(
            "{} of {} triangles have no area",
            found.degenerate_faces, found.faces
        ));
    }
    Ok(Shape {
        mesh,
        normalisation,
        notes,
    })
}

/// The error, with the name of the file that it is about.
fn of_file(path: &Path, error: Error) -> Error {
    match error {
        Error::Data { reason, .. } => Error::data(path, reason),
        other => other,
    }
}

/// Points of the cube from -1 to 1 as the coordinates of a network.
pub(super) fn coordinates(points: &Tensor, convention: Coordinates) -> Tensor {
    match convention {
        Coordinates::Ends => points.shallow_clone(),
        Coordinates::Centres => (points + 1.0) / 2.0,
    }
}

pub(super) struct ShapeTask<'a> {
    pub(super) network: &'a dyn Model,
    pub(super) sampler: &'a SdfSampler,
    pub(super) coordinates: Coordinates,
    pub(super) train: &'a TrainSettings,
    /// By which training is judged; none of them is on the surface.
    pub(super) judged: SdfBatch,
    pub(super) seed: u64,
    pub(super) device: Device,
    pub(super) preview: Option<Preview>,
}

/// Seed of the points by which training is judged.
const JUDGE: u64 = 0x7375_7266;

/// Points away from the surface, to judge by.
pub(super) fn judged(sampler: &SdfSampler, limit: usize) -> SdfBatch {
    let batch = sampler.draw(limit, JUDGE);
    let first = (limit / 8) as i64;
    let count = limit as i64 - first;
    SdfBatch {
        points: batch.points.narrow(0, first, count),
        distances: batch.distances.narrow(0, first, count),
    }
}

impl Task for ShapeTask<'_> {
    type Batch = SdfBatch;

    fn steps(&self) -> u64 {
        self.train.epoch_steps
    }

    fn epoch(&self, epoch: u64, skip: u64) -> Result<impl Iterator<Item = Result<SdfBatch>>> {
        let steps = self.train.epoch_steps;
        let size = self.train.batch_size as usize;
        let (sampler, seed) = (self.sampler, self.seed);
        Ok((skip..steps).map(move |step| {
            let drawn = sampler.draw(size, step_seed(seed, epoch * steps + step) as u64);
            Ok(drawn)
        }))
    }

    fn loss(&self, batch: &SdfBatch, _step: u64, _piece: u64) -> Result<Tensor> {
        let points = batch.points.to_device(self.device);
        let coords = coordinates(&points, self.coordinates);
        let inputs = Tensors::from([("coords".to_owned(), coords)]);
        let mut outputs = self.network.forward_named(&inputs, true)?;
        let values = outputs
            .remove("values")
            .ok_or_else(|| densely_core::check::absent("values"))?;
        let target = batch.distances.to_device(self.device).unsqueeze(1);
        self.train.loss.of(&values, &target)
    }

    fn tensors(batch: SdfBatch) -> Tensors {
        Tensors::from([
            ("points".to_owned(), batch.points),
            ("distances".to_owned(), batch.distances),
        ])
    }

    fn rules(&self) -> Vec<GroupRule> {
        grid_rules(self.train.grid_lr_scale)
    }

    fn made(&self, steps: u64) -> Result<()> {
        show(self.preview.as_ref(), steps, &mut |path| {
            slice(path, self.network, self.coordinates, self.device)
        })
    }

    fn judge(&self, steps: u64) -> Result<(f64, Vec<(&'static str, f64)>)> {
        let coords = coordinates(&self.judged.points, self.coordinates);
        let values = values_of(self.network, &coords, self.device)?.squeeze_dim(1);
        let mut overlap = Overlap::default();
        overlap.add(&values.le(0.0), &self.judged.distances.le(0.0))?;
        let error = (&values - &self.judged.distances).abs().mean(Kind::Double);
        let error = error.double_value(&[]);
        if !error.is_finite() {
            return Err(Error::Diverged {
                step: steps,
                loss: error,
            });
        }
        let metrics = vec![("iou", overlap.iou()), ("distance_error", error)];
        Ok((error, metrics))
    }

    fn direction(&self) -> Direction {
        // Not by the overlap: a sheet has no inside, and of a thin solid no point may be seen.
        Direction::Lower
    }
}

/// How a field of signed distances compares with the surface that it was fitted to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShapeScores {
    /// Intersection over union of the insides on a grid in the cube from -1 to 1.
    pub iou: f64,
    /// Mean absolute difference of the distances on that grid, in units of the cube.
    pub distance_error: f64,
    /// Distances between the surfaces, in units of the cube; absent when the field has no surface.
    pub chamfer: Option<Chamfer>,
}

impl ShapeScores {
    /// By name; without a surface there is no `chamfer`.
    pub fn named(&self) -> Vec<(&'static str, f64)> {
        let mut scores = vec![("iou", self.iou), ("distance_error", self.distance_error)];
        scores.extend(self.chamfer.map(|chamfer| ("chamfer", chamfer.l1())));
        scores
    }
}

/// Points of each surface that its distance from the other is measured by.
const SURFACE_POINTS: usize = 100_000;

/// Where surfaces are looked for.
pub(super) const CUBE: MarchingConfig = MarchingConfig {
    lower: [-1.0; 3],
    upper: [1.0; 3],
    level: 0.0,
    inside: Inside::Below,
};

/// Compares the field `values`, from points `[n, 3]` of the cube to `[n]`, with a surface on a grid of `resolution` points along each axis.
///
/// # Errors
/// Those of `values` and of [`SignedDistance::new`].
pub(super) fn compare(
    mesh: &Mesh,
    resolution: usize,
    values: &dyn Fn(&Tensor) -> Result<Tensor>,
) -> Result<ShapeScores> {
    let exact = SignedDistance::new(mesh)?;
    let mut overlap = Overlap::default();
    let (mut sum, mut count) = (0.0, 0.0);
    let line = Tensor::linspace(-1.0, 1.0, resolution as i64, (Kind::Float, Device::Cpu));
    let layer = Tensor::stack(&Tensor::meshgrid_indexing(&[&line, &line], "ij"), -1).view([-1, 2]);
    let mut layers = Vec::with_capacity(resolution);
    for x in 0..resolution as i64 {
        let first = line.get(x).expand([layer.size()[0], 1], false);
        let points = Tensor::cat(&[&first, &layer], 1);
        let distances = exact.at(&points)?;
        let found = values(&points)?;
        overlap.add(&found.le(0.0), &distances.le(0.0))?;
        sum += (&found - distances)
            .abs()
            .sum(Kind::Double)
            .double_value(&[]);
        count += layer.size()[0] as f64;
        layers.push(found.view([resolution as i64; 2]));
    }
    let surface = CUBE.surface(&Tensor::f_stack(&layers, 0)?);
    let chamfer = match surface {
        Ok(surface) => {
            let points = |mesh: &Mesh, seed| -> Result<Tensor> {
                Ok(SurfaceSampler::new(mesh)?.draw(SURFACE_POINTS, seed))
            };
            Some(chamfer(&points(&surface, 0)?, &points(mesh, 1)?)?)
        }
        Err(Error::Data { .. }) => None,
        Err(error) => return Err(error),
    };
    Ok(ShapeScores {
        iou: overlap.iou(),
        distance_error: sum / count,
        chamfer,
    })
}
