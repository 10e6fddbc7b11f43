// CUDA graphs, in a library of their own: libtorch's CUDA half is loaded while the program runs, so nothing that is linked may need
// it. Compiled where CUDA's headers are found (build.rs); `cuda.rs` keeps the library inside the program and loads it from memory.
// Every function returns null, or a message that the caller frees with `densely_graph_forget`.

#include <ATen/cuda/CUDAGraph.h>

#include <cstdlib>
#include <cstring>
#include <exception>

namespace {

template <typename F>
char* guarded(F work) {
  try {
    work();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("unknown error");
  }
}

at::cuda::CUDAGraph* graph(void* handle) { return static_cast<at::cuda::CUDAGraph*>(handle); }

}  // namespace

extern "C" {

/// Starts recording the work of this thread's current stream, which must not be the default one.
char* densely_graph_begin(void** handle) {
  *handle = nullptr;
  return guarded([&] {
    auto* made = new at::cuda::CUDAGraph();
    *handle = made;
    made->capture_begin();
  });
}

char* densely_graph_end(void* handle) {
  return guarded([&] { graph(handle)->capture_end(); });
}

char* densely_graph_replay(void* handle) {
  return guarded([&] { graph(handle)->replay(); });
}

/// Also ends a graph whose recording failed.
char* densely_graph_free(void* handle) {
  return guarded([&] { delete graph(handle); });
}

void densely_graph_forget(char* message) { std::free(message); }

}  // extern "C"
