//! Ordinary least squares with the tests that go with it: how much of an edit's success the layer explains, and how much the tracing effect does.
//!
//! Layers are factors in treatment coding: an intercept for the first level, and a column of ones and zeros for every other. Columns
//! are made orthogonal one after the other (Gram-Schmidt, each twice, which is as exact as Householder's reflections); a column that those before it
//! explain is left out and named, so that a singular design gives the fit of what is left. Numbers equal those of statsmodels' `ols`.

use std::fmt;

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// Which columns explain the score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Design {
    /// The layer alone.
    Layer,
    /// The tracing effect alone.
    Trace,
    /// Both, with one slope for all layers.
    Sum,
    /// Both, with a slope for each layer.
    Product,
}

impl fmt::Display for Design {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Layer => "layer",
            Self::Trace => "tracing effect",
            Self::Sum => "layer + tracing effect",
            Self::Product => "layer × tracing effect",
        })
    }
}

/// A column of a design.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Its name in results.
    pub name: String,
    /// One value for each point.
    pub values: Vec<f64>,
}

/// A fitted line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// Names and coefficients, the intercept first, of the columns that were kept.
    pub coefficients: Vec<(String, f64)>,
    /// Columns that those before them explain, and that were left out.
    pub dropped: Vec<String>,
    /// Points.
    pub points: usize,
    /// Share of the score's variance that is explained; `None` where all scores are equal.
    pub r2: Option<f64>,
    /// The same with the number of columns counted against it; `None` also where no point is left over.
    pub adjusted_r2: Option<f64>,
    /// F against the intercept alone; `None` where it cannot be formed.
    pub f: Option<f64>,
    /// Probability of an F as large where nothing is explained.
    pub p: Option<f64>,
    /// Columns beside the intercept.
    pub df_model: usize,
    /// Points that are left over.
    pub df_residual: usize,
    /// Sum of the squares that are left.
    pub residual: f64,
}

/// F of a design against one that lies within it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Nested {
    /// The statistic.
    pub f: f64,
    /// Probability of one as large where the further columns explain nothing.
    pub p: f64,
    /// Further columns.
    pub df: usize,
}

impl Fit {
    /// Whether the further columns of this fit explain more than chance would, over a fit of the same points whose columns are a part of
    /// this one's. `None` where there are no further columns or no points are left over.
    ///
    /// # Errors
    /// [`Error::Config`] when the two have different numbers of points.
    pub fn over(&self, smaller: &Self) -> Result<Option<Nested>> {
        if self.points != smaller.points {
            let reason = format!(
                "must be of the same points, got {} and {}",
                self.points, smaller.points
            );
            return Err(Error::config("fits", reason));
        }
        let df = self.df_model.saturating_sub(smaller.df_model);
        if df == 0 || self.df_residual == 0 {
            return Ok(None);
        }
        let gain = (smaller.residual - self.residual).max(0.0) / df as f64;
        let f = gain / (self.residual / self.df_residual as f64);
        if f.is_nan() {
            return Ok(None);
        }
        Ok(Some(Nested {
            f,
            p: f_upper_tail(f, df as f64, self.df_residual as f64),
            df,
        }))
    }
}

/// Share of a column's norm below which those before it explain it.
const TOLERANCE: f64 = 1e-9;

/// Least squares of `scores` on an intercept and some columns.
///
/// # Errors
/// [`Error::Config`] when there is no point, a column has another length or a value is not finite.
pub fn least_squares(columns: &[Column], scores: &[f64]) -> Result<Fit> {
    let n = scores.len();
    if n == 0 {
        return Err(Error::config("points", "are none"));
    }
    for column in columns {
        if column.values.len() != n {
            let reason = format!("has {} values for {n} scores", column.values.len());
            return Err(Error::config(&column.name, reason));
        }
    }
    let all = columns.iter().map(|c| (c.name.as_str(), &c.values));
    for (name, values) in all.chain([("score", &scores.to_vec())]) {
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::config(name, format!("holds {value}")));
        }
    }
    let intercept = Column {
        name: "Intercept".to_owned(),
        values: vec![1.0; n],
    };
    let mut kept: Vec<&str> = Vec::new();
    let mut dropped = Vec::new();
    let mut basis: Vec<Vec<f64>> = Vec::new();
    // Upper triangle, a column for each kept column.
    let mut triangle: Vec<Vec<f64>> = Vec::new();
    for column in std::iter::once(&intercept).chain(columns) {
        let (rest, mut along) = orthogonal(&column.values, &basis);
        let (length, whole) = (
            dot(&rest, &rest).sqrt(),
            dot(&column.values, &column.values),
        );
        if length <= TOLERANCE * whole.sqrt() {
            dropped.push(column.name.clone());
            continue;
        }
        basis.push(rest.iter().map(|value| value / length).collect());
        along.push(length);
        triangle.push(along);
        kept.push(&column.name);
    }
    let (rest, along) = orthogonal(scores, &basis);
    let residual = dot(&rest, &rest);
    let mut coefficients = along;
    for i in (0..kept.len()).rev() {
        let value = coefficients[i] / triangle[i][i];
        coefficients[i] = value;
        for (above, entry) in coefficients.iter_mut().zip(&triangle[i]).take(i) {
            *above -= entry * value;
        }
    }
    let mean = scores.iter().sum::<f64>() / n as f64;
    let total: f64 = scores.iter().map(|y| (y - mean).powi(2)).sum();
    let df_model = kept.len().saturating_sub(1);
    let df_residual = n - kept.len();
    // Equal scores differ by rounding alone.
    let varies = total > 1e-24 * dot(scores, scores).max(f64::MIN_POSITIVE);
    let r2 = varies.then(|| 1.0 - residual / total);
    let adjusted_r2 = r2
        .filter(|_| df_residual > 0)
        .map(|r2| 1.0 - (1.0 - r2) * (n - 1) as f64 / df_residual as f64);
    let f = (varies && df_model > 0 && df_residual > 0)
        .then(|| ((total - residual) / df_model as f64) / (residual / df_residual as f64))
        .filter(|f| !f.is_nan());
    let p = f.map(|f| f_upper_tail(f.max(0.0), df_model as f64, df_residual as f64));
    let names = kept.into_iter().map(str::to_owned);
    Ok(Fit {
        coefficients: names.zip(coefficients).collect(),
        dropped,
        points: n,
        r2,
        adjusted_r2,
        f,
        p,
        df_model,
        df_residual,
        residual,
    })
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// What is left of `values` beside an orthonormal basis, and how much lies along each of it.
fn orthogonal(values: &[f64], basis: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>) {
    let mut rest = values.to_vec();
    let mut along = vec![0.0; basis.len()];
    for _ in 0..2 {
        for (direction, along) in basis.iter().zip(&mut along) {
            let part = dot(direction, &rest);
            *along += part;
            for (value, unit) in rest.iter_mut().zip(direction) {
                *value -= part * unit;
            }
        }
    }
    (rest, along)
}

/// The columns of a design over points given by layer and tracing effect.
///
/// # Errors
/// [`Error::Config`] when the two have different lengths.
pub fn columns(design: Design, layers: &[usize], effects: &[f64]) -> Result<Vec<Column>> {
    if layers.len() != effects.len() {
        let reason = format!("are {} for {} layers", effects.len(), layers.len());
        return Err(Error::config("tracing effects", reason));
    }
    let mut levels = layers.to_vec();
    levels.sort_unstable();
    levels.dedup();
    let of = |level: usize, values: &dyn Fn(usize) -> f64| {
        let value = |(i, layer): (usize, &usize)| {
            if *layer == level { values(i) } else { 0.0 }
        };
        layers.iter().enumerate().map(value).collect::<Vec<f64>>()
    };
    let mut found = Vec::new();
    let others = || levels.iter().copied().skip(1);
    if design != Design::Trace {
        found.extend(others().map(|level| Column {
            name: format!("layer[{level}]"),
            values: of(level, &|_| 1.0),
        }));
    }
    if design != Design::Layer {
        found.push(Column {
            name: "fraction".to_owned(),
            values: effects.to_vec(),
        });
    }
    if design == Design::Product {
        found.extend(others().map(|level| Column {
            name: format!("layer[{level}]:fraction"),
            values: of(level, &|i| effects.get(i).copied().unwrap_or(0.0)),
        }));
    }
    Ok(found)
}

/// Fits a design to points given by layer, tracing effect and score.
///
/// # Errors
/// Those of [`columns`] and [`least_squares`].
pub fn fit(design: Design, layers: &[usize], effects: &[f64], scores: &[f64]) -> Result<Fit> {
    least_squares(&columns(design, layers, effects)?, scores)
}

/// Pearson's correlation with its 95 % interval by Fisher's z.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Correlation {
    /// r.
    pub r: f64,
    /// Lower end; −1 where there are fewer than four points.
    pub low: f64,
    /// Upper end; 1 where there are fewer than four points.
    pub high: f64,
    /// Points.
    pub points: usize,
}

/// Correlation of two lists; `None` where one of them does not vary or they have fewer than two points in common.
pub fn correlation(xs: &[f64], ys: &[f64]) -> Option<Correlation> {
    let n = xs.len().min(ys.len());
    if n < 2 {
        return None;
    }
    let (xs, ys) = (xs.get(..n)?, ys.get(..n)?);
    let centred = |values: &[f64]| -> Vec<f64> {
        let mean = values.iter().sum::<f64>() / n as f64;
        values.iter().map(|value| value - mean).collect()
    };
    let (a, b) = (centred(xs), centred(ys));
    let (aa, bb) = (dot(&a, &a), dot(&b, &b));
    // What rounding leaves of equal values is no variance.
    if aa <= 1e-24 * dot(xs, xs) || bb <= 1e-24 * dot(ys, ys) {
        return None;
    }
    let r = (dot(&a, &b) / (aa * bb).sqrt()).clamp(-1.0, 1.0);
    let (low, high) = if n < 4 || r.abs() >= 1.0 {
        if r.abs() >= 1.0 && n >= 4 {
            (r, r)
        } else {
            (-1.0, 1.0)
        }
    } else {
        let half = 1.959_963_984_540_054 / ((n - 3) as f64).sqrt();
        ((r.atanh() - half).tanh(), (r.atanh() + half).tanh())
    };
    Some(Correlation {
        r,
        low,
        high,
        points: n,
    })
}

/// Probability that F of these degrees of freedom is at least `f`.
pub fn f_upper_tail(f: f64, df_model: f64, df_residual: f64) -> f64 {
    if f <= 0.0 {
        return 1.0;
    }
    if f.is_infinite() {
        return 0.0;
    }
    incomplete_beta(
        df_residual / 2.0,
        df_model / 2.0,
        df_residual / (df_residual + df_model * f),
    )
}

/// The regularised incomplete beta function `I_x(a, b)` by its continued fraction (Lentz), for a and b above 0.
pub fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    // The fraction converges quickly on the lower side of the mean alone.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    let front = a * x.ln() + b * (-x).ln_1p() + ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b);
    let tiny = 1e-300;
    let away = |value: f64| if value.abs() < tiny { tiny } else { value };
    let (mut c, mut d) = (1.0, 1.0 / away(1.0 - (a + b) * x / (a + 1.0)));
    let mut result = d;
    for m in 1..1000 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for term in [even, odd] {
            d = 1.0 / away(1.0 + term * d);
            c = away(1.0 + term / c);
            change = c * d;
            result *= change;
        }
        if (change - 1.0).abs() < 1e-15 {
            break;
        }
    }
    (front.exp() * result / a).clamp(0.0, 1.0)
}

/// ln Γ for numbers above 0 (Lanczos, g = 7).
fn ln_gamma(x: f64) -> f64 {
    const TERMS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        let sine = (std::f64::consts::PI * x).sin();
        return (std::f64::consts::PI / sine).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let mut sum = 0.999_999_999_999_809_9;
    for (i, term) in TERMS.iter().enumerate() {
        sum += term / (x + i as f64 + 1.0);
    }
    let t = x + 7.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beta_function_has_its_known_values() {
        // I_x(1, b) = 1 - (1 - x)^b, I_x(a, 1) = x^a, I_½(a, a) = ½.
        for x in [0.01f64, 0.3, 0.77, 0.999] {
            for b in [0.5f64, 1.0, 3.0, 250.0] {
                let expected = 1.0 - (1.0 - x).powf(b);
                assert!((incomplete_beta(1.0, b, x) - expected).abs() < 1e-13);
                let expected = x.powf(b);
                assert!((incomplete_beta(b, 1.0, x) - expected).abs() < 1e-13);
            }
        }
        for a in [0.5, 2.0, 40.0, 3000.0] {
            assert!((incomplete_beta(a, a, 0.5) - 0.5).abs() < 1e-10);
        }
        // ln 5! and ln Γ(½).
        assert!((ln_gamma(6.0) - 120.0f64.ln()).abs() < 1e-13);
        assert!((ln_gamma(0.5) - std::f64::consts::PI.sqrt().ln()).abs() < 1e-13);
    }
}
