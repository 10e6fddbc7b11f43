//! State dicts as the reference packages write them.

use std::path::{Path, PathBuf};

use densely_core::weights::{self, Strictness};
use densely_core::{Error, Model, Result, Tensors, seeded};
use densely_testkit::{Golden, assert_near};
use densely_vision::PoolFormerConfig;
use densely_vision::poolformer::PoolFormer;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn file(package: &str) -> PathBuf {
    Path::new(HERE).join(format!("tests/fixtures/poolformer_{package}.safetensors"))
}

fn picture() -> Tensor {
    let places = Tensor::arange(2 * 3 * 61 * 75, (Kind::Double, Device::Cpu));
    (places * 0.7)
        .sin()
        .view([2, 3, 61, 75])
        .to_kind(Kind::Float)
}

fn built(config: &PoolFormerConfig) -> Result<(VarStore, PoolFormer)> {
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || config.build(&vs.root()))?;
    Ok((vs, model))
}

#[test]
fn what_transformers_and_timm_save_gives_their_logits() -> Result<()> {
    for package in ["transformers", "timm"] {
        let golden = Golden::open(HERE, &format!("state_dict_{package}"));
        let (vs, model) = built(&golden.config())?;
        let report = weights::load_aliased(&vs, &file(package), &model.aliases(), Strictness::All)?;
        assert_eq!(report.loaded.len(), weights::named(&vs).len());
        let logits = model.logits(&picture(), false)?;
        assert_near(&logits, &golden.tensor("logits"), 1e-5);
    }
    Ok(())
}

#[test]
fn the_maps_of_a_classifier_are_those_of_timm() -> Result<()> {
    let golden = Golden::open(HERE, "state_dict_timm");
    let config = PoolFormerConfig {
        features: true,
        feature_norms: false,
        ..golden.config()
    };
    let (_, whole) = built(&golden.config())?;
    let (vs, model) = built(&config)?;
    let tensors = weights::read(&file("timm"))?.tensors;
    let tensors = weights::without_aliases(&file("timm"), tensors, &whole.aliases())?;
    let head = Strictness::Except(&["head.", "norm."]);
    weights::load_tensors(&vs, &file("timm"), &tensors, head)?;
    for (stage, map) in model.features(&picture(), false)?.iter().enumerate() {
        assert_near(map, &golden.tensor(&format!("stage{stage}")), 1e-5);
    }
    Ok(())
}

#[test]
fn missing_extra_and_misshapen_keys_are_named() -> Result<()> {
    let golden = Golden::open(HERE, "state_dict_transformers");
    let (vs, model) = built(&golden.config())?;
    let before = weights::named(&vs)["head.weight"].copy();
    let mut tensors = weights::read(&file("transformers"))?.tensors;
    tensors.remove("poolformer.encoder.block.1.1.output.conv1.bias");
    tensors.insert("classifier.scale".to_owned(), Tensor::from(1f32));
    tensors.insert("norm.weight".to_owned(), Tensor::from_slice(&[1f32; 3]));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("wrong.safetensors");
    weights::save(&path, &tensors, &std::collections::BTreeMap::new())?;
    let error = weights::load_aliased(&vs, &path, &model.aliases(), Strictness::All);
    assert!(matches!(error, Err(Error::Weights { .. })));
    let message = error.expect_err("three wrong keys").to_string();
    for part in [
        "network.2.1.mlp.fc1.bias",
        "classifier.scale",
        "norm.weight",
        "[16]",
        "[3]",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(
        weights::named(&vs)["head.weight"] == before,
        "the model is as it was"
    );
    let nothing = weights::load_tensors(&vs, &path, &Tensors::new(), Strictness::All);
    assert!(nothing.is_err());
    Ok(())
}
