//! Fitting radiance fields to photographs: losses, budgets, views, turns.

use std::f64::consts::TAU;

use densely_core::registry::find;
use densely_core::{Result, seeded, weights};
use densely_fields::fit::radiance::{
    RADIANCE_FIELDS, RadianceConfig, RadianceField, RayConfig, turntable,
};
use densely_fields::gnf::{DifGridConfig, GnfConfig};
use densely_fields::hashgrid::{Growth, HashGridConfig, NgpConfig, NgpHeadConfig};
use densely_fields::mip_nerf::MipNerfConfig;
use densely_fields::nerf::NerfConfig;
use densely_fields::occupancy::OccupancyConfig;
use densely_fields::render::rays::{Aabb, Rays};
use densely_fields::render::{Background, dense};
use densely_fields::scene::{Lens, Pixels, Pose, Scene, View, composite};
use densely_fields::{PRESETS, metrics};
use densely_testkit::{assert_bits, assert_close};
use serde_json::json;
use tch::kind::FLOAT_CPU;
use tch::nn::{Adam, OptimizerConfig, VarStore};
use tch::{Device, Kind, Tensor};

const RADIUS: f64 = 0.6;

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// A camera that looks at the origin, upright where z is up.
fn towards_origin(from: [f64; 3]) -> Pose {
    let unit = |v: [f64; 3]| v.map(|x| x / dot(v, v).sqrt());
    let z = unit(from);
    let x = unit([-z[1], z[0], 0.0]);
    let y = [
        z[1] * x[2] - z[2] * x[1],
        z[2] * x[0] - z[0] * x[2],
        z[0] * x[1] - z[1] * x[0],
    ];
    let row = |i: usize| [x[i], y[i], z[i], from[i]];
    Pose::new([row(0), row(1), row(2), [0.0, 0.0, 0.0, 1.0]]).expect("a pose")
}

fn view(i: u32, timed: bool) -> View {
    let (sin, cos) = (TAU * f64::from(i) / 8.0).sin_cos();
    let (rise, flat) = (0.3 + 0.3 * f64::from(i % 2)).sin_cos();
    View {
        name: format!("view {i}"),
        lens: Lens::pinhole(16, 16, 24.0),
        pose: towards_origin([3.0 * cos * flat, 3.0 * sin * flat, 3.0 * rise]),
        time: timed.then(|| f64::from(i) / 7.0),
    }
}

/// The colour of a ball at the origin, by the direction in which its surface looks.
fn ball_seen(view: &View, row: usize, column: usize) -> [u8; 4] {
    let origin = view.pose.origin();
    let direction = view.direction(row, column).expect("a direction");
    let (a, b) = (dot(direction, direction), dot(origin, direction));
    let square = b * b - a * (dot(origin, origin) - RADIUS * RADIUS);
    if square < 0.0 {
        return [0; 4];
    }
    let t = (-b - square.sqrt()) / a;
    let [red, green, blue] = [0, 1, 2].map(|i| {
        let normal = (origin[i] + t * direction[i]) / RADIUS;
        (127.5 * (1.0 + normal)) as u8
    });
    [red, green, blue, 255]
}

/// Eight views of 16 × 16 pixels around the ball.
fn ball(timed: bool) -> Scene {
    let views: Vec<View> = (0..8).map(|i| view(i, timed)).collect();
    let mut pictures = Vec::new();
    for view in &views {
        for place in 0..256 {
            pictures.extend(ball_seen(view, place / 16, place % 16));
        }
    }
    let pictures = Tensor::from_slice(&pictures).view([8, 16, 16, 4]);
    Scene::new(views, &pictures).expect("a scene")
}

fn rays() -> RayConfig {
    RayConfig {
        near: 1.5,
        far: 4.5,
        occupancy: OccupancyConfig {
            aabb: Aabb::centred(1.0),
            resolution: 24,
            step: 0.05,
            warmup: 32,
            ..OccupancyConfig::default()
        },
        ..RayConfig::default()
    }
}

fn ngp() -> NgpConfig {
    NgpConfig {
        grid: HashGridConfig {
            levels: 4,
            log2_table: 12,
            base: 4,
            growth: Growth::Finest(32),
            ..HashGridConfig::default()
        },
        head: NgpHeadConfig {
            hidden: 16,
            geometry: 8,
            harmonics: 2,
            ..NgpHeadConfig::default()
        },
    }
}

fn t_nerf() -> NerfConfig {
    NerfConfig {
        depth: 2,
        width: 16,
        skip: 1,
        colour_width: 8,
        place_degrees: 3,
        direction_degrees: 2,
        ..NerfConfig::t_nerf()
    }
}

fn mip_nerf() -> MipNerfConfig {
    MipNerfConfig {
        depth: 2,
        width: 16,
        skip: 1,
        colour_width: 8,
        place_degrees: 4,
        direction_degrees: 2,
        samples: 8,
        ..MipNerfConfig::mip_nerf()
    }
}

/// One network of each kind that is looked at in points.
fn networks_of_points() -> [RadianceConfig; 4] {
    let gnf = GnfConfig {
        encoder: DifGridConfig {
            dim: 3,
            resolutions: vec![2, 3, 4, 5, 4, 3],
            ..DifGridConfig::default()
        },
        ..GnfConfig::radiance()
    };
    let nerf = NerfConfig {
        warp: None,
        ..t_nerf()
    };
    [
        RadianceConfig::Nerf(nerf),
        RadianceConfig::Nerf(t_nerf()),
        RadianceConfig::Ngp(ngp()),
        RadianceConfig::Gnf(gnf),
    ]
}

fn build(config: &RadianceConfig, rays: &RayConfig) -> Result<(VarStore, RadianceField)> {
    let vs = VarStore::new(Device::Cpu);
    let field = seeded(1, || RadianceField::build(&vs.root(), config, rays))?;
    Ok((vs, field))
}

/// Marks every cell as occupied.
fn fill(vs: &VarStore) {
    let mut occupied = vs.variables()["occupancy.binaries"].shallow_clone();
    let _ = occupied.fill_(1);
}

fn loss(field: &RadianceField, pixels: &Pixels, step: u64) -> Result<Tensor> {
    seeded(step as i64, || {
        field.prepare(step)?;
        field.loss(pixels, step)
    })
}

fn white(pixels: &Pixels) -> Result<Tensor> {
    composite(&pixels.rgba, &Tensor::from_slice(&[1f32; 3]))
}

#[test]
fn a_small_hash_grid_learns_a_ball_that_a_held_out_view_shows() -> Result<()> {
    let scene = ball(false);
    let train: Vec<usize> = (1..8).collect();
    let (vs, field) = build(&RadianceConfig::Ngp(ngp()), &rays())?;
    let mut adam = Adam::default().build(&vs, 1e-2)?;
    for step in 0..80 {
        let pixels = scene.draw_of(&train, 512, step)?;
        adam.backward_step(&loss(&field, &pixels, step)?);
    }
    let target = white(&scene.view_pixels(0)?)?;
    let seen = field.render_view(&scene.views()[0])?;
    let blank = metrics::psnr(&target.ones_like(), &target)?;
    let found = metrics::psnr(&seen.rgb, &target)?;
    assert!(found > blank + 3.0, "{found} dB, and blank {blank} dB");
    // The same step draws the same.
    let pixels = scene.draw_of(&train, 64, 7)?;
    let again = || seeded(7, || field.loss(&pixels, 7));
    assert_bits(&again()?, &again()?);
    Ok(())
}

/// Against a network of the same weights at all pieces of all rays.
#[test]
fn views_are_those_of_all_pieces() -> Result<()> {
    const PIECES: i64 = 60;
    let (vs, field) = build(&RadianceConfig::Ngp(ngp()), &rays())?;
    let other = VarStore::new(Device::Cpu);
    let network = seeded(2, || ngp().build(&(other.root() / "field")))?;
    fill(&vs);
    let _no_grad = tch::no_grad_guard();
    let ours = vs.variables();
    let _ = seeded(3, || {
        ours["field.encoding.params"]
            .shallow_clone()
            .uniform_(-1.0, 1.0)
    });
    for (name, mut xs) in weights::named(&other) {
        xs.copy_(&ours[&name]);
    }
    let view = view(3, false);
    let seen = field.render_view(&view)?;
    let unit = view.rays()?.unit();
    let count = unit.count();
    let t = Tensor::linspace(1.5, 4.5, PIECES + 1, FLOAT_CPU).expand([count, PIECES + 1], false);
    let middle = (t.narrow(1, 0, PIECES) + t.narrow(1, 1, PIECES)) / 2.0;
    let places = unit.at(&middle)?; // [rays, pieces, 3]
    let inside = places.abs().amax(2, false).lt(1.0).to_kind(Kind::Float);
    let dirs = unit.dirs().unsqueeze(1).expand_as(&places).reshape([-1, 3]);
    let (sigma, rgb) = network.forward(&((places.view([-1, 3]) + 1.0) / 2.0), &dirs)?;
    let sigma = sigma.view([count, PIECES]) * inside;
    let expected = dense(&sigma, &rgb.view([count, PIECES, 3]), &t, None)?;
    // What less than 1e-4 of the light reaches is left out.
    assert_close(&seen.rgb, &expected.over(Background::White), 0.0, 1e-3);
    assert_close(&seen.opacity, &expected.opacity, 0.0, 1e-3);
    assert_close(&seen.depth, &expected.depth, 0.0, 5e-3);
    Ok(())
}

#[test]
fn rays_that_miss_the_box_see_the_background() -> Result<()> {
    for (background, level) in [(Background::White, 1.0), (Background::None, 0.0)] {
        let config = RayConfig {
            background,
            ..rays()
        };
        let (vs, field) = build(&RadianceConfig::Ngp(ngp()), &config)?;
        fill(&vs);
        let origins = Tensor::from_slice(&[0f32, 0.0, 3.0, 0.0, 0.0, 3.0]).view([2, 3]);
        let dirs = Tensor::from_slice(&[0f32, 0.0, 2.0, 0.0, 0.0, -2.0]).view([2, 3]);
        let seen = field.render(&Rays::new(origins, dirs)?, None)?;
        let away: Vec<f64> = seen.rgb.get(0).to_kind(Kind::Double).try_into()?;
        assert_eq!(away, [level; 3]);
        assert_eq!(seen.opacity.double_value(&[0]), 0.0);
        assert_eq!(seen.depth.double_value(&[0]), 0.0);
        assert!(seen.opacity.double_value(&[1]) > 0.5);
        assert!(seen.depth.double_value(&[1]) > 1.9);
    }
    Ok(())
}

#[test]
fn an_empty_grid_gives_a_loss_with_gradients_of_zero() -> Result<()> {
    let scene = ball(true);
    let pixels = scene.draw(32, 0)?;
    let target = white(&pixels)?;
    for config in networks_of_points() {
        let (vs, field) = build(&config, &rays())?;
        let found = seeded(0, || field.loss(&pixels, 0))?;
        let error = (&target - 1.0).square().mean(Kind::Double);
        let share = match &config {
            RadianceConfig::Gnf(_) => 1.0,
            _ => 0.5,
        };
        assert_close(&found.to_kind(Kind::Double), &(error * share), 1e-5, 1e-7);
        found.backward();
        let mut reached = 0;
        for xs in vs.trainable_variables() {
            let gradient = xs.grad();
            if gradient.defined() {
                assert_eq!(gradient.abs().sum(Kind::Double).double_value(&[]), 0.0);
                reached += 1;
            }
        }
        assert!(reached > 3, "{config:?}");
        let seen = field.render_view(&scene.views()[0])?;
        assert_eq!(seen.rgb.min().double_value(&[]), 1.0);
        assert_eq!(seen.opacity.max().double_value(&[]), 0.0);
    }
    Ok(())
}

#[test]
fn every_network_has_a_loss_with_gradients() -> Result<()> {
    let scene = ball(true);
    let pixels = scene.draw(32, 0)?;
    let mut configs = networks_of_points().to_vec();
    configs.push(RadianceConfig::MipNerf(mip_nerf()));
    for config in configs {
        let (vs, field) = build(&config, &rays())?;
        let field = field.with_pixel_radius(scene.views()[0].pixel_radius());
        thicken(&vs);
        let found = seeded(0, || field.loss(&pixels, 0))?;
        found.backward();
        let gradients = vs.trainable_variables();
        let sum: f64 = gradients
            .iter()
            .map(Tensor::grad)
            .filter(Tensor::defined)
            .map(|gradient| gradient.abs().sum(Kind::Double).double_value(&[]))
            .sum();
        assert!(sum > 0.0 && sum.is_finite(), "{config:?}: {sum}");
        let seen = field.render_view(&scene.views()[0])?;
        assert_eq!(seen.rgb.size(), [256, 3]);
        assert_eq!(seen.rgb.isfinite().all().int64_value(&[]), 1);
        assert_eq!(seen.depth.size(), [256]);
    }
    Ok(())
}

/// As [`fill`], where there is a grid; and lets rectified densities be above 0.
fn thicken(vs: &VarStore) {
    let _no_grad = tch::no_grad_guard();
    for (name, mut xs) in weights::named(vs) {
        if name.ends_with("sigma_layer.output_layer.bias") || name == "occupancy.binaries" {
            let _ = xs.fill_(1);
        }
    }
}

/// Rays through the middles of the pictures, which have forty pieces at least in the box, with the last one's pixel changed.
#[test]
fn a_step_looks_at_the_first_rays_that_its_samples_allow() -> Result<()> {
    let scene = ball(false);
    let places: Vec<[usize; 3]> = (0..16).map(|i| [i % 8, 8, 8]).collect();
    let found = |samples: i64, changed: Option<i64>| -> Result<Tensor> {
        let config = RayConfig { samples, ..rays() };
        let (vs, field) = build(&RadianceConfig::Ngp(ngp()), &config)?;
        fill(&vs);
        let pixels = scene.pixels(&places)?;
        if let Some(ray) = changed {
            let _ = pixels.rgba.select(0, ray).fill_(0.25);
        }
        seeded(4, || field.loss(&pixels, 0))
    };
    for (samples, left_out) in [(1, 1), (150, 15)] {
        assert_bits(&found(samples, None)?, &found(samples, Some(left_out))?);
        assert_ne!(found(samples, None)?, found(samples, Some(0))?);
    }
    assert_ne!(found(100_000, None)?, found(100_000, Some(15))?);
    Ok(())
}

#[test]
fn opacity_counts_from_its_step_on() -> Result<()> {
    let scene = ball(false);
    let pixels = scene.draw(64, 0)?;
    let of = |alpha_threshold: f64, step: u64| -> Result<Tensor> {
        let config = RayConfig {
            alpha_threshold,
            alpha_from: 10,
            ..rays()
        };
        let (vs, field) = build(&RadianceConfig::Ngp(ngp()), &config)?;
        fill(&vs);
        // A fresh network stops 5 % of the light in a step, and the mean is no limit.
        let _ = vs.variables()["occupancy.occs"].shallow_clone().fill_(1.0);
        seeded(5, || field.loss(&pixels, step))
    };
    assert_bits(&of(0.5, 9)?, &of(0.0, 9)?);
    assert_ne!(of(0.5, 10)?, of(0.0, 10)?);
    Ok(())
}

#[test]
fn what_a_network_lacks_is_named() -> Result<()> {
    let scene = ball(false);
    let pixels = scene.draw(4, 0)?;
    let (vs, field) = build(&RadianceConfig::Nerf(t_nerf()), &rays())?;
    fill(&vs);
    assert!(field.has_time());
    for error in [
        field.loss(&pixels, 0).expect_err("no times").to_string(),
        field
            .render_view(&scene.views()[0])
            .expect_err("no times")
            .to_string(),
    ] {
        assert!(error.contains("`times`"), "{error}");
    }
    let (vs, field) = build(&RadianceConfig::MipNerf(mip_nerf()), &rays())?;
    let names: Vec<String> = vs.variables().into_keys().collect();
    assert!(names.iter().all(|name| name.starts_with("field.")));
    let error = field.loss(&pixels, 0).expect_err("no radius").to_string();
    assert!(error.contains("`pixel_radius`"), "{error}");
    field.prepare(0)?;
    // A view brings its own.
    field.render_view(&scene.views()[0])?;
    assert!(field.loss(&scene.pixels(&[])?, 0).is_err());
    Ok(())
}

#[test]
fn configs_are_checked() -> Result<()> {
    for name in RADIANCE_FIELDS {
        let preset = find(PRESETS, name)?;
        RadianceConfig::of_preset(name, &(preset.config)())?;
    }
    let error = RadianceConfig::of_preset("siren", &json!({})).expect_err("no radiance field");
    assert_eq!(
        error.to_string(),
        "setting `model.preset`: `siren` is no radiance field; take ngp, gnf-radiance, nerf, nerf+cam, t-nerf, t-nerf+cam, mip-nerf, mip-nerf+cam"
    );
    assert!(RadianceConfig::of_preset("ngp", &json!({ "hidden": 1 })).is_err());
    let changed = |change: fn(&mut RayConfig)| {
        let mut rays = rays();
        change(&mut rays);
        rays.validate().expect_err("a wrong setting").to_string()
    };
    for (message, field) in [
        (changed(|rays| rays.near = 5.0), "`near`"),
        (changed(|rays| rays.near = -1.0), "`near`"),
        (changed(|rays| rays.far = f64::INFINITY), "`near`"),
        (changed(|rays| rays.samples = 0), "`samples`"),
        (
            changed(|rays| rays.alpha_threshold = 1.0),
            "`alpha_threshold`",
        ),
        (changed(|rays| rays.occupancy.step = 0.0), "`step`"),
    ] {
        assert!(message.contains(field), "{message}");
    }
    let changes = json!({ "head": { "hidden": 32 } });
    let config = RadianceConfig::resolve("ngp", changes.as_object().expect("a table"), 16, 6144)?;
    let RadianceConfig::Ngp(config) = RadianceConfig::of_preset("ngp", &config)? else {
        panic!("another network");
    };
    assert_eq!((config.head.hidden, config.head.geometry), (32, 16));
    for (name, word) in [("ngp", "head"), ("siren", "model.preset"), ("nrf", "nerf")] {
        let changes = json!({ "haed": 1 });
        let error = RadianceConfig::resolve(name, changes.as_object().expect("a table"), 16, 6144);
        let error = error.expect_err(word).to_string();
        assert!(error.contains(word), "{error}");
    }
    let text = json!(rays()).to_string();
    let read: RayConfig = serde_json::from_str(&text).expect("a config");
    assert_eq!(read, rays());
    assert!(serde_json::from_str::<RayConfig>(r#"{"fare": 1}"#).is_err());
    let text = toml::to_string(&rays()).expect("TOML");
    assert_eq!(
        toml::from_str::<RayConfig>(&text).expect("a config"),
        rays()
    );
    let wrong = NgpConfig {
        grid: HashGridConfig {
            inputs: 2,
            ..ngp().grid
        },
        ..ngp()
    };
    let error = build(&RadianceConfig::Ngp(wrong), &rays()).expect_err("two coordinates");
    assert!(error.to_string().contains("`grid.inputs`"), "{error}");
    Ok(())
}

#[test]
fn views_are_written_and_resized() -> Result<()> {
    let lens = Lens {
        radial: [0.1, 0.0],
        centre: [9.0, 6.0],
        ..Lens::pinhole(16, 16, 24.0)
    };
    let view = View {
        lens,
        ..view(1, true)
    };
    let text = json!(view).to_string();
    assert_eq!(serde_json::from_str::<View>(&text).expect("a view"), view);
    // A matrix that is no rigid motion is refused here, too.
    let mut wrong = json!(view);
    wrong["pose"][0][0] = json!(2.0);
    assert!(serde_json::from_value::<View>(wrong).is_err());
    let small = view.resized(8, 12)?;
    assert_eq!(
        (small.lens.focal, small.lens.centre),
        ([12.0; 2], [6.5, 3.0])
    );
    assert_eq!((small.lens.radial, small.pose), (lens.radial, view.pose));
    assert!((view.pixel_radius() - 2.0 / (12f64.sqrt() * 24.0)).abs() < 1e-15);
    assert!(view.resized(0, 4).is_err());
    Ok(())
}

#[test]
fn some_views_alone_are_drawn_from() -> Result<()> {
    let scene = ball(false);
    let drawn = scene.draw_of(&[3], 40, 1)?;
    let expected = view(3, false).pose.origin().map(|x| x as f32);
    for ray in 0..40 {
        let origin: Vec<f32> = drawn.rays.origins().get(ray).try_into()?;
        assert_eq!(origin, expected);
    }
    let all: Vec<usize> = (0..8).collect();
    let [some, every] = [scene.draw_of(&all, 40, 1)?, scene.draw(40, 1)?];
    assert_bits(some.rays.dirs(), every.rays.dirs());
    assert_bits(&some.rgba, &every.rgba);
    let error = scene.draw_of(&[], 40, 1).expect_err("no view").to_string();
    assert!(error.contains("`views`"), "{error}");
    assert!(scene.draw_of(&[8], 40, 1).is_err());
    let rays = scene.views()[5].rays()?;
    let pixels = scene.view_pixels(5)?;
    assert_bits(rays.dirs(), pixels.rays.dirs());
    assert_bits(rays.origins(), pixels.rays.origins());
    Ok(())
}

#[test]
fn a_turn_goes_around_what_all_cameras_look_at() -> Result<()> {
    let scene = ball(true);
    let frames = turntable(scene.views(), 5, Some((8, 12)))?;
    assert_eq!(frames.len(), 5);
    let heights = [0.3f64, 0.6].map(|rise| 3.0 * rise.sin());
    for (i, frame) in frames.iter().enumerate() {
        let (origin, ahead) = (frame.pose.origin(), frame.pose.turn([0.0, 0.0, -1.0]));
        let distance = dot(origin, origin).sqrt();
        for axis in 0..3 {
            assert!((origin[axis] + distance * ahead[axis]).abs() < 1e-9);
        }
        assert!((origin[2] - f64::midpoint(heights[0], heights[1])).abs() < 1e-9);
        assert!(frame.pose.turn([0.0, 1.0, 0.0])[2] > 0.5);
        assert_eq!(frame.time, Some(i as f64 / 4.0));
        assert_eq!((frame.lens.height, frame.lens.width), (8, 12));
        assert_eq!(
            (frame.lens.focal, frame.lens.centre),
            ([12.0; 2], [6.0, 4.0])
        );
    }
    let first = frames[0].pose.origin();
    assert!(first[0] > 1.0 && first[1].abs() < 1e-9, "{first:?}");
    assert_eq!(turntable(scene.views(), 1, None)?[0].time, Some(0.0));
    let (_vs, field) = build(&RadianceConfig::Ngp(ngp()), &rays())?;
    assert_eq!(field.render_view(&frames[1])?.rgb.size(), [96, 3]);
    // Cameras that stand side by side look at no point together.
    let lens = Lens::pinhole(2, 2, 2.0);
    let upright = |x: f64| View {
        name: String::new(),
        lens,
        pose: Pose::new([
            [1.0, 0.0, 0.0, x],
            [0.0, 1.0, 0.0, 0.0],
            [0.0, 0.0, 1.0, 4.0],
            [0.0, 0.0, 0.0, 1.0],
        ])
        .expect("a pose"),
        time: None,
    };
    let pictures = Tensor::zeros([2, 2, 2, 4], (Kind::Uint8, Device::Cpu));
    let pair = Scene::new(vec![upright(-1.0), upright(1.0)], &pictures)?;
    let frame = &turntable(pair.views(), 1, None)?[0];
    let (origin, ahead) = (frame.pose.origin(), frame.pose.turn([0.0, 0.0, -1.0]));
    assert!((dot(origin, ahead) + dot(origin, origin).sqrt()).abs() < 1e-9);
    assert!(origin[1].abs() < 1e-9 && frame.time.is_none());
    assert!(turntable(&[], 1, None).is_err());
    for (frames, size, field) in [(0, None, "`frames`"), (1, Some((0, 3)), "`size`")] {
        let error = turntable(pair.views(), frames, size)
            .expect_err(field)
            .to_string();
        assert!(error.contains(field), "{error}");
    }
    Ok(())
}
