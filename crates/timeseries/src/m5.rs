//! M5: daily unit sales of items in stores, summed up over 12 levels, and the error that weighs them by what was sold.
//!
//! Makridakis, Spiliotis, Assimakopoulos 2022, International Journal of Forecasting 38, "The M5 competition", and its
//! competitors' guide. On the full data 30,490 series of items in stores make 42,840 series on all levels.
//!
//! ```text
//! WRMSSE = mean over the 12 levels of  Σᵢ wᵢ · √(meanₕ (y − ŷ)² / sᵢ)
//! sᵢ     mean of (yₜ − yₜ₋₁)² over the training days from the first sale on
//! wᵢ     the series' share of the dollars of the last 28 training days
//! ```
//!
//! Forecasts are those of the items in stores; those above are their sums. No more than one summed series is in memory at a time.
//! A series whose weight is 0 takes no part on its own level, also where it was never sold and has no scale.

mod read;

use std::collections::{BTreeMap, HashSet};

use densely_core::{Error, Result, check};
use tch::{Kind, Tensor};

pub use read::{M5, WEIGHT_DAYS, read};

/// What an item in a store belongs to, by the competition's names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Keys {
    /// The item, as `FOODS_1_001`.
    pub item: String,
    /// Its department, as `FOODS_1`.
    pub dept: String,
    /// Its category, as `FOODS`.
    pub cat: String,
    /// The store, as `CA_1`.
    pub store: String,
    /// Its state, as `CA`.
    pub state: String,
}

type Group = fn(&Keys) -> [&str; 2];

/// Name of each level and what its series sum over, in the competition's order.
const LEVELS: [(&str, Group); 12] = [
    ("total", |_| ["total", ""]),
    ("state", |keys| [&keys.state, ""]),
    ("store", |keys| [&keys.store, ""]),
    ("category", |keys| [&keys.cat, ""]),
    ("department", |keys| [&keys.dept, ""]),
    ("state and category", |keys| [&keys.state, &keys.cat]),
    ("state and department", |keys| [&keys.state, &keys.dept]),
    ("store and category", |keys| [&keys.store, &keys.cat]),
    ("store and department", |keys| [&keys.store, &keys.dept]),
    ("item", |keys| [&keys.item, ""]),
    ("item and state", |keys| [&keys.item, &keys.state]),
    ("item and store", |keys| [&keys.item, &keys.store]),
];

/// One level of the hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// What its series stand for.
    pub name: &'static str,
    /// Name of each series, in the order of the alphabet; two parts are joined by a space.
    pub names: Vec<String>,
    /// Items in stores that each series sums up, by their place in the list that the hierarchy was made of.
    pub members: Vec<Vec<u32>>,
}

/// The 12 levels over items in stores, the whole first and the items in stores last.
///
/// # Errors
/// [`Error::Config`] when there is none, or an item stands twice in a store.
pub fn hierarchy(keys: &[Keys]) -> Result<Vec<Level>> {
    if keys.is_empty() {
        return Err(Error::config("series", "there is none"));
    }
    let mut seen = HashSet::with_capacity(keys.len());
    if let Some(twice) = keys
        .iter()
        .find(|keys| !seen.insert((&keys.item, &keys.store)))
    {
        let reason = format!("`{}` stands twice in store `{}`", twice.item, twice.store);
        return Err(Error::config("series", reason));
    }
    let level = |(name, group): &(&'static str, Group)| {
        let mut members: BTreeMap<[&str; 2], Vec<u32>> = BTreeMap::new();
        for (at, keys) in keys.iter().enumerate() {
            members.entry(group(keys)).or_default().push(at as u32);
        }
        Level {
            name,
            names: members
                .keys()
                .map(|parts| parts.join(" ").trim_end().to_owned())
                .collect(),
            members: members.into_values().collect(),
        }
    };
    Ok(LEVELS.iter().map(level).collect())
}

/// Units of each item in a store on each day, in 4 bytes each.
#[derive(Debug, Clone, PartialEq)]
pub struct Units {
    values: Vec<f32>,
    days: usize,
}

impl Units {
    /// Takes `values`, series by series, `days` each.
    ///
    /// # Errors
    /// [`Error::Config`] when they do not divide by `days`, or one is below 0 or not finite.
    pub fn new(values: Vec<f32>, days: usize) -> Result<Self> {
        if days == 0 || values.is_empty() || !values.len().is_multiple_of(days) {
            let reason = format!("{} values are no series of {days} days", values.len());
            return Err(Error::config("units", reason));
        }
        if let Some(at) = values
            .iter()
            .position(|value| !(*value >= 0.0 && value.is_finite()))
        {
            let reason = format!(
                "must be at least 0 and finite, got {} for series {} on day {}",
                values[at],
                at / days,
                at % days + 1
            );
            return Err(Error::config("units", reason));
        }
        Ok(Self { values, days })
    }

    /// Days of each series.
    pub fn days(&self) -> usize {
        self.days
    }

    /// Number of series.
    pub fn series(&self) -> usize {
        self.values.len() / self.days
    }

    /// The days of one series.
    ///
    /// # Panics
    /// When there is no such series.
    pub fn of(&self, series: usize) -> &[f32] {
        &self.values[series * self.days..(series + 1) * self.days]
    }

    /// A copy of days `from` (counted from 0) up to but without `to`: `[series, days]`, f32.
    ///
    /// # Errors
    /// [`Error::Config`] when there are no such days.
    pub fn tensor(&self, from: usize, to: usize) -> Result<Tensor> {
        if from >= to || to > self.days {
            let reason = format!("{from} to {to} do not lie in the {} days", self.days);
            return Err(Error::config("days", reason));
        }
        let days: Vec<f32> = self
            .values
            .chunks_exact(self.days)
            .flat_map(|series| &series[from..to])
            .copied()
            .collect();
        Ok(Tensor::from_slice(&days).view([self.series() as i64, (to - from) as i64]))
    }
}

/// The competition's error of point forecasts: levels, weights and scales of the training days.
#[derive(Debug)]
pub struct Wrmsse {
    levels: Vec<Level>,
    /// Of each level, weight and scale of each series; the scale is NaN where the weight is 0.
    factors: Vec<Vec<(f64, f64)>>,
    series: usize,
}

/// An error and what it is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// The competition's error: the mean of the levels'.
    pub wrmsse: f64,
    /// Name and error of each level.
    pub levels: Vec<(&'static str, f64)>,
}

impl Wrmsse {
    /// Takes scales from the first `train_days` of `units`, and weights from the `dollars` that each series took in the last 28 of them
    /// ([`M5::dollars`]).
    ///
    /// # Errors
    /// [`Error::Config`] for numbers of series or days that do not fit, dollars below 0, none at all, and a series with a
    /// weight whose training days do not change from its first sale on: its error has no scale.
    pub fn new(keys: &[Keys], units: &Units, train_days: usize, dollars: &[f64]) -> Result<Self> {
        let series = units.series();
        if keys.len() != series || dollars.len() != series {
            let reason = format!(
                "there are keys of {} and dollars of {}, but units of {series}",
                keys.len(),
                dollars.len()
            );
            return Err(Error::config("series", reason));
        }
        if !(2..=units.days()).contains(&train_days) {
            let reason = format!("must lie in 2 to {}, got {train_days}", units.days());
            return Err(Error::config("train_days", reason));
        }
        if let Some(at) = dollars
            .iter()
            .position(|value| !(*value >= 0.0 && value.is_finite()))
        {
            let reason = format!(
                "must be at least 0 and finite, got {} for series {at}",
                dollars[at]
            );
            return Err(Error::config("dollars", reason));
        }
        let all: f64 = dollars.iter().sum();
        if all <= 0.0 {
            return Err(Error::config(
                "dollars",
                "nothing was sold, so there are no weights",
            ));
        }
        let levels = hierarchy(keys)?;
        let mut sum = vec![0.0; train_days];
        let mut factors = Vec::with_capacity(levels.len());
        // From below, so that an error names the item and the store.
        for level in levels.iter().rev() {
            let mut of_level = Vec::with_capacity(level.members.len());
            for (name, members) in level.names.iter().zip(&level.members) {
                let own: f64 = members.iter().map(|at| dollars[*at as usize]).sum();
                let weight = own / all;
                if weight == 0.0 {
                    of_level.push((0.0, f64::NAN));
                    continue;
                }
                sum.fill(0.0);
                for at in members {
                    for (day, value) in sum.iter_mut().zip(units.of(*at as usize)) {
                        *day += f64::from(*value);
                    }
                }
                match scale(&sum) {
                    Some(scale) if scale > 0.0 => of_level.push((weight, scale)),
                    _ => {
                        let reason = format!(
                            "the {train_days} training days of `{name}` ({}) do not change from its first sale on, so its error has no scale; take more days or leave the series out",
                            level.name
                        );
                        return Err(Error::config("units", reason));
                    }
                }
            }
            factors.push(of_level);
        }
        factors.reverse();
        Ok(Self {
            levels,
            factors,
            series,
        })
    }

    /// The 12 levels.
    pub fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// Weights of the series of `level`, counted from 0; they add up to 1.
    ///
    /// # Panics
    /// When there is no such level.
    pub fn weights(&self, level: usize) -> Vec<f64> {
        self.factors[level]
            .iter()
            .map(|(weight, _)| *weight)
            .collect()
    }

    /// The error of `forecast` for `actual`, both `[series, days]` of items in stores, any float kind.
    ///
    /// # Errors
    /// [`Error::Shape`] for other sizes, and for values that are not finite.
    pub fn score(&self, forecast: &Tensor, actual: &Tensor) -> Result<Score> {
        check::shape("forecast", forecast, &[Some(self.series as i64), None])?;
        let horizon = forecast.size()[1];
        check::shape("actual", actual, &[self.series as i64, horizon].map(Some))?;
        let errors = forecast.to_kind(Kind::Double) - actual.to_kind(Kind::Double);
        let errors: Vec<f64> = Vec::try_from(errors.flatten(0, 1).to_device(tch::Device::Cpu))?;
        if horizon == 0 || errors.iter().any(|error| !error.is_finite()) {
            return Err(Error::Shape {
                what: "forecast - actual".to_owned(),
                expected: "finite values".to_owned(),
                got: if horizon == 0 {
                    "none"
                } else {
                    "NaN or infinity"
                }
                .to_owned(),
            });
        }
        let horizon = horizon as usize;
        let mut sum = vec![0.0; horizon];
        let mut levels = Vec::with_capacity(self.levels.len());
        for (level, factors) in self.levels.iter().zip(&self.factors) {
            let mut error = 0.0;
            for (members, (weight, scale)) in level.members.iter().zip(factors) {
                if *weight == 0.0 {
                    continue;
                }
                sum.fill(0.0);
                for at in members {
                    let own = &errors[*at as usize * horizon..][..horizon];
                    for (day, value) in sum.iter_mut().zip(own) {
                        *day += value;
                    }
                }
                let squared = sum.iter().map(|e| e * e).sum::<f64>() / horizon as f64;
                error += weight * (squared / scale).sqrt();
            }
            levels.push((level.name, error));
        }
        let wrmsse = levels.iter().map(|(_, error)| error).sum::<f64>() / levels.len() as f64;
        Ok(Score { wrmsse, levels })
    }
}

/// Mean squared difference between days from the first sale on; `None` when it is on the last day or there is none.
fn scale(days: &[f64]) -> Option<f64> {
    let first = days.iter().position(|units| *units > 0.0)?;
    let sold = &days[first..];
    let squared: f64 = sold
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).powi(2))
        .sum();
    (sold.len() > 1).then(|| squared / (sold.len() - 1) as f64)
}
