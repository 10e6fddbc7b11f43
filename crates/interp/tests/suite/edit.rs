//! Edits: what their formulas promise, on tiny models of all families, and that they are taken back to the bit.

mod moments;

use std::rc::Rc;

use densely_core::weights;
use densely_core::{Error, Result, seeded};
use densely_interp::edit::memit::solve;
use densely_interp::edit::score::{Questions, accuracy, weigh};
use densely_interp::edit::{
    Defaults, Edit, EditHandle, FinetuneOptions, KeyMode, MemitOptions, Moments, Objective,
    Prefixes, Request, RomeOptions, StarOptions, TargetLoss, finetune, memit, rome, same_bits,
};
use densely_lm::{Lm, LmConfig, Run, Tokenizer};
use densely_testkit::{assert_bits, assert_close, assert_near};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::trace::{FAMILIES, tiny};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);
const PROMPT: [i64; 6] = [5, 9, 30, 2, 17, 8];

fn request() -> Result<Request> {
    let prefixes = [vec![vec![], vec![11, 12], vec![13, 14, 15]]];
    Request::from_ids(&PROMPT, 1..3, &[7, 3], Some((&[9, 30, 4], 1)), &prefixes)
}

/// Prefixes as MEMIT groups them, of another fact.
fn other() -> Result<Request> {
    let prefixes = [vec![vec![]], vec![vec![11, 12], vec![13]]];
    let prompt = [4, 22, 6, 17];
    Request::from_ids(&prompt, 0..2, &[19], Some((&[4, 22, 4], 1)), &prefixes)
}

/// A second moment that is well conditioned.
fn moments(model: &Lm, seed: i64) -> Result<Moments> {
    let m = model.config().d_mlp;
    let rows = seeded(seed, || Tensor::randn([4 * m, m], DOUBLE));
    let matrix = rows.tr().matmul(&rows) / (4 * m) as f64 + Tensor::eye(m, DOUBLE) * 0.2;
    Moments::from_tensor(&matrix, 1_000_000)
}

fn options(layer: usize) -> RomeOptions {
    let mut options = RomeOptions::new(layer);
    options.star.steps = 8;
    options
}

/// The MLP's output at the subject's last token of the prompt.
fn written(model: &Lm, layer: usize) -> Result<Tensor> {
    let point = format!("blocks.{layer}.hook_mlp_out");
    let mut run = Run::new().cache(&[&point]);
    let _ = model.run(&Tensor::from_slice(&PROMPT).unsqueeze(0), &mut run)?;
    let cache = run.take_cache();
    Ok(cache.get(&point)?.select(0, 0).select(0, 2))
}

fn matrices(model: &Lm) -> Result<Vec<Tensor>> {
    (0..model.config().n_layers)
        .map(|layer| Ok(tch::no_grad(|| model.mlp_out(layer))?.copy()))
        .collect()
}

fn assert_untouched(model: &Lm, before: &[Tensor]) -> Result<()> {
    for (now, before) in matrices(model)?.iter().zip(before) {
        assert!(same_bits(now, before)?);
    }
    Ok(())
}

/// What a layer's matrix gives for a key, of kind double.
fn through(model: &Lm, key: &Tensor, layer: usize) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let matrix = model.mlp_out(layer)?.to_kind(Kind::Double);
    let value = key.unsqueeze(0).matmul(&matrix).squeeze_dim(0);
    Ok(match model.mlp_out_bias(layer)? {
        Some(bias) => value + bias.to_kind(Kind::Double),
        None => value,
    })
}

/// Asserts that all rows are multiples of one.
fn assert_rank_one(delta: &Tensor) {
    let lengths = delta
        .square()
        .sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
    let row = delta.select(0, lengths.argmax(None, false).int64_value(&[]));
    let square = row.dot(&row).double_value(&[]);
    assert!(square > 0.0);
    let multiples = delta.mv(&row) / square;
    assert_near(&multiples.outer(&row), delta, 1e-9);
}

#[test]
fn rome_writes_its_value_by_a_matrix_of_rank_one_and_is_taken_back() -> Result<()> {
    for family in FAMILIES {
        let (model, _vs) = tiny(family)?;
        let before = matrices(&model)?;
        let second = moments(&model, 3)?;
        for key in [KeyMode::Averaged, KeyMode::Reference] {
            let options = RomeOptions { key, ..options(2) };
            let found = rome(&model, &request()?, &second, &options)?;
            assert_untouched(&model, &before)?;
            let (added, initial) = found.norms()?;
            assert!(
                added <= 4.0 * initial * (1.0 + 1e-5),
                "{family}: {added}, {initial}"
            );
            assert!(found.losses.len() <= 8, "{family}: {:?}", found.losses);
            assert_rank_one(&found.edit.changes[0].delta.tensor()?);
            assert_near(&through(&model, &found.key, 2)?, &found.value, 1e-4);

            let mut handle = EditHandle::apply(&model, found.edit)?;
            assert_near(&through(&model, &found.key, 2)?, &found.star, 1e-4);
            if key == KeyMode::Reference {
                // The released way: the prompt itself now gives the value.
                assert_near(&written(&model, 2)?, &found.star, 1e-4);
            }
            assert!(!handle.is_as_before(&model)?);
            handle.undo(&model)?;
            assert!(handle.is_as_before(&model)? && !handle.is_applied());
            assert_untouched(&model, &before)?;
        }
    }
    Ok(())
}

#[test]
fn the_search_lowers_its_loss_and_the_target_becomes_likelier() -> Result<()> {
    let (model, _vs) = tiny("gpt2")?;
    let second = Moments::identity(model.config().d_mlp)?;
    let mut options = RomeOptions::new(1);
    // Divided by the square of the value's norm, which is small in a model of sixteen numbers, it would be nearly all of the loss.
    options.star.weight_decay = 0.0;
    let chance = |model: &Lm| -> Result<f64> {
        let ids = Tensor::from_slice(&PROMPT).unsqueeze(0);
        let logits = tch::no_grad(|| model.forward(&ids))?;
        let odds = logits.select(0, 0).select(0, -1).softmax(0, Kind::Double);
        Ok(odds.double_value(&[7]))
    };
    let before = chance(&model)?;
    let found = rome(&model, &request()?, &second, &options)?;
    let (first, last) = (found.losses[0], found.losses[found.losses.len() - 1]);
    assert!(last < first, "{:?}", found.losses);
    // Each search makes the same numbers.
    let again = rome(&model, &request()?, &second, &options)?;
    assert_eq!(found.losses, again.losses);
    let mut handle = EditHandle::apply(&model, found.edit)?;
    let raised = chance(&model)?;
    assert!(raised > before, "{before} to {raised}");
    handle.undo(&model)?;

    options.star.objective = Objective::Lower;
    options.star.kl_factor = 0.0;
    options.star.weight_decay = 0.0;
    options.star.stop = 0.0;
    let found = rome(&model, &request()?, &second, &options)?;
    // A probability, and no update after the last of twenty evaluations.
    assert_eq!(found.losses.len(), 20);
    assert!(found.losses.iter().all(|loss| (0.0..=1.0).contains(loss)));
    let (first, last) = (found.losses[0], found.losses[19]);
    assert!(last <= first, "{:?}", found.losses);

    options.star.steps = 1;
    let none = rome(&model, &request()?, &second, &options)?;
    assert_bits(&none.star, &none.initial);
    Ok(())
}

#[test]
fn a_step_of_the_search_has_the_loss_of_whole_passes() -> Result<()> {
    for family in FAMILIES {
        let (model, _vs) = tiny(family)?;
        let second = Moments::identity(model.config().d_mlp)?;
        let mut options = RomeOptions::new(2);
        options.star.steps = 2;
        options.star.stop = 0.0;
        // In so small a model it would hide the rest.
        options.star.weight_decay = 0.0;
        let request = request()?;
        let found = rome(&model, &request, &second, &options)?;
        let added = (&found.star - &found.initial).to_kind(Kind::Float);
        // From the embeddings of one row alone, with what was added written into the MLP's output.
        let logs = |ids: &[i64], place: usize, added: Option<&Tensor>| -> Result<Tensor> {
            let mut run = Run::new();
            if let Some(added) = added {
                run = run.hook("blocks.2.hook_mlp_out", move |xs: &Tensor| {
                    let out = xs.copy();
                    let _ = out.select(1, place as i64).f_add_(added)?;
                    Ok(Some(out))
                });
            }
            let logits = model.run(&Tensor::from_slice(ids).unsqueeze(0), &mut run)?;
            Ok(logits.select(0, 0).log_softmax(-1, Kind::Double))
        };
        let mut fits = Vec::new();
        for row in &request.groups[0] {
            let ids = [row.ids.as_slice(), &request.target[..1]].concat();
            let logs = logs(&ids, row.place, Some(&added))?;
            for (after, id) in request.target.iter().enumerate() {
                fits.push(-logs.double_value(&[(row.ids.len() + after) as i64 - 1, *id]));
            }
        }
        let kl = request.kl.as_ref().expect("a prompt");
        let place = kl.place as i64;
        let before = logs(&kl.ids, kl.place, None)?.select(0, place);
        let now = logs(&kl.ids, kl.place, Some(&added))?.select(0, place);
        let divergence = (now.exp() * (&now - &before)).sum(Kind::Double);
        let loss = fits.iter().sum::<f64>() / fits.len() as f64
            + options.star.kl_factor * divergence.double_value(&[]);
        assert_eq!(found.losses.len(), 2);
        assert!(
            (loss - found.losses[1]).abs() < 1e-4 * (1.0 + loss),
            "{family}: {loss}, {:?}",
            found.losses
        );
    }
    Ok(())
}

#[test]
fn what_is_added_stays_within_the_clamp() -> Result<()> {
    let (model, _vs) = tiny("llama")?;
    let second = moments(&model, 1)?;
    for clamp in [0.001, 0.01] {
        let mut options = options(1);
        options.star.clamp = clamp;
        let found = rome(&model, &request()?, &second, &options)?;
        let (added, initial) = found.norms()?;
        assert!(
            // Rounded where it is added to the value.
            added <= (clamp + 1e-6) * initial,
            "{added}, {initial}"
        );
        assert!(
            added >= 0.9 * clamp * initial,
            "the limit is reached: {added}"
        );
    }
    Ok(())
}

#[test]
fn edits_lie_on_top_of_each_other() -> Result<()> {
    let (model, _vs) = tiny("gpt_neox")?;
    let before = matrices(&model)?;
    let second = moments(&model, 1)?;
    let make = |seed: &Request| rome(&model, seed, &second, &options(2));
    let mut lower = EditHandle::apply(&model, make(&request()?)?.edit)?;
    let mut upper = EditHandle::apply(&model, make(&other()?)?.edit)?;
    let error = lower.undo(&model).expect_err("another lies on it");
    assert!(error.to_string().contains("later change first"), "{error}");
    upper.undo(&model)?;
    upper.redo(&model)?;
    upper.undo(&model)?;
    lower.undo(&model)?;
    assert_untouched(&model, &before)
}

#[test]
fn half_precision_is_taken_back_to_the_bit() -> Result<()> {
    let (single, _vs) = tiny("llama")?;
    for kind in [Kind::BFloat16, Kind::Double] {
        let vs = VarStore::new(Device::Cpu);
        let model = Lm::undrawn(single.config().clone(), &vs.root(), kind)?;
        let _guard = tch::no_grad_guard();
        for (name, xs) in single.parameters() {
            model.parameter(&name)?.f_copy_(&xs)?;
        }
        let before = matrices(&model)?;
        let second = Moments::identity(model.config().d_mlp)?;
        let found = tch::with_grad(|| rome(&model, &request()?, &second, &options(1)))?;
        let mut handle = EditHandle::apply(&model, found.edit)?;
        assert!(!handle.is_as_before(&model)?);
        handle.undo(&model)?;
        assert_untouched(&model, &before)?;
    }
    Ok(())
}

#[test]
fn a_saved_edit_is_the_edit() -> Result<()> {
    let (model, _vs) = tiny("opt")?;
    let second = moments(&model, 1)?;
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    let ft = FinetuneOptions {
        steps: 3,
        bias: true,
        ..FinetuneOptions::new(vec![0, 2], Some(1e-3))
    };
    let edits = [
        rome(&model, &request()?, &second, &options(2))?.edit,
        finetune(&model, &[request()?], &ft)?.edit,
    ];
    for (place, edit) in edits.into_iter().enumerate() {
        let path = folder.path().join(format!("{place}.safetensors"));
        edit.save(&path)?;
        let changes = edit.changes.len();
        let mut handle = EditHandle::apply(&model, edit)?;
        let written = matrices(&model)?;
        handle.undo(&model)?;
        let loaded = Edit::load(&path)?;
        assert_eq!(loaded.changes.len(), changes);
        let mut handle = EditHandle::apply(&model, loaded)?;
        assert_untouched(&model, &written)?;
        handle.undo(&model)?;

        let (stranger, _vs) = tiny("gptj")?;
        let error = EditHandle::apply(&stranger, Edit::load(&path)?).expect_err("another model");
        assert!(error.to_string().contains("Opt"), "{error}");
    }
    let path = folder.path().join("no.safetensors");
    let tensors = weights::Tensors::from([("x".to_owned(), Tensor::from(1.0))]);
    weights::save(&path, &tensors, &std::collections::BTreeMap::new())?;
    let error = Edit::load(&path).expect_err("no edit");
    assert!(error.to_string().contains("no edit"), "{error}");
    Ok(())
}

#[test]
fn memit_solves_its_system() -> Result<()> {
    let (model, _vs) = tiny("gpt2")?;
    let second = moments(&model, 5)?;
    let m = model.config().d_mlp;
    let keys = seeded(6, || Tensor::randn([m, 3], DOUBLE));
    for lambda in [1e-3, 0.7, 2e4] {
        let solved = solve(&second, lambda, &keys)?;
        let system = second.conditioned()? * lambda + keys.matmul(&keys.tr());
        assert_near(&system.matmul(&solved), &keys, 1e-8);
    }
    // One key and hardly any weight on the moments: the key gets all that is missing.
    let key = keys.narrow(1, 0, 1);
    let solved = solve(&second, 1e-9, &key)?;
    assert_close(
        &key.tr().matmul(&solved),
        &Tensor::from(1.0).reshape([1, 1]),
        1e-6,
        0.0,
    );
    // The identity is a moment like others.
    let one = Moments::identity(m)?;
    let solved = solve(&one, 0.5, &keys)?;
    let system = Tensor::eye(m, DOUBLE) * 0.5 + keys.matmul(&keys.tr());
    assert_near(&system.matmul(&solved), &keys, 1e-10);
    Ok(())
}

#[test]
fn memit_comes_to_its_values_and_leaves_the_model_alone() -> Result<()> {
    for family in FAMILIES {
        let (model, _vs) = tiny(family)?;
        let before = matrices(&model)?;
        let second = Rc::new(moments(&model, 5)?);
        let mut held = |_: usize| -> Result<Rc<Moments>> { Ok(Rc::clone(&second)) };
        // Next to no weight on the moments: the last layer closes what is left.
        let mut options = MemitOptions::new(vec![1, 2], 1e-9);
        options.star.steps = 5;
        let requests = [request()?];
        let found = memit(&model, &requests, &mut held, &options)?;
        assert_untouched(&model, &before)?;
        assert_eq!(found.edit.changes.len(), 2);
        assert_eq!(found.losses.len(), 1);
        for step in &found.steps {
            let gained = step
                .keys
                .tr()
                .matmul(&step.solved)
                .matmul(&step.residual.tr());
            assert_near(&gained, &step.residual.tr(), 1e-5);
        }
        let mut failing = |layer: usize| -> Result<Rc<Moments>> {
            match layer {
                1 => Ok(Rc::clone(&second)),
                _ => Err(Error::config("moments", "are lost")),
            }
        };
        assert!(memit(&model, &requests, &mut failing, &options).is_err());
        assert_untouched(&model, &before)?;
        let two = [request()?, other()?];
        options.lambda = 1.0;
        let found = memit(&model, &two, &mut held, &options)?;
        assert_eq!(found.star.size(), [2, model.config().d_model]);
        let mut handle = EditHandle::apply(&model, found.edit)?;
        handle.undo(&model)?;
        assert_untouched(&model, &before)?;
    }
    let (model, _vs) = tiny("gpt2")?;
    let second = Rc::new(moments(&model, 5)?);
    let mut held = |_: usize| -> Result<Rc<Moments>> { Ok(Rc::clone(&second)) };
    for layers in [vec![], vec![2, 1], vec![1, 1], vec![1, 99]] {
        let options = MemitOptions::new(layers, 1.0);
        assert!(memit(&model, &[request()?], &mut held, &options).is_err());
    }
    Ok(())
}

#[test]
fn finetuning_stays_within_its_limit_in_the_layers_named() -> Result<()> {
    for family in FAMILIES {
        let (model, _vs) = tiny(family)?;
        let before = matrices(&model)?;
        for loss in [
            TargetLoss::SequenceMean,
            TargetLoss::SequenceSum,
            TargetLoss::SinglePosition,
        ] {
            let options = FinetuneOptions {
                steps: 6,
                loss,
                ..FinetuneOptions::new(vec![1, 3], Some(1e-3))
            };
            let found = finetune(&model, &[request()?, other()?], &options)?;
            assert_untouched(&model, &before)?;
            assert!(
                found.losses[found.losses.len() - 1] < found.losses[0],
                "{family}"
            );
            let layers: Vec<usize> = found.edit.changes.iter().map(|c| c.layer).collect();
            assert_eq!(layers, [1, 3]);
            for change in &found.edit.changes {
                let largest = change.delta.tensor()?.abs().max().double_value(&[]);
                assert!(
                    largest > 5e-4 && largest <= 1e-3 + 1e-6,
                    "{family}: {largest}"
                );
            }
            let mut handle = EditHandle::apply(&model, found.edit)?;
            handle.undo(&model)?;
            assert_untouched(&model, &before)?;
        }
    }
    Ok(())
}

#[test]
fn finetuning_ends_when_its_loss_is_reached() -> Result<()> {
    let (model, _vs) = tiny("gpt2")?;
    let mut options = FinetuneOptions {
        stop: 1e9,
        steps: 20,
        ..FinetuneOptions::new(vec![1], None)
    };
    assert_eq!(finetune(&model, &[request()?], &options)?.losses.len(), 1);
    options.patience = 5;
    let found = finetune(&model, &[request()?], &options)?;
    // No update is made below it.
    assert_eq!(found.losses.len(), 5);
    assert!(found.losses.iter().all(|loss| *loss == found.losses[0]));
    options.objective = Objective::Lower;
    options.stop = 0.0;
    options.lr = 1e-2;
    let found = finetune(&model, &[request()?], &options)?;
    assert!(found.losses[found.losses.len() - 1] < found.losses[0]);
    Ok(())
}

#[test]
fn a_noised_subject_takes_the_place_of_prefixes() -> Result<()> {
    let (model, _vs) = tiny("gpt2")?;
    let second = moments(&model, 2)?;
    let d = model.config().d_model;
    let noise = seeded(8, || Tensor::randn([4, 2, d], DOUBLE));
    let mut noised = request()?;
    noised.noise = Some(&noise * 0.0);
    let mut alone = request()?;
    alone.groups[0].truncate(1);
    // Four rows of no noise are the prompt alone.
    let found = rome(&model, &noised, &second, &options(1))?;
    let expected = rome(&model, &alone, &second, &options(1))?;
    assert_near(&found.star, &expected.star, 1e-4);
    assert_near(&found.key, &expected.key, 1e-5);
    noised.noise = Some(noise);
    let found = rome(&model, &noised, &second, &options(1))?;
    assert!((&found.key - &expected.key).abs().max().double_value(&[]) > 1e-3);
    let ft = FinetuneOptions::new(vec![1], Some(1e-3));
    let losses = finetune(&model, &[noised], &ft)?.losses;
    assert!(losses[losses.len() - 1] < losses[0]);
    Ok(())
}

/// A model of GPT-2's vocabulary.
pub(crate) fn speaking() -> Result<(Lm, VarStore, Tokenizer)> {
    let sizes = json!({
        "model_type": "gpt2", "vocab_size": 50257, "n_positions": 128, "n_embd": 16, "n_layer": 4, "n_head": 2,
        "initializer_range": 0.3
    });
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(3, || Lm::new(LmConfig::from_hugging(&sizes)?, &vs.root()))?;
    Ok((model, vs, Tokenizer::gpt2()?))
}

#[test]
fn a_request_finds_its_subject_behind_every_prefix() -> Result<()> {
    let (model, _vs, tokenizer) = speaking()?;
    // The subject stands in the template's beginning and in a prefix too.
    let prefixes = Prefixes {
        groups: vec![
            vec![String::new(), "I saw Paris".to_owned()],
            vec!["Because it rained".to_owned()],
        ],
    };
    let template = "Paris, not Paris Hilton, said {} is the capital of";
    let made = Request::new(&tokenizer, template, "Paris", "France", &prefixes)?;
    let end = tokenizer
        .encode("Paris, not Paris Hilton, said Paris")?
        .len();
    assert_eq!(made.subject, end - 1..end);
    for row in made.groups.iter().flatten() {
        let last = row.ids.get(..=row.place).unwrap_or_default();
        assert!(tokenizer.decode(last)?.ends_with("said Paris"));
        assert!(
            tokenizer
                .decode(&row.ids)?
                .ends_with("said Paris is the capital of")
        );
    }
    assert_eq!(tokenizer.decode(&made.target)?, " France");
    let kl = made.kl.as_ref().expect("a prompt");
    assert_eq!(tokenizer.decode(&kl.ids)?, "Paris is a");
    made.check_length(&model)?;
    let long = "very ".repeat(140);
    let long = Request::new(&tokenizer, template, "Paris", &long, &prefixes)?;
    let error = long.check_length(&model).expect_err("too long");
    assert!(
        error.to_string().contains("since the model takes 128"),
        "{error}"
    );
    let long = "far ".repeat(127);
    let mut subject = Request::new(&tokenizer, "{}", long.trim(), "y", &Prefixes::none())?;
    let error = subject.check_length(&model).expect_err("too long");
    assert!(error.to_string().contains("` is a` behind it"), "{error}");
    // Finetuning does not ask that.
    subject.kl = None;
    subject.check_length(&model)?;
    let error = Request::new(&tokenizer, "no gap", "x", "y", &prefixes).expect_err("no gap");
    assert!(error.to_string().contains("{}"), "{error}");

    let drawn = Prefixes::rome(&model, &tokenizer, 1)?;
    assert_eq!(drawn, Prefixes::rome(&model, &tokenizer, 1)?);
    assert_ne!(drawn, Prefixes::rome(&model, &tokenizer, 2)?);
    assert!(drawn.groups.len() == 1 && drawn.groups[0].len() > 10);
    assert_eq!(drawn.groups[0][0], "");
    let drawn = Prefixes::memit(&model, &tokenizer, 1)?;
    assert!(drawn.groups.len() == 2 && drawn.groups[1].len() > 2);
    assert!(Request::new(&tokenizer, template, "Paris", "France", &drawn).is_ok());
    Ok(())
}

#[test]
fn an_edit_is_weighed_on_all_its_questions() -> Result<()> {
    let (model, _vs, tokenizer) = speaking()?;
    let questions = Questions {
        rewrite: "The Louvre is in".to_owned(),
        paraphrases: vec!["Find the Louvre in ".to_owned(), "Louvre:".to_owned()],
        neighbours: vec!["The Eiffel Tower is in".to_owned()],
        new: "Rome".to_owned(),
        old: "Clermont-Ferrand".to_owned(),
    };
    let found = weigh(&model, &tokenizer, &questions)?;
    assert_eq!(found.paraphrase.len(), 2);
    assert_eq!(found.neighbourhood.len(), 1);
    let nll = |text: &str, answer: &str| -> Result<f64> {
        let prompt = tokenizer.encode(text)?;
        let answer = tokenizer.encode_plain(&format!(" {answer}"))?;
        let ids = [prompt.as_slice(), &answer].concat();
        let ids = Tensor::from_slice(&ids).unsqueeze(0);
        let logits = tch::no_grad(|| model.forward(&ids))?;
        let logs = logits.select(0, 0).log_softmax(-1, Kind::Double);
        let each = answer.iter().enumerate().map(|(i, id)| {
            let at = (prompt.len() + i - 1) as i64;
            -logs.double_value(&[at, *id])
        });
        Ok(each.sum::<f64>() / answer.len() as f64)
    };
    for (text, weighed) in [
        ("The Louvre is in", found.rewrite[0]),
        ("Find the Louvre in", found.paraphrase[0]),
        ("The Eiffel Tower is in", found.neighbourhood[0]),
    ] {
        assert!((nll(text, "Rome")? - weighed.new).abs() < 1e-4);
        assert!((nll(text, "Clermont-Ferrand")? - weighed.old).abs() < 1e-4);
    }
    for (old, part) in [
        (" ".to_owned(), "`true target`: is empty"),
        ("far ".repeat(130), "`true target`: has 130 tokens behind"),
    ] {
        let questions = Questions {
            old,
            ..questions.clone()
        };
        let error = weigh(&model, &tokenizer, &questions).expect_err(part);
        assert!(error.to_string().contains(part), "{error}");
    }
    let share = accuracy(&model, &tokenizer, "The Louvre is in", "Rome")?;
    assert!((0.0..=1.0).contains(&share));
    Ok(())
}

#[test]
fn settings_out_of_range_are_refused() -> Result<()> {
    let (model, _vs) = tiny("gpt2")?;
    let second = Moments::identity(model.config().d_mlp)?;
    let wrong = [
        StarOptions {
            lr: 0.0,
            ..StarOptions::default()
        },
        StarOptions {
            steps: 0,
            ..StarOptions::default()
        },
        StarOptions {
            clamp: -1.0,
            ..StarOptions::default()
        },
        StarOptions {
            kl_factor: f64::NAN,
            ..StarOptions::default()
        },
    ];
    for star in wrong {
        let options = RomeOptions { star, ..options(1) };
        assert!(rome(&model, &request()?, &second, &options).is_err());
    }
    assert!(rome(&model, &request()?, &second, &options(99)).is_err());
    let narrow = Moments::identity(3)?;
    assert!(rome(&model, &request()?, &narrow, &options(1)).is_err());
    let unknown = Request::from_ids(&PROMPT, 1..3, &[4000], None, &[vec![vec![]]])?;
    assert!(rome(&model, &unknown, &second, &options(1)).is_err());
    assert!(Request::from_ids(&PROMPT, 3..3, &[1], None, &[vec![vec![]]]).is_err());
    assert!(Request::from_ids(&PROMPT, 1..3, &[], None, &[vec![vec![]]]).is_err());
    assert!(Request::from_ids(&PROMPT, 1..3, &[1], None, &[vec![vec![9]]]).is_err());
    let long = vec![3; 40];
    let long = Request::from_ids(&long, 1..3, &[1], None, &[vec![vec![]]])?;
    assert!(rome(&model, &long, &second, &options(1)).is_err());
    assert!(Moments::from_tensor(&Tensor::zeros([2, 3], DOUBLE), 1).is_err());
    assert!(Moments::from_tensor(&(Tensor::zeros([2, 2], DOUBLE) / 0.0), 1).is_err());
    Ok(())
}

#[test]
fn released_settings_belong_to_their_models() -> Result<()> {
    let of = |layers: i64, width: i64, heads: i64| -> Result<Defaults> {
        let sizes = json!({ "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": width, "n_layer": layers, "n_head": heads });
        Ok(Defaults::of(&LmConfig::from_hugging(&sizes)?))
    };
    let medium = of(24, 1024, 16)?;
    assert_eq!(
        (medium.rome_layer, medium.rome_clamp, medium.finetune_clamp),
        (8, 3.0, 2e-3)
    );
    assert!(
        medium.said.contains("none were released for MEMIT"),
        "{}",
        medium.said
    );
    let xl = of(48, 1600, 25)?;
    assert_eq!(xl.said, "the released settings of GPT-2 XL");
    assert_eq!((xl.rome_layer, xl.memit_lambda), (17, 20_000.0));
    assert_eq!(xl.memit_layers, [13, 14, 15, 16, 17]);
    let small = of(12, 768, 12)?;
    assert_eq!(small.rome_layer, 4);
    assert_eq!(small.memit_layers, [0, 1, 2, 3, 4]);
    assert!(small.said.contains("third"));
    Ok(())
}
