//! The search finds what it should, is a function of seed and results, and its folder survives.

use std::collections::{BTreeMap, BTreeSet};

use densely_core::Result;
use densely_tabular::settings::FitSettings;
use densely_tabular::tune::{
    Choice, Plan, RangeSettings, Space, State, Study, Tried, TuneSettings, ready_made,
};
use densely_train::Metric;
use serde_json::{Value, json};

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

fn base(model: &Value) -> FitSettings {
    let settings = json!({ "data": { "target": "y" }, "model": model });
    serde_json::from_value(settings).expect("settings")
}

#[test]
fn bad_spaces_are_refused_with_the_setting_and_the_reason() {
    let plain = base(&json!({ "preset": "mlp" }));
    let lr = "train.optimizer.lr";
    let cases = [
        (lr, json!({ "log": [0.0, 1.0] }), "above 0, got 0"),
        (lr, json!({ "log": [1.0, 0.1] }), "got [1, 0.1]"),
        (lr, json!({ "uniform": [0.5, 0.5] }), "to a larger one"),
        (lr, json!({}), "exactly one of"),
        (lr, json!({ "log": [0.1, 1.0], "int": [1, 2] }), "got 2"),
        (
            lr,
            json!({ "log": [0.1, 1.0], "step": 2 }),
            "`step` is for `int`",
        ),
        (lr, json!({ "choice": [] }), "at least one value"),
        (lr, json!({ "choice": [1, 2, 1] }), "holds 1 twice"),
        (lr, json!({ "choice": ["fast"] }), "expected f64"),
        (
            "train.batch_size",
            json!({ "int": [8, 4] }),
            "must not go down",
        ),
        (
            "train.batch_size",
            json!({ "int": [4, 8], "step": 0 }),
            "at least 1, got 0",
        ),
        (
            "train.batch_size",
            json!({ "int": [0, 8] }),
            "at least 1, got 0",
        ),
        (
            "train.batch_sise",
            json!({ "int": [4, 8] }),
            "unknown field `batch_sise`",
        ),
        ("train", json!({ "int": [4, 8] }), "must name a setting"),
        ("train.epochs.x", json!({ "int": [4, 8] }), "nothing below"),
        ("model.config.d_blok", json!({ "int": [4, 8] }), "d_blok"),
        (
            "model.config.dropout",
            json!({ "zero_or": [0.5, 2.0] }),
            "dropout",
        ),
        (
            "model.config.d_out",
            json!({ "int": [4, 8] }),
            "comes from the data",
        ),
        (
            "model.embedding.n_bins",
            json!({ "int": [4, 8] }),
            "missing field `type`",
        ),
        (
            "data.valid",
            json!({ "uniform": [0.1, 0.2] }),
            "`model` or `train`",
        ),
    ];
    for (name, range, reason) in cases {
        let space = ranges(json!({ name: range }));
        let settings = TuneSettings {
            space,
            ..TuneSettings::default()
        };
        let error = settings.space(&plain).expect_err(reason).to_string();
        let place = format!("setting `tune.space.{name}`: ");
        assert!(
            error.starts_with(&place) && error.contains(reason),
            "{error}"
        );
        assert!(!error.contains('\n'), "{error}");
    }
    let unknown = ready_made(&base(&json!({ "preset": "forest" }))).expect_err("unknown");
    assert!(
        unknown
            .to_string()
            .contains("no ready-made ranges for `forest`")
    );
}

#[test]
fn ready_made_spaces_are_the_papers_and_fit_every_preset_and_embedding() -> Result<()> {
    let embeddings = [
        Value::Null,
        json!({ "type": "piecewise_linear" }),
        json!({ "type": "linear_relu", "d_embedding": 8 }),
        json!({ "type": "periodic", "d_embedding": 8, "n_frequencies": 8, "frequency_init_scale": 0.1, "lite": true }),
    ];
    for preset in ["mlp", "tabm", "tabm-mini", "tabm-packed"] {
        for embedding in &embeddings {
            let base = base(&json!({ "preset": preset, "embedding": embedding }));
            let (ranges, _) = TuneSettings::default().space(&base)?;
            assert_eq!(
                ranges["model.config.d_block"],
                RangeSettings::int(64, 1024, 16)
            );
        }
    }
    let mlp = ready_made(&base(&json!({ "preset": "mlp" })))?;
    assert_eq!(mlp["model.config.n_blocks"], RangeSettings::int(1, 6, 1));
    assert_eq!(mlp["train.optimizer.lr"], RangeSettings::log(3e-5, 1e-3));
    let ple = base(&json!({ "preset": "tabm", "embedding": { "type": "piecewise_linear" } }));
    let mut ple = ready_made(&ple)?;
    assert_eq!(
        ple.remove("model.config.n_blocks"),
        Some(RangeSettings::int(1, 4, 1))
    );
    assert_eq!(ple["train.optimizer.lr"], RangeSettings::log(1e-4, 5e-3));
    assert_eq!(ple["model.embedding.n_bins"], RangeSettings::int(2, 128, 1));
    Ok(())
}

fn plan() -> Plan {
    Plan {
        seed: 3,
        startup: 4,
        metric: Metric::Rmse,
        space: ranges(json!({ "train.optimizer.lr": { "log": [1e-4, 1e-1] } })),
        base: base(&json!({ "preset": "mlp" })),
    }
}

#[test]
fn workers_never_hold_the_same_trial_and_a_dead_ones_trial_is_taken_over() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let study = || Study::open(folder.path(), plan(), 24);
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
    let study = Study::open(folder.path(), plan(), 2)?;
    drop(study.claim()?);
    let message = |plan, trials| {
        Study::open(folder.path(), plan, trials)
            .expect_err("refused")
            .to_string()
    };
    let other = message(Plan { seed: 4, ..plan() }, 2);
    assert!(other.contains("`seed` was 3 and is now 4"), "{other}");
    let mut longer = plan();
    longer.base.train.epochs = 7;
    assert!(message(longer, 2).contains("`train.epochs` was 1000 and is now 7"));
    assert!(message(plan(), 0).contains("at least 1"));
    std::fs::write(folder.path().join("trials/0000/trial.json"), "{").expect("written");
    let damaged = study.claim().expect_err("damaged").to_string();
    assert!(
        damaged.contains("trials/0000/trial.json") && damaged.contains("to run the trial again")
    );
    Ok(())
}
