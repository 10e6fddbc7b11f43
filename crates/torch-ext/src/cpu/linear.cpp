// A linear layer by the products of dispatch.h, forward and backward.

#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../bridge.h"
#include "dispatch.h"

namespace densely {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
    Plain plain;
    const Tensor y = at::empty({x.size(0), weight.size(0)}, x.options());
    product<float>(y, x, weight.t());
    if (bias.has_value()) Tensor(y).add_(*bias);
    ctx->save_for_backward({x, weight});
    ctx->saved_data["needs"] = (x.requires_grad() ? 1 : 0) + (weight.requires_grad() ? 2 : 0) + (bias.has_value() && bias->requires_grad() ? 4 : 0);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Plain plain;
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1];
    const int64_t needs = ctx->saved_data["needs"].toInt();
    const Tensor dy = grads[0].contiguous();
    Tensor dx, dweight, dbias;
    if (needs & 1) {
      dx = at::empty_like(x);
      product<float>(dx, dy, weight);
    }
    if (needs & 2) {
      dweight = at::empty_like(weight);
      product<float>(dweight, dy.t(), x);
    }
    if (needs & 4) dbias = dy.sum(0);
    return {dx, dweight, dbias};
  }
};

}  // namespace

size_t linear(size_t x, size_t weight, size_t bias) {
  const Tensor xs = tensor(x).contiguous(), w = tensor(weight).contiguous();
  const std::optional<Tensor> b = optional(tensor(bias));
  TORCH_CHECK(xs.dim() == 2 && w.dim() == 2 && xs.size(1) == w.size(1) && (!b || b->numel() == w.size(0)), "a linear layer of another width");
  for (const Tensor& one : {xs, w}) TORCH_CHECK(one.scalar_type() == at::kFloat && one.device().is_cpu(), "the fused linear layer takes f32 on the CPU");
  return handle(LinearFunction::apply(xs, w, b));
}

}  // namespace densely
