// See grid_kernels.h.
#include "grid_kernels.h"

namespace densely {
namespace LEVEL {
namespace {

constexpr long kBlock = 128;                // points whose corners are found before their entries are read
constexpr float kFarthest = 2147483520.0f;  // the largest float below 2^31

template <int F>
struct Features {
  typedef float Vector __attribute__((vector_size(F * sizeof(float))));
};
template <>
struct Features<1> {
  typedef float Vector;
};

template <int F>
inline typename Features<F>::Vector load(const float* from) {
  typename Features<F>::Vector xs;
  __builtin_memcpy(&xs, from, sizeof xs);
  return xs;
}
template <int F>
inline void store(float* to, const typename Features<F>::Vector& xs) { __builtin_memcpy(to, &xs, sizeof xs); }

/// Where a corner's values begin.
template <int F>
inline unsigned long place(unsigned entry) { return static_cast<unsigned long>(entry) * F; }

template <int F>
inline float dot(const float* xs, const float* ys) {
  float sum = 0;
  for (int f = 0; f < F; ++f) sum += xs[f] * ys[f];
  return sum;
}

/// A block of points at a level.
template <int D>
struct Block {
  static constexpr int kCorners = 1 << D;
  float far[D][kBlock];    // share of the farther corners along an axis
  float slope[D][kBlock];  // its derivative by the coordinate
  unsigned entry[kCorners][kBlock];
  float share[kCorners][kBlock];
};

/// index %= entries.
void wrap(unsigned* index, long n, unsigned entries) {
  if ((entries & (entries - 1)) == 0) {
#pragma omp simd
    for (long i = 0; i < n; ++i) index[i] &= entries - 1;
    return;
  }
  // The factor is a little too small, so that the quotient is never too large, and at most one too small.
  const double inverse = (1.0 - 0x1p-50) / entries;
#pragma omp simd
  for (long i = 0; i < n; ++i) {
    const unsigned rest = index[i] - static_cast<unsigned>(static_cast<int>(index[i] * inverse)) * entries;
    index[i] = rest < entries ? rest : rest - entries;
  }
}

template <int D>
void locate(Block<D>& block, const float* coords, long n, GridLevel level) {
  unsigned near[D][kBlock];
  for (int d = 0; d < D; ++d) {
    const unsigned factor = level.factors[d];
    float *far = block.far[d], *slope = block.slope[d];
#pragma omp simd
    for (long i = 0; i < n; ++i) {
      const float at = __builtin_fmaf(coords[i * D + d], level.scale, 0.5f), low = __builtin_floorf(at);
      const float cell = low < kFarthest ? (low > -kFarthest ? low : -kFarthest) : kFarthest;
      const float t = at - low;
      near[d][i] = static_cast<unsigned>(static_cast<int>(cell)) * factor;
      far[i] = level.smooth ? t * t * (3.0f - 2.0f * t) : t;
      slope[i] = level.scale * (level.smooth ? 6.0f * t * (1.0f - t) : 1.0f);
    }
  }
  for (int corner = 0; corner < Block<D>::kCorners; ++corner) {
    unsigned* entry = block.entry[corner];
#pragma omp simd
    for (long i = 0; i < n; ++i) {
      unsigned index = 0;
      for (int d = 0; d < D; ++d) {
        const unsigned term = near[d][i] + (corner >> d & 1 ? level.factors[d] : 0u);
        index = level.hashed ? index ^ term : index + term;
      }
      entry[i] = index;
    }
    wrap(entry, n, level.entries);
  }
}

/// What a corner's share has of an axis.
template <int D>
inline float side(const Block<D>& block, int corner, int d, long i) { return corner >> d & 1 ? block.far[d][i] : 1.0f - block.far[d][i]; }

template <int D>
void weigh(Block<D>& block, long n) {
  for (int corner = 0; corner < Block<D>::kCorners; ++corner) {
    float* share = block.share[corner];
#pragma omp simd
    for (long i = 0; i < n; ++i) {
      float product = side(block, corner, 0, i);
      for (int d = 1; d < D; ++d) product *= side(block, corner, d, i);
      share[i] = product;
    }
  }
}

/// f(first, n) for each block of the points.
template <typename F>
inline void blocks(long n, const F& f) {
  for (long first = 0; first < n; first += kBlock) f(first, n - first < kBlock ? n - first : kBlock);
}

template <int D, int F>
void gather(float* y, const float* coords, const float* table, long n, GridLevel level) {
  Block<D> block;
  blocks(n, [&](long first, long count) {
    locate(block, coords + first * D, count, level);
    weigh(block, count);
    for (long i = 0; i < count; ++i) {
      typename Features<F>::Vector sum{};
      for (int corner = 0; corner < Block<D>::kCorners; ++corner) sum += block.share[corner][i] * load<F>(table + place<F>(block.entry[corner][i]));
      store<F>(y + (first + i) * F, sum);
    }
  });
}

template <int D, int F>
void scatter(float* dtable, const float* coords, const float* dy, long n, GridLevel level, unsigned from, unsigned many) {
  Block<D> block;
  blocks(n, [&](long first, long count) {
    locate(block, coords + first * D, count, level);
    weigh(block, count);
    for (long i = 0; i < count; ++i) {
      const auto grad = load<F>(dy + (first + i) * F);
      for (int corner = 0; corner < Block<D>::kCorners; ++corner) {
        const unsigned entry = block.entry[corner][i];
        float* to = dtable + place<F>(entry);
        if (entry - from < many) store<F>(to, load<F>(to) + block.share[corner][i] * grad);
      }
    }
  });
}

template <int D, int F>
void slope(float* dx, const float* coords, const float* table, const float* dy, long n, GridLevel level) {
  Block<D> block;
  blocks(n, [&](long first, long count) {
    locate(block, coords + first * D, count, level);
    for (long i = 0; i < count; ++i) {  // the shares' place holds their gradients
      const float* grad = dy + (first + i) * F;
      for (int corner = 0; corner < Block<D>::kCorners; ++corner) block.share[corner][i] = dot<F>(table + place<F>(block.entry[corner][i]), grad);
    }
    for (int d = 0; d < D; ++d) {
#pragma omp simd
      for (long i = 0; i < count; ++i) {
        float sum = 0;
        for (int corner = 0; corner < Block<D>::kCorners; ++corner) {
          float product = corner >> d & 1 ? block.share[corner][i] : -block.share[corner][i];
          for (int other = 0; other < D; ++other) {
            if (other != d) product *= side(block, corner, other, i);
          }
          sum += product;
        }
        dx[(first + i) * D + d] += block.slope[d][i] * sum;
      }
    }
  });
}

template <int F>
void join(float* points, const float* levels, long n, long count, long first, long last) {
  for (long i = first; i < last; ++i) {
    for (long level = 0; level < count; ++level) store<F>(points + (i * count + level) * F, load<F>(levels + (level * n + i) * F));
  }
}

template <int F>
void split(float* levels, const float* points, long n, long count, long first, long last) {
  for (long i = first; i < last; ++i) {
    for (long level = 0; level < count; ++level) store<F>(levels + (level * n + i) * F, load<F>(points + (i * count + level) * F));
  }
}

template <int D, int F>
constexpr GridKernels of() { return {gather<D, F>, scatter<D, F>, slope<D, F>, join<F>, split<F>}; }

}  // namespace

#define DENSELY_GRID(D) {of<D, 1>(), of<D, 2>(), of<D, 4>(), of<D, 8>()}
extern const GridKernels grids[kGridInputs - 1][kGridWidths] = {DENSELY_GRID(2), DENSELY_GRID(3), DENSELY_GRID(4)};

}  // namespace LEVEL
}  // namespace densely
