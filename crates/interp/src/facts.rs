//! Facts from files: what is traced and edited.
//!
//! Three layouts are read: the list of facts that GPT-2 XL knows (`known_1000.json`), CounterFact's records
//! (`counterfact.json`, `multi_counterfact.json`), and own facts as JSON lines or CSV. Files are hostile until checked:
//! their size, the number of records and the length of texts are bounded, and what is broken is named by its line or record.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Largest file, bytes. CounterFact with all its prompts has about 45 MB.
const MAX_BYTES: u64 = 512 << 20;
/// Most records of a file.
const MAX_RECORDS: usize = 1_000_000;
/// Longest text of a record, bytes.
const MAX_TEXT: usize = 20_000;

/// One fact: a prompt about a subject, and what should follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// Name of the record, unique within a file: the file's own number, or that of its line.
    pub id: String,
    /// The subject as it stands in the prompt.
    pub subject: String,
    /// The whole text of the prompt, without the answer.
    pub prompt: String,
    /// The prompt with `{}` in the place of the subject.
    pub template: String,
    /// What should follow, without a leading space.
    pub attribute: Option<String>,
    /// Kind of fact, such as Wikidata's `P1412`.
    pub relation: Option<String>,
}

impl Fact {
    /// A fact of a whole prompt; the template is made from it.
    ///
    /// # Errors
    /// [`Error::Data`] when the prompt or the subject is empty, or the subject does not stand in the prompt.
    pub fn new(
        id: impl Into<String>,
        prompt: impl Into<String>,
        subject: impl Into<String>,
        attribute: Option<String>,
    ) -> Result<Self> {
        let (prompt, subject) = (prompt.into(), subject.into());
        let template = template_of(&prompt, &subject).map_err(|reason| Error::data("", reason))?;
        Ok(Self {
            id: id.into(),
            subject,
            prompt,
            template,
            attribute,
            relation: None,
        })
    }
}

/// A target of CounterFact: its text and Wikidata's name of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The text, without a leading space.
    pub str: String,
    /// Wikidata's name, such as `Q1860`.
    #[serde(default)]
    pub id: Option<String>,
}

/// The change that a record of CounterFact asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    /// Prompt with `{}` in the place of the subject.
    pub prompt: String,
    /// Wikidata's name of the relation.
    #[serde(default)]
    pub relation_id: Option<String>,
    /// What shall be believed.
    pub target_new: Target,
    /// What is true; absent in files of other changes.
    #[serde(default)]
    pub target_true: Option<Target>,
    /// The subject.
    pub subject: String,
}

impl Rewrite {
    /// The prompt with the subject in its place.
    pub fn filled(&self) -> String {
        self.prompt.replacen("{}", &self.subject, 1)
    }
}

/// A record of CounterFact: a change and the prompts that judge it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterFact {
    /// Its number in the file.
    pub case_id: u64,
    /// The change.
    pub requested_rewrite: Rewrite,
    /// The same question in other words.
    #[serde(default)]
    pub paraphrase_prompts: Vec<String>,
    /// Questions about other subjects with the same answer, which must stay.
    #[serde(default)]
    pub neighborhood_prompts: Vec<String>,
    /// Questions about other subjects whose answer is the new target.
    #[serde(default)]
    pub attribute_prompts: Vec<String>,
    /// Beginnings of texts about the subject.
    #[serde(default)]
    pub generation_prompts: Vec<String>,
}

impl CounterFact {
    /// The true fact of the record, as it is traced.
    pub fn fact(&self) -> Fact {
        let rewrite = &self.requested_rewrite;
        Fact {
            id: self.case_id.to_string(),
            subject: rewrite.subject.clone(),
            prompt: rewrite.filled(),
            template: rewrite.prompt.clone(),
            attribute: rewrite.target_true.as_ref().map(|t| t.str.clone()),
            relation: rewrite.relation_id.clone(),
        }
    }
}

/// Reads facts of any of the layouts; CSV by the ending `.csv`, JSON by its first letter (`[` a list, `{` lines).
///
/// Own facts have the fields `subject`, and `prompt` or `template`; `id`, `attribute` and `relation` may be there. Of
/// CounterFact's records the true facts are taken.
///
/// # Errors
/// [`Error::Data`] with file and line (of lists, record) of what is broken; [`Error::Io`].
pub fn read_facts(path: &Path) -> Result<Vec<Fact>> {
    let facts = each_fact(path)?
        .into_iter()
        .collect::<Result<Vec<Fact>>>()?;
    unique_ids(path, &facts)?;
    Ok(facts)
}

/// The facts of a file that can be used, and what is wrong with the others.
#[derive(Debug)]
pub struct Sifted {
    /// In the order of the file; ids may occur again.
    pub facts: Vec<Fact>,
    /// An error for each that is left out, which names file and line (of lists, record).
    pub broken: Vec<Error>,
}

/// Reads facts as [`read_facts`] does, but leaves out those that are broken.
///
/// # Errors
/// [`Error::Data`] when the file itself is no list of facts, or none of them can be used; [`Error::Io`].
pub fn sift_facts(path: &Path) -> Result<Sifted> {
    let mut sifted = Sifted {
        facts: Vec::new(),
        broken: Vec::new(),
    };
    for fact in each_fact(path)? {
        match fact {
            Ok(fact) => sifted.facts.push(fact),
            Err(error) => sifted.broken.push(error),
        }
    }
    match sifted.broken.first() {
        Some(first) if sifted.facts.is_empty() => {
            let reason = format!("no fact of it can be used; the first: {first}");
            Err(Error::data(path, reason))
        }
        _ => Ok(sifted),
    }
}

/// Each fact of a file, at least one, or why it cannot be used.
fn each_fact(path: &Path) -> Result<Vec<Result<Fact>>> {
    let text = read_text(path)?;
    let is_csv = path
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
    if is_csv {
        return csv_facts(path, &text);
    }
    let facts = json_records(path, &text)?
        .into_iter()
        .map(|record| json_fact(path, &record?));
    Ok(facts.collect())
}

/// Reads records of CounterFact, as a list or as lines.
///
/// # Errors
/// [`Error::Data`] with file and line (of lists, record) of what is broken; [`Error::Io`].
pub fn read_counterfact(path: &Path) -> Result<Vec<CounterFact>> {
    let text = read_text(path)?;
    let records = json_records(path, &text)?
        .into_iter()
        .map(|record| counterfact(path, &record?))
        .collect::<Result<Vec<CounterFact>>>()?;
    let facts: Vec<Fact> = records.iter().map(CounterFact::fact).collect();
    unique_ids(path, &facts)?;
    Ok(records)
}

/// A record of a file and how to name its place.
struct Record {
    value: Value,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    /// One-based.
    Line(u64),
    /// One-based place in a list.
    Number(usize),
}

impl Place {
    fn number(self) -> String {
        match self {
            Self::Line(line) => line.to_string(),
            Self::Number(number) => number.to_string(),
        }
    }

    /// An error that names this place.
    fn error(self, path: &Path, reason: impl Into<String>) -> Error {
        match self {
            Self::Line(line) => Error::Data {
                path: path.to_owned(),
                row: Some(line),
                column: None,
                reason: reason.into(),
            },
            Self::Number(number) => {
                Error::data(path, format!("record {number}: {}", reason.into()))
            }
        }
    }
}

fn read_text(path: &Path) -> Result<String> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io(path))?;
    if bytes.len() as u64 > MAX_BYTES {
        let reason = format!(
            "has more than {} MB, which no list of facts has",
            MAX_BYTES >> 20
        );
        return Err(Error::data(path, reason));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().get(..error.utf8_error().valid_up_to());
        let line = before.map_or(0, |bytes| bytes.split(|b| *b == b'\n').count() - 1);
        Place::Line(line as u64 + 1).error(path, "must be UTF-8 text, and is not")
    })
}

/// Each record of a file, at least one; a line that is no JSON is an error in its place.
fn json_records(path: &Path, text: &str) -> Result<Vec<Result<Record>>> {
    let text = text.trim_start_matches('\u{feff}');
    let records = match text.trim_start().chars().next() {
        Some('[') => {
            let values: Vec<Value> = serde_json::from_str(text).map_err(|error| {
                let reason = format!("is not JSON: {}", json_reason(&error));
                Place::Line(error.line() as u64).error(path, reason)
            })?;
            values
                .into_iter()
                .enumerate()
                .map(|(index, value)| {
                    Ok(Record {
                        value,
                        place: Place::Number(index + 1),
                    })
                })
                .collect()
        }
        Some('{') => json_lines(path, text),
        Some(_) => {
            let reason = "must begin with `[` (a list of facts) or `{` (a fact per line); CSV files end in .csv";
            return Err(Place::Line(1).error(path, reason));
        }
        None => Vec::new(),
    };
    if records.is_empty() {
        return Err(Error::data(path, "holds no fact"));
    }
    if records.len() > MAX_RECORDS {
        let reason = format!("holds {} records; {MAX_RECORDS} is the most", records.len());
        return Err(Error::data(path, reason));
    }
    Ok(records)
}

fn json_lines(path: &Path, text: &str) -> Vec<Result<Record>> {
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| {
            let place = Place::Line(index as u64 + 1);
            let value = serde_json::from_str(line).map_err(|error| {
                let reason = format!(
                    "is not a JSON record (one per line): {}",
                    json_reason(&error)
                );
                place.error(path, reason)
            })?;
            Ok(Record { value, place })
        })
        .collect()
}

/// What serde says, without its own line and column.
fn json_reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let cut = text.rfind(" at line ").unwrap_or(text.len());
    text.get(..cut).unwrap_or(&text).to_owned()
}

fn json_fact(path: &Path, record: &Record) -> Result<Fact> {
    let place = record.place;
    let Some(fields) = record.value.as_object() else {
        return Err(place.error(path, "must be an object with `subject` and `prompt`"));
    };
    if fields.contains_key("requested_rewrite") {
        return Ok(counterfact(path, record)?.fact());
    }
    let find = |names: &[&str]| -> Result<Option<String>> {
        for name in names {
            match fields.get(*name) {
                None | Some(Value::Null) => {}
                Some(Value::String(text)) => return Ok(Some(text.clone())),
                Some(Value::Number(number)) => return Ok(Some(number.to_string())),
                Some(_) => {
                    return Err(place.error(path, format!("`{name}` must be text")));
                }
            }
        }
        Ok(None)
    };
    Fields {
        id: find(&["id", "known_id", "case_id"])?,
        subject: find(&["subject"])?,
        prompt: find(&["prompt"])?,
        template: find(&["template"])?,
        attribute: find(&["attribute", "answer", "object"])?,
        relation: find(&["relation", "relation_id"])?,
    }
    .fact(path, place)
}

fn counterfact(path: &Path, record: &Record) -> Result<CounterFact> {
    let place = record.place;
    let found = CounterFact::deserialize(&record.value).map_err(|error| {
        let reason = format!("is not a record of CounterFact: {}", json_reason(&error));
        place.error(path, reason)
    })?;
    let rewrite = &found.requested_rewrite;
    if rewrite.subject.trim().is_empty() {
        return Err(place.error(path, "`requested_rewrite.subject` is empty"));
    }
    if rewrite.prompt.trim().is_empty() {
        return Err(place.error(path, "the prompt is empty (`requested_rewrite.prompt`)"));
    }
    if !rewrite.prompt.contains("{}") {
        let reason = format!(
            "`requested_rewrite.prompt` must hold {{}} in the place of the subject, got {:?}",
            rewrite.prompt
        );
        return Err(place.error(path, reason));
    }
    if rewrite.target_new.str.trim().is_empty() {
        return Err(place.error(path, "`requested_rewrite.target_new.str` is empty"));
    }
    let truth = rewrite.target_true.as_ref().map(|target| &target.str);
    if truth.is_some_and(|truth| truth.trim().is_empty()) {
        return Err(place.error(path, "`requested_rewrite.target_true.str` is empty"));
    }
    let lists = [
        &found.paraphrase_prompts,
        &found.neighborhood_prompts,
        &found.attribute_prompts,
        &found.generation_prompts,
    ];
    let own = [&rewrite.subject, &rewrite.prompt, &rewrite.target_new.str];
    let is_long = |text: &String| text.len() > MAX_TEXT;
    if own.into_iter().chain(truth).any(is_long) || lists.into_iter().flatten().any(is_long) {
        return Err(place.error(path, too_long()));
    }
    Ok(found)
}

fn too_long() -> String {
    format!("has a text of more than {MAX_TEXT} bytes")
}

/// The texts of an own fact, before they are checked.
struct Fields {
    id: Option<String>,
    subject: Option<String>,
    prompt: Option<String>,
    template: Option<String>,
    attribute: Option<String>,
    relation: Option<String>,
}

impl Fields {
    fn fact(self, path: &Path, place: Place) -> Result<Fact> {
        let all = [
            &self.id,
            &self.subject,
            &self.prompt,
            &self.template,
            &self.attribute,
            &self.relation,
        ];
        if all.into_iter().flatten().any(|text| text.len() > MAX_TEXT) {
            return Err(place.error(path, too_long()));
        }
        let subject = self
            .subject
            .filter(|subject| !subject.trim().is_empty())
            .ok_or_else(|| place.error(path, "has no `subject`"))?;
        // A prompt with a gap is a template.
        let (prompt, template) = match (self.prompt, self.template) {
            (Some(prompt), template) if !prompt.contains("{}") => (Some(prompt), template),
            (Some(prompt), _) => (None, Some(prompt)),
            (None, template) => (None, template),
        };
        let filled = || template.as_ref().map(|t| t.replacen("{}", &subject, 1));
        let Some(prompt) = prompt.or_else(filled) else {
            return Err(place.error(path, "has neither `prompt` nor `template`"));
        };
        let own = template_of(&prompt, &subject).map_err(|reason| place.error(path, reason))?;
        Ok(Fact {
            id: self.id.unwrap_or_else(|| place.number()),
            template: template
                .filter(|template| template.contains("{}"))
                .unwrap_or(own),
            subject,
            prompt,
            attribute: self
                .attribute
                .map(|attribute| attribute.trim().to_owned())
                .filter(|attribute| !attribute.is_empty()),
            relation: self.relation.filter(|relation| !relation.is_empty()),
        })
    }
}

/// The prompt with `{}` for the first place of the subject, or why there is none.
fn template_of(prompt: &str, subject: &str) -> std::result::Result<String, String> {
    if prompt.trim().is_empty() {
        return Err("the prompt is empty".to_owned());
    }
    if subject.trim().is_empty() {
        return Err("the subject is empty".to_owned());
    }
    if !prompt.contains(subject) {
        return Err(format!(
            "the subject {subject:?} does not stand in the prompt {prompt:?}; letters and spaces must be the same"
        ));
    }
    Ok(prompt.replacen(subject, "{}", 1))
}

/// Each fact of a table, at least one.
fn csv_facts(path: &Path, text: &str) -> Result<Vec<Result<Fact>>> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::Headers)
        .from_reader(text.trim_start_matches('\u{feff}').as_bytes());
    let line = |error: &csv::Error| error.position().map_or(1, csv::Position::line);
    let header = reader
        .headers()
        .map_err(|error| Place::Line(line(&error)).error(path, csv_reason(&error)))?
        .clone();
    let column = |names: &[&str]| header.iter().position(|name| names.contains(&name));
    let Some(subject) = column(&["subject"]) else {
        return Err(Error::column(
            path,
            "subject",
            format!("is missing; columns: {}", listed(&header)),
        ));
    };
    let (prompt, template) = (column(&["prompt"]), column(&["template"]));
    if prompt.is_none() && template.is_none() {
        let reason = format!(
            "is missing, and so is `template`; columns: {}",
            listed(&header)
        );
        return Err(Error::column(path, "prompt", reason));
    }
    let id = column(&["id", "known_id", "case_id"]);
    let attribute = column(&["attribute", "answer", "object"]);
    let relation = column(&["relation", "relation_id"]);
    let fact = |row: csv::Result<csv::StringRecord>| -> Result<Fact> {
        let row = row.map_err(|error| Place::Line(line(&error)).error(path, csv_reason(&error)))?;
        let place = Place::Line(row.position().map_or(0, csv::Position::line));
        let cell = |column: Option<usize>| {
            let text = column.and_then(|column| row.get(column));
            text.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let fields = Fields {
            id: cell(id),
            subject: cell(Some(subject)),
            // A row with neither has an empty prompt, since there is a column for it.
            prompt: cell(prompt).or_else(|| cell(template).is_none().then(String::new)),
            template: cell(template),
            attribute: cell(attribute),
            relation: cell(relation),
        };
        fields.fact(path, place)
    };
    let mut facts = Vec::new();
    for row in reader.records() {
        facts.push(fact(row));
        if facts.len() > MAX_RECORDS {
            let reason = format!("holds more than {MAX_RECORDS} records");
            return Err(Error::data(path, reason));
        }
    }
    if facts.is_empty() {
        return Err(Error::data(path, "holds no fact"));
    }
    Ok(facts)
}

fn listed(header: &csv::StringRecord) -> String {
    header.iter().collect::<Vec<_>>().join(", ")
}

fn csv_reason(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => format!("has {len} cells, the header has {expected_len}"),
        _ => format!("is not CSV: {error}"),
    }
}

/// A resumed sweep knows facts by their ids.
fn unique_ids(path: &Path, facts: &[Fact]) -> Result<()> {
    let mut ids: Vec<&str> = facts.iter().map(|fact| fact.id.as_str()).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => {
            let reason = format!("two facts have the id {:?}; ids must differ", pair[0]);
            Err(Error::data(path, reason))
        }
    }
}
