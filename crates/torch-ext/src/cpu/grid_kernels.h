// Loops of hash grids; see kernels.h for how they are compiled and picked. f32 alone.
#pragma once
#include "kernels.h"

namespace densely {

/// Most coordinates of a point, and sizes of its features (1, 2, 4, 8) that have loops.
constexpr int kGridInputs = 4, kGridWidths = 4;

/// A level: a point x lies in cell ⌊x scale + ½⌋, and corner i of a cell has the entry Σ i_d factor_d, or if hashed ⊕ i_d factor_d, in 32 bits
/// and modulo the entries, which are a power of two or at least 8.
struct GridLevel {
  float scale;
  unsigned entries;
  unsigned factors[kGridInputs];
  bool hashed, smooth;
};

/// Loops over n points. Coordinates lie point by point; features of a level, and a level's table, with F values side by side.
struct GridKernels {
  /// y = Σ_corners share · table[entry].
  void (*gather)(float* y, const float* coords, const float* table, long n, GridLevel level);
  /// dtable[entry] += share · dy, for the `count` entries from `first` on alone.
  void (*scatter)(float* dtable, const float* coords, const float* dy, long n, GridLevel level, unsigned first, unsigned count);
  /// dx += Σ_corners ∂share/∂x (table[entry] · dy).
  void (*slope)(float* dx, const float* coords, const float* table, const float* dy, long n, GridLevel level);
  /// Points first to last of n: from level by level, [levels, n, F], to point by point, [n, levels, F], and back.
  void (*join)(float* points, const float* levels, long n, long count, long first, long last);
  void (*split)(float* levels, const float* points, long n, long count, long first, long last);
};

#define DENSELY_GRID_KERNELS(level)                                        \
  namespace level {                                                        \
  extern const GridKernels grids[kGridInputs - 1][kGridWidths];            \
  }
DENSELY_GRID_KERNELS(baseline)
#ifdef DENSELY_X86
DENSELY_GRID_KERNELS(avx2)
DENSELY_GRID_KERNELS(avx512)
#endif

}  // namespace densely
