//! Restoring new pictures.

use std::path::Path;

use densely_core::registry::parse_config;
use densely_core::weights::{self, Strictness};
use densely_core::{Model, Result, check, seeded};
use densely_train::run::Kept;
use tch::nn::VarStore;
use tch::{Device, Tensor};

use super::Pipeline;
use super::settings::{ModelSettings, resolve};
use crate::maxim::{Maxim, MaximConfig};
use crate::tiles::{Tiling, self_ensemble};

/// A trained MAXIM: from its run folder, or a preset with a file of weights.
#[derive(Debug)]
pub struct Restorer {
    model: Maxim,
    channels: i64,
    device: Device,
}

/// How pictures are restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RestoreOptions {
    /// How large pictures are cut.
    pub tiling: Tiling,
    /// The mean over eight turns and reflections.
    pub ensemble: bool,
}

impl Restorer {
    /// Opens the best epoch of the run in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`](densely_core::Error::Io) when there is no such folder or it holds no finished epoch; [`Error::Corrupt`](densely_core::Error::Corrupt) and [`Error::Weights`](densely_core::Error::Weights) for files that
    /// are damaged or do not belong together.
    pub fn open(folder: &Path, device: Device) -> Result<Self> {
        let kept = Kept::<Pipeline>::open(folder, "densely train")?;
        let config: MaximConfig = parse_config(&kept.pipeline.config)?;
        let vs = VarStore::new(device);
        // Loaded weights replace the first ones; drawing them must not disturb a training of another thread.
        let model = seeded(0, || config.build(&vs.root()))?;
        kept.load_weights(&vs)?;
        Ok(Self {
            model,
            channels: kept.pipeline.channels,
            device,
        })
    }

    /// The preset with the weights of `path`.
    ///
    /// # Errors
    /// [`Error::UnknownPreset`](densely_core::Error::UnknownPreset), [`Error::Config`](densely_core::Error::Config) for a preset that does not restore, [`Error::Weights`](densely_core::Error::Weights) and [`Error::Corrupt`](densely_core::Error::Corrupt) of the file.
    pub fn with_weights(preset: &str, path: &Path, device: Device) -> Result<Self> {
        let settings = ModelSettings {
            preset: preset.to_owned(),
            ..ModelSettings::default()
        };
        let (config, _) = resolve(&settings, 3)?;
        let vs = VarStore::new(device);
        let model = seeded(0, || config.build(&vs.root()))?;
        weights::load_aliased(&vs, path, &model.aliases(), Strictness::All)?;
        Ok(Self {
            model,
            channels: 3,
            device,
        })
    }

    /// 3 for colours, 1 for grey.
    pub const fn channels(&self) -> i64 {
        self.channels
    }

    /// The restored picture `[channels, height, width]` of one with values in 0..1, in f32 on the CPU, not clipped. Large pictures are restored tile by
    /// tile ([`Tiling::restore`]), of which `observe` is told.
    ///
    /// # Errors
    /// [`Error::Shape`](densely_core::Error::Shape) for another number of channels; [`Error::Torch`](densely_core::Error::Torch) when memory runs out.
    pub fn restore(
        &self,
        picture: &Tensor,
        options: RestoreOptions,
        observe: &mut dyn FnMut(usize, usize),
    ) -> Result<Tensor> {
        check::shape("picture", picture, &[Some(self.channels), None, None])?;
        let _no_grad = tch::no_grad_guard();
        let mut one = |xs: &Tensor| self.model.restore(&xs.to_device(self.device));
        let mut all = |xs: &Tensor| {
            if options.ensemble {
                self_ensemble(xs, &mut one)
            } else {
                one(xs)
            }
        };
        let restored = options
            .tiling
            .restore(&picture.unsqueeze(0), &mut all, observe)?;
        Ok(restored.squeeze_dim(0))
    }
}
