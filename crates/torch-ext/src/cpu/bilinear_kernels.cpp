// See bilinear_kernels.h.
#include "bilinear_kernels.h"

#include "vectors.h"

namespace densely {
namespace LEVEL {
namespace {

using V = Vector<float>;
constexpr long kTile = kBilinearRows;

constexpr long kWide = kLanes<float>;
using Mask = Lanes<float>::Mask;

/// Two rows of a square whose blocks of STEP values change places.
template <int STEP>
inline void exchange(V& a, V& b) {
  Mask first, second;
  for (int i = 0; i < kWide; ++i) {
    first[i] = i & STEP ? static_cast<int>(kWide) + i - STEP : i;
    second[i] = i & STEP ? static_cast<int>(kWide) + i : i + STEP;
  }
  const auto pick = [&](Mask from) {
#ifdef __clang__
    V out;
    for (int i = 0; i < kWide; ++i) out[i] = from[i] < kWide ? a[from[i]] : b[from[i] - kWide];
    return out;
#else
    return __builtin_shuffle(a, b, from);
#endif
  };
  const V other = pick(second);
  a = pick(first);
  b = other;
}

template <int STEP>
inline void exchange_all(V* rows) {
  if constexpr (STEP < kWide) {
#pragma GCC unroll 16
    for (int r = 0; r < kWide; ++r) {
      if (!(r & STEP)) exchange<STEP>(rows[r], rows[r + STEP]);
    }
    exchange_all<2 * STEP>(rows);
  }
}

/// to[col · to_stride + row] = from[row · from_stride + col] of a square as wide as a vector.
inline void turn_square(float* to, long to_stride, const float* from, long from_stride) {
  V rows[kWide];
#pragma GCC unroll 16
  for (int r = 0; r < kWide; ++r) rows[r] = load(from + r * from_stride);
  exchange_all<1>(rows);
#pragma GCC unroll 16
  for (int r = 0; r < kWide; ++r) store(to + r * to_stride, rows[r]);
}

/// to[col · to_stride + row] = from[row · from_stride + col].
void turn(float* to, long to_stride, const float* from, long from_stride, long rows, long cols) {
  const long whole_rows = rows / kWide * kWide, whole_cols = cols / kWide * kWide;
  for (long c = 0; c < whole_cols; c += kWide) {
    for (long r = 0; r < whole_rows; r += kWide) turn_square(to + c * to_stride + r, to_stride, from + r * from_stride + c, from_stride);
  }
  const auto rest = [&](long first_row, long first_col, long end_col) {
    for (long c = first_col; c < end_col; ++c) {
      for (long r = first_row; r < rows; ++r) to[c * to_stride + r] = from[r * from_stride + c];
    }
  };
  rest(0, whole_cols, cols);
  rest(whole_rows, 0, whole_cols);
}

/// turned[col, row] = xs[row, col], zeros behind the last row.
void turn_tile(float* turned, const float* xs, long rows, long cols) {
  if (rows < kTile) __builtin_memset(turned, 0, sizeof(float) * static_cast<unsigned long>(cols * kTile));
  turn(turned, kTile, xs, cols, rows, cols);
}

long wider(Bilinear size) { return size.left > size.right ? size.left : size.right; }

/// x and y turned, twice, and what one head makes of the other input.
long scratch(Bilinear size) { return (2 * size.heads * (size.left + size.right) + wider(size) + 1) * kTile; }

constexpr const float* kNoBias = nullptr;

void forward(float* out, const float* x, const float* y, BilinearWeights<const float> weights, Bilinear size, long rows, float* scratch) {
  const long lefts = size.heads * size.left, rights = size.heads * size.right;
  float *xt = scratch, *yt = xt + lefts * kTile, *made = yt + rights * kTile, *total = made + wider(size) * kTile;
  turn_tile(xt, x, rows, lefts);
  turn_tile(yt, y, rows, rights);
  for (long r = 0; r < kTile; ++r) total[r] = 0;
  const auto add = [&](const float* xs, const float* other, float weight) {
    for (long r = 0; r < kTile; r += kLanes<float>) {
      const V factor = other ? load(other + r) + weight : V{} + weight;
      store(total + r, load(total + r) + load(xs + r) * factor);
    }
  };
  for (long h = 0; h < size.heads; ++h) {
    const float* w = weights.form + h * size.left * size.right;
    product(made, Weights<float>{w, size.right, 1}, kNoBias, yt + h * size.right * kTile, size.left, size.right, kTile, false);
    for (long i = 0; i < size.left; ++i) add(xt + (h * size.left + i) * kTile, made + i * kTile, weights.left[h * size.left + i]);
  }
  for (long j = 0; j < rights; ++j) add(yt + j * kTile, nullptr, weights.right[j]);
  for (long r = 0; r < rows; ++r) out[r] = total[r];
}

void backward(float* dx, float* dy, BilinearWeights<float> grads, const float* dout, const float* x, const float* y,
              BilinearWeights<const float> weights, Bilinear size, long rows, float* scratch) {
  const long lefts = size.heads * size.left, rights = size.heads * size.right;
  float *xt = scratch, *yt = xt + lefts * kTile, *dxt = yt + rights * kTile, *dyt = dxt + lefts * kTile, *g = dyt + rights * kTile;
  turn_tile(xt, x, rows, lefts);
  turn_tile(yt, y, rows, rights);
  for (long r = 0; r < kTile; ++r) g[r] = r < rows ? dout[r] : 0.0f;
  const auto of_output = [&](const float* linear) {
    return [=](V made, long row, long lane) { return (made + linear[row]) * load(g + lane); };
  };
  for (long h = 0; h < size.heads; ++h) {
    const float *w = weights.form + h * size.left * size.right, *xs = xt + h * size.left * kTile, *ys = yt + h * size.right * kTile;
    product(dxt + h * size.left * kTile, Weights<float>{w, size.right, 1}, kNoBias, ys, size.left, size.right, kTile, false,
            of_output(weights.left + h * size.left));
    product(dyt + h * size.right * kTile, Weights<float>{w, 1, size.right}, kNoBias, xs, size.right, size.left, kTile, false,
            of_output(weights.right + h * size.right));
  }
  turn(dx, lefts, dxt, kTile, lefts, rows);
  turn(dy, rights, dyt, kTile, rights, rows);
  // The inputs are no longer needed as they are: x carries the output's gradient now.
  const auto scale = [&](float* xs, float* grad, long count) {
    for (long i = 0; i < count; ++i) {
      V sums{};
      for (long r = 0; r < kTile; r += kLanes<float>) {
        const V scaled = load(xs + i * kTile + r) * load(g + r);
        store(xs + i * kTile + r, scaled);
        sums += scaled;
      }
      grad[i] += sum<float>(sums);
    }
  };
  scale(xt, grads.left, lefts);
  for (long h = 0; h < size.heads; ++h) {
    dots(grads.form + h * size.left * size.right, size.right, 1, xt + h * size.left * kTile, yt + h * size.right * kTile, size.left, size.right,
         kTile);
  }
  scale(yt, grads.right, rights);
}

}  // namespace

extern const BilinearKernels bilinear = {scratch, forward, backward};

}  // namespace LEVEL
}  // namespace densely
