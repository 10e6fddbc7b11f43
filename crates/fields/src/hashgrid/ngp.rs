//! Radiance fields of instant-ngp: density and colour from the features of points. The preset is `ngp`.

use densely_core::{Error, Model, Result, Tensors, check, registry};
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::Path;

use super::mlp::{Mlp, MlpSizes};
use super::{HashGrid, HashGridConfig};
use crate::encodings;
use crate::sizes::check_weights;

/// Sizes of the head of a radiance field. Defaults are those of the paper.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NgpHeadConfig {
    /// Width of the hidden layers of both MLPs.
    pub hidden: i64,
    /// Hidden layers of the density's MLP.
    pub density_layers: i64,
    /// Outputs of the density's MLP: the first gives the density, and the colour's MLP reads all.
    pub geometry: i64,
    /// Hidden layers of the colour's MLP.
    pub colour_layers: i64,
    /// Degrees of spherical harmonics of the direction, 1 to 4; there are as many harmonics as its square.
    pub harmonics: i64,
}

impl Default for NgpHeadConfig {
    fn default() -> Self {
        Self {
            hidden: 64,
            density_layers: 1,
            geometry: 16,
            colour_layers: 2,
            harmonics: 4,
        }
    }
}

impl NgpHeadConfig {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for (field, size) in [
            ("hidden", self.hidden),
            ("density_layers", self.density_layers),
            ("geometry", self.geometry),
            ("colour_layers", self.colour_layers),
        ] {
            check::positive(field, size)?;
        }
        let layers = self.density_layers.max(self.colour_layers);
        let widest = self.hidden.max(self.geometry);
        check_weights("hidden", &[layers, self.hidden, widest])?;
        if (1..=4).contains(&self.harmonics) {
            return Ok(());
        }
        let reason = format!("must lie in 1 to 4, got {}", self.harmonics);
        Err(Error::config("harmonics", reason))
    }

    /// The density's MLP and the colour's.
    fn networks(&self, features: i64) -> [MlpSizes; 2] {
        let density = MlpSizes {
            inputs: features,
            hidden: self.hidden,
            layers: self.density_layers,
            outputs: self.geometry,
        };
        let colour = MlpSizes {
            inputs: self.geometry + self.harmonics * self.harmonics,
            hidden: self.hidden,
            layers: self.colour_layers,
            outputs: 3,
        };
        [density, colour]
    }

    /// Creates the parameters under `vs`, for points of so many features, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path, features: i64) -> Result<NgpHead> {
        self.validate()?;
        check::positive("features", features)?;
        let [density, colour] = self.networks(features);
        Ok(NgpHead {
            sigma_net: density.build(&(vs / "sigma_net")),
            color_net: colour.build(&(vs / "color_net")),
            features,
            config: self.clone(),
        })
    }

    /// Multiply-accumulates of all matrix products for one point of so many features.
    pub fn macs(&self, features: i64) -> u64 {
        self.networks(features).map(MlpSizes::macs).iter().sum()
    }
}

/// Density and colour from the features of points, as in instant-ngp:
///
/// ```text
/// g = MLP(features);  density = exp(g_0);  colour = sigmoid(MLP(concat(g, harmonics(direction))))
/// ```
///
/// The gradient of exp is that of an argument cut to ±15, so that a single large one does not end the training. Weights have the names of
/// torch-ngp.
#[derive(Debug)]
pub struct NgpHead {
    sigma_net: Mlp,
    color_net: Mlp,
    features: i64,
    config: NgpHeadConfig,
}

impl NgpHead {
    /// Density, and what the colour is made of: `features [N, F]` → `[N]` and `[N, geometry]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `features` does not fit the head.
    pub fn density(&self, features: &Tensor) -> Result<(Tensor, Tensor)> {
        check::shape("features", features, &[None, Some(self.features)])?;
        check::kind("features", features, self.sigma_net.kind())?;
        let geometry = features.apply(&self.sigma_net);
        Ok((truncated_exp(&geometry.select(1, 0)), geometry))
    }

    /// Colour in [0, 1]: `geometry [N, geometry]` of [`density`](Self::density), and directions `dirs [N, 3]` of length 1 → `[N, 3]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit.
    pub fn colour(&self, geometry: &Tensor, dirs: &Tensor) -> Result<Tensor> {
        check::shape("geometry", geometry, &[None, Some(self.config.geometry)])?;
        check::shape("dirs", dirs, &[Some(geometry.size()[0]), Some(3)])?;
        let harmonics = encodings::spherical_harmonics(dirs, self.config.harmonics)?;
        let read = Tensor::cat(&[geometry, &harmonics.to_kind(geometry.kind())], 1);
        Ok(read.apply(&self.color_net).sigmoid())
    }

    /// Density `[N]` and colour `[N, 3]` of points with `features [N, F]` seen along `dirs [N, 3]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit.
    pub fn forward(&self, features: &Tensor, dirs: &Tensor) -> Result<(Tensor, Tensor)> {
        let (density, geometry) = self.density(features)?;
        Ok((density, self.colour(&geometry, dirs)?))
    }
}

/// exp(x), with the gradient of exp at x cut to ±15.
fn truncated_exp(xs: &Tensor) -> Tensor {
    let fixed = xs.detach();
    let line = xs * fixed.clamp(-15.0, 15.0).exp();
    &line - line.detach() + fixed.exp()
}

/// Sizes of a radiance field upon a hash grid. Defaults are those of the preset `ngp`, which are the paper's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NgpConfig {
    /// The grid.
    pub grid: HashGridConfig,
    /// What reads it.
    pub head: NgpHeadConfig,
}

impl NgpConfig {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.grid.validate()?;
        self.head.validate()
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<Ngp> {
        self.validate()?;
        Ok(Ngp {
            encoding: self.grid.build(&(vs / "encoding"))?,
            head: self.head.build(vs, self.grid.width())?,
        })
    }

    /// Multiply-accumulates of all matrix products for one point.
    pub fn macs(&self) -> u64 {
        self.head.macs(self.grid.width())
    }
}

/// A radiance field: a hash grid and the head that reads it.
#[derive(Debug)]
pub struct Ngp {
    encoding: HashGrid,
    head: NgpHead,
}

impl Ngp {
    /// Density of points: `coords [N, D]` in [0, 1] → `[N]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `coords` has another size or kind.
    pub fn density(&self, coords: &Tensor) -> Result<Tensor> {
        Ok(self.head.density(&self.encoding.forward(coords)?)?.0)
    }

    /// Density `[N]` and colour `[N, 3]` of points `coords [N, D]` seen along `dirs [N, 3]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit.
    pub fn forward(&self, coords: &Tensor, dirs: &Tensor) -> Result<(Tensor, Tensor)> {
        self.head.forward(&self.encoding.forward(coords)?, dirs)
    }
}

/// Values are red, green, blue and density.
impl Model for Ngp {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        let [coords, dirs] = registry::take_inputs(inputs, ["coords", "dirs"])?;
        let coords = coords.ok_or_else(|| check::absent("coords"))?;
        let dirs = dirs.ok_or_else(|| check::absent("dirs"))?;
        check::floating("dirs", dirs)?;
        let (density, colour) = self.forward(coords, dirs)?;
        let values = Tensor::cat(&[colour, density.unsqueeze(1)], 1);
        Ok(Tensors::from([("values".to_owned(), values)]))
    }
}
