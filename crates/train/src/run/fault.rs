//! Instants at which tests kill the run.

#[cfg(not(test))]
pub(super) const fn point(_what: &str) {}

#[cfg(test)]
pub(in crate::run) use armed::{arm, point};

#[cfg(test)]
mod armed {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// The `n`th point from now (counted from 0) panics, once; `None` disarms.
    pub(in crate::run) fn arm(n: Option<u64>) {
        LEFT.set(n);
    }

    pub(in crate::run) fn point(what: &str) {
        match LEFT.get() {
            Some(0) => {
                LEFT.set(None);
                panic!("killed: {what}");
            }
            Some(n) => LEFT.set(Some(n - 1)),
            None => {}
        }
    }
}
