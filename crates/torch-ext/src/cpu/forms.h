// Weights in the form in which inference asks for them again and again.
#pragma once
#include <ATen/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <map>
#include <mutex>
#include <utility>

namespace densely {

/// Keeps a transposed copy of a weight as long as the weight lives and nobody writes to it.
class Forms {
 public:
  /// [out, in] → [in, out], contiguous, of another kind perhaps.
  at::Tensor transposed(const at::Tensor& weight, at::ScalarType kind) {
    // A tensor made in inference mode does not count its changes.
    if (weight.is_inference()) return make(weight, kind);
    const std::lock_guard<std::mutex> guard(mutex_);
    const Key key{weight.unsafeGetTensorImpl(), kind};
    const auto found = kept_.find(key);
    if (found != kept_.end() && found->second.fits(weight)) return found->second.form;
    for (auto kept = kept_.begin(); kept != kept_.end();) kept = kept->second.of.expired() ? kept_.erase(kept) : std::next(kept);
    return kept_.insert_or_assign(key, Kept(weight, make(weight, kind))).first->second.form;
  }

 private:
  using Key = std::pair<const void*, at::ScalarType>;

  struct Kept {
    Kept(const at::Tensor& weight, at::Tensor made)
        : of(weight.getIntrusivePtr()), storage(weight.storage()), version(weight._version()), form(std::move(made)) {}

    /// The same tensor over the same memory (which is held, so that no other can have its address), unchanged.
    bool fits(const at::Tensor& weight) const {
      return !of.expired() && storage.is_alias_of(weight.storage()) && version == weight._version();
    }

    c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> of;
    c10::Storage storage;
    int64_t version;
    at::Tensor form;
  };

  static at::Tensor make(const at::Tensor& weight, at::ScalarType kind) { return weight.detach().to(kind).t().contiguous(); }

  std::mutex mutex_;
  std::map<Key, Kept> kept_;
};

inline Forms& forms() {
  static Forms* all = new Forms;  // never destroyed: libtorch may be gone first
  return *all;
}

}  // namespace densely
