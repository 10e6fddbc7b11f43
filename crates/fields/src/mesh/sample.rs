//! Points on and around a surface.

use densely_core::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::vectors::{V3, add, cross, length, scaled, sub};
use super::{Mesh, Sign, SignedDistance};

/// Draws points of a surface, uniformly by area.
#[derive(Debug, Clone)]
pub struct SurfaceSampler {
    triangles: Vec<[V3; 3]>,
    /// Areas of the triangles up to each, itself included.
    up_to: Vec<f64>,
}

impl SurfaceSampler {
    /// Of `mesh`.
    ///
    /// # Errors
    /// [`Error::Data`] when its area is zero.
    pub fn new(mesh: &Mesh) -> Result<Self> {
        let triangles: Vec<[V3; 3]> = mesh.triangles().collect();
        let mut total = 0.0;
        let mut add_area = |[a, b, c]: &[V3; 3]| {
            total += length(cross(sub(*b, *a), sub(*c, *a))) / 2.0;
            total
        };
        let up_to: Vec<f64> = triangles.iter().map(&mut add_area).collect();
        if total > 0.0 {
            return Ok(Self { triangles, up_to });
        }
        Err(Error::data("", "the surface has no area to draw points of"))
    }

    /// `count` points `[count, 3]`, f64, a function of `seed`.
    pub fn draw(&self, count: usize, seed: u64) -> Tensor {
        let points = self.points(count, &mut ChaCha8Rng::seed_from_u64(seed));
        Tensor::from_slice(points.as_flattened()).view([count as i64, 3])
    }

    fn points(&self, count: usize, rng: &mut ChaCha8Rng) -> Vec<V3> {
        let total = self.up_to[self.up_to.len() - 1];
        let point = |_| {
            let place = rng.random::<f64>() * total;
            let found = self.up_to.partition_point(|area| *area <= place);
            let [a, b, c] = self.triangles[found.min(self.triangles.len() - 1)];
            // Uniform in the triangle: Turk 1990, "Generating random points in triangles".
            let (s, t) = (rng.random::<f64>().sqrt(), rng.random::<f64>());
            add(
                add(scaled(a, 1.0 - s), scaled(b, s * (1.0 - t))),
                scaled(c, s * t),
            )
        };
        (0..count).map(point).collect()
    }
}

/// Points with their distances.
#[derive(Debug)]
pub struct SdfBatch {
    /// f32 `[n, 3]`.
    pub points: Tensor,
    /// f32 `[n]`, negative inside.
    pub distances: Tensor,
}

/// Draws points to fit a field of signed distances to: an eighth on the surface, with distance 0, and the rest uniformly in the cube from -1 to 1.
///
/// The shares are those of Gaussian RBF networks and of torch-ngp.
#[derive(Debug)]
pub struct SdfSampler {
    surface: SurfaceSampler,
    distance: SignedDistance,
}

impl SdfSampler {
    /// Of `mesh`, which must lie in the cube; see [`Mesh::normalise`].
    ///
    /// # Errors
    /// [`Error::Data`] when it does not; those of [`SurfaceSampler::new`] and [`SignedDistance::new`].
    pub fn new(mesh: &Mesh) -> Result<Self> {
        let [low, high] = mesh.bounds();
        if low.iter().any(|x| *x < -1.0) || high.iter().any(|x| *x > 1.0) {
            let reason = format!(
                "the mesh reaches from {low:?} to {high:?}, out of the cube from -1 to 1; normalise it first"
            );
            return Err(Error::data("", reason));
        }
        Ok(Self {
            surface: SurfaceSampler::new(mesh)?,
            distance: SignedDistance::new(mesh)?,
        })
    }

    /// How inside and outside are told apart.
    pub const fn sign(&self) -> Sign {
        self.distance.sign()
    }

    /// `count` points, those of the surface first, a function of `seed`. For step s of a run, give a seed that depends on s.
    pub fn draw(&self, count: usize, seed: u64) -> SdfBatch {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let on_surface = count / 8;
        let surface = self.surface.points(on_surface, &mut rng);
        // As the network will see them: the distance belongs to the rounded point.
        let around: Vec<[f32; 3]> = (on_surface..count)
            .map(|_| std::array::from_fn(|_| rng.random_range(-1.0..1.0)))
            .collect();
        let exact: Vec<V3> = around.iter().map(|p| p.map(f64::from)).collect();
        let mut distances = vec![0f32; on_surface];
        distances.extend(self.distance.distances(&exact).iter().map(|d| *d as f32));
        let mut points: Vec<[f32; 3]> = surface.iter().map(|p| p.map(|x| x as f32)).collect();
        points.extend(around);
        SdfBatch {
            points: Tensor::from_slice(points.as_flattened()).view([count as i64, 3]),
            distances: Tensor::from_slice(&distances),
        }
    }
}
