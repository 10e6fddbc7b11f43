//! What a radiance field reads from the decoder's outputs.

use densely_core::{Result, check};
use tch::Tensor;

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
    let density = (outputs.select(1, 0) + DENSITY_SHIFT).softplus();
    let coefficients = outputs.narrow(1, 1, 3 * HARMONICS);
    let coefficients = coefficients.view([-1, 3, HARMONICS]);
    let harmonics = spherical_harmonics(directions, 4)?.unsqueeze(1); // [points, 1, harmonics]
    let sums = (coefficients * harmonics).sum_dim_intlist(-1i64, false, None);
    Ok(Radiance {
        density,
        colour: sums.sigmoid(),
    })
}
