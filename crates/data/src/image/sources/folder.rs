//! Folders of picture files: a folder for each class, or none.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};

use super::{AnyImage, Labels, Pictures, out_of_range};
use crate::image::{ReadOptions, read_with};

/// Endings of files that are taken for pictures, in either case.
const ENDINGS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];

/// How a folder is read.
#[derive(Debug, Clone, Default)]
pub struct FolderOptions {
    /// Names of the class folders in the order of the labels, as of the training set when a test set is opened. Empty:
    /// those that are there, sorted, or none where pictures lie without folders.
    pub classes: Vec<String>,
    /// Whether a class may have no picture.
    pub allow_empty: bool,
    /// Limits of each picture.
    pub read: ReadOptions,
}

/// Pictures of a folder; files are read when asked for.
///
/// `root/<class>/**/<picture>` in the order of torchvision's `ImageFolder`: classes by name, within them folders by
/// path, then files by name. A root without folders holds pictures without labels. Which files are pictures is told by
/// the ending, their format by the content; hidden files and folders are left out. Links are followed, each folder is
/// visited once in a class.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
    files: Vec<PathBuf>,
    labels: Labels,
    read: ReadOptions,
}

impl Folder {
    /// Lists the pictures below `root`.
    ///
    /// # Errors
    /// [`Error::Io`] when a folder cannot be read; [`Error::Data`] when there is no picture, or none in a class, or the name of a
    /// class folder is not UTF-8.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_with(root, &FolderOptions::default())
    }

    /// Lists the pictures below `root`.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); [`Error::Data`] when a class folder is none of the given classes, one of them is given
    /// twice, or there are classes and no folder.
    pub fn open_with(root: &Path, options: &FolderOptions) -> Result<Self> {
        let fail = |reason: String| Err(Error::data(root, reason));
        let mut seen = HashSet::new();
        if let Some(class) = options.classes.iter().find(|class| !seen.insert(*class)) {
            return fail(format!("the class `{class}` is given twice"));
        }
        let (mut folders, beside) = entries(root)?;
        if folders.is_empty() {
            if beside.is_empty() {
                return Err(no_picture(root, "here", "class folders with files"));
            }
            if let Some(class) = options.classes.first() {
                return fail(format!(
                    "holds pictures and no class folder; expected folders such as `{class}`"
                ));
            }
            return Ok(Self {
                root: root.to_owned(),
                files: beside,
                labels: Labels::default(),
                read: options.read,
            });
        }
        if !beside.is_empty() {
            let (count, root) = (beside.len(), root.display());
            tracing::warn!("{root}: {count} pictures beside the class folders are left out");
        }
        let names: Vec<String> = folders
            .iter()
            .map(|folder| class_of(folder))
            .collect::<Result<_>>()?;
        let classes = if options.classes.is_empty() {
            names
        } else {
            if let Some(other) = names.iter().find(|name| !options.classes.contains(name)) {
                let count = options.classes.len();
                return fail(format!(
                    "the folder `{other}` is none of the {count} classes; remove it or name it among them"
                ));
            }
            folders = options
                .classes
                .iter()
                .map(|class| root.join(class))
                .collect();
            options.classes.clone()
        };
        let (mut files, mut labels, mut empty) = (Vec::new(), Vec::new(), Vec::new());
        for (label, folder) in folders.iter().enumerate() {
            let mut found = Vec::new();
            if folder.is_dir() {
                walk(folder, &mut HashSet::new(), &mut found)?;
            }
            // By folder, then by name: not the order of whole paths.
            found.sort_by(|a, b| order(a).cmp(&order(b)));
            if found.is_empty() {
                empty.push(classes[label].as_str());
            }
            labels.extend(found.iter().map(|_| label as u32));
            files.extend(found);
        }
        if files.is_empty() {
            let place = format!("in its {} folders", folders.len());
            return Err(no_picture(root, &place, "files"));
        }
        if !empty.is_empty() && !options.allow_empty {
            let (count, shown) = (empty.len(), empty[..empty.len().min(5)].join("`, `"));
            return fail(format!(
                "{count} class folders have no picture: `{shown}`; remove them or allow empty classes"
            ));
        }
        Ok(Self {
            root: root.to_owned(),
            files,
            labels: Labels { labels, classes },
            read: options.read,
        })
    }

    /// The same with other names for the classes, in the order of the labels.
    ///
    /// # Errors
    /// [`Error::Data`] when there are more or fewer names than class folders.
    pub fn with_classes(self, classes: Vec<String>) -> Result<Self> {
        let folders = self.labels.classes.len();
        if classes.len() != folders {
            let reason = format!(
                "expected names for {folders} class folders, got {}",
                classes.len()
            );
            return Err(Error::data(self.root, reason));
        }
        let labels = Labels {
            classes,
            ..self.labels
        };
        Ok(Self { labels, ..self })
    }

    /// The files, in the order of the pictures.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

impl Pictures for Folder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn picture(&self, i: usize) -> Result<AnyImage> {
        match self.files.get(i) {
            Some(path) => read_with(path, &self.read),
            None => Err(out_of_range(i, self.files.len())),
        }
    }

    fn label(&self, i: usize) -> Option<usize> {
        self.labels.get(i)
    }

    fn name(&self, i: usize) -> String {
        let path = self.files.get(i).unwrap_or(&self.root);
        path.display().to_string()
    }

    fn classes(&self) -> &[String] {
        &self.labels.classes
    }
}

fn no_picture(folder: &Path, place: &str, expected: &str) -> Error {
    let endings = ENDINGS.join(", .");
    let reason = format!("no picture is {place}; expected {expected} that end in .{endings}");
    Error::data(folder, reason)
}

/// The class that a folder names.
fn class_of(folder: &Path) -> Result<String> {
    let name = folder.file_name().unwrap_or_default().to_str();
    name.map(str::to_owned).ok_or_else(|| {
        let reason = "the name of a class folder must be UTF-8; rename it";
        Error::data(folder, reason)
    })
}

fn order(path: &Path) -> (&[u8], &[u8]) {
    let folder = path
        .parent()
        .map_or(&[][..], |folder| folder.as_os_str().as_encoded_bytes());
    let name = path.file_name().unwrap_or_default();
    (folder, name.as_encoded_bytes())
}

/// Folders and pictures directly in `folder`, each sorted by name, without hidden ones.
fn entries(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().unwrap_or_default();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            folders.push(path);
        } else if ENDINGS
            .iter()
            .any(|known| ending.eq_ignore_ascii_case(known))
        {
            files.push(path);
        }
    }
    folders.sort_by(|a, b| order(a).cmp(&order(b)));
    files.sort_by(|a, b| order(a).cmp(&order(b)));
    Ok((folders, files))
}

/// The files in `folder` and below it that end as pictures do, folder by folder in the order of their names; hidden ones are left out.
///
/// # Errors
/// [`Error::Io`] when a folder cannot be read; [`Error::Data`] when there is no picture.
pub fn pictures_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    walk(folder, &mut HashSet::new(), &mut found)?;
    if found.is_empty() {
        return Err(no_picture(folder, "here", "files"));
    }
    Ok(found)
}

/// Adds all pictures below `folder`; a folder that links lead to again is not entered twice.
fn walk(folder: &Path, seen: &mut HashSet<PathBuf>, found: &mut Vec<PathBuf>) -> Result<()> {
    if !seen.insert(folder.canonicalize().map_err(Error::io(folder))?) {
        return Ok(());
    }
    let (folders, files) = entries(folder)?;
    found.extend(files);
    for inner in folders {
        walk(&inner, seen, found)?;
    }
    Ok(())
}
