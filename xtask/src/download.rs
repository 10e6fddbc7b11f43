//! Downloads over HTTP that survive a broken line: resume, retries, size and hash checks.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::cache;

/// What a finished download must be; `None` is not checked.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Expected<'a> {
    pub(crate) sha256: Option<&'a str>,
    pub(crate) bytes: Option<u64>,
}

const TRIES: u32 = 5;

/// Fetches `url` to `to`. A part that is already there (`<to>.part`) is continued when the server still has the same file.
///
/// `patient` waits 1 to 8 seconds between five tries; otherwise one try that gives up in seconds when nothing answers.
pub(crate) fn fetch(url: &str, to: &Path, expected: Expected<'_>, patient: bool) -> Result<()> {
    if !(url.starts_with("http://") || url.starts_with("https://")) {
        bail!("{url:?} is not an http or https address; correct it in the data set's TOML");
    }
    if let Some(folder) = to.parent() {
        cache::create_folder(folder)?;
    }
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(if patient { 20 } else { 6 })))
        .timeout_resolve(Some(Duration::from_secs(6)))
        .timeout_recv_response(Some(Duration::from_secs(30)))
        .http_status_as_error(false)
        .user_agent(concat!("densely-xtask/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let part = with_suffix(to, "part");
    let mut problem = None;
    for attempt in 0..if patient { TRIES } else { 1 } {
        if attempt > 0 {
            let wait = Duration::from_secs(1 << (attempt - 1));
            eprintln!(
                "  {}; trying again in {} s",
                problem
                    .as_ref()
                    .map_or_else(String::new, ToString::to_string),
                wait.as_secs()
            );
            std::thread::sleep(wait);
        }
        match once(&agent, url, &part, expected.bytes) {
            Ok(()) => return finish(url, &part, to, expected),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Again(error)) => problem = Some(error),
        }
    }
    let problem = problem.unwrap_or_else(|| anyhow!("no try was made"));
    bail!(
        "{url} cannot be fetched: {problem}; check the network (HTTPS_PROXY is honoured) and run the command again: it goes on where it stopped"
    )
}

#[derive(Debug)]
enum Failure {
    /// Another try may help.
    Again(anyhow::Error),
    Final(anyhow::Error),
}

/// One request; appends to `part` when the server continues, starts again when it does not.
fn once(agent: &ureq::Agent, url: &str, part: &Path, bytes: Option<u64>) -> Result<(), Failure> {
    let tag_file = with_suffix(part, "etag");
    let have = std::fs::metadata(part).map_or(0, |meta| meta.len());
    if bytes == Some(have) && have > 0 {
        return Ok(());
    }
    let tag = std::fs::read_to_string(&tag_file).ok().filter(|_| have > 0);
    let mut request = agent.get(url).header("Accept-Encoding", "identity");
    if let Some(tag) = &tag {
        request = request
            .header("Range", format!("bytes={have}-"))
            .header("If-Range", tag.as_str());
    }
    let mut response = request
        .call()
        .map_err(|error| Failure::Again(anyhow!("no answer ({error})")))?;
    let status = response.status().as_u16();
    let resumed = status == 206
        && starts_at(
            response
                .headers()
                .get("content-range")
                .and_then(|value| value.to_str().ok()),
            have,
        );
    match status {
        200 => {}
        206 if resumed => {}
        206 | 416 => {
            // The server's file is not the one of which we hold a part.
            let _ = std::fs::remove_file(part);
            let _ = std::fs::remove_file(&tag_file);
            return Err(Failure::Again(anyhow!(
                "the part on disk does not fit the server's file any more"
            )));
        }
        408 | 425 | 429 | 500..=599 => {
            return Err(Failure::Again(anyhow!(
                "the server answers with status {status}"
            )));
        }
        _ => {
            return Err(Failure::Final(anyhow!(
                "{url} cannot be fetched: the server answers with status {status}; is the address still right?"
            )));
        }
    }
    let headers = response.headers();
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    // A weak tag must not be used for ranges.
    let new_tag = header("etag")
        .filter(|tag| !tag.starts_with("W/"))
        .or_else(|| header("last-modified"));
    let length: Option<u64> = header("content-length").and_then(|text| text.parse().ok());
    let start = if resumed { have } else { 0 };
    match (&new_tag, resumed) {
        (Some(tag), _) => cache::write(&tag_file, tag.as_bytes()).map_err(Failure::Final)?,
        (None, true) => {}
        (None, false) => drop(std::fs::remove_file(&tag_file)),
    }
    let total = length.map(|length| start + length);
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .append(resumed)
        .truncate(!resumed)
        .open(part)
        .map_err(|error| Failure::Final(cache::explain("write", part, &error)))?;
    let limit = bytes.unwrap_or(u64::MAX);
    let mut done = start;
    let mut buffer = vec![0_u8; 1 << 17];
    let mut reader = response.body_mut().as_reader();
    let mut progress = Progress::new(total.or(bytes));
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(Failure::Again(anyhow!(
                    "the connection broke after {} ({error})",
                    cache::human(done)
                )));
            }
        };
        done += read as u64;
        if done > limit {
            let _ = std::fs::remove_file(part);
            return Err(Failure::Final(anyhow!(
                "{url} sends more than the {limit} bytes that are expected; the file there has changed, so the data set's TOML needs a new size and hash"
            )));
        }
        file.write_all(buffer.get(..read).unwrap_or_default())
            .map_err(|error| Failure::Final(cache::explain("write", part, &error)))?;
        progress.show(done);
    }
    if let Some(total) = total.filter(|total| *total != done) {
        return Err(Failure::Again(anyhow!(
            "the connection closed after {done} of {total} bytes"
        )));
    }
    file.sync_all()
        .map_err(|error| Failure::Final(cache::explain("write", part, &error)))
}

/// Checks the finished part and gives it its name.
fn finish(url: &str, part: &Path, to: &Path, expected: Expected<'_>) -> Result<()> {
    let found = cache::digest(part)?;
    let wrong_size = expected.bytes.is_some_and(|bytes| bytes != found.bytes);
    let wrong_hash = expected
        .sha256
        .is_some_and(|sha256| !sha256.eq_ignore_ascii_case(&found.sha256));
    let _ = std::fs::remove_file(with_suffix(part, "etag"));
    if wrong_size || wrong_hash {
        let _ = std::fs::remove_file(part);
        bail!(
            "{url} is not the file that is expected: {} bytes with SHA-256 {}, expected {} with {}; it was deleted, run the command again or report it",
            found.bytes,
            found.sha256,
            expected
                .bytes
                .map_or_else(|| "any size".to_owned(), |bytes| format!("{bytes} bytes")),
            expected.sha256.unwrap_or("any")
        );
    }
    std::fs::rename(part, to)
        .with_context(|| format!("cannot rename {} to {}", part.display(), to.display()))
}

/// Whether a `Content-Range` such as `bytes 100-199/200` begins at `position`.
fn starts_at(range: Option<&str>, position: u64) -> bool {
    range
        .and_then(|range| range.strip_prefix("bytes "))
        .and_then(|range| range.split_once('-'))
        .is_some_and(|(start, _)| start.trim().parse() == Ok(position))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// A line every few seconds on stderr: enough on a terminal, bearable in a log.
struct Progress {
    total: Option<u64>,
    last: Instant,
}

impl Progress {
    fn new(total: Option<u64>) -> Self {
        Self {
            total,
            last: Instant::now(),
        }
    }

    fn show(&mut self, done: u64) {
        if self.last.elapsed() < Duration::from_secs(5) {
            return;
        }
        self.last = Instant::now();
        match self.total.filter(|total| *total > 0) {
            Some(total) => eprintln!(
                "  {} of {} ({} %)",
                cache::human(done),
                cache::human(total),
                done * 100 / total
            ),
            None => eprintln!("  {}", cache::human(done)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    /// A server on the loopback that gives each connection the next answer and returns the requests.
    fn serve(answers: Vec<Vec<u8>>) -> Result<(String, JoinHandle<Vec<String>>)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/file", listener.local_addr()?);
        let handle = std::thread::spawn(move || {
            let mut requests = Vec::new();
            for answer in answers {
                let Ok((stream, _)) = listener.accept() else {
                    break;
                };
                let mut reader = BufReader::new(stream);
                let mut request = String::new();
                while reader.read_line(&mut request).is_ok_and(|read| read > 2) {}
                requests.push(request.to_lowercase());
                let _ = reader.get_mut().write_all(&answer);
            }
            requests
        });
        Ok((url, handle))
    }

    fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes =
            format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n").into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_broken_download_goes_on_where_it_stopped() -> Result<()> {
        let (url, server) = serve(vec![
            answer("200 OK", "ETag: \"v1\"\r\nContent-Length: 10\r\n", b"01234"),
            answer(
                "206 Partial Content",
                "ETag: \"v1\"\r\nContent-Range: bytes 5-9/10\r\nContent-Length: 5\r\n",
                b"56789",
            ),
        ])?;
        let folder = tempfile::tempdir()?;
        let to = folder.path().join("file");
        let sha256 = cache::sha256(b"0123456789");
        fetch(
            &url,
            &to,
            Expected {
                sha256: Some(&sha256),
                bytes: Some(10),
            },
            true,
        )?;
        assert_eq!(std::fs::read(&to)?, b"0123456789");
        let requests = server.join().map_err(|_| anyhow!("the server died"))?;
        assert!(
            requests[1].contains("range: bytes=5-") && requests[1].contains("if-range: \"v1\""),
            "{requests:?}"
        );
        assert_eq!(
            std::fs::read_dir(folder.path())?.count(),
            1,
            "no .part, no .etag"
        );
        Ok(())
    }

    #[test]
    fn a_file_that_changed_on_the_server_is_started_again() -> Result<()> {
        let (url, server) = serve(vec![answer(
            "200 OK",
            "ETag: \"v2\"\r\nContent-Length: 3\r\n",
            b"new",
        )])?;
        let folder = tempfile::tempdir()?;
        let to = folder.path().join("file");
        std::fs::write(with_suffix(&to, "part"), b"ol")?;
        std::fs::write(with_suffix(&with_suffix(&to, "part"), "etag"), b"\"v1\"")?;
        fetch(&url, &to, Expected::default(), true)?;
        assert_eq!(std::fs::read(&to)?, b"new");
        drop(server.join());
        Ok(())
    }

    #[test]
    fn a_wrong_hash_is_refused_and_leaves_nothing() -> Result<()> {
        let (url, server) = serve(vec![answer("200 OK", "Content-Length: 3\r\n", b"bad")])?;
        let folder = tempfile::tempdir()?;
        let expected = cache::sha256(b"good");
        let result = fetch(
            &url,
            &folder.path().join("file"),
            Expected {
                sha256: Some(&expected),
                bytes: None,
            },
            true,
        );
        assert!(result.is_err_and(|error| {
            error
                .to_string()
                .contains("is not the file that is expected")
        }));
        assert_eq!(std::fs::read_dir(folder.path())?.count(), 0);
        drop(server.join());
        Ok(())
    }

    #[test]
    fn more_bytes_than_expected_and_missing_pages_are_refused() -> Result<()> {
        let (url, server) = serve(vec![
            answer("200 OK", "", &[7; 5000]),
            answer("404 Not Found", "Content-Length: 0\r\n", b""),
        ])?;
        let folder = tempfile::tempdir()?;
        let expected = Expected {
            sha256: None,
            bytes: Some(100),
        };
        let to = folder.path().join("file");
        assert!(
            fetch(&url, &to, expected, true)
                .is_err_and(|error| error.to_string().contains("more than the 100 bytes"))
        );
        assert!(
            fetch(&url, &to, expected, true)
                .is_err_and(|error| error.to_string().contains("status 404"))
        );
        assert!(!to.exists());
        drop(server.join());
        Ok(())
    }

    #[test]
    fn an_unreachable_host_is_one_sentence() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let result = fetch(
            "http://127.0.0.1:9/x",
            &folder.path().join("x"),
            Expected::default(),
            false,
        );
        assert!(result.is_err_and(|error| error.to_string().contains("check the network")));
        assert!(
            fetch(
                "file:///etc/passwd",
                &folder.path().join("x"),
                Expected::default(),
                false
            )
            .is_err()
        );
        Ok(())
    }

    #[test]
    fn content_ranges() {
        assert!(starts_at(Some("bytes 5-9/10"), 5));
        assert!(!starts_at(Some("bytes 0-9/10"), 5));
        assert!(!starts_at(None, 0) && !starts_at(Some("bytes */10"), 0));
    }
}
