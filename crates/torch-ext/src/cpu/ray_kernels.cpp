// See ray_kernels.h.
#include "ray_kernels.h"

#include "functions.h"

namespace densely {
namespace LEVEL {
namespace {

constexpr long kPiece = 128;  // samples of a ray that are worked on at once; whole vectors

/// 1 - e^-τ. Near 0 by the series τ - τ²/2 + τ³/6 - …, for the difference would keep no digits.
inline Vector<float> absorbed(Vector<float> tau) {
  const Vector<float> series =
      tau * (1.0f - tau / 2.0f * (1.0f - tau / 3.0f * (1.0f - tau / 4.0f * (1.0f - tau / 5.0f * (1.0f - tau / 6.0f)))));
  const Vector<float> difference = 1.0f - exp(-tau);
  return tau * tau < 0.0625f ? series : difference;
}

inline Vector<double> absorbed(Vector<double> tau) {
  for (long i = 0; i < kLanes<double>; ++i) tau[i] = -__builtin_expm1(-tau[i]);
  return tau;
}

/// Some samples of a ray, in its order.
template <typename P>
struct Piece {
  P passing[kPiece], alpha[kPiece];
  double thickness = 0;  // Σ τ of all samples so far

  /// T and 1 - e^-τ of the next `n` samples, which lie at `at`.
  void next(const RaySamples<P>& of, long at, long n) {
    for (long i = 0; i < n; ++i) {
      const P tau = of.sigma[at + i] * (of.end[at + i] - of.start[at + i]);
      passing[i] = static_cast<P>(thickness);
      alpha[i] = tau;
      thickness += tau;
    }
    for (long i = n; i < padded<P>(n); ++i) passing[i] = alpha[i] = 0;
    for (long i = 0; i < n; i += kLanes<P>) {
      store(passing + i, exp(-load(passing + i)));
      store(alpha + i, absorbed(load(alpha + i)));
    }
  }
};

/// f(piece, at, n) for all samples of a ray, while it says true.
template <typename P, typename F>
inline void pieces(const RaySamples<P>& of, long ray, const F& f) {
  Piece<P> piece;
  for (long at = of.offsets[ray], end = of.offsets[ray + 1]; at < end; at += kPiece) {
    const long n = end - at < kPiece ? end - at : kPiece;
    piece.next(of, at, n);
    if (!f(piece, at, n)) return;
  }
}

template <typename P>
void forward(RayResults<P> to, RaySamples<P> of, long first, long last) {
  for (long ray = first; ray < last; ++ray) {
    double red = 0, green = 0, blue = 0, opacity = 0, depth = 0;
    pieces(of, ray, [&](const Piece<P>& piece, long at, long n) {
      for (long i = 0; i < n; ++i) {
        const long sample = at + i;
        const P weight = piece.passing[i] * piece.alpha[i], *colour = of.rgb + 3 * sample;
        to.weights[sample] = weight;
        to.passing[sample] = piece.passing[i];
        red += weight * colour[0];
        green += weight * colour[1];
        blue += weight * colour[2];
        opacity += weight;
        depth += weight * ((of.start[sample] + of.end[sample]) / 2);
      }
      return true;
    });
    to.rgb[3 * ray] = static_cast<P>(red);
    to.rgb[3 * ray + 1] = static_cast<P>(green);
    to.rgb[3 * ray + 2] = static_cast<P>(blue);
    to.opacity[ray] = static_cast<P>(opacity);
    to.depth[ray] = static_cast<P>(depth);
  }
}

/// With g_i the gradient at w_i: ∂/∂τ_i = g_i T_{i+1} - Σ_{j>i} g_j w_j, for w_j = T_j - T_{j+1} shrinks with all that lies before it.
template <typename P>
void backward(P* dsigma, P* drgb, RayResults<const P> grads, const P* weights, const P* passing, RaySamples<P> of, long first, long last) {
  for (long ray = first; ray < last; ++ray) {
    P dcolour[3] = {0, 0, 0};
    for (int c = 0; grads.rgb && c < 3; ++c) dcolour[c] = grads.rgb[3 * ray + c];
    const P dopacity = grads.opacity ? grads.opacity[ray] : 0, ddepth = grads.depth ? grads.depth[ray] : 0;
    double behind = 0;
    for (long i = of.offsets[ray + 1] - 1; i >= of.offsets[ray]; --i) {
      const P weight = weights[i], *colour = of.rgb + 3 * i;
      const P g = (grads.weights ? grads.weights[i] : 0) + dcolour[0] * colour[0] + dcolour[1] * colour[1] + dcolour[2] * colour[2] + dopacity +
                  ddepth * ((of.start[i] + of.end[i]) / 2);
      dsigma[i] = static_cast<P>((g * (passing[i] - weight) - behind) * (of.end[i] - of.start[i]));
      behind += g * weight;
      for (int c = 0; drgb && c < 3; ++c) drgb[3 * i + c] = weight * dcolour[c];
    }
  }
}

template <typename P>
void visible(bool* seen, RaySamples<P> of, P least_passing, P least_alpha, long first, long last) {
  for (long ray = first; ray < last; ++ray) {
    for (long i = of.offsets[ray]; i < of.offsets[ray + 1]; ++i) seen[i] = false;
    pieces(of, ray, [&](const Piece<P>& piece, long at, long n) {
      for (long i = 0; i < n; ++i) seen[at + i] = piece.passing[i] >= least_passing && piece.alpha[i] >= least_alpha;
      return piece.passing[n - 1] >= least_passing;  // behind it light only gets less
    });
  }
}

}  // namespace

extern const RayKernels<float> rays_f32 = {forward<float>, backward<float>, visible<float>};
extern const RayKernels<double> rays_f64 = {forward<double>, backward<double>, visible<double>};

}  // namespace LEVEL
}  // namespace densely
