//! What can happen to a run, with real processes, real signals and real damage.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use densely_core::{Error, Tensors};
use densely_testkit::copy_folder;
use densely_train::{Env, ResumeFrom, Run, signal};
use tch::Tensor;

use crate::trainer::{End, Settings, assert_same, folder, options, snapshot, train, turn};

/// Folder of the child process below; what it does stands in `DENSELY_TEST_MODE`.
const FOLDER: &str = "DENSELY_TEST_RUN";
const MODE: &str = "DENSELY_TEST_MODE";
/// File for its error.
const ERROR: &str = "DENSELY_TEST_ERROR";
/// Long enough that a kill meets it: about half a second.
const EPOCHS: u64 = 25;

fn long() -> Settings {
    Settings {
        epochs: EPOCHS,
        ..Settings::default()
    }
}

/// Not a test of its own: the process that the tests below start, kill and starve.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(FOLDER) else {
        return;
    };
    let mode = std::env::var(MODE).unwrap();
    tch::set_num_threads(1);
    let options = densely_train::RunOptions {
        patience: None,
        ..options()
    };
    let mut settings = long();
    if mode == "endless" {
        settings.epochs = 1_000_000;
        #[cfg(feature = "signal")]
        signal::install().unwrap();
    }
    let result = train(
        Path::new(&dir),
        &settings,
        options,
        Some(ResumeFrom::Last),
        |step| {
            if mode == "interrupt" && step == 17 {
                signal::interrupt();
            }
            if mode == "endless" && step == 17 {
                // The parent waits for this file before it sends the signal.
                std::fs::write(Path::new(&dir).join("ready"), "").unwrap();
            }
        },
    );
    match result {
        Ok(End::Finished) => std::process::exit(0),
        Ok(End::Interrupted) => std::process::exit(10),
        Err(error) => {
            std::fs::write(std::env::var_os(ERROR).unwrap(), error.to_string()).unwrap();
            std::process::exit(11)
        }
    }
}

fn command(dir: &Path, mode: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "resume::child", "--nocapture"]);
    command
        .env(FOLDER, dir)
        .env(MODE, mode)
        .env(ERROR, dir.join("error.txt"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn finish(dir: &Path) {
    let status = command(dir, "train").status().unwrap();
    assert_eq!(
        status.code(),
        Some(0),
        "{:?}",
        std::fs::read_to_string(dir.join("error.txt"))
    );
}

/// The unbroken run, made by a process of its own, and how long it took.
fn unbroken() -> (std::collections::BTreeMap<String, Vec<u8>>, Duration) {
    let folder = folder();
    let dir = folder.path().join("run");
    let start = Instant::now();
    finish(&dir);
    (snapshot(&dir).unwrap(), start.elapsed())
}

#[test]
fn kill_9_at_twenty_random_moments_ends_in_the_bits_of_the_unbroken_run() {
    let (expected, whole) = unbroken();
    let mut state = 1u64;
    let (mut kills, mut runs) = (0, 0);
    while kills < 20 {
        let folder = folder();
        let dir = folder.path().join("run");
        loop {
            state = densely_train::step_seed(state, 0).unsigned_abs();
            let moment = whole.mul_f64((state % 1000) as f64 / 1000.0);
            let mut child: Child = command(&dir, "train").spawn().unwrap();
            let start = Instant::now();
            while start.elapsed() < moment && child.try_wait().unwrap().is_none() {
                std::thread::yield_now();
            }
            // Too late for a child that has ended; its status says so.
            child.kill().unwrap();
            let done = child.wait().unwrap();
            match done.code() {
                None => kills += 1,
                Some(code) => {
                    assert_eq!(
                        code,
                        0,
                        "{:?}",
                        std::fs::read_to_string(dir.join("error.txt"))
                    );
                    break;
                }
            }
        }
        runs += 1;
        assert_same(
            &snapshot(&dir).unwrap(),
            &expected,
            &format!("run {runs}, {kills} kills"),
        );
    }
}

#[test]
fn an_interrupted_run_saves_and_resumes_to_the_same_bits() {
    let (expected, _) = unbroken();
    let folder = folder();
    let dir = folder.path().join("run");
    assert_eq!(
        command(&dir, "interrupt").status().unwrap().code(),
        Some(10)
    );
    let state = std::fs::read_to_string(dir.join("last/state.json")).unwrap();
    assert!(state.contains("\"step\": 18"), "{state}");
    finish(&dir);
    assert_same(
        &snapshot(&dir).unwrap(),
        &expected,
        "interrupted at step 17",
    );
}

#[cfg(all(unix, feature = "signal"))]
#[test]
fn ctrl_c_ends_the_process_after_its_step_with_a_sound_checkpoint() {
    let folder = folder();
    let dir = folder.path().join("run");
    let mut child = command(&dir, "endless").spawn().unwrap();
    while !dir.join("ready").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the child ended early");
        std::thread::yield_now();
    }
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(10));
    let _turn = turn();
    let endless = Settings {
        epochs: 1_000_000,
        ..Settings::default()
    };
    let env = Env::collect("cpu", None);
    let run = Run::resume(&dir, &endless, &env, options(), ResumeFrom::Last).unwrap();
    assert!(run.is_resumed() && run.progress().step > 17);
}

/// A run of two epochs and a bit, with `last`, `previous` and `best`.
fn half_done(dir: &Path) {
    let stop = Settings {
        epochs: 3,
        ..Settings::default()
    };
    let result = train(dir, &stop, options(), None, |_| {});
    assert_eq!(result.unwrap(), End::Finished);
}

type Damage = fn(&mut Vec<u8>);

#[test]
fn a_damaged_checkpoint_is_refused_by_name_and_the_previous_one_ends_in_the_same_bits() {
    let _turn = turn();
    let settings = Settings::default();
    let folder = folder();
    let [whole, half] = ["whole", "half"].map(|name| folder.path().join(name));
    train(&whole, &settings, options(), None, |_| {}).unwrap();
    let expected = snapshot(&whole).unwrap();
    half_done(&half);
    let flip = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
    };
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() * 2 / 3);
    let damages: [(&str, Damage); 3] = [("flipped", flip), ("cut", cut), ("emptied", Vec::clear)];
    for name in [
        "model.safetensors",
        "optimizer.safetensors",
        "preprocess.json",
        "state.json",
    ] {
        for (how, damage) in damages {
            let dir = folder.path().join(format!("{name}-{how}"));
            copy_folder(&half, &dir);
            let path = dir.join("last").join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            damage(&mut bytes);
            std::fs::write(&path, bytes).unwrap();
            let resume = |from| train(&dir, &settings, options(), Some(from), |_| {});
            let error = resume(ResumeFrom::Last).unwrap_err();
            assert!(
                matches!(&error, Error::Corrupt { path: named, .. } if *named == path),
                "{error}"
            );
            assert!(
                error.to_string().contains("--resume-from previous"),
                "{error}"
            );
            assert_eq!(resume(ResumeFrom::Previous).unwrap(), End::Finished);
            assert_same(
                &snapshot(&dir).unwrap(),
                &expected,
                &format!("{name} {how}"),
            );
        }
    }
    for (file, words) in [
        ("last/model.safetensors", "--resume-from previous"),
        ("last/state.json", "--resume-from previous"),
        ("best/model.safetensors", "best weights so far are lost"),
        ("metrics.jsonl", "metrics.jsonl"),
        ("config.toml", "config.toml"),
    ] {
        let dir = folder
            .path()
            .join(format!("without-{}", file.replace('/', "-")));
        copy_folder(&half, &dir);
        std::fs::remove_file(dir.join(file)).unwrap();
        let error = train(&dir, &settings, options(), Some(ResumeFrom::Last), |_| {})
            .unwrap_err()
            .to_string();
        assert!(error.contains(file) && error.contains(words), "{error}");
    }
    let both = folder.path().join("both");
    copy_folder(&half, &both);
    for name in ["last", "previous"] {
        std::fs::write(both.join(name).join("model.safetensors"), "x").unwrap();
    }
    let error = train(&both, &settings, options(), Some(ResumeFrom::Last), |_| {}).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("no other sound checkpoint: start a new run"),
        "{error}"
    );
}

/// `best` and `last` of an epoch that improved share their files on the disk, and so their damage.
#[test]
fn damage_to_the_files_that_last_and_best_share_is_survived_too() {
    let _turn = turn();
    let settings = Settings::default();
    let folder = folder();
    let [whole, dir] = ["whole", "run"].map(|name| folder.path().join(name));
    let options = || densely_train::RunOptions {
        checkpoint_steps: None,
        ..options()
    };
    train(&whole, &settings, options(), None, |_| {}).unwrap();
    let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        train(&dir, &settings, options(), None, |step| {
            assert!(step < 15, "killed");
        })
    }));
    assert!(killed.is_err());
    let path = dir.join("best/model.safetensors");
    std::fs::write(&path, "x").unwrap();
    let resume = |from| train(&dir, &settings, options(), Some(from), |_| {});
    let error = resume(ResumeFrom::Last).unwrap_err().to_string();
    assert!(
        error.contains("last/model.safetensors") && error.contains("--resume-from previous"),
        "{error}"
    );
    assert_eq!(resume(ResumeFrom::Previous).unwrap(), End::Finished);
    assert_same(
        &snapshot(&dir).unwrap(),
        &snapshot(&whole).unwrap(),
        "both damaged",
    );
}

#[test]
fn a_log_that_was_altered_is_refused() {
    let _turn = turn();
    let folder = folder();
    half_done(folder.path());
    let path = folder.path().join("metrics.jsonl");
    let text = std::fs::read_to_string(&path)
        .unwrap()
        .replacen("loss", "lass", 1);
    std::fs::write(&path, text).unwrap();
    let resumed = train(
        folder.path(),
        &Settings::default(),
        options(),
        Some(ResumeFrom::Last),
        |_| {},
    );
    assert!(matches!(resumed, Err(Error::Corrupt { path: named, .. }) if named == path));
}

#[test]
fn other_settings_are_refused_by_name_unless_they_may_change() {
    let _turn = turn();
    let folder = folder();
    half_done(folder.path());
    let mut other = Settings {
        seed: 8,
        ..Settings::default()
    };
    other.optim = serde_json::from_str(r#"{"name":"adamw","lr":0.02}"#).unwrap();
    let error = train(
        folder.path(),
        &other,
        options(),
        Some(ResumeFrom::Last),
        |_| {},
    )
    .unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Config { .. }));
    assert!(
        text.starts_with("setting `optim.lr, seed`: the run in "),
        "{text}"
    );
    assert!(
        text.contains(
            "has other settings: `optim.lr` was 0.05 and is now 0.02, `seed` was 7 and is now 8;"
        ),
        "{text}"
    );
    // `epochs` was 3 and is 5 now: allowed by the options, and kept.
    let resumed = train(
        folder.path(),
        &Settings::default(),
        options(),
        Some(ResumeFrom::Last),
        |_| {},
    );
    assert_eq!(resumed.unwrap(), End::Finished);
    assert!(
        std::fs::read_to_string(folder.path().join("config.toml"))
            .unwrap()
            .contains("epochs = 5")
    );
}

#[test]
fn a_folder_with_a_run_is_not_overwritten_and_an_empty_one_is_not_an_error() {
    let _turn = turn();
    let folder = folder();
    half_done(folder.path());
    let before = snapshot(folder.path()).unwrap();
    let error = train(folder.path(), &Settings::default(), options(), None, |_| {}).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("already holds a run; continue it with `--resume`"),
        "{error}"
    );
    assert_same(&snapshot(folder.path()).unwrap(), &before, "refused");
    let fresh = folder.path().join("fresh");
    let resumed = train(
        &fresh,
        &Settings::default(),
        options(),
        Some(ResumeFrom::Last),
        |_| {},
    );
    assert_eq!(resumed.unwrap(), End::Finished);
}

#[test]
fn two_processes_cannot_train_in_one_folder() {
    let folder = folder();
    let env = Env::collect("cpu", None);
    let run = Run::create(folder.path(), &Settings::default(), &env, options()).unwrap();
    assert_eq!(
        command(folder.path(), "train").status().unwrap().code(),
        Some(11)
    );
    let error = std::fs::read_to_string(folder.path().join("error.txt")).unwrap();
    assert!(
        error.contains(&format!("is in use by process {};", std::process::id())),
        "{error}"
    );
    drop(run);
    Run::resume(
        folder.path(),
        &Settings::default(),
        &env,
        options(),
        ResumeFrom::Last,
    )
    .unwrap();
}

/// A child under a limit on the size of files, which refuses writes like a full disk does.
#[cfg(unix)]
#[test]
fn refused_writes_are_io_errors_and_lose_nothing() {
    let (expected, _) = unbroken();
    let folder = folder();
    let dir = folder.path().join("run");
    assert_eq!(
        command(&dir, "interrupt").status().unwrap().code(),
        Some(10)
    );
    let before = snapshot(&dir).unwrap();
    let mut limited = Command::new("bash");
    // 512-byte blocks in POSIX mode, else 1024: either is less than the optimiser's file.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\""]);
    limited.arg(std::env::current_exe().unwrap());
    limited.args(["--exact", "resume::child", "--nocapture"]);
    limited
        .env(FOLDER, &dir)
        .env(MODE, "train")
        .env(ERROR, folder.path().join("error.txt"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    assert_eq!(limited.status().unwrap().code(), Some(11));
    let error = std::fs::read_to_string(folder.path().join("error.txt")).unwrap();
    assert!(
        error.contains("File too large") && error.contains(&dir.display().to_string()),
        "{error}"
    );
    assert!(!dir.join("last.tmp").exists() && !dir.join("best.tmp").exists());
    let after = snapshot(&dir).unwrap();
    for (name, bytes) in before.iter().filter(|(name, _)| name.contains('/')) {
        assert_eq!(&after[name], bytes, "{name}");
    }
    finish(&dir);
    assert_same(&snapshot(&dir).unwrap(), &expected, "starved once");
}

/// A small file system of its own, where the machine lets us mount one.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_io_error_and_loses_nothing() {
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(&self.0).status();
        }
    }
    let folder = folder();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
        .arg(&disk)
        .stderr(Stdio::null())
        .status();
    if !mount.is_ok_and(|status| status.success()) {
        // Not the superuser, or a container without the right to mount: the limit on file sizes above stands in.
        return;
    }
    let _mounted = Mounted(disk.clone());
    let (expected, _) = unbroken();
    let dir = disk.join("run");
    assert_eq!(
        command(&dir, "interrupt").status().unwrap().code(),
        Some(10)
    );
    let filler = disk.join("filler");
    let mut size = 256 * 1024;
    while size >= 1024 {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&filler)
            .unwrap();
        while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
        size /= 2;
    }
    let error = folder.path().join("error.txt");
    assert_eq!(
        command(&dir, "train")
            .env(ERROR, &error)
            .status()
            .unwrap()
            .code(),
        Some(11)
    );
    let error = std::fs::read_to_string(&error).unwrap();
    assert!(
        error.contains("No space left") && error.contains(&disk.display().to_string()),
        "{error}"
    );
    std::fs::remove_file(&filler).unwrap();
    finish(&dir);
    assert_same(&snapshot(&dir).unwrap(), &expected, "disk full once");
}

#[test]
fn a_folder_that_cannot_be_made_is_an_io_error_naming_it() {
    let folder = folder();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let env = Env::collect("cpu", None);
    let error = Run::create(&file.join("run"), &Settings::default(), &env, options()).unwrap_err();
    assert!(
        matches!(&error, Error::Io { path, .. } if *path == file.join("run")),
        "{error}"
    );
}

#[test]
fn the_first_loss_that_is_no_number_stops_the_run_and_its_batch_can_be_kept() {
    let folder = folder();
    let env = Env::collect("cpu", None);
    let mut run = Run::create(folder.path(), &Settings::default(), &env, options()).unwrap();
    let loss = |x: f64| Tensor::from(x);
    run.log_step(&loss(1.0), None, 0.1).unwrap();
    run.log_step(&loss(f64::NAN), None, 0.1).unwrap();
    let error = run.log_step(&loss(2.0), None, 0.1).unwrap_err();
    assert!(
        matches!(error, Error::Diverged { step: 1, loss } if loss.is_nan()),
        "{error}"
    );
    let batch: Tensors = [("x_num".to_owned(), loss(3.0))].into();
    let path = run.save_diverged(&batch).unwrap();
    assert_eq!(densely_core::weights::read(&path).unwrap().tensors, batch);
}

#[test]
fn patience_starts_anew_only_with_an_improvement_that_is_large_enough() {
    let folder = folder();
    let vs = tch::nn::VarStore::new(tch::Device::Cpu);
    let _ = vs.root().zeros("w", &[2]);
    let opt = Settings::default().optim.build(&vs, &[]).unwrap();
    let env = Env::collect("cpu", None);
    let options = densely_train::RunOptions {
        patience: Some(2),
        min_improvement: 0.1,
        ..options()
    };
    let mut run = Run::create(folder.path(), &Settings::default(), &env, options).unwrap();
    let lower = densely_train::Direction::Lower;
    let mut end = |score: f64| {
        let decision = run.end_epoch(score, lower, &[], &vs, &opt).unwrap();
        (decision.improved, decision.stop)
    };
    assert_eq!(end(1.0), (true, false));
    assert_eq!(end(0.95), (true, false), "better, but not by enough");
    assert_eq!(end(0.8), (true, false), "by enough of the best before it");
    assert_eq!(end(0.75), (true, false));
    assert_eq!(end(0.7), (true, true), "each by too little");
    assert_eq!(run.load_best(&vs).unwrap().unwrap().score, 0.7);
}

#[test]
fn patience_counts_epochs_in_a_row_without_a_strictly_better_score() {
    let folder = folder();
    let vs = tch::nn::VarStore::new(tch::Device::Cpu);
    let _ = vs.root().zeros("w", &[2]);
    let opt = Settings::default().optim.build(&vs, &[]).unwrap();
    let env = Env::collect("cpu", None);
    let mut run = Run::create(folder.path(), &Settings::default(), &env, options()).unwrap();
    let higher = densely_train::Direction::Higher;
    let mut end = |score: f64| {
        let decision = run.end_epoch(score, higher, &[], &vs, &opt).unwrap();
        (decision.improved, decision.stop)
    };
    assert_eq!(end(0.5), (true, false));
    assert_eq!(end(0.5), (false, false), "equal is not better");
    assert_eq!(end(0.4), (false, false));
    assert_eq!(end(0.6), (true, false), "the count starts again");
    assert_eq!((end(0.1), end(0.6)), ((false, false), (false, false)));
    assert_eq!(end(0.2), (false, true));
    assert!(run.should_stop());
    let best = run.load_best(&vs).unwrap().unwrap();
    assert_eq!((best.epoch, best.score), (3, 0.6));
    let error = run.end_epoch(f64::NAN, higher, &[], &vs, &opt).unwrap_err();
    assert!(matches!(error, Error::Diverged { .. }));
    drop(run);
    // A run that was killed after its last epoch still knows that it is over.
    let run = Run::resume(
        folder.path(),
        &Settings::default(),
        &env,
        options(),
        ResumeFrom::Last,
    );
    assert!(run.unwrap().should_stop());
}

#[test]
fn the_log_has_one_line_per_interval_and_epoch_and_no_times() {
    let _turn = turn();
    let folder = folder();
    half_done(folder.path());
    let lines = densely_train::run::read_log(folder.path()).unwrap();
    let of = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).count();
    assert_eq!((of("step"), of("epoch")), (7, 3));
    assert!(lines.iter().all(|line| line.get("seconds").is_none()));
    let first = &lines[0];
    assert!(first["step"] == 3 && first["loss"].is_f64() && first["grad_norm"].is_f64());
    let timing = std::fs::File::open(folder.path().join("timing.jsonl")).unwrap();
    assert_eq!(BufReader::new(timing).lines().count(), 3);
}

#[test]
fn a_resumed_run_knows_the_seconds_before_it_and_a_new_one_starts_at_none() {
    let _turn = turn();
    let folder = folder();
    half_done(folder.path());
    let path = folder.path().join("timing.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let seconds = |line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["seconds"].as_f64().unwrap()
    };
    let sum: f64 = text.lines().map(seconds).sum();
    std::fs::write(&path, format!("{text}{{\"seconds\": 1e")).unwrap(); // killed while it wrote
    let env = Env::collect("cpu", None);
    let (dir, settings) = (folder.path(), Settings::default());
    let run = Run::resume(dir, &settings, &env, options(), ResumeFrom::Last).unwrap();
    assert!(sum > 0.0 && run.seconds_before().to_bits() == sum.to_bits());
    drop(run);
    std::fs::remove_file(dir.join("config.toml")).unwrap();
    for checkpoint in ["last", "previous"] {
        std::fs::remove_dir_all(dir.join(checkpoint)).unwrap();
    }
    let run = Run::resume(dir, &settings, &env, options(), ResumeFrom::Last).unwrap();
    assert!(run.seconds_before() <= 0.0 && !path.exists());
}
