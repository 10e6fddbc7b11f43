// Loops of PoolFormer's blocks on maps [pictures, height, width, channels]; see kernels.h for how they are compiled and picked. Channels and
// hidden channels are multiples of 16.
#pragma once
#include "kernels.h"

namespace densely {

/// x + gain ∘ (W2 gelu(W1 (scale ∘ x + shift) + b1) + b2), pixel by pixel. Scale, shift and gain are of a picture, [pictures, channels].
struct PixelMlp {
  long pixels, channels, hidden;  // pixels of a picture
  const float *scale, *shift;
  const float *w1, *b1;  // [hidden, channels], [hidden]
  const float *w2, *b2;  // [channels, hidden], [channels]
  const float* gain;
  const Bf16 *half1, *half2;  // the same weights in bf16: then the products are of bf16, with sums in f32
};

/// What goes back through a `PixelMlp`; sums are added to.
struct PixelMlpGradients {
  const float *w1_turned, *w2_turned;  // [channels, hidden], [hidden, channels]
  const float *mean, *inverse;         // of a picture
  const float* kept;                   // of a picture, the share of the branch; null for 1
  float* normed;                       // gradient of the normed map, [all pixels, channels]
  float *w1, *b1;                      // [hidden, channels], [hidden]
  float* w2;                           // turned, before the gain: Σ h (kept dout)ᵀ, [hidden, channels]
  float* sums;                         // [pictures, 3, channels]: of the normed map's gradient g, of g x̂, of kept dout
};

/// One row of a map of `height` × `width` pixels.
struct MapRow {
  long row, height, width, channels;
};

/// What a picture's norm gives back: the gradient is scale ∘ g - level - x̂ tilt, times 1 / deviation.
struct NormBack {
  const float* scale;  // γ
  float mean, inverse, level, tilt;
};

struct PoolKernels {
  /// Pixels of a vector; whether `half1` may be used.
  long lanes;
  bool (*halves)();
  /// Mean and sum of squared deviations.
  void (*moments)(const float* x, long n, double* mean, double* squares);
  /// A row of x + slope ∘ (pool(x) - x), the mean over 3 × 3 pixels that lie in the map; `scratch`: [width, channels].
  void (*mix)(float* out, const float* x, const float* slope, MapRow at, float* scratch);
  /// A row of g = dout + the norm's part of dn, and sums[c] += g (pool(x) - x).
  void (*mix_sums)(float* g, float* sums, const float* dout, const float* dn, const float* mixed, const NormBack& back, const float* x, MapRow at,
                   float* scratch);
  /// A row of g + slope ∘ (poolᵀ(g) - g) - tilt (x - mean).
  void (*mix_backward)(float* dx, const float* g, const float* slope, const float* x, float mean, float tilt, MapRow at, float* scratch);
  /// Values of scratch for tiles of so many pixels.
  long (*scratch)(const PixelMlp& mlp, long count, bool backward);
  /// `count` pixels from `first` on. `z`, unless null, gets W1 … + b1 in the order of the tile, [hidden, padded count].
  void (*mlp)(float* out, float* z, const float* x, const PixelMlp& mlp, long first, long count, float* scratch);
  void (*mlp_backward)(const PixelMlpGradients& grads, const float* dout, const float* z, const float* x, const PixelMlp& mlp, long first, long count,
                       float* scratch);
};

#define DENSELY_POOL_KERNELS(level) \
  namespace level {                 \
  extern const PoolKernels pool;    \
  }
DENSELY_POOL_KERNELS(baseline)
#ifdef DENSELY_X86
DENSELY_POOL_KERNELS(avx2)
DENSELY_POOL_KERNELS(avx512)
DENSELY_POOL_KERNELS(avx512bf16)
#endif

}  // namespace densely
