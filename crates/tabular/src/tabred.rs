//! TabReD: eight industrial tables whose test rows are newer than their training rows.
//! Paper: Rubachev et al. 2025, arXiv 2406.19380. Follows: yandex-research/tabred (folders, splits, ranks) and
//! yandex-research/tabm (its own folders of the same sets; binary columns are categories of two, as there).
//!
//! [`TabRed::open`] reads a folder in any of the three layouts in which the sets are about:
//! | layout | arrays | splits |
//! | --- | --- | --- |
//! | [`Layout::New`] | `x_num.npy`, `x_bin.npy`, `x_cat.npy`, `x_meta.npy`, `y.npy` | `splits/<name>/{train,val,test}.npy` |
//! | [`Layout::Old`] | `X_num.npy` …, `Y.npy` | `split-<name>/{train,val,test}_idx.npy` |
//! | [`Layout::Parts`] | `X_num_{train,val,test}.npy` …, `Y_{train,val,test}.npy` | cut already |
//!
//! Every folder has an `info.json`. Columns are called `num_0` …, `bin_0` …, `cat_0` …, `meta_0` … and `y`. Meta
//! columns (the time stands in `meta_0`) are never features.

pub mod npy;
pub mod ranks;
pub mod sets;
pub mod splits;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use densely_core::{Error, Result, registry};
use densely_data::schema::{Role, Task};
use densely_data::split::{Split, SplitConfig};
use densely_data::table::{Column, Table, Values};
use densely_train::metrics::Metric;
use serde::Deserialize;

use crate::fit::Prepared;
use crate::settings::{FitSettings, metrics_of};
use npy::Npy;
pub use sets::{SETS, SetFacts};

/// The column that is predicted.
pub const TARGET: &str = "y";

/// The split that results are compared on.
pub const DEFAULT_SPLIT: &str = "default";

/// Longest `info.json` that is read, bytes.
const MAX_INFO: u64 = 1 << 20;

/// Integers up to here are held exactly.
const MAX_EXACT: i64 = 1 << 53;

/// How a folder is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// What the package `tabred` downloads.
    New,
    /// What the benchmark's preprocessing scripts write.
    Old,
    /// What TabM's `prepare_tabred.py` makes of the old one: the default split only, and no meta columns.
    Parts,
}

/// What `info.json` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Name of the data set; the folder's where the file does not say.
    pub name: String,
    /// Kind of target.
    pub task: Task,
    /// The score that chooses the epoch and is reported.
    pub score: Metric,
}

/// A data set in memory, with one of its splits.
#[derive(Debug, Clone)]
pub struct TabRed {
    /// What `info.json` says.
    pub info: Info,
    /// How the folder is laid out.
    pub layout: Layout,
    /// All rows, features in the order of the files; [`TARGET`] is the last column.
    pub table: Table,
    /// What each column is for.
    pub roles: BTreeMap<String, Role>,
    /// Rows of each part. Later rows may belong to none.
    pub split: Split,
    /// Where the folder differs from what is known of the data set of its name.
    pub warnings: Vec<String>,
}

/// The fields of `info.json` that decide something.
#[derive(Deserialize)]
struct InfoFile {
    name: Option<String>,
    task_type: String,
    score: Option<String>,
}

/// One array: a file, or a file for each part; with the rows that each must have.
struct Array {
    files: Vec<(PathBuf, usize)>,
}

impl TabRed {
    /// Reads the folder's arrays and the split called `split`: `default`, `random-0` to `-2`, `sliding-window-0` to
    /// `-2`, or any other that the folder has files for.
    ///
    /// Random and sliding-window splits without files are computed by the benchmark's rule ([`splits`]) from the order
    /// of `meta_0`, for the eight data sets by their published sizes.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Corrupt`] naming the file; [`Error::Data`] for arrays that do not fit each other,
    /// labels that are missing, and rows that a split names twice or that do not exist; [`Error::Config`] for a split
    /// that the folder does not have.
    pub fn open(folder: &Path, split: &str) -> Result<Self> {
        let names = file_names(folder)?;
        let layout = layout_of(folder, &names)?;
        let info = read_info(folder)?;
        let (labels, parts) = read_labels(folder, layout, info.task)?;

        let mut columns = Vec::new();
        let mut roles = BTreeMap::new();
        let mut features = [0; 3];
        let kinds = [
            ("num", Role::Numeric),
            ("bin", Role::Binary),
            ("cat", Role::Categorical),
            ("meta", Role::Ignore),
        ];
        let mut times = None;
        for (at, (kind, role)) in kinds.into_iter().enumerate() {
            let Some(array) = layout.array(folder, &names, kind, &parts) else {
                continue;
            };
            let values = match role {
                Role::Numeric | Role::Binary => array.floats()?,
                _ => {
                    let integers = array.integers()?;
                    if role == Role::Ignore {
                        times = integers.first().cloned();
                    }
                    array.exact(integers)?
                }
            };
            if let Some(count) = features.get_mut(at) {
                *count = values.len();
            }
            for (i, values) in values.into_iter().enumerate() {
                let name = format!("{kind}_{i}");
                let integral = !matches!(role, Role::Numeric);
                roles.insert(name.clone(), role);
                columns.push(Column {
                    name,
                    values: Values::Number { values, integral },
                });
            }
        }
        let rows = labels.len();
        roles.insert(TARGET.to_owned(), Role::Target);
        let integral = info.task != Task::Regression;
        columns.push(Column {
            name: TARGET.to_owned(),
            values: Values::Number {
                values: labels,
                integral,
            },
        });
        let split_name = split;
        let split = match layout {
            Layout::Parts => split_of_parts(folder, split, &parts)?,
            _ => read_split(folder, layout, split, &info, times.as_deref(), rows)?,
        };
        let facts = sets::find(&info.name);
        let warnings = facts.map_or_else(Vec::new, |facts| {
            let used = (split_name == DEFAULT_SPLIT).then_some(&split);
            differences(facts, &info, layout, rows, features, used)
        });
        Ok(Self {
            info,
            layout,
            table: Table::from_columns(folder, columns)?,
            roles,
            split,
            warnings,
        })
    }
}

impl TabRed {
    /// Fills in what the settings leave open and the folder knows (roles of the columns, task, score of validation) and
    /// prepares the rows. A split of another kind than `files` divides them anew.
    ///
    /// # Errors
    /// Those of [`Prepared::with_split`] and [`Prepared::new`].
    pub fn prepare(&self, settings: &mut FitSettings) -> Result<Prepared> {
        let FitSettings { data, train, .. } = settings;
        for (column, role) in &self.roles {
            data.roles.entry(column.clone()).or_insert(*role);
        }
        data.task.get_or_insert(self.info.task);
        train.metric.get_or_insert(self.info.score);
        match data.split {
            None | Some(SplitConfig::Files { .. }) => {
                Prepared::with_split(&self.table, data, self.split.clone())
            }
            Some(_) => Prepared::new(&self.table, data),
        }
    }
}

/// Names in the folder as they are written: systems that take `Y.npy` for `y.npy` would hide the layout.
fn file_names(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        names.insert(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

fn layout_of(folder: &Path, names: &BTreeSet<String>) -> Result<Layout> {
    let known = [
        ("y.npy", Layout::New),
        ("Y.npy", Layout::Old),
        ("Y_train.npy", Layout::Parts),
    ];
    known
        .into_iter()
        .find(|(name, _)| names.contains(*name))
        .map(|(_, layout)| layout)
        .ok_or_else(|| {
            let reason =
                "a TabReD folder has `info.json` and labels in `y.npy`, `Y.npy` or `Y_train.npy`; \
                          here are no labels";
            Error::data(folder, reason)
        })
}

fn read_info(folder: &Path) -> Result<Info> {
    let path = folder.join("info.json");
    let mut text = String::new();
    let file = File::open(&path).map_err(Error::io(&path))?;
    file.take(MAX_INFO)
        .read_to_string(&mut text)
        .map_err(Error::io(&path))?;
    let file: InfoFile =
        serde_json::from_str(&text).map_err(|e| Error::corrupt(&path, e.to_string()))?;
    let task = match file.task_type.as_str() {
        "regression" => Task::Regression,
        "binclass" => Task::Binary,
        "multiclass" => Task::Multiclass,
        other => {
            let reason =
                format!("expected `task_type` regression, binclass or multiclass, got `{other}`");
            return Err(Error::data(&path, reason));
        }
    };
    let score = match file.score.as_deref() {
        None => metrics_of(task)[0],
        Some(name) => {
            let wanted = match name {
                "cross-entropy" => "log_loss".to_owned(),
                other => other.replace('-', "_"),
            };
            let metrics = metrics_of(task).iter();
            metrics
                .copied()
                .find(|metric| metric.name() == wanted)
                .ok_or_else(|| {
                    let reason = format!(
                        "expected a `score` of {} tasks, got `{name}`",
                        file.task_type
                    );
                    Error::data(&path, reason)
                })?
        }
    };
    let folder_name = || {
        let name = folder.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    Ok(Info {
        name: file.name.unwrap_or_else(folder_name),
        task,
        score,
    })
}

const PARTS: [&str; 3] = ["train", "val", "test"];

impl Layout {
    /// The files of the labels or of an array, whether they exist or not.
    fn files(self, folder: &Path, kind: &str) -> Vec<PathBuf> {
        let stem = match (self, kind) {
            (Self::New, "y") => "y".to_owned(),
            (Self::New, kind) => format!("x_{kind}"),
            (_, "y") => "Y".to_owned(),
            (_, kind) => format!("X_{kind}"),
        };
        match self {
            Self::New | Self::Old => vec![folder.join(format!("{stem}.npy"))],
            Self::Parts => PARTS
                .iter()
                .map(|part| folder.join(format!("{stem}_{part}.npy")))
                .collect(),
        }
    }

    /// The array `kind`, where the folder has it; a data set may lack any of them.
    fn array(
        self,
        folder: &Path,
        names: &BTreeSet<String>,
        kind: &str,
        rows: &[usize],
    ) -> Option<Array> {
        let files = self.files(folder, kind);
        let there = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default();
            names.contains(name.to_string_lossy().as_ref())
        };
        files.iter().any(there).then(|| Array {
            files: files.into_iter().zip(rows.iter().copied()).collect(),
        })
    }
}

impl Array {
    fn floats(&self) -> Result<Vec<Vec<f64>>> {
        self.stacked(Npy::floats)
    }

    fn integers(&self) -> Result<Vec<Vec<i64>>> {
        self.stacked(Npy::integers)
    }

    /// The columns of all files, one below the other.
    fn stacked<T>(&self, read: impl Fn(Npy) -> Result<Vec<Vec<T>>>) -> Result<Vec<Vec<T>>> {
        let mut all: Vec<Vec<T>> = Vec::new();
        for (i, (path, rows)) in self.files.iter().enumerate() {
            let file = Npy::open(path)?;
            let width = file.require_matrix()?;
            if file.rows() != *rows {
                let reason = format!(
                    "expected {rows} rows, as the labels have, got {}",
                    file.rows()
                );
                return Err(Error::data(path, reason));
            }
            if i > 0 && width != all.len() {
                let reason = format!(
                    "expected {} columns, as the training part has, got {width}",
                    all.len()
                );
                return Err(Error::data(path, reason));
            }
            let columns = read(file)?;
            if i == 0 {
                all = columns;
            } else {
                all.iter_mut()
                    .zip(columns)
                    .for_each(|(all, more)| all.extend(more));
            }
        }
        Ok(all)
    }

    /// Integers as the numbers of a table, all exactly.
    fn exact(&self, columns: Vec<Vec<i64>>) -> Result<Vec<Vec<f64>>> {
        let path = self.files.first().map(|(path, _)| path.clone());
        let exact = |value: i64| {
            let fits = (-MAX_EXACT..=MAX_EXACT).contains(&value);
            fits.then_some(value as f64).ok_or_else(|| {
                let reason = format!("expected integers up to 2^53, got {value}");
                Error::data(path.clone().unwrap_or_default(), reason)
            })
        };
        columns
            .into_iter()
            .map(|column| column.into_iter().map(exact).collect())
            .collect()
    }
}

/// The labels of all rows, and the rows of each file.
fn read_labels(folder: &Path, layout: Layout, task: Task) -> Result<(Vec<f64>, Vec<usize>)> {
    let mut labels = Vec::new();
    let mut parts = Vec::new();
    for path in layout.files(folder, "y") {
        let file = Npy::open(&path)?;
        file.require_list()?;
        if file.rows() == 0 || labels.len() + file.rows() > u32::MAX as usize {
            let reason = format!("expected 1 to 4,294,967,295 labels, got {}", file.rows());
            return Err(Error::data(path, reason));
        }
        parts.push(file.rows());
        let columns = if task == Task::Regression {
            file.floats()?
        } else {
            let array = Array {
                files: vec![(path.clone(), 0)],
            };
            array.exact(file.integers()?)?
        };
        let values = columns.into_iter().next().unwrap_or_default();
        if let Some(row) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::Data {
                path,
                row: Some(row as u64 + 1),
                column: None,
                reason: format!("expected a finite label, got {}", values[row]),
            });
        }
        labels.extend(values);
    }
    Ok((labels, parts))
}

fn split_of_parts(folder: &Path, name: &str, parts: &[usize]) -> Result<Split> {
    let [train, valid, test] = parts else {
        return Err(Error::data(folder, "expected three parts"));
    };
    if name != DEFAULT_SPLIT {
        let reason = format!(
            "{} is cut into train, val and test already and has no other split than \
             `{DEFAULT_SPLIT}`; got `{name}`",
            folder.display()
        );
        return Err(Error::config("split", reason));
    }
    let range = |from: usize, count: usize| (from as u32..(from + count) as u32).collect();
    Ok(Split {
        train: range(0, *train),
        valid: range(*train, *valid),
        test: range(train + valid, *test),
    })
}

/// Reads the split's files, or computes it where there are none and a rule is known.
fn read_split(
    folder: &Path,
    layout: Layout,
    name: &str,
    info: &Info,
    times: Option<&[i64]>,
    rows: usize,
) -> Result<Split> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(plain) {
        let reason = format!("a split's name has letters, digits, - and _ only, got `{name}`");
        return Err(Error::config("split", reason));
    }
    let (place, suffix) = match layout {
        Layout::New => (folder.join("splits").join(name), ""),
        _ => (folder.join(format!("split-{name}")), "_idx"),
    };
    if !place.is_dir() {
        return compute_split(folder, &place, name, info, times);
    }
    let mut owner = vec![false; rows];
    let mut read = |part: &str| {
        let path = place.join(format!("{part}{suffix}.npy"));
        read_part(&path, &mut owner)
    };
    Ok(Split {
        train: read("train")?,
        valid: read("val")?,
        test: read("test")?,
    })
}

/// Row numbers of one part; `taken` holds the rows of the parts before.
fn read_part(path: &Path, taken: &mut [bool]) -> Result<Vec<u32>> {
    let rows = taken.len();
    let file = Npy::open(path)?;
    file.require_list()?;
    if file.rows() == 0 || file.rows() > rows {
        let reason = format!("expected 1 to {rows} row numbers, got {}", file.rows());
        return Err(Error::data(file.path(), reason));
    }
    let numbers = file.integers()?.into_iter().next().unwrap_or_default();
    let place = |(at, number): (usize, i64)| {
        let wrong = |reason: String| Error::Data {
            path: path.to_owned(),
            row: Some(at as u64 + 1),
            column: None,
            reason,
        };
        let row = usize::try_from(number).ok().filter(|row| *row < rows);
        let row = row.ok_or_else(|| {
            wrong(format!(
                "expected a row from 0 to {}, got {number}",
                rows - 1
            ))
        })?;
        if std::mem::replace(&mut taken[row], true) {
            return Err(wrong(format!("row {row} is in the split twice")));
        }
        Ok(row as u32)
    };
    numbers.into_iter().enumerate().map(place).collect()
}

fn compute_split(
    folder: &Path,
    place: &Path,
    name: &str,
    info: &Info,
    times: Option<&[i64]>,
) -> Result<Split> {
    let missing = |reason: String| Err(Error::config("split", reason));
    let index = |prefix: &str| name.strip_prefix(prefix)?.parse::<usize>().ok();
    let window = index("sliding-window-").map(|index| (false, index));
    let found = window.or_else(|| Some((true, index("random-")?)));
    let Some((shuffled, index)) = found else {
        let known = [DEFAULT_SPLIT, "random-0", "sliding-window-0"];
        return missing(format!(
            "there is no `{name}`, for there is no folder {}; nearest: `{}`",
            place.display(),
            registry::nearest(known.into_iter(), name).join("`, `")
        ));
    };
    let Some(facts) = sets::find(&info.name) else {
        return missing(format!(
            "there is no folder {}, and the size of windows is known for the eight data sets only, not for `{}`",
            place.display(),
            info.name
        ));
    };
    let Some(times) = times else {
        return missing(format!(
            "there is no folder {}, and without meta columns {} does not tell the order in time",
            place.display(),
            folder.display()
        ));
    };
    let mut order: Vec<u32> = (0..times.len() as u32).collect();
    order.sort_by_key(|row| times[*row as usize]); // stable: rows of one time keep their order
    if shuffled {
        splits::random(&order, index, facts.window)
    } else {
        splits::sliding_window(&order, index, facts.window)
    }
}

/// Sentences on where a folder differs from what is known of the data set.
fn differences(
    facts: &SetFacts,
    info: &Info,
    layout: Layout,
    rows: usize,
    features: [usize; 3],
    default_split: Option<&Split>,
) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, expected: String, found: String| {
        if expected != found {
            differences.push(format!(
                "data set `{}`: {what}: expected {expected}, found {found}",
                facts.name
            ));
        }
    };
    compare(
        "task",
        format!("{:?}", facts.task),
        format!("{:?}", info.task),
    );
    let score = |metric: Metric| metric.name().to_owned();
    compare("score", score(facts.score), score(info.score));
    let expected = match layout {
        Layout::Parts => facts.split.iter().sum(),
        _ => facts.rows,
    };
    compare("rows", expected.to_string(), rows.to_string());
    for ((what, expected), found) in [
        "numerical features",
        "binary features",
        "categorical features",
    ]
    .into_iter()
    .zip(facts.features)
    .zip(features)
    {
        compare(what, expected.to_string(), found.to_string());
    }
    if let Some(split) = default_split {
        let parts = [&split.train, &split.valid, &split.test];
        for ((part, expected), found) in PARTS.iter().zip(facts.split).zip(parts) {
            compare(
                &format!("rows of the default split's part `{part}`"),
                expected.to_string(),
                found.len().to_string(),
            );
        }
    }
    differences
}
