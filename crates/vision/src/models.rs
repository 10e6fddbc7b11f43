//! The list of presets.

use densely_core::Model;
use densely_core::registry::{Preset, TensorSpec, parse_config};
use serde_json::json;

use crate::maxim::MaximConfig;
use crate::poolformer::PoolFormerConfig;
use crate::strip_mlp::StripMlpConfig;

const POOLFORMER: &str = "Yu, Luo, Zhou, Si, Zhou, Wang, Feng, Yan 2022, arXiv 2111.11418";
const POOLFORMER_V2: &str = "Yu, Si, Zhou, Luo, Zhou, Feng, Yan, Wang 2024, arXiv 2210.13452";

const MAXIM: &str = "Tu, Talebi, Zhang, Yang, Milanfar, Bovik, Li 2022, arXiv 2201.02973";
const STRIP_MLP: &str = "Cao, Luo, Peng, Lin, Zhang, Gu, Yu 2023, arXiv 2307.11458";

const fn spec(name: &'static str, shape: &'static [&'static str]) -> TensorSpec {
    TensorSpec {
        name,
        shape,
        dtype: "f32",
    }
}

const IMAGE: &[TensorSpec] = &[spec("image", &["B", "C", "H", "W"])];
const LOGITS: &[TensorSpec] = &[spec("logits", &["B", "classes"])];
const STAGES: &[TensorSpec] = &[
    spec("stage0", &["B", "E0", "H/4", "W/4"]),
    spec("stage1", &["B", "E1", "H/8", "W/8"]),
    spec("stage2", &["B", "E2", "H/16", "W/16"]),
    spec("stage3", &["B", "E3", "H/32", "W/32"]),
];

const STRIPS: &[TensorSpec] = &[
    spec("stage0", &["B", "E", "S/4", "S/4"]),
    spec("stage1", &["B", "2E", "S/8", "S/8"]),
    spec("stage2", &["B", "4E", "S/16", "S/16"]),
    spec("stage3", &["B", "8E", "S/32", "S/32"]),
];

const IMAGES_3: &[TensorSpec] = &[
    spec("restored", &["B", "C", "H", "W"]),
    spec("stage0_scale0", &["B", "C", "H/4", "W/4"]),
    spec("stage0_scale1", &["B", "C", "H/2", "W/2"]),
    spec("stage0_scale2", &["B", "C", "H", "W"]),
    spec("stage1_scale0", &["B", "C", "H/4", "W/4"]),
    spec("stage1_scale1", &["B", "C", "H/2", "W/2"]),
    spec("stage1_scale2", &["B", "C", "H", "W"]),
    spec("stage2_scale0", &["B", "C", "H/4", "W/4"]),
    spec("stage2_scale1", &["B", "C", "H/2", "W/2"]),
    spec("stage2_scale2", &["B", "C", "H", "W"]),
];

/// The restored image, and three scales of each stage.
const IMAGES_1: &[TensorSpec] = IMAGES_3.split_at(4).0;
const IMAGES_2: &[TensorSpec] = IMAGES_3.split_at(7).0;

/// A row of the list; multiply-accumulates are those of a picture of 224 × 224, MAXIM's of 256 × 256.
macro_rules! row {
    ($type:ty, $name:literal, $paper:expr, $outputs:expr, $params:literal, $macs:literal, $config:expr) => {
        row!(
            $type,
            $name,
            $paper,
            $outputs,
            $params,
            $macs,
            $config,
            &["drop_path_rate"]
        )
    };
    ($type:ty, $name:literal, $paper:expr, $outputs:expr, $params:literal, $macs:literal, $config:expr, $dropout:expr) => {
        Preset {
            name: $name,
            domain: "vision",
            paper: $paper,
            params: $params,
            macs: $macs,
            config: || json!($config),
            inputs: IMAGE,
            outputs: $outputs,
            weights: &[],
            dropout: $dropout,
            build: |config, vs| {
                Ok(Box::new(parse_config::<$type>(config)?.build(vs)?) as Box<dyn Model>)
            },
        }
    };
}

/// Every preset of this crate; `…@features` gives the maps of the stages instead of logits.
pub static PRESETS: &[Preset] = &[
    row!(
        PoolFormerConfig,
        "poolformer_s12",
        POOLFORMER,
        LOGITS,
        11_915_176,
        1_812_267_008,
        PoolFormerConfig::s12()
    ),
    row!(
        PoolFormerConfig,
        "poolformer_s12@features",
        POOLFORMER,
        STAGES,
        11_403_200,
        1_811_755_008,
        PoolFormerConfig::s12().with_features()
    ),
    row!(
        PoolFormerConfig,
        "poolformer_s24",
        POOLFORMER,
        LOGITS,
        21_388_968,
        3_392_208_896,
        PoolFormerConfig::s24()
    ),
    row!(
        PoolFormerConfig,
        "poolformer_s24@features",
        POOLFORMER,
        STAGES,
        20_876_992,
        3_391_696_896,
        PoolFormerConfig::s24().with_features()
    ),
    row!(
        PoolFormerConfig,
        "poolformer_s36",
        POOLFORMER,
        LOGITS,
        30_862_760,
        4_972_150_784,
        PoolFormerConfig::s36()
    ),
    row!(
        PoolFormerConfig,
        "poolformer_s36@features",
        POOLFORMER,
        STAGES,
        30_350_784,
        4_971_638_784,
        PoolFormerConfig::s36().with_features()
    ),
    row!(
        PoolFormerConfig,
        "poolformer_m36",
        POOLFORMER,
        LOGITS,
        56_172_520,
        8_758_788_096,
        PoolFormerConfig::m36()
    ),
    row!(
        PoolFormerConfig,
        "poolformer_m36@features",
        POOLFORMER,
        STAGES,
        55_404_864,
        8_758_020_096,
        PoolFormerConfig::m36().with_features()
    ),
    row!(
        PoolFormerConfig,
        "poolformer_m48",
        POOLFORMER,
        LOGITS,
        73_473_448,
        11_533_320_192,
        PoolFormerConfig::m48()
    ),
    row!(
        PoolFormerConfig,
        "poolformer_m48@features",
        POOLFORMER,
        STAGES,
        72_705_792,
        11_532_552_192,
        PoolFormerConfig::m48().with_features()
    ),
    row!(
        PoolFormerConfig,
        "metaformer_id_s12",
        POOLFORMER,
        LOGITS,
        11_915_176,
        1_812_267_008,
        PoolFormerConfig::identity_s12()
    ),
    row!(
        PoolFormerConfig,
        "poolformerv2_s12",
        POOLFORMER_V2,
        LOGITS,
        11_891_712,
        1_812_267_008,
        PoolFormerConfig::s12().v2()
    ),
    row!(
        PoolFormerConfig,
        "poolformerv2_s12@features",
        POOLFORMER_V2,
        STAGES,
        11_377_688,
        1_811_755_008,
        PoolFormerConfig::s12().v2().with_features()
    ),
    row!(
        PoolFormerConfig,
        "poolformerv2_s24",
        POOLFORMER_V2,
        LOGITS,
        21_341_464,
        3_392_208_896,
        PoolFormerConfig::s24().v2()
    ),
    row!(
        PoolFormerConfig,
        "poolformerv2_s24@features",
        POOLFORMER_V2,
        STAGES,
        20_827_440,
        3_391_696_896,
        PoolFormerConfig::s24().v2().with_features()
    ),
    row!(
        PoolFormerConfig,
        "poolformerv2_s36",
        POOLFORMER_V2,
        LOGITS,
        30_791_216,
        4_972_150_784,
        PoolFormerConfig::s36().v2()
    ),
    row!(
        PoolFormerConfig,
        "poolformerv2_s36@features",
        POOLFORMER_V2,
        STAGES,
        30_277_192,
        4_971_638_784,
        PoolFormerConfig::s36().v2().with_features()
    ),
    row!(
        PoolFormerConfig,
        "poolformerv2_m36",
        POOLFORMER_V2,
        LOGITS,
        56_077_168,
        8_758_788_096,
        PoolFormerConfig::m36().v2()
    ),
    row!(
        PoolFormerConfig,
        "poolformerv2_m36@features",
        POOLFORMER_V2,
        STAGES,
        55_306_632,
        8_758_020_096,
        PoolFormerConfig::m36().v2().with_features()
    ),
    row!(
        PoolFormerConfig,
        "poolformerv2_m48",
        POOLFORMER_V2,
        LOGITS,
        73_346_056,
        11_533_320_192,
        PoolFormerConfig::m48().v2()
    ),
    row!(
        PoolFormerConfig,
        "poolformerv2_m48@features",
        POOLFORMER_V2,
        STAGES,
        72_575_520,
        11_532_552_192,
        PoolFormerConfig::m48().v2().with_features()
    ),
    row!(
        StripMlpConfig,
        "strip_mlp_tstar",
        STRIP_MLP,
        LOGITS,
        18_243_920,
        2_518_593_280,
        StripMlpConfig::tstar()
    ),
    row!(
        StripMlpConfig,
        "strip_mlp_tstar@features",
        STRIP_MLP,
        STRIPS,
        17_601_640,
        2_517_953_280,
        StripMlpConfig::tstar().with_features()
    ),
    row!(
        StripMlpConfig,
        "strip_mlp_t",
        STRIP_MLP,
        LOGITS,
        24_903_920,
        3_648_236_800,
        StripMlpConfig::t()
    ),
    row!(
        StripMlpConfig,
        "strip_mlp_t@features",
        STRIP_MLP,
        STRIPS,
        24_261_640,
        3_647_596_800,
        StripMlpConfig::t().with_features()
    ),
    row!(
        StripMlpConfig,
        "strip_mlp_s",
        STRIP_MLP,
        LOGITS,
        42_568_600,
        6_803_134_464,
        StripMlpConfig::s()
    ),
    row!(
        StripMlpConfig,
        "strip_mlp_s@features",
        STRIP_MLP,
        STRIPS,
        41_798_064,
        6_802_366_464,
        StripMlpConfig::s().with_features()
    ),
    row!(
        StripMlpConfig,
        "strip_mlp_b",
        STRIP_MLP,
        LOGITS,
        57_216_480,
        9_184_947_968,
        StripMlpConfig::b()
    ),
    row!(
        StripMlpConfig,
        "strip_mlp_b@features",
        STRIP_MLP,
        STRIPS,
        56_317_688,
        9_184_051_968,
        StripMlpConfig::b().with_features()
    ),
    row!(
        MaximConfig,
        "maxim_s1",
        MAXIM,
        IMAGES_1,
        6_139_561,
        41_201_772_544,
        MaximConfig::s1(),
        &[]
    ),
    row!(
        MaximConfig,
        "maxim_s2",
        MAXIM,
        IMAGES_2,
        14_176_178,
        96_662_605_824,
        MaximConfig::s2(),
        &[]
    ),
    row!(
        MaximConfig,
        "maxim_s3",
        MAXIM,
        IMAGES_3,
        22_212_795,
        152_123_439_104,
        MaximConfig::s3(),
        &[]
    ),
];
