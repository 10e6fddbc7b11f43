// Piecewise-linear embedding without its encoding: a value lies in one bin, all bins before it are full. The sum over full bins is a
// row of a table of prefix sums, so a value costs two reads of `width` numbers instead of a product with a row of `columns`.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../bridge.h"
#include "dispatch.h"
#include "forms.h"

namespace densely {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Args {
  Tensor x, slope, shift, bins, weight, bias, weight0, bias0;
  bool relu;

  Piecewise size() const { return {static_cast<long>(slope.size(0)), static_cast<long>(slope.size(1)), static_cast<long>(weight.size(2)), relu}; }
};

/// table[f, j] = bias[f] + Σ of weight over the full bins when the value lies in column j.
template <typename P>
Tensor full_bins(const Args& args) {
  const Piecewise size = args.size();
  const Tensor table = at::zeros_like(args.weight);
  const int64_t* bins = data<int64_t>(args.bins);
  for (long f = 0; f < size.features; ++f) {
    std::vector<P> sum(size.width, P(0));
    if (args.bias.defined()) std::copy_n(data<P>(args.bias) + f * size.width, size.width, sum.begin());
    for (long j = 0; j < bins[f]; ++j) {
      const long column = j + 1 == bins[f] ? size.columns - 1 : j;
      const int64_t at = (f * size.columns + column) * size.width;
      std::copy(sum.begin(), sum.end(), data<P>(table) + at);
      for (long c = 0; c < size.width; ++c) sum[c] += data<P>(args.weight)[at + c];
    }
  }
  return table;
}

template <typename P>
Tensor embed(const Args& args, const Tensor& table) {
  const Piecewise size = args.size();
  const Tensor y = at::empty({args.x.size(0), size.features, size.width}, args.x.options());
  const auto& run = piecewise_kernels<P>();
  at::parallel_for(0, args.x.size(0), std::max<int64_t>(1, 32768 / (size.features * size.width)), [&](int64_t first, int64_t last) {
    run.forward(data<P>(y), data<P>(args.x), data<P>(args.slope), data<P>(args.shift), data<long>(args.bins), data<P>(table),
                data<P>(args.weight), data<P>(args.weight0), data<P>(args.bias0), size, first, last);
  });
  return y;
}

template <typename P>
variable_list embed_backward(const Args& args, const Tensor& dy, bool needs_x) {
  const Piecewise size = args.size();
  const Tensor table = full_bins<P>(args);
  const Tensor steps = at::zeros_like(args.weight), slopes = at::zeros_like(args.weight);
  const Tensor dbias = args.bias.defined() ? at::zeros_like(args.bias) : Tensor();
  const Tensor dw0 = args.weight0.defined() ? at::zeros_like(args.weight0) : Tensor();
  const Tensor db0 = args.weight0.defined() ? at::zeros_like(args.weight0) : Tensor();
  const Tensor dx = needs_x ? at::empty_like(args.x) : Tensor();
  const auto& run = piecewise_kernels<P>();
  at::parallel_for(0, size.features, 1, [&](int64_t first, int64_t last) {
    for (int64_t f = first; f < last; ++f) {
      const int64_t at = f * size.columns * size.width;
      P* step = data<P>(steps) + at;
      P* slope = data<P>(slopes) + at;
      run.backward(step, slope, dw0.defined() ? data<P>(dw0) + f * size.width : nullptr, db0.defined() ? data<P>(db0) + f * size.width : nullptr,
                   data<P>(dx), data<P>(dy), data<P>(args.x), data<P>(args.slope), data<P>(args.shift), data<long>(args.bins), data<P>(table),
                   data<P>(args.weight), data<P>(args.weight0), size, args.x.size(0), f);
      // A bin is full for every value that lies in a later one: sums from the back.
      const int64_t bins = data<int64_t>(args.bins)[f];
      std::vector<P> later(size.width, P(0));
      for (int64_t j = bins - 1; j >= 0; --j) {
        const int64_t column = (j + 1 == bins ? size.columns - 1 : j) * size.width;
        for (long c = 0; c < size.width; ++c) {
          slope[column + c] += later[c];
          later[c] += step[column + c];
        }
      }
      if (dbias.defined()) std::copy(later.begin(), later.end(), data<P>(dbias) + f * size.width);
    }
  });
  return {dx, Tensor(), Tensor(), Tensor(), slopes, dbias, dw0, db0, Tensor()};
}

class Embed : public torch::autograd::Function<Embed> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& slope, const Tensor& shift, const Tensor& bins,
                        const Tensor& weight, const std::optional<Tensor>& bias_or_none, const std::optional<Tensor>& weight0_or_none,
                        const std::optional<Tensor>& bias0_or_none, bool relu) {
    const Tensor bias = bias_or_none.value_or(Tensor()), weight0 = weight0_or_none.value_or(Tensor()), bias0 = bias0_or_none.value_or(Tensor());
    context->save_for_backward({x, slope, shift, bins, weight, bias, weight0, bias0});
    context->saved_data["relu"] = relu;
    const Args args{x, slope, shift, bins, weight, bias, weight0, bias0, relu};
    return x.scalar_type() == at::kDouble ? embed<double>(args, full_bins<double>(args)) : embed<float>(args, full_bins<float>(args));
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "the fused embedding has no second derivatives; switch the fast paths off");
    const auto saved = context->get_saved_variables();
    const Args args{saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], saved[6], saved[7], context->saved_data["relu"].toBool()};
    const Tensor dy = grads[0].contiguous();
    const bool needs_x = context->needs_input_grad(0);
    return args.x.scalar_type() == at::kDouble ? embed_backward<double>(args, dy, needs_x) : embed_backward<float>(args, dy, needs_x);
  }
};

/// For few rows the table takes longer than reading it: without gradients it is kept as long as the weights stay as they are.
template <typename P>
Tensor embed_without_gradient(const Args& args) {
  std::vector<Tensor> of{args.weight, args.bins};
  if (args.bias.defined()) of.push_back(args.bias);
  return embed<P>(args, forms().kept(of, args.weight.scalar_type(), [&] { return full_bins<P>(args); }));
}

Tensor contiguous(size_t pointer) { return pointer == 0 ? Tensor() : reinterpret_cast<const Tensor*>(pointer)->contiguous(); }

}  // namespace

size_t piecewise_embed(size_t x, size_t slope, size_t shift, size_t bins, size_t weight, size_t bias, size_t weight0, size_t bias0,
                       bool relu) {
  const Tensor w = contiguous(weight), slopes = contiguous(slope), shifts = contiguous(shift), counts = contiguous(bins);
  const Tensor xs = contiguous(x).to(w.scalar_type()), b = contiguous(bias), w0 = contiguous(weight0), b0 = contiguous(bias0);
  TORCH_CHECK(w.scalar_type() == at::kFloat || w.scalar_type() == at::kDouble, "the fused embedding takes f32 or f64");
  TORCH_CHECK(w.dim() == 3 && slopes.dim() == 2 && xs.dim() == 2 && xs.size(1) == w.size(0), "x must be [batch, features]");
  TORCH_CHECK(slopes.size(0) == w.size(0) && slopes.size(1) == w.size(1) && slopes.sizes() == shifts.sizes() && counts.numel() == w.size(0) &&
                  counts.scalar_type() == at::kLong,
              "bins must fit the weight");
  for (const Tensor* xs2 : {&slopes, &shifts, &b, &w0, &b0}) {
    TORCH_CHECK(!xs2->defined() || xs2->scalar_type() == w.scalar_type(), "the embedding's tensors must be of one kind");
  }
  for (const Tensor* vector : {&b, &w0, &b0}) {
    TORCH_CHECK(!vector->defined() || (vector->dim() == 2 && vector->size(0) == w.size(0) && vector->size(1) == w.size(2)),
                "biases must be [features, width]");
  }
  TORCH_CHECK(w0.defined() == b0.defined(), "the linear part has a weight and a bias");
  for (int64_t f = 0; f < w.size(0); ++f) {
    const int64_t count = data<int64_t>(counts)[f];
    TORCH_CHECK(count >= 1 && count <= w.size(1), "a feature has at least one bin and at most as many as columns");
  }
  if (!at::GradMode::is_enabled()) {
    const Args args{xs, slopes, shifts, counts, w, b, w0, b0, relu};
    return reinterpret_cast<size_t>(new Tensor(w.scalar_type() == at::kDouble ? embed_without_gradient<double>(args) : embed_without_gradient<float>(args)));
  }
  return reinterpret_cast<size_t>(new Tensor(Embed::apply(xs, slopes, shifts, counts, w, optional(b), optional(w0), optional(b0), relu)));
}

}  // namespace densely
