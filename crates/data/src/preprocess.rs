//! From columns to features: fitted on the training rows only, saved with the model.

mod raw;

use std::collections::HashMap;
use std::path::Path;

use densely_core::{Error, Result};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::calendar::CalendarPart;
use crate::dataset::Dataset;
use crate::matrix::Matrix;
use crate::quantile;
use crate::schema::{Role, Schema, Task};
use crate::split::Split;
use crate::table::{MISSING, Table, available_memory};

/// What happens to numbers before the network sees them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum NumericTransform {
    /// Normal quantile of the rank among training rows; see [`quantile`]. Missing values become 0.
    NoisyQuantile {
        /// Standard deviation of what is added to the training column, for fitting only.
        #[serde(default = "default_noise")]
        noise: f64,
    },
    /// Mean 0 and population standard deviation 1. Missing values become 0.
    Standard,
    /// As they are, for columns that are normalised already. Missing values become 0.
    None,
}

fn default_noise() -> f64 {
    1e-5
}

impl Default for NumericTransform {
    fn default() -> Self {
        Self::NoisyQuantile {
            noise: default_noise(),
        }
    }
}

pub use raw::RawColumn;

/// How columns become features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreprocessConfig {
    /// What happens to numbers.
    pub numeric: NumericTransform,
    /// Most categories of a column; rarer ones share the code of unseen ones.
    pub max_categories: usize,
    /// Parts of the time column that become numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub calendar: Vec<CalendarPart>,
    /// Seed of the noise.
    pub seed: u64,
}

impl Default for PreprocessConfig {
    fn default() -> Self {
        Self {
            numeric: NumericTransform::default(),
            max_categories: 1000,
            calendar: Vec::new(),
            seed: 0,
        }
    }
}

/// The fitted preprocessing: all that is needed to turn raw rows into features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessor {
    numeric: Vec<NumericColumn>,
    categorical: Vec<CategoricalColumn>,
    target: Target,
    weight: Option<String>,
    #[serde(skip)]
    warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NumericColumn {
    name: String,
    /// For a column of times: the part that is the feature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    part: Option<CalendarPart>,
    transform: Fitted,
}

impl NumericColumn {
    /// The values before the transform, NaN where missing.
    fn values(&self, table: &Table) -> Result<Vec<f64>> {
        numbers_of(table, &self.name, self.part)
    }
}

fn numbers_of(table: &Table, name: &str, part: Option<CalendarPart>) -> Result<Vec<f64>> {
    match part {
        None => table.numbers(name),
        Some(part) => part.of(table, name),
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fitted {
    Quantiles(Vec<f64>),
    Standard { mean: f64, std: f64 },
    None,
}

/// Codes are places in `categories`; behind them one for missing values, where training had some; the code
/// after the last stands for unseen values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CategoricalColumn {
    name: String,
    categories: Vec<String>,
    missing: bool,
}

impl CategoricalColumn {
    fn cardinality(&self) -> i64 {
        self.categories.len() as i64 + i64::from(self.missing)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    name: String,
    task: Task,
    mean: f64,
    std: f64,
    classes: Vec<String>,
    /// The classes are whether the number is above this value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    above: Option<f64>,
}

impl Target {
    /// The target as texts: codes and names.
    fn texts(&self, table: &Table) -> Result<(Vec<u32>, Vec<String>)> {
        let Some(above) = self.above else {
            return table.texts(&self.name);
        };
        let code = |value: &f64| match *value {
            value if value.is_nan() => MISSING,
            value => u32::from(value > above),
        };
        let codes = table.numbers(&self.name)?.iter().map(code).collect();
        Ok((
            codes,
            vec![format!("up to {above}"), format!("above {above}")],
        ))
    }
}

impl Preprocessor {
    /// Fits on the training rows of `split`.
    ///
    /// # Errors
    /// [`Error::Data`] for infinite values, texts among numbers, or when no feature is left.
    pub fn fit(
        table: &Table,
        schema: &Schema,
        split: &Split,
        config: &PreprocessConfig,
    ) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        Self::fit_with_noise(table, schema, split, config, |_, _| {
            StandardNormal.sample(&mut rng)
        })
    }

    /// As [`fit`](Self::fit), with standard normal noise from `noise(column, training row)`, called column by
    /// column; to match a reference whose generator is another.
    ///
    /// # Errors
    /// Those of [`fit`](Self::fit).
    pub fn fit_with_noise(
        table: &Table,
        schema: &Schema,
        split: &Split,
        config: &PreprocessConfig,
        mut noise: impl FnMut(usize, usize) -> f64,
    ) -> Result<Self> {
        let mut warnings = Vec::new();
        let mut numeric = Vec::new();
        let plain = schema.with_role(Role::Numeric).map(|name| (name, None));
        let times = schema.with_role(Role::Time);
        let parts = times.flat_map(|name| config.calendar.iter().map(move |p| (name, Some(*p))));
        for (at, (name, part)) in plain.chain(parts).enumerate() {
            let all = numbers_of(table, name, part)?;
            let mut column: Vec<f32> = split
                .train
                .iter()
                .map(|row| all[*row as usize] as f32)
                .collect();
            let mut present = column.iter().filter(|value| !value.is_nan());
            let first = present.next();
            if present.all(|value| Some(value) == first) {
                let part = part.map_or_else(String::new, |part| format!(":{}", part.name()));
                warnings.push(format!(
                    "column `{name}{part}` has one value in the training rows: left out"
                ));
                continue;
            }
            let transform = match config.numeric {
                NumericTransform::NoisyQuantile { noise: scale } => {
                    for (row, value) in column.iter_mut().enumerate() {
                        *value += (noise(at, row) * scale) as f32;
                    }
                    Fitted::Quantiles(quantile::fit(
                        &column,
                        quantile::quantile_count(column.len()),
                    ))
                }
                NumericTransform::Standard => {
                    let (mean, std) = moments(column.iter().map(|value| f64::from(*value)));
                    Fitted::Standard { mean, std }
                }
                NumericTransform::None => Fitted::None,
            };
            numeric.push(NumericColumn {
                name: name.to_owned(),
                part,
                transform,
            });
        }
        let mut categorical = Vec::new();
        for role in [Role::Binary, Role::Categorical] {
            for name in schema.with_role(role) {
                let column = fit_categories(table, name, split, config, &mut warnings)?;
                categorical.extend(column);
            }
        }
        if numeric.is_empty() && categorical.is_empty() {
            return Err(Error::data(
                table.path(),
                "no column is left that can be a feature",
            ));
        }
        let target = fit_target(table, schema, split)?;
        let weight = schema.with_role(Role::Weight).next().map(str::to_owned);
        Ok(Self {
            numeric,
            categorical,
            target,
            weight,
            warnings,
        })
    }

    /// Numerical features.
    pub fn n_num(&self) -> usize {
        self.numeric.len()
    }

    /// Names of the numerical features, in the order of `x_num`.
    pub fn num_columns(&self) -> impl Iterator<Item = &str> {
        self.numeric.iter().map(|column| column.name.as_str())
    }

    /// A name for each feature, numbers first; parts of the calendar stand behind a colon.
    pub fn feature_names(&self) -> Vec<String> {
        let numbers = self.numbers().map(|(name, part)| match part {
            None => name.to_owned(),
            Some(part) => format!("{name}:{}", part.name()),
        });
        numbers
            .chain(self.cat_columns().map(str::to_owned))
            .collect()
    }

    /// Names of the categorical features, in the order of `x_cat`.
    pub fn cat_columns(&self) -> impl Iterator<Item = &str> {
        self.categorical.iter().map(|column| column.name.as_str())
    }

    /// Name and categories of each categorical feature, and whether missing values have a code of their own.
    pub(crate) fn categories(&self) -> impl Iterator<Item = (&str, &[String], bool)> {
        self.categorical.iter().map(|column| {
            (
                column.name.as_str(),
                column.categories.as_slice(),
                column.missing,
            )
        })
    }

    /// Column of each numerical feature, and the part of the calendar that it is, if one.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = (&str, Option<CalendarPart>)> {
        self.numeric
            .iter()
            .map(|column| (column.name.as_str(), column.part))
    }

    /// The feature of the numerical column at this place.
    pub(crate) fn numeric_feature(&self, at: usize, values: &[f32]) -> Vec<f32> {
        self.numeric[at].feature(values)
    }

    /// Codes of each categorical feature; a code equal to the cardinality stands for unseen.
    pub fn cat_cardinalities(&self) -> Vec<i64> {
        self.categorical
            .iter()
            .map(CategoricalColumn::cardinality)
            .collect()
    }

    /// The classes of the target in the order of their numbers; empty for regression.
    pub fn classes(&self) -> &[String] {
        &self.target.classes
    }

    /// Mean and population standard deviation of the training targets; none for classes.
    pub fn target_scale(&self) -> Option<(f64, f64)> {
        (self.target.task == Task::Regression).then_some((self.target.mean, self.target.std))
    }

    /// The column that is predicted.
    pub fn target(&self) -> &str {
        &self.target.name
    }

    /// What was left out while fitting, and why.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Reads a preprocessor that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Corrupt`].
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        serde_json::from_str(&text).map_err(|e| Error::corrupt(path, e.to_string()))
    }

    /// Writes the preprocessor as JSON, atomically.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string(self).map_err(|e| Error::corrupt(path, e.to_string()))?;
        densely_core::fs::write(path, text.as_bytes())
    }

    /// Features of the given rows (all rows when `None`), and their targets and weights when `with_target`.
    ///
    /// Columns that were not used in training are ignored.
    /// # Errors
    /// [`Error::Data`] listing all missing columns; naming the row of an infinite value, a text among numbers, a
    /// missing target, a class unseen in training or a weight that is negative or missing.
    pub fn transform(
        &self,
        table: &Table,
        rows: Option<&[u32]>,
        with_target: bool,
    ) -> Result<Dataset> {
        self.transform_within(table, rows, with_target, available_memory() / 2)
    }

    /// As [`transform`](Self::transform), with the bytes up to which the features are held in memory. Larger ones lie
    /// in a file in the temporary folder, which goes with the dataset; batches are then read from the disk.
    ///
    /// # Errors
    /// Those of [`transform`](Self::transform), and [`Error::Io`] of that file.
    pub fn transform_within(
        &self,
        table: &Table,
        rows: Option<&[u32]>,
        with_target: bool,
        bytes: u64,
    ) -> Result<Dataset> {
        self.check_columns(table, with_target)?;
        let all: Vec<u32>;
        let rows = if let Some(rows) = rows {
            rows
        } else {
            all = (0..table.row_count() as u32).collect();
            &all
        };
        let cells = rows.len() as u64 * (self.numeric.len() + self.categorical.len()) as u64;
        let in_file = cells * 4 > bytes;
        if in_file {
            tracing::warn!(
                "the features take {} MB, more than the free memory allows: they go to a file in {}",
                cells * 4 / 1_000_000,
                std::env::temp_dir().display()
            );
        }
        let mut x_num = Matrix::new(rows.len(), in_file)?;
        for column in &self.numeric {
            let values = column.values(table)?;
            let values: Vec<f32> = rows
                .iter()
                .map(|row| values[*row as usize] as f32)
                .collect();
            x_num.push(&column.feature(&values))?;
        }
        let mut x_cat = Matrix::new(rows.len(), in_file)?;
        for column in &self.categorical {
            x_cat.push(&encode(table, column, rows)?)?;
        }
        let y = with_target.then(|| self.targets(table, rows)).transpose()?;
        let weight = match &self.weight {
            Some(name) if with_target => Some(weights(table, name, rows)?),
            _ => None,
        };
        Ok(Dataset {
            x_num: x_num.finish()?,
            x_cat: x_cat.finish()?,
            y,
            weight,
        })
    }

    fn check_columns(&self, table: &Table, with_target: bool) -> Result<()> {
        let target = with_target.then_some(self.target.name.as_str());
        let weight = self.weight.as_deref().filter(|_| with_target);
        let needed = self
            .num_columns()
            .chain(self.cat_columns())
            .chain(target)
            .chain(weight);
        let absent: Vec<&str> = needed
            .filter(|name| !table.names().iter().any(|column| column == name))
            .collect();
        if absent.is_empty() {
            return Ok(());
        }
        let reason = format!(
            "columns that the model was trained on are missing: `{}`",
            absent.join("`, `")
        );
        Err(Error::data(table.path(), reason))
    }

    fn targets(&self, table: &Table, rows: &[u32]) -> Result<Tensor> {
        let Target {
            name,
            task,
            mean,
            std,
            classes,
            ..
        } = &self.target;
        let missing = |row: u32| table.error(name, row as usize, "the target is missing");
        if *task == Task::Regression {
            let values = table.numbers(name)?;
            let scaled = |row: &u32| match values[*row as usize] {
                value if value.is_nan() => Err(missing(*row)),
                value => Ok(((value - mean) / std) as f32),
            };
            return Ok(Tensor::from_slice(
                &rows.iter().map(scaled).collect::<Result<Vec<f32>>>()?,
            ));
        }
        let (codes, names) = self.target.texts(table)?;
        let numbers: HashMap<&str, i64> = classes
            .iter()
            .enumerate()
            .map(|(i, class)| (class.as_str(), i as i64))
            .collect();
        let class = |row: &u32| {
            let name_of = names
                .get(codes[*row as usize] as usize)
                .ok_or_else(|| missing(*row))?;
            numbers.get(name_of.as_str()).copied().ok_or_else(|| {
                let reason = format!(
                    "class `{name_of}` was not among the training rows, which had: {}",
                    classes
                        .iter()
                        .take(8)
                        .cloned()
                        .collect::<Vec<_>>()
                        .join(", ")
                );
                table.error(name, *row as usize, reason)
            })
        };
        Ok(Tensor::from_slice(
            &rows.iter().map(class).collect::<Result<Vec<i64>>>()?,
        ))
    }
}

impl NumericColumn {
    /// What the network sees of these values; NaN, for missing ones, becomes 0.
    fn feature(&self, values: &[f32]) -> Vec<f32> {
        let mut values = self.transform.apply(values);
        values
            .iter_mut()
            .filter(|value| value.is_nan())
            .for_each(|value| *value = 0.0);
        values
    }
}

impl Fitted {
    fn apply(&self, values: &[f32]) -> Vec<f32> {
        match self {
            Self::Quantiles(quantiles) => quantile::transform(values, quantiles),
            Self::Standard { mean, std } => values
                .iter()
                .map(|value| ((f64::from(*value) - mean) / std) as f32)
                .collect(),
            Self::None => values.to_vec(),
        }
    }
}

/// Mean and population standard deviation, NaN left out.
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let present = values.filter(|value| !value.is_nan());
    let n = present.clone().count().max(1) as f64;
    let mean = present.clone().sum::<f64>() / n;
    let variance = present.map(|value| (value - mean).powi(2)).sum::<f64>() / n;
    (mean, variance.sqrt())
}

fn fit_categories(
    table: &Table,
    name: &str,
    split: &Split,
    config: &PreprocessConfig,
    warnings: &mut Vec<String>,
) -> Result<Option<CategoricalColumn>> {
    let (codes, names) = table.texts(name)?;
    let mut counts = vec![0u64; names.len()];
    let mut missing = false;
    for row in &split.train {
        match codes[*row as usize] {
            MISSING => missing = true,
            code => counts[code as usize] += 1,
        }
    }
    let mut seen: Vec<usize> = (0..names.len()).filter(|code| counts[*code] > 0).collect();
    if seen.len() + usize::from(missing) < 2 {
        warnings.push(format!(
            "column `{name}` has one value in the training rows: left out"
        ));
        return Ok(None);
    }
    if seen.len() > config.max_categories {
        warnings.push(format!(
            "column `{name}` has {} categories: the {} most frequent are kept, the rest count as unseen",
            seen.len(),
            config.max_categories
        ));
        seen.sort_by_key(|code| (std::cmp::Reverse(counts[*code]), &names[*code]));
        seen.truncate(config.max_categories);
    }
    let mut categories: Vec<String> = seen.into_iter().map(|code| names[code].clone()).collect();
    categories.sort();
    Ok(Some(CategoricalColumn {
        name: name.to_owned(),
        categories,
        missing,
    }))
}

fn fit_target(table: &Table, schema: &Schema, split: &Split) -> Result<Target> {
    let name = schema.target().to_owned();
    let task = schema.task();
    if task == Task::Regression {
        let values = table.numbers(&name)?;
        let (mean, std) = moments(split.train.iter().map(|row| values[*row as usize]));
        if std == 0.0 {
            let reason =
                "the target has one value only in the training rows: there is nothing to learn";
            return Err(Error::column(table.path(), name, reason));
        }
        return Ok(Target {
            name,
            task,
            mean,
            std,
            classes: Vec::new(),
            above: None,
        });
    }
    let mut target = Target {
        name,
        task,
        mean: 0.0,
        std: 1.0,
        classes: Vec::new(),
        above: schema.target_above(),
    };
    let (codes, names) = target.texts(table)?;
    let mut seen = vec![false; names.len()];
    split
        .train
        .iter()
        .for_each(|row| seen[codes[*row as usize] as usize] = true);
    let mut classes: Vec<String> = names
        .into_iter()
        .zip(seen)
        .filter(|(_, seen)| *seen)
        .map(|(name, _)| name)
        .collect();
    // Numbers in their own order, texts in the alphabet's.
    if target.above.is_some() {
        // Below before above, as they stand.
    } else if classes.iter().all(|class| class.parse::<f64>().is_ok()) {
        let value = |class: &String| class.parse::<f64>().unwrap_or(f64::NAN);
        classes.sort_by(|a, b| value(a).total_cmp(&value(b)));
    } else {
        classes.sort();
    }
    if classes.len() < 2 {
        return Err(Error::column(
            table.path(),
            &target.name,
            "the training rows hold one class only",
        ));
    }
    target.classes = classes;
    Ok(target)
}

fn encode(table: &Table, column: &CategoricalColumn, rows: &[u32]) -> Result<Vec<i32>> {
    let (codes, names) = table.texts(&column.name)?;
    let known: HashMap<&str, i32> = column
        .categories
        .iter()
        .enumerate()
        .map(|(i, name)| (name.as_str(), i as i32))
        .collect();
    let unseen = column.cardinality() as i32;
    let missing = if column.missing {
        column.categories.len() as i32
    } else {
        unseen
    };
    let map: Vec<i32> = names
        .iter()
        .map(|name| known.get(name.as_str()).copied().unwrap_or(unseen))
        .collect();
    Ok(rows
        .iter()
        .map(|row| {
            map.get(codes[*row as usize] as usize)
                .copied()
                .unwrap_or(missing)
        })
        .collect())
}

fn weights(table: &Table, name: &str, rows: &[u32]) -> Result<Tensor> {
    let values = table.numbers(name)?;
    let weight = |row: &u32| match values[*row as usize] {
        value if value >= 0.0 => Ok(value as f32),
        value => Err(table.error(
            name,
            *row as usize,
            format!("a weight must be at least 0, got {value}"),
        )),
    };
    Ok(Tensor::from_slice(
        &rows.iter().map(weight).collect::<Result<Vec<f32>>>()?,
    ))
}
