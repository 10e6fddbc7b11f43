// Hash grids, forward and backward, without atomic sums: the table's gradient is split by levels, and parts of them, of which each thread
// takes the next one. Every entry is summed in the order of the points, so that the bits do not depend on the threads.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <atomic>

#include "../bridge.h"
#include "dispatch.h"
#include "grid_kernels.h"

namespace densely {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kTask = 4096;        // points of a piece of work
constexpr int64_t kTogether = 1 << 18;  // points whose features lie level by level at a time

/// f(task) for each of the tasks, whichever thread is free taking the next one.
template <typename F>
void take_turns(int64_t tasks, const F& f) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(tasks, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    for (int64_t task = next++; task < tasks; task = next++) f(task);
  });
}

/// A level, and where its values begin in the table.
struct Placed {
  GridLevel level;
  int64_t start;
};

/// The levels of a grid, as they come through autograd: of each its entries, whether it is hashed, and a factor for each coordinate.
struct Grid {
  std::vector<int64_t> numbers;
  std::vector<double> scales;
  int64_t inputs, features;
  bool smooth;

  int64_t count() const { return static_cast<int64_t>(scales.size()); }

  std::vector<Placed> levels() const {
    std::vector<Placed> all;
    int64_t start = 0;
    for (size_t l = 0; l < scales.size(); ++l) {
      const int64_t* of = numbers.data() + l * static_cast<size_t>(2 + inputs);
      Placed one{{static_cast<float>(scales[l]), static_cast<unsigned>(of[0]), {}, of[1] != 0, smooth}, start};
      for (int64_t d = 0; d < inputs; ++d) one.level.factors[d] = static_cast<unsigned>(of[2 + d]);
      all.push_back(one);
      start += of[0] * features;
    }
    return all;
  }

  /// Features are 1, 2, 4 or 8.
  const GridKernels& kernels() const { return DENSELY_PICK(grids)[inputs - 2][features == 8 ? 3 : features / 2]; }

  void save(AutogradContext* ctx) const {
    ctx->saved_data["numbers"] = numbers;
    ctx->saved_data["scales"] = scales;
    ctx->saved_data["sizes"] = std::vector<int64_t>{inputs, features, smooth};
  }

  static Grid saved(AutogradContext* ctx) {
    const auto sizes = ctx->saved_data["sizes"].toIntVector();
    return {ctx->saved_data["numbers"].toIntVector(), ctx->saved_data["scales"].toDoubleVector(), sizes[0], sizes[1], sizes[2] != 0};
  }
};

struct HashGrid : torch::autograd::Function<HashGrid> {
  static Tensor forward(AutogradContext* ctx, const Tensor& coords, const Tensor& table, const Grid& grid) {
    Plain plain;
    ctx->save_for_backward({coords, table});
    grid.save(ctx);
    const GridKernels& run = grid.kernels();
    const auto levels = grid.levels();
    const int64_t n = coords.size(0), count = grid.count(), width = count * grid.features;
    const Tensor y = at::empty({n, width}, coords.options()), parts = at::empty({std::min(n, kTogether) * width}, coords.options());
    for (int64_t begin = 0; begin < n; begin += kTogether) {
      const int64_t points = std::min(kTogether, n - begin), tasks = (points + kTask - 1) / kTask;
      const float* xs = data<float>(coords) + begin * grid.inputs;
      take_turns(count * tasks, [&](int64_t task) {
        const int64_t l = task / tasks, first = task % tasks * kTask;
        const Placed& at = levels[static_cast<size_t>(l)];
        run.gather(data<float>(parts) + (l * points + first) * grid.features, xs + first * grid.inputs, data<float>(table) + at.start,
                   static_cast<long>(std::min(kTask, points - first)), at.level);
      });
      at::parallel_for(0, points, kTask, [&](int64_t first, int64_t last) {
        run.join(data<float>(y) + begin * width, data<float>(parts), static_cast<long>(points), static_cast<long>(count), static_cast<long>(first),
                 static_cast<long>(last));
      });
    }
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "the fused hash grid has no second derivatives; switch the fast paths off");
    Plain plain;
    const auto saved = ctx->get_saved_variables();
    const Tensor &coords = saved[0], &table = saved[1];
    const Grid grid = Grid::saved(ctx);
    const GridKernels& run = grid.kernels();
    const auto levels = grid.levels();
    const int64_t n = coords.size(0), count = grid.count(), width = count * grid.features;
    const int64_t shares = (at::get_num_threads() + count - 1) / count;  // of a level, where there are more threads than levels
    const Tensor dy = grads[0].contiguous(), parts = at::empty({std::min(n, kTogether) * width}, coords.options());
    const Tensor dx = ctx->needs_input_grad(0) ? at::zeros_like(coords) : Tensor(), dtable = ctx->needs_input_grad(1) ? at::zeros_like(table) : Tensor();
    for (int64_t begin = 0; begin < n; begin += kTogether) {
      const int64_t points = std::min(kTogether, n - begin);
      const float* xs = data<float>(coords) + begin * grid.inputs;
      const auto of_level = [&](int64_t l, int64_t first) { return data<float>(parts) + (l * points + first) * grid.features; };
      at::parallel_for(0, points, kTask, [&](int64_t first, int64_t last) {
        run.split(data<float>(parts), data<float>(dy) + begin * width, static_cast<long>(points), static_cast<long>(count), static_cast<long>(first),
                  static_cast<long>(last));
      });
      if (dtable.defined()) {
        take_turns(count * shares, [&](int64_t task) {
          const int64_t l = count - 1 - task / shares, share = task % shares;  // fine levels take longest: they come first
          const Placed& at = levels[static_cast<size_t>(l)];
          const unsigned each = static_cast<unsigned>((at.level.entries + shares - 1) / shares);
          run.scatter(data<float>(dtable) + at.start, xs, of_level(l, 0), static_cast<long>(points), at.level, static_cast<unsigned>(share) * each, each);
        });
      }
      if (dx.defined()) {
        take_turns((points + kTask - 1) / kTask, [&](int64_t task) {
          const int64_t first = task * kTask;
          for (int64_t l = 0; l < count; ++l) {
            const Placed& at = levels[static_cast<size_t>(l)];
            run.slope(data<float>(dx) + (begin + first) * grid.inputs, xs + first * grid.inputs, data<float>(table) + at.start, of_level(l, first),
                      static_cast<long>(std::min(kTask, points - first)), at.level);
          }
        });
      }
    }
    return {dx, dtable, Tensor()};
  }
};

void check(const Tensor& xs, int64_t dims, const char* what) {
  TORCH_CHECK(xs.scalar_type() == at::kFloat && xs.device().is_cpu() && xs.dim() == dims, what, " of a fused hash grid are f32 on the CPU");
}

}  // namespace

size_t hash_grid(size_t coords, size_t table, rust::Slice<const int64_t> numbers, rust::Slice<const double> scales, int64_t features, bool smooth) {
  const Tensor xs = tensor(coords).contiguous(), values = tensor(table).contiguous();
  check(xs, 2, "coordinates");
  check(values, 1, "values");
  const int64_t inputs = xs.size(1);
  TORCH_CHECK(inputs >= 2 && inputs <= kGridInputs && (features == 1 || features == 2 || features == 4 || features == 8),
              "the fused hash grid takes 2 to 4 coordinates and 1, 2, 4 or 8 features");
  TORCH_CHECK(!scales.empty() && numbers.size() == scales.size() * static_cast<size_t>(2 + inputs), "a level has its entries and a factor for each coordinate");
  const Grid grid{{numbers.begin(), numbers.end()}, {scales.begin(), scales.end()}, inputs, features, smooth};
  int64_t total = 0;
  for (int64_t l = 0; l < grid.count(); ++l) {
    const int64_t entries = numbers[static_cast<size_t>(l * (2 + inputs))];
    TORCH_CHECK(entries > 0 && entries <= 1 << 30 && (entries >= 8 || (entries & (entries - 1)) == 0), "a level cannot have ", entries, " entries");
    total += entries * features;
  }
  TORCH_CHECK(values.numel() == total, "the levels have ", total, " values, and the table ", values.numel());
  return handle(HashGrid::apply(xs, values, grid));
}

}  // namespace densely
