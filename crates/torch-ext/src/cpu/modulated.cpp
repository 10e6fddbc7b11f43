// Normed layers whose scale and shift are looked up in a grid, forward and backward; see trunk.h for how rows pass through them.

#include "modulated_kernels.h"
#include "trunk.h"

namespace densely {
namespace {

using at::Tensor;

/// Parameters of a layer: weight, bias, grid [1, 2, height, width]. Numbers: eps, whether a ReLU follows, the head's scale.
struct ModulatedActivation {
  static constexpr size_t kParams = 3;
  static constexpr int64_t kBeside = 1;

  ModulatedActivation() = default;
  ModulatedActivation(at::TensorList params, const std::vector<double>& numbers) {
    for (size_t i = 0; i < params.size(); i += kParams) {
      const Tensor &bias = params[i + 1], &grid = params[i + 2];
      kept.insert(kept.end(), {bias, grid});
      layers.push_back({data<float>(bias), data<float>(grid), static_cast<long>(grid.size(2)), static_cast<long>(grid.size(3)),
                        static_cast<float>(numbers[0]), numbers[1] != 0});
      widths.push_back(bias.size(0));
    }
  }

  static const ModulatedKernels& run() { return DENSELY_PICK(modulated); }

  void forward(size_t l, float* y, int64_t stride, float* kept, float* beside, const float* coords, int64_t rows) const {
    run().forward(y, stride, kept, whole(widths[l]), beside, coords, layers[l], rows, widths[l]);
  }

  void backward(size_t l, float* d, float* y, int64_t stride, float* own, const float* kept, const float* beside, const float* coords,
                int64_t rows) const {
    run().backward(d, y, stride, own, own + widths[l], kept, whole(widths[l]), beside, coords, layers[l], rows, widths[l]);
  }

  int64_t values(size_t l) const { return 2 * layers[l].height * layers[l].width; }
  int64_t sums(size_t l) const { return widths[l] + values(l); }
  std::vector<Tensor> gradients(size_t l, const Tensor& own) const {
    return {own.narrow(0, 0, widths[l]), own.narrow(0, widths[l], values(l)).view({1, 2, layers[l].height, layers[l].width})};
  }

  std::vector<Tensor> kept;  // which the layers point into
  std::vector<Modulated> layers;
  std::vector<int64_t> widths;
};

}  // namespace

size_t modulated_layers(size_t x, size_t coords, rust::Slice<const size_t> params, int64_t layers, double eps, bool relu) {
  return handle(TrunkFunction<ModulatedActivation>::run(tensor(x), tensor(coords).contiguous(), params, layers, {eps, relu ? 1.0 : 0.0, 1.0}));
}

}  // namespace densely
