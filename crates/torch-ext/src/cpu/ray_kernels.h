// Loops of volume rendering over rays of any number of samples; see kernels.h for how they are compiled and picked.
#pragma once
#include "kernels.h"

namespace densely {

/// Samples of all rays, one ray after another: ray r has those from offsets[r] up to offsets[r + 1]. Sample i is the piece of its ray from
/// start[i] to end[i], of density sigma[i] and colour rgb[3 i].
template <typename P>
struct RaySamples {
  const P *sigma, *rgb, *start, *end;
  const long* offsets;
};

/// What becomes of them: a weight and the light that comes as far, T, per sample; colour, Σ w and Σ w (start + end) / 2 per ray.
template <typename P>
struct RayResults {
  P *weights, *passing, *rgb, *opacity, *depth;
};

template <typename P>
struct RayKernels {
  /// With τ = σ (end - start): T_i = exp(-Σ_{j<i} τ_j), w_i = T_i (1 - exp(-τ_i)), and the sums; rays [first, last).
  void (*forward)(RayResults<P> to, RaySamples<P> of, long first, long last);
  /// Gradients of densities and colours (`drgb` may be null) from those of the results, of which each may be null; `passing` has none.
  void (*backward)(P* dsigma, P* drgb, RayResults<const P> grads, const P* weights, const P* passing, RaySamples<P> of, long first, long last);
  /// seen[i] = T_i ≥ least_passing and 1 - exp(-τ_i) ≥ least_alpha. Colours are not read.
  void (*visible)(bool* seen, RaySamples<P> of, P least_passing, P least_alpha, long first, long last);
};

#define DENSELY_RAY_KERNELS(level)            \
  namespace level {                           \
  extern const RayKernels<float> rays_f32;    \
  extern const RayKernels<double> rays_f64;   \
  }
DENSELY_RAY_KERNELS(baseline)
#ifdef DENSELY_X86
DENSELY_RAY_KERNELS(avx2)
DENSELY_RAY_KERNELS(avx512)
#endif

}  // namespace densely
