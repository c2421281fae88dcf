// Process groups that sum tensors: libtorch's own c10d, with Gloo over the loopback interface.
//
// src/group.rs is the only caller; errors are returned as in shim.cpp.

#define USE_C10D_GLOO

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <chrono>
#include <cstdint>
#include <vector>

#include "caught.h"

struct LmStore {
  c10::intrusive_ptr<c10d::TCPStore> store;
};

struct LmGroup {
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group;
  std::chrono::milliseconds exchange_limit;
};

namespace {

constexpr const char* kHost = "127.0.0.1";
// Bytes of gradients that are exchanged at a time.
constexpr size_t kBucketBytes = size_t(32) << 20;

void sum_in_place(const LmGroup& group, const at::Tensor& tensor) {
  std::vector<at::Tensor> tensors{tensor};
  c10d::AllreduceOptions options;
  options.timeout = group.exchange_limit;
  group.group->allreduce(tensors, options)->wait();
}

// Exchanges all of `bucket` at once; its tensors have the same type.
void sum_bucket(const LmGroup& group, std::vector<at::Tensor>& bucket) {
  if (bucket.empty()) return;
  std::vector<at::Tensor> flat;
  for (const auto& tensor : bucket) flat.push_back(tensor.reshape({-1}));
  auto joined = at::cat(flat);
  sum_in_place(group, joined);
  int64_t at = 0;
  for (auto& tensor : bucket) {
    tensor.copy_(joined.narrow(0, at, tensor.numel()).view_as(tensor));
    at += tensor.numel();
  }
  bucket.clear();
}

}  // namespace

extern "C" {

// Opens the rendezvous of a process group. If *port is 0, creates a new one and writes its port
// there; otherwise connects to the one at that port.
char* lm_store_open(uint16_t* port, int64_t timeout_ms, LmStore** opened) {
  return caught([&] {
    c10d::TCPStoreOptions options;
    options.port = *port;
    options.isServer = *port == 0;
    options.waitWorkers = false;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    auto store = c10::make_intrusive<c10d::TCPStore>(kHost, options);
    *port = store->getPort();
    *opened = new LmStore{std::move(store)};
  });
}

void lm_store_close(LmStore* store) { delete store; }

// Waits at most join_ms for all `size` processes. An exchange waits at most exchange_ms.
char* lm_group_join(const LmStore* store, int rank, int size, int64_t join_ms, int64_t exchange_ms, LmGroup** joined) {
  return caught([&] {
    auto options = c10d::ProcessGroupGloo::Options::create(std::chrono::milliseconds(join_ms));
    options->devices = {c10d::ProcessGroupGloo::createDeviceForHostname(kHost)};
    auto group = c10::make_intrusive<c10d::ProcessGroupGloo>(store->store, rank, size, options);
    *joined = new LmGroup{std::move(group), std::chrono::milliseconds(exchange_ms)};
  });
}

void lm_group_leave(LmGroup* group) { delete group; }

// Sums a tensor over all processes, in place.
char* lm_group_sum(const LmGroup* group, at::Tensor* tensor) {
  return caught([&] { sum_in_place(*group, *tensor); });
}

// Sums every gradient over all processes, in place. All processes must have gradients for the same
// parameters.
char* lm_group_sum_gradients(const LmGroup* group, at::Tensor* const* parameters, size_t count) {
  return caught([&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> bucket;
    size_t bytes = 0;
    for (size_t i = 0; i < count; ++i) {
      const auto& gradient = parameters[i]->grad();
      if (!gradient.defined()) continue;
      if (!bucket.empty() && (bytes + gradient.nbytes() > kBucketBytes || gradient.dtype() != bucket[0].dtype())) {
        sum_bucket(*group, bucket);
        bytes = 0;
      }
      bucket.push_back(gradient);
      bytes += gradient.nbytes();
    }
    sum_bucket(*group, bucket);
  });
}

}  // extern "C"
