//! Settings and arguments beyond what is of use are named and end nothing.

use densely_core::Result;
use densely_data::Image;
use densely_vision::degrade::{gaussian_blur, motion_blur, motion_window};
use densely_vision::transforms::{
    EvalTransform, RandAugment, RandomErasing, Rng, Sampling, TrainTransform, resize_shorter,
    to_image,
};
use serde_json::json;
use tch::{Kind, Tensor};

fn message<T>(result: Result<T>) -> String {
    result.map_or_else(|e| e.to_string(), |_| String::new())
}

#[test]
fn limits_of_transforms_are_named() -> Result<()> {
    for (settings, expected) in [
        (
            json!({"crop": {"kind": "padded", "padding": 65_536}}),
            "setting `padding`: must be at most 65535, got 65536",
        ),
        (
            json!({"crop": {"kind": "padded", "size": 65_536}}),
            "setting `size`: must be at most 65535, got 65536",
        ),
        (
            json!({"crop": {"kind": "resized", "size": 65_536}}),
            "setting `size`: must be at most 65535, got 65536",
        ),
        (
            json!({"erase": {"count": 1001}}),
            "setting `count`: must be at most 1000, got 1001",
        ),
    ] {
        let config: TrainTransform = serde_json::from_value(settings).expect("a config");
        assert_eq!(message(config.validate()), expected);
    }
    assert_eq!(
        message("rand-n101".parse::<RandAugment>()),
        "setting `rand_augment`: `n` must be at most 100, got 101"
    );
    let image = Image::new(9, 7, 1, vec![0; 63])?;
    let wide = EvalTransform {
        crop_pct: 1e-300,
        ..EvalTransform::default()
    };
    let wide = message(wide.apply(&image));
    assert!(wide.starts_with("setting `crop_pct`: makes"), "{wide}");
    let huge = message(resize_shorter(&image, usize::MAX / 2, Sampling::Bilinear));
    assert!(huge.contains("must be at most 65535"), "{huge}");
    Ok(())
}

#[test]
fn erasing_that_was_not_validated_is_drawn() {
    for count in [i64::MIN, -1, 0] {
        let erasing = RandomErasing {
            prob: 1.0,
            count,
            ..RandomErasing::default()
        };
        let windows = erasing.draw(40, 60, &mut Rng::for_step(0, 0));
        assert_eq!(windows.len(), 1, "{count}");
    }
}

#[test]
fn blurs_of_no_use_are_named() {
    let xs = Tensor::rand([1, 20, 20], (Kind::Float, tch::Device::Cpu));
    for wrong in [-0.1, 100.5, f64::NAN, f64::INFINITY] {
        let expected = format!("setting `sigma`: must lie in [0, 100], got {wrong}");
        assert_eq!(message(gaussian_blur(&xs, wrong)), expected);
    }
    for wrong in [-0.1, 1000.5, f64::NAN, f64::INFINITY] {
        let expected = format!("setting `length`: must lie in [0, 1000], got {wrong}");
        assert_eq!(message(motion_window(wrong, 0.0)), expected);
        assert_eq!(message(motion_blur(&xs, wrong, 0.0)), expected);
    }
    for wrong in [-361.0, f64::NAN] {
        let expected = format!("setting `angle`: must lie in [-360, 360], got {wrong}");
        assert_eq!(message(motion_window(3.0, wrong)), expected);
    }
}

#[test]
fn values_that_are_no_numbers_are_black() -> Result<()> {
    let xs = Tensor::from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.5]);
    assert_eq!(to_image(&xs.view([1, 2, 2]))?.pixels(), [0, 255, 0, 128]);
    Ok(())
}

#[cfg(feature = "image")]
#[test]
fn limits_of_restoration_are_named() {
    use densely_vision::restoration::RestoreSettings;
    use serde_json::Value;
    let found = |settings: Value| {
        let settings: RestoreSettings = serde_json::from_value(settings).expect("settings");
        message(settings.validate())
    };
    for eps in [0.0, -1e-3, 1e-23, 1e30] {
        let refused = found(json!({
            "data": {"train": {"clean": "clean"}},
            "train": {"loss": {"eps": eps}},
        }));
        assert!(
            refused.starts_with("setting `train.loss.eps`: must be positive"),
            "{eps}: {refused}"
        );
    }
    let normal = json!({"kind": "blur", "sigma": [1, 20]});
    let line = json!({"kind": "motion_blur", "length": [5, 101]});
    for (step, reach) in [(normal, 60), (line, 51)] {
        let of = |train: Value, size: i64| {
            found(json!({
                "data": {"train": train, "degrade": [{"kind": "noise"}, step]},
                "train": {"augment": {"size": size}},
            }))
        };
        let clean = || json!({"clean": "clean"});
        let refused = of(clean(), reach);
        let expected =
            format!("setting `train.augment.size`: must be more than the {reach} pixels");
        assert!(refused.starts_with(&expected), "{refused}");
        assert_eq!(of(clean(), reach + 1), "");
        assert_eq!(of(json!({"clean": "clean", "spoilt": "spoilt"}), 16), "");
    }
}
