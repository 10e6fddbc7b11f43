//! The server as clients meet it: the answers of `tabular predict`, and nothing that a client sends takes it down.

mod client;

use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::Float64Type;
use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use serde_json::{Value, json};

use self::client::{Client, Server, request};
use crate::{Bench, stderr, stdout, table};

const JSON: &str = "application/json";
const ARROW: &str = "application/vnd.apache.arrow.stream";

/// The features of the made table, as JSON and as Arrow.
fn rows(count: usize) -> (Vec<Value>, RecordBatch) {
    let text = table(count);
    let fields: Vec<Vec<&str>> = text
        .lines()
        .skip(1)
        .map(|line| line.split(',').collect())
        .collect();
    let number = |at: usize| fields.iter().map(move |f| f[at].parse::<f64>().unwrap());
    let words = |at: usize| fields.iter().map(move |f| f[at]);
    let json = number(0).zip(number(1)).zip(words(2).zip(words(3)));
    let json = json.map(|((size, age), (kind, garden))| {
        json!({"extra": [1], "size": size, "age": age, "kind": kind, "garden": garden})
    });
    let numbers = |at: usize| Arc::new(Float64Array::from_iter_values(number(at))) as ArrayRef;
    let texts = |at: usize| Arc::new(StringArray::from_iter_values(words(at))) as ArrayRef;
    let batch = RecordBatch::try_from_iter([
        ("garden", texts(3)),
        ("size", numbers(0)),
        ("kind", texts(2)),
        ("age", numbers(1)),
    ]);
    (json.collect(), batch.unwrap())
}

fn stream(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

/// A run, and what `tabular predict` says of the made table: columns of texts.
fn fitted(bench: &Bench, target: &str, ignore: &str) -> Vec<Vec<String>> {
    bench.write("t.csv", &table(200));
    let (run, role) = (format!("runs/{target}"), format!("{ignore}=ignore"));
    let words = ["--target", target, "--role", &role, "--out", &run];
    bench.fit("t.csv", &words).success();
    let words = ["tabular", "predict", &run, "t.csv", "--out", "p.csv"];
    let words = words.into_iter().chain(["--device", "cpu"]);
    bench.densely(&words.collect::<Vec<_>>()).success();
    let text = std::fs::read_to_string(bench.path("p.csv")).unwrap();
    let lines: Vec<Vec<String>> = text
        .lines()
        .skip(1)
        .map(|line| line.split(',').map(str::to_owned).collect())
        .collect();
    let width = lines[0].len();
    (0..width)
        .map(|at| lines.iter().map(|line| line[at].clone()).collect())
        .collect()
}

fn numbers(texts: &[String]) -> Vec<f64> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn values(array: &Value) -> Vec<f64> {
    let values = array.as_array().unwrap().iter();
    values.map(|value| value.as_f64().unwrap()).collect()
}

/// Asserts equality up to the last bits of f32, which depend on how many rows are computed together.
#[track_caller]
fn close(got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6 * (1.0 + b.abs());
    assert!(
        got.iter().zip(expected).all(near),
        "{got:?}, not {expected:?}"
    );
}

#[test]
fn answers_are_those_of_predict() {
    let bench = Bench::new();
    let (json, batch) = rows(200);
    let expected = fitted(&bench, "price", "sold");
    let server = Server::start(&bench, "runs/price", &["--port", "0"]);
    let answer = server.predict(&json!({ "rows": json })).good();
    assert_eq!(values(&answer["predictions"]), numbers(&expected[0]));
    assert_eq!(answer.as_object().unwrap().len(), 1);
    let answer = server.predict(&json!(json)).good();
    assert_eq!(values(&answer["predictions"]), numbers(&expected[0]));
    let answer = server.post(ARROW, &stream(&batch));
    assert!(answer.head.contains(ARROW), "{}", answer.head);
    let mut reader = StreamReader::try_new(answer.body.as_slice(), None).unwrap();
    let batch_back = reader.next().unwrap().unwrap();
    let back = batch_back.column_by_name("prediction").unwrap();
    assert_eq!(
        back.as_primitive::<Float64Type>().values().to_vec(),
        numbers(&expected[0])
    );
    assert_eq!(server.predict(&json!([])).good()["predictions"], json!([]));
    let model = server.get("/model").good();
    assert_eq!(model["task"], "regression");
    assert_eq!(model["target"], "price");
    assert_eq!(
        model["columns"][0],
        json!({"name": "size", "kind": "numeric"})
    );
    drop(server);

    let expected = fitted(&bench, "sold", "price");
    let server = Server::start(&bench, "runs/sold", &["--port", "0"]);
    let answer = server.predict(&json!({ "rows": json })).good();
    assert_eq!(answer["predictions"], json!(expected[0]));
    let of = |class: &str| values(&answer["probabilities"][class]);
    assert_eq!(of("open"), numbers(&expected[1]));
    assert_eq!(of("sold"), numbers(&expected[2]));
    let answer = server.post(ARROW, &stream(&batch));
    let mut reader = StreamReader::try_new(answer.body.as_slice(), None).unwrap();
    let back = reader.next().unwrap().unwrap();
    let names: Vec<String> = back
        .schema()
        .fields()
        .iter()
        .map(|f| f.name().clone())
        .collect();
    assert_eq!(
        names,
        [
            "prediction",
            "probability_open",
            "probability_sold",
            "error"
        ]
    );
    let sold = back.column(2).as_primitive::<Float64Type>();
    assert_eq!(sold.values().to_vec(), numbers(&expected[2]));
    assert_eq!(back.column(3).null_count(), 200);
}

#[test]
fn bad_rows_are_named_and_their_neighbours_answered() {
    let bench = Bench::new();
    let expected = numbers(&fitted(&bench, "price", "sold")[0]);
    let server = Server::start(&bench, "runs/price", &["--port", "0"]);
    let good = |at: usize| rows(200).0[at].to_string();
    let body = [
        good(0),
        r#"{"size": "big", "age": 1, "kind": "hut", "garden": "no"}"#.to_owned(),
        r#"{"size": 1e999, "age": 1, "kind": "hut", "garden": "no"}"#.to_owned(),
        good(1),
        r#"{"size": 1, "age": 1, "kind": "hut"}"#.to_owned(),
        r#"{"size": 1, "age": {"a": 1}, "kind": "hut", "garden": "no"}"#.to_owned(),
        "[1, 2]".to_owned(),
        r#"{"size": 1, "size": 1, "age": 1, "kind": "hut", "garden": "no"}"#.to_owned(),
        r#"{"size": 1, "age": true, "kind": "hut", "garden": "no"}"#.to_owned(),
        r#"{"size": null, "age": " NA ", "kind": "\ud800", "garden": "no"}"#.to_owned(),
        r#"{"size": null, "age": " NA ", "kind": "cast\u006ce", "garden": true}"#.to_owned(),
    ];
    let answer = server.post(JSON, format!("[{}]", body.join(",")).as_bytes());
    let answer = answer.good();
    let predictions = answer["predictions"].as_array().unwrap();
    let two = [&predictions[0], &predictions[3]].map(|value| value.as_f64().unwrap());
    close(&two, &expected[..2]);
    assert!(predictions[10].is_f64()); // missing and unseen values are no errors
    let errors = answer["errors"].as_array().unwrap();
    for (error, (row, column, reason)) in errors.iter().zip([
        (1, json!("size"), "expected a number, got `big`"),
        (2, json!("size"), "infinite"),
        (4, json!("garden"), "not there"),
        (5, json!("age"), "nested"),
        (6, Value::Null, "got an array"),
        (7, json!("size"), "twice"),
        (8, json!("age"), "got `true`"),
        (9, json!("kind"), "escape"),
    ]) {
        assert_eq!((&error["row"], &error["column"]), (&json!(row), &column));
        let text = error["reason"].as_str().unwrap();
        assert!(text.contains(reason), "`{reason}` is not in: {text}");
        assert!(predictions[row].is_null());
    }
    assert_eq!(errors.len(), 8);
    let body = server.predict(&json!([{"size": 1}])).refused(422, &["row"]);
    assert_eq!(body["errors"][0]["column"], "age");

    let ages = Arc::new(StringArray::from(vec!["1", "old"])) as ArrayRef;
    let mut columns: Vec<(String, ArrayRef)> = rows(2)
        .1
        .schema()
        .fields()
        .iter()
        .zip(rows(2).1.columns())
        .map(|(field, array)| (field.name().clone(), Arc::clone(array)))
        .collect();
    columns[3].1 = ages;
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let answer = server.post(ARROW, &stream(&batch));
    let mut reader = StreamReader::try_new(answer.body.as_slice(), None).unwrap();
    let back = reader.next().unwrap().unwrap();
    assert!(back.column(0).is_valid(0) && back.column(0).is_null(1));
    let errors = back.column_by_name("error").unwrap().as_string::<i32>();
    assert!(errors.value(1).contains("column `age`"), "{errors:?}");
    let batch = batch.project(&[0, 1]).unwrap();
    let answer = server.post(ARROW, &stream(&batch));
    answer.refused(422, &["`age`", "`kind`"]);
}

#[test]
fn nothing_a_client_sends_takes_it_down() {
    let bench = Bench::new();
    let expected = numbers(&fitted(&bench, "price", "sold")[0]);
    let words = "--port 0 --timeout-s 1 --max-body-mb 1 --max-rows 50 --max-connections 8";
    let words: Vec<&str> = words.split(' ').collect();
    let server = Server::start(&bench, "runs/price", &words);
    let (json, batch) = rows(20);
    let alive = || {
        let answer = server.predict(&json!([json[0]])).good();
        close(&values(&answer["predictions"]), &expected[..1]);
    };
    alive();

    let refused = |body: &[u8], status, parts: &[&str]| {
        server.post(JSON, body).refused(status, parts);
        alive();
    };
    refused(b"", 400, &["not JSON"]);
    refused(b"{\"rows\": [{\"size\": 1,}]}", 400, &["line 1 column 22"]);
    refused(b"{\"rows\": [", 400, &["line 1 column 10"]);
    refused(b"[] []", 400, &["trailing"]);
    refused(b"{\"row\": []}", 400, &["`rows`"]);
    refused(b"{\"rows\": {}}", 400, &["array of rows"]);
    refused(b"3", 400, &["expected {\"rows\""]);
    refused(b"[{\"size\": \"\xff\"}]", 400, &["UTF-8", "byte 11"]);
    refused(&b"[".repeat(100_000), 400, &[]);
    refused(
        format!("[{}1", "{\"size\":".repeat(100_000)).as_bytes(),
        400,
        &[],
    );
    refused(json!(vec![1; 51]).to_string().as_bytes(), 413, &["50 rows"]);
    refused(&vec![b' '; 1_000_001], 413, &["1 MB"]);
    let chunk = format!("{:x}\r\n{}\r\n", 500_000, " ".repeat(500_000)).repeat(3);
    let head = format!("POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: {JSON}\r\n");
    let mut client = server.connect();
    client.send(format!("{head}transfer-encoding: chunked\r\n\r\n{chunk}0\r\n\r\n").as_bytes());
    client.answer().refused(413, &["1 MB"]);

    server
        .post("text/csv", b"size\n1\n")
        .refused(415, &["text/csv", JSON, ARROW]);
    let compressed = format!("{JSON}\r\ncontent-encoding: gzip");
    server
        .post(&compressed, b"[]")
        .refused(415, &["compressed"]);
    server.get("/predict").refused(405, &["POST"]);
    server.get("/nowhere").refused(404, &["/predict"]);

    // Every byte of a stream damaged in turn, and every length.
    let good = stream(&batch);
    server.post(ARROW, b"").refused(400, &["Arrow"]);
    let mut client = server.connect();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0xff;
        client.send(&request(ARROW, &bytes));
        let status = client.answer().status;
        assert!(
            [200, 400, 413, 422].contains(&status),
            "byte {at}: {status}"
        );
    }
    for length in (1..good.len() - 8).step_by(7) {
        client.send(&request(ARROW, &good[..length]));
        assert_eq!(client.answer().status, 400, "length {length}");
    }
    drop(client);
    alive();
    let log = std::fs::read_to_string(bench.path("server.log")).unwrap();
    assert!(
        !log.contains("panicked"),
        "a client can fill the log: {log}"
    );

    // What is no HTTP, or never ends.
    let whole = request(JSON, json!([json[0]]).to_string().as_bytes());
    let mut client = server.connect();
    client.send(b"\x16\x03\x01\x02\x00 this is no HTTP \xff\xfe\r\n\r\n");
    assert!(client.0.read_to_end(&mut Vec::new()).is_ok()); // a 400 or nothing
    let mut client = server.connect();
    client.send(&[b"GET / HTTP/1.1\r\nx: ", "y".repeat(1 << 20).as_bytes()].concat());
    let _ = client.0.read_to_end(&mut Vec::new());
    alive();

    // Half-closed: a whole request is answered, half a head is no request, half a body is told so.
    let mut client = server.connect();
    client.send(&whole);
    client.0.get_ref().shutdown(Shutdown::Write).unwrap();
    close(
        &values(&client.answer().good()["predictions"]),
        &expected[..1],
    );
    let mut client = server.connect();
    client.send(&whole[..30]);
    client.0.get_ref().shutdown(Shutdown::Write).unwrap();
    assert!(client.0.read_to_end(&mut Vec::new()).is_ok()); // a 400 or nothing, at once
    let mut client = server.connect();
    client.send(&whole[..whole.len() - 5]);
    client.0.get_ref().shutdown(Shutdown::Write).unwrap();
    client.answer().refused(400, &["before the body was whole"]);
    alive();

    // Dribbled: three that hold connections, given up after a second each; others go on being served.
    let start = Instant::now();
    let mut silent = server.connect();
    let mut head = server.connect();
    head.send(&whole[..20]);
    let mut body = server.connect();
    body.send(&whole[..whole.len() - 20]);
    let mut open = true;
    while start.elapsed() < Duration::from_millis(900) {
        alive();
        open &= head.send(b"a");
        open &= body.send(b" ");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(open, "given up too early");
    body.answer().refused(408, &["within 1 s"]);
    assert!(silent.is_closed() && head.is_closed());
    assert!(start.elapsed() < Duration::from_secs(5));

    // Deaf: asks on and on and never reads an answer.
    let mut deaf = server.connect();
    let ask = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    let start = Instant::now();
    while deaf.send(&ask) {}
    assert!(start.elapsed() < Duration::from_secs(10));
    alive();

    // One connection too many is told so.
    std::thread::sleep(Duration::from_millis(100));
    let held: Vec<Client> = (0..8).map(|_| server.connect()).collect();
    std::thread::sleep(Duration::from_millis(100));
    let answer = server.connect().answer();
    answer.refused(503, &["too many connections"]);
    assert!(answer.head.contains("retry-after"));
    drop(held);
    std::thread::sleep(Duration::from_millis(100));
    alive();
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    assert!(metrics.contains("densely_requests_total{route=\"/predict\",status=\"408\"} 1\n"));
    assert!(metrics.contains("densely_refused_connections_total 1\n"));
    assert!(metrics.contains("densely_queue_requests 0\n"));
}

#[test]
fn concurrent_clients_get_the_answers_of_their_own_rows() {
    let bench = Bench::new();
    let expected = numbers(&fitted(&bench, "price", "sold")[0]);
    let server = Server::start(&bench, "runs/price", &["--port", "0"]);
    let (json, _) = rows(200);
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let (json, expected, server) = (&json, &expected, &server);
            scope.spawn(move || {
                let mut client = server.connect();
                for turn in 0..25 {
                    let first = (worker * 31 + turn * 7) % 190;
                    let own = first..first + 1 + turn % 5;
                    let body = json!({ "rows": json[own.clone()] }).to_string();
                    client.send(&request(JSON, body.as_bytes()));
                    let answer = client.answer().good();
                    close(&values(&answer["predictions"]), &expected[own]);
                }
            });
        }
    });
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    assert!(
        metrics.contains("densely_batch_rows_sum 600\n"),
        "{metrics}"
    );
    assert!(metrics.contains("densely_request_rows_count 200\n"));

    // A full queue: while one request is on its way, the first waits for it, and the next finds no room.
    let words = [
        "--port",
        "0",
        "--max-queue-rows",
        "1",
        "--batch-wait-ms",
        "1000",
    ];
    let server = Server::start(&bench, "runs/price", &words);
    let whole = request(JSON, json!([json[0]]).to_string().as_bytes());
    let mut coming = server.connect();
    coming.send(&whole[..whole.len() - 1]);
    std::thread::sleep(Duration::from_millis(100));
    let mut first = server.connect();
    first.send(&whole);
    std::thread::sleep(Duration::from_millis(100));
    let answer = server.predict(&json!([json[1]]));
    answer.refused(503, &["wait for the model"]);
    assert!(answer.head.contains("retry-after: 1"));
    close(
        &values(&first.answer().good()["predictions"]),
        &expected[..1],
    );
    coming.send(&whole[whole.len() - 1..]);
    close(
        &values(&coming.answer().good()["predictions"]),
        &expected[..1],
    );
}

#[test]
fn it_stops_with_grace_and_starts_again_after_a_kill() {
    let bench = Bench::new();
    fitted(&bench, "price", "sold");
    let mut server = Server::start(&bench, "runs/price", &["--port", "0"]);
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/ready").status, 200);
    let whole = request(JSON, json!(rows(1).0).to_string().as_bytes());

    // Killed in the middle of a request and started again on the same port, it answers.
    let mut kept = server.connect();
    kept.send(&whole);
    kept.answer().good();
    kept.send(&whole[..whole.len() - 3]);
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let (_, port) = server.address.rsplit_once(':').unwrap();
    let mut server = Server::start(&bench, "runs/price", &["--port", port]);
    server.predict(&json!(rows(1).0)).good();

    // In use, it cannot be taken a second time.
    let second = bench.densely(&["serve", "runs/price", "--device", "cpu", "--port", port]);
    let text = stderr(&second.code(1));
    assert!(text.contains("error: 127.0.0.1:"), "{text}");
    assert!(text.contains("in use"), "{text}");

    let mut body = server.connect();
    body.send(&whole[..whole.len() - 3]);
    let mut ready = server.connect();
    ready.send(b"GET /ready HTTP/1.1\r\nhost: x\r\n");
    std::thread::sleep(Duration::from_millis(100));
    server.ask_to_end();
    std::thread::sleep(Duration::from_millis(300));
    assert!(TcpStream::connect(&server.address).is_err());
    ready.send(b"\r\n");
    ready.answer().refused(503, &["stopping"]);
    body.send(&whole[whole.len() - 3..]);
    body.answer().good();
    assert_eq!(server.child.wait().unwrap().code(), Some(0));

    let mut idle = Server::start(&bench, "runs/price", &["--port", "0"]);
    let _silent = idle.connect();
    let start = Instant::now();
    assert_eq!(idle.terminate(), 0);
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn it_does_not_start_without_what_it_needs() {
    let bench = Bench::new();
    let refused = |words: &[&str], status: i32, part: &str| {
        let words: Vec<&str> = ["serve", "runs/no", "--port", "0"]
            .iter()
            .chain(words)
            .copied()
            .collect();
        let text = stderr(&bench.densely(&words).code(status));
        assert!(text.contains(part), "`{part}` is not in: {text}");
        assert!(!text.contains("panicked"), "{text}");
    };
    refused(&[], 1, "error: runs/no: there is no such run folder");
    refused(
        &["--host", "no.such.host.invalid"],
        1,
        "error: no.such.host.invalid:0",
    );
    refused(&["--timeout-s", "0"], 2, "--timeout-s");
    refused(
        &["--batch-wait-ms", "NaN"],
        2,
        "milliseconds from 0 to 1000",
    );
    refused(&["--max-rows", "many"], 2, "--max-rows");
    refused(&["--port", "65536"], 2, "--port");
    let help = stdout(&bench.densely(&["serve", "--help"]).success());
    assert!(help.contains("Example: densely serve "), "{help}");
}
