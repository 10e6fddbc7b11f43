// Products of tiles in bf16 with sums in f32, where the processor has them. Two rows of a tile stand in one of 32-bit numbers: what a
// weight's row has side by side too. Included inside the namespace of an instruction set.
#pragma once
#include "panels.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>

namespace densely {
namespace LEVEL {
namespace {

/// Values of both in the nearest bf16, those of `low` in the lower halves.
inline Vector<float> pair_up(Vector<float> low, Vector<float> high) {
  const __m512i a = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)low)), b = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)high));
  return (Vector<float>)_mm512_or_si512(a, _mm512_slli_epi32(b, 16));
}

/// Sixteen values beside sixteen others, in bf16.
inline Vector<float> side_by_side(Vector<float> first, Vector<float> second) {
  return (Vector<float>)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

template <int R, int V>
inline void half_block(float* out, long out_row, const Bf16* a, long a_row, const float* b, long b_row, long pairs, const float* bias, bool add) {
  Vector<float> sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = add ? load(out + r * out_row + v * kWide) : Vector<float>{} + (bias ? bias[r] : 0.0f);
  }
  for (long k = 0; k < pairs; ++k) {
    Vector<float> xs[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) xs[v] = load(b + k * b_row + v * kWide);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int weights;
      __builtin_memcpy(&weights, a + r * a_row + 2 * k, sizeof weights);
      const __m512bh both = (__m512bh)_mm512_set1_epi32(weights);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] = (Vector<float>)_mm512_dpbf16_ps((__m512)sums[r][v], both, (__m512bh)xs[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(out + r * out_row + v * kWide, sums[r][v]);
  }
}

template <int R>
inline void half_width(long vectors, float* out, long out_row, const Bf16* a, long a_row, const float* b, long b_row, long pairs, const float* bias, bool add) {
  switch (vectors) {
    case 4: half_block<R, 4>(out, out_row, a, a_row, b, b_row, pairs, bias, add); break;
    case 3: half_block<R, 3>(out, out_row, a, a_row, b, b_row, pairs, bias, add); break;
    case 2: half_block<R, 2>(out, out_row, a, a_row, b, b_row, pairs, bias, add); break;
    default: half_block<R, 1>(out, out_row, a, a_row, b, b_row, pairs, bias, add); break;
  }
}

/// As `tile_product`, of a tile of pairs of rows.
inline void half_product(const Tile& tile, float* out, const Bf16* a, long a_row, const float* b, long rows, long inner, const float* bias, bool add) {
  const long pairs = inner / 2;
  row_blocks(rows, [&](long r, auto count) {
    for (long panel = 0; panel < tile.panels(); ++panel) {
      const long first = tile.start(panel) * kWide, width = tile.width(panel);
      half_width<decltype(count)::value>(width, out + first * rows + r * width * kWide, width * kWide, a + r * a_row, a_row, b + first * pairs,
                                         width * kWide, pairs, bias ? bias + r : nullptr, add);
    }
  });
}

}  // namespace
}  // namespace LEVEL
}  // namespace densely
#endif
