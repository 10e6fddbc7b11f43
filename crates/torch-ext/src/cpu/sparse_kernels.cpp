// See sparse_kernels.h.
#include "sparse_kernels.h"

#include <algorithm>

#include "vectors.h"

namespace densely {
namespace LEVEL {
namespace {

using V = Vector<float>;
constexpr long kWide = kLanes<float>;

inline V larger(V a, V b) { return a > b ? a : b; }

long above(const float* row, const float* bound, long n, int* columns, float* values) {
  long count = 0;
  for (long i = 0; i < n; ++i) {
    // Written always, kept where it counts: no branch to guess.
    columns[count] = static_cast<int>(i);
    values[count] = row[i];
    count += row[i] > (bound ? bound[i] : 0.0f) ? 1 : 0;
  }
  return count;
}

long largest(const float* row, const float* scale, long n, long k, float* scratch, int* columns, float* values) {
  constexpr long kDeep = 8, kBlock = kDeep * kWide;
  float* score = scratch;
  if (scale) {
    for (long i = 0; i < n; ++i) score[i] = row[i] * scale[i];
  }
  const float* of = scale ? score : row;
  // The maxima of strided groups of eight: the k-th largest of them is no larger than the k-th largest value, and few values reach it.
  const long blocks = n / kBlock, maxima = blocks * kWide;
  float* tops = scratch + n;
  float least = 0.0f;
  if (maxima > 2 * k) {
    for (long block = 0; block < blocks; ++block) {
      const float* from = of + block * kBlock;
      V top = load(from);
      for (long i = 1; i < kDeep; ++i) top = larger(top, load(from + i * kWide));
      store(tops + block * kWide, top);
    }
    // A copy in the place of the last n / 2 values of the scratch: the maxima are at most an eighth of n.
    float* order = tops + maxima;
    std::copy(tops, tops + maxima, order);
    std::nth_element(order, order + (k - 1), order + maxima, [](float a, float b) { return a > b; });
    least = std::max(order[k - 1], 0.0f);
  }
  const auto take = [&](long& count, long i) {
    columns[count] = static_cast<int>(i);
    count += of[i] > 0.0f && of[i] >= least ? 1 : 0;
  };
  long count = 0;
  if (maxima > 2 * k) {
    for (long block = 0; block < blocks; ++block) {
      V top = load(tops + block * kWide);
      const auto reached = top >= least;
      bool any = false;
      for (long lane = 0; lane < kWide; ++lane) any |= reached[lane] != 0;
      if (!any) continue;
      for (long i = block * kBlock; i < (block + 1) * kBlock; ++i) take(count, i);
    }
    for (long i = blocks * kBlock; i < n; ++i) take(count, i);
  } else {
    for (long i = 0; i < n; ++i) take(count, i);
  }
  if (count > k) {
    std::nth_element(columns, columns + k, columns + count, [&](int a, int b) { return of[a] > of[b] || (of[a] == of[b] && a < b); });
    count = k;
    std::sort(columns, columns + count);
  }
  for (long i = 0; i < count; ++i) values[i] = row[columns[i]];
  return count;
}

template <int kMany>
void gather_block(float* to, const float* values, const int* index, long count, const float* rows, long d) {
  V sums[kMany] = {};
  for (long i = 0; i < count; ++i) {
    const float* from = rows + index[i] * d;
    const V value = V{} + values[i];
    for (int j = 0; j < kMany; ++j) sums[j] += value * load(from + j * kWide);
  }
  for (int j = 0; j < kMany; ++j) store(to + j * kWide, sums[j]);
}

void gather(float* to, const float* values, const int* index, long count, const float* rows, long d) {
  long c = 0;
  for (; c + 12 * kWide <= d; c += 12 * kWide) gather_block<12>(to + c, values, index, count, rows + c, d);
  for (; c + 4 * kWide <= d; c += 4 * kWide) gather_block<4>(to + c, values, index, count, rows + c, d);
  for (; c + kWide <= d; c += kWide) gather_block<1>(to + c, values, index, count, rows + c, d);
  for (; c < d; ++c) {
    float sum = 0;
    for (long i = 0; i < count; ++i) sum += values[i] * rows[index[i] * d + c];
    to[c] = sum;
  }
}

void dots(float* to, const float* xs, const int* index, long count, const float* rows, long d) {
  for (long i = 0; i < count; ++i) {
    const float* row = rows + index[i] * d;
    V parts[4] = {};
    long c = 0;
    for (; c + 4 * kWide <= d; c += 4 * kWide) {
      for (int j = 0; j < 4; ++j) parts[j] += load(xs + c + j * kWide) * load(row + c + j * kWide);
    }
    for (; c + kWide <= d; c += kWide) parts[0] += load(xs + c) * load(row + c);
    float all = sum<float>((parts[0] + parts[1]) + (parts[2] + parts[3]));
    for (; c < d; ++c) all += xs[c] * row[c];
    to[i] = all;
  }
}

}  // namespace

extern const SparseKernels sparse = {above, largest, gather, dots};

}  // namespace LEVEL
}  // namespace densely
