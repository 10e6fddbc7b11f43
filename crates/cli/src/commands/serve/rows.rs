//! From the body of a request to checked rows. A bad row is named and left out; the others go on.

use std::borrow::Cow;
use std::cell::Cell as Flag;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamDecoder;
use densely_data::rows::{Cell, RowEncoder, Rows};
use densely_data::{Table, rows::BadCell};
use serde::Serialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::answer::Refusal;

/// A row that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct BadRow {
    /// Its place in the request, from 0.
    pub(super) row: usize,
    /// The column to blame; none when the row is no row.
    pub(super) column: Option<String>,
    /// What was expected and what came.
    pub(super) reason: String,
}

/// What a body held.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// The good rows, in the request's order.
    pub(super) rows: Rows,
    /// Rows of the request, good and bad.
    pub(super) total: usize,
    /// The others, in the request's order.
    pub(super) bad: Vec<BadRow>,
}

impl Parsed {
    fn refuse(&mut self, row: usize, bad: BadCell) {
        self.bad.push(BadRow {
            row,
            column: Some(bad.column),
            reason: bad.reason,
        });
    }
}

/// Reads `{"rows": [{…}, …]}` or the array alone.
pub(super) fn json(body: &[u8], encoder: &RowEncoder, most: usize) -> Result<Parsed, Refusal> {
    let text = std::str::from_utf8(body).map_err(|e| {
        let place = e.valid_up_to();
        Refusal::bad_request(format!("the body is not UTF-8 at byte {place}"))
    })?;
    let mut reader = Reader {
        encoder,
        most,
        parsed: Parsed::default(),
        cells: Vec::new(),
        too_many: false,
    };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let outcome = deserializer
        .deserialize_any(Top(&mut reader))
        .and_then(|()| deserializer.end());
    if reader.too_many {
        return Err(Refusal::too_many_rows(most));
    }
    match outcome {
        Ok(()) => Ok(reader.parsed),
        Err(error) if error.is_data() => Err(Refusal::bad_request(error.to_string())),
        Err(error) => Err(Refusal::bad_request(format!(
            "the body is not JSON: {error}"
        ))),
    }
}

struct Reader<'e, 'de> {
    encoder: &'e RowEncoder,
    most: usize,
    parsed: Parsed,
    /// Those of the row at hand, by the encoder's places.
    cells: Vec<Option<Cell<'de>>>,
    too_many: bool,
}

/// The whole body.
struct Top<'r, 'e, 'de>(&'r mut Reader<'e, 'de>);

impl<'de> Visitor<'de> for Top<'_, '_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("{\"rows\": [{\"column\": value, …}, …]} or the array alone")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = false;
        while let Some(key) = map.next_key_seed(Name(|name: &str| name == "rows"))? {
            match (key, seen) {
                (true, false) => {
                    map.next_value_seed(List(self.0))?;
                    seen = true;
                }
                (true, true) => return Err(serde::de::Error::duplicate_field("rows")),
                (false, _) => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if seen {
            Ok(())
        } else {
            Err(serde::de::Error::missing_field("rows"))
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        List(self.0).visit_seq(seq)
    }
}

/// The array of rows.
struct List<'r, 'e, 'de>(&'r mut Reader<'e, 'de>);

impl<'de> DeserializeSeed<'de> for List<'_, '_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List<'_, '_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Row(self.0))?.is_some() {}
        Ok(())
    }
}

/// One row.
struct Row<'r, 'e, 'de>(&'r mut Reader<'e, 'de>);

impl Row<'_, '_, '_> {
    /// A value where a row should be.
    fn no_row<E: serde::de::Error>(self, got: &str) -> Result<(), E> {
        let row = self.0.next()?;
        self.0.parsed.bad.push(BadRow {
            row,
            column: None,
            reason: format!("expected an object with a value for each column, got {got}"),
        });
        Ok(())
    }
}

impl Reader<'_, '_> {
    /// The place of the next row; an error when it is one too many.
    fn next<E: serde::de::Error>(&mut self) -> Result<usize, E> {
        if self.parsed.total == self.most {
            self.too_many = true;
            return Err(E::custom("too many rows"));
        }
        self.parsed.total += 1;
        Ok(self.parsed.total - 1)
    }
}

impl<'de> DeserializeSeed<'de> for Row<'_, '_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Row<'_, '_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a row")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let reader = self.0;
        let row = reader.next()?;
        let columns = reader.encoder.columns().len();
        reader.cells.clear();
        reader.cells.resize(columns, None);
        let mut problem = None;
        let encoder = reader.encoder;
        while let Some(place) = map.next_key_seed(Name(|name: &str| encoder.place(name)))? {
            let Some(place) = place else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let cell = cell(map.next_value::<&'de RawValue>()?.get());
            let reason = match cell {
                Ok(cell) => match reader.cells[place].replace(cell) {
                    None => continue,
                    Some(_) => "the column comes twice in the row".to_owned(),
                },
                Err(reason) => reason,
            };
            problem.get_or_insert((place, reason));
        }
        let outcome = match problem {
            None => encoder.push(&mut reader.parsed.rows, &reader.cells),
            Some((place, reason)) => Err(BadCell {
                column: name_of(encoder, place),
                reason,
            }),
        };
        if let Err(bad) = outcome {
            reader.parsed.refuse(row, bad);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        self.no_row("an array")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.no_row("null")
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.no_row("a boolean")
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.no_row("a number")
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        self.no_row("a number")
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.no_row("a number")
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        self.no_row("a text")
    }
}

/// A key that is looked at, not kept.
struct Name<F>(F);

impl<'de, T, F: FnOnce(&str) -> T> DeserializeSeed<'de> for Name<F> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<T, F: FnOnce(&str) -> T> Visitor<'_> for Name<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a column's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<T, E> {
        Ok(self.0(name))
    }
}

fn name_of(encoder: &RowEncoder, place: usize) -> String {
    let name = encoder.columns().nth(place).map(|(name, _)| name);
    name.unwrap_or_default().to_owned()
}

/// A value from its JSON text. Numbers are read here and not by the JSON reader, which would refuse the whole body
/// for one that is beyond f64.
fn cell(raw: &str) -> Result<Cell<'_>, String> {
    Ok(match raw.as_bytes().first() {
        Some(b'n') => Cell::Missing,
        Some(b't' | b'f') => Cell::Text(Cow::Borrowed(raw)),
        Some(b'"') => match raw.get(1..raw.len() - 1) {
            Some(text) if !text.contains('\\') => Cell::Text(Cow::Borrowed(text)),
            _ => {
                let text = serde_json::from_str::<String>(raw);
                Cell::Text(Cow::Owned(text.map_err(|_| {
                    "the text has an escape that stands for no character".to_owned()
                })?))
            }
        },
        Some(b'[' | b'{') => {
            return Err(
                "expected a number, a text, true, false or null, got a nested value".into(),
            );
        }
        _ => {
            let number = raw.parse::<f64>();
            Cell::Number(number.map_err(|_| "the number cannot be read".to_owned())?)
        }
    })
}

thread_local! {
    /// Whether a panic of this thread is caught and is nothing to write home about.
    static CAUGHT: Flag<bool> = const { Flag::new(false) };
}

/// Keeps panics that a client's bytes cause out of the log, which a client could fill otherwise. Call it once, before
/// the first request.
pub(super) fn quiet_caught_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !CAUGHT.get() {
            before(info);
        }
    }));
}

/// Runs `read`; its panics are `None`. The Arrow reader panics on some damaged streams; for the client those are
/// damaged streams, not bugs of theirs.
fn guarded<T>(read: impl FnOnce() -> T) -> Option<T> {
    CAUGHT.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(read)).ok();
    CAUGHT.set(false);
    outcome
}

/// Reads an Arrow IPC stream.
pub(super) fn arrow(body: Vec<u8>, encoder: &RowEncoder, most: usize) -> Result<Parsed, Refusal> {
    let damaged = || not_arrow("it is damaged");
    let batches = guarded(|| batches(body, most)).ok_or_else(damaged)??;
    if batches.iter().all(|batch| batch.num_rows() == 0) {
        return Ok(Parsed::default());
    }
    let table = guarded(|| Table::from_batches(batches)).ok_or_else(damaged)?;
    let table = table.map_err(|error| not_arrow(&error.to_string()))?;
    let (rows, bad) = encoder
        .encode(&table)
        .map_err(|error| Refusal::unprocessable(error.to_string()))?;
    let mut parsed = Parsed {
        rows,
        total: table.row_count(),
        bad: Vec::new(),
    };
    for (row, bad) in bad {
        parsed.refuse(row, bad);
    }
    Ok(parsed)
}

fn not_arrow(reason: &str) -> Refusal {
    Refusal::bad_request(format!("the body is not an Arrow IPC stream: {reason}"))
}

/// The batches of a stream. The decoder takes nothing that is not in the body, whatever lengths its messages claim.
fn batches(body: Vec<u8>, most: usize) -> Result<Vec<RecordBatch>, Refusal> {
    let mut decoder = StreamDecoder::new();
    let mut buffer = Buffer::from_vec(body);
    let mut batches = Vec::new();
    let mut rows = 0usize;
    while let Some(batch) = decoder
        .decode(&mut buffer)
        .map_err(|error| not_arrow(&error.to_string()))?
    {
        rows = rows.saturating_add(batch.num_rows());
        if rows > most {
            return Err(Refusal::too_many_rows(most));
        }
        batches.push(batch);
    }
    decoder
        .finish()
        .map_err(|error| not_arrow(&error.to_string()))?;
    if decoder.schema().is_none() {
        return Err(not_arrow("it holds no schema"));
    }
    Ok(batches)
}
