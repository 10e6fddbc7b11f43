//! Every model against its reference package: outputs, loss, gradients, running statistics.

use densely_core::registry::find;
use densely_core::weights::{self, Strictness};
use densely_core::{Model, Result, Tensors, nn, seeded};
use densely_recsys::models::PRESETS;
use densely_recsys::{Field, FinalMlpConfig};
use densely_testkit::{Golden, assert_close, goldens};
use serde_json::Value;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

pub(crate) const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// The golden's model with its weights.
fn load(golden: &Golden) -> Result<(VarStore, Box<dyn Model>)> {
    let preset = find(PRESETS, golden.meta("model"))?;
    let config = preset.config_with(&golden.config::<Value>())?;
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || (preset.build)(&config, &vs.root()))?;
    nn::check_names(&vs)?;
    let theirs =
        weights::without_aliases(golden.path(), golden.group("weight."), &model.aliases())?;
    weights::load_tensors(&vs, golden.path(), &theirs, Strictness::All)?;
    Ok((vs, model))
}

/// Gradients of the weights and what the step left behind.
fn assert_rest(golden: &Golden, vs: &VarStore, model: &dyn Model) -> Result<()> {
    let ours = weights::named(vs);
    let theirs = weights::without_aliases(golden.path(), golden.group("grad."), &model.aliases())?;
    assert_eq!(
        theirs.len(),
        vs.trainable_variables().len(),
        "{}",
        golden.path().display()
    );
    for (name, expected) in &theirs {
        let grad = ours[name].grad();
        let grad = if grad.defined() {
            grad
        } else {
            ours[name].zeros_like()
        };
        assert_close(&grad, expected, 1e-4, 1e-6);
    }
    for (name, expected) in golden.group("after.") {
        assert_close(&ours[&name], &expected, 1e-5, 1e-6);
    }
    Ok(())
}

/// Mean binary cross-entropy, computed from the logits.
pub(crate) fn cross_entropy(logits: &Tensor, label: &Tensor) -> Tensor {
    logits.binary_cross_entropy_with_logits::<Tensor>(label, None, None, tch::Reduction::Mean)
}

fn assert_model(name: &str) -> Result<()> {
    let golden = Golden::open(HERE, name);
    let (vs, model) = load(&golden)?;
    let inputs: Tensors = golden.group("input.");
    let outputs = model.forward_named(&inputs, name.ends_with("_train"))?;
    for key in ["logit", "probability"] {
        assert_close(
            &outputs[key],
            &golden.tensor(&format!("output.{key}")),
            1e-5,
            1e-5,
        );
    }
    let loss = cross_entropy(&outputs["logit"], &golden.tensor("label"));
    assert_close(&loss, &golden.tensor("loss"), 1e-5, 1e-6);
    loss.backward();
    assert_rest(&golden, &vs, &*model)
}

#[test]
fn finalmlp_equals_fuxictr() -> Result<()> {
    goldens(HERE, "finalmlp_", 9)
        .iter()
        .try_for_each(|name| assert_model(name))
}

/// `FuxiCTR`, `DeepCTR-Torch`, and the authors' equations.
#[test]
fn din_equals_its_three_references() -> Result<()> {
    goldens(HERE, "din_", 25)
        .iter()
        .try_for_each(|name| assert_model(name))
}

#[test]
fn attention_and_dice_equal_their_references() -> Result<()> {
    for name in [goldens(HERE, "attention_", 4), goldens(HERE, "dice_", 4)].concat() {
        let golden = Golden::open(HERE, &name);
        let (vs, model) = load(&golden)?;
        let mut inputs: Tensors = golden.group("input.");
        for xs in inputs.values_mut().filter(|xs| xs.is_floating_point()) {
            *xs = xs.set_requires_grad(true);
        }
        let outputs = model.forward_named(&inputs, name.ends_with("_train"))?;
        let mut loss = Tensor::zeros([], tch::kind::FLOAT_CPU);
        for (key, expected) in golden.group("output.") {
            assert_close(&outputs[&key], &expected, 1e-5, 1e-5);
            loss += (&outputs[&key] * golden.tensor("cotangent")).sum(Kind::Float);
        }
        assert_close(&loss, &golden.tensor("loss"), 1e-5, 1e-5);
        loss.backward();
        assert_rest(&golden, &vs, &*model)?;
        for (key, expected) in golden.group("grad_input.") {
            assert_close(&inputs[&key].grad(), &expected, 1e-4, 1e-5);
        }
    }
    Ok(())
}

/// At first weights a gate without context moves by its last bias alone, and by nothing else, exactly.
#[test]
fn dead_gates_are_exactly_dead() -> Result<()> {
    let golden = Golden::open(HERE, "finalmlp_dead_train");
    let (vs, model) = load(&golden)?;
    let logits = &model.forward_named(&golden.group("input."), true)?["logit"];
    cross_entropy(logits, &golden.tensor("label")).backward();
    for (name, parameter) in weights::named(&vs)
        .iter()
        .filter(|(name, _)| name.starts_with("fs_module."))
    {
        let largest = parameter.grad().abs().max().double_value(&[]);
        let is_last_bias = name.ends_with("gate.mlp.2.bias");
        assert_eq!(largest > 0.0, is_last_bias, "{name}: {largest}");
    }
    Ok(())
}

#[test]
fn a_live_gate_learns() -> Result<()> {
    let config = FinalMlpConfig {
        fields: ["a", "b"].map(|name| Field::categorical(name, 50)).to_vec(),
        fs1_context: vec![],
        fs2_context: vec![],
        live_gate: true,
        ..FinalMlpConfig::default()
    };
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || config.build(&vs.root()))?;
    let ids = || Tensor::arange(50, tch::kind::INT64_CPU);
    let inputs = Tensors::from([("a".to_owned(), ids()), ("b".to_owned(), ids())]);
    let label = Tensor::arange(50, tch::kind::FLOAT_CPU).remainder(2.0);
    cross_entropy(&model.forward(&inputs, false)?, &label).backward();
    for (name, parameter) in weights::named(&vs) {
        if name.starts_with("fs_module.") {
            let largest = parameter.grad().abs().max().double_value(&[]);
            assert!(largest > 0.0, "{name}");
        }
    }
    Ok(())
}

#[test]
fn a_shared_table_loads_by_either_name_and_is_refused_when_the_two_differ() -> Result<()> {
    let golden = Golden::open(HERE, "din_softmax");
    let (vs, model) = load(&golden)?;
    let (alias, name) = (
        "embedding_layer.embedding_layers.seen_items.weight",
        "embedding_layer.embedding_layers.item.weight",
    );
    assert!(weights::named(&vs).contains_key(name) && !weights::named(&vs).contains_key(alias));
    let theirs = golden.group("weight.");
    let mut by_alias = theirs.clone_tensors();
    by_alias.remove(name);
    let merged = weights::without_aliases(golden.path(), by_alias, &model.aliases())?;
    assert_eq!(merged[name], theirs[name]);
    let mut differing = theirs.clone_tensors();
    differing.insert(alias.to_owned(), &theirs[name] + 1.0);
    let message = weights::without_aliases(golden.path(), differing, &model.aliases())
        .expect_err("two tables")
        .to_string();
    assert!(
        message.contains(&format!(
            "`{alias}` and `{name}` name one parameter but differ"
        )),
        "{message}"
    );
    Ok(())
}

trait CloneTensors {
    fn clone_tensors(&self) -> Tensors;
}

impl CloneTensors for Tensors {
    fn clone_tensors(&self) -> Tensors {
        self.iter()
            .map(|(name, xs)| (name.clone(), xs.shallow_clone()))
            .collect()
    }
}
