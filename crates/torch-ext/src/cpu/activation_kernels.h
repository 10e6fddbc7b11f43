// Loops of activations that take the statistics of their columns, and of dropout; see kernels.h for how they are compiled and picked. f32
// alone.
#pragma once
#include "kernels.h"

namespace densely {

/// Rows [first, last) of `cols` values each.
struct Rows {
  long first, last, cols;
};

/// What a batch norm makes of x: γ (x - mean) r + β, where r = 1 / √(variance + eps).
struct Normed {
  const float *mean, *r, *gamma, *beta;
};

/// What is added to rows before Dice: row number i has `by_step[i % steps]` and, unless that is null, `by_row[i / steps]`.
struct Addends {
  const float *by_step, *by_row;
  long steps;
};

struct ActivationKernels {
  /// sums[c] += Σ x, sums[cols + c] += Σ x², over rows.
  void (*column_sums)(double* sums, const float* x, Rows rows);

  /// y = x (α + (1 - α) σ((x - mean) r)).
  void (*dice)(float* y, const float* x, const float* mean, const float* r, const float* alpha, Rows rows);
  /// As `dice` of x + what is added, in place.
  void (*dice_onto)(float* x, Addends added, const float* mean, const float* r, const float* alpha, Rows rows);
  /// With s the gradient at x̂ = (x - mean) r: sums[0] += Σ dy x (1 - p), sums[1] += Σ s, sums[2] += Σ s x̂; [3, cols].
  void (*dice_sums)(float* sums, const float* dy, const float* x, const float* mean, const float* r, const float* alpha, Rows rows);
  /// dx = dy (α + (1 - α) p) + r (s - level - x̂ tilt).
  void (*dice_backward)(float* dx, const float* dy, const float* x, const float* mean, const float* r, const float* alpha, const float* level,
                        const float* tilt, Rows rows);

  /// y = dropout(relu(norm(x))).
  void (*norm_relu)(float* y, const float* x, Normed norm, Dropout dropout, Rows rows);
  /// With s = scale · dy where y > 0, else 0: sums[0] += Σ s, sums[1] += Σ s x̂; [2, cols].
  void (*norm_relu_sums)(float* sums, const float* dy, const float* y, const float* x, Normed norm, float scale, Rows rows);
  /// dx = γ r (s - level - x̂ tilt).
  void (*norm_relu_backward)(float* dx, const float* dy, const float* y, const float* x, Normed norm, float scale, const float* level,
                             const float* tilt, Rows rows);

  /// y = dropout(x) of the first n values of a row.
  void (*drop)(float* y, const float* x, long n, Dropout dropout, long row);
};

#define DENSELY_ACTIVATION_KERNELS(level)      \
  namespace level {                            \
  extern const ActivationKernels activations;  \
  }
DENSELY_ACTIVATION_KERNELS(baseline)
#ifdef DENSELY_X86
DENSELY_ACTIVATION_KERNELS(avx2)
DENSELY_ACTIVATION_KERNELS(avx512)
#endif

}  // namespace densely
