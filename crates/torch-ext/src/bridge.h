// What libtorch exports and tch does not bind. Functions take the numbers of c10::DeviceType and c10::ScalarType.
#pragma once
#include <cstdint>

namespace densely {

bool autocast_enabled(int8_t device);
int8_t autocast_dtype(int8_t device);
void set_autocast(int8_t device, bool enabled, int8_t dtype);
void enter_autocast();
void leave_autocast();

}  // namespace densely
