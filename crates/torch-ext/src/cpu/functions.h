// exp and the error function of vectors. Included inside the namespace of an instruction set.
#pragma once
#include "vectors.h"

namespace densely {
namespace LEVEL {
namespace {

/// e^x for x in [-87, 88], within 2 units in the last place; NaN stays NaN.
inline Vector<float> exp_within(Vector<float> x) {
  const float magic = 12582912.0f;  // 1.5 · 2^23: adding it rounds to a whole number, which stands in the lowest bits
  const Vector<float> shifted = x * 1.44269504f + magic;
  const Vector<float> whole = shifted - magic;
  const Vector<float> r = x - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln 2 in two parts
  Vector<float> y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  Lanes<float>::Bits bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127u) << 23;  // the power of two; of the magic number only the whole number is left
  Vector<float> power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return y * power;
}

inline Vector<float> bounded(Vector<float> x) { return x < -87.0f ? Vector<float>{} - 87.0f : x > 88.0f ? Vector<float>{} + 88.0f : x; }

/// e^x, within 2 units in the last place; 0 below -87.
inline Vector<float> exp(Vector<float> x) {
  const Vector<float> result = exp_within(bounded(x));
  return x != x ? x : x < -87.0f ? Vector<float>{} : result;
}

/// 1 / (1 + e^-x).
inline Vector<float> sigmoid(Vector<float> x) { return 1.0f / (1.0f + exp_within(bounded(-x))); }

inline Vector<double> exp(Vector<double> x) {
  for (long i = 0; i < kLanes<double>; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

/// The error function: a quotient of polynomials (those of the Eigen library), within 4e-7 of the truth.
inline Vector<float> erf(Vector<float> x) {
  const Vector<float> bounded = x < -4.0f ? Vector<float>{} - 4.0f : x > 4.0f ? Vector<float>{} + 4.0f : x;
  const Vector<float> square = bounded * bounded;
  Vector<float> above = square * -2.72614225801306e-10f + 2.77068142495902e-08f;
  above = above * square - 2.10102402082508e-06f;
  above = above * square - 5.69250639462346e-05f;
  above = above * square - 7.34990630326855e-04f;
  above = above * square - 2.95459980854025e-03f;
  above = (above * square - 1.60960333262415e-02f) * bounded;
  Vector<float> below = square * -1.45660718464996e-05f - 2.13374055278905e-04f;
  below = below * square - 1.68282697438203e-03f;
  below = below * square - 7.37332916720468e-03f;
  below = below * square - 1.42647390514189e-02f;
  return above / below;
}

inline Vector<double> erf(Vector<double> x) {
  for (long i = 0; i < kLanes<double>; ++i) x[i] = __builtin_erf(x[i]);
  return x;
}

/// The normal distribution function.
template <typename P>
inline Vector<P> normal(Vector<P> x) { return P(0.5) * erf(x * P(0.7071067811865476)) + P(0.5); }

}  // namespace
}  // namespace LEVEL
}  // namespace densely
