//! Cache folders, locks between processes, hashes, and files that are either whole or absent.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow};
use sha2::{Digest, Sha256};

use crate::shell;

/// The folder of all caches: `$DENSELY_CACHE`, else the platform's cache folder / densely.
pub(crate) fn root() -> Result<PathBuf> {
    if let Some(folder) = shell::variable("DENSELY_CACHE") {
        return std::path::absolute(&folder)
            .context("DENSELY_CACHE does not name a folder; set it to one");
    }
    // The XDG rule: a relative value is to be ignored.
    let xdg = shell::variable("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    if let Some(folder) = xdg {
        return Ok(folder.join("densely"));
    }
    let home = shell::home().ok_or_else(|| {
        anyhow!(
            "neither HOME nor DENSELY_CACHE is set; set DENSELY_CACHE to a folder for downloads"
        )
    })?;
    let caches = if cfg!(target_os = "macos") {
        home.join("Library").join("Caches")
    } else {
        home.join(".cache")
    };
    Ok(caches.join("densely"))
}

/// The folder of data sets: `$DENSELY_DATA`, else `data` in the cache.
pub(crate) fn data() -> Result<PathBuf> {
    match shell::variable("DENSELY_DATA") {
        Some(folder) => std::path::absolute(&folder)
            .context("DENSELY_DATA does not name a folder; set it to one"),
        None => Ok(root()?.join("data")),
    }
}

/// Creates `folder` and its parents.
pub(crate) fn create_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|error| explain("create the folder", folder, &error))
}

/// An I/O error as one sentence with what to do.
pub(crate) fn explain(doing: &str, path: &Path, error: &io::Error) -> Error {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            anyhow!(
                "cannot {doing} {path}: the disk is full; free space there or set DENSELY_CACHE to a folder on another disk, then run the command again"
            )
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            anyhow!(
                "cannot {doing} {path}: it may not be written; change its permissions or set DENSELY_CACHE to a folder of your own"
            )
        }
        _ => anyhow!("cannot {doing} {path} ({error}); check that path and its disk"),
    }
}

/// A lock that another process waits for; given back when dropped, also when the process is killed.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Takes the lock at `path`, and says so on stderr when it must wait for another process.
pub(crate) fn lock(path: &Path, what: &str) -> Result<Lock> {
    if let Some(folder) = path.parent() {
        create_folder(folder)?;
    }
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|error| explain("open the lock file", path, &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            eprintln!("waiting for another process that works on {what} ...");
            file.lock().map_err(|error| explain("lock", path, &error))?;
        }
        Err(std::fs::TryLockError::Error(error)) => return Err(explain("lock", path, &error)),
    }
    Ok(Lock { _file: file })
}

/// A folder that is removed when dropped; made beside its target, so that a rename stays on one disk.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// An empty folder `.tmp-<name>-<process>` in `parent`. Call it under a lock: leftovers of the same name from
    /// processes that died are removed.
    pub(crate) fn new(parent: &Path, name: &str) -> Result<Self> {
        create_folder(parent)?;
        let prefix = format!(".tmp-{name}-");
        if let Ok(entries) = std::fs::read_dir(parent) {
            for entry in entries.flatten() {
                if entry.file_name().to_string_lossy().starts_with(&prefix) {
                    // Best effort: a leftover only takes room.
                    let _ = std::fs::remove_dir_all(entry.path());
                }
            }
        }
        let folder = parent.join(format!("{prefix}{}", std::process::id()));
        create_folder(&folder)?;
        Ok(Self(folder))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Hash and size of what went through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Digested {
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
}

/// SHA-256 and size of a file.
pub(crate) fn digest(path: &Path) -> Result<Digested> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    copy_hashed(file, &mut io::sink(), u64::MAX)
        .with_context(|| format!("cannot read {}", path.display()))
}

/// Copies and hashes; more than `limit` bytes are an error (a decompression bomb, or not the file that was meant).
pub(crate) fn copy_hashed(
    mut from: impl Read,
    to: &mut impl Write,
    limit: u64,
) -> io::Result<Digested> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0_u8; 1 << 17];
    let mut bytes = 0_u64;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        bytes += read as u64;
        if bytes > limit {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it unpacks to more than the {limit} bytes that are expected"),
            ));
        }
        let part = buffer.get(..read).unwrap_or_default();
        hasher.update(part);
        to.write_all(part)?;
    }
    Ok(Digested {
        sha256: hex(&hasher.finalize()),
        bytes,
    })
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of bytes in memory.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Writes a file through a temporary neighbour and a rename, so that a reader sees the old or the new one.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        create_folder(folder)?;
    }
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let result = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    result.map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        explain("write", path, &error)
    })
}

/// Bytes for people.
pub(crate) fn human(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_and_size_of_known_bytes() -> Result<()> {
        let mut out = Vec::new();
        let digested = copy_hashed(&b"abc"[..], &mut out, 3)?;
        assert_eq!(
            digested.sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!((digested.bytes, out.as_slice()), (3, &b"abc"[..]));
        assert_eq!(sha256(b"abc"), digested.sha256);
        Ok(())
    }

    #[test]
    fn a_copy_stops_at_its_limit() {
        let mut out = Vec::new();
        let error = copy_hashed(io::repeat(7), &mut out, 1_000_000).map_err(|error| error.kind());
        assert_eq!(error, Err(io::ErrorKind::FileTooLarge));
        assert!(out.len() <= 1_000_000);
    }

    #[test]
    fn write_leaves_no_temporary_file() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a").join("b.json");
        write(&path, b"1")?;
        write(&path, b"2")?;
        assert_eq!(std::fs::read(&path)?, b"2");
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap_or(folder.path()))?.count(),
            1
        );
        Ok(())
    }

    #[test]
    fn scratch_folders_remove_themselves_and_leftovers_of_the_dead() -> Result<()> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join(".tmp-x-1"))?;
        let scratch = Scratch::new(folder.path(), "x")?;
        assert!(!folder.path().join(".tmp-x-1").exists() && scratch.path().is_dir());
        drop(scratch);
        assert_eq!(std::fs::read_dir(folder.path())?.count(), 0);
        Ok(())
    }

    #[test]
    fn a_full_disk_says_what_to_do() {
        let text = explain(
            "write",
            Path::new("/x"),
            &io::Error::from(io::ErrorKind::StorageFull),
        )
        .to_string();
        assert!(
            text.contains("disk is full") && text.contains("DENSELY_CACHE"),
            "{text}"
        );
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(
            [
                human(5),
                human(1_500),
                human(2_000_000),
                human(3_100_000_000)
            ],
            ["5 B", "1.5 kB", "2.0 MB", "3.1 GB"]
        );
    }
}
