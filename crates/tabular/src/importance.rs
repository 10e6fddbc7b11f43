//! Permutation importance: how much worse the score gets when one column's values change places.

use densely_core::{Result, seeded};
use densely_data::Dataset;
use densely_train::metrics::{Direction, Metric};
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::fit::Fitted;
use crate::task;

/// How a column matters to a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Importance {
    /// The column; parts of the calendar stand behind a colon.
    pub column: String,
    /// By how much the score gets worse, in its unit: mean over the repeats. Near 0, or below, the column does nothing.
    pub mean: f64,
    /// Standard deviation over the repeats.
    pub sd: f64,
}

/// The importance of every feature of `data` for the score `metric`, greatest first.
///
/// Each column is permuted `repeats` times while the others stay. Columns that carry the same news hide each other:
/// each alone may look useless (Breiman 2001; Strobl et al. 2008).
/// # Errors
/// Those of predicting and scoring the rows.
pub fn permutation_importance(
    fitted: &Fitted,
    data: &Dataset,
    metric: Metric,
    repeats: u64,
    seed: u64,
) -> Result<Vec<Importance>> {
    let scale = fitted.pipeline.preprocessor.target_scale();
    let targets = task::targets(data, scale)?;
    let score = |data: &Dataset| -> Result<f64> {
        task::score(metric, &fitted.predict_data(data)?, &targets)
    };
    let base = score(data)?;
    let rows = data.len() as i64;
    let names = fitted.pipeline.preprocessor.feature_names();
    let n_num = fitted.pipeline.preprocessor.n_num();
    let mut found = Vec::new();
    for (at, column) in names.into_iter().enumerate() {
        let drops = (0..repeats.max(1)).map(|repeat| {
            let order = seeded(mix(seed, at as u64, repeat), || {
                Tensor::randperm(rows, (Kind::Int64, data.device()))
            });
            let permuted = |xs: &Option<Tensor>, place: Option<usize>| {
                let xs = xs.as_ref()?;
                let Some(place) = place else {
                    return Some(xs.shallow_clone());
                };
                let copy = xs.copy();
                let moved = xs.select(1, place as i64).index_select(0, &order);
                copy.select(1, place as i64).copy_(&moved);
                Some(copy)
            };
            let (num, cat) = if at < n_num {
                (Some(at), None)
            } else {
                (None, Some(at - n_num))
            };
            let value = score(&Dataset {
                x_num: permuted(&data.x_num, num),
                x_cat: permuted(&data.x_cat, cat),
                y: None,
                weight: None,
            })?;
            Ok(match metric.direction() {
                Direction::Lower => value - base,
                Direction::Higher => base - value,
            })
        });
        let drops = drops.collect::<Result<Vec<f64>>>()?;
        let n = drops.len() as f64;
        let mean = drops.iter().sum::<f64>() / n;
        let squares: f64 = drops.iter().map(|drop| (drop - mean).powi(2)).sum();
        let sd = if n > 1.0 {
            (squares / (n - 1.0)).sqrt()
        } else {
            0.0
        };
        found.push(Importance { column, mean, sd });
    }
    found.sort_by(|a, b| b.mean.total_cmp(&a.mean));
    Ok(found)
}

/// A seed for each draw.
fn mix(seed: u64, column: u64, repeat: u64) -> i64 {
    densely_train::machine::step_seed(seed, column.wrapping_mul(1_000_003).wrapping_add(repeat))
}
