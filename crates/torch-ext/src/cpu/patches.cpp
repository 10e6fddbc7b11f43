// PatchTSMixer's blocks along patches and along features, forward and backward: norm, MLP, gate and the input added, plane by plane, where a
// plane is a channel of a window. The hidden layer, some times the plane, is made again on the way back.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../bridge.h"
#include "dispatch.h"
#include "patch_kernels.h"

namespace densely {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <typename P>
const PatchKernels<P>& patch_kernels();
template <>
const PatchKernels<float>& patch_kernels() { return DENSELY_PICK(patch_f32); }
template <>
const PatchKernels<double>& patch_kernels() { return DENSELY_PICK(patch_f64); }

/// gamma, beta, W1, bias1, W2, bias2, gate, biasg.
using Params = std::array<Tensor, 8>;

struct Settings {
  double eps, p;
  int64_t seed;
  bool along_features;
};

template <typename P>
PatchMlp<P> pointers(const Tensor& x, const Params& params, const Settings& settings) {
  const Dropout dropout = dropout_of(settings.p, settings.seed);
  Dropout other = dropout;
  other.seed ^= 0x6a09e667f3bcc909ull;
  const auto of = [&](size_t i) { return data<P>(params[i]); };
  return {static_cast<long>(x.size(-2)), static_cast<long>(x.size(-1)), static_cast<long>(params[2].size(0)), settings.along_features,
          of(0), of(1), static_cast<P>(settings.eps), of(2), of(3), of(4), of(5), of(6), of(7), dropout, other};
}

int64_t planes_of(const Tensor& x) { return x.numel() / std::max<int64_t>(1, x.size(-1) * x.size(-2)); }

struct Made {
  Tensor out, u, s;
};

template <typename P>
Made forward(const Tensor& x, const Params& params, const Settings& settings, bool keep) {
  Made made{at::empty_like(x), keep ? at::empty_like(x) : Tensor(), keep ? at::empty_like(x) : Tensor()};
  const PatchMlp<P> mlp = pointers<P>(x, params, settings);
  const auto& run = patch_kernels<P>();
  const int64_t each = x.size(-1) * x.size(-2);
  at::parallel_for(0, planes_of(x), 1, [&](int64_t first, int64_t last) {
    const Tensor scratch = at::empty({run.scratch(mlp.patches, mlp.features, mlp.hidden)}, x.options());
    const auto at = [&](const Tensor& xs, int64_t plane) { return xs.defined() ? data<P>(xs) + plane * each : nullptr; };
    for (int64_t plane = first; plane < last; ++plane) {
      run.forward(at(made.out, plane), at(made.u, plane), at(made.s, plane), at(x, plane), mlp, plane, data<P>(scratch));
    }
  });
  return made;
}

template <typename P>
variable_list backward(const Tensor& dout, const Tensor& x, const Tensor& u, const Tensor& s, const Params& params, const Settings& settings) {
  const PatchMlp<P> mlp = pointers<P>(x, params, settings);
  const auto& run = patch_kernels<P>();
  const int64_t each = x.size(-1) * x.size(-2), threads = at::get_num_threads(), mixed = params[2].size(1), hidden = params[2].size(0);
  const int64_t wide = run.padded(mixed);
  const auto zeros = [&](at::IntArrayRef size) { return at::zeros(size, x.options()); };
  // gamma, beta, W1, bias1, W2 turned, bias2, gate, biasg of each thread.
  const Params sums{zeros({threads, mlp.features}), zeros({threads, mlp.features}), zeros({threads, hidden, wide}), zeros({threads, hidden}),
                    zeros({threads, hidden, wide}), zeros({threads, mixed}),        zeros({threads, mixed, wide}),  zeros({threads, mixed})};
  const Tensor dx = at::empty_like(x);
  at::parallel_for(0, planes_of(x), 1, [&](int64_t first, int64_t last) {
    const auto mine = [&](size_t i) { return data<P>(sums[i]) + at::get_thread_num() * sums[i].stride(0); };
    const PatchGradients<P> grads{mine(0), mine(1), mine(2), mine(3), mine(4), mine(5), mine(6), mine(7)};
    const Tensor scratch = at::empty({run.scratch(mlp.patches, mlp.features, mlp.hidden)}, x.options());
    const auto at = [&](const Tensor& xs, int64_t plane) { return data<P>(xs) + plane * each; };
    for (int64_t plane = first; plane < last; ++plane) {
      run.backward(at(dx, plane), grads, at(dout, plane), at(x, plane), at(u, plane), at(s, plane), mlp, plane, data<P>(scratch));
    }
  });
  const auto total = [&](size_t i) { return threads == 1 ? sums[i][0] : sums[i].sum(0); };
  const auto matrix = [&](size_t i) { return total(i).narrow(1, 0, mixed); };
  return {dx, total(0), total(1), matrix(2), total(3), matrix(4).t(), total(5), matrix(6), total(7), {}, {}, {}, {}};
}

class PatchBlock : public torch::autograd::Function<PatchBlock> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& gamma, const Tensor& beta, const Tensor& w1, const Tensor& bias1,
                        const Tensor& w2, const Tensor& bias2, const Tensor& gate, const Tensor& biasg, double eps, double p, int64_t seed,
                        bool along_features) {
    const Params params{gamma, beta, w1, bias1, w2, bias2, gate, biasg};
    const Settings settings{eps, p, seed, along_features};
    const Made made = x.scalar_type() == at::kDouble ? densely::forward<double>(x, params, settings, true) : densely::forward<float>(x, params, settings, true);
    context->save_for_backward({x, made.u, made.s, gamma, beta, w1, bias1, w2, bias2, gate, biasg});
    context->saved_data["eps"] = eps;
    context->saved_data["p"] = p;
    context->saved_data["seed"] = seed;
    context->saved_data["along_features"] = along_features;
    return made.out;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "a fused mixing has no second derivatives; switch the fast paths off");
    const auto saved = context->get_saved_variables();
    Params params;
    std::copy(saved.begin() + 3, saved.end(), params.begin());
    const Settings settings{context->saved_data["eps"].toDouble(), context->saved_data["p"].toDouble(), context->saved_data["seed"].toInt(),
                            context->saved_data["along_features"].toBool()};
    const Tensor dout = grads[0].contiguous();
    return saved[0].scalar_type() == at::kDouble ? densely::backward<double>(dout, saved[0], saved[1], saved[2], params, settings)
                                                 : densely::backward<float>(dout, saved[0], saved[1], saved[2], params, settings);
  }
};

}  // namespace

size_t patch_block(size_t x, rust::Slice<const size_t> params, double eps, double p, int64_t seed, bool along_features) {
  const Tensor xs = reinterpret_cast<const Tensor*>(x)->contiguous();
  TORCH_CHECK(xs.dim() >= 2 && (xs.scalar_type() == at::kFloat || xs.scalar_type() == at::kDouble), "x must be [.., patches, features] of f32 or f64");
  Params all;
  TORCH_CHECK(params.size() == all.size(), "eight parameters are expected");
  for (size_t i = 0; i < all.size(); ++i) {
    all[i] = reinterpret_cast<const Tensor*>(params[i])->contiguous();
    TORCH_CHECK(all[i].scalar_type() == xs.scalar_type(), "parameters must be of the kind of x");
  }
  const int64_t mixed = along_features ? xs.size(-1) : xs.size(-2);
  const auto& [gamma, beta, w1, bias1, w2, bias2, gate, biasg] = all;
  TORCH_CHECK(gamma.numel() == xs.size(-1) && beta.numel() == xs.size(-1), "the norm must fit the features");
  TORCH_CHECK(w1.dim() == 2 && w1.size(1) == mixed && bias1.numel() == w1.size(0) && w2.dim() == 2 && w2.size(0) == mixed &&
                  w2.size(1) == w1.size(0) && bias2.numel() == mixed && gate.dim() == 2 && gate.size(0) == mixed && gate.size(1) == mixed &&
                  biasg.numel() == mixed,
              "the layers must fit what is mixed");
  const Settings settings{eps, p, seed, along_features};
  Tensor out;
  if (at::GradMode::is_enabled()) out = PatchBlock::apply(xs, gamma, beta, w1, bias1, w2, bias2, gate, biasg, eps, p, seed, along_features);
  else out = xs.scalar_type() == at::kDouble ? forward<double>(xs, all, settings, false).out : forward<float>(xs, all, settings, false).out;
  return reinterpret_cast<size_t>(new Tensor(std::move(out)));
}

}  // namespace densely
