// Loops over contiguous memory that the fused operations are made of. `kernels.cpp` is compiled once per instruction set, into a
// namespace of its own, and `kernels()` picks one at run time. Nothing here includes a header with inline functions: the
// linker could keep the copy that needs AVX-512 for the whole program.
#pragma once

namespace densely {

/// The upper half of a float.
struct Bf16 {
  unsigned short bits;
};

/// Dropout as a function of (seed, row, column): no mask is stored, and the same seed drops the same places.
struct Dropout {
  unsigned long long seed;
  unsigned threshold;  // of 2^32; 0 keeps everything
  double scale;        // 1 / (1 - p)
};

/// P: kind of parameters and sums. A: kind of activations.
template <typename P, typename A>
struct Kernels {
  /// u = x ∘ r, row by row. u may be x.
  void (*scale)(A* u, const A* x, const P* r, long rows, long cols);
  /// y = dropout(relu(y ∘ s + b)) in place; s may be null.
  void (*finish)(A* y, const P* s, const P* b, long rows, long cols, Dropout dropout, long first_row);
  /// g = dh where h > 0 (times the dropout's scale), db += Σ g, gs = g ∘ s; s may be null.
  void (*gate)(A* g, A* gs, P* db, const A* dh, const A* h, const P* s, long rows, long cols, P scale);
  /// From G = gᵀ x of one member: dw += s rᵀ ∘ G, dr += Σ_out s w G, ds += Σ_in r w G; r, s (and with them dr, ds) may be null.
  void (*combine)(P* dw, P* dr, P* ds, const A* gram, const P* w, const P* r, const P* s, long outputs, long inputs);
  /// sum += dx ∘ r: the gradient of an input that all members share; r may be null.
  void (*add_scaled)(P* sum, const A* dx, const P* r, long rows, long cols);
  /// out[row · stride + o] = h[row] · w[o] + b[o]; w: [outputs, cols].
  void (*head)(P* out, long stride, const A* h, const P* w, const P* b, long rows, long cols, long outputs);
};

/// Sizes of a piecewise-linear embedding.
struct Piecewise {
  long features, columns, width;
  bool relu;
};

template <typename P>
struct PiecewiseKernels {
  /// y[row, feature] = act(table[j] + fraction · w[j]) + (w0 x + b0), rows first to last; w0, b0 may be null.
  void (*forward)(P* y, const P* x, const P* slope, const P* shift, const long* bins, const P* table, const P* w, const P* w0,
                  const P* b0, Piecewise size, long first, long last);
  /// Of one feature over all rows: steps[j] += g, slopes[j] += fraction · g (both [columns, width]), dw0 += x dy, db0 += dy,
  /// dx = gradient of the input; dw0 with db0, and dx, may be null.
  void (*backward)(P* steps, P* slopes, P* dw0, P* db0, P* dx, const P* dy, const P* x, const P* slope, const P* shift,
                   const long* bins, const P* table, const P* w, const P* w0, Piecewise size, long rows, long feature);
};

#define DENSELY_KERNELS(level)                       \
  namespace level {                                  \
  extern const Kernels<float, float> f32;            \
  extern const Kernels<double, double> f64;          \
  extern const Kernels<float, Bf16> bf16;            \
  extern const PiecewiseKernels<float> piecewise_f32;  \
  extern const PiecewiseKernels<double> piecewise_f64; \
  }
DENSELY_KERNELS(baseline)
#ifdef DENSELY_X86
DENSELY_KERNELS(avx2)
DENSELY_KERNELS(avx512)
#endif

}  // namespace densely
