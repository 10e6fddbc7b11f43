//! `densely serve`: predictions of a run over HTTP.

mod answer;
mod engine;
mod listen;
mod metrics;
mod routes;
mod rows;

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use densely_core::{Error, Result};
use densely_data::rows::ColumnKind;
use densely_tabular::fit::{Fitted, Pipeline};
use serde_json::{Value, json};

use self::engine::{Batching, Engine};
use self::metrics::Metrics;
use self::routes::{Limits, Server};
use crate::Common;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: densely serve runs/houses --port 8080

  curl http://127.0.0.1:8080/predict --json '{\"rows\": [{\"size\": 7.5, \"kind\": \"hut\"}]}'

Paths: POST /predict, GET /model, /health, /ready, /metrics. Ctrl-C finishes what is in flight.")]
pub(crate) struct Arguments {
    /// Run folder of `densely tabular fit`.
    run: PathBuf,
    /// Address to listen on. There is no password: keep it to this machine, or behind a proxy.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one, which is printed.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Most megabytes of a request; all requests in flight together may take eight times that.
    #[arg(long, value_name = "MB", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_body_mb: u32,
    /// Most rows of a request.
    #[arg(long, value_name = "ROWS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    max_rows: u32,
    /// Seconds that a request may take, reading included.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    timeout_s: u32,
    /// Most open connections.
    #[arg(long, value_name = "COUNT", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_connections: u32,
    /// Most rows of several requests that are predicted together.
    #[arg(long, value_name = "ROWS", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_batch_rows: u32,
    /// Milliseconds that a request waits for others that are on their way.
    #[arg(long, value_name = "MS", default_value_t = 1.0, value_parser = parse_wait)]
    batch_wait_ms: f64,
    /// Most rows that wait for the model; requests beyond get status 503.
    #[arg(long, value_name = "ROWS", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    max_queue_rows: u32,
}

fn parse_wait(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ms) if (0.0..=1000.0).contains(&ms) => Ok(ms),
        _ => Err("expected milliseconds from 0 to 1000".to_owned()),
    }
}

pub(crate) fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    rows::quiet_caught_panics();
    let listener = listener(arguments)?;
    let device = common.device.open()?;
    let model = Fitted::open(&arguments.run, device)?;
    let metrics = Arc::new(Metrics::default());
    let batching = Batching {
        max_rows: arguments.max_batch_rows as usize,
        wait: Duration::from_secs_f64(arguments.batch_wait_ms / 1000.0),
        max_waiting_rows: arguments.max_queue_rows as usize,
    };
    let preprocessor = &model.pipeline.preprocessor;
    let (encoder, classes) = (preprocessor.row_encoder(), preprocessor.classes().to_vec());
    let description = describe(&model.pipeline).to_string();
    let (engine, queue) = Engine::start(model, batching, common.threads, Arc::clone(&metrics))?;
    let body = arguments.max_body_mb as usize * 1_000_000;
    let server = Arc::new(Server {
        encoder,
        classes,
        model: description,
        queue,
        metrics,
        stopping: AtomicBool::new(false),
        limits: Limits {
            body,
            bodies: body * 8,
            rows: arguments.max_rows as usize,
            timeout: Duration::from_secs(u64::from(arguments.timeout_s)),
        },
        held: AtomicUsize::new(0),
    });
    let outcome = serve(arguments, common, listener, &server);
    engine.stop();
    outcome
}

/// The socket, before anything slow happens. It may take over a port that a killed server has just left.
fn listener(arguments: &Arguments) -> Result<TcpListener> {
    let address = (arguments.host.as_str(), arguments.port);
    let failed = |source| Error::Io {
        path: PathBuf::from(format!("{}:{}", arguments.host, arguments.port)),
        source,
    };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

fn serve(
    arguments: &Arguments,
    common: &Common,
    listener: TcpListener,
    server: &Arc<Server>,
) -> Result<()> {
    let name = || format!("{}:{}", arguments.host, arguments.port);
    let address = listener.local_addr().map_err(Error::io(name()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(8)
        .thread_name("http")
        .build()
        .map_err(Error::io("the server's threads"))?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(Error::io(name()))?;
        let url = format!("http://{address}");
        let line = if common.json {
            json!({ "listening": url }).to_string()
        } else {
            format!("listening on {url}")
        };
        // Whoever reads it through a pipe waits for it; nobody reading it is no reason to stop.
        let mut out = std::io::stdout();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        let router = routes::router(Arc::clone(server));
        let most = arguments.max_connections as usize;
        let limit = server.limits.timeout;
        listen::serve(listener, router, Arc::clone(server), most, limit).await;
        Ok::<(), Error>(())
    })?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(())
}

/// What `GET /model` says.
fn describe(pipeline: &Pipeline) -> Value {
    let preprocessor = &pipeline.preprocessor;
    let encoder = preprocessor.row_encoder();
    let columns: Vec<Value> = encoder
        .columns()
        .map(|(name, kind)| match kind {
            ColumnKind::Numeric => json!({ "name": name, "kind": "numeric" }),
            ColumnKind::Time => json!({ "name": name, "kind": "time" }),
            ColumnKind::Categorical {
                categories,
                missing,
            } => {
                json!({ "name": name, "kind": "categorical", "categories": categories, "missing": missing })
            }
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "preset": pipeline.preset,
        "task": pipeline.task,
        "target": preprocessor.target(),
        "classes": preprocessor.classes(),
        "columns": columns,
    })
}
