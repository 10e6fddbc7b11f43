//! Where the photographs of a scene are, and which are held out.

use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::scene::Scene;

/// Files of poses that a folder may hold, the first of them before the others.
const TRANSFORMS: [&str; 2] = ["transforms.json", "transforms_train.json"];
/// Files by which a folder is known to be a model of COLMAP.
const COLMAP: [&str; 2] = ["cameras.bin", "cameras.txt"];
/// Where COLMAP's model may lie in a folder, as COLMAP itself writes it.
const MODELS: [&str; 3] = ["", "sparse/0", "sparse"];
/// Folder of the photographs, where nothing is said.
const PICTURES: &str = "images";

/// Photographs with their cameras; paths are relative to the data's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SceneSettings {
    /// Blender's or instant-ngp's `transforms.json`, or a folder with one of that name or of `transforms_train.json`; an NPZ file ([`Scene::read_npz`]); or the
    /// folder of COLMAP's sparse model.
    pub file: String,
    /// Folder of the photographs, of COLMAP's models; `images` in the folder of the model or up to two above it when left out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pictures: String,
    /// Every so-many-th view, from the first, is held out to judge by; 0 holds none out.
    #[serde(default = "test_every")]
    pub test_every: usize,
    /// Another file or folder of the same kinds whose views are judged by, of the same size; then none is held out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub test: String,
}

const fn test_every() -> usize {
    9
}

impl SceneSettings {
    /// The scene of a file or folder, as the defaults have it.
    pub const fn new(file: String) -> Self {
        Self {
            file,
            pictures: String::new(),
            test_every: test_every(),
            test: String::new(),
        }
    }

    /// Reads the scene; gives it, the numbers of the views to train on, which are two at least, and those of the views that are held out.
    ///
    /// # Errors
    /// [`Error::Data`] when nothing of the kinds above is there, saying what was looked for, and when fewer than two views are left to train on; those of reading the
    /// files.
    pub fn open(&self, folder: &Path) -> Result<(Scene, Vec<usize>, Vec<usize>)> {
        let path = folder.join(&self.file);
        let (scene, count) = self.whole(folder, &path)?;
        let (test, train): (Vec<usize>, Vec<usize>) = if self.test.is_empty() {
            let held_out =
                |view: &usize| self.test_every > 0 && view.is_multiple_of(self.test_every);
            (0..count).partition(held_out)
        } else {
            ((count..scene.views().len()).collect(), (0..count).collect())
        };
        if train.len() < 2 {
            let reason = format!(
                "has {count} views, of which {} are left to train on with `test_every` {}; at least 2 are needed",
                train.len(),
                self.test_every
            );
            return Err(Error::data(path, reason));
        }
        Ok((scene, train, test))
    }

    /// All views, whether they are trained on or not.
    ///
    /// # Errors
    /// Those of reading the files.
    pub fn all(&self, folder: &Path) -> Result<Scene> {
        Ok(self.whole(folder, &folder.join(&self.file))?.0)
    }

    /// All views, and the number of those before the ones of `test`.
    fn whole(&self, folder: &Path, path: &Path) -> Result<(Scene, usize)> {
        let mut scene = self.read(folder, path)?;
        let count = scene.views().len();
        if !self.test.is_empty() {
            let others = folder.join(&self.test);
            scene.append(self.read(folder, &others)?, &others)?;
        }
        Ok((scene, count))
    }

    fn read(&self, folder: &Path, path: &Path) -> Result<Scene> {
        if path.is_dir() {
            let files = TRANSFORMS.map(|name| path.join(name));
            if let Some(file) = files.into_iter().find(|file| file.is_file()) {
                return Scene::read_transforms(&file);
            }
            for model in MODELS.map(|below| path.join(below)) {
                if COLMAP.iter().any(|name| model.join(name).is_file()) {
                    return Scene::read_colmap(&model, &self.pictures_of(folder, &model)?);
                }
            }
            let reason = format!(
                "has none of {}, nor a folder sparse/0 with one of the last two",
                [TRANSFORMS, COLMAP].concat().join(", ")
            );
            return Err(Error::data(path, reason));
        }
        let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
        if !path.exists() {
            let reason = "is not there; expected a transforms.json, an NPZ file, or a folder with a transforms.json or with COLMAP's model";
            return Err(Error::data(path, reason));
        }
        if ending == "json" {
            Scene::read_transforms(path)
        } else if ending == "npz" {
            Scene::read_npz(path)
        } else {
            let reason = "is no scene: expected a file that ends in .json or .npz, or a folder with a transforms.json or with COLMAP's model";
            Err(Error::data(path, reason))
        }
    }

    /// The folder of the photographs of COLMAP's `model`.
    fn pictures_of(&self, folder: &Path, model: &Path) -> Result<PathBuf> {
        if !self.pictures.is_empty() {
            return Ok(folder.join(&self.pictures));
        }
        let above = model.ancestors().take(3).map(|above| above.join(PICTURES));
        let candidates: Vec<PathBuf> = above.collect();
        if let Some(found) = candidates.iter().find(|found| found.is_dir()) {
            return Ok(found.clone());
        }
        let names: Vec<String> = candidates
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let reason = format!(
            "has no photographs beside it: there is no folder {}; name theirs in `pictures`",
            names.join(" or ")
        );
        Err(Error::data(model, reason))
    }
}
