// The products of layers on a tile of rows that lies in a core's cache; see kernels.h for how they are compiled and picked. f32 alone.
#pragma once

namespace densely {

/// A matrix of which single values are read, with any strides.
struct Left {
  const float* data;
  long row, col;
};

/// A matrix of whole vectors, 16 values or a multiple of them in each row.
struct Right {
  const float* data;
  long row;
};

struct TrunkKernels {
  /// out [rows, cols] = left [rows, inner] right [inner, cols], or with `add` onto what stands there; sums start at 0 in either case. cols
  /// are a multiple of 16.
  void (*multiply)(float* out, long out_row, Left left, Right right, long rows, long inner, long cols, bool add);
};

#define DENSELY_TRUNK_KERNELS(level) \
  namespace level {                  \
  extern const TrunkKernels trunk;   \
  }
DENSELY_TRUNK_KERNELS(baseline)
#ifdef DENSELY_X86
DENSELY_TRUNK_KERNELS(avx2)
DENSELY_TRUNK_KERNELS(avx512)
#endif

}  // namespace densely
