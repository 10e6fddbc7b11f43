// Loops of TSMixer's fused operations; see kernels.h for how they are compiled and picked. A window lies channel by channel:
// [batch, channels, steps].
#pragma once
#include "kernels.h"

namespace densely {

/// An MLP over the channels of each step of the normed window y, and the window added behind it:
///
///   out = x + drop_out(W2 drop_hidden(relu(W1 y + bias1)) + bias2)
template <typename P>
struct FeatureMlp {
  long channels, steps, hidden;
  const P *w1, *bias1;  // [hidden, channels], [hidden]
  const P *w2, *bias2;  // [channels, hidden], [channels]
  Dropout drop_hidden, drop_out;
};

template <typename P>
struct MixerKernels {
  /// Values that `scratch` of the two functions below must have room for.
  long (*scratch)(long channels, long width);
  /// Steps [from, from + width) of window `window`; x, y and out point to it.
  void (*features)(P* out, const P* x, const P* y, const FeatureMlp<P>& mlp, long window, long from, long width, P* scratch);
  /// dy, and sums into the gradients of the parameters.
  void (*features_backward)(P* dy, P* dw1, P* dbias1, P* dw2, P* dbias2, const P* dout, const P* y, const FeatureMlp<P>& mlp, long window,
                            long from, long width, P* scratch);
  /// Mean and population variance over `rows` windows of points [from, to) of a plane of `plane` points.
  void (*moments)(P* mean, P* variance, const P* x, long rows, long plane, long from, long to);
  /// y = (x - m) ∘ a + b, row by row. The mean goes first: where a point hardly varies, x ∘ a is large and cancels.
  void (*affine)(P* y, const P* x, const P* m, const P* a, const P* b, long rows, long plane);
  /// h = dropout(relu(h + b)) in place, out = x + h.
  void (*finish_onto)(P* h, P* out, const P* x, const P* b, long rows, long cols, Dropout dropout, long first_row);
  /// The way back through the norm of points [from, to): dx = dout + γ r (dy - Σdy/rows - x̂ Σ(dy x̂)/rows), dγ = Σ dy x̂, dβ = Σ dy;
  /// without the sums in dx where the statistics were constants. dx may be dy.
  void (*norm_backward)(P* dx, P* dgamma, P* dbeta, const P* dy, const P* dout, const P* x, const P* mean, const P* deviation,
                        const P* gamma, long rows, long plane, long from, long to, bool constant);
  /// y = (x - mean) / deviation ∘ gamma + beta with mean and deviation of each row, which are kept.
  void (*layer_norm)(P* y, P* mean, P* deviation, const P* x, const P* gamma, const P* beta, P eps, long rows, long plane);
  /// The way back through that: dx = dout + …, and sums into dγ and dβ. dx may be dy.
  void (*layer_backward)(P* dx, P* dgamma, P* dbeta, const P* dy, const P* dout, const P* x, const P* mean, const P* deviation,
                         const P* gamma, long rows, long plane);
};

#define DENSELY_MIXER_KERNELS(level)               \
  namespace level {                                \
  extern const MixerKernels<float> mixer_f32;      \
  extern const MixerKernels<double> mixer_f64;     \
  }
DENSELY_MIXER_KERNELS(baseline)
#ifdef DENSELY_X86
DENSELY_MIXER_KERNELS(avx2)
DENSELY_MIXER_KERNELS(avx512)
#endif

}  // namespace densely
