//! Volume rendering against nerfacc, and its paths against each other; where rays come from and are sampled; occupancy grids.

mod occupancy;
mod rays;

use std::time::Instant;

use densely_core::{Model, Result, Tensors, nn, seeded};
use densely_fields::occupancy::OccupancyConfig;
use densely_fields::render::packed::Samples;
use densely_fields::render::rays::Rays;
use densely_fields::render::{Background, Rendered, VolumeRenderConfig, classic, dense};
use densely_testkit::{Golden, assert_bits, assert_near, goldens};
use densely_torch_ext::fused::PlainPaths;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");
const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

pub(crate) fn tolerance_of(golden: &Golden) -> (Kind, f64) {
    match golden.meta("dtype") {
        "float64" => (Kind::Double, 1e-9),
        _ => (Kind::Float, 1e-5),
    }
}

fn random(size: &[i64], seed: i64) -> Tensor {
    seeded(seed, || Tensor::rand(size, DOUBLE))
}

fn leaf(golden: &Golden, name: &str) -> Tensor {
    golden.tensor(name).copy().set_requires_grad(true)
}

/// Asserts that a refusal names a part.
#[track_caller]
fn assert_names(result: Result<()>, part: &str) {
    let message = result.expect_err(part).to_string();
    assert!(message.contains(part), "{message} does not name {part}");
}

/// Outputs, and the gradients of their sum weighted by the golden's cotangents.
fn assert_golden(golden: &Golden, seen: &Rendered, rgb: &Tensor, inputs: &Tensors, tolerance: f64) {
    let outputs = [
        ("rgb", rgb),
        ("opacity", &seen.opacity),
        ("depth", &seen.depth),
        ("weights", &seen.weights),
    ];
    let mut loss = Tensor::zeros([], (rgb.kind(), Device::Cpu));
    for (name, xs) in outputs {
        assert_near(xs, &golden.tensor(&format!("output.{name}")), tolerance);
        loss += (xs * golden.tensor(&format!("cotangent.{name}"))).sum(None);
    }
    loss.backward();
    let expected = golden.group("grad.");
    assert_eq!(expected.len(), inputs.len());
    for (name, grad) in expected {
        assert_near(&inputs[&name].grad(), &grad, tolerance);
    }
}

fn leaves<const N: usize>(golden: &Golden, names: [&str; N]) -> Tensors {
    names
        .map(|name| (name.to_owned(), leaf(golden, name)))
        .into()
}

#[test]
fn dense_rendering_and_its_gradients_equal_nerfaccs() -> Result<()> {
    for name in goldens(HERE, "rendering_dense_", 2) {
        let golden = Golden::open(HERE, &name);
        let (_, tolerance) = tolerance_of(&golden);
        let xs = leaves(&golden, ["sigma", "rgb", "t"]);
        let seen = dense(&xs["sigma"], &xs["rgb"], &xs["t"], None)?;
        let rgb = seen.over(Background::White);
        assert_golden(&golden, &seen, &rgb, &xs, tolerance);
    }
    Ok(())
}

#[test]
fn classic_rendering_and_its_gradients_equal_the_first_code() -> Result<()> {
    let golden = Golden::open(HERE, "rendering_classic");
    let xs = leaves(&golden, ["sigma", "rgb", "t", "lengths"]);
    let seen = classic(&xs["sigma"], &xs["rgb"], &xs["t"], Some(&xs["lengths"]))?;
    assert_golden(&golden, &seen, &seen.rgb, &xs, 1e-9);
    Ok(())
}

/// On the fused path and on the plain one.
#[test]
fn packed_rendering_and_its_gradients_equal_a_walk_along_each_ray() -> Result<()> {
    for name in goldens(HERE, "rendering_packed_", 2) {
        let golden = Golden::open(HERE, &name);
        let (_, tolerance) = tolerance_of(&golden);
        let rays: i64 = golden.meta("rays").parse().expect("a number");
        let [ray, start, end] = ["ray", "start", "end"].map(|name| golden.tensor(name));
        let samples = Samples::new(ray, start, end, rays)?;
        for plain in [false, true] {
            let _plain = plain.then(PlainPaths::new);
            let xs = leaves(&golden, ["sigma", "rgb"]);
            let seen = samples.render(&xs["sigma"], &xs["rgb"])?;
            assert_golden(&golden, &seen, &seen.rgb, &xs, tolerance);
        }
    }
    Ok(())
}

/// Samples of random rays of up to `most` pieces, every seventh ray empty; and the same as rows padded with pieces of no length.
struct Ragged {
    samples: Samples,
    t: Tensor,
    places: Tensor,
    most: i64,
}

impl Ragged {
    /// Values of samples as rows, with zeros where there is none.
    fn padded(&self, xs: &Tensor) -> Tensor {
        let (rays, rest) = (self.samples.rays(), &xs.size()[1..]);
        Tensor::zeros(
            [&[rays * self.most], rest].concat(),
            (xs.kind(), Device::Cpu),
        )
        .index_copy(0, &self.places, xs)
        .view([&[rays, self.most], rest].concat().as_slice())
    }
}

fn ragged(rays: i64, most: i64, seed: i64) -> Result<Ragged> {
    let share = random(&[rays], seed);
    let mut counts = (share.square() * (most + 1) as f64)
        .floor()
        .to_kind(Kind::Int64);
    let numbers = Tensor::arange(rays, (Kind::Int64, Device::Cpu));
    counts = counts.masked_fill(&numbers.remainder(7).eq(3), 0);
    let column = Tensor::arange(most, (Kind::Int64, Device::Cpu)).unsqueeze(0);
    let inside = column.lt_tensor(&counts.unsqueeze(1)); // [rays, most]
    let lengths = random(&[rays, most], seed + 1) * 0.1;
    let t = (lengths * inside.to_kind(Kind::Double)).cumsum(1, None) + 1.0;
    let t = Tensor::cat(&[Tensor::ones([rays, 1], DOUBLE), t], 1);
    let places = inside.flatten(0, -1).nonzero().squeeze_dim(1);
    let taken = |xs: Tensor| xs.flatten(0, -1).index_select(0, &places);
    let samples = Samples::new(
        places.divide_scalar_mode(most, "floor"),
        taken(t.narrow(1, 0, most).contiguous()),
        taken(t.narrow(1, 1, most).contiguous()),
        rays,
    )?;
    Ok(Ragged {
        samples,
        t,
        places,
        most,
    })
}

/// Both ways for 10⁴ rays: every output and, in f64, the gradients of densities and colours.
#[test]
fn packed_equals_dense() -> Result<()> {
    let (rays, most) = (10_000, 150);
    let rows = ragged(rays, most, 1)?;
    let samples = &rows.samples;
    assert!(samples.count() > 300_000);
    let sigma = random(&[samples.count()], 5) * 20.0;
    let rgb = random(&[samples.count(), 3], 6);
    let cotangent = random(&[rays, 3], 7);
    let [dense_sigma, packed_sigma] = [(); 2].map(|()| sigma.copy().set_requires_grad(true));
    let [dense_rgb, packed_rgb] = [(); 2].map(|()| rgb.copy().set_requires_grad(true));
    let by_rows = dense(
        &rows.padded(&dense_sigma),
        &rows.padded(&dense_rgb),
        &rows.t,
        None,
    )?;
    let by_samples = samples.render(&packed_sigma, &packed_rgb)?;
    assert_near(&by_samples.rgb, &by_rows.rgb, 1e-12);
    assert_near(&by_samples.opacity, &by_rows.opacity, 1e-12);
    assert_near(&by_samples.depth, &by_rows.depth, 1e-12);
    let weights = by_rows.weights.flatten(0, -1).index_select(0, &rows.places);
    assert_near(&by_samples.weights, &weights, 1e-12);
    for seen in [&by_rows, &by_samples] {
        let loss = (&seen.rgb * &cotangent).sum(None) + seen.depth.square().sum(None);
        let loss = loss + seen.weights.square().sum(None) + seen.opacity.sin().sum(None);
        loss.backward();
    }
    assert_near(&packed_sigma.grad(), &dense_sigma.grad(), 1e-9);
    assert_near(&packed_rgb.grad(), &dense_rgb.grad(), 1e-9);
    let single = |xs: &Tensor| xs.to_kind(Kind::Float);
    let in_f32 = Samples::new(
        samples.ray().copy(),
        single(samples.start()),
        single(samples.end()),
        rays,
    )?
    .render(&single(&sigma), &single(&rgb))?;
    assert_near(&in_f32.rgb, &by_rows.rgb, 2e-6);
    Ok(())
}

/// Central differences of a loss of all outputs along single densities.
#[test]
fn gradients_of_densities_are_finite_differences() -> Result<()> {
    let Ragged { samples, .. } = ragged(23, 9, 40)?;
    let sigma = (random(&[samples.count()], 8) * 8.0).set_requires_grad(true);
    let rgb = random(&[samples.count(), 3], 9);
    let loss = |sigma: &Tensor| -> Result<Tensor> {
        let seen = samples.render(sigma, &rgb)?;
        let weights = seen.weights.square().sum(None);
        Ok(seen.rgb.square().sum(None) + seen.depth.sin().sum(None) + weights)
    };
    loss(&sigma)?.backward();
    let grad = sigma.grad();
    let step = 1e-5;
    for i in 0..samples.count() {
        let moved = |by: f64| -> Result<f64> {
            let xs = sigma.detach().copy();
            let _ = xs.narrow(0, i, 1).g_add_scalar_(by);
            Ok(loss(&xs)?.double_value(&[]))
        };
        let difference = (moved(step)? - moved(-step)?) / (2.0 * step);
        let found = grad.double_value(&[i]);
        assert!(
            (difference - found).abs() < 1e-8,
            "{i}: {difference} {found}"
        );
    }
    Ok(())
}

#[test]
fn what_is_seen_and_what_passes_is_all_there_is() -> Result<()> {
    let (rays, most) = (50, 30);
    let t = random(&[rays, most + 1], 10).cumsum(1, None);
    let sigma = random(&[rays, most], 11) * 0.3;
    let seen = dense(&sigma, &random(&[rays, most, 3], 12), &t, None)?;
    let deltas = t.diff(1, 1, None::<&Tensor>, None::<&Tensor>);
    let passes = (-(&sigma * deltas).sum_dim_intlist(1, false, None)).exp();
    assert_near(
        &(&seen.opacity + passes),
        &Tensor::ones([rays], DOUBLE),
        1e-13,
    );
    // Twice as long directions are twice as thick.
    let lengths = Tensor::full([rays], 2.0, DOUBLE);
    let thick = dense(&sigma, &random(&[rays, most, 3], 12), &t, Some(&lengths))?;
    let doubled = dense(&(sigma * 2.0), &random(&[rays, most, 3], 12), &t, None)?;
    assert_near(&thick.weights, &doubled.weights, 1e-13);
    Ok(())
}

/// Opacities of 1e-6 a sample, of which 1 - exp(-τ) would keep a digit.
#[test]
fn thin_rays_keep_their_digits_in_f32() -> Result<()> {
    let rows = ragged(40, 20, 60)?;
    let of_kind = |kind: Kind| {
        let at = |xs: &Tensor| xs.to_kind(Kind::Float).to_kind(kind);
        let (start, end) = (at(rows.samples.start()), at(rows.samples.end()));
        Samples::new(rows.samples.ray().copy(), start, end, rows.samples.rays())
    };
    let count = rows.samples.count();
    let single = |xs: Tensor| xs.to_kind(Kind::Float);
    let sigma = single(random(&[count], 61) * 1e-5);
    let rgb = single(random(&[count, 3], 62));
    let exact =
        of_kind(Kind::Double)?.render(&sigma.to_kind(Kind::Double), &rgb.to_kind(Kind::Double))?;
    assert!(exact.opacity.max().double_value(&[]) < 1e-5);
    let t = single(rows.t.copy());
    for seen in [
        of_kind(Kind::Float)?.render(&sigma, &rgb)?,
        dense(&rows.padded(&sigma), &rows.padded(&rgb), &t, None)?,
    ] {
        assert_near(&seen.rgb, &exact.rgb, 1e-6);
        assert_near(&seen.opacity, &exact.opacity, 1e-6);
    }
    Ok(())
}

#[test]
fn rays_without_samples_see_the_background() -> Result<()> {
    let none = |kind| Tensor::zeros([0], (kind, Device::Cpu));
    for rays in [0, 3] {
        let samples = Samples::new(
            none(Kind::Int64),
            none(Kind::Double),
            none(Kind::Double),
            rays,
        )?;
        for plain in [false, true] {
            let _plain = plain.then(PlainPaths::new);
            let rgb = Tensor::zeros([0, 3], DOUBLE);
            let seen = samples.render(&none(Kind::Double), &rgb)?;
            assert_bits(
                &seen.over(Background::White),
                &Tensor::ones([rays, 3], DOUBLE),
            );
            assert_bits(
                &seen.over(Background::Black),
                &Tensor::zeros([rays, 3], DOUBLE),
            );
            assert_bits(&seen.depth, &Tensor::zeros([rays], DOUBLE));
            let mask = samples.visible(&none(Kind::Double), 1e-4, 0.1)?;
            assert_eq!(samples.keep(&mask)?.count(), 0);
        }
    }
    let rays = Samples::new(
        Tensor::from_slice(&[1i64]),
        Tensor::from_slice(&[0.0]),
        Tensor::from_slice(&[1.0]),
        3,
    )?;
    let seen = rays.render(
        &Tensor::from_slice(&[1e9]),
        &Tensor::full([1, 3], 0.25, DOUBLE),
    )?;
    let expected = Tensor::from_slice(&[0.5, 0.25, 0.5])
        .unsqueeze(1)
        .expand([3, 3], false);
    assert_bits(
        &seen.over_colour(&Tensor::from_slice(&[0.5; 3]))?,
        &expected.contiguous(),
    );
    Ok(())
}

#[test]
fn seen_samples_are_nerfaccs() -> Result<()> {
    let golden = Golden::open(HERE, "rendering_visible");
    let (sigma, t) = (golden.tensor("sigma"), golden.tensor("t"));
    let [rays, most] = <[i64; 2]>::try_from(sigma.size()).expect("two sizes");
    let ray =
        Tensor::arange(rays * most, (Kind::Int64, Device::Cpu)).divide_scalar_mode(most, "floor");
    let flat = |first| t.narrow(1, first, most).contiguous().view(-1);
    let samples = Samples::new(ray, flat(0), flat(1), rays)?;
    let expected = golden.group("seen.");
    assert_eq!(expected.len(), 4);
    let mut counts = Vec::new();
    for (limits, expected) in expected {
        let (early, alpha) = match limits.as_str() {
            "0.0001.0.0" => (1e-4, 0.0),
            "0.0001.0.05" => (1e-4, 0.05),
            "0.3.0.2" => (0.3, 0.2),
            "0.0.0.0" => (0.0, 0.0),
            other => panic!("{other}"),
        };
        for plain in [false, true] {
            let _plain = plain.then(PlainPaths::new);
            let seen = samples.visible(&sigma.view(-1), early, alpha)?;
            assert_bits(&seen, &expected.view(-1));
            counts.push(samples.keep(&seen)?.count());
        }
    }
    counts.dedup();
    assert_eq!(counts.len(), 4, "each limit leaves out others: {counts:?}");
    Ok(())
}

#[test]
fn bits_do_not_depend_on_the_threads() -> Result<()> {
    fn run() -> Result<[Tensor; 3]> {
        let Ragged { samples, .. } = ragged(3000, 200, 3)?;
        let sigma = (random(&[samples.count()], 15) * 10.0).set_requires_grad(true);
        let rgb = random(&[samples.count(), 3], 16).set_requires_grad(true);
        let seen = samples.render(&sigma, &rgb)?;
        (seen.rgb.square().sum(None) + seen.depth.sum(None)).backward();
        Ok([seen.rgb.detach(), sigma.grad(), rgb.grad()])
    }
    let alone = std::thread::spawn(|| {
        densely_torch_ext::threads::compute_alone();
        run()
    });
    let (here, alone) = (run()?, alone.join().expect("no panic")?);
    for (here, alone) in here.iter().zip(&alone) {
        assert_bits(alone, here);
    }
    Ok(())
}

#[test]
fn second_derivatives_are_refused_on_the_fast_path_and_right_on_the_plain_one() -> Result<()> {
    let Ragged { samples, .. } = ragged(5, 4, 2)?;
    let rgb = random(&[samples.count(), 3], 17);
    let sigma = random(&[samples.count()], 18).set_requires_grad(true);
    let slope = || -> Result<Tensor> {
        let sum = samples.render(&sigma, &rgb)?.rgb.sum(None);
        let slopes = Tensor::f_run_backward(&[sum], &[&sigma], true, true)?;
        Ok(slopes[0].sum(None))
    };
    let message = slope().expect_err("no second derivatives").to_string();
    assert!(message.contains("second derivatives"), "{message}");
    let _plain = PlainPaths::new();
    let curve = Tensor::f_run_backward(&[slope()?], &[&sigma], false, false)?;
    assert!(curve[0].abs().max().double_value(&[]) > 0.0);
    Ok(())
}

/// The aim: at least four times as fast where a tenth of the samples is left. Forward and backward, f32.
#[test]
#[ignore = "measures time: run it alone"]
fn packed_is_four_times_as_fast_as_dense_at_a_tenth_of_the_samples() -> Result<()> {
    let (rays, all) = (4096, 1024);
    // A tenth of the places of each row, on average.
    let alive = random(&[rays, all], 50).lt(0.1);
    let t =
        (Tensor::arange(all + 1, (Kind::Float, Device::Cpu)) * 5e-3).expand([rays, all + 1], false);
    let places = alive.flatten(0, -1).nonzero().squeeze_dim(1);
    let taken = |first| {
        t.narrow(1, first, all)
            .contiguous()
            .view(-1)
            .index_select(0, &places)
    };
    let samples = Samples::new(
        places.divide_scalar_mode(all, "floor"),
        taken(0),
        taken(1),
        rays,
    )?;
    let single = |size: &[i64], seed| random(size, seed).to_kind(Kind::Float);
    let few = [
        single(&[samples.count()], 51),
        single(&[samples.count(), 3], 52),
    ];
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let many = [
        zeros(&[rays * all])
            .index_copy(0, &places, &few[0])
            .view([rays, all]),
        zeros(&[rays * all, 3])
            .index_copy(0, &places, &few[1])
            .view([rays, all, 3]),
    ];
    let timed =
        |inputs: &[Tensor; 2], render: &dyn Fn(&[Tensor; 2]) -> Result<Rendered>| -> Result<f64> {
            let mut times = Vec::new();
            for _ in 0..7 {
                let leaves = inputs
                    .each_ref()
                    .map(|xs| xs.detach().set_requires_grad(true));
                let begin = Instant::now();
                render(&leaves)?.rgb.square().sum(None).backward();
                times.push(begin.elapsed().as_secs_f64());
            }
            times.sort_by(f64::total_cmp);
            Ok(times[3])
        };
    let t = t.contiguous();
    let dense = timed(&many, &|[sigma, rgb]| dense(sigma, rgb, &t, None))?;
    let packed = timed(&few, &|[sigma, rgb]| samples.render(sigma, rgb))?;
    let plain = {
        let _plain = PlainPaths::new();
        timed(&few, &|[sigma, rgb]| samples.render(sigma, rgb))?
    };
    let grid = occupancy::filled_grid(&OccupancyConfig::default(), |places| {
        places
            .norm_scalaropt_dim(2.0, [1].as_slice(), false)
            .lt(0.6)
    })?;
    let origins = Tensor::from_slice(&[0.0, -4.0, 0.0])
        .expand([rays, 3], false)
        .to_kind(Kind::Float);
    let aims = (single(&[rays, 3], 53) - 0.5) * 2.4;
    let walk = Rays::new(origins.contiguous(), aims - origins)?.unit();
    let begin = Instant::now();
    let found = grid.march(&walk, 0.0, 1e10, None)?;
    let march = begin.elapsed().as_secs_f64();
    let report = format!(
        "dense {:.1} ms, packed {:.2} ms ({:.1} times), by tensors {:.1} ms; {} samples marched in {:.1} ms",
        dense * 1e3,
        packed * 1e3,
        dense / packed,
        plain * 1e3,
        found.count(),
        march * 1e3,
    );
    assert!(dense / packed >= 4.0, "{report}");
    std::io::Write::write_all(&mut std::io::stderr(), format!("{report}\n").as_bytes())
        .expect("stderr");
    Ok(())
}

#[test]
fn volume_rendering_is_a_model_without_parameters() -> Result<()> {
    let vs = VarStore::new(Device::Cpu);
    let config: VolumeRenderConfig =
        serde_json::from_str(r#"{"background": "white"}"#).expect("a config");
    let model = config.build(&vs.root())?;
    assert_eq!((nn::parameter_count(&vs), config.macs()), (0, 0));
    let inputs = || {
        Tensors::from([
            ("sigma".to_owned(), Tensor::zeros([2, 4], DOUBLE)),
            ("rgb".to_owned(), random(&[2, 4, 3], 19)),
            ("t".to_owned(), random(&[2, 5], 20)),
        ])
    };
    let outputs = model.forward_named(&inputs(), false)?;
    assert_bits(&outputs["rgb"], &Tensor::ones([2, 3], DOUBLE));
    assert_bits(&outputs["weights"], &Tensor::zeros([2, 4], DOUBLE));
    let refused = |name: &str, change: &dyn Fn(&Tensor) -> Tensor| {
        let mut inputs = inputs();
        let changed = change(&inputs[name]);
        inputs.insert(name.to_owned(), changed);
        let error = model
            .forward_named(&inputs, false)
            .expect_err("an input that does not fit");
        assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
    };
    for name in ["sigma", "rgb", "t"] {
        refused(name, &|xs| Tensor::cat(&[xs, xs], -1));
        refused(name, &|xs| xs.unsqueeze(0));
        refused(name, &|xs| xs.to_kind(Kind::Int));
        let mut fewer = inputs();
        fewer.remove(name);
        let error = model
            .forward_named(&fewer, false)
            .expect_err("one input too few");
        assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
    }
    refused("sigma", &|xs| xs.narrow(1, 0, 0));
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() -> Result<()> {
    let numbers = |xs: &[i64]| Tensor::from_slice(xs);
    let reals = |count| Tensor::zeros([count], DOUBLE);
    for (ray, rays) in [(&[0i64, 2, 1][..], 3), (&[0, 1, 3], 3), (&[-1, 0, 1], 3)] {
        assert_names(
            Samples::new(numbers(ray), reals(3), reals(3), rays).map(drop),
            "`ray`",
        );
    }
    assert_names(
        Samples::new(numbers(&[0]), reals(2), reals(1), 1).map(drop),
        "`start`",
    );
    assert_names(
        Samples::new(numbers(&[0]), reals(1), reals(2), 1).map(drop),
        "`end`",
    );
    assert_names(
        Samples::new(reals(1), reals(1), reals(1), 1).map(drop),
        "`ray`",
    );
    let samples = Samples::new(numbers(&[0, 1]), reals(2), reals(2), 2)?;
    assert_names(
        samples
            .render(&reals(3), &Tensor::zeros([2, 3], DOUBLE))
            .map(drop),
        "`sigma`",
    );
    assert_names(
        samples
            .render(&reals(2), &Tensor::zeros([2, 4], DOUBLE))
            .map(drop),
        "`rgb`",
    );
    let single = reals(2).to_kind(Kind::Float);
    assert_names(
        samples
            .render(&single, &Tensor::zeros([2, 3], DOUBLE))
            .map(drop),
        "`sigma`",
    );
    assert_names(samples.keep(&reals(2)).map(drop), "`mask`");
    Ok(())
}
