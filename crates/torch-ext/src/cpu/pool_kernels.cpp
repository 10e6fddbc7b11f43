// See pool_kernels.h. Pixels pass through an MLP in tiles that lie in the cache, its hidden layer in parts, so that nothing of the hidden
// layer's size is written to memory.
#include "pool_kernels.h"

#include "halves.h"
#include "panels.h"

namespace densely {
namespace LEVEL {
namespace {

using V = Vector<float>;

constexpr long kHidden = 256;  // hidden channels at a time

void moments(const float* x, long n, double* mean, double* squares) {
  constexpr long kPart = 4096;
  double total_mean = 0, total_squares = 0;
  for (long at = 0; at < n; at += kPart) {
    const long count = n - at < kPart ? n - at : kPart;
    V sums{};
    sweep(count, [&](auto load, auto, long) { sums += load(x + at); });
    const double m = static_cast<double>(sum<float>(sums)) / count;
    const float middle = static_cast<float>(m);
    V squared{};
    long i = 0;
    for (; i + kWide <= count; i += kWide) {
      const V away = load(x + at + i) - middle;
      squared += away * away;
    }
    double rest = 0;
    for (; i < count; ++i) rest += static_cast<double>(x[at + i] - middle) * (x[at + i] - middle);
    const double step = m - total_mean, all = static_cast<double>(at + count);
    total_squares += static_cast<double>(sum<float>(squared)) + rest - count * (m - middle) * (m - middle) + step * step * at * count / all;
    total_mean += step * count / all;
  }
  *mean = total_mean;
  *squares = total_squares;
}

/// Rows or columns that a window of three has within the map.
inline float around(long at, long size) { return static_cast<float>((at > 0) + 1 + (at + 1 < size)); }

/// scratch = Σ of the rows around, each times `weight(row)`.
template <typename F>
inline void add_rows(float* scratch, const float* x, const MapRow& at, const F& weight) {
  const long n = at.width * at.channels;
  const float* middle = x + at.row * n;
  const bool above = at.row > 0, below = at.row + 1 < at.height;
  const float *up = above ? middle - n : middle, *down = below ? middle + n : middle;
  const float a = above ? weight(at.row - 1) : 0.0f, b = weight(at.row), c = below ? weight(at.row + 1) : 0.0f;
  for (long i = 0; i < n; i += kWide) store(scratch + i, a * load(up + i) + b * load(middle + i) + c * load(down + i));
}

/// f(place in the row, sum of the columns around, channel): the columns of `scratch`, each times `weight(column)`.
template <typename W, typename F>
inline void add_columns(const float* scratch, const MapRow& at, const W& weight, const F& f) {
  const long C = at.channels;
  for (long x = 0; x < at.width; ++x) {
    const bool before = x > 0, behind = x + 1 < at.width;
    const float *middle = scratch + x * C, *left = before ? middle - C : middle, *right = behind ? middle + C : middle;
    const float a = before ? weight(x - 1, x) : 0.0f, b = weight(x, x), c = behind ? weight(x + 1, x) : 0.0f;
    for (long i = 0; i < C; i += kWide) f(x * C + i, a * load(left + i) + b * load(middle + i) + c * load(right + i), i);
  }
}

/// f(place in the row, mean over the window, channel).
template <typename F>
inline void pool_row(const float* x, const MapRow& at, float* scratch, const F& f) {
  const float high = around(at.row, at.height);
  add_rows(scratch, x, at, [](long) { return 1.0f; });
  add_columns(scratch, at, [&](long, long middle) { return 1.0f / (high * around(middle, at.width)); }, f);
}

void mix(float* out, const float* x, const float* slope, MapRow at, float* scratch) {
  const long first = at.row * at.width * at.channels;
  pool_row(x, at, scratch, [&](long i, V mean, long c) {
    const V xs = load(x + first + i);
    store(out + first + i, xs + load(slope + c) * (mean - xs));
  });
}

void mix_sums(float* g, float* sums, const float* dout, const float* dn, const float* mixed, const NormBack& back, const float* x, MapRow at, float* scratch) {
  const long first = at.row * at.width * at.channels;
  const float shift = -back.mean * back.inverse;
  pool_row(x, at, scratch, [&](long i, V mean, long c) {
    const V hat = load(mixed + first + i) * back.inverse + shift;
    const V gs = load(dout + first + i) + back.inverse * (load(back.scale + c) * load(dn + first + i) - back.level - hat * back.tilt);
    store(g + first + i, gs);
    store(sums + c, load(sums + c) + gs * (mean - load(x + first + i)));
  });
}

void mix_backward(float* dx, const float* g, const float* slope, const float* x, float mean, float tilt, MapRow at, float* scratch) {
  const long first = at.row * at.width * at.channels;
  add_rows(scratch, g, at, [&](long row) { return 1.0f / around(row, at.height); });
  add_columns(scratch, at, [&](long column, long) { return 1.0f / around(column, at.width); }, [&](long i, V pooled, long c) {
    const V gs = load(g + first + i);
    store(dx + first + i, gs + load(slope + c) * (pooled - gs) - tilt * (load(x + first + i) - mean));
  });
}

/// Pixels of a vector: which picture each is of.
struct Places {
  Places(const PixelMlp& mlp, long first, long left) {
    count = left < kWide ? left : kWide;
    for (long i = 0; i < count; ++i) picture[i] = (first + i) / mlp.pixels;
  }
  long count, picture[kWide];
};

/// f(first pixel of the tile, where a row 0 of the tile has it, values from one of its rows to the next) for each vector of pixels.
template <typename F>
inline void each_vector(const Tile& tile, long rows, const F& f) {
  for (long panel = 0; panel < tile.panels(); ++panel) {
    const long first = tile.start(panel), width = tile.width(panel);
    for (long v = 0; v < width; ++v) f((first + v) * kWide, first * kWide * rows + v * kWide, width * kWide);
  }
}

/// The pixels' channels, each value by `value(pixel, picture, channel)`, turned into the rows of a tile; zeros behind the last pixel.
template <typename F>
void enter(float* to, const Tile& tile, const PixelMlp& mlp, long first, long count, const F& value) {
  each_vector(tile, mlp.channels, [&](long pixel, long at, long row) {
    const Places places(mlp, first + pixel, count - pixel);
    for (long c = 0; c < mlp.channels; c += kWide) {
      V square[kWide];
#pragma GCC unroll 16
      for (long i = 0; i < kWide; ++i) square[i] = i < places.count ? value(pixel + i, places.picture[i], c) : V{};
      turn_square(square);
#pragma GCC unroll 16
      for (long i = 0; i < kWide; ++i) store(to + at + (c + i) * row, square[i]);
    }
  });
}

/// f(pixel, picture, channel, values) of the rows of a tile, turned back.
template <typename F>
void leave(const float* from, const Tile& tile, const PixelMlp& mlp, long first, long count, const F& f) {
  each_vector(tile, mlp.channels, [&](long pixel, long at, long row) {
    const Places places(mlp, first + pixel, count - pixel);
    for (long c = 0; c < mlp.channels; c += kWide) {
      V square[kWide];
#pragma GCC unroll 16
      for (long i = 0; i < kWide; ++i) square[i] = load(from + at + (c + i) * row);
      turn_square(square);
      for (long i = 0; i < places.count; ++i) f(pixel + i, places.picture[i], c, square[i]);
    }
  });
}

inline V normed_at(const float* x, const PixelMlp& mlp, long first, long pixel, long picture, long c) {
  return load(x + (first + pixel) * mlp.channels + c) * load(mlp.scale + picture * mlp.channels + c) + load(mlp.shift + picture * mlp.channels + c);
}

long scratch_size(const PixelMlp& mlp, long count, bool backward) {
  const long wide = padded<float>(count), part = mlp.hidden < kHidden ? mlp.hidden : kHidden;
  return wide * (backward ? 4 * mlp.channels + 2 * part : 2 * mlp.channels + part);
}

#if defined(__AVX512BF16__)
bool halves() { return true; }

void half_mlp(float* out, const float* x, const PixelMlp& mlp, long first, long count, float* scratch) {
  const Tile tile = Tile::of(count);
  const long wide = tile.vectors * kWide, C = mlp.channels;
  float *n = scratch, *y = n + wide * C, *h = y + wide * C;
  each_vector(tile, C / 2, [&](long pixel, long at, long row) {
    const Places places(mlp, first + pixel, count - pixel);
    for (long c = 0; c < C; c += 2 * kWide) {
      V square[kWide];
      const bool whole = c + kWide < C;
      for (long i = 0; i < kWide; ++i) {
        square[i] = V{};
        if (i >= places.count) continue;
        const V low = normed_at(x, mlp, first, pixel + i, places.picture[i], c);
        square[i] = side_by_side(low, whole ? normed_at(x, mlp, first, pixel + i, places.picture[i], c + kWide) : V{});
      }
      turn_square(square);
      const long rows = whole ? kWide : kWide / 2;
      for (long i = 0; i < rows; ++i) store(n + at + (c / 2 + i) * row, square[i]);
    }
  });
  for (long k = 0; k < mlp.hidden; k += kHidden) {
    const long part = mlp.hidden - k < kHidden ? mlp.hidden - k : kHidden;
    half_product(tile, h, mlp.half1 + k * C, C, n, part, C, mlp.b1 + k, false);
    // Pairs of rows in place: a pair is written where its first row, or one before that, has been read.
    for (long panel = 0; panel < tile.panels(); ++panel) {
      const long width = tile.width(panel) * kWide;
      float* rows = h + tile.start(panel) * kWide * part;
      float* pairs = h + tile.start(panel) * kWide * (part / 2);
      for (long r = 0; r < part; r += 2) {
        for (long i = 0; i < width; i += kWide) {
          const V low = load(rows + r * width + i), high = load(rows + (r + 1) * width + i);
          store(pairs + r / 2 * width + i, pair_up(low * normal<float>(low), high * normal<float>(high)));
        }
      }
    }
    half_product(tile, y, mlp.half2 + k, mlp.hidden, h, C, part, mlp.b2, k > 0);
  }
  leave(y, tile, mlp, first, count, [&](long pixel, long picture, long c, V ys) {
    const long at = (first + pixel) * C + c;
    store(out + at, load(x + at) + load(mlp.gain + picture * C + c) * ys);
  });
}
#else
bool halves() { return false; }
void half_mlp(float*, const float*, const PixelMlp&, long, long, float*) {}
#endif

void mlp_forward(float* out, float* z, const float* x, const PixelMlp& mlp, long first, long count, float* scratch) {
  if (mlp.half1) return half_mlp(out, x, mlp, first, count, scratch);
  const Tile tile = Tile::of(count);
  const long wide = tile.vectors * kWide, C = mlp.channels;
  float *n = scratch, *y = n + wide * C, *h = y + wide * C;
  enter(n, tile, mlp, first, count, [&](long pixel, long picture, long c) { return normed_at(x, mlp, first, pixel, picture, c); });
  for (long k = 0; k < mlp.hidden; k += kHidden) {
    const long part = mlp.hidden - k < kHidden ? mlp.hidden - k : kHidden;
    float* kept = z ? z + k * wide : h;
    tile_product(tile, kept, mlp.w1 + k * C, C, n, part, C, mlp.b1 + k, false);
    for (long i = 0; i < part * wide; i += kWide) {
      const V zs = load(kept + i);
      store(h + i, zs * normal<float>(zs));
    }
    tile_product(tile, y, mlp.w2 + k, mlp.hidden, h, C, part, mlp.b2, k > 0);
  }
  leave(y, tile, mlp, first, count, [&](long pixel, long picture, long c, V ys) {
    const long at = (first + pixel) * C + c;
    store(out + at, load(x + at) + load(mlp.gain + picture * C + c) * ys);
  });
}

void mlp_backward(const PixelMlpGradients& grads, const float* dout, const float* z, const float* x, const PixelMlp& mlp, long first, long count,
                  float* scratch) {
  const Tile tile = Tile::of(count);
  const long wide = tile.vectors * kWide, C = mlp.channels;
  float *n = scratch, *d = n + wide * C, *turned = d + wide * C, *dn = turned + wide * C, *h = dn + wide * C;
  float* dz = h + wide * (mlp.hidden < kHidden ? mlp.hidden : kHidden);
  for (long pixel = 0; pixel < count; ++pixel) {
    const long picture = (first + pixel) / mlp.pixels;
    const float kept = grads.kept ? grads.kept[picture] : 1.0f;
    float* sums = grads.sums + (picture * 3 + 2) * C;
    for (long c = 0; c < C; c += kWide) {
      const V ds = load(dout + (first + pixel) * C + c) * kept;
      store(d + pixel * C + c, ds);
      store(n + pixel * C + c, normed_at(x, mlp, first, pixel, picture, c));
      store(sums + c, load(sums + c) + ds);
    }
  }
  enter(turned, tile, mlp, first, count,
        [&](long pixel, long picture, long c) { return load(dout + (first + pixel) * C + c) * load(mlp.gain + picture * C + c); });
  for (long k = 0; k < mlp.hidden; k += kHidden) {
    const long part = mlp.hidden - k < kHidden ? mlp.hidden - k : kHidden;
    tile_product(tile, dz, grads.w2_turned + k * C, C, turned, part, C, nullptr, false);
    for (long panel = 0; panel < tile.panels(); ++panel) {
      const long start = tile.start(panel) * kWide, width = tile.width(panel) * kWide, inner = count - start < width ? count - start : width;
      float *hs = h + start * part, *dzs = dz + start * part;
      const float* zs = z + k * wide + start * part;
      for (long r = 0; r < part; ++r) {
        V total{};
        for (long i = 0; i < width; i += kWide) {
          const V at = load(zs + r * width + i), phi = normal<float>(at);
          store(hs + r * width + i, at * phi);
          // Beyond the last pixel the gradient is 0.
          const V g = load(dzs + r * width + i) * (phi + at * exp(at * at * -0.5f) * 0.3989422804014327f);
          store(dzs + r * width + i, g);
          total += g;
        }
        grads.b1[k + r] += sum<float>(total);
      }
      add_product(grads.w2 + k * C, C, hs, width, d + start * C, C, part, inner, C);
      add_product(grads.w1 + k * C, C, dzs, width, n + start * C, C, part, inner, C);
    }
    tile_product(tile, dn, grads.w1_turned + k, mlp.hidden, dz, C, part, nullptr, k > 0);
  }
  leave(dn, tile, mlp, first, count, [&](long pixel, long picture, long c, V g) {
    const long at = (first + pixel) * C + c;
    const V hat = (load(x + at) - grads.mean[picture]) * grads.inverse[picture];
    float* sums = grads.sums + picture * 3 * C + c;
    store(grads.normed + at, g);
    store(sums, load(sums) + g);
    store(sums + C, load(sums + C) + g * hat);
  });
}

}  // namespace

extern const PoolKernels pool = {kWide, halves, moments, mix, mix_sums, mix_backward, scratch_size, mlp_forward, mlp_backward};

}  // namespace LEVEL
}  // namespace densely
