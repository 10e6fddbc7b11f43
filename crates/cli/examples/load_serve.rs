//! Load on a server of `densely serve`: clients that keep their connection and send one request after the other.
//!
//! ```sh
//! cargo run --example load_serve -- 127.0.0.1:8080 64 60 request.json
//! ```
//!
//! Arguments: address, clients, seconds, a file with the body, and (optionally) how many rows the body has, for the
//! rows per second. Prints requests, errors, rows per second and quantiles of the latency, in milliseconds.
#![expect(clippy::print_stdout, reason = "a program for the command line")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Longest that a client waits for one answer.
const PATIENCE: Duration = Duration::from_mins(1);
/// Errors after which a client gives up.
const MOST_ERRORS: u64 = 1000;
/// Largest answer that is read.
const MOST_BYTES: usize = 1 << 30;

/// What one client saw.
#[derive(Default)]
struct Seen {
    millis: Vec<f32>,
    errors: u64,
    first_error: Option<String>,
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.is_empty() {
        println!(
            "needs a running `densely serve`; arguments: ADDRESS CLIENTS SECONDS BODY.json [ROWS]"
        );
        return Ok(());
    }
    let [address, clients, seconds, file, rest @ ..] = words.as_slice() else {
        bail!("expected: ADDRESS CLIENTS SECONDS BODY.json [ROWS]");
    };
    let clients: usize = clients.parse().context("clients must be a number")?;
    let seconds: u64 = seconds.parse().context("seconds must be a number")?;
    ensure!((1..=4096).contains(&clients), "clients must be 1 to 4096");
    ensure!((1..=3600).contains(&seconds), "seconds must be 1 to 3600");
    let rows: usize = rest.first().map_or(Ok(1), |rows| rows.parse())?;
    let body = std::fs::read(file).with_context(|| format!("cannot read {file}"))?;
    let head = format!(
        "POST /predict HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), &body].concat();

    let start = Instant::now();
    let end = start + Duration::from_secs(seconds);
    let all: Vec<Seen> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|_| scope.spawn(|| client(address, &request, end)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<Seen>| thread.join().unwrap_or_default();
        threads.into_iter().map(join).collect()
    });
    let took = start.elapsed().as_secs_f64();
    report(&all, rows, took);
    Ok(())
}

/// Sends `request` until the end; a broken connection is an error and is opened again.
fn client(address: &str, request: &[u8], end: Instant) -> Seen {
    let mut seen = Seen::default();
    let mut stream = None;
    while Instant::now() < end && seen.errors < MOST_ERRORS {
        let start = Instant::now();
        match exchange(&mut stream, address, request) {
            Ok(()) => seen.millis.push(start.elapsed().as_secs_f32() * 1e3),
            Err(error) => {
                stream = None;
                seen.errors += 1;
                seen.first_error.get_or_insert_with(|| format!("{error:#}"));
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
    seen
}

fn exchange(
    stream: &mut Option<BufReader<TcpStream>>,
    address: &str,
    request: &[u8],
) -> Result<()> {
    let reader = if let Some(reader) = stream {
        reader
    } else {
        let new = TcpStream::connect(address)?;
        new.set_nodelay(true)?;
        new.set_read_timeout(Some(PATIENCE))?;
        new.set_write_timeout(Some(PATIENCE))?;
        stream.insert(BufReader::new(new))
    };
    reader.get_mut().write_all(request)?;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "the connection ended");
        if line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse()?;
        }
    }
    ensure!(length <= MOST_BYTES, "an answer of {length} bytes");
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    ensure!(
        status == "200",
        "status {status}: {}",
        String::from_utf8_lossy(&body)
    );
    Ok(())
}

fn report(all: &[Seen], rows: usize, took: f64) {
    let mut millis: Vec<f32> = all.iter().flat_map(|seen| seen.millis.clone()).collect();
    millis.sort_by(f32::total_cmp);
    let errors: u64 = all.iter().map(|seen| seen.errors).sum();
    let requests = millis.len();
    println!(
        "{requests} requests in {took:.1} s from {} clients, {errors} errors",
        all.len()
    );
    if let Some(error) = all.iter().find_map(|seen| seen.first_error.as_ref()) {
        println!("first error: {error}");
    }
    let Some(last) = requests.checked_sub(1) else {
        return;
    };
    let quantile = |q: f64| millis[(last as f64 * q).round() as usize];
    let per_second = requests as f64 / took;
    println!(
        "{per_second:.0} requests/s, {:.0} rows/s",
        per_second * rows as f64
    );
    println!(
        "latency ms: p50 {:.2}, p90 {:.2}, p99 {:.2}, max {:.2}",
        quantile(0.5),
        quantile(0.9),
        quantile(0.99),
        millis[last]
    );
}
