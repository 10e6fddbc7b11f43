//! Threads that operations take.

use crate::bridge::ffi;

/// From here on operations that this thread runs take no other threads, as a worker beside a training wants it. `tch::set_num_threads` would do that to the whole
/// process: every thread that has not computed yet takes over its number.
///
/// # Examples
/// ```
/// let worker = || {
///     densely_torch_ext::threads::compute_alone();
///     tch::get_num_threads()
/// };
/// let before = tch::get_num_threads();
/// assert_eq!(std::thread::spawn(worker).join().ok(), Some(1));
/// assert_eq!(std::thread::spawn(tch::get_num_threads).join().ok(), Some(before));
/// ```
pub fn compute_alone() {
    ffi::compute_alone();
}
