//! Recipes: TOML files that hold everything that decides a result.

mod change;

use std::path::Path;

use densely_core::{Error, Result};
use densely_fields::fit::{DataSettings, FieldSettings};
use densely_recsys::CtrSettings;
use densely_tabular::settings::FitSettings;
use densely_timeseries::forecast::ForecastSettings;
use densely_timeseries::m4::{self, M4};
use densely_train::tune::TuneSettings;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub(crate) use change::{changed, set};
use change::{merge, replace};

/// Domains whose recipes train.
const DOMAINS: [&str; 8] = [
    "tabular",
    "timeseries",
    FORECAST,
    "recsys",
    "vision",
    "restoration",
    "fields",
    INTERP,
];
/// The domain of own tables of series, whose settings are those of `densely forecast fit`.
const FORECAST: &str = "forecast";
/// The domain of studies of language models: nothing is trained but edits.
const INTERP: &str = "interp";
/// Keys of `[data]` that are not the domain's: where the rows come from.
const FILES: [&str; 4] = ["file", "append", "join", "m4"];

/// A recipe at one size, after `--quick`, `--smoke` and `--set`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    /// Name of the file without its ending; names the run folders too.
    pub(crate) name: String,
    /// One line for people.
    pub(crate) title: String,
    /// The domain crate that runs it.
    pub(crate) domain: String,
    /// One run each.
    pub(crate) seeds: Vec<u64>,
    /// Whether `reproduce --quick` runs it.
    #[serde(default)]
    pub(crate) in_quick: bool,
    /// The table and how it is read, by the domain's settings.
    data: Table,
    /// The network.
    #[serde(default)]
    model: Table,
    /// The training loop.
    #[serde(default)]
    train: Table,
    /// Horizon, lookback, shares and quantiles of the domain `forecast`.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    forecast: Table,
    /// Options of `densely interp trace`, of the domain `interp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trace: Option<Table>,
    /// Options of `densely interp localize`, of the domain `interp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    localize: Option<Table>,
    /// Options of `densely interp transcoder train`, of the domain `interp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    transcoder: Option<Table>,
    /// Options of `densely interp transcoder compare`, of the domain `interp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    transcoder_compare: Option<Table>,
    /// Other models to run beside, in the domain's form.
    #[serde(default, skip_serializing)]
    compare: Option<Table>,
    /// The search for better settings, by `densely tune`.
    #[serde(default)]
    pub(crate) tune: Option<TuneSettings>,
}

/// Which study a recipe of the domain `interp` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StudySection {
    /// `[trace]`
    Trace,
    /// `[localize]`
    Localize,
    /// `[transcoder]`
    Transcoder,
    /// `[transcoder_compare]`
    TranscoderCompare,
}

impl StudySection {
    /// Of its section, and of the command.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Localize => "localize",
            Self::Transcoder => "transcoder",
            Self::TranscoderCompare => "transcoder_compare",
        }
    }

    /// Whether it takes activations of a model, which may be kept.
    pub(crate) const fn has_activations(self) -> bool {
        matches!(self, Self::Transcoder | Self::TranscoderCompare)
    }
}

/// The published number that a recipe aims at; read by `cargo xtask reproduce`, checked here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    metric: String,
    value: f64,
    source: String,
    #[serde(default)]
    tolerance: Option<f64>,
}

/// The files of a recipe's table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Files {
    /// The table.
    pub(crate) file: String,
    /// Files whose rows come behind those of the table.
    #[serde(default)]
    append: Vec<String>,
    /// Files whose columns come beside.
    #[serde(default)]
    join: Vec<Join>,
    /// The file has a series in each row, as the M4 competition gives them out.
    #[serde(default)]
    m4: Option<M4Files>,
}

/// The files of a recipe of the domain `recsys`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CtrFiles {
    /// The table; others stand beside it.
    pub(crate) file: String,
    /// What makes the table of the data set's files first.
    #[serde(default)]
    pub(crate) make: Option<Maker>,
}

/// What makes a table of clicks of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Maker {
    /// Ratings, users and films.
    #[serde(rename = "movielens-100k")]
    Movielens100k,
    /// Invoices of a shop.
    OnlineRetailIi,
}

/// What belongs to a file of the M4 competition.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct M4Files {
    /// The file with the steps to forecast.
    future: String,
    /// Steps in a season.
    season: usize,
}

/// What a model of a comparison changes; tables of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Changes {
    /// The name in tables and plots.
    pub(crate) name: String,
    /// Takes the place of `[model]`.
    model: Option<Table>,
    /// Changes of `[data]`.
    data: Table,
    /// Changes of `[forecast]`.
    forecast: Table,
    /// Changes of `[train]`.
    train: Table,
}

/// A file whose columns come beside those of a table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Join {
    file: String,
    /// Columns that must be equal.
    on: Vec<String>,
    /// What the names of the joined columns begin with.
    #[serde(default)]
    prefix: String,
}

impl Files {
    /// Reads the files in `folder` as one table.
    ///
    /// # Errors
    /// Those of [`densely_data::Table::open`], `concat` and `join`.
    pub(crate) fn open(&self, folder: &Path) -> Result<densely_data::Table> {
        if let Some(series) = self.m4(folder)? {
            return series.table();
        }
        let open = |file: &String| densely_data::Table::open(&folder.join(file));
        let mut table = open(&self.file)?;
        if !self.append.is_empty() {
            let mut tables = vec![table];
            for file in &self.append {
                tables.push(open(file)?);
            }
            table = densely_data::Table::concat(&tables)?;
        }
        for join in &self.join {
            table = table.join(&open(&join.file)?, &join.on, &join.prefix)?;
        }
        Ok(table)
    }

    /// The competition's series, where the files are such.
    ///
    /// # Errors
    /// Those of [`m4::read`].
    pub(crate) fn m4(&self, folder: &Path) -> Result<Option<M4>> {
        let read = |m4: &M4Files| {
            m4::read(
                &folder.join(&self.file),
                &folder.join(&m4.future),
                m4.season,
            )
        };
        self.m4.as_ref().map(read).transpose()
    }
}

/// How large a recipe runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// As published.
    Full,
    /// With the changes of `[quick]`.
    Quick,
    /// With those and one epoch of the first seed: does it run?
    Smoke,
}

impl Recipe {
    /// Reads the recipe at `path`, at `size`, with `changes` of the form `key.key=value`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corrupt`] with TOML's own words, [`Error::Config`] for a change that is not one.
    pub(crate) fn read(path: &Path, size: Size, changes: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let wrong = |e: toml::de::Error| Error::corrupt(path, sentence(&e));
        let mut table: Table = toml::from_str(&text).map_err(wrong)?;
        let quick = table.remove("quick");
        if let (Some(quick), Size::Quick | Size::Smoke) = (quick, size) {
            match quick {
                Value::Table(quick) => merge(&mut table, quick),
                _ => return Err(Error::corrupt(path, "`quick` must be a table")),
            }
        }
        if size == Size::Smoke {
            let tune = table.contains_key("tune").then_some("tune.trials=2");
            let domain = table.get("domain").and_then(Value::as_str);
            let trained: &[&str] = match domain {
                Some(INTERP) => &[],
                _ => &["train.epochs=1", "train.patience=1"],
            };
            let few: &[&str] = match domain {
                Some(FORECAST) => &["forecast.epoch_windows=512"],
                Some("vision") => &["data.train_limit=512", "data.test_limit=512"],
                Some("restoration") => &["train.epoch_squares=16", "data.test_limit=2"],
                Some("fields") => &["train.epoch_steps=2"],
                Some(INTERP) if table.contains_key("trace") => &["trace.limit=3"],
                Some(INTERP) if table.contains_key("transcoder") => &[
                    "transcoder.tokens=3000",
                    "transcoder.batch=512",
                    "transcoder.epochs=1",
                    "transcoder.test_windows=4",
                ],
                Some(INTERP) if table.contains_key("transcoder_compare") => &[
                    "transcoder_compare.tokens=3000",
                    "transcoder_compare.batch=512",
                    "transcoder_compare.epochs=1",
                    "transcoder_compare.test_windows=4",
                ],
                Some(INTERP) => &["localize.limit=3"],
                _ => &[],
            };
            let pictures = matches!(domain, Some("vision" | "restoration"));
            let schedule = table.get("train").and_then(|train| train.get("schedule"));
            // The default schedule has no warm-up that the few steps could be too few for.
            let warmup = schedule
                .filter(|_| pictures)
                .map(|_| "train.schedule.warmup_steps=0");
            let changes = trained.iter().chain(few).copied();
            for change in changes.chain(["seeds=[0]"]).chain(tune).chain(warmup) {
                set(&mut table, change)?;
            }
        }
        for change in changes {
            set(&mut table, change)?;
        }
        if let Some(published) = table.remove("published") {
            published.try_into::<Published>().map_err(wrong)?;
        }
        let recipe: Self = table.try_into().map_err(wrong)?;
        if recipe.seeds.is_empty() {
            return Err(Error::config("seeds", "must hold at least one seed"));
        }
        if !DOMAINS.contains(&recipe.domain.as_str()) {
            let reason = format!(
                "must be one of {}; got `{}`",
                DOMAINS.join(", "),
                recipe.domain
            );
            return Err(Error::config("domain", reason));
        }
        if recipe.domain != FORECAST && !recipe.forecast.is_empty() {
            return Err(recipe.no_forecast("forecast"));
        }
        let studies = !recipe.studies().is_empty();
        if recipe.domain != INTERP && studies {
            let reason = format!(
                "are for recipes of the domain {INTERP}; this one is of {}",
                recipe.domain
            );
            return Err(Error::config("trace, localize and transcoder", reason));
        }
        Ok(recipe)
    }

    /// The studies that the recipe has sections of.
    fn studies(&self) -> Vec<(StudySection, &Table)> {
        let all = [
            (StudySection::Trace, &self.trace),
            (StudySection::Localize, &self.localize),
            (StudySection::Transcoder, &self.transcoder),
            (StudySection::TranscoderCompare, &self.transcoder_compare),
        ];
        all.into_iter()
            .filter_map(|(section, options)| Some((section, options.as_ref()?)))
            .collect()
    }

    /// Which study a recipe of the domain `interp` is, its options, and `[data]`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it has not one section, or sections that nothing reads; with TOML's own words for an unknown or ill-typed setting
    /// of `[data]`.
    pub(crate) fn study<T: DeserializeOwned>(
        &self,
        path: &Path,
    ) -> Result<(StudySection, &Table, T)> {
        let [section] = self.studies()[..] else {
            let reason = "a recipe of the domain interp must have one of `[trace]`, `[localize]`, `[transcoder]` and `[transcoder_compare]`";
            return Err(Error::corrupt(path, reason));
        };
        if !self.model.is_empty() || !self.train.is_empty() || self.compare.is_some() {
            let reason = "`[model]`, `[train]` and `[compare]` are not for recipes of the domain interp: nothing is trained, and the model is a path in `[data]`";
            return Err(Error::corrupt(path, reason));
        }
        let mut data = self.data.clone();
        data.remove("datasets");
        let data = data.try_into().map_err(|e: toml::de::Error| {
            Error::corrupt(path, format!("data: {}", sentence(&e)))
        })?;
        Ok((section.0, section.1, data))
    }

    /// What is wrong with settings that only the domain `forecast` has.
    fn no_forecast(&self, field: &str) -> Error {
        let reason = format!(
            "is for recipes of the domain {FORECAST}; this one is of {}",
            self.domain
        );
        Error::config(field, reason)
    }

    /// `[compare]` in the domain's form.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with TOML's own words.
    pub(crate) fn compare<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>> {
        let compare = self.compare.clone().map(Table::try_into);
        compare
            .transpose()
            .map_err(|e| Error::corrupt(path, format!("compare: {}", sentence(&e))))
    }

    /// The files of the data set that the recipe trains on, and the settings of the fit.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with TOML's own words for an unknown or ill-typed setting.
    pub(crate) fn fit_settings<T: DeserializeOwned>(&self, path: &Path) -> Result<(Files, T)> {
        let mut data = self.data.clone();
        // Where the files come from is for `cargo xtask reproduce`.
        data.remove("dataset");
        let files = files(&mut data, path)?;
        Ok((
            files,
            settings(data, self.model.clone(), self.train.clone(), path)?,
        ))
    }

    /// The files of a recipe of the domain `forecast`, and the settings of its fit with `changes`: where neither says anything, those of
    /// `densely forecast fit`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with TOML's own words for an unknown or ill-typed setting.
    pub(crate) fn forecast_settings(
        &self,
        changes: &Changes,
        path: &Path,
    ) -> Result<(Files, ForecastSettings)> {
        let with = |base: &Table, changes: &Table| {
            let mut table = base.clone();
            merge(&mut table, changes.clone());
            table
        };
        let mut data = with(&self.data, &changes.data);
        data.remove("dataset");
        let files = files(&mut data, path)?;
        let mut settings = Table::try_from(ForecastSettings::new(1))
            .map_err(|e| Error::config("forecast", e.to_string()))?;
        settings.remove("horizon");
        settings.extend(with(&self.forecast, &changes.forecast));
        settings.insert("data".into(), data.into());
        let model = changes.model.as_ref().unwrap_or(&self.model);
        if !model.is_empty() {
            settings.insert("model".into(), model.clone().into());
        }
        if let Some(Value::Table(train)) = settings.get_mut("train") {
            train.extend(with(&self.train, &changes.train));
        }
        let settings = settings
            .try_into()
            .map_err(|e: toml::de::Error| Error::corrupt(path, sentence(&e)))?;
        Ok((files, settings))
    }

    /// The files of a recipe of the domain `recsys`, and the settings of its fit.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with TOML's own words for an unknown or ill-typed setting.
    pub(crate) fn ctr_settings(&self, path: &Path) -> Result<(CtrFiles, CtrSettings)> {
        let mut data = self.data.clone();
        data.remove("dataset");
        let files = take(&mut data, &["file", "make"], path)?;
        let settings = settings(data, self.model.clone(), self.train.clone(), path)?;
        Ok((files, settings))
    }

    /// The settings with `changes`, for domains whose `[data]` names its files itself.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with TOML's own words for an unknown or ill-typed setting; [`Error::Config`] for changes of `[forecast]`.
    pub(crate) fn plain_settings<T: DeserializeOwned>(
        &self,
        changes: &Changes,
        path: &Path,
    ) -> Result<T> {
        if !changes.forecast.is_empty() {
            return Err(self.no_forecast("compare.models.forecast"));
        }
        let mut data = self.data.clone();
        data.remove("dataset");
        let mut train = self.train.clone();
        merge(&mut data, changes.data.clone());
        merge(&mut train, changes.train.clone());
        let model = changes.model.as_ref().unwrap_or(&self.model);
        settings(data, model.clone(), train, path)
    }

    /// The files of a recipe of the domain `fields`: `data.files`, or `data.file` alone.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when there is none, or both are named.
    pub(crate) fn signals(&self, path: &Path) -> Result<Vec<String>> {
        let wrong = || {
            let reason = "`data` must hold `file`, a path, or `files`, a list of paths";
            Error::corrupt(path, reason)
        };
        match (self.data.get("file"), self.data.get("files")) {
            (Some(Value::String(file)), None) => Ok(vec![file.clone()]),
            (None, Some(Value::Array(files))) if !files.is_empty() => files
                .iter()
                .map(|file| file.as_str().map(str::to_owned).ok_or_else(wrong))
                .collect(),
            _ => Err(wrong()),
        }
    }

    /// The settings of a fit to one of the [`signals`](Self::signals), with `changes`: where neither says anything, those that are suggested for the model.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with TOML's own words for an unknown or ill-typed setting; [`Error::Config`] for changes of `[forecast]`.
    pub(crate) fn field_settings(
        &self,
        changes: &Changes,
        file: &str,
        path: &Path,
    ) -> Result<FieldSettings> {
        if !changes.forecast.is_empty() {
            return Err(self.no_forecast("compare.models.forecast"));
        }
        let wrong = |e: &toml::de::Error| Error::corrupt(path, sentence(e));
        let mut data = self.data.clone();
        for name in ["dataset", "files", "file"] {
            data.remove(name);
        }
        merge(&mut data, changes.data.clone());
        data.insert("file".to_owned(), Value::String(file.to_owned()));
        let data: DataSettings = data.try_into().map_err(|e| wrong(&e))?;
        let model = changes.model.as_ref().unwrap_or(&self.model);
        let preset = model.get("preset").and_then(Value::as_str);
        let suggested = FieldSettings::suggest(data, preset)?;
        let as_text = |e: toml::ser::Error| Error::config("settings", e.to_string());
        let mut table = Table::try_from(&suggested).map_err(as_text)?;
        for (name, own) in [
            ("model", model),
            ("train", &self.train),
            ("train", &changes.train),
        ] {
            if let Some(Value::Table(table)) = table.get_mut(name) {
                for (key, value) in own {
                    replace(table, key, value);
                }
            }
        }
        table.try_into().map_err(|e| wrong(&e))
    }

    /// The settings with another model and changes of the training.
    ///
    /// # Errors
    /// Those of [`fit_settings`](Self::fit_settings).
    pub(crate) fn with_model(
        &self,
        model: Option<&Table>,
        changes: &Table,
        path: &Path,
    ) -> Result<FitSettings> {
        let mut data = self.data.clone();
        data.remove("dataset");
        files(&mut data, path)?;
        let mut train = self.train.clone();
        merge(&mut train, changes.clone());
        settings(data, model.unwrap_or(&self.model).clone(), train, path)
    }
}

/// Takes the keys of [`Files`] out of `[data]`.
fn files(data: &mut Table, path: &Path) -> Result<Files> {
    take(data, &FILES, path)
}

/// Takes these keys out of `[data]`.
fn take<T: DeserializeOwned>(data: &mut Table, keys: &[&str], path: &Path) -> Result<T> {
    let taken: Table = keys
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), data.remove(*key)?)))
        .collect();
    taken
        .try_into()
        .map_err(|e: toml::de::Error| Error::corrupt(path, sentence(&e)))
}

fn settings<T: DeserializeOwned>(
    data: Table,
    model: Table,
    train: Table,
    path: &Path,
) -> Result<T> {
    let mut settings = Table::new();
    settings.insert("data".into(), data.into());
    settings.insert("model".into(), model.into());
    settings.insert("train".into(), train.into());
    settings
        .try_into()
        .map_err(|e: toml::de::Error| Error::corrupt(path, sentence(&e)))
}

impl Recipe {
    /// The recipe with these settings for `model` and `train`, all written out, and without sections that would change them.
    ///
    /// # Errors
    /// [`Error::Config`] when a setting has no form in TOML.
    pub(crate) fn with(
        &self,
        model: &impl Serialize,
        train: &impl Serialize,
        comment: &str,
    ) -> Result<String> {
        let wrong = |e: toml::ser::Error| Error::config("recipe", e.to_string());
        let best = Self {
            name: format!("{}-best", self.name),
            title: format!("{}, best settings of the search", self.title),
            in_quick: false,
            model: Table::try_from(model).map_err(wrong)?,
            train: Table::try_from(train).map_err(wrong)?,
            tune: None,
            ..self.clone()
        };
        let text = toml::to_string_pretty(&best).map_err(wrong)?;
        Ok(format!("# {comment}\n{text}"))
    }
}

impl Recipe {
    /// `error` with what to do about it, where a file of the recipe's data set is not there.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let one = self.data.get("dataset").and_then(Value::as_str);
        let several = self.data.get("datasets").and_then(Value::as_array);
        // Of several sets, the one whose folder the file would be in.
        let of = |path: &Path| {
            let mut names = several.into_iter().flatten().filter_map(Value::as_str);
            one.or_else(|| names.find(|name| path.iter().any(|part| part == *name)))
        };
        match error {
            Error::Io { path, source }
                if source.kind() == std::io::ErrorKind::NotFound && of(&path).is_some() =>
            {
                let name = of(&path).unwrap_or_default();
                let folder = if several.is_some() {
                    "the folder that holds its folder"
                } else {
                    "its folder"
                };
                let reason = format!(
                    "{source}; it is of the data set `{name}`: `cargo xtask data get {name}` fetches it or says where it is to be had, and --data-dir names {folder}"
                );
                Error::io(path)(std::io::Error::new(source.kind(), reason))
            }
            error => error,
        }
    }
}

/// TOML's words on one line, without the picture of the place.
pub(crate) fn sentence(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.contains('|'));
    lines.collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tabred_recipes_build_networks_of_the_published_size() -> Result<()> {
        // Inputs after one-hot (binary columns are two wide) and parameters of the published runs: the first follow from
        // the second by the formula of TabM's parameters, and are whole numbers.
        let published = [
            ("homesite-insurance", 442, 2, 1_744_768),
            ("ecom-offers", 116, 2, 132_608),
            ("homecredit-default", 990, 2, 2_127_264),
            ("sberbank-housing", 561, 1, 336_944),
            ("cooking-time", 204, 1, 107_232),
            ("delivery-eta", 222, 1, 234_080),
            ("maps-routing", 1000, 1, 353_056),
            ("weather", 106, 1, 3_739_744),
        ];
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tabular/recipes");
        for (name, inputs, outputs, parameters) in published {
            let path = folder.join(format!("tabred-{name}.toml"));
            let recipe = Recipe::read(&path, Size::Full, &[])?;
            assert_eq!(
                (recipe.name.as_str(), recipe.seeds.len()),
                (&*format!("tabred-{name}"), 15)
            );
            let (files, settings): (_, FitSettings) = recipe.fit_settings(&path)?;
            assert_eq!(files.file, name);
            settings.train.validate()?;
            let x_num = tch::Tensor::zeros([1, inputs], tch::kind::FLOAT_CPU);
            let config = settings.model.resolve(Some(&x_num), None, &[], outputs)?;
            let vs = tch::nn::VarStore::new(tch::Device::Cpu);
            config.build(&vs.root())?;
            assert_eq!(densely_core::nn::parameter_count(&vs), parameters, "{name}");
            Recipe::read(&path, Size::Quick, &[])?.fit_settings::<FitSettings>(&path)?;
        }
        Ok(())
    }
}
