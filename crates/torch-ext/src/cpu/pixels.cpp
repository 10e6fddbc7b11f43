// Chains of layers over the channels of each pixel, tile by tile, and layers over a grid's cells or the pixels of a block, on maps that stay as
// they lie. Without gradients.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <array>

#include "../bridge.h"
#include "dispatch.h"
#include "pixel_kernels.h"

namespace densely {
namespace {

using at::Tensor;

const PixelKernels& run() { return DENSELY_PICK(pixels); }

/// Far beyond what is of use, and small enough that no product of sizes overflows.
constexpr int64_t kMostRows = 1 << 20, kMostSide = 4096;

void check(const Tensor& xs, int64_t count, const char* what) {
  TORCH_CHECK(xs.defined() && xs.device().is_cpu() && xs.scalar_type() == at::kFloat && xs.is_contiguous(), what, " must be contiguous f32 on the CPU");
  TORCH_CHECK(xs.numel() == count, what, " has another size than its place");
}

}  // namespace

rust::Vec<size_t> pixel_steps(rust::Slice<const int64_t> numbers, rust::Slice<const size_t> tensors, rust::Slice<const double> eps, size_t like,
                              int64_t tile_rows) {
  constexpr size_t kNumbers = 5;  // work, in, out, rows, inner
  Plain plain;
  TORCH_CHECK(numbers.size() % kNumbers == 0 && tensors.size() == 2 * (numbers.size() / kNumbers) && eps.size() * kNumbers == numbers.size(),
              "steps of five numbers, two tensors and an eps");
  const Tensor& shape = tensor(like);
  TORCH_CHECK(shape.dim() == 4 && shape.device().is_cpu(), "maps are [pictures, height, width, channels] on the CPU");
  TORCH_CHECK(tile_rows <= kMostRows, "a chain has too many channels");
  const int64_t pixels = shape.size(0) * shape.size(1) * shape.size(2);
  std::vector<PixelStep> steps;
  std::vector<Tensor> made;
  for (size_t i = 0; i < eps.size(); ++i) {
    const int64_t* of = numbers.data() + i * kNumbers;
    const int64_t in = of[1], out = of[2], rows = of[3], inner = of[4];
    const auto work = static_cast<PixelWork>(of[0]);
    TORCH_CHECK(of[0] >= 0 && of[0] <= static_cast<int64_t>(PixelWork::add) && rows > 0 && inner > 0 && rows <= tile_rows && inner <= tile_rows && out >= 0 &&
                    out <= tile_rows - rows && in >= 0 && in <= tile_rows - inner,
                "a step leaves its tile, or has no channels");
    TORCH_CHECK(work == PixelWork::layer || inner == rows, "what goes together must have as many channels");
    const Tensor &a = tensor(tensors[2 * i]), &b = tensor(tensors[2 * i + 1]);
    PixelStep step{work, static_cast<long>(in), static_cast<long>(out), static_cast<long>(rows), static_cast<long>(inner), nullptr, nullptr, nullptr,
                   static_cast<float>(eps[i])};
    const std::array<int64_t, 4> sizes{shape.size(0), shape.size(1), shape.size(2), rows};
    if (work == PixelWork::load) {
      check(a, a.numel(), "a map");
      TORCH_CHECK(a.sizes() == at::IntArrayRef(sizes), "a map has other pictures, sides or channels than its place");
      step.map = data<float>(a);
    } else if (work == PixelWork::store) {
      made.push_back(at::empty(at::IntArrayRef(sizes), shape.options().dtype(at::kFloat)));
      step.map = data<float>(made.back());
    } else if (work == PixelWork::norm) {
      check(a, rows, "a scale");
      check(b, rows, "a shift");
    } else if (work == PixelWork::layer) {
      check(a, rows * inner, "a weight");
      TORCH_CHECK(a.dim() > 0 && a.size(0) == rows, "a weight is [out, in]");
      if (b.defined()) check(b, rows, "a bias");
    }
    TORCH_CHECK((work != PixelWork::load && work != PixelWork::store) || rows % 16 == 0, "maps have multiples of 16 channels");
    if (work == PixelWork::norm || work == PixelWork::layer) step.a = data<float>(a), step.b = data<float>(b);
    steps.push_back(step);
  }
  const int64_t tile = run().tile, tiles = (pixels + tile - 1) / tile;
  at::parallel_for(0, tiles, 1, [&](int64_t first, int64_t last) {
    const Tensor scratch = at::empty({tile_rows * tile}, shape.options().dtype(at::kFloat));
    for (int64_t one = first; one < last; ++one) {
      run().run(steps.data(), static_cast<long>(steps.size()), static_cast<long>(one * tile), static_cast<long>(std::min(tile, pixels - one * tile)),
                data<float>(scratch));
    }
  });
  rust::Vec<size_t> handles;
  for (Tensor& one : made) handles.push_back(handle(std::move(one)));
  return handles;
}

size_t pixel_mix(size_t v, size_t gate, size_t weight, size_t bias, size_t gamma, size_t beta, double eps, int64_t side, bool grid) {
  Plain plain;
  const Tensor &xs = tensor(v), &gates = tensor(gate);
  TORCH_CHECK(xs.dim() == 4 && side > 0 && side <= kMostSide && xs.size(1) % side == 0 && xs.size(2) % side == 0 && xs.size(3) > 0 && xs.size(3) % 16 == 0,
              "maps are [pictures, height, width, channels], with sides of whole cells and multiples of 16 channels");
  const int64_t pictures = xs.size(0), height = xs.size(1), width = xs.size(2), channels = xs.size(3), cells = side * side;
  check(xs, xs.numel(), "a map");
  if (gates.defined()) check(gates, xs.numel(), "a gate");
  TORCH_CHECK(!gates.defined() || gates.sizes() == xs.sizes(), "a gate is of the map's size");
  check(tensor(weight), cells * cells, "a weight");
  if (bias != 0) check(tensor(bias), cells, "a bias");
  if (gamma != 0) check(tensor(gamma), channels, "a scale"), check(tensor(beta), channels, "a shift");
  // The layer is over cells (y, x); all else is an item.
  const int64_t high = grid ? height / side : 1, wide = grid ? width / side : 1;
  const int64_t step_y = grid ? 1 : side, step_x = grid ? 1 : side, items_y = height / side, items_x = width / side;
  std::vector<long> offsets, items;
  for (int64_t y = 0; y < side; ++y) {
    for (int64_t x = 0; x < side; ++x) offsets.push_back(static_cast<long>((y * high * width + x * wide) * channels));
  }
  for (int64_t b = 0; b < pictures; ++b) {
    for (int64_t y = 0; y < items_y; ++y) {
      for (int64_t x = 0; x < items_x; ++x) items.push_back(static_cast<long>(((b * height + y * step_y) * width + x * step_x) * channels));
    }
  }
  const AxisMix mix{static_cast<long>(cells), static_cast<long>(channels), offsets.data(), items.data(), data<float>(tensor(weight)), data<float>(tensor(bias)),
                    data<float>(tensor(gamma)), data<float>(tensor(beta)), static_cast<float>(eps)};
  const Tensor out = at::empty_like(xs);
  const int64_t each = run().together(mix.channels), count = static_cast<int64_t>(items.size());
  at::parallel_for(0, (count + each - 1) / each, 1, [&](int64_t first, int64_t last) {
    const Tensor scratch = at::empty({2 * cells * each * channels}, xs.options());
    for (int64_t one = first; one < last; ++one) {
      run().mix(data<float>(out), data<float>(xs), data<float>(gates), mix, static_cast<long>(one * each),
                static_cast<long>(std::min(count, (one + 1) * each)), data<float>(scratch));
    }
  });
  return handle(out);
}

}  // namespace densely
