//! Recipes of the literature's data sets: their windows, their models, and what is refused.

use std::fmt::Write;
use std::path::Path;

use chrono::{Duration, NaiveDate};
use densely_core::{Error, Result, nn};
use densely_data::Table;
use densely_timeseries::fit::{FitSettings, Prepared, build};
use densely_timeseries::panel::Windows;
use tch::Device;
use tch::nn::VarStore;

/// A recipe of the crate as a table, and its settings.
fn recipe(name: &str) -> (toml::Table, FitSettings) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("recipes/{name}.toml"));
    let text = std::fs::read_to_string(&path).expect("a recipe");
    let recipe: toml::Table = toml::from_str(&text).expect("TOML");
    let mut parts = toml::Table::new();
    for part in ["data", "model", "train"] {
        if let Some(table) = recipe.get(part) {
            parts.insert(part.to_owned(), table.clone());
        }
    }
    let data = parts["data"].as_table_mut().expect("a table");
    for key in ["dataset", "file"] {
        data.remove(key).expect("where the data is");
    }
    let settings = parts.try_into();
    (recipe, settings.unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// The recipes that follow the literature's protocol.
fn names() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).expect("recipes") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a recipe");
        let recipe: toml::Table = toml::from_str(&text).expect("TOML");
        if recipe["domain"].as_str() == Some("timeseries") {
            names.push(
                path.file_stem()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned(),
            );
        }
    }
    names
}

#[test]
fn every_recipe_has_settings_that_fit_and_builds_its_model() -> Result<()> {
    let names = names();
    assert!(names.len() >= 21, "{names:?}");
    for name in names {
        let (_, settings) = recipe(&name);
        settings.train.validate()?;
        let (data, model) = (&settings.data, &settings.model);
        let config = model.resolve(data.lookback, data.horizon, 7)?;
        build(&model.preset, &config, &VarStore::new(Device::Cpu).root())?;
        assert!(data.blocks.parts(100_000).is_ok(), "{name}");
    }
    Ok(())
}

#[test]
fn models_of_the_literatures_sets_have_the_published_sizes() -> Result<()> {
    for (name, channels, parameters) in [
        ("tsmixer-ettm2-96", 7, 605_180),
        ("tsmixer-weather-96", 21, 1_277_534),
        ("tsmixer-electricity-96", 321, 3_896_038),
        ("tsmixer-traffic-96", 862, 17_165_324),
        ("patchtsmixer-electricity-96", 321, 275_696),
    ] {
        let (_, settings) = recipe(name);
        let config = settings.model.resolve(512, 96, channels)?;
        let vs = VarStore::new(Device::Cpu);
        build(&settings.model.preset, &config, &vs.root())?;
        assert_eq!(nn::parameter_count(&vs), parameters, "{name}");
    }
    Ok(())
}

/// One series of `rows` steps of `minutes`, without the rows in `lost`.
fn table(rows: i64, minutes: i64, lost: &[i64]) -> Result<Table> {
    let start = NaiveDate::from_ymd_opt(2016, 7, 1).and_then(|day| day.and_hms_opt(0, 0, 0));
    let start = start.expect("a time");
    let mut text = "date,OT\n".to_owned();
    for row in (0..rows + lost.len() as i64).filter(|row| !lost.contains(row)) {
        let time = start + Duration::minutes(row * minutes);
        writeln!(text, "{time},{}", row % 97).expect("a string");
    }
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    let path = folder.path().join("t.csv");
    std::fs::write(&path, text).map_err(Error::io(&path))?;
    Table::open(&path)
}

#[test]
fn windows_of_the_literatures_sets_are_as_many_as_published() -> Result<()> {
    // Rows and minutes of each set; windows to train on, to choose the epoch by and to test on.
    let sets = [
        ("tsmixer-etth1-96", 17_420, 60, [8033, 2785, 2785]),
        ("tsmixer-etth2-96", 17_420, 60, [8033, 2785, 2785]),
        ("tsmixer-ettm1-96", 69_680, 15, [33_953, 11_425, 11_425]),
        ("tsmixer-ettm2-96", 69_680, 15, [33_953, 11_425, 11_425]),
        ("tsmixer-weather-96", 52_696, 10, [36_280, 5175, 10_444]),
        ("tsmixer-electricity-96", 26_304, 60, [17_805, 2537, 5165]),
        (
            "patchtsmixer-electricity-96",
            26_304,
            60,
            [17_805, 2537, 5165],
        ),
        ("tsmixer-traffic-96", 17_544, 60, [11_673, 1661, 3413]),
    ];
    for (name, rows, minutes, windows) in sets {
        let (_, settings) = recipe(name);
        let prepared = Prepared::new(&table(rows, minutes, &[])?, &settings.data, Device::Cpu)?;
        let found = [&prepared.train, &prepared.valid, &prepared.test].map(Windows::len);
        assert_eq!(found, windows, "{name}");
    }
    Ok(())
}

#[test]
fn rows_are_steps_only_where_the_recipe_says_so() -> Result<()> {
    let (_, mut settings) = recipe("tsmixer-weather-96");
    let gaps = table(52_696, 10, &[100, 101, 102, 103, 9000, 9001, 9002, 30_000])?;
    let prepared = Prepared::new(&gaps, &settings.data, Device::Cpu)?;
    assert_eq!(prepared.train.len(), 36_280);
    assert_eq!(prepared.panel.step, 600_000_000);
    settings.data.rows_as_steps = false;
    let error = Prepared::new(&gaps, &settings.data, Device::Cpu).expect_err("a gap");
    assert!(
        error
            .to_string()
            .contains("50 min after the row before, not 10 min"),
        "{error}"
    );
    Ok(())
}

#[test]
fn the_grid_of_the_paper_stands_in_its_recipes() -> Result<()> {
    use densely_timeseries::tune;
    use densely_train::tune::{Space, TuneSettings};
    for horizon in [96, 192, 336, 720] {
        let (recipe, settings) = recipe(&format!("tsmixer-etth1-{horizon}"));
        let asked: TuneSettings = recipe["tune"].clone().try_into().expect("settings");
        let ranges = tune::ranges(&asked, &settings)?;
        assert_eq!(Space::new(&ranges)?.points()?, 2 * 5 * 5 * 7);
    }
    Ok(())
}
