//! What holds for every preset, at a small size.

use densely_core::registry::{Preset, parse_config};
use densely_core::{Result, Tensors, seeded};
use densely_fields::PRESETS;
use densely_fields::ffn::FfnConfig;
use densely_fields::finer::FinerConfig;
use densely_fields::gnf::{GnfConfig, RbfDecoderConfig};
use densely_fields::hashgrid::{HashFieldConfig, NgpConfig};
use densely_fields::mip_nerf::MipNerfConfig;
use densely_fields::nerf::NerfConfig;
use densely_fields::siren::SirenConfig;
use densely_fields::wire::WireConfig;
use densely_testkit::contract::{
    Case, check, check_on_a_gpu, check_undrawn, check_with_idle, refusal,
};
use serde_json::{Value, json};
use tch::Tensor;

/// Low frequencies, so that rounding in bf16 does not turn a sine by a period.
fn small(name: &str) -> Value {
    match name {
        "ffn-image" | "ffn-fresh" => {
            json!({ "frequencies": 6, "sigma": 0.1, "hidden": 8, "layers": 2 })
        }
        "cam-image" => json!({
            "frequencies": 6, "sigma": 0.1, "hidden": 8, "layers": 2,
            "cam": { "grid": { "kind": "plane", "rows": 3, "columns": 4 } },
        }),
        "siren" | "siren-fresh" | "finer" => {
            json!({ "hidden": 8, "layers": 2, "first_omega": 1.0, "omega": 1.0 })
        }
        "wire" => json!({
            "hidden": 8, "layers": 1, "first_omega": 1.0, "omega": 1.0, "first_scale": 0.5, "scale": 0.5,
        }),
        "gnf-image" => json!({ "encoder": { "resolutions": [4, 5, 6, 7, 8, 9] } }),
        "gnf-sdf" | "gnf-radiance" => {
            json!({ "encoder": { "dim": 3, "resolutions": [2, 3, 4, 5, 4, 3] } })
        }
        "gnf-decoder" => json!({ "features": 3, "kernels": 5 }),
        "hashgrid" => json!({ "grid": { "levels": 3, "log2_table": 6, "base": 3 }, "hidden": 8 }),
        "ngp" => json!({
            "grid": { "levels": 3, "log2_table": 6, "base": 3 },
            "head": { "hidden": 8, "geometry": 4, "harmonics": 3 },
        }),
        "cam-layer" => json!({ "grid": { "kind": "plane", "rows": 3, "columns": 4 } }),
        "volume-render" => json!({}),
        _ => {
            let mut config = json!({
                "depth": 3, "width": 16, "skip": 1, "colour_width": 6, "place_degrees": 2, "direction_degrees": 2,
            });
            if name == "nerf+cam" {
                config["cam"] = json!({
                    "grid": { "kind": "tri_plane", "side": 5, "live_shift": true }, "domain": [-1.5, 1.5],
                    "padding": "zeros", "norm": "none",
                });
            }
            config
        }
    }
}

/// What a preset takes, by the fields of its small config that tell it from others.
fn inputs_of(names: &[(&str, &[i64])]) -> Tensors {
    seeded(1, || {
        let named = names.iter().map(|(name, size)| {
            // In 0 to 1, where all grids have cells.
            (
                (*name).to_owned(),
                Tensor::rand(*size, tch::kind::FLOAT_CPU),
            )
        });
        named.collect()
    })
}

fn plane(_: &Value, rows: i64) -> Tensors {
    inputs_of(&[("coords", &[rows, 2])])
}

fn space(_: &Value, rows: i64) -> Tensors {
    inputs_of(&[("coords", &[rows, 3])])
}

fn seen(_: &Value, rows: i64) -> Tensors {
    inputs_of(&[("coords", &[rows, 3]), ("dirs", &[rows, 3])])
}

fn seen_in_time(_: &Value, rows: i64) -> Tensors {
    inputs_of(&[
        ("coords", &[rows, 3]),
        ("dirs", &[rows, 3]),
        ("time", &[rows, 1]),
    ])
}

fn gaussians(_: &Value, rows: i64) -> Tensors {
    inputs_of(&[
        ("coords", &[rows, 3]),
        ("vars", &[rows, 3]),
        ("dirs", &[rows, 3]),
    ])
}

fn layer(_: &Value, rows: i64) -> Tensors {
    inputs_of(&[("h", &[rows, 6]), ("coords", &[rows, 2])])
}

fn rays(_: &Value, rows: i64) -> Tensors {
    let mut inputs = inputs_of(&[
        ("sigma", &[rows, 4]),
        ("rgb", &[rows, 4, 3]),
        ("t", &[rows, 5]),
    ]);
    if let Some(t) = inputs.get_mut("t") {
        *t = t.cumsum(1, tch::Kind::Float);
    }
    inputs
}

fn case(preset: &'static Preset) -> Case {
    Case {
        preset,
        small: small(preset.name),
        inputs: match preset.name {
            "gnf-decoder" | "gnf-sdf" | "hashgrid" => space,
            "nerf" | "nerf+cam" | "ngp" | "gnf-radiance" => seen,
            "t-nerf" | "t-nerf+cam" => seen_in_time,
            "mip-nerf" | "mip-nerf+cam" => gaussians,
            "cam-layer" => layer,
            "volume-render" => rays,
            _ => plane,
        },
        optional: if preset.name.starts_with("mip") {
            &["vars"]
        } else {
            &[]
        },
        any_width: if preset.name == "cam-layer" {
            &["h"]
        } else {
            &[]
        },
    }
}

#[test]
fn every_preset_keeps_the_contract() -> Result<()> {
    for preset in PRESETS {
        let case = case(preset);
        match preset.name {
            // Its grid starts even, so that it matters nowhere where a point lies.
            "cam-layer" => check_with_idle(&case, false, &["input.coords"])?,
            "volume-render" => check_undrawn(&case)?,
            // The released code keeps this vector and never reads it.
            "gnf-image" | "gnf-sdf" | "gnf-radiance" => {
                check_with_idle(&case, true, &["decoder.decoder.betas_shifts.0"])?;
            }
            "gnf-decoder" => check_with_idle(&case, true, &["betas_shifts.0"])?,
            _ => check(&case)?,
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs CUDA"]
fn a_gpu_gives_what_the_processor_gives() -> Result<()> {
    check_on_a_gpu(PRESETS.iter().map(case))
}

#[test]
fn macs_are_those_of_the_config() -> Result<()> {
    for preset in PRESETS {
        let config = (preset.config)();
        let macs = match preset.name {
            "ffn-image" | "cam-image" | "ffn-fresh" => parse_config::<FfnConfig>(&config)?.macs(),
            "siren" | "siren-fresh" => parse_config::<SirenConfig>(&config)?.macs(),
            "finer" => parse_config::<FinerConfig>(&config)?.macs(),
            "wire" => parse_config::<WireConfig>(&config)?.macs(),
            "gnf-image" | "gnf-sdf" | "gnf-radiance" => parse_config::<GnfConfig>(&config)?.macs(),
            "gnf-decoder" => parse_config::<RbfDecoderConfig>(&config)?.macs(),
            "hashgrid" => parse_config::<HashFieldConfig>(&config)?.macs(),
            "ngp" => parse_config::<NgpConfig>(&config)?.macs(),
            "mip-nerf" | "mip-nerf+cam" => parse_config::<MipNerfConfig>(&config)?.macs(),
            "cam-layer" | "volume-render" => 0,
            _ => parse_config::<NerfConfig>(&config)?.macs(),
        };
        assert_eq!(macs, preset.macs, "{}", preset.name);
    }
    Ok(())
}

#[test]
fn wrong_configs_are_errors_that_name_the_field() {
    for (name, config, field) in [
        ("siren", json!({ "hidden": 0 }), "hidden"),
        ("siren", json!({ "first_omega": -1.0 }), "first_omega"),
        ("finer", json!({ "omega": 0.0 }), "omega"),
        ("wire", json!({ "layers": -1 }), "layers"),
        ("ffn-image", json!({ "sigma": 0.0 }), "sigma"),
        ("cam-image", json!({ "inputs": 1 }), "cam.grid"),
        (
            "cam-layer",
            json!({ "grid": { "kind": "line", "cells": 16_777_220 } }),
            "cam.grid.cells",
        ),
        ("hashgrid", json!({ "grid": { "inputs": 1 } }), "inputs"),
        ("gnf-decoder", json!({ "kernels": 0 }), "kernels"),
        (
            "gnf-radiance",
            json!({ "encoder": { "dim": 2 } }),
            "encoder.dim",
        ),
        (
            "gnf-radiance",
            json!({ "decoder": { "rbf": { "outputs": 4 } } }),
            "decoder.outputs",
        ),
        ("ngp", json!({ "head": { "harmonics": 5 } }), "harmonics"),
        ("nerf", json!({ "width": 0 }), "width"),
        ("mip-nerf", json!({ "levels": 0 }), "levels"),
        ("siren", json!({ "depth": 3 }), "depth"),
    ] {
        let message = refusal(PRESETS, name, &config);
        assert!(message.contains(field), "{name}: {message}");
    }
}
