// See trunk_kernels.h. A block of the result stays in registers while all of the inner side passes; the right side's columns of a block lie
// in the first cache for all rows of the tile.
#include "trunk_kernels.h"

#include "panels.h"

namespace densely {
namespace LEVEL {
namespace {

template <int R, int V>
inline void block(float* out, long out_row, Left left, Right right, long inner, bool add) {
  Vector<float> sums[R][V] = {};
  const float *a = left.data, *b = right.data;
  for (long k = 0; k < inner; ++k, a += left.col, b += right.row) {
    Vector<float> xs[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) xs[v] = load(b + v * kWide);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float value = a[r * left.row];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] += value * xs[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* to = out + r * out_row + v * kWide;
      store(to, add ? load(to) + sums[r][v] : sums[r][v]);
    }
  }
}

/// All rows of some vectors of columns.
template <int V>
void columns(float* out, long out_row, Left left, Right right, long rows, long inner, bool add) {
  row_blocks(rows, [&](long r, auto count) {
    block<decltype(count)::value, V>(out + r * out_row, out_row, {left.data + r * left.row, left.row, left.col}, right, inner, add);
  });
}

void multiply(float* out, long out_row, Left left, Right right, long rows, long inner, long cols, bool add) {
  long c = 0;
  for (; c + kPanelVectors * kWide <= cols; c += kPanelVectors * kWide)
    columns<kPanelVectors>(out + c, out_row, left, {right.data + c, right.row}, rows, inner, add);
  for (; c < cols; c += kWide) columns<1>(out + c, out_row, left, {right.data + c, right.row}, rows, inner, add);
}

}  // namespace

extern const TrunkKernels trunk = {multiply};

}  // namespace LEVEL
}  // namespace densely
