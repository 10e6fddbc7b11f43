// The sine of layers on a tile of rows, forward and backward; see kernels.h for how they are compiled and picked. f32 alone.
#pragma once

namespace densely {

/// sin(argument · u), or with `finer` sin(argument (|u| + 1) u) whose factor has no gradient, of u = product · p + bias, where p is a
/// layer's product.
struct Sine {
  const float* bias;
  float product, argument;
  bool finer;
};

struct SineKernels {
  /// y: p comes and the sine goes; kept, unless null, gets u. cols are a multiple of 16, as those of `bias`.
  void (*forward)(float* y, long y_row, float* kept, long kept_row, Sine sine, long rows, long cols);
  /// From u: y = the sine again; d: the gradient of y comes and that of p goes; sums[c] += that of the bias.
  void (*backward)(float* d, float* y, long row, float* sums, const float* kept, long kept_row, Sine sine, long rows, long cols);
};

#define DENSELY_SINE_KERNELS(level) \
  namespace level {                 \
  extern const SineKernels sine;    \
  }
DENSELY_SINE_KERNELS(baseline)
#ifdef DENSELY_X86
DENSELY_SINE_KERNELS(avx2)
DENSELY_SINE_KERNELS(avx512)
#endif

}  // namespace densely
