// Layers whose activation is a sine of their inputs' products, forward and backward; see trunk.h for how rows pass through them.

#include "sine_kernels.h"
#include "trunk.h"

namespace densely {
namespace {

using at::Tensor;

/// Where the frequency stands; the numbers of `Form` in sine.rs.
enum class Form { classic, input, finer };

/// Parameters of a layer: weight, bias. Numbers: the form, each layer's frequency, the head's scale.
struct SineActivation {
  static constexpr size_t kParams = 2;
  static constexpr int64_t kBeside = 0;

  SineActivation() = default;
  SineActivation(at::TensorList params, const std::vector<double>& numbers) {
    const auto form = static_cast<Form>(static_cast<int>(numbers[0]));
    for (size_t i = 1; i < params.size(); i += kParams) {
      const Tensor& bias = params[i];
      biases.push_back(padded(bias.unsqueeze(0)));
      const auto omega = static_cast<float>(numbers[1 + i / kParams]);
      const bool first = form == Form::input;
      layers.push_back({data<float>(biases.back()), first ? omega : 1.0f, first ? 1.0f : omega, form == Form::finer});
      widths.push_back(bias.size(0));
    }
  }

  static const SineKernels& run() { return DENSELY_PICK(sine); }

  void forward(size_t l, float* y, int64_t stride, float* kept, float*, const float*, int64_t rows) const {
    run().forward(y, stride, kept, sums(l), layers[l], rows, sums(l));
  }

  void backward(size_t l, float* d, float* y, int64_t stride, float* own, const float* kept, const float*, const float*, int64_t rows) const {
    run().backward(d, y, stride, own, kept, sums(l), layers[l], rows, sums(l));
  }

  int64_t sums(size_t l) const { return whole(widths[l]); }
  std::vector<Tensor> gradients(size_t l, const Tensor& own) const { return {own.narrow(0, 0, widths[l])}; }

  std::vector<Tensor> biases;  // which the layers point into
  std::vector<Sine> layers;
  std::vector<int64_t> widths;
};

}  // namespace

size_t sine_layers(size_t x, rust::Slice<const size_t> params, rust::Slice<const double> omegas, int8_t form, double head_scale) {
  std::vector<double> numbers{static_cast<double>(form)};
  numbers.insert(numbers.end(), omegas.begin(), omegas.end());
  numbers.push_back(head_scale);
  return handle(TrunkFunction<SineActivation>::run(tensor(x), std::nullopt, params, static_cast<int64_t>(omegas.size()), numbers));
}

}  // namespace densely
