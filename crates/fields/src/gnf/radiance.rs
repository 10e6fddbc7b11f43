//! What a radiance field reads from the decoder's outputs.

use densely_core::{Error, Model, Result, Tensors, check, registry};
use tch::Tensor;
use tch::nn::Path;

use super::{DecoderConfig, Gnf, GnfConfig};
use crate::encodings::spherical_harmonics;

/// Coefficients of each colour channel: the spherical harmonics of degrees 0 to 3.
const HARMONICS: i64 = 16;

/// A density, and the coefficients of red, green and blue.
pub(super) const OUTPUTS: i64 = 1 + 3 * HARMONICS;

/// Added to the raw density, so that a fresh field is almost empty.
const DENSITY_SHIFT: f64 = -10.0;

/// What distances along a ray are multiplied by before they meet densities: opacity of a step of length δ is 1 - exp(-density · δ · 25).
pub const DISTANCE_SCALE: f64 = 25.0;

/// Density and colour at points.
#[derive(Debug)]
pub struct Radiance {
    /// `[points]`, not negative, per unit of length times [`DISTANCE_SCALE`].
    pub density: Tensor,
    /// `[points, 3]`, red, green and blue in 0 to 1.
    pub colour: Tensor,
}

/// Reads decoder outputs `[points, 49]` as a radiance field seen along unit vectors `directions` `[points, 3]`: density =
/// `softplus(out_0 - 10)`, colour = `sigmoid(Σ_k SH_k(direction) · out_{1 + 16 channel + k})` with the real spherical harmonics of degree 3.
///
/// Differentiable in both, the density too, which the released renderer cuts off.
/// # Errors
/// [`densely_core::Error::Shape`] when a shape or kind does not fit.
pub fn radiance(outputs: &Tensor, directions: &Tensor) -> Result<Radiance> {
    check::shape("outputs", outputs, &[None, Some(OUTPUTS)])?;
    check::shape(
        "directions",
        directions,
        &[Some(outputs.size()[0]), Some(3)],
    )?;
    check::kind("directions", directions, outputs.kind())?;
    let density = density(outputs);
    let coefficients = outputs.narrow(1, 1, 3 * HARMONICS);
    let coefficients = coefficients.view([-1, 3, HARMONICS]);
    let harmonics = spherical_harmonics(directions, 4)?.unsqueeze(1); // [points, 1, harmonics]
    let sums = (coefficients * harmonics).sum_dim_intlist(-1i64, false, None);
    Ok(Radiance {
        density,
        colour: sums.sigmoid(),
    })
}

/// Density `[points]` of outputs `[points, 49]`.
fn density(outputs: &Tensor) -> Tensor {
    (outputs.select(1, 0) + DENSITY_SHIFT).softplus()
}

/// A GNF whose outputs are read as a radiance field; the preset `gnf-radiance`.
#[derive(Debug)]
pub struct GnfRadiance {
    field: Gnf,
}

impl GnfRadiance {
    /// Creates the parameters under `vs`, drawing from libtorch's global generator; they have the names of a [`Gnf`].
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range; those of a radiance field are 3 coordinates and 49 outputs.
    pub fn build(vs: &Path, config: &GnfConfig) -> Result<Self> {
        let outputs = match &config.decoder {
            DecoderConfig::Rbf(decoder) => decoder.outputs,
            DecoderConfig::Mlp(decoder) => decoder.outputs,
        };
        for (field, expected, got) in [
            ("encoder.dim", 3, config.encoder.dim),
            ("decoder.outputs", OUTPUTS, outputs),
        ] {
            if got != expected {
                let reason = format!("must be {expected} in a radiance field, got {got}");
                return Err(Error::config(field, reason));
            }
        }
        Ok(Self {
            field: config.build(vs)?,
        })
    }

    /// Density and colour of points `coords` `[points, 3]` in [-1, 1] seen along unit vectors `dirs` `[points, 3]`: see [`radiance`].
    ///
    /// # Errors
    /// [`Error::Shape`] when a shape or kind does not fit.
    pub fn forward(&self, coords: &Tensor, dirs: &Tensor) -> Result<Radiance> {
        let outputs = self.field.forward(coords)?;
        check::shape("dirs", dirs, &[Some(outputs.size()[0]), Some(3)])?;
        check::kind("dirs", dirs, outputs.kind())?;
        radiance(&outputs, dirs)
    }

    /// Density alone, `[points]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `coords` does not fit the config.
    pub fn density(&self, coords: &Tensor) -> Result<Tensor> {
        Ok(density(&self.field.forward(coords)?))
    }
}

/// Densities are to be multiplied by [`DISTANCE_SCALE`].
impl Model for GnfRadiance {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        let [coords, dirs] = registry::take_inputs(inputs, ["coords", "dirs"])?;
        let coords = coords.ok_or_else(|| check::absent("coords"))?;
        let dirs = dirs.ok_or_else(|| check::absent("dirs"))?;
        let Radiance { density, colour } = self.forward(coords, dirs)?;
        let values = Tensor::cat(&[colour, density.unsqueeze(1)], 1);
        Ok(Tensors::from([("values".to_owned(), values)]))
    }
}
