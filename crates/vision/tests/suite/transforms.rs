//! Transforms against Pillow, torchvision and timm given the same draws, and the draws by their statistics; see
//! `python/goldens/vision_transforms.py`.
#![expect(clippy::float_cmp, reason = "exact numbers are what is tested")]

use densely_core::Result;
use densely_data::Image;
use densely_testkit::{Golden, assert_bits, assert_close};
use densely_vision::losses;
use densely_vision::transforms::{
    Action, ColorJitter, Crop, EraseMode, EvalTransform, Interpolation, Mix, Mixup, Op, Padding,
    PairTransform, RandAugment, RandomCrop, RandomErasing, RandomResizedCrop, Rng, Sampling,
    TrainTransform, Window, affine, center_crop, color, hflip, normalize, pad, resize_shorter,
    rot90, rotate, to_image, vflip,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");
const FILL: [u8; 3] = [124, 116, 104];

/// `[height, width, channels]` of u8.
fn picture(xs: &Tensor) -> Image {
    let (height, width, channels) = xs.size3().expect("a picture");
    let pixels = Vec::<u8>::try_from(xs.contiguous().view([-1])).expect("bytes");
    Image::new(width as usize, height as usize, channels as usize, pixels).expect("a picture")
}

/// A picture without two equal rows or columns.
fn drawn(width: usize, height: usize, channels: usize) -> Image {
    let pixels = (0..width * height * channels).map(|i| (i * i / 7 + 13 * i) as u8);
    Image::new(width, height, channels, pixels.collect()).expect("a picture")
}

#[derive(Deserialize)]
struct Case {
    op: String,
    input: String,
    args: Value,
}

impl Case {
    fn number(&self, name: &str) -> f64 {
        self.args[name].as_f64().expect("a number")
    }

    fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> T {
        serde_json::from_value(self.args[name].clone()).expect("an argument")
    }

    fn sampling(&self) -> Sampling {
        match self.args["sampling"].as_str() {
            Some("bilinear") => Sampling::Bilinear,
            Some("bicubic") => Sampling::Bicubic,
            other => panic!("{other:?}"),
        }
    }

    fn color(&self, image: &Image) -> Result<Image> {
        let by = || self.number("by");
        Ok(match self.op.as_str() {
            "auto_contrast" => color::auto_contrast(image),
            "equalize" => color::equalize(image),
            "invert" => color::invert(image),
            "posterize" => color::posterize(image, by() as u32),
            "solarize" => color::solarize(image, by() as u32),
            "solarize_add" => color::solarize_add(image, by() as u32),
            "saturation" => color::saturation(image, by()),
            "contrast" => color::contrast(image, by()),
            "brightness" => color::brightness(image, by()),
            "sharpness" => color::sharpness(image, by()),
            "hue" => color::hue(image, by())?,
            other => panic!("{other}"),
        })
    }

    fn geometry(&self, image: &Image) -> Result<Image> {
        let acted =
            |make: fn(f64) -> Action| make(self.number("by")).apply(image, self.sampling(), FILL);
        match self.op.as_str() {
            "rotate" => rotate(image, self.number("by"), self.sampling(), FILL),
            "shear_x" => acted(Action::ShearX),
            "shear_y" => acted(Action::ShearY),
            "translate_x" => acted(Action::TranslateX),
            "translate_y" => acted(Action::TranslateY),
            "affine" => Ok(affine(image, self.read("matrix"), self.sampling(), FILL)),
            "resize_shorter" => resize_shorter(image, self.read("side"), self.sampling()),
            "center_crop" => {
                let [height, width] = self.read("size");
                center_crop(image, height, width)
            }
            "pad" => pad(image, self.read("margins"), self.read::<Padding>("mode")),
            "resized_crop" => {
                let [top, left, height, width] = self.read("window");
                let window = Window {
                    top,
                    left,
                    height,
                    width,
                };
                let crop = RandomResizedCrop {
                    size: self.read("size"),
                    ..RandomResizedCrop::default()
                };
                crop.resize(image, window, self.sampling())
            }
            "hflip" => Ok(hflip(image)),
            "vflip" => Ok(vflip(image)),
            "rot90" => rot90(image, self.read("turns")),
            other => panic!("{other}"),
        }
    }
}

fn equal_to_pillow(part: &str, least: usize, apply: impl Fn(&Case, &Image) -> Result<Image>) {
    let golden = Golden::open(HERE, part);
    let cases: Vec<Case> = golden.config();
    assert!(cases.len() >= least, "{} cases", cases.len());
    for (i, case) in cases.iter().enumerate() {
        let input = picture(&golden.tensor(&format!("input.{}", case.input)));
        let expected = picture(&golden.tensor(&format!("output.{i}")));
        let name = format!("{} of {} by {}", case.op, case.input, case.args);
        let actual = apply(case, &input).expect(&name);
        let size = |image: &Image| (image.height(), image.width(), image.channels());
        assert_eq!(size(&actual), size(&expected), "{name}");
        let pairs = actual.pixels().iter().zip(expected.pixels());
        let differences: Vec<_> = pairs
            .enumerate()
            .filter(|(_, (a, b))| a != b)
            .take(5)
            .collect();
        assert!(differences.is_empty(), "{name}: {differences:?}");
    }
}

#[test]
fn transforms_of_colour_equal_pillow() {
    equal_to_pillow("transforms_color", 60, Case::color);
}

#[test]
fn transforms_of_geometry_equal_pillow_and_torchvision() {
    equal_to_pillow("transforms_geometry", 60, Case::geometry);
}

#[test]
fn transforms_by_rand_augment_have_the_arguments_of_timm() {
    let golden = Golden::open(HERE, "transforms_actions");
    let rows: Vec<Vec<Value>> = golden.config();
    assert_eq!(rows.len(), 2 * 15 * 8 * 2);
    for row in &rows {
        let op = Op::ALL[row[0].as_u64().expect("a place") as usize];
        let increasing = row[1] == true;
        let magnitude = row[2].as_f64().expect("a magnitude");
        // timm negates above 0.5 of the draw.
        let action = op.action(magnitude, row[3] == true, increasing);
        let argument = match action {
            Action::AutoContrast | Action::Equalize | Action::Invert => None,
            Action::Posterize(x) | Action::Solarize(x) | Action::SolarizeAdd(x) => {
                Some(f64::from(x))
            }
            Action::Rotate(x)
            | Action::Color(x)
            | Action::Contrast(x)
            | Action::Brightness(x)
            | Action::Sharpness(x)
            | Action::ShearX(x)
            | Action::ShearY(x)
            | Action::TranslateX(x)
            | Action::TranslateY(x) => Some(x),
        };
        assert_eq!(argument, row.get(4).and_then(Value::as_f64), "{row:?}");
    }
}

#[test]
fn transforms_of_batches_equal_timm() -> Result<()> {
    let golden = Golden::open(HERE, "transforms_batch");
    let (xs, labels) = (golden.tensor("xs"), golden.tensor("labels"));
    let cases: Vec<Value> = golden.config();
    let shares = losses::smoothed(&labels, 7, 0.1, Kind::Float);
    for (i, case) in cases.iter().enumerate() {
        let lam = case["lam"].as_f64().expect("a share");
        let place = |name: &str| case[name].as_u64().expect("a place") as usize;
        let mix = if case["cutmix"] == true {
            Mix::cut(9, 12, lam, place("row"), place("column"))
        } else {
            Mix::Blend { lam }
        };
        assert_eq!(Some(mix.lam()), case["mixed"].as_f64(), "{case}");
        assert_bits(&mix.apply(&xs)?, &golden.tensor(&format!("xs.{i}")));
        assert_bits(
            &mix.shares(&shares),
            &golden.tensor(&format!("targets.{i}")),
        );
    }
    Ok(())
}

#[test]
fn transforms_for_evaluation_equal_timm() -> Result<()> {
    let golden = Golden::open(HERE, "transforms_eval");
    for (i, case) in golden.config::<Vec<Value>>().iter().enumerate() {
        let mut settings = case.clone();
        let input = settings["input"].as_str().expect("a name").to_owned();
        settings.as_object_mut().expect("an object").remove("input");
        let transform: EvalTransform = serde_json::from_value(settings).expect("a config");
        let xs = transform.apply(&picture(&golden.tensor(&input)))?;
        assert_bits(&xs, &golden.tensor(&format!("output.{i}")));
    }
    let ramp = picture(&golden.tensor("ramp"));
    let expected = golden.tensor("ramp_normal");
    assert_bits(
        &normalize(&ramp.to_tensor(), &[0.485], &[0.229])?,
        &expected,
    );
    let transform = EvalTransform {
        mean: vec![0.485],
        std: vec![0.229],
        ..EvalTransform::small(16, 1)
    };
    assert_bits(&transform.apply(&ramp)?, &expected);
    Ok(())
}

#[test]
fn transforms_draw_the_same_for_the_same_picture_only() -> Result<()> {
    let image = drawn(50, 40, 3);
    let transform = TrainTransform {
        crop: Crop::Resized(RandomResizedCrop {
            size: 32,
            interpolation: Interpolation::Random,
            ..RandomResizedCrop::default()
        }),
        ..TrainTransform::default()
    };
    let of =
        |seed, epoch, index| transform.apply(&image, &mut Rng::for_picture(seed, epoch, index));
    let first = of(1, 2, 3)?;
    assert_eq!(first.size(), [3, 32, 32]);
    assert_bits(&of(1, 2, 3)?, &first);
    let elsewhere = std::thread::scope(|scope| {
        let thread =
            scope.spawn(|| Vec::<f32>::try_from(of(1, 2, 3)?.view([-1])).map_err(Into::into));
        thread.join().expect("no panic")
    });
    let elsewhere: Result<Vec<f32>> = elsewhere;
    assert_bits(&Tensor::from_slice(&elsewhere?).view([3, 32, 32]), &first);
    for other in [of(1, 2, 4)?, of(1, 3, 3)?, of(0, 2, 3)?, of(2, 1, 3)?] {
        assert_ne!(other, first);
    }
    let mut step = Rng::for_step(1, 2);
    assert_ne!(step.unit(), Rng::for_picture(1, 2, 0).unit());
    Ok(())
}

#[test]
fn transforms_draw_evenly() {
    let mut rng = Rng::for_picture(7, 0, 0);
    let mut counts = [0; 5];
    let (mut sum, mut square, mut heads) = (0.0, 0.0, 0);
    for _ in 0..20_000 {
        counts[rng.below(5)] += 1;
        heads += u32::from(rng.chance(0.3));
        let normal = rng.normal();
        sum += normal;
        square += normal * normal;
        assert!((2.0..3.0).contains(&rng.uniform(2.0, 3.0)));
    }
    assert!(
        counts.iter().all(|n| (3750..4250).contains(n)),
        "{counts:?}"
    );
    assert!((5700..6300).contains(&heads), "{heads}");
    assert!(f64::abs(sum / 2e4) < 0.04 && f64::abs(square / 2e4 - 1.0) < 0.05);
    assert!(!rng.chance(0.0) && rng.chance(1.0) && rng.below(0) == 0);
}

#[test]
fn transforms_crop_within_the_picture_by_the_given_shares() {
    let crop = RandomResizedCrop::default();
    let mut rng = Rng::for_picture(3, 0, 0);
    let (mut share, mut tall) = (0.0, 0);
    for _ in 0..4000 {
        let window = crop.draw(300, 400, &mut rng);
        assert!(window.top + window.height <= 300 && window.left + window.width <= 400);
        let part = (window.height * window.width) as f64 / 120_000.0;
        let ratio = window.width as f64 / window.height as f64;
        assert!((0.075..=1.0).contains(&part) && (0.74..=1.35).contains(&ratio));
        share += part / 4000.0;
        tall += u32::from(ratio < 1.0);
    }
    // timm's means over 100,000 draws: crops that stick out are drawn again, which takes more of the large ones.
    assert!((share - 0.4324).abs() < 0.012, "{share}");
    assert!((f64::from(tall) / 4000.0 - 0.4159).abs() < 0.025, "{tall}");
    // No try fits a picture this narrow with large crops: its middle is taken, as wide as the ratio allows.
    let large = RandomResizedCrop {
        scale: [0.9, 1.0],
        ..crop
    };
    let whole = |top, left, height, width| Window {
        top,
        left,
        height,
        width,
    };
    assert_eq!(large.draw(100, 10, &mut rng), whole(43, 0, 13, 10));
    assert_eq!(large.draw(10, 100, &mut rng), whole(0, 43, 10, 13));
    assert_eq!(large.fallback(20, 21), Window::whole(20, 21));
}

#[test]
fn transforms_of_small_pictures_shift_and_mirror() -> Result<()> {
    let image = drawn(8, 8, 1);
    let transform = TrainTransform::small(8, 1);
    let padded = pad(&image, [4; 4], Padding::Zero)?;
    let mut seen = std::collections::BTreeSet::new();
    let mut mirrored = 0;
    for i in 0..600 {
        let xs = transform.apply(&image, &mut Rng::for_picture(0, 0, i))?;
        let picture = to_image(&(xs * 0.5 + 0.5))?;
        let place = (0..81).find_map(|place| {
            let part = padded.crop(place % 9, place / 9, 8, 8).ok()?;
            let flipped = hflip(&part) == picture;
            (flipped || part == picture).then_some((place, flipped))
        });
        let (place, flipped) = place.expect("a part of the padded picture");
        seen.insert(place);
        mirrored += u32::from(flipped);
    }
    assert!(seen.len() > 75, "{}", seen.len());
    assert!((250..350).contains(&mirrored), "{mirrored}");
    let crop = RandomCrop {
        size: 17,
        ..RandomCrop::default()
    };
    let error = crop
        .apply(&image, &mut Rng::for_picture(0, 0, 0))
        .expect_err("too large");
    assert_eq!(
        error.to_string(),
        "`picture`: expected at least 17 × 17 pixels with its padding, got 16 × 16 pixels"
    );
    Ok(())
}

#[test]
fn transforms_jitter_within_their_ranges() -> Result<()> {
    let grey = Image::new(1, 1, 3, vec![100; 3])?;
    let jitter = ColorJitter {
        brightness: 0.4,
        ..ColorJitter::OFF
    };
    let mut values = Vec::new();
    for i in 0..500 {
        let image = jitter.apply(&grey, &mut Rng::for_picture(0, 0, i))?;
        values.push(image.pixels()[0]);
    }
    assert!(values.iter().all(|x| (60..=140).contains(x)));
    assert!(values.iter().any(|x| *x < 65) && values.iter().any(|x| *x > 135));
    let image = drawn(9, 7, 3);
    assert_eq!(
        ColorJitter::OFF.apply(&image, &mut Rng::for_picture(0, 0, 0))?,
        image
    );
    let all = ColorJitter {
        hue: 0.2,
        ..ColorJitter::default()
    };
    assert_ne!(all.apply(&image, &mut Rng::for_picture(0, 0, 0))?, image);
    let flat = drawn(9, 7, 1);
    let colour = ColorJitter {
        saturation: 0.9,
        hue: 0.5,
        ..ColorJitter::OFF
    };
    assert_eq!(colour.apply(&flat, &mut Rng::for_picture(0, 0, 0))?, flat);
    Ok(())
}

#[test]
fn transforms_by_rand_augment_are_drawn_as_its_text_says() -> Result<()> {
    let augment: RandAugment = "rand-m9-mstd0.5-inc1".parse()?;
    assert_eq!(augment, RandAugment::default());
    let mut counts = [0; 3];
    let mut rng = Rng::for_picture(0, 0, 0);
    let mut angles = Vec::new();
    for _ in 0..6000 {
        let actions = augment.draw(&mut rng);
        counts[actions.len()] += 1;
        angles.extend(actions.iter().filter_map(|action| match action {
            Action::Rotate(angle) => Some(*angle),
            _ => None,
        }));
    }
    // Two draws, each done by half.
    assert!(
        (1350..1650).contains(&counts[0]) && (2850..3150).contains(&counts[1]),
        "{counts:?}"
    );
    assert!((320..480).contains(&angles.len()), "{}", angles.len());
    let size = angles.iter().map(|x| x.abs()).sum::<f64>() / angles.len() as f64;
    assert!((26.7..27.2).contains(&size), "{size}");
    assert!(angles.iter().all(|x| x.abs() <= 30.0));
    let left = angles.iter().filter(|x| **x < 0.0).count() as f64 / angles.len() as f64;
    assert!((0.4..0.6).contains(&left), "{left}");
    let image = drawn(12, 10, 1);
    for text in ["off", "rand-m3-n4-p0.9-mstd101-mmax12-inc0"] {
        let augment: RandAugment = text.parse()?;
        assert_eq!(augment.to_string(), text);
        augment.apply(&image, Interpolation::Random, FILL, &mut rng)?;
    }
    assert_eq!(
        RandAugment::OFF.apply(&image, Interpolation::Random, FILL, &mut rng)?,
        image
    );
    for (text, message) in [
        (
            "original",
            "setting `rand_augment`: must be `off` or start with `rand`, got `original`",
        ),
        (
            "rand-m9-w0",
            "setting `rand_augment`: lists of operations with weights are not known, got `w0`",
        ),
        (
            "rand-m9.5",
            "setting `rand_augment`: `m` must be a whole number, got `m9.5`",
        ),
        (
            "rand-q1",
            "setting `rand_augment`: sections are m, n, p, mstd, mmax and inc with a number, got `q1`",
        ),
        (
            "rand-p2",
            "setting `rand_augment`: `p` must lie in [0, 1], got 2",
        ),
    ] {
        assert_eq!(
            text.parse::<RandAugment>().expect_err(text).to_string(),
            message
        );
    }
    Ok(())
}

#[test]
fn transforms_erase_rectangles_of_the_given_area() -> Result<()> {
    let erasing = RandomErasing {
        prob: 0.5,
        ..RandomErasing::default()
    };
    let mut rng = Rng::for_picture(0, 0, 0);
    let mut erased = 0;
    for _ in 0..2000 {
        for window in erasing.draw(40, 60, &mut rng) {
            erased += 1;
            let part = (window.height * window.width) as f64 / 2400.0;
            let ratio = window.height as f64 / window.width as f64;
            assert!(
                (0.015..0.35).contains(&part) && (0.25..4.0).contains(&ratio),
                "{window:?}"
            );
            assert!(window.top + window.height <= 40 && window.left + window.width <= 60);
        }
    }
    assert!((900..1100).contains(&erased), "{erased}");
    let xs = Tensor::ones([3, 40, 60], (Kind::Float, tch::Device::Cpu));
    for (mode, values) in [
        (EraseMode::Const, 1),
        (EraseMode::Rand, 3),
        (EraseMode::Pixel, 99),
    ] {
        let erasing = RandomErasing {
            prob: 1.0,
            mode,
            ..RandomErasing::default()
        };
        let ys = erasing.apply(&xs, &mut Rng::for_picture(0, 0, 5))?;
        let changed = Vec::<f32>::try_from(ys.masked_select(&ys.ne(1.0)))?;
        let mut distinct: Vec<u32> = changed.iter().map(|x| x.to_bits()).collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert!((144..2500).contains(&changed.len()), "{}", changed.len());
        if values < 99 {
            assert_eq!(distinct.len(), values, "{mode:?}");
        } else {
            assert!(distinct.len() * 10 > changed.len() * 9);
        }
        assert!(mode != EraseMode::Const || changed[0] == 0.0);
    }
    assert_eq!(xs.sum(Kind::Float).double_value(&[]), 7200.0);
    Ok(())
}

#[test]
fn transforms_mix_as_often_as_they_should() -> Result<()> {
    let mixup = Mixup {
        prob: 0.8,
        ..Mixup::default()
    };
    let (mut none, mut cut, mut blends) = (0, 0, Vec::new());
    for step in 0..5000 {
        match mixup.draw(24, 32, &mut Rng::for_step(0, step))? {
            Mix::None => none += 1,
            Mix::Cut { window, lam } => {
                cut += 1;
                let area = (window.height * window.width) as f64;
                assert!((1.0 - area / 768.0 - lam).abs() < 1e-12);
                assert!(window.top + window.height <= 24 && window.left + window.width <= 32);
            }
            Mix::Blend { lam } => blends.push(lam),
        }
    }
    assert!(
        (900..1100).contains(&none) && (1880..2120).contains(&cut),
        "{none} {cut}"
    );
    // Mean 1/2 and variance 1/(4·(2·0.8 + 1)) of the distribution Beta(0.8, 0.8).
    let count = blends.len() as f64;
    let mean = blends.iter().sum::<f64>() / count;
    let variance = blends.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    assert!(
        (mean - 0.5).abs() < 0.03 && (variance - 0.0962).abs() < 0.008,
        "{mean} {variance}"
    );
    let off = Mixup {
        mixup_alpha: 0.0,
        cutmix_alpha: 0.0,
        ..Mixup::default()
    };
    let xs = Tensor::rand([2, 1, 4, 4], (Kind::Float, tch::Device::Cpu));
    let shares = losses::smoothed(&Tensor::from_slice(&[2_i64, 0]), 3, 0.1, Kind::Float);
    let (ys, targets) = off.apply(&xs, &shares, &mut Rng::for_step(0, 0))?;
    assert_bits(&ys, &xs);
    let (off_value, on) = (0.1 / 3.0, 0.9 + 0.1 / 3.0);
    let expected = Tensor::from_slice(&[off_value, off_value, on, on, off_value, off_value]);
    assert_close(
        &targets,
        &expected.view([2, 3]).to_kind(Kind::Float),
        1e-6,
        0.0,
    );
    let wrong = off.apply(&xs, &shares.narrow(0, 0, 1), &mut Rng::for_step(0, 0));
    let wrong = wrong.expect_err("shares of one picture");
    assert_eq!(wrong.to_string(), "`shares`: expected [2, _], got [1, 3]");
    let beyond = Mix::Cut {
        window: Window::whole(5, 4),
        lam: 0.5,
    };
    assert!(beyond.apply(&xs).is_err());
    Ok(())
}

#[test]
fn transforms_of_pairs_keep_them_aligned() -> Result<()> {
    let clean = drawn(30, 26, 3);
    let degraded = color::invert(&clean);
    let transform = PairTransform {
        size: 16,
        ..PairTransform::default()
    };
    let mut seen = std::collections::BTreeSet::new();
    for i in 0..40 {
        let (xs, ys) = transform.apply(&degraded, &clean, &mut Rng::for_picture(0, 0, i))?;
        assert_eq!(xs.size(), [3, 16, 16]);
        assert_close(&xs, &(1.0 - &ys), 0.0, 1e-6);
        seen.insert(to_image(&ys)?.into_pixels());
    }
    assert!(seen.len() > 35, "{}", seen.len());
    let error = transform.apply(&drawn(29, 26, 3), &clean, &mut Rng::for_picture(0, 0, 0));
    assert_eq!(
        error.expect_err("of another size").to_string(),
        "`degraded picture`: expected 26 × 30 pixels as the clean one, got 26 × 29 pixels"
    );
    Ok(())
}

#[test]
fn transforms_name_the_setting_that_is_wrong() {
    let train: TrainTransform = serde_json::from_value(json!({
        "crop": {"kind": "resized", "size": 160, "interpolation": "random"},
        "rand_augment": "off",
        "color_jitter": {"brightness": 0.2},
    }))
    .expect("a config");
    assert!(train.validate().is_ok() && train.size() == 160);
    assert_eq!(train.color_jitter.contrast, 0.4);
    let text = serde_json::to_value(TrainTransform::default()).expect("JSON");
    assert_eq!(text["rand_augment"], "rand-m9-mstd0.5-inc1");
    assert_eq!(
        serde_json::from_value::<TrainTransform>(text).expect("a config"),
        TrainTransform::default()
    );
    for settings in [
        json!({"crops": 1}),
        json!({"crop": {"kind": "padded", "scale": 1}}),
        json!({"rand_augment": "rand-x"}),
    ] {
        assert!(
            serde_json::from_value::<TrainTransform>(settings.clone()).is_err(),
            "{settings}"
        );
    }
    for (settings, message) in [
        (
            json!({"hflip": 1.5}),
            "setting `hflip`: must lie in [0, 1], got 1.5",
        ),
        (
            json!({"crop": {"kind": "resized", "scale": [0.5, 0.1]}}),
            "setting `scale`: must be two numbers above 0 and up to 1 in order, got [0.5, 0.1]",
        ),
        (
            json!({"crop": {"kind": "resized", "ratio": [0.0, 1.0]}}),
            "setting `ratio`: must be two positive numbers in order, got [0.0, 1.0]",
        ),
        (
            json!({"crop": {"kind": "padded", "padding": -1}}),
            "setting `padding`: must not be negative, got -1",
        ),
        (
            json!({"color_jitter": {"hue": 0.6}}),
            "setting `hue`: must lie in [0, 0.5], got 0.6",
        ),
        (
            json!({"erase": {"count": 0}}),
            "setting `count`: must be at least 1, got 0",
        ),
        (
            json!({"erase": {"min_aspect": 2}}),
            "setting `min_aspect`: must lie in (0, 1], got 2",
        ),
        (
            json!({"std": [0.1, 0.0, 0.1]}),
            "setting `std`: must be as many positive numbers as `mean`, got [0.1, 0.0, 0.1]",
        ),
        (
            json!({"mean": [0.1, 0.2]}),
            "setting `mean`: must be one or three numbers in [0, 1], got [0.1, 0.2]",
        ),
    ] {
        let config: TrainTransform = serde_json::from_value(settings).expect("a config");
        assert_eq!(config.validate().expect_err(message).to_string(), message);
    }
    let eval = EvalTransform {
        interpolation: Interpolation::Random,
        ..EvalTransform::default()
    };
    assert_eq!(EvalTransform::default().resized(), 256);
    assert!(eval.validate().is_err());
    let grey = TrainTransform::default().apply(&drawn(40, 40, 1), &mut Rng::for_picture(0, 0, 0));
    assert_eq!(
        grey.expect_err("one channel").to_string(),
        "`picture`: expected as many channels as means (3) and standard deviations (3), got 1"
    );
}

#[test]
fn transforms_take_grey_pictures_through_every_operation() -> Result<()> {
    // From 60 to 187, so that every operation has something to do.
    let mut image = drawn(40, 30, 1);
    for value in image.pixels_mut() {
        *value = *value / 2 + 60;
    }
    for op in Op::ALL {
        for sampling in [Sampling::Bilinear, Sampling::Bicubic] {
            let changed = op.action(9.0, true, true).apply(&image, sampling, FILL)?;
            assert_eq!(changed.channels(), 1);
            assert_eq!(changed == image, op == Op::Color, "{op:?}");
        }
    }
    let transform = TrainTransform {
        rand_augment: RandAugment::default(),
        erase: RandomErasing::default(),
        ..TrainTransform::small(24, 1)
    };
    for i in 0..50 {
        let xs = transform.apply(&image, &mut Rng::for_picture(0, 0, i))?;
        assert_eq!(xs.size(), [1, 24, 24]);
    }
    Ok(())
}
