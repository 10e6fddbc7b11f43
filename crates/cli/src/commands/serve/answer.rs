//! What a client gets: predictions as JSON or Arrow, refusals as JSON.

use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Schema};
use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::rows::BadRow;

/// The media type of JSON.
pub(super) const JSON: &str = "application/json";
/// The media type of an Arrow IPC stream.
pub(super) const ARROW: &str = "application/vnd.apache.arrow.stream";

/// Why a request is not answered: a status, one sentence, and the rows to blame where there are some.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) sentence: String,
    pub(super) bad: Vec<BadRow>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, sentence: impl Into<String>) -> Self {
        Self {
            status,
            sentence: sentence.into(),
            bad: Vec::new(),
        }
    }

    pub(super) fn bad_request(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, sentence)
    }

    pub(super) fn unprocessable(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, sentence)
    }

    pub(super) fn too_many_rows(most: usize) -> Self {
        let sentence = format!("the request has more than {most} rows; send them in parts");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, sentence)
    }

    pub(super) fn busy(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, sentence)
    }

    /// All rows were bad.
    pub(super) fn nothing_good(bad: Vec<BadRow>) -> Self {
        let sentence = match bad.len() {
            1 => "the only row cannot be predicted; `errors` says why".to_owned(),
            n => format!("none of the {n} rows can be predicted; `errors` says why"),
        };
        Self {
            bad,
            ..Self::unprocessable(sentence)
        }
    }
}

/// A refusal as JSON.
#[derive(Serialize)]
struct Explained<'a> {
    error: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [BadRow],
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = Explained {
            error: &self.sentence,
            errors: &self.bad,
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = with_type(JSON, body.into());
        *response.status_mut() = self.status;
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            let headers = response.headers_mut();
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A response of status 200.
pub(super) fn with_type(media_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// Predictions of a request, one per row; `None` for a refused one.
#[derive(Debug)]
pub(super) enum Predictions<'a> {
    Values(Vec<Option<f64>>),
    Classes {
        predicted: Vec<Option<&'a str>>,
        /// By class, then row.
        probabilities: Vec<(&'a str, Vec<Option<f64>>)>,
    },
}

/// Puts the values of the good rows, `[good]` or `[good, classes]`, at their places among `total` rows. Rows whose
/// prediction is no finite number join `bad`.
pub(super) fn assemble<'a>(
    values: &[f64],
    classes: &'a [String],
    total: usize,
    bad: &mut Vec<BadRow>,
) -> Predictions<'a> {
    let width = classes.len().max(1);
    let mut refused = vec![false; total];
    for row in bad.iter() {
        refused[row.row] = true;
    }
    let mut rows: Vec<Option<&[f64]>> = vec![None; total];
    let good = (0..total).filter(|row| !refused[*row]);
    for (row, values) in good.zip(values.chunks_exact(width)) {
        if values.iter().all(|value| value.is_finite()) {
            rows[row] = Some(values);
        } else {
            bad.push(BadRow {
                row,
                column: None,
                reason: "the model's prediction is not a finite number".to_owned(),
            });
        }
    }
    bad.sort_by_key(|bad| bad.row);
    if classes.is_empty() {
        return Predictions::Values(rows.iter().map(|row| row.map(|row| row[0])).collect());
    }
    let predicted = rows
        .iter()
        .map(|row| row.map(|row| classes[largest(row)].as_str()));
    let of_class = |at: usize| rows.iter().map(|row| row.map(|row| row[at])).collect();
    Predictions::Classes {
        predicted: predicted.collect(),
        probabilities: classes
            .iter()
            .enumerate()
            .map(|(at, class)| (class.as_str(), of_class(at)))
            .collect(),
    }
}

/// The place of the largest value, the first of equal ones.
fn largest(values: &[f64]) -> usize {
    let mut best = 0;
    for (at, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = at;
        }
    }
    best
}

/// An answer as JSON: `predictions`, `probabilities` by class, and `errors` where rows were refused.
struct Answer<'a>(&'a Predictions<'a>, &'a [BadRow]);

/// A map in the order of its entries, which is that of the classes.
struct Ordered<'a>(&'a [(&'a str, Vec<Option<f64>>)]);

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(class, values)| (class, values)))
    }
}

impl Serialize for Answer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self.0 {
            Predictions::Values(values) => map.serialize_entry("predictions", values)?,
            Predictions::Classes {
                predicted,
                probabilities,
            } => {
                map.serialize_entry("predictions", predicted)?;
                map.serialize_entry("probabilities", &Ordered(probabilities))?;
            }
        }
        if !self.1.is_empty() {
            map.serialize_entry("errors", self.1)?;
        }
        map.end()
    }
}

/// The answer as a JSON body.
pub(super) fn json_body(predictions: &Predictions, bad: &[BadRow]) -> Result<Vec<u8>, String> {
    serde_json::to_vec(&Answer(predictions, bad)).map_err(|error| error.to_string())
}

/// The answer as an Arrow IPC stream: `prediction`, `probability_<class>` as `tabular predict` names them, and
/// `error`, null for good rows.
pub(super) fn arrow_body(predictions: &Predictions, bad: &[BadRow]) -> Result<Vec<u8>, String> {
    let mut fields = Vec::new();
    let mut arrays: Vec<ArrayRef> = Vec::new();
    let mut column = |name: String, kind: DataType, array: ArrayRef| {
        fields.push(Field::new(name, kind, true));
        arrays.push(array);
    };
    let rows = match predictions {
        Predictions::Values(values) => {
            let array = Float64Array::from(values.clone());
            column("prediction".to_owned(), DataType::Float64, Arc::new(array));
            values.len()
        }
        Predictions::Classes {
            predicted,
            probabilities,
        } => {
            let array = StringArray::from(predicted.clone());
            column("prediction".to_owned(), DataType::Utf8, Arc::new(array));
            for (class, values) in probabilities {
                let array = Float64Array::from(values.clone());
                let name = format!("probability_{class}");
                column(name, DataType::Float64, Arc::new(array));
            }
            predicted.len()
        }
    };
    let mut errors: Vec<Option<String>> = vec![None; rows];
    for row in bad {
        errors[row.row] = Some(match &row.column {
            Some(column) => format!("column `{column}`: {}", row.reason),
            None => row.reason.clone(),
        });
    }
    let errors = StringArray::from(errors);
    column("error".to_owned(), DataType::Utf8, Arc::new(errors));
    let write = || {
        let schema = Arc::new(Schema::new(fields));
        let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
        writer.write(&RecordBatch::try_new(schema, arrays)?)?;
        writer.into_inner()
    };
    write().map_err(|error| error.to_string())
}
