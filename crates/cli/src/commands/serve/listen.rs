//! Connections: taken up to a limit, given up when a client dribbles, ended with grace.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Sleep, sleep, timeout};

use super::routes::Server;

/// How often the program looks for Ctrl-C.
const LOOK: Duration = Duration::from_millis(50);
/// How long the last answers have to leave after the last request is done.
const FLUSH: Duration = Duration::from_millis(300);
/// Connections beyond the limit that are told so at one time; others are dropped.
const TOLD: usize = 32;
/// Most bytes of a request's headers.
const HEADERS: usize = 64 * 1024;

const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-length: 42\r\n\r\n{\"error\":\"too many connections are open\"}\n";

/// Serves until Ctrl-C or a request to terminate, then finishes what is in flight, for `limit` at most.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    server: Arc<Server>,
    most: usize,
    limit: Duration,
) {
    let (stop, stopped) = watch::channel(false);
    let slots = Arc::new(Semaphore::new(most));
    let told = Arc::new(Semaphore::new(TOLD));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = interrupted() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Mostly a want of file handles, which passes when connections end.
                tracing::warn!("cannot take a connection: {error}");
                sleep(LOOK).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            server.metrics.connection_refused();
            if let Ok(permit) = Arc::clone(&told).try_acquire_owned() {
                tokio::spawn(async move {
                    refuse(stream).await;
                    drop(permit);
                });
            }
            continue;
        };
        let (router, server) = (router.clone(), Arc::clone(&server));
        let stopped = stopped.clone();
        tokio::spawn(async move {
            let _counted = server.metrics.connections.count();
            connection(stream, router, server.limits.timeout, stopped).await;
            drop(slot);
        });
    }
    drop(listener);
    server.stopping.store(true, Ordering::Relaxed);
    stop.send_replace(true);
    finish(&server, limit).await;
}

/// Returns when somebody asked the program to stop.
async fn interrupted() {
    while !densely_train::signal::interrupted() {
        sleep(LOOK).await;
    }
}

/// Waits until no request is in flight and the answers have left.
async fn finish(server: &Server, limit: Duration) {
    let start = Instant::now();
    let mut quiet = Instant::now();
    while server.metrics.connections.value() > 0 {
        if server.metrics.active.value() > 0 {
            quiet = Instant::now();
        }
        // What is still open then has sent no whole request.
        if quiet.elapsed() > FLUSH {
            return;
        }
        if start.elapsed() > limit {
            tracing::warn!(
                "{} requests were not finished in time",
                server.metrics.active.value()
            );
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

async fn connection(
    stream: TcpStream,
    router: Router,
    limit: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("{error}");
    }
    let io = TokioIo::new(Patient {
        stream,
        limit,
        waiting: None,
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limit)
        .half_close(true)
        .max_buf_size(HEADERS);
    let connection = builder.serve_connection(io, TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        outcome = connection.as_mut() => Some(outcome),
        _ = stopped.changed() => None,
    };
    let outcome = if let Some(outcome) = ended {
        outcome
    } else {
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    if let Err(error) = outcome {
        tracing::debug!("a connection ended: {error}");
    }
}

/// Says that there is no room, and reads a little of what the client sends, so that it gets to read that.
async fn refuse(mut stream: TcpStream) {
    let talk = async {
        stream.write_all(BUSY.as_bytes()).await?;
        stream.shutdown().await?;
        let mut bytes = [0; 4096];
        while stream.read(&mut bytes).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(Duration::from_secs(1), talk).await;
}

/// A stream whose answers must be taken within a time, however slowly the client reads.
struct Patient {
    stream: TcpStream,
    limit: Duration,
    /// Runs from the first write of an answer until all of it is with the system.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn poll_late(&mut self, context: &mut Context) -> io::Result<()> {
        let limit = self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(limit)));
        match waiting.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        buffer: &mut ReadBuf,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_late(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        parts: &[io::IoSlice],
    ) -> Poll<io::Result<usize>> {
        self.poll_late(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        // Called when nothing is left to write.
        self.waiting = None;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::BUSY;

    #[test]
    fn the_refusal_is_a_whole_response() {
        let (head, body) = BUSY.split_once("\r\n\r\n").unwrap_or_default();
        assert!(head.contains(&format!("content-length: {}", body.len())));
        assert!(body.starts_with("{\"error\":"));
    }
}
