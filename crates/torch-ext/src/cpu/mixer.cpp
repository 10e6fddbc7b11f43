// TSMixer's two halves of a block, forward and backward, over windows that lie channel by channel, [batch, channels, steps]: nothing is
// turned round between them.
//
//   time:      out = x + dropout(relu(norm(x) Wᵀ + b))                                 one product over all windows and channels
//   features:  out = x + dropout(W2 dropout(relu(W1 norm(x) + b1)) + b2)               over the channels of each step
//
// norm is the batch norm of each point of the plane [channels, steps], or the layer norm of each window. Features never keeps the hidden layer, which is many times the
// window: a tile of steps passes through it in the processor's cache, and once more on the way back.

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../bridge.h"
#include "dispatch.h"
#include "forms.h"
#include "mixer_kernels.h"

namespace densely {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <typename P>
const MixerKernels<P>& mixer_kernels();
template <>
const MixerKernels<float>& mixer_kernels() { return DENSELY_PICK(mixer_f32); }
template <>
const MixerKernels<double>& mixer_kernels() { return DENSELY_PICK(mixer_f64); }

constexpr int64_t kSteps = 512;  // of a tile at most

/// A norm of one call, and the normed windows. Of the batch norm mean, deviation and scale = gamma / deviation are [channels, steps]; of the
/// layer norm mean and deviation are [batch], and there is no scale.
struct Norm {
  Tensor mean, deviation, scale, beta, y;
};

struct NormArgs {
  Tensor gamma, beta;                     // [channels, steps], contiguous
  Tensor running_mean, running_variance;  // [channels, steps], of any strides; undefined for the layer norm
  double eps, momentum;
  bool train;

  bool layer() const { return !running_mean.defined(); }
};

int64_t plane_of(const Tensor& x) { return x.size(1) * x.size(2); }

/// y = (x - mean) ∘ scale + beta by the batch norm.
template <typename P>
Tensor affine(const Tensor& x, const Norm& norm) {
  const Tensor y = at::empty_like(x);
  const auto& run = mixer_kernels<P>();
  at::parallel_for(0, x.size(0), 1, [&](int64_t from, int64_t to) {
    const int64_t at = from * plane_of(x);
    run.affine(data<P>(y) + at, data<P>(x) + at, data<P>(norm.mean), data<P>(norm.scale), data<P>(norm.beta), to - from, plane_of(x));
  });
  return y;
}

template <typename P>
Norm layer_norm(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps) {
  const Norm norm{at::empty({x.size(0)}, x.options()), at::empty({x.size(0)}, x.options()), Tensor(), beta, at::empty_like(x)};
  const auto& run = mixer_kernels<P>();
  at::parallel_for(0, x.size(0), 1, [&](int64_t from, int64_t to) {
    const int64_t at = from * plane_of(x);
    run.layer_norm(data<P>(norm.y) + at, data<P>(norm.mean) + from, data<P>(norm.deviation) + from, data<P>(x) + at, data<P>(gamma),
                   data<P>(beta), static_cast<P>(eps), to - from, plane_of(x));
  });
  return norm;
}

template <typename P>
Norm normalise(const Tensor& x, const NormArgs& args) {
  if (args.layer()) return layer_norm<P>(x, args.gamma, args.beta, args.eps);
  Norm norm;
  if (args.train) {
    norm.mean = at::empty_like(args.gamma);
    norm.deviation = at::empty_like(args.gamma);
    const auto& run = mixer_kernels<P>();
    at::parallel_for(0, plane_of(x), 256, [&](int64_t from, int64_t to) {
      run.moments(data<P>(norm.mean), data<P>(norm.deviation), data<P>(x), x.size(0), plane_of(x), from, to);
    });
    Tensor mean = args.running_mean, variance = args.running_variance;
    mean.lerp_(norm.mean, args.momentum);
    variance.lerp_(norm.deviation, args.momentum);
    norm.deviation.add_(args.eps).sqrt_();
  } else {
    norm.mean = args.running_mean.contiguous();
    norm.deviation = (args.running_variance + args.eps).sqrt_().contiguous();
  }
  norm.scale = args.gamma / norm.deviation;
  norm.beta = args.beta;
  norm.y = affine<P>(x, norm);
  return norm;
}

/// The normed windows once more, on the way back.
template <typename P>
Tensor again(const Tensor& x, const Norm& norm, const Tensor& gamma, double eps) {
  return norm.scale.defined() ? affine<P>(x, norm) : layer_norm<P>(x, gamma, norm.beta, eps).y;
}

struct NormGradients {
  Tensor x, gamma, beta;
};

/// dy: gradient behind the norm, whose memory becomes that of x's; dout: gradient that goes past it.
template <typename P>
NormGradients norm_backward(const Tensor& dy, const Tensor& dout, const Tensor& x, const Norm& norm, const Tensor& gamma, bool train) {
  const auto& run = mixer_kernels<P>();
  if (!norm.scale.defined()) {
    const int64_t threads = at::get_num_threads();
    const Tensor dgamma = at::zeros({threads, gamma.size(0), gamma.size(1)}, gamma.options()), dbeta = at::zeros_like(dgamma);
    at::parallel_for(0, x.size(0), 1, [&](int64_t from, int64_t to) {
      const int64_t at = from * plane_of(x), mine = at::get_thread_num() * plane_of(x);
      run.layer_backward(data<P>(dy) + at, data<P>(dgamma) + mine, data<P>(dbeta) + mine, data<P>(dy) + at, data<P>(dout) + at,
                         data<P>(x) + at, data<P>(norm.mean) + from, data<P>(norm.deviation) + from, data<P>(gamma), to - from, plane_of(x));
    });
    return {dy, threads == 1 ? dgamma[0] : dgamma.sum(0), threads == 1 ? dbeta[0] : dbeta.sum(0)};
  }
  NormGradients found{dy, at::empty_like(gamma), at::empty_like(gamma)};
  at::parallel_for(0, plane_of(x), 256, [&](int64_t from, int64_t to) {
    run.norm_backward(data<P>(dy), data<P>(found.gamma), data<P>(found.beta), data<P>(dy), data<P>(dout), data<P>(x), data<P>(norm.mean),
                      data<P>(norm.deviation), data<P>(gamma), x.size(0), plane_of(x), from, to, !train);
  });
  return found;
}

/// The second dropout of features.
Dropout other(Dropout dropout) {
  dropout.seed ^= 0x6a09e667f3bcc909ull;
  return dropout;
}

/// Rows of `x [batch, channels, steps]`.
template <typename P>
Tensor rows_of(const Tensor& x) { return matrix(data<P>(x), x.size(0) * x.size(1), x.size(2)); }

/// The output, and what the activation let through.
template <typename P>
std::pair<Tensor, Tensor> time_forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const Norm& norm, Dropout dropout, bool keep) {
  Plain plain;
  const Tensor out = at::empty_like(x);
  const Tensor& y = norm.y;
  const Tensor z = at::empty_like(x);
  const int64_t rows = x.size(0) * x.size(1), steps = x.size(2);
  // Few rows meet a matrix that lies the right way round much faster; without gradients it is the same again and again.
  const bool turned = !keep && onednn_pays(rows, steps, steps, false, false) && !onednn_pays(rows, steps, steps, false, true);
  product<P>(rows_of<P>(z), rows_of<P>(y), turned ? forms().transposed(weight, weight.scalar_type()) : weight.t());
  const auto& run = mixer_kernels<P>();
  at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / steps), [&](int64_t from, int64_t to) {
    const int64_t at = from * steps;
    run.finish_onto(data<P>(z) + at, data<P>(out) + at, data<P>(x) + at, data<P>(bias), to - from, steps, dropout, from);
  });
  return {out, z};
}

class Time : public torch::autograd::Function<Time> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& gamma,
                        const Tensor& beta, const std::optional<Tensor>& mean_or_none, const std::optional<Tensor>& variance_or_none, double eps,
                        double momentum, double p, int64_t seed, bool train) {
    const Tensor running_mean = mean_or_none.value_or(Tensor()), running_variance = variance_or_none.value_or(Tensor());
    const NormArgs args{gamma.contiguous(), beta.contiguous(), running_mean, running_variance, eps, momentum, train};
    const Dropout dropout = dropout_of(train ? p : 0, seed);
    Norm norm;
    std::pair<Tensor, Tensor> made;
    if (x.scalar_type() == at::kDouble) {
      norm = normalise<double>(x, args);
      made = time_forward<double>(x, weight, bias, norm, dropout, true);
    } else {
      norm = normalise<float>(x, args);
      made = time_forward<float>(x, weight, bias, norm, dropout, true);
    }
    context->save_for_backward({x, weight, args.gamma, made.second, norm.mean, norm.deviation, norm.scale, norm.beta});
    context->saved_data["eps"] = eps;
    context->saved_data["scale"] = dropout.scale;
    context->saved_data["train"] = train;
    return made.first;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "a fused mixing has no second derivatives; switch the fast paths off");
    return context->get_saved_variables()[0].scalar_type() == at::kDouble ? gradients<double>(context, grads[0]) : gradients<float>(context, grads[0]);
  }

 private:
  template <typename P>
  static variable_list gradients(AutogradContext* context, const Tensor& grad) {
    Plain plain;
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &gamma = saved[2], &h = saved[3];
    const Norm norm{saved[4], saved[5], saved[6], saved[7], Tensor()};
    const Tensor dout = grad.contiguous(), g = at::empty_like(x), y = again<P>(x, norm, gamma, context->saved_data["eps"].toDouble());
    const int64_t rows = x.size(0) * x.size(1), steps = x.size(2), threads = at::get_num_threads();
    const Tensor dbiases = at::zeros({threads, steps}, x.options());
    const P scale = static_cast<P>(context->saved_data["scale"].toDouble());
    const auto& run = kernels<P, P>();
    at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / steps), [&](int64_t from, int64_t to) {
      const int64_t at = from * steps;
      run.gate(data<P>(g) + at, nullptr, data<P>(dbiases) + at::get_thread_num() * steps, data<P>(dout) + at, data<P>(h) + at, nullptr,
               to - from, steps, scale);
    });
    const Tensor dweight = at::empty_like(weight);
    product<P>(dweight, rows_of<P>(g).t(), rows_of<P>(y));
    product<P>(rows_of<P>(y), rows_of<P>(g), weight);  // y's memory becomes dy's
    NormGradients found = norm_backward<P>(y, dout, x, norm, gamma, context->saved_data["train"].toBool());
    return {found.x, dweight, threads == 1 ? dbiases[0] : dbiases.sum(0), found.gamma, found.beta, {}, {}, {}, {}, {}, {}, {}};
  }
};

/// Tiles of steps, so many that each thread has one.
struct Tiles {
  explicit Tiles(const Tensor& x) : steps(x.size(2)) {
    const int64_t threads = at::get_num_threads();
    const int64_t wanted = x.size(0) >= threads ? 1 : (threads + x.size(0) - 1) / std::max<int64_t>(1, x.size(0));
    const int64_t each = std::max<int64_t>(64, (steps + wanted - 1) / wanted);
    width = std::min({kSteps, steps, (each + 63) / 64 * 64});
    per_window = (steps + width - 1) / width;
    count = x.size(0) * per_window;
  }
  int64_t window(int64_t tile) const { return tile / per_window; }
  int64_t from(int64_t tile) const { return tile % per_window * width; }
  int64_t wide(int64_t tile) const { return std::min(width, steps - from(tile)); }

  int64_t steps, width, per_window, count;
};

struct Mlp {
  Tensor w1, bias1, w2, bias2;
  Dropout dropout;
};

template <typename P>
FeatureMlp<P> pointers(const Tensor& x, const Mlp& mlp) {
  return {static_cast<long>(x.size(1)), static_cast<long>(x.size(2)), static_cast<long>(mlp.w1.size(0)),
          data<P>(mlp.w1), data<P>(mlp.bias1), data<P>(mlp.w2), data<P>(mlp.bias2),
          mlp.dropout, other(mlp.dropout)};
}

template <typename P>
Tensor features_forward(const Tensor& x, const Norm& norm, const Mlp& mlp) {
  const Tensor out = at::empty_like(x);
  const FeatureMlp<P> all = pointers<P>(x, mlp);
  const Tiles tiles(x);
  const auto& run = mixer_kernels<P>();
  at::parallel_for(0, tiles.count, 1, [&](int64_t first, int64_t last) {
    const Tensor scratch = at::empty({run.scratch(all.channels, tiles.width)}, x.options());
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t window = tiles.window(tile), at = window * plane_of(x);
      run.features(data<P>(out) + at, data<P>(x) + at, data<P>(norm.y) + at, all, window, tiles.from(tile), tiles.wide(tile), data<P>(scratch));
    }
  });
  return out;
}

class Features : public torch::autograd::Function<Features> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& w1, const Tensor& bias1, const Tensor& w2, const Tensor& bias2,
                        const Tensor& gamma, const Tensor& beta, const std::optional<Tensor>& mean_or_none, const std::optional<Tensor>& variance_or_none,
                        double eps, double momentum, double p, int64_t seed, bool train) {
    const Tensor running_mean = mean_or_none.value_or(Tensor()), running_variance = variance_or_none.value_or(Tensor());
    const NormArgs args{gamma.contiguous(), beta.contiguous(), running_mean, running_variance, eps, momentum, train};
    const Mlp mlp{w1, bias1, w2, bias2, dropout_of(train ? p : 0, seed)};
    const bool is_double = x.scalar_type() == at::kDouble;
    const Norm norm = is_double ? normalise<double>(x, args) : normalise<float>(x, args);
    const Tensor out = is_double ? features_forward<double>(x, norm, mlp) : features_forward<float>(x, norm, mlp);
    context->save_for_backward({x, w1, bias1, w2, bias2, args.gamma, norm.mean, norm.deviation, norm.scale, norm.beta});
    context->saved_data["eps"] = eps;
    context->saved_data["p"] = train ? p : 0;
    context->saved_data["seed"] = seed;
    context->saved_data["train"] = train;
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "a fused mixing has no second derivatives; switch the fast paths off");
    return context->get_saved_variables()[0].scalar_type() == at::kDouble ? gradients<double>(context, grads[0]) : gradients<float>(context, grads[0]);
  }

 private:
  template <typename P>
  static variable_list gradients(AutogradContext* context, const Tensor& grad) {
    const auto saved = context->get_saved_variables();
    const Tensor& x = saved[0];
    const Mlp mlp{saved[1], saved[2], saved[3], saved[4], dropout_of(context->saved_data["p"].toDouble(), context->saved_data["seed"].toInt())};
    const Norm norm{saved[6], saved[7], saved[8], saved[9], Tensor()};
    const Tensor dout = grad.contiguous(), dy = at::empty_like(x), y = again<P>(x, norm, saved[5], context->saved_data["eps"].toDouble());
    const FeatureMlp<P> all = pointers<P>(x, mlp);
    const Tiles tiles(x);
    const int64_t threads = at::get_num_threads();
    const auto sums = [&](const Tensor& like) {
      auto size = like.sizes().vec();
      size.insert(size.begin(), threads);
      return at::zeros(size, like.options());
    };
    const Tensor dw1 = sums(mlp.w1), dbias1 = sums(mlp.bias1), dw2 = sums(mlp.w2), dbias2 = sums(mlp.bias2);
    const auto& run = mixer_kernels<P>();
    at::parallel_for(0, tiles.count, 1, [&](int64_t first, int64_t last) {
      const int64_t thread = at::get_thread_num();
      const auto of = [&](const Tensor& all_threads) { return data<P>(all_threads) + thread * all_threads.stride(0); };
      const Tensor scratch = at::empty({run.scratch(all.channels, tiles.width)}, x.options());
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t window = tiles.window(tile), at = window * plane_of(x);
        run.features_backward(data<P>(dy) + at, of(dw1), of(dbias1), of(dw2), of(dbias2), data<P>(dout) + at, data<P>(y) + at, all, window,
                              tiles.from(tile), tiles.wide(tile), data<P>(scratch));
      }
    });
    const auto total = [&](const Tensor& all_threads) { return threads == 1 ? all_threads[0] : all_threads.sum(0); };
    NormGradients found = norm_backward<P>(dy, dout, x, norm, saved[5], context->saved_data["train"].toBool());
    return {found.x, total(dw1), total(dbias1), total(dw2), total(dbias2), found.gamma, found.beta, {}, {}, {}, {}, {}, {}, {}};
  }
};

void check(const Tensor& x, std::initializer_list<Tensor> plane, const std::vector<Tensor>& others) {
  TORCH_CHECK(x.dim() == 3 && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble), "x must be [batch, channels, steps] of f32 or f64");
  for (const Tensor& xs : plane) {
    TORCH_CHECK(!xs.defined() || (xs.scalar_type() == x.scalar_type() && xs.dim() == 2 && xs.size(0) == x.size(1) && xs.size(1) == x.size(2)),
                "the norm must fit [channels, steps]");
  }
  for (const Tensor& xs : others) TORCH_CHECK(xs.scalar_type() == x.scalar_type(), "parameters must be of the kind of x");
}

}  // namespace

/// Weight and bias of the time layer, or those of the two feature layers; gamma, beta and the running mean and variance of the norm, 0 where it has
/// none.
size_t mixer_block(size_t x, rust::Slice<const size_t> layers, rust::Slice<const size_t> norm, double eps, double momentum, double p, int64_t seed,
                   bool train) {
  TORCH_CHECK((layers.size() == 2 || layers.size() == 4) && norm.size() == 4, "one layer or two, and four tensors of a norm");
  const Tensor xs = tensor(x).contiguous();
  std::vector<Tensor> w;
  for (const size_t layer : layers) w.push_back(tensor(layer).contiguous());
  const Tensor gamma = tensor(norm[0]), beta = tensor(norm[1]), mean = tensor(norm[2]), variance = tensor(norm[3]);
  const bool in_time = layers.size() == 2;
  check(xs, {gamma, beta, mean, variance}, w);
  const int64_t channels = xs.size(1), steps = xs.size(2);
  if (in_time) {
    TORCH_CHECK(w[0].dim() == 2 && w[0].size(0) == steps && w[0].size(1) == steps && w[1].numel() == steps, "the weight must fit [steps, steps]");
  } else {
    TORCH_CHECK(w[0].dim() == 2 && w[0].size(1) == channels && w[1].numel() == w[0].size(0) && w[2].dim() == 2 && w[2].size(0) == channels &&
                    w[2].size(1) == w[0].size(0) && w[3].numel() == channels,
                "the layers must fit the channels");
  }
  if (at::GradMode::is_enabled()) {
    const auto running = std::make_pair(optional(mean), optional(variance));
    if (in_time) return handle(Time::apply(xs, w[0], w[1], gamma, beta, running.first, running.second, eps, momentum, p, seed, train));
    return handle(Features::apply(xs, w[0], w[1], w[2], w[3], gamma, beta, running.first, running.second, eps, momentum, p, seed, train));
  }
  const NormArgs args{gamma.contiguous(), beta.contiguous(), mean, variance, eps, momentum, train};
  const Dropout dropout = dropout_of(train ? p : 0, seed);
  const auto forward = [&](auto zero) {
    using P = decltype(zero);
    const auto normed = normalise<P>(xs, args);
    if (in_time) return time_forward<P>(xs, w[0], w[1], normed, dropout, false).first;
    return features_forward<P>(xs, normed, Mlp{w[0], w[1], w[2], w[3], dropout});
  };
  return handle(xs.scalar_type() == at::kDouble ? forward(0.0) : forward(0.0f));
}

}  // namespace densely
