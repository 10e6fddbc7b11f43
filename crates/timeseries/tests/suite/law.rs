//! Forecasts of distributions: their quantiles, their fit, and what is refused.

use std::fmt::Write;

use densely_core::{Device, Result};
use densely_data::Output;
use densely_timeseries::distributions::Distribution;
use densely_timeseries::forecast::{Model, Options, Prepared};
use tch::{Kind, Tensor};

use crate::own_table::{stamp, table};

fn one(value: f64) -> Tensor {
    Tensor::from_slice(&[value])
}

fn quantile(distribution: Distribution, parameters: &[f64], q: f64) -> f64 {
    let parameters: Vec<Tensor> = parameters.iter().map(|value| one(*value)).collect();
    distribution
        .quantile(&parameters, None, q)
        .double_value(&[0])
}

#[test]
fn quantiles_equal_those_of_scipy() {
    let t = [
        (2.5, 0.1, -1.730_250_928_807_177),
        (3.0, 0.9, 1.637_744_353_696_209),
        (3.7, 0.975, 2.867_520_707_191_189_5),
        (6.0, 0.05, -1.943_180_280_515_305),
        (30.0, 0.99, 2.457_261_542_400_591),
        (8.0, 0.5, 0.0),
    ];
    for (df, q, expected) in t {
        let found = quantile(Distribution::StudentT, &[df, 0.0, 1.0], q);
        assert!(
            (found - expected).abs() < 1e-4,
            "t, {df}, {q}: {found} instead of {expected}"
        );
        let moved = quantile(Distribution::StudentT, &[df, 3.0, 2.0], q);
        assert!((moved - 3.0 - 2.0 * found).abs() < 1e-12);
    }
    for (q, expected) in [
        (0.025, -1.959_963_984_540_054_5),
        (0.5, 0.0),
        (0.99, 2.326_347_874_040_840_8),
    ] {
        let found = quantile(Distribution::Normal, &[1.0, 2.0], q);
        assert!(
            (found - 1.0 - 2.0 * expected).abs() < 1e-10,
            "normal, {q}: {found}"
        );
    }
    // Counts: those up to 2,000 exactly, larger ones within a thousandth.
    for (count, mean, q, expected) in [
        (3.0, 4.0, 0.1, 1.0),
        (3.0, 4.0, 0.5, 3.0),
        (3.0, 4.0, 0.9, 8.0),
        (0.3, 2.0, 0.5, 0.0),
        (0.3, 2.0, 0.9, 6.0),
        (50.0, 1500.0, 0.1, 1231.0),
        (50.0, 1500.0, 0.9, 1782.0),
        (1000.0, 1200.0, 0.01, 1083.0),
        (2.0, 30_000.0, 0.1, 7976.0),
        (2.0, 30_000.0, 0.9, 58_347.0),
        (0.5, 30_000.0, 0.99, 199_048.0),
    ] {
        let logits = f64::ln(mean / count);
        let found = quantile(Distribution::NegativeBinomial, &[count, logits], q);
        let most = if expected > 2000.0 {
            1e-3 * expected
        } else {
            0.0
        };
        assert!(
            (found - expected).abs() <= most,
            "counts, {count}, {mean}, {q}: {found} instead of {expected}"
        );
    }
    // The spread of the window multiplies the mean of counts.
    let (two, logits) = (one(2.0), one(0.3));
    let wide =
        Distribution::NegativeBinomial.quantile(&[two, logits], Some((&one(0.0), &one(5.0))), 0.7);
    let same = quantile(
        Distribution::NegativeBinomial,
        &[2.0, 0.3 + 5.0_f64.ln()],
        0.7,
    );
    assert!((wide.double_value(&[0]) - same).abs() < f64::EPSILON);
}

/// A daily season with noise that is the same in every run; `unit` rounds.
fn noisy(hours: i64, unit: f64) -> String {
    let mut text = "time,load\n".to_owned();
    for hour in 0..hours {
        let noise: i64 = (1..=6)
            .map(|i| (hour * 7919 + i * 104_729) * 31 % 199 - 99)
            .sum();
        let season = (std::f64::consts::TAU * hour as f64 / 24.0).sin();
        let value = 40.0 + 15.0 * season + noise as f64 / 40.0;
        writeln!(text, "{},{}", stamp(hour), (value / unit).round() * unit).expect("a string");
    }
    text
}

fn options(distribution: Distribution, folder: &std::path::Path) -> Options {
    let mut options = Options::new(6, folder.join("run"));
    options.device = Device::Cpu;
    options.settings.lookback = Some(48);
    options.settings.distribution = Some(distribution);
    options.settings.quantiles = vec![0.1, 0.9];
    options.settings.train.epochs = 12;
    options.settings.train.batch_size = 32;
    options
}

#[test]
fn a_distribution_is_fitted_saved_and_forecast() -> Result<()> {
    for distribution in [Distribution::StudentT, Distribution::NegativeBinomial] {
        let folder = tempfile::tempdir().map_err(densely_core::Error::io("tempdir"))?;
        let counts = distribution == Distribution::NegativeBinomial;
        let table = table(&noisy(24 * 50, if counts { 1.0 } else { 0.01 }))?;
        let options = options(distribution, folder.path());
        let model = Model::fit(&table, &options)?;
        let name = distribution.name();
        assert!(
            model
                .notes()
                .iter()
                .any(|note| note.contains("the one with a distribution head"))
        );
        let test = model.test().expect("a fit");
        let nll = test.nll().expect("a likelihood");
        let means = test.standardised();
        assert!(
            nll.is_finite() && means.mae < 0.35,
            "{name}: {nll}, {means:?}"
        );
        let coverage = test.coverage();
        let inside = coverage[1].1 - coverage[0].1;
        // The counts spread less than a negative binomial distribution can.
        let most = if counts { 1.0 } else { 0.97 };
        assert!((0.6..=most).contains(&inside), "{name}: {coverage:?}");

        let next = model.predict(&table, None)?;
        let names: Vec<&str> = next.columns.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["time", "load_forecast", "load_q0.1", "load_q0.9"]);
        let values = |at: usize| match &next.columns[at].1 {
            Output::Numbers(values) => values.clone(),
            _ => Vec::new(),
        };
        let (mean, low, high) = (values(1), values(2), values(3));
        assert_eq!(mean.len(), 6);
        for step in 0..6 {
            assert!(low[step] < mean[step] && mean[step] < high[step], "{name}");
            let whole = (low[step] - low[step].round()).abs() < 1e-3;
            assert!(!counts || whole, "{name}: {}", low[step]);
        }
        let again = Model::open(&folder.path().join("run"), Device::Cpu)?;
        assert_eq!(again.predict(&table, None)?.columns, next.columns);
    }
    Ok(())
}

#[test]
fn combinations_that_cannot_be_are_refused_with_advice() {
    let text = noisy(24 * 20, 0.01);
    let refused = |change: &dyn Fn(&mut Options)| -> Result<String> {
        let mut options = options(Distribution::StudentT, std::path::Path::new("unused"));
        change(&mut options);
        let prepared = Prepared::new(&table(&text)?, &options.settings, tch::Device::Cpu);
        Ok(prepared.expect_err("a wrong combination").to_string())
    };
    let says = |message: Result<String>, part: &str| {
        let message = message.expect("a table");
        assert!(message.contains(part), "{message}");
    };
    says(
        refused(&|options| options.settings.model.preset = "nlinear".to_owned()),
        "`nlinear` has no distribution head; patchtsmixer-forecast has one",
    );
    says(
        refused(&|options| {
            options.settings.data.calendar = vec![densely_data::calendar::CalendarPart::Hour];
        }),
        "read by tsmixer-ext, which has no distribution head",
    );
    says(
        refused(&|options| options.settings.train.loss = densely_timeseries::fit::Loss::Mae),
        "leave `train.loss` as it is",
    );
    says(
        refused(&|options| {
            let config = &mut options.settings.model.config;
            config.insert("distribution_output".to_owned(), "normal".into());
            options.settings.model.preset = "patchtsmixer-forecast".to_owned();
        }),
        "is set by `distribution`",
    );
    says(
        refused(&|options| {
            options.settings.distribution = Some(Distribution::NegativeBinomial);
        }),
        "is no count, and `negative_binomial` is for counts",
    );
}

#[test]
fn the_likelihood_has_a_gradient_for_large_counts() {
    let parameters = [2.0, 9.0].map(|value| one(value).set_requires_grad(true));
    let loss = Distribution::NegativeBinomial.nll(&parameters, None, &one(40_000.0));
    loss.backward();
    assert!(
        parameters
            .iter()
            .all(|xs| bool::try_from(xs.grad().isfinite().all()).unwrap_or(false))
    );
    assert_eq!(loss.kind(), Kind::Double);
}
