//! What each column is for: inferred from the values, and overridable by name.

use std::collections::BTreeMap;

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::table::{Column, Table, Values, stray_text};

/// What a column is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A number.
    Numeric,
    /// One of two values; treated as a category of two.
    Binary,
    /// One of several values without an order.
    Categorical,
    /// When the row was seen; for splits, never a feature.
    Time,
    /// What rows belong together; for splits, never a feature.
    Group,
    /// What is predicted.
    Target,
    /// How much the row counts in training.
    Weight,
    /// Not used.
    Ignore,
}

/// What is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// A number.
    Regression,
    /// One of two classes.
    Binary,
    /// One of several classes.
    Multiclass,
}

/// What the user knows better than the inference.
#[derive(Debug, Clone, Default)]
pub struct SchemaOptions {
    /// Column to predict.
    pub target: String,
    /// Kind of target.
    pub task: Option<Task>,
    /// Roles by column.
    pub roles: BTreeMap<String, Role>,
    /// Column with time.
    pub time: Option<String>,
    /// Column with groups.
    pub group: Option<String>,
    /// Column with weights.
    pub weight: Option<String>,
    /// Leave out rows without a target instead of failing.
    pub drop_missing_target: bool,
    /// Predict whether the target, a number, is above this value: a binary task.
    pub target_above: Option<f64>,
    /// Where no time and no group is named, take the only column of times for the time.
    pub time_by_itself: bool,
    /// Parts of the time column become features, so that it may be the only column beside the target.
    pub features_from_time: bool,
}

/// The role of each column of a table, and the task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    columns: Vec<(String, Role)>,
    target: String,
    task: Task,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_above: Option<f64>,
    #[serde(skip)]
    rows: Vec<u32>,
    #[serde(skip)]
    warnings: Vec<String>,
    #[serde(skip)]
    reasons: Vec<String>,
}

/// Distinct whole numbers up to which a target is taken for classes.
const MOST_CLASSES: usize = 20;

impl Schema {
    /// Infers roles and task.
    ///
    /// Numbers are numeric, unless they have two values; texts are categorical; a column without values, with one
    /// value, with another text in every row, with free text, or with whole numbers that name the rows is left out, and
    /// so are times that no option claims, each with a warning. A target of numbers is regression, unless it has at most 20 distinct whole numbers.
    /// # Errors
    /// [`Error::Data`] for columns that are not there, a target that is missing in some row, has no or one value,
    /// or does not fit the task, and a column of numbers with a stray text.
    pub fn infer(table: &Table, options: &SchemaOptions) -> Result<Self> {
        if table.row_count() > u32::MAX as usize {
            return Err(Error::data(
                table.path(),
                "the table has more than 4,294,967,295 rows; split it",
            ));
        }
        let mut claimed = options.roles.clone();
        let named = [
            (Some(&options.target), Role::Target),
            (options.time.as_ref(), Role::Time),
            (options.group.as_ref(), Role::Group),
            (options.weight.as_ref(), Role::Weight),
        ];
        for (name, role) in named {
            if let Some(name) = name
                && let Some(other) = claimed.insert(name.clone(), role)
                && other != role
            {
                let reason = format!("the column is claimed as {other:?} and as {role:?}");
                return Err(Error::column(table.path(), name, reason.to_lowercase()));
            }
        }
        for name in claimed.keys() {
            table.require(name)?;
        }
        let targets = claimed
            .values()
            .filter(|role| **role == Role::Target)
            .count();
        if targets != 1 {
            return Err(Error::data(table.path(), "one column must be the target"));
        }

        let mut warnings = table.warnings().to_vec();
        let mut columns = Vec::new();
        let mut reasons = Vec::new();
        let mut times = Vec::new();
        for name in table.names() {
            let column = table.column(name)?;
            let (role, reason) = match claimed.get(name) {
                Some(role) => (*role, "as you said".to_owned()),
                None => infer_role(table, &column)?,
            };
            let facts = facts(table, &column);
            if role == Role::Ignore && !claimed.contains_key(name) {
                if matches!(column.values, Values::Time(_)) && column.missing() == 0 {
                    times.push(columns.len());
                } else {
                    warnings.push(format!("column `{name}` {reason}: left out"));
                }
            }
            columns.push((name.clone(), role));
            reasons.push(format!("{facts}; {reason}"));
        }
        let named = |role| columns.iter().any(|(_, other)| *other == role);
        let by_itself = options.time_by_itself && !named(Role::Time) && !named(Role::Group);
        if let ([only], true) = (times.as_slice(), by_itself) {
            columns[*only].1 = Role::Time;
            reasons[*only] += ", the only one: rows are split by it";
        } else {
            for at in times {
                let name = &columns[at].0;
                warnings.push(format!(
                    "column `{name}` holds times: left out (split by it with `--time {name}`)"
                ));
            }
        }
        let features = [Role::Numeric, Role::Binary, Role::Categorical];
        let usable = |role: &Role| {
            features.contains(role) || (options.features_from_time && *role == Role::Time)
        };
        if !columns.iter().any(|(_, role)| usable(role)) {
            let why = warnings.join("; ");
            let reason = format!("no column is left that can be a feature; {why}");
            return Err(Error::data(table.path(), reason.trim_end_matches("; ")));
        }
        let (task, rows) = infer_target(table, options, &mut warnings)?;
        Ok(Self {
            columns,
            target: options.target.clone(),
            task,
            target_above: options.target_above,
            rows,
            warnings,
            reasons,
        })
    }

    /// The column that is predicted.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// What is predicted.
    pub const fn task(&self) -> Task {
        self.task
    }

    /// The value that the target is compared with, when whether it is above one is predicted.
    pub const fn target_above(&self) -> Option<f64> {
        self.target_above
    }

    /// Every column: its name, its role, and what in its values speaks for it; in the table's order. Empty for a schema
    /// that was read from a file.
    pub fn explained(&self) -> impl Iterator<Item = (&str, Role, &str)> {
        let columns = self.columns.iter().zip(&self.reasons);
        columns.map(|((name, role), reason)| (name.as_str(), *role, reason.as_str()))
    }

    /// Names of the columns with this role, in the table's order.
    pub fn with_role(&self, role: Role) -> impl Iterator<Item = &str> {
        self.columns
            .iter()
            .filter(move |(_, r)| *r == role)
            .map(|(name, _)| name.as_str())
    }

    /// Rows with a target.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// What was left out, and why.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// What a person would count first.
fn facts(table: &Table, column: &Column) -> String {
    const MANY: usize = 10_000;
    let distinct = match column.distinct(MANY) {
        Some(1) => "1 value".to_owned(),
        Some(n) => format!("{n} values"),
        None => format!("over {MANY} values"),
    };
    let kind = match &column.values {
        Values::Number { integral: true, .. } => "whole numbers",
        Values::Number { .. } => "numbers",
        Values::Text { .. } => "texts",
        Values::Time(_) => "times",
    };
    match column.missing() {
        0 => format!("{kind}, {distinct}"),
        missing if missing == table.row_count() => "no values".to_owned(),
        missing => format!("{kind}, {distinct}, {missing} missing"),
    }
}

/// The role, and why. A role of `Ignore` is said as a warning, in the words after the column's name.
fn infer_role(table: &Table, column: &Column) -> Result<(Role, String)> {
    let name = &column.name;
    let ignore = |reason: &str| Ok((Role::Ignore, reason.to_owned()));
    let rows = table.row_count();
    let missing = column.missing();
    let present = rows - missing;
    if present == 0 {
        return ignore("has no values");
    }
    if name.starts_with("__index_level_") {
        return ignore("is the index of a pandas table, not one of its columns");
    }
    let distinct = column.distinct(2);
    match &column.values {
        Values::Time(_) => ignore("holds times"),
        Values::Number { values, integral } => match distinct {
            Some(1) => ignore("has one value only"),
            Some(2) => Ok((Role::Binary, "a category of two".to_owned())),
            _ if *integral && is_identifier(name, values) => ignore(&format!(
                "has another whole number in every row, like an identifier (keep it with `--role {name}=numeric`)"
            )),
            _ => Ok((Role::Numeric, "a number".to_owned())),
        },
        Values::Text { names, .. } => {
            if let Some((row, text)) = stray_text(column) {
                let reason = format!(
                    "nearly all values are numbers, but here stands `{text}`; mend it, or say \
                     `--role {name}=categorical`"
                );
                return Err(table.error(name, row, reason));
            }
            match distinct {
                Some(1) if missing == 0 => ignore("has one value only"),
                Some(2) if missing == 0 => Ok((Role::Binary, "a category of two".to_owned())),
                _ if present > MOST_CLASSES && names.len() == present => {
                    ignore("has another text in every row, like a name or free text")
                }
                _ if present > MOST_CLASSES && is_free_text(names, present) => ignore(
                    "holds free text, which networks for tables cannot read; make numbers or categories of it, such as \
                     its length, a key word or an embedding from a language model",
                ),
                _ => Ok((Role::Categorical, "a category".to_owned())),
            }
        }
    }
}

/// Whole numbers that name a row rather than measure it: called so, and all different.
fn is_identifier(name: &str, values: &[f64]) -> bool {
    let lower = name.to_lowercase();
    let called = [
        "id", "index", "idx", "key", "rowid", "row_id", "row", "no", "nr", "",
    ]
    .contains(&lower.as_str())
        || ["_id", " id", "-id", ".id", "_key", "_idx"]
            .iter()
            .any(|end| lower.ends_with(end))
        || name.ends_with("Id")
        || name.ends_with("ID")
        || lower.starts_with("unnamed");
    if values.len() <= MOST_CLASSES || !called {
        return false;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    !sorted.iter().any(|value| value.is_nan()) && sorted.windows(2).all(|pair| pair[0] < pair[1])
}

/// Sentences rather than names: most rows have a text of their own, of several words.
fn is_free_text(names: &[String], present: usize) -> bool {
    let words = |text: &String| text.split_whitespace().count();
    let total: usize = names.iter().map(words).sum();
    let own = names.len() * 10;
    (own >= present * 5 && total >= names.len() * 4) || own >= present * 9
}

fn infer_target(
    table: &Table,
    options: &SchemaOptions,
    warnings: &mut Vec<String>,
) -> Result<(Task, Vec<u32>)> {
    let name = &options.target;
    let column = table.column(name)?;
    let wrong = |reason: &str| Err(Error::column(table.path(), name, reason));
    let present = |row: usize| match &column.values {
        Values::Number { values, .. } => !values[row].is_nan(),
        Values::Text { codes, .. } => codes[row] != crate::table::MISSING,
        Values::Time(values) => values[row] != i64::MIN,
    };
    let rows: Vec<u32> = (0..table.row_count())
        .filter(|row| present(*row))
        .map(|row| row as u32)
        .collect();
    let missing = table.row_count() - rows.len();
    if rows.is_empty() {
        return wrong("the target has no values");
    }
    if missing > 0 {
        if !options.drop_missing_target {
            let first = (0..table.row_count())
                .find(|row| !present(*row))
                .unwrap_or(0);
            let reason = format!(
                "the target is missing (in {missing} rows); fill it, or leave such rows out with \
                 `--drop-missing-target`"
            );
            return Err(table.error(name, first, reason));
        }
        warnings.push(format!("{missing} rows without a target are left out"));
    }
    if column.distinct(1) == Some(1) {
        return wrong("the target has one value only: there is nothing to learn");
    }
    if options.target_above.is_some() {
        table.numbers(name)?;
        if options.task.is_some_and(|task| task != Task::Binary) {
            return wrong("whether it is above a value is a binary task");
        }
        return Ok((Task::Binary, rows));
    }
    let task = match (options.task, &column.values) {
        (Some(task), _) => task,
        (None, Values::Time(_)) => return wrong("the target holds times, not numbers or classes"),
        (None, Values::Number { integral, .. }) => match column.distinct(MOST_CLASSES) {
            Some(2) => Task::Binary,
            Some(_) if *integral => Task::Multiclass,
            _ => Task::Regression,
        },
        (None, Values::Text { names, .. }) => {
            if let Some((row, text)) = stray_text(&column) {
                let reason = format!("nearly all targets are numbers, but here stands `{text}`");
                return Err(table.error(name, row, reason));
            }
            if names.len() == rows.len() && rows.len() > MOST_CLASSES {
                return wrong("the target has another text in every row: that is no class");
            }
            if names.len() == 2 {
                Task::Binary
            } else {
                Task::Multiclass
            }
        }
    };
    let classes = column.distinct(2);
    match task {
        Task::Regression => {
            table.numbers(name)?;
        }
        Task::Binary if classes != Some(2) => return wrong("a binary target needs two classes"),
        _ => {}
    }
    Ok((task, rows))
}
