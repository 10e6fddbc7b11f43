//! Pictures decoded by threads, in a given order.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, JoinHandle};

use densely_core::{Error, Result};

use super::AnyImage;
use super::sources::Pictures;

/// Results that a thread may have ready before they are asked for.
const AHEAD: usize = 4;

/// Calls `f` with the number and the picture of each of `indices`, and yields number and result in the order of `indices`.
///
/// `workers` threads read, decode and call `f`; each is a few pictures ahead, so memory is bounded. With 0, or where
/// the system gives no thread, it all happens when the next item is asked for. A picture that cannot be read, or over
/// which `f` panics, yields its `Err`, and the others follow. Dropping the iterator stops the threads after the picture
/// they are at.
pub fn decode_ordered<T, F>(
    source: Arc<dyn Pictures>,
    indices: &[usize],
    workers: usize,
    f: F,
) -> impl Iterator<Item = (usize, Result<T>)> + use<T, F>
where
    T: Send + 'static,
    F: Fn(usize, AnyImage) -> Result<T> + Send + Sync + 'static,
{
    let job = Arc::new(Job {
        source,
        indices: indices.to_vec(),
        f,
    });
    let workers = workers.min(indices.len());
    let lanes = (0..workers).map(|first| Lane::start(&job, first, workers));
    Ordered {
        lanes: lanes.collect(),
        job,
        next: 0,
    }
}

struct Job<F> {
    source: Arc<dyn Pictures>,
    indices: Vec<usize>,
    f: F,
}

impl<F> Job<F> {
    fn run<T>(&self, index: usize) -> Result<T>
    where
        F: Fn(usize, AnyImage) -> Result<T>,
    {
        let one = || {
            self.source
                .picture(index)
                .and_then(|image| (self.f)(index, image))
        };
        catch_unwind(AssertUnwindSafe(one)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let reason = format!(
                "the work on picture {index} panicked: {}",
                text.unwrap_or("no reason given")
            );
            Err(Error::data(PathBuf::new(), reason))
        })
    }
}

/// A thread that works on every `workers`-th picture.
struct Lane<T> {
    results: Receiver<Result<T>>,
    thread: JoinHandle<()>,
}

impl<T: Send + 'static> Lane<T> {
    /// `None` when the system gives no thread.
    fn start<F>(job: &Arc<Job<F>>, first: usize, workers: usize) -> Option<Self>
    where
        F: Fn(usize, AnyImage) -> Result<T> + Send + Sync + 'static,
    {
        let (send, results) = sync_channel(AHEAD);
        let job = Arc::clone(job);
        let work = move || {
            for index in job.indices.iter().skip(first).step_by(workers) {
                if send.send(job.run(*index)).is_err() {
                    break;
                }
            }
        };
        let thread = Builder::new()
            .name("pictures".to_owned())
            .spawn(work)
            .ok()?;
        Some(Self { results, thread })
    }
}

struct Ordered<T, F> {
    lanes: Vec<Option<Lane<T>>>,
    job: Arc<Job<F>>,
    next: usize,
}

impl<T, F> Iterator for Ordered<T, F>
where
    F: Fn(usize, AnyImage) -> Result<T>,
{
    type Item = (usize, Result<T>);

    fn next(&mut self) -> Option<Self::Item> {
        let index = *self.job.indices.get(self.next)?;
        let lane = self.lanes.get(self.next % self.lanes.len().max(1));
        self.next += 1;
        let received = lane
            .and_then(Option::as_ref)
            .map(|lane| lane.results.recv());
        // Without a thread, here and now.
        let result = match received {
            Some(Ok(result)) => result,
            _ => self.job.run(index),
        };
        Some((index, result))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.job.indices.len() - self.next;
        (left, Some(left))
    }
}

impl<T, F> Drop for Ordered<T, F> {
    fn drop(&mut self) {
        let mut threads = Vec::new();
        for lane in self.lanes.drain(..).flatten() {
            // Nobody receives any more: the thread's next `send` fails.
            drop(lane.results);
            threads.push(lane.thread);
        }
        for thread in threads {
            // A thread whose work panicked has reported that.
            let _ = thread.join();
        }
    }
}
