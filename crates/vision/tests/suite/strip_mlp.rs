//! Strip-MLP against the authors' code, with weights that a formula gives; see `python/goldens/vision_strip_mlp.py`.

use densely_core::weights;
use densely_core::{Model, Result, Tensors, nn, seeded};
use densely_testkit::{Golden, assert_close, goldens};
use densely_vision::StripMlpConfig;
use tch::nn::VarStore;
use tch::{Device, Kind};

use crate::drawn::{assert_counts, draw, places, two_numbers};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn strip_mlp_equals_the_authors_code() -> Result<()> {
    for name in goldens(HERE, "strip_mlp_", 5) {
        let golden = Golden::open(HERE, &name);
        let (kind, tolerance) = match golden.meta("dtype") {
            "float64" => (Kind::Double, 1e-9),
            _ => (Kind::Float, 1e-5),
        };
        let train = golden.meta("train") == "true";
        let config: StripMlpConfig = golden.config();
        let vs = VarStore::new(Device::Cpu);
        let model = seeded(0, || config.build(&vs.root()))?;
        nn::check_names(&vs)?;
        nn::set_float_kind(&vs, kind);
        draw(&vs);
        let size: Vec<i64> = serde_json::from_str(golden.meta("size")).expect("a list");
        let count: i64 = size.iter().product();
        let image = (places(count as usize) * 0.7)
            .sin()
            .view(size.as_slice())
            .to_kind(kind);
        let image = image.set_requires_grad(true);
        let inputs = Tensors::from([("image".to_owned(), image.shallow_clone())]);
        let logits = &model.forward_named(&inputs, train)?["logits"];
        let expected = golden.tensor("output.logits");
        let largest = expected.abs().max().double_value(&[]);
        assert_close(logits, &expected, tolerance, tolerance * largest);
        let wave = (places(logits.numel()) + 1.0)
            .sin()
            .view_as(logits)
            .to_kind(kind);
        let loss = (logits * wave).sum(kind);
        assert_close(
            &loss,
            &golden.tensor("loss"),
            tolerance,
            tolerance * largest,
        );
        loss.backward();
        let named = weights::named(&vs);
        let grads = golden.group("grad.");
        assert_eq!(grads.len(), vs.trainable_variables().len() + 1, "{name}");
        for (parameter, expected) in &grads {
            let grad = if parameter == "image" {
                image.grad()
            } else {
                named[parameter].grad()
            };
            // Both sums round like the larger one, that of the sizes.
            let total = expected.double_value(&[1]);
            assert_close(
                &two_numbers(&grad),
                expected,
                tolerance,
                tolerance * total.max(1e-3),
            );
        }
        for (buffer, expected) in golden.group("after.") {
            assert_close(&named[&buffer], &expected, tolerance, tolerance);
        }
    }
    Ok(())
}

#[test]
fn counts_are_those_of_the_authors_code() {
    assert_counts("strip_mlp", 4, &mut |preset, expected| {
        let vs = VarStore::new(Device::Cpu);
        seeded(0, || (preset.build)(&(preset.config)(), &vs.root())).expect("a preset builds");
        let buffers = weights::named(&vs)
            .into_values()
            .filter(|xs| !xs.requires_grad());
        let values: usize = buffers.map(|xs| xs.numel()).sum();
        assert_eq!(values as u64, expected["buffers"], "{}", preset.name);
    });
}
