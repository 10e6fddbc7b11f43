// See table_kernels.h.
#include "table_kernels.h"

#include "vectors.h"

namespace densely {
namespace LEVEL {
namespace {

using V = Vector<float>;
constexpr long kWide = kLanes<float>;

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

}  // namespace

extern const TableKernels tables = {squares, step};

}  // namespace LEVEL
}  // namespace densely
