//! Fitting scenes by their photographs.

use std::path::Path;

use densely_core::{Error, Result, Tensors};
use densely_data::Image;
use densely_data::image::write_png;
use densely_train::machine::step_seed;
use densely_train::metrics::Direction;
use densely_train::optim::GroupRule;
use densely_train::training::Task;
use tch::Tensor;

use super::evaluate::{diverged_at, judge_views, means};
use super::field::{Described, Pipeline, bytes_of};
use super::grid_rules;
use super::preview::{Preview, show};
use super::radiance::{RadianceConfig, RadianceField, SceneSettings};
use super::settings::{FieldSettings, TrainSettings};
use crate::render::Background;
use crate::scene::{Pixels, Scene};

/// A scene, and which of its views are trained on.
#[derive(Debug)]
pub(super) struct SceneParts {
    pub(super) scene: Scene,
    pub(super) train: Vec<usize>,
    pub(super) test: Vec<usize>,
    pub(super) background: Background,
}

/// Reads the scene of `scene` and describes a field of it.
pub(super) fn open_scene(
    settings: &FieldSettings,
    scene: &SceneSettings,
    folder: &Path,
) -> Result<(Pipeline, SceneParts)> {
    let model = &settings.model;
    if model.convention.is_some() {
        return Err(Error::config("model.convention", "is not for scenes"));
    }
    let rays = settings.train.rays.clone().unwrap_or_default();
    let (scene, train, test) = scene.open(folder)?;
    let (height, width) = (scene.height(), scene.width());
    let values = train.len() * height * width * 3;
    let config = RadianceConfig::resolve(&model.preset, &model.config, height.max(width), values)?;
    let config_of = RadianceConfig::of_preset(&model.preset, &config)?;
    if !matches!(config_of, RadianceConfig::MipNerf(_)) {
        scene.check_aim(&rays.occupancy.aabb, [rays.near, rays.far])?;
    }
    let pipeline = Pipeline {
        preset: model.preset.clone(),
        config,
        signal: Described::Scene {
            pixel_radius: scene.views()[0].pixel_radius(),
            views: scene.views().to_vec(),
            test: test.clone(),
            rays: rays.clone(),
        },
        data: Some(settings.data.clone()),
    };
    Ok((
        pipeline,
        SceneParts {
            scene,
            train,
            test,
            background: rays.background,
        },
    ))
}

pub(super) struct SceneTask<'a> {
    pub(super) field: &'a RadianceField,
    pub(super) parts: &'a SceneParts,
    pub(super) train: &'a TrainSettings,
    pub(super) seed: u64,
    pub(super) preview: Option<Preview>,
}

impl SceneTask<'_> {
    fn render(&self, view: usize) -> Result<Tensor> {
        Ok(self.field.render_view(&self.parts.scene.views()[view])?.rgb)
    }

    /// Means over at most `limit` of some views, evenly spread.
    fn means(&self, all: &[usize], limit: usize) -> Result<Vec<(&'static str, f64)>> {
        let count = limit.min(all.len());
        let views: Vec<usize> = (0..count).map(|i| all[i * all.len() / count]).collect();
        let found = judge_views(&self.parts.scene, &views, self.parts.background, &|view| {
            self.render(view)
        })?;
        Ok(means(&found))
    }

    /// Means over the views that were held out, or, where none was, over those that are trained on.
    pub(super) fn scores(&self) -> Result<Vec<(&'static str, f64)>> {
        let SceneParts { train, test, .. } = self.parts;
        self.means(if test.is_empty() { train } else { test }, usize::MAX)
    }
}

impl Task for SceneTask<'_> {
    type Batch = Pixels;

    fn steps(&self) -> u64 {
        self.train.epoch_steps
    }

    fn epoch(&self, epoch: u64, skip: u64) -> Result<impl Iterator<Item = Result<Pixels>>> {
        let steps = self.train.epoch_steps;
        let count = self.train.batch_size as usize;
        let (parts, seed) = (self.parts, self.seed);
        Ok((skip..steps).map(move |step| {
            let seed = step_seed(seed, epoch * steps + step) as u64;
            parts.scene.draw_of(&parts.train, count, seed)
        }))
    }

    fn loss(&self, batch: &Pixels, step: u64, _piece: u64) -> Result<Tensor> {
        self.field.prepare(step)?;
        self.field.loss(batch, step)
    }

    fn tensors(batch: Pixels) -> Tensors {
        let mut tensors = Tensors::from([
            ("origins".to_owned(), batch.rays.origins().shallow_clone()),
            ("dirs".to_owned(), batch.rays.dirs().shallow_clone()),
            ("rgba".to_owned(), batch.rgba),
        ]);
        if let Some(times) = batch.times {
            tensors.insert("times".to_owned(), times);
        }
        tensors
    }

    fn rules(&self) -> Vec<GroupRule> {
        grid_rules(self.train.grid_lr_scale)
    }

    fn made(&self, steps: u64) -> Result<()> {
        let SceneParts { train, test, .. } = self.parts;
        let Some(view) = test.first().or(train.first()) else {
            return Ok(());
        };
        show(self.preview.as_ref(), steps, &mut |path| {
            let (height, width) = (self.parts.scene.height(), self.parts.scene.width());
            let bytes = bytes_of(&self.render(*view)?)?;
            write_png(path, &Image::new(width, height, 3, bytes)?)
        })
    }

    fn judge(&self, steps: u64) -> Result<(f64, Vec<(&'static str, f64)>)> {
        // Chosen by what is trained on: views that are held out are for the end.
        let mut scores = self
            .means(&self.parts.train, self.train.judge_limit)
            .map_err(diverged_at(steps))?;
        let psnr = scores.first().map_or(f64::NAN, |(_, psnr)| *psnr);
        if !self.parts.test.is_empty() {
            let held_out = self
                .means(&self.parts.test, self.train.judge_limit)
                .map_err(diverged_at(steps))?;
            scores.extend(held_out.first().map(|(_, psnr)| ("psnr_test", *psnr)));
        }
        Ok((psnr, scores))
    }

    fn direction(&self) -> Direction {
        Direction::Higher
    }
}
