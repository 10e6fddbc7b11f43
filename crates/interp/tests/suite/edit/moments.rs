//! Second moments: what they are, and that a measurement that was stopped goes on.

use densely_core::{Error, Result, seeded};
use densely_interp::edit::moments::{MadeOf, Windows, file_of, measure};
use densely_interp::edit::{EditHandle, Moments, rome};
use densely_interp::noise::Noise;
use densely_interp::sweep::fingerprint;
use densely_interp::trace::TraceOptions;
use densely_lm::{Lm, Run};
use densely_testkit::{assert_bits, assert_near};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::{DOUBLE, options, request};
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

/// What files say of a model: of the keys of a layer, and of all of its weights.
fn print(model: &Lm, layer: usize) -> Result<String> {
    Ok(MadeOf::new(model, layer, &windows())?.model)
}

fn whole(model: &Lm) -> Result<serde_json::Value> {
    fingerprint(model, &Noise::fixed(0.5)?, &TraceOptions::default())
}

#[test]
fn moments_belong_to_all_weights_that_make_their_keys() -> Result<()> {
    let (model, _vs) = tiny("gpt2")?;
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    let path = folder.path();
    measure(&model, &windows(), &[0, 2], Some(path), 9, &mut |_, _| {})?;
    let fits = |model: &Lm| [0, 2].map(|layer| Moments::of_layer(path, model, layer).is_ok());
    let plain = whole(&model)?;
    for (name, expected) in [
        ("transformer.wte.weight", [false, false]),
        ("transformer.wpe.weight", [false, false]),
        ("transformer.h.0.attn.c_attn.weight", [false, false]),
        ("transformer.h.0.mlp.c_fc.weight", [false, false]),
        ("transformer.h.0.ln_2.bias", [false, false]),
        // What an edit of that layer changes, and what lies above it, leaves its keys as they are.
        ("transformer.h.0.mlp.c_proj.weight", [true, false]),
        ("transformer.h.2.attn.c_proj.weight", [true, false]),
        ("transformer.h.2.mlp.c_proj.weight", [true, true]),
        ("transformer.h.2.mlp.c_proj.bias", [true, true]),
        ("transformer.h.3.mlp.c_fc.weight", [true, true]),
        ("transformer.ln_f.weight", [true, true]),
    ] {
        let _guard = tch::no_grad_guard();
        let mut xs = model.parameter(name)?;
        let before = xs.copy();
        xs.f_copy_(&(&before * 1.5 + 0.5))?;
        assert_eq!(fits(&model), expected, "{name}");
        assert_ne!(whole(&model)?, plain, "{name}");
        xs.f_copy_(&before)?;
        assert_eq!(fits(&model), [true, true], "{name}");
        assert_eq!(whole(&model)?, plain, "{name}");
    }

    // Other draws of the same sizes, where nothing lies below the first layer's keys but its own weights.
    let vs = VarStore::new(Device::Cpu);
    let other = seeded(8, || Lm::new(model.config().clone(), &vs.root()))?;
    assert_ne!(print(&other, 0)?, print(&model, 0)?);
    let error = Moments::of_layer(path, &other, 0).expect_err("another model");
    let said = error.to_string();
    assert!(said.contains("were measured on layer 0 of"), "{said}");
    let refused = measure(&other, &windows(), &[0], Some(path), 9, &mut |_, _| {});
    let said = refused.expect_err("another model").to_string();
    assert!(said.contains("another folder"), "{said}");
    Ok(())
}

#[test]
fn a_model_whose_edit_was_taken_back_is_the_same_model() -> Result<()> {
    for family in ["gpt2", "llama"] {
        let (model, _vs) = tiny(family)?;
        let before = (print(&model, 1)?, print(&model, 2)?, whole(&model)?);
        let second = Moments::identity(model.config().d_mlp)?;
        let found = rome(&model, &request()?, &second, &options(1))?;
        let mut handle = EditHandle::apply(&model, found.edit)?;
        assert_eq!(print(&model, 1)?, before.0, "{family}");
        assert_ne!(print(&model, 2)?, before.1, "{family}");
        assert_ne!(whole(&model)?, before.2, "{family}");
        handle.undo(&model)?;
        let after = (print(&model, 1)?, print(&model, 2)?, whole(&model)?);
        assert_eq!(after, before, "{family}");
    }
    Ok(())
}
