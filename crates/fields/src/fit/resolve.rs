//! The config of a network for a signal: the preset's, what the signal says, and what was asked for.

use densely_core::registry::{Preset, find};
use densely_core::{Error, Result};
use serde_json::{Map, Value, json};

use super::settings::ModelSettings;
use crate::cam::{CamConfig, Grid};
use crate::gnf::GnfConfig;
use crate::hashgrid::{Growth, HashGridConfig};
use crate::models::PRESETS;
use crate::signals::{Convention, Coordinates, Range};

/// What the numbers of a preset's places and values mean.
pub(super) fn convention_of(preset: &str) -> Convention {
    match preset {
        "ffn-image" | "cam-image" | "hashgrid" => Convention::default(),
        // Its outputs have their middle at 1/2.
        "wire" | "gnf-image" | "gnf-sdf" => Convention {
            coordinates: Coordinates::Ends,
            values: Range::Unit,
        },
        _ => Convention::SYMMETRIC,
    }
}

/// The config of a network from the coordinates of a signal with these samples along each axis, 0 where there are none, to so many values.
pub(super) fn resolve(
    model: &ModelSettings,
    axes: &[usize],
    outputs: usize,
) -> Result<(&'static Preset, Value)> {
    let preset = find(PRESETS, &model.preset)?;
    let [takes, gives] = [preset.inputs, preset.outputs].map(|specs| specs.first());
    let is_field = preset.inputs.len() == 1
        && takes.is_some_and(|spec| spec.name == "coords")
        && gives.is_some_and(|spec| spec.name == "values")
        && preset.name != "gnf-decoder";
    if !is_field {
        let reason = format!(
            "`{}` does not give a value for a place; take {}",
            preset.name,
            FIELDS.join(", ")
        );
        return Err(Error::config("model.preset", reason));
    }
    let mut config = (preset.config)();
    let inputs = axes.len();
    if inputs == 1 && ["hashgrid", "gnf-image", "gnf-sdf"].contains(&preset.name) {
        let reason = format!(
            "`{}` has grids of two or three axes; for a sound take siren, finer, wire or ffn-fresh",
            preset.name
        );
        return Err(Error::config("model.preset", reason));
    }
    let places = places_of(preset.name, axes, outputs);
    // What is made for pictures, where the signal has another number of axes.
    for (place, value) in &places {
        if let Some(field) = config.pointer_mut(place) {
            *field = value.clone();
        }
    }
    let own: Vec<&str> = sizes_of(preset.name).to_vec();
    for place in &own {
        let path: Vec<&str> = place.split('/').skip(1).collect();
        if named(&model.config, &path) {
            let reason = "comes from the signal and must not stand here";
            return Err(Error::config(
                format!("model.config.{}", path.join(".")),
                reason,
            ));
        }
    }
    merge(&mut config, &Value::Object(model.config.clone()))?;
    if let Some(Value::Object(cam)) = config.get_mut("cam")
        && !named(&model.config, &["cam", "domain"])
    {
        // Grids reach over the coordinates that the network sees.
        let convention = model.convention;
        let convention = convention.unwrap_or_else(|| convention_of(preset.name));
        let domain = match convention.coordinates {
            Coordinates::Ends => [-1.0, 1.0],
            Coordinates::Centres => [0.0, 1.0],
        };
        cam.insert("domain".to_owned(), json!(domain));
    }
    for (place, value) in own.iter().zip([inputs, outputs]) {
        if let Some(field) = config.pointer_mut(place) {
            *field = json!(value);
        }
    }
    Ok((preset, config))
}

/// Networks from places to values.
pub const FIELDS: [&str; 10] = [
    "cam-image",
    "ffn-image",
    "ffn-fresh",
    "siren",
    "siren-fresh",
    "finer",
    "wire",
    "hashgrid",
    "gnf-image",
    "gnf-sdf",
];

/// Where a config has its number of coordinates and of values.
fn sizes_of(preset: &str) -> [&'static str; 2] {
    match preset {
        "hashgrid" => ["/grid/inputs", "/outputs"],
        "gnf-image" | "gnf-sdf" => ["/encoder/dim", "/decoder/rbf/outputs"],
        _ => ["/inputs", "/outputs"],
    }
}

/// What differs from the preset for a signal.
fn places_of(preset: &str, axes: &[usize], outputs: usize) -> Vec<(&'static str, Value)> {
    match (preset, axes.len()) {
        ("hashgrid", 2 | 3) if axes.iter().all(|side| *side > 0) => {
            // A cell for each sample along the longest axis.
            let longest = axes.iter().copied().max().unwrap_or(1);
            let values = axes.iter().product::<usize>().saturating_mul(outputs);
            vec![(
                "/grid",
                json!(fitting_grid(axes.len() as i64, longest, values)),
            )]
        }
        // By the time of a film, as CAM does it.
        ("cam-image", 1) => vec![("/cam", json!(CamConfig::signal()))],
        ("cam-image", 3) if axes.iter().all(|side| *side > 0) => {
            vec![("/cam", json!(CamConfig::time()))]
        }
        // Of a surface by the place, with a shift that can learn.
        ("cam-image", 3) => {
            let grid = Grid::TriPlane {
                side: 128,
                live_shift: true,
            };
            let cam = CamConfig {
                grid,
                ..CamConfig::tri_plane()
            };
            vec![("/cam", json!(cam))]
        }
        // The value that the authors of SIREN take for sounds.
        ("siren" | "siren-fresh", 1) => vec![("/first_omega", json!(3000.0))],
        ("gnf-image" | "gnf-sdf", 3) => vec![("", json!(GnfConfig::sdf().quick_to_learn()))],
        ("gnf-image" | "gnf-sdf", 2) => vec![("", json!(GnfConfig::image().quick_to_learn()))],
        _ => Vec::new(),
    }
}

/// A grid with `finest` cells along an axis at its last level, and the largest table with which it has no more values than the signal.
pub(super) fn fitting_grid(inputs: i64, finest: usize, values: usize) -> HashGridConfig {
    let base = HashGridConfig::default();
    let finest = (finest as i64).clamp(base.base, 1 << 20);
    let config = |log2_table| HashGridConfig {
        inputs,
        growth: Growth::Finest(finest),
        log2_table,
        ..HashGridConfig::default()
    };
    let fits = |log2_table: &i64| {
        let config = config(*log2_table);
        let entries: i64 = config.levels().iter().map(|level| level.entries).sum();
        entries * config.features <= values as i64
    };
    let log2_table = (LEAST_TABLE..=MOST_TABLE).rev().find(fits);
    config(log2_table.unwrap_or(LEAST_TABLE))
}

/// Logarithms to base 2 of the entries of a level that are chosen for a signal, at least and at most.
const LEAST_TABLE: i64 = 8;
const MOST_TABLE: i64 = 22;

fn named(fields: &Map<String, Value>, path: &[&str]) -> bool {
    match path {
        [] => true,
        [name, rest @ ..] => match fields.get(*name) {
            None => false,
            Some(Value::Object(inner)) => named(inner, rest),
            Some(_) => rest.is_empty(),
        },
    }
}

/// Puts `changes` into `config`, table by table; a table that names something else than what is there takes its place, as variants do.
pub(super) fn merge(config: &mut Value, changes: &Value) -> Result<()> {
    let (Value::Object(fields), Value::Object(changes)) = (&mut *config, changes) else {
        *config = changes.clone();
        return Ok(());
    };
    for (name, change) in changes {
        let Some(field) = fields.get_mut(name) else {
            let known: Vec<&str> = fields.keys().map(String::as_str).collect();
            let near = densely_core::registry::nearest(known.into_iter(), name).join("`, `");
            let reason = format!("there is no such setting; nearest: `{near}`");
            return Err(Error::config(format!("model.config.{name}"), reason));
        };
        let inside = match (&*field, change) {
            (Value::Object(of), Value::Object(with)) => with.keys().all(|key| of.contains_key(key)),
            _ => false,
        };
        if inside {
            merge(field, change)?;
        } else {
            *field = change.clone();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    fn model(preset: &str, config: Value) -> ModelSettings {
        let Value::Object(config) = config else {
            panic!("a table");
        };
        ModelSettings {
            preset: preset.to_owned(),
            config,
            convention: None,
        }
    }

    #[test]
    fn the_signal_sets_the_sizes_and_changes_are_merged_table_by_table() -> Result<()> {
        let (_, config) = resolve(
            &model(
                "hashgrid",
                json!({ "grid": { "log2_table": 14, "growth": { "finest": 256 } } }),
            ),
            &[64, 64],
            1,
        )?;
        assert_eq!(config["grid"]["inputs"], 2);
        assert_eq!(config["outputs"], 1);
        assert_eq!(config["grid"]["log2_table"], 14);
        assert_eq!(config["grid"]["levels"], 16);
        assert_eq!(config["grid"]["growth"], json!({ "finest": 256 }));
        let (_, config) = resolve(&model("gnf-image", json!({})), &[9, 9, 9], 1)?;
        assert_eq!(config["encoder"]["dim"], 3);
        assert_eq!(config["decoder"]["rbf"]["outputs"], 1);
        let (_, config) = resolve(&model("siren", json!({})), &[100], 2)?;
        assert_eq!(config["first_omega"], 3000.0);
        Ok(())
    }

    #[test]
    fn grids_of_cam_reach_over_what_the_network_sees() -> Result<()> {
        let cam = |preset: &str, config: Value, axes: &[usize]| -> Result<Value> {
            Ok(resolve(&model(preset, config), axes, 3)?.1["cam"].clone())
        };
        let own = cam("siren", json!({ "cam": {} }), &[64, 64])?;
        assert_eq!(own["domain"], json!([-1.0, 1.0]));
        let own = cam("cam-image", json!({}), &[64, 64])?;
        assert_eq!(own["domain"], json!([0.0, 1.0]));
        let asked = json!({ "cam": { "domain": [0.0, 2.0] } });
        assert_eq!(cam("siren", asked, &[64, 64])?["domain"], json!([0.0, 2.0]));
        // A film is modulated by its time, a surface by the place.
        let film = cam("cam-image", json!({}), &[9, 64, 64])?;
        let surface = cam("cam-image", json!({}), &[0; 3])?;
        assert_eq!(film["grid"]["kind"], "line", "{film}");
        assert_eq!(surface["grid"]["kind"], "tri_plane", "{surface}");
        Ok(())
    }

    #[test]
    fn a_grid_follows_the_size_of_the_signal_and_has_no_more_values() -> Result<()> {
        for axes in [
            &[512usize, 768][..],
            &[40, 30],
            &[4000, 3000],
            &[24, 100, 120],
        ] {
            let (preset, config) = resolve(&model("hashgrid", json!({})), axes, 3)?;
            let vs = tch::nn::VarStore::new(tch::Device::Cpu);
            (preset.build)(&config, &vs.root())?;
            let table = densely_core::weights::named(&vs)["encoding.params"].numel();
            let values: usize = axes.iter().product::<usize>() * 3;
            assert!(table <= values.max(16 * 2 * 256), "{axes:?}: {table}");
            assert_eq!(
                config["grid"]["growth"]["finest"],
                *axes.iter().max().expect("axes")
            );
        }
        Ok(())
    }

    #[test]
    fn what_cannot_be_set_is_named() {
        let wrong = [
            (
                model("siren", json!({ "inputs": 2 })),
                "model.config.inputs",
            ),
            (
                model("hashgrid", json!({ "grid": { "inputs": 2 } })),
                "model.config.grid.inputs",
            ),
            (model("siren", json!({ "omegas": 2 })), "omega"),
            (model("nerf", json!({})), "cam-image"),
            (model("cam-layer", json!({})), "siren"),
            (model("gnf-decoder", json!({})), "siren"),
            (model("sirene", json!({})), "siren"),
        ];
        for (model, word) in wrong {
            let error = resolve(&model, &[8, 8], 3).expect_err(word).to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn every_field_resolves_and_builds_for_one_to_three_axes() -> Result<()> {
        for preset in FIELDS {
            for (axes, outputs) in [(&[9usize][..], 2usize), (&[9, 9], 1), (&[9, 9, 9], 1)] {
                if axes.len() == 1 && (preset.starts_with("hash") || preset.starts_with("gnf")) {
                    continue;
                }
                let (preset, config) = resolve(&model(preset, json!({})), axes, outputs)?;
                let vs = tch::nn::VarStore::new(tch::Device::Cpu);
                let network = (preset.build)(&config, &vs.root())?;
                let coords = Tensor::rand([5, axes.len() as i64], tch::kind::FLOAT_CPU);
                let given = densely_core::Tensors::from([("coords".to_owned(), coords)]);
                let values = network.forward_named(&given, false)?;
                assert_eq!(values["values"].size(), [5, outputs as i64]);
            }
        }
        Ok(())
    }
}
