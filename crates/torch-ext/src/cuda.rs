//! GPU work that is recorded once and repeated, streams of its own, and times that the GPU measures itself.

use std::ffi::{CStr, c_char, c_void};
use std::marker::PhantomData;
use std::sync::OnceLock;

use crate::bridge::ffi;

/// While it lives, this thread's work on one GPU goes to a stream of its own. A recording needs that: the default
/// stream cannot be recorded.
#[derive(Debug)]
#[must_use = "work goes to the default stream again when the guard is dropped"]
pub struct SideStream {
    side: usize,
    /// The current stream belongs to the thread.
    _thread: PhantomData<*const ()>,
}

impl SideStream {
    /// Waits for the GPU `index` and moves this thread's work to another stream of it.
    ///
    /// # Errors
    /// A sentence, when there is no such GPU.
    pub fn new(index: usize) -> Result<Self, String> {
        let side = ffi::enter_side_stream(small(index)?).map_err(text)?;
        Ok(Self {
            side,
            _thread: PhantomData,
        })
    }
}

impl Drop for SideStream {
    fn drop(&mut self) {
        // SAFETY: made on this thread, which it cannot leave, and dropped once. A GPU that fails here fails its next
        // caller too.
        let _ = unsafe { ffi::leave_side_stream(self.side) };
    }
}

/// Times a piece of work on a GPU by the GPU's own clock, without waiting before the end.
#[derive(Debug)]
pub struct Timer {
    timer: usize,
    index: i8,
}

impl Timer {
    /// Starts behind the work that this thread has given to the GPU `index` so far.
    ///
    /// # Errors
    /// A sentence, when there is no such GPU.
    pub fn start(index: usize) -> Result<Self, String> {
        let index = small(index)?;
        let timer = ffi::start_timer(index).map_err(text)?;
        Ok(Self { timer, index })
    }

    /// Waits for the work given since the start; its milliseconds.
    ///
    /// # Errors
    /// libtorch's, when the GPU failed.
    pub fn milliseconds(self) -> Result<f64, String> {
        // SAFETY: the timer is alive until `self` is dropped.
        unsafe {
            ffi::stop_timer(self.timer, self.index).map_err(text)?;
            ffi::read_timer(self.timer).map_err(text)
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: made by `start` and freed only here.
        let _ = unsafe { ffi::free_timer(self.timer) };
    }
}

/// GPU work that was recorded and can be repeated in one call, without the cost of asking for every operation.
///
/// The work reads and writes the same memory each time: put new inputs into the tensors that it was recorded with.
#[derive(Debug)]
pub struct Graph {
    handle: *mut c_void,
    library: &'static Library,
}

impl Graph {
    /// Whether graphs can be recorded at all.
    ///
    /// # Errors
    /// Why not.
    pub fn available() -> Result<(), String> {
        library().map(|_| ())
    }

    /// Records `work`, which is not carried out: its tensors hold nothing before the first [`replay`](Self::replay).
    ///
    /// Needs a [`SideStream`], and work that was done before (so that libtorch's libraries have set themselves up), asks
    /// the GPU for nothing back and draws random numbers from libtorch's own generator only.
    /// # Errors
    /// Those of `work`, made of a sentence by `failed` where libtorch cannot record it.
    pub fn record<T, E>(
        work: impl FnOnce() -> Result<T, E>,
        failed: impl Fn(String) -> E,
    ) -> Result<(Self, T), E> {
        let library = library().map_err(&failed)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the function is that of graph.cpp, the pointer is to a place of ours.
        let begun = unsafe { library.said((library.begin)(&raw mut handle)) };
        let graph = Self { handle, library };
        begun.map_err(&failed)?;
        let made = work();
        // SAFETY: the handle is that of a begun graph.
        let ended = unsafe { library.said((library.end)(graph.handle)) };
        let made = made?;
        ended.map_err(failed)?;
        Ok((graph, made))
    }

    /// Does the recorded work again, behind what the current stream was given before.
    ///
    /// # Errors
    /// libtorch's.
    pub fn replay(&self) -> Result<(), String> {
        // SAFETY: the handle is that of a recorded graph, alive until `self` is dropped.
        unsafe { self.library.said((self.library.replay)(self.handle)) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: the handle is alive and freed only here.
            let _ = unsafe { self.library.said((self.library.free)(self.handle)) };
        }
    }
}

type OnHandle = unsafe extern "C" fn(*mut c_void) -> *mut c_char;

/// The functions of graph.cpp.
#[derive(Debug)]
struct Library {
    begin: unsafe extern "C" fn(*mut *mut c_void) -> *mut c_char,
    end: OnHandle,
    replay: OnHandle,
    free: OnHandle,
    forget: unsafe extern "C" fn(*mut c_char),
}

impl Library {
    /// # Safety
    /// `message` is what a function of this library returned.
    unsafe fn said(&self, message: *mut c_char) -> Result<(), String> {
        if message.is_null() {
            return Ok(());
        }
        // SAFETY: not null, so a C string of the library's, which is ours to free.
        unsafe {
            let text = CStr::from_ptr(message).to_string_lossy().into_owned();
            (self.forget)(message);
            Err(text)
        }
    }
}

fn library() -> Result<&'static Library, String> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    LIBRARY.get_or_init(load).as_ref().map_err(Clone::clone)
}

#[cfg(not(cuda_graphs))]
fn load() -> Result<Library, String> {
    Err(
        "this program was built without CUDA's headers; run `cargo xtask setup` and build it again"
            .to_owned(),
    )
}

#[cfg(cuda_graphs)]
fn load() -> Result<Library, String> {
    use std::io::Write as _;
    use std::os::fd::{AsRawFd, FromRawFd};

    /// graph.cpp, compiled: carried along, so that a program stays one file.
    const CODE: &[u8] = include_bytes!(env!("DENSELY_CUDA_LIBRARY"));

    crate::load_cuda()?;
    let unwritten = |error: std::io::Error| format!("CUDA graphs cannot be loaded: {error}");
    // SAFETY: the name is a constant C string; the descriptor, if there is one, is owned by the file.
    let mut file = unsafe {
        let descriptor = libc::memfd_create(c"densely_cuda".as_ptr(), libc::MFD_CLOEXEC);
        if descriptor < 0 {
            return Err(unwritten(std::io::Error::last_os_error()));
        }
        std::fs::File::from_raw_fd(descriptor)
    };
    file.write_all(CODE).map_err(unwritten)?;
    let path = format!("/proc/self/fd/{}\0", file.as_raw_fd());
    // SAFETY: the path ends with a zero; loading resolves every name against libtorch's CUDA half, loaded above for
    // all, and runs no constructor of ours. The handle is kept for the life of the process.
    let handle = unsafe { libc::dlopen(path.as_ptr().cast(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return Err(crate::loader_message());
    }
    let find = |name: &CStr| {
        // SAFETY: the handle is a loaded library's.
        let symbol = unsafe { libc::dlsym(handle, name.as_ptr()) };
        if symbol.is_null() {
            Err(format!("{} is missing", name.to_string_lossy()))
        } else {
            Ok(symbol)
        }
    };
    // SAFETY: the functions have the types that graph.cpp gives them.
    unsafe {
        Ok(Library {
            begin: std::mem::transmute::<
                *mut c_void,
                unsafe extern "C" fn(*mut *mut c_void) -> *mut c_char,
            >(find(c"densely_graph_begin")?),
            end: std::mem::transmute::<*mut c_void, OnHandle>(find(c"densely_graph_end")?),
            replay: std::mem::transmute::<*mut c_void, OnHandle>(find(c"densely_graph_replay")?),
            free: std::mem::transmute::<*mut c_void, OnHandle>(find(c"densely_graph_free")?),
            forget: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_char)>(find(
                c"densely_graph_forget",
            )?),
        })
    }
}

fn small(index: usize) -> Result<i8, String> {
    i8::try_from(index).map_err(|_| format!("there is no GPU {index}"))
}

fn text(e: cxx::Exception) -> String {
    e.what().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_everything_says_why_and_nothing_ends_the_program() {
        if tch::Cuda::is_available() {
            return;
        }
        assert!(SideStream::new(0).is_err());
        assert!(Timer::start(0).is_err());
        assert!(SideStream::new(1000).is_err_and(|e| e.contains("1000")));
        let recorded = Graph::record(|| Ok::<_, String>(()), |why| why);
        assert!(recorded.is_err_and(|why| !why.is_empty()));
    }

    #[test]
    #[ignore = "needs CUDA"]
    fn a_recorded_step_reads_new_inputs_and_draws_new_numbers() -> Result<(), String> {
        crate::load_cuda()?;
        let device = tch::Device::Cuda(0);
        let _side = SideStream::new(0)?;
        let mut xs = tch::Tensor::ones([4], (tch::Kind::Float, device));
        let work = || Ok::<_, String>((&xs * 2.0, tch::Tensor::rand_like(&xs)));
        let _ = work()?;
        let (graph, (doubled, random)) = Graph::record(work, |why| why)?;
        graph.replay()?;
        assert_eq!(doubled.sum(tch::Kind::Float).double_value(&[]), 8.0);
        let first = random.copy();
        let _ = xs.fill_(5.0);
        graph.replay()?;
        assert_eq!(doubled.sum(tch::Kind::Float).double_value(&[]), 40.0);
        assert_ne!(first, random);
        Ok(())
    }
}
