//! Errors of forecasts, as the M4 competition and the forecasting literature define them, in double precision.
//!
//! M4: Makridakis, Spiliotis, Assimakopoulos 2020, International Journal of Forecasting 36, and the organisers' code
//! (`Mcompetitions/M4-methods`, "Benchmarks and Evaluation.R"). Percentages are in percent.

use densely_core::{Error, Result, check};
use densely_train::metrics as flat;
use tch::{Kind, Tensor};

/// Forecast and actual values as one row of f64 each.
fn rows(forecast: &Tensor, actual: &Tensor) -> Result<(Tensor, Tensor)> {
    check::same_shape("forecast", forecast, actual)?;
    let row = |xs: &Tensor| xs.to_kind(Kind::Double).reshape([-1]);
    let (forecast, actual) = (row(forecast), row(actual));
    for (what, xs) in [("forecast", &forecast), ("actual", &actual)] {
        if xs.numel() == 0 || !bool::try_from(xs.isfinite().all())? {
            return Err(Error::Shape {
                what: what.to_owned(),
                expected: "finite values".to_owned(),
                got: "none, NaN or infinity".to_owned(),
            });
        }
    }
    Ok((forecast, actual))
}

/// Root of the mean squared error, in the unit of the series.
///
/// # Errors
/// [`Error::Shape`] when the two differ in size, are empty or hold a value that is not finite.
pub fn rmse(forecast: &Tensor, actual: &Tensor) -> Result<f64> {
    let (forecast, actual) = rows(forecast, actual)?;
    flat::rmse(&forecast, &actual)
}

/// Mean absolute error, in the unit of the series.
///
/// # Errors
/// Those of [`rmse`].
pub fn mae(forecast: &Tensor, actual: &Tensor) -> Result<f64> {
    let (forecast, actual) = rows(forecast, actual)?;
    flat::mae(&forecast, &actual)
}

/// Mean absolute error relative to the actual value, in percent.
///
/// # Errors
/// Those of [`rmse`], and when an actual value is 0: the error is not defined there.
pub fn mape(forecast: &Tensor, actual: &Tensor) -> Result<f64> {
    let (forecast, actual) = rows(forecast, actual)?;
    if bool::try_from(actual.eq(0.0).any())? {
        return Err(Error::Shape {
            what: "actual".to_owned(),
            expected: "no value of 0, where MAPE is not defined; take sMAPE or MAE".to_owned(),
            got: "0".to_owned(),
        });
    }
    Ok(mean(&((forecast - &actual) / actual).abs()) * 100.0)
}

/// Symmetric error of M4: the mean of 200 |y − ŷ| / (|y| + |ŷ|), in percent, 0 to 200; 0 where both are 0.
///
/// Over series of one horizon it is also the mean of the series' own.
/// # Errors
/// Those of [`rmse`].
pub fn smape(forecast: &Tensor, actual: &Tensor) -> Result<f64> {
    let (forecast, actual) = rows(forecast, actual)?;
    let size = forecast.abs() + actual.abs();
    let share = (forecast - actual).abs() / size.where_self(&size.gt(0.0), &size.ones_like());
    Ok(mean(&share) * 200.0)
}

/// What MASE divides by: the mean |yₜ − yₜ₋ₛ| over the history of a series, for season s (1 for none).
///
/// # Errors
/// [`Error::Config`] when the history is not longer than the season, or never differs from the season before.
pub fn mase_scale(history: &[f64], season: usize) -> Result<f64> {
    if season == 0 || history.len() <= season {
        let reason = format!(
            "must lie in 1 to {}, below the length of the history, got {season}",
            history.len().saturating_sub(1)
        );
        return Err(Error::config("season", reason));
    }
    let pairs = history[season..].iter().zip(history);
    let scale = pairs.map(|(now, before)| (now - before).abs()).sum::<f64>()
        / (history.len() - season) as f64;
    if scale > 0.0 && scale.is_finite() {
        return Ok(scale);
    }
    Err(Error::config(
        "history",
        format!(
            "its mean difference to the season before is {scale}, which MASE cannot be scaled by"
        ),
    ))
}

/// Mean absolute scaled error: |y − ŷ| of `[series, horizon]`, each series divided by its [`mase_scale`].
///
/// # Errors
/// Those of [`rmse`]; [`Error::Shape`] when there is not one scale above 0 for each series.
pub fn mase(forecast: &Tensor, actual: &Tensor, scales: &[f64]) -> Result<f64> {
    check::shape("actual", actual, &[Some(scales.len() as i64), None])?;
    let (forecast, actual) = rows(forecast, actual)?;
    if let Some(scale) = scales.iter().find(|scale| scale.is_nan() || **scale <= 0.0) {
        return Err(Error::Shape {
            what: "scales".to_owned(),
            expected: "values above 0".to_owned(),
            got: scale.to_string(),
        });
    }
    let errors = (forecast - actual).abs().view([scales.len() as i64, -1]);
    let scales = Tensor::from_slice(scales).to_device(errors.device());
    Ok(mean(&(errors / scales.unsqueeze(1))))
}

/// sMAPE and MASE of a method.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct M4Errors {
    /// [`smape`], percent.
    pub smape: f64,
    /// [`mase`].
    pub mase: f64,
}

impl M4Errors {
    /// Overall weighted average of M4: the mean of both errors, each relative to that of `naive2` ([`naive2`](fn@naive2)).
    pub fn owa(self, naive2: Self) -> f64 {
        f64::midpoint(self.smape / naive2.smape, self.mase / naive2.mase)
    }
}

/// Whether M4 takes a series for seasonal: at least three seasons long, and the autocorrelation at the season's lag is outside of its 90 %
/// interval.
///
/// As in the organisers' code a lag above 10 log₁₀(length), where R's `acf` stops, is not seasonal.
pub fn is_seasonal(history: &[f64], season: usize) -> bool {
    let n = history.len();
    if season < 2 || n < 3 * season || season > (10.0 * (n as f64).log10()) as usize {
        return false;
    }
    let mean = history.iter().sum::<f64>() / n as f64;
    let covariance = |lag: usize| -> f64 {
        let pairs = history[lag..].iter().zip(history);
        pairs.map(|(a, b)| (a - mean) * (b - mean)).sum()
    };
    let variance = covariance(0);
    let before: f64 = (1..season)
        .map(|lag| (covariance(lag) / variance).powi(2))
        .sum();
    let limit = 1.645 / (n as f64).sqrt() * (1.0 + 2.0 * before).sqrt();
    // A constant series gives NaN here, which is not above.
    (covariance(season) / variance).abs() > limit
}

/// Naive2 of M4: the last value again, of the series less its season where [`is_seasonal`] says so, and the season put back.
///
/// The season is that of R's classical multiplicative decomposition: values over their centred moving average, averaged by place in the
/// season, their mean made 1.
/// # Errors
/// [`Error::Config`] for an empty history, and when a seasonal one has values that are not above 0.
pub fn naive2(history: &[f64], season: usize, horizon: usize) -> Result<Vec<f64>> {
    let Some(last) = history.last() else {
        return Err(Error::config("history", "is empty"));
    };
    if !is_seasonal(history, season) {
        return Ok(vec![*last; horizon]);
    }
    if history.iter().any(|value| value.is_nan() || *value <= 0.0) {
        return Err(Error::config(
            "history",
            "is seasonal but not above 0 everywhere, and Naive2 divides by the season",
        ));
    }
    let figure = multiplicative_figure(history, season);
    let n = history.len();
    let level = last / figure[(n - 1) % season];
    Ok((0..horizon)
        .map(|h| level * figure[(n + h % season) % season])
        .collect())
}

fn multiplicative_figure(history: &[f64], season: usize) -> Vec<f64> {
    let n = history.len();
    let side = season / 2;
    let mut sums = vec![(0.0, 0.0); season];
    for at in side..n - side {
        let window = &history[at - side..=at + side];
        let mut total: f64 = window.iter().sum();
        if season.is_multiple_of(2) {
            // A window of an even season is one step too long: its ends count half.
            total -= f64::midpoint(window[0], window[season]);
        }
        let (sum, count) = &mut sums[at % season];
        *sum += history[at] / (total / season as f64);
        *count += 1.0;
    }
    let figure: Vec<f64> = sums.iter().map(|(sum, count)| sum / count).collect();
    let mean = figure.iter().sum::<f64>() / season as f64;
    figure.iter().map(|value| value / mean).collect()
}

/// Pinball (quantile) loss as a tensor to train on: the mean of max(q (y − ŷ), (q − 1) (y − ŷ)) over all values and quantiles.
///
/// # Shapes
/// `forecast`: `[…, quantiles]`, the quantiles of `levels` in their order; `actual`: `[…]`.
/// # Errors
/// [`Error::Config`] for levels that are not ascending and between 0 and 1; [`Error::Shape`] for sizes that do not fit.
pub fn pinball_loss(forecast: &Tensor, actual: &Tensor, levels: &[f64]) -> Result<Tensor> {
    let ascending = levels.windows(2).all(|pair| pair[0] < pair[1]);
    let inside = levels.iter().all(|level| *level > 0.0 && *level < 1.0);
    if levels.is_empty() || !ascending || !inside {
        let reason = format!("must ascend between 0 and 1, got {levels:?}");
        return Err(Error::config("levels", reason));
    }
    let size: Vec<Option<i64>> = actual
        .size()
        .into_iter()
        .chain([levels.len() as i64])
        .map(Some)
        .collect();
    check::shape("forecast", forecast, &size)?;
    let levels = Tensor::from_slice(levels)
        .to_kind(forecast.kind())
        .to_device(forecast.device());
    let error = actual.unsqueeze(-1) - forecast;
    Ok((&error * &levels)
        .maximum(&(&error * (levels - 1.0)))
        .mean(None::<Kind>))
}

/// [`pinball_loss`] in double precision.
///
/// # Errors
/// Those of [`pinball_loss`], and for values that are not finite.
pub fn pinball(forecast: &Tensor, actual: &Tensor, levels: &[f64]) -> Result<f64> {
    let (forecast, actual) = (forecast.to_kind(Kind::Double), actual.to_kind(Kind::Double));
    let loss = pinball_loss(&forecast, &actual, levels)?.double_value(&[]);
    if loss.is_finite() {
        return Ok(loss);
    }
    Err(Error::Shape {
        what: "forecast and actual".to_owned(),
        expected: "finite values".to_owned(),
        got: "none, NaN or infinity".to_owned(),
    })
}

/// Continuous ranked probability score from quantiles: twice their mean pinball loss, in the unit of the series. It is as good as the levels
/// are dense and evenly spread, as 0.1, 0.2, …, 0.9 are.
///
/// # Errors
/// Those of [`pinball`].
pub fn crps(forecast: &Tensor, actual: &Tensor, levels: &[f64]) -> Result<f64> {
    Ok(2.0 * pinball(forecast, actual, levels)?)
}

fn mean(xs: &Tensor) -> f64 {
    xs.mean(Kind::Double).double_value(&[])
}
