// libtorch's fused and foreach kernels, which tch does not bind: one call for all parameters.

#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "bridge.h"

namespace densely {
namespace {

std::vector<at::Tensor> list(rust::Slice<const size_t> pointers) {
  std::vector<at::Tensor> tensors;
  tensors.reserve(pointers.size());
  for (size_t pointer : pointers) tensors.push_back(*reinterpret_cast<const at::Tensor*>(pointer));
  return tensors;
}

/// libtorch's fused steps leave the count of changes alone, which tells whoever keeps something made from a parameter.
void changed(const std::vector<at::Tensor>& params) {
  for (const at::Tensor& param : params) param.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

void fused_adam(rust::Slice<const size_t> params, rust::Slice<const size_t> grads, rust::Slice<const size_t> exp_avgs,
                rust::Slice<const size_t> exp_avg_sqs, rust::Slice<const size_t> steps, double lr, double beta1, double beta2,
                double weight_decay, double eps, bool decoupled, size_t device_lr) {
  at::NoGradGuard no_grad;
  auto p = list(params), g = list(grads), m = list(exp_avgs), v = list(exp_avg_sqs), t = list(steps);
  const auto step = [&](const auto& rate) {
    if (decoupled) at::_fused_adamw_(p, g, m, v, {}, t, rate, beta1, beta2, weight_decay, eps, false, false);
    else at::_fused_adam_(p, g, m, v, {}, t, rate, beta1, beta2, weight_decay, eps, false, false);
  };
  if (device_lr == 0) step(lr);
  else step(*reinterpret_cast<const at::Tensor*>(device_lr));
  changed(p);
}

void fused_sgd(rust::Slice<const size_t> params, rust::Slice<const size_t> grads, rust::Slice<const size_t> buffers, double weight_decay,
               double momentum, double lr, double dampening, bool nesterov, bool first, size_t device_lr) {
  at::NoGradGuard no_grad;
  auto p = list(params), g = list(grads), m = list(buffers);
  const auto step = [&](const auto& rate) { at::_fused_sgd_(p, g, m, weight_decay, momentum, rate, dampening, nesterov, false, first); };
  if (device_lr == 0) step(lr);
  else step(*reinterpret_cast<const at::Tensor*>(device_lr));
  changed(p);
}

size_t clip_grads(rust::Slice<const size_t> grads, double max_norm) {
  at::NoGradGuard no_grad;
  auto g = list(grads);
  const at::Tensor total = at::linalg_vector_norm(at::stack(at::_foreach_norm(g, 2)), 2);
  if (std::isfinite(max_norm)) {
    // The reciprocal first, as Python evaluates `max_norm / tensor`.
    const at::Tensor factor = total.add(1e-6).reciprocal_().mul_(max_norm).clamp_max_(1.0);
    at::_foreach_mul_(g, factor);
  }
  return reinterpret_cast<size_t>(new at::Tensor(total));
}

bool unscale_grads(rust::Slice<const size_t> grads, double factor) {
  at::NoGradGuard no_grad;
  auto g = list(grads);
  const auto options = g[0].options().dtype(at::kFloat);
  at::Tensor found = at::zeros({}, options);
  at::_amp_foreach_non_finite_check_and_unscale_(g, found, at::full({}, factor, options));
  return found.item<float>() == 0;
}

void clear_grads(rust::Slice<const size_t> params) {
  for (size_t pointer : params) reinterpret_cast<at::Tensor*>(pointer)->mutable_grad().reset();
}

}  // namespace densely
