// A bilinear form in heads with the two linear terms, forward and backward: no product of the size of its inputs is kept.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../bridge.h"
#include "bilinear_kernels.h"
#include "dispatch.h"

namespace densely {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const BilinearKernels& run() { return DENSELY_PICK(bilinear); }

constexpr int64_t kPieces = 16;  // each sums gradients of its own, whatever the threads

Bilinear size_of(const Tensor& form) { return {static_cast<long>(form.size(0)), static_cast<long>(form.size(1)), static_cast<long>(form.size(2))}; }

BilinearWeights<const float> weights_of(const Tensor& form, const Tensor& left, const Tensor& right) {
  return {data<float>(form), data<float>(left), data<float>(right)};
}

/// f(first row, rows, scratch) for the tiles of some rows.
template <typename F>
void tiles(int64_t first, int64_t last, Bilinear size, const F& f) {
  const Tensor scratch = at::empty({static_cast<int64_t>(run().scratch(size))}, at::kFloat);
  for (int64_t row = first; row < last; row += kBilinearRows) f(row, static_cast<long>(std::min<int64_t>(kBilinearRows, last - row)), data<float>(scratch));
}

struct Form : torch::autograd::Function<Form> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& y, const Tensor& form, const Tensor& left, const Tensor& right) {
    Plain plain;
    const Bilinear size = size_of(form);
    const Tensor out = at::empty({x.size(0)}, x.options());
    const auto weights = weights_of(form, left, right);
    at::parallel_for(0, x.size(0), kBilinearRows, [&](int64_t first, int64_t last) {
      tiles(first, last, size, [&](int64_t row, long rows, float* scratch) {
        run().forward(data<float>(out) + row, data<float>(x) + row * x.size(1), data<float>(y) + row * y.size(1), weights, size, rows, scratch);
      });
    });
    ctx->save_for_backward({x, y, form, left, right});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Plain plain;
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &y = saved[1], &form = saved[2], &left = saved[3], &right = saved[4];
    const Bilinear size = size_of(form);
    const auto weights = weights_of(form, left, right);
    const Tensor g = grads[0].contiguous(), dx = at::empty_like(x), dy = at::empty_like(y);
    const int64_t rows = x.size(0), each = std::max<int64_t>(kBilinearRows, (rows + kPieces - 1) / kPieces), count = (rows + each - 1) / each;
    std::vector<std::array<Tensor, 3>> parts(static_cast<size_t>(count));
    at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
      for (int64_t piece = first; piece < last; ++piece) {
        auto& part = parts[static_cast<size_t>(piece)];
        part = {at::zeros_like(form), at::zeros_like(left), at::zeros_like(right)};
        const BilinearWeights<float> sums{data<float>(part[0]), data<float>(part[1]), data<float>(part[2])};
        tiles(piece * each, std::min(rows, (piece + 1) * each), size, [&](int64_t row, long some, float* scratch) {
          run().backward(data<float>(dx) + row * x.size(1), data<float>(dy) + row * y.size(1), sums, data<float>(g) + row,
                         data<float>(x) + row * x.size(1), data<float>(y) + row * y.size(1), weights, size, some, scratch);
        });
      }
    });
    std::array<Tensor, 3> found{at::zeros_like(form), at::zeros_like(left), at::zeros_like(right)};
    for (const auto& part : parts) {
      for (size_t i = 0; i < found.size(); ++i) found[i].add_(part[i]);
    }
    return {dx, dy, found[0], found[1], found[2]};
  }
};

}  // namespace

size_t bilinear(size_t x, size_t y, size_t form, size_t left, size_t right) {
  const Tensor xs = tensor(x).contiguous(), ys = tensor(y).contiguous(), w = tensor(form).contiguous(), l = tensor(left).contiguous(),
               r = tensor(right).contiguous();
  for (const Tensor& one : {xs, ys, w, l, r})
    TORCH_CHECK(one.scalar_type() == at::kFloat && one.device().is_cpu(), "the fused bilinear form takes f32 on the CPU");
  TORCH_CHECK(xs.dim() == 2 && ys.dim() == 2 && xs.size(0) == ys.size(0) && w.dim() == 3 && xs.size(1) == w.size(0) * w.size(1) &&
                  ys.size(1) == w.size(0) * w.size(2) && l.numel() == xs.size(1) && r.numel() == ys.size(1),
              "a bilinear form of another size");
  return handle(Form::apply(xs, ys, w, l, r));
}

}  // namespace densely
