//! Caches of keys and values: passes that fail, and passes without layers.

use densely_core::{Error, Result};
use densely_lm::{KvCache, Lm, Run};
use densely_testkit::{assert_bits, assert_near};
use tch::Tensor;

use super::tiny::{self, message};

/// Two texts of six tokens, and three further tokens of each.
fn texts() -> (Tensor, Tensor) {
    let whole = tiny::ids(2, 9);
    (whole.narrow(1, 0, 6), whole.narrow(1, 6, 3))
}

/// A mask of two texts of which the second is padded on the left.
fn padded(time: i64, padding: i64) -> Tensor {
    let mask = Tensor::ones([2, time], tch::kind::INT64_CPU);
    let _ = mask.get(1).narrow(0, 0, padding).fill_(0);
    mask
}

/// A cache of the texts' start.
fn filled(model: &Lm, masked: bool) -> Result<KvCache> {
    let mut kv = KvCache::new(2);
    let mut run = Run::new().kv(&mut kv);
    if masked {
        run = run.mask(&padded(6, 2));
    }
    let _ = model.run(&texts().0, &mut run)?;
    drop(run);
    Ok(kv)
}

/// What `more` gives behind the texts' start, and a cache of the start alone with copies of what it holds.
fn begun(model: &Lm, more: &Tensor, masked: bool) -> Result<(Tensor, KvCache, Vec<Tensor>)> {
    let expected = model.run(more, &mut Run::new().kv(&mut filled(model, masked)?))?;
    let kv = filled(model, masked)?;
    let before = held(&kv);
    Ok((expected, kv, before))
}

/// Copies of the keys and values of all layers that have some.
fn held(kv: &KvCache) -> Vec<Tensor> {
    let layers = (0..2).filter_map(|layer| kv.layer(layer));
    layers
        .flat_map(|(keys, values)| [keys.copy(), values.copy()])
        .collect()
}

fn assert_held(kv: &KvCache, before: &[Tensor]) {
    let now = held(kv);
    assert_eq!(now.len(), before.len());
    for (now, before) in now.iter().zip(before) {
        assert_bits(now, before);
    }
}

/// Where a pass is made to fail: within the first layer, within the last, between keys and output of it, and behind all layers.
const FAILING: [&str; 4] = [
    "blocks.0.hook_mlp_out",
    "blocks.1.attn.hook_v",
    "blocks.1.attn.hook_z",
    "ln_final.hook_normalized",
];

#[test]
fn a_pass_that_fails_leaves_the_cache_as_it_was() -> Result<()> {
    let (_, more) = texts();
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        for masked in [false, true] {
            let (expected, mut kv, before) = begun(&model, &more, masked)?;
            for point in FAILING {
                for gradients in [false, true] {
                    let mut run = Run::new().kv(&mut kv).mask(&padded(3, 1));
                    if gradients {
                        run = run.with_gradients();
                    }
                    let mut run = run.hook(point, |_| Err(Error::config("hook", "fails here")));
                    let said = message(model.run(&more, &mut run));
                    drop(run);
                    assert!(said.contains("fails here"), "{name} {point}: {said}");
                    assert_eq!(kv.len(), 6, "{name} {point}");
                    assert_held(&kv, &before);
                    let (keys, values) = kv.layer(0).expect("keys and values");
                    assert!(!keys.requires_grad() && !values.requires_grad());
                }
            }
            // Neither keys nor what is known of padding went astray.
            let found = model.run(&more, &mut Run::new().kv(&mut kv))?;
            assert_near(&found, &expected, 1e-6);
            assert_eq!(kv.len(), 9);
        }
    }
    Ok(())
}

#[test]
fn a_first_pass_that_fails_leaves_an_empty_cache() -> Result<()> {
    let (start, _) = texts();
    let (model, _vs) = tiny::model("llama")?;
    let expected = model.run(&start, &mut Run::new())?;
    let mut kv = KvCache::new(2);
    for point in FAILING {
        let mut run = Run::new()
            .kv(&mut kv)
            .mask(&padded(6, 2))
            .hook(point, |_| Err(Error::config("hook", "fails here")));
        assert!(model.run(&start, &mut run).is_err());
        drop(run);
        assert!(kv.is_empty() && held(&kv).is_empty(), "{point}");
    }
    let found = model.run(&start, &mut Run::new().kv(&mut kv))?;
    assert_near(&found, &expected, 1e-6);
    Ok(())
}

#[test]
fn other_texts_leave_the_cache_as_it_was() -> Result<()> {
    let (model, _vs) = tiny::model("gpt2")?;
    for masked in [false, true] {
        let mut kv = filled(&model, masked)?;
        let before = held(&kv);
        let said = message(model.run(&tiny::ids(3, 2), &mut Run::new().kv(&mut kv)));
        assert!(said.contains("the cache's"), "{said}");
        assert_held(&kv, &before);
    }
    Ok(())
}

#[test]
fn passes_without_layers_leave_the_cache_and_stand_behind_it() -> Result<()> {
    let (start, more) = texts();
    let whole = Tensor::cat(&[&start, &more], 1);
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        for masked in [false, true] {
            let (expected, mut kv, before) = begun(&model, &more, masked)?;

            // What enters the first layer has the positions after those of the cache.
            let entering = model.run(&more, &mut Run::new().kv(&mut kv).stop_at(0))?;
            let mut run = Run::new().stop_at(0);
            if masked {
                run = run.mask(&padded(9, 2));
            }
            let all = model.run(&whole, &mut run)?;
            assert_near(&entering, &all.narrow(1, 6, 3), 1e-6);

            let leaving = model.run(&more, &mut Run::new().stop_at(2))?;
            let _ = model.run_from(2, &leaving, &mut Run::new().kv(&mut kv))?;
            assert_held(&kv, &before);
            let found = model.run(&more, &mut Run::new().kv(&mut kv))?;
            assert_near(&found, &expected, 1e-6);
        }
    }
    Ok(())
}
