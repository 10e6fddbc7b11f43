//! Counters and histograms of the server, in the text format that Prometheus reads. Their number is fixed, so that
//! no request can make them grow.

use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Paths that are told apart.
const ROUTES: [&str; 6] = [
    "/predict", "/health", "/ready", "/metrics", "/model", "other",
];
/// Statuses that are told apart; the last stands for all others.
const STATUSES: [&str; 11] = [
    "200", "400", "404", "405", "408", "413", "415", "422", "500", "503", "other",
];
/// Upper bounds of durations, seconds.
const SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 4.0, 15.0,
];
/// Upper bounds of rows.
const ROWS: [f64; 9] = [
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0,
];

/// What the server counts.
#[derive(Debug)]
pub(super) struct Metrics {
    requests: [[AtomicU64; STATUSES.len()]; ROUTES.len()],
    latency: Histogram<{ SECONDS.len() }>,
    request_rows: Histogram<{ ROWS.len() }>,
    refused_rows: AtomicU64,
    batch_rows: Histogram<{ ROWS.len() }>,
    batch_seconds: Histogram<{ SECONDS.len() }>,
    /// Connections that are open.
    pub(super) connections: Gauge,
    refused_connections: AtomicU64,
    /// Requests between their headers and their answer.
    pub(super) active: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let zeros = || std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            requests: std::array::from_fn(|_| zeros()),
            latency: Histogram::new(SECONDS),
            request_rows: Histogram::new(ROWS),
            refused_rows: AtomicU64::new(0),
            batch_rows: Histogram::new(ROWS),
            batch_seconds: Histogram::new(SECONDS),
            connections: Gauge::default(),
            refused_connections: AtomicU64::new(0),
            active: Gauge::default(),
        }
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicI64);

/// One more, until it is dropped.
#[derive(Debug)]
pub(super) struct Counted<'a>(&'a Gauge);

impl Gauge {
    pub(super) fn count(&self) -> Counted<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self)
    }

    pub(super) fn value(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How often a value fell below each bound.
#[derive(Debug)]
struct Histogram<const N: usize> {
    bounds: [f64; N],
    /// By bucket, not summed up.
    counts: [AtomicU64; N],
    beyond: AtomicU64,
    /// Millionths, so that an integer holds the sum.
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: [f64; N]) -> Self {
        Self {
            bounds,
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            beyond: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    fn note(&self, value: f64) {
        let at = self.bounds.iter().position(|bound| value <= *bound);
        let bucket = at.map_or(&self.beyond, |at| &self.counts[at]);
        bucket.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, help, "histogram");
        let mut total = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            total += count.load(Ordering::Relaxed);
            line(out, &format!("{name}_bucket{{le=\"{bound}\"}}"), total);
        }
        total += self.beyond.load(Ordering::Relaxed);
        line(out, &format!("{name}_bucket{{le=\"+Inf\"}}"), total);
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e6;
        line(out, &format!("{name}_sum"), sum);
        line(out, &format!("{name}_count"), total);
    }
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name} {value}");
}

impl Metrics {
    /// A request was answered.
    pub(super) fn request(&self, path: &str, status: u16, took: Duration) {
        let place = |names: &[&str], name: &str| {
            let at = names.iter().position(|other| *other == name);
            at.unwrap_or(names.len() - 1)
        };
        let route = place(&ROUTES, path);
        let status = place(&STATUSES, &status.to_string());
        self.requests[route][status].fetch_add(1, Ordering::Relaxed);
        if route == 0 {
            self.latency.note(took.as_secs_f64());
        }
    }

    /// A request's rows were checked.
    pub(super) fn rows(&self, total: usize, refused: usize) {
        self.request_rows.note(total as f64);
        self.refused_rows
            .fetch_add(refused as u64, Ordering::Relaxed);
    }

    /// Rows went through the model together.
    pub(super) fn batch(&self, rows: usize, took: Duration) {
        self.batch_rows.note(rows as f64);
        self.batch_seconds.note(took.as_secs_f64());
    }

    /// A connection was one too many.
    pub(super) fn connection_refused(&self) {
        self.refused_connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything as text; `waiting` are the requests and rows in the queue.
    pub(super) fn render(&self, waiting: (usize, usize)) -> String {
        let mut out = String::new();
        let name = "densely_requests_total";
        head(&mut out, name, "Requests by path and status.", "counter");
        for (route, counts) in ROUTES.iter().zip(&self.requests) {
            for (status, count) in STATUSES.iter().zip(counts) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let name = format!("{name}{{route=\"{route}\",status=\"{status}\"}}");
                    line(&mut out, &name, count);
                }
            }
        }
        let help = "Seconds from the headers of a request to /predict to its answer.";
        self.latency
            .write(&mut out, "densely_predict_seconds", help);
        let help = "Rows of a request, good and bad.";
        self.request_rows
            .write(&mut out, "densely_request_rows", help);
        self.batch_rows.write(
            &mut out,
            "densely_batch_rows",
            "Rows of one pass through the model.",
        );
        let help = "Seconds of one pass through the model.";
        self.batch_seconds
            .write(&mut out, "densely_batch_seconds", help);
        let mut single = |name: &str, help: &str, kind: &str, value: i64| {
            head(&mut out, name, help, kind);
            line(&mut out, name, value);
        };
        let refused = self.refused_rows.load(Ordering::Relaxed) as i64;
        single(
            "densely_refused_rows_total",
            "Rows that were refused as bad.",
            "counter",
            refused,
        );
        let refused = self.refused_connections.load(Ordering::Relaxed) as i64;
        single(
            "densely_refused_connections_total",
            "Connections beyond the limit.",
            "counter",
            refused,
        );
        single(
            "densely_queue_requests",
            "Requests that wait for the model.",
            "gauge",
            waiting.0 as i64,
        );
        single(
            "densely_queue_rows",
            "Rows that wait for the model.",
            "gauge",
            waiting.1 as i64,
        );
        single(
            "densely_connections",
            "Open connections.",
            "gauge",
            self.connections.value(),
        );
        single(
            "densely_active_requests",
            "Requests that are being read or answered.",
            "gauge",
            self.active.value(),
        );
        if let Some(bytes) = resident_bytes() {
            single(
                "process_resident_memory_bytes",
                "Resident memory of the server.",
                "gauge",
                bytes,
            );
        }
        out
    }
}

/// Resident memory of this process, where the system tells.
fn resident_bytes() -> Option<i64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let metrics = Metrics::default();
        metrics.request("/predict", 200, Duration::from_millis(3));
        metrics.request("/predict", 200, Duration::from_secs(100));
        metrics.request("/../etc", 404, Duration::ZERO);
        metrics.request("/ready", 599, Duration::ZERO);
        metrics.rows(10, 2);
        metrics.batch(8, Duration::from_micros(1500));
        let _active = metrics.active.count();
        drop(metrics.connections.count());
        let text = metrics.render((3, 30));
        for expected in [
            "densely_requests_total{route=\"/predict\",status=\"200\"} 2",
            "densely_requests_total{route=\"other\",status=\"404\"} 1",
            "densely_requests_total{route=\"/ready\",status=\"other\"} 1",
            "densely_predict_seconds_bucket{le=\"0.002\"} 0",
            "densely_predict_seconds_bucket{le=\"0.004\"} 1",
            "densely_predict_seconds_bucket{le=\"15\"} 1",
            "densely_predict_seconds_bucket{le=\"+Inf\"} 2",
            "densely_predict_seconds_sum 100.003",
            "densely_predict_seconds_count 2",
            "densely_refused_rows_total 2",
            "densely_batch_rows_bucket{le=\"16\"} 1",
            "densely_queue_rows 30",
            "densely_active_requests 1",
            "densely_connections 0",
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (_, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap();
        }
    }
}
