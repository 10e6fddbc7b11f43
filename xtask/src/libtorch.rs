//! What a usable copy of libtorch is, and how to tell that one is damaged.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cache;
use crate::shell;

/// The only version that this tch speaks to.
pub(crate) const VERSION: &str = "2.11.0";

/// Written last into a copy of ours: without it a copy is unfinished.
const MARKER: &str = "densely-complete.json";

/// Libraries without which nothing links.
const NEEDED: [&str; 3] = ["libc10", "libtorch", "libtorch_cpu"];

/// A header that every build includes.
const HEADER: &str = "include/torch/csrc/api/include/torch/torch.h";

/// What a finished copy holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Marker {
    pub(crate) version: String,
    /// Where it came from, for people.
    pub(crate) source: String,
    pub(crate) cuda: bool,
    /// Header files and their bytes together.
    pub(crate) headers: u64,
    pub(crate) header_bytes: u64,
    pub(crate) libraries: Vec<Library>,
}

/// One file in `lib/`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Library {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Presence and sizes of the libraries: milliseconds.
    Quick,
    /// Hashes, and all headers: seconds.
    Deep,
}

/// The link that the build uses.
pub(crate) fn link() -> PathBuf {
    shell::root().join(".libtorch")
}

/// The user's copy.
pub(crate) fn cached(cuda: bool) -> Result<PathBuf> {
    Ok(cache::root()?
        .join("libtorch")
        .join(format!("{VERSION}-{}", if cuda { "cuda" } else { "cpu" })))
}

/// The CUDA copy keeps torch beside the nvidia packages, as its run-time paths expect.
pub(crate) fn folder_in(target: &Path, cuda: bool) -> PathBuf {
    if cuda {
        target.join("torch")
    } else {
        target.to_path_buf()
    }
}

/// Whether a library belongs to the CPU half.
pub(crate) fn keeps(file_name: &str) -> bool {
    let stem = file_name.split(['.', '-']).next().unwrap_or_default();
    let shared = file_name.contains(".so") || file_name.contains(".dylib");
    shared
        && matches!(
            stem,
            "libc10"
                | "libtorch"
                | "libtorch_cpu"
                | "libgomp"
                | "libomp"
                | "libcudart"
                | "libcupti"
        )
}

/// Lists what `folder` holds and writes the marker: from now on it counts as complete.
pub(crate) fn write_marker(folder: &Path, source: &str, cuda: bool) -> Result<()> {
    let (headers, header_bytes) = headers(folder)?;
    let mut libraries = Vec::new();
    for path in shell::walk(&folder.join("lib"), &[])? {
        let digested = cache::digest(&path)?;
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        libraries.push(Library {
            name,
            bytes: digested.bytes,
            sha256: digested.sha256,
        });
    }
    let marker = Marker {
        version: VERSION.to_owned(),
        source: source.to_owned(),
        cuda,
        headers,
        header_bytes,
        libraries,
    };
    cache::write(
        &folder.join(MARKER),
        serde_json::to_string_pretty(&marker)?.as_bytes(),
    )
}

/// The marker of a copy of ours, `None` for a folder that is not (or not finished).
pub(crate) fn marker(folder: &Path) -> Option<Marker> {
    serde_json::from_slice(&std::fs::read(folder.join(MARKER)).ok()?).ok()
}

/// Checks version, files and, where there is a marker, that they are what was written.
///
/// # Errors
/// One clause that names the first thing that is wrong.
pub(crate) fn check(folder: &Path, depth: Depth) -> Result<()> {
    if !folder.is_dir() {
        bail!("{} does not exist", folder.display());
    }
    let version_file = folder.join("build-version");
    let version = std::fs::read_to_string(&version_file)
        .with_context(|| format!("{} cannot be read", version_file.display()))?;
    if base_version(&version) != VERSION {
        bail!(
            "{} is libtorch {}, {VERSION} is needed",
            folder.display(),
            version.trim()
        );
    }
    if !folder.join(HEADER).is_file() {
        bail!("{} is missing", folder.join(HEADER).display());
    }
    for name in NEEDED {
        let found = ["so", "dylib"].iter().any(|ending| {
            folder
                .join("lib")
                .join(format!("{name}.{ending}"))
                .is_file()
        });
        if !found {
            bail!(
                "{} is missing",
                folder.join("lib").join(format!("{name}.so")).display()
            );
        }
    }
    let Some(marker) = marker(folder) else {
        return Ok(());
    };
    for library in &marker.libraries {
        let path = folder.join("lib").join(&library.name);
        let bytes = std::fs::metadata(&path)
            .map(|meta| meta.len())
            .with_context(|| format!("{} is missing", path.display()))?;
        if bytes != library.bytes {
            bail!(
                "{} has {bytes} bytes, {} are expected",
                path.display(),
                library.bytes
            );
        }
        if depth == Depth::Deep && cache::digest(&path)?.sha256 != library.sha256 {
            bail!(
                "{} has changed since it was fetched (wrong SHA-256)",
                path.display()
            );
        }
    }
    if depth == Depth::Deep {
        let found = headers(folder)?;
        if found != (marker.headers, marker.header_bytes) {
            bail!(
                "{} holds {} files with {} bytes, {} with {} are expected",
                folder.join("include").display(),
                found.0,
                found.1,
                marker.headers,
                marker.header_bytes
            );
        }
    }
    Ok(())
}

/// `2.11.0+cpu` → `2.11.0`.
pub(crate) fn base_version(version: &str) -> &str {
    version.trim().split('+').next().unwrap_or_default()
}

fn headers(folder: &Path) -> Result<(u64, u64)> {
    let files = shell::walk(&folder.join("include"), &[])?;
    let mut bytes = 0;
    for path in &files {
        bytes += std::fs::metadata(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .len();
    }
    Ok((files.len() as u64, bytes))
}

/// Whether the dynamic loader finds everything that libtorch needs; `Ok` where there is no `ldd` to ask.
pub(crate) fn loads(folder: &Path) -> Result<()> {
    let library = folder.join("lib").join("libtorch_cpu.so");
    if !library.is_file() {
        return Ok(());
    }
    let out = Command::new("ldd")
        .arg(&library)
        .env("LD_LIBRARY_PATH", folder.join("lib"))
        .stdin(Stdio::null())
        .output();
    let Ok(out) = out else { return Ok(()) };
    let text = String::from_utf8_lossy(&out.stdout);
    let missing = missing_libraries(&text);
    if !missing.is_empty() {
        bail!(
            "{} needs {}, which is not on this machine",
            library.display(),
            missing.join(", ")
        );
    }
    if !out.status.success() {
        bail!(
            "{} cannot be loaded: a library that it needs is damaged (`ldd` says no more)",
            library.display()
        );
    }
    Ok(())
}

/// Names that `ldd` says are "not found".
fn missing_libraries(ldd: &str) -> Vec<&str> {
    ldd.lines()
        .filter(|line| line.contains("not found"))
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A folder that passes as a small libtorch.
    pub(crate) fn small(folder: &Path) -> Result<()> {
        cache::write(&folder.join("build-version"), b"2.11.0+cpu\n")?;
        cache::write(&folder.join(HEADER), b"// header")?;
        for name in NEEDED {
            cache::write(
                &folder.join("lib").join(format!("{name}.so")),
                name.as_bytes(),
            )?;
        }
        Ok(())
    }

    fn complaint(folder: &Path, depth: Depth) -> String {
        check(folder, depth).map_or_else(|error| format!("{error:#}"), |()| "fine".to_owned())
    }

    #[test]
    fn a_whole_copy_passes_and_each_damage_is_named() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let folder = folder.path();
        assert!(complaint(&folder.join("none"), Depth::Quick).contains("does not exist"));
        small(folder)?;
        assert_eq!(complaint(folder, Depth::Deep), "fine");
        assert_eq!(marker(folder), None);
        write_marker(folder, "a test", false)?;
        assert_eq!(complaint(folder, Depth::Deep), "fine");

        let library = folder.join("lib/libtorch_cpu.so");
        cache::write(&library, b"libtorch_cpU")?;
        assert_eq!(complaint(folder, Depth::Quick), "fine");
        assert!(complaint(folder, Depth::Deep).contains("wrong SHA-256"));
        cache::write(&library, b"short")?;
        assert!(complaint(folder, Depth::Quick).contains("has 5 bytes, 12 are expected"));
        std::fs::remove_file(&library)?;
        assert!(complaint(folder, Depth::Quick).contains("libtorch_cpu.so is missing"));

        small(folder)?;
        cache::write(&folder.join("include/extra.h"), b"x")?;
        assert!(complaint(folder, Depth::Deep).contains("include"));
        cache::write(&folder.join("build-version"), b"2.10.0+cpu")?;
        assert!(
            complaint(folder, Depth::Quick).contains("is libtorch 2.10.0+cpu, 2.11.0 is needed")
        );
        Ok(())
    }

    #[test]
    fn only_the_cpu_half_is_kept() {
        for name in [
            "libc10.so",
            "libtorch.so",
            "libtorch_cpu.so",
            "libgomp.so.1",
            "libgomp-a34b3233.so.1",
            "libcudart.so.13",
            "libcupti.so.13",
            "libtorch_cpu.dylib",
        ] {
            assert!(keeps(name), "{name}");
        }
        for name in [
            "libc10_cuda.so",
            "libtorch_cuda.so",
            "libtorch_python.so",
            "libtorch.a",
            "libnvperf_host.so",
            "README",
        ] {
            assert!(!keeps(name), "{name}");
        }
    }

    #[test]
    fn what_ldd_misses_is_listed() {
        let text = "\tlinux-vdso.so.1 (0x0)\n\tlibcudart.so.13 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x0)\n";
        assert_eq!(missing_libraries(text), ["libcudart.so.13"]);
    }
}
