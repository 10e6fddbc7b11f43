//! A forecast of one's own table from fit to backtest, on made series with a known answer.

use std::fmt::Write;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, TimestampMicrosecondType};
use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use densely_core::{Error, Result};
use densely_data::Output;
use densely_data::table::parse_time;
use densely_testkit::{assert_bits, assert_close, copy_folder};
use densely_timeseries::forecast::{
    Event, FitOptions, Fitted, ForecastSettings, Model, Options, Outcome, Prepared, fit, pinball,
};
use densely_train::run::ResumeFrom;
use tch::{Device, Kind, Tensor};

use crate::own_table::{stamp, table};

/// Sales of shops: a level of its own, a season of 6 hours, doubled by promotions that only the column tells.
fn sold(shop: usize, hour: usize) -> f64 {
    let level = 10.0 * (shop + 1) as f64;
    let season = 1.0 + 0.2 * (std::f64::consts::TAU * hour as f64 / 6.0).sin();
    level * season * (1.0 + f64::from(promotion(shop, hour)))
}

fn promotion(shop: usize, hour: usize) -> u8 {
    u8::from(((hour * 7 + shop * 3).wrapping_mul(2_654_435_761) >> 7).is_multiple_of(8))
}

/// Shops with this many hours each, and the promotions of `future` more; sales of a shop named `flat` do not change.
fn long(shops: &[(&str, usize)], future: usize) -> String {
    let mut text = "hour,shop,region,sold,promotion\n".to_owned();
    for (shop, (name, hours)) in shops.iter().enumerate() {
        for hour in 0..hours + future {
            let value = if *name == "flat" {
                5.0
            } else {
                sold(shop, hour)
            };
            let value = if hour < *hours {
                value.to_string()
            } else {
                String::new()
            };
            let region = ["north", "south"][shop % 2];
            writeln!(
                text,
                "{},{name},{region},{value},{}",
                stamp(hour as i64),
                promotion(shop, hour)
            )
            .expect("a string");
        }
    }
    text
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn settings() -> ForecastSettings {
    let mut settings = ForecastSettings::new(6);
    settings.lookback = Some(18);
    settings.quantiles = vec![0.1, 0.5, 0.9];
    settings.train.epochs = 4;
    settings.train.batch_size = 32;
    let data = &mut settings.data;
    data.series_id = names(&["shop"]);
    data.target = names(&["sold"]);
    data.known = names(&["promotion"]);
    data.statics = names(&["region"]);
    settings
}

fn run(
    prepared: &Prepared,
    folder: &Path,
    resume: Option<ResumeFrom>,
    observe: &mut dyn FnMut(&Event),
) -> Result<Outcome> {
    let options = FitOptions {
        folder,
        table: Path::new("sales.csv"),
        seed: 3,
        device: Device::Cpu,
        resume,
    };
    fit(prepared, &options, observe)
}

/// Forecasts of all test windows on the standardised scale.
fn forecasts(prepared: &Prepared, outcome: &Outcome) -> Result<Tensor> {
    let mut all = Vec::new();
    prepared.test(&outcome.network, &mut |_, ys| {
        all.push(ys.shallow_clone());
        Ok(())
    })?;
    Ok(Tensor::cat(&all, 0))
}

#[track_caller]
fn says(notes: &[String], part: &str) {
    assert!(
        notes.iter().any(|note| note.contains(part)),
        "{part}: {notes:?}"
    );
}

fn column<'a>(columns: &'a [(String, Output)], name: &str) -> &'a [f64] {
    match columns.iter().find(|(other, _)| other == name) {
        Some((_, Output::Numbers(values))) => values,
        other => panic!("{name}: {other:?}"),
    }
}

const SHOPS: [(&str, usize); 5] = [
    ("a", 300),
    ("b", 300),
    ("flat", 300),
    ("c", 300),
    ("young", 10),
];

#[test]
fn a_panel_with_a_known_covariate_is_learnt_resumed_and_forecast() -> Result<()> {
    let sales = table(&long(&SHOPS, 0))?;
    let prepared = Prepared::new(&sales, &settings(), Device::Cpu)?;
    says(
        &prepared.notes,
        "1 of 5 series are shorter than lookback and horizon (18 + 6 steps) before the validation",
    );
    says(
        &prepared.notes,
        "1 series is constant while training: `flat`",
    );
    says(
        &prepared.notes,
        "model: tsmixer-ext, the one that reads covariates",
    );
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    let outcome = run(&prepared, &whole, None, &mut |event| {
        if matches!(event, Event::Epoch { epoch: 1, .. }) {
            copy_folder(&whole, &killed);
        }
    })?;
    let test = prepared.test(&outcome.network, &mut |_, _| Ok(()))?;
    let means = test.standardised();
    // The season alone does not know promotions; they are more than half of the spread.
    assert!(means.mae < 0.4 * means.naive_mae, "{means:?}");
    let ys = forecasts(&prepared, &outcome)?; // [windows, horizon, quantiles, 1]
    assert_eq!(ys.size()[1..], [6, 3, 1]);
    let steps = ys.diff(1, 2, None::<&Tensor>, None::<&Tensor>);
    assert!(steps.min().double_value(&[]) >= 0.0, "quantiles ascend");

    let resumed = run(&prepared, &killed, Some(ResumeFrom::Last), &mut |_| ())?;
    assert_bits(&forecasts(&prepared, &resumed)?, &ys);

    // What comes next, with the promotions in rows of the table, in a file, and nowhere.
    let fitted = Fitted::open(&whole, Device::Cpu)?;
    let in_rows = fitted.predict(&table(&long(&SHOPS, 6))?, None)?;
    let future: String = long(&SHOPS, 6)
        .lines()
        .filter(|line| line.contains(",,") || line.starts_with("hour"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let in_file = fitted.predict(&sales, Some(&table(&future)?))?;
    assert_eq!(in_rows.columns, in_file.columns);
    assert_eq!(in_rows.series, 5);
    says(
        &in_rows.notes,
        "1 series has a shorter history than the lookback of 18 steps: the first value is repeated before it",
    );
    let found = column(&in_rows.columns, "sold_forecast");
    let (low, high) = (
        column(&in_rows.columns, "sold_q0.1"),
        column(&in_rows.columns, "sold_q0.9"),
    );
    for step in 0..6 {
        let expected = sold(0, 300 + step);
        assert!(
            (found[step] - expected).abs() < 4.0,
            "step {step}: {} instead of {expected}",
            found[step]
        );
        assert!((low[step]..=high[step]).contains(&found[step]));
    }
    let message = fitted
        .predict(&sales, None)
        .expect_err("no promotions")
        .to_string();
    assert!(
        message
            .contains("column `promotion`: series `a`, no value is known at 2024-01-13 12:00:00"),
        "{message}"
    );

    // A shop that was not there.
    let new = fitted.predict(&table(&long(&[("new", 40)], 6))?, None)?;
    says(&new.notes, "1 series is new since the fit");
    assert_eq!(column(&new.columns, "sold_forecast").len(), 6);
    Ok(())
}

#[test]
fn windows_of_series_one_behind_the_other_do_not_touch() -> Result<()> {
    // With the series cut at a gap, too: every value is its hour plus 1000 times its series.
    let mut text = "hour,shop,sold\n".to_owned();
    for (shop, hours) in [80, 120, 100].into_iter().enumerate() {
        for hour in (0..hours).filter(|hour| shop != 1 || !(40..50).contains(hour)) {
            writeln!(text, "{},{shop},{}", stamp(hour), 1000 * shop as i64 + hour)
                .expect("a string");
        }
    }
    let mut settings = ForecastSettings::new(4);
    settings.lookback = Some(8);
    settings.data.series_id = names(&["shop"]);
    settings.data.gaps = "split".parse()?;
    let prepared = Prepared::new(&table(&text)?, &settings, Device::Cpu)?;
    // 120 steps: 84 to train, 12 to validate, 24 to test. Windows of 12 in 80, in 40 and 34, and in 84 steps.
    assert_eq!(prepared.train.len(), 69 + 29 + 23 + 73);
    assert_eq!(prepared.valid.len(), 9 + 9);
    assert_eq!(prepared.test.len(), 21 + 1);
    let mut seen = 0;
    let outcome = {
        let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
        let mut prepared = Prepared::new(&table(&text)?, &settings, Device::Cpu)?;
        prepared.settings.train.epochs = 1;
        run(&prepared, &folder.path().join("run"), None, &mut |_| ())?
    };
    prepared.test(&outcome.network, &mut |batch, _| {
        let raw = |xs: &Tensor| xs.to_kind(Kind::Double) * &batch.std + &batch.mean;
        let all = Tensor::cat(&[raw(&batch.past), raw(&batch.target)], 1).squeeze_dim(2);
        let steps = all.diff(1, 1, None::<&Tensor>, None::<&Tensor>);
        assert_close(&steps, &steps.ones_like(), 1e-4, 1e-4);
        seen += steps.size()[0];
        Ok(())
    })?;
    assert_eq!(seen, 22);
    Ok(())
}

#[test]
fn every_model_forecasts_quantiles_of_a_wide_table() -> Result<()> {
    let mut text = "time,a,b\n".to_owned();
    for hour in 0..400 {
        let angle = std::f64::consts::TAU * hour as f64 / 12.0;
        // A spread that a point forecast does not know, of which 80 % lie within 0.8.
        let noise = ((hour * 7919 % 101) as f64 - 50.0) / 50.0;
        writeln!(
            text,
            "{},{:.6},{:.6}",
            stamp(hour),
            10.0 + 3.0 * angle.sin() + noise,
            angle.cos()
        )
        .expect("a string");
    }
    let table = table(&text)?;
    for preset in [
        "tsmixer",
        "patchtsmixer-forecast",
        "dlinear",
        "nlinear",
        "tsmixer-ext",
    ] {
        let mut settings = ForecastSettings::new(6);
        settings.lookback = Some(24);
        settings.season = Some(12);
        settings.quantiles = vec![0.1, 0.5, 0.9];
        settings.model.preset = preset.to_owned();
        settings.train.epochs = 20;
        settings.train.batch_size = 16;
        let prepared = Prepared::new(&table, &settings, Device::Cpu)?;
        let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
        let outcome = run(&prepared, &folder.path().join("run"), None, &mut |_| ())?;
        let test = prepared.test(&outcome.network, &mut |_, _| Ok(()))?;
        let means = test.standardised();
        assert!(means.mae < 0.4, "{preset}: {means:?}");
        for (q, share) in test.coverage() {
            assert!((q - share).abs() < 0.2, "{preset}: {share} below {q}");
        }
    }
    Ok(())
}

#[test]
fn the_pinball_loss_is_that_of_a_hand_computation() {
    // Targets 1 and 2, forecasts of the quantiles 0.1 and 0.9: max(q·(y − f), (q − 1)·(y − f)).
    let ys = Tensor::from_slice(&[0.0, 3.0, 2.5, 2.0]).view([1, 2, 2, 1]);
    let targets = Tensor::from_slice(&[1.0, 2.0]).view([1, 2, 1]);
    let by_hand = (0.1 * 1.0 + 0.1 * 2.0 + 0.9 * 0.5 + 0.0) / 4.0;
    let found = pinball(&ys, &targets, &[0.1, 0.9]).double_value(&[]);
    assert!(
        (found - by_hand).abs() < 1e-12,
        "{found} instead of {by_hand}"
    );
}

#[test]
fn a_model_backtests_and_takes_arrow() -> Result<()> {
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    let mut options = Options::new(6, folder.path().join("run"));
    options.settings = settings();
    options.settings.train.epochs = 1;
    options.device = densely_core::Device::Cpu;
    let sales = table(&long(&SHOPS, 0))?;
    let model = Model::fit(&sales, &options)?;
    assert!(model.test().is_some_and(|test| test.windows > 0));
    let found = model.fitted().backtest(&sales, 5, 4)?;
    let times: Vec<&str> = found
        .origins
        .iter()
        .map(|(time, _)| time.as_str())
        .collect();
    // The last one is a horizon before the end of 300 hours.
    assert_eq!(
        (times[0], times[4]),
        ("2024-01-12 14:00:00", "2024-01-13 06:00:00")
    );
    assert!(found.origins.iter().all(|(_, scores)| scores.windows == 4));
    assert_eq!((found.all.windows, found.by_step().len()), (20, 6));
    // The mean over the origins is the mean over all.
    let mean = found
        .origins
        .iter()
        .map(|(_, scores)| scores.standardised().mae)
        .sum::<f64>()
        / 5.0;
    assert!((mean - found.all.standardised().mae).abs() < 1e-12);
    let message = model
        .fitted()
        .backtest(&sales, 500, 4)
        .expect_err("too many")
        .to_string();
    assert!(
        message.contains("room for 70 origins that are 4 steps apart"),
        "{message}"
    );
    let (scores, notes) = model.fitted().evaluate(&sales)?;
    assert_eq!(scores.windows, 4 * (300 - 24 + 1));
    says(&notes, "such errors flatter");

    let opened = Model::open(model.folder(), densely_core::Device::Cpu)?;
    let texts =
        |values: Vec<String>| -> ArrayRef { std::sync::Arc::new(StringArray::from(values)) };
    let numbers =
        |values: Vec<f64>| -> ArrayRef { std::sync::Arc::new(Float64Array::from(values)) };
    let hours = 0..60usize;
    let promotions =
        |hours: std::ops::Range<usize>| hours.map(|hour| f64::from(promotion(0, hour))).collect();
    let batch = RecordBatch::try_from_iter([
        (
            "hour",
            texts(hours.clone().map(|hour| stamp(hour as i64)).collect()),
        ),
        ("shop", texts(vec!["a".to_owned(); 60])),
        ("region", texts(vec!["north".to_owned(); 60])),
        (
            "sold",
            numbers(hours.clone().map(|hour| sold(0, hour)).collect()),
        ),
        ("promotion", numbers(promotions(0..60))),
    ])
    .expect("a batch");
    let future = RecordBatch::try_from_iter([
        ("hour", texts((60..66).map(stamp).collect())),
        ("shop", texts(vec!["a".to_owned(); 6])),
        ("promotion", numbers(promotions(60..66))),
    ])
    .expect("a batch");
    let next = opened.predict_batch(&batch, Some(&future))?;
    assert_eq!(next.num_rows(), 6);
    let hours = next.column_by_name("hour").expect("a column");
    let hours = hours.as_primitive::<TimestampMicrosecondType>();
    assert_eq!(hours.timezone(), None);
    let expected = (60..66).map(|hour| parse_time(&stamp(hour)).expect("a time"));
    assert_eq!(hours.values().to_vec(), expected.collect::<Vec<_>>());
    let next = next.column_by_name("sold_forecast").expect("a column");
    assert!(
        next.as_primitive::<Float64Type>()
            .iter()
            .flatten()
            .all(|value| (0.0..100.0).contains(&value))
    );
    assert!(opened.predict_batch(&batch, None).is_err());
    Ok(())
}

#[test]
fn sizes_that_do_not_fit_come_with_advice() -> Result<()> {
    let sales = table(&long(&[("a", 60), ("b", 50)], 0))?;
    let message = |change: &dyn Fn(&mut ForecastSettings)| {
        let mut settings = settings();
        change(&mut settings);
        Prepared::new(&sales, &settings, Device::Cpu)
            .expect_err("settings")
            .to_string()
    };
    let found = message(&|settings| settings.lookback = Some(100));
    assert!(
        found.contains("no series holds a window of 100 + 6 steps")
            && found.contains("`--lookback` up to 36"),
        "{found}"
    );
    let found = message(&|settings| settings.horizon = 30);
    assert!(
        found.contains("60 steps cannot be divided") && found.contains("forecast at most 12 steps"),
        "{found}"
    );
    assert!(message(&|settings| settings.quantiles = vec![0.1, 0.9]).contains("must have 0.5"));
    assert!(message(&|settings| settings.quantiles = vec![0.9, 0.5]).contains("ascending"));
    assert!(message(&|settings| settings.season = Some(30)).contains("at most the lookback, 18"));
    assert!(message(&|settings| settings.valid = 0.9).contains("leave something to train on"));
    assert!(
        message(&|settings| settings.model.preset = "tabm".to_owned())
            .contains("no model is called `tabm`")
    );
    let found = message(&|settings| {
        settings.model.preset = "tsmixer-ext".to_owned();
        settings.model.config.insert("known".to_owned(), 3.into());
    });
    assert!(
        found.contains("`model.config.known`: is set by the data"),
        "{found}"
    );
    Ok(())
}
