//! `edits.csv`: a row for each edit, that a later process can go on with; no text in it holds a line break.

use std::path::Path;

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::job::OF_METHODS;
use super::{Method, Variant};
use crate::journal::{Journal, needs_resume, same_settings};

/// One edit of one fact at one layer, judged. Probabilities are products over the tokens of an answer; empty cells were not measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The fact.
    pub id: String,
    /// What the edit should do.
    pub variant: Variant,
    /// How it was made.
    pub method: Method,
    /// Where.
    pub layer: usize,
    /// Share of what noise took away that restoring this layer gives back.
    pub fraction: f64,
    /// The answer's probability without noise.
    pub high: f64,
    /// The answer's probability under noise.
    pub low: f64,
    /// The text that the edit is about.
    pub target: String,
    /// Its probability before the edit.
    pub pre: f64,
    /// Its probability after it.
    pub post: Option<f64>,
    /// The score of the two.
    pub rewrite: Option<f64>,
    /// Its probability in other words, before.
    pub paraphrase_pre: Option<f64>,
    /// Its probability in other words, after.
    pub paraphrase_post: Option<f64>,
    /// The score of the two.
    pub paraphrase: Option<f64>,
    /// Probability of the target behind a neighbour's prompt before the edit.
    pub neighbour_pre: Option<f64>,
    /// Probability of the target behind a neighbour's prompt after it.
    pub neighbour_post: Option<f64>,
    /// The score of the two.
    pub neighbourhood: Option<f64>,
    /// Mean of the scores that were measured.
    pub overall: Option<f64>,
    /// The last loss of the search or training.
    pub loss: Option<f64>,
    /// Why there is no edit; empty where there is.
    pub note: String,
}

impl Point {
    /// What a row is known by.
    pub fn key(&self) -> (String, Variant, Method, usize) {
        (self.id.clone(), self.variant, self.method, self.layer)
    }
}

/// Names of the columns, in the order of [`Point`].
const HEADER: [&str; 20] = [
    "id",
    "variant",
    "method",
    "layer",
    "fraction",
    "high",
    "low",
    "target",
    "pre",
    "post",
    "rewrite",
    "paraphrase_pre",
    "paraphrase_post",
    "paraphrase",
    "neighbour_pre",
    "neighbour_post",
    "neighbourhood",
    "overall",
    "loss",
    "note",
];

/// Largest table that is read back, bytes.
const MAX_BYTES: u64 = 4 << 30;

/// A text on one line.
pub(super) fn on_one_line(text: &str) -> String {
    text.chars()
        .map(|sign| if sign.is_control() { ' ' } else { sign })
        .collect()
}

/// The table, open for appending.
#[derive(Debug)]
pub(super) struct Table {
    journal: Journal,
}

impl Table {
    /// Opens the table at `path`, or begins it, with the rows that it holds.
    ///
    /// # Errors
    /// [`Error::Config`] when another process has it open; [`Error::Corrupt`] naming the line when it is no such table; [`Error::Io`].
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<Point>)> {
        let mut bytes: Vec<u8> = Vec::new();
        let journal = Journal::open(path, true, |_, line| {
            if (bytes.len() + line.len()) as u64 > MAX_BYTES {
                let reason =
                    format!("it has more than {MAX_BYTES} bytes, which no table of edits has");
                return Err(Error::corrupt(path, reason));
            }
            bytes.extend_from_slice(line);
            Ok(())
        })?;
        let mut table = Self { journal };
        if bytes.is_empty() {
            table.write(|csv| csv.write_record(HEADER))?;
            return Ok((table, Vec::new()));
        }
        let mut reader = csv::ReaderBuilder::new().from_reader(bytes.as_slice());
        let header = reader
            .headers()
            .map_err(|error| Error::corrupt(path, format!("its header: {error}")))?;
        if header.iter().ne(HEADER) {
            let columns = header.iter().collect::<Vec<_>>().join(", ");
            let reason = format!("its columns are {columns}, not those of a table of edits");
            return Err(Error::corrupt(path, reason));
        }
        let rows = reader
            .deserialize::<Point>()
            .enumerate()
            .map(|(index, row)| {
                row.map_err(|error| {
                    let reason = format!("line {} is no row of edits: {error}", index + 2);
                    Error::corrupt(path, reason)
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok((table, rows))
    }

    /// Appends a row.
    pub(super) fn append(&mut self, point: &Point) -> Result<()> {
        self.write(|csv| csv.serialize(point))
    }

    fn write(
        &mut self,
        fill: impl FnOnce(&mut csv::Writer<Vec<u8>>) -> csv::Result<()>,
    ) -> Result<()> {
        let path = self.journal.path();
        let failed = |error: String| Error::data(path, format!("a row cannot be written: {error}"));
        let mut csv = csv::WriterBuilder::new()
            .has_headers(false)
            .from_writer(Vec::new());
        fill(&mut csv).map_err(|error| failed(error.to_string()))?;
        let line = csv
            .into_inner()
            .map_err(|error| failed(error.to_string()))?;
        self.journal.append(&line)
    }
}

/// Compares the settings of a folder with those of now, or writes them where there are none; gives what the folder keeps beside them under
/// `kept`, or puts `kept` there.
///
/// # Errors
/// [`Error::Config`] naming the setting that differs, or when the folder is used and `resume` is not given; [`Error::Corrupt`];
/// [`Error::Io`].
pub(super) fn settle(
    path: &Path,
    settings: &Value,
    resume: bool,
    kept: impl FnOnce() -> Result<Value>,
) -> Result<Value> {
    if !path.is_file() {
        let edits = path.with_file_name("edits.csv");
        if edits.metadata().is_ok_and(|found| found.len() > 0) {
            let reason = format!(
                "{} is there without its settings.json; take another folder",
                edits.display()
            );
            return Err(Error::config("--out", reason));
        }
        let kept = kept()?;
        let whole = serde_json::json!({ "settings": settings, "kept": kept });
        densely_core::fs::write(path, format!("{whole:#}\n").as_bytes())?;
        return Ok(kept);
    }
    if !resume {
        return Err(needs_resume(path));
    }
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let mut whole: Value = serde_json::from_str(&text)
        .map_err(|error| Error::corrupt(path, format!("it is no JSON: {error}")))?;
    let mut begun = whole["settings"].clone();
    let mut added = false;
    for name in OF_METHODS {
        match (
            begun["edits"].get(name).is_some(),
            settings["edits"].get(name),
        ) {
            (true, None) => {
                if let Some(edits) = begun["edits"].as_object_mut() {
                    edits.remove(name);
                }
            }
            (false, Some(now)) if begun["edits"].is_object() => {
                begun["edits"][name] = now.clone();
                whole["settings"]["edits"][name] = now.clone();
                added = true;
            }
            _ => {}
        }
    }
    same_settings(path, &begun, settings)?;
    if added {
        densely_core::fs::write(path, format!("{whole:#}\n").as_bytes())?;
    }
    Ok(whole["kept"].take())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn point(layer: usize) -> Point {
        Point {
            id: "7".to_owned(),
            variant: Variant::FactErasure,
            method: Method::Ft5,
            layer,
            fraction: 0.1 + 0.2,
            high: 0.9,
            low: 1e-9,
            target: "a, \"b\"".to_owned(),
            pre: 1.0 / 3.0,
            post: Some(0.25),
            rewrite: None,
            paraphrase_pre: None,
            paraphrase_post: None,
            paraphrase: None,
            neighbour_pre: Some(0.0),
            neighbour_post: Some(1.0),
            neighbourhood: Some(-0.5),
            overall: None,
            loss: Some(2.5e-17),
            note: String::new(),
        }
    }

    #[test]
    fn a_torn_row_is_cut_off_and_the_rest_kept() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
        let path = folder.path().join("edits.csv");
        let (mut table, rows) = Table::open(&path)?;
        assert!(rows.is_empty());
        table.append(&point(1))?;
        table.append(&point(2))?;
        drop(table);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let header = bytes.iter().position(|b| *b == b'\n').unwrap_or(0) + 1;
        assert_eq!(
            bytes.get(..header),
            Some(format!("{}\n", HEADER.join(",")).as_bytes())
        );
        for cut in [bytes.len() - 1, bytes.len() - 9] {
            std::fs::write(&path, &bytes[..cut]).map_err(Error::io(&path))?;
            let (mut table, rows) = Table::open(&path)?;
            assert_eq!(rows, [point(1)]);
            table.append(&point(2))?;
            drop(table);
            assert_eq!(std::fs::read(&path).map_err(Error::io(&path))?, bytes);
        }
        let (_, rows) = Table::open(&path)?;
        assert_eq!(rows, [point(1), point(2)]);
        std::fs::write(&path, &bytes[..header - 3]).map_err(Error::io(&path))?;
        assert!(Table::open(&path)?.1.is_empty());
        std::fs::write(&path, "id,prompt\n1,x\n").map_err(Error::io(&path))?;
        let error = Table::open(&path).expect_err("no such table");
        assert!(error.to_string().contains("id, prompt"), "{error}");
        Ok(())
    }

    #[test]
    fn other_settings_are_refused_and_named() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
        let path = folder.path().join("settings.json");
        let settings = |clamp: f64| json!({ "options": { "clamp": clamp } });
        let kept = settle(&path, &settings(4.0), false, || Ok(json!(["a"])))?;
        assert_eq!(kept, json!(["a"]));
        let never = || Err(Error::config("kept", "is there"));
        assert_eq!(settle(&path, &settings(4.0), true, never)?, json!(["a"]));
        let error = settle(&path, &settings(4.0), false, never).expect_err("it is used");
        assert!(error.to_string().contains("--resume"), "{error}");
        let error = settle(&path, &settings(3.0), true, never).expect_err("another");
        assert!(
            error
                .to_string()
                .contains("options.clamp was 4.0, now it is 3.0"),
            "{error}"
        );
        assert_eq!(on_one_line("a\nb\tc"), "a b c");
        Ok(())
    }
}
