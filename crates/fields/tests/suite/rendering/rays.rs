//! Cameras, boxes and distances along rays.

use densely_core::Result;
use densely_fields::render::rays::{Aabb, Camera, Rays};
use densely_fields::render::sampling;
use densely_testkit::{Golden, assert_bits, assert_near};
use tch::{Device, Kind, Tensor};

use super::{DOUBLE, HERE, assert_names};

#[test]
fn cameras_send_rays_through_the_middles_of_pixels() -> Result<()> {
    let golden = Golden::open(HERE, "rendering_camera");
    let camera: Camera = golden.config();
    let angle: f64 = golden.meta("angle").parse().expect("a number");
    let same = Camera::from_angle(camera.width, camera.height, angle)?;
    assert!((same.focal - camera.focal).abs() < 1e-12);
    let (pose, dirs) = (golden.tensor("pose"), golden.tensor("dirs"));
    let rays = camera.rays(&pose)?;
    assert_near(rays.dirs(), &dirs, 1e-12);
    let origin = golden.tensor("origin");
    assert_near(rays.origins(), &origin.expand([35, 3], false), 1e-15);
    assert!((camera.radius() - golden.tensor("radius").double_value(&[])).abs() < 1e-12);
    let lengths = rays.unit().lengths();
    assert_near(&lengths, &Tensor::ones([35], DOUBLE), 1e-14);
    // Some pixels, each with a pose of its own.
    let (row, column) = (
        Tensor::from_slice(&[4i64, 0]),
        Tensor::from_slice(&[1i64, 6]),
    );
    let poses = Tensor::stack(
        &[pose.narrow(0, 0, 3), Tensor::eye(4, DOUBLE).narrow(0, 0, 3)],
        0,
    );
    let some = camera.rays_through(&poses, &row, &column)?;
    assert_near(&some.dirs().select(0, 0), &dirs.select(0, 4 * 7 + 1), 1e-12);
    let corner = [3.0, 2.0, -camera.focal].map(|x| x / camera.focal);
    assert_near(
        &some.dirs().select(0, 1),
        &Tensor::from_slice(&corner),
        1e-12,
    );
    assert_bits(&some.origins().select(0, 1), &Tensor::zeros([3], DOUBLE));
    Ok(())
}

#[test]
fn boxes_are_met_where_nerfacc_meets_them() -> Result<()> {
    let golden = Golden::open(HERE, "rendering_box");
    let aabb: Aabb = golden.config();
    let rays = Rays::new(golden.tensor("origins"), golden.tensor("dirs"))?;
    for (name, near, far) in [("open", -1e30, 1e30), ("limited", 0.5, 4.0)] {
        let found = rays.meet(&aabb, near, far)?;
        let hit = golden.tensor(&format!("{name}.hit"));
        assert_bits(&found.hit, &hit);
        assert!((10..50).contains(&hit.sum(Kind::Int64).int64_value(&[])));
        for (side, distance) in [("enter", &found.enter), ("leave", &found.leave)] {
            let expected = golden.tensor(&format!("{name}.{side}"));
            assert_near(
                &distance.masked_select(&hit),
                &expected.masked_select(&hit),
                1e-12,
            );
        }
    }
    // A ray in a face and along it, where 0 / 0 comes up.
    let origin = Tensor::from_slice(&[aabb.min[0], 0.0, -3.0]).view([1, 3]);
    let along = Rays::new(origin, Tensor::from_slice(&[0.0, 0.0, 1.0]).view([1, 3]))?;
    let found = along.meet(&aabb, 0.0, 1e10)?;
    assert_eq!(found.hit.int64_value(&[0]), 1);
    assert!((found.enter.double_value(&[0]) - 3.0 - aabb.min[2]).abs() < 1e-12);
    Ok(())
}

#[test]
fn distances_are_drawn_as_in_nerfs_first_code() -> Result<()> {
    let golden = Golden::open(HERE, "rendering_sampling");
    let t = sampling::steps(&golden.tensor("near"), &golden.tensor("far"), 9)?;
    assert_near(&t, &golden.tensor("steps"), 1e-14);
    let t = sampling::stratified(&t, &golden.tensor("jitter"))?;
    assert_near(&t, &golden.tensor("stratified"), 1e-14);
    let weights = golden.tensor("weights").set_requires_grad(true);
    let even = sampling::even(6, 14, 1.0, Kind::Double);
    assert_near(&even, &golden.tensor("u.even"), 1e-15);
    for (name, uniforms) in [("random", golden.tensor("u.random")), ("even", even)] {
        let fine = sampling::hierarchical(&t, &weights, &uniforms)?;
        assert_near(&fine, &golden.tensor(&format!("fine.{name}")), 1e-12);
        assert!(!fine.requires_grad());
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() -> Result<()> {
    let reals = |count| Tensor::zeros([count], DOUBLE);
    assert_names(Rays::new(reals(3), reals(3)).map(drop), "`origins`");
    let whole = || Tensor::ones([2, 3], (Kind::Int64, Device::Cpu));
    assert_names(Rays::new(whole(), whole()).map(drop), "`origins`");
    let rays = Rays::new(Tensor::zeros([2, 3], DOUBLE), Tensor::ones([2, 3], DOUBLE))?;
    assert_names(rays.meet(&Aabb::centred(0.0), 0.0, 1.0).map(drop), "`aabb`");
    assert_names(Camera::from_angle(0, 4, 0.6).map(drop), "`width`");
    assert_names(Camera::from_angle(4, 4, 0.0).map(drop), "`focal`");
    let camera = Camera::from_angle(4, 4, 0.6)?;
    assert_names(
        camera.rays(&Tensor::zeros([2, 4], DOUBLE)).map(drop),
        "`pose`",
    );
    let empty = Camera {
        width: -1,
        ..camera
    };
    let pose = Tensor::eye(4, DOUBLE);
    assert_names(empty.rays(&pose).map(drop), "`width`");
    let xs = Tensor::zeros([2, 3], DOUBLE);
    let narrow = xs.narrow(1, 0, 2);
    assert_names(sampling::steps(&reals(2), &reals(3), 4).map(drop), "`far`");
    assert_names(
        sampling::steps(&reals(2), &reals(2), 0).map(drop),
        "`count`",
    );
    assert_names(sampling::stratified(&xs, &narrow).map(drop), "`uniforms`");
    assert_names(
        sampling::hierarchical(&xs, &narrow, &xs).map(drop),
        "`weights`",
    );
    assert_names(
        sampling::hierarchical(&narrow, &narrow, &xs).map(drop),
        "samples",
    );
    let none = xs.narrow(1, 0, 0);
    assert_names(sampling::stratified(&none, &none).map(drop), "`count`");
    let single = xs.to_kind(Kind::Float);
    assert_names(sampling::stratified(&xs, &single).map(drop), "`uniforms`");
    assert_names(
        sampling::hierarchical(&xs, &single, &xs).map(drop),
        "`weights`",
    );
    assert_names(
        sampling::hierarchical(&xs, &xs, &single).map(drop),
        "`uniforms`",
    );
    assert_names(
        sampling::hierarchical(&whole(), &whole(), &whole()).map(drop),
        "`t`",
    );
    Ok(())
}
