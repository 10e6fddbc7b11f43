//! What the forecasters of this crate share of their training.

use std::time::Instant;

use densely_core::Result;
use densely_train::run::FitOptions;
use densely_train::training::Loop;

use crate::fit::TrainSettings;

/// Settings that may differ when a run is resumed, since they do not change what was learnt so far.
const MAY_CHANGE: [&str; 6] = [
    "table",
    "train.epochs",
    "train.patience",
    "train.min_improvement",
    "train.eval_batch_size",
    "time_budget",
];

/// The loop of a fit that began at `start`; a `time_budget` of 0 seconds is no limit.
pub(crate) fn training<'a>(
    train: &'a TrainSettings,
    options: &'a FitOptions<'a>,
    start: Instant,
    time_budget: f64,
) -> Loop<'a> {
    Loop {
        optimizer: &train.optimizer,
        schedule: &train.schedule,
        epochs: train.epochs,
        patience: train.patience,
        min_improvement: train.min_improvement,
        clip_norm: train.clip_norm,
        ema_decay: 0.0,
        time_budget,
        may_change: &MAY_CHANGE,
        options,
        start,
    }
}

/// The windows of `order` in batches, without the first `skip` of them.
pub(crate) fn of_windows<B>(
    order: Vec<i64>,
    batch_size: i64,
    skip: u64,
    batch: impl Fn(&[i64]) -> Result<B>,
) -> impl Iterator<Item = Result<B>> {
    let size = batch_size as usize;
    let steps = order.len().div_ceil(size);
    (skip as usize..steps).map(move |step| {
        let first = step * size;
        batch(&order[first..(first + size).min(order.len())])
    })
}
