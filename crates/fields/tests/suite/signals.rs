//! Pictures, sounds and films as samples on a grid, and the metrics of what is fitted to them.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::Path;

use densely_core::Result;
use densely_data::Image;
use densely_data::image::AnyImage;
use densely_fields::metrics::{Overlap, SquaredError, chamfer, psnr};
use densely_fields::signals::{
    Convention, Coordinates, Range, Signal, Split, decode_wav, stack_frames, to_grid, to_unit,
};
use densely_testkit::{Golden, assert_bits, assert_close};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// A picture in which value c of pixel (row, column) is 40 row + 4 column + c.
fn picture(height: usize, width: usize) -> AnyImage {
    let value = |i: usize| (40 * (i / 3 / width) + 4 * (i / 3 % width) + i % 3) as u8;
    let pixels = (0..height * width * 3).map(value).collect();
    Image::new(width, height, 3, pixels)
        .expect("a picture")
        .into()
}

fn signal(height: usize, width: usize) -> Signal {
    Signal::from_image(picture(height, width), Convention::default())
}

#[test]
fn coordinates_are_middles_of_cells_or_linspace_row_first() -> Result<()> {
    let options = (Kind::Double, Device::Cpu);
    let (rows, columns) = (5, 4);
    let image = picture(rows, columns);
    for convention in [Convention::default(), Convention::SYMMETRIC] {
        let batch = Signal::from_image(image.clone(), convention)
            .select(Split::All)?
            .all()?;
        let axis = |n: usize| match convention.coordinates {
            Coordinates::Centres => (Tensor::arange(n as i64, options) + 0.5) / n as f64,
            Coordinates::Ends => Tensor::linspace(-1.0, 1.0, n as i64, options),
        };
        let grid = Tensor::meshgrid_indexing(&[axis(rows), axis(columns)], "ij");
        let expected = Tensor::stack(&grid, -1).view([-1, 2]);
        assert_close(&batch.coordinates, &expected, 1e-7, 1e-7);
        let unit = image.to_tensor().permute([1, 2, 0]).reshape([-1, 3]);
        let expected = match convention.values {
            Range::Unit => unit.shallow_clone(),
            Range::Symmetric => (&unit - 0.5) / 0.5,
        };
        assert_close(&batch.values, &expected, 1e-6, 1e-6);
        assert_close(&to_unit(&batch.values, convention), &unit, 1e-6, 1e-6);
    }
    assert_eq!(Coordinates::Ends.at(0, 1).to_bits(), (-1f32).to_bits());
    Ok(())
}

#[test]
fn sixteen_bits_are_a_share_of_65535() -> Result<()> {
    let image = Image::new(2, 1, 1, vec![0u16, 65_535]).expect("a picture");
    let signal = Signal::from_image(image.into(), Convention::default());
    let values = signal.select(Split::All)?.all()?.values;
    assert_bits(&values, &Tensor::from_slice(&[0f32, 1.0]).view([2, 1]));
    Ok(())
}

/// The pixels of every second row and column, as slicing has them, also where sides are odd.
#[test]
fn every_second_pixel_is_that_of_strided_slices() -> Result<()> {
    for (height, width) in [(5, 7), (4, 6), (1, 3), (2, 1)] {
        let signal = signal(height, width);
        let all = signal.select(Split::All)?.all()?;
        for step in [1, 2, 3] {
            let some = signal.select(Split::Every(step as usize))?.all()?;
            let sliced = |xs: &Tensor| {
                to_grid_of(xs, height, width)
                    .slice(0, 0, None, step)
                    .slice(1, 0, None, step)
                    .reshape([-1, xs.size()[1]])
            };
            assert_bits(&some.values, &sliced(&all.values));
            assert_bits(&some.coordinates, &sliced(&all.coordinates));
        }
    }
    Ok(())
}

fn to_grid_of(xs: &Tensor, height: usize, width: usize) -> Tensor {
    xs.view([height as i64, width as i64, xs.size()[1]])
}

#[test]
fn batches_hold_each_sample_once_and_draws_depend_on_the_seed_alone() -> Result<()> {
    let signal = signal(13, 11);
    let selection = signal.select(Split::All)?;
    let places = |shuffle| -> Result<Vec<usize>> {
        let batches = selection.batches(32, shuffle)?;
        let batches = batches.collect::<Result<Vec<_>>>()?;
        let sizes: Vec<usize> = batches.iter().map(|batch| batch.places.len()).collect();
        assert_eq!(sizes, [32, 32, 32, 32, 15]);
        Ok(batches.into_iter().flat_map(|batch| batch.places).collect())
    };
    let ordered: Vec<usize> = (0..143).collect();
    assert_eq!(places(None)?, ordered);
    let (one, other) = (places(Some(1))?, places(Some(2))?);
    assert_ne!(one, other);
    assert_eq!(one, places(Some(1))?);
    for mut shuffled in [one, other] {
        shuffled.sort_unstable();
        assert_eq!(shuffled, ordered);
    }
    let (draw, again) = (selection.draw(500, 9)?, selection.draw(500, 9)?);
    assert_eq!(draw.places, again.places);
    assert_ne!(draw.places, selection.draw(500, 10)?.places);
    // With repetition: 500 of 143; and every sample comes: the chance that one is left out is 0.03.
    let seen: BTreeSet<usize> = draw.places.iter().copied().collect();
    assert!(seen.len() > 130, "{}", seen.len());
    assert_bits(&draw.values, &signal.batch(draw.places.clone())?.values);
    Ok(())
}

#[test]
fn kept_and_held_out_samples_are_all_samples() -> Result<()> {
    let signal = signal(10, 10);
    for held_out in [0.1, 0.25, 0.994] {
        let (kept, out) = (
            signal.select(Split::Kept { held_out, seed: 3 })?.all()?,
            signal.select(Split::HeldOut { held_out, seed: 3 })?.all()?,
        );
        assert_eq!(out.places.len(), (held_out * 100.0).round() as usize);
        let mut both = [kept.places, out.places.clone()].concat();
        both.sort_unstable();
        assert_eq!(both, (0..100).collect::<Vec<_>>());
        let other = signal.select(Split::HeldOut { held_out, seed: 4 })?.all()?;
        assert_ne!(out.places, other.places);
    }
    for (split, words) in [
        (Split::Every(0), "`every`: must be at least 1"),
        (
            Split::Kept {
                held_out: 1.0,
                seed: 0,
            },
            "none of 100 samples",
        ),
        (
            Split::HeldOut {
                held_out: 0.0,
                seed: 0,
            },
            "none of 100 samples",
        ),
        (
            Split::Kept {
                held_out: f64::NAN,
                seed: 0,
            },
            "[0, 1], got NaN",
        ),
    ] {
        let error = signal.select(split).expect_err("no samples").to_string();
        assert!(error.contains(words), "{error}");
    }
    let error = signal.batch(vec![5, 100]).expect_err("no number 100");
    assert!(error.to_string().contains("no number 100"), "{error}");
    Ok(())
}

/// A picture of 14 million pixels: a batch is a matter of its own size.
#[test]
fn batches_of_a_large_picture_do_not_touch_the_rest() -> Result<()> {
    let (height, width) = (3500, 4000);
    let image = Image::new(width, height, 3, vec![7u8; height * width * 3]).expect("a picture");
    let signal = Signal::from_image(image.into(), Convention::default());
    let start = std::time::Instant::now();
    let selection = signal.select(Split::All)?;
    let batch = selection.draw(1000, 1)?;
    let first = selection.batches(1000, Some(1))?.next().expect("a batch")?;
    // All coordinates would take seconds and 112 MB.
    assert!(
        start.elapsed().as_secs_f64() < 0.25,
        "{:?}",
        start.elapsed()
    );
    assert_eq!(batch.coordinates.size(), [1000, 2]);
    assert_eq!(first.values.size(), [1000, 3]);
    Ok(())
}

#[test]
fn values_become_a_grid_again() -> Result<()> {
    let signal = signal(3, 4);
    let values = signal.select(Split::All)?.all()?.values;
    let grid = to_grid(&signal, &values)?;
    let expected = picture(3, 4).to_tensor().permute([1, 2, 0]);
    assert_bits(&grid, &expected.contiguous());
    assert!(to_grid(&signal, &values.narrow(0, 0, 11)).is_err());
    Ok(())
}

#[test]
fn wav_files_read_as_scipy_writes_them() -> Result<()> {
    let golden = Golden::open(HERE, "signals_wav");
    let convention = Convention {
        coordinates: Coordinates::Ends,
        values: Range::Symmetric,
    };
    for (case, rate) in [
        ("int8", 8000),
        ("int16", 8000),
        ("int24", 8000),
        ("int32", 8000),
        ("float32", 44_100),
    ] {
        let bytes: Vec<u8> = Vec::try_from(golden.tensor(&format!("{case}.bytes")))?;
        let sound = decode_wav(Cursor::new(&bytes), Path::new(case), convention)?;
        assert_eq!(sound.sample_rate, rate, "{case}");
        let values = sound.signal.select(Split::All)?.all()?.values;
        assert_bits(&values, &golden.tensor(&format!("{case}.values")));
        // Unit values are those moved to 0 to 1.
        let unit = decode_wav(Cursor::new(&bytes), Path::new(case), Convention::default())?;
        let unit = unit.signal.select(Split::All)?.all()?.values;
        assert_close(&unit, &((values + 1.0) / 2.0), 1e-6, 1e-7);
        let cut = &bytes[..bytes.len() - 5];
        let error = decode_wav(Cursor::new(cut), Path::new("cut.wav"), convention);
        let error = error.expect_err("too short").to_string();
        assert!(
            error.starts_with("cut.wav: ") && error.contains("ends too early"),
            "{error}"
        );
    }
    Ok(())
}

#[test]
fn sounds_that_are_none_are_named() -> Result<()> {
    let golden = Golden::open(HERE, "signals_wav");
    let float: Vec<u8> = Vec::try_from(golden.tensor("float32.bytes"))?;
    let mut nan = float.clone();
    let at = nan.len() - 4;
    nan[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    let int: Vec<u8> = Vec::try_from(golden.tensor("int16.bytes"))?;
    let mut compressed = int.clone();
    compressed[20] = 2;
    let mut silent = int[..44].to_vec();
    silent[40..44].fill(0);
    for (bytes, words) in [
        (nan, "sample 32 is NaN"),
        (compressed, "a kind of WAV file that is not read"),
        (silent, "holds no sample"),
        (
            b"ID3 not a wave file, but long enough".to_vec(),
            "expected a WAV file",
        ),
        (Vec::new(), "ends too early"),
    ] {
        let error = decode_wav(
            Cursor::new(bytes),
            Path::new("a.wav"),
            Convention::default(),
        );
        let error = error.expect_err(words).to_string();
        assert!(
            error.starts_with("a.wav: ") && error.contains(words),
            "{error}"
        );
    }
    Ok(())
}

#[test]
fn a_film_has_three_axes_and_one_size() -> Result<()> {
    let frame = |seed: u8| Image::new(2, 1, 1, vec![seed, seed + 1]);
    let names: Vec<_> = (0..3).map(|i| format!("{i}.png")).collect();
    let frames = names
        .iter()
        .zip(0..)
        .map(|(name, i)| (Path::new(name), frame(10 * i)));
    let film = stack_frames(frames, Convention::default())?;
    assert_eq!(film.axes(), [3, 1, 2]);
    let batch = film.select(Split::All)?.all()?;
    let values: Vec<f32> = Vec::try_from(batch.values.view(-1))?;
    assert_eq!(values, [0, 1, 10, 11, 20, 21].map(|v| v as f32 / 255.0));
    let last: Vec<f32> = Vec::try_from(batch.coordinates.get(5))?;
    assert_eq!(last, [2.5f32 / 3.0, 0.5, 0.75]);
    let odd = [
        (Path::new("a"), frame(1)),
        (Path::new("b"), Image::new(1, 2, 1, vec![1, 2])),
    ];
    let error = stack_frames(odd, Convention::default()).expect_err("two sizes");
    assert_eq!(
        error.to_string(),
        "b: has 2 × 1 pixels of 1 channels, but a has 1 × 2 pixels of 1 channels; all frames of a film have one size"
    );
    assert!(stack_frames([], Convention::default()).is_err());
    Ok(())
}

#[cfg(feature = "image")]
#[test]
fn frames_come_by_number_and_a_missing_one_is_named() -> Result<()> {
    use densely_data::image::write_png;
    use densely_fields::signals::{frame_files, read_frames};

    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name);
    let write = |name: &str, value: u8| {
        let image = Image::new(2, 2, 3, vec![value; 12]).expect("a picture");
        write_png(&file(name), &image)
    };
    for (name, value) in [("shot2_9.png", 9), ("shot2_10.png", 10), ("shot2_8.png", 8)] {
        write(name, value)?;
    }
    let film = read_frames(folder.path(), Convention::default())?;
    assert_eq!(film.axes(), [3, 2, 2]);
    let values = film.batch(vec![0, 4, 8])?.values.select(1, 0) * 255.0;
    assert_close(&values, &Tensor::from_slice(&[8.0, 9.0, 10.0]), 1e-6, 0.0);
    let fails = |words: &str| {
        let error = frame_files(folder.path()).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    };
    write("shot2_12.png", 12)?;
    fails("frame 11 is missing");
    write("011.png", 11)?;
    frame_files(folder.path())?;
    write("other_0008.png", 8)?;
    fails("has number 8, as ");
    std::fs::rename(file("other_0008.png"), file("other.png")).expect("renamed");
    fails("has no frame number");
    Ok(())
}

#[test]
fn metrics_equal_their_references() -> Result<()> {
    let golden = Golden::open(HERE, "metrics_fields");
    let tensor = |name: &str| golden.tensor(name);
    let (outputs, targets) = (tensor("outputs"), tensor("targets"));
    let near = |actual: f64, expected: f64| {
        assert!(
            (actual - expected).abs() <= 1e-12 * expected.abs().max(1.0),
            "{actual} {expected}"
        );
    };
    near(psnr(&outputs, &targets)?, tensor("psnr").double_value(&[]));
    // In batches of rows.
    let mut error = SquaredError::default();
    for start in (0..37).step_by(10) {
        let rows = |xs: &Tensor| xs.narrow(0, start, 10.min(37 - start));
        error.add(&rows(&outputs), &rows(&targets))?;
    }
    near(error.psnr(), tensor("psnr").double_value(&[]));
    let (one, other) = (tensor("sdf.one").le(0.1), tensor("sdf.other").le(0.3));
    let mut overlap = Overlap::default();
    overlap.add(&one, &other)?;
    near(overlap.iou(), tensor("iou").double_value(&[]));
    for case in ["cloud", "line", "same"] {
        let found = chamfer(
            &tensor(&format!("{case}.one")),
            &tensor(&format!("{case}.other")),
        )?;
        let expected: Vec<f64> = Vec::try_from(tensor(&format!("{case}.numbers")))?;
        near(found.forward, expected[0]);
        near(found.backward, expected[1]);
        near(found.forward_squared, expected[2]);
        near(found.backward_squared, expected[3]);
        near(found.l1(), f64::midpoint(expected[0], expected[1]));
        near(found.l2(), expected[2] + expected[3]);
    }
    Ok(())
}

#[test]
fn metrics_refuse_what_cannot_be_judged() -> Result<()> {
    let xs = Tensor::from_slice(&[0.5f32, f32::INFINITY]);
    let ys = Tensor::from_slice(&[0.5f32, 1.0]);
    // Clamped to 1.
    assert_eq!(psnr(&xs, &ys)?.to_bits(), f64::INFINITY.to_bits());
    let nan = Tensor::from_slice(&[0.5f32, f32::NAN]);
    for (outputs, targets, words) in [
        (&nan, &ys, "NaN"),
        (&ys, &nan, "from 0 to 1"),
        (&ys, &(&ys * 2.0), "from 0 to 1"),
        (&ys, &ys.narrow(0, 0, 1), "[2]"),
        (&ys.narrow(0, 0, 0), &ys.narrow(0, 0, 0), "at least one"),
    ] {
        let error = psnr(outputs, targets).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
    assert!(Overlap::default().add(&xs, &ys).is_err());
    assert!(
        chamfer(
            &Tensor::zeros([0, 3], (Kind::Float, Device::Cpu)),
            &ys.view([1, 2])
        )
        .is_err()
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_damage_makes_the_wav_reader_panic(
        which in 0usize..5,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        head: bool,
    ) {
        let golden = Golden::open(HERE, "signals_wav");
        let case = ["int8", "int16", "int24", "int32", "float32"][which];
        let mut bytes: Vec<u8> =
            Vec::try_from(golden.tensor(&format!("{case}.bytes"))).expect("bytes");
        for (at, flip) in flips {
            let range = if head { 60 } else { bytes.len() };
            bytes[at.index(range)] ^= flip;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let read = decode_wav(Cursor::new(&bytes), Path::new("a.wav"), Convention::default());
        if let Ok(sound) = read {
            prop_assert!(sound.signal.len() <= bytes.len());
        }
    }
}
