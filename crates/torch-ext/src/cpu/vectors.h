// Vectors, dropout on them, and small matrix products: the right side lies in the cache and a block of the result stays in registers,
// which general products do not reach where a side has few rows. Included inside the namespace of an instruction set.
#pragma once
#include "kernels.h"
#include "random.h"

namespace densely {
namespace LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kRows = 4, kVectors = 4;
#elif defined(__AVX2__)
constexpr int kBytes = 32, kRows = 4, kVectors = 2;
#else
constexpr int kBytes = 16, kRows = 4, kVectors = 2;
#endif

/// A vector of P, and one of as many 32-bit numbers.
template <typename P>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vector __attribute__((vector_size(kBytes)));
  typedef int Mask __attribute__((vector_size(kBytes)));
  typedef unsigned Bits __attribute__((vector_size(kBytes)));
};
template <>
struct Lanes<double> {
  typedef double Vector __attribute__((vector_size(kBytes)));
  typedef long long Mask __attribute__((vector_size(kBytes)));
  typedef unsigned Bits __attribute__((vector_size(kBytes / 2)));
};
template <typename P>
using Vector = typename Lanes<P>::Vector;
template <typename P>
constexpr long kLanes = kBytes / static_cast<long>(sizeof(P));
/// A width rounded up to whole vectors, as the rows of tiles have it.
template <typename P>
constexpr long padded(long width) { return (width + kLanes<P> - 1) / kLanes<P> * kLanes<P>; }

template <typename P>
inline Vector<P> load(const P* from) {
  Vector<P> xs;
  __builtin_memcpy(&xs, from, sizeof xs);
  return xs;
}
template <typename P>
inline void store(P* to, Vector<P> xs) { __builtin_memcpy(to, &xs, sizeof xs); }

template <typename P>
inline P sum(Vector<P> xs) {
  P values[kLanes<P>];
  __builtin_memcpy(values, &xs, sizeof xs);
  for (long step = kLanes<P> / 2; step > 0; step /= 2) {
    for (long i = 0; i < step; ++i) values[i] += values[i + step];
  }
  return values[0];
}

/// The last values of a row, fewer than a vector has.
inline Vector<float> load_some(const float* from, long n) {
  Vector<float> xs{};
  __builtin_memcpy(&xs, from, n * sizeof(float));
  return xs;
}
inline void store_some(float* to, Vector<float> xs, long n) { __builtin_memcpy(to, &xs, n * sizeof(float)); }

/// f(load, store, first) over n values, vector by vector.
template <typename F>
inline void sweep(long n, const F& f) {
  long i = 0;
  for (; i + kLanes<float> <= n; i += kLanes<float>)
    f([i](const float* from) { return load(from + i); }, [i](float* to, Vector<float> xs) { store(to + i, xs); }, i);
  if (const long rest = n - i; rest > 0)
    f([i, rest](const float* from) { return load_some(from + i, rest); }, [i, rest](float* to, Vector<float> xs) { store_some(to + i, xs, rest); }, i);
}

/// The first columns of a row, times kColumn.
template <typename P>
struct Columns {
  static typename Lanes<P>::Bits first() {
    typename Lanes<P>::Bits columns{};
    for (int i = 0; i < kLanes<P>; ++i) columns[i] = kColumn * static_cast<unsigned>(i);
    return columns;
  }
};

/// The row keys of a dropout.
struct Keys {
  Keys() = default;
  Keys(const Dropout& dropout, unsigned long long row) {
    const unsigned long long keys = mix(dropout.seed ^ mix(row));
    key = static_cast<unsigned>(keys), inner = static_cast<unsigned>(keys >> 32);
  }
  unsigned key = 0, inner = 0;
};

/// xs where the dropout keeps the columns from `column` on, else 0.
template <typename P>
inline Vector<P> keep(Vector<P> xs, const Dropout& dropout, Keys keys, long column) {
  const auto place = Columns<P>::first() + (static_cast<unsigned>(column) * kColumn + keys.key);
  const auto kept = scramble(place, keys.inner) >= dropout.threshold;
  return __builtin_convertvector(kept, typename Lanes<P>::Mask) ? xs : Vector<P>{};
}

/// A matrix with any strides, of which single values are read.
template <typename P>
struct Weights {
  const P* data;
  long row, col;
};

template <int R, int V, typename P, typename Finish>
void product_block(P* out, const Weights<P>& w, const P* bias, const P* x, long first, long inner, long width, long t, bool add, const Finish& finish) {
  Vector<P> sums[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      sums[r][v] = add ? load(out + (first + r) * width + t + v * kLanes<P>) : Vector<P>{} + (bias ? bias[first + r] : P(0));
    }
  }
  for (long k = 0; k < inner; ++k) {
    Vector<P> xs[V];
    for (int v = 0; v < V; ++v) xs[v] = load(x + k * width + t + v * kLanes<P>);
    for (int r = 0; r < R; ++r) {
      const P weight = w.data[(first + r) * w.row + k * w.col];
      for (int v = 0; v < V; ++v) sums[r][v] += weight * xs[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      const long column = t + v * kLanes<P>;
      store(out + (first + r) * width + column, finish(sums[r][v], first + r, column));
    }
  }
}

template <int R, typename P, typename Finish>
void product_rows(P* out, const Weights<P>& w, const P* bias, const P* x, long first, long inner, long width, bool add, const Finish& finish) {
  long t = 0;
  for (; t + kVectors * kLanes<P> <= width; t += kVectors * kLanes<P>) product_block<R, kVectors>(out, w, bias, x, first, inner, width, t, add, finish);
  switch ((width - t) / kLanes<P>) {
    case 3: product_block<R, 3>(out, w, bias, x, first, inner, width, t, add, finish); break;
    case 2: product_block<R, 2>(out, w, bias, x, first, inner, width, t, add, finish); break;
    case 1: product_block<R, 1>(out, w, bias, x, first, inner, width, t, add, finish); break;
    default: break;
  }
}

/// out[row] = finish(Σ w[row, k] x[k] + bias[row]), or with `add` onto what stands in out; rows of `width`, which is whole vectors.
/// `bias` may be null.
template <typename P, typename Finish>
void product(P* out, const Weights<P>& w, const P* bias, const P* x, long rows, long inner, long width, bool add, const Finish& finish) {
  long row = 0;
  for (; row + kRows <= rows; row += kRows) product_rows<kRows>(out, w, bias, x, row, inner, width, add, finish);
  switch (rows - row) {
    case 3: product_rows<3>(out, w, bias, x, row, inner, width, add, finish); break;
    case 2: product_rows<2>(out, w, bias, x, row, inner, width, add, finish); break;
    case 1: product_rows<1>(out, w, bias, x, row, inner, width, add, finish); break;
    default: break;
  }
}

/// A product that is taken as it is.
template <typename P>
void product(P* out, const Weights<P>& w, const P* bias, const P* x, long rows, long inner, long width, bool add) {
  product(out, w, bias, x, rows, inner, width, add, [](Vector<P> xs, long, long) { return xs; });
}

template <int R, int C, typename P>
void dots_block(P* out, long row_stride, long col_stride, const P* left, const P* right, long width) {
  Vector<P> sums[R][C] = {};
  for (long t = 0; t < width; t += kLanes<P>) {
    Vector<P> ys[C];
    for (int c = 0; c < C; ++c) ys[c] = load(right + c * width + t);
    for (int r = 0; r < R; ++r) {
      const Vector<P> xs = load(left + r * width + t);
      for (int c = 0; c < C; ++c) sums[r][c] += xs * ys[c];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) out[r * row_stride + c * col_stride] += sum<P>(sums[r][c]);
  }
}

template <int R, typename P>
void dots_rows(P* out, long row_stride, long col_stride, const P* left, const P* right, long cols, long width) {
  long c = 0;
  for (; c + 4 <= cols; c += 4) dots_block<R, 4>(out + c * col_stride, row_stride, col_stride, left, right + c * width, width);
  for (; c + 2 <= cols; c += 2) dots_block<R, 2>(out + c * col_stride, row_stride, col_stride, left, right + c * width, width);
  for (; c < cols; ++c) dots_block<R, 1>(out + c * col_stride, row_stride, col_stride, left, right + c * width, width);
}

/// out[r, c] += Σ_t left[r, t] right[c, t].
template <typename P>
void dots(P* out, long row_stride, long col_stride, const P* left, const P* right, long rows, long cols, long width) {
  long r = 0;
  for (; r + kRows <= rows; r += kRows) dots_rows<kRows>(out + r * row_stride, row_stride, col_stride, left + r * width, right, cols, width);
  for (; r < rows; ++r) dots_rows<1>(out + r * row_stride, row_stride, col_stride, left + r * width, right, cols, width);
}

}  // namespace
}  // namespace LEVEL
}  // namespace densely
