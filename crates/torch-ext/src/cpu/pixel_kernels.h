// Loops of MAXIM's parts: chains of layers over the channels of each pixel, and layers over the pixels of a grid's cells or of a block; see
// kernels.h for how they are compiled and picked. Channels are multiples of 16.
#pragma once
#include "kernels.h"

namespace densely {

/// What is done with rows of a tile: pixels side by side, a row for each channel.
enum class PixelWork { load, store, norm, layer, gelu, multiply, add };

struct PixelStep {
  PixelWork work;
  long in, out, rows;  // first rows of the tile that are read and written, and how many are written
  long inner;          // of a layer: rows that are read
  float *map;          // of load and store: [pixels, rows]
  const float *a, *b;  // of a layer: weight [rows, inner] and bias; of a norm: scale and shift
  float eps;
};

/// v → W norm(v) + b over rows of pixels, and then, with `gate`, gate ∘ (that + 1).
struct AxisMix {
  long cells, channels;     // rows of W
  const long *offsets;      // [cells], values from an item's first pixel to the one in a cell
  const long *items;        // values from the map's start to the first pixel of an item
  const float *w, *bias;    // [cells, cells], [cells]
  const float *gamma, *beta;  // of the norm over channels; null without
  float eps;
};

struct PixelKernels {
  /// Pixels of a tile.
  long tile;
  /// Steps one after another for `count` pixels, at most a tile, from `first` on; `scratch`: as many rows as the steps use.
  void (*run)(const PixelStep* steps, long n, long first, long count, float* scratch);
  /// Items that are worked on together.
  long (*together)(long channels);
  /// out of v and gate (null without), maps alike, for items [first, last), at most so many; `scratch`: 2 · cells · together · channels.
  void (*mix)(float* out, const float* v, const float* gate, const AxisMix& mix, long first, long last, float* scratch);
};

#define DENSELY_PIXEL_KERNELS(level)  \
  namespace level {                   \
  extern const PixelKernels pixels;   \
  }
DENSELY_PIXEL_KERNELS(baseline)
#ifdef DENSELY_X86
DENSELY_PIXEL_KERNELS(avx2)
DENSELY_PIXEL_KERNELS(avx512)
#endif

}  // namespace densely
