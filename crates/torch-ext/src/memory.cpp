// Memory of large CPU tensors is kept and given out again. The C library returns large blocks to the system when they are freed, so each
// training step would have its activations' pages made and zeroed anew: 5 % of a step of TabM at the package's default size.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/alignment.h>
#include <sys/mman.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "bridge.h"

namespace densely {
namespace {

constexpr size_t kSmallest = size_t{1} << 20;  // smaller blocks are libtorch's
constexpr size_t kHugePage = size_t{2} << 20;
// Idle memory goes back to the system where there is more of it than the first, and the process would hold more than it once needed at a
// time, or more than the second: a step that needs three gigabytes finds them again, and no peak becomes higher by more than the first.
constexpr size_t kAlwaysIdle = size_t{1} << 30;
constexpr size_t kMostIdle = size_t{4} << 30;

/// Sizes within an eighth of each other share blocks, so that a last, shorter batch reuses the others' memory.
size_t round_up(size_t bytes) {
  size_t step = kSmallest / 8;
  while (step * 16 <= bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

class Pool final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kSmallest) return c10::GetDefaultCPUAllocator()->allocate(bytes);
    const size_t size = round_up(bytes);
    void* block = take(size);
    if (block == nullptr) block = fresh(size);
    return {block, block, &Pool::give_back, at::Device(at::kCPU)};
  }

  // oneDNN allocates by bare pointers: one function must free blocks of both kinds.
  c10::DeleterFnPtr raw_deleter() const override { return &Pool::give_back; }

  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }

  void empty() {
    std::map<size_t, std::vector<void*>> idle;
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      idle.swap(idle_);
      idle_bytes_ = 0;
      most_used_ = used_bytes_;
    }
    for (auto& [size, blocks] : idle) give_to_system(blocks);
  }

  size_t idle_bytes() {
    const std::lock_guard<std::mutex> guard(mutex_);
    return idle_bytes_;
  }

  static Pool& get() {
    static Pool* pool = new Pool;  // never destroyed: tensors may outlive it
    return *pool;
  }

 private:
  void* take(size_t size) {
    const std::lock_guard<std::mutex> guard(mutex_);
    auto found = idle_.find(size);
    if (found == idle_.end() || found->second.empty()) return nullptr;
    void* block = found->second.back();
    found->second.pop_back();
    idle_bytes_ -= size;
    use(block, size);
    return block;
  }

  // The lock is held.
  void use(void* block, size_t size) {
    sizes_[block] = size;
    used_bytes_ += size;
    most_used_ = std::max(most_used_, used_bytes_);
  }

  // What goes back to the system, which takes long for large blocks: without the lock, which is held here, else other threads wait for it.
  // The largest go first: there are fewest of them.
  std::vector<void*> surplus() {
    std::vector<void*> blocks;
    const size_t limit = std::clamp(most_used_ - used_bytes_, kAlwaysIdle, kMostIdle);
    while (idle_bytes_ > limit) {
      const auto largest = std::prev(idle_.end());
      if (largest->second.empty()) {
        idle_.erase(largest);
        continue;
      }
      blocks.push_back(largest->second.back());
      largest->second.pop_back();
      idle_bytes_ -= largest->first;
    }
    return blocks;
  }

  static void give_to_system(const std::vector<void*>& blocks) {
    for (void* block : blocks) std::free(block);
  }

  void* fresh(size_t size) {
    const size_t alignment = size >= kHugePage ? kHugePage : c10::gAlignment;
    void* block = nullptr;
    if (posix_memalign(&block, alignment, size) != 0) {
      empty();
      TORCH_CHECK(posix_memalign(&block, alignment, size) == 0, "not enough memory: you tried to allocate ", size, " bytes");
    }
#ifdef MADV_HUGEPAGE
    if (size >= kHugePage) madvise(block, size / kHugePage * kHugePage, MADV_HUGEPAGE);  // a hint: failing is no error
#endif
    std::unique_lock<std::mutex> guard(mutex_);
    use(block, size);
    const auto blocks = surplus();
    guard.unlock();
    give_to_system(blocks);
    return block;
  }

  static void give_back(void* block) {
    Pool& pool = get();
    std::unique_lock<std::mutex> guard(pool.mutex_);
    const auto found = pool.sizes_.find(block);
    if (found == pool.sizes_.end()) {
      guard.unlock();
      c10::GetDefaultCPUAllocator()->raw_deallocate(block);
      return;
    }
    const size_t size = found->second;
    pool.sizes_.erase(found);
    pool.used_bytes_ -= size;
    pool.idle_[size].push_back(block);
    pool.idle_bytes_ += size;
    const auto blocks = pool.surplus();
    guard.unlock();
    give_to_system(blocks);
  }

  std::mutex mutex_;
  std::map<size_t, std::vector<void*>> idle_;
  std::map<void*, size_t> sizes_;  // of the blocks that are in use
  size_t idle_bytes_ = 0;
  size_t used_bytes_ = 0;
  size_t most_used_ = 0;  // at a time
};

/// The C library, too, gives memory back as soon as a step has freed it, and has it made anew for the next: small tensors and the buffers
/// in which a product arranges its matrices, a tenth of a small step. It keeps 128 MB now, and smaller blocks side by side.
/// Whoever has set the C library's own variables is left alone.
void keep_small_blocks() {
#ifdef __GLIBC__
  for (const char* own : {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}) {
    if (std::getenv(own) != nullptr) return;
  }
  mallopt(M_MMAP_THRESHOLD, 4 << 20);
  mallopt(M_TRIM_THRESHOLD, 128 << 20);
#endif
}

// Before any tensor is made; `DENSELY_FAST=0` leaves the allocators as they are.
__attribute__((constructor)) void keep_memory() {
  const char* fast = std::getenv("DENSELY_FAST");
  if (fast != nullptr && std::strcmp(fast, "0") == 0) return;
  c10::SetCPUAllocator(&Pool::get(), 1);
  keep_small_blocks();
}

}  // namespace

size_t idle_memory() { return Pool::get().idle_bytes(); }

void release_memory() {
  Pool::get().empty();
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace densely
