#include "bridge.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>

#include <cstdlib>

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

namespace {
// Large tensors on huge pages: a training step that allocates 16 MB activations otherwise spends its time in page faults. libtorch reads
// the variable at its first allocation, which comes after the constructors of a program; a value that the user has set stays.
__attribute__((constructor)) void use_huge_pages() { setenv("THP_MEM_ALLOC_ENABLE", "1", 0); }
}  // namespace

}  // namespace densely
