//! Degradations: blur against torchvision, the rest by what it promises.
#![expect(clippy::float_cmp, reason = "exact numbers are what is tested")]

use densely_core::Result;
use densely_testkit::{Golden, assert_bits, assert_close};
use densely_vision::degrade::{
    Degradation, GaussianBlur, GaussianNoise, Jpeg, MotionBlur, Rain, degrade, gaussian_blur,
    motion_blur, motion_window,
};
use densely_vision::transforms::{PairTransform, Rng};
use serde_json::json;
use tch::{Device, Kind, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");
const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

fn rng(index: u64) -> Rng {
    Rng::for_picture(0, 0, index)
}

/// Smooth, from 0 to 1.
fn clean(height: i64, width: i64) -> Tensor {
    let places = Tensor::arange(3 * height * width, FLOAT);
    ((places * 0.01).sin() * 0.5 + 0.5).view([3, height, width])
}

#[test]
fn degrade_blurs_as_torchvision() -> Result<()> {
    let golden = Golden::open(HERE, "transforms_degrade");
    let input = golden.tensor("input");
    let sigmas: Vec<f64> = golden.config();
    assert_eq!(sigmas.len(), 3);
    for (i, sigma) in sigmas.into_iter().enumerate() {
        let blurred = gaussian_blur(&input, sigma)?;
        assert_close(&blurred, &golden.tensor(&format!("blur.{i}")), 0.0, 1e-6);
    }
    assert_bits(&gaussian_blur(&input, 0.0)?, &input);
    let error = gaussian_blur(&input, 10.0).expect_err("too wide");
    assert_eq!(
        error.to_string(),
        "`picture`: expected more than 30 × 30 pixels for a blur this wide, got 29 × 37 pixels"
    );
    Ok(())
}

#[test]
fn degrade_moves_along_the_line() -> Result<()> {
    let row = motion_window(6.0, 0.0)?;
    assert_eq!(row.size(), [7, 7]);
    let expected: Vec<f32> = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5]
        .map(|x| x / 6.0)
        .to_vec();
    assert_close(&row.get(3), &Tensor::from_slice(&expected), 0.0, 1e-4);
    assert_close(&row.sum(Kind::Float), &Tensor::ones([], FLOAT), 1e-6, 0.0);
    assert_close(&motion_window(6.0, 90.0)?, &row.transpose(0, 1), 0.0, 1e-6);
    // Counter-clockwise: up on the right.
    let slant = motion_window(6.0, 45.0)?;
    assert!(slant.double_value(&[1, 5]) > 0.05 && slant.double_value(&[5, 1]) > 0.05);
    assert_eq!(slant.double_value(&[1, 1]), 0.0);
    assert_close(&slant, &slant.flip([0, 1]), 0.0, 1e-6);
    let xs = clean(20, 24);
    assert_close(&motion_blur(&xs, 0.0, 30.0)?, &xs, 0.0, 1e-6);
    let even = Tensor::full([1, 20, 24], 0.3, FLOAT);
    assert_close(&motion_blur(&even, 9.3, 77.0)?, &even, 0.0, 1e-6);
    Ok(())
}

#[test]
fn degrade_adds_noise_of_the_given_strength() -> Result<()> {
    let grey = Tensor::full([3, 100, 100], 0.5, FLOAT);
    let noise = |sigma, clip| Degradation::Noise(GaussianNoise { sigma, clip });
    let fixed = noise([25.0, 25.0], false).apply(&grey, &mut rng(0))? - 0.5;
    let deviation = fixed.std(true).double_value(&[]) * 255.0;
    assert!((24.5..25.5).contains(&deviation), "{deviation}");
    assert!(fixed.mean(None).double_value(&[]).abs() < 2e-3);
    for i in 0..5 {
        let some = noise([5.0, 50.0], false).apply(&grey, &mut rng(i))?;
        let deviation = some.std(true).double_value(&[]) * 255.0;
        assert!((4.8..51.0).contains(&deviation), "{deviation}");
    }
    let clipped = noise([200.0, 200.0], true).apply(&grey, &mut rng(0))?;
    let [least, most] = [clipped.min(), clipped.max()].map(|x| x.double_value(&[]));
    assert!(least == 0.0 && most == 1.0);
    Ok(())
}

#[test]
fn degrade_rains_within_its_settings() -> Result<()> {
    let black = Tensor::zeros([3, 120, 90], FLOAT);
    let rain = Rain {
        density: [1.0, 1.0],
        intensity: [0.2, 0.4],
        ..Rain::default()
    };
    let xs = Degradation::Rain(rain.clone()).apply(&black, &mut rng(0))?;
    let wet = xs
        .gt(0.05)
        .to_kind(Kind::Float)
        .mean(None)
        .double_value(&[]);
    assert!((0.01..0.5).contains(&wet), "{wet}");
    assert!(xs.max().double_value(&[]) > 0.2 && xs.min().double_value(&[]) == 0.0);
    assert_bits(&xs.get(0), &xs.get(2));
    let dry = Rain {
        density: [0.0, 0.0],
        ..rain.clone()
    };
    let xs = clean(20, 30);
    assert_bits(&Degradation::Rain(dry).apply(&xs, &mut rng(0))?, &xs);
    // A single upright streak is as tall as it should be.
    let upright = Rain {
        density: [1.0, 1.0],
        length: [40.0, 40.0],
        width: [2.0, 2.0],
        angle: [0.0, 0.0],
        spread: 0.0,
        intensity: [1.0, 1.0],
    };
    let mut tallest = 0.0_f64;
    for i in 0..30 {
        let wet = Degradation::Rain(upright.clone())
            .apply(&Tensor::zeros([1, 100, 10], FLOAT), &mut rng(i))?;
        let rows = wet.amax([0, 2], false).gt(0.0).sum(Kind::Float);
        tallest = tallest.max(rows.double_value(&[]));
        assert!(wet.max().double_value(&[]) <= 1.0);
    }
    assert!((35.0..=40.0).contains(&tallest), "{tallest}");
    Ok(())
}

#[cfg(feature = "image")]
#[test]
fn degrade_by_jpeg_is_worse_at_lower_quality() -> Result<()> {
    let xs = clean(32, 48);
    let error = |quality| -> Result<f64> {
        let config = Degradation::Jpeg(Jpeg {
            quality: [quality; 2],
        });
        let ys = config.apply(&xs, &mut rng(0))?;
        assert_eq!(ys.size(), xs.size());
        Ok((ys - &xs).abs().mean(None).double_value(&[]))
    };
    let (high, low) = (error(95)?, error(5)?);
    assert!(high < 0.03 && low > 1.5 * high, "{high} {low}");
    let grey = Tensor::full([1, 9, 9], 0.5, FLOAT);
    let ys = Degradation::Jpeg(Jpeg::default()).apply(&grey, &mut rng(0))?;
    assert_close(&ys, &grey, 0.0, 0.05);
    Ok(())
}

#[cfg(not(feature = "image"))]
#[test]
fn degrade_by_jpeg_says_what_it_lacks() {
    let error = Degradation::Jpeg(Jpeg::default()).apply(&clean(8, 8), &mut rng(0));
    assert_eq!(
        error.expect_err("no codec").to_string(),
        "degradation by JPEG is not available: build with the feature `image`"
    );
}

#[test]
fn degrade_in_a_row_is_fixed_by_the_picture() -> Result<()> {
    let steps: Vec<Degradation> = serde_json::from_value(json!([
        {"kind": "blur", "sigma": [0.5, 1.5]},
        {"kind": "motion_blur", "length": [2, 9]},
        {"kind": "rain"},
        {"kind": "noise", "sigma": [10, 20], "clip": true},
    ]))
    .expect("a config");
    let xs = clean(40, 50);
    let first = degrade(&xs, &steps, &mut rng(1))?;
    assert_eq!(first.size(), xs.size());
    assert_bits(&degrade(&xs, &steps, &mut rng(1))?, &first);
    assert_ne!(degrade(&xs, &steps, &mut rng(2))?, first);
    assert_bits(&degrade(&xs, &[], &mut rng(1))?, &xs);
    let image = densely_vision::transforms::to_image(&xs)?;
    let pair = PairTransform {
        size: 24,
        ..PairTransform::default()
    };
    let (degraded, target) = pair.apply_clean(&image, &steps, &mut rng(1))?;
    assert_eq!(
        (degraded.size(), target.size()),
        (vec![3, 24, 24], vec![3, 24, 24])
    );
    assert_ne!(degraded, target);
    Ok(())
}

#[test]
fn degrade_names_the_setting_that_is_wrong() {
    for (step, message) in [
        (
            json!({"kind": "noise", "sigma": [3, 2]}),
            "setting `sigma`: must be two numbers from 0 to 255 in order, got [3.0, 2.0]",
        ),
        (
            json!({"kind": "blur", "sigma": [-1, 2]}),
            "setting `sigma`: must be two numbers from 0 to 100 in order, got [-1.0, 2.0]",
        ),
        (
            json!({"kind": "jpeg", "quality": [0, 2]}),
            "setting `quality`: must be two numbers from 1 to 100 in order, got [0.0, 2.0]",
        ),
        (
            json!({"kind": "rain", "spread": 30}),
            "setting `spread`: must lie in [0, 20], got 30",
        ),
        (
            json!({"kind": "rain", "angle": [0, 80]}),
            "setting `angle`: must be two numbers from -60 to 60 in order, got [0.0, 80.0]",
        ),
    ] {
        let step: Degradation = serde_json::from_value(step).expect("a config");
        assert_eq!(step.validate().expect_err(message).to_string(), message);
    }
    for step in [json!({"kind": "snow"}), json!({"kind": "blur", "size": 3})] {
        assert!(
            serde_json::from_value::<Degradation>(step.clone()).is_err(),
            "{step}"
        );
    }
    let blur = Degradation::Blur(GaussianBlur::default());
    assert!(
        blur.apply(&clean(40, 40).unsqueeze(0), &mut rng(0))
            .is_err()
    );
    let double = clean(40, 40).to_kind(Kind::Double);
    assert!(
        Degradation::MotionBlur(MotionBlur::default())
            .apply(&double, &mut rng(0))
            .is_err()
    );
}
