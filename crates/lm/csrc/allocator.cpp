// libtorch's CPU allocator, with large blocks kept for the next step.
//
// A training step allocates and frees the same large tensors each time. glibc gives such blocks back to the
// system, which zeroes them page by page at the next use; outside of the main thread no mallopt prevents
// that, since a thread's arena cannot hold them. Here a freed block stays until one of about its size is
// asked for, up to a limit.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_set>

namespace {

// Smaller blocks are left to the allocator that was there before.
constexpr size_t kLargeBytes = size_t(1) << 20;
// What libtorch's own allocator aligns to; the block's size stands in front of the data.
constexpr size_t kHeaderBytes = 64;
constexpr size_t kPageBytes = 4096;

struct Header {
  size_t block_bytes;
};

Header* header_of(void* data) { return reinterpret_cast<Header*>(static_cast<char*>(data) - kHeaderBytes); }

class KeepingAllocator final : public c10::Allocator {
 public:
  KeepingAllocator(c10::Allocator* small, size_t max_kept_bytes) : small_(small), max_kept_bytes_(max_kept_bytes) {}

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kLargeBytes) return small_->allocate(bytes);
    void* data = taken(bytes);
    if (data == nullptr) data = made(bytes);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      given_.insert(data);
    }
    return {data, data, &KeepingAllocator::give_back, c10::Device(c10::DeviceType::CPU)};
  }

  // oneDNN (exact GELU, say) takes memory by raw_allocate and gives it back by this alone, small blocks too.
  c10::DeleterFnPtr raw_deleter() const override { return &KeepingAllocator::give_back_any; }

  void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }

  static KeepingAllocator* instance;

 private:
  // A kept block that is at most a quarter too large.
  void* taken(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = kept_.lower_bound(bytes + kHeaderBytes);
    if (found == kept_.end() || found->first > bytes + bytes / 4 + kPageBytes) return nullptr;
    void* data = found->second;
    kept_bytes_ -= found->first;
    kept_.erase(found);
    return data;
  }

  void* made(size_t bytes) {
    size_t block_bytes = (bytes + kHeaderBytes + kPageBytes - 1) / kPageBytes * kPageBytes;
    void* block = nullptr;
    int failed = posix_memalign(&block, kPageBytes, block_bytes);
    if (failed != 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      release();
      failed = posix_memalign(&block, kPageBytes, block_bytes);
    }
    TORCH_CHECK(failed == 0, "not enough memory for a tensor of ", bytes, " bytes");
    void* data = static_cast<char*>(block) + kHeaderBytes;
    header_of(data)->block_bytes = block_bytes;
    return data;
  }

  static void give_back(void* data) { instance->keep(data); }

  static void give_back_any(void* data) {
    bool large = false;
    {
      std::lock_guard<std::mutex> lock(instance->mutex_);
      large = instance->given_.count(data) != 0;
    }
    if (large) {
      instance->keep(data);
    } else {
      instance->small_->raw_deallocate(data);
    }
  }

  // Past the limit everything goes: what is kept may be of sizes that nobody asks for any more.
  void keep(void* data) {
    size_t block_bytes = header_of(data)->block_bytes;
    std::lock_guard<std::mutex> lock(mutex_);
    given_.erase(data);
    if (kept_bytes_ + block_bytes > max_kept_bytes_) release();
    if (block_bytes > max_kept_bytes_) {
      std::free(header_of(data));
      return;
    }
    kept_.emplace(block_bytes, data);
    kept_bytes_ += block_bytes;
  }

  // Frees every block that is kept; the lock is held.
  void release() {
    for (auto& [_, data] : kept_) std::free(header_of(data));
    kept_.clear();
    kept_bytes_ = 0;
  }

  c10::Allocator* small_;
  size_t max_kept_bytes_;
  std::mutex mutex_;
  std::multimap<size_t, void*> kept_;
  size_t kept_bytes_ = 0;
  // Large blocks in use.
  std::unordered_set<void*> given_;
};

KeepingAllocator* KeepingAllocator::instance = nullptr;

}  // namespace

extern "C" {

// Keeps up to max_kept_bytes of freed large blocks. Once in a process; a second call changes nothing.
void lm_keep_large_blocks(size_t max_kept_bytes) {
  static std::once_flag once;
  std::call_once(once, [&] {
    // Never destroyed: tensors may outlive every static.
    KeepingAllocator::instance = new KeepingAllocator(c10::GetCPUAllocator(), max_kept_bytes);
    c10::SetCPUAllocator(KeepingAllocator::instance);
  });
}

}  // extern "C"
