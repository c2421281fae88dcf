// libtorch's CPU allocator, with large blocks kept for the next step.
//
// A training step allocates and frees the same large tensors each time. glibc gives such blocks back to the
// system, which zeroes them page by page at the next use; outside of the main thread no mallopt prevents
// that, since a thread's arena cannot hold them. Here a freed block stays until one of about its size is
// asked for. What is kept adds nothing, or hardly anything, to the most memory that was ever in use: before a new
// block would, those that were not asked for the longest go.

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

// Smaller blocks are left to the allocator that was there before.
constexpr size_t kLargeBytes = size_t(1) << 17;
// From here on a block is of huge pages, where the system has them.
constexpr size_t kHugeBytes = size_t(1) << 22;
constexpr size_t kHugePageBytes = size_t(1) << 21;
// What is in use and what is kept are together at most this part more than the most that was ever in use.
constexpr size_t kSlackPart = 16;
// What libtorch's own allocator aligns to; the block's size stands in front of the data.
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

  // oneDNN (exact GELU, say) takes memory by raw_allocate and gives it back by this alone, small blocks too.
  c10::DeleterFnPtr raw_deleter() const override { return &KeepingAllocator::give_back_any; }

  void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }

  // Gives all that is kept back to the system, and forgets how much there was.
  void release() {
    std::lock_guard<std::mutex> lock(mutex_);
    keep_at_most(0);
    most_given_bytes_ = given_bytes_;
  }

  static KeepingAllocator* instance;

 private:
  struct Kept {
    void* data;
    // Since when: larger is later.
    uint64_t freed;
  };

  // The functions below are called with the lock held.

  // A kept block that is at most a quarter too large.
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
    // It is only advice.
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
  // By their bytes.
  std::multimap<size_t, Kept> kept_;
  std::map<uint64_t, std::multimap<size_t, Kept>::iterator> by_age_;
  uint64_t frees_ = 0;
  size_t kept_bytes_ = 0;
  // Large blocks in use, and the most that they ever were.
  std::unordered_set<void*> given_;
  size_t given_bytes_ = 0;
  size_t most_given_bytes_ = 0;
};

KeepingAllocator* KeepingAllocator::instance = nullptr;

}  // namespace

extern "C" {

// Keeps freed large blocks from now on; a second call changes nothing.
void lm_keep_large_blocks() {
  static std::once_flag once;
  std::call_once(once, [&] {
    // Never destroyed: tensors may outlive every static.
    KeepingAllocator::instance = new KeepingAllocator(c10::GetCPUAllocator());
    c10::SetCPUAllocator(KeepingAllocator::instance);
  });
}

// Gives what is kept back to the system.
void lm_release_large_blocks() {
  if (KeepingAllocator::instance != nullptr) KeepingAllocator::instance->release();
}

}  // extern "C"
