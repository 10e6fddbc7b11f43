//! `cargo xtask doctor`: one line per thing that must be right, and how to mend it.

use anyhow::{Result, bail};

use crate::cache;
use crate::dataset::{self, State};
use crate::libtorch::{self, Depth};
use crate::packages;
use crate::shell;

/// What was found: fine, worth knowing, or in the way.
enum Finding {
    Ok(String),
    Note(String),
    Problem(String),
}

/// A check: its name and what does it.
type Check = (&'static str, fn() -> Finding);

pub(crate) fn run() -> Result<()> {
    let checks: [Check; 9] = [
        ("libtorch", check_libtorch),
        ("loading libtorch", check_loading),
        ("Rust", check_rust),
        ("C++ compiler", check_compiler),
        ("Python and pip", check_python),
        ("Python for references", check_references),
        ("disk", check_disk),
        ("data sets", check_data),
        ("data mirror", check_mirror),
    ];
    let mut problems = 0;
    for (name, check) in checks {
        let (mark, text) = match check() {
            Finding::Ok(text) => ("ok", text),
            Finding::Note(text) => ("note", text),
            Finding::Problem(text) => {
                problems += 1;
                ("PROBLEM", text)
            }
        };
        say!("{mark:<8} {name:<22} {text}");
    }
    match problems {
        0 => Ok(()),
        1 => bail!("there is a problem; its line says how to mend it"),
        count => bail!("there are {count} problems; their lines say how to mend them"),
    }
}

fn check_libtorch() -> Finding {
    let link = libtorch::link();
    if std::fs::symlink_metadata(&link).is_err() {
        return Finding::Problem("not set up; run `cargo xtask setup`".to_owned());
    }
    let folder = std::fs::canonicalize(&link).unwrap_or_else(|_| link.clone());
    match libtorch::check(&folder, Depth::Deep) {
        Err(why) => Finding::Problem(format!(
            "{why:#}; run `cargo xtask setup`, which mends its own copies"
        )),
        Ok(()) => match libtorch::marker(&folder) {
            Some(marker) => Finding::Ok(format!(
                "{} from {} in {} ({} libraries and {} headers as fetched)",
                marker.version,
                marker.source,
                folder.display(),
                marker.libraries.len(),
                marker.headers
            )),
            None => Finding::Ok(format!(
                "{} in {} (not fetched by setup: hashes unknown)",
                libtorch::VERSION,
                folder.display()
            )),
        },
    }
}

fn check_loading() -> Finding {
    match libtorch::loads(&libtorch::link()) {
        Ok(()) if !libtorch::link().exists() => Finding::Note("not set up".to_owned()),
        Ok(()) if shell::probe("ldd", &["--version"]).is_none() => {
            Finding::Note("no `ldd` to ask".to_owned())
        }
        Ok(()) => Finding::Ok("every library that it needs is found".to_owned()),
        Err(why) => Finding::Problem(format!(
            "{why:#}; run `cargo xtask setup`, or install that library"
        )),
    }
}

fn check_rust() -> Finding {
    let needed = env!("CARGO_PKG_RUST_VERSION");
    match shell::probe("rustc", &["--version"]) {
        None => {
            Finding::Problem("no rustc on PATH; install Rust from https://rustup.rs".to_owned())
        }
        Some(text) => match version_of(&text) {
            Some(version) if Some(version) >= version_of(needed) => Finding::Ok(text),
            _ => Finding::Problem(format!("{text}, {needed} is needed; run `rustup update`")),
        },
    }
}

fn check_compiler() -> Finding {
    let chosen = std::env::var("CXX").ok().filter(|name| !name.is_empty());
    let names: Vec<&str> = chosen
        .as_deref()
        .map_or_else(|| vec!["c++", "g++", "clang++"], |name| vec![name]);
    match names
        .iter()
        .find_map(|name| shell::probe(name, &["--version"]))
    {
        Some(text) => Finding::Ok(text.lines().next().unwrap_or_default().to_owned()),
        None => Finding::Problem(format!(
            "none of {} works; install g++ or clang++, or set CXX",
            names.join(", ")
        )),
    }
}

fn check_python() -> Finding {
    match packages::python_with_pip() {
        Ok(python) => {
            let version = shell::probe(&python, &["--version"]).unwrap_or_default();
            let pip = shell::probe(&python, &["-m", "pip", "--version"]).unwrap_or_default();
            let pip: String = pip.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
            Finding::Ok(format!("{version}, {pip} (only to fetch packages)"))
        }
        // With libtorch there and the data mirrored, nothing needs it.
        Err(why) => Finding::Problem(format!("{why:#}")),
    }
}

fn check_references() -> Finding {
    match shell::variable("DENSELY_PYTHON") {
        None => Finding::Note("DENSELY_PYTHON is not set; only `goldens` and `bench --peers` need it (python/README.md)".to_owned()),
        Some(python) => {
            let python = python.to_string_lossy().into_owned();
            match shell::probe(&python, &["-c", "import torch, tabm; print(torch.__version__)"]) {
                Some(version) => Finding::Ok(format!("{python} with torch {version}")),
                None => Finding::Problem(format!("{python} cannot import torch and tabm; run `{python} -m pip install -r python/requirements.txt`")),
            }
        }
    }
}

fn check_disk() -> Finding {
    let places = [
        ("caches", cache::root()),
        ("repository", Ok(shell::root().to_path_buf())),
    ];
    let mut texts = Vec::new();
    let mut low = false;
    for (name, path) in places {
        match path {
            Err(why) => return Finding::Problem(format!("{why:#}")),
            Ok(path) => match shell::free_bytes(&path) {
                // Building takes about 3 GB, libtorch half a gigabyte.
                Some(free) => {
                    low |= free < 4_000_000_000;
                    texts.push(format!(
                        "{} free for the {name} ({})",
                        cache::human(free),
                        path.display()
                    ));
                }
                None => texts.push(format!(
                    "free space for the {name} is unknown ({})",
                    path.display()
                )),
            },
        }
    }
    let text = texts.join(", ");
    if low {
        Finding::Problem(format!(
            "{text}; a first build needs 4 GB: free some, or set DENSELY_CACHE and CARGO_TARGET_DIR"
        ))
    } else {
        Finding::Ok(text)
    }
}

fn check_data() -> Finding {
    let sets = match dataset::all() {
        Ok(sets) => sets,
        Err(why) => return Finding::Problem(format!("{why:#}; correct the file")),
    };
    let mut here = 0;
    for set in &sets {
        match set.states(false) {
            Err(why) => return Finding::Problem(format!("{why:#}")),
            Ok(states) => {
                if let Some((file, State::Bad(why))) = states
                    .iter()
                    .find(|(_, state)| matches!(state, State::Bad(_)))
                {
                    return Finding::Problem(format!(
                        "{}/{}: {why}; run `cargo xtask data get {}`",
                        set.name, file.path, set.name
                    ));
                }
                here += usize::from(states.iter().all(|(_, state)| *state == State::Good));
            }
        }
    }
    let folder = cache::data()
        .map(|folder| folder.display().to_string())
        .unwrap_or_default();
    Finding::Ok(format!("{here} of {} in {folder}", sets.len()))
}

fn check_mirror() -> Finding {
    match shell::variable("DENSELY_DATA_MIRROR") {
        None => Finding::Ok("none (DENSELY_DATA_MIRROR is not set)".to_owned()),
        Some(folder) if std::path::Path::new(&folder).is_dir() => {
            Finding::Ok(folder.to_string_lossy().into_owned())
        }
        Some(folder) => Finding::Problem(format!(
            "DENSELY_DATA_MIRROR names {}, which is not a folder; correct or unset it",
            folder.to_string_lossy()
        )),
    }
}

/// The first `major.minor` in a text.
fn version_of(text: &str) -> Option<(u32, u32)> {
    text.split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .find_map(|word| {
            let mut parts = word.split('.');
            Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(
            version_of("rustc 1.95.0 (f2d3ce0bd 2026-03-21)"),
            Some((1, 95))
        );
        assert!(version_of("rustc 1.100.0") > version_of("1.95"));
        assert_eq!(version_of("rustc"), None);
    }
}
