// Volume rendering of samples that lie ray by ray, each ray with as many as it has, forward and backward.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../bridge.h"
#include "dispatch.h"
#include "ray_kernels.h"

namespace densely {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kRays = 64;  // of a piece of work at least

template <typename P>
const RayKernels<P>& run();
template <>
const RayKernels<float>& run() { return DENSELY_PICK(rays_f32); }
template <>
const RayKernels<double>& run() { return DENSELY_PICK(rays_f64); }

/// f(a value of the kind of `like`).
template <typename F>
void by_kind(const Tensor& like, const F& f) {
  if (like.scalar_type() == at::kDouble) f(double{});
  else f(float{});
}

/// Whatever the threads, a ray is worked on by one, so that sums do not depend on them.
template <typename F>
void by_rays(const Tensor& offsets, const F& f) {
  at::parallel_for(0, offsets.size(0) - 1, kRays, [&](int64_t first, int64_t last) { f(static_cast<long>(first), static_cast<long>(last)); });
}

template <typename P>
RaySamples<P> samples_of(const Tensor& sigma, const Tensor& rgb, const Tensor& start, const Tensor& end, const Tensor& offsets) {
  return {data<P>(sigma), data<P>(rgb), data<P>(start), data<P>(end), data<long>(offsets)};
}

struct Render : torch::autograd::Function<Render> {
  /// rgb [rays, 3], opacity [rays], depth [rays], weights [samples], passing [samples].
  static variable_list forward(AutogradContext* ctx, const Tensor& sigma, const Tensor& rgb, const Tensor& start, const Tensor& end,
                               const Tensor& offsets) {
    Plain plain;
    const int64_t rays = offsets.size(0) - 1;
    const Tensor weights = at::empty_like(sigma), passing = at::empty_like(sigma), colour = at::empty({rays, 3}, sigma.options()),
                 opacity = at::empty({rays}, sigma.options()), depth = at::empty({rays}, sigma.options());
    by_kind(sigma, [&](auto kind) {
      using P = decltype(kind);
      const RayResults<P> to{data<P>(weights), data<P>(passing), data<P>(colour), data<P>(opacity), data<P>(depth)};
      by_rays(offsets, [&](long first, long last) { run<P>().forward(to, samples_of<P>(sigma, rgb, start, end, offsets), first, last); });
    });
    ctx->save_for_backward({sigma, rgb, start, end, offsets, weights, passing});
    ctx->mark_non_differentiable({passing});
    ctx->set_materialize_grads(false);
    return {colour, opacity, depth, weights, passing};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "fused volume rendering has no second derivatives; switch the fast paths off");
    Plain plain;
    const auto saved = ctx->get_saved_variables();
    const Tensor &sigma = saved[0], &rgb = saved[1], &offsets = saved[4], &weights = saved[5], &passing = saved[6];
    for (Tensor& grad : grads) grad = grad.defined() ? grad.contiguous() : grad;
    const Tensor dsigma = at::empty_like(sigma), drgb = ctx->needs_input_grad(1) ? at::empty_like(rgb) : Tensor();
    by_kind(sigma, [&](auto kind) {
      using P = decltype(kind);
      const RayResults<const P> from{data<const P>(grads[3]), nullptr, data<const P>(grads[0]), data<const P>(grads[1]), data<const P>(grads[2])};
      by_rays(offsets, [&](long first, long last) {
        run<P>().backward(data<P>(dsigma), data<P>(drgb), from, data<P>(weights), data<P>(passing),
                          samples_of<P>(sigma, rgb, saved[2], saved[3], offsets), first, last);
      });
    });
    return {dsigma, drgb, Tensor(), Tensor(), Tensor()};
  }
};

/// All of one kind, contiguous, and offsets that name every sample once.
void check(const Tensor& sigma, const Tensor& start, const Tensor& end, const Tensor& offsets) {
  for (const Tensor& one : {sigma, start, end})
    TORCH_CHECK((one.scalar_type() == at::kFloat || one.scalar_type() == at::kDouble) && one.scalar_type() == sigma.scalar_type() &&
                    one.device().is_cpu() && one.is_contiguous() && one.dim() == 1 && one.size(0) == sigma.size(0),
                "samples of rays are as many f32 or f64 on the CPU");
  TORCH_CHECK(offsets.scalar_type() == at::kLong && offsets.device().is_cpu() && offsets.is_contiguous() && offsets.dim() == 1 && offsets.size(0) > 0,
              "offsets of rays are contiguous i64 on the CPU");
  const int64_t* all = data<int64_t>(offsets);
  const int64_t rays = offsets.size(0) - 1;
  TORCH_CHECK(all[0] == 0 && all[rays] == sigma.size(0), "offsets of rays go from 0 to the number of samples");
  for (int64_t ray = 0; ray < rays; ++ray) TORCH_CHECK(all[ray] <= all[ray + 1], "offsets of rays ascend");
}

}  // namespace

rust::Vec<size_t> render_rays(size_t sigma, size_t rgb, size_t start, size_t end, size_t offsets) {
  const Tensor density = tensor(sigma).contiguous(), colours = tensor(rgb).contiguous(), from = tensor(start).contiguous(),
               to = tensor(end).contiguous();
  check(density, from, to, tensor(offsets));
  TORCH_CHECK(colours.scalar_type() == density.scalar_type() && colours.device().is_cpu() && colours.dim() == 2 &&
                  colours.size(0) == density.size(0) && colours.size(1) == 3,
              "colours of samples are [samples, 3] of the densities' kind");
  rust::Vec<size_t> handles;
  for (const Tensor& made : Render::apply(density, colours, from, to, tensor(offsets))) handles.push_back(handle(made));
  return handles;
}

size_t visible_samples(size_t sigma, size_t start, size_t end, size_t offsets, double least_passing, double least_alpha) {
  Plain plain;
  const Tensor density = tensor(sigma).contiguous(), from = tensor(start).contiguous(), to = tensor(end).contiguous(), rays = tensor(offsets);
  check(density, from, to, rays);
  const Tensor seen = at::empty(density.sizes(), density.options().dtype(at::kBool));
  by_kind(density, [&](auto kind) {
    using P = decltype(kind);
    by_rays(rays, [&](long first, long last) {
      run<P>().visible(data<bool>(seen), samples_of<P>(density, Tensor(), from, to, rays), static_cast<P>(least_passing), static_cast<P>(least_alpha),
                       first, last);
    });
  });
  return handle(seen);
}

}  // namespace densely
