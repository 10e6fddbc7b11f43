//! Files that are whole or absent: every write goes to a temporary file beside the target, is flushed to
//! the disk and renamed, so a kill or a full disk at any instant leaves the old file or the new one.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Writes `path` through `write`, atomically.
///
/// # Errors
/// [`Error::Io`] naming `path`; the temporary file is removed and an older `path` is untouched.
pub fn write_with(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    let temporary = sibling(path, "tmp");
    let result = (|| {
        let file = File::create(&temporary).map_err(Error::io(path))?;
        let mut writer = BufWriter::new(file);
        write(&mut writer)?;
        let file = writer
            .into_inner()
            .map_err(|e| Error::io(path)(e.into_error()))?;
        file.sync_all().map_err(Error::io(path))?;
        fs::rename(&temporary, path).map_err(Error::io(path))?;
        sync_folder(path)
    })();
    if result.is_err() {
        // The first error is the one to report; a temporary file that cannot be removed is harmless.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Writes `bytes` to `path`, atomically.
///
/// # Errors
/// [`Error::Io`] naming `path`.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(bytes).map_err(Error::io(path)))
}

/// Refuses an `output` that is one of the files that are read: writing it would lose them.
///
/// # Errors
/// [`Error::Config`] with the name of the setting, `field`.
pub fn refuse_overwriting(field: &str, output: &Path, inputs: &[&Path]) -> Result<()> {
    // A path that does not resolve is no file yet, or is reported by whoever opens it.
    let Ok(target) = output.canonicalize() else {
        return Ok(());
    };
    let is_target = |input: &&&Path| input.canonicalize().is_ok_and(|input| input == target);
    match inputs.iter().find(is_target) {
        None => Ok(()),
        Some(input) => {
            let reason = format!("would overwrite {}, which is read", input.display());
            Err(Error::config(field, reason))
        }
    }
}

/// Whether two paths name one file, or would if they were written: `./x` and `x` do, before there is a file too.
///
/// A path whose folder cannot be found is like no other; whoever writes it reports that.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    let resolved = |path: &Path| {
        path.canonicalize().ok().or_else(|| {
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            Some(folder.canonicalize().ok()?.join(path.file_name()?))
        })
    };
    a == b || resolved(a).is_some_and(|a| resolved(b) == Some(a))
}

/// Makes the rename or removal of `path` durable by flushing its folder.
///
/// # Errors
/// [`Error::Io`] naming the folder.
pub fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io(folder))
}

/// `path` with the process's number and `suffix` behind its file name: a name in the same folder, so that
/// a rename stays on one file system, which no other process uses.
pub fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{suffix}", std::process::id()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
        let path = folder.path().join("a.txt");
        write(&path, b"old")?;
        let failed = write_with(&path, |file| {
            file.write_all(b"half").map_err(Error::io(&path))?;
            Err(Error::config("x", "refused"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).map_err(Error::io(&path))?, b"old");
        assert_eq!(
            fs::read_dir(folder.path())
                .map_err(Error::io(&path))?
                .count(),
            1
        );
        Ok(())
    }

    #[test]
    fn an_input_is_no_output() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
        let (input, other) = (folder.path().join("a.csv"), folder.path().join("b.csv"));
        write(&input, b"x")?;
        let roundabout = folder.path().join(".").join("a.csv");
        for same in [&input, &roundabout] {
            let error = refuse_overwriting("out", same, &[&other, &input]).expect_err("the input");
            assert!(
                error.to_string().contains("a.csv, which is read"),
                "{error}"
            );
        }
        refuse_overwriting("out", &other, &[&input])?;
        write(&other, b"y")?;
        refuse_overwriting("out", &other, &[&input])
    }

    #[test]
    fn paths_are_one_file_before_it_is_there() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
        let (inner, plain) = (folder.path().join("inner"), folder.path().join("x"));
        fs::create_dir(&inner).map_err(Error::io(&inner))?;
        let roundabout = inner.join("..").join("x");
        for path in [&plain, &roundabout, &folder.path().join(".").join("x")] {
            assert!(is_same_file(path, &plain), "{}", path.display());
        }
        assert!(is_same_file(
            Path::new("./nowhere.y"),
            Path::new("nowhere.y")
        ));
        assert!(!is_same_file(&folder.path().join("y"), &plain));
        assert!(!is_same_file(&inner.join("x"), &plain));
        let lost = folder.path().join("no").join("x");
        assert!(!is_same_file(&lost, &plain) && is_same_file(&lost, &lost));
        write(&plain, b"x")?;
        assert!(is_same_file(&roundabout, &plain));
        #[cfg(unix)]
        {
            let link = folder.path().join("link");
            std::os::unix::fs::symlink(&plain, &link).map_err(Error::io(&link))?;
            assert!(is_same_file(&link, &plain));
        }
        Ok(())
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = write(Path::new("/no/such/folder/a"), b"").expect_err("no folder");
        assert!(
            error.to_string().starts_with("/no/such/folder/a: "),
            "{error}"
        );
    }
}
