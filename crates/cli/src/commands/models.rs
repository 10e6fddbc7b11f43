//! `densely models`: every preset, as a table or as JSON.

use densely_core::registry::{Preset, nearest};
use densely_core::{Error, Result};

use crate::Common;

/// Example: `densely models tabm`
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: densely models tabm")]
pub(crate) struct Arguments {
    /// Show only names that contain this text.
    pattern: Option<String>,
}

/// The presets of all domains.
pub(crate) fn all() -> Vec<Preset> {
    [
        densely_tabular::PRESETS,
        densely_timeseries::PRESETS,
        densely_recsys::PRESETS,
        densely_vision::PRESETS,
        densely_fields::PRESETS,
        densely_lm::PRESETS,
        densely_interp::PRESETS,
    ]
    .concat()
}

pub(crate) fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    let mut presets = all();
    if let Some(pattern) = &arguments.pattern {
        presets.retain(|preset| preset.name.contains(pattern.as_str()));
        if presets.is_empty() && !common.json {
            let nearest = nearest(all().iter().map(|preset| preset.name), pattern);
            return Err(Error::UnknownPreset {
                name: pattern.clone(),
                nearest,
            });
        }
    }
    if common.json {
        let text = serde_json::to_string_pretty(&presets)
            .map_err(|e| Error::config("models", e.to_string()))?;
        println!("{text}");
        return Ok(());
    }
    println!(
        "{:<27} {:<10} {:>12} {:>14}  paper",
        "name", "domain", "parameters", "MACs per row"
    );
    for preset in presets {
        println!(
            "{:<27} {:<10} {:>12} {:>14}  {}",
            preset.name, preset.domain, preset.params, preset.macs, preset.paper
        );
    }
    Ok(())
}
