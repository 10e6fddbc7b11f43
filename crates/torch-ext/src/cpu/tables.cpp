// Steps on parameters whose gradient is given for some rows, with a penalty on all rows or on those: the gradient of the whole table is never
// made.

#include "../bridge.h"
#include "dispatch.h"
#include "table_kernels.h"

namespace densely {
namespace {

using at::Tensor;

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

}  // namespace

double table_squares(size_t w, size_t dense, size_t index, size_t values, size_t extra, double l1, double l2, bool all) {
  const Table table = table_of(tensor(w), tensor(dense), tensor(index), tensor(values), tensor(extra), l1, l2, all);
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
  const Tensor parameter = tensor(w), m = tensor(first), v = tensor(second);
  const auto fits = [&](const Tensor& xs) { return xs.defined() && xs.is_contiguous() && xs.scalar_type() == at::kFloat && xs.numel() == parameter.numel(); };
  TORCH_CHECK(fits(v) && (adagrad || fits(m)) && numbers.size() == 8, "moments of another size");
  // l1, l2, scale, β1, β2, step, root, eps
  const auto number = [&](size_t i) { return static_cast<float>(numbers[i]); };
  const Table table = table_of(parameter, tensor(dense), tensor(index), tensor(values), tensor(extra), numbers[0], numbers[1], all);
  const TableStep step{adagrad, number(2), number(3), static_cast<float>(1 - numbers[3]), number(4), static_cast<float>(1 - numbers[4]), number(5), number(6), number(7)};
  float *ms = data<float>(m), *vs = data<float>(v);
  pieces(table, [&](int64_t, int64_t place, int64_t n, const float* g, Penalty penalty) {
    run().step(table.w + place, g, ms ? ms + place : nullptr, vs + place, n, penalty, step);
  });
  parameter.unsafeGetTensorImpl()->bump_version();
}

}  // namespace densely
