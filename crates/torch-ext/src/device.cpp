// Streams and events of a GPU, through libtorch's own table of devices: compiled without CUDA, empty until its CUDA half is loaded.

#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <omp.h>

#include <memory>

#include "bridge.h"

namespace densely {
namespace {

using c10::impl::VirtualGuardImpl;

c10::Device cuda(int8_t index) { return {c10::DeviceType::CUDA, index}; }

struct SideStream {
  c10::Stream own, before;
};

struct Timer {
  c10::Event start{c10::DeviceType::CUDA, c10::EventFlag::BACKEND_DEFAULT};
  c10::Event stop{c10::DeviceType::CUDA, c10::EventFlag::BACKEND_DEFAULT};
};

thread_local std::vector<std::string>* recorded = nullptr;

}  // namespace

size_t enter_side_stream(int8_t index) {
  const VirtualGuardImpl device(c10::DeviceType::CUDA);
  device.synchronizeDevice(index);
  const c10::Stream own = device.getStreamFromGlobalPool(cuda(index), false);
  return reinterpret_cast<size_t>(new SideStream{own, device.exchangeStream(own)});
}

void leave_side_stream(size_t side) {
  const std::unique_ptr<SideStream> stream(reinterpret_cast<SideStream*>(side));
  const VirtualGuardImpl device(c10::DeviceType::CUDA);
  device.synchronizeStream(stream->own);
  device.exchangeStream(stream->before);
}

size_t start_timer(int8_t index) {
  auto timer = std::make_unique<Timer>();
  timer->start.record(VirtualGuardImpl(c10::DeviceType::CUDA).getStream(cuda(index)));
  return reinterpret_cast<size_t>(timer.release());
}

void stop_timer(size_t timer, int8_t index) {
  reinterpret_cast<Timer*>(timer)->stop.record(VirtualGuardImpl(c10::DeviceType::CUDA).getStream(cuda(index)));
}

double read_timer(size_t timer) {
  auto* events = reinterpret_cast<Timer*>(timer);
  events->stop.synchronize();
  return events->start.elapsedTime(events->stop);
}

void free_timer(size_t timer) { delete reinterpret_cast<Timer*>(timer); }

size_t record_operations() {
  TORCH_CHECK(recorded == nullptr, "operations are recorded already on this thread");
  recorded = new std::vector<std::string>;
  return at::addThreadLocalCallback(at::RecordFunctionCallback([](const at::RecordFunction& function) -> std::unique_ptr<at::ObserverContext> {
                                      if (recorded != nullptr) recorded->emplace_back(function.name());
                                      return nullptr;
                                    }).scopes({at::RecordScope::FUNCTION}));
}

rust::Vec<rust::String> stop_recording(size_t callback) {
  at::removeCallback(callback);
  const std::unique_ptr<std::vector<std::string>> names(recorded);
  recorded = nullptr;
  rust::Vec<rust::String> found;
  if (names != nullptr) {
    for (const std::string& name : *names) found.push_back(name);
  }
  return found;
}

void compute_alone() {
  // libtorch sets a thread's number once, at its first use: have that behind, or it would undo this. Its own setter is for the whole process.
  at::get_num_threads();
  omp_set_num_threads(1);
}

}  // namespace densely
