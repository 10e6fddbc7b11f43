//! Data sets of pictures: folders, files of several pictures, memory.

mod binary;
#[cfg(feature = "image")]
mod folder;
#[cfg(all(feature = "image", feature = "parquet"))]
mod parquet;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use densely_core::{Error, Result};

use super::{AnyImage, Image};

pub use binary::{CifarBinary, CifarKind, Idx};
#[cfg(feature = "image")]
pub use folder::{Folder, FolderOptions, pictures_below};
#[cfg(all(feature = "image", feature = "parquet"))]
pub use parquet::ParquetPictures;

/// Pictures that are read by number, from any thread.
pub trait Pictures: Send + Sync {
    /// Number of pictures.
    fn len(&self) -> usize;

    /// Whether there is no picture.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads picture `i`.
    ///
    /// # Errors
    /// When it cannot be read, and [`Error::Config`] when there are not so many.
    fn picture(&self, i: usize) -> Result<AnyImage>;

    /// Class of picture `i`; `None` where pictures have none, or beyond the last.
    fn label(&self, i: usize) -> Option<usize>;

    /// What to call picture `i` in front of people: its file, or the file that holds it and its number there from 1.
    fn name(&self, i: usize) -> String;

    /// Names of the classes in the order of the labels; empty where there are none.
    fn classes(&self) -> &[String];
}

impl std::fmt::Debug for dyn Pictures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (pictures, classes) = (self.len(), self.classes().len());
        write!(f, "Pictures {{ {pictures} of {classes} classes }}")
    }
}

/// Names of classes from a text file, one in a line; empty lines at the end are left out.
///
/// # Errors
/// [`Error::Io`] when it cannot be read; [`Error::Data`] when it holds no name, an empty line between names, or a name twice.
pub fn read_classes(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    let text = text.trim_start_matches('\u{feff}').trim_end();
    let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    for (line, name) in names.iter().enumerate() {
        let reason = if name.is_empty() {
            "an empty line has no class name".to_owned()
        } else if names[..line].contains(name) {
            format!("the class `{name}` stands here a second time")
        } else {
            continue;
        };
        return Err(Error::Data {
            path: path.to_owned(),
            row: Some(line as u64 + 1),
            column: None,
            reason,
        });
    }
    if names.is_empty() {
        return Err(Error::data(
            path,
            "holds no class name; expected one in a line",
        ));
    }
    Ok(names)
}

fn out_of_range(i: usize, len: usize) -> Error {
    let reason = format!("there are {len} pictures, numbered from 0, and no number {i}");
    Error::config("picture", reason)
}

/// Labels, and names for all of them.
#[derive(Debug, Clone, Default)]
struct Labels {
    /// One for each picture, or none at all.
    labels: Vec<u32>,
    classes: Vec<String>,
}

impl Labels {
    /// With numbers as names.
    fn numbered(labels: Vec<u32>) -> Self {
        let count = labels.iter().max().map_or(0, |most| *most as usize + 1);
        Self {
            labels,
            classes: (0..count).map(|class| class.to_string()).collect(),
        }
    }

    /// With other names; `path` stands in the error for a label that gets none.
    fn named(self, path: &Path, classes: Vec<String>) -> Result<Self> {
        let beyond = |label: &u32| *label as usize >= classes.len();
        match self.labels.iter().position(beyond) {
            None => Ok(Self { classes, ..self }),
            Some(at) => Err(Error::Data {
                path: path.to_owned(),
                row: Some(at as u64 + 1),
                column: None,
                reason: format!(
                    "label {} has no name among the {} classes; give all names",
                    self.labels[at],
                    classes.len()
                ),
            }),
        }
    }

    fn get(&self, i: usize) -> Option<usize> {
        self.labels.get(i).map(|label| *label as usize)
    }
}

/// Pictures in memory.
#[derive(Debug, Clone)]
pub struct InMemory {
    images: Vec<Image<u8>>,
    labels: Labels,
}

impl InMemory {
    /// `images` with a label each, or with no `labels` and no `classes`.
    ///
    /// # Errors
    /// [`Error::Config`] when there are more or fewer labels than pictures, or one has no class.
    pub fn new(images: Vec<Image<u8>>, labels: &[usize], classes: Vec<String>) -> Result<Self> {
        if !labels.is_empty() && labels.len() != images.len() {
            let reason = format!(
                "expected one for each of {} pictures, got {}",
                images.len(),
                labels.len()
            );
            return Err(Error::config("labels", reason));
        }
        if let Some(label) = labels.iter().find(|label| **label >= classes.len()) {
            let reason = format!("label {label} is none of the {} classes", classes.len());
            return Err(Error::config("labels", reason));
        }
        let labels = labels.iter().map(|label| *label as u32).collect();
        Ok(Self {
            images,
            labels: Labels { labels, classes },
        })
    }
}

impl Pictures for InMemory {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn picture(&self, i: usize) -> Result<AnyImage> {
        let image = self.images.get(i).cloned().map(AnyImage::Eight);
        image.ok_or_else(|| out_of_range(i, self.images.len()))
    }

    fn label(&self, i: usize) -> Option<usize> {
        self.labels.get(i)
    }

    fn name(&self, i: usize) -> String {
        format!("picture {}", i + 1)
    }

    fn classes(&self) -> &[String] {
        &self.labels.classes
    }
}

/// Some pictures of another source, in an order of their own; the classes stay.
#[derive(Debug, Clone)]
pub struct Subset {
    source: Arc<dyn Pictures>,
    indices: Vec<usize>,
}

impl Subset {
    /// The pictures of `source` with the numbers `indices`.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no picture of such a number.
    pub fn new(source: Arc<dyn Pictures>, indices: Vec<usize>) -> Result<Self> {
        let len = source.len();
        match indices.iter().find(|i| **i >= len) {
            Some(i) => Err(out_of_range(*i, len)),
            None => Ok(Self { source, indices }),
        }
    }

    /// Numbers of the pictures in the source.
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }
}

impl Pictures for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn picture(&self, i: usize) -> Result<AnyImage> {
        match self.indices.get(i) {
            Some(at) => self.source.picture(*at),
            None => Err(out_of_range(i, self.indices.len())),
        }
    }

    fn label(&self, i: usize) -> Option<usize> {
        self.source.label(*self.indices.get(i)?)
    }

    fn name(&self, i: usize) -> String {
        let at = self.indices.get(i);
        at.map_or_else(|| format!("picture {}", i + 1), |at| self.source.name(*at))
    }

    fn classes(&self) -> &[String] {
        self.source.classes()
    }
}

/// A picture of a file that holds many.
fn numbered(path: &Path, i: usize) -> PathBuf {
    PathBuf::from(format!("{}, picture {}", path.display(), i + 1))
}
