// See pixel_kernels.h.
#include "pixel_kernels.h"

#include "panels.h"

namespace densely {
namespace LEVEL {
namespace {

using V = Vector<float>;

constexpr long kTile = kPanelVectors * kWide;

/// x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), which is x σ(2 …).
inline V gelu(V x) { return x * sigmoid(x * (x * x * (2 * 0.7978845608028654f * 0.044715f) + 2 * 0.7978845608028654f)); }

void load_map(float* to, const PixelStep& step, long first, long count, long width) {
  for (long pixel = 0; pixel < width; pixel += kWide) {
    const long left = count - pixel;
    for (long c = 0; c < step.rows; c += kWide) {
      V square[kWide];
#pragma GCC unroll 16
      for (long i = 0; i < kWide; ++i) square[i] = i < left ? load(step.map + (first + pixel + i) * step.rows + c) : V{};
      turn_square(square);
#pragma GCC unroll 16
      for (long i = 0; i < kWide; ++i) store(to + (c + i) * width + pixel, square[i]);
    }
  }
}

void store_map(const float* from, const PixelStep& step, long first, long count, long width) {
  for (long pixel = 0; pixel < width; pixel += kWide) {
    const long left = count - pixel;
    for (long c = 0; c < step.rows; c += kWide) {
      V square[kWide];
#pragma GCC unroll 16
      for (long i = 0; i < kWide; ++i) square[i] = load(from + (c + i) * width + pixel);
      turn_square(square);
#pragma GCC unroll 16
      for (long i = 0; i < kWide; ++i) {
        if (i < left) store(step.map + (first + pixel + i) * step.rows + c, square[i]);
      }
    }
  }
}

void norm_rows(float* to, const float* from, const PixelStep& step, long width) {
  for (long pixel = 0; pixel < width; pixel += kWide) {
    V sum{}, squares{};
    for (long c = 0; c < step.rows; ++c) sum += load(from + c * width + pixel);
    const V mean = sum / static_cast<float>(step.rows);
    for (long c = 0; c < step.rows; ++c) {
      const V away = load(from + c * width + pixel) - mean;
      squares += away * away;
    }
    V inverse = squares / static_cast<float>(step.rows) + step.eps;
    for (long i = 0; i < kWide; ++i) inverse[i] = 1.0f / __builtin_sqrtf(inverse[i]);
    for (long c = 0; c < step.rows; ++c) {
      store(to + c * width + pixel, (load(from + c * width + pixel) - mean) * inverse * step.a[c] + step.b[c]);
    }
  }
}

void run(const PixelStep* steps, long n, long first, long count, float* scratch) {
  const Tile tile = Tile::of(count);
  const long width = tile.vectors * kWide;
  for (const PixelStep* step = steps; step != steps + n; ++step) {
    const float* in = scratch + step->in * width;
    float* out = scratch + step->out * width;
    const long values = step->rows * width;
    switch (step->work) {
      case PixelWork::load: load_map(out, *step, first, count, width); break;
      case PixelWork::store: store_map(in, *step, first, count, width); break;
      case PixelWork::norm: norm_rows(out, in, *step, width); break;
      case PixelWork::layer: tile_product(tile, out, step->a, step->inner, in, step->rows, step->inner, step->b, false); break;
      case PixelWork::gelu:
        for (long i = 0; i < values; i += kWide) store(out + i, gelu(load(out + i)));
        break;
      case PixelWork::multiply:
        for (long i = 0; i < values; i += kWide) store(out + i, load(out + i) * load(in + i));
        break;
      case PixelWork::add:
        for (long i = 0; i < values; i += kWide) store(out + i, load(out + i) + load(in + i));
        break;
    }
  }
}

long together(long channels) { return channels < kTile ? kTile / channels : 1; }

void mix(float* out, const float* v, const float* gate, const AxisMix& of, long first, long last, float* scratch) {
  const long C = of.channels, width = (last - first) * C;
  float *from = scratch, *to = scratch + of.cells * width;
  for (long cell = 0; cell < of.cells; ++cell) {
    for (long item = first; item < last; ++item) {
      const float* x = v + of.items[item] + of.offsets[cell];
      float* y = from + cell * width + (item - first) * C;
      if (!of.gamma) {
        for (long c = 0; c < C; c += kWide) store(y + c, load(x + c));
        continue;
      }
      V sums{}, squared{};
      for (long c = 0; c < C; c += kWide) sums += load(x + c);
      const float mean = sum<float>(sums) / static_cast<float>(C);
      for (long c = 0; c < C; c += kWide) {
        const V away = load(x + c) - mean;
        squared += away * away;
      }
      const float inverse = 1.0f / __builtin_sqrtf(sum<float>(squared) / static_cast<float>(C) + of.eps);
      for (long c = 0; c < C; c += kWide) store(y + c, (load(x + c) - mean) * inverse * load(of.gamma + c) + load(of.beta + c));
    }
  }
  for (long c = 0; c < width; c += kTile) {
    const long vectors = (width - c < kTile ? width - c : kTile) / kWide;
    row_blocks(of.cells, [&](long r, auto count) {
      panel_width<decltype(count)::value>(vectors, to + r * width + c, width, of.w + r * of.cells, of.cells, from + c, width, of.cells,
                                          of.bias ? of.bias + r : nullptr, false);
    });
  }
  for (long cell = 0; cell < of.cells; ++cell) {
    for (long item = first; item < last; ++item) {
      const long at = of.items[item] + of.offsets[cell];
      const float* y = to + cell * width + (item - first) * C;
      for (long c = 0; c < C; c += kWide) store(out + at + c, gate ? load(gate + at + c) * (load(y + c) + 1.0f) : load(y + c));
    }
  }
}

}  // namespace

extern const PixelKernels pixels = {kTile, run, together, mix};

}  // namespace LEVEL
}  // namespace densely
