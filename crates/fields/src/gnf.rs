//! GNF: Gaussian kernels in feature space in place of the MLP behind a feature grid.
//!
//! Paper: Bouzidi, Laga, Wannous, Sohel 2025, arXiv 2503.06762 (first as "Gaussian RBFNet"). Follows the released code
//! (AbdelazizBouzidi/GNF), whose names the parameters have.
//!
//! ```text
//! h = DiF-Grid(x)                                             [points, F], see `DifGrid`
//! d_j² = Σ_f exp(b_jf) (h_f - μ_jf)²,  φ_j = exp(-d_j² / 2)   n kernels
//! y = W φ + c                                                 a colour, a signed distance, or what `radiance` reads
//! ```
//!
//! Differs from the released code: grids tile the domain by their bands, not by their resolutions, see [`Tiling`]; a grid is sampled
//! once at all points, where the released one is expanded over the points of a volume and refused by `grid_sample` for those of a
//! picture; gradients pass through the density of radiance fields; the MLP takes coordinates and features, for which the released one
//! has no inputs. Widths of kernels start at 1 in 18 dimensions, where features drawn from N(0, 1) lie about √18 away: fresh outputs
//! are almost constant, as in the reference, until widths have adapted.
//!
//! | preset | sizes | parameters | MACs per point |
//! | --- | --- | ---: | ---: |
//! | `gnf-image` | 2-D grids of 106,038 values, 64 kernels, 3 values | 108,601 | 2,496 |
//! | `gnf-sdf` | 3-D grids of 3,512,420 values, 64 kernels, 1 value | 3,514,853 | 2,368 |
//! | `gnf-radiance` | the same grids, 32 kernels, 49 values that give density and colour | 3,515,221 | 2,720 |
//! | `gnf-decoder` | 64 kernels on 18 features, 3 values | 2,563 | 2,496 |

mod decoder;
mod encoder;
mod radiance;

use densely_core::{Error, Model, Result, Tensors, check};
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::Path;

use crate::cam::named;

pub use decoder::{Kernel, MlpDecoder, MlpDecoderConfig, RbfDecoder, RbfDecoderConfig};
pub use encoder::{DifGrid, DifGridConfig, Tiling};
pub use radiance::{DISTANCE_SCALE, GnfRadiance, Radiance, radiance};

/// What turns features into values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecoderConfig {
    /// Kernels in feature space.
    Rbf(RbfDecoderConfig),
    /// The baseline.
    Mlp(MlpDecoderConfig),
}

/// Sizes of a GNF. Defaults are those of the preset `gnf-image`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GnfConfig {
    /// The grids.
    pub encoder: DifGridConfig,
    /// What reads their features.
    pub decoder: DecoderConfig,
}

impl Default for GnfConfig {
    fn default() -> Self {
        Self {
            encoder: DifGridConfig::default(),
            decoder: DecoderConfig::Rbf(RbfDecoderConfig::default()),
        }
    }
}

impl GnfConfig {
    /// Preset `gnf-image`: a colour for a place of a picture.
    pub fn image() -> Self {
        Self::default()
    }

    /// Preset `gnf-sdf`: signed distances, with grids sized to the 3.5 million values that the authors report for it. The resolutions
    /// are those of the picture scaled by [`DifGridConfig::sized`].
    pub fn sdf() -> Self {
        Self {
            encoder: DifGridConfig {
                dim: 3,
                resolutions: vec![22, 36, 49, 62, 76, 90],
                ..DifGridConfig::default()
            },
            decoder: DecoderConfig::Rbf(RbfDecoderConfig {
                outputs: 1,
                ..RbfDecoderConfig::default()
            }),
        }
    }

    /// With a start from which few steps lead far: grids that span the domain once, fresh values near 0 and centres apart.
    ///
    /// Under the authors' bands no level tells all places apart, and their features, drawn from N(0, 1), lie where kernels are almost 0: after 400 steps on
    /// a picture or a surface such a field is still close to a constant.
    #[must_use]
    pub fn quick_to_learn(mut self) -> Self {
        self.encoder.bands = vec![1.0; self.encoder.channels.len()];
        self.encoder.deviation = 0.01;
        if let DecoderConfig::Rbf(decoder) = &mut self.decoder {
            decoder.spread = 0.5;
        }
        self
    }

    /// Preset `gnf-radiance`: a radiance field with the grids of [`sdf`](Self::sdf), where 32 kernels give density and spherical harmonics, for [`radiance`].
    /// [`GnfRadiance`] is the model.
    pub fn radiance() -> Self {
        Self {
            decoder: DecoderConfig::Rbf(RbfDecoderConfig {
                kernels: 32,
                outputs: radiance::OUTPUTS,
                ..RbfDecoderConfig::default()
            }),
            ..Self::sdf()
        }
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.encoder.validate()?;
        let (dim, features) = match &self.decoder {
            DecoderConfig::Rbf(decoder) => {
                decoder.validate()?;
                (self.encoder.dim, decoder.features)
            }
            DecoderConfig::Mlp(decoder) => {
                decoder.validate()?;
                (decoder.dim, decoder.features)
            }
        };
        for (field, expected, got) in [
            ("features", self.encoder.features(), features),
            ("dim", self.encoder.dim, dim),
        ] {
            if expected != got {
                let reason = format!("must be {expected}, as the encoder gives, got {got}");
                return Err(Error::config(field, reason));
            }
        }
        Ok(())
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator in the order of the released code.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<Gnf> {
        self.validate()?;
        let encoder = self.encoder.build(&(vs / "encoder"))?;
        let vs = vs / "decoder";
        let decoder = match &self.decoder {
            DecoderConfig::Rbf(config) => Decoder::Rbf(config.build(&(&vs / "decoder"))?),
            DecoderConfig::Mlp(config) => Decoder::Mlp(config.build(&vs)?),
        };
        Ok(Gnf { encoder, decoder })
    }

    /// Multiply-accumulates of the matrix products for one point. Only for a config that `validate` takes.
    pub fn macs(&self) -> u64 {
        match &self.decoder {
            DecoderConfig::Rbf(decoder) => decoder.macs(),
            DecoderConfig::Mlp(decoder) => decoder.macs(),
        }
    }
}

/// A field of grids and a decoder.
#[derive(Debug)]
pub struct Gnf {
    encoder: DifGrid,
    decoder: Decoder,
}

#[derive(Debug)]
enum Decoder {
    Rbf(RbfDecoder),
    Mlp(MlpDecoder),
}

impl Gnf {
    /// Values at points: coordinates `[points, dim]` in [-1, 1] → `[points, outputs]`.
    ///
    /// The released code puts pixel i of W at 2 i / (W - 1) - 1.
    /// # Errors
    /// [`Error::Shape`] when `coords` does not fit the config.
    pub fn forward(&self, coords: &Tensor) -> Result<Tensor> {
        let features = self.encoder.forward(coords)?;
        match &self.decoder {
            Decoder::Rbf(decoder) => decoder.forward(&features),
            Decoder::Mlp(decoder) => decoder.forward(coords, &features),
        }
    }
}

impl Model for Gnf {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        named(inputs, |coords| self.forward(coords))
    }
}

/// Mean absolute difference, which pictures are trained by.
///
/// # Errors
/// [`Error::Shape`] when the shapes differ.
pub fn colour_loss(values: &Tensor, target: &Tensor) -> Result<Tensor> {
    check::same_shape("target", target, values)?;
    Ok((values - target).abs().mean(None))
}

/// Mean of (value - target)² / (|target| + 0.1), which signed distances are trained by: errors near the surface count most.
///
/// # Errors
/// [`Error::Shape`] when the shapes differ.
pub fn distance_loss(values: &Tensor, target: &Tensor) -> Result<Tensor> {
    check::same_shape("target", target, values)?;
    Ok(((values - target).square() / (target.abs() + 0.1)).mean(None))
}
