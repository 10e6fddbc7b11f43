//! Weights and pictures that a formula gives, as the golden scripts of large networks have them, and what is kept of gradients.

use densely_core::Preset;
use densely_core::registry::find;
use densely_core::weights;
use densely_vision::PRESETS;
use serde_json::Value;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

pub(crate) fn places(count: usize) -> Tensor {
    Tensor::arange(count as i64, (Kind::Double, Device::Cpu))
}

/// The formula's values of every parameter and running statistic.
pub(crate) fn draw(vs: &VarStore) {
    let _no_grad = tch::no_grad_guard();
    let named = weights::named(vs).into_iter();
    for (k, (name, mut xs)) in named.filter(|(_, xs)| xs.is_floating_point()).enumerate() {
        let i = places(xs.numel());
        // Not libtorch's root: on some processors it is a unit in the last place off, which the sine of large numbers magnifies to 1e-8.
        let roots: Vec<f64> = (0..xs.numel()).map(|i| (i as f64).sqrt()).collect();
        let d: Tensor = (&i * 0.37 * Tensor::from_slice(&roots) + k as f64).sin();
        let weight = name.ends_with("weight");
        let drawn = if weight && xs.dim() > 1 {
            let fan_in = xs.numel() as f64 / xs.size()[0] as f64;
            d / fan_in.sqrt()
        } else if weight || name.ends_with("running_var") {
            d * 0.3 + 1.0
        } else {
            d * 0.1
        };
        xs.copy_(&drawn.view_as(&xs));
    }
}

/// Σ g · sin(0.3 i + 1) and Σ |g|.
pub(crate) fn two_numbers(grad: &Tensor) -> Tensor {
    let wave = (places(grad.numel()) * 0.3 + 1.0)
        .sin()
        .to_kind(grad.kind());
    let flat = grad.flatten(0, -1);
    Tensor::stack(
        &[(&flat * wave).sum(grad.kind()), flat.abs().sum(grad.kind())],
        0,
    )
}

pub(crate) fn largest(xs: &Tensor) -> f64 {
    xs.abs().max().double_value(&[])
}

/// Compares parameters and multiply-accumulates of `count` presets with those that the reference's golden has, and shows each with its line to `also`.
pub(crate) fn assert_counts(golden: &str, count: usize, also: &mut dyn FnMut(&Preset, &Value)) {
    let path = format!(
        "{}/tests/goldens/{golden}_counts.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = std::fs::read_to_string(path).expect("a golden");
    let file: Value = serde_json::from_str(&text).expect("JSON");
    let counts = file["counts"].as_object().expect("an object");
    assert_eq!(counts.len(), count);
    for (name, expected) in counts {
        let preset = find(PRESETS, name).expect("a preset");
        assert_eq!(preset.params, expected["params"], "{name}");
        assert_eq!(preset.macs, expected["macs"], "{name}");
        also(preset, expected);
    }
}
