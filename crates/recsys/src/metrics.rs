//! Metrics of click models: exact over all rows, by one sort, in f64.
//!
//! The groups of gAUC are mostly users. A group whose rows have one class only says nothing about order and is left out, and counted.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use densely_core::{Error, Result};
use densely_data::Batches;
use densely_train::metrics::{Direction, auc_of_sorted};
use serde::{Deserialize, Serialize};

use crate::feature_map::{column_numbers, column_texts};

/// A metric by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Probability that a click has a higher score than a row without; ties count half.
    Auc,
    /// Mean of the groups' AUC, weighted by their rows.
    Gauc,
    /// Mean of the groups' AUC.
    AvgAuc,
    /// Mean negative logarithm of the probability of what came true, nats.
    LogLoss,
}

impl Metric {
    /// All metrics.
    pub const ALL: [Self; 4] = [Self::Auc, Self::Gauc, Self::AvgAuc, Self::LogLoss];

    /// The name in settings, logs and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auc => "auc",
            Self::Gauc => "gauc",
            Self::AvgAuc => "avg_auc",
            Self::LogLoss => "log_loss",
        }
    }

    /// Which way is better.
    pub const fn direction(self) -> Direction {
        match self {
            Self::LogLoss => Direction::Lower,
            _ => Direction::Higher,
        }
    }

    /// Whether it needs groups.
    pub const fn is_grouped(self) -> bool {
        matches!(self, Self::Gauc | Self::AvgAuc)
    }
}

/// What the rows of a set reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// Rows.
    pub rows: usize,
    /// Rows with a click.
    pub clicks: usize,
    /// [`Metric::Auc`]; `None` where the rows have one class only.
    pub auc: Option<f64>,
    /// [`Metric::LogLoss`].
    pub log_loss: f64,
    /// Of the groups, where there are any.
    pub groups: Option<GroupScores>,
}

/// What the groups of a set reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupScores {
    /// [`Metric::Gauc`].
    pub gauc: f64,
    /// [`Metric::AvgAuc`].
    pub avg_auc: f64,
    /// Groups with both classes.
    pub used: usize,
    /// Groups with one class only.
    pub left_out: usize,
    /// Their rows.
    pub rows_left_out: usize,
}

impl GroupScores {
    /// What a reader must know: which groups do not count.
    pub fn note(&self) -> Option<String> {
        let all = self.used + self.left_out;
        (self.left_out > 0).then(|| {
            format!(
                "gAUC leaves out {} of {all} groups ({} rows) whose rows have one class only",
                self.left_out, self.rows_left_out
            )
        })
    }
}

impl Scores {
    /// Share of the rows with a click.
    pub fn share(&self) -> f64 {
        self.clicks as f64 / self.rows as f64
    }

    /// Scores of probabilities for rows that were clicked or not; `groups` has a number per row.
    ///
    /// # Errors
    /// [`Error::Shape`] when lengths differ, there is no row, or a probability lies outside [0, 1]; [`Error::Data`] when every
    /// group has one class only.
    pub fn new(probabilities: &[f64], clicks: &[bool], groups: Option<&[u32]>) -> Result<Self> {
        let n = probabilities.len();
        let shape = |what: &str, expected: String, got: String| {
            Err(Error::Shape {
                what: what.to_owned(),
                expected,
                got,
            })
        };
        if n == 0 || clicks.len() != n || groups.is_some_and(|groups| groups.len() != n) {
            let got = format!(
                "{} labels, groups {:?}",
                clicks.len(),
                groups.map(<[u32]>::len)
            );
            return shape(
                "clicks and groups",
                format!("one per row of {n}, at least one"),
                got,
            );
        }
        if let Some(bad) = probabilities.iter().find(|p| !(0.0..=1.0).contains(*p)) {
            return shape(
                "probabilities",
                "values in [0, 1]".to_owned(),
                bad.to_string(),
            );
        }
        let mut sorted: Vec<(f64, bool)> = probabilities
            .iter()
            .copied()
            .zip(clicks.iter().copied())
            .collect();
        sorted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        Ok(Self {
            rows: n,
            clicks: clicks.iter().filter(|click| **click).count(),
            auc: auc_of_sorted(&sorted),
            log_loss: log_loss(probabilities, clicks),
            groups: groups
                .map(|groups| by_group(probabilities, clicks, groups))
                .transpose()?,
        })
    }

    /// The metric, where the rows allow it.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Auc => self.auc,
            Metric::LogLoss => Some(self.log_loss),
            Metric::Gauc => self.groups.map(|groups| groups.gauc),
            Metric::AvgAuc => self.groups.map(|groups| groups.avg_auc),
        }
    }

    /// All metrics that the rows allow.
    pub fn all(&self) -> Vec<(Metric, f64)> {
        let value = |metric: Metric| Some((metric, self.get(metric)?));
        Metric::ALL.into_iter().filter_map(value).collect()
    }

    /// Reads a file of predictions (CSV, TSV or Parquet) in pieces; what stays in memory is 13 bytes a row.
    ///
    /// # Errors
    /// Those of reading; [`Error::Data`] for a label that is neither 0 nor 1, with its row; those of [`new`](Self::new).
    pub fn read(path: &Path, label: &str, probability: &str, group: Option<&str>) -> Result<Self> {
        let mut columns = vec![label.to_owned(), probability.to_owned()];
        columns.extend(group.map(str::to_owned));
        let (mut probabilities, mut clicks) = (Vec::new(), Vec::new());
        let mut groups = Groups::default();
        for rows in Batches::open(path, &columns, 65_536)? {
            let rows = rows?;
            clicks.extend(read_clicks(&rows, label, None)?);
            for (row, value) in column_numbers(&rows, probability)?.into_iter().enumerate() {
                let value = value
                    .ok_or_else(|| rows.error(probability, row, "the probability is missing"))?;
                probabilities.push(value);
            }
            if let Some(group) = group {
                groups.read(&rows, group)?;
            }
        }
        Self::new(&probabilities, &clicks, group.map(|_| &*groups.codes))
    }
}

/// Numbers for groups by their names.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    numbers: HashMap<String, u32>,
    pub(crate) codes: Vec<u32>,
}

impl Groups {
    /// Adds the groups of a batch.
    pub(crate) fn read(&mut self, rows: &densely_data::RowBatch, column: &str) -> Result<()> {
        for (row, text) in column_texts(rows, column)?.iter().enumerate() {
            let Some(text) = text else {
                return Err(rows.error(column, row, "the group is missing"));
            };
            let next = self.numbers.len() as u32;
            let code = match self.numbers.get(text) {
                Some(code) => *code,
                None => *self.numbers.entry(text.to_owned()).or_insert(next),
            };
            self.codes.push(code);
        }
        Ok(())
    }
}

/// Labels of a batch: 0 or 1, or, where `above` is given, whether a number is at least that.
pub(crate) fn read_clicks(
    rows: &densely_data::RowBatch,
    column: &str,
    at_least: Option<f64>,
) -> Result<Vec<bool>> {
    let values = column_numbers(rows, column)?;
    let click = |(row, value): (usize, Option<f64>)| match (value, at_least) {
        (None, _) => Err(rows.error(column, row, "the label is missing")),
        (Some(value), Some(least)) => Ok(value >= least),
        (Some(0.0), None) => Ok(false),
        (Some(1.0), None) => Ok(true),
        (Some(value), None) => {
            let reason = format!(
                "the label must be 0 or 1, got {value}; for ratings and the like say from which value on it is a click (`click_from`, `--click-from`)"
            );
            Err(rows.error(column, row, reason))
        }
    };
    values.into_iter().enumerate().map(click).collect()
}

/// As scikit-learn: probabilities are clipped to the epsilon of f64.
fn log_loss(probabilities: &[f64], clicks: &[bool]) -> f64 {
    let of = |(p, click): (&f64, &bool)| {
        let p = p.clamp(f64::EPSILON, 1.0 - f64::EPSILON);
        if *click { -p.ln() } else { -(1.0 - p).ln() }
    };
    probabilities.iter().zip(clicks).map(of).sum::<f64>() / probabilities.len() as f64
}

fn by_group(probabilities: &[f64], clicks: &[bool], groups: &[u32]) -> Result<GroupScores> {
    let mut order: Vec<u32> = (0..groups.len() as u32).collect();
    let at = |row: &u32| *row as usize;
    order.sort_unstable_by(|a, b| {
        let scores = || probabilities[at(a)].total_cmp(&probabilities[at(b)]);
        groups[at(a)].cmp(&groups[at(b)]).then_with(scores)
    });
    let (mut weighted, mut plain, mut rows) = (0.0, 0.0, 0);
    let (mut used, mut left_out) = (0, 0);
    let mut sorted = Vec::new();
    for group in order.chunk_by(|a, b| groups[at(a)] == groups[at(b)]) {
        sorted.clear();
        sorted.extend(
            group
                .iter()
                .map(|row| (probabilities[at(row)], clicks[at(row)])),
        );
        let Some(auc) = auc_of_sorted(&sorted) else {
            left_out += 1;
            continue;
        };
        used += 1;
        rows += group.len();
        weighted += auc * group.len() as f64;
        plain += auc;
    }
    if used == 0 {
        let reason = format!(
            "each of the {left_out} groups has rows of one class only, so gAUC is not defined; leave the group out or take a coarser one"
        );
        return Err(Error::data("", reason));
    }
    Ok(GroupScores {
        gauc: weighted / rows as f64,
        avg_auc: plain / used as f64,
        used,
        left_out,
        rows_left_out: groups.len() - rows,
    })
}

/// How much better `auc` is than `base`, in percent of what `base` has above chance (Yan et al. 2014).
///
/// # Errors
/// [`Error::Config`] when `base` is chance itself.
#[expect(clippy::float_cmp, reason = "only exact chance divides by 0")]
pub fn relative_improvement(auc: f64, base: f64) -> Result<f64> {
    if base == 0.5 {
        return Err(Error::config(
            "base",
            "is chance: nothing can be relative to it",
        ));
    }
    Ok(((auc - 0.5) / (base - 0.5) - 1.0) * 100.0)
}

/// The `GAUC` of DIN's authors: the share of groups, each of one click and one row without, whose click has the higher score. Unlike
/// in [`Metric::Gauc`] a tie counts as wrong.
///
/// # Errors
/// [`Error::Shape`] when lengths differ or a group is not such a pair.
pub fn pairwise_gauc(probabilities: &[f64], clicks: &[bool], groups: &[u32]) -> Result<f64> {
    let mut pairs: BTreeMap<u32, [Option<f64>; 2]> = BTreeMap::new();
    let wrong = |got: String| {
        Err(Error::Shape {
            what: "groups".to_owned(),
            expected: "one click and one row without in each".to_owned(),
            got,
        })
    };
    if probabilities.len() != clicks.len() || clicks.len() != groups.len() || groups.is_empty() {
        return wrong(format!("{} rows", groups.len()));
    }
    for ((p, click), group) in probabilities.iter().zip(clicks).zip(groups) {
        let place = &mut pairs.entry(*group).or_default()[usize::from(*click)];
        if place.replace(*p).is_some() {
            return wrong(format!("several rows of one class in group {group}"));
        }
    }
    let mut right = 0;
    for (group, pair) in &pairs {
        let [Some(negative), Some(positive)] = pair else {
            return wrong(format!("one class only in group {group}"));
        };
        right += usize::from(positive > negative);
    }
    Ok(right as f64 / pairs.len() as f64)
}

/// What training watches: a weighted sum of metrics, higher is better. `{ auc = 1, log_loss = -1 }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Monitor(pub BTreeMap<Metric, f64>);

impl Default for Monitor {
    fn default() -> Self {
        Self(BTreeMap::from([(Metric::Auc, 1.0)]))
    }
}

impl Monitor {
    /// Checks that there is a metric, that weights are finite, and that a lower log loss counts as better.
    ///
    /// # Errors
    /// [`Error::Config`] for `train.monitor`.
    pub fn validate(&self, has_groups: bool) -> Result<()> {
        let wrong = |reason: String| Err(Error::config("train.monitor", reason));
        if self.0.is_empty() {
            return wrong("must name a metric, such as auc = 1".to_owned());
        }
        for (metric, weight) in &self.0 {
            let name = metric.name();
            if *weight == 0.0 || !weight.is_finite() {
                return wrong(format!("the weight of `{name}` must be finite and not 0"));
            }
            let fits = (*weight > 0.0) == (metric.direction() == Direction::Higher);
            if !fits {
                return wrong(format!(
                    "the sum is maximised, so the weight of `{name}` must have the other sign, got {weight}"
                ));
            }
            if metric.is_grouped() && !has_groups {
                return wrong(format!("`{name}` needs a group column: `data.group`"));
            }
        }
        Ok(())
    }

    /// The sum.
    ///
    /// # Errors
    /// [`Error::Data`] when the rows do not allow one of the metrics.
    pub fn score(&self, scores: &Scores) -> Result<f64> {
        let term = |(metric, weight): (&Metric, &f64)| {
            let value = scores.get(*metric).ok_or_else(|| {
                let clicks = format!("{} of {} rows are clicks", scores.clicks, scores.rows);
                let reason = format!(
                    "the validation rows have one class only ({clicks}), so {} is not defined",
                    metric.name()
                );
                Error::data("", reason)
            })?;
            Ok(weight * value)
        };
        self.0.iter().map(term).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_by_hand() -> Result<()> {
        let p = [0.9, 0.2, 0.5, 0.5, 0.3, 0.1];
        let clicks = [true, false, true, false, true, true];
        let groups = [0, 0, 1, 1, 2, 2];
        let scores = Scores::new(&p, &clicks, Some(&groups))?;
        let of_groups = scores.groups.expect("groups");
        // Group 0 is right, group 1 a tie, group 2 has one class.
        assert_eq!((of_groups.gauc, of_groups.avg_auc), (0.75, 0.75));
        assert_eq!((of_groups.left_out, of_groups.rows_left_out), (1, 2));
        assert!(
            of_groups
                .note()
                .is_some_and(|note| note.contains("1 of 3 groups (2 rows)"))
        );
        assert!((relative_improvement(0.8, 0.7)? - 50.0).abs() < 1e-9);
        assert!(relative_improvement(0.8, 0.5).is_err());
        // The tie is wrong here.
        let share = pairwise_gauc(&p[..4], &clicks[..4], &groups[..4])?;
        assert!((share - 0.5).abs() < 1e-12);
        assert!(pairwise_gauc(&p, &clicks, &groups).is_err());
        let one_class = Scores::new(&p, &[true; 6], Some(&groups)).expect_err("one class");
        assert!(
            one_class
                .to_string()
                .contains("each of the 3 groups has rows of one class only")
        );
        assert!(Scores::new(&[1.5], &[true], None).is_err());
        Ok(())
    }

    #[test]
    fn a_monitor_is_a_sum_that_grows_when_things_get_better() -> Result<()> {
        let scores = Scores::new(&[0.8, 0.4], &[true, false], None)?;
        let monitor = Monitor(BTreeMap::from([
            (Metric::Auc, 1.0),
            (Metric::LogLoss, -1.0),
        ]));
        monitor.validate(false)?;
        let expected = 1.0 + f64::midpoint(0.8f64.ln(), 0.6f64.ln());
        assert!((monitor.score(&scores)? - expected).abs() < 1e-12);
        for (metric, weight, words) in [
            (Metric::LogLoss, 1.0, "must have the other sign"),
            (Metric::Gauc, 1.0, "needs a group column"),
            (Metric::Auc, 0.0, "must be finite and not 0"),
        ] {
            let error = Monitor(BTreeMap::from([(metric, weight)])).validate(false);
            let error = error.expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        }
        let one = Scores::new(&[0.8], &[true], None)?;
        assert!(Monitor::default().score(&one).is_err());
        Ok(())
    }
}
