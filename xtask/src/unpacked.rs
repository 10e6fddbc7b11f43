//! Files of data sets that are folders: fetched as a gzip tar, kept unpacked, with a list of what was in it beside them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::archive;
use crate::cache;
use crate::dataset::{DataFile, State};

/// What was unpacked, so that the folder can be checked without its archive.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    /// Of the archive.
    sha256: String,
    files: Vec<Unpacked>,
}

/// A file of the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Unpacked {
    /// Relative to the folder.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// The list stands beside the folder and is written last: without it the folder counts as missing.
fn list_of(place: &Path) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    place.with_file_name(format!(".{name}.unpacked.json"))
}

/// How the folder of `file` at `place` stands; every file is hashed when `deep`.
pub(crate) fn state(file: &DataFile, place: &Path, deep: bool) -> State {
    let list = list_of(place);
    let text = match std::fs::read_to_string(&list) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return State::Missing,
        Err(error) => return State::Bad(error.to_string()),
        Ok(text) => text,
    };
    let Ok(contents) = serde_json::from_str::<Contents>(&text) else {
        return State::Bad("the list of its files is damaged".to_owned());
    };
    if !contents.sha256.eq_ignore_ascii_case(&file.sha256) {
        return State::Bad(format!(
            "it is from an archive with SHA-256 {}, {} is expected",
            contents.sha256, file.sha256
        ));
    }
    for known in &contents.files {
        let Ok(path) = archive::safe(&known.path) else {
            return State::Bad("the list of its files is damaged".to_owned());
        };
        let path = place.join(path);
        let found = std::fs::metadata(&path).map(|meta| meta.len()).ok();
        if found != Some(known.bytes) {
            let found = found.map_or_else(|| "is missing".to_owned(), |n| format!("has {n} bytes"));
            return State::Bad(format!(
                "{} {found}, {} are expected",
                known.path, known.bytes
            ));
        }
        if deep {
            match cache::digest(&path) {
                Ok(found) if found.sha256 == known.sha256 => {}
                Ok(_) => {
                    return State::Bad(format!("{} differs from what was unpacked", known.path));
                }
                Err(error) => return State::Bad(format!("{error:#}")),
            }
        }
    }
    State::Good
}

/// Unpacks the checked `archive` and puts its folder at `place`. A kill leaves the old folder, the new or none.
pub(crate) fn put(file: &DataFile, archive: &Path, scratch: &Path, place: &Path) -> Result<()> {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let fresh = scratch.join("unpacked");
    let files = archive::unpack_tar(archive, &fresh, &name, file.limit())?;
    if files.is_empty() {
        bail!("the archive holds no file of a folder {name}");
    }
    let list = list_of(place);
    if list.exists() {
        std::fs::remove_file(&list).map_err(|error| cache::explain("remove", &list, &error))?;
    }
    if place.exists() {
        std::fs::rename(place, scratch.join("old"))
            .map_err(|error| cache::explain("move away", place, &error))?;
    }
    std::fs::rename(&fresh, place).map_err(|error| cache::explain("write", place, &error))?;
    let contents = Contents {
        sha256: file.sha256.to_lowercase(),
        files,
    };
    let text = serde_json::to_string_pretty(&contents).context("cannot write the list of files")?;
    cache::write(&list, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    /// A data set's entry for an archive at `path`, which is written too.
    fn archive_with(path: &Path, files: &[(&str, &str)]) -> Result<DataFile> {
        let gzip = GzEncoder::new(std::fs::File::create(path)?, Compression::fast());
        let mut tar = tar::Builder::new(gzip);
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, text.as_bytes())?;
        }
        tar.into_inner()?.finish()?;
        Ok(toml::from_str(&format!(
            "path = \"made\"\nunpack = true\nbytes = 3\nsha256 = \"{}\"\nmirror = \"made.tabred\"\nsources = []",
            cache::digest(path)?.sha256
        ))?)
    }

    #[test]
    fn a_folder_is_good_until_one_of_its_files_changes() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let archive = folder.path().join("made.tabred");
        let file = archive_with(
            &archive,
            &[("made/info.json", "{}"), ("made/splits/a.npy", "12")],
        )?;
        // The archive is taken by its hash, whatever its size.
        let checked = folder.path().join("checked");
        fetch::copy_checked(&archive, &checked, &file)?;
        let place = folder.path().join("made");
        assert_eq!(state(&file, &place, true), State::Missing);
        let scratch = folder.path().join("scratch");
        std::fs::create_dir(&scratch)?;
        put(&file, &checked, &scratch, &place)?;
        assert_eq!(state(&file, &place, true), State::Good);
        assert_eq!(std::fs::read_to_string(place.join("splits/a.npy"))?, "12");

        let complaint = |file: &DataFile, deep| match state(file, &place, deep) {
            State::Bad(why) => why,
            other => format!("{other:?}"),
        };
        std::fs::write(place.join("info.json"), "{ }")?;
        assert!(complaint(&file, false).contains("info.json has 3 bytes, 2 are expected"));
        std::fs::write(place.join("info.json"), "[]")?;
        assert_eq!(state(&file, &place, false), State::Good);
        assert!(complaint(&file, true).contains("info.json differs"));
        std::fs::remove_file(place.join("info.json"))?;
        assert!(complaint(&file, false).contains("info.json is missing"));
        // A newer archive replaces the folder whole.
        std::fs::remove_file(&archive)?;
        let newer = archive_with(&archive, &[("made/y.npy", "3")])?;
        assert!(complaint(&newer, false).contains("is expected"));
        assert!(fetch::copy_checked(&archive, &checked, &file).is_err());
        put(&newer, &archive, &scratch, &place)?;
        assert_eq!(state(&newer, &place, true), State::Good);
        assert!(!place.join("splits").exists());
        std::fs::write(list_of(&place), "{")?;
        assert!(complaint(&newer, false).contains("list of its files is damaged"));
        Ok(())
    }

    #[test]
    fn an_archive_of_another_folder_is_refused() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let archive = folder.path().join("made.tabred");
        let file = archive_with(&archive, &[("other/info.json", "{}")])?;
        let place = folder.path().join("made");
        let text = put(&file, &archive, folder.path(), &place)
            .map_or_else(|error| error.to_string(), |()| String::new());
        assert!(text.contains("no file of a folder made"), "{text}");
        assert!(!place.exists());
        Ok(())
    }
}
