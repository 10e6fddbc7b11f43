// Loops of sparse dictionaries: which features of a row are active, and sums over those alone; see kernels.h for how they are compiled and picked. f32 alone.
#pragma once

namespace densely {

struct SparseKernels {
  /// Writes the columns, ascending, and values of a row that are above `bound[column]`, or above 0 for a null pointer; gives their number.
  long (*above)(const float* row, const float* bound, long n, int* columns, float* values);
  /// As `above`, of the k largest of row · scale (or of the row, for a null pointer) those above 0; of equal ones the first. The values are the
  /// row's own. `scratch` holds 2 n + 16 values.
  long (*largest)(const float* row, const float* scale, long n, long k, float* scratch, int* columns, float* values);
  /// to[c] = Σ_i values[i] rows[index[i]][c] of rows of d values.
  void (*gather)(float* to, const float* values, const int* index, long count, const float* rows, long d);
  /// to[i] = Σ_c xs[c] rows[index[i]][c].
  void (*dots)(float* to, const float* xs, const int* index, long count, const float* rows, long d);
};

#define DENSELY_SPARSE_KERNELS(level) \
  namespace level {                   \
  extern const SparseKernels sparse;  \
  }
DENSELY_SPARSE_KERNELS(baseline)
#ifdef DENSELY_X86
DENSELY_SPARSE_KERNELS(avx2)
DENSELY_SPARSE_KERNELS(avx512)
#endif

}  // namespace densely
