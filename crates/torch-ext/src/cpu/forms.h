// What inference makes of weights again and again: transposed copies, tables.
#pragma once
#include <ATen/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace densely {

/// Keeps what was made of some weights as long as they live and nobody writes to them.
class Forms {
 public:
  /// [out, in] → [in, out], contiguous, of another kind perhaps.
  at::Tensor transposed(const at::Tensor& weight, at::ScalarType kind) {
    return kept({weight}, kind, [&] { return weight.detach().to(kind).t().contiguous(); });
  }

  /// What `make` makes of the tensors `of`; for each first one and `kind` one form is kept.
  template <typename Make>
  at::Tensor kept(const std::vector<at::Tensor>& of, at::ScalarType kind, Make make) {
    // A tensor made in inference mode does not count its changes.
    if (std::any_of(of.begin(), of.end(), [](const at::Tensor& xs) { return xs.is_inference(); })) return make();
    const std::lock_guard<std::mutex> guard(mutex_);
    const Key key{of.front().unsafeGetTensorImpl(), kind};
    const auto found = kept_.find(key);
    if (found != kept_.end() && found->second.fits(of)) return found->second.form;
    for (auto kept = kept_.begin(); kept != kept_.end();) kept = kept->second.expired() ? kept_.erase(kept) : std::next(kept);
    return kept_.insert_or_assign(key, Kept(of, make())).first->second.form;
  }

 private:
  using Key = std::pair<const void*, at::ScalarType>;

  /// A tensor over the same memory (which is held, so that no other can have its address), unchanged.
  struct Source {
    explicit Source(const at::Tensor& xs) : of(xs.getIntrusivePtr()), impl(xs.unsafeGetTensorImpl()), storage(xs.storage()), version(xs._version()) {}

    bool fits(const at::Tensor& xs) const {
      return !of.expired() && impl == xs.unsafeGetTensorImpl() && storage.is_alias_of(xs.storage()) && version == xs._version();
    }

    c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> of;
    const void* impl;
    c10::Storage storage;
    int64_t version;
  };

  struct Kept {
    Kept(const std::vector<at::Tensor>& of, at::Tensor made) : sources(of.begin(), of.end()), form(std::move(made)) {}

    bool fits(const std::vector<at::Tensor>& of) const {
      return std::equal(sources.begin(), sources.end(), of.begin(), of.end(), [](const Source& source, const at::Tensor& xs) { return source.fits(xs); });
    }

    bool expired() const { return sources.front().of.expired(); }

    std::vector<Source> sources;
    at::Tensor form;
  };

  std::mutex mutex_;
  std::map<Key, Kept> kept_;
};

inline Forms& forms() {
  static Forms* all = new Forms;  // never destroyed: libtorch may be gone first
  return *all;
}

}  // namespace densely
