//! Metrics against scikit-learn and against naive versions.

use std::collections::BTreeMap;

use densely_testkit::Golden;
use densely_train::metrics::{Metric, accuracy, log_loss, r2, rmse, roc_auc};
use proptest::prelude::*;
use tch::Tensor;

#[test]
fn metrics_equal_scikit_learn() {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "metrics");
    for (case, metrics) in golden.config::<BTreeMap<String, Vec<Metric>>>() {
        let predictions = golden.tensor(&format!("{case}.input.predictions"));
        let targets = golden.tensor(&format!("{case}.input.targets"));
        for metric in metrics {
            let actual = metric.compute(&predictions, &targets).unwrap();
            let expected = golden
                .tensor(&format!("{case}.output.{}", metric.name()))
                .double_value(&[]);
            let error = (actual - expected).abs() / expected.abs();
            assert!(
                error < 1e-12,
                "{case} {}: {actual} instead of {expected}",
                metric.name()
            );
        }
    }
}

#[test]
fn predictions_that_are_no_numbers_are_errors() {
    let labels = Tensor::from_slice(&[0i64, 1, 1]);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let scores = Tensor::from_slice(&[0.2, bad, 0.7]);
        for metric in Metric::ALL {
            let error = metric.compute(&scores, &labels).unwrap_err().to_string();
            assert!(
                error.contains("expected finite values, got 1 that"),
                "{error}"
            );
        }
    }
}

#[test]
fn shapes_labels_and_degenerate_sets_are_errors() {
    let scores = Tensor::from_slice(&[0.2f32, 0.4, 0.7]);
    let empty = Tensor::from_slice(&[] as &[f32]);
    for metric in Metric::ALL {
        assert!(
            metric
                .compute(&scores, &Tensor::from_slice(&[1i64, 0]))
                .is_err()
        );
        assert!(metric.compute(&empty, &empty).is_err());
    }
    assert!(
        rmse(&scores, &scores.unsqueeze(1)).is_err(),
        "no silent broadcast"
    );
    assert!(r2(&scores, &scores.ones_like()).is_err());
    assert!(roc_auc(&scores, &Tensor::from_slice(&[1i64, 1, 1])).is_err());
    for bad in [[0i64, 1, 2], [0, 1, -1]] {
        let bad = Tensor::from_slice(&bad);
        assert!(accuracy(&scores, &bad).is_err() && roc_auc(&scores, &bad).is_err());
    }
    let labels = Tensor::from_slice(&[1i64, 0, 1]);
    assert!(log_loss(&(scores * 2), &labels).is_err());
}

#[test]
fn names_units_and_directions_are_a_table() {
    for metric in Metric::ALL {
        assert_eq!(metric.name().parse::<Metric>().unwrap(), metric);
        assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
        assert!(!metric.unit().is_empty());
        assert!(!metric.is_better(f64::NAN, 0.0) && !metric.is_better(1.0, 1.0));
    }
    assert!(Metric::Rmse.is_better(1.0, 2.0) && Metric::RocAuc.is_better(0.9, 0.8));
    assert!(
        "f1".parse::<Metric>()
            .unwrap_err()
            .to_string()
            .contains("roc_auc")
    );
}

proptest! {
    #[test]
    fn auc_counts_every_pair(rows in prop::collection::vec((-4i32..4, any::<bool>()), 2..60)) {
        let scores: Vec<f64> = rows.iter().map(|row| f64::from(row.0) / 3.0).collect();
        let labels: Vec<i64> = rows.iter().map(|row| i64::from(row.1)).collect();
        let (mut won, mut pairs) = (0.0, 0.0);
        for (a, _) in rows.iter().filter(|row| row.1) {
            for (b, _) in rows.iter().filter(|row| !row.1) {
                pairs += 1.0;
                won += f64::from(u8::from(a > b)) + f64::from(u8::from(a == b)) / 2.0;
            }
        }
        let auc = roc_auc(&Tensor::from_slice(&scores), &Tensor::from_slice(&labels));
        if pairs == 0.0 {
            prop_assert!(auc.is_err());
        } else {
            prop_assert_eq!(auc.unwrap(), won / pairs);
        }
    }
}
