// Kinds and instruction sets: which kernels an operation runs, and how it hands memory to libtorch's matrix product.
#pragma once
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "kernels.h"

namespace at::native {
// oneDNN's product, which libtorch 2.11 exports and has no header for: result = alpha · mat1 mat2 + beta · result.
void mkldnn_matmul(const Tensor& mat1, const Tensor& mat2, const Tensor& result, float beta, float alpha);
}  // namespace at::native

namespace densely {

enum class Level { baseline, avx2, avx512 };

inline Level level() {
#ifdef DENSELY_X86
  static const Level found = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
      return Level::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Level::avx2;
    return Level::baseline;
  }();
  return found;
#else
  return Level::baseline;
#endif
}

#ifdef DENSELY_X86
#define DENSELY_PICK(name) (level() == Level::avx512 ? avx512::name : level() == Level::avx2 ? avx2::name : baseline::name)
#else
#define DENSELY_PICK(name) (baseline::name)
#endif

template <typename P, typename A>
const Kernels<P, A>& kernels();
template <>
inline const Kernels<float, float>& kernels() { return DENSELY_PICK(f32); }
template <>
inline const Kernels<double, double>& kernels() { return DENSELY_PICK(f64); }
template <>
inline const Kernels<float, Bf16>& kernels() { return DENSELY_PICK(bf16); }

template <typename P>
const PiecewiseKernels<P>& piecewise_kernels();
template <>
inline const PiecewiseKernels<float>& piecewise_kernels() { return DENSELY_PICK(piecewise_f32); }
template <>
inline const PiecewiseKernels<double>& piecewise_kernels() { return DENSELY_PICK(piecewise_f64); }

template <typename T>
constexpr at::ScalarType kind_of();
template <>
constexpr at::ScalarType kind_of<float>() { return at::kFloat; }
template <>
constexpr at::ScalarType kind_of<double>() { return at::kDouble; }
template <>
constexpr at::ScalarType kind_of<Bf16>() { return at::kBFloat16; }

/// Null for an undefined tensor.
template <typename T>
T* data(const at::Tensor& xs) {
  return xs.defined() ? static_cast<T*>(xs.data_ptr()) : nullptr;
}

/// The tensor at an address that Rust handed in; 0 is an undefined one.
inline const at::Tensor& tensor(size_t pointer) {
  static const at::Tensor none;
  return pointer == 0 ? none : *reinterpret_cast<const at::Tensor*>(pointer);
}

/// A tensor for Rust to own.
inline size_t handle(at::Tensor xs) { return reinterpret_cast<size_t>(new at::Tensor(std::move(xs))); }

/// Dropout with probability p, below 1.
inline Dropout dropout_of(double p, int64_t seed) {
  return {static_cast<unsigned long long>(seed), static_cast<unsigned>(p * 4294967296.0), 1.0 / (1.0 - p)};
}

/// As autograd wants an argument that may be absent.
inline std::optional<at::Tensor> optional(const at::Tensor& xs) {
  return xs.defined() ? std::optional<at::Tensor>(xs) : std::nullopt;
}

/// A matrix over memory of ours, rows side by side.
template <typename T>
at::Tensor matrix(const T* xs, int64_t rows, int64_t cols) {
  return at::from_blob(const_cast<T*>(xs), {rows, cols}, at::TensorOptions().dtype(kind_of<T>()));
}

/// Whether f32 products may go to oneDNN. libtorch's go to MKL, which on AMD's processors runs its AVX2 kernels even where there is
/// AVX-512. `DENSELY_PRODUCTS=mkl` or `onednn` overrules that.
inline bool onednn() {
  static const bool found = [] {
    const char* wish = std::getenv("DENSELY_PRODUCTS");
    if (!at::globalContext().hasMKLDNN() || (wish != nullptr && std::strcmp(wish, "mkl") == 0)) return false;
    if (wish != nullptr && std::strcmp(wish, "onednn") == 0) return true;
#ifdef DENSELY_X86
    __builtin_cpu_init();
    return level() == Level::avx512 && __builtin_cpu_is("amd");
#else
    return false;
#endif
  }();
  return found;
}

/// Whether oneDNN is the faster one for [m, k] [k, n] in f32, as measured: a call costs it some microseconds more, and a transposed
/// right side a copy; it is far ahead where the result is narrow.
inline bool onednn_pays(int64_t m, int64_t n, int64_t k, bool left_transposed, bool right_transposed) {
  if (!onednn()) return false;
  if (n < 16) return m >= 64 && k >= 64 && m * k >= 32768 && !right_transposed;
  const int64_t least = std::max(m, k) >= 1024 ? 8192 : 32768;
  if (left_transposed) return k >= 64 && m * n >= least;
  return m >= (right_transposed ? 192 : 4) && n * k >= least;
}

/// out = a b, or out += a b; A is the kind of all three.
template <typename A>
void product(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool add = false) {
  if constexpr (std::is_same_v<A, float>) {
    const auto transposed = [](const at::Tensor& xs) { return xs.stride(1) != 1; };
    if (onednn_pays(out.size(0), out.size(1), a.size(1), transposed(a), transposed(b))) {
      at::native::mkldnn_matmul(a, b, out, add ? 1 : 0, 1);
      return;
    }
  }
  at::Tensor sum = out;
  if (add) at::addmm_out(sum, sum, a, b);
  else at::mm_out(sum, a, b);
}

/// Neither autograd nor autocast sees the products of the thread that holds it.
struct Plain {
  c10::impl::ExcludeDispatchKeyGuard autograd{c10::autograd_dispatch_keyset_with_ADInplaceOrView};
  c10::impl::ExcludeDispatchKeyGuard autocast{c10::autocast_dispatch_keyset};
};

}  // namespace densely
