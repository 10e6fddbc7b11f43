//! Dictionaries against the packages whose conventions they follow, and their folders.

mod formats;
mod refusals;

use densely_core::registry::{find, parse_config};
use densely_core::weights::{self, Strictness};
use densely_core::{Result, Tensors, nn, seeded};
use densely_interp::PRESETS;
use densely_interp::dictionary::{Dictionary, DictionaryConfig};
use densely_testkit::{Golden, assert_bits, assert_near, goldens};
use densely_torch_ext::fused::PlainPaths;
use serde_json::Value;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// A config of one case: fields that it leaves out are those of `transcoder`.
fn config(golden: &Golden) -> Result<DictionaryConfig> {
    let preset = find(PRESETS, "transcoder")?;
    parse_config(&preset.config_with(&golden.config::<Value>())?)
}

fn load(golden: &Golden, kind: Kind) -> Result<(Dictionary, VarStore)> {
    let vs = VarStore::new(Device::Cpu);
    let dictionary = seeded(0, || config(golden)?.build(&vs.root()))?;
    nn::set_float_kind(&vs, kind);
    weights::load_tensors(
        &vs,
        golden.path(),
        &golden.group("weight."),
        Strictness::Except(&["topk_threshold"]),
    )?;
    Ok((dictionary, vs))
}

/// Outputs, the parts of the loss and all gradients of one case are the package's.
fn check(name: &str, kind: Kind, near: f64) -> Result<()> {
    let golden = Golden::open(HERE, name);
    let (dictionary, vs) = load(&golden, kind)?;
    let input = |name: &str| golden.tensor(&format!("input.{name}")).to_kind(kind);
    let x = input("x").set_requires_grad(true);
    let dead = golden.has("input.dead").then(|| input("dead").gt(0.0));
    let (coded, losses) = dictionary.losses(&x, &input("target"), dead.as_ref(), 1.0)?;
    let expected = |name: &str| golden.tensor(&format!("output.{name}")).to_kind(kind);
    let compare = |what: &str, ours: &Tensor, theirs: &Tensor| {
        // The package holds thresholds, and so their gradients, in f32 whatever the rest is.
        let near = if what == "threshold" {
            near.max(1e-7)
        } else {
            near
        };
        let distance = (ours - theirs).abs().max().double_value(&[]);
        let largest = theirs.abs().max().double_value(&[]).max(1.0);
        assert!(
            distance <= near * largest,
            "{name}, {kind:?}: {what} is {distance} away from {largest}"
        );
    };
    compare(
        "features",
        &dictionary.shown(&coded.features)?,
        &expected("features"),
    );
    compare(
        "reconstruction",
        &coded.reconstruction,
        &expected("reconstruction"),
    );
    compare("loss", &losses.total, &expected("loss"));
    compare("loss_mse", &losses.error, &expected("loss_mse"));
    compare(
        "loss_sparsity",
        &losses.sparsity,
        &expected("loss_sparsity"),
    );
    losses.total.backward();
    let grads = golden.group("grad.");
    assert!(grads.len() > 4, "{name} has gradients of {}", grads.len());
    let ours = weights::named(&vs);
    for (parameter, expected) in grads {
        let found = if parameter == "input.x" {
            x.grad()
        } else {
            ours[&parameter].grad()
        };
        compare(&parameter, &found, &expected.to_kind(kind));
    }
    Ok(())
}

fn cases() -> Vec<String> {
    let all = goldens(HERE, "dictionary_", 18);
    all.into_iter()
        .filter(|name| !name.starts_with("dictionary_init"))
        .collect()
}

#[test]
fn losses_and_gradients_equal_the_packages() -> Result<()> {
    for name in cases() {
        check(&name, Kind::Double, 1e-10)?;
    }
    Ok(())
}

#[test]
fn sparse_paths_equal_the_packages() -> Result<()> {
    for name in cases() {
        check(&name, Kind::Float, 1e-5)?;
        let _plain = PlainPaths::new();
        check(&name, Kind::Float, 1e-5)?;
    }
    Ok(())
}

#[test]
fn first_weights_are_the_packages_to_the_bit() -> Result<()> {
    for name in goldens(HERE, "dictionary_init_", 5) {
        let golden = Golden::open(HERE, &name);
        let vs = VarStore::new(Device::Cpu);
        let dictionary = seeded(7, || config(&golden)?.build(&vs.root()))?;
        let (encoder, decoder) = dictionary.weights();
        assert_bits(&encoder.contiguous(), &golden.tensor("W_enc"));
        assert_bits(decoder, &golden.tensor("W_dec"));
    }
    Ok(())
}

/// A dictionary with weights of ordinary size and inputs for it.
fn drawn(config: DictionaryConfig) -> Result<(Dictionary, VarStore, Tensor, Tensor)> {
    let vs = VarStore::new(Device::Cpu);
    let (dictionary, x, target) = seeded(3, || -> Result<_> {
        let dictionary = config.build(&vs.root())?;
        let _no_grad = tch::no_grad_guard();
        for (name, mut xs) in weights::named(&vs) {
            if name == "b_enc" {
                let _ = xs.uniform_(-0.6, -0.3);
            } else if name != "threshold" && name != "topk_threshold" {
                let _ = xs.uniform_(-0.2, 0.2);
            }
        }
        let options = (Kind::Float, Device::Cpu);
        let x = Tensor::f_randn([700, config.d_in], options)?;
        Ok((
            dictionary,
            x,
            Tensor::f_randn([700, config.d_out], options)?,
        ))
    })?;
    Ok((dictionary, vs, x, target))
}

/// Configs of which few enough of 900 features are active for the sparse way.
fn few() -> Result<Vec<DictionaryConfig>> {
    let of = |change: Value| -> Result<DictionaryConfig> {
        let preset = find(PRESETS, "transcoder")?;
        let mut fields =
            serde_json::json!({ "d_in": 20, "d_out": 37, "d_sae": 900, "input_bias": "none" });
        if let (Some(fields), Value::Object(change)) = (fields.as_object_mut(), change) {
            fields.extend(change);
        }
        parse_config(&preset.config_with(&fields)?)
    };
    Ok(vec![
        of(serde_json::json!({ "activation": { "kind": "top-k", "k": 7 } }))?,
        of(
            serde_json::json!({ "activation": { "kind": "top-k", "k": 7, "rescale": true }, "input_bias": "own" }),
        )?,
        of(
            serde_json::json!({ "activation": { "kind": "batch-top-k", "k": 3.7, "rescale": true }, "skip": true }),
        )?,
        of(serde_json::json!({
            "activation": { "kind": "jump-relu", "threshold": 1.1, "bandwidth": 0.1, "ste_to_input": true },
            "objective": { "error": "squared", "sparsity": { "kind": "l0", "coefficient": 0.1 }, "dead": { "kind": "nothing" } },
        }))?,
        of(serde_json::json!({
            "activation": { "kind": "jump-relu", "threshold": 1.1, "bandwidth": 0.1 },
            "objective": { "error": "fvu", "sparsity": { "kind": "l1", "coefficient": 0.1, "by_norm": true }, "dead": { "kind": "nothing" } },
        }))?,
    ])
}

#[test]
fn active_features_alone_give_what_all_of_them_give() -> Result<()> {
    for config in few()? {
        let (dictionary, vs, x, target) = drawn(config)?;
        let run = |sparse: bool| -> Result<Tensors> {
            for (_, xs) in weights::named(&vs) {
                if xs.requires_grad() {
                    let mut xs = xs;
                    xs.zero_grad();
                }
            }
            let x = x.copy().set_requires_grad(true);
            let (coded, losses) = dictionary.losses(&x, &target, None, 1.0)?;
            assert_eq!(coded.features.is_sparse(), sparse, "{config:?}");
            losses.total.backward();
            let mut all: Tensors = weights::named(&vs)
                .into_iter()
                .filter(|(_, xs)| xs.requires_grad())
                .map(|(name, xs)| (format!("grad.{name}"), xs.grad().copy()))
                .collect();
            all.insert("grad.x".to_owned(), x.grad());
            all.insert("features".to_owned(), coded.features.dense()?.detach());
            all.insert("ys".to_owned(), coded.reconstruction.detach());
            all.insert("counts".to_owned(), coded.features.counts()?);
            let [rows, columns, values] = coded.features.places()?;
            assert_eq!(values.numel() as i64, coded.features.active()?);
            all.insert("rows".to_owned(), rows);
            all.insert("columns".to_owned(), columns);
            all.insert("values".to_owned(), values);
            all.insert("loss".to_owned(), losses.total.detach());
            Ok(all)
        };
        let sparse = run(true)?;
        let plain = {
            let _plain = PlainPaths::new();
            run(false)?
        };
        for (name, expected) in &plain {
            assert_eq!(sparse[name].size(), expected.size(), "{config:?}: {name}");
            let largest = expected.abs().max().double_value(&[]).max(1e-6);
            let distance = (&sparse[name] - expected).abs().max().double_value(&[]);
            assert!(
                distance <= 2e-5 * largest,
                "{config:?}: {name} is {distance} away from {largest}"
            );
        }
    }
    Ok(())
}

#[test]
fn equal_features_are_chosen_from_the_first() -> Result<()> {
    for (kind, k) in [("top-k", 3.0), ("batch-top-k", 3.0)] {
        let fields = serde_json::json!({
            "d_in": 2, "d_out": 2, "d_sae": 600, "input_bias": "none", "activation": { "kind": kind, "k": if kind == "top-k" { Value::from(3) } else { Value::from(k) } },
        });
        let preset = find(PRESETS, "transcoder")?;
        let config: DictionaryConfig = parse_config(&preset.config_with(&fields)?)?;
        let vs = VarStore::new(Device::Cpu);
        let dictionary = seeded(0, || config.build(&vs.root()))?;
        tch::no_grad(|| {
            for (name, mut xs) in weights::named(&vs) {
                if xs.requires_grad() {
                    let _ = xs.fill_(if name == "b_enc" { 0.5 } else { 0.0 });
                }
            }
        });
        let x = Tensor::zeros([1, 2], (Kind::Float, Device::Cpu));
        let run = || -> Result<Vec<i64>> {
            let [_, columns, _] = dictionary.encode(&x)?.places()?;
            Ok(Vec::<i64>::try_from(&columns)?)
        };
        assert_eq!(run()?, [0, 1, 2], "{kind}");
        let _plain = PlainPaths::new();
        assert_eq!(run()?, [0, 1, 2], "{kind}");
    }
    Ok(())
}

#[test]
fn rows_keep_their_norm_and_lose_what_would_change_it() -> Result<()> {
    let (mut dictionary, _vs, x, target) = drawn(few()?.remove(0))?;
    dictionary.unit_rows()?;
    let norms = |xs: &Tensor| xs.norm_scalaropt_dim(2.0, [-1], false);
    let one = Tensor::ones([900], (Kind::Float, Device::Cpu));
    assert_near(&norms(dictionary.weights().1), &one, 1e-6);
    assert!(dictionary.remove_parallel_gradient().is_err());
    let (_, losses) = dictionary.losses(&x, &target, None, 1.0)?;
    losses.total.backward();
    let (_, decoder) = dictionary.weights();
    let along =
        || (decoder.grad() * decoder).sum_dim_intlist([-1i64].as_slice(), false, None::<Kind>);
    let before = along().abs().max().double_value(&[]);
    dictionary.remove_parallel_gradient()?;
    let after = along().abs().max().double_value(&[]);
    assert!(before > 1e-4 && after < before * 1e-4, "{before} {after}");
    Ok(())
}
