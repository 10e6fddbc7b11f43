//! The search over models of series: what may be chosen, and that no trial sees a test window.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use densely_core::{Error, Result};
use densely_data::Table;
use densely_timeseries::fit::{FitSettings, Prepared};
use densely_timeseries::panel::Windows;
use densely_timeseries::tune::{Work, metric, ranges, work};
use densely_train::Metric;
use densely_train::tune::{Method, State, Study, TuneSettings};
use serde_json::{Value, json};
use tch::{Device, Tensor};

fn base(preset: &str) -> FitSettings {
    let settings = json!({
        "data": { "time": "date", "lookback": 24, "horizon": 6, "blocks": { "kind": "shares", "train": 0.6, "test": 0.2 } },
        "model": { "preset": preset },
        "train": { "optimizer": { "name": "adam", "lr": 3e-3 }, "batch_size": 16, "epochs": 2 },
    });
    serde_json::from_value(settings).expect("settings")
}

fn settings(space: &Value) -> TuneSettings {
    serde_json::from_value(json!({ "method": "grid", "space": space })).expect("settings")
}

#[test]
fn bad_spaces_are_refused_with_the_setting_and_the_reason() {
    let cases = [
        (
            "model.config.ff",
            json!({ "choice": [8] }),
            "nearest: `ff_dim`",
        ),
        (
            "model.config.ff_dim",
            json!({ "choice": [8, 0] }),
            "at least 1, got 0",
        ),
        (
            "model.config.ff_dim",
            json!({ "choice": ["wide"] }),
            "expected i64",
        ),
        (
            "model.config.dropout",
            json!({ "choice": [0.5, 1.5] }),
            "dropout",
        ),
        (
            "model.config.lookback",
            json!({ "int": [24, 48] }),
            "is set by `data`",
        ),
        (
            "model.config.target",
            json!({ "choice": [0] }),
            "forecasts all channels",
        ),
        (
            "model.preset",
            json!({ "choice": ["tsmixer", "tsmixr"] }),
            "nearest names: tsmixer",
        ),
        (
            "train.batch_size",
            json!({ "choice": [0, 32] }),
            "at least 1, got 0",
        ),
        (
            "train.optimizer.rate",
            json!({ "choice": [0.1] }),
            "unknown field `rate`",
        ),
        (
            "train.optimizer.lr",
            json!({ "log": [1e-4, 1e-3] }),
            "a grid needs values that can be counted",
        ),
        (
            "data.lookback",
            json!({ "choice": [336, 512] }),
            "`model` or `train`",
        ),
    ];
    let base = base("tsmixer");
    for (name, range, reason) in cases {
        let error = ranges(&settings(&json!({ name: range })), &base)
            .expect_err(reason)
            .to_string();
        let place = format!("setting `tune.space.{name}`: ");
        assert!(
            error.starts_with(&place) && error.contains(reason) && !error.contains('\n'),
            "{error}"
        );
    }
    let error = ranges(&TuneSettings::default(), &base)
        .expect_err("no ranges")
        .to_string();
    assert!(
        error.contains("`tune.space`: the recipe names no settings"),
        "{error}"
    );
}

#[test]
fn the_score_is_the_loss_or_one_of_the_two() -> Result<()> {
    let mut base = base("tsmixer");
    assert_eq!(metric(&TuneSettings::default(), &base)?, Metric::Mse);
    base.train.loss = densely_timeseries::fit::Loss::Mae;
    assert_eq!(metric(&TuneSettings::default(), &base)?, Metric::Mae);
    let other = TuneSettings {
        metric: Some(Metric::Rmse),
        ..TuneSettings::default()
    };
    let error = metric(&other, &base)
        .expect_err("not for windows")
        .to_string();
    assert!(
        error.contains("`tune.metric`: `rmse` does not fit; take one of: mse, mae"),
        "{error}"
    );
    Ok(())
}

fn prepared(base: &FitSettings) -> Result<Prepared> {
    let mut text = "date,a,b\n".to_owned();
    for step in 0..400 {
        let angle = std::f64::consts::TAU * f64::from(step) / 12.0;
        let (day, hour) = (1 + step / 24, step % 24);
        writeln!(
            text,
            "2020-01-{day:02} {hour:02}:00,{:.5},{:.5}",
            angle.sin(),
            angle.cos()
        )
        .expect("a string");
    }
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    let path = folder.path().join("t.csv");
    std::fs::write(&path, text).map_err(Error::io(&path))?;
    Prepared::new(&Table::open(&path)?, &base.data, Device::Cpu)
}

#[test]
fn a_grid_of_forecasters_is_searched_without_a_look_at_the_test_windows() -> Result<()> {
    let base = base("nlinear");
    let tune = settings(&json!({
        "model.preset": { "choice": ["nlinear", "dlinear"] },
        "train.optimizer.lr": { "choice": [3e-3, 1e-9] },
    }));
    let mut prepared = prepared(&base)?;
    // Whoever looked at these would find a loss that is not a number.
    let lost = Tensor::full([60, 2], f64::NAN, tch::kind::FLOAT_CPU);
    prepared.test = Windows::new(&lost, &(0..60), 24, 6)?;
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    let plan = tune.plan(1, metric(&tune, &base)?, ranges(&tune, &base)?, &base)?;
    assert_eq!(plan.method, Method::Grid);
    let study = Study::open(&folder.path().join("study"), plan, tune.trials)?;
    let shared = Work {
        prepared: &prepared,
        table: Path::new("t.csv"),
        device: Device::Cpu,
    };
    let mut count = 0;
    work(&study, &shared, &mut |trial| {
        assert_eq!(trial.state, State::Done, "{:?}", trial.reason);
        count += 1;
        Ok(())
    })?;
    let trials = study.trials()?;
    assert_eq!((count, trials.len()), (4, 4));
    let scores: BTreeMap<String, f64> = trials
        .iter()
        .map(|trial| {
            (
                json!(trial.choice).to_string(),
                trial.score.expect("a score"),
            )
        })
        .collect();
    assert_eq!(scores.len(), 4, "every point once");
    assert!(scores.values().all(|score| score.is_finite()));
    let best = study.best(&trials).expect("a best trial");
    assert_eq!(
        best.choice["train.optimizer.lr"],
        json!(3e-3),
        "a model that cannot move learns nothing"
    );
    assert_eq!(best.epochs, Some(2));
    Ok(())
}
