//! The list of presets.

use densely_core::Model;
use densely_core::registry::{Preset, TensorSpec, parse_config};
use serde_json::json;

use crate::poolformer::PoolFormerConfig;

const POOLFORMER: &str = "Yu, Luo, Zhou, Si, Zhou, Wang, Feng, Yan 2022, arXiv 2111.11418";
const POOLFORMER_V2: &str = "Yu, Si, Zhou, Luo, Zhou, Feng, Yan, Wang 2024, arXiv 2210.13452";

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

/// A row of the list; multiply-accumulates are those of a picture of 224 × 224.
macro_rules! poolformer {
    ($name:literal, $paper:expr, $outputs:expr, $params:literal, $macs:literal, $config:expr) => {
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
            dropout: &["drop_path_rate"],
            build: |config, vs| {
                Ok(
                    Box::new(parse_config::<PoolFormerConfig>(config)?.build(vs)?)
                        as Box<dyn Model>,
                )
            },
        }
    };
}

/// Every preset of this crate; `…@features` gives the maps of the stages instead of logits.
pub static PRESETS: &[Preset] = &[
    poolformer!(
        "poolformer_s12",
        POOLFORMER,
        LOGITS,
        11_915_176,
        1_812_267_008,
        PoolFormerConfig::s12()
    ),
    poolformer!(
        "poolformer_s12@features",
        POOLFORMER,
        STAGES,
        11_403_200,
        1_811_755_008,
        PoolFormerConfig::s12().with_features()
    ),
    poolformer!(
        "poolformer_s24",
        POOLFORMER,
        LOGITS,
        21_388_968,
        3_392_208_896,
        PoolFormerConfig::s24()
    ),
    poolformer!(
        "poolformer_s24@features",
        POOLFORMER,
        STAGES,
        20_876_992,
        3_391_696_896,
        PoolFormerConfig::s24().with_features()
    ),
    poolformer!(
        "poolformer_s36",
        POOLFORMER,
        LOGITS,
        30_862_760,
        4_972_150_784,
        PoolFormerConfig::s36()
    ),
    poolformer!(
        "poolformer_s36@features",
        POOLFORMER,
        STAGES,
        30_350_784,
        4_971_638_784,
        PoolFormerConfig::s36().with_features()
    ),
    poolformer!(
        "poolformer_m36",
        POOLFORMER,
        LOGITS,
        56_172_520,
        8_758_788_096,
        PoolFormerConfig::m36()
    ),
    poolformer!(
        "poolformer_m36@features",
        POOLFORMER,
        STAGES,
        55_404_864,
        8_758_020_096,
        PoolFormerConfig::m36().with_features()
    ),
    poolformer!(
        "poolformer_m48",
        POOLFORMER,
        LOGITS,
        73_473_448,
        11_533_320_192,
        PoolFormerConfig::m48()
    ),
    poolformer!(
        "poolformer_m48@features",
        POOLFORMER,
        STAGES,
        72_705_792,
        11_532_552_192,
        PoolFormerConfig::m48().with_features()
    ),
    poolformer!(
        "metaformer_id_s12",
        POOLFORMER,
        LOGITS,
        11_915_176,
        1_812_267_008,
        PoolFormerConfig::identity_s12()
    ),
    poolformer!(
        "poolformerv2_s12",
        POOLFORMER_V2,
        LOGITS,
        11_891_712,
        1_812_267_008,
        PoolFormerConfig::s12().v2()
    ),
    poolformer!(
        "poolformerv2_s12@features",
        POOLFORMER_V2,
        STAGES,
        11_377_688,
        1_811_755_008,
        PoolFormerConfig::s12().v2().with_features()
    ),
    poolformer!(
        "poolformerv2_s24",
        POOLFORMER_V2,
        LOGITS,
        21_341_464,
        3_392_208_896,
        PoolFormerConfig::s24().v2()
    ),
    poolformer!(
        "poolformerv2_s24@features",
        POOLFORMER_V2,
        STAGES,
        20_827_440,
        3_391_696_896,
        PoolFormerConfig::s24().v2().with_features()
    ),
    poolformer!(
        "poolformerv2_s36",
        POOLFORMER_V2,
        LOGITS,
        30_791_216,
        4_972_150_784,
        PoolFormerConfig::s36().v2()
    ),
    poolformer!(
        "poolformerv2_s36@features",
        POOLFORMER_V2,
        STAGES,
        30_277_192,
        4_971_638_784,
        PoolFormerConfig::s36().v2().with_features()
    ),
    poolformer!(
        "poolformerv2_m36",
        POOLFORMER_V2,
        LOGITS,
        56_077_168,
        8_758_788_096,
        PoolFormerConfig::m36().v2()
    ),
    poolformer!(
        "poolformerv2_m36@features",
        POOLFORMER_V2,
        STAGES,
        55_306_632,
        8_758_020_096,
        PoolFormerConfig::m36().v2().with_features()
    ),
    poolformer!(
        "poolformerv2_m48",
        POOLFORMER_V2,
        LOGITS,
        73_346_056,
        11_533_320_192,
        PoolFormerConfig::m48().v2()
    ),
    poolformer!(
        "poolformerv2_m48@features",
        POOLFORMER_V2,
        STAGES,
        72_575_520,
        11_532_552_192,
        PoolFormerConfig::m48().v2().with_features()
    ),
];
