// See mixer_kernels.h.
#include "mixer_kernels.h"

#include "vectors.h"

namespace densely {
namespace LEVEL {
namespace {

/// Hidden rows that are made at once.
constexpr long kHidden = 16;

template <typename P>
long scratch_size(long channels, long width) { return (3 * channels + 2 * kHidden) * padded<P>(width); }

/// The tile's steps of y in rows of the padded width, zeros behind.
template <typename P>
void gather(P* tile, const P* y, const FeatureMlp<P>& mlp, long from, long width) {
  const long wide = padded<P>(width);
  for (long c = 0; c < mlp.channels; ++c) {
    const P* ys = y + c * mlp.steps + from;
    for (long t = 0; t < width; ++t) tile[c * wide + t] = ys[t];
    for (long t = width; t < wide; ++t) tile[c * wide + t] = 0;
  }
}

/// h = kept relu(w1 y + bias1) of hidden rows [first, first + rows), not yet scaled by 1 / (1 - p).
template <typename P>
void hidden_rows(P* h, const P* y, const FeatureMlp<P>& mlp, long window, long first, long rows, long from, long wide) {
  const Weights<P> w1{mlp.w1 + first * mlp.channels, mlp.channels, 1};
  const auto relu = [](Vector<P> xs) { return xs < 0 ? Vector<P>{} : xs; };  // NaN stays NaN
  if (mlp.drop_hidden.threshold == 0) {
    product(h, w1, mlp.bias1 + first, y, rows, mlp.channels, wide, false, [&](Vector<P> xs, long, long) { return relu(xs); });
    return;
  }
  Keys keys[kHidden];
  for (long r = 0; r < rows; ++r) keys[r] = Keys(mlp.drop_hidden, static_cast<unsigned long long>(window * mlp.hidden + first + r));
  product(h, w1, mlp.bias1 + first, y, rows, mlp.channels, wide, false,
          [&](Vector<P> xs, long row, long column) { return keep<P>(relu(xs), mlp.drop_hidden, keys[row], from + column); });
}

template <typename P>
void features(P* out, const P* x, const P* normed, const FeatureMlp<P>& mlp, long window, long from, long width, P* scratch) {
  const long wide = padded<P>(width), channels = mlp.channels;
  P *y = scratch, *z = y + channels * wide, *h = z + channels * wide;
  gather(y, normed, mlp, from, width);
  const P scale = static_cast<P>(mlp.drop_hidden.scale);
  for (long first = 0; first < mlp.hidden; first += kHidden) {
    const long rows = mlp.hidden - first < kHidden ? mlp.hidden - first : kHidden;
    hidden_rows(h, y, mlp, window, first, rows, from, wide);
    product(z, Weights<P>{mlp.w2 + first, mlp.hidden, 1}, static_cast<const P*>(nullptr), h, channels, rows, wide, first > 0);
  }
  for (long c = 0; c < channels; ++c) {
    const Keys keys(mlp.drop_out, static_cast<unsigned long long>(window * channels + c));
    const P kept = static_cast<P>(mlp.drop_out.scale);
    P* zs = z + c * wide;
    for (long t = 0; t < wide; t += kLanes<P>) {
      Vector<P> values = load(zs + t) * scale + mlp.bias2[c];
      if (mlp.drop_out.threshold > 0) values = keep<P>(values, mlp.drop_out, keys, from + t) * kept;
      store(zs + t, values);
    }
    const long at = c * mlp.steps + from;
    for (long t = 0; t < width; ++t) out[at + t] = x[at + t] + zs[t];
  }
}

template <typename P>
void features_backward(P* dy, P* dw1, P* dbias1, P* dw2, P* dbias2, const P* dout, const P* normed, const FeatureMlp<P>& mlp, long window,
                       long from, long width, P* scratch) {
  const long wide = padded<P>(width), channels = mlp.channels;
  P *y = scratch, *dz = y + channels * wide, *dys = dz + channels * wide, *h = dys + channels * wide, *g = h + kHidden * wide;
  gather(y, normed, mlp, from, width);
  const P scale = static_cast<P>(mlp.drop_hidden.scale);
  for (long c = 0; c < channels; ++c) {
    const long at = c * mlp.steps + from;
    P* zs = dz + c * wide;
    for (long t = 0; t < width; ++t) zs[t] = dout[at + t];
    for (long t = width; t < wide; ++t) zs[t] = 0;
    Vector<P> total{};
    const Keys keys(mlp.drop_out, static_cast<unsigned long long>(window * channels + c));
    for (long t = 0; t < wide; t += kLanes<P>) {
      Vector<P> values = load(zs + t);
      if (mlp.drop_out.threshold > 0) values = keep<P>(values, mlp.drop_out, keys, from + t) * static_cast<P>(mlp.drop_out.scale);
      total += values;
      store(zs + t, values * scale);  // as the hidden rows are not scaled, everything that meets them is
    }
    dbias2[c] += sum<P>(total);
  }
  for (long first = 0; first < mlp.hidden; first += kHidden) {
    const long rows = mlp.hidden - first < kHidden ? mlp.hidden - first : kHidden;
    hidden_rows(h, y, mlp, window, first, rows, from, wide);
    product(g, Weights<P>{mlp.w2 + first, 1, mlp.hidden}, static_cast<const P*>(nullptr), dz, rows, channels, wide, false,
            [&](Vector<P> xs, long row, long column) { return load(h + row * wide + column) <= 0 ? Vector<P>{} : xs; });
    dots(dw2 + first, mlp.hidden, 1L, dz, h, channels, rows, wide);
    dots(dw1 + first * channels, channels, 1L, g, y, rows, channels, wide);
    for (long r = 0; r < rows; ++r) {
      Vector<P> total{};
      for (long t = 0; t < wide; t += kLanes<P>) total += load(g + r * wide + t);
      dbias1[first + r] += sum<P>(total);
    }
    product(dys, Weights<P>{mlp.w1 + first * channels, 1, channels}, static_cast<const P*>(nullptr), g, channels, rows, wide, first > 0);
  }
  for (long c = 0; c < channels; ++c) {
    for (long t = 0; t < width; ++t) dy[c * mlp.steps + from + t] = dys[c * wide + t];
  }
}

/// Points of a plane whose sums stay in the first-level cache.
constexpr long kPoints = 256;

template <typename P>
void moments(P* mean, P* variance, const P* x, long rows, long plane, long from, long to) {
  for (long at = from; at < to; at += kPoints) {
    const long n = to - at < kPoints ? to - at : kPoints;
    P *means = mean + at, *variances = variance + at;
    for (long i = 0; i < n; ++i) means[i] = variances[i] = 0;
    for (long row = 0; row < rows; ++row) {
      const P* xs = x + row * plane + at;
      for (long i = 0; i < n; ++i) means[i] += xs[i];
    }
    for (long i = 0; i < n; ++i) means[i] /= rows;
    for (long row = 0; row < rows; ++row) {
      const P* xs = x + row * plane + at;
      for (long i = 0; i < n; ++i) variances[i] += (xs[i] - means[i]) * (xs[i] - means[i]);
    }
    for (long i = 0; i < n; ++i) variances[i] /= rows;
  }
}

template <typename P>
void affine(P* __restrict y, const P* x, const P* m, const P* a, const P* b, long rows, long plane) {
  for (long row = 0; row < rows; ++row) {
    for (long i = 0; i < plane; ++i) y[row * plane + i] = (x[row * plane + i] - m[i]) * a[i] + b[i];
  }
}

template <bool DROPS, typename P>
void finish_onto_as(P* __restrict h, P* __restrict out, const P* x, const P* b, long rows, long cols, Dropout dropout, long first_row) {
  const P kept = static_cast<P>(dropout.scale);
  for (long row = 0; row < rows; ++row) {
    const Keys keys(dropout, static_cast<unsigned long long>(first_row + row));
    for (long c = 0; c < cols; ++c) {
      const long at = row * cols + c;
      P value = h[at] + b[c];
      value = value < 0 ? 0 : value;  // NaN stays NaN
      if (DROPS) value = column_bits(static_cast<unsigned>(c), keys.key, keys.inner) >= dropout.threshold ? value * kept : 0;
      h[at] = value;
      out[at] = x[at] + value;
    }
  }
}

template <typename P>
void finish_onto(P* h, P* out, const P* x, const P* b, long rows, long cols, Dropout dropout, long first_row) {
  (dropout.threshold > 0 ? finish_onto_as<true, P> : finish_onto_as<false, P>)(h, out, x, b, rows, cols, dropout, first_row);
}

template <typename P>
void norm_backward(P* dx, P* dgamma, P* dbeta, const P* dy, const P* dout, const P* x, const P* mean, const P* deviation, const P* gamma,
                   long rows, long plane, long from, long to, bool constant) {
  for (long at = from; at < to; at += kPoints) {
    const long n = to - at < kPoints ? to - at : kPoints;
    P shift[kPoints], slope[kPoints], factor[kPoints];
    for (long i = 0; i < n; ++i) shift[i] = slope[i] = 0;
    for (long row = 0; row < rows; ++row) {
      const P *ds = dy + row * plane + at, *xs = x + row * plane + at;
      for (long i = 0; i < n; ++i) {
        shift[i] += ds[i];
        slope[i] += ds[i] * (xs[i] - mean[at + i]);
      }
    }
    for (long i = 0; i < n; ++i) {
      const P inverse = 1 / deviation[at + i];
      dbeta[at + i] = shift[i];
      dgamma[at + i] = slope[i] * inverse;
      factor[i] = gamma[at + i] * inverse;
      shift[i] = constant ? 0 : shift[i] / rows;
      slope[i] = constant ? 0 : slope[i] * inverse * inverse / rows;
    }
    for (long row = 0; row < rows; ++row) {
      const P *ds = dy + row * plane + at, *xs = x + row * plane + at, *os = dout + row * plane + at;
      P* gs = dx + row * plane + at;
      for (long i = 0; i < n; ++i) gs[i] = os[i] + factor[i] * (ds[i] - shift[i] - (xs[i] - mean[at + i]) * slope[i]);
    }
  }
}

template <typename P>
void layer_norm(P* __restrict y, P* mean, P* deviation, const P* x, const P* gamma, const P* beta, P eps, long rows, long plane) {
  for (long row = 0; row < rows; ++row) {
    const P* xs = x + row * plane;
    P total = 0;
#pragma omp simd reduction(+ : total)
    for (long i = 0; i < plane; ++i) total += xs[i];
    const P m = total / plane;
    P squares = 0;
#pragma omp simd reduction(+ : squares)
    for (long i = 0; i < plane; ++i) squares += (xs[i] - m) * (xs[i] - m);
    mean[row] = m;
    deviation[row] = static_cast<P>(__builtin_sqrt(squares / plane + eps));
    const P inverse = 1 / deviation[row];
    for (long i = 0; i < plane; ++i) y[row * plane + i] = (xs[i] - m) * inverse * gamma[i] + beta[i];
  }
}

template <typename P>
void layer_backward(P* dx, P* dgamma, P* dbeta, const P* dy, const P* dout, const P* x, const P* mean, const P* deviation, const P* gamma,
                    long rows, long plane) {
  for (long row = 0; row < rows; ++row) {
    const P *xs = x + row * plane, *ds = dy + row * plane, *os = dout + row * plane;
    const P m = mean[row], inverse = 1 / deviation[row];
    P level = 0, tilt = 0;
#pragma omp simd reduction(+ : level, tilt)
    for (long i = 0; i < plane; ++i) {
      const P hat = (xs[i] - m) * inverse, g = ds[i] * gamma[i];
      level += g;
      tilt += g * hat;
      dgamma[i] += ds[i] * hat;
      dbeta[i] += ds[i];
    }
    level /= plane;
    tilt /= plane;
    for (long i = 0; i < plane; ++i) dx[row * plane + i] = os[i] + inverse * (ds[i] * gamma[i] - level - (xs[i] - m) * inverse * tilt);
  }
}

template <typename P>
constexpr MixerKernels<P> table() {
  return {scratch_size<P>, features<P>, features_backward<P>, moments<P>,    affine<P>,
          finish_onto<P>,  norm_backward<P>, layer_norm<P>,   layer_backward<P>};
}

}  // namespace

extern const MixerKernels<float> mixer_f32 = table<float>();
extern const MixerKernels<double> mixer_f64 = table<double>();

}  // namespace LEVEL
}  // namespace densely
