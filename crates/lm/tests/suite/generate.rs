//! Writing on: with and without padding, by chance and without, and how well texts are foretold.

use std::ops::ControlFlow;

use densely_core::Result;
use densely_lm::Lm;
use densely_lm::generate::{Sampling, generate, generate_with};
use densely_lm::perplexity::{perplexity, perplexity_strided};
use tch::{Kind, Tensor};

use crate::tiny;

/// The likeliest tokens, with the whole text read anew for each.
fn slowly(model: &Lm, prompt: &[i64], new: usize) -> Result<Vec<i64>> {
    let mut ids = prompt.to_vec();
    for _ in 0..new {
        let logits = model.forward(&Tensor::from_slice(&ids).unsqueeze(0))?;
        ids.push(
            logits
                .select(0, 0)
                .select(0, -1)
                .argmax(None, false)
                .int64_value(&[]),
        );
    }
    Ok(ids.split_off(prompt.len()))
}

fn prompts() -> Vec<Vec<i64>> {
    vec![vec![1, 2, 3], vec![9], vec![4, 30, 8, 8, 17], vec![5, 6]]
}

#[test]
fn padding_and_kept_keys_change_nothing() -> Result<()> {
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        let together = generate(&model, &prompts(), 8, &Sampling::greedy(), &[])?;
        for (prompt, text) in prompts().iter().zip(&together) {
            assert_eq!(*text, slowly(&model, prompt, 8)?, "{name} {prompt:?}");
            let alone = generate(
                &model,
                std::slice::from_ref(prompt),
                8,
                &Sampling::greedy(),
                &[],
            )?;
            assert_eq!(alone, std::slice::from_ref(text), "{name} {prompt:?}");
        }
    }
    Ok(())
}

#[test]
fn the_same_seed_draws_the_same_tokens() -> Result<()> {
    let (model, _vs) = tiny::model("llama")?;
    let draw = |seed, top_k, top_p| {
        let sampling = Sampling {
            temperature: 2.0,
            top_k,
            top_p,
            seed,
        };
        generate(&model, &prompts(), 10, &sampling, &[])
    };
    let first = draw(1, None, None)?;
    assert_eq!(first, draw(1, None, None)?);
    assert_ne!(first, draw(2, None, None)?);
    assert_eq!(first, draw(1, Some(1000), Some(1.0))?);
    let likeliest = generate(&model, &prompts(), 10, &Sampling::greedy(), &[])?;
    assert_eq!(draw(1, Some(1), None)?, likeliest);
    assert_eq!(draw(1, None, Some(1e-9))?, likeliest);
    // Each prompt draws from a stream of its own: the second's tokens do not depend on how many follow.
    let sampling = Sampling {
        temperature: 2.0,
        seed: 1,
        ..Sampling::greedy()
    };
    assert_eq!(
        generate(&model, &prompts()[..2], 10, &sampling, &[])?,
        first[..2]
    );
    Ok(())
}

#[test]
fn texts_end_where_they_are_told() -> Result<()> {
    let (model, _vs) = tiny::model("gpt2")?;
    let free = generate(&model, &prompts(), 8, &Sampling::greedy(), &[])?;
    let stop = free[2][3];
    let stopped = generate(&model, &prompts(), 8, &Sampling::greedy(), &[stop])?;
    for (free, stopped) in free.iter().zip(&stopped) {
        let until: Vec<i64> = free.iter().copied().take_while(|id| *id != stop).collect();
        assert_eq!(*stopped, until);
    }
    let mut heard = Vec::new();
    let cut = generate_with(
        &model,
        &prompts()[..1],
        8,
        &Sampling::greedy(),
        &[],
        &mut |place, id| {
            heard.push((place, id));
            Ok(if heard.len() == 3 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        },
    )?;
    assert_eq!(cut, [free[0][..3].to_vec()]);
    assert_eq!(
        heard,
        free[0][..3].iter().map(|id| (0, *id)).collect::<Vec<_>>()
    );
    assert!(generate(&model, &[], 8, &Sampling::greedy(), &[])?.is_empty());
    assert_eq!(
        generate(&model, &prompts(), 0, &Sampling::greedy(), &[])?,
        vec![Vec::<i64>::new(); 4]
    );
    Ok(())
}

#[test]
fn what_cannot_be_written_is_refused() -> Result<()> {
    let (model, _vs) = tiny::model("gpt2")?;
    let refusal = |prompts: &[Vec<i64>], max_new: usize| {
        let error = generate(&model, prompts, max_new, &Sampling::greedy(), &[]);
        error.expect_err("unfit").to_string()
    };
    for (prompts, max_new, part) in [
        (vec![vec![1], vec![]], 1, "number 1 is empty"),
        (vec![vec![1; 10]], 7, "takes 16 tokens"),
        (vec![vec![1]], usize::MAX, "takes 16 tokens"),
        (vec![vec![31]], 1, "31"),
        (vec![vec![-1]], 1, "-1"),
    ] {
        let message = refusal(&prompts, max_new);
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(
        generate(&model, &[vec![1; 10]], 6, &Sampling::greedy(), &[])?[0].len(),
        6
    );
    Ok(())
}

/// Negative log-likelihoods of all tokens but the first.
fn losses(model: &Lm, ids: &[i64]) -> Result<Vec<f64>> {
    let _no_grad = tch::no_grad_guard();
    let logits = model.forward(&Tensor::from_slice(ids).unsqueeze(0))?;
    let chances = logits
        .select(0, 0)
        .to_kind(Kind::Double)
        .log_softmax(-1, Kind::Double);
    let chance = |place: usize| -chances.double_value(&[place as i64 - 1, ids[place]]);
    Ok((1..ids.len()).map(chance).collect())
}

/// Mean of the losses of all tokens but the first, each in the first window that has it.
fn strided(model: &Lm, ids: &[i64], window: usize, stride: usize) -> Result<f64> {
    let mut all = losses(model, &ids[..window])?;
    let mut start = stride;
    while all.len() < ids.len() - 1 {
        let end = (start + window).min(ids.len());
        let fresh = end - 1 - all.len();
        let last = losses(model, &ids[start..end])?;
        all.extend(&last[last.len() - fresh..]);
        start += stride;
    }
    Ok(all.iter().sum::<f64>() / all.len() as f64)
}

#[test]
fn windows_that_overlap_judge_each_token_once() -> Result<()> {
    let ids: Vec<i64> = Vec::try_from(&tiny::ids(1, 29).flatten(0, -1))?;
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        for (window, stride) in [(8, 1), (8, 7), (16, 5), (2, 1)] {
            let nll = strided(&model, &ids, window, stride)?;
            let found = perplexity_strided(&model, &ids, window, stride, &mut |_, _| Ok(()))?;
            assert_eq!(found.predictions, 28);
            assert!(
                (found.nll - nll).abs() < 1e-5,
                "{name} {window} {stride}: {found:?} {nll}"
            );
        }
    }
    Ok(())
}

#[test]
fn perplexity_is_the_mean_surprise() -> Result<()> {
    let (model, _vs) = tiny::model("opt")?;
    let ids: Vec<i64> = Vec::try_from(&tiny::ids(1, 37).flatten(0, -1))?;
    let mut expected = Vec::new();
    for window in ids.chunks(8) {
        expected.extend(losses(&model, window)?);
    }
    let nll = expected.iter().sum::<f64>() / expected.len() as f64;
    let found = perplexity(&model, &ids, 8)?;
    assert_eq!(found.predictions, 4 * 7 + 4);
    assert!(
        (found.nll - nll).abs() < 1e-5 && (found.perplexity - nll.exp()).abs() < 1e-3,
        "{found:?} {nll}"
    );

    let nll = strided(&model, &ids, 8, 3)?;
    let mut told = Vec::new();
    let found = perplexity_strided(&model, &ids, 8, 3, &mut |done, all| {
        told.push((done, all));
        Ok(())
    })?;
    assert_eq!(found.predictions, 36);
    assert!((found.nll - nll).abs() < 1e-5, "{found:?} {nll}");
    assert_eq!(told.last(), Some(&(37, 37)));

    for (ids, window, stride, part) in [
        (&ids[..1], 8, 8, "two tokens"),
        (&ids[..], 1, 1, "window"),
        (&ids[..], 17, 1, "window"),
        (&ids[..], 8, 0, "stride"),
        (&ids[..], 8, 9, "stride"),
    ] {
        let error = perplexity_strided(&model, ids, window, stride, &mut |_, _| Ok(()));
        let message = error.expect_err(part).to_string();
        assert!(message.contains(part), "{message}");
    }
    Ok(())
}
