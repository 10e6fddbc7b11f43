// A network of layers over the rows of a matrix, by tiles of rows that pass through all layers in a core's cache, forward and backward:
//
//   y_0 = x,   y_l = act_l(y_{l-1} W_lᵀ),   out = y_L, or s (y_L Wᵀ) + b where there is a head
//
// For the way back each layer keeps what its activation is computed from. The activations themselves are computed again, tile by tile: so every
// layer writes one matrix and reads it once, where a chain of operations moves a dozen of them.
//
// An activation has, besides a constructor from the parameters and some numbers,
//   kParams     parameters of each layer: the weight, then its own
//   kBeside     values of each row that it keeps beside the matrix
//   forward     from the product of a tile its activation
//   backward    the activation again, and from its gradient that of the product
//   sums        how many values of gradients of its own a layer sums up over the rows
//   gradients   its own parameters' gradients from those sums
#pragma once
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <vector>

#include "../bridge.h"
#include "dispatch.h"
#include "forms.h"
#include "trunk_kernels.h"

namespace densely {

/// A width rounded up to what kernels take as whole vectors.
inline int64_t whole(int64_t cols) { return (cols + 15) / 16 * 16; }

/// From row to row of a tile: an odd number of a cache's lines, so that the rows do not fall on each other's places in it.
inline int64_t stride_of(int64_t cols) { return whole(cols) % 32 == 0 ? whole(cols) + 16 : whole(cols); }

/// A matrix with such rows, zeros behind its columns.
inline at::Tensor padded(const at::Tensor& matrix) {
  const at::Tensor made = at::zeros({matrix.size(0), stride_of(matrix.size(1))}, matrix.options());
  made.narrow(1, 0, matrix.size(1)).copy_(matrix);
  return made;
}

/// What follows the last layer: s (y Wᵀ) + b. Undefined where nothing does.
struct Head {
  at::Tensor weight, bias;
  double scale = 1;
};

/// How rows are cut: into a piece for each thread, and these into tiles.
struct RowTiles {
  explicit RowTiles(int64_t rows) : rows(rows) {
    pieces = std::clamp<int64_t>(rows / kLeast, 1, at::get_num_threads());
    tiles = pieces * ((rows + pieces * kMost - 1) / (pieces * kMost));
  }
  int64_t start(int64_t tile) const { return rows * tile / tiles; }
  int64_t largest() const { return tiles == 0 ? 0 : (rows + tiles - 1) / tiles; }
  /// f(piece, first tile, tile behind the last).
  template <typename F>
  void each(const F& f) const {
    at::parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
      for (int64_t piece = first; piece < last; ++piece) f(piece, tiles * piece / pieces, tiles * (piece + 1) / pieces);
    });
  }
  static constexpr int64_t kLeast = 16, kMost = 128;
  int64_t rows, pieces, tiles;
};

/// Sums of each piece, added up in the order of the pieces.
struct PieceSums {
  PieceSums(int64_t pieces, int64_t rows, int64_t cols) : all(at::zeros({pieces, rows, cols}, at::kFloat)) {}
  float* of(int64_t piece) const { return data<float>(all) + piece * all.stride(0); }
  at::Tensor total() const { return all.size(0) == 1 ? all[0] : all.sum(0); }
  at::Tensor all;
};

template <typename Activation>
class Trunk {
 public:
  using Tensor = at::Tensor;

  /// `params`: those of each layer, then the head's weight and bias where there is one, whose scale is the last of the numbers. What is kept
  /// for the way back is in `kept`.
  Trunk(at::TensorList params, int64_t layers, const std::vector<double>& numbers) {
    const size_t own = static_cast<size_t>(layers) * Activation::kParams;
    for (size_t i = 0; i < own; i += Activation::kParams) weights_.push_back(params[i]);
    if (params.size() > own) head_ = {params[own], params[own + 1], numbers.back()};
    act_ = Activation(params.slice(0, own), numbers);
  }

  std::vector<Tensor> kept;

  Tensor forward(const Tensor& x, const Tensor& coords, bool keeps) {
    std::vector<Tensor> turned;
    for (const Tensor& weight : weights_) turned.push_back(packed(weight, keeps));
    if (has_head()) turned.push_back(packed(head_.weight, keeps));
    if (keeps) {
      for (const Tensor& weight : weights_) kept.push_back(at::empty({x.size(0), whole(weight.size(0))}, x.options()));
      kept.push_back(at::empty({static_cast<int64_t>(layers()), x.size(0) * Activation::kBeside}, x.options()));
    }
    const RowTiles tiles(x.size(0));
    const int64_t stride = tile_stride(), outputs = has_head() ? head_.weight.size(0) : width(layers() - 1);
    const Tensor out = at::empty({x.size(0), outputs}, x.options());
    tiles.each([&](int64_t, int64_t first, int64_t last) {
      const Tensor scratch = at::empty({2, tiles.largest(), stride}, x.options());
      float *y = data<float>(scratch), *spare = y + scratch.stride(0);
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t start = tiles.start(tile), rows = tiles.start(tile + 1) - start;
        Left from{data<float>(x) + start * x.size(1), static_cast<long>(x.size(1)), 1};
        const auto product = [&](const Tensor& right, int64_t inner, int64_t cols) {
          run().multiply(spare, stride, from, right_of(right), rows, inner, whole(cols), false);
          std::swap(y, spare);
          from = {y, static_cast<long>(stride), 1};
        };
        for (size_t l = 0; l < layers(); ++l) {
          product(turned[l], inputs(l), width(l));
          act_.forward(l, y, stride, keeps ? kept_at(l, start) : nullptr, keeps ? beside_at(l, start) : nullptr, at_row(coords, start), rows);
        }
        if (has_head()) product(turned.back(), width(layers() - 1), outputs);
        for (int64_t r = 0; r < rows; ++r) finish(data<float>(out) + (start + r) * outputs, y + r * stride, outputs);
      }
    });
    return out;
  }

  /// Gradients of the input (undefined unless it needs one) and of all parameters.
  std::vector<Tensor> backward(const Tensor& dout, const Tensor& x, const Tensor& coords, bool needs_input) {
    const RowTiles tiles(x.size(0));
    const int64_t stride = tile_stride(), outputs = dout.size(1), last_width = width(layers() - 1);
    const Tensor dx = needs_input ? at::empty_like(x) : Tensor(), head = has_head() ? padded(head_.weight) : Tensor();
    std::vector<Tensor> weights;
    for (size_t l = 0; l < layers(); ++l) weights.push_back(l > 0 || needs_input ? padded(weights_[l]) : Tensor());
    // Those of the weights are turned: [in, out].
    std::vector<PieceSums> dweights, down;
    int64_t most_own = 0;
    for (size_t l = 0; l < layers(); ++l) {
      dweights.emplace_back(tiles.pieces, inputs(l), stride_of(width(l)));
      down.emplace_back(tiles.pieces, 1, act_.sums(l));
      most_own = std::max(most_own, act_.sums(l));
    }
    const PieceSums dhead(tiles.pieces, has_head() ? outputs : 0, stride_of(last_width)), dbias(tiles.pieces, 1, has_head() ? outputs : 0);
    tiles.each([&](int64_t piece, int64_t first, int64_t last) {
      const Tensor scratch = at::empty({3, tiles.largest(), stride}, x.options()), douts = at::empty({tiles.largest(), outputs}, x.options());
      const Tensor own = at::empty({most_own}, x.options());
      float *d = data<float>(scratch), *spare = d + scratch.stride(0), *y = spare + scratch.stride(0);
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t start = tiles.start(tile), rows = tiles.start(tile + 1) - start;
        const auto through = [&](size_t l) {
          std::fill_n(data<float>(own), act_.sums(l), 0.0f);
          act_.backward(l, d, y, stride, data<float>(own), kept_at(l, start), beside_at(l, start), at_row(coords, start), rows);
          for (int64_t i = 0; i < act_.sums(l); ++i) down[l].of(piece)[i] += data<float>(own)[i];
        };
        const Left left_y{y, 1, static_cast<long>(stride)};
        const float* from = data<float>(dout) + start * outputs;
        if (has_head()) {
          float* scaled = data<float>(douts);
          for (int64_t i = 0; i < rows * outputs; ++i) scaled[i] = from[i] * static_cast<float>(head_.scale);
          for (int64_t o = 0; o < outputs; ++o) {
            double sum = 0;
            for (int64_t r = 0; r < rows; ++r) sum += from[r * outputs + o];
            dbias.of(piece)[o] += static_cast<float>(sum);
          }
          run().multiply(d, stride, {scaled, static_cast<long>(outputs), 1}, right_of(head), rows, outputs, whole(last_width), false);
          through(layers() - 1);
          run().multiply(dhead.of(piece), dhead.all.size(2), {scaled, 1, static_cast<long>(outputs)}, {y, static_cast<long>(stride)}, outputs, rows,
                         whole(last_width), true);
        } else {
          for (int64_t r = 0; r < rows; ++r) {
            std::copy_n(from + r * outputs, outputs, d + r * stride);
            std::fill(d + r * stride + outputs, d + r * stride + whole(outputs), 0.0f);
          }
          through(layers() - 1);
        }
        const auto weight_sums = [&](size_t l, Left left, const float* right) {
          run().multiply(dweights[l].of(piece), dweights[l].all.size(2), left, {right, static_cast<long>(stride)}, inputs(l), rows, whole(width(l)), true);
        };
        const auto product = [&](size_t l) {
          run().multiply(spare, stride, {d, static_cast<long>(stride), 1}, right_of(weights[l]), rows, width(l), whole(inputs(l)), false);
          std::swap(d, spare);
        };
        for (size_t l = layers() - 1; l > 0; --l) {
          product(l);
          through(l - 1);
          weight_sums(l, left_y, spare);
        }
        weight_sums(0, {data<float>(x) + start * x.size(1), 1, static_cast<long>(x.size(1))}, d);
        if (needs_input) {
          product(0);
          for (int64_t r = 0; r < rows; ++r) std::copy_n(d + r * stride, x.size(1), data<float>(dx) + (start + r) * x.size(1));
        }
      }
    });
    std::vector<Tensor> found{dx};
    for (size_t l = 0; l < layers(); ++l) {
      found.push_back(dweights[l].total().narrow(1, 0, width(l)).t().contiguous());
      for (const Tensor& one : act_.gradients(l, down[l].total()[0])) found.push_back(one.contiguous());
    }
    if (has_head()) {
      found.push_back(dhead.total().narrow(1, 0, last_width).contiguous());
      found.push_back(dbias.total()[0]);
    }
    return found;
  }

 private:
  static const TrunkKernels& run() { return DENSELY_PICK(trunk); }
  static Right right_of(const Tensor& xs) { return {data<float>(xs), static_cast<long>(xs.stride(0))}; }
  static const float* at_row(const Tensor& coords, int64_t row) { return coords.defined() ? data<float>(coords) + row * coords.size(1) : nullptr; }

  /// [out, in] → [in, out], padded; for predictions kept as long as nobody writes to the weight.
  static Tensor packed(const Tensor& weight, bool trains) {
    static Forms* all = new Forms;  // never destroyed: libtorch may be gone first
    const auto make = [&] { return padded(weight.detach().t()); };
    return trains ? make() : all->kept({weight}, at::kFloat, make);
  }

  bool has_head() const { return head_.weight.defined(); }
  size_t layers() const { return weights_.size(); }
  int64_t inputs(size_t l) const { return weights_[l].size(1); }
  int64_t width(size_t l) const { return weights_[l].size(0); }

  int64_t tile_stride() const {
    int64_t widest = has_head() ? head_.weight.size(0) : 0;
    for (const Tensor& weight : weights_) widest = std::max({widest, weight.size(0), weight.size(1)});
    return stride_of(widest);
  }

  float* kept_at(size_t l, int64_t row) const { return data<float>(kept[l]) + row * kept[l].size(1); }
  float* beside_at(size_t l, int64_t row) const { return data<float>(kept.back()) + static_cast<int64_t>(l) * kept.back().size(1) + row * Activation::kBeside; }

  /// A row of the result.
  void finish(float* to, const float* from, int64_t outputs) const {
    if (!has_head()) {
      std::copy_n(from, outputs, to);
      return;
    }
    const float *bias = data<float>(head_.bias), scale = static_cast<float>(head_.scale);
    for (int64_t o = 0; o < outputs; ++o) to[o] = from[o] * scale + bias[o];
  }

  std::vector<Tensor> weights_;
  Head head_;
  Activation act_;
};

/// Autograd's view of a trunk.
template <typename Activation>
struct TrunkFunction : torch::autograd::Function<TrunkFunction<Activation>> {
  using Tensor = at::Tensor;
  using variable_list = torch::autograd::variable_list;

  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, const std::optional<Tensor>& coords, at::TensorList params,
                        int64_t layers, const std::vector<double>& numbers, bool keeps) {
    Plain plain;
    Trunk<Activation> trunk(params, layers, numbers);
    const Tensor where = coords.value_or(Tensor()), out = trunk.forward(x, where, keeps);
    if (keeps) {
      variable_list saved{x, where};
      saved.insert(saved.end(), params.begin(), params.end());
      saved.insert(saved.end(), trunk.kept.begin(), trunk.kept.end());
      context->save_for_backward(saved);
      context->saved_data["params"] = static_cast<int64_t>(params.size());
      context->saved_data["layers"] = layers;
      context->saved_data["numbers"] = numbers;
    }
    return out;
  }

  static variable_list backward(torch::autograd::AutogradContext* context, variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "fused layers have no second derivatives; switch the fast paths off");
    Plain plain;
    const auto saved = context->get_saved_variables();
    const auto behind = saved.begin() + 2 + context->saved_data["params"].toInt();
    const std::vector<Tensor> params(saved.begin() + 2, behind);
    Trunk<Activation> trunk(params, context->saved_data["layers"].toInt(), context->saved_data["numbers"].toDoubleVector());
    trunk.kept.assign(behind, saved.end());
    variable_list found = trunk.backward(grads[0].contiguous(), saved[0], saved[1], context->needs_input_grad(0));
    found.insert(found.begin() + 1, Tensor());  // coordinates
    found.resize(found.size() + 3);             // layers, numbers, keeps
    return found;
  }

  /// `params` as of `Trunk`.
  static Tensor run(const Tensor& x, const std::optional<Tensor>& coords, rust::Slice<const size_t> addresses, int64_t layers,
                    const std::vector<double>& numbers) {
    std::vector<Tensor> params;
    for (const size_t one : addresses) params.push_back(tensor(one).contiguous());
    const auto needs = [](const Tensor& xs) { return xs.requires_grad(); };
    const bool keeps = at::GradMode::is_enabled() && (needs(x) || std::any_of(params.begin(), params.end(), needs));
    return TrunkFunction::apply(x.contiguous(), coords, at::TensorList(params), layers, numbers, keeps);
  }
};

}  // namespace densely
