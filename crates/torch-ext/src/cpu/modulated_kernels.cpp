// See modulated_kernels.h.
#include "modulated_kernels.h"

#include "panels.h"

namespace densely {
namespace LEVEL {
namespace {

using V = Vector<float>;

/// Rows whose sums for the bias are added up before they are added to the others.
constexpr long kBlock = 8;

/// Where a coordinate lies between two values of `size`.
struct Between {
  long low, high;
  float weight;  // of the higher one
};

/// A coordinate that is no number is taken for the lowest.
inline Between between(float coord, long size) {
  const float last = static_cast<float>(size - 1);
  float at = (coord + 1.0f) * 0.5f * last;
  at = at > 0.0f ? at : 0.0f;
  at = at < last ? at : last;
  const long low = static_cast<long>(at);
  return {low, low + 1 < size ? low + 1 : low, at - static_cast<float>(low)};
}

/// The four values around a row's place in the grid, and their weights.
struct Corners {
  long place[4];
  float weight[4];

  Corners(const float* coords, const Modulated& layer) {
    const Between x = between(coords[0], layer.width), y = between(coords[1], layer.height);
    const long rows[] = {y.low * layer.width, y.high * layer.width};
    const float weights[] = {1.0f - y.weight, y.weight};
    for (int i = 0; i < 2; ++i) {
      place[2 * i] = rows[i] + x.low, weight[2 * i] = weights[i] * (1.0f - x.weight);
      place[2 * i + 1] = rows[i] + x.high, weight[2 * i + 1] = weights[i] * x.weight;
    }
  }

  float read(const float* grid) const {
    float sum = 0;
    for (int i = 0; i < 4; ++i) sum += weight[i] * grid[place[i]];
    return sum;
  }

  void add(float* grid, float value) const {
    for (int i = 0; i < 4; ++i) grid[place[i]] += weight[i] * value;
  }
};

/// Σ (x - mean)² of a row.
inline float squared_deviations(const float* x, float mean, long cols) {
  V squares{};
  long c = 0;
  for (; c + kWide <= cols; c += kWide) {
    const V away = load(x + c) - mean;
    squares += away * away;
  }
  float rest = 0;
  for (; c < cols; ++c) rest += (x[c] - mean) * (x[c] - mean);
  return sum<float>(squares) + rest;
}

template <bool RELU>
inline V activation(V x) { return RELU ? (x < 0.0f ? V{} : x) : x; }

template <bool RELU>
void forward_rows(float* y, long y_row, float* kept, long kept_row, float* inverse, const float* coords, Modulated layer, long rows, long cols) {
  for (long row = 0; row < rows; ++row) {
    float *ys = y + row * y_row, *ns = kept ? kept + row * kept_row : nullptr;
    V sums{};
    sweep(cols, [&](auto load, auto store, long) {
      const V u = load(ys) + load(layer.bias);
      store(ys, u);
      sums += u;
    });
    const float mean = sum<float>(sums) / static_cast<float>(cols);
    const float r = 1.0f / __builtin_sqrtf(squared_deviations(ys, mean, cols) / static_cast<float>(cols) + layer.eps);
    const Corners corners(coords + 2 * row, layer);
    const float gamma = corners.read(layer.grid), beta = corners.read(layer.grid + layer.height * layer.width);
    sweep(cols, [&](auto load, auto store, long) {
      const V n = (load(ys) - mean) * r;
      if (ns) store(ns, n);
      store(ys, activation<RELU>(n * gamma + beta));
    });
    if (inverse) inverse[row] = r;
  }
}

/// Of kBlock rows at most.
template <bool RELU>
void backward_block(float* d, float* y, long row_size, float* sums, float* grid_sums, const float* kept, long kept_row, const float* inverse,
                    const float* coords, Modulated layer, long rows, long cols) {
  float scales[kBlock], middles[kBlock], slants[kBlock];
  for (long row = 0; row < rows; ++row) {
    float *ds = d + row * row_size, *ys = y + row * row_size;
    const float* ns = kept + row * kept_row;
    const Corners corners(coords + 2 * row, layer);
    const float gamma = corners.read(layer.grid), beta = corners.read(layer.grid + layer.height * layer.width);
    V level{}, tilt{};
    sweep(cols, [&](auto load, auto store, long) {
      const V n = load(ns), before = n * gamma + beta, g = RELU ? (before <= 0.0f ? V{} : load(ds)) : load(ds);
      store(ys, activation<RELU>(before));
      store(ds, g);
      level += g;
      tilt += g * n;
    });
    const float dbeta = sum<float>(level), dgamma = sum<float>(tilt);
    corners.add(grid_sums, dgamma);
    corners.add(grid_sums + layer.height * layer.width, dbeta);
    scales[row] = gamma * inverse[row], middles[row] = dbeta / static_cast<float>(cols), slants[row] = dgamma / static_cast<float>(cols);
  }
  sweep(cols, [&](auto load, auto store, long) {
    V total{};
    for (long row = 0; row < rows; ++row) {
      float* ds = d + row * row_size;
      const V g = (load(ds) - middles[row] - load(kept + row * kept_row) * slants[row]) * scales[row];
      store(ds, g);
      total += g;
    }
    store(sums, load(sums) + total);
  });
}

void forward(float* y, long y_row, float* kept, long kept_row, float* inverse, const float* coords, Modulated layer, long rows, long cols) {
  (layer.relu ? forward_rows<true> : forward_rows<false>)(y, y_row, kept, kept_row, inverse, coords, layer, rows, cols);
}

void backward(float* d, float* y, long row, float* sums, float* grid_sums, const float* kept, long kept_row, const float* inverse, const float* coords,
              Modulated layer, long rows, long cols) {
  for (long r = 0; r < rows; r += kBlock) {
    const long some = rows - r < kBlock ? rows - r : kBlock;
    (layer.relu ? backward_block<true> : backward_block<false>)(d + r * row, y + r * row, row, sums, grid_sums, kept + r * kept_row, kept_row,
                                                                inverse + r, coords + 2 * r, layer, some, cols);
  }
}

}  // namespace

extern const ModulatedKernels modulated = {forward, backward};

}  // namespace LEVEL
}  // namespace densely
