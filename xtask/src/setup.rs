//! `cargo xtask setup`: finds or fetches libtorch and links `.libtorch` to it.
//!
//! In this order: the folder in `DENSELY_LIBTORCH` (or `LIBTORCH`, when this program runs outside cargo, which overwrites it); the
//! user's cached copy; an installed Python torch; the official CPU archive; the Python wheel. Each source that is not taken is named.

use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::cache::{self, Scratch};
use crate::libtorch::{self, Depth, VERSION};
use crate::shell;
use crate::sources;

/// Example: `cargo xtask setup`
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Arguments {
    /// Take the CUDA libraries too (several GB).
    #[arg(long)]
    cuda: bool,
    /// Use only what is on this machine.
    #[arg(long)]
    offline: bool,
}

/// Runs setup unless `.libtorch` is already usable.
pub(crate) fn ensure() -> Result<()> {
    let wanted = wish().is_some_and(|(_, folder)| !same_folder(&folder, &libtorch::link()));
    if !wanted && libtorch::check(&libtorch::link(), Depth::Quick).is_ok() {
        return Ok(());
    }
    run(&Arguments::default())
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let cuda = arguments.cuda;
    if let Some((variable, folder)) = wish() {
        // A wish that cannot be met is an error, not a reason to take something else.
        let mend =
            || format!("{variable} does not name a usable libtorch {VERSION}; correct or unset it");
        let folder = std::path::absolute(&folder).with_context(mend)?;
        libtorch::check(&folder, Depth::Deep)
            .and_then(|()| libtorch::loads(&folder))
            .with_context(mend)?;
        return make_link(&folder, &format!("{variable} ({})", folder.display()));
    }
    let target = libtorch::cached(cuda)?;
    let parent = target.parent().unwrap_or(&target).to_path_buf();
    let _lock = cache::lock(&parent.join(".lock"), "libtorch")?;

    // A folder or link that somebody made on purpose, outside the cache.
    let current = libtorch::link();
    let outside = !same_folder(&current, &target) && !is_below(&current, &parent);
    if outside
        && current.exists()
        && libtorch::check(&current, Depth::Deep)
            .and_then(|()| libtorch::loads(&current))
            .is_ok()
        && (!cuda || has_cuda(&current))
    {
        eprintln!(
            "libtorch {VERSION} is set up: .libtorch -> {}",
            resolved(&current).display()
        );
        return Ok(());
    }
    match usable(&target) {
        Ok(source) => {
            return make_link(
                &libtorch::folder_in(&target, cuda),
                &format!("the cached copy in {} (from {source})", target.display()),
            );
        }
        Err(why) if target.exists() => {
            eprintln!("cached copy: not taken ({why:#}); it is made again");
        }
        Err(_) => eprintln!("cached copy: there is none in {}", target.display()),
    }
    let mut last = Vec::new();
    for (name, source) in possible(arguments) {
        match source(&parent, cuda) {
            Ok(from) => {
                install(&from, &target)?;
                let folder = libtorch::folder_in(&target, cuda);
                return make_link(&folder, &format!("{name}; kept in {}", target.display()));
            }
            Err(why) => {
                eprintln!("{name}: not taken ({why:#})");
                last.push(why);
            }
        }
    }
    if arguments.offline {
        bail!(
            "libtorch {VERSION} is not on this machine; run `cargo xtask setup` without --offline, or put it into a folder and name that in DENSELY_LIBTORCH"
        );
    }
    // The last source is the one that works almost everywhere: its reason is the one to act on.
    let why = last.pop().unwrap_or_else(|| anyhow!("no source was tried"));
    Err(why.context(format!("libtorch {VERSION} could not be set up")))
}

type Source = fn(&Path, bool) -> Result<Scratch>;

fn possible(arguments: &Arguments) -> Vec<(&'static str, Source)> {
    let mut sources: Vec<(&'static str, Source)> =
        vec![("installed Python torch", sources::from_python)];
    if !arguments.offline {
        if !arguments.cuda {
            sources.push(("official CPU archive", sources::from_archive));
        }
        sources.push((
            "Python wheel",
            if arguments.cuda {
                sources::from_wheel_cuda
            } else {
                sources::from_wheel
            },
        ));
    }
    sources
}

/// What the user asked for. Cargo sets `LIBTORCH` to `.libtorch` for everything that it runs: that is no wish.
fn wish() -> Option<(&'static str, PathBuf)> {
    if let Some(folder) = shell::variable("DENSELY_LIBTORCH") {
        return Some(("DENSELY_LIBTORCH", PathBuf::from(folder)));
    }
    let folder = PathBuf::from(shell::variable("LIBTORCH")?);
    let own = folder.file_name().is_some_and(|name| name == ".libtorch")
        && folder.parent().is_none_or(|parent| {
            parent.as_os_str().is_empty() || same_folder(parent, shell::root())
        });
    (!own).then_some(("LIBTORCH", folder))
}

/// Checks a cached copy; gives where it came from.
fn usable(target: &Path) -> Result<String> {
    let cuda = target
        .file_name()
        .is_some_and(|name| name.to_string_lossy().ends_with("cuda"));
    let folder = libtorch::folder_in(target, cuda);
    let Some(marker) = libtorch::marker(&folder) else {
        bail!("it is unfinished or was not made by this command");
    };
    libtorch::check(&folder, Depth::Deep)?;
    libtorch::loads(&folder)?;
    Ok(marker.source)
}

/// Moves a finished copy to its place; one that is there (damaged) makes room.
fn install(from: &Scratch, target: &Path) -> Result<()> {
    let old = target.with_extension(format!("old-{}", std::process::id()));
    if target.exists() {
        std::fs::rename(target, &old)
            .map_err(|error| cache::explain("move away", target, &error))?;
    }
    std::fs::rename(from.path(), target)
        .map_err(|error| cache::explain("move the copy to", target, &error))?;
    // Programs that run from the old copy keep it open; only its names go.
    let _ = std::fs::remove_dir_all(&old);
    Ok(())
}

/// Makes `.libtorch` a link to `folder`; replaces a link, never a folder of the user's.
fn make_link(folder: &Path, from: &str) -> Result<()> {
    let link = libtorch::link();
    if !same_folder(&link, folder) {
        let kind = std::fs::symlink_metadata(&link);
        if kind.is_ok_and(|meta| !meta.is_symlink()) {
            bail!(
                "{} is a folder and not a link, and it is not a usable libtorch; move it away and run the command again",
                link.display()
            );
        }
        let temporary = shell::root().join(format!(".libtorch-{}", std::process::id()));
        let made = symlink(folder, &temporary).and_then(|()| std::fs::rename(&temporary, &link));
        made.map_err(|error: std::io::Error| {
            let _ = std::fs::remove_file(&temporary);
            explain_link(&link, &error)
        })?;
    }
    eprintln!("libtorch {VERSION}: {from}");
    Ok(())
}

#[cfg(unix)]
fn symlink(to: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(to, link)
}

#[cfg(not(unix))]
fn symlink(to: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_dir(to, link)
}

fn explain_link(link: &Path, error: &std::io::Error) -> Error {
    anyhow!(
        "cannot make the link {} ({error}); make the repository's folder writable and run the command again",
        link.display()
    )
}

fn resolved(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

fn same_folder(a: &Path, b: &Path) -> bool {
    match (std::fs::canonicalize(a), std::fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

fn is_below(path: &Path, folder: &Path) -> bool {
    resolved(path).starts_with(resolved(folder))
}

fn has_cuda(folder: &Path) -> bool {
    folder.join("lib").join("libtorch_cuda.so").is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_copy_replaces_a_damaged_one() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let target = folder.path().join("2.11.0-cpu");
        cache::write(&target.join("lib").join("libc10.so"), b"half")?;
        assert!(usable(&target).is_err_and(|error| error.to_string().contains("unfinished")));
        let scratch = Scratch::new(folder.path(), "libtorch")?;
        libtorch::tests::small(scratch.path())?;
        libtorch::write_marker(scratch.path(), "a test", false)?;
        install(&scratch, &target)?;
        libtorch::check(&target, Depth::Deep)?;
        drop(scratch);
        assert_eq!(std::fs::read_dir(folder.path())?.count(), 1);
        Ok(())
    }
}
