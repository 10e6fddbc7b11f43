// Steps on parameters whose gradient is given for some rows, with a penalty on all rows or on those: the gradient of the whole table is never
// made. And Dice, forward and backward.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../bridge.h"
#include "dispatch.h"
#include "table_kernels.h"

namespace densely {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const TableKernels& run() { return DENSELY_PICK(tables); }

constexpr int64_t kPiece = 32768;  // values of a piece of work

/// A parameter [rows, dim] (or all of it as one row) and its gradient: of all rows, or of those in `index`, which ascends.
struct Table {
  float* w;
  int64_t rows, dim;
  const float* dense;
  const int64_t* index;
  const float* values;
  const float* extra;  // more l2 of each of those rows, or null
  int64_t touched;
  Penalty penalty;
  bool by_row, all;

  int64_t rows_each() const { return std::max<int64_t>(1, kPiece / dim); }
  /// Pieces of work, the same whatever the threads.
  int64_t pieces() const {
    if (!by_row) return (dim + kPiece - 1) / kPiece;
    return ((all ? rows : touched) + rows_each() - 1) / rows_each();
  }
};

Table table_of(const Tensor& w, const Tensor& dense, const Tensor& index, const Tensor& values, const Tensor& extra, double l1, double l2, bool all) {
  TORCH_CHECK(w.is_contiguous() && w.scalar_type() == at::kFloat && w.device().is_cpu(), "a step on a table takes contiguous f32 on the CPU");
  const bool by_row = index.defined();
  const int64_t dim = by_row ? w.numel() / std::max<int64_t>(1, w.size(0)) : std::max<int64_t>(1, w.numel());
  Table table{data<float>(w), by_row ? w.size(0) : 1, dim, data<float>(dense), data<int64_t>(index), data<float>(values), data<float>(extra),
              by_row ? index.numel() : 0, {static_cast<float>(l1), static_cast<float>(l2)}, by_row, all};
  if (by_row) {
    TORCH_CHECK(index.is_contiguous() && index.scalar_type() == at::kLong && values.is_contiguous() && values.scalar_type() == at::kFloat &&
                    values.numel() == table.touched * dim,
                "rows and gradients of a step differ");
    TORCH_CHECK(!extra.defined() || (extra.is_contiguous() && extra.scalar_type() == at::kFloat && extra.numel() == table.touched), "extra penalties");
    for (int64_t i = 0; i < table.touched; ++i) {
      TORCH_CHECK(table.index[i] >= (i == 0 ? 0 : table.index[i - 1] + 1) && table.index[i] < table.rows, "rows of a step must ascend");
    }
  } else {
    TORCH_CHECK(!dense.defined() || (dense.is_contiguous() && dense.scalar_type() == at::kFloat && dense.numel() == w.numel()), "a gradient of another size");
  }
  return table;
}

/// f(first value, n, gradient or null, penalty) over stretches of the table; each piece has the same places whatever the threads.
template <typename F>
void stretches(const Table& table, int64_t first, int64_t last, const F& f) {
  const int64_t dim = table.dim;
  const auto of_row = [&](int64_t i) {
    Penalty penalty = table.penalty;
    if (table.extra) penalty.l2 += table.extra[i];
    return penalty;
  };
  const int64_t* end = table.index + table.touched;
  const int64_t* next = std::lower_bound(table.index, end, first);
  int64_t row = first;
  while (row < last) {
    const int64_t stop = next == end ? last : std::min(last, *next);
    if (stop > row) f(row * dim, (stop - row) * dim, static_cast<const float*>(nullptr), table.penalty);
    row = stop;
    if (row < last) {
      const int64_t i = next++ - table.index;
      f(row * dim, dim, table.values + i * dim, of_row(i));
      ++row;
    }
  }
}

/// f(piece, …) as of `stretches`, for all that the step touches.
template <typename F>
void pieces(const Table& table, const F& f) {
  if (!table.by_row) {
    at::parallel_for(0, table.pieces(), 1, [&](int64_t first, int64_t last) {
      for (int64_t piece = first; piece < last; ++piece) {
        const int64_t from = piece * kPiece, n = std::min(kPiece, table.dim - from);
        f(piece, from, n, table.dense ? table.dense + from : nullptr, table.penalty);
      }
    });
    return;
  }
  const int64_t each = table.rows_each(), rows = table.all ? table.rows : table.touched;
  at::parallel_for(0, table.pieces(), 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t from = piece * each, to = std::min(rows, from + each);
      if (table.all) {
        stretches(table, from, to, [&](int64_t place, int64_t n, const float* g, Penalty penalty) { f(piece, place, n, g, penalty); });
        continue;
      }
      for (int64_t i = from; i < to; ++i) {
        Penalty penalty = table.penalty;
        if (table.extra) penalty.l2 += table.extra[i];
        f(piece, table.index[i] * table.dim, table.dim, table.values + i * table.dim, penalty);
      }
    }
  });
}

Tensor at_address(size_t pointer) { return pointer == 0 ? Tensor() : *reinterpret_cast<const Tensor*>(pointer); }

}  // namespace

double table_squares(size_t w, size_t dense, size_t index, size_t values, size_t extra, double l1, double l2, bool all) {
  const Table table = table_of(at_address(w), at_address(dense), at_address(index), at_address(values), at_address(extra), l1, l2, all);
  std::vector<double> sums(static_cast<size_t>(table.pieces()), 0.0);
  pieces(table, [&](int64_t piece, int64_t place, int64_t n, const float* g, Penalty penalty) {
    sums[static_cast<size_t>(piece)] += run().squares(table.w + place, g, n, penalty);
  });
  double sum = 0;
  for (double part : sums) sum += part;
  return sum;
}

void table_step(size_t w, size_t dense, size_t index, size_t values, size_t extra, size_t first, size_t second, rust::Slice<const double> numbers, bool adagrad,
                bool all) {
  const Tensor parameter = at_address(w), m = at_address(first), v = at_address(second);
  const auto fits = [&](const Tensor& xs) { return xs.defined() && xs.is_contiguous() && xs.scalar_type() == at::kFloat && xs.numel() == parameter.numel(); };
  TORCH_CHECK(fits(v) && (adagrad || fits(m)) && numbers.size() == 8, "moments of another size");
  // l1, l2, scale, β1, β2, step, root, eps
  const auto number = [&](size_t i) { return static_cast<float>(numbers[i]); };
  const Table table = table_of(parameter, at_address(dense), at_address(index), at_address(values), at_address(extra), numbers[0], numbers[1], all);
  const TableStep step{adagrad, number(2), number(3), static_cast<float>(1 - numbers[3]), number(4), static_cast<float>(1 - numbers[4]), number(5), number(6), number(7)};
  float *ms = data<float>(m), *vs = data<float>(v);
  pieces(table, [&](int64_t, int64_t place, int64_t n, const float* g, Penalty penalty) {
    run().step(table.w + place, g, ms ? ms + place : nullptr, vs + place, n, penalty, step);
  });
  parameter.unsafeGetTensorImpl()->bump_version();
}

namespace {

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

/// Mean and 1 / deviation of the columns, and the running averages moved.
void moments(const Tensor& x, const Tensor& mean, const Tensor& inverse, const Tensor& running_mean, const Tensor& running_variance, double eps,
             double momentum) {
  const int64_t rows = x.size(0), cols = x.size(1);
  const float* xs = data<float>(x);
  float *m = data<float>(mean), *r = data<float>(inverse), *am = data<float>(running_mean), *av = data<float>(running_variance);
  const auto sums = reduce<double>(rows, cols, cols, [&](double* part, Rows some) { run().column_sums(part, xs, some); });
  for (int64_t c = 0; c < cols; ++c) m[c] = static_cast<float>(sums[static_cast<size_t>(c)] / rows);
  const auto squares = reduce<double>(rows, cols, cols, [&](double* part, Rows some) { run().column_squares(part, xs, m, some); });
  for (int64_t c = 0; c < cols; ++c) {
    const double square = squares[static_cast<size_t>(c)];
    r[c] = static_cast<float>(1.0 / std::sqrt(square / rows + eps));
    am[c] = static_cast<float>(momentum * m[c] + (1 - momentum) * am[c]);
    av[c] = static_cast<float>(momentum * (square / (rows - 1)) + (1 - momentum) * av[c]);
  }
}

struct Dice : torch::autograd::Function<Dice> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& alpha, const Tensor& running_mean, const Tensor& running_variance, double eps,
                        double momentum, bool train) {
    Plain plain;
    const int64_t rows = x.size(0), cols = x.size(1);
    const Tensor y = at::empty_like(x), mean = at::empty({cols}, x.options()), inverse = at::empty({cols}, x.options());
    if (train) {
      moments(x, mean, inverse, running_mean, running_variance, eps, momentum);
    } else {
      float *m = data<float>(mean), *r = data<float>(inverse);
      const float *am = data<float>(running_mean), *av = data<float>(running_variance);
      for (int64_t c = 0; c < cols; ++c) {
        m[c] = am[c];
        r[c] = static_cast<float>(1.0 / std::sqrt(av[c] + eps));
      }
    }
    by_rows(rows, cols, [&](Rows some) { run().dice(data<float>(y), data<float>(x), data<float>(mean), data<float>(inverse), data<float>(alpha), some); });
    ctx->save_for_backward({x, alpha, mean, inverse});
    ctx->saved_data["train"] = train;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Plain plain;
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &alpha = saved[1], &mean = saved[2], &inverse = saved[3];
    const bool train = ctx->saved_data["train"].toBool();
    const Tensor dy = grads[0].contiguous();
    const int64_t rows = x.size(0), cols = x.size(1);
    const float *g = data<float>(dy), *xs = data<float>(x), *m = data<float>(mean), *r = data<float>(inverse), *a = data<float>(alpha);
    const auto sums = reduce<float>(rows, cols, 3 * cols, [&](float* part, Rows some) { run().dice_sums(part, g, xs, m, r, a, some); });
    const Tensor dalpha = at::empty_like(alpha), level = at::zeros({cols}, x.options()), tilt = at::zeros({cols}, x.options()), dx = at::empty_like(x);
    std::copy(sums.begin(), sums.begin() + cols, data<float>(dalpha));
    if (train) {
      for (int64_t c = 0; c < cols; ++c) {
        data<float>(level)[c] = sums[static_cast<size_t>(cols + c)] / rows;
        data<float>(tilt)[c] = sums[static_cast<size_t>(2 * cols + c)] / rows;
      }
    }
    by_rows(rows, cols, [&](Rows some) { run().dice_backward(data<float>(dx), g, xs, m, r, a, data<float>(level), data<float>(tilt), some); });
    return {dx, dalpha, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

size_t dice(size_t x, size_t alpha, size_t running_mean, size_t running_variance, double eps, double momentum, bool train) {
  const Tensor xs = at_address(x).contiguous(), as = at_address(alpha), mean = at_address(running_mean), variance = at_address(running_variance);
  TORCH_CHECK(xs.dim() == 2 && as.numel() == xs.size(1) && mean.numel() == xs.size(1) && variance.numel() == xs.size(1), "Dice takes [rows, channels]");
  for (const Tensor& one : {xs, as, mean, variance})
    TORCH_CHECK(one.scalar_type() == at::kFloat && one.device().is_cpu() && one.is_contiguous(), "the fused Dice takes contiguous f32 on the CPU");
  TORCH_CHECK(!train || xs.size(0) > 1, "Dice needs at least two rows in training");
  return reinterpret_cast<size_t>(new Tensor(Dice::apply(xs, as, mean, variance, eps, momentum, train)));
}

}  // namespace densely
