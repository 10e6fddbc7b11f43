//! Loss, prediction and scores of tabular tasks.

use std::panic::{AssertUnwindSafe, catch_unwind};

use densely_core::{Error, Result};
use densely_data::dataset::Dataset;
pub use densely_data::schema::Task;
use densely_torch_ext::InferenceMode;
use densely_train::machine::is_out_of_memory;
use densely_train::metrics::Metric;
use tch::{Kind, Reduction, Tensor};

use crate::models::TabularModel;
use crate::settings::{Averaging, metrics_of};

/// The mean over rows and members of each member's own loss: squared error for regression, cross-entropy for
/// classes. Never the loss of the averaged prediction, which would train one network instead of k.
///
/// # Shapes
/// `ys`: `[batch, k, d_out]`; `target`: `[batch]`, or `[batch, k]` when each member has rows of its own, f32
/// (standardised) or i64 class numbers; `weight`: the target's shape. Computed in f32 whatever `ys` is.
pub fn members_loss(ys: &Tensor, target: &Tensor, weight: Option<&Tensor>, task: Task) -> Tensor {
    let (batch, k) = (ys.size()[0], ys.size()[1]);
    let ys = if ys.kind() == Kind::Double {
        ys.shallow_clone()
    } else {
        ys.to_kind(Kind::Float)
    };
    let spread = |xs: &Tensor| {
        if xs.dim() == 1 {
            xs.unsqueeze(1).expand([batch, k], false)
        } else {
            xs.shallow_clone()
        }
    };
    let target = spread(target);
    let reduction = if weight.is_some() {
        Reduction::None
    } else {
        Reduction::Mean
    };
    let losses = match task {
        Task::Regression => ys.squeeze_dim(2).mse_loss(&target, reduction),
        Task::Binary | Task::Multiclass => {
            let target = target.reshape([batch * k]);
            ys.flatten(0, 1)
                .cross_entropy_loss(&target, None::<&Tensor>, reduction, -100, 0.0)
        }
    };
    match weight {
        None => losses,
        Some(weight) => {
            let weight = spread(weight);
            (losses.view([batch, k]) * &weight).sum(Kind::Float) / weight.sum(Kind::Float)
        }
    }
}

/// Members' predictions in the units of the task: values for regression (`ys · std + mean`), probabilities for
/// classes. `[batch, k, d_out]` → `[batch, k]` or `[batch, k, classes]`.
fn to_units(ys: &Tensor, task: Task, scale: Option<(f64, f64)>) -> Tensor {
    match task {
        Task::Regression => {
            let (mean, std) = scale.unwrap_or((0.0, 1.0));
            ys.squeeze_dim(2).to_kind(Kind::Double) * std + mean
        }
        Task::Binary | Task::Multiclass => ys.softmax(-1, Kind::Float).to_kind(Kind::Double),
    }
}

/// Predicts all rows of `data` in order and averages the `members` (all of them when the list is empty).
///
/// `scale`: mean and standard deviation of the regression target. Returns f64 values on the CPU: `[rows]` for
/// regression, probabilities `[rows, classes]` otherwise. When memory runs out, the batch is halved and the
/// rows tried again, down to one row; a warning says so.
///
/// # Errors
/// [`Error::Shape`] when the data does not fit the model; [`Error::Torch`] when even one row is too many.
pub fn predict(
    model: &dyn TabularModel,
    data: &Dataset,
    task: Task,
    scale: Option<(f64, f64)>,
    members: &[i64],
    batch_size: usize,
) -> Result<Tensor> {
    let chosen =
        (!members.is_empty()).then(|| Tensor::from_slice(members).to_device(data.device()));
    let average = |ys: Tensor| {
        let ys = match &chosen {
            Some(members) => ys.index_select(1, members),
            None => ys,
        };
        ys.mean_dim(1, false, Kind::Double)
    };
    each_batch(model, data, batch_size, |ys| {
        average(to_units(&ys, task, scale))
    })
}

/// Runs the model over all rows, applies `reduce` to each batch's output and joins the results on the CPU.
fn each_batch(
    model: &dyn TabularModel,
    data: &Dataset,
    batch_size: usize,
    reduce: impl Fn(Tensor) -> Tensor,
) -> Result<Tensor> {
    let _inference = InferenceMode::new();
    let mut size = batch_size.max(1);
    loop {
        let all = || -> Result<Tensor> {
            let parts = data
                .chunks(size)
                .map(|batch| {
                    let batch = batch?;
                    let ys =
                        model.forward_members(batch.x_num.as_ref(), batch.x_cat.as_ref(), false)?;
                    Ok(reduce(ys).to_device(tch::Device::Cpu))
                })
                .collect::<Result<Vec<_>>>()?;
            Ok(Tensor::f_cat(&parts, 0)?)
        };
        // tch panics where libtorch fails; running out of memory is the one failure to recover from here.
        let outcome = catch_unwind(AssertUnwindSafe(all)).unwrap_or_else(|panic| {
            let message = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default();
            Err(Error::Torch {
                message,
                trace: String::new(),
            })
        });
        match outcome {
            Err(Error::Torch { message, .. }) if size > 1 && is_out_of_memory(&message) => {
                size /= 2;
                tracing::warn!("evaluation ran out of memory; trying batches of {size} rows");
            }
            other => return other,
        }
    }
}

/// The targets of `data` in the units of [`predict`]: f64 values or i64 classes, on the CPU.
///
/// # Errors
/// [`Error::Data`] when the rows have no target.
pub fn targets(data: &Dataset, scale: Option<(f64, f64)>) -> Result<Tensor> {
    let y = data
        .y
        .as_ref()
        .ok_or_else(|| Error::data("", "the rows have no target"))?;
    let y = y.to_device(tch::Device::Cpu);
    Ok(match scale {
        Some((mean, std)) => y.to_kind(Kind::Double) * std + mean,
        None => y,
    })
}

/// One metric of averaged predictions; the probability of class 1 is taken where a metric is about two classes.
///
/// # Errors
/// [`Error::Shape`] when the metric is not defined, such as the ROC AUC of rows of one class.
pub fn score(metric: Metric, predictions: &Tensor, targets: &Tensor) -> Result<f64> {
    if metric == Metric::RocAuc && predictions.dim() == 2 {
        return metric.compute(&predictions.select(1, 1), targets);
    }
    metric.compute(predictions, targets)
}

/// All metrics of the task that are defined on these rows (the ROC AUC needs both classes).
pub fn scores(task: Task, predictions: &Tensor, targets: &Tensor) -> Vec<(Metric, f64)> {
    let defined = |metric: &Metric| match score(*metric, predictions, targets) {
        Ok(value) => Some((*metric, value)),
        Err(error) => {
            tracing::warn!("{} is not defined on these rows: {error}", metric.name());
            None
        }
    };
    metrics_of(task).iter().filter_map(defined).collect()
}

/// The members that `rule` keeps, by the score of their predictions on validation rows; empty stands for all.
///
/// # Errors
/// Those of [`predict`] and [`score`].
pub fn select_members(
    rule: Averaging,
    metric: Metric,
    model: &dyn TabularModel,
    data: &Dataset,
    task: Task,
    scale: Option<(f64, f64)>,
    batch_size: usize,
) -> Result<Vec<i64>> {
    if rule == Averaging::All {
        return Ok(Vec::new());
    }
    let members = each_batch(model, data, batch_size, |ys| to_units(&ys, task, scale))?;
    let targets = targets(data, scale)?;
    let mut chosen: Vec<i64> = Vec::new();
    let mut sum = Tensor::zeros_like(&members.select(1, 0));
    let mut best: Option<f64> = None;
    loop {
        let mut next: Option<(i64, f64)> = None;
        for member in (0..members.size()[1]).filter(|member| !chosen.contains(member)) {
            let average = (&sum + members.select(1, member)) / (chosen.len() + 1) as f64;
            let value = score(metric, &average, &targets)?;
            if next.is_none_or(|(_, best)| metric.is_better(value, best)) {
                next = Some((member, value));
            }
        }
        match next {
            Some((member, value)) if best.is_none_or(|best| metric.is_better(value, best)) => {
                sum += members.select(1, member);
                chosen.push(member);
                best = Some(value);
            }
            _ => return Ok(chosen),
        }
        if rule == Averaging::Best {
            return Ok(chosen);
        }
    }
}
