//! Loss, averaging rules and a whole fit on made data with a known answer.

use std::fmt::Write;

use densely_core::{Error, Result};
use densely_data::{Dataset, Table};
use densely_tabular::fit::{FitOptions, Fitted, Prepared, fit};
use densely_tabular::models::TabularModel;
use densely_tabular::settings::{Averaging, FitSettings};
use densely_tabular::task::{self, Task, members_loss};
use densely_testkit::assert_close;
use densely_train::Metric;
use serde_json::json;
use tch::{Kind, Tensor};

/// A model whose members add their own constant to the feature.
#[derive(Debug)]
struct Shifted(Vec<f32>);

impl TabularModel for Shifted {
    fn forward_members(
        &self,
        x_num: Option<&Tensor>,
        _: Option<&Tensor>,
        _: bool,
    ) -> Result<Tensor> {
        let xs = x_num.ok_or_else(|| Error::data("", "no input"))?;
        Ok((xs + Tensor::from_slice(&self.0)).unsqueeze(-1)) // [rows, members, 1]
    }
}

fn rows() -> Dataset {
    let x = Tensor::arange(50, tch::kind::FLOAT_CPU).unsqueeze(1);
    Dataset {
        y: Some(x.squeeze_dim(1)),
        x_num: Some(x),
        x_cat: None,
        weight: None,
    }
}

#[test]
fn averaging_rules_keep_the_members_that_the_paper_keeps() -> Result<()> {
    // Member 2 is best alone; with member 0 its errors cancel; the others only harm.
    let model = Shifted(vec![-1.0, 5.0, 0.5, -9.0]);
    let select = |rule| {
        task::select_members(
            rule,
            Metric::Rmse,
            &model,
            &rows(),
            Task::Regression,
            None,
            16,
        )
    };
    assert_eq!(select(Averaging::All)?, Vec::<i64>::new());
    assert_eq!(select(Averaging::Best)?, [2]);
    assert_eq!(select(Averaging::Greedy)?, [2, 0]);
    let predict = |members: &[i64]| {
        task::predict(
            &model,
            &rows(),
            Task::Regression,
            Some((10.0, 2.0)),
            members,
            16,
        )
    };
    // Values are taken back to the target's units before they are averaged: 2·(x + shift) + 10.
    let row = |members: &[i64], expected: f64| {
        predict(members).map(|ys| assert_close(&ys.get(3), &Tensor::from(expected), 0.0, 0.0))
    };
    row(&[2, 0], 2.0 * (3.0 - 0.25) + 10.0)?;
    row(&[], 2.0 * (3.0 - 4.5 / 4.0) + 10.0)?;
    Ok(())
}

#[test]
fn the_loss_is_the_mean_of_the_members_losses_not_the_loss_of_their_mean() {
    // Two members that are wrong by as much in opposite directions: their mean is right, their loss is not.
    let ys = Tensor::from_slice(&[2.0f32, 0.0]).view([1, 2, 1]);
    let loss = members_loss(&ys, &Tensor::from_slice(&[1.0f32]), None, Task::Regression);
    assert_close(&loss, &Tensor::from(1.0), 0.0, 0.0);
}

#[test]
fn weights_count_rows() {
    let ys = Tensor::from_slice(&[1.0f32, 2.0, 4.0]).view([3, 1, 1]);
    let zeros = Tensor::zeros([3], tch::kind::FLOAT_CPU);
    let weighted = |weights: &[f32]| {
        members_loss(
            &ys,
            &zeros,
            Some(&Tensor::from_slice(weights)),
            Task::Regression,
        )
    };
    assert_close(&weighted(&[1.0, 1.0, 1.0]), &Tensor::from(7.0), 1e-6, 0.0);
    assert_close(
        &weighted(&[1.0, 0.0, 3.0]),
        &Tensor::from(49.0 / 4.0),
        1e-6,
        0.0,
    );
    let logits = Tensor::from_slice(&[0.3f32, -0.2, 1.0, 0.5]).view([2, 1, 2]);
    let classes = Tensor::from_slice(&[0i64, 1]);
    let plain = members_loss(&logits, &classes, None, Task::Binary);
    let even = members_loss(
        &logits,
        &classes,
        Some(&Tensor::from_slice(&[2.0f32, 2.0])),
        Task::Binary,
    );
    assert_close(&even, &plain, 1e-6, 0.0);
}

#[test]
fn probabilities_are_averaged_not_logits() -> Result<()> {
    #[derive(Debug)]
    struct Two;
    impl TabularModel for Two {
        fn forward_members(
            &self,
            x: Option<&Tensor>,
            _: Option<&Tensor>,
            _: bool,
        ) -> Result<Tensor> {
            let rows = x.map_or(0, |x| x.size()[0]);
            let logits = Tensor::from_slice(&[0.0f32, 4.0, 0.0, -1.0]).view([1, 2, 2]);
            Ok(logits.expand([rows, 2, 2], false).contiguous())
        }
    }
    let p = task::predict(&Two, &rows(), Task::Binary, None, &[], 7)?;
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let expected = f64::midpoint(sigmoid(4.0), sigmoid(-1.0));
    assert_close(
        &p.select(1, 1),
        &Tensor::full([50], expected, (Kind::Double, tch::Device::Cpu)),
        1e-6,
        0.0,
    );
    Ok(())
}

#[test]
fn a_fit_finds_a_known_function_and_its_folder_predicts_it() -> Result<()> {
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    let mut text = String::from("a,b,kind,y\n");
    for i in 0..600u32 {
        let (a, b) = (f64::from(i * 37 % 101) / 10.0, f64::from(i * 53 % 89));
        let _ = writeln!(
            text,
            "{a},{b},{},{}",
            ["u", "v"][i as usize % 2],
            3.0 * a - 0.1 * b + f64::from(i % 2)
        );
    }
    let path = folder.path().join("t.csv");
    densely_core::fs::write(&path, text.as_bytes())?;
    let table = Table::open(&path)?;
    for (preset, config) in [
        ("mlp", json!({ "d_block": 32, "n_blocks": 2 })),
        ("tabm", json!({ "k": 8, "d_block": 32, "n_blocks": 2 })),
        ("tabm-mini", json!({ "k": 8, "d_block": 32, "n_blocks": 2 })),
        (
            "tabm-packed",
            json!({ "k": 4, "d_block": 32, "n_blocks": 2 }),
        ),
    ] {
        let settings: FitSettings = serde_json::from_value(json!({
            "data": { "target": "y" },
            "model": { "preset": preset, "config": config },
            "train": { "epochs": 30, "batch_size": 32, "optimizer": { "name": "adamw", "lr": 5e-3 } },
        }))
        .expect("settings");
        let prepared = Prepared::new(&table, &settings.data)?;
        let run = folder.path().join(preset);
        let device = tch::Device::Cpu;
        let options = FitOptions {
            folder: &run,
            table: &path,
            seed: 0,
            device,
            resume: None,
        };
        let outcome = fit(&prepared, &settings, &options, &mut |_| {})?;
        let r2 = outcome
            .test
            .iter()
            .find(|(metric, _)| *metric == Metric::R2)
            .expect("R²")
            .1;
        assert!(r2 > 0.9, "{preset}: {r2}");
        // The folder alone gives the predictions of the test rows that the fit itself made.
        let (predictions, _) = Fitted::open(&run, device)?.predict(&table, false)?;
        let rows: Vec<i64> = prepared
            .split
            .test
            .iter()
            .map(|row| i64::from(*row))
            .collect();
        assert_close(
            &predictions.index_select(0, &Tensor::from_slice(&rows)),
            &outcome.predictions,
            1e-6,
            1e-6,
        );
    }
    Ok(())
}

/// A table of two features whose target is a step of one and a curve of the other.
#[cfg(feature = "trees")]
#[test]
fn trees_learn_what_a_linear_model_cannot() -> Result<()> {
    let mut text = String::from("a,b,kind,y\n");
    for i in 0..600 {
        let (a, b) = (f64::from(i % 29) / 29.0, f64::from(i % 31) / 31.0);
        let kind = ["p", "q", "r"][i as usize % 3];
        // Far below zero: trees must not be watched by a score of logarithms.
        let y = f64::from(u8::from(a > 0.5)) + (6.0 * b).sin() + f64::from(u8::from(kind == "q"))
            - 10.0;
        writeln!(text, "{a},{b},{kind},{y}").map_err(|e| Error::data("", e.to_string()))?;
    }
    let folder = tempfile::tempdir().map_err(Error::io("."))?;
    let path = folder.path().join("t.csv");
    std::fs::write(&path, text).map_err(Error::io(&path))?;
    let table = Table::open(&path)?;
    let settings: FitSettings = serde_json::from_value(json!({
        "data": { "target": "y" },
        "model": { "preset": "mlp", "config": { "n_blocks": 0 } },
        "train": { "epochs": 30, "batch_size": 64 },
    }))
    .map_err(|e| Error::config("settings", e.to_string()))?;
    let prepared = Prepared::new(&table, &settings.data)?;
    let trees = densely_tabular::trees::fit_trees(
        &table,
        &prepared,
        Metric::Rmse,
        0,
        &densely_tabular::trees::TreesSettings::default(),
    )?;
    let run = folder.path().join("run");
    let options = FitOptions {
        folder: &run,
        table: &path,
        seed: 0,
        device: tch::Device::Cpu,
        resume: None,
    };
    let linear = fit(&prepared, &settings, &options, &mut |_| ())?;
    // Features of the linear model: two numbers, three categories, one bias.
    assert_eq!(linear.parameters, 6);
    let rmse = |scores: &[(Metric, f64)]| scores[0].1;
    assert!(rmse(&trees.test) < 0.2, "trees: {:?}", trees.test);
    assert!(rmse(&linear.test) > 0.4, "linear: {:?}", linear.test);
    Ok(())
}
