// Loops of PatchTSMixer's fused operation; see kernels.h for how they are compiled and picked.
#pragma once
#include "kernels.h"

namespace densely {

/// A mixer block on a plane x [patches, features] (one channel of one window), which mixes along its patches or its features:
///
///   y = layer_norm(x) over the features, turned so that what is mixed stands in rows
///   u = drop(W2 drop(gelu(W1 y + bias1)) + bias2),  s = softmax(Wg u + biasg) over the rows
///   out = x + (s ∘ u turned back)
template <typename P>
struct PatchMlp {
  long patches, features;
  long hidden;              // rows of W1
  bool along_features;      // what is mixed
  const P *gamma, *beta;    // [features]
  P eps;
  const P *w1, *bias1;      // [hidden, mixed], [hidden]
  const P *w2, *bias2;      // [mixed, hidden], [mixed]
  const P *gate, *biasg;    // [mixed, mixed], [mixed]
  Dropout drop_hidden, drop_out;
};

/// Sums over planes into the gradients. Rows of w1, w2 and gate are padded to whole vectors; w2 is turned.
template <typename P>
struct PatchGradients {
  P *gamma, *beta;
  P *w1, *bias1;   // [hidden, padded mixed]
  P *w2, *bias2;   // [hidden, padded mixed]
  P *gate, *biasg;  // [mixed, padded mixed]
};

template <typename P>
struct PatchKernels {
  /// A number of values rounded up to whole vectors.
  long (*padded)(long width);
  /// Values that `scratch` of the functions below must have room for.
  long (*scratch)(long patches, long features, long hidden);
  /// u and s are kept, [mixed, others] each, where they are not null. `plane` counts the planes before this one.
  void (*forward)(P* out, P* u, P* s, const P* x, const PatchMlp<P>& mlp, long plane, P* scratch);
  /// dx from dout and from what `forward` kept.
  void (*backward)(P* dx, const PatchGradients<P>& grads, const P* dout, const P* x, const P* u, const P* s, const PatchMlp<P>& mlp, long plane,
                   P* scratch);
};

#define DENSELY_PATCH_KERNELS(level)            \
  namespace level {                             \
  extern const PatchKernels<float> patch_f32;   \
  extern const PatchKernels<double> patch_f64;  \
  }
DENSELY_PATCH_KERNELS(baseline)
#ifdef DENSELY_X86
DENSELY_PATCH_KERNELS(avx2)
DENSELY_PATCH_KERNELS(avx512)
#endif

}  // namespace densely
