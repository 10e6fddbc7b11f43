//! Metrics against scikit-learn, from memory and from a file of predictions.

use std::fmt::Write;

use densely_core::{Result, tch};
use densely_recsys::metrics::{Metric, Scores};
use densely_testkit::Golden;
use tempfile::TempDir;

#[test]
fn metrics_equal_scikit_learn_from_memory_and_from_a_file() -> Result<()> {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "metrics");
    for case in golden.config::<Vec<String>>() {
        let column = |name: &str| {
            let xs = golden.tensor(&format!("{case}.input.{name}"));
            Vec::<f64>::try_from(xs.to_kind(tch::Kind::Double))
        };
        let (p, y, g) = (column("p")?, column("y")?, column("group")?);
        let clicks: Vec<bool> = y.iter().map(|y| *y > 0.5).collect();
        let groups: Vec<u32> = g.iter().map(|g| *g as u32).collect();
        let scores = Scores::new(&p, &clicks, Some(&groups))?;
        for metric in Metric::ALL {
            let expected = golden.tensor(&format!("{case}.output.{}", metric.name()));
            let expected = expected.double_value(&[]);
            let actual = scores.get(metric).expect("defined");
            assert!(
                (actual - expected).abs() <= 1e-12,
                "{case} {}: {actual} instead of {expected}",
                metric.name()
            );
        }
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("predictions.csv");
        let mut text = "user,probability,clk\n".to_owned();
        for ((p, y), g) in p.iter().zip(&y).zip(&g) {
            writeln!(text, "u{g},{p},{y}").expect("a text");
        }
        std::fs::write(&path, text).expect("written");
        let read = Scores::read(&path, "clk", "probability", Some("user"))?;
        assert!((read.log_loss - scores.log_loss).abs() < 1e-15);
        assert_eq!(read.auc, scores.auc);
        let (read, own) = (read.groups.expect("groups"), scores.groups.expect("groups"));
        assert!((read.gauc - own.gauc).abs() < 1e-14 && read.left_out == own.left_out);
    }
    Ok(())
}

#[test]
fn a_label_that_is_no_click_names_its_row() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("predictions.csv");
    for (rows, words) in [
        (
            "0.4,1\n0.2,3\n",
            "row 3, column `clk`: the label must be 0 or 1, got 3",
        ),
        ("0.4,1\n0.2,\n", "row 3, column `clk`: the label is missing"),
        (
            "0.4,1\n,0\n",
            "row 3, column `p`: the probability is missing",
        ),
    ] {
        std::fs::write(&path, format!("p,clk\n{rows}")).expect("written");
        let error = Scores::read(&path, "clk", "p", None)
            .expect_err(words)
            .to_string();
        assert!(error.contains(words), "{error}");
    }
}
