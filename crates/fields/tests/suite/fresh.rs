//! FreSh: spectra against numpy's full transform, distances against scipy, and the choice.

use std::cell::RefCell;
use std::f64::consts::TAU;

use densely_core::registry::find;
use densely_core::{Error, Result, seeded};
use densely_fields::PRESETS;
use densely_fields::fresh::{
    Candidate, Choice, FreshOptions, Network, SEARCHES, SIREN_BETAS, choose, coordinates, distance,
    is_counted, spectrum, spectrum_size, square,
};
use densely_testkit::{Golden, assert_close};
use tch::{Device, Kind, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");
const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

fn values(xs: &Tensor) -> Vec<f64> {
    Vec::try_from(xs.to_kind(Kind::Double).flatten(0, -1)).expect("numbers")
}

/// As the script draws signals of any size.
fn wave(size: &[i64]) -> Tensor {
    let places = Tensor::arange(size.iter().product::<i64>(), DOUBLE);
    ((&places * 0.0007).sin() + (&places * 0.011).cos() * 0.3).view(size)
}

fn assert_spectrum(found: &[f64], expected: &Tensor, tolerance: f64) {
    let largest = expected.abs().max().double_value(&[]);
    assert_close(
        &Tensor::from_slice(found),
        expected,
        tolerance,
        tolerance * largest,
    );
}

type Wrong = fn(&Tensor) -> Tensor;

#[test]
fn spectra_equal_those_of_the_full_transform() -> Result<()> {
    for case in [
        "odd",
        "even",
        "two",
        "three",
        "single",
        "wide",
        "tall",
        "large",
        "cube_odd",
        "cube_even",
        "volume",
    ] {
        let golden = Golden::open(HERE, &format!("fresh_{case}"));
        let signal = if golden.has("signal") {
            golden.tensor("signal")
        } else {
            let size: Vec<i64> = serde_json::from_str(golden.meta("size")).expect("a list");
            wave(&size)
        };
        let tolerance = if signal.kind() == Kind::Double {
            1e-10
        } else {
            1e-5
        };
        let expected = golden.tensor("spectrum");
        let size = expected.size()[0];
        assert_spectrum(&spectrum(&signal, size)?, &expected, tolerance);
        if golden.has("squared") {
            assert_close(&square(&signal)?, &golden.tensor("squared"), 1e-12, 1e-12);
        }
        // A crop is the beginning, whatever is read for it.
        for crop in 1..size.min(20) {
            let found = spectrum(&signal, crop)?;
            assert_spectrum(&found, &expected.narrow(0, 0, crop), tolerance);
        }
    }
    Ok(())
}

/// sin(2π 3 x / 64) + 0.5 sin(2π (7 y + 2 x) / 64): half of 64² at k = 3 and a quarter at k = 9.
#[test]
fn two_waves_are_two_lines() -> Result<()> {
    let n = 64;
    let places = Tensor::arange(n, DOUBLE) * (TAU / n as f64);
    let (x, y) = (places.unsqueeze(0), places.unsqueeze(1));
    let first = (&x * 3.0).sin().expand([n, n], false);
    let signal = (first + (&y * 7.0 + &x * 2.0).sin() * 0.5).unsqueeze(0);
    let mut found = spectrum(&signal, 2 * n - 2)?;
    for (k, expected) in [(3, 2048.0), (9, 1024.0)] {
        assert!((found[k - 1] - expected).abs() < 1e-9, "{}", found[k - 1]);
        found[k - 1] = 0.0;
    }
    let rest = found.iter().fold(0.0f64, |most, sum| most.max(*sum));
    assert!(rest < 1e-9, "{rest}");
    Ok(())
}

/// One of each pair, by the rule of the paper's code for pictures.
#[test]
fn half_of_the_coefficients_are_counted() {
    let counts = [4, 5, 8, 9].map(|n| {
        let mut count = 0;
        for u in 0..n {
            for v in 0..n {
                let half = n / 2;
                let on_axis = (v == 0 && u > half) || (u == 0 && v > half);
                let below = u + v < n || (u + v == n && (1..=half).contains(&u));
                let counted = is_counted(n, &[u, v]);
                assert_eq!(counted, below && !on_axis, "{n}: {u}, {v}");
                count += i64::from(counted);
            }
        }
        count
    });
    assert_eq!(counts, [10, 13, 34, 41]);
    for n in 2..8 {
        let places = (0..n * n * n).filter(|i| is_counted(n, &[i / n / n, i / n % n, i % n]));
        // The coefficients that are their own conjugates: the mean, and of even sides all of 0 and n / 2.
        let alone = if n % 2 == 0 { 8 } else { 1 };
        assert_eq!(
            places.count() as i64,
            i64::midpoint(n * n * n, alone),
            "{n}"
        );
    }
    assert!(!is_counted(0, &[0, 0]));
}

#[test]
fn distances_equal_scipys() -> Result<()> {
    let golden = Golden::open(HERE, "fresh_distances");
    let (a, b) = (golden.tensor("a"), golden.tensor("b"));
    for (i, expected) in values(&golden.tensor("distance")).into_iter().enumerate() {
        let [a, b] = [&a, &b].map(|xs| values(&xs.select(0, i as i64)));
        let found = distance(&a, &b)?;
        assert!((found - expected).abs() < 1e-12 * (1.0 + expected), "{i}");
        assert!((found - distance(&b, &a)?).abs() < 1e-14, "{i}");
    }
    Ok(())
}

#[test]
fn neither_scale_nor_mean_nor_grey_in_three_channels_changes_a_distance() -> Result<()> {
    let draw = |seed| seeded(seed, || Tensor::randn([3, 31, 31], DOUBLE));
    let (a, b) = (draw(0), draw(1).cumsum(1, Kind::Double));
    let of = |a: &Tensor, b: &Tensor| distance(&spectrum(a, 20)?, &spectrum(b, 20)?);
    let expected = of(&a, &b)?;
    assert!(expected > 1.0, "{expected}");
    for (name, a, b) in [
        ("scaled", &a * 37.0, b.copy()),
        ("shifted", &a + 5.0, &b - 2.0),
        ("mirrored", a.copy(), -&b),
    ] {
        let found = of(&a, &b)?;
        assert!((found - expected).abs() < 1e-9, "{name}: {found}");
    }
    let grey = a.narrow(0, 0, 1);
    let as_three = of(&grey.expand([3, 31, 31], false), &b)?;
    assert!((as_three - of(&grey, &b)?).abs() < 1e-9);
    assert!(of(&a, &(&a * 3.0))? < 1e-9);
    Ok(())
}

/// What stands for networks in the script: waves whose direction and phase follow the seed.
fn waves(value: f64, seed: i64) -> Network {
    let angle = 0.3 + 0.2 * seed as f64;
    Box::new(move |points: &Tensor| {
        let points = points.to_kind(Kind::Double);
        let along = points.select(1, 0) * angle.cos() + points.select(1, 1) * angle.sin();
        let of = |factor: f64| (&along * (value * factor) + seed as f64).sin();
        Ok((of(0.5) + of(1.0) + of(1.5)).unsqueeze(1))
    })
}

fn candidates(values: &[f64]) -> Vec<Candidate<'static>> {
    let candidate = |value: &f64| {
        let value = *value;
        Candidate::new("omega", value, move |seed| Ok(waves(value, seed)))
    };
    values.iter().map(candidate).collect()
}

#[test]
fn a_search_equals_numpys() -> Result<()> {
    let golden = Golden::open(HERE, "fresh_search");
    let target = golden.tensor("target");
    let options: FreshOptions = golden.config();
    let candidates = candidates(&values(&golden.tensor("values")));
    let mut seen = Vec::new();
    let choice = choose(&target, &candidates, &options, &mut |score| {
        seen.push(score.clone());
    })?;
    assert_eq!(seen, choice.scores);
    assert_spectrum(&choice.target, &golden.tensor("spectrum"), 1e-10);
    let (means, errors) = (
        values(&golden.tensor("mean")),
        values(&golden.tensor("error")),
    );
    for (i, score) in choice.scores.iter().enumerate() {
        let distances = golden.tensor("distances").select(0, i as i64);
        assert_spectrum(&score.distances, &distances, 1e-10);
        assert!((score.mean - means[i]).abs() < 1e-10, "{score:?}");
        assert!((score.standard_error - errors[i]).abs() < 1e-10);
        assert!(!score.abandoned);
    }
    let chosen = golden.tensor("chosen").double_value(&[]);
    assert_eq!(choice.chosen.value, chosen);
    assert_eq!((choice.side, choice.draws, choice.seed), (40, 4, 3));
    assert!(!choice.abandoning);
    // Neither the chunks nor a second run change a bit of what elementwise networks give.
    for chunk in [1, 2080, 1 << 20] {
        let options = FreshOptions {
            chunk,
            ..options.clone()
        };
        assert_eq!(choose(&target, &candidates, &options, &mut |_| ())?, choice);
    }
    let text = serde_json::to_string(&choice).expect("JSON");
    let read: Choice = serde_json::from_str(&text).expect("a choice");
    assert_eq!(read, choice);
    Ok(())
}

/// The same seeds for all candidates, and no gradients.
#[test]
fn candidates_share_their_random_numbers() -> Result<()> {
    let drawn = RefCell::new(Vec::new());
    let weight = Tensor::ones([1], DOUBLE).set_requires_grad(true);
    let candidates: Vec<Candidate> = [10.0, 20.0]
        .map(|value| {
            let (drawn, weight) = (&drawn, &weight);
            Candidate::new("omega", value, move |seed| {
                drawn.borrow_mut().push((value, seed));
                let (waves, weight) = (waves(value, seed.rem_euclid(10)), weight.shallow_clone());
                Ok(Box::new(move |points: &Tensor| {
                    let values = waves(points)? * &weight;
                    assert!(!values.requires_grad(), "gradients are recorded");
                    Ok(values)
                }))
            })
        })
        .into();
    let options = FreshOptions {
        draws: 3,
        seed: i64::MAX - 1,
        ..FreshOptions::default()
    };
    choose(&wave(&[1, 30, 30]), &candidates, &options, &mut |_| ())?;
    let seeds = [i64::MAX - 1, i64::MAX, i64::MIN];
    let expected: Vec<(f64, i64)> = [10.0, 20.0]
        .iter()
        .flat_map(|value| seeds.map(|seed| (*value, seed)))
        .collect();
    assert_eq!(*drawn.borrow(), expected);
    Ok(())
}

/// A network of two sine layers of 48, whose frequency multiplies the coordinates.
fn sine_network(omega: f64, seed: i64) -> Network {
    let uniform = |size: &[i64], bound: f64| {
        Tensor::empty(size, (Kind::Float, Device::Cpu)).uniform_(-bound, bound)
    };
    let layers: Vec<[Tensor; 2]> = seeded(seed, || {
        [(2, 48), (48, 48), (48, 3)]
            .iter()
            .map(|(inputs, outputs)| {
                let fan = *inputs as f64;
                let bound = if *inputs == 2 {
                    1.0 / fan
                } else {
                    (6.0 / fan).sqrt() / 30.0
                };
                let weight = uniform(&[*outputs, *inputs], bound);
                [weight, uniform(&[*outputs], 1.0 / fan.sqrt())]
            })
            .collect()
    });
    Box::new(move |points: &Tensor| {
        let [first, second, last] = [0, 1, 2].map(|i: usize| &layers[i]);
        let xs = (points * omega).linear(&first[0], Some(&first[1])).sin();
        let xs = (xs * 30.0).linear(&second[0], Some(&second[1])).sin();
        Ok((xs * 30.0).linear(&last[0], Some(&last[1])))
    })
}

#[test]
fn a_target_of_higher_frequencies_gets_a_larger_omega() -> Result<()> {
    let candidates: Vec<Candidate> = [5.0, 10.0, 20.0, 40.0, 80.0, 160.0]
        .map(|omega| Candidate::new("omega", omega, move |seed| Ok(sine_network(omega, seed))))
        .into();
    let options = FreshOptions {
        draws: 4,
        ..FreshOptions::default()
    };
    let places = coordinates(&[96, 96])?;
    let choose_for = |cycles: f64| -> Result<f64> {
        let along = places.select(1, 0) * 0.8 + places.select(1, 1) * 0.6;
        let target = (along * (TAU / 2.0 * cycles)).sin().view([1, 96, 96]);
        let choice = choose(&target, &candidates, &options, &mut |_| ())?;
        Ok(choice.chosen.value)
    };
    let chosen = [1.0, 5.0, 20.0].map(choose_for);
    let [low, middle, high] = chosen.map(|omega| omega.expect("a choice"));
    assert!(low < middle && middle < high, "{low}, {middle}, {high}");
    // The networks' own draws come out first.
    for (i, omega) in [(1, 10.0), (3, 40.0), (5, 160.0)] {
        let target = sine_network(omega, 77)(&places)?.transpose(0, 1);
        let target = target.reshape([3, 96, 96]);
        let choice = choose(&target, &candidates, &options, &mut |_| ())?;
        assert_eq!(choice.chosen, choice.scores[i]);
    }
    Ok(())
}

#[test]
fn leaving_early_is_said_and_chooses_the_same() -> Result<()> {
    let golden = Golden::open(HERE, "fresh_search");
    let options = FreshOptions {
        draws: 8,
        ..golden.config()
    };
    let run = |abandon| {
        let options = FreshOptions {
            abandon,
            ..options.clone()
        };
        choose(
            &golden.tensor("target"),
            &candidates(&[30.0, 40.0, 10.0, 60.0]),
            &options,
            &mut |_| (),
        )
    };
    let (full, early) = (run(false)?, run(true)?);
    assert!(early.abandoning && !full.abandoning);
    assert_eq!(early.chosen.value, full.chosen.value);
    let left: Vec<usize> = early.scores.iter().map(|s| s.distances.len()).collect();
    assert!(left[2] < 8 && left[3] < 8 && left[0] == 8, "{left:?}");
    for (early, full) in early.scores.iter().zip(&full.scores) {
        assert_eq!(early.abandoned, early.distances.len() < 8);
        assert!(early.distances.len() >= 3);
        // The draws that were made are the same, but for the rounding of transforms that are batched otherwise.
        for (a, b) in early.distances.iter().zip(&full.distances) {
            assert!((a - b).abs() < 1e-9, "{a} {b}");
        }
    }
    Ok(())
}

#[test]
fn volumes_are_compared_too() -> Result<()> {
    let blob = |value: f64| {
        move |seed: i64| -> Result<Network> {
            Ok(Box::new(move |points: &Tensor| {
                let weights = Tensor::from_slice(&[1.0f32, 0.7, -0.4]) * value;
                let along = (points * weights).sum_dim_intlist(1i64, true, None);
                Ok((along + seed as f64).cos())
            }))
        }
    };
    let candidates: Vec<Candidate> = [3.0, 9.0, 15.0]
        .map(|value| Candidate::new("omega", value, blob(value)))
        .into();
    let sides = [17, 20, 19];
    let points = coordinates(&sides)?;
    let target = blob(9.0)(99)?(&points)?.view([1, 17, 20, 19]);
    let choice = choose(&target, &candidates, &FreshOptions::default(), &mut |_| ())?;
    assert_eq!(choice.chosen.value, 9.0);
    assert_eq!((choice.side, choice.target.len()), (17, 5));
    Ok(())
}

#[test]
fn coordinates_run_over_rows_first() -> Result<()> {
    let expected = Tensor::from_slice(&[
        -1.0f32, -1.0, -1.0, 0.0, -1.0, 1.0, 1.0, -1.0, 1.0, 0.0, 1.0, 1.0,
    ]);
    assert_close(&coordinates(&[2, 3])?, &expected.view([6, 2]), 0.0, 1e-7);
    assert_eq!(coordinates(&[4, 1, 2])?.size(), [8, 3]);
    assert!(coordinates(&[]).is_err() && coordinates(&[3, 0]).is_err());
    Ok(())
}

#[test]
fn small_pictures_have_short_spectra() {
    let sizes = [2, 32, 96, 191, 192, 1024].map(spectrum_size);
    assert_eq!(sizes, [1, 10, 32, 63, 64, 64]);
}

#[test]
fn searches_are_the_published_ones() {
    let of = |i: usize| {
        let search = &SEARCHES[i];
        let values = search.values;
        let ends = (values[0], values[values.len() - 1]);
        (search.network, search.setting, values.len(), ends)
    };
    assert_eq!(of(0), ("siren-fresh", "first_omega", 20, (10.0, 200.0)));
    assert_eq!(of(1), ("ffn-fresh", "sigma", 20, (1.0, 20.0)));
    assert_eq!(of(2), ("finer", "first_bias", 31, (0.0, 3.0)));
    assert_eq!(of(3), ("finer", "first_omega", 20, (10.0, 200.0)));
    assert_eq!(SEARCHES.len(), 4);
    for search in SEARCHES {
        let steps = search.values.windows(2).map(|pair| pair[1] - pair[0]);
        let step = search.values[1] - search.values[0];
        assert!(steps.into_iter().all(|other| (other - step).abs() < 1e-9));
        let preset = find(PRESETS, search.network).expect("a preset");
        let config = (preset.config)();
        let fixed = search.fixed.iter().map(|(field, _)| *field);
        for field in fixed.chain([search.setting]) {
            assert!(config.get(field).is_some(), "{}: {field}", search.network);
        }
    }
    assert_eq!(SIREN_BETAS.len(), 12);
}

#[test]
fn wrong_input_is_named() {
    let target = wave(&[1, 30, 30]);
    let run = |target: &Tensor, candidates: &[Candidate], options: &FreshOptions| {
        choose(target, candidates, options, &mut |_| ())
            .expect_err("wrong input")
            .to_string()
    };
    let fine = || candidates(&[10.0]);
    let default = FreshOptions::default;
    for (options, part) in [
        (
            FreshOptions {
                draws: 0,
                ..default()
            },
            "`draws`",
        ),
        (
            FreshOptions {
                chunk: 0,
                ..default()
            },
            "`chunk`",
        ),
        (
            FreshOptions {
                spectrum_size: Some(0),
                ..default()
            },
            "`spectrum_size`",
        ),
        (
            FreshOptions {
                spectrum_size: Some(59),
                ..default()
            },
            "1 to 58 for sides of 30, got 59",
        ),
    ] {
        let message = run(&target, &fine(), &options);
        assert!(message.contains(part), "{message}");
    }
    let message = run(&target, &[], &default());
    assert!(message.contains("`candidates`"), "{message}");
    for (target, part) in [
        (target.select(0, 0), "`signal`: expected [channels"),
        (target.to_kind(Kind::Int64), "Int64"),
        (target.narrow(1, 0, 0), "[1, 0, 30]"),
        (target.ones_like(), "constant"),
        (target.full_like(0.3).to_kind(Kind::Float), "constant"),
        (Tensor::full([3, 31, 37], 0.7, DOUBLE), "constant"),
        (&target * f64::NAN, "not finite"),
        (target.narrow(1, 0, 1), "for sides of 1"),
    ] {
        let message = run(&target, &fine(), &default());
        assert!(message.contains(part), "{message}");
    }
    let wrong: [(Wrong, &str); 4] = [
        (|xs| xs.select(1, 0), "`omega 7`: expected [900, _]"),
        (|xs| xs.narrow(0, 0, 3), "expected [900, _], got [3, 2]"),
        (|xs| xs * f64::INFINITY, "omega 7"),
        (Tensor::zeros_like, "omega 7: the signal is constant"),
    ];
    for (network, part) in wrong {
        let build =
            move |_| -> Result<Network> { Ok(Box::new(move |xs: &Tensor| Ok(network(xs)))) };
        let message = run(&target, &[Candidate::new("omega", 7.0, build)], &default());
        assert!(message.contains(part), "{message}");
    }
    let refused = |_| -> Result<Network> { Err(Error::config("omega", "no")) };
    let message = run(
        &target,
        &[Candidate::new("omega", 7.0, refused)],
        &default(),
    );
    assert_eq!(message, "setting `omega`: no");
    assert!(distance(&[1.0], &[1.0, 2.0]).is_err());
    assert!(distance(&[], &[]).is_err());
    let unknown = toml::from_str::<FreshOptions>("drawz = 3").expect_err("unknown");
    assert!(unknown.to_string().contains("drawz"));
}
