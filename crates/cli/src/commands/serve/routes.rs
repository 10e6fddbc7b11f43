//! What each path answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use densely_data::RowEncoder;
use http_body_util::BodyExt;
use tokio::time::{timeout, timeout_at};

use super::answer::{self, ARROW, JSON, Refusal, with_type};
use super::engine::{NotTaken, Queue};
use super::metrics::Metrics;
use super::rows::{self, Parsed};

/// Bodies above this are parsed where they do not hold up other requests.
const LONG: usize = 64 * 1024;
/// How long a client whose body is refused may go on sending it, so that it gets to read why.
const LINGER: Duration = Duration::from_secs(2);

/// What all requests share.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) encoder: RowEncoder,
    pub(super) classes: Vec<String>,
    /// What `GET /model` says.
    pub(super) model: String,
    pub(super) queue: Queue,
    pub(super) metrics: Arc<Metrics>,
    pub(super) stopping: AtomicBool,
    pub(super) limits: Limits,
    /// Bytes of bodies that are in memory.
    pub(super) held: AtomicUsize,
}

/// What a request may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes of one body.
    pub(super) body: usize,
    /// Bytes of all bodies together.
    pub(super) bodies: usize,
    /// Rows of one request.
    pub(super) rows: usize,
    /// From the headers to the answer; again for headers, and again for taking the answer.
    pub(super) timeout: Duration,
}

/// The routes.
pub(super) fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/predict", post(predict))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/model", get(model))
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(&server),
            observe,
        ))
        .with_state(server)
}

/// Counts every request and its answer.
async fn observe(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let _active = server.metrics.active.count();
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    server.metrics.request(&path, status, start.elapsed());
    response
}

async fn nothing_here() -> Refusal {
    let sentence = "there is nothing here; try /predict, /model, /health, /ready or /metrics";
    Refusal::new(StatusCode::NOT_FOUND, sentence)
}

async fn wrong_method() -> Refusal {
    let sentence = "this path takes another method: POST for /predict, GET for the others";
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, sentence)
}

async fn health() -> Response {
    with_type(JSON, r#"{"status":"alive"}"#.into())
}

async fn ready(State(server): State<Arc<Server>>) -> Response {
    if server.stopping.load(Ordering::Relaxed) {
        return Refusal::busy("the server is stopping").into_response();
    }
    if !server.queue.is_alive() {
        return Refusal::busy("the model has failed; restart the server").into_response();
    }
    with_type(JSON, r#"{"status":"ready"}"#.into())
}

async fn metrics(State(server): State<Arc<Server>>) -> Response {
    let text = server.metrics.render(server.queue.waiting());
    with_type("text/plain; version=0.0.4", text.into())
}

async fn model(State(server): State<Arc<Server>>) -> Response {
    with_type(JSON, server.model.clone().into())
}

/// What a body is, and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Arrow,
}

async fn predict(State(server): State<Arc<Server>>, request: Request) -> Response {
    match answer(&server, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

async fn answer(server: &Arc<Server>, request: Request) -> Result<Response, Refusal> {
    let deadline = Instant::now() + server.limits.timeout;
    let coming = server.queue.coming();
    let format = format(request.headers())?;
    let body = body(server, request, deadline).await?;
    let mut parsed = parse(server, body, format).await?;
    server.metrics.rows(parsed.total, parsed.bad.len());
    let values = if parsed.rows.is_empty() {
        Vec::new()
    } else {
        let rows = std::mem::take(&mut parsed.rows);
        let outcome = server.queue.submit(rows, deadline).map_err(not_taken)?;
        drop(coming);
        match timeout_at(deadline.into(), outcome).await {
            Ok(Ok(Ok(values))) => values,
            Ok(Ok(Err(reason))) => {
                let sentence = format!("the prediction failed: {reason}");
                return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, sentence));
            }
            Ok(Err(_)) => return Err(Refusal::busy("the server is stopping, or out of time")),
            Err(_) => return Err(Refusal::busy("the model is busy; try again")),
        }
    };
    if parsed.total > 0 && parsed.bad.len() == parsed.total {
        return Err(Refusal::nothing_good(parsed.bad));
    }
    // Many rows take a while to write down.
    if values.len() > LONG / 16 {
        let server = Arc::clone(server);
        let work = move || respond(&server, &values, parsed, format);
        return tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|_| Err(broken("the answer could not be written")));
    }
    respond(server, &values, parsed, format)
}

fn respond(
    server: &Server,
    values: &[f64],
    mut parsed: Parsed,
    format: Format,
) -> Result<Response, Refusal> {
    let bad = &mut parsed.bad;
    let predictions = answer::assemble(values, &server.classes, parsed.total, bad);
    let (media_type, body) = match format {
        Format::Json => (JSON, answer::json_body(&predictions, bad)),
        Format::Arrow => (ARROW, answer::arrow_body(&predictions, bad)),
    };
    let body = body.map_err(|reason| broken(&reason))?;
    Ok(with_type(media_type, body.into()))
}

fn broken(reason: &str) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, reason)
}

fn not_taken(reason: NotTaken) -> Refusal {
    Refusal::busy(match reason {
        NotTaken::Full => "too many rows wait for the model; try again",
        NotTaken::Ended => "the model has failed; restart the server",
    })
}

/// The format that the headers announce.
fn format(headers: &HeaderMap) -> Result<Format, Refusal> {
    let wrong = |what: String| {
        let sentence = format!("{what}; send Content-Type: {JSON} or {ARROW}, uncompressed");
        Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, sentence))
    };
    let encoding = headers.get(CONTENT_ENCODING);
    if let Some(encoding) = encoding
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return wrong("the body is compressed".to_owned());
    }
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return wrong("the request does not say what its body is".to_owned());
    };
    let value = value.to_str().unwrap_or_default();
    match value.split(';').next().unwrap_or_default().trim() {
        kind if kind.eq_ignore_ascii_case(JSON) => Ok(Format::Json),
        kind if kind.eq_ignore_ascii_case(ARROW) => Ok(Format::Arrow),
        kind => {
            let kind: String = kind.chars().take(80).collect();
            wrong(format!("cannot read `{kind}`"))
        }
    }
}

/// A body in memory, counted while it is there.
struct Held<'a> {
    bytes: Vec<u8>,
    counted: usize,
    all: &'a AtomicUsize,
}

impl Held<'_> {
    fn grow(&mut self, bytes: &[u8], most: usize) -> Result<(), Refusal> {
        let count = bytes.len();
        let take = |held: usize| (held + count <= most).then_some(held + count);
        self.all
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .map_err(|_| Refusal::busy("the requests in flight take all the memory; try again"))?;
        self.counted += count;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

/// Reads the body within the limits.
async fn body(server: &Server, request: Request, deadline: Instant) -> Result<Held<'_>, Refusal> {
    let limits = &server.limits;
    let too_long = || {
        let sentence = format!(
            "the body is longer than {} MB; send the rows in parts",
            limits.body / 1_000_000
        );
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, sentence)
    };
    let announced = request.headers().get(CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let waits = request.headers().contains_key("expect");
    let mut body = request.into_body();
    if announced.is_some_and(|length| length > limits.body as u64) {
        // A client that asks first sends nothing when it is told off.
        if !waits {
            linger(&mut body).await;
        }
        return Err(too_long());
    }
    let mut held = Held {
        bytes: Vec::new(),
        counted: 0,
        all: &server.held,
    };
    let read = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                Refusal::bad_request("the connection ended before the body was whole")
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if held.bytes.len() + data.len() > limits.body {
                return Err(too_long());
            }
            held.grow(&data, limits.bodies)?;
        }
        Ok(())
    };
    let outcome = timeout_at(deadline.into(), read).await.unwrap_or_else(|_| {
        let seconds = limits.timeout.as_secs_f64();
        let sentence = format!("the body did not arrive within {seconds} s");
        Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, sentence))
    });
    match outcome {
        Ok(()) => Ok(held),
        Err(refusal) => {
            drop(held);
            if refusal.status == StatusCode::PAYLOAD_TOO_LARGE {
                linger(&mut body).await;
            }
            Err(refusal)
        }
    }
}

/// Throws away what still comes of a refused body, for a moment: a client that is cut off while it sends does not
/// read the answer.
async fn linger(body: &mut axum::body::Body) {
    let discard = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = timeout(LINGER, discard).await;
}

async fn parse(server: &Arc<Server>, held: Held<'_>, format: Format) -> Result<Parsed, Refusal> {
    let long = held.bytes.len() > LONG;
    let mut held = held;
    let bytes = std::mem::take(&mut held.bytes);
    let work = move |server: &Server, bytes: Vec<u8>| match format {
        Format::Json => rows::json(&bytes, &server.encoder, server.limits.rows),
        Format::Arrow => rows::arrow(bytes, &server.encoder, server.limits.rows),
    };
    // `held` lives on until the body is parsed, so that it stays counted.
    if long {
        let server = Arc::clone(server);
        tokio::task::spawn_blocking(move || work(&server, bytes))
            .await
            .unwrap_or_else(|_| Err(broken("the rows could not be read")))
    } else {
        work(server, bytes)
    }
}
