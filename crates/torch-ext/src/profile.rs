//! What libtorch is asked to do.

use crate::bridge::ffi;

/// Names of the operations that this thread runs during `work`, in their order, those inside others too
/// (`aten::linear`, then the `aten::addmm` that it calls). On the CPU a backward pass runs on its caller's thread.
///
/// # Errors
/// A sentence, when the thread records already.
/// # Examples
/// ```
/// use tch::{Kind, Tensor};
/// let xs = Tensor::ones([2, 3], tch::kind::FLOAT_CPU);
/// let (sum, operations) = densely_torch_ext::profile::operations(|| xs.sum(Kind::Float))?;
/// assert_eq!(sum.double_value(&[]), 6.0);
/// assert!(operations.contains(&"aten::sum".to_owned()));
/// # Ok::<(), String>(())
/// ```
pub fn operations<T>(work: impl FnOnce() -> T) -> Result<(T, Vec<String>), String> {
    let text = |e: cxx::Exception| e.what().to_owned();
    let callback = ffi::record_operations().map_err(text)?;
    let stop = Stop(Some(callback));
    let value = work();
    Ok((value, stop.names().map_err(text)?))
}

/// Ends the recording, after a panic too.
struct Stop(Option<usize>);

impl Stop {
    fn names(mut self) -> Result<Vec<String>, cxx::Exception> {
        self.0.take().map_or(Ok(Vec::new()), ffi::stop_recording)
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        if let Some(callback) = self.0.take() {
            // A destructor has nobody to tell.
            let _ = ffi::stop_recording(callback);
        }
    }
}
