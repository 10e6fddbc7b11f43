//! The search finds what it should, is a function of seed and results, and its folder survives.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use densely_core::{Error, Result};
use densely_train::Metric;
use densely_train::run::FitOptions;
use densely_train::tune::{
    Choice, Found, Method, Plan, RangeSettings, Space, State, Study, Tried, TuneSettings, Work,
};
use serde_json::{Value, json};
use tch::Device;

fn ranges(of: Value) -> BTreeMap<String, RangeSettings> {
    serde_json::from_value(of).expect("ranges")
}

fn made_space() -> Space {
    let ranges = ranges(json!({
        "lr": { "log": [1e-5, 1e-1] },
        "width": { "int": [16, 1024], "step": 16 },
        "dropout": { "zero_or": [0.0, 0.5] },
        "decay": { "zero_or_log": [1e-4, 1e-1] },
        "norm": { "choice": ["layer", "batch", "none"] },
        "share": { "uniform": [-1.0, 1.0] },
    }));
    Space::new(&ranges).expect("a space")
}

/// Lowest, 0, at lr 1e-3, width 512, dropout 0, decay 1e-2, norm `batch`, share 0.4.
fn made_loss(choice: &Choice) -> f64 {
    let number = |name: &str| choice[name].as_f64().expect("a number");
    let decades = |x: f64, best: f64| (x / best).log10().powi(2);
    let decay = match number("decay") {
        0.0 => 2.0,
        decay => decades(decay, 1e-2),
    };
    decades(number("lr"), 1e-3)
        + (number("width") / 512.0 - 1.0).powi(2)
        + 4.0 * number("dropout")
        + decay
        + f64::from(u8::from(choice["norm"] != "batch"))
        + (number("share") - 0.4).powi(2)
}

fn search(space: &Space, seed: u64, trials: u64, startup: u64) -> Result<Vec<Tried>> {
    let mut tried = Vec::new();
    for number in 0..trials {
        let choice = space.propose(seed, number, startup, &tried)?;
        let loss = made_loss(&choice);
        tried.push(Tried { choice, loss });
    }
    Ok(tried)
}

#[test]
fn the_search_beats_random_draws_by_far_with_the_same_budget() -> Result<()> {
    let space = made_space();
    let mean_best = |startup| -> Result<f64> {
        let best = |seed| -> Result<f64> {
            let tried = search(&space, seed, 100, startup)?;
            Ok(tried.iter().map(|t| t.loss).fold(f64::INFINITY, f64::min))
        };
        Ok((0..20).map(best).sum::<Result<f64>>()? / 20.0)
    };
    let (found, random) = (mean_best(20)?, mean_best(100)?);
    assert!(found < 0.4 * random, "{found} against {random} at random");
    Ok(())
}

#[test]
fn proposals_depend_on_seed_number_and_results_and_stay_in_their_ranges() -> Result<()> {
    let space = made_space();
    let first = search(&space, 1, 40, 10)?;
    assert_eq!(first, search(&space, 1, 40, 10)?);
    assert_ne!(first, search(&space, 2, 40, 10)?);
    // Trial 30 follows from the results before it, not from what this process proposed earlier.
    assert_eq!(space.propose(1, 30, 10, &first[..30])?, first[30].choice);
    let mut zeros = 0;
    for Tried { choice, .. } in &first {
        let number = |name: &str| choice[name].as_f64().expect("a number");
        assert!((1e-5..=1e-1).contains(&number("lr")));
        assert!((-1.0..=1.0).contains(&number("share")));
        let width = choice["width"].as_i64().expect("a whole number");
        assert!((16..=1024).contains(&width) && width % 16 == 0);
        let decay = number("decay");
        assert!(decay == 0.0 || (1e-4..=1e-1).contains(&decay));
        zeros += usize::from(number("dropout") == 0.0);
    }
    assert!((8..40).contains(&zeros), "{zeros} of 40 without dropout");
    // Failed trials are the worst ones, not an error.
    let mut failed = first;
    for tried in &mut failed {
        tried.loss = f64::INFINITY;
    }
    space.propose(1, 40, 10, &failed)?;
    Ok(())
}

fn plan() -> Plan {
    let space = ranges(json!({ "train.optimizer.lr": { "log": [1e-4, 1e-1] } }));
    let settings = TuneSettings {
        startup: Some(4),
        ..TuneSettings::default()
    };
    let base = json!({ "model": { "depth": 2 }, "train": { "epochs": 1000, "optimizer": { "lr": 1e-3 } } });
    settings
        .plan(3, Metric::Rmse, space, &base)
        .expect("a plan")
}

#[test]
fn workers_never_hold_the_same_trial_and_a_dead_ones_trial_is_taken_over() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let study = || Study::open(folder.path(), plan(), Some(24));
    // Four workers with handles of their own, each keeping what it claims.
    let claims: Vec<_> = std::thread::scope(|scope| {
        let claim_six = || {
            let study = study()?;
            (0..6).map(|_| study.claim()).collect::<Result<Vec<_>>>()
        };
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(claim_six)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker"))
            .collect()
    });
    let mut held = Vec::new();
    for claims in claims {
        held.extend(claims?.into_iter().flatten());
    }
    let numbers: BTreeSet<u64> = held.iter().map(|claim| claim.trial().number).collect();
    assert_eq!(numbers, (0..24).collect());
    let study = study()?;
    assert!(study.claim()?.is_none(), "all trials are in living hands");

    // A worker that dies lets go of its lock; one that stops on request gives the trial back.
    let dead = held.remove(0);
    let number = dead.trial().number;
    drop(dead);
    let again = study.claim()?.expect("the dead worker's trial");
    assert_eq!((again.trial().number, again.trial().deaths), (number, 1));
    again.postpone()?;
    let again = study.claim()?.expect("the same trial");
    assert_eq!((again.trial().number, again.trial().deaths), (number, 1));
    assert!(study.claim()?.is_none());

    // A trial that kills whoever works on it fails in the end.
    drop(again);
    let deaths = (0..9).map_while(|_| study.claim().transpose()).count();
    assert_eq!(deaths, 3);
    let trials = study.trials()?;
    let failed: Vec<&_> = trials.iter().filter(|t| t.state == State::Failed).collect();
    assert_eq!(failed.len(), 1);
    assert!(
        failed[0]
            .reason
            .as_ref()
            .is_some_and(|text| text.contains("processes died"))
    );
    Ok(())
}

#[test]
fn another_plan_or_a_damaged_record_is_refused_by_name() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let study = Study::open(folder.path(), plan(), Some(2))?;
    drop(study.claim()?);
    let message = |plan, trials| {
        Study::open(folder.path(), plan, Some(trials))
            .expect_err("refused")
            .to_string()
    };
    let other = message(Plan { seed: 4, ..plan() }, 2);
    assert!(other.contains("`seed` was 3 and is now 4"), "{other}");
    let mut longer = plan();
    longer.base["train"]["epochs"] = json!(7);
    assert!(message(longer, 2).contains("`train.epochs` was 1000 and is now 7"));
    assert!(message(plan(), 0).contains("at least 1"));
    std::fs::write(folder.path().join("trials/0000/trial.json"), "{").expect("written");
    let damaged = study.claim().expect_err("damaged").to_string();
    assert!(
        damaged.contains("trials/0000/trial.json") && damaged.contains("to run the trial again")
    );
    Ok(())
}

/// The grid of the paper of TSMixer.
fn grid() -> Plan {
    let space = ranges(json!({
        "train.optimizer.lr": { "choice": [1e-3, 1e-4] },
        "model.depth": { "choice": [1, 2, 4, 6, 8] },
        "model.dropout": { "choice": [0.1, 0.3, 0.5, 0.7, 0.9] },
        "model.width": { "int": [8, 14] },
    }));
    Plan {
        method: Method::Grid,
        space,
        ..plan()
    }
}

#[test]
fn a_grid_tries_every_point_once_in_an_order_that_the_seed_shuffles() -> Result<()> {
    let space = Space::new(&grid().space)?;
    assert_eq!(space.points()?, 2 * 5 * 5 * 7);
    let all = |seed| {
        (0..350)
            .map(|number| space.point(seed, number))
            .collect::<Result<Vec<_>>>()
    };
    let points = all(1)?;
    let texts = |points: &[Choice]| {
        points
            .iter()
            .map(|point| json!(point).to_string())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(texts(&points).len(), 350);
    assert_eq!(points, all(1)?);
    assert_ne!(points, all(2)?);
    assert_eq!(texts(&points), texts(&all(2)?));
    for (name, values) in [
        ("model.depth", 5),
        ("model.width", 7),
        ("train.optimizer.lr", 2),
    ] {
        let count = |points: &[Choice]| {
            points
                .iter()
                .map(|point| point[name].to_string())
                .collect::<BTreeSet<_>>()
                .len()
        };
        // Spread over the whole from the start on.
        assert_eq!(
            (count(&points), count(&points[..50])),
            (values, values),
            "{name}"
        );
    }
    let error = space.point(1, 350).expect_err("there is none").to_string();
    assert!(
        error.contains("350 points and none with the number 350"),
        "{error}"
    );

    let folder = tempfile::tempdir().expect("a folder");
    let size = |trials| Ok::<_, Error>(Study::open(folder.path(), grid(), trials)?.size());
    assert_eq!(
        (size(None)?, size(Some(12))?, size(Some(1000))?),
        (350, 12, 350)
    );
    Ok(())
}

#[test]
fn grids_of_what_cannot_be_counted_are_refused() {
    let cases = [
        (
            json!({ "a": { "log": [1e-4, 1e-3] } }),
            "`tune.space.a`: a grid needs values that can be counted",
        ),
        (
            json!({ "a": { "zero_or": [0.1, 0.2] } }),
            "`tune.space.a`: a grid needs",
        ),
        (
            json!({ "a": { "int": [1, 1000] }, "b": { "int": [1, 101] } }),
            "may have 100000 points, this one has 101000",
        ),
    ];
    for (space, reason) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let plan = Plan {
            space: ranges(space),
            ..grid()
        };
        let error = Study::open(folder.path(), plan, None)
            .expect_err(reason)
            .to_string();
        assert!(error.contains(reason), "{error}");
    }
    let settings = TuneSettings {
        method: Method::Grid,
        startup: Some(5),
        ..TuneSettings::default()
    };
    let error = settings.space(&grid().space).expect_err("no startup");
    assert!(
        error
            .to_string()
            .contains("`tune.startup`: is for the method `tpe`"),
        "{error}"
    );
}

#[test]
fn work_runs_every_trial_and_learns_of_those_that_fail() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = Plan {
        space: ranges(json!({ "model.depth": { "int": [1, 4] } })),
        ..grid()
    };
    let study = Study::open(folder.path(), plan, None)?;
    let depth = |choice: &Choice| choice["model.depth"].as_f64().expect("a number");
    let mut heard = Vec::new();
    let mut fit = |settings: &Value, options: &FitOptions| {
        assert_eq!((options.resume, options.seed), (None, study.plan().seed));
        assert_eq!(settings["train"]["epochs"], 1000);
        match settings["model"]["depth"].as_i64() {
            // As tch does where libtorch fails.
            Some(2) => panic!("CUDA out of memory with {settings}"),
            Some(3) => Err(Error::Diverged {
                step: 7,
                loss: f64::NAN,
            }),
            depth => Ok(Found {
                scores: vec![(Metric::Rmse, depth.map_or(0.0, |depth| depth as f64))],
                epochs: 5,
                parameters: 10,
                seconds: 0.5,
            }),
        }
    };
    let work = Work {
        prepared: &(),
        table: Path::new("t.csv"),
        device: Device::Cpu,
    };
    work.run(&study, &mut fit, &mut |trial| {
        heard.push((depth(&trial.choice) as i64, trial.state, trial.score));
        Ok(())
    })?;
    heard.sort_by_key(|(depth, ..)| *depth);
    let done = |depth: i64| (depth, State::Done, Some(depth as f64));
    let failed = |depth: i64| (depth, State::Failed, None);
    assert_eq!(heard, [done(1), failed(2), failed(3), done(4)]);
    let trials = study.trials()?;
    assert_eq!(
        study.best(&trials).map(|trial| depth(&trial.choice)),
        Some(1.0)
    );
    Ok(())
}
