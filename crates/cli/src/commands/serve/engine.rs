//! The thread that owns the model. Requests that wait together are predicted together.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use densely_core::Result;
use densely_core::tch::Kind;
use densely_data::Rows;
use densely_tabular::fit::Fitted;
use tokio::sync::oneshot;

use super::metrics::Metrics;

/// How often the idle thread looks whether it shall end.
const LOOK: Duration = Duration::from_millis(100);

/// How requests are put together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batching {
    /// Most rows of one forward pass, unless one request alone has more.
    pub(super) max_rows: usize,
    /// How long the first request waits for others.
    pub(super) wait: Duration,
    /// Most rows that wait.
    pub(super) max_waiting_rows: usize,
}

/// Values of the rows, `[rows]` or `[rows, classes]`, or why there are none.
pub(super) type Outcome = std::result::Result<Vec<f64>, String>;

struct Job {
    rows: Rows,
    /// When its client no longer waits.
    deadline: Instant,
    answer: oneshot::Sender<Outcome>,
}

/// The way to the model's thread.
#[derive(Debug)]
pub(super) struct Queue {
    jobs: Sender<Job>,
    counts: Arc<Counts>,
    max_waiting_rows: usize,
}

/// What both sides know of the queue.
#[derive(Debug, Default)]
struct Counts {
    waiting_requests: AtomicUsize,
    waiting_rows: AtomicUsize,
    /// Requests that are being read and may join the next batch.
    coming: AtomicUsize,
    stop: AtomicBool,
    ended: AtomicBool,
}

/// The thread, to be ended.
#[derive(Debug)]
pub(super) struct Engine {
    thread: JoinHandle<()>,
    counts: Arc<Counts>,
}

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotTaken {
    Full,
    Ended,
}

/// A request that is being read; the thread waits for it a little.
#[derive(Debug)]
pub(super) struct Coming<'a>(&'a Counts);

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.0.coming.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Queue {
    /// Says that a request is on its way.
    pub(super) fn coming(&self) -> Coming<'_> {
        self.counts.coming.fetch_add(1, Ordering::Relaxed);
        Coming(&self.counts)
    }

    /// Hands rows over; a request that finds the queue empty is always taken.
    pub(super) fn submit(
        &self,
        rows: Rows,
        deadline: Instant,
    ) -> std::result::Result<oneshot::Receiver<Outcome>, NotTaken> {
        let count = rows.len();
        let take = |waiting: usize| {
            (waiting == 0 || waiting + count <= self.max_waiting_rows).then_some(waiting + count)
        };
        let waiting = &self.counts.waiting_rows;
        waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .map_err(|_| NotTaken::Full)?;
        self.counts.waiting_requests.fetch_add(1, Ordering::Relaxed);
        let (answer, outcome) = oneshot::channel();
        let job = Job {
            rows,
            deadline,
            answer,
        };
        self.jobs.send(job).map_err(|_| NotTaken::Ended)?;
        Ok(outcome)
    }

    /// Requests and rows that wait.
    pub(super) fn waiting(&self) -> (usize, usize) {
        let counts = &self.counts;
        (
            counts.waiting_requests.load(Ordering::Relaxed),
            counts.waiting_rows.load(Ordering::Relaxed),
        )
    }

    /// Whether the model's thread runs.
    pub(super) fn is_alive(&self) -> bool {
        !self.counts.ended.load(Ordering::Relaxed)
    }
}

impl Engine {
    /// Starts the thread and waits for its first prediction, of one row without values: the first pass is slow, and
    /// a model that cannot predict shall not be served.
    pub(super) fn start(
        model: Fitted,
        batching: Batching,
        threads: Option<i32>,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Queue)> {
        let counts = Arc::new(Counts::default());
        let (jobs, inbox) = channel();
        let (ready, first) = std::sync::mpsc::sync_channel(1);
        let worker = Worker {
            model,
            batching,
            inbox,
            counts: Arc::clone(&counts),
            metrics,
        };
        let run = move || {
            let ended = Arc::clone(&worker.counts);
            if let Some(threads) = threads {
                tch::set_num_threads(threads);
            }
            let outcome = worker.warm_up();
            let good = outcome.is_ok();
            let _ = ready.send(outcome);
            if good {
                worker.work();
            }
            ended.ended.store(true, Ordering::Relaxed);
        };
        let thread = std::thread::Builder::new()
            .name("model".to_owned())
            .spawn(run)
            .map_err(densely_core::Error::io("the model's thread"))?;
        let gone = || densely_core::Error::Torch {
            message: "the model failed on its first row".to_owned(),
            trace: String::new(),
        };
        first.recv().map_err(|_| gone())??;
        let queue = Queue {
            jobs,
            counts: Arc::clone(&counts),
            max_waiting_rows: batching.max_waiting_rows,
        };
        Ok((Self { thread, counts }, queue))
    }

    /// Ends the thread after the batch at hand.
    pub(super) fn stop(self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        if self.thread.join().is_err() {
            tracing::warn!("the model's thread had failed");
        }
    }
}

struct Worker {
    model: Fitted,
    batching: Batching,
    inbox: Receiver<Job>,
    counts: Arc<Counts>,
    metrics: Arc<Metrics>,
}

impl Worker {
    fn warm_up(&self) -> Result<()> {
        let encoder = self.model.pipeline.preprocessor.row_encoder();
        let cells = vec![Some(densely_data::rows::Cell::Missing); encoder.columns().len()];
        let mut rows = Rows::default();
        encoder
            .push(&mut rows, &cells)
            .map_err(|bad| densely_core::Error::column("", bad.column, bad.reason))?;
        self.model.predict_rows(&rows).map(|_| ())
    }

    fn work(&self) {
        let mut held = None;
        while !self.counts.stop.load(Ordering::Relaxed) {
            let first = match held.take() {
                Some(job) => job,
                None => match self.inbox.recv_timeout(LOOK) {
                    Ok(job) => job,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            };
            let (batch, next) = self.gather(first);
            held = next;
            self.answer(batch);
        }
    }

    /// What waits together with `first`, and the request that no longer fitted.
    fn gather(&self, first: Job) -> (Vec<Job>, Option<Job>) {
        let until = Instant::now() + self.batching.wait;
        let mut rows = first.rows.len();
        let mut batch = vec![first];
        while rows < self.batching.max_rows {
            let job = self.inbox.try_recv().ok().or_else(|| {
                // Nobody to wait for: a lone client gets its answer at once.
                if self.counts.coming.load(Ordering::Relaxed) == 0 {
                    return None;
                }
                let left = until.checked_duration_since(Instant::now())?;
                self.inbox.recv_timeout(left).ok()
            });
            let Some(job) = job else { break };
            if rows + job.rows.len() > self.batching.max_rows {
                return (batch, Some(job));
            }
            rows += job.rows.len();
            batch.push(job);
        }
        (batch, None)
    }

    fn answer(&self, batch: Vec<Job>) {
        let now = Instant::now();
        let mut joined = Rows::default();
        let mut jobs = Vec::with_capacity(batch.len());
        for job in batch {
            let count = job.rows.len();
            self.counts.waiting_requests.fetch_sub(1, Ordering::Relaxed);
            self.counts.waiting_rows.fetch_sub(count, Ordering::Relaxed);
            // Whoever no longer waits costs nothing.
            if now < job.deadline && !job.answer.is_closed() {
                joined.append(&job.rows);
                jobs.push((count, job.answer));
            }
        }
        if jobs.is_empty() {
            return;
        }
        let outcome = self.predict(&joined);
        self.metrics.batch(joined.len(), now.elapsed());
        match outcome {
            Ok(values) => {
                let width = values.len() / joined.len();
                let mut values = values.as_slice();
                for (count, answer) in jobs {
                    let (own, rest) = values.split_at(count * width);
                    values = rest;
                    let _ = answer.send(Ok(own.to_vec()));
                }
            }
            Err(reason) => {
                tracing::error!("prediction failed: {reason}");
                for (_, answer) in jobs {
                    let _ = answer.send(Err(reason.clone()));
                }
            }
        }
    }

    fn predict(&self, rows: &Rows) -> Outcome {
        // tch panics where libtorch fails; the thread and the other requests outlive that.
        let predict = || -> Result<Vec<f64>> {
            let predictions = self.model.predict_rows(rows)?;
            let flat = predictions.to_kind(Kind::Double).f_reshape([-1])?;
            Ok(Vec::try_from(flat)?)
        };
        let values = catch_unwind(AssertUnwindSafe(predict))
            .map_err(|_| "the model failed".to_owned())?
            .map_err(|error| error.to_string())?;
        if values.is_empty() || !values.len().is_multiple_of(rows.len()) {
            return Err(format!("{} values for {} rows", values.len(), rows.len()));
        }
        Ok(values)
    }
}
