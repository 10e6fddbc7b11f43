#include "bridge.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

namespace densely {

namespace {
at::DeviceType device_type(int8_t device) { return static_cast<at::DeviceType>(device); }
}  // namespace

bool autocast_enabled(int8_t device) { return at::autocast::is_autocast_enabled(device_type(device)); }

int8_t autocast_dtype(int8_t device) {
  return static_cast<int8_t>(at::autocast::get_autocast_dtype(device_type(device)));
}

void set_autocast(int8_t device, bool enabled, int8_t dtype) {
  at::autocast::set_autocast_enabled(device_type(device), enabled);
  at::autocast::set_autocast_dtype(device_type(device), static_cast<at::ScalarType>(dtype));
}

void enter_autocast() { at::autocast::increment_nesting(); }

// The cache of cast weights lives until the outermost guard ends, as in PyTorch.
void leave_autocast() {
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
}

bool grad_enabled() { return at::GradMode::is_enabled(); }

size_t enter_inference() { return reinterpret_cast<size_t>(new c10::InferenceMode(true)); }

void leave_inference(size_t guard) { delete reinterpret_cast<c10::InferenceMode*>(guard); }

}  // namespace densely
