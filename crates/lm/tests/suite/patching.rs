//! Patching between two texts, and what the parts of a pass say of the logits.

use densely_core::{Result, nn};
use densely_lm::analysis::{
    decompose, decompose_by_head, direct_logits, lens_names, logit_lens, part_names,
};
use densely_lm::patching::{
    Paths, Receiver, Sender, Site, activation_patch, attribution_patch, patch_heads,
    patch_positions, path_patch,
};
use densely_lm::{Cache, Run};
use densely_testkit::{assert_bits, assert_near};
use tch::{Kind, Tensor};

use super::tiny::{self, plain, record};

fn pair() -> (Tensor, Tensor) {
    let both = tiny::ids(2, 6);
    (both.narrow(0, 0, 1), both.narrow(0, 1, 1))
}

fn metric(logits: &Tensor) -> Result<f64> {
    Ok(logits.f_double_value(&[0, 5, 4])? - logits.f_double_value(&[0, 5, 9])?)
}

#[test]
fn a_patched_residual_is_the_other_text() -> Result<()> {
    let (source, target) = pair();
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        let cache = record(&model, &source, &["*"])?;
        let sites = [Site::whole("blocks.1.hook_resid_pre")];
        let logits = activation_patch(&model, &target, &cache, &sites)?;
        assert_bits(&logits, &plain(&model, &source)?);
        let none = [Site::whole("blocks.1.hook_resid_pre").positions(&[])];
        let logits = activation_patch(&model, &target, &cache, &none)?;
        assert_bits(&logits, &plain(&model, &target)?);
        let one = [Site::whole("blocks.0.attn.hook_pattern")
            .heads(&[1])
            .positions(&[2, 5])];
        let logits = activation_patch(&model, &target, &cache, &one)?;
        let expected = plain(&model, &target)?;
        assert_near(&logits.narrow(1, 0, 2), &expected.narrow(1, 0, 2), 1e-5);
        assert_ne!(logits, expected);
        for wrong in [
            Site::whole("blocks.0.hook_mlp_out").heads(&[0]),
            Site::whole("blocks.0.attn.hook_z").heads(&[9]),
            Site::whole("blocks.0.attn.hook_z").positions(&[-1]),
        ] {
            assert!(activation_patch(&model, &target, &cache, &[wrong]).is_err());
        }
    }
    Ok(())
}

#[test]
fn grids_hold_the_metric_of_every_single_patch() -> Result<()> {
    let (source, target) = pair();
    for name in ["gpt2", "llama"] {
        let (model, _vs) = tiny::model(name)?;
        let cache = record(&model, &source, &["*"])?;
        let by_position = patch_positions(&model, &target, &cache, "hook_resid_pre", metric)?;
        assert_eq!((by_position.len(), by_position[0].len()), (2, 6));
        let site = Site::whole("blocks.1.hook_resid_pre").positions(&[3]);
        let expected = metric(&activation_patch(&model, &target, &cache, &[site])?)?;
        assert!((by_position[1][3] - expected).abs() < 1e-5);
        let by_head = patch_heads(&model, &target, &cache, "attn.hook_v", metric)?;
        assert_eq!(by_head[0].len() as i64, model.config().n_kv_heads);
        let site = Site::whole("blocks.0.attn.hook_v").heads(&[1]);
        let expected = metric(&activation_patch(&model, &target, &cache, &[site])?)?;
        assert!((by_head[0][1] - expected).abs() < 1e-5);
    }
    Ok(())
}

#[test]
fn paths_that_carry_nothing_change_nothing() -> Result<()> {
    let (source, target) = pair();
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        let expected = plain(&model, &target)?;
        let early = Paths {
            senders: vec![Sender::Head { layer: 0, head: 1 }],
            receivers: vec![
                Receiver::Query { layer: 1, head: 0 },
                Receiver::Key { layer: 1, head: 1 },
                Receiver::Value { layer: 1, head: 1 },
            ],
            freeze_mlps: true,
        };
        let same = path_patch(&model, &target, &target, &early)?;
        assert_near(&same, &expected, 1e-5);
        let other = path_patch(&model, &source, &target, &early)?;
        assert!(
            (other - &expected).abs().max().double_value(&[]) > 1e-6,
            "{name}"
        );
        // Nothing flows backwards.
        let late = Paths {
            senders: vec![Sender::Head { layer: 1, head: 0 }, Sender::Mlp { layer: 1 }],
            receivers: vec![
                Receiver::Query { layer: 0, head: 0 },
                Receiver::Mlp { layer: 0 },
            ],
            freeze_mlps: false,
        };
        assert_near(
            &path_patch(&model, &source, &target, &late)?,
            &expected,
            1e-5,
        );
        assert!(path_patch(&model, &source, &target, &Paths::default()).is_err());
        let shorter = target.narrow(1, 0, 5);
        assert!(path_patch(&model, &source, &shorter, &early).is_err());
    }
    Ok(())
}

#[test]
fn the_last_mlps_path_to_the_logits_is_its_patch() -> Result<()> {
    let (source, target) = pair();
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        let cache = record(&model, &source, &["*"])?;
        let sites = [Site::whole("blocks.1.hook_mlp_out")];
        let expected = activation_patch(&model, &target, &cache, &sites)?;
        let paths = Paths {
            senders: vec![Sender::Mlp { layer: 1 }],
            receivers: vec![Receiver::Logits],
            freeze_mlps: true,
        };
        let found = path_patch(&model, &source, &target, &paths)?;
        assert_near(&found, &expected, 1e-5);
        // A head of the first layer moves the logits directly by what it writes alone.
        let paths = Paths {
            senders: vec![Sender::Head { layer: 0, head: 0 }],
            ..paths
        };
        let found = path_patch(&model, &source, &target, &paths)?;
        let results = record(&model, &source, &["*hook_result"])?;
        let own = record(
            &model,
            &target,
            &["*hook_result", "blocks.1.hook_resid_post"],
        )?;
        let point = "blocks.0.attn.hook_result";
        let moved = (results.get(point)? - own.get(point)?).select(2, 0);
        let last = own.get("blocks.1.hook_resid_post")? + moved;
        let expected = tch::no_grad(|| model.unembed(&last))?;
        assert_near(&found, &expected, 1e-4);
    }
    Ok(())
}

#[test]
fn attribution_guesses_small_changes() -> Result<()> {
    let (_, target) = pair();
    for name in tiny::ALL {
        let (model, vs) = tiny::model(name)?;
        nn::set_float_kind(&vs, Kind::Double);
        let names = ["blocks.0.hook_resid_post", "blocks.0.attn.hook_z"];
        let own = record(&model, &target, &names)?;
        let before = metric(&plain(&model, &target)?)?;
        for point in names {
            let shift = Tensor::randn_like(own.get(point)?) * 1e-3;
            let mut source = record(&model, &target, &names)?.into_tensors();
            source.insert(point.to_owned(), own.get(point)? + shift);
            let source = Cache::from(source);
            let guess = attribution_patch(&model, &target, &source, &names, |logits| {
                Ok(logits
                    .f_narrow(2, 4, 1)?
                    .f_sub(&logits.f_narrow(2, 9, 1)?)?
                    .f_select(1, 5)?)
            })?;
            assert_eq!(guess[point].size(), own.get(point)?.size());
            let guess = guess[point].sum(Kind::Double).double_value(&[]);
            let sites = [Site::whole(point)];
            let after = metric(&activation_patch(&model, &target, &source, &sites)?)?;
            let error = (after - before - guess).abs();
            assert!(
                error < 0.05 * guess.abs() + 1e-5,
                "{name}: {guess} for {}",
                after - before
            );
        }
    }
    Ok(())
}

#[test]
fn the_parts_of_the_residual_sum_to_the_logit() -> Result<()> {
    let (ids, other) = pair();
    let both = Tensor::cat(&[ids, other], 0);
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        let _no_grad = tch::no_grad_guard();
        let mut names = part_names(&model);
        names.extend(lens_names(&model));
        names.push("blocks.*.attn.hook_z".to_owned());
        let mut run = Run::new().cache(&names);
        let logits = model.run(&both, &mut run)?;
        let cache = run.take_cache();
        let lens = logit_lens(&model, &cache, -1)?;
        assert_eq!(lens.size(), [3, 2, 31]);
        assert_near(&lens.get(2), &logits.select(1, 5), 1e-5);
        let tokens = Tensor::from_slice(&[4i64, 9]);
        let against = Tensor::from_slice(&[7i64, 7]);
        let parts = decompose(&model, &cache, 5)?;
        let split = decompose_by_head(&model, &cache, 5)?;
        assert!(split.len() > parts.len());
        let at = |tokens: &Tensor| logits.select(1, 5).gather(1, &tokens.unsqueeze(1), false);
        for parts in [parts, split] {
            let found = direct_logits(&model, &parts, &tokens, Some(&against))?;
            let mut sum = Tensor::zeros([2], tch::kind::FLOAT_CPU);
            for (_, share) in &found {
                sum += share;
            }
            let expected = (at(&tokens) - at(&against)).squeeze_dim(1);
            assert_near(&sum, &expected, 1e-4);
        }
        assert!(logit_lens(&model, &cache, 6).is_err());
        let wrong = Tensor::from_slice(&[4i64, 31]);
        let parts = decompose(&model, &cache, 5)?;
        assert!(direct_logits(&model, &parts, &wrong, None).is_err());
    }
    Ok(())
}
