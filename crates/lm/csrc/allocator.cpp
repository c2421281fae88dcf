// libtorch's CPU allocator, with large blocks kept for the next step.
//
// A training step allocates and frees the same large tensors each time. glibc returns such blocks
// to the system, which zeroes them page by page at the next use. Outside of the main thread no
// mallopt prevents that, because a thread's arena is too small for them. Here a freed block is kept
// until a block of about its size is requested. Kept blocks add almost nothing to the peak of
// memory in use: before a new block would exceed it, the blocks that were unused for the longest
// time are freed.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_set>

namespace {

// Smaller blocks are left to the previous allocator.
constexpr size_t kLargeBytes = size_t(1) << 17;
// From this size on, a block uses huge pages, if the system has them.
constexpr size_t kHugeBytes = size_t(1) << 22;
constexpr size_t kHugePageBytes = size_t(1) << 21;
// The bytes in use and kept exceed the peak of bytes in use by at most this fraction (1 /
// kSlackPart).
constexpr size_t kSlackPart = 16;
// libtorch's own alignment. The block's size is stored before the data.
constexpr size_t kHeaderBytes = 64;
constexpr size_t kPageBytes = 4096;

struct Header {
  size_t block_bytes;
};

Header* header_of(void* data) { return reinterpret_cast<Header*>(static_cast<char*>(data) - kHeaderBytes); }

class KeepingAllocator final : public c10::Allocator {
 public:
  explicit KeepingAllocator(c10::Allocator* small) : small_(small) {}

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kLargeBytes) return small_->allocate(bytes);
    const size_t block_bytes = (bytes + kHeaderBytes + kPageBytes - 1) / kPageBytes * kPageBytes;
    std::lock_guard<std::mutex> lock(mutex_);
    void* data = taken(block_bytes);
    if (data == nullptr) data = made(block_bytes);
    given_.insert(data);
    given_bytes_ += header_of(data)->block_bytes;
    most_given_bytes_ = std::max(most_given_bytes_, given_bytes_);
    return {data, data, &KeepingAllocator::give_back, c10::Device(c10::DeviceType::CPU)};
  }

  // oneDNN (exact GELU, for example) allocates memory with raw_allocate and frees it only with this
  // deleter, including small blocks.
  c10::DeleterFnPtr raw_deleter() const override { return &KeepingAllocator::give_back_any; }

  void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }

  // Returns all kept blocks to the system, and resets the peak.
  void release() {
    std::lock_guard<std::mutex> lock(mutex_);
    keep_at_most(0);
    most_given_bytes_ = given_bytes_;
  }

  static KeepingAllocator* instance;

 private:
  struct Kept {
    void* data;
    // Time of release: larger is later.
    uint64_t freed;
  };

  // The functions below are called with the lock held.

  // Takes a kept block that is at most a quarter too large.
  void* taken(size_t block_bytes) {
    auto found = kept_.lower_bound(block_bytes);
    if (found == kept_.end() || found->first > block_bytes + block_bytes / 4) return nullptr;
    void* data = found->second.data;
    forget(found);
    return data;
  }

  void* made(size_t block_bytes) {
    const size_t most = std::max(most_given_bytes_, given_bytes_ + block_bytes);
    const size_t beside = most + most / kSlackPart - given_bytes_;
    keep_at_most(beside > block_bytes ? beside - block_bytes : 0);
    const bool huge = block_bytes >= kHugeBytes;
    const size_t aligned_to = huge ? kHugePageBytes : kPageBytes;
    void* block = nullptr;
    int failed = posix_memalign(&block, aligned_to, block_bytes);
    if (failed != 0) {
      keep_at_most(0);
      failed = posix_memalign(&block, aligned_to, block_bytes);
    }
    TORCH_CHECK(failed == 0, "not enough memory for a tensor of ", block_bytes - kHeaderBytes, " bytes");
#if defined(__linux__)
    // This is only advice.
    if (huge) madvise(block, block_bytes, MADV_HUGEPAGE);
#endif
    void* data = static_cast<char*>(block) + kHeaderBytes;
    header_of(data)->block_bytes = block_bytes;
    return data;
  }

  static void give_back(void* data) {
    std::lock_guard<std::mutex> lock(instance->mutex_);
    instance->keep(data);
  }

  static void give_back_any(void* data) {
    {
      std::lock_guard<std::mutex> lock(instance->mutex_);
      if (instance->given_.count(data) != 0) return instance->keep(data);
    }
    instance->small_->raw_deallocate(data);
  }

  void keep(void* data) {
    given_.erase(data);
    const size_t block_bytes = header_of(data)->block_bytes;
    given_bytes_ -= block_bytes;
    kept_bytes_ += block_bytes;
    const uint64_t now = ++frees_;
    by_age_.emplace(now, kept_.emplace(block_bytes, Kept{data, now}));
  }

  void keep_at_most(size_t bytes) {
    while (kept_bytes_ > bytes) {
      auto oldest = by_age_.begin()->second;
      void* block = header_of(oldest->second.data);
      forget(oldest);
      std::free(block);
    }
  }

  void forget(std::multimap<size_t, Kept>::iterator block) {
    kept_bytes_ -= block->first;
    by_age_.erase(block->second.freed);
    kept_.erase(block);
  }

  c10::Allocator* small_;
  std::mutex mutex_;
  // Keyed by size in bytes.
  std::multimap<size_t, Kept> kept_;
  std::map<uint64_t, std::multimap<size_t, Kept>::iterator> by_age_;
  uint64_t frees_ = 0;
  size_t kept_bytes_ = 0;
  // Large blocks in use, and their peak size.
  std::unordered_set<void*> given_;
  size_t given_bytes_ = 0;
  size_t most_given_bytes_ = 0;
};

KeepingAllocator* KeepingAllocator::instance = nullptr;

}  // namespace

extern "C" {

// Keeps freed large blocks from now on; a second call has no effect.
void lm_keep_large_blocks() {
  static std::once_flag once;
  std::call_once(once, [&] {
    // Never destroyed: tensors may outlive every static.
    KeepingAllocator::instance = new KeepingAllocator(c10::GetCPUAllocator());
    c10::SetCPUAllocator(KeepingAllocator::instance);
  });
}

// Returns the kept blocks to the system.
void lm_release_large_blocks() {
  if (KeepingAllocator::instance != nullptr) KeepingAllocator::instance->release();
}

}  // extern "C"
