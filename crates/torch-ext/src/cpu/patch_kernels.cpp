// See patch_kernels.h. A plane of some thousand values passes through all of a block while it lies in the cache. What is mixed stands in
// rows, so that sums over it, the softmax too, are sums of vectors.
#include "patch_kernels.h"

#include "functions.h"
#include "vectors.h"

namespace densely {
namespace LEVEL {
namespace {

/// Sizes of a block: `mixed` rows of `others` columns, `wide` with padding.
struct Plane {
  template <typename P>
  static Plane of(const PatchMlp<P>& mlp) {
    const long mixed = mlp.along_features ? mlp.features : mlp.patches, others = mlp.along_features ? mlp.patches : mlp.features;
    return {mixed, others, padded<P>(others), padded<P>(mixed)};
  }
  long mixed, others, wide, wide_mixed;
};

/// to [cols, wide] = from [rows, ...] turned, zeros behind `rows`; a row of `from` has `stride` values.
template <typename P>
void turn(P* __restrict to, const P* from, long rows, long cols, long stride, long wide) {
  constexpr long kTile = 16;
  for (long first = 0; first < cols; first += kTile) {
    const long last = first + kTile < cols ? first + kTile : cols;
    for (long r = 0; r < rows; ++r) {
      for (long c = first; c < last; ++c) to[c * wide + r] = from[r * stride + c];
    }
  }
  for (long c = 0; c < cols; ++c) {
    for (long r = rows; r < wide; ++r) to[c * wide + r] = 0;
  }
}

/// Rows of `cols` values in rows of `wide`, zeros behind.
template <typename P>
void widen(P* __restrict to, const P* from, long rows, long cols, long wide) {
  for (long r = 0; r < rows; ++r) {
    for (long c = 0; c < cols; ++c) to[r * wide + c] = from[r * cols + c];
    for (long c = cols; c < wide; ++c) to[r * wide + c] = 0;
  }
}

template <typename P>
void narrow(P* __restrict to, const P* from, long rows, long cols, long wide) {
  for (long r = 0; r < rows; ++r) {
    for (long c = 0; c < cols; ++c) to[r * cols + c] = from[r * wide + c];
  }
}

/// Mean and 1 / deviation of a row.
template <typename P>
void row_moments(const P* x, long n, P eps, P* mean, P* inverse) {
  P sum = 0;
#pragma omp simd reduction(+ : sum)
  for (long i = 0; i < n; ++i) sum += x[i];
  const P m = sum / n;
  P squares = 0;
#pragma omp simd reduction(+ : squares)
  for (long i = 0; i < n; ++i) squares += (x[i] - m) * (x[i] - m);
  *mean = m;
  *inverse = 1 / static_cast<P>(__builtin_sqrt(squares / n + eps));
}

/// The normed plane [patches, features].
template <typename P>
void normed(P* __restrict y, const P* x, const PatchMlp<P>& mlp) {
  for (long r = 0; r < mlp.patches; ++r) {
    const P* xs = x + r * mlp.features;
    P* ys = y + r * mlp.features;
    P mean, inverse;
    row_moments(xs, mlp.features, mlp.eps, &mean, &inverse);
    for (long c = 0; c < mlp.features; ++c) ys[c] = (xs[c] - mean) * inverse * mlp.gamma[c] + mlp.beta[c];
  }
}

/// y [mixed, wide]: the normed plane turned as the block wants it; `normed_plane` is the plane itself.
template <typename P>
void rows_to_mix(P* y, P* normed_plane, const P* x, const PatchMlp<P>& mlp, const Plane& size) {
  normed(normed_plane, x, mlp);
  if (mlp.along_features) turn(y, normed_plane, mlp.patches, mlp.features, mlp.features, size.wide);
  else widen(y, normed_plane, mlp.patches, mlp.features, size.wide);
}

template <typename P>
Keys keys_of(const Dropout& dropout, long plane, long rows, long row) {
  return Keys(dropout, static_cast<unsigned long long>(plane * rows + row));
}

/// h = drop(gelu(W1 y + bias1)); with `slope`, which gets drop'(1) gelu'(W1 y + bias1) too.
template <typename P>
void hidden(P* h, P* slope, const P* y, const PatchMlp<P>& mlp, const Plane& size, long plane) {
  product(h, Weights<P>{mlp.w1, size.mixed, 1}, mlp.bias1, y, mlp.hidden, size.mixed, size.wide, false);
  const Dropout& dropout = mlp.drop_hidden;
  const P scale = static_cast<P>(dropout.scale);
  for (long r = 0; r < mlp.hidden; ++r) {
    const Keys keys = dropout.threshold > 0 ? keys_of<P>(dropout, plane, mlp.hidden, r) : Keys();
    for (long c = 0; c < size.wide; c += kLanes<P>) {
      P* at = h + r * size.wide + c;
      const Vector<P> z = load(at), phi = normal<P>(z);
      Vector<P> value = z * phi;
      if (dropout.threshold > 0) value = keep<P>(value, dropout, keys, c) * scale;
      store(at, value);
      if (slope) {
        Vector<P> steep = phi + z * exp(z * z * P(-0.5)) * P(0.3989422804014327);
        if (dropout.threshold > 0) steep = keep<P>(steep, dropout, keys, c) * scale;
        store(slope + r * size.wide + c, steep);
      }
    }
  }
}

template <typename P>
long scratch_size(long patches, long features, long hidden_rows) {
  const long mixed = patches > features ? patches : features, plane = padded<P>(mixed) * mixed;
  return 6 * plane + 2 * hidden_rows * padded<P>(mixed);
}

template <typename P>
void forward(P* out, P* u_kept, P* s_kept, const P* x, const PatchMlp<P>& mlp, long plane, P* scratch) {
  const Plane size = Plane::of(mlp);
  const long all = padded<P>(size.mixed > size.others ? size.mixed : size.others) * (size.mixed > size.others ? size.mixed : size.others);
  P *y = scratch, *u = y + all, *s = u + all, *h = s + all;
  rows_to_mix(y, u, x, mlp, size);
  hidden<P>(h, nullptr, y, mlp, size, plane);
  const Dropout& dropout = mlp.drop_out;
  if (dropout.threshold > 0) {
    const P scale = static_cast<P>(dropout.scale);
    product(u, Weights<P>{mlp.w2, mlp.hidden, 1}, mlp.bias2, h, size.mixed, mlp.hidden, size.wide, false,
            [&](Vector<P> xs, long row, long column) { return keep<P>(xs, dropout, keys_of<P>(dropout, plane, size.mixed, row), column) * scale; });
  } else {
    product(u, Weights<P>{mlp.w2, mlp.hidden, 1}, mlp.bias2, h, size.mixed, mlp.hidden, size.wide, false);
  }
  product(s, Weights<P>{mlp.gate, size.mixed, 1}, mlp.biasg, u, size.mixed, size.mixed, size.wide, false);
  for (long c = 0; c < size.wide; c += kLanes<P>) {
    Vector<P> most = load(s + c);
    for (long r = 1; r < size.mixed; ++r) {
      const Vector<P> logit = load(s + r * size.wide + c);
      most = logit > most ? logit : most;
    }
    Vector<P> total{};
    for (long r = 0; r < size.mixed; ++r) {
      const Vector<P> weight = exp(load(s + r * size.wide + c) - most);
      total += weight;
      store(s + r * size.wide + c, weight);
    }
    const Vector<P> inverse = P(1) / total;
    for (long r = 0; r < size.mixed; ++r) {
      const long at = r * size.wide + c;
      const Vector<P> weight = load(s + at) * inverse;
      store(s + at, weight);
      store(y + at, weight * load(u + at));
    }
  }
  if (u_kept) narrow(u_kept, u, size.mixed, size.others, size.wide);
  if (s_kept) narrow(s_kept, s, size.mixed, size.others, size.wide);
  if (mlp.along_features) {
    turn(h, y, size.mixed, size.others, size.wide, size.wide_mixed);  // [patches, padded features]
    for (long r = 0; r < mlp.patches; ++r) {
      for (long c = 0; c < mlp.features; ++c) out[r * mlp.features + c] = x[r * mlp.features + c] + h[r * size.wide_mixed + c];
    }
  } else {
    for (long r = 0; r < mlp.patches; ++r) {
      for (long c = 0; c < mlp.features; ++c) out[r * mlp.features + c] = x[r * mlp.features + c] + y[r * size.wide + c];
    }
  }
}

/// sums[row] += Σ of the row.
template <typename P>
void add_rows(P* sums, const P* xs, long rows, long wide) {
  for (long r = 0; r < rows; ++r) {
    Vector<P> total{};
    for (long c = 0; c < wide; c += kLanes<P>) total += load(xs + r * wide + c);
    sums[r] += sum<P>(total);
  }
}

template <typename P>
void backward(P* dx, const PatchGradients<P>& grads, const P* dout, const P* x, const P* u_kept, const P* s_kept, const PatchMlp<P>& mlp, long plane,
              P* scratch) {
  const Plane size = Plane::of(mlp);
  const long larger = size.mixed > size.others ? size.mixed : size.others, all = padded<P>(larger) * larger;
  P *y = scratch, *u = y + all, *s = u + all, *d = s + all, *turned = d + all, *plain = turned + all;
  P *h = plain + all, *slope = h + mlp.hidden * padded<P>(larger);
  rows_to_mix(y, plain, x, mlp, size);
  hidden<P>(h, slope, y, mlp, size, plane);
  widen(u, u_kept, size.mixed, size.others, size.wide);
  widen(s, s_kept, size.mixed, size.others, size.wide);
  if (mlp.along_features) turn(d, dout, mlp.patches, mlp.features, mlp.features, size.wide);
  else widen(d, dout, mlp.patches, mlp.features, size.wide);

  // The gate: s becomes the gradient of its logits, d that of u.
  for (long c = 0; c < size.wide; c += kLanes<P>) {
    Vector<P> through{};
    for (long r = 0; r < size.mixed; ++r) through += load(s + r * size.wide + c) * load(d + r * size.wide + c) * load(u + r * size.wide + c);
    for (long r = 0; r < size.mixed; ++r) {
      const long at = r * size.wide + c;
      const Vector<P> weight = load(s + at), above = load(d + at);
      store(s + at, weight * (above * load(u + at) - through));
      store(d + at, weight * above);
    }
  }
  turn(turned, u, size.mixed, size.others, size.wide, size.wide_mixed);  // [others, padded mixed]
  product(grads.gate, Weights<P>{s, size.wide, 1}, static_cast<const P*>(nullptr), turned, size.mixed, size.others, size.wide_mixed, true);
  add_rows(grads.biasg, s, size.mixed, size.wide);
  product(d, Weights<P>{mlp.gate, 1, size.mixed}, static_cast<const P*>(nullptr), s, size.mixed, size.mixed, size.wide, true);

  // The second layer: d becomes the gradient before its dropout, s is free.
  if (mlp.drop_out.threshold > 0) {
    const P scale = static_cast<P>(mlp.drop_out.scale);
    for (long r = 0; r < size.mixed; ++r) {
      const Keys keys = keys_of<P>(mlp.drop_out, plane, size.mixed, r);
      for (long c = 0; c < size.wide; c += kLanes<P>) {
        P* at = d + r * size.wide + c;
        store(at, keep<P>(load(at), mlp.drop_out, keys, c) * scale);
      }
    }
  }
  turn(turned, d, size.mixed, size.others, size.wide, size.wide_mixed);
  product(grads.w2, Weights<P>{h, size.wide, 1}, static_cast<const P*>(nullptr), turned, mlp.hidden, size.others, size.wide_mixed, true);
  add_rows(grads.bias2, d, size.mixed, size.wide);

  // The first layer: h becomes the gradient before its activation.
  product(h, Weights<P>{mlp.w2, 1, mlp.hidden}, static_cast<const P*>(nullptr), d, mlp.hidden, size.mixed, size.wide, false,
          [&](Vector<P> xs, long row, long column) { return xs * load(slope + row * size.wide + column); });
  turn(turned, y, size.mixed, size.others, size.wide, size.wide_mixed);
  product(grads.w1, Weights<P>{h, size.wide, 1}, static_cast<const P*>(nullptr), turned, mlp.hidden, size.others, size.wide_mixed, true);
  add_rows(grads.bias1, h, mlp.hidden, size.wide);
  product(d, Weights<P>{mlp.w1, 1, size.mixed}, static_cast<const P*>(nullptr), h, size.mixed, mlp.hidden, size.wide, false);

  // The norm.
  const P* dy = d;
  long stride = size.wide;
  if (mlp.along_features) {
    turn(turned, d, size.mixed, size.others, size.wide, size.wide_mixed);
    dy = turned, stride = size.wide_mixed;
  }
  for (long r = 0; r < mlp.patches; ++r) {
    const P *xs = x + r * mlp.features, *ds = dy + r * stride, *os = dout + r * mlp.features;
    P mean, inverse;
    row_moments(xs, mlp.features, mlp.eps, &mean, &inverse);
    P level = 0, tilt = 0;
#pragma omp simd reduction(+ : level, tilt)
    for (long c = 0; c < mlp.features; ++c) {
      const P hat = (xs[c] - mean) * inverse, g = ds[c] * mlp.gamma[c];
      level += g;
      tilt += g * hat;
      grads.gamma[c] += ds[c] * hat;
      grads.beta[c] += ds[c];
    }
    level /= mlp.features;
    tilt /= mlp.features;
    for (long c = 0; c < mlp.features; ++c) {
      const P hat = (xs[c] - mean) * inverse;
      dx[r * mlp.features + c] = os[c] + inverse * (ds[c] * mlp.gamma[c] - level - hat * tilt);
    }
  }
}

template <typename P>
long padded_size(long width) { return padded<P>(width); }

}  // namespace

extern const PatchKernels<float> patch_f32 = {padded_size<float>, scratch_size<float>, forward<float>, backward<float>};
extern const PatchKernels<double> patch_f64 = {padded_size<double>, scratch_size<double>, forward<double>, backward<double>};

}  // namespace LEVEL
}  // namespace densely
