// Loops of embedding tables' optimiser steps; see kernels.h for how they are compiled and picked. f32 alone.
#pragma once

namespace densely {

/// A gradient before it is scaled: g + l2 w + l1 sign(w), where g is 0 for a null pointer.
struct Penalty {
  float l1, l2;
};

/// One step on some values: the gradient times `scale`, then Adam (m: first moment, v: second) or Adagrad (v: sum of squares).
struct TableStep {
  bool adagrad;
  float scale, keep1, add1, keep2, add2;  // β1, 1 - β1, β2, 1 - β2
  float step;                             // lr / (1 - β1^t), or lr
  float root;                             // √(1 - β2^t)
  float eps;
};

struct TableKernels {
  /// Σ (g + l2 w + l1 sign(w))² over n values.
  double (*squares)(const float* w, const float* g, long n, Penalty penalty);
  void (*step)(float* w, const float* g, float* m, float* v, long n, Penalty penalty, TableStep numbers);
};

#define DENSELY_TABLE_KERNELS(level) \
  namespace level {                  \
  extern const TableKernels tables;  \
  }
DENSELY_TABLE_KERNELS(baseline)
#ifdef DENSELY_X86
DENSELY_TABLE_KERNELS(avx2)
DENSELY_TABLE_KERNELS(avx512)
#endif

}  // namespace densely
