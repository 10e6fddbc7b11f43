//! The crate graph: arrows point down only, and a domain crate without features stays light.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::shell;

/// Crates that every domain may use.
const BASE: [&str; 4] = [
    "densely-core",
    "densely-torch-ext",
    "densely-data",
    "densely-train",
];

/// What a domain crate without features must not bring to its user.
const HEAVY: [&str; 8] = [
    "parquet",
    "clap",
    "image",
    "plotters",
    "indicatif",
    "ureq",
    "tokio",
    "axum",
];

/// The crates of the workspace that `name` may depend on; `None` where all are allowed.
fn allowed(name: &str) -> Option<Vec<&'static str>> {
    Some(match name {
        "densely" | "densely-benches" => return None,
        "xtask" | "densely-torch-ext" => vec![],
        "densely-core" => vec!["densely-torch-ext"],
        "densely-data" | "densely-train" | "densely-testkit" => {
            vec!["densely-core", "densely-torch-ext"]
        }
        "densely-interp" => BASE.into_iter().chain(["densely-lm"]).collect(),
        _ => BASE.to_vec(),
    })
}

/// Crates whose users pay for every dependency.
fn is_domain(name: &str) -> bool {
    !matches!(
        name,
        "densely" | "densely-benches" | "xtask" | "densely-testkit"
    )
}

/// Problems of the graph, one sentence each.
pub(crate) fn problems() -> Result<Vec<String>> {
    let metadata = shell::output(&mut shell::cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
    ]))?;
    let metadata: Value =
        serde_json::from_str(&metadata).context("`cargo metadata` did not print JSON")?;
    let mut problems = wrong_arrows(&metadata);
    for name in members(&metadata).filter(|name| is_domain(name)) {
        let arguments = [
            "tree",
            "--offline",
            "--package",
            name,
            "--no-default-features",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ];
        let tree = shell::output(&mut shell::cargo(&arguments))?;
        for heavy in heavy_crates(&tree) {
            problems.push(format!(
                "{name} without features depends on {heavy}; put it behind a feature"
            ));
        }
    }
    Ok(problems)
}

fn members(metadata: &Value) -> impl Iterator<Item = &str> {
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|package| package["name"].as_str())
}

fn wrong_arrows(metadata: &Value) -> Vec<String> {
    let all: Vec<&str> = members(metadata).collect();
    let mut problems = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(allowed) = allowed(name) else {
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            let for_tests = dependency["kind"] == "dev";
            let fits =
                allowed.contains(&to) || (for_tests && to == "densely-testkit" && name != "xtask");
            if all.contains(&to) && !fits {
                problems.push(format!("{name} depends on {to}, which docs/src/architecture.md does not allow; move what both need down"));
            }
        }
        if name == "xtask" {
            let torch = package["dependencies"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|d| d["name"] == "tch" || d["name"] == "torch-sys");
            if torch {
                problems.push(
                    "xtask depends on tch, but it must build where libtorch is missing".to_owned(),
                );
            }
        }
    }
    problems
}

/// Heavy crates in the output of `cargo tree`.
fn heavy_crates(tree: &str) -> Vec<&str> {
    let mut found: Vec<&str> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| HEAVY.contains(name))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn arrows_that_point_up_or_sideways_are_named() {
        let package = |name: &str, dependencies: &[(&str, Option<&str>)]| {
            let dependencies: Vec<Value> = dependencies
                .iter()
                .map(|(name, kind)| json!({"name": name, "kind": kind}))
                .collect();
            json!({"name": name, "dependencies": dependencies})
        };
        let metadata = json!({"packages": [
            package("densely-core", &[("densely-torch-ext", None), ("serde", None), ("densely-testkit", Some("dev"))]),
            package("densely-torch-ext", &[("densely-core", None)]),
            package("densely-tabular", &[("densely-train", None), ("densely-vision", None)]),
            package("densely-interp", &[("densely-lm", None)]),
            package("densely-vision", &[]), package("densely-lm", &[]), package("densely-train", &[]), package("densely-testkit", &[]),
            package("densely", &[("densely-tabular", None), ("densely-vision", None)]),
            package("xtask", &[("densely-core", None), ("tch", None)]),
        ]});
        let problems = wrong_arrows(&metadata);
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(
            problems
                .iter()
                .any(|p| p.starts_with("densely-torch-ext depends on densely-core"))
        );
        assert!(
            problems
                .iter()
                .any(|p| p.starts_with("densely-tabular depends on densely-vision"))
        );
        assert!(
            problems
                .iter()
                .any(|p| p.starts_with("xtask depends on densely-core"))
        );
        assert!(problems.iter().any(|p| p.contains("xtask depends on tch")));
    }

    #[test]
    fn heavy_crates_are_found_in_a_tree() {
        assert_eq!(
            heavy_crates(
                "densely-tabular v0.1.0\nparquet v59.3.0\nclap v4.6.0 (*)\nparquet v59.3.0 (*)\nimage-x v1\n"
            ),
            ["clap", "parquet"]
        );
    }
}
