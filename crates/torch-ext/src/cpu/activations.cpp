// Activations that take the statistics of their columns, forward and backward: Dice, and ReLU behind a batch norm. And dropout.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../bridge.h"
#include "activation_kernels.h"
#include "dispatch.h"

namespace densely {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const ActivationKernels& run() { return DENSELY_PICK(activations); }

constexpr int64_t kRows = 128;  // rows of a piece of work

/// Column sums over rows in pieces that do not depend on the threads: f(sums, rows) adds those of some rows to `width` values.
template <typename T, typename F>
std::vector<T> reduce(int64_t rows, int64_t cols, int64_t width, const F& f) {
  const int64_t each = std::max<int64_t>(kRows, (rows + 63) / 64), count = (rows + each - 1) / each;
  std::vector<std::vector<T>> parts(static_cast<size_t>(count));
  at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      auto& part = parts[static_cast<size_t>(piece)];
      part.assign(static_cast<size_t>(width), T(0));
      f(part.data(), Rows{static_cast<long>(piece * each), static_cast<long>(std::min(rows, (piece + 1) * each)), static_cast<long>(cols)});
    }
  });
  std::vector<T> sums(static_cast<size_t>(width), T(0));
  for (const auto& part : parts) {
    for (size_t i = 0; i < sums.size(); ++i) sums[i] += part[i];
  }
  return sums;
}

template <typename F>
void by_rows(int64_t rows, int64_t cols, const F& f) {
  at::parallel_for(0, rows, kRows, [&](int64_t first, int64_t last) { f(Rows{static_cast<long>(first), static_cast<long>(last), static_cast<long>(cols)}); });
}

/// Running mean and variance of columns, and how they are used.
struct Running {
  Tensor mean, variance;
  double eps, momentum;
  bool train;
};

/// Mean and 1 / deviation of columns.
struct Moments {
  Tensor mean, r;
};

/// Of the rows in training, where the running ones move; else the running ones.
Moments moments(const Tensor& x, const Running& running) {
  const int64_t rows = x.size(0), cols = x.size(1);
  const Moments made{at::empty({cols}, x.options()), at::empty({cols}, x.options())};
  float *m = data<float>(made.mean), *r = data<float>(made.r), *am = data<float>(running.mean), *av = data<float>(running.variance);
  std::vector<double> sums;
  if (running.train) sums = reduce<double>(rows, cols, 2 * cols, [&](double* part, Rows some) { run().column_sums(part, data<float>(x), some); });
  for (int64_t c = 0; c < cols; ++c) {
    if (!running.train) {
      m[c] = am[c];
      r[c] = static_cast<float>(1.0 / std::sqrt(av[c] + running.eps));
      continue;
    }
    // In f64 the difference below loses less than values of such a mean have lost in f32.
    const double mean = sums[static_cast<size_t>(c)] / rows;
    const double square = std::max(0.0, sums[static_cast<size_t>(cols + c)] - rows * mean * mean);
    m[c] = static_cast<float>(mean);
    r[c] = static_cast<float>(1.0 / std::sqrt(square / rows + running.eps));
    am[c] = static_cast<float>(running.momentum * mean + (1 - running.momentum) * am[c]);
    av[c] = static_cast<float>(running.momentum * (square / (rows - 1)) + (1 - running.momentum) * av[c]);
  }
  return made;
}

/// What the statistics of the batch give back of a gradient s: its mean, and that of s x̂. Zeros where they are not of the batch.
struct Shift {
  Tensor level, tilt;
};

Shift shift(const Tensor& x, const float* s, const float* s_hat, bool train) {
  const int64_t cols = x.size(1);
  const Shift made{at::zeros({cols}, x.options()), at::zeros({cols}, x.options())};
  for (int64_t c = 0; train && c < cols; ++c) {
    data<float>(made.level)[c] = s[c] / x.size(0);
    data<float>(made.tilt)[c] = s_hat[c] / x.size(0);
  }
  return made;
}

struct Dice : torch::autograd::Function<Dice> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& alpha, const Running& running) {
    Plain plain;
    const Moments found = moments(x, running);
    const Tensor y = at::empty_like(x);
    by_rows(x.size(0), x.size(1),
            [&](Rows some) { run().dice(data<float>(y), data<float>(x), data<float>(found.mean), data<float>(found.r), data<float>(alpha), some); });
    ctx->save_for_backward({x, alpha, found.mean, found.r});
    ctx->saved_data["train"] = running.train;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Plain plain;
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &alpha = saved[1];
    const Tensor dy = grads[0].contiguous(), dx = at::empty_like(x), dalpha = at::empty_like(alpha);
    const int64_t rows = x.size(0), cols = x.size(1);
    const float *g = data<float>(dy), *xs = data<float>(x), *a = data<float>(alpha), *m = data<float>(saved[2]), *r = data<float>(saved[3]);
    const auto sums = reduce<float>(rows, cols, 3 * cols, [&](float* part, Rows some) { run().dice_sums(part, g, xs, m, r, a, some); });
    std::copy(sums.begin(), sums.begin() + cols, data<float>(dalpha));
    const Shift back = shift(x, &sums[static_cast<size_t>(cols)], &sums[static_cast<size_t>(2 * cols)], ctx->saved_data["train"].toBool());
    by_rows(rows, cols,
            [&](Rows some) { run().dice_backward(data<float>(dx), g, xs, m, r, a, data<float>(back.level), data<float>(back.tilt), some); });
    return {dx, dalpha, Tensor()};
  }
};

struct NormRelu : torch::autograd::Function<NormRelu> {
  static Normed normed(const Moments& found, const Tensor& gamma, const Tensor& beta) {
    return {data<float>(found.mean), data<float>(found.r), data<float>(gamma), data<float>(beta)};
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& gamma, const Tensor& beta, const Running& running, double p, int64_t seed) {
    Plain plain;
    const Moments found = moments(x, running);
    const Tensor y = at::empty_like(x);
    const Dropout dropout = dropout_of(p, seed);
    by_rows(x.size(0), x.size(1), [&](Rows some) { run().norm_relu(data<float>(y), data<float>(x), normed(found, gamma, beta), dropout, some); });
    ctx->save_for_backward({x, gamma, beta, found.mean, found.r, y});
    ctx->saved_data["train"] = running.train;
    ctx->saved_data["scale"] = dropout.scale;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Plain plain;
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &gamma = saved[1], &beta = saved[2];
    const Normed norm = normed({saved[3], saved[4]}, gamma, beta);
    const float scale = static_cast<float>(ctx->saved_data["scale"].toDouble());
    const Tensor dy = grads[0].contiguous(), dx = at::empty_like(x), dgamma = at::empty_like(gamma), dbeta = at::empty_like(beta);
    const int64_t rows = x.size(0), cols = x.size(1);
    const float *g = data<float>(dy), *ys = data<float>(saved[5]), *xs = data<float>(x);
    const auto sums = reduce<float>(rows, cols, 2 * cols, [&](float* part, Rows some) { run().norm_relu_sums(part, g, ys, xs, norm, scale, some); });
    std::copy(sums.begin(), sums.begin() + cols, data<float>(dbeta));
    std::copy(sums.begin() + cols, sums.end(), data<float>(dgamma));
    const Shift back = shift(x, data<float>(dbeta), data<float>(dgamma), ctx->saved_data["train"].toBool());
    by_rows(rows, cols, [&](Rows some) {
      run().norm_relu_backward(data<float>(dx), g, ys, xs, norm, scale, data<float>(back.level), data<float>(back.tilt), some);
    });
    return {dx, dgamma, dbeta, Tensor(), Tensor(), Tensor()};
  }
};

struct Drop : torch::autograd::Function<Drop> {
  static constexpr int64_t kCols = 1024;  // the values lie in rows of so many, the last one shorter: their places decide

  static Tensor drop(const Tensor& x, const Dropout& dropout) {
    Plain plain;
    const Tensor y = at::empty_like(x);
    at::parallel_for(0, (x.numel() + kCols - 1) / kCols, 16, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        const int64_t at = row * kCols, n = std::min(kCols, x.numel() - at);
        run().drop(data<float>(y) + at, data<float>(x) + at, static_cast<long>(n), dropout, static_cast<long>(row));
      }
    });
    return y;
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& x, double p, int64_t seed) {
    ctx->saved_data["p"] = p;
    ctx->saved_data["seed"] = seed;
    return drop(x, dropout_of(p, seed));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Dropout dropout = dropout_of(ctx->saved_data["p"].toDouble(), ctx->saved_data["seed"].toInt());
    return {drop(grads[0].contiguous(), dropout), Tensor(), Tensor()};
  }
};

void check(const char* what, std::initializer_list<Tensor> all) {
  for (const Tensor& one : all)
    TORCH_CHECK(one.scalar_type() == at::kFloat && one.device().is_cpu() && one.is_contiguous(), "the fused ", what, " takes contiguous f32 on the CPU");
}

/// [rows, channels], and columns of as many values.
void check_columns(const char* what, const Tensor& x, std::initializer_list<Tensor> columns) {
  check(what, {x});
  check(what, columns);
  TORCH_CHECK(x.dim() == 2, what, " takes [rows, channels]");
  for (const Tensor& one : columns) TORCH_CHECK(one.numel() == x.size(1), what, " takes as many values as it has channels");
}

}  // namespace

size_t dice(size_t x, size_t alpha, size_t running_mean, size_t running_variance, double eps, double momentum, bool train) {
  const Tensor xs = tensor(x).contiguous();
  const Running running{tensor(running_mean), tensor(running_variance), eps, momentum, train};
  check_columns("Dice", xs, {tensor(alpha), running.mean, running.variance});
  TORCH_CHECK(!train || xs.size(0) > 1, "Dice needs at least two rows in training");
  return handle(Dice::apply(xs, tensor(alpha), running));
}

void dice_onto(size_t x, size_t by_step, size_t by_row, size_t alpha, size_t running_mean, size_t running_variance, double eps) {
  Plain plain;
  const Tensor &xs = tensor(x), &as = tensor(alpha), &steps = tensor(by_step), &own = tensor(by_row);
  const Running running{tensor(running_mean), tensor(running_variance), eps, 0, false};
  check_columns("Dice", xs, {as, running.mean, running.variance});
  check("Dice", {steps});
  TORCH_CHECK(steps.dim() == 2 && steps.size(0) > 0 && steps.size(1) == xs.size(1), "Dice takes as many channels of each step");
  if (own.defined()) {
    check("Dice", {own});
    TORCH_CHECK(own.dim() == 2 && own.size(1) == xs.size(1) && own.size(0) * steps.size(0) == xs.size(0), "Dice takes a row for so many steps");
  }
  const Moments found = moments(xs, running);
  const Addends added{data<float>(steps), data<float>(own), static_cast<long>(steps.size(0))};
  by_rows(xs.size(0), xs.size(1),
          [&](Rows some) { run().dice_onto(data<float>(xs), added, data<float>(found.mean), data<float>(found.r), data<float>(as), some); });
  if (!xs.is_inference()) xs.unsafeGetTensorImpl()->bump_version();
}

size_t norm_relu(size_t x, size_t gamma, size_t beta, size_t running_mean, size_t running_variance, double eps, double momentum, double p, int64_t seed,
                 bool train) {
  const Tensor xs = tensor(x).contiguous();
  const Running running{tensor(running_mean), tensor(running_variance), eps, momentum, train};
  check_columns("batch norm", xs, {tensor(gamma), tensor(beta), running.mean, running.variance});
  TORCH_CHECK(!train || xs.size(0) > 1, "a batch norm needs at least two rows in training");
  return handle(NormRelu::apply(xs, tensor(gamma), tensor(beta), running, p, seed));
}

size_t dropout(size_t x, double p, int64_t seed) {
  const Tensor xs = tensor(x).contiguous();
  check("dropout", {xs});
  return handle(Drop::apply(xs, p, seed));
}

}  // namespace densely
