// Dictionaries of which few features are active: the encoder's product, of which only the active values are kept, and the decoder's product and all
// gradients over those alone. Rows and their active columns are held as offsets [rows + 1], columns and values [active].

#include <ATen/ops/full.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "../bridge.h"
#include "dispatch.h"
#include "sparse_kernels.h"

namespace densely {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const SparseKernels& run() { return DENSELY_PICK(sparse); }

/// Rows whose pre-activations are in memory at a time.
constexpr int64_t kRows = 512;

/// How active features are chosen; the numbers of `Select` in sparse.rs.
enum class Select { above, row, batch };

/// Active places in the order of the rows.
struct Active {
  std::vector<int64_t> offsets{0};
  std::vector<int> columns;
  std::vector<float> values;
};

/// The places of the same column side by side, in the order of the rows.
struct Columns {
  std::vector<int64_t> starts;  // of each column's places, and the end
  std::vector<int> rows;        // of each place
  std::vector<float> values;

  Columns(const int64_t* offsets, int64_t count_rows, const int* columns, const float* of, int64_t features)
      : starts(static_cast<size_t>(features) + 1, 0), rows(static_cast<size_t>(offsets[count_rows])), values(rows.size()) {
    const int64_t count = offsets[count_rows];
    for (int64_t i = 0; i < count; ++i) ++starts[static_cast<size_t>(columns[i]) + 1];
    for (size_t j = 1; j < starts.size(); ++j) starts[j] += starts[j - 1];
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t row = 0; row < count_rows; ++row) {
      for (int64_t i = offsets[row]; i < offsets[row + 1]; ++i) {
        const auto place = static_cast<size_t>(next[static_cast<size_t>(columns[i])]++);
        rows[place] = static_cast<int>(row);
        values[place] = of[i];
      }
    }
  }

  /// [features, d]: Σ value · xs[row] of each column's places.
  Tensor sums(const Tensor& xs) const {
    const int64_t features = static_cast<int64_t>(starts.size()) - 1, d = xs.size(1);
    const Tensor made = at::empty({features, d}, xs.options());
    const float* from = data<float>(xs);
    float* to = data<float>(made);
    at::parallel_for(0, features, 64, [&](int64_t first, int64_t last) {
      for (int64_t j = first; j < last; ++j) {
        const auto start = static_cast<size_t>(starts[static_cast<size_t>(j)]);
        const long count = static_cast<long>(starts[static_cast<size_t>(j) + 1]) - static_cast<long>(start);
        run().gather(to + j * d, values.data() + start, rows.data() + start, count, from, d);
      }
    });
    return made;
  }

  /// [features]: Σ value of each column's places.
  Tensor sums() const {
    const int64_t features = static_cast<int64_t>(starts.size()) - 1;
    const Tensor made = at::zeros({features}, at::kFloat);
    for (int64_t j = 0; j < features; ++j) {
      for (int64_t i = starts[static_cast<size_t>(j)]; i < starts[static_cast<size_t>(j) + 1]; ++i) data<float>(made)[j] += values[static_cast<size_t>(i)];
    }
    return made;
  }
};

/// A value that may be among the largest of all: where it stands, by what it is compared, and itself.
struct Candidate {
  int64_t place;
  float score, value;
};

/// Of candidates in the order of their places, the `count` largest (of equal ones the first), in that order still; gives the least score that stays.
float keep_largest(std::vector<Candidate>& all, int64_t count) {
  if (static_cast<int64_t>(all.size()) <= count) return 0.0f;
  std::nth_element(all.begin(), all.begin() + (count - 1), all.end(),
                   [](const Candidate& a, const Candidate& b) { return a.score > b.score || (a.score == b.score && a.place < b.place); });
  const float least = all[static_cast<size_t>(count - 1)].score;
  all.resize(static_cast<size_t>(count));
  std::sort(all.begin(), all.end(), [](const Candidate& a, const Candidate& b) { return a.place < b.place; });
  return least;
}

/// The active values of x W + b. False where more than `most` of all values are active: dense products are faster then.
bool encode(Active& active, const Tensor& x, const Tensor& weight, const Tensor& bias, Select select, int64_t k, const Tensor& bound, const Tensor& scale,
            double most) {
  const int64_t rows = x.size(0), n = weight.size(1);
  const Tensor pre = at::empty({std::min(rows, kRows), n}, x.options());
  const int64_t room = select == Select::row ? std::min(k, n) : n;
  std::vector<int> columns(static_cast<size_t>(pre.size(0) * (n + 1)));
  std::vector<float> values(columns.size());
  std::vector<long> counts(static_cast<size_t>(pre.size(0)));
  std::vector<Candidate> candidates;
  float least = 0.0f;
  Tensor floor;
  for (int64_t from = 0; from < rows; from += kRows) {
    const int64_t here = std::min(kRows, rows - from);
    Tensor part = pre.narrow(0, 0, here);
    product<float>(part, x.narrow(0, from, here), weight);
    const float *add = data<float>(bias), *bounds = select == Select::above ? data<float>(bound) : data<float>(floor), *scales = data<float>(scale);
    at::parallel_for(0, here, 8, [&](int64_t first, int64_t last) {
      std::vector<float> scratch(static_cast<size_t>(2 * n + 16));
      for (int64_t r = first; r < last; ++r) {
        float* row = data<float>(part) + r * n;
        for (int64_t c = 0; c < n; ++c) row[c] += add[c];
        int* to = columns.data() + r * (n + 1);
        float* what = values.data() + r * (n + 1);
        counts[static_cast<size_t>(r)] =
            select == Select::row ? run().largest(row, scales, n, room, scratch.data(), to, what) : run().above(row, bounds, n, to, what);
      }
    });
    for (int64_t r = 0; r < here; ++r) {
      const int* to = columns.data() + r * (n + 1);
      const float* what = values.data() + r * (n + 1);
      const long count = counts[static_cast<size_t>(r)];
      if (select == Select::batch) {
        for (long i = 0; i < count; ++i) candidates.push_back({(from + r) * n + to[i], scales ? what[i] * scales[to[i]] : what[i], what[i]});
        continue;
      }
      active.columns.insert(active.columns.end(), to, to + count);
      active.values.insert(active.values.end(), what, what + count);
      active.offsets.push_back(static_cast<int64_t>(active.columns.size()));
    }
    if (select == Select::batch) {
      least = std::max(least, keep_largest(candidates, k));
      // Whatever comes later must reach it, but for rounding.
      if (least > 0.0f) {
        floor = at::full({n}, least * 0.999999f, x.options());
        if (scale.defined()) floor.div_(scale);
      }
    } else if (static_cast<double>(active.columns.size()) > most * static_cast<double>((from + here) * n)) {
      return false;
    }
  }
  if (select == Select::batch) {
    active.offsets.assign(static_cast<size_t>(rows) + 1, 0);
    for (const Candidate& each : candidates) {
      ++active.offsets[static_cast<size_t>(each.place / n) + 1];
      active.columns.push_back(static_cast<int>(each.place % n));
      active.values.push_back(each.value);
    }
    for (size_t r = 1; r < active.offsets.size(); ++r) active.offsets[r] += active.offsets[r - 1];
  }
  return true;
}

template <typename T>
Tensor tensor_of(const std::vector<T>& values, at::ScalarType kind) {
  const Tensor made = at::empty({static_cast<int64_t>(values.size())}, kind);
  std::copy(values.begin(), values.end(), data<T>(made));
  return made;
}

/// Rows of a matrix [d, n] that is laid out as [n, d], or a copy of it that is.
Tensor transposed(const Tensor& weight) { return weight.t().contiguous(); }

/// The active values as a function of x, weight and bias; which ones they are is not differentiated.
struct Encode : torch::autograd::Function<Encode> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor&, const Tensor& values, const Tensor& offsets,
                        const Tensor& columns) {
    ctx->save_for_backward({x, weight, offsets, columns});
    return values.alias();
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Plain plain;
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &offsets = saved[2], &columns = saved[3];
    const Tensor dv = grads[0].contiguous();
    const int64_t rows = x.size(0), d = x.size(1);
    Tensor dx, dw, db;
    if (ctx->needs_input_grad(1) || ctx->needs_input_grad(2)) {
      const Columns by_column(data<int64_t>(offsets), rows, data<int>(columns), data<float>(dv), weight.size(1));
      // Laid out as the weight best is: a transpose of whole rows.
      if (ctx->needs_input_grad(1)) dw = by_column.sums(x).t();
      if (ctx->needs_input_grad(2)) db = by_column.sums();
    }
    if (ctx->needs_input_grad(0)) {
      dx = at::empty_like(x);
      const Tensor lines = transposed(weight);
      at::parallel_for(0, rows, 16, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r) {
          const int64_t start = data<int64_t>(offsets)[r], count = data<int64_t>(offsets)[r + 1] - start;
          run().gather(data<float>(dx) + r * d, data<float>(dv) + start, data<int>(columns) + start, count, data<float>(lines), d);
        }
      });
    }
    return {dx, dw, db, Tensor(), Tensor(), Tensor()};
  }
};

/// y[r] = Σ values · weight[columns] of a row's active places.
struct Decode : torch::autograd::Function<Decode> {
  static Tensor forward(AutogradContext* ctx, const Tensor& values, const Tensor& weight, const Tensor& offsets, const Tensor& columns) {
    Plain plain;
    ctx->save_for_backward({values, weight, offsets, columns});
    const int64_t rows = offsets.numel() - 1, d = weight.size(1);
    const Tensor y = at::empty({rows, d}, weight.options());
    at::parallel_for(0, rows, 16, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        const int64_t start = data<int64_t>(offsets)[r], count = data<int64_t>(offsets)[r + 1] - start;
        run().gather(data<float>(y) + r * d, data<float>(values) + start, data<int>(columns) + start, count, data<float>(weight), d);
      }
    });
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Plain plain;
    const auto saved = ctx->get_saved_variables();
    const Tensor &values = saved[0], &weight = saved[1], &offsets = saved[2], &columns = saved[3];
    const Tensor dy = grads[0].contiguous();
    const int64_t rows = dy.size(0), d = dy.size(1);
    Tensor dv, dw;
    if (ctx->needs_input_grad(0)) {
      dv = at::empty_like(values);
      at::parallel_for(0, rows, 16, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r) {
          const int64_t start = data<int64_t>(offsets)[r], count = data<int64_t>(offsets)[r + 1] - start;
          run().dots(data<float>(dv) + start, data<float>(dy) + r * d, data<int>(columns) + start, count, data<float>(weight), d);
        }
      });
    }
    if (ctx->needs_input_grad(1)) {
      dw = Columns(data<int64_t>(offsets), rows, data<int>(columns), data<float>(values), weight.size(0)).sums(dy);
    }
    return {dv, dw, Tensor(), Tensor()};
  }
};

bool is_plain(const Tensor& xs) { return xs.scalar_type() == at::kFloat && xs.device().is_cpu(); }

void check_matrix(const Tensor& xs, const char* what) {
  TORCH_CHECK(xs.dim() == 2 && is_plain(xs), what, " is a matrix of f32 on the CPU");
}

}  // namespace

rust::Vec<size_t> sparse_encode(size_t x, size_t weight, size_t bias, int8_t select, int64_t k, size_t bound, size_t scale, double most) {
  const Tensor &xs = tensor(x), &w = tensor(weight), &b = tensor(bias);
  check_matrix(xs, "x");
  check_matrix(w, "the weight");
  const int64_t n = w.size(1);
  TORCH_CHECK(xs.size(1) == w.size(0) && b.dim() == 1 && b.size(0) == n && b.is_contiguous() && is_plain(b), "x, weight and bias do not fit");
  TORCH_CHECK(n < (int64_t{1} << 31), "too many features");
  for (const Tensor& each : {tensor(bound), tensor(scale)}) {
    TORCH_CHECK(!each.defined() || (each.dim() == 1 && each.size(0) == n && each.is_contiguous() && is_plain(each)),
                "one bound and scale to each feature");
  }
  const Tensor rows = xs.contiguous();
  Active active;
  bool few;
  {
    Plain plain;
    few = encode(active, rows, w, b, static_cast<Select>(select), k, tensor(bound), tensor(scale), most);
  }
  rust::Vec<size_t> made;
  if (!few) return made;
  Tensor offsets, columns, values;
  {
    Plain plain;
    offsets = tensor_of(active.offsets, at::kLong);
    columns = tensor_of(active.columns, at::kInt);
    values = tensor_of(active.values, at::kFloat);
  }
  made.push_back(handle(offsets));
  made.push_back(handle(columns));
  made.push_back(handle(Encode::apply(rows, w, b, values, offsets, columns)));
  return made;
}

size_t sparse_decode(size_t values, size_t offsets, size_t columns, size_t weight) {
  const Tensor &of = tensor(values), &starts = tensor(offsets), &places = tensor(columns), &w = tensor(weight);
  check_matrix(w, "the weight");
  TORCH_CHECK(of.dim() == 1 && is_plain(of) && places.numel() == of.numel() && places.scalar_type() == at::kInt && places.device().is_cpu() &&
                  starts.scalar_type() == at::kLong && starts.device().is_cpu() && starts.is_contiguous() && places.is_contiguous() && starts.numel() > 0,
              "values, offsets and columns do not fit");
  int64_t before = 0;
  for (int64_t r = 0; r < starts.numel(); ++r) {
    const int64_t next = data<int64_t>(starts)[r];
    TORCH_CHECK(next >= before && (r > 0 || next == 0) && next <= of.numel(), "offsets that do not ascend");
    before = next;
  }
  TORCH_CHECK(before == of.numel(), "offsets that do not end at the last value");
  for (int64_t i = 0; i < places.numel(); ++i) {
    const int column = data<int>(places)[i];
    TORCH_CHECK(column >= 0 && column < w.size(0), "feature ", column, " of a dictionary with ", w.size(0));
  }
  return handle(Decode::apply(of.contiguous(), w.contiguous(), starts, places));
}

}  // namespace densely
