// PoolFormer's blocks on maps whose pixels have their channels side by side: the norm and the pooling in one pass, then norm, MLP and scale by
// tiles of pixels, forward and backward.
//
//   x' = x + k1 ls1 ∘ (pool(n) - n)    n = γ1 (x - m) r + β1: mean and shift fall out of the difference, so that it is γ1 r (pool(x) - x)
//   out = x' + k2 ls2 ∘ (W2 gelu(W1 n' + b1) + b2)
//
// m and r = 1 / deviation are those of a picture, k the share of a branch that is left out of some pictures in training.

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../bridge.h"
#include "dispatch.h"
#include "pool_kernels.h"

namespace densely {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const PoolKernels& run() {
#ifdef DENSELY_X86
  static const bool halves = level() == Level::avx512 && __builtin_cpu_supports("avx512bf16") && avx512bf16::pool.halves();
  if (halves) return avx512bf16::pool;
#endif
  return DENSELY_PICK(pool);
}

/// γ1, β1, ls1, γ2, β2, W1, b1, W2, b2, ls2.
constexpr size_t kParams = 10;
using Params = std::array<Tensor, kParams>;
enum : size_t { kGamma1, kBeta1, kScale1, kGamma2, kBeta2, kW1, kB1, kW2, kB2, kScale2 };

/// Sizes of a map [pictures, height, width, channels].
struct Size {
  explicit Size(const Tensor& x) : pictures(x.size(0)), height(x.size(1)), width(x.size(2)), channels(x.size(3)) {}
  int64_t pixels() const { return height * width; }
  int64_t each() const { return pixels() * channels; }
  int64_t rows() const { return pictures * height; }
  MapRow at(int64_t row) const {
    return {static_cast<long>(row % height), static_cast<long>(height), static_cast<long>(width), static_cast<long>(channels)};
  }
  int64_t pictures, height, width, channels;
};

/// Mean and 1 / deviation of each picture, from those of parts that do not depend on the threads.
struct Moments {
  explicit Moments(int64_t pictures) : mean(static_cast<size_t>(pictures)), inverse(static_cast<size_t>(pictures)) {}
  std::vector<float> mean, inverse;
};

/// Mean and squared deviations of each row of a map.
using Parts = std::vector<std::array<double, 2>>;

Moments joined(const Parts& parts, const Size& size, double eps) {
  Moments made(size.pictures);
  for (int64_t picture = 0; picture < size.pictures; ++picture) {
    double mean = 0, squares = 0;
    for (int64_t row = 0; row < size.height; ++row) {
      const auto& part = parts[static_cast<size_t>(picture * size.height + row)];
      const double step = part[0] - mean, count = static_cast<double>(row + 1);
      mean += step / count;
      squares += part[1] + step * step * static_cast<double>(size.width * size.channels) * static_cast<double>(row) / count;
    }
    made.mean[static_cast<size_t>(picture)] = static_cast<float>(mean);
    made.inverse[static_cast<size_t>(picture)] = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(size.each()) + eps));
  }
  return made;
}

void row_moments(Parts& parts, int64_t row, const float* x, const Size& size) {
  const int64_t n = size.width * size.channels;
  auto& part = parts[static_cast<size_t>(row)];
  run().moments(x + row * n, static_cast<long>(n), &part[0], &part[1]);
}

Moments moments(const Tensor& x, double eps) {
  const Size size(x);
  Parts parts(static_cast<size_t>(size.rows()));
  at::parallel_for(0, size.rows(), 1, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) row_moments(parts, row, data<float>(x), size);
  });
  return joined(parts, size, eps);
}

/// [pictures, channels]: value(picture, channel).
template <typename F>
std::vector<float> table(const Size& size, const F& value) {
  std::vector<float> made(static_cast<size_t>(size.pictures * size.channels));
  for (int64_t b = 0; b < size.pictures; ++b) {
    for (int64_t c = 0; c < size.channels; ++c) made[static_cast<size_t>(b * size.channels + c)] = value(static_cast<size_t>(b), c);
  }
  return made;
}

/// The share of a branch in each picture; null means 1.
float share(const Tensor& kept, size_t picture) { return kept.defined() ? data<float>(kept)[picture] : 1.0f; }

/// k ls1 γ1 r.
std::vector<float> slopes(const Size& size, const Moments& of, const Params& params, const Tensor& kept) {
  const float *gamma = data<float>(params[kGamma1]), *scale = data<float>(params[kScale1]);
  return table(size, [&](size_t b, int64_t c) { return share(kept, b) * scale[c] * gamma[c] * of.inverse[b]; });
}

/// out = x'; the moments of x'.
Moments mix(const Tensor& out, const Tensor& x, const Moments& of, const Params& params, const Tensor& kept, double eps) {
  const Size size(x);
  const auto slope = slopes(size, of, params, kept);
  Parts parts(static_cast<size_t>(size.rows()));
  at::parallel_for(0, size.rows(), 1, [&](int64_t first, int64_t last) {
    std::vector<float> scratch(static_cast<size_t>(size.width * size.channels));
    for (int64_t row = first; row < last; ++row) {
      const int64_t picture = row / size.height, at = picture * size.each();
      run().mix(data<float>(out) + at, data<float>(x) + at, &slope[static_cast<size_t>(picture * size.channels)], size.at(row), scratch.data());
      row_moments(parts, row, data<float>(out), size);
    }
  });
  return joined(parts, size, eps);
}

/// The tiles of all pixels: as many for each thread, of nearly as many whole vectors each.
struct Tiles {
  Tiles(const Size& size, int64_t most) : pixels(size.pictures * size.pixels()), lanes(run().lanes) {
    vectors = (pixels + lanes - 1) / lanes;
    const int64_t threads = std::min<int64_t>(at::get_num_threads(), vectors), each = threads * std::max<int64_t>(1, most / lanes);
    count = threads * ((vectors + each - 1) / each);
  }
  int64_t start(int64_t tile) const { return std::min(pixels, vectors * tile / count * lanes); }
  int64_t size(int64_t tile) const { return start(tile + 1) - start(tile); }
  int64_t largest() const { return (vectors + count - 1) / count * lanes; }
  int64_t pixels, lanes, vectors, count;
};

/// Pixels of a tile, so that it lies in a core's cache with its part of the hidden layer.
int64_t most_pixels(int64_t channels) { return channels <= 128 ? 256 : channels <= 384 ? 128 : 64; }

/// The tables that a `PixelMlp` points to.
struct MlpTables {
  MlpTables(const Size& size, const Moments& of, const Params& params, const Tensor& kept) {
    const float *gamma = data<float>(params[kGamma2]), *beta = data<float>(params[kBeta2]), *ls = data<float>(params[kScale2]);
    scale = table(size, [&](size_t b, int64_t c) { return gamma[c] * of.inverse[b]; });
    shift = table(size, [&](size_t b, int64_t c) { return beta[c] - of.mean[b] * of.inverse[b] * gamma[c]; });
    gain = table(size, [&](size_t b, int64_t c) { return share(kept, b) * ls[c]; });
    const bool half = params[kW1].scalar_type() == at::kBFloat16;
    mlp = {static_cast<long>(size.pixels()), static_cast<long>(size.channels), static_cast<long>(params[kW1].size(0)), scale.data(), shift.data(),
           half ? nullptr : data<float>(params[kW1]), data<float>(params[kB1]), half ? nullptr : data<float>(params[kW2]), data<float>(params[kB2]),
           gain.data(), half ? data<Bf16>(params[kW1]) : nullptr, half ? data<Bf16>(params[kW2]) : nullptr};
  }
  std::vector<float> scale, shift, gain;
  PixelMlp mlp;
};

/// out = x' + …, which may be x' itself. z, unless undefined, keeps the hidden layer before its activation.
void mlp(const Tensor& out, const Tensor& z, const Tensor& mixed, const Moments& of, const Params& params, const Tensor& kept, const Tiles& tiles) {
  const Size size(mixed);
  const MlpTables tables(size, of, params, kept);
  at::parallel_for(0, tiles.count, 1, [&](int64_t first, int64_t last) {
    const Tensor scratch = at::empty({run().scratch(tables.mlp, static_cast<long>(tiles.largest()), false)}, out.options());
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t start = tiles.start(tile);
      run().mlp(data<float>(out), z.defined() ? data<float>(z) + start * tables.mlp.hidden : nullptr, data<float>(mixed), tables.mlp,
                static_cast<long>(start), static_cast<long>(tiles.size(tile)), data<float>(scratch));
    }
  });
}

/// One sum for each thread, added up in their order.
struct Sums {
  Sums(std::vector<int64_t> size, const Tensor& like) {
    size.insert(size.begin(), at::get_num_threads());
    all = at::zeros(size, like.options().dtype(at::kFloat));
  }
  float* mine() const { return data<float>(all) + at::get_thread_num() * all.stride(0); }
  Tensor total() const { return all.size(0) == 1 ? all[0] : all.sum(0); }
  Tensor all;
};

class PoolBlock : public torch::autograd::Function<PoolBlock> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& gamma1, const Tensor& beta1, const Tensor& scale1, const Tensor& gamma2,
                        const Tensor& beta2, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2, const Tensor& scale2,
                        const std::optional<Tensor>& kept1, const std::optional<Tensor>& kept2, double eps) {
    Plain plain;
    const Params params{gamma1, beta1, scale1, gamma2, beta2, w1, b1, w2, b2, scale2};
    const Size size(x);
    const Tiles tiles(size, most_pixels(size.channels));
    const Moments before = moments(x, eps);
    const Tensor mixed = at::empty_like(x), out = at::empty_like(x), z = at::empty({tiles.vectors * tiles.lanes, w1.size(0)}, x.options());
    const Tensor k1 = kept1.value_or(Tensor()), k2 = kept2.value_or(Tensor());
    const Moments behind = mix(mixed, x, before, params, k1, eps);
    mlp(out, z, mixed, behind, params, k2, tiles);
    const Tensor statistics = at::empty({4, size.pictures}, x.options());
    const std::vector<float>* all[] = {&before.mean, &before.inverse, &behind.mean, &behind.inverse};
    for (int64_t i = 0; i < 4; ++i) std::copy(all[i]->begin(), all[i]->end(), data<float>(statistics) + i * size.pictures);
    variable_list saved(params.begin(), params.end());
    for (const Tensor& one : {x, mixed, z, statistics, k1, k2}) saved.push_back(one);
    context->save_for_backward(saved);
    context->saved_data["threads"] = static_cast<int64_t>(at::get_num_threads());
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "a fused block has no second derivatives; switch the fast paths off");
    Plain plain;
    const auto saved = context->get_saved_variables();
    Params params;
    std::copy(saved.begin(), saved.begin() + kParams, params.begin());
    const Tensor &x = saved[kParams], &mixed = saved[kParams + 1], &z = saved[kParams + 2], &statistics = saved[kParams + 3], &k1 = saved[kParams + 4],
                 &k2 = saved[kParams + 5];
    TORCH_CHECK(context->saved_data["threads"].toInt() == at::get_num_threads(), "the number of threads has changed since the forward pass");
    const Size size(x);
    const auto row = [&](int64_t i) {
      const float* from = data<float>(statistics) + i * size.pictures;
      return std::vector<float>(from, from + size.pictures);
    };
    Moments before(0), behind(0);
    before.mean = row(0), before.inverse = row(1), behind.mean = row(2), behind.inverse = row(3);
    const Tensor dout = grads[0].contiguous(), dn = at::empty_like(x);

    // The MLP: its weights, and the gradient of the normed map.
    const Tiles tiles(size, most_pixels(size.channels));
    const MlpTables tables(size, behind, params, k2);
    const int64_t hidden = tables.mlp.hidden, channels = size.channels;
    const Sums dw1({hidden, channels}, x), db1({hidden}, x), dw2({hidden, channels}, x), sums({size.pictures, 3, channels}, x);
    const Tensor w1_turned = params[kW1].t().contiguous(), w2_turned = params[kW2].t().contiguous();
    at::parallel_for(0, tiles.count, 1, [&](int64_t first, int64_t last) {
      const Tensor scratch = at::empty({run().scratch(tables.mlp, static_cast<long>(tiles.largest()), true)}, x.options());
      const PixelMlpGradients to{data<float>(w1_turned), data<float>(w2_turned), behind.mean.data(), behind.inverse.data(), data<float>(k2),
                                 data<float>(dn), dw1.mine(), db1.mine(), dw2.mine(), sums.mine()};
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t start = tiles.start(tile);
        run().mlp_backward(to, data<float>(dout), data<float>(z) + start * hidden, data<float>(mixed), tables.mlp, static_cast<long>(start),
                           static_cast<long>(tiles.size(tile)), data<float>(scratch));
      }
    });
    const Tensor of_pictures = sums.total(), by_channel = of_pictures.sum(0), dw2_plain = dw2.total().t();
    const Tensor dscale2 = (dw2_plain * params[kW2]).sum(1) + params[kB2] * by_channel[2];

    // The second norm, then the mixing.
    std::vector<NormBack> backs;
    const float *gamma1 = data<float>(params[kGamma1]), *scale1 = data<float>(params[kScale1]), *gamma2 = data<float>(params[kGamma2]);
    for (int64_t b = 0; b < size.pictures; ++b) {
      double level = 0, tilt = 0;
      const float* of = data<float>(of_pictures) + b * 3 * channels;
      for (int64_t c = 0; c < channels; ++c) level += gamma2[c] * of[c], tilt += gamma2[c] * of[channels + c];
      const auto i = static_cast<size_t>(b);
      const double n = static_cast<double>(size.each());
      backs.push_back({gamma2, behind.mean[i], behind.inverse[i], static_cast<float>(level / n), static_cast<float>(tilt / n)});
    }
    const Sums through({size.pictures, channels}, x);
    const Tensor g = at::empty_like(x);
    const auto by_rows = [&](const auto& work) {
      at::parallel_for(0, size.rows(), 1, [&](int64_t first, int64_t last) {
        std::vector<float> scratch(static_cast<size_t>(size.width * channels));
        for (int64_t row = first; row < last; ++row) work(row, row / size.height, scratch.data());
      });
    };
    by_rows([&](int64_t row, int64_t b, float* scratch) {
      const int64_t at = b * size.each();
      run().mix_sums(data<float>(g) + at, through.mine() + b * channels, data<float>(dout) + at, data<float>(dn) + at, data<float>(mixed) + at,
                     backs[static_cast<size_t>(b)], data<float>(x) + at, size.at(row), scratch);
    });
    const Tensor total = through.total();
    const Tensor dgamma1 = at::zeros({channels}, x.options()), dscale1 = at::zeros({channels}, x.options());
    std::vector<float> tilts;
    for (int64_t b = 0; b < size.pictures; ++b) {
      const auto i = static_cast<size_t>(b);
      const float k = share(k1, i), r = before.inverse[i], *of = data<float>(total) + b * channels;
      double tilt = 0;
      for (int64_t c = 0; c < channels; ++c) {
        data<float>(dgamma1)[c] += k * r * scale1[c] * of[c];
        data<float>(dscale1)[c] += k * r * gamma1[c] * of[c];
        tilt += static_cast<double>(k) * scale1[c] * gamma1[c] * of[c];
      }
      tilts.push_back(static_cast<float>(tilt * r * r * r / static_cast<double>(size.each())));
    }
    const auto slope = slopes(size, before, params, k1);
    const Tensor& dx = dn;  // has been read
    by_rows([&](int64_t row, int64_t b, float* scratch) {
      const int64_t at = b * size.each();
      const auto i = static_cast<size_t>(b);
      run().mix_backward(data<float>(dx) + at, data<float>(g) + at, &slope[i * static_cast<size_t>(channels)], data<float>(x) + at, before.mean[i], tilts[i],
                         size.at(row), scratch);
    });
    return {dx,        dgamma1, at::zeros_like(params[kBeta1]), dscale1, by_channel[1], by_channel[0], dw1.total(), db1.total(),
            dw2_plain * params[kScale2].unsqueeze(1), params[kScale2] * by_channel[2], dscale2, Tensor(), Tensor(), Tensor()};
  }
};

/// The parameters of a block as matrices, checked against a map.
Params block_params(const Tensor& x, const size_t* pointers, bool halves) {
  Params all;
  for (size_t i = 0; i < kParams; ++i) {
    all[i] = tensor(pointers[i]);
    const bool product = i == kW1 || i == kW2;
    if (product) all[i] = all[i].reshape({all[i].size(0), -1});
    if (halves) all[i] = all[i].to(product ? at::kBFloat16 : at::kFloat);
    all[i] = all[i].contiguous();
    TORCH_CHECK(all[i].device().is_cpu() && all[i].scalar_type() == (product && halves ? at::kBFloat16 : at::kFloat), "a fused block takes f32 on the CPU");
  }
  const int64_t channels = x.size(3), hidden = all[kW1].size(0);
  TORCH_CHECK(channels % 16 == 0 && hidden % 16 == 0, "a fused block takes multiples of 16 channels");
  TORCH_CHECK(all[kW1].size(1) == channels && all[kW2].size(0) == channels && all[kW2].size(1) == hidden && all[kB1].numel() == hidden,
              "the layers must fit the map");
  for (const size_t i : {kGamma1, kBeta1, kScale1, kGamma2, kBeta2, kB2, kScale2}) TORCH_CHECK(all[i].numel() == channels, "as many values as channels");
  return all;
}

void check_map(const Tensor& x) {
  TORCH_CHECK(x.dim() == 4 && x.device().is_cpu() && x.numel() > 0, "a fused block takes [pictures, height, width, channels] on the CPU");
}

}  // namespace

size_t pool_block(size_t x, rust::Slice<const size_t> params, size_t kept1, size_t kept2, double eps) {
  const Tensor xs = tensor(x).contiguous();
  check_map(xs);
  TORCH_CHECK(params.size() == kParams && xs.scalar_type() == at::kFloat, "f32 and ten parameters are expected");
  for (const size_t pointer : {kept1, kept2}) {
    const Tensor& kept = tensor(pointer);
    TORCH_CHECK(!kept.defined() || (kept.is_cpu() && kept.scalar_type() == at::kFloat && kept.is_contiguous() && kept.numel() == xs.size(0)),
                "one share for each picture, contiguous f32 on the CPU");
  }
  const auto [gamma1, beta1, scale1, gamma2, beta2, w1, b1, w2, b2, scale2] = block_params(xs, params.data(), false);
  return handle(PoolBlock::apply(xs, gamma1, beta1, scale1, gamma2, beta2, w1, b1, w2, b2, scale2, optional(tensor(kept1)), optional(tensor(kept2)), eps));
}

bool pool_halves() { return run().halves(); }

size_t pool_stage(size_t x, rust::Slice<const size_t> params, bool halves, double eps) {
  Plain plain;
  const Tensor xs = tensor(x).contiguous();
  check_map(xs);
  TORCH_CHECK(params.size() % kParams == 0 && !params.empty(), "ten parameters of each block are expected");
  TORCH_CHECK(!halves || run().halves(), "this processor has no products in bf16");
  const Tensor map = xs.to(at::kFloat);
  const Size size(map);
  const Tiles tiles(size, most_pixels(size.channels));
  Tensor from = map, out = at::empty_like(map), spare;
  for (size_t i = 0; i < params.size(); i += kParams) {
    const Params block = block_params(map, params.data() + i, halves);
    const Moments behind = mix(out, from, moments(from, eps), block, Tensor(), eps);
    mlp(out, Tensor(), out, behind, block, Tensor(), tiles);
    // The map that came must stay as it is, unless it was a copy.
    if (i == 0 && map.is_same(tensor(x))) spare = i + kParams < params.size() ? at::empty_like(map) : Tensor();
    else spare = from;
    from = out;
    out = spare;
  }
  return handle(from.to(xs.scalar_type()));
}

}  // namespace densely
