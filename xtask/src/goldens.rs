//! `cargo xtask goldens`: writes the goldens again from the reference packages; `--check` compares instead.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, anyhow, bail};

use crate::cache::{self, Scratch};
use crate::safetensors;
use crate::shell;

/// Example: `cargo xtask goldens --check`
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Write into a temporary copy and compare with the committed files.
    #[arg(long)]
    check: bool,
    /// Only scripts whose name contains this text.
    filter: Option<String>,
}

/// Another processor may differ in the last bits of a sum.
const RTOL: f64 = 1e-5;
const ATOL: f64 = 1e-6;

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let scripts = scripts(arguments.filter.as_deref())?;
    let python = python()?;
    if !arguments.check {
        for script in &scripts {
            shell::run(shell::command(&python).arg(script))?;
        }
        say!(
            "{} scripts ran; `git status crates` shows what has changed",
            scripts.len()
        );
        return Ok(());
    }
    let copy = Scratch::new(&shell::root().join("target"), "goldens")?;
    for file in shell::walk(&shell::root().join("python"), &["__pycache__", ".venv"])? {
        let to = copy
            .path()
            .join(file.strip_prefix(shell::root()).unwrap_or(&file));
        cache::create_folder(to.parent().unwrap_or(copy.path()))?;
        std::fs::copy(&file, &to).map_err(|error| cache::explain("copy to", &to, &error))?;
    }
    for script in &scripts {
        let mut command = shell::command(&python);
        shell::run(
            command
                .arg(copy.path().join(script))
                .current_dir(copy.path())
                .stdout(Stdio::null()),
        )?;
    }
    let mut problems = Vec::new();
    let mut equal = 0;
    let mut close = 0;
    for new in shell::walk(&copy.path().join("crates"), &[])? {
        let name = new.strip_prefix(copy.path()).unwrap_or(&new).to_path_buf();
        match compare(&new, &shell::root().join(&name)) {
            Ok(true) => equal += 1,
            Ok(false) => close += 1,
            Err(why) => problems.push(format!("{}: {why:#}", name.display())),
        }
    }
    say!("{equal} files are equal byte for byte, {close} within {RTOL:e}");
    for problem in &problems {
        eprintln!("goldens: {problem}");
    }
    if !problems.is_empty() {
        bail!(
            "{} differ from what the scripts write, listed above; if that is meant, run `cargo xtask goldens` and commit",
            problems.len()
        );
    }
    Ok(())
}

/// Scripts relative to the root; `common.py` and `…_common.py` are none.
fn scripts(filter: Option<&str>) -> Result<Vec<PathBuf>> {
    let folder = shell::root().join("python").join("goldens");
    let mut scripts = Vec::new();
    for path in shell::walk(&folder, &["__pycache__"])? {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if path.extension().is_some_and(|ending| ending == "py")
            && !name.ends_with("common.py")
            && filter.is_none_or(|text| name.contains(text))
        {
            scripts.push(
                path.strip_prefix(shell::root())
                    .unwrap_or(&path)
                    .to_path_buf(),
            );
        }
    }
    if scripts.is_empty() {
        bail!(
            "no script in python/goldens fits {:?}; leave the filter out to run all",
            filter.unwrap_or_default()
        );
    }
    Ok(scripts)
}

/// `$DENSELY_PYTHON`, else an environment in the cache that is made from python/requirements.txt.
pub(crate) fn python() -> Result<PathBuf> {
    if let Some(python) = shell::variable("DENSELY_PYTHON") {
        let found = "import importlib.util as i, sys; sys.exit(not all(map(i.find_spec, ('torch', 'tabm'))))";
        if shell::probe(&python.to_string_lossy(), &["-c", found]).is_none() {
            bail!(
                "DENSELY_PYTHON names {}, which is no Python with the reference packages; install python/requirements.txt there, or unset the variable",
                python.display()
            );
        }
        return Ok(PathBuf::from(python));
    }
    let requirements = shell::root().join("python").join("requirements.txt");
    let text = std::fs::read(&requirements)
        .with_context(|| format!("cannot read {}", shell::shown(&requirements)))?;
    let hash = cache::sha256(&text);
    let parent = cache::root()?.join("python");
    let _lock = cache::lock(
        &parent.join(".lock"),
        "the environment of the reference packages",
    )?;
    let folder = parent.join(hash.get(..16).unwrap_or(&hash));
    let python = folder.join("bin").join("python");
    let complete = folder.join("complete");
    if complete.is_file() {
        return Ok(python);
    }
    eprintln!(
        "making a Python environment with the reference packages in {} (several GB; DENSELY_PYTHON names one that you have) ...",
        folder.display()
    );
    let base = ["python3.12", "python3.11", "python3.13", "python3", "python"]
        .into_iter()
        .find(|name| shell::probe(name, &["-c", "import sys, venv; assert (3, 11) <= sys.version_info < (3, 14)"]).is_some())
        .ok_or_else(|| anyhow!("there is no Python 3.11 to 3.13 with venv on PATH; install one, or name an interpreter in DENSELY_PYTHON"))?;
    shell::run(
        shell::command(base)
            .args(["-m", "venv", "--clear"])
            .arg(&folder),
    )?;
    shell::run(shell::command(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]).arg(&requirements))
        .context("the reference packages cannot be installed; check network and disk and run the command again")?;
    cache::write(&complete, b"")?;
    Ok(python)
}

/// `true` when equal byte for byte, `false` when close.
fn compare(new: &Path, old: &Path) -> Result<bool> {
    let new = std::fs::read(new).context("the script's file cannot be read")?;
    let old = std::fs::read(old).context("it is not committed")?;
    if new == old {
        return Ok(true);
    }
    let old = safetensors::parse(&old).context("the committed file is damaged")?;
    let new = safetensors::parse(&new).context("the script's file is damaged")?;
    match safetensors::difference(&new, &old, RTOL, ATOL) {
        None => Ok(false),
        Some(why) => bail!("{why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_found_and_filtered() -> Result<()> {
        let all = scripts(None)?;
        assert!(
            all.iter().any(|path| path.ends_with("core_nn.py"))
                && !all.iter().any(|path| path.ends_with("common.py"))
        );
        assert!(scripts(Some("nothing like this")).is_err());
        Ok(())
    }
}
