//! MAXIM against the released JAX code, with weights that a formula gives; see `python/goldens/vision_maxim.py`.

use densely_core::{Model, Result, Tensors, nn, seeded, weights};
use densely_testkit::{Golden, assert_close, goldens};
use densely_vision::{Maxim, MaximConfig};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::drawn::{assert_counts, draw, places, two_numbers};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn build(config: &MaximConfig) -> Result<(VarStore, Maxim)> {
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || config.build(&vs.root()))?;
    nn::check_names(&vs)?;
    nn::set_float_kind(&vs, Kind::Double);
    draw(&vs);
    Ok((vs, model))
}

fn picture(size: &[i64]) -> Tensor {
    let count: i64 = size.iter().product();
    (((places(count as usize) * 0.7).sin() + 1.0) / 2.0).view(size)
}

#[test]
fn maxim_equals_the_released_code() -> Result<()> {
    for name in goldens(HERE, "maxim_", 2) {
        let golden = Golden::open(HERE, &name);
        let (vs, model) = build(&golden.config())?;
        let size: Vec<i64> = serde_json::from_str(golden.meta("size")).expect("a list");
        let image = picture(&size).set_requires_grad(true);
        let mut loss = Tensor::zeros([], (Kind::Double, Device::Cpu));
        let outputs = model.outputs(&image)?;
        assert_eq!(golden.group("output.").len(), 3 * outputs.len());
        for (stage, images) in outputs.iter().enumerate() {
            for (scale, xs) in images.iter().enumerate() {
                let expected = golden.tensor(&format!("output.stage{stage}_scale{scale}"));
                let largest = expected.abs().max().double_value(&[]);
                assert_close(xs, &expected, 1e-9, 1e-9 * largest);
                loss += (xs * (places(xs.numel()) + 1.0).sin().view_as(xs)).sum(Kind::Double);
            }
        }
        if name.ends_with("s1") {
            continue;
        }
        loss.backward();
        let named = weights::named(&vs).into_values();
        let mut grads: Vec<Tensor> = named.map(|xs| two_numbers(&xs.grad())).collect();
        grads.push(two_numbers(&image.grad()));
        let (ours, theirs) = (Tensor::stack(&grads, 0), golden.tensor("grads"));
        // Both sums round like the larger one, that of the sizes.
        let scale = theirs.select(1, 1).unsqueeze(1);
        assert_close(&(ours / &scale), &(&theirs / &scale), 1e-9, 1e-9);
    }
    Ok(())
}

const SMALL: MaximConfig = MaximConfig {
    features: 8,
    num_stages: 2,
    num_groups: 1,
    num_bottleneck_blocks: 1,
    channels_reduction: 4,
    block_size_hr: 4,
    block_size_lr: 2,
    num_outputs: 3,
};

/// The released evaluation's padding written out: odd sides gain their last but one pixel, then NumPy's `reflect` pads both ends alike.
fn padded(size: i64, multiple: i64) -> (Vec<i64>, i64) {
    let mut line: Vec<i64> = (0..size).collect();
    if size % 2 == 1 {
        line.push(if size > 1 { size - 2 } else { 0 });
    }
    let even = line.len();
    let new = (even as i64 + multiple - 1) / multiple * multiple;
    let before = (new as usize - even) / 2;
    // To and fro along the line, from its first pixel; backwards it is the same walk.
    let walk = |count: usize| {
        let (mut place, mut step) = (0, 1);
        let mut found = Vec::with_capacity(count);
        while found.len() < count {
            found.push(line[place as usize]);
            if !(0..even as i64).contains(&(place + step)) {
                step = -step;
            }
            place += step;
        }
        found
    };
    let mut all = walk(before + 1);
    all.reverse();
    all.extend(&walk(new as usize - before)[1..]);
    (all, before as i64)
}

#[test]
fn any_size_is_padded_as_in_the_released_evaluation_and_cut() -> Result<()> {
    let (_vs, model) = build(&SMALL)?;
    assert_eq!((SMALL.multiple(), MaximConfig::s3().multiple()), (16, 64));
    for (height, width) in [(1, 1), (20, 20), (31, 50), (3, 32), (16, 48)] {
        let image = picture(&[1, 3, height, width]);
        let restored = model.restore(&image)?;
        assert_eq!(restored.size(), [1, 3, height, width]);
        let ((rows, top), (columns, left)) = (padded(height, 16), padded(width, 16));
        let whole = image
            .index_select(2, &Tensor::from_slice(&rows))
            .index_select(3, &Tensor::from_slice(&columns));
        let outputs = model.outputs(&whole)?;
        let expected = outputs[1][2].narrow(2, top, height).narrow(3, left, width);
        assert_close(&restored, &expected, 1e-12, 1e-12);
        let named = model.forward_named(&Tensors::from([("image".to_owned(), image)]), false)?;
        assert_eq!(named.len(), 7);
        let small = named["stage0_scale0"].size();
        assert_eq!(small, [1, 3, (height + 3) / 4, (width + 3) / 4]);
        assert_close(&named["restored"], &restored, 0.0, 0.0);
    }
    let message = model
        .outputs(&picture(&[1, 3, 20, 16]))
        .expect_err("20 is no multiple");
    assert!(message.to_string().contains("multiples of 16"), "{message}");
    let message = model
        .restore(&picture(&[1, 3, 0, 16]))
        .expect_err("no pixel");
    assert!(message.to_string().contains("one pixel"), "{message}");
    Ok(())
}

#[test]
fn a_batch_of_two_is_two_singles() -> Result<()> {
    let (_vs, model) = build(&SMALL)?;
    let images = picture(&[2, 3, 37, 21]);
    let both = model.restore(&images)?;
    for row in 0..2 {
        let one = model.restore(&images.narrow(0, row, 1))?;
        assert_close(&both.narrow(0, row, 1), &one, 1e-12, 1e-12);
    }
    Ok(())
}

#[test]
fn counts_are_those_of_the_released_code() {
    assert_counts("maxim", 3, &mut |preset, expected| {
        let vs = VarStore::new(Device::Cpu);
        seeded(0, || (preset.build)(&(preset.config)(), &vs.root())).expect("a preset builds");
        let tensors = vs.trainable_variables().len() as u64;
        assert_eq!(tensors, expected["tensors"], "{}", preset.name);
    });
}
