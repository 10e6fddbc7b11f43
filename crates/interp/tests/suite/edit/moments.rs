//! Second moments: what they are, and that a measurement that was stopped goes on.

use densely_core::{Error, Result, seeded};
use densely_interp::edit::Moments;
use densely_interp::edit::moments::{MadeOf, Windows, file_of, measure};
use densely_lm::Run;
use densely_testkit::{assert_bits, assert_near};
use tch::{Kind, Tensor};

use super::DOUBLE;
use crate::trace::tiny;

fn windows() -> Windows {
    let rows = (0..5i64)
        .map(|row| (0..10).map(|i| (7 * row + 3 * i) % 40).collect())
        .chain([vec![1, 2, 3]])
        .collect();
    Windows { rows, skip: 1 }
}

#[test]
fn moments_are_means_over_tokens() -> Result<()> {
    let (model, _vs) = tiny("gptj")?;
    let windows = windows();
    assert_eq!(windows.count(), 5 * 9 + 2);
    let found = measure(&model, &windows, &[3, 1, 3], None, 2, &mut |_, _| {})?;
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [1, 3]);
    for (layer, moments) in &found {
        let m = model.config().d_mlp;
        let mut sum = Tensor::zeros([m, m], DOUBLE);
        for row in &windows.rows {
            let point = format!("blocks.{layer}.mlp.hook_post");
            let mut run = Run::new().cache(&[&point]);
            let _ = model.run(&Tensor::from_slice(row).unsqueeze(0), &mut run)?;
            let cache = run.take_cache();
            let keys = cache
                .get(&point)?
                .select(0, 0)
                .narrow(0, 1, row.len() as i64 - 1);
            let keys = keys.to_kind(Kind::Double);
            sum += keys.tr().matmul(&keys);
        }
        let matrix = moments.matrix().expect("a matrix");
        assert_near(matrix, &(sum / 47.0), 1e-5);
        assert_eq!(moments.count(), 47);
        // Far fewer than ten tokens for each hidden value.
        let share = moments.shrinkage();
        assert!((share - m as f64 / (m as f64 + 47.0)).abs() < 1e-12);
        let drawn = moments.conditioned()?;
        let trace = matrix.to_kind(Kind::Double).trace().double_value(&[]);
        assert!((drawn.trace().double_value(&[]) - trace).abs() < 1e-9 * trace);
        let column = seeded(1, || Tensor::randn([m, 2], DOUBLE));
        assert_near(&drawn.matmul(&moments.solve(&column)?), &column, 1e-8);
    }
    Ok(())
}

#[test]
fn moments_that_were_stopped_end_in_the_same_bits() -> Result<()> {
    let (model, _vs) = tiny("gpt2")?;
    let windows = windows();
    let folder = || tempfile::tempdir().map_err(Error::io("tempdir"));
    let (whole, stopped) = (folder()?, folder()?);
    let mut kept = false;
    let first = measure(
        &model,
        &windows,
        &[0, 2],
        Some(whole.path()),
        2,
        &mut |done, of| {
            assert_eq!(of, 6);
            // What a kill in the fifth window leaves: four of them are saved.
            if done == 5 {
                for entry in std::fs::read_dir(whole.path()).expect("a folder") {
                    let from = entry.expect("an entry").path();
                    let to = stopped.path().join(from.file_name().expect("a name"));
                    std::fs::copy(&from, &to).expect("a copy");
                    kept = true;
                }
            }
        },
    )?;
    assert!(kept);
    let mut done = Vec::new();
    let second = measure(
        &model,
        &windows,
        &[0, 2],
        Some(stopped.path()),
        2,
        &mut |at, _| {
            done.push(at);
        },
    )?;
    assert_eq!(done, [5, 6]);
    for (layer, moments) in &first {
        let (a, b) = (moments.matrix(), second[layer].matrix());
        assert_bits(a.expect("a matrix"), b.expect("a matrix"));
        let file = |folder: &std::path::Path| {
            let path = file_of(folder, *layer);
            std::fs::read(&path).map_err(Error::io(&path))
        };
        assert_eq!(file(whole.path())?, file(stopped.path())?);
    }
    // What is there is read.
    let again = measure(
        &model,
        &windows,
        &[2],
        Some(whole.path()),
        2,
        &mut |_, _| {
            panic!("nothing is left to do");
        },
    )?;
    assert_bits(
        again[&2].matrix().expect("a matrix"),
        first[&2].matrix().expect("a matrix"),
    );
    assert_eq!(
        std::fs::read_dir(whole.path()).expect("a folder").count(),
        2
    );

    let mut longer = windows.clone();
    longer.rows.push(vec![5, 6]);
    let refused = measure(&model, &longer, &[2], Some(whole.path()), 2, &mut |_, _| {});
    let error = refused.expect_err("another text").to_string();
    assert!(error.contains("another folder"), "{error}");
    let held = Moments::of_layer(whole.path(), &model, 2)?;
    assert_eq!(held.count(), 47);
    let file = file_of(whole.path(), 2);
    let error = Moments::of_layer(&file, &model, 0).expect_err("another layer");
    assert!(error.to_string().contains("layer 2"), "{error}");
    let made_of = MadeOf::new(&model, 2, &windows)?;
    assert_eq!(Moments::read(&file)?.1, made_of);
    Ok(())
}
