//! Work on many items, shared among threads.

use std::panic::resume_unwind;
use std::thread::{Builder, ScopedJoinHandle, scope};

/// Points below which another thread costs more than it saves.
pub(crate) const POINTS: usize = 256;

/// `f` of each item, in order, by as many threads as libtorch uses, each with `least` items or more.
pub(crate) fn map<A: Sync, B: Send>(
    items: &[A],
    least: usize,
    f: impl Fn(&A) -> B + Sync,
) -> Vec<B> {
    enum Part<'scope, 'a, A, B> {
        Elsewhere(ScopedJoinHandle<'scope, Vec<B>>),
        /// Where the system gives no thread.
        Here(&'a [A]),
    }
    let threads = tch::get_num_threads().max(1) as usize;
    let size = items.len().div_ceil(threads).max(least);
    let run = |part: &[A]| part.iter().map(&f).collect::<Vec<B>>();
    if items.len() <= size {
        return run(items);
    }
    scope(|scope| {
        let start = |part| {
            Builder::new()
                .spawn_scoped(scope, move || run(part))
                .map_or(Part::Here(part), Part::Elsewhere)
        };
        let parts: Vec<_> = items.chunks(size).map(start).collect();
        let mut results = Vec::with_capacity(items.len());
        for part in parts {
            results.extend(match part {
                Part::Here(part) => run(part),
                Part::Elsewhere(thread) => thread.join().unwrap_or_else(|e| resume_unwind(e)),
            });
        }
        results
    })
}
