// Loops of a bilinear form of two inputs, head by head; see kernels.h for how they are compiled and picked. f32 alone.
#pragma once

namespace densely {

/// x: [rows, heads · left], y: [rows, heads · right].
struct Bilinear {
  long heads, left, right;
};

/// Weights of the form [heads, left, right], and of the two linear terms, [heads · left] and [heads · right].
template <typename T>
struct BilinearWeights {
  T *form, *left, *right;
};

/// Tiles of so many rows pass through at once, turned: rows are the lanes, so that heads of any width fill the vectors.
constexpr long kBilinearRows = 64;

struct BilinearKernels {
  /// Values that a tile needs for itself.
  long (*scratch)(Bilinear size);
  /// out = Σ_h x_h W_h y_h + left x + right y, of at most kBilinearRows rows, to which the pointers point.
  void (*forward)(float* out, const float* x, const float* y, BilinearWeights<const float> weights, Bilinear size, long rows, float* scratch);
  /// dx, dy, and onto `grads` those of the weights.
  void (*backward)(float* dx, float* dy, BilinearWeights<float> grads, const float* dout, const float* x, const float* y,
                   BilinearWeights<const float> weights, Bilinear size, long rows, float* scratch);
};

#define DENSELY_BILINEAR_KERNELS(level)  \
  namespace level {                      \
  extern const BilinearKernels bilinear; \
  }
DENSELY_BILINEAR_KERNELS(baseline)
#ifdef DENSELY_X86
DENSELY_BILINEAR_KERNELS(avx2)
DENSELY_BILINEAR_KERNELS(avx512)
#endif

}  // namespace densely
