//! The list of presets.

use densely_core::Model;
use densely_core::registry::{Preset, TensorSpec, parse_config};
use serde_json::{Value, json};

use crate::linear::{LinearConfig, Variant};
use crate::patch_tsmixer::{Head, PatchTsMixerConfig};
use crate::tsmixer::TsMixerConfig;
use crate::tsmixer_ext::TsMixerExtConfig;
use crate::ttm::TtmConfig;

const TSMIXER: &str = "Chen, Li, Yoder, Arik, Pfister 2023, arXiv 2303.06053";
const PATCH_TSMIXER: &str = "Ekambaram, Jati, Nguyen, Sinthong, Kalagnanam 2023, arXiv 2306.09364";
const TTM: &str =
    "Ekambaram, Jati, Dayama, Mukherjee, Nguyen, Gifford, Reddy, Kalagnanam 2024, arXiv 2401.03955";
const LINEAR: &str = "Zeng, Chen, Zhang, Xu 2023, arXiv 2205.13504";

const fn spec(name: &'static str, shape: &'static [&'static str]) -> TensorSpec {
    TensorSpec {
        name,
        shape,
        dtype: "f32",
    }
}

const PAST: TensorSpec = spec("past", &["B", "T", "C"]);
const FORECAST: TensorSpec = spec("forecast", &["B", "H", "C"]);
const LOC: TensorSpec = spec("loc", &["B", "1", "C"]);
const SCALE: TensorSpec = spec("scale", &["B", "1", "C"]);

const fn patched(
    name: &'static str,
    params: u64,
    macs: u64,
    config: fn() -> Value,
    outputs: &'static [TensorSpec],
) -> Preset {
    Preset {
        name,
        domain: "timeseries",
        paper: PATCH_TSMIXER,
        params,
        macs,
        config,
        inputs: &[PAST],
        outputs,
        weights: &[],
        dropout: &["dropout", "head_dropout"],
        build: |config, vs| {
            Ok(Box::new(parse_config::<PatchTsMixerConfig>(config)?.build(vs)?) as Box<dyn Model>)
        },
    }
}

const fn linear(name: &'static str, params: u64, macs: u64, config: fn() -> Value) -> Preset {
    Preset {
        name,
        domain: "timeseries",
        paper: LINEAR,
        params,
        macs,
        config,
        inputs: &[PAST],
        outputs: &[FORECAST],
        weights: &[],
        dropout: &[],
        build: |config, vs| {
            Ok(Box::new(parse_config::<LinearConfig>(config)?.build(vs)?) as Box<dyn Model>)
        },
    }
}

/// Every preset of this crate. Sizes are those of ETTh1 with a lookback of 512 and a horizon of 96, of `tsmixer-ext` those of a
/// shop's sales over four weeks.
pub static PRESETS: &[Preset] = &[
    Preset {
        name: "tsmixer",
        domain: "timeseries",
        paper: TSMIXER,
        params: 605_180,
        macs: 4_931_584,
        config: || json!(TsMixerConfig::tsmixer()),
        inputs: &[PAST],
        outputs: &[FORECAST],
        weights: &[],
        dropout: &["dropout"],
        build: |config, vs| {
            Ok(Box::new(parse_config::<TsMixerConfig>(config)?.build(vs)?) as Box<dyn Model>)
        },
    },
    Preset {
        name: "tsmixer-ext",
        domain: "timeseries",
        paper: TSMIXER,
        params: 123_211,
        macs: 2_439_248,
        config: || json!(TsMixerExtConfig::default()),
        inputs: &[
            spec("past", &["B", "T", "channels + past"]),
            spec("past_known", &["B", "T", "known"]),
            spec("future", &["B", "H", "known"]),
            spec("static", &["B", "statics"]),
        ],
        outputs: &[FORECAST],
        weights: &[],
        dropout: &["dropout"],
        build: |config, vs| {
            Ok(Box::new(parse_config::<TsMixerExtConfig>(config)?.build(vs)?) as Box<dyn Model>)
        },
    },
    patched(
        "patchtsmixer-forecast",
        432_096,
        52_813_824,
        || json!(PatchTsMixerConfig::with_head(Head::Forecast)),
        &[FORECAST, LOC, SCALE],
    ),
    patched(
        "patchtsmixer-regression",
        147_673,
        54_972_400,
        || json!(PatchTsMixerConfig::with_head(Head::Regression)),
        &[spec("values", &["B", "num_targets"]), LOC, SCALE],
    ),
    patched(
        "patchtsmixer-classification",
        147_673,
        54_972_400,
        || json!(PatchTsMixerConfig::with_head(Head::Classification)),
        &[spec("logits", &["B", "num_targets"]), LOC, SCALE],
    ),
    patched(
        "patchtsmixer-pretrain",
        137_480,
        50_921_472,
        || json!(PatchTsMixerConfig::with_head(Head::Pretrain)),
        &[
            spec("reconstruction", &["B", "C", "n", "patch_length"]),
            spec("patches", &["B", "C", "n", "patch_length"]),
            spec("mask", &["B", "C", "n"]),
            LOC,
            SCALE,
        ],
    ),
    Preset {
        name: "ttm-forecast",
        domain: "timeseries",
        paper: TTM,
        params: 805_280,
        macs: 54_648_832,
        config: || json!(TtmConfig::ttm()),
        inputs: &[PAST],
        outputs: &[FORECAST, LOC, SCALE],
        weights: &[],
        dropout: &["dropout", "head_dropout"],
        build: |config, vs| {
            Ok(Box::new(parse_config::<TtmConfig>(config)?.build(vs)?) as Box<dyn Model>)
        },
    },
    linear("dlinear", 98_496, 688_128, || {
        json!(LinearConfig::of(Variant::Dlinear))
    }),
    linear("nlinear", 49_248, 344_064, || {
        json!(LinearConfig::of(Variant::Nlinear))
    }),
];
