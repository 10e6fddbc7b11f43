//! Panels, windows and a whole fit on made series with a known answer.

use std::fmt::Write;
use std::path::Path;

use densely_core::{Error, Result};
use densely_data::Table;
use densely_testkit::{assert_bits, assert_close, copy_folder};
use densely_timeseries::fit::{Event, FitOptions, FitSettings, Outcome, Prepared, fit};
use densely_timeseries::panel::{Blocks, Panel, Scaler, Windows};
use densely_train::run::ResumeFrom;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// Hours of two series with a period of 12 steps.
fn csv(steps: i64) -> String {
    let mut text = "date,a,b\n".to_owned();
    for step in 0..steps {
        let angle = std::f64::consts::TAU * step as f64 / 12.0;
        let (day, hour) = (1 + step / 24, step % 24);
        writeln!(
            text,
            "2020-01-{day:02} {hour:02}:00:00,{:.6},{:.6}",
            10.0 + 3.0 * angle.sin(),
            angle.cos()
        )
        .expect("a string");
    }
    text
}

fn table(text: &str) -> Result<Table> {
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    let path = folder.path().join("series.csv");
    std::fs::write(&path, text).map_err(Error::io(&path))?;
    Table::open(&path)
}

fn refused(text: &str) -> String {
    table(text)
        .and_then(|table| Panel::new(&table, "date", &[]))
        .expect_err("a bad table")
        .to_string()
}

#[test]
fn panels_say_what_is_wrong_with_a_grid() -> Result<()> {
    let good = csv(30);
    let panel = Panel::new(&table(&good)?, "date", &[])?;
    assert_eq!(
        (panel.len(), panel.step, panel.names.len()),
        (30, 3_600_000_000, 2)
    );
    let one = Panel::new(&table(&good)?, "date", &["b".to_owned()])?;
    assert_eq!(one.values.size(), [30, 1]);

    let without = |hour: &str| {
        good.lines()
            .filter(|line| !line.contains(hour))
            .collect::<Vec<_>>()
            .join("\n")
            + "\n"
    };
    let message = refused(&without("01 05:00"));
    assert!(
        message.contains("row 7") && message.contains("2 h after the row before, not 1 h"),
        "{message}"
    );
    let twice = good.replace("2020-01-01 05:00", "2020-01-01 04:00");
    assert!(
        refused(&twice).contains("row 7, column `date`: the time stands there twice"),
        "{}",
        refused(&twice)
    );
    let back = good.replace("2020-01-01 05:00", "2020-01-01 03:00");
    assert!(refused(&back).contains("earlier than that of the row before"));
    let missing = good.replace("01 05:00:00,", "01 05:00:00,NA");
    assert!(
        refused(&missing).contains("column `a`"),
        "{}",
        refused(&missing)
    );
    assert!(refused("date,a\nx,1\ny,2\n").contains("holds no times"));
    assert!(Panel::new(&table(&good)?, "date", &["c".to_owned()]).is_err());
    Ok(())
}

#[test]
fn windows_are_those_of_the_literature() -> Result<()> {
    // ETTh1 with a lookback of 512 and a horizon of 96.
    let parts = Blocks::Steps {
        train: 8640,
        valid: 2880,
        test: 2880,
    }
    .parts(17_420)?;
    let values = Tensor::arange(17_420, (Kind::Float, Device::Cpu)).unsqueeze(1);
    let windows = |part| Windows::new(&values, part, 512, 96);
    let (train, valid, test) = (
        windows(&parts.train)?,
        windows(&parts.valid)?,
        windows(&parts.test)?,
    );
    assert_eq!((train.len(), valid.len(), test.len()), (8033, 2785, 2785));
    let (past, future) = test.batch(&[0, 2784])?;
    let row = |xs: &Tensor, at: [i64; 3]| xs.double_value(&at) as i64;
    assert_eq!(row(&past, [0, 0, 0]), 11_520 - 512);
    assert_eq!(row(&future, [0, 0, 0]), 11_520);
    assert_eq!(row(&future, [1, 95, 0]), 14_399);
    let all: i64 = test
        .batches(256)
        .map(|batch| batch.map(|(past, _)| past.size()[0]))
        .sum::<Result<i64>>()?;
    assert_eq!(all, 2785);
    let shares = Blocks::default().parts(26_304)?;
    assert_eq!(
        (shares.train.end, shares.test.start, shares.test.end),
        (18_412, 21_044, 26_304)
    );
    let message = Windows::new(&values, &(0..600), 512, 96)
        .expect_err("too short")
        .to_string();
    assert!(
        message.contains("do not fit into the 600 steps"),
        "{message}"
    );
    assert!(
        Blocks::Steps {
            train: 10,
            valid: 10,
            test: 10
        }
        .parts(29)
        .is_err()
    );
    assert!(
        Blocks::Shares {
            train: 0.8,
            test: 0.2
        }
        .parts(100)
        .is_err()
    );
    Ok(())
}

#[test]
fn scaling_is_scikit_learns() {
    let values = Tensor::from_slice(&[1.0, 5.0, 2.0, 5.0, 6.0, 5.0]).view([3, 2]);
    let scaler = Scaler::fit(&values);
    assert_eq!(scaler.mean, [3.0, 5.0]);
    // Population deviation of 1, 2, 6; a constant series is not divided.
    for (found, expected) in scaler.std.iter().zip([(14.0f64 / 3.0).sqrt(), 1.0]) {
        assert!((found - expected).abs() < 1e-12, "{found}");
    }
    let back = scaler.unscale(&scaler.scale(&values));
    assert_close(&back, &values, 1e-6, 1e-6);
}

#[test]
fn etth1_is_as_published() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/ETTh1.csv");
    let panel = Panel::new(&Table::open(&path)?, "date", &[])?;
    assert_eq!(
        panel.names,
        ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    );
    let scaler = Scaler::fit(&panel.values.narrow(0, 0, 8640));
    for (found, published) in scaler.mean.iter().zip([7.937_742, 2.021_039, 5.079_771]) {
        assert!(
            (found - published).abs() < 1e-6,
            "{found} instead of {published}"
        );
    }
    Ok(())
}

fn settings(preset: &str, config: &Value) -> FitSettings {
    let settings = json!({
        "data": { "time": "date", "lookback": 24, "horizon": 6, "season": 12, "blocks": { "kind": "shares", "train": 0.6, "test": 0.2 } },
        "model": { "preset": preset, "config": config },
        "train": { "optimizer": { "name": "adam", "lr": 3e-3 }, "batch_size": 16, "epochs": 6 },
    });
    serde_json::from_value(settings).expect("settings")
}

fn run(
    prepared: &Prepared,
    settings: &FitSettings,
    folder: &Path,
    resume: Option<ResumeFrom>,
    observe: &mut dyn FnMut(&Event),
) -> Result<Outcome> {
    let options = FitOptions {
        folder,
        table: Path::new("series.csv"),
        seed: 1,
        device: Device::Cpu,
        resume,
    };
    fit(prepared, settings, &options, observe)
}

#[test]
fn every_forecaster_learns_a_sine_and_resumes_to_the_same_bits() -> Result<()> {
    let table = table(&csv(400))?;
    for (preset, config) in [
        ("tsmixer", json!({ "ff_dim": 8, "dropout": 0.1 })),
        (
            "patchtsmixer-forecast",
            json!({ "patch_length": 4, "patch_stride": 4, "d_model": 16, "num_layers": 2, "dropout": 0.1, "head_dropout": 0.0 }),
        ),
        ("dlinear", json!({ "kernel": 5 })),
        ("nlinear", json!({})),
    ] {
        let settings = settings(preset, &config);
        let prepared = Prepared::new(&table, &settings.data, Device::Cpu)?;
        let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
        let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
        let found = run(&prepared, &settings, &whole, None, &mut |event| {
            if matches!(event, Event::Epoch { epoch: 2, .. }) {
                copy_folder(&whole, &killed);
            }
        })?;
        assert!(found.test.mse < 0.3, "{preset}: {:?}", found.test);
        assert_eq!(found.predictions.size(), [75, 6, 2]);
        // A sine is its own last season, and a linear map of its past.
        for (name, errors) in &found.baselines {
            let most = if *name == "naive" { 1e-9 } else { 0.2 };
            assert!(
                errors.mse < most && errors.windows == 75,
                "{name}: {errors:?}"
            );
        }

        let mut done = 0;
        let resumed = run(
            &prepared,
            &settings,
            &killed,
            Some(ResumeFrom::Last),
            &mut |event| {
                if let Event::Started { done: before, .. } = event {
                    done = *before;
                }
            },
        )?;
        assert!(done > 0, "it went on instead of starting anew");
        assert_bits(&resumed.predictions, &found.predictions);
        let log = |folder: &Path| std::fs::read(folder.join("metrics.jsonl")).expect("a log");
        assert_eq!(log(&killed), log(&whole), "{preset}");
    }
    Ok(())
}

#[test]
fn settings_that_do_not_fit_are_named() -> Result<()> {
    let table = table(&csv(400))?;
    let message = |preset: &str, config: &Value| {
        let settings = settings(preset, config);
        let prepared = Prepared::new(&table, &settings.data, Device::Cpu).expect("a good table");
        let folder = tempfile::tempdir().expect("a folder");
        run(
            &prepared,
            &settings,
            &folder.path().join("run"),
            None,
            &mut |_| (),
        )
        .expect_err("wrong settings")
        .to_string()
    };
    assert!(
        message("tsmixer", &json!({ "lookback": 5 }))
            .contains("`model.config.lookback`: is set by `data`")
    );
    assert!(message("tsmixer", &json!({ "target": 0 })).contains("forecasts all channels"));
    assert!(message("tsmixer", &json!({ "ff": 5 })).contains("nearest: `ff_dim`"));
    assert!(
        message("patchtsmixer-pretrain", &json!({}))
            .contains("does not forecast from the past alone")
    );
    assert!(
        message(
            "patchtsmixer-forecast",
            &json!({ "distribution_output": "normal" })
        )
        .contains("values of all channels")
    );
    assert!(message("tsmixr", &json!({})).contains("nearest names: tsmixer"));
    Ok(())
}
