// Matrix products whose right side is a tile: pixels side by side, in panels of a few vectors, one row for each channel. The left side, a
// layer's weight, is read as it lies, so that no weight is ever packed; a block of the result stays in registers. Included inside the
// namespace of an instruction set.
#pragma once
#include "functions.h"

namespace densely {
namespace LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kBlockRows = 6, kPanelVectors = 4;
#else
constexpr int kBlockRows = 6, kPanelVectors = 2;
#endif

typedef Lanes<float>::Bits Bits;
constexpr long kWide = kLanes<float>;

inline Bits bits_of(Vector<float> xs) {
  Bits bits;
  __builtin_memcpy(&bits, &xs, sizeof bits);
  return bits;
}

inline Vector<float> floats_of(Bits bits) {
  Vector<float> xs;
  __builtin_memcpy(&xs, &bits, sizeof xs);
  return xs;
}

/// The first (second) halves of both, alternating.
inline Vector<float> zip_low(Vector<float> a, Vector<float> b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}

inline Vector<float> zip_high(Vector<float> a, Vector<float> b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

/// A square of vectors turned: each round moves one bit of a value's row number into its column number.
inline void turn_square(Vector<float> (&rows)[kWide]) {
#pragma GCC unroll 4
  for (long round = 1; round < kWide; round *= 2) {
    Vector<float> next[kWide];
#pragma GCC unroll 8
    for (long i = 0; i < kWide / 2; ++i) {
      next[2 * i] = zip_low(rows[i], rows[i + kWide / 2]);
      next[2 * i + 1] = zip_high(rows[i], rows[i + kWide / 2]);
    }
#pragma GCC unroll 16
    for (long i = 0; i < kWide; ++i) rows[i] = next[i];
  }
}

/// How the pixels of a tile lie: panel after panel, in each row after row of its vectors.
struct Tile {
  long vectors;

  static Tile of(long pixels) { return {(pixels + kWide - 1) / kWide}; }
  long panels() const { return (vectors + kPanelVectors - 1) / kPanelVectors; }
  long start(long panel) const { return vectors * panel / panels(); }
  long width(long panel) const { return start(panel + 1) - start(panel); }
};

/// out [R, V vectors] = a b, from `bias` (one for each row) or 0, or onto what stands in out; strides of rows are in values.
template <int R, int V>
inline void panel_block(float* out, long out_row, const float* a, long a_row, const float* b, long b_row, long inner, const float* bias, bool add) {
  Vector<float> sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = add ? load(out + r * out_row + v * kWide) : Vector<float>{} + (bias ? bias[r] : 0.0f);
  }
  for (long k = 0; k < inner; ++k) {
    Vector<float> xs[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) xs[v] = load(b + k * b_row + v * kWide);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float weight = a[r * a_row + k];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] += weight * xs[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(out + r * out_row + v * kWide, sums[r][v]);
  }
}

template <int R>
inline void panel_width(long vectors, float* out, long out_row, const float* a, long a_row, const float* b, long b_row, long inner, const float* bias, bool add) {
  switch (vectors) {
#if defined(__AVX512F__)
    case 4: panel_block<R, 4>(out, out_row, a, a_row, b, b_row, inner, bias, add); break;
    case 3: panel_block<R, 3>(out, out_row, a, a_row, b, b_row, inner, bias, add); break;
#endif
    case 2: panel_block<R, 2>(out, out_row, a, a_row, b, b_row, inner, bias, add); break;
    default: panel_block<R, 1>(out, out_row, a, a_row, b, b_row, inner, bias, add); break;
  }
}

/// f(first row, integral constant of how many) for blocks of rows.
template <int R>
struct Count {
  static constexpr int value = R;
};
template <typename F>
inline void row_blocks(long rows, const F& f) {
  long r = 0;
  for (; r + kBlockRows <= rows; r += kBlockRows) f(r, Count<kBlockRows>());
  switch (rows - r) {
    case 5: f(r, Count<5>()); break;
    case 4: f(r, Count<4>()); break;
    case 3: f(r, Count<3>()); break;
    case 2: f(r, Count<2>()); break;
    case 1: f(r, Count<1>()); break;
    default: break;
  }
}

/// Of tiles: out [rows] = a [rows, inner] b [inner] + bias, or onto what stands in out.
inline void tile_product(const Tile& tile, float* out, const float* a, long a_row, const float* b, long rows, long inner, const float* bias, bool add) {
  row_blocks(rows, [&](long r, auto count) {
    for (long panel = 0; panel < tile.panels(); ++panel) {
      const long first = tile.start(panel) * kWide, width = tile.width(panel);
      panel_width<decltype(count)::value>(width, out + first * rows + r * width * kWide, width * kWide, a + r * a_row, a_row, b + first * inner,
                                          width * kWide, inner, bias ? bias + r : nullptr, add);
    }
  });
}

/// out [rows, cols] += a [rows, inner] b [inner, cols] with any strides of rows; cols are whole vectors.
inline void add_product(float* out, long out_row, const float* a, long a_row, const float* b, long b_row, long rows, long inner, long cols) {
  for (long c = 0; c < cols; c += kPanelVectors * kWide) {
    const long left = (cols - c) / kWide, vectors = left < kPanelVectors ? left : kPanelVectors;
    row_blocks(rows, [&](long r, auto count) {
      panel_width<decltype(count)::value>(vectors, out + r * out_row + c, out_row, a + r * a_row, a_row, b + c, b_row, inner, nullptr, true);
    });
  }
}

}  // namespace
}  // namespace LEVEL
}  // namespace densely
