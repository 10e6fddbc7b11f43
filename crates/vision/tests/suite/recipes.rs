//! Every recipe of this crate has settings that a fit takes.

use std::path::Path;

use densely_core::registry::parse_config;
use densely_vision::classify::ClassifySettings;
use densely_vision::restoration::RestoreSettings;
use densely_vision::{MaximConfig, PoolFormerConfig, StripMlpConfig};
use serde_json::{Value, json};

/// `base` with what `[quick]` changes.
fn merged(base: &mut Value, changes: &Value) {
    let (Value::Object(base), Value::Object(changes)) = (&mut *base, changes) else {
        *base = changes.clone();
        return;
    };
    for (key, value) in changes {
        merged(base.entry(key).or_insert(Value::Null), value);
    }
}

fn settings(recipe: &Value) -> Value {
    let mut data = recipe["data"].clone();
    data.as_object_mut().expect("a table").remove("dataset");
    let or_empty = |key: &str| recipe.get(key).cloned().unwrap_or_else(|| json!({}));
    json!({ "data": data, "model": or_empty("model"), "train": or_empty("train") })
}

fn check_classifier(recipe: &Value) {
    let settings: ClassifySettings = serde_json::from_value(settings(recipe)).expect("settings");
    settings.data.validate().expect("data");
    settings.train.validate().expect("train");
    let side = settings.train.eval.size;
    let (preset, config) = settings
        .model
        .resolve(10, settings.data.channels, side)
        .expect("a network");
    if preset.name.starts_with("strip") {
        parse_config::<StripMlpConfig>(&config)
            .and_then(|config| config.validate())
            .expect("a Strip-MLP");
    } else {
        parse_config::<PoolFormerConfig>(&config)
            .and_then(|config| config.validate())
            .expect("a PoolFormer");
    }
}

fn check_restorer(recipe: &Value) {
    let settings: RestoreSettings = serde_json::from_value(settings(recipe)).expect("settings");
    settings.validate().expect("settings");
    let fields = Value::Object(settings.model.config.clone());
    let preset = densely_core::registry::find(densely_vision::PRESETS, &settings.model.preset)
        .expect("a preset");
    let config: MaximConfig =
        parse_config(&preset.config_with(&fields).expect("fields")).expect("a MAXIM");
    config.validate().expect("sizes");
    assert_eq!(settings.train.augment.size % config.multiple(), 0);
}

#[test]
fn every_recipe_and_its_quick_size_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the recipes") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a file");
        let mut recipe: Value = toml::from_str(&text).expect("TOML");
        let quick = recipe.as_object_mut().expect("a table").remove("quick");
        let mut sizes = vec![recipe.clone()];
        if let Some(quick) = quick {
            merged(&mut recipe, &quick);
            sizes.push(recipe);
        }
        for recipe in sizes {
            if recipe["domain"] == "restoration" {
                check_restorer(&recipe);
                continue;
            }
            check_classifier(&recipe);
            for other in recipe["compare"]["models"].as_array().into_iter().flatten() {
                let mut recipe = recipe.clone();
                recipe["model"] = other["model"].clone();
                check_classifier(&recipe);
            }
        }
        count += 1;
    }
    assert_eq!(count, 19);
}
