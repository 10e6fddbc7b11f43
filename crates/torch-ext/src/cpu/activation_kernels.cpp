// See activation_kernels.h.
#include "activation_kernels.h"

#include "functions.h"

namespace densely {
namespace LEVEL {
namespace {

using V = Vector<float>;

/// f(the row's first value, row) for each row.
template <typename F>
inline void each(Rows rows, const F& f) {
  for (long row = rows.first; row < rows.last; ++row) f(row * rows.cols, row);
}

/// Four rows at a time, so that the sums are read and written less often.
template <int R>
void column_sums_of(double* sums, const float* x, long cols) {
  for (long c = 0; c < cols; ++c) {
    double sum = 0, squares = 0;
    for (int row = 0; row < R; ++row) {
      const double value = x[row * cols + c];
      sum += value;
      squares += value * value;
    }
    sums[c] += sum;
    sums[cols + c] += squares;
  }
}

void column_sums(double* sums, const float* x, Rows rows) {
  long row = rows.first;
  for (; row + 4 <= rows.last; row += 4) column_sums_of<4>(sums, x + row * rows.cols, rows.cols);
  for (; row < rows.last; ++row) column_sums_of<1>(sums, x + row * rows.cols, rows.cols);
}

inline V dice_of(V x, V mean, V r, V alpha) {
  return x * (alpha + (1.0f - alpha) * sigmoid((x - mean) * r));
}

void dice(float* y, const float* x, const float* mean, const float* r, const float* alpha, Rows rows) {
  each(rows, [&](long at, long) {
    sweep(rows.cols, [&](auto load, auto store, long) { store(y + at, dice_of(load(x + at), load(mean), load(r), load(alpha))); });
  });
}

void dice_onto(float* x, Addends added, const float* mean, const float* r, const float* alpha, Rows rows) {
  each(rows, [&](long at, long row) {
    const float* by_step = added.by_step + row % added.steps * rows.cols;
    const float* by_row = added.by_row ? added.by_row + row / added.steps * rows.cols : nullptr;
    sweep(rows.cols, [&](auto load, auto store, long) {
      V xs = load(x + at) + load(by_step);
      if (by_row) xs += load(by_row);
      store(x + at, dice_of(xs, load(mean), load(r), load(alpha)));
    });
  });
}

void dice_sums(float* sums, const float* dy, const float* x, const float* mean, const float* r, const float* alpha, Rows rows) {
  each(rows, [&](long at, long) {
    sweep(rows.cols, [&](auto load, auto store, long) {
      const V xs = load(x + at), a = load(alpha), hat = (xs - load(mean)) * load(r), p = sigmoid(hat), g = load(dy + at) * xs;
      const V s = g * (1.0f - a) * p * (1.0f - p);
      store(sums, load(sums) + g * (1.0f - p));
      store(sums + rows.cols, load(sums + rows.cols) + s);
      store(sums + 2 * rows.cols, load(sums + 2 * rows.cols) + s * hat);
    });
  });
}

void dice_backward(float* dx, const float* dy, const float* x, const float* mean, const float* r, const float* alpha, const float* level,
                   const float* tilt, Rows rows) {
  each(rows, [&](long at, long) {
    sweep(rows.cols, [&](auto load, auto store, long) {
      const V xs = load(x + at), a = load(alpha), inverse = load(r), hat = (xs - load(mean)) * inverse, p = sigmoid(hat);
      const V g = load(dy + at), s = g * xs * (1.0f - a) * p * (1.0f - p);
      store(dx + at, g * (a + (1.0f - a) * p) + inverse * (s - load(level) - hat * load(tilt)));
    });
  });
}

template <bool DROPS>
void norm_relu_as(float* y, const float* x, Normed norm, Dropout dropout, Rows rows) {
  const float scale = static_cast<float>(dropout.scale);
  each(rows, [&](long at, long row) {
    const Keys keys(dropout, static_cast<unsigned long long>(row));
    sweep(rows.cols, [&](auto load, auto store, long c) {
      const V slope = load(norm.r) * load(norm.gamma);
      const V z = load(x + at) * slope + (load(norm.beta) - load(norm.mean) * slope);
      const V relu = z < 0.0f ? V{} : z;  // NaN stays NaN
      store(y + at, DROPS ? keep<float>(relu * scale, dropout, keys, c) : relu);
    });
  });
}

void norm_relu(float* y, const float* x, Normed norm, Dropout dropout, Rows rows) {
  (dropout.threshold > 0 ? norm_relu_as<true> : norm_relu_as<false>)(y, x, norm, dropout, rows);
}

void norm_relu_sums(float* sums, const float* dy, const float* y, const float* x, Normed norm, float scale, Rows rows) {
  each(rows, [&](long at, long) {
    sweep(rows.cols, [&](auto load, auto store, long) {
      const V s = load(y + at) == 0.0f ? V{} : load(dy + at) * scale;
      const V hat = (load(x + at) - load(norm.mean)) * load(norm.r);
      store(sums, load(sums) + s);
      store(sums + rows.cols, load(sums + rows.cols) + s * hat);
    });
  });
}

void norm_relu_backward(float* dx, const float* dy, const float* y, const float* x, Normed norm, float scale, const float* level,
                        const float* tilt, Rows rows) {
  each(rows, [&](long at, long) {
    sweep(rows.cols, [&](auto load, auto store, long) {
      const V s = load(y + at) == 0.0f ? V{} : load(dy + at) * scale;
      const V r = load(norm.r), hat = (load(x + at) - load(norm.mean)) * r;
      store(dx + at, load(norm.gamma) * r * (s - load(level) - hat * load(tilt)));
    });
  });
}

void drop(float* y, const float* x, long n, Dropout dropout, long row) {
  const float scale = static_cast<float>(dropout.scale);
  const Keys keys(dropout, static_cast<unsigned long long>(row));
  sweep(n, [&](auto load, auto store, long c) { store(y, keep<float>(load(x) * scale, dropout, keys, c)); });
}

}  // namespace

extern const ActivationKernels activations = {column_sums, dice,           dice_onto,          dice_sums, dice_backward,
                                              norm_relu,   norm_relu_sums, norm_relu_backward, drop};

}  // namespace LEVEL
}  // namespace densely
