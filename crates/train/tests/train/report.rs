//! Reports and plots of a finished run.

use densely_train::metrics::Metric;
use densely_train::report::{self, Report, Score};

use crate::trainer::{Settings, folder, options, train, turn};

#[test]
fn a_report_names_results_with_units_course_plots_and_settings() {
    let _turn = turn();
    let folder = folder();
    train(folder.path(), &Settings::default(), options(), None, |_| {}).unwrap();
    std::fs::create_dir(folder.path().join("plots")).unwrap();
    std::fs::write(folder.path().join("plots/loss.svg"), "<svg/>").unwrap();
    let report = Report {
        title: "A small run".to_owned(),
        facts: vec![("model".to_owned(), "two layers | 49 parameters".to_owned())],
        scores: vec![Score {
            part: "test".to_owned(),
            metric: Metric::Rmse,
            value: 0.25,
        }],
        sections: Vec::new(),
        notes: vec!["Made data.".to_owned()],
    };
    let text = std::fs::read_to_string(report::write(folder.path(), &report).unwrap()).unwrap();
    for part in [
        "# A small run\n",
        "| model | two layers \\| 49 parameters |\n",
        "| training | 5 epochs, 35 steps |\n",
        "| best | epoch ",
        "| versions | densely ",
        "| test | rmse | 0.250000 | unit of the target | lower |\n",
        "- Made data.\n",
        "![loss](plots/loss.svg)\n",
        "[optim]\n",
        "seed = 7\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn a_bar_without_a_terminal_shows_nothing_and_does_not_fail() {
    let bar = densely_train::progress::Bar::new(10, 2, true);
    bar.update(0, 3, Some(0.5));
    bar.finish();
}

#[cfg(feature = "plots")]
mod plots {
    use densely_core::Error;
    use densely_train::plot::{Axes, Series, calibration, line, run_plots, scatter};
    use tch::{Device, Kind, Tensor};

    use super::*;

    /// Where to leave the plots for looking at them: `DENSELY_PLOTS=folder`, else nowhere.
    fn keep(folder: &std::path::Path) {
        if let Some(target) = std::env::var_os("DENSELY_PLOTS") {
            std::fs::create_dir_all(&target).unwrap();
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let target = std::path::Path::new(&target).join(path.file_name().unwrap());
                std::fs::copy(&path, target).unwrap();
            }
        }
    }

    #[test]
    fn a_runs_plots_hold_titles_units_and_a_legend() {
        let _turn = turn();
        let folder = folder();
        let settings = Settings {
            epochs: 30,
            ..Settings::default()
        };
        let options = densely_train::RunOptions {
            patience: None,
            ..options()
        };
        train(folder.path(), &settings, options, None, |_| {}).unwrap();
        let paths = run_plots(folder.path()).unwrap();
        let names: Vec<_> = paths
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["loss.svg", "rmse.svg"]);
        let svg = std::fs::read_to_string(&paths[1]).unwrap();
        for part in [
            "rmse by epoch",
            "epoch",
            "rmse [unit of the target]",
            "validation",
            "sans-serif",
        ] {
            assert!(svg.contains(part), "{part}");
        }
        keep(&folder.path().join("plots"));
    }

    #[test]
    fn scatter_and_calibration_draw_any_number_of_rows() {
        tch::no_grad(|| {
            let folder = folder();
            let path = |name: &str| folder.path().join(name);
            let n = 20_000;
            // Hashes instead of the process's generator, which other tests use at the same time.
            let noise = |seed: f64| {
                (Tensor::arange(n, (Kind::Double, Device::Cpu)) * 12.9898 + seed).sin()
                    * 43_758.545_3
            };
            let uniform = |seed: f64| noise(seed) - noise(seed).floor();
            let truth = uniform(1.0) * 4.0 + uniform(2.0) * 1.5;
            let guess = &truth + (uniform(3.0) - uniform(4.0)) * 0.8;
            let axes = Axes::new(
                "Predictions on the test rows",
                "target [100 000 $]",
                "prediction [100 000 $]",
            );
            scatter(&path("scatter.svg"), &axes, &guess, &truth).unwrap();
            let svg = std::fs::read_to_string(path("scatter.svg")).unwrap();
            assert!(
                svg.contains("(4000 of 20000 rows)") && svg.len() < 1_000_000,
                "{}",
                svg.len()
            );

            let p = uniform(5.0);
            let labels = uniform(6.0)
                .lt_tensor(&p.pow_tensor_scalar(1.3))
                .to_kind(Kind::Int64);
            let axes = Axes::new(
                "Calibration on the test rows",
                "predicted probability",
                "share of class 1",
            );
            calibration(&path("calibration.svg"), &axes, &p, &labels, 10).unwrap();
            let series = |name: &str, bend: f64| Series {
                name: name.to_owned(),
                points: (1..200)
                    .map(|x| (f64::from(x), bend / f64::from(x).sqrt() + 0.4))
                    .collect(),
            };
            let axes = Axes::new("Loss by step", "step", "mean squared error");
            line(
                &path("line.svg"),
                &axes,
                &[series("training", 1.0), series("validation", 1.4)],
            )
            .unwrap();
            let one = [Series {
                name: "x".to_owned(),
                points: vec![(1.0, 2.0), (2.0, f64::NAN)],
            }];
            line(&path("one.svg"), &axes, &one).unwrap();
            assert!(matches!(
                line(&path("none.svg"), &axes, &[]),
                Err(Error::Config { .. })
            ));
            assert!(scatter(&path("none.svg"), &axes, &p, &p.narrow(0, 0, 3)).is_err());
            assert!(!path("none.svg").exists());
            keep(folder.path());
        });
    }
}
