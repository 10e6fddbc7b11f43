//! What xtask must know of a recipe: its name, its data set, and the published number. The rest is the program's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::dataset;
use crate::shell;

/// A recipe file.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) path: PathBuf,
    /// The file's text: what a run that goes on must have begun with.
    pub(crate) text: String,
    pub(crate) head: Head,
}

/// The fields that are read here; the program refuses unknown ones.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Head {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) domain: String,
    #[serde(default)]
    pub(crate) in_quick: bool,
    pub(crate) data: Data,
    pub(crate) published: Option<Published>,
    pub(crate) reference: Option<ReferenceFile>,
}

/// `[data]`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Data {
    dataset: Option<String>,
    /// Several sets; paths in `[data]` begin with the name of theirs.
    #[serde(default)]
    datasets: Vec<String>,
    pub(crate) file: Option<String>,
    model: Option<String>,
    facts: Option<String>,
    moments_text: Option<String>,
}

impl Data {
    /// Names of the data sets; none where the recipe makes its own rows.
    pub(crate) fn sets(&self) -> impl Iterator<Item = &String> {
        self.dataset.iter().chain(&self.datasets)
    }

    /// Of a recipe of several data sets, the path that is in none of them.
    fn outside(&self, sets: &[dataset::Dataset]) -> Option<&String> {
        let known = |path: &&String| {
            let (set, file) = path.split_once('/').unwrap_or((path, ""));
            let within = |known: &dataset::DataFile| file.starts_with(&known.path);
            self.datasets.iter().any(|name| name == set)
                && sets
                    .iter()
                    .any(|own| own.name == set && own.files.iter().any(within))
        };
        [&self.model, &self.facts, &self.moments_text]
            .into_iter()
            .flatten()
            .filter(|_| !self.datasets.is_empty())
            .find(|path| !known(path))
    }

    /// Gets the data sets; returns the folder that the recipe's paths are in, where it has any.
    pub(crate) fn get(&self, offline: bool) -> Result<Option<PathBuf>> {
        let mut folder = None;
        for name in self.sets() {
            folder = Some(dataset::find(name)?.get(offline)?);
        }
        if self.dataset.is_none() {
            folder = folder.and_then(|folder| folder.parent().map(Path::to_owned));
        }
        Ok(folder)
    }
}

/// `[published]`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Published {
    pub(crate) metric: String,
    pub(crate) value: f64,
    pub(crate) source: String,
    pub(crate) tolerance: Option<f64>,
}

/// `[reference]`: where the yardstick's figures are; `python/reference/<name>.json` when left out.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ReferenceFile {
    pub(crate) file: String,
}

/// All recipes, by name.
pub(crate) fn all() -> Result<Vec<Recipe>> {
    let mut recipes = Vec::new();
    for path in files()? {
        recipes.push(read(&path)?);
    }
    recipes.sort_by(|a, b| a.head.name.cmp(&b.head.name));
    Ok(recipes)
}

fn files() -> Result<Vec<PathBuf>> {
    let crates = shell::root().join("crates");
    let mut files = Vec::new();
    for entry in
        std::fs::read_dir(&crates).with_context(|| format!("cannot list {}", crates.display()))?
    {
        let folder = entry
            .with_context(|| format!("cannot list {}", crates.display()))?
            .path()
            .join("recipes");
        if folder.is_dir() {
            files.extend(
                shell::walk(&folder, &[])?
                    .into_iter()
                    .filter(|path| path.extension().is_some_and(|ending| ending == "toml")),
            );
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Recipe> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {}", shell::shown(path)))?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let head =
        parse(&text, &stem).with_context(|| format!("{} is not a recipe", shell::shown(path)))?;
    Ok(Recipe {
        path: path.to_path_buf(),
        text,
        head,
    })
}

/// Reads a recipe whose file is `<stem>.toml`.
fn parse(text: &str, stem: &str) -> Result<Head> {
    let head: Head = toml::from_str(text)?;
    if head.name != stem {
        bail!("its name {:?} is not the file's name {stem:?}", head.name);
    }
    if head.name.is_empty()
        || !head
            .name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    {
        bail!("its name may hold a-z, 0-9 and - only");
    }
    if head.data.dataset.is_some() && !head.data.datasets.is_empty() {
        bail!("its data has both `dataset` and `datasets`");
    }
    Ok(head)
}

impl Recipe {
    /// Where the yardstick's figures would be.
    pub(crate) fn reference_path(&self) -> PathBuf {
        let default = || format!("python/reference/{}.json", self.head.name);
        shell::root().join(
            self.head
                .reference
                .as_ref()
                .map_or_else(default, |reference| reference.file.clone()),
        )
    }
}

/// Recipes that cannot be read or whose data does not exist.
pub(crate) fn problems() -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let sets = match dataset::all() {
        Ok(sets) => sets,
        Err(error) => return Ok(vec![format!("{error:#}")]),
    };
    for path in files()? {
        let shown = shell::shown(&path);
        let recipe = match read(&path) {
            Ok(recipe) => recipe,
            Err(error) => {
                problems.push(format!("{error:#}"));
                continue;
            }
        };
        for name in recipe.head.data.sets() {
            match sets.iter().find(|set| set.name == *name) {
                None => problems.push(format!(
                    "{shown} wants the data set {name:?}, which is not in xtask/datasets"
                )),
                Some(set) => {
                    if let Some(file) = recipe
                        .head
                        .data
                        .file
                        .as_ref()
                        .filter(|file| !set.files.iter().any(|known| known.path == **file))
                    {
                        problems.push(format!(
                            "{shown} wants the file {file:?}, which the data set {name} has not"
                        ));
                    }
                }
            }
        }
        if let Some(path) = recipe.head.data.outside(&sets) {
            problems.push(format!(
                "{shown} wants {path:?}, which is in none of its data sets"
            ));
        }
        if recipe.head.reference.is_some() && !recipe.reference_path().is_file() {
            problems.push(format!(
                "{shown} names {}, which does not exist",
                shell::shown(&recipe.reference_path())
            ));
        }
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "a-b"
title = "A on B"
domain = "tabular"
in_quick = true
seeds = [0]
[data]
dataset = "adult"
file = "adult.parquet"
[published]
metric = "accuracy"
value = 0.85
source = "a paper"
"#;

    #[test]
    fn the_head_of_a_recipe_is_read() -> Result<()> {
        let head = parse(GOOD, "a-b")?;
        assert!(
            head.in_quick
                && head
                    .published
                    .is_some_and(|published| published.value > 0.8)
        );
        assert!(parse(GOOD, "other").is_err());
        assert!(parse(&GOOD.replace("a-b", "../b"), "../b").is_err());
        assert!(parse(&GOOD.replace("0.85", "\"x\""), "a-b").is_err());
        assert!(parse("name = ", "a").is_err());
        Ok(())
    }

    #[test]
    fn the_recipes_of_the_project_have_their_data() -> Result<()> {
        assert!(!all()?.is_empty());
        assert_eq!(problems()?, Vec::<String>::new());
        Ok(())
    }
}
