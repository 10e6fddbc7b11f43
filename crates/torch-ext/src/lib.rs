//! What libtorch has and tch lacks, and the few system calls that need `unsafe`: the only C++ and the only
//! `unsafe` of the workspace.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::path::Path;

use tch::{Device, Kind, Tensor};

pub use memmap2::Mmap;

pub mod activations;
#[expect(unreachable_pub, reason = "cxx writes the items")]
#[expect(clippy::too_many_arguments, reason = "the C++ side takes no structs")]
mod bridge;
pub mod cuda;
pub mod fused;
pub mod grids;
pub mod modulated;
pub mod optim;
pub mod pixels;
pub mod pool;
pub mod profile;
pub mod rays;
pub mod rows;
pub mod sine;
pub mod sparse;
pub mod tables;
pub mod threads;
mod trunk;

use bridge::ffi;

/// Where the C++ tensor lies that `xs` owns.
fn address(xs: &Tensor) -> usize {
    xs.as_ptr() as usize
}

/// Takes over a tensor that C++ made.
///
/// # Safety
/// A number in `made` must be the address of an `at::Tensor` from `new`, which nobody else owns.
unsafe fn owned(made: Result<usize, cxx::Exception>) -> Result<Tensor, String> {
    let pointer = made.map_err(|e| e.what().to_owned())?;
    // SAFETY: the caller's promise is the one that `from_ptr` asks for.
    Ok(unsafe { Tensor::from_ptr(pointer as *mut _) })
}

/// While it lives, matrix products and convolutions of this thread on one device type run in a lower
/// precision, by libtorch's own list of operations; parameters and everything else keep their kind.
///
/// tch's `autocast` knows only CUDA and half precision; this one takes any kind, on the CPU too. Guards nest;
/// the last one to end restores what was before the first.
#[derive(Debug)]
#[must_use = "autocast ends when the guard is dropped"]
pub struct Autocast {
    device: i8,
    enabled_before: bool,
    dtype_before: i8,
}

impl Autocast {
    /// Starts autocasting to `kind` (`BFloat16` or `Half`) on the type of `device`.
    ///
    /// # Errors
    /// A sentence, when libtorch knows no autocast for the device or kind.
    pub fn new(device: Device, kind: Kind) -> Result<Self, String> {
        // The numbers of c10::ScalarType.
        let dtype = match kind {
            Kind::Half => 5,
            Kind::BFloat16 => 15,
            other => return Err(format!("autocast takes BFloat16 or Half, got {other:?}")),
        };
        let text = |e: cxx::Exception| e.what().to_owned();
        let device = match device {
            Device::Cuda(_) => 1,
            _ => 0,
        };
        let guard = Self {
            device,
            enabled_before: ffi::autocast_enabled(device).map_err(text)?,
            dtype_before: ffi::autocast_dtype(device).map_err(text)?,
        };
        ffi::enter_autocast().map_err(text)?;
        ffi::set_autocast(device, true, dtype).map_err(text)?;
        Ok(guard)
    }
}

/// Whether CPU autocast to f16 is on, on this thread.
fn casts_to_half() -> bool {
    matches!(
        (ffi::autocast_enabled(0), ffi::autocast_dtype(0)),
        (Ok(true), Ok(5))
    )
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // Restoring what was set before cannot fail, and a destructor has nobody to tell.
        let _ = ffi::set_autocast(self.device, self.enabled_before, self.dtype_before);
        let _ = ffi::leave_autocast();
    }
}

/// While it lives, this thread computes for prediction only: no gradients, and tensors without the bookkeeping
/// that gradients need. Such tensors must not enter a later training step.
#[derive(Debug)]
#[must_use = "inference mode ends when the guard is dropped"]
pub struct InferenceMode {
    guard: usize,
    /// libtorch's guard belongs to the thread that made it.
    _thread: PhantomData<*const ()>,
}

impl InferenceMode {
    /// Starts inference mode on this thread. Guards nest and end in the opposite order.
    #[expect(clippy::new_without_default, reason = "a guard is not a default value")]
    pub fn new() -> Self {
        // Allocating a few bytes is all that could fail.
        let guard = ffi::enter_inference().unwrap_or(0);
        Self {
            guard,
            _thread: PhantomData,
        }
    }
}

impl Drop for InferenceMode {
    fn drop(&mut self) {
        // SAFETY: the guard was made on this thread, which it cannot leave, and is dropped once; 0 is null.
        unsafe { ffi::leave_inference(self.guard) };
    }
}

/// Gives memory of freed CPU tensors back to the system.
///
/// This crate keeps blocks of a megabyte and more for the next tensor, because having their pages made anew takes a noticeable part of a
/// training step: up to 1 GiB of them, and up to 4 GiB where the process has needed as much at a time before. `DENSELY_FAST=0` leaves that
/// to libtorch.
pub fn release_memory() {
    ffi::release_memory();
}

/// Bytes of freed CPU tensors that are kept for the next; see [`release_memory`].
pub fn idle_memory() -> usize {
    ffi::idle_memory()
}

/// Maps a file into memory, read only.
///
/// # Errors
/// The system's, when the file cannot be opened or mapped (an empty file cannot).
pub fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the map is read only, and the weight files it is used for are replaced by rename, never
    // written in place, by this project. Another program that truncates the file while it is read could end
    // this process with a signal; callers copy out of the map at once to keep that window short.
    unsafe { Mmap::map(&file) }
}

/// Loads libtorch's CUDA half from the folder of the library search path, so that a program linked with only
/// the CPU half can use a GPU. Must come before the first question to libtorch about CUDA, whose answer it
/// remembers; further calls do nothing.
///
/// # Errors
/// The loader's message when there is no CUDA half, or one of its own libraries is missing.
pub fn load_cuda() -> Result<(), String> {
    // SAFETY: the name is a constant C string; loading runs the library's constructors, which register CUDA
    // with libtorch and touch nothing of ours. The handle is kept for the life of the process on purpose.
    let handle = unsafe {
        libc::dlopen(
            c"libtorch_cuda.so".as_ptr(),
            libc::RTLD_NOW | libc::RTLD_GLOBAL,
        )
    };
    if handle.is_null() {
        return Err(loader_message());
    }
    Ok(())
}

/// What the loader says of its last failure.
fn loader_message() -> String {
    // SAFETY: dlerror returns null or a C string that is valid until the next dl call of this thread.
    let message = unsafe {
        let message = libc::dlerror();
        if message.is_null() {
            c"unknown error"
        } else {
            CStr::from_ptr(message)
        }
    };
    message.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autocast_runs_products_in_bf16_on_the_cpu_and_ends() {
        let xs = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
        {
            let _outer =
                Autocast::new(Device::Cpu, Kind::BFloat16).expect("bf16 is known on the CPU");
            assert_eq!(xs.matmul(&xs).kind(), Kind::BFloat16);
            {
                let _inner = Autocast::new(Device::Cpu, Kind::BFloat16).expect("guards nest");
            }
            assert_eq!(xs.matmul(&xs).kind(), Kind::BFloat16);
        }
        assert_eq!(xs.matmul(&xs).kind(), Kind::Float);
    }

    #[test]
    fn large_blocks_are_given_out_again_and_never_twice() {
        let made = |rows: i64| Tensor::ones([rows, 1024], (Kind::Float, Device::Cpu));
        let address = {
            let first = made(1000);
            first.data_ptr() as usize
        };
        let again = made(990); // within an eighth of the size
        assert_eq!(again.data_ptr() as usize, address);
        let other = made(1000);
        assert_ne!(other.data_ptr(), again.data_ptr());
        let workers = (0..4).map(|worker| {
            std::thread::spawn(move || {
                for round in 0..50 {
                    let xs =
                        Tensor::full([300 + 40 * round, 1024], worker, (Kind::Int64, Device::Cpu));
                    assert_eq!(xs.min().int64_value(&[]), worker);
                    assert_eq!(xs.max().int64_value(&[]), worker);
                    drop(xs);
                }
            })
        });
        for worker in workers.collect::<Vec<_>>() {
            worker.join().expect("no block has two owners");
        }
        drop((again, other));
        release_memory();
        assert_eq!(made(1000).sum(Kind::Double).double_value(&[]), 1_024_000.0);
        let huge = Tensor::f_zeros([1 << 50], (Kind::Double, Device::Cpu));
        assert!(
            huge.is_err(),
            "memory that nobody has is an error and not the end"
        );

        // Nobody writes to these, so that they take no memory. Other tests hold a few megabytes beside them.
        let half_gib = || Tensor::empty([1 << 27], (Kind::Float, Device::Cpu));
        let needed = |count: usize| {
            release_memory();
            drop((0..count).map(|_| half_gib()).collect::<Vec<_>>());
            idle_memory() as f64 / f64::from(1 << 30)
        };
        for (count, kept) in [(1, 0.5), (6, 3.0), (10, 4.0)] {
            let idle = needed(count);
            assert!((idle - kept).abs() < 0.25, "{count} half GiB, {idle} kept");
        }
        let other_size = Tensor::empty([1 << 28], (Kind::Float, Device::Cpu));
        assert!(idle_memory() <= 4 << 30);
        drop(other_size);
        release_memory();
    }

    #[test]
    fn an_absent_file_is_an_error() {
        assert!(map_file(Path::new("/no/such/file")).is_err());
    }
}
