//! Factual recall: planted weights are found, parts sum to the whole, patches are what they say.

use densely_core::{Result, seeded};
use densely_interp::recall::{
    DecomposeOptions, Metric, Mitigation, Patching, Question, decompose, fit, frequency_direction,
    frequent_tokens, head_effects, head_outputs, last_layer, mitigate, ranks, top_tokens,
};
use densely_lm::analysis::{decompose_by_head, direct_logits, part_names};
use densely_lm::{Cache, Lm, Run};
use densely_testkit::assert_close;
use tch::{Kind, Tensor};

use crate::trace::{FAMILIES, tiny};

const DOUBLE: (Kind, tch::Device) = (Kind::Double, tch::Device::Cpu);

#[test]
fn planted_weights_are_found_within_their_errors() -> Result<()> {
    let (n, d) = (40, 16);
    let draw = |seed: i64| seeded(seed, || Tensor::randn([n, d], DOUBLE));
    let terms: Vec<(String, Tensor)> = (0..3).map(|i| (format!("t{i}"), draw(i))).collect();
    let bias = seeded(9, || Tensor::randn([d], DOUBLE));
    let exact = &terms[0].1 * 0.5 - &terms[1].1 * 1.25 + &terms[2].1 * 0.0 + &bias;
    let found = fit(&exact, &terms, 0.0)?;
    for (term, expected) in found.terms.iter().zip([0.5, -1.25, 0.0]) {
        assert!((term.weight - expected).abs() < 1e-10, "{term:?}");
    }
    assert!((found.r2 - 1.0).abs() < 1e-12);
    assert!(
        found
            .cosines
            .iter()
            .all(|cosine| (cosine - 1.0).abs() < 1e-10)
    );
    assert_close(&found.bias, &bias, 1e-9, 1e-9);

    let noisy = exact + draw(77) * 0.3;
    let found = fit(&noisy, &terms, 0.0)?;
    for (term, expected) in found.terms.iter().zip([0.5, -1.25, 0.0]) {
        let error = (term.weight - expected).abs();
        // 0.3 / √(40 · 16) is 0.0119.
        assert!((0.008..0.016).contains(&term.standard_error), "{term:?}");
        assert!((0.005..0.02).contains(&term.clustered_error), "{term:?}");
        assert!(error < 4.0 * term.standard_error, "{term:?}");
    }
    Ok(())
}

#[test]
fn terms_that_are_one_are_refused_until_there_is_a_ridge() -> Result<()> {
    let xs = seeded(1, || Tensor::randn([10, 4], DOUBLE));
    let terms = [("a".to_owned(), xs.copy()), ("b".to_owned(), xs.copy())];
    let error = fit(&xs, &terms, 0.0)
        .expect_err("they are equal")
        .to_string();
    assert!(error.contains("ridge"), "{error}");
    let found = fit(&xs, &terms, 1e-3)?;
    for term in &found.terms {
        assert!((term.weight - 0.5).abs() < 1e-2, "{term:?}");
    }
    assert!(found.condition > 1e12);
    assert!(fit(&xs.narrow(0, 0, 1), &terms, 0.0).is_err());
    assert!(fit(&xs, &terms, -1.0).is_err());
    assert!(fit(&xs, &[], 0.0).is_err());
    Ok(())
}

fn questions() -> Vec<Question> {
    [
        (vec![5, 9, 30, 2], 3),
        (vec![7, 1, 30], 4),
        (vec![5, 8, 30, 2], 20),
        (vec![6, 33, 12, 30, 2], 4),
        (vec![11], 0),
    ]
    .map(|(ids, answer)| Question { ids, answer })
    .to_vec()
}

#[test]
fn an_mlp_is_decomposed_into_heads_and_residual() -> Result<()> {
    let (model, _vs) = tiny("gpt2")?;
    let prompts: Vec<Vec<i64>> = questions().into_iter().map(|q| q.ids).collect();
    let options = DecomposeOptions {
        earlier: 1,
        ..DecomposeOptions::default()
    };
    let found = decompose(&model, &prompts, 2, &options)?;
    let names: Vec<&str> = found.terms.iter().map(|term| term.name.as_str()).collect();
    assert_eq!(names, ["L1H0", "L1H1", "L2H0", "L2H1", "residual"]);
    assert_eq!(found.cosines.len(), prompts.len());
    assert!((0.0..=1.0).contains(&found.r2), "{}", found.r2);
    let tokens = top_tokens(&model, &found.bias, 3)?;
    assert_eq!(tokens.len(), 3);
    assert!(tokens[0].1 >= tokens[2].1);
    assert_eq!(ranks(&model, &found.bias, &[tokens[1].0])?, [1]);
    assert!(decompose(&model, &prompts, 5, &options).is_err());
    assert!(decompose(&model, &prompts[..1], 2, &options).is_err());
    Ok(())
}

#[test]
fn parts_of_the_last_layer_sum_to_the_logit() -> Result<()> {
    for family in FAMILIES {
        let (model, _vs) = tiny(family)?;
        let found = last_layer(&model, &questions())?;
        for (place, question) in questions().iter().enumerate() {
            let ids = Tensor::from_slice(&question.ids).unsqueeze(0);
            let logits = model.run(&ids, &mut Run::new().last_only())?.flatten(0, -1);
            let logit = logits.double_value(&[question.answer]);
            let sum: f64 = found.parts.iter().map(|part| part.logits[place]).sum();
            let whole = sum + found.constant[place];
            let near = |a: f64| (a - logit).abs() < 1e-4 * (1.0 + logit.abs());
            assert!(near(whole), "{family}: {whole}, {logit}");
            assert!(near(found.logit[place]), "{family}");
            let probability = logits
                .softmax(-1, Kind::Double)
                .double_value(&[question.answer]);
            assert!((found.probability[place] - probability).abs() < 1e-5);
        }
    }
    Ok(())
}

#[test]
fn a_head_of_the_last_layer_patched_directly_is_a_swap_in_the_residual() -> Result<()> {
    for family in FAMILIES {
        let (model, _vs) = tiny(family)?;
        let (clean, corrupted) = ([5, 9, 30, 2], [7, 1, 30]);
        let effects =
            |patching| head_effects(&model, &clean, &corrupted, 3, Metric::Logit, patching);
        let direct = effects(Patching::Direct)?;
        let last = model.config().n_layers - 1;
        let seen = |ids: &[i64]| -> Result<(Tensor, Tensor)> {
            let mut run = Run::new()
                .stop_at(last + 1)
                .cache(&[format!("blocks.{last}.attn.hook_z")]);
            let ids = Tensor::from_slice(ids).unsqueeze(0);
            let residual = model.run(&ids, &mut run)?;
            let cache = run.take_cache();
            let z = cache.get(&format!("blocks.{last}.attn.hook_z"))?;
            let results = tch::no_grad(|| model.head_results(last, z))?;
            let end = |xs: &Tensor| xs.select(1, -1);
            Ok((end(&residual), end(&results)))
        };
        let ((_, from), (residual, to)) = (seen(&clean)?, seen(&corrupted)?);
        for head in 0..model.config().n_heads {
            let swapped = &residual + from.select(1, head) - to.select(1, head);
            let logits = tch::no_grad(|| model.unembed(&swapped))?;
            let expected = logits.double_value(&[0, 3]);
            let found = direct.heads[last][head as usize];
            assert!(
                (found - expected).abs() < 1e-4 * (1.0 + expected.abs()),
                "{family}: {found}, {expected}"
            );
        }
        // A prompt patched with itself is itself.
        let same = head_effects(
            &model,
            &clean,
            &clean,
            3,
            Metric::Probability,
            Patching::Activation,
        )?;
        for value in same.heads.iter().flatten() {
            assert!((value - same.clean).abs() < 1e-5);
        }
        assert_eq!(direct.heads.len(), last + 1);
        assert_eq!(direct.ranked().len(), (last + 1) * direct.heads[0].len());
        let through = effects(Patching::PathThroughMlps)?;
        assert!((through.corrupted - direct.corrupted).abs() < 1e-12);
    }
    Ok(())
}

#[test]
fn heads_are_patched_as_in_whole_passes() -> Result<()> {
    let (clean, corrupted) = ([5i64, 9, 30, 2], [7i64, 1, 30]);
    for family in FAMILIES {
        let (model, _vs) = tiny(family)?;
        let n_layers = model.config().n_layers;
        let point = |layer: usize, end: &str| format!("blocks.{layer}.{end}");
        let seen = |ids: &[i64]| -> Result<Cache> {
            let mut run = Run::new().cache(&["blocks.*.attn.hook_z", "blocks.*.hook_mlp_out"]);
            let _ = model.run(&Tensor::from_slice(ids).unsqueeze(0), &mut run)?;
            Ok(run.take_cache())
        };
        let (from, to) = (seen(&clean)?, seen(&corrupted)?);
        let ids = Tensor::from_slice(&corrupted).unsqueeze(0);
        for patching in [
            Patching::Activation,
            Patching::PathThroughMlps,
            Patching::Direct,
        ] {
            let effects = |metric| head_effects(&model, &clean, &corrupted, 3, metric, patching);
            let (logit, odds) = (effects(Metric::Logit)?, effects(Metric::Probability)?);
            for layer in 0..n_layers {
                for head in 0..model.config().n_heads {
                    let z = point(layer, "attn.hook_z");
                    let value = from.get(&z)?.select(1, -1).select(1, head);
                    let mut run = Run::new().last_only().hook(z, move |zs: &Tensor| {
                        let out = zs.copy();
                        out.select(1, -1).select(1, head).copy_(&value);
                        Ok(Some(out))
                    });
                    let mut kept = Vec::new();
                    if patching != Patching::Activation {
                        kept.extend((layer + 1..n_layers).map(|l| point(l, "attn.hook_z")));
                    }
                    if patching == Patching::Direct {
                        kept.extend((layer..n_layers).map(|l| point(l, "hook_mlp_out")));
                    }
                    for name in kept {
                        let value = to.get(&name)?.shallow_clone();
                        run = run.freeze(name, value);
                    }
                    let logits = model.run(&ids, &mut run)?.flatten(0, -1);
                    let own = logits.double_value(&[3]);
                    let found = logit.heads[layer][head as usize];
                    assert!(
                        (found - own).abs() < 1e-4 * (1.0 + own.abs()),
                        "{family}, {patching:?}, L{layer}H{head}: {found}, {own}"
                    );
                    let own = logits.softmax(-1, Kind::Double).double_value(&[3]);
                    let found = odds.heads[layer][head as usize];
                    assert!(
                        (found - own).abs() < 1e-4,
                        "{family}, {patching:?}, L{layer}H{head}: {found}, {own}"
                    );
                }
            }
            let clean = Tensor::from_slice(&clean).unsqueeze(0);
            let logits = model.run(&clean, &mut Run::new().last_only())?;
            let own = logits.double_value(&[0, 0, 3]);
            assert!((logit.clean - own).abs() < 1e-4 * (1.0 + own.abs()));
        }
    }
    Ok(())
}

#[test]
fn nothing_turned_down_changes_nothing_and_a_direction_taken_out_is_gone() -> Result<()> {
    let (model, _vs) = tiny("gpt2")?;
    for (before, after) in mitigate(&model, &questions(), &Mitigation::default())? {
        assert_eq!(before, after);
    }
    let one = Mitigation {
        heads: vec![(4, 1, 0.0), (3, 0, 0.5)],
        mlps: vec![(4, 0.0)],
        ..Mitigation::default()
    };
    let changed = mitigate(&model, &questions(), &one)?;
    assert!(changed.iter().any(|(a, b)| (a - b).abs() > 1e-6));
    // What raises some tokens, taken out, lowers them together against the rest.
    let tokens = [1, 2, 3];
    let direction = frequency_direction(&model, &tokens)?;
    assert!((direction.norm().double_value(&[]) - 1.0).abs() < 1e-6);
    let shown = ranks(&model, &direction, &tokens)?;
    assert!(shown.iter().sum::<i64>() < 3 * 20, "{shown:?}");
    let out = Mitigation {
        directions: Some(direction.unsqueeze(0)),
        ..Mitigation::default()
    };
    assert_eq!(mitigate(&model, &questions(), &out)?.len(), 5);
    let twice = Mitigation {
        directions: Some(Tensor::stack(&[&direction, &direction], 0)),
        ..Mitigation::default()
    };
    assert!(mitigate(&model, &questions(), &twice).is_err());
    for wrong in [(5, 0, 0.5), (0, 2, 0.5), (0, 0, f64::NAN)] {
        let wrong = Mitigation {
            heads: vec![wrong],
            ..Mitigation::default()
        };
        assert!(mitigate(&model, &questions(), &wrong).is_err());
    }
    Ok(())
}

/// What a head adds to each logit at the last position of a prompt, by the parts of the whole residual.
fn added(model: &Lm, ids: &[i64], layer: usize, head: i64) -> Result<Vec<f64>> {
    let vocab = model.config().vocab_size;
    let names: Vec<String> = part_names(model)
        .iter()
        .map(|name| name.replace("hook_attn_out", "attn.hook_z"))
        .collect();
    let mut run = Run::new().cache(&names);
    let _ = model.run(&Tensor::from_slice(ids).unsqueeze(0), &mut run)?;
    let parts: Vec<(String, Tensor)> = decompose_by_head(model, &run.take_cache(), -1)?
        .into_iter()
        .map(|(name, part)| (name, part.expand([vocab, -1], true)))
        .collect();
    let all = Tensor::arange(vocab, (Kind::Int64, tch::Device::Cpu));
    let name = format!("blocks.{layer}.attn.head.{head}");
    let found = direct_logits(model, &parts, &all, None)?;
    let logits = found.iter().find(|(own, _)| *own == name);
    let (_, logits) = logits.expect("each head is a part");
    Ok(Vec::<f64>::try_from(&logits.to_kind(Kind::Double))?)
}

#[test]
fn heads_say_what_they_add_to_the_logits() -> Result<()> {
    let questions = questions();
    let subjects = [9, 1, 8, 33, 11];
    let heads = [(0, 1), (3, 0), (4, 1), (4, 0)];
    for family in FAMILIES {
        let (model, _vs) = tiny(family)?;
        let _guard = tch::no_grad_guard();
        let found = head_outputs(&model, &questions, &subjects, &heads, 40)?;
        assert_eq!(found.len(), heads.len());
        for ((layer, head), output) in heads.into_iter().zip(&found) {
            assert_eq!((output.layer, output.head), (layer, head));
            let rows = questions
                .iter()
                .map(|question| added(&model, &question.ids, layer, head))
                .collect::<Result<Vec<_>>>()?;
            let count = rows.len() as f64;
            assert_eq!(output.tokens.len(), 40);
            assert!(output.tokens.is_sorted_by(|a, b| a.1 >= b.1));
            for (token, logit) in &output.tokens {
                let mean = rows.iter().map(|row| row[*token as usize]).sum::<f64>() / count;
                assert!(
                    (logit - mean).abs() < 1e-4 * (1.0 + mean.abs()),
                    "{family}, L{layer}H{head}, {token}: {logit}, {mean}"
                );
            }
            // Logits that are equal but for rounding may stand on either side.
            let place = |tokens: &[i64], slack: f64| {
                let above = rows.iter().zip(tokens).map(|(row, token)| {
                    let own = row[*token as usize];
                    let others = row.iter().enumerate();
                    others
                        .filter(|(other, value)| *other as i64 != *token && **value > own + slack)
                        .count() as f64
                });
                above.sum::<f64>() / count
            };
            let answers: Vec<i64> = questions.iter().map(|q| q.answer).collect();
            for (rank, tokens) in [
                (output.subject_rank, subjects.as_slice()),
                (output.answer_rank, answers.as_slice()),
            ] {
                let within = place(tokens, 1e-4)..=place(tokens, -1e-4);
                assert!(within.contains(&rank), "{family}: {rank}, {within:?}");
            }
        }
    }
    let (model, _vs) = tiny("gpt2")?;
    for (subjects, head) in [
        (subjects.to_vec(), (5, 0)),
        (subjects.to_vec(), (0, 2)),
        (subjects[..4].to_vec(), (0, 0)),
        (vec![9, 1, 8, 40, 11], (0, 0)),
    ] {
        assert!(head_outputs(&model, &questions, &subjects, &[head], 3).is_err());
    }
    Ok(())
}

#[test]
fn without_their_direction_frequent_tokens_are_as_likely_as_the_biases_have_them() -> Result<()> {
    assert_eq!(frequent_tokens(&[4, 9, 9, 2, 4, 9, 7], 3), [9, 4, 2]);
    assert_eq!(frequent_tokens(&[3], 5), [3]);
    let tokens = [1, 2, 3];
    for family in FAMILIES {
        let (model, _vs) = tiny(family)?;
        let _guard = tch::no_grad_guard();
        let direction = frequency_direction(&model, &tokens)?;
        let mitigation = Mitigation {
            directions: Some(direction.unsqueeze(0)),
            ..Mitigation::default()
        };
        let changed = mitigate(&model, &questions(), &mitigation)?;
        let direction = direction.to_kind(Kind::Float);
        let index = Tensor::from_slice(&tokens);
        // How far the frequent tokens' logits stand above the mean of all.
        let above = |residual: &Tensor| -> Result<f64> {
            let logits = model.unembed(residual)?;
            let some = logits.index_select(1, &index).mean(Kind::Double);
            Ok((some - logits.mean(Kind::Double)).double_value(&[]))
        };
        let constant = above(&Tensor::zeros([1, 8], (Kind::Float, tch::Device::Cpu)))?;
        let mut moved = 0.0f64;
        for (question, (before, after)) in questions().iter().zip(changed) {
            let ids = Tensor::from_slice(&question.ids).unsqueeze(0);
            let mut run = Run::new().stop_at(model.config().n_layers);
            let residual = model.run(&ids, &mut run)?.select(1, -1); // [1, d]
            let part = residual.matmul(&direction.unsqueeze(1));
            let without = &residual - part.matmul(&direction.unsqueeze(0));
            let (had, has) = (above(&residual)?, above(&without)?);
            assert!((has - constant).abs() < 1e-4, "{family}: {has}, {constant}");
            moved = moved.max((had - constant).abs());
            for (residual, found) in [(residual, before), (without, after)] {
                let odds = model.unembed(&residual)?.softmax(-1, Kind::Double);
                let own = odds.double_value(&[0, question.answer]);
                assert!((found - own).abs() < 1e-5, "{family}: {found}, {own}");
            }
        }
        assert!(moved > 1e-3, "{family}: {moved}");
    }
    Ok(())
}
