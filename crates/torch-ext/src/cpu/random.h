// Random bits as a function of a place. Included inside the namespace of an instruction set.
#pragma once

namespace densely {
namespace LEVEL {
namespace {

inline unsigned long long mix(unsigned long long z) {  // splitmix64's finaliser
  z += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

/// What a column and the row's first key are joined by; a multiple of the column, so that vectors of columns need no product.
constexpr unsigned kColumn = 0x9e3779b1u;

/// 32 random bits (or a vector of them) of a place: "lowbias32" with the row's second key inside.
template <typename U>
inline U scramble(U place, unsigned inner) {
  U z = (place ^ (place >> 16)) * 0x7feb352du;
  z = ((z ^ (z >> 15)) + inner) * 0x846ca68bu;
  return z ^ (z >> 16);
}

/// 32 random bits of a column, given the row's two keys.
inline unsigned column_bits(unsigned column, unsigned key, unsigned inner) { return scramble(column * kColumn + key, inner); }

}  // namespace
}  // namespace LEVEL
}  // namespace densely
