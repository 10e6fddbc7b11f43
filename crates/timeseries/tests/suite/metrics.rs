//! Forecasting metrics against their packages and by hand; M4's files and figures.

use std::path::Path;

use densely_core::Result;
use densely_timeseries::m4::{self, HOURLY_SEASON};
use densely_timeseries::metrics::{
    M4Errors, crps, is_seasonal, mae, mape, mase, mase_scale, naive2, pinball, pinball_loss, rmse,
    smape,
};
use serde_json::Value;
use tch::{Kind, Tensor};

fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().expect("a list");
    list.iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn close(what: &str, actual: f64, expected: &Value) {
    let expected = expected.as_f64().expect("a number");
    assert!(
        (actual - expected).abs() <= 1e-10 * expected.abs(),
        "{what}: {actual} is not {expected}"
    );
}

#[test]
fn metrics_equal_the_packages() -> Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/metrics.json");
    let golden: Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("the golden")).expect("JSON");
    let series = golden["series"].as_array().expect("series");
    let table = |name: &str| {
        let rows: Vec<f64> = series.iter().flat_map(|one| numbers(&one[name])).collect();
        Tensor::from_slice(&rows).view([series.len() as i64, 7])
    };
    let (actual, forecast, benchmark) = (table("future"), table("forecast"), table("naive2"));
    let mut scales = Vec::new();
    let mut found = 0;
    for one in series {
        let (history, season) = (
            numbers(&one["history"]),
            one["season"].as_u64().expect("a number") as usize,
        );
        assert_eq!(
            is_seasonal(&history, season),
            one["seasonal"],
            "season {season}"
        );
        found += usize::from(is_seasonal(&history, season));
        for (ours, theirs) in naive2(&history, season, 7)?
            .iter()
            .zip(one["naive2"].as_array().expect("values"))
        {
            close("naive2", *ours, theirs);
        }
        scales.push(mase_scale(&history, season)?);
    }
    assert!(
        found > 1 && found < series.len(),
        "both cases are in the golden"
    );
    let errors = &golden["errors"];
    close("mae", mae(&forecast, &actual)?, &errors["mae"]);
    close("rmse", rmse(&forecast, &actual)?, &errors["rmse"]);
    close("mape", mape(&forecast, &actual)?, &errors["mape"]);
    close("smape", smape(&forecast, &actual)?, &errors["smape"]);
    close("mase", mase(&forecast, &actual, &scales)?, &errors["mase"]);
    let of = |forecast: &Tensor| -> Result<M4Errors> {
        Ok(M4Errors {
            smape: smape(forecast, &actual)?,
            mase: mase(forecast, &actual, &scales)?,
        })
    };
    let owa = of(&forecast)?.owa(of(&benchmark)?);
    close("owa", owa, &errors["owa"]);
    close(
        "owa of naive2",
        of(&benchmark)?.owa(of(&benchmark)?),
        &1.0.into(),
    );

    let levels = numbers(&golden["levels"]);
    let quantiles: Vec<f64> = series
        .iter()
        .flat_map(|one| one["quantiles"].as_array().expect("rows"))
        .flat_map(numbers)
        .collect();
    let quantiles = Tensor::from_slice(&quantiles).view([series.len() as i64, 7, 5]);
    close(
        "pinball",
        pinball(&quantiles, &actual, &levels)?,
        &errors["pinball"],
    );
    close("crps", crps(&quantiles, &actual, &levels)?, &errors["crps"]);
    Ok(())
}

#[test]
fn what_a_metric_is_not_defined_for_is_said() -> Result<()> {
    let row = |values: &[f64]| Tensor::from_slice(values).view([1, -1]);
    let (zero, ones) = (row(&[0.0, 0.0]), row(&[1.0, 1.0]));
    close("both 0", smape(&zero, &zero)?, &0.0.into());
    close("one 0", smape(&ones, &zero)?, &200.0.into());
    let message = mape(&ones, &zero).expect_err("a division by 0").to_string();
    assert!(message.contains("take sMAPE"), "{message}");
    assert!(mae(&row(&[f64::NAN, 0.0]), &ones).is_err());
    assert!(mae(&row(&[1.0]), &ones).is_err());
    assert!(mase(&ones, &ones, &[0.0]).is_err() && mase(&ones, &ones, &[1.0, 1.0]).is_err());
    assert!(mase_scale(&[2.0, 2.0, 2.0], 1).is_err_and(|e| e.to_string().contains("MASE")));
    assert!(mase_scale(&[1.0, 2.0], 2).is_err() && mase_scale(&[1.0, 2.0], 0).is_err());
    assert!(naive2(&[], 1, 3).is_err());
    assert_eq!(naive2(&[1.0, 5.0], 12, 2)?, [5.0, 5.0]);
    let wave: Vec<f64> = (0..96)
        .map(|t| (f64::from(t) * std::f64::consts::TAU / 12.0).sin())
        .collect();
    assert!(is_seasonal(&wave, 12) && naive2(&wave, 12, 3).is_err());
    assert!(
        !is_seasonal(&[1.0; 96], 12),
        "a constant series has no season"
    );

    let quantiles = row(&[1.0, 2.0]);
    let actual = Tensor::from_slice(&[1.5]);
    for levels in [&[0.9, 0.1][..], &[0.0, 0.5], &[0.5, 1.0], &[0.5], &[]] {
        assert!(pinball(&quantiles, &actual, levels).is_err(), "{levels:?}");
    }
    // By hand: 0.1 · 0.5 above the lower quantile, (0.9 − 1) · (−0.5) below the upper one.
    assert!((pinball(&quantiles, &actual, &[0.1, 0.9])? - 0.05).abs() < 1e-12);
    let leaf = quantiles.to_kind(Kind::Float).set_requires_grad(true);
    pinball_loss(&leaf, &actual.to_kind(Kind::Float), &[0.1, 0.9])?.backward();
    let gradient = Vec::<f32>::try_from(leaf.grad().view([-1]))?;
    assert!((gradient[0] + 0.05).abs() < 1e-6 && (gradient[1] - 0.05).abs() < 1e-6);
    Ok(())
}

#[test]
fn files_of_m4_are_read_and_spoilt_ones_refused() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let (train, test) = (
        folder.path().join("train.csv"),
        folder.path().join("test.csv"),
    );
    let read = |first: &str, second: &str| {
        std::fs::write(&train, first).expect("written");
        std::fs::write(&test, second).expect("written");
        m4::read(&train, &test, 2)
    };
    let (fine, after) = (
        "\"V1\",\"V2\",\"V3\",\"V4\",\"V5\"\n\"H1\",\"1\",\"2\",\"3\",\"4\"\n\"H2\",\"5\",\"6\",\"8\",\n",
        "V1,V2,V3\nH2,7,8\nH1,5,6\n",
    );
    let series = read(fine, after)?;
    assert_eq!(series.ids, ["H1", "H2"]);
    assert_eq!(
        series.histories,
        [vec![1.0, 2.0, 3.0, 4.0], vec![5.0, 6.0, 8.0]]
    );
    assert_eq!(series.futures, [[5.0, 6.0], [7.0, 8.0]]);
    // sNaive: 3 4 and 6 8, each 2 (or 1) from the future; the histories' differences to the season before are 2 and 3.
    let [(_, naive), (_, seasonal), _] = series.benchmarks()?;
    let mean = |errors: [f64; 4]| errors.iter().sum::<f64>() / 4.0;
    close(
        "sNaive",
        seasonal.mase,
        &mean([2.0 / 2.0, 2.0 / 2.0, 1.0 / 3.0, 0.0]).into(),
    );
    close(
        "Naive",
        naive.mase,
        &mean([1.0 / 2.0, 2.0 / 2.0, 1.0 / 3.0, 0.0]).into(),
    );
    assert!(series.score(&[vec![1.0, 2.0]]).is_err());
    for (first, second, part) in [
        (
            fine.replace("\"2\"", "\"x\""),
            after.to_owned(),
            "row 2, column `V3`: expected a number, got `x`",
        ),
        (
            fine.replace("\"2\"", ""),
            after.to_owned(),
            "row 2, column `V4`: stands after an empty field",
        ),
        (
            fine.replace("H2", "H1"),
            after.to_owned(),
            "row 3, column `V1`: series `H1` stands twice",
        ),
        (
            fine.replace("H2", "H3"),
            after.to_owned(),
            "series `H3` of the other file is missing",
        ),
        (
            fine.to_owned(),
            format!("{after}H3,1,2\n"),
            "series `H3` of the other file is missing",
        ),
        (
            fine.to_owned(),
            after.replace(",6", ","),
            "series `H2` has 2 values, `H1` has 1",
        ),
        (
            fine.replace("\"8\"", ""),
            after.to_owned(),
            "no more than a season of 2",
        ),
        (
            fine.to_owned(),
            after.replace("H1,5,6", "H1,,"),
            "series `H1` has no values",
        ),
        ("V1,V2\n".to_owned(), after.to_owned(), "has no rows"),
    ] {
        let message = read(&first, &second).expect_err(part).to_string();
        assert!(message.contains(part), "{message}");
    }
    Ok(())
}

/// Needs the data set: `DENSELY_M4="$(cargo xtask data path m4-hourly)" cargo test --workspace -- --ignored m4`.
#[test]
#[ignore = "needs the data set m4-hourly in the folder DENSELY_M4"]
fn m4_hourly_benchmarks_equal_the_published_ones() -> Result<()> {
    let folder = std::env::var("DENSELY_M4").expect("DENSELY_M4 names the folder");
    let folder = Path::new(&folder);
    let series = m4::read(
        &folder.join("Hourly-train.csv"),
        &folder.join("Hourly-test.csv"),
        HOURLY_SEASON,
    )?;
    assert_eq!((series.ids.len(), series.horizon()), (414, 48));
    // "Evaluation and Ranks.xlsx" of Mcompetitions/M4-methods, sheet Point Forecasts-Frequency, column Hourly.
    let published = [
        ("Naive", 43.003, 11.608),
        ("sNaive", 13.912, 1.193),
        ("Naive2", 18.383, 2.395),
    ];
    for ((name, ours), (theirs, smape, mase)) in series.benchmarks()?.into_iter().zip(published) {
        assert_eq!(name, theirs);
        assert!(
            (ours.smape - smape).abs() < 5e-4 && (ours.mase - mase).abs() < 5e-4,
            "{name}: {ours:?}"
        );
    }
    Ok(())
}
