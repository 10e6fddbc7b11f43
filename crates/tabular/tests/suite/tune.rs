//! Spaces for tables: what may stand in them, and the paper's.

use std::collections::BTreeMap;

use densely_core::Result;
use densely_tabular::settings::FitSettings;
use densely_tabular::tune::{ranges as checked, ready_made};
use densely_train::tune::{RangeSettings, TuneSettings};
use serde_json::{Value, json};

fn ranges(of: Value) -> BTreeMap<String, RangeSettings> {
    serde_json::from_value(of).expect("ranges")
}

fn base(model: &Value) -> FitSettings {
    let settings = json!({ "data": { "target": "y" }, "model": model });
    serde_json::from_value(settings).expect("settings")
}

#[test]
fn bad_spaces_are_refused_with_the_setting_and_the_reason() {
    let plain = base(&json!({ "preset": "mlp" }));
    let lr = "train.optimizer.lr";
    let cases = [
        (lr, json!({ "log": [0.0, 1.0] }), "above 0, got 0"),
        (lr, json!({ "log": [1.0, 0.1] }), "got [1, 0.1]"),
        (lr, json!({ "uniform": [0.5, 0.5] }), "to a larger one"),
        (lr, json!({}), "exactly one of"),
        (lr, json!({ "log": [0.1, 1.0], "int": [1, 2] }), "got 2"),
        (
            lr,
            json!({ "log": [0.1, 1.0], "step": 2 }),
            "`step` is for `int`",
        ),
        (lr, json!({ "choice": [] }), "at least one value"),
        (lr, json!({ "choice": [1, 2, 1] }), "holds 1 twice"),
        (lr, json!({ "choice": ["fast"] }), "expected f64"),
        (
            "train.batch_size",
            json!({ "int": [8, 4] }),
            "must not go down",
        ),
        (
            "train.batch_size",
            json!({ "int": [4, 8], "step": 0 }),
            "at least 1, got 0",
        ),
        (
            "train.batch_size",
            json!({ "int": [0, 8] }),
            "at least 1, got 0",
        ),
        (
            "train.batch_sise",
            json!({ "int": [4, 8] }),
            "unknown field `batch_sise`",
        ),
        ("train", json!({ "int": [4, 8] }), "must name a setting"),
        ("train.epochs.x", json!({ "int": [4, 8] }), "nothing below"),
        ("model.config.d_blok", json!({ "int": [4, 8] }), "d_blok"),
        (
            "model.config.dropout",
            json!({ "zero_or": [0.5, 2.0] }),
            "dropout",
        ),
        (
            "model.config.d_out",
            json!({ "int": [4, 8] }),
            "comes from the data",
        ),
        (
            "model.embedding.n_bins",
            json!({ "int": [4, 8] }),
            "missing field `type`",
        ),
        (
            "data.valid",
            json!({ "uniform": [0.1, 0.2] }),
            "`model` or `train`",
        ),
    ];
    for (name, range, reason) in cases {
        let space = ranges(json!({ name: range }));
        let settings = TuneSettings {
            space,
            ..TuneSettings::default()
        };
        let error = checked(&settings, &plain).expect_err(reason).to_string();
        let place = format!("setting `tune.space.{name}`: ");
        assert!(
            error.starts_with(&place) && error.contains(reason),
            "{error}"
        );
        assert!(!error.contains('\n'), "{error}");
    }
    let unknown = ready_made(&base(&json!({ "preset": "forest" }))).expect_err("unknown");
    assert!(
        unknown
            .to_string()
            .contains("no ready-made ranges for `forest`")
    );
}

#[test]
fn ready_made_spaces_are_the_papers_and_fit_every_preset_and_embedding() -> Result<()> {
    let embeddings = [
        Value::Null,
        json!({ "type": "piecewise_linear" }),
        json!({ "type": "linear_relu", "d_embedding": 8 }),
        json!({ "type": "periodic", "d_embedding": 8, "n_frequencies": 8, "frequency_init_scale": 0.1, "lite": true }),
    ];
    for preset in ["mlp", "tabm", "tabm-mini", "tabm-packed"] {
        for embedding in &embeddings {
            let base = base(&json!({ "preset": preset, "embedding": embedding }));
            let ranges = checked(&TuneSettings::default(), &base)?;
            assert_eq!(
                ranges["model.config.d_block"],
                RangeSettings::int(64, 1024, 16)
            );
        }
    }
    let mlp = ready_made(&base(&json!({ "preset": "mlp" })))?;
    assert_eq!(mlp["model.config.n_blocks"], RangeSettings::int(1, 6, 1));
    assert_eq!(mlp["train.optimizer.lr"], RangeSettings::log(3e-5, 1e-3));
    let ple = base(&json!({ "preset": "tabm", "embedding": { "type": "piecewise_linear" } }));
    let mut ple = ready_made(&ple)?;
    assert_eq!(
        ple.remove("model.config.n_blocks"),
        Some(RangeSettings::int(1, 4, 1))
    );
    assert_eq!(ple["train.optimizer.lr"], RangeSettings::log(1e-4, 5e-3));
    assert_eq!(ple["model.embedding.n_bins"], RangeSettings::int(2, 128, 1));
    Ok(())
}
