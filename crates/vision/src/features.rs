//! Maps of a trained body, for what is built on top of it.

use std::path::Path;

use densely_core::registry::{Preset, find};
use densely_core::weights::{self, Strictness};
use densely_core::{Error, Model, Result, Tensors, seeded};
use densely_data::image::AnyImage;
use densely_train::run::Kept;
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Device, Tensor};

use crate::classify::{Pipeline, converted};
use crate::models::PRESETS;
use crate::transforms::EvalTransform;

/// Names of parameters that a classifier has and its maps have not, and the other way round: head and last norm, and the norms of maps, which start at
/// 1 and 0 as in the reference.
const EXCEPTED: [&str; 2] = ["head.", "norm"];

/// The body of a classifier.
#[derive(Debug)]
pub struct FeatureExtractor {
    /// What pictures go through.
    pub eval: EvalTransform,
    /// 3 for colours, 1 for grey.
    pub channels: i64,
    model: Box<dyn Model>,
    device: Device,
}

impl FeatureExtractor {
    /// That of the best epoch of the run in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no such folder or it holds no finished epoch; [`Error::Corrupt`] and [`Error::Weights`] for files that
    /// are damaged or do not belong together.
    pub fn open(folder: &Path, device: Device) -> Result<Self> {
        let kept = Kept::<Pipeline>::open(folder, "densely vision")?;
        let pipeline = kept.pipeline;
        let preset = find(PRESETS, &pipeline.preset)?;
        let path = folder.join("best").join("model.safetensors");
        let (model, _) = built(preset, pipeline.config, &path, device)?;
        Ok(Self {
            eval: pipeline.eval,
            channels: pipeline.channels,
            model,
            device,
        })
    }

    /// That of a preset with the weights of `path`, a classifier's or those of maps, by any of the model's names.
    ///
    /// # Errors
    /// [`Error::UnknownPreset`], [`Error::Config`] for a preset without maps, [`Error::Weights`] and [`Error::Corrupt`] of the file.
    pub fn with_weights(
        preset: &str,
        path: &Path,
        eval: EvalTransform,
        device: Device,
    ) -> Result<Self> {
        let preset = find(PRESETS, preset)?;
        let (model, channels) = built(preset, (preset.config)(), path, device)?;
        Ok(Self {
            eval,
            channels,
            model,
            device,
        })
    }

    /// The picture as the model takes it: `[channels, size, size]`.
    ///
    /// # Errors
    /// Those of [`EvalTransform::apply`].
    pub fn prepare(&self, picture: &AnyImage) -> Result<Tensor> {
        self.eval.apply(&converted(picture, self.channels))
    }

    /// Maps of the four stages of prepared pictures, `[batch, channels, height, width]` each, on the CPU.
    ///
    /// # Errors
    /// [`Error::Shape`] for pictures that do not fit; [`Error::Torch`] when memory runs out.
    pub fn maps(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        let _no_grad = tch::no_grad_guard();
        let inputs = Tensors::from([("image".to_owned(), images.to_device(self.device))]);
        let outputs = self.model.forward_named(&inputs, false)?;
        // Sorted by name, which is by stage.
        Ok(outputs
            .into_values()
            .map(|map| map.to_device(Device::Cpu))
            .collect())
    }

    /// The mean over the pixels of the last map: `[batch, channels]`.
    ///
    /// # Errors
    /// Those of [`maps`](Self::maps).
    pub fn pooled(&self, images: &Tensor) -> Result<Tensor> {
        let maps = self.maps(images)?;
        let last = maps
            .last()
            .ok_or_else(|| Error::config("model.preset", "gives no maps"))?;
        Ok(last.mean_dim([-2i64, -1].as_slice(), false, None))
    }
}

/// The model of maps and its channels.
fn built(
    preset: &Preset,
    mut config: Value,
    path: &Path,
    device: Device,
) -> Result<(Box<dyn Model>, i64)> {
    let Some(features) = config.get_mut("features") else {
        let reason = format!(
            "`{}` has no maps; take a PoolFormer or a Strip-MLP",
            preset.name
        );
        return Err(Error::config("model", reason));
    };
    *features = json!(true);
    let channels = config.get("in_chans").and_then(Value::as_i64).unwrap_or(3);
    let vs = VarStore::new(device);
    // Loaded weights replace the first ones; drawing them must not disturb a training of another thread.
    let model = seeded(0, || (preset.build)(&config, &vs.root()))?;
    let tensors = weights::without_aliases(
        path,
        weights::read(path)?.tensors,
        &classifier_names(preset, &*model)?,
    )?;
    let whole = weights::named(&vs)
        .keys()
        .all(|name| tensors.contains_key(name));
    let strictness = if whole {
        Strictness::All
    } else {
        Strictness::Except(&EXCEPTED)
    };
    weights::load_tensors(&vs, path, &tensors, strictness)?;
    Ok((model, channels))
}

/// Other names of the parameters, also of those that only the classifier has.
fn classifier_names(preset: &Preset, model: &dyn Model) -> Result<Vec<(String, String)>> {
    let Some(base) = preset.name.strip_suffix("@features") else {
        let vs = VarStore::new(Device::Cpu);
        let whole = seeded(0, || (preset.build)(&(preset.config)(), &vs.root()))?;
        return Ok(whole.aliases());
    };
    match find(PRESETS, base) {
        Ok(preset) => classifier_names(preset, model),
        Err(_) => Ok(model.aliases()),
    }
}
