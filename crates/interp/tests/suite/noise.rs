//! The generator against numpy's numbers, and what kinds of noise are.

use densely_core::{Result, seeded};
use densely_interp::noise::{Noise, NoiseKind, RandomState};
use densely_testkit::{assert_bits, assert_close};
use proptest::prelude::*;
use tch::{Kind, Tensor};

use crate::trace::{FAMILIES, tiny};

fn assert_values(found: &[f64], expected: &[f64]) {
    assert_close(
        &Tensor::from_slice(found),
        &Tensor::from_slice(expected),
        1e-14,
        0.0,
    );
}

/// `RandomState(1).randn(6)`, and others, as numpy 2 prints them.
#[test]
fn draws_are_numpys() -> Result<()> {
    let mut random = RandomState::new(1);
    let found: Vec<f64> = (0..6).map(|_| random.normal()).collect();
    assert_values(
        &found,
        &[
            1.624_345_363_663_241_7,
            -0.611_756_413_650_075_4,
            -0.528_171_752_263_455_7,
            -1.072_968_622_156_170_5,
            0.865_407_629_324_678_5,
            -2.301_538_696_880_282_7,
        ],
    );
    // Past the first refill of the state, of 624 words.
    let many = RandomState::new(1).randn(&[40, 50])?;
    assert_eq!(many.size(), [40, 50]);
    assert_values(
        &[
            many.double_value(&[39, 49]),
            many.sum(Kind::Double).double_value(&[]),
        ],
        &[1.386_825_593_941_044, 66.137_919_554_179_89],
    );
    let mut random = RandomState::new(1_234_567_890);
    let found: Vec<f64> = (0..3).map(|_| random.normal()).collect();
    assert_values(
        &found,
        &[
            1.340_163_457_718_631_2,
            1.737_591_227_719_360_8,
            1.498_988_344_300_628,
        ],
    );
    let mut random = RandomState::new(1);
    let found: Vec<f64> = (0..4).map(|_| random.uniform(-1.0, 1.0)).collect();
    assert_values(
        &found,
        &[
            -0.165_955_990_594_852,
            0.440_648_986_884_316_1,
            -0.999_771_250_365_310_2,
            -0.395_334_854_736_320_46,
        ],
    );
    Ok(())
}

#[test]
fn chi_square_and_student_are_numpys() -> Result<()> {
    // Shapes above, at and below 1 of the gamma distribution are three algorithms.
    for (degrees, expected) in [
        (
            3.0,
            [
                1.543_860_745_904_647_8,
                2.213_881_514_912_094,
                0.207_749_357_833_829_83,
                0.946_408_885_291_564_3,
            ],
        ),
        (
            1.0,
            [
                0.610_082_451_907_194_6,
                0.353_418_178_063_732_7,
                0.083_762_126_827_109_58,
                0.179_585_846_909_969_9,
            ],
        ),
        (
            2.0,
            [
                1.145_383_977_539_23,
                0.052_536_481_729_004_665,
                1.595_515_856_411_288,
                1.143_000_634_195_029_8,
            ],
        ),
    ] {
        let mut random = RandomState::new(2);
        let found = (0..4)
            .map(|_| random.chi_square(degrees))
            .collect::<Result<Vec<f64>>>()?;
        assert_values(&found, &expected);
    }
    let mut random = RandomState::new(7);
    let found = (0..4)
        .map(|_| random.student(5.0))
        .collect::<Result<Vec<f64>>>()?;
    assert_values(
        &found,
        &[
            2.146_522_460_645_282_4,
            0.044_177_306_492_082_485,
            -0.002_044_431_826_132_981,
            -0.355_624_158_731_823_07,
        ],
    );
    assert!(RandomState::new(1).chi_square(0.0).is_err());
    assert!(RandomState::new(1).student(-1.0).is_err());
    Ok(())
}

#[test]
fn kinds_are_read_and_written() -> Result<()> {
    for (text, kind) in [
        ("s3", NoiseKind::Measured(3.0)),
        ("s0.5", NoiseKind::Measured(0.5)),
        ("0.1", NoiseKind::Fixed(0.1)),
        ("m", NoiseKind::Covariance),
        ("t5", NoiseKind::Student(5.0)),
        ("u1", NoiseKind::Uniform(1.0)),
    ] {
        assert_eq!(text.parse::<NoiseKind>()?, kind);
        assert_eq!(kind.to_string(), text);
    }
    assert_eq!("s".parse::<NoiseKind>()?, NoiseKind::Measured(1.0));
    assert_eq!("u".parse::<NoiseKind>()?, NoiseKind::Uniform(1.0));
    for wrong in ["", "s-1", "t2", "tx", "m3", "0", "-0.1", "inf", "nan", "é"] {
        let error = wrong.parse::<NoiseKind>().expect_err(wrong).to_string();
        assert!(error.contains(&format!("got `{wrong}`")), "{error}");
    }
    Ok(())
}

#[test]
fn measured_noise_has_the_spread_of_the_subjects_tokens() -> Result<()> {
    let (model, _vs) = tiny(FAMILIES[0])?;
    // Every occurrence counts, of one token too.
    let samples = [vec![3, 4, 5], vec![7], vec![], vec![4, 4]];
    let noise = Noise::measure(&model, NoiseKind::Measured(3.0), &samples)?;
    let all = Tensor::from_slice(&[3i64, 4, 5, 7, 4, 4]).unsqueeze(0);
    let expected = tch::no_grad(|| model.embed_tokens(&all))?
        .to_kind(Kind::Double)
        .std(true)
        .double_value(&[]);
    assert!((noise.scale() - 3.0 * expected).abs() < 1e-12 * expected);
    let drawn = noise.sample(1, 2, 3, 8)?;
    assert_bits(
        &drawn,
        &(RandomState::new(1).randn(&[2, 3, 8])? * noise.scale()),
    );
    assert!(Noise::measure(&model, NoiseKind::Measured(3.0), &[]).is_err());
    assert!(noise.sample(1, 0, 3, 8).is_err());
    Ok(())
}

#[test]
fn covariances_are_met() -> Result<()> {
    let (model, _vs) = tiny(FAMILIES[0])?;
    let samples: Vec<Vec<i64>> = (0..10)
        .map(|i| (0..5).map(|j| (i * 5 + j) % 40).collect())
        .collect();
    let all: Vec<i64> = samples.iter().flatten().copied().collect();
    let xs = tch::no_grad(|| model.embed_tokens(&Tensor::from_slice(&all).unsqueeze(0)))?
        .squeeze_dim(0)
        .to_kind(Kind::Double);
    let d = xs.size()[1];
    let of = |xs: &Tensor| -> (Tensor, Tensor) {
        let mean = xs.mean_dim(0, false, Kind::Double);
        let centred = xs - &mean;
        let count = (xs.size()[0] - 1) as f64;
        (mean, centred.tr().matmul(&centred) / count)
    };
    let (mean, covariance) = of(&xs);
    let noise = Noise::measure(&model, NoiseKind::Covariance, &samples)?;
    let drawn = noise.sample(1, 2000, 10, d)?.reshape([-1, d]);
    let (found_mean, found) = of(&drawn);
    let scale = covariance.abs().max().double_value(&[]);
    assert_close(&found, &covariance, 0.0, 0.06 * scale);
    assert_close(&found_mean, &mean, 0.0, 0.05 * scale.sqrt());
    // Student's has the same covariance in expectation; its thousand and more factors are fixed.
    let noise = Noise::measure(&model, NoiseKind::Student(6.0), &samples)?;
    let (_, found) = of(&noise.sample(1, 2000, 10, d)?.reshape([-1, d]));
    assert_close(&found, &covariance, 0.0, 0.25 * scale);
    assert!(noise.sample(1, 1, 1, d + 1).is_err());
    assert!(Noise::measure(&model, NoiseKind::Covariance, &[vec![1]]).is_err());
    Ok(())
}

proptest! {
    #[test]
    fn doubles_lie_in_the_unit_interval(seed in any::<u32>()) {
        let mut random = RandomState::new(seed);
        for _ in 0..700 {
            let value = random.double();
            prop_assert!((0.0..1.0).contains(&value));
        }
    }
}

#[test]
fn libtorchs_generator_is_left_alone() -> Result<()> {
    let draw = || Tensor::rand([4], tch::kind::DOUBLE_CPU);
    let expected = seeded(3, draw);
    let found = seeded(3, || {
        let noise = Noise::fixed(0.1).and_then(|noise| noise.sample(1, 2, 2, 4));
        (noise, draw())
    });
    let _ = found.0?;
    assert_bits(&found.1, &expected);
    Ok(())
}
