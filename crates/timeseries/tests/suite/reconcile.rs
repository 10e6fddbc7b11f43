//! The reconciliation heads of PatchTSMixer's paper against what they are by definition.

use std::collections::BTreeMap;

use densely_core::weights::{self, Strictness, Tensors};
use densely_core::{Error, Result, seeded};
use densely_testkit::assert_close;
use densely_timeseries::patch_tsmixer::{
    Head, PatchTsMixer, PatchTsMixerConfig, hierarchical_loss,
};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

fn config() -> PatchTsMixerConfig {
    PatchTsMixerConfig {
        context_length: 18,
        patch_length: 4,
        patch_stride: 4,
        num_input_channels: 3,
        d_model: 6,
        expansion_factor: 2,
        num_layers: 2,
        prediction_length: 6,
        prediction_channel_indices: Some(vec![0, 2]),
        hierarchy_patch_length: 3,
        cross_channel_context: 2,
        ..PatchTsMixerConfig::default()
    }
}

fn built(config: &PatchTsMixerConfig) -> Result<(VarStore, PatchTsMixer)> {
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(3, || config.build(&vs.root()))?;
    Ok((vs, model))
}

fn past() -> Tensor {
    seeded(4, || {
        Tensor::randn([2, 18, 3], tch::kind::FLOAT_CPU) * 3.0 + 5.0
    })
}

/// Random weights everywhere, also where they start at 0.
fn stir(vs: &VarStore) {
    let _no_grad = tch::no_grad_guard();
    seeded(5, || {
        for (_, mut xs) in weights::named(vs) {
            let _ = xs.normal_(0.0, 0.5);
        }
    });
}

#[test]
fn a_saved_model_loads_under_the_heads_and_forecasts_as_before() -> Result<()> {
    let plain = PatchTsMixerConfig {
        hierarchy_patch_length: 0,
        cross_channel_context: 0,
        ..config()
    };
    let (saved, model) = built(&plain)?;
    let (vs, with_heads) = built(&config())?;
    let folder = tempfile::tempdir().map_err(Error::io("a folder"))?;
    let path = folder.path().join("model.safetensors");
    weights::save(&path, &weights::named(&saved), &BTreeMap::new())?;
    let heads = ["head.hierarchy_block", "head.fcm_block"];
    let report = weights::load(&vs, &path, weights::same_name, Strictness::Except(&heads))?;
    assert_eq!(report.loaded.len(), weights::named(&saved).len());
    let before = model.forward(&past(), None, None, false)?;
    let after = with_heads.forward(&past(), None, None, false)?;
    assert_close(&after["forecast"], &before["forecast"], 1e-6, 1e-6);
    assert_eq!(after["patch_sums"].size(), [2, 2, 2]);
    assert!(!before.contains_key("patch_sums"));
    Ok(())
}

#[test]
fn the_heads_are_what_the_paper_says() -> Result<()> {
    let (vs, model) = built(&config())?;
    stir(&vs);
    let past = past();
    let weights: Tensors = weights::named(&vs).into_iter().collect();
    let linear = |name: &str, xs: &Tensor| {
        let part = |part: &str| &weights[&format!("head.{name}.{part}")];
        xs.matmul(&part("weight").tr()) + part("bias")
    };
    let outputs = model.forward(&past, None, None, false)?;
    let (loc, scale) = (&outputs["loc"], &outputs["scale"]);
    let flat = model
        .forward_features(&past, None, None, false)?
        .hidden
        .flatten(2, 3);
    let sums = linear("hierarchy_block.sums", &flat);
    let scaled = linear("base_forecast_block", &flat) + linear("hierarchy_block.refine", &sums);
    let chosen = Tensor::from_slice(&[0i64, 2]);
    let of = |xs: &Tensor| xs.transpose(1, 2).index_select(2, &chosen);
    // A patch of three steps has three times the level of a step.
    assert_close(
        &outputs["patch_sums"],
        &(of(&sums) * scale + loc * 3.0),
        1e-5,
        1e-5,
    );

    let scaled = of(&scaled); // [batch, steps, channels]
    let known = (past.index_select(2, &chosen) - loc) / scale;
    let at = |batch: i64, step: i64, channel: i64| match step {
        ..0 => known.double_value(&[batch, 18 + step, channel]),
        0..6 => scaled.double_value(&[batch, step, channel]),
        _ => 0.0,
    };
    for batch in 0..2 {
        for step in 0..6 {
            // Channel by channel, each with its window from two steps before to two after.
            let window: Vec<f32> = (0..2)
                .flat_map(|channel| (-2..=2).map(move |by| (channel, by)))
                .map(|(channel, by)| at(batch, step + by, channel) as f32)
                .collect();
            let window = Tensor::from_slice(&window);
            let gate = linear("fcm_block.fcm_gating_block.attn_layer", &window);
            let weighed = gate.softmax(-1, None::<Kind>) * &window;
            let ys = linear("fcm_block.mlp", &weighed) + scaled.get(batch).get(step);
            let ys = ys * scale.get(batch).squeeze() + loc.get(batch).squeeze();
            assert_close(&outputs["forecast"].get(batch).get(step), &ys, 1e-4, 1e-4);
        }
    }
    Ok(())
}

#[test]
fn the_loss_weighs_sums_by_the_square_of_their_length() -> Result<()> {
    let column = |values: &[f64]| Tensor::from_slice(values).view([1, -1, 1]);
    let (forecast, target) = (column(&[1.0, 2.0, 3.0, 5.0]), column(&[1.0, 1.0, 4.0, 4.0]));
    let sums = column(&[4.0, 6.0]);
    // Steps 0 1 1 1; sums 2 8 against 4 6; the forecast's own sums 3 8 against 4 6.
    let by_hand = 3.0 / 4.0 + 4.0 / 4.0 + 2.5 / 4.0;
    let loss = hierarchical_loss(&forecast, &sums, &target)?.double_value(&[]);
    assert!((loss - by_hand).abs() < 1e-12, "{loss}");
    assert!(hierarchical_loss(&forecast, &column(&[1.0, 2.0, 3.0]), &target).is_err());
    assert!(hierarchical_loss(&forecast, &sums, &column(&[1.0])).is_err());
    Ok(())
}

#[test]
fn every_weight_learns_once_the_heads_have_moved() -> Result<()> {
    let (vs, model) = built(&config())?;
    stir(&vs);
    let outputs = model.forward(&past(), None, None, true)?;
    let target = outputs["forecast"].detach() + 1.0;
    hierarchical_loss(&outputs["forecast"], &outputs["patch_sums"], &target)?.backward();
    for (name, xs) in weights::named(&vs) {
        let moved = xs.grad().abs().sum(Kind::Float).double_value(&[]);
        assert!(moved > 0.0 && moved.is_finite(), "{name}: {moved}");
    }
    Ok(())
}

#[test]
fn what_does_not_fit_the_heads_is_refused() {
    let refused = |change: fn(&mut PatchTsMixerConfig)| {
        let mut config = config();
        change(&mut config);
        config.validate().expect_err("a mistake").to_string()
    };
    let message = refused(|config| config.hierarchy_patch_length = 4);
    assert!(
        message.contains("must divide prediction_length (6), got 4"),
        "{message}"
    );
    let message = refused(|config| config.cross_channel_context = -1);
    assert!(
        message.contains("`cross_channel_context`: must be at least 0"),
        "{message}"
    );
    let message = refused(|config| config.cross_channel_context = 19);
    assert!(
        message.contains("at most context_length (18), got 19"),
        "{message}"
    );
    let message = refused(|config| config.head = Head::Pretrain);
    assert!(
        message.contains("`hierarchy_patch_length`: is for heads that forecast"),
        "{message}"
    );
}
