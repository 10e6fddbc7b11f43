//! Ensembles of whole runs: the predictions of several seeds, averaged. (Those of a TabM's members are averaged within it.)

use densely_core::{Error, Result};
use densely_train::metrics::Metric;
use tch::{Kind, Tensor};

use crate::task::{self, Task};

/// Runs of an ensemble: 15 seeds make three of them, as in the TabReD and TabM papers.
pub const GROUP: usize = 5;

/// Test scores of ensembles of [`GROUP`] runs: the first five, the next five, and so on; runs that fill no group are
/// left out. Values or probabilities are averaged, as [`task::predict`] gives them.
///
/// # Shapes
/// Each of `predictions`: `[rows]` values or `[rows, classes]` probabilities; `targets`: `[rows]`.
/// # Errors
/// [`Error::Shape`] when two runs predict other rows or classes.
pub fn scores(
    task: Task,
    predictions: &[&Tensor],
    targets: &Tensor,
) -> Result<Vec<Vec<(Metric, f64)>>> {
    if let Some(first) = predictions.first()
        && let Some(other) = predictions.iter().find(|xs| xs.size() != first.size())
    {
        return Err(Error::Shape {
            what: "predictions of a run".to_owned(),
            expected: format!("{:?}", first.size()),
            got: format!("{:?}", other.size()),
        });
    }
    let groups = predictions.chunks_exact(GROUP);
    Ok(groups
        .map(|group| {
            let average = Tensor::stack(group, 0).mean_dim(0, false, Kind::Double);
            task::scores(task, &average, targets)
        })
        .collect())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn fives_are_averaged_and_the_rest_is_left_out() {
        let targets = Tensor::from_slice(&[1.0, 2.0, 3.0]);
        // Errors of +1 and -1 cancel in the first five but for one fifth; the second five are all off by 3.
        let shifts = [1.0, -1.0, 1.0, -1.0, 1.0, 3.0, 3.0, 3.0, 3.0, 3.0, 9.0, 9.0];
        let runs: Vec<Tensor> = shifts.iter().map(|shift| &targets + *shift).collect();
        let runs: Vec<&Tensor> = runs.iter().collect();
        let groups = scores(Task::Regression, &runs, &targets).unwrap();
        let rmse: Vec<f64> = groups.iter().map(|group| group[0].1).collect();
        assert_eq!(groups[0][0].0, Metric::Rmse);
        assert_eq!(rmse.len(), 2);
        assert!((rmse[0] - 0.2).abs() < 1e-12 && (rmse[1] - 3.0).abs() < 1e-12);
        assert!(
            scores(Task::Regression, &runs[..4], &targets)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn probabilities_are_averaged_not_votes() {
        let row = |p: f64| Tensor::from_slice(&[1.0 - p, p, 0.9, 0.1]).view([2, 2]);
        let runs = [row(0.99), row(0.99), row(0.4), row(0.4), row(0.4)];
        let runs: Vec<&Tensor> = runs.iter().collect();
        let targets = Tensor::from_slice(&[1i64, 0]);
        let groups = scores(Task::Binary, &runs, &targets).unwrap();
        // By votes the first row would be of class 0.
        assert!(groups[0].contains(&(Metric::Accuracy, 1.0)));
        let other = Tensor::from_slice(&[0.5]);
        assert!(scores(Task::Binary, &[runs[0], &other], &targets).is_err());
    }
}
