//! Every model against its reference package, and its three dialects of names.

use densely_core::weights::{self, Strictness};
use densely_core::{Model, Result, Tensors, nn, seeded};
use densely_testkit::{Golden, assert_bits, assert_close, assert_near, goldens};
use densely_vision::PoolFormerConfig;
use densely_vision::poolformer::PoolFormer;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::drawn::{assert_counts, largest};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// sin(0.7 i), as the script draws its pictures.
fn picture(size: &[i64], kind: Kind) -> Tensor {
    let count: i64 = size.iter().product();
    let places = Tensor::arange(count, (Kind::Double, Device::Cpu));
    (places * 0.7).sin().view(size).to_kind(kind)
}

fn load(golden: &Golden, kind: Kind) -> Result<(VarStore, PoolFormer)> {
    let config: PoolFormerConfig = golden.config();
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || config.build(&vs.root()))?;
    nn::check_names(&vs)?;
    nn::set_float_kind(&vs, kind);
    let theirs =
        weights::without_aliases(golden.path(), golden.group("weight."), &model.aliases())?;
    weights::load_tensors(&vs, golden.path(), &theirs, Strictness::All)?;
    Ok((vs, model))
}

#[test]
fn poolformer_equals_transformers_and_timm() -> Result<()> {
    for name in goldens(HERE, "poolformer_", 8) {
        let golden = Golden::open(HERE, &name);
        let (kind, tolerance) = match golden.meta("dtype") {
            "float64" => (Kind::Double, 1e-9),
            _ => (Kind::Float, 1e-5),
        };
        let (vs, model) = load(&golden, kind)?;
        let size: Vec<i64> = serde_json::from_str(golden.meta("size")).expect("a list");
        let image = picture(&size, kind).set_requires_grad(true);
        let inputs = Tensors::from([("image".to_owned(), image.shallow_clone())]);
        let outputs = model.forward_named(&inputs, false)?;
        let cotangents = golden.group("cotangent.");
        assert_eq!(outputs.len(), cotangents.len(), "{name}");
        let mut loss = Tensor::zeros([], (kind, Device::Cpu));
        for (output, xs) in &outputs {
            assert_near(xs, &golden.tensor(&format!("output.{output}")), tolerance);
            loss += (xs * &cotangents[output]).sum(kind);
        }
        loss.backward();
        let rows = image.grad().sum_dim_intlist([-1].as_slice(), false, None);
        let columns = image.grad().sum_dim_intlist([-2].as_slice(), false, None);
        assert_near(&rows, &golden.tensor("grad_rows"), tolerance);
        assert_near(&columns, &golden.tensor("grad_columns"), tolerance);
        let ours = weights::named(&vs);
        let theirs =
            weights::without_aliases(golden.path(), golden.group("grad."), &model.aliases())?;
        assert_eq!(theirs.len(), ours.len(), "{name}");
        for (parameter, expected) in &theirs {
            let mut scale = largest(expected);
            // A shift before the mixing has no gradient, for the average takes it away again: what is there is the rounding of terms as
            // large as those of the scale beside it.
            if let Some(norm) = parameter.strip_suffix(".bias")
                && norm.ends_with("norm1")
            {
                scale = scale.max(largest(&theirs[&format!("{norm}.weight")]));
            }
            assert_close(
                &ours[parameter].grad(),
                expected,
                tolerance,
                tolerance * scale,
            );
        }
    }
    Ok(())
}

#[test]
fn counts_are_those_of_timm() {
    assert_counts("poolformer", 10, &mut |_, _| ());
}

/// One state dict by three dialects of names gives the same bits, and a key too many, too few or of another shape is named.
#[test]
fn dialects_load_to_the_same_bits_and_wrong_keys_are_named() -> Result<()> {
    let golden = Golden::open(HERE, "poolformer_odd");
    let (vs, model) = load(&golden, Kind::Double)?;
    let own = weights::named(&vs);
    let aliases = model.aliases();
    let image = picture(&[1, 3, 61, 203], Kind::Double);
    let expected = model.logits(&image, false)?;
    let by = |timm: bool| -> Tensors {
        let of = |name: &String| {
            let mut theirs = aliases.iter().filter(|(_, ours)| ours == name);
            let found = theirs.find(|(alias, _)| {
                timm != (alias.starts_with("poolformer.") || alias.starts_with("classifier"))
            });
            found.map_or_else(|| name.clone(), |(alias, _)| alias.clone())
        };
        own.iter()
            .map(|(name, xs)| (of(name), xs.detach()))
            .collect()
    };
    let load_from = |tensors: Tensors| -> Result<Tensor> {
        let vs = VarStore::new(Device::Cpu);
        let other = seeded(1, || model.config().build(&vs.root()))?;
        nn::set_float_kind(&vs, Kind::Double);
        let tensors = weights::without_aliases(golden.path(), tensors, &other.aliases())?;
        weights::load_tensors(&vs, golden.path(), &tensors, Strictness::All)?;
        other.logits(&image, false)
    };
    let (timm, transformers) = (by(true), by(false));
    for (tensors, key) in [
        (&timm, "stages.1.blocks.1.layer_scale2.scale"),
        (&timm, "head.norm.weight"),
        (
            &transformers,
            "poolformer.encoder.block.1.1.output.conv2.bias",
        ),
        (&transformers, "classifier.weight"),
        (&own, "network.3.proj.weight"),
    ] {
        assert!(tensors.contains_key(key), "{key} of {:?}", tensors.keys());
        assert_bits(
            &load_from(
                tensors
                    .iter()
                    .map(|(name, xs)| (name.clone(), xs.detach()))
                    .collect(),
            )?,
            &expected,
        );
    }
    let wrong = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = by(true);
        change(&mut tensors);
        load_from(tensors)
            .expect_err("a key that does not fit")
            .to_string()
    };
    let missing = wrong(&|xs| {
        xs.remove("stages.2.downsample.conv.bias");
    });
    assert!(missing.contains("network.3.proj.bias"), "{missing}");
    let extra = wrong(&|xs| {
        xs.insert("stages.4.extra".to_owned(), Tensor::from(1.0));
    });
    assert!(extra.contains("stages.4.extra"), "{extra}");
    let misshapen = wrong(&|xs| {
        xs.insert(
            "head.fc.bias".to_owned(),
            Tensor::zeros([9], (Kind::Double, Device::Cpu)),
        );
    });
    assert!(misshapen.contains("head.bias"), "{misshapen}");
    Ok(())
}

/// The published model's shape rules hold at every small side, and below 3 there is a sentence.
#[test]
fn any_size_from_three_works() -> Result<()> {
    let golden = Golden::open(HERE, "poolformer_narrow");
    let config = PoolFormerConfig {
        features: true,
        ..golden.config()
    };
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || config.build(&vs.root()))?;
    for side in 3..70 {
        let image = Tensor::zeros([1, 3, side, 40], tch::kind::FLOAT_CPU);
        let maps = model.features(&image, false)?;
        let heights: Vec<i64> = maps.iter().map(|map| map.size()[2]).collect();
        assert_eq!(heights, config.sides(side), "{side}");
    }
    let small = Tensor::zeros([1, 3, 2, 40], tch::kind::FLOAT_CPU);
    let message = model
        .features(&small, false)
        .expect_err("too small")
        .to_string();
    assert!(message.contains("at least 3 × 3"), "{message}");
    let message = model.logits(&Tensor::zeros([1, 3, 9, 9], tch::kind::FLOAT_CPU), false);
    assert!(
        message
            .expect_err("no head")
            .to_string()
            .contains("no head")
    );
    Ok(())
}
