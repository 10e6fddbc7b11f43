// See kernels.h. Plain loops that the compiler turns into vectors; LEVEL names the instruction set.
#include "kernels.h"
#include "random.h"

namespace densely {
namespace LEVEL {
namespace {

inline float load(const float* x) { return *x; }
inline double load(const double* x) { return *x; }
inline float load(const Bf16* x) {
  union { unsigned u; float f; } value;
  value.u = static_cast<unsigned>(x->bits) << 16;
  return value.f;
}
inline void store(float* y, float value) { *y = value; }
inline void store(double* y, double value) { *y = value; }
inline void store(Bf16* y, float value) {  // to nearest, ties to even
  union { float f; unsigned u; } bits;
  bits.f = value;
  unsigned rounded = (bits.u + 0x7fffu + ((bits.u >> 16) & 1u)) >> 16;
  y->bits = static_cast<unsigned short>(value != value ? 0x7fc0u : rounded);
}

template <typename P, typename A>
void scale(A* u, const A* x, const P* r, long rows, long cols) {
  for (long row = 0; row < rows; ++row) {
    for (long c = 0; c < cols; ++c) store(u + row * cols + c, load(x + row * cols + c) * r[c]);
  }
}

template <bool HAS_S, bool DROPS, typename P, typename A>
void finish_as(A* y, const P* s, const P* b, long rows, long cols, Dropout dropout, long first_row) {
  const P kept = static_cast<P>(dropout.scale);
  for (long row = 0; row < rows; ++row) {
    const unsigned long long keys = DROPS ? mix(dropout.seed ^ mix(static_cast<unsigned long long>(first_row + row))) : 0;
    const unsigned key = static_cast<unsigned>(keys), inner = static_cast<unsigned>(keys >> 32);
    A* ys = y + row * cols;
    for (long c = 0; c < cols; ++c) {
      P value = load(ys + c);
      value = HAS_S ? value * s[c] + b[c] : value + b[c];
      value = value < 0 ? 0 : value;  // NaN stays NaN
      if (DROPS) value = column_bits(static_cast<unsigned>(c), key, inner) >= dropout.threshold ? value * kept : 0;
      store(ys + c, value);
    }
  }
}

template <typename P, typename A>
void finish(A* y, const P* s, const P* b, long rows, long cols, Dropout dropout, long first_row) {
  const bool drops = dropout.threshold > 0;
  auto* as = s ? (drops ? finish_as<true, true, P, A> : finish_as<true, false, P, A>)
               : (drops ? finish_as<false, true, P, A> : finish_as<false, false, P, A>);
  as(y, s, b, rows, cols, dropout, first_row);
}

template <typename P, typename A>
void gate(A* __restrict g, A* __restrict gs, P* __restrict db, const A* dh, const A* h, const P* s, long rows, long cols, P factor) {
  for (long row = 0; row < rows; ++row) {
    const long at = row * cols;
    if (s) {
      for (long c = 0; c < cols; ++c) {
        P value = load(h + at + c) <= 0 ? 0 : load(dh + at + c) * factor;
        db[c] += value;
        store(g + at + c, value);
        store(gs + at + c, value * s[c]);
      }
    } else {
      for (long c = 0; c < cols; ++c) {
        P value = load(h + at + c) <= 0 ? 0 : load(dh + at + c) * factor;
        db[c] += value;
        store(g + at + c, value);
      }
    }
  }
}

template <typename P, typename A>
void combine(P* __restrict dw, P* __restrict dr, P* __restrict ds, const A* gram, const P* w, const P* r, const P* s, long outputs,
             long inputs) {
  for (long o = 0; o < outputs; ++o) {
    const A* gs = gram + o * inputs;
    const P* ws = w + o * inputs;
    P* dws = dw + o * inputs;
    const P so = s ? s[o] : 1;
    if (r) {
      P sum = 0;
#pragma omp simd reduction(+ : sum)
      for (long i = 0; i < inputs; ++i) {
        const P value = load(gs + i), through = value * ws[i];
        dws[i] += so * r[i] * value;
        dr[i] += so * through;
        sum += r[i] * through;
      }
      if (ds) ds[o] += sum;
    } else {
      P sum = 0;
#pragma omp simd reduction(+ : sum)
      for (long i = 0; i < inputs; ++i) {
        const P value = load(gs + i);
        dws[i] += so * value;
        sum += value * ws[i];
      }
      if (ds) ds[o] += sum;
    }
  }
}

template <typename P, typename A>
void add_scaled(P* __restrict sum, const A* dx, const P* r, long rows, long cols) {
  for (long row = 0; row < rows; ++row) {
    const long at = row * cols;
    if (r) {
      for (long c = 0; c < cols; ++c) sum[at + c] += load(dx + at + c) * r[c];
    } else {
      for (long c = 0; c < cols; ++c) sum[at + c] += load(dx + at + c);
    }
  }
}

template <typename P, typename A>
void head(P* out, long stride, const A* h, const P* w, const P* b, long rows, long cols, long outputs) {
  for (long row = 0; row < rows; ++row) {
    const A* hs = h + row * cols;
    for (long o = 0; o < outputs; ++o) {
      const P* ws = w + o * cols;
      P sum = 0;
#pragma omp simd reduction(+ : sum)
      for (long c = 0; c < cols; ++c) sum += load(hs + c) * ws[c];
      out[row * stride + o] = sum + b[o];
    }
  }
}

/// The column of the bin that holds x, and how far x has come through it. `bins` of the columns are used: all but the last of them
/// stand first, the last in the last column.
template <typename P>
inline long bin_of(P x, const P* slope, const P* shift, long bins, long columns, P* fraction) {
  int passed = 0;
  for (long t = 0; t < bins - 1; ++t) passed += x * slope[t] + shift[t] >= 1 ? 1 : 0;
  const long column = passed == bins - 1 ? columns - 1 : passed;
  *fraction = x * slope[column] + shift[column];
  return column;
}

template <typename P>
void piecewise_forward(P* __restrict y, const P* x, const P* slope, const P* shift, const long* bins, const P* table, const P* w,
                       const P* w0, const P* b0, Piecewise size, long first, long last) {
  const long width = size.width;
  for (long row = first; row < last; ++row) {
    for (long f = 0; f < size.features; ++f) {
      const P value = x[row * size.features + f];
      P fraction;
      const long column = bin_of(value, slope + f * size.columns, shift + f * size.columns, bins[f], size.columns, &fraction);
      const P* below = table + (f * size.columns + column) * width;
      const P* within = w + (f * size.columns + column) * width;
      P* ys = y + (row * size.features + f) * width;
      if (size.relu) {
        for (long c = 0; c < width; ++c) {
          const P sum = below[c] + fraction * within[c];
          ys[c] = sum < 0 ? 0 : sum;
        }
      } else {
        for (long c = 0; c < width; ++c) ys[c] = below[c] + fraction * within[c];
      }
      if (w0) {
        for (long c = 0; c < width; ++c) ys[c] += w0[f * width + c] * value + b0[f * width + c];
      }
    }
  }
}

template <typename P>
void piecewise_backward(P* __restrict steps, P* __restrict slopes, P* __restrict dw0, P* __restrict db0, P* __restrict dx, const P* dy,
                        const P* x, const P* slope, const P* shift, const long* bins, const P* table, const P* w, const P* w0,
                        Piecewise size, long rows, long f) {
  const long width = size.width;
  slope += f * size.columns;
  shift += f * size.columns;
  table += f * size.columns * width;
  w += f * size.columns * width;
  for (long row = 0; row < rows; ++row) {
    const P value = x[row * size.features + f];
    P fraction;
    const long column = bin_of(value, slope, shift, bins[f], size.columns, &fraction);
    const P* gs = dy + (row * size.features + f) * width;
    const P* below = table + column * width;
    const P* within = w + column * width;
    P* step = steps + column * width;
    P* tilt = slopes + column * width;
    P through = 0;
#pragma omp simd reduction(+ : through)
    for (long c = 0; c < width; ++c) {
      const bool off = size.relu && below[c] + fraction * within[c] <= 0;
      const P g = off ? 0 : gs[c];
      step[c] += g;
      tilt[c] += fraction * g;
      through += g * within[c];
    }
    P direct = 0;
    if (dw0) {
#pragma omp simd reduction(+ : direct)
      for (long c = 0; c < width; ++c) {
        dw0[c] += gs[c] * value;
        db0[c] += gs[c];
        direct += gs[c] * w0[f * width + c];
      }
    }
    if (dx) dx[row * size.features + f] = through * slope[column] + direct;
  }
}

}  // namespace

template <typename P, typename A>
constexpr Kernels<P, A> table() {
  return {scale<P, A>, finish<P, A>, gate<P, A>, combine<P, A>, add_scaled<P, A>, head<P, A>};
}

extern const Kernels<float, float> f32 = table<float, float>();
extern const Kernels<double, double> f64 = table<double, double>();
extern const Kernels<float, Bf16> bf16 = table<float, Bf16>();
extern const PiecewiseKernels<float> piecewise_f32 = {piecewise_forward<float>, piecewise_backward<float>};
extern const PiecewiseKernels<double> piecewise_f64 = {piecewise_forward<double>, piecewise_backward<double>};

}  // namespace LEVEL
}  // namespace densely
