// See table_kernels.h.
#include "table_kernels.h"

#include "functions.h"
#include "vectors.h"

namespace densely {
namespace LEVEL {
namespace {

using V = Vector<float>;
constexpr long kWide = kLanes<float>;

/// The last values of a row, fewer than a vector has.
inline V load_some(const float* from, long n) {
  V xs{};
  __builtin_memcpy(&xs, from, n * sizeof(float));
  return xs;
}
inline void store_some(float* to, V xs, long n) { __builtin_memcpy(to, &xs, n * sizeof(float)); }

/// f(load, store, first) over n values, vector by vector.
template <typename F>
inline void sweep(long n, const F& f) {
  long i = 0;
  for (; i + kWide <= n; i += kWide) f([i](const float* from) { return load(from + i); }, [i](float* to, V xs) { store(to + i, xs); }, i);
  if (const long rest = n - i; rest > 0)
    f([i, rest](const float* from) { return load_some(from + i, rest); }, [i, rest](float* to, V xs) { store_some(to + i, xs, rest); }, i);
}

inline V sign(V x) { return (x > 0.0f ? V{} + 1.0f : V{}) - (x < 0.0f ? V{} + 1.0f : V{}); }

inline V total(V w, V g, Penalty penalty) {
  g += w * penalty.l2;
  return penalty.l1 == 0.0f ? g : g + sign(w) * penalty.l1;
}

inline V root(V x) {
  for (long i = 0; i < kWide; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}

double squares(const float* w, const float* g, long n, Penalty penalty) {
  double sum_all = 0;
  constexpr long kBlock = 1024;  // sums of floats stay short
  for (long from = 0; from < n; from += kBlock) {
    const long width = n - from < kBlock ? n - from : kBlock;
    V part{};
    sweep(width, [&](auto load, auto, long) {
      const V all = total(load(w + from), g ? load(g + from) : V{}, penalty);
      part += all * all;
    });
    sum_all += sum<float>(part);
  }
  return sum_all;
}

void step(float* w, const float* g, float* m, float* v, long n, Penalty penalty, TableStep numbers) {
  sweep(n, [&](auto load, auto store, long) {
    const V value = load(w);
    const V grad = total(value, g ? load(g) : V{}, penalty) * numbers.scale;
    if (numbers.adagrad) {
      const V squares = load(v) + grad * grad;
      store(v, squares);
      store(w, value - numbers.step * grad / (root(squares) + numbers.eps));
      return;
    }
    const V before = load(m);
    const V first = before + (grad - before) * numbers.add1;
    const V second = load(v) * numbers.keep2 + numbers.add2 * grad * grad;
    store(m, first);
    store(v, second);
    store(w, value - numbers.step * first / (root(second) / numbers.root + numbers.eps));
  });
}

void column_sums(double* sums, const float* x, Rows rows) {
  for (long row = rows.first; row < rows.last; ++row) {
    const float* xs = x + row * rows.cols;
    for (long c = 0; c < rows.cols; ++c) sums[c] += xs[c];
  }
}

void column_squares(double* sums, const float* x, const float* mean, Rows rows) {
  for (long row = rows.first; row < rows.last; ++row) {
    const float* xs = x + row * rows.cols;
    for (long c = 0; c < rows.cols; ++c) {
      const float away = xs[c] - mean[c];
      sums[c] += away * away;
    }
  }
}

inline V sigmoid(V x) { return 1.0f / (1.0f + exp(-x)); }

void dice(float* y, const float* x, const float* mean, const float* r, const float* alpha, Rows rows) {
  for (long row = rows.first; row < rows.last; ++row) {
    const long at = row * rows.cols;
    sweep(rows.cols, [&](auto load, auto store, long) {
      const V xs = load(x + at), a = load(alpha), p = sigmoid((xs - load(mean)) * load(r));
      store(y + at, p * xs + a * (1.0f - p) * xs);
    });
  }
}

void dice_sums(float* sums, const float* dy, const float* x, const float* mean, const float* r, const float* alpha, Rows rows) {
  for (long row = rows.first; row < rows.last; ++row) {
    const long at = row * rows.cols;
    sweep(rows.cols, [&](auto load, auto store, long) {
      const V xs = load(x + at), a = load(alpha), hat = (xs - load(mean)) * load(r), p = sigmoid(hat), g = load(dy + at) * xs;
      const V s = g * (1.0f - a) * p * (1.0f - p);
      store(sums, load(sums) + g * (1.0f - p));
      store(sums + rows.cols, load(sums + rows.cols) + s);
      store(sums + 2 * rows.cols, load(sums + 2 * rows.cols) + s * hat);
    });
  }
}

void dice_backward(float* dx, const float* dy, const float* x, const float* mean, const float* r, const float* alpha, const float* level,
                   const float* tilt, Rows rows) {
  for (long row = rows.first; row < rows.last; ++row) {
    const long at = row * rows.cols;
    sweep(rows.cols, [&](auto load, auto store, long) {
      const V xs = load(x + at), a = load(alpha), inverse = load(r), hat = (xs - load(mean)) * inverse, p = sigmoid(hat);
      const V g = load(dy + at), s = g * xs * (1.0f - a) * p * (1.0f - p);
      store(dx + at, g * (a + (1.0f - a) * p) + inverse * (s - load(level) - hat * load(tilt)));
    });
  }
}

}  // namespace

extern const TableKernels tables = {squares, step, column_sums, column_squares, dice, dice_sums, dice_backward};

}  // namespace LEVEL
}  // namespace densely
