// Normed layers on a tile of rows whose scale and shift are looked up in a grid, forward and backward; see kernels.h for how they are compiled
// and picked. f32 alone.
#pragma once

namespace densely {

/// γ n + β, with a ReLU behind it or not, of n = (u - mean) r, u = p + bias, where p is a layer's product, mean and r = 1 / √(variance + eps)
/// are those of the row, and γ and β are interpolated in `grid` [2, height, width] at the row's coordinates in [-1, 1]: the first one runs
/// along the width, the second along the height, -1 and 1 are the middles of the first and last values, and what is beyond them is theirs.
struct Modulated {
  const float* bias;
  const float* grid;
  long height, width;
  float eps;
  bool relu;
};

struct ModulatedKernels {
  /// y: p comes and the activation goes; kept and inverse, unless null, get n and r. The rows of y are whole vectors.
  void (*forward)(float* y, long y_row, float* kept, long kept_row, float* inverse, const float* coords, Modulated layer, long rows, long cols);
  /// From n and r: y = the activation again; d: the gradient of y comes and that of p goes; sums[c] += that of the bias, grid_sums += that of
  /// the grid.
  void (*backward)(float* d, float* y, long row, float* sums, float* grid_sums, const float* kept, long kept_row, const float* inverse,
                   const float* coords, Modulated layer, long rows, long cols);
};

#define DENSELY_MODULATED_KERNELS(level)   \
  namespace level {                        \
  extern const ModulatedKernels modulated; \
  }
DENSELY_MODULATED_KERNELS(baseline)
#ifdef DENSELY_X86
DENSELY_MODULATED_KERNELS(avx2)
DENSELY_MODULATED_KERNELS(avx512)
#endif

}  // namespace densely
