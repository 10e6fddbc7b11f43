//! The list of presets.

use densely_core::Model;
use densely_core::registry::{Preset, TensorSpec, parse_config};
use serde_json::json;

use crate::cam::CamConfig;
use crate::ffn::FfnConfig;
use crate::finer::FinerConfig;
use crate::gnf::{GnfConfig, GnfRadiance, RbfDecoderConfig};
use crate::hashgrid::{HashFieldConfig, NgpConfig};
use crate::mip_nerf::MipNerfConfig;
use crate::nerf::NerfConfig;
use crate::render::VolumeRenderConfig;
use crate::siren::SirenConfig;
use crate::wire::WireConfig;

const CAM: &str = "Lee, Rho, Nam, Ko, Park 2024, arXiv 2311.14993";
const FFN: &str = "Tancik, Srinivasan, Mildenhall, Fridovich-Keil, Raghavan, Singhal, Ramamoorthi, Barron, Ng 2020, arXiv 2006.10739";
const SIREN: &str = "Sitzmann, Martel, Bergman, Lindell, Wetzstein 2020, arXiv 2006.09661";
const FRESH: &str = "Kania, Mihajlovic, Prokudin, Tabor, Spurek 2025, arXiv 2410.05050";
const FINER: &str = "Liu, Zhu, Zhang, Fu, Deng, Ma, Guo, Cao 2024, arXiv 2312.02434";
const WIRE: &str =
    "Saragadam, LeJeune, Tan, Balakrishnan, Veeraraghavan, Baraniuk 2023, arXiv 2301.05187";
const GNF: &str = "Bouzidi, Laga, Wannous, Sohel 2025, arXiv 2503.06762";
const NGP: &str = "Müller, Evans, Schied, Keller 2022, arXiv 2201.05989";
const NERF: &str = "Mildenhall, Srinivasan, Tancik, Barron, Ramamoorthi, Ng 2020, arXiv 2003.08934";
const MIP_NERF: &str =
    "Barron, Mildenhall, Tancik, Hedman, Martin-Brualla, Srinivasan 2021, arXiv 2103.13415";
const T_NERF: &str = "Pumarola, Corona, Pons-Moll, Moreno-Noguer 2021, arXiv 2011.13961";

const fn spec(name: &'static str, shape: &'static [&'static str]) -> TensorSpec {
    TensorSpec {
        name,
        shape,
        dtype: "f32",
    }
}

const POINTS: &[TensorSpec] = &[spec("coords", &["N", "D"])];
const VALUES: &[TensorSpec] = &[spec("values", &["N", "K"])];
const SEEN: &[TensorSpec] = &[spec("coords", &["N", "3"]), spec("dirs", &["N", "3"])];
const SEEN_IN_TIME: &[TensorSpec] = &[
    spec("coords", &["N", "3"]),
    spec("dirs", &["N", "3"]),
    spec("time", &["N", "1"]),
];
const GAUSSIANS: &[TensorSpec] = &[
    spec("coords", &["N", "3"]),
    spec("vars", &["N", "3"]),
    spec("dirs", &["N", "3"]),
];
/// Red, green, blue and density.
const RADIANCE: &[TensorSpec] = &[spec("values", &["N", "4"])];

/// A row of the list; multiply-accumulates are those of a point.
macro_rules! row {
    ($type:ty, $name:literal, $paper:expr, $inputs:expr, $outputs:expr, $params:literal, $macs:literal, $config:expr) => {
        Preset {
            name: $name,
            domain: "fields",
            paper: $paper,
            params: $params,
            macs: $macs,
            config: || json!($config),
            inputs: $inputs,
            outputs: $outputs,
            weights: &[],
            dropout: &[],
            build: |config, vs| {
                Ok(Box::new(parse_config::<$type>(config)?.build(vs)?) as Box<dyn Model>)
            },
        }
    };
}

/// Every preset of this crate.
pub static PRESETS: &[Preset] = &[
    row!(
        FfnConfig,
        "ffn-image",
        FFN,
        POINTS,
        VALUES,
        263_683,
        262_912,
        FfnConfig::ffn_image()
    ),
    row!(
        FfnConfig,
        "cam-image",
        CAM,
        POINTS,
        VALUES,
        269_827,
        262_912,
        FfnConfig::cam_image()
    ),
    row!(
        FfnConfig,
        "ffn-fresh",
        FRESH,
        POINTS,
        VALUES,
        198_147,
        197_376,
        FfnConfig::ffn_fresh()
    ),
    row!(
        SirenConfig,
        "siren",
        SIREN,
        POINTS,
        VALUES,
        198_915,
        197_888,
        SirenConfig::siren()
    ),
    row!(
        SirenConfig,
        "siren-fresh",
        FRESH,
        POINTS,
        VALUES,
        198_915,
        197_888,
        SirenConfig::siren_fresh()
    ),
    row!(
        FinerConfig,
        "finer",
        FINER,
        POINTS,
        VALUES,
        198_915,
        197_888,
        FinerConfig::finer()
    ),
    row!(
        WireConfig,
        "wire",
        WIRE,
        POINTS,
        VALUES,
        199_287,
        394_580,
        WireConfig::wire()
    ),
    row!(
        GnfConfig,
        "gnf-image",
        GNF,
        POINTS,
        VALUES,
        108_601,
        2_496,
        GnfConfig::image()
    ),
    row!(
        GnfConfig,
        "gnf-sdf",
        GNF,
        POINTS,
        VALUES,
        3_514_853,
        2_368,
        GnfConfig::sdf()
    ),
    Preset {
        name: "gnf-radiance",
        domain: "fields",
        paper: GNF,
        params: 3_515_221,
        macs: 2_720,
        config: || json!(GnfConfig::radiance()),
        inputs: SEEN,
        outputs: RADIANCE,
        weights: &[],
        dropout: &[],
        build: |config, vs| {
            Ok(Box::new(GnfRadiance::build(
                vs,
                &parse_config::<GnfConfig>(config)?,
            )?))
        },
    },
    row!(
        RbfDecoderConfig,
        "gnf-decoder",
        GNF,
        POINTS,
        VALUES,
        2_563,
        2_496,
        RbfDecoderConfig::default()
    ),
    row!(
        HashFieldConfig,
        "hashgrid",
        NGP,
        POINTS,
        VALUES,
        12_202_576,
        6_336,
        HashFieldConfig::hashgrid()
    ),
    row!(
        NgpConfig,
        "ngp",
        NGP,
        SEEN,
        RADIANCE,
        12_205_648,
        9_408,
        NgpConfig::default()
    ),
    row!(
        NerfConfig,
        "nerf",
        NERF,
        SEEN,
        RADIANCE,
        595_844,
        593_408,
        NerfConfig::nerf()
    ),
    row!(
        NerfConfig,
        "nerf+cam",
        CAM,
        SEEN,
        RADIANCE,
        13_178_756,
        593_408,
        NerfConfig::nerf_cam()
    ),
    row!(
        NerfConfig,
        "t-nerf",
        T_NERF,
        SEEN_IN_TIME,
        RADIANCE,
        613_191,
        610_496,
        NerfConfig::t_nerf()
    ),
    row!(
        NerfConfig,
        "t-nerf+cam",
        CAM,
        SEEN_IN_TIME,
        RADIANCE,
        613_271,
        610_496,
        NerfConfig::t_nerf_cam()
    ),
    row!(
        MipNerfConfig,
        "mip-nerf",
        MIP_NERF,
        GAUSSIANS,
        RADIANCE,
        612_740,
        610_304,
        MipNerfConfig::mip_nerf()
    ),
    row!(
        MipNerfConfig,
        "mip-nerf+cam",
        CAM,
        GAUSSIANS,
        RADIANCE,
        613_220,
        610_304,
        MipNerfConfig::mip_nerf_cam()
    ),
    Preset {
        name: "cam-layer",
        domain: "fields",
        paper: CAM,
        params: 2_048,
        macs: 0,
        config: || json!(CamConfig::image()),
        inputs: &[spec("h", &["N", "C"]), spec("coords", &["N", "2"])],
        outputs: &[spec("y", &["N", "C"])],
        weights: &[],
        dropout: &[],
        build: |config, vs| Ok(Box::new(parse_config::<CamConfig>(config)?.build(vs)?)),
    },
    Preset {
        name: "volume-render",
        domain: "fields",
        paper: NERF,
        params: 0,
        macs: 0,
        config: || json!(VolumeRenderConfig::default()),
        inputs: &[
            spec("sigma", &["R", "S"]),
            spec("rgb", &["R", "S", "3"]),
            spec("t", &["R", "S+1"]),
        ],
        outputs: &[spec("rgb", &["R", "3"]), spec("weights", &["R", "S"])],
        weights: &[],
        dropout: &[],
        build: |config, vs| {
            Ok(Box::new(
                parse_config::<VolumeRenderConfig>(config)?.build(vs)?,
            ))
        },
    },
];
