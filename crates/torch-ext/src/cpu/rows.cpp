// Rows that occur several times: which ones there are, and sums over those that are the same. All sums run in the order of the rows.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_copy.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <numeric>

#include "../bridge.h"
#include "dispatch.h"

namespace densely {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Places by ascending id, places of the same id in their order.
struct Groups {
  std::vector<int64_t> order, ids;
  std::vector<size_t> starts;  // of each id's places, and the end

  size_t size() const { return ids.size(); }
};

/// Of ids below `limit`: a radix sort, one pass where they are small.
Groups groups_of(const int64_t* ids, int64_t count, int64_t limit) {
  constexpr int kBits = 12;
  constexpr int64_t kDigits = int64_t{1} << kBits;
  Groups groups;
  groups.order.resize(static_cast<size_t>(count));
  std::iota(groups.order.begin(), groups.order.end(), 0);
  std::vector<int64_t> next(groups.order.size());
  for (int shift = 0; shift == 0 || (shift < 63 && (limit - 1) >> shift > 0); shift += kBits) {
    std::vector<int64_t> first(kDigits + 1, 0);
    for (int64_t i = 0; i < count; ++i) ++first[((ids[i] >> shift) & (kDigits - 1)) + 1];
    for (int64_t digit = 0; digit < kDigits; ++digit) first[digit + 1] += first[digit];
    for (const int64_t place : groups.order) next[first[(ids[place] >> shift) & (kDigits - 1)]++] = place;
    groups.order.swap(next);
  }
  for (size_t i = 0; i < groups.order.size(); ++i) {
    const int64_t id = ids[groups.order[i]];
    if (groups.ids.empty() || groups.ids.back() != id) {
      groups.ids.push_back(id);
      groups.starts.push_back(i);
    }
  }
  groups.starts.push_back(groups.order.size());
  return groups;
}

/// sums[i] = Σ values of the places of group i, groups [first, last).
void sum(float* __restrict sums, const float* __restrict values, int64_t dim, const Groups& groups, size_t first, size_t last) {
  for (size_t group = first; group < last; ++group) {
    float* to = sums + static_cast<int64_t>(group) * dim;
    std::memcpy(to, values + groups.order[groups.starts[group]] * dim, sizeof(float) * static_cast<size_t>(dim));
    for (size_t i = groups.starts[group] + 1; i < groups.starts[group + 1]; ++i) {
      const float* from = values + groups.order[i] * dim;
      for (int64_t c = 0; c < dim; ++c) to[c] += from[c];
    }
  }
}

Tensor tensor_of(const std::vector<int64_t>& values) {
  const Tensor made = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), data<int64_t>(made));
  return made;
}

const Tensor& checked_ids(const Tensor& ids, int64_t limit) {
  TORCH_CHECK(ids.scalar_type() == at::kLong && ids.device().is_cpu() && ids.is_contiguous(), "ids are contiguous i64 on the CPU");
  const int64_t* all = data<int64_t>(ids);
  for (int64_t i = 0; i < ids.numel(); ++i) TORCH_CHECK(all[i] >= 0 && all[i] < limit, "id ", all[i], " of a table with ", limit, " rows");
  return ids;
}

struct Repeat : torch::autograd::Function<Repeat> {
  static Tensor forward(AutogradContext* ctx, const Tensor& rows, const Tensor& place) {
    Plain plain;
    ctx->save_for_backward({place});
    ctx->saved_data["rows"] = rows.size(0);
    return at::index_select(rows, 0, place);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Plain plain;
    const Tensor place = ctx->get_saved_variables()[0], dy = grads[0].contiguous();
    const int64_t rows = ctx->saved_data["rows"].toInt(), dim = dy.size(1);
    const Groups groups = groups_of(data<int64_t>(place), place.numel(), rows);
    // A row that nothing repeats has no gradient.
    const bool all = static_cast<int64_t>(groups.size()) == rows;
    const Tensor sums = at::empty({static_cast<int64_t>(groups.size()), dim}, dy.options());
    at::parallel_for(0, static_cast<int64_t>(groups.size()), 64, [&](int64_t first, int64_t last) {
      sum(data<float>(sums), data<float>(dy), dim, groups, static_cast<size_t>(first), static_cast<size_t>(last));
    });
    if (all) return {sums, Tensor()};
    return {at::zeros({rows, dim}, dy.options()).index_copy_(0, tensor_of(groups.ids), sums), Tensor()};
  }
};

}  // namespace

rust::Vec<size_t> sum_rows(rust::Slice<const size_t> ids, rust::Slice<const size_t> values, rust::Slice<const int64_t> limits) {
  Plain plain;
  TORCH_CHECK(ids.size() == values.size() && ids.size() == limits.size(), "tables of different numbers");
  for (size_t i = 0; i < ids.size(); ++i) {
    const Tensor& rows = tensor(values[i]);
    TORCH_CHECK(rows.dim() == 2 && rows.scalar_type() == at::kFloat && rows.device().is_cpu() && rows.is_contiguous() &&
                    rows.size(0) == tensor(ids[i]).numel(),
                "rows are contiguous f32 on the CPU, one to each id");
    checked_ids(tensor(ids[i]), limits[i]);
  }
  std::vector<std::pair<Tensor, Tensor>> found(ids.size());
  at::parallel_for(0, static_cast<int64_t>(ids.size()), 1, [&](int64_t first, int64_t last) {
    Plain inner;
    for (int64_t i = first; i < last; ++i) {
      const auto place = static_cast<size_t>(i);
      const Tensor &of = tensor(ids[place]), &rows = tensor(values[place]);
      const Groups groups = groups_of(data<int64_t>(of), of.numel(), limits[place]);
      const Tensor sums = at::empty({static_cast<int64_t>(groups.size()), rows.size(1)}, rows.options());
      sum(data<float>(sums), data<float>(rows), rows.size(1), groups, 0, groups.size());
      found[place] = {tensor_of(groups.ids), sums};
    }
  });
  rust::Vec<size_t> handles;
  for (auto& [index, sums] : found) {
    handles.push_back(handle(index));
    handles.push_back(handle(sums));
  }
  return handles;
}

rust::Vec<size_t> distinct(size_t ids, int64_t limit) {
  Plain plain;
  const Tensor& of = checked_ids(tensor(ids), limit);
  const Groups groups = groups_of(data<int64_t>(of), of.numel(), limit);
  const Tensor place = at::empty_like(of);
  for (size_t group = 0; group < groups.size(); ++group) {
    for (size_t i = groups.starts[group]; i < groups.starts[group + 1]; ++i) data<int64_t>(place)[groups.order[i]] = static_cast<int64_t>(group);
  }
  rust::Vec<size_t> handles;
  handles.push_back(handle(tensor_of(groups.ids)));
  handles.push_back(handle(place));
  return handles;
}

size_t repeat_rows(size_t rows, size_t place) {
  const Tensor from = tensor(rows).contiguous(), to = tensor(place).contiguous();
  TORCH_CHECK(from.dim() == 2 && from.scalar_type() == at::kFloat && from.device().is_cpu() && to.dim() == 1, "rows are f32 on the CPU");
  checked_ids(to, from.size(0));
  return handle(Repeat::apply(from, to));
}

}  // namespace densely
