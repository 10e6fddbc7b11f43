// Kinds and instruction sets: which kernels an operation runs, and how it hands memory to libtorch's matrix product.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "kernels.h"

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

/// As autograd wants an argument that may be absent.
inline std::optional<at::Tensor> optional(const at::Tensor& xs) {
  return xs.defined() ? std::optional<at::Tensor>(xs) : std::nullopt;
}

/// A matrix over memory of ours, rows side by side.
template <typename T>
at::Tensor matrix(const T* xs, int64_t rows, int64_t cols) {
  return at::from_blob(const_cast<T*>(xs), {rows, cols}, at::TensorOptions().dtype(kind_of<T>()));
}

/// Neither autograd nor autocast sees the products of the thread that holds it.
struct Plain {
  c10::impl::ExcludeDispatchKeyGuard autograd{c10::autograd_dispatch_keyset_with_ADInplaceOrView};
  c10::impl::ExcludeDispatchKeyGuard autocast{c10::autocast_dispatch_keyset};
};

}  // namespace densely
