//! From somebody's table to a run folder, predictions and a ranking.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use densely_core::{Result, tch};
use densely_data::{Batches, batches};
use densely_recsys::fit::{FitOptions, Outcome, fit};
use densely_recsys::settings::Split;
use densely_recsys::{CtrSettings, Fitted, Options, Prepared};
use densely_testkit::copy_folder;
use densely_train::event::Event;
use densely_train::run::ResumeFrom;
use tempfile::TempDir;

/// A pseudo-random number below `n`, from a state.
fn draw(state: &mut u64, n: u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % n
}

/// Users like the items of one kind: a product of tastes and kinds, which no sum of what each is like tells.
fn table(folder: &TempDir, rows: usize) -> PathBuf {
    let mut state = 7;
    let mut text = "row,user,taste,item,kind,price,history,shown,clk\n".to_owned();
    let mut histories = vec![Vec::<u64>::new(); 40];
    for row in 0..rows {
        let (user, item) = (draw(&mut state, 40), draw(&mut state, 30));
        let likes = item % 3 == user % 3;
        let click = draw(&mut state, 10) < if likes { 8 } else { 1 };
        let own = &mut histories[user as usize];
        let start = own.len().saturating_sub(5);
        let history: Vec<String> = own[start..].iter().map(|item| format!("i{item}")).collect();
        writeln!(
            text,
            "{row},u{user},t{},i{item},k{},{}.5,{},{},{}",
            user % 3,
            item % 3,
            draw(&mut state, 50),
            history.join("^"),
            1000 + row,
            u8::from(click)
        )
        .expect("a text");
        if click {
            own.push(item);
        }
    }
    let path = folder.path().join("ads.csv");
    std::fs::write(&path, text).expect("written");
    path
}

fn options() -> Options {
    Options {
        group: Some("user".to_owned()),
        time: Some("shown".to_owned()),
        histories: vec![("history".to_owned(), "item".to_owned())],
        shares: (0.15, 0.15),
        ..Options::new("clk")
    }
}

fn settings(path: &Path, model: &str) -> Result<CtrSettings> {
    let model = Some(model.to_owned());
    let (mut settings, _) = Options { model, ..options() }.settings(path)?;
    settings.train.epochs = 8;
    settings.train.patience = 6;
    settings.train.optimizer.lr = 5e-3;
    settings.train.batch_size = 128;
    settings.train.optimizer.embedding_l2 = 0.0;
    Ok(settings)
}

fn train(
    table: &Path,
    settings: &CtrSettings,
    folder: &Path,
    resume: Option<ResumeFrom>,
) -> Result<Outcome> {
    train_and_see(table, settings, folder, resume, &mut |_| {})
}

fn train_and_see(
    table: &Path,
    settings: &CtrSettings,
    folder: &Path,
    resume: Option<ResumeFrom>,
    observe: &mut dyn FnMut(&Event),
) -> Result<Outcome> {
    let prepared = Prepared::open(table, &settings.data, folder)?;
    let options = FitOptions {
        folder,
        table,
        seed: 3,
        device: tch::Device::Cpu,
        resume,
    };
    fit(&prepared, settings, &options, observe)
}

#[test]
fn every_model_learns_what_users_like_and_predicts_the_same_from_its_folder() -> Result<()> {
    let folder = TempDir::new().expect("a folder");
    let path = table(&folder, 3000);
    for model in ["finalmlp", "din"] {
        let settings = settings(&path, model)?;
        let run = folder.path().join(model);
        std::fs::create_dir_all(&run).expect("made");
        let outcome = train(&path, &settings, &run, None)?;
        let auc = outcome.test.auc.expect("both classes");
        let groups = outcome.test.groups.expect("groups");
        assert_eq!(groups.used + groups.left_out, 40, "{model}");
        // Which items a user likes is no sum of what users and items are like.
        let baseline = |name: &str| {
            let found = outcome.baselines.iter().find(|(other, _)| *other == name);
            found
                .and_then(|(_, scores)| scores.auc)
                .expect("a baseline")
        };
        assert!(auc > 0.75, "{model}: {auc}");
        assert!(baseline("popularity") < 0.65 && baseline("logistic regression") < 0.7);
        let fitted = Fitted::open(&run, tch::Device::Cpu)?;
        let again = fitted.evaluate(&path, 100)?;
        assert_eq!(again.rows, 3000);
        let rows = Batches::open(&path, &fitted.map.sources(), 3000)?
            .next()
            .expect("rows")?;
        let tail: Vec<f64> = fitted
            .predict(&rows)?
            .split_off(3000 - outcome.predictions.len());
        for (one, other) in tail.iter().zip(&outcome.predictions) {
            assert!((one - other).abs() < 1e-6, "{model}: {one} {other}");
        }
    }
    Ok(())
}

#[test]
fn a_calibrated_run_scales_its_predictions_and_those_from_its_folder() -> Result<()> {
    let folder = TempDir::new().expect("a folder");
    let path = table(&folder, 1500);
    let mut settings = settings(&path, "finalmlp")?;
    let [plain, scaled] = ["plain", "scaled"].map(|name| folder.path().join(name));
    let outcomes = [(&plain, false), (&scaled, true)].map(|(run, calibrate)| {
        std::fs::create_dir_all(run).expect("made");
        settings.train.calibrate = calibrate;
        train(&path, &settings, run, None).expect("a fit")
    });
    let [before, after] = &outcomes;
    let temperature = after.calibration.temperature;
    assert!((temperature - 1.0).abs() > 0.02, "{temperature}");
    for (p, q) in before.predictions.iter().zip(&after.predictions) {
        let logit = (p / (1.0 - p)).ln() / temperature;
        assert!((q - 1.0 / (1.0 + (-logit).exp())).abs() < 1e-9, "{p} {q}");
    }
    assert!((before.test.log_loss - after.test.log_loss).abs() > 1e-6);
    assert!((after.calibration.scaled.log_loss - after.test.log_loss).abs() < 1e-9);
    let fitted = Fitted::open(&scaled, tch::Device::Cpu)?;
    let mut rows = Batches::open(&path, &fitted.map.sources(), 1500)?;
    let all = fitted.predict(&rows.next().expect("rows")?)?;
    let tail = &all[1500 - after.predictions.len()..];
    for (one, other) in tail.iter().zip(&after.predictions) {
        assert!((one - other).abs() < 1e-6, "{one} {other}");
    }
    Ok(())
}

#[test]
fn a_run_that_was_cut_ends_like_one_that_was_not() -> Result<()> {
    let folder = TempDir::new().expect("a folder");
    let path = table(&folder, 1200);
    let settings = settings(&path, "din")?;
    let [whole, cut] = ["whole", "cut"].map(|name| folder.path().join(name));
    std::fs::create_dir_all(&whole).expect("made");
    let expected = train_and_see(&path, &settings, &whole, None, &mut |event| {
        if matches!(event, Event::Epoch { epoch: 1, .. }) {
            copy_folder(&whole, &cut);
        }
    })?;
    let found = train(&path, &settings, &cut, Some(ResumeFrom::Last))?;
    assert_eq!(
        (found.epochs, found.best_epoch),
        (expected.epochs, expected.best_epoch)
    );
    assert_eq!(found.predictions, expected.predictions);
    Ok(())
}

#[test]
fn a_ranking_is_the_order_of_single_predictions() -> Result<()> {
    let folder = TempDir::new().expect("a folder");
    let path = table(&folder, 1500);
    let run = folder.path().join("run");
    std::fs::create_dir_all(&run).expect("made");
    train(&path, &settings(&path, "din")?, &run, None)?;
    let fitted = Fitted::open(&run, tch::Device::Cpu)?;
    let users = folder.path().join("users.csv");
    std::fs::write(
        &users,
        "user,taste,row,history\nu1,t1,5,i1^i4^i7\nu2,t2,5,\n",
    )
    .expect("written");
    let items = folder.path().join("items.csv");
    let mut text = "item,kind,price\n".to_owned();
    let mut pairs = "user,taste,row,history,item,kind,price\n".to_owned();
    for item in 0..30 {
        writeln!(text, "i{item},k{},3.5", item % 3).expect("a text");
        writeln!(pairs, "u1,t1,5,i1^i4^i7,i{item},k{},3.5", item % 3).expect("a text");
    }
    std::fs::write(&items, text).expect("written");
    let both = folder.path().join("both.csv");
    std::fs::write(&both, pairs).expect("written");
    let open = |path: &Path| {
        let names = batches::column_names(path)?;
        Batches::open(path, &names, 100)?.next().expect("rows")
    };
    let candidates = fitted.candidates(&open(&items)?)?;
    assert_eq!(candidates.len(), 30);
    let ranked = fitted.rank(&open(&users)?, 0, &candidates, 10)?;
    let single = fitted.predict(&open(&both)?)?;
    let mut order: Vec<usize> = (0..30).collect();
    order.sort_by(|a, b| single[*b].total_cmp(&single[*a]));
    assert_eq!(ranked.len(), 10);
    for ((at, p), expected) in ranked.iter().zip(&order) {
        assert!((p - single[*expected]).abs() < 1e-6 && (single[*at] - p).abs() < 1e-6);
    }
    let error = fitted
        .candidates(&open(&users)?)
        .and_then(|candidates| fitted.rank(&open(&users)?, 0, &candidates, 3));
    let error = error.expect_err("no item").to_string();
    assert!(
        error.contains("column `item`: there is no such column"),
        "{error}"
    );
    Ok(())
}

#[test]
fn columns_are_recognised_and_mistakes_named() -> Result<()> {
    let folder = TempDir::new().expect("a folder");
    let path = table(&folder, 500);
    let (settings, explained) = options().settings(&path)?;
    let role = |name: &str| explained.iter().find(|c| c.name == name).map(|c| c.role);
    for (name, expected) in [
        ("row", "left out"),
        ("user", "categorical"),
        ("item", "categorical"),
        ("price", "numeric"),
        ("history", "sequence"),
        ("shown", "time"),
        ("clk", "label"),
    ] {
        assert_eq!(role(name), Some(expected), "{name}");
    }
    assert_eq!(settings.model.preset, "din");
    let fails = |options: Options, change: &dyn Fn(&mut CtrSettings), words: &str| {
        let result = options.settings(&path).and_then(|(mut settings, _)| {
            settings.train.epochs = 1;
            change(&mut settings);
            let run = folder
                .path()
                .join(words.replace(|c: char| !c.is_alphanumeric(), "-"));
            std::fs::create_dir_all(&run).expect("made");
            train(&path, &settings, &run, None)
        });
        let error = result.expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    };
    let none: &dyn Fn(&mut CtrSettings) = &|_| {};
    let with = |change: &dyn Fn(&mut Options)| {
        let mut options = options();
        change(&mut options);
        options
    };
    fails(
        with(&|o| o.label = "click".to_owned()),
        none,
        "no column `click`; nearest: `clk`",
    );
    fails(
        with(&|o| o.label = "price".to_owned()),
        none,
        "the label must be 0 or 1, got",
    );
    fails(
        with(&|o| o.group = Some("row".to_owned())),
        none,
        "groups has rows of one class only",
    );
    fails(
        with(&|o| o.sequences = vec![("history".to_owned(), Some("|".to_owned()))]),
        none,
        "no sequence has `|` between tokens",
    );
    fails(
        with(&|o| {
            o.histories.clear();
            o.model = Some("din".to_owned());
        }),
        none,
        "needs a history to attend to",
    );
    fails(
        options(),
        &|s| s.model.preset = "deepfm".to_owned(),
        "no model is called `deepfm`",
    );
    fails(
        options(),
        &|s| {
            s.data.split = Split::Time {
                column: "shown".to_owned(),
                valid: 0.5,
                test: 0.6,
            };
        },
        "must be positive and sum below 1",
    );
    Ok(())
}
