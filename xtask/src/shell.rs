//! Running other programs, and where things are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// Where cargo builds.
pub(crate) fn target() -> PathBuf {
    variable("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// `path` as seen from the root of the repository, for messages.
pub(crate) fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// A command in the root of the repository.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// Cargo, with libtorch on the library path: doc tests and programs in other target folders have no rpath to it.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = command(cargo);
    command.args(arguments);
    with_library_path(&mut command);
    if !colors() {
        command.env("CARGO_TERM_COLOR", "never");
    }
    command
}

/// Puts `.libtorch/lib` in front of the dynamic loader's path.
pub(crate) fn with_library_path(command: &mut Command) {
    let name = if cfg!(target_os = "macos") {
        "DYLD_LIBRARY_PATH"
    } else {
        "LD_LIBRARY_PATH"
    };
    let mut paths = vec![root().join(".libtorch").join("lib")];
    if let Some(old) = std::env::var_os(name) {
        paths.extend(std::env::split_paths(&old).filter(|path| !path.as_os_str().is_empty()));
    }
    if let Ok(joined) = std::env::join_paths(paths) {
        command.env(name, joined);
    }
}

/// Whether programs may colour what they print.
pub(crate) fn colors() -> bool {
    std::env::var_os("CI").is_none_or(|value| value.is_empty() || value == "false")
        && std::env::var_os("NO_COLOR").is_none()
}

/// Runs to the end with output on the terminal; a failure is an error that names the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = line_of(command);
    let status = command
        .status()
        .with_context(|| format!("cannot start `{line}`; is it installed and on PATH?"))?;
    if !status.success() {
        bail!("`{line}` failed ({status}); see its messages above");
    }
    Ok(())
}

/// Runs to the end and gives what it printed on stdout; stderr goes to the terminal.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = line_of(command);
    let out = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{line}`; is it installed and on PATH?"))?;
    if !out.status.success() {
        bail!("`{line}` failed ({}); see its messages above", out.status);
    }
    String::from_utf8(out.stdout).map_err(|_| anyhow!("`{line}` printed bytes that are not text"))
}

/// What a quiet command printed on stdout, or `None` when it cannot be started or fails.
pub(crate) fn probe(program: &str, arguments: &[&str]) -> Option<String> {
    let out = command(program)
        .args(arguments)
        .stderr(Stdio::null())
        .stdin(Stdio::null())
        .output()
        .ok()?;
    out.status
        .success()
        .then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// The command as a person would type it, shortened.
pub(crate) fn line_of(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program
        .file_name()
        .unwrap_or(program.as_os_str())
        .to_string_lossy()
        .into_owned();
    let arguments = command
        .get_args()
        .map(|argument| argument.to_string_lossy().into_owned());
    let line: Vec<String> = std::iter::once(name).chain(arguments).collect();
    shorten(&line.join(" "), 120)
}

/// The first `limit` characters, with an ellipsis when there is more.
pub(crate) fn shorten(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    text.chars().take(limit).chain(['…']).collect()
}

/// The commit of the checkout, with `+` when files differ from it; "unknown" outside git.
pub(crate) fn commit() -> String {
    let Some(commit) = probe("git", &["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = probe(
        "git",
        &[
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            "crates",
            "Cargo.lock",
        ],
    );
    let mark = if changed.is_some_and(|text| !text.is_empty()) {
        "+"
    } else {
        ""
    };
    format!("{commit}{mark}")
}

/// Free bytes on the disk of `path` (which may not exist yet), by `df`; `None` where that is not available.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let out = Command::new("df")
        .arg("-Pk")
        .arg(existing)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    parse_df(&String::from_utf8_lossy(&out.stdout))
}

/// The available column of `df -Pk`, in bytes.
fn parse_df(text: &str) -> Option<u64> {
    let line = text.lines().nth(1)?;
    // The device name may hold spaces; the five columns after it do not, except the mount point at the end.
    let percent = line
        .split_whitespace()
        .position(|word| word.ends_with('%'))?;
    let kilobytes: u64 = line
        .split_whitespace()
        .nth(percent.checked_sub(1)?)?
        .parse()
        .ok()?;
    kilobytes.checked_mul(1024)
}

/// The user's home folder.
pub(crate) fn home() -> Option<PathBuf> {
    std::env::var_os("HOME")
        .filter(|home| !home.is_empty())
        .map(PathBuf::from)
}

/// A non-empty variable of the environment.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// All files below `folder` that git knows or would add, sorted; every file where git is not available.
pub(crate) fn repository_files() -> Result<Vec<PathBuf>> {
    let arguments = [
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ];
    let mut files: Vec<PathBuf> = match probe("git", &arguments) {
        Some(text) => text
            .split('\0')
            .filter(|name| !name.is_empty())
            .map(PathBuf::from)
            .collect(),
        None => walk(
            root(),
            &["target", ".git", ".libtorch", "runs", "book", "__pycache__"],
        )?
        .into_iter()
        .filter_map(|path| path.strip_prefix(root()).ok().map(Path::to_path_buf))
        .collect(),
    };
    files.retain(|path| root().join(path).is_file());
    files.sort();
    files.dedup();
    Ok(files)
}

/// All files below `folder`, without entering folders named in `skip`; symbolic links are not followed.
pub(crate) fn walk(folder: &Path, skip: &[&str]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder)
            .with_context(|| format!("cannot list {}", folder.display()))?
        {
            let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
            let kind = entry
                .file_type()
                .with_context(|| format!("cannot read {}", entry.path().display()))?;
            if kind.is_dir() {
                if !skip.iter().any(|name| entry.file_name() == *name) {
                    open.push(entry.path());
                }
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn df_is_read_even_when_the_device_name_holds_a_space() {
        let text = "Filesystem 1024-blocks Used Available Capacity Mounted on\n//nas/my share 1000 400 600 40% /mnt/a b\n";
        assert_eq!(parse_df(text), Some(600 * 1024));
        assert_eq!(parse_df("Filesystem\n"), None);
        assert_eq!(parse_df(""), None);
    }

    #[test]
    fn long_commands_are_shortened_in_messages() {
        let mut long = Command::new("/usr/bin/tool");
        long.arg("x".repeat(500));
        let line = line_of(&long);
        assert!(line.starts_with("tool xxx") && line.ends_with('…') && line.chars().count() == 121);
    }
}
