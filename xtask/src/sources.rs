//! Where a copy of libtorch can come from. Each source leaves a checked copy in a scratch folder beside its final place.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::archive;
use crate::cache::{self, Scratch};
use crate::download;
use crate::libtorch::{self, Depth, VERSION, folder_in};
use crate::packages::{self, Kind, Pinned};
use crate::shell;

/// Room that fetching and unpacking need at once.
const NEEDED_BYTES: u64 = 1_200_000_000;
const NEEDED_BYTES_CUDA: u64 = 9_000_000_000;

/// No unpacked libtorch is bigger.
const UNPACKED_LIMIT: u64 = 12_000_000_000;

/// Wheels that hold the CPU half, and CUDA's headers for what is loaded when a GPU is there, with the SHA-256 of the Linux x86-64
/// builds.
const WHEELS: [(&str, &str, &str); 4] = [
    (
        "torch",
        VERSION,
        "0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756",
    ),
    (
        "nvidia-cuda-runtime",
        "13.0.96",
        "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    ),
    (
        "nvidia-cuda-cupti",
        "13.0.85",
        "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    ),
    (
        "nvidia-cuda-crt",
        "13.0.88",
        "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
    ),
];

/// The builds to ask pip for, whatever Python runs it: one torch wheel, the same for everybody.
const WHEEL_OPTIONS: [&str; 12] = [
    "--platform",
    "manylinux_2_28_x86_64",
    "--platform",
    "manylinux_2_27_x86_64",
    "--platform",
    "manylinux_2_25_x86_64",
    "--platform",
    "manylinux_2_17_x86_64",
    "--platform",
    "manylinux2014_x86_64",
    "--python-version",
    "3.12",
];

/// Prints where torch is installed, without importing it (that takes seconds and may fail).
const FIND_TORCH: &str = "import importlib.metadata as m, importlib.util as u
print(m.version('torch'))
print(list(u.find_spec('torch').submodule_search_locations)[0])";

/// An installed torch of the right version: its files are copied, because environments come and go.
pub(crate) fn from_python(parent: &Path, cuda: bool) -> Result<Scratch> {
    let mut why = anyhow!("there is no Python on PATH");
    for python in ["python3", "python"] {
        if shell::probe(python, &["--version"]).is_none() {
            continue;
        }
        let Some(text) = shell::probe(python, &["-c", FIND_TORCH]) else {
            why = anyhow!("`{python}` has no torch");
            continue;
        };
        let mut lines = text.lines();
        let (Some(version), Some(folder)) = (lines.next(), lines.next()) else {
            continue;
        };
        if libtorch::base_version(version) != VERSION {
            why = anyhow!("`{python}` has torch {version}, {VERSION} is needed");
            continue;
        }
        match copy_python(Path::new(folder), version, parent, cuda) {
            Ok(scratch) => return Ok(scratch),
            Err(error) => why = error.context(format!("the torch {version} of `{python}`")),
        }
    }
    Err(why)
}

fn copy_python(torch: &Path, version: &str, parent: &Path, cuda: bool) -> Result<Scratch> {
    for part in ["lib", "include"] {
        if !torch.join(part).is_dir() {
            bail!("it has no folder {part}");
        }
    }
    let site = torch.parent().unwrap_or(torch);
    room(
        parent,
        if cuda {
            NEEDED_BYTES_CUDA
        } else {
            NEEDED_BYTES / 2
        },
    )?;
    let scratch = Scratch::new(parent, "libtorch")?;
    let folder = folder_in(scratch.path(), cuda);
    for file in shell::walk(&torch.join("include"), &[])? {
        copy(&file, torch, &folder)?;
    }
    let mut libraries = shell::walk(&torch.join("lib"), &[])?;
    if cuda {
        if !torch.join("lib").join("libtorch_cuda.so").is_file() {
            bail!("it has no libtorch_cuda");
        }
        for file in shell::walk(&site.join("nvidia"), &[])?
            .into_iter()
            .filter(|file| file.to_string_lossy().contains(".so"))
        {
            copy(&file, site, scratch.path())?;
        }
    } else {
        for extra in ["nvidia", "torch.libs"] {
            if site.join(extra).is_dir() {
                libraries.extend(shell::walk(&site.join(extra), &[])?);
            }
        }
        libraries.retain(|file| {
            file.file_name()
                .is_some_and(|name| libtorch::keeps(&name.to_string_lossy()))
        });
    }
    for file in libraries {
        let base = file.parent().unwrap_or(&file).to_path_buf();
        copy(&file, &base, &folder.join("lib"))?;
    }
    seal(
        &folder,
        &format!("Python torch {version} in {}", torch.display()),
        cuda,
    )?;
    Ok(scratch)
}

fn copy(file: &Path, base: &Path, into: &Path) -> Result<()> {
    let to = into.join(file.strip_prefix(base).unwrap_or(file));
    if let Some(folder) = to.parent() {
        cache::create_folder(folder)?;
    }
    std::fs::copy(file, &to)
        .map(drop)
        .map_err(|error| cache::explain("copy a file to", &to, &error))
}

/// The archive of the PyTorch project, where its host can be reached.
pub(crate) fn from_archive(parent: &Path, _cuda: bool) -> Result<Scratch> {
    let file = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => format!("libtorch-shared-with-deps-{VERSION}%2Bcpu.zip"),
        ("macos", "aarch64") => format!("libtorch-macos-arm64-{VERSION}.zip"),
        (os, arch) => bail!("there is none for {os} on {arch}"),
    };
    room(parent, NEEDED_BYTES)?;
    let url = format!("https://download.pytorch.org/libtorch/cpu/{file}");
    // Kept beside the copies until it is whole, so that a broken download goes on.
    let zip = parent.join(format!("libtorch-{VERSION}-cpu.zip"));
    if !zip.is_file() {
        eprintln!("fetching {url} ...");
        download::fetch(&url, &zip, download::Expected::default(), false)?;
    }
    let scratch = Scratch::new(parent, "libtorch")?;
    let unpacked = archive::unpack_zip(&zip, scratch.path(), UNPACKED_LIMIT, |name| {
        place(name.strip_prefix("libtorch/")?)
    });
    // Whole or damaged, it has served.
    let _ = std::fs::remove_file(&zip);
    unpacked?;
    seal(scratch.path(), "official CPU archive", false)?;
    Ok(scratch)
}

/// The wheels that hold the CPU half.
pub(crate) fn from_wheel(parent: &Path, _cuda: bool) -> Result<Scratch> {
    only_linux()?;
    packages::python_with_pip()?;
    room(parent, NEEDED_BYTES)?;
    let downloads = Scratch::new(parent, "wheels")?;
    let scratch = Scratch::new(parent, "libtorch")?;
    for (package, version, sha256) in WHEELS {
        eprintln!("fetching {package} {version} with pip ...");
        let pinned = Pinned {
            package,
            version,
            kind: Kind::Wheel,
            sha256: Some(sha256),
            options: &WHEEL_OPTIONS,
        };
        let folder = downloads.path().join(package);
        cache::create_folder(&folder)?;
        let wheel = packages::pip_download(pinned, &folder)?;
        archive::unpack_zip(&wheel, scratch.path(), UNPACKED_LIMIT, |name| {
            name.strip_prefix("torch/")
                .map_or_else(|| place_nvidia(name), place)
        })?;
        // A wheel is half a gigabyte: gone as soon as it is unpacked.
        std::fs::remove_dir_all(&folder)
            .map_err(|error| cache::explain("remove", &folder, &error))?;
    }
    seal(
        scratch.path(),
        &format!("Python wheel torch {VERSION}"),
        false,
    )?;
    Ok(scratch)
}

/// The whole wheel with all that it depends on.
pub(crate) fn from_wheel_cuda(parent: &Path, _cuda: bool) -> Result<Scratch> {
    only_linux()?;
    let python = packages::python_with_pip()?;
    room(parent, NEEDED_BYTES_CUDA)?;
    let downloads = Scratch::new(parent, "wheels")?;
    let scratch = Scratch::new(parent, "libtorch")?;
    eprintln!("fetching torch {VERSION} and its CUDA packages with pip (several GB) ...");
    let what = format!("torch=={VERSION}");
    let out = Command::new(&python)
        .args([
            "-m",
            "pip",
            "download",
            "--no-cache-dir",
            "--disable-pip-version-check",
            "--no-input",
            "--progress-bar",
            "off",
            "--quiet",
            "--only-binary=:all:",
        ])
        .args(WHEEL_OPTIONS)
        .arg(&what)
        .arg("--dest")
        .arg(downloads.path())
        .env("TMPDIR", downloads.path())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{python} -m pip`"))?;
    if !out.status.success() {
        return Err(packages::explain_pip(
            &what,
            &String::from_utf8_lossy(&out.stderr),
        ));
    }
    for wheel in shell::walk(downloads.path(), &[])? {
        if wheel.extension().is_none_or(|ending| ending != "whl") {
            continue;
        }
        archive::unpack_zip(&wheel, scratch.path(), UNPACKED_LIMIT, |name| {
            let part = name.starts_with("torch/include/")
                || name.starts_with("torch/lib/")
                || (name.starts_with("nvidia/")
                    && (name.contains(".so") || name.contains("/include/")));
            part.then(|| name.to_owned())
        })?;
        std::fs::remove_file(&wheel).map_err(|error| cache::explain("remove", &wheel, &error))?;
    }
    let folder = scratch.path().join("torch");
    seal(
        &folder,
        &format!("Python wheel torch {VERSION} with CUDA"),
        true,
    )?;
    Ok(scratch)
}

/// Where a file of torch goes: `include/…` as it is, the kept libraries into `lib/`, all else nowhere.
fn place(name: &str) -> Option<String> {
    if name.starts_with("include/") {
        return Some(name.to_owned());
    }
    let file = name.strip_prefix("lib/")?;
    (!file.contains('/') && libtorch::keeps(file)).then(|| format!("lib/{file}"))
}

/// Where a file of an nvidia package goes: headers beside torch's, in a folder of their own.
fn place_nvidia(name: &str) -> Option<String> {
    let (_, name) = name.strip_prefix("nvidia/")?.split_once('/')?;
    match name.strip_prefix("include/") {
        Some(header) => Some(format!("include/cuda/{header}")),
        None => place(name),
    }
}

fn only_linux() -> Result<()> {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => Ok(()),
        (os, arch) => bail!(
            "the pinned wheels are for Linux on x86-64, this is {os} on {arch}: put libtorch {VERSION} into a folder and name it in DENSELY_LIBTORCH"
        ),
    }
}

/// Refuses early when the disk cannot hold the work.
fn room(parent: &Path, needed: u64) -> Result<()> {
    match shell::free_bytes(parent) {
        Some(free) if free < needed => bail!(
            "{} has {} free and {} are needed; free space there, or set DENSELY_CACHE to a folder on another disk",
            parent.display(),
            cache::human(free),
            cache::human(needed)
        ),
        _ => Ok(()),
    }
}

/// Writes version and marker and checks the result as a user of it would.
fn seal(folder: &Path, source: &str, cuda: bool) -> Result<()> {
    cache::write(
        &folder.join("build-version"),
        format!("{VERSION}\n").as_bytes(),
    )?;
    libtorch::check(folder, Depth::Quick).context("the copy is not whole")?;
    libtorch::loads(folder)?;
    libtorch::write_marker(folder, source, cuda)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_torch_go_to_their_places() {
        assert_eq!(
            place("include/ATen/ATen.h").as_deref(),
            Some("include/ATen/ATen.h")
        );
        assert_eq!(
            place("lib/libtorch_cpu.so").as_deref(),
            Some("lib/libtorch_cpu.so")
        );
        assert_eq!(place("lib/libtorch_cuda.so"), None);
        assert_eq!(place("lib/sub/libc10.so"), None);
        assert_eq!(place("nn/__init__.py"), None);
        assert_eq!(
            place_nvidia("nvidia/cu13/include/crt/host_config.h").as_deref(),
            Some("include/cuda/crt/host_config.h")
        );
        assert_eq!(
            place_nvidia("nvidia/cu13/lib/libcudart.so.13").as_deref(),
            Some("lib/libcudart.so.13")
        );
        for name in [
            "nvidia/cu13/lib/libcudart_static.a",
            "nvidia_cuda_crt-13.0.88.dist-info/RECORD",
        ] {
            assert_eq!(place_nvidia(name), None);
        }
    }

    #[test]
    fn too_little_room_says_how_much_is_missing() -> Result<()> {
        let folder = tempfile::tempdir()?;
        if shell::free_bytes(folder.path()).is_some() {
            let text = room(folder.path(), u64::MAX)
                .map_or_else(|error| error.to_string(), |()| String::new());
            assert!(
                text.contains("are needed") && text.contains("DENSELY_CACHE"),
                "{text}"
            );
        }
        room(folder.path(), 1)
    }
}
