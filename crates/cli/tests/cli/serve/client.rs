//! A server process, and a client that says every byte itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::JSON;
use crate::Bench;

/// A server that ends with the test.
pub(super) struct Server {
    pub(super) child: Child,
    pub(super) address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    pub(super) fn start(bench: &Bench, run: &str, words: &[&str]) -> Self {
        let log = std::fs::File::create(bench.path("server.log")).unwrap();
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("densely"))
            .current_dir(bench.folder.path())
            .args(["serve", run, "--device", "cpu", "--threads", "1"])
            .args(words)
            .env_remove("DENSELY_LOG")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        lines.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://");
        let address = address
            .unwrap_or_else(|| panic!("the server said `{line}`"))
            .to_owned();
        Self { child, address }
    }

    pub(super) fn connect(&self) -> Client {
        Client::new(&self.address)
    }

    pub(super) fn post(&self, kind: &str, body: &[u8]) -> Answer {
        let mut client = self.connect();
        client.send(&request(kind, body));
        client.answer()
    }

    pub(super) fn predict(&self, body: &Value) -> Answer {
        self.post(JSON, body.to_string().as_bytes())
    }

    pub(super) fn get(&self, path: &str) -> Answer {
        let mut client = self.connect();
        client.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
        client.answer()
    }

    /// Asks the program to end and returns its exit status.
    pub(super) fn terminate(&mut self) -> i32 {
        self.ask_to_end();
        self.child.wait().unwrap().code().unwrap()
    }

    pub(super) fn ask_to_end(&self) {
        let pid = self.child.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(killed.unwrap().success());
    }
}

pub(super) fn request(kind: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// The body of a good answer.
    #[track_caller]
    pub(super) fn good(&self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Asserts the status and a sentence that holds all `parts`.
    #[track_caller]
    pub(super) fn refused(&self, status: u16, parts: &[&str]) -> Value {
        let body: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(self.status, status, "{body}");
        for part in parts {
            let sentence = body["error"].as_str().unwrap();
            assert!(sentence.contains(part), "`{part}` is not in: {sentence}");
        }
        body
    }
}

pub(super) struct Client(pub(super) BufReader<TcpStream>);

impl Client {
    pub(super) fn new(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).unwrap();
        stream.set_write_timeout(patience).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    /// Sends bytes; that the server has closed the connection is for the answer to tell.
    pub(super) fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.get_mut().write_all(bytes).is_ok()
    }

    pub(super) fn answer(&mut self) -> Answer {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "closed: {head}");
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
            head.push_str(&line);
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head, body }
    }

    /// Whether the server closes the connection without a word, within the client's patience.
    pub(super) fn is_closed(&mut self) -> bool {
        !matches!(self.0.read(&mut [0; 64]), Ok(1..)) // a reset is an end too
    }
}
