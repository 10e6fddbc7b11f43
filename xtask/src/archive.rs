//! Taking files out of zip (wheels) and tar.gz (npm packages, source distributions) archives that are not trusted.
//!
//! Only regular files are ever written, only to places below the given folder, and never more bytes than expected.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use flate2::read::GzDecoder;

use crate::cache::{self, Digested};
use crate::unpacked::Unpacked;

/// Most entries that an archive may have: more is a bomb, not a package.
const MAX_ENTRIES: usize = 200_000;

/// A relative path without `..`, `.`, a root, a drive or a backslash; anything else is refused.
///
/// # Errors
/// When the name could lead out of the folder that it is unpacked into.
pub(crate) fn safe(name: &str) -> Result<PathBuf> {
    let path = Path::new(name);
    let plain = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !plain || name.contains('\\') || name.contains('\0') || name.contains(':')
    {
        bail!(
            "the name {name:?} could lead out of its folder and is refused; report the archive to whoever made it"
        );
    }
    Ok(path.to_path_buf())
}

/// Writes the file `member` of `archive` to `to` and gives its hash; stops when it is bigger than `limit` bytes.
pub(crate) fn extract_member(
    archive: &Path,
    member: &str,
    to: &Path,
    limit: u64,
) -> Result<Digested> {
    safe(member)?;
    let what = || format!("cannot take {member} out of {}", archive.display());
    let mut file = open(archive)?;
    let mut magic = [0_u8; 4];
    let known = file.read_exact(&mut magic).is_ok();
    file.rewind().with_context(what)?;
    match magic {
        [b'P', b'K', 3, 4] if known => zip_member(file, member, to, limit).with_context(what),
        [0x1f, 0x8b, ..] if known => tar_member(file, member, to, limit).with_context(what),
        _ => bail!(
            "{} is neither a zip nor a gzip archive; delete it and run the command again",
            archive.display()
        ),
    }
}

fn open(archive: &Path) -> Result<File> {
    File::open(archive).with_context(|| format!("cannot open {}", archive.display()))
}

fn zip_member(file: File, member: &str, to: &Path, limit: u64) -> Result<Digested> {
    let mut zip = zip::ZipArchive::new(BufReader::new(file))
        .context("the zip archive is damaged; delete it and run the command again")?;
    let entry = zip.by_name(member).map_err(|_| {
        anyhow!("it has no such file; is the version in the data set's TOML right?")
    })?;
    if !entry.is_file() {
        bail!("it is not a regular file");
    }
    write_entry(entry, to, limit)
}

fn tar_member(file: File, member: &str, to: &Path, limit: u64) -> Result<Digested> {
    // Skipping entries decompresses them too: cap what a bomb may cost.
    let budget = limit.saturating_add(8 << 30);
    let mut tar = tar::Archive::new(GzDecoder::new(BufReader::new(file)).take(budget));
    for (index, entry) in tar
        .entries()
        .context("the tar archive is damaged")?
        .enumerate()
    {
        let entry =
            entry.context("the tar archive is damaged; delete it and run the command again")?;
        if index > MAX_ENTRIES {
            bail!("it has more than {MAX_ENTRIES} entries");
        }
        if entry.path_bytes().as_ref() != member.as_bytes() {
            continue;
        }
        if !entry.header().entry_type().is_file() {
            bail!("it is not a regular file");
        }
        return write_entry(entry, to, limit);
    }
    bail!("it has no such file; is the version in the data set's TOML right?")
}

fn write_entry(entry: impl Read, to: &Path, limit: u64) -> Result<Digested> {
    if let Some(folder) = to.parent() {
        cache::create_folder(folder)?;
    }
    let file = File::create(to).map_err(|error| cache::explain("write", to, &error))?;
    let mut file = BufWriter::new(file);
    let digested =
        cache::copy_hashed(entry, &mut file, limit).map_err(|error| explain_copy(to, &error))?;
    file.flush()
        .and_then(|()| file.get_ref().sync_all())
        .map_err(|error| cache::explain("write", to, &error))?;
    Ok(digested)
}

fn explain_copy(to: &Path, error: &io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => {
            anyhow!("the archive is damaged ({error}); delete it and run the command again")
        }
        _ => cache::explain("write", to, error),
    }
}

/// Unpacks the entries of a zip for which `place` gives a path (relative to `folder`); at most `limit` bytes in all.
/// Returns how many files were written.
pub(crate) fn unpack_zip(
    archive: &Path,
    folder: &Path,
    limit: u64,
    place: impl Fn(&str) -> Option<String>,
) -> Result<usize> {
    let damaged = || {
        format!(
            "{} is damaged; delete it and run the command again",
            archive.display()
        )
    };
    let mut zip = zip::ZipArchive::new(BufReader::new(open(archive)?)).with_context(damaged)?;
    if zip.len() > MAX_ENTRIES {
        bail!(
            "{} has {} entries, more than the {MAX_ENTRIES} that a package may have",
            archive.display(),
            zip.len()
        );
    }
    let mut left = limit;
    let mut written = 0;
    for index in 0..zip.len() {
        let entry = zip.by_index(index).with_context(damaged)?;
        if !entry.is_file() {
            continue;
        }
        let Some(name) = place(&entry.name().with_context(damaged)?) else {
            continue;
        };
        let to = folder.join(safe(&name)?);
        let digested = write_entry(entry, &to, left)
            .with_context(|| format!("cannot unpack {name} from {}", archive.display()))?;
        left = left.saturating_sub(digested.bytes);
        written += 1;
    }
    Ok(written)
}

/// Unpacks the folder `top` of a gzip tar into `folder`: regular files and folders only, at most `limit` bytes in all;
/// what is beside `top` is left. Returns the files, relative to `folder`, by name.
pub(crate) fn unpack_tar(
    archive: &Path,
    folder: &Path,
    top: &str,
    limit: u64,
) -> Result<Vec<Unpacked>> {
    let damaged = || {
        format!(
            "{} is damaged; delete it and run the command again",
            archive.display()
        )
    };
    // Headers and padding are small beside the files, unless it is a bomb.
    let budget = limit.saturating_add(64 << 20);
    let reader = GzDecoder::new(BufReader::new(open(archive)?)).take(budget);
    let mut tar = tar::Archive::new(reader);
    let mut left = limit;
    let mut files: Vec<Unpacked> = Vec::new();
    for (index, entry) in tar.entries().with_context(damaged)?.enumerate() {
        let entry = entry.with_context(damaged)?;
        if index > MAX_ENTRIES {
            bail!("{} has more than {MAX_ENTRIES} entries", archive.display());
        }
        let name = String::from_utf8(entry.path_bytes().into_owned()).with_context(damaged)?;
        let name = name.strip_prefix("./").unwrap_or(&name);
        let kind = entry.header().entry_type();
        let empty = kind.is_dir() && matches!(name, "" | ".");
        if empty || kind.is_pax_global_extensions() {
            continue;
        }
        let path = safe(name.trim_end_matches('/'))?;
        let Ok(inside) = path.strip_prefix(top) else {
            continue; // systems leave files of their own beside the folder
        };
        if kind.is_dir() {
            continue;
        }
        if !kind.is_file() || inside.as_os_str().is_empty() {
            bail!("{name} in {} is not a regular file", archive.display());
        }
        let shown = inside.to_string_lossy().into_owned();
        if files.iter().any(|file| file.path == shown) {
            bail!("{} holds {name} twice", archive.display());
        }
        let digested = write_entry(entry, &folder.join(inside), left)
            .with_context(|| format!("cannot unpack {name} from {}", archive.display()))?;
        left = left.saturating_sub(digested.bytes);
        files.push(Unpacked {
            path: shown,
            bytes: digested.bytes,
            sha256: digested.sha256,
        });
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use zip::write::SimpleFileOptions;

    fn zip_with(path: &Path, files: &[(&str, &[u8])]) -> Result<()> {
        let mut zip = zip::ZipWriter::new(File::create(path)?);
        for (name, bytes) in files {
            zip.start_file(*name, SimpleFileOptions::default())?;
            zip.write_all(bytes)?;
        }
        zip.finish()?;
        Ok(())
    }

    fn tar_with(path: &Path, files: &[(&str, &[u8], tar::EntryType)]) -> Result<()> {
        let mut tar = tar::Builder::new(GzEncoder::new(File::create(path)?, Compression::fast()));
        for (name, bytes, kind) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            if *kind == tar::EntryType::Symlink {
                header.set_link_name("/etc/passwd")?;
            }
            header.as_gnu_mut().context("gnu")?.name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            tar.append(&header, *bytes)?;
        }
        tar.into_inner()?.finish()?;
        Ok(())
    }

    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.map_or_else(
            |error| format!("{error:#}"),
            |value| format!("unexpected success: {value:?}"),
        )
    }

    #[test]
    fn a_member_comes_out_of_either_kind_of_archive() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (zip, tar, out) = (
            folder.path().join("a.whl"),
            folder.path().join("a.tgz"),
            folder.path().join("sub").join("out"),
        );
        zip_with(&zip, &[("x/y.csv", b"hello"), ("z", b"no")])?;
        tar_with(
            &tar,
            &[
                ("x/z", b"no", tar::EntryType::Regular),
                ("x/y.csv", b"hello", tar::EntryType::Regular),
            ],
        )?;
        for archive in [&zip, &tar] {
            let digested = extract_member(archive, "x/y.csv", &out, 5)?;
            assert_eq!(
                digested,
                Digested {
                    sha256: cache::sha256(b"hello"),
                    bytes: 5
                }
            );
            assert_eq!(std::fs::read(&out)?, b"hello");
            assert!(message(extract_member(archive, "missing", &out, 5)).contains("no such file"));
            assert!(
                message(extract_member(archive, "x/y.csv", &out, 4))
                    .contains("more than the 4 bytes")
            );
        }
        Ok(())
    }

    #[test]
    fn names_that_lead_out_of_the_folder_are_refused() -> Result<()> {
        for name in [
            "/etc/passwd",
            "../x",
            "a/../../x",
            "",
            "a\\..\\b",
            "C:/x",
            ".",
            "a\0b",
        ] {
            assert!(safe(name).is_err(), "{name:?}");
        }
        assert!(safe("a/b.c").is_ok());
        let folder = tempfile::tempdir()?;
        let zip = folder.path().join("a.zip");
        zip_with(&zip, &[("../evil", b"x")])?;
        let inside = folder.path().join("inside");
        assert!(
            message(unpack_zip(&zip, &inside, 100, |name| Some(name.to_owned())))
                .contains("lead out")
        );
        assert!(!folder.path().join("evil").exists());
        Ok(())
    }

    #[test]
    fn a_link_in_a_tar_is_not_followed() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let tar = folder.path().join("a.tgz");
        tar_with(&tar, &[("data.csv", b"", tar::EntryType::Symlink)])?;
        let out = folder.path().join("out");
        assert!(
            message(extract_member(&tar, "data.csv", &out, 100)).contains("not a regular file")
        );
        assert!(!out.exists());
        Ok(())
    }

    #[test]
    fn a_bomb_stops_at_its_limit() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let zip = folder.path().join("bomb.zip");
        zip_with(&zip, &[("zeros", &vec![0_u8; 10_000_000])])?;
        assert!(std::fs::metadata(&zip)?.len() < 100_000);
        assert!(
            message(unpack_zip(&zip, folder.path(), 1_000, |name| Some(
                name.to_owned()
            )))
            .contains("more than the 1000 bytes")
        );
        assert!(std::fs::metadata(folder.path().join("zeros"))?.len() <= 1_000);
        Ok(())
    }

    #[test]
    fn damaged_archives_are_errors_and_not_panics() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (zip, tar, out) = (
            folder.path().join("a.zip"),
            folder.path().join("a.tgz"),
            folder.path().join("out"),
        );
        // Text that does not compress to nothing, so that each position of a flipped byte matters.
        let body: Vec<u8> = (0..3000_u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        zip_with(&zip, &[("a", &body)])?;
        tar_with(&tar, &[("a", &body, tar::EntryType::Regular)])?;
        for archive in [&zip, &tar] {
            let whole = std::fs::read(archive)?;
            for cut in [0, 3, 10, whole.len() / 2, whole.len() - 1] {
                std::fs::write(archive, &whole[..cut])?;
                if let Ok(digested) = extract_member(archive, "a", &out, 10_000) {
                    assert_eq!(digested.sha256, cache::sha256(&body));
                }
            }
            for position in (0..whole.len()).step_by(37) {
                let mut flipped = whole.clone();
                flipped[position] ^= 0x41;
                std::fs::write(archive, &flipped)?;
                // Whatever comes out is judged by its hash; here only: no panic.
                let _ = extract_member(archive, "a", &out, 10_000);
            }
        }
        std::fs::write(&zip, b"just text")?;
        assert!(message(extract_member(&zip, "a", &out, 10)).contains("neither a zip nor a gzip"));
        Ok(())
    }

    #[test]
    fn only_placed_entries_are_unpacked() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let zip = folder.path().join("a.zip");
        zip_with(&zip, &[("torch/lib/a.so", b"1"), ("torch/b.py", b"2")])?;
        let written = unpack_zip(&zip, &folder.path().join("to"), 100, |name| {
            name.strip_prefix("torch/lib/")
                .map(|rest| format!("lib/{rest}"))
        })?;
        assert_eq!(written, 1);
        assert_eq!(std::fs::read(folder.path().join("to/lib/a.so"))?, b"1");
        Ok(())
    }

    #[test]
    fn a_folder_is_unpacked_and_nothing_beside_it() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let tar = folder.path().join("a.tabred");
        let file = tar::EntryType::Regular;
        tar_with(
            &tar,
            &[
                ("set/", b"", tar::EntryType::Directory),
                ("set/y.npy", b"123", file),
                ("set/splits/default/train.npy", b"45", file),
                ("._set", b"x", file),
            ],
        )?;
        let out = folder.path().join("out");
        let files = unpack_tar(&tar, &out, "set", 5)?;
        let names: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, ["splits/default/train.npy", "y.npy"]);
        assert_eq!(std::fs::read(out.join("y.npy"))?, b"123");
        assert_eq!(files[1].sha256, cache::sha256(b"123"));
        assert!(!folder.path().join("._set").exists() && !out.join("._set").exists());
        assert!(
            unpack_tar(&tar, &folder.path().join("few"), "set", 4)
                .is_err_and(|error| format!("{error:#}").contains("expected"))
        );
        Ok(())
    }

    #[test]
    fn a_folder_with_links_or_twice_the_same_file_is_refused() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let tar = folder.path().join("a.tabred");
        let file = tar::EntryType::Regular;
        let out = folder.path().join("out");
        for (entries, complaint) in [
            (
                vec![("set/y.npy", &b""[..], tar::EntryType::Symlink)],
                "not a regular file",
            ),
            (
                vec![("set/y.npy", &b""[..], tar::EntryType::Link)],
                "not a regular file",
            ),
            (vec![("set", &b"1"[..], file)], "not a regular file"),
            (
                vec![("set/a", &b"1"[..], file), ("set/a", &b"2"[..], file)],
                "twice",
            ),
        ] {
            tar_with(&tar, &entries)?;
            let text = unpack_tar(&tar, &out, "set", 100)
                .map_or_else(|error| format!("{error:#}"), |_| String::new());
            assert!(text.contains(complaint), "{text}");
        }
        // A bomb: ten million zeros in a few kilobytes.
        tar_with(&tar, &[("set/zeros", &vec![0_u8; 10_000_000], file)])?;
        assert!(unpack_tar(&tar, &out, "set", 1_000).is_err());
        assert!(std::fs::metadata(out.join("zeros"))?.len() <= 1_000);
        let whole = std::fs::read(&tar)?;
        for cut in [0, 10, whole.len() / 2] {
            std::fs::write(&tar, &whole[..cut])?;
            assert!(unpack_tar(&tar, &out, "set", 100_000_000).is_err(), "{cut}");
        }
        Ok(())
    }
}
