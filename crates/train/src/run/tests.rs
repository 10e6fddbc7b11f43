//! Kills at every marked point.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::trainer::{End, Settings, assert_same, folder, options, snapshot, train, turn};
use super::*;

/// A kill between any two operations on the file system, and a second one while the first is being mended.
#[test]
fn a_kill_between_any_two_file_operations_resumes_to_the_bits_of_the_unbroken_run() -> Result<()> {
    let _turn = turn();
    kill_everywhere(&options())?;
    // Without checkpoints inside epochs, the first of all brings the first best.
    kill_everywhere(&RunOptions {
        checkpoint_steps: None,
        ..options()
    })
}

fn kill_everywhere(options: &RunOptions) -> Result<()> {
    let options = || options.clone();
    let settings = Settings::default();
    let whole = folder();
    let end = train(
        &whole.path().join("run"),
        &settings,
        options(),
        None,
        |_| {},
    )?;
    assert_eq!(end, End::Finished);
    let expected = snapshot(&whole.path().join("run"))?;
    let mut killed = 0;
    for point in 0.. {
        let folder = folder();
        let dir = folder.path().join("run");
        let attempt = |from, point| {
            fault::arm(Some(point));
            let result = catch_unwind(AssertUnwindSafe(|| {
                train(&dir, &settings, options(), from, |_| {})
            }));
            fault::arm(None);
            result
        };
        if let Ok(result) = attempt(None, point) {
            assert_eq!(result?, End::Finished);
            break;
        }
        killed += 1;
        // A second kill meets the recovery of the first.
        let again = if point % 2 == 0 {
            None
        } else {
            attempt(Some(ResumeFrom::Last), point * 7 % 40).ok()
        };
        if let Some(result) = again {
            assert_eq!(result?, End::Finished);
        } else {
            // Before any step is made, `best` must be what the checkpoint speaks of.
            let env = Env::collect("cpu", None);
            let run = Run::resume(&dir, &settings, &env, options(), ResumeFrom::Last)?;
            match &run.progress.best {
                Some(best) => drop(folder::check_best(&dir, best)?),
                None => assert!(!dir.join("best").exists()),
            }
            drop(run);
            train(&dir, &settings, options(), Some(ResumeFrom::Last), |_| {})?;
        }
        assert_same(
            &snapshot(&dir)?,
            &expected,
            &format!("killed at point {point}"),
        );
    }
    assert!(killed > 50, "only {killed} points were met");
    Ok(())
}
