// See sine_kernels.h.
#include "sine_kernels.h"

#include "panels.h"

namespace densely {
namespace LEVEL {
namespace {

using V = Vector<float>;

/// Arguments up to which `sin_cos` reduces exactly; it is then within 8e-8 of the truth.
constexpr float kMost = 100000.0f;
/// Rows that are worked on together.
constexpr long kBlock = 8;

struct SinCos {
  V sin, cos;
};

/// Of |a| ≤ kMost. NaN stays NaN.
inline SinCos sin_cos(V a) {
  const float magic = 12582912.0f;  // 1.5 · 2^23: adding it rounds to a whole number, which stands in the lowest bits
  const V shifted = a * 0.636619772f + magic;
  const V quarters = shifted - magic;
  // π / 2 in three parts, of which the first two have 8 bits, so that up to 2^16 quarters both products and both differences are exact.
  const V r = a - quarters * 1.5703125f - quarters * 4.825592041015625e-4f - quarters * 1.2675907950567e-6f;
  const V z = r * r;
  // The polynomials of the Cephes library, for |r| ≤ π / 4.
  const V odd = ((z * -1.9515295891e-4f + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * r + r;
  const V even = ((z * 2.443315711809948e-5f - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - z * 0.5f + 1.0f;
  const Bits quarter = bits_of(shifted);
  const auto turned = (quarter & 1u) != 0u;  // a quarter on, the two change places
  const V sin = turned ? even : odd, cos = turned ? odd : even;
  return {floats_of(bits_of(sin) ^ (quarter & 2u) << 30), floats_of(bits_of(cos) ^ ((quarter + 1u) & 2u) << 30)};
}

/// Of any a: each value by the C library, which reduces by as many digits of π as it takes.
inline SinCos sin_cos_of_large(V a) {
  SinCos made{};
  for (long i = 0; i < kWide; ++i) made.sin[i] = __builtin_sinf(a[i]), made.cos[i] = __builtin_cosf(a[i]);
  return made;
}

inline V magnitude(V x) { return floats_of(bits_of(x) & 0x7fffffffu); }

/// The slope of the argument in u, which for FINER is taken for constant.
template <bool FINER>
inline V slope(V u, float argument) {
  return FINER ? (magnitude(u) + 1.0f) * argument : V{} + argument;
}

inline bool small(V most) {
  bool all = true;
  for (long i = 0; i < kWide; ++i) all &= most[i] <= kMost;
  return all;
}

/// f(sine and cosine of a vector) for the block's rows, the fast one where all arguments allow it.
template <typename F>
inline void with_range(V most, const F& f) {
  if (small(most)) f([](V a) { return sin_cos(a); });
  else f([](V a) { return sin_cos_of_large(a); });
}

inline V larger(V a, V b) { return a > b ? a : b; }

template <bool FINER>
void forward_block(float* y, long y_row, float* kept, long kept_row, Sine sine, long rows, long cols) {
  V most{};
  for (long r = 0; r < rows; ++r) {
    float* ys = y + r * y_row;
    for (long c = 0; c < cols; c += kWide) {
      const V u = load(ys + c) * sine.product + load(sine.bias + c);
      store(ys + c, u);
      if (kept) store(kept + r * kept_row + c, u);
      most = larger(magnitude(u * slope<FINER>(u, sine.argument)), most);
    }
  }
  with_range(most, [&](const auto& both) {
    for (long r = 0; r < rows; ++r) {
      float* ys = y + r * y_row;
      for (long c = 0; c < cols; c += kWide) {
        const V u = load(ys + c);
        store(ys + c, both(u * slope<FINER>(u, sine.argument)).sin);
      }
    }
  });
}

template <bool FINER>
void backward_block(float* d, float* y, long row, float* sums, const float* kept, long kept_row, Sine sine, long rows, long cols) {
  V most{};
  for (long r = 0; r < rows; ++r) {
    for (long c = 0; c < cols; c += kWide) {
      const V u = load(kept + r * kept_row + c);
      most = larger(magnitude(u * slope<FINER>(u, sine.argument)), most);
    }
  }
  with_range(most, [&](const auto& both) {
    // Row after row inside, so that the sums of a block stay in a register, and short.
    for (long c = 0; c < cols; c += kWide) {
      V total{};
      for (long r = 0; r < rows; ++r) {
        float* ds = d + r * row + c;
        const V u = load(kept + r * kept_row + c), steep = slope<FINER>(u, sine.argument);
        const SinCos found = both(u * steep);
        const V g = load(ds) * (found.cos * steep);
        store(y + r * row + c, found.sin);
        store(ds, g * sine.product);
        total += g;
      }
      store(sums + c, load(sums + c) + total);
    }
  });
}

void forward(float* y, long y_row, float* kept, long kept_row, Sine sine, long rows, long cols) {
  for (long r = 0; r < rows; r += kBlock) {
    const long some = rows - r < kBlock ? rows - r : kBlock;
    (sine.finer ? forward_block<true> : forward_block<false>)(y + r * y_row, y_row, kept ? kept + r * kept_row : nullptr, kept_row, sine, some, cols);
  }
}

void backward(float* d, float* y, long row, float* sums, const float* kept, long kept_row, Sine sine, long rows, long cols) {
  for (long r = 0; r < rows; r += kBlock) {
    const long some = rows - r < kBlock ? rows - r : kBlock;
    (sine.finer ? backward_block<true> : backward_block<false>)(d + r * row, y + r * row, row, sums, kept + r * kept_row, kept_row, sine, some, cols);
  }
}

}  // namespace

extern const SineKernels sine = {forward, backward};

}  // namespace LEVEL
}  // namespace densely
