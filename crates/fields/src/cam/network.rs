//! What the coordinate networks of this crate share: their door, and linear layers with a grid.

use densely_core::nn::Linear;
use densely_core::{Error, Result, Tensors, check, registry};
use densely_torch_ext::modulated;
use tch::nn::{Module, Path};
use tch::{Kind, Tensor};

use super::{CamConfig, Modulation, Norm};
use crate::sizes::check_weights;

/// A linear layer and, where the network has grids, what modulates its output.
#[derive(Debug)]
pub(crate) struct ModulatedLinear {
    pub(crate) linear: Linear,
    pub(crate) cam: Option<Modulation>,
}

impl ModulatedLinear {
    /// `linear` with a grid under `vs` if there is a config of one; the grid's name is `affine`.
    pub(crate) fn new(vs: &Path, linear: Linear, cam: Option<&CamConfig>) -> Result<Self> {
        Ok(Self {
            linear,
            cam: cam.map(|cam| cam.build(vs)).transpose()?,
        })
    }

    /// `[points, in]` → `[points, out]`; see [`modulate`].
    pub(crate) fn forward(&self, xs: &Tensor, coords: &Tensor) -> Result<Tensor> {
        modulate(self.cam.as_ref(), self.linear.forward(xs), coords)
    }
}

/// A layer's output `[points, channels]`, modulated where there is a grid; the first numbers of `coords` `[points, inputs]` index it.
pub(crate) fn modulate(cam: Option<&Modulation>, h: Tensor, coords: &Tensor) -> Result<Tensor> {
    match cam {
        Some(cam) => cam.forward(&h, &coords.narrow(-1, 0, cam.config.grid.dims())),
        None => Ok(h),
    }
}

/// Layers with a ReLU behind each, then `last`: `xs` `[points, in]` → `[points, outputs]`. As one operation where there is one.
pub(crate) fn relu_network(
    layers: &[ModulatedLinear],
    last: &Linear,
    xs: &Tensor,
    coords: &Tensor,
) -> Result<Tensor> {
    if let Some(values) = fused_network(layers, last, xs, coords)? {
        return Ok(values);
    }
    let mut xs = xs.shallow_clone();
    for layer in layers {
        xs = layer.forward(&xs, coords)?.relu();
    }
    Ok(last.forward(&xs))
}

/// As one operation: where each layer has an image's grid and norm, in f32 on the CPU. Not where coordinates need a gradient, which it does not
/// give.
fn fused_network(
    layers: &[ModulatedLinear],
    last: &Linear,
    xs: &Tensor,
    coords: &Tensor,
) -> Result<Option<Tensor>> {
    let own: Option<Vec<modulated::Layer>> = layers
        .iter()
        .map(|ModulatedLinear { linear, cam }| {
            let (cam, bias) = (cam.as_ref()?, linear.bias.as_ref()?);
            cam.is_image().then_some(modulated::Layer {
                weight: &linear.weight,
                bias,
                grid: &cam.affine,
            })
        })
        .collect();
    let cam = layers.first().and_then(|layer| layer.cam.as_ref());
    let (Some(own), Some(bias), Some(cam)) = (own, &last.bias, cam) else {
        return Ok(None);
    };
    let head = Some([&last.weight, bias]);
    if coords.requires_grad() || !modulated::enabled(xs, coords, &own, head) {
        return Ok(None);
    }
    let places = cam.on_grid(&coords.narrow(-1, 0, 2));
    let form = modulated::Form {
        eps: cam.config.eps,
        relu: true,
    };
    let values = modulated::layers(xs, &places, &own, form, head).map_err(Error::torch)?;
    Ok(Some(values))
}

/// Checks that a network of `inputs` coordinates and so many layers can index the grids of `cam`.
pub(crate) fn check_cam(cam: Option<&CamConfig>, inputs: i64, layers: i64) -> Result<()> {
    let Some(cam) = cam else {
        return Ok(());
    };
    cam.validate()?;
    check_weights("cam.grid", &[layers, cam.grid.values()])?;
    let dims = cam.grid.dims();
    if dims > inputs {
        let reason = format!("is indexed by {dims} coordinates; the network has {inputs}");
        return Err(Error::config("cam.grid", reason));
    }
    if cam.norm == Norm::Ray {
        let reason = "`ray` needs rays of samples; this network has single points";
        return Err(Error::config("cam.norm", reason));
    }
    Ok(())
}

/// Checks that `coords` is `[points, inputs]` of the network's kind.
pub(crate) fn check_coords(coords: &Tensor, inputs: i64, kind: Kind) -> Result<()> {
    check::shape("coords", coords, &[None, Some(inputs)])?;
    check::kind("coords", coords, kind)
}

/// Runs a network from the named tensor `coords` to the named tensor `values`.
pub(crate) fn named(
    inputs: &Tensors,
    forward: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensors> {
    let [coords] = registry::take_inputs(inputs, ["coords"])?;
    let coords = coords.ok_or_else(|| check::absent("coords"))?;
    Ok(Tensors::from([("values".to_owned(), forward(coords)?)]))
}
