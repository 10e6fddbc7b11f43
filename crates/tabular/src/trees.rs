//! Gradient-boosted trees on the same rows, split and scores, so that a network is compared with what people would use.
//!
//! Not a model of ours: the crate `forust-ml`, which follows `XGBoost`'s algorithm. The validation rows choose the depth
//! and the number of trees, as they choose the epoch of a network. Categories are ordinal codes.

use std::time::Instant;

use densely_core::{Error, Result};
use densely_data::{Dataset, Table};
use densely_train::machine::peak_rss_mb;
use densely_train::metrics::Metric;
use forust_ml::metric::Metric as Loss;
use forust_ml::objective::ObjectiveType;
use forust_ml::{GradientBooster, Matrix};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::fit::Prepared;
use crate::task::{self, Task};

/// How trees are fitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TreesSettings {
    /// Depths to try.
    pub depths: Vec<usize>,
    /// Most trees of each output.
    pub trees: usize,
    /// Trees without a better validation loss after which no more are grown.
    pub patience: usize,
    /// Share of a tree's values that is added.
    pub learning_rate: f32,
    /// Share of the rows that a tree sees.
    pub rows: f32,
    /// Share of the columns that a tree sees.
    pub columns: f64,
    /// Bins per feature.
    pub bins: u16,
}

impl Default for TreesSettings {
    fn default() -> Self {
        Self {
            depths: vec![4, 6, 8, 10],
            trees: 4000,
            patience: 50,
            learning_rate: 0.05,
            rows: 0.8,
            columns: 0.8,
            bins: 256,
        }
    }
}

/// What trees reached.
#[derive(Debug)]
pub struct TreesOutcome {
    /// The depth that was kept.
    pub depth: usize,
    /// Trees of all outputs.
    pub trees: usize,
    /// Metrics on the validation rows.
    pub valid: Vec<(Metric, f64)>,
    /// Metrics on the test rows.
    pub test: Vec<(Metric, f64)>,
    /// Seconds, all depths.
    pub seconds: f64,
    /// Largest resident memory of this process so far, MB, where the system tells.
    pub peak_mb: Option<f64>,
}

/// Fits on the training rows of `prepared`, whose raw features are read from `table`; several classes take one model
/// each against the rest.
///
/// # Errors
/// [`Error::Config`] when no budget is given; [`Error::Unsupported`] when the trees cannot be grown; those of
/// [`raw`](densely_data::Preprocessor::raw).
pub fn fit_trees(
    table: &Table,
    prepared: &Prepared,
    metric: Metric,
    seed: u64,
    settings: &TreesSettings,
) -> Result<TreesOutcome> {
    let start = Instant::now();
    let part = |rows: &[u32], data: &Dataset| -> Result<Part> {
        let columns = prepared.preprocessor.raw(table, rows)?;
        Ok(Part {
            cells: columns
                .iter()
                .flat_map(|column| column.values.iter().copied())
                .collect(),
            width: columns.len(),
            targets: values(&task::targets(data, prepared.preprocessor.target_scale())?)?,
            weights: match &data.weight {
                Some(weight) => values(weight)?,
                None => vec![1.0; rows.len()],
            },
        })
    };
    let train = part(&prepared.split.train, &prepared.train)?;
    let valid = part(&prepared.split.valid, &prepared.valid)?;
    let test = part(&prepared.split.test, &prepared.test)?;
    let target = |part: &Part| match prepared.task {
        Task::Regression => Tensor::from_slice(&part.targets),
        _ => Tensor::from_slice(&part.targets).to_kind(Kind::Int64),
    };
    let valid_targets = target(&valid);

    let mut best: Option<(f64, usize, Vec<GradientBooster>)> = None;
    for depth in &settings.depths {
        let grow = |class: Option<i64>| {
            grow(
                &train,
                &valid,
                class,
                *depth,
                (prepared.task, seed),
                settings,
            )
        };
        let boosters = match prepared.task {
            Task::Regression => vec![grow(None)?],
            Task::Binary => vec![grow(Some(1))?],
            Task::Multiclass => (0..prepared.outputs())
                .map(|class| grow(Some(class)))
                .collect::<Result<_>>()?,
        };
        let score = task::score(
            metric,
            &predict(&boosters, &valid, prepared.task),
            &valid_targets,
        )?;
        if best
            .as_ref()
            .is_none_or(|(other, ..)| metric.is_better(score, *other))
        {
            best = Some((score, *depth, boosters));
        }
    }
    let Some((_, depth, boosters)) = best else {
        return Err(Error::config("depths", "must hold at least one depth"));
    };
    let scores = |part: &Part| {
        task::scores(
            prepared.task,
            &predict(&boosters, part, prepared.task),
            &target(part),
        )
    };
    Ok(TreesOutcome {
        depth,
        trees: boosters.iter().map(|booster| booster.trees.len()).sum(),
        valid: scores(&valid),
        test: scores(&test),
        seconds: start.elapsed().as_secs_f64(),
        peak_mb: peak_rss_mb(),
    })
}

/// Rows as the trees take them.
struct Part {
    /// Column behind column.
    cells: Vec<f64>,
    width: usize,
    targets: Vec<f64>,
    weights: Vec<f64>,
}

impl Part {
    fn matrix(&self) -> Matrix<'_, f64> {
        Matrix::new(&self.cells, self.targets.len(), self.width)
    }

    /// 1 for the rows of the class, else 0; the targets themselves without a class.
    fn targets_of(&self, class: Option<i64>) -> Vec<f64> {
        let Some(class) = class else {
            return self.targets.clone();
        };
        let of = |y: &f64| f64::from(*y as i64 == class);
        self.targets.iter().map(of).collect()
    }
}

fn grow(
    train: &Part,
    valid: &Part,
    class: Option<i64>,
    depth: usize,
    (task, seed): (Task, u64),
    settings: &TreesSettings,
) -> Result<GradientBooster> {
    // The crate would stop a regression by the error of logarithms, which is no number for negative targets.
    let (objective, watched_metric) = match task {
        Task::Regression => (ObjectiveType::SquaredLoss, Loss::RootMeanSquaredError),
        _ => (ObjectiveType::LogLoss, Loss::LogLoss),
    };
    let mut booster = GradientBooster::default()
        .set_objective_type(objective)
        .set_evaluation_metric(Some(watched_metric))
        .set_iterations(settings.trees)
        .set_learning_rate(settings.learning_rate)
        .set_max_depth(depth)
        // The depth is the limit: by default a tree has few leaves, however deep.
        .set_max_leaves(usize::MAX)
        .set_nbins(settings.bins)
        .set_subsample(settings.rows)
        .set_colsample_bytree(settings.columns)
        .set_early_stopping_rounds(Some(settings.patience))
        .set_initialize_base_score(true)
        .set_num_threads(Some(tch::get_num_threads().max(1) as usize))
        .set_seed(seed);
    let (targets, valid_targets) = (train.targets_of(class), valid.targets_of(class));
    let watched = vec![(valid.matrix(), &*valid_targets, &*valid.weights)];
    let grown = booster.fit(&train.matrix(), &targets, &train.weights, Some(watched));
    grown.map_err(|e| Error::Unsupported {
        what: format!("gradient-boosted trees on these rows ({e})"),
        hint: "leave the trees out of the comparison".to_owned(),
    })?;
    Ok(booster)
}

/// Values `[rows]`, or probabilities `[rows, classes]`.
fn predict(boosters: &[GradientBooster], part: &Part, task: Task) -> Tensor {
    let outputs: Vec<Tensor> = boosters
        .iter()
        .map(|booster| Tensor::from_slice(&booster.predict(&part.matrix(), true)))
        .collect();
    match task {
        Task::Regression => outputs[0].shallow_clone(),
        Task::Binary => {
            let p = outputs[0].sigmoid();
            Tensor::stack(&[1.0 - &p, p], 1)
        }
        Task::Multiclass => {
            let all = Tensor::stack(&outputs, 1).sigmoid(); // [rows, classes], each against the rest
            let sums = all.sum_dim_intlist(1, true, None::<Kind>);
            all / sums.clamp_min(f64::MIN_POSITIVE)
        }
    }
}

fn values(xs: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::try_from(xs.to_kind(Kind::Double))?)
}
