// Iteration over tensors in csrc's own loops: stretches of rows that fit a core's cache, on all
// threads, in fp32 or bf16.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

// Calls body(stretch, first row, rows) for every stretch of `each` rows, on all threads. Autograd
// does not record what it does.
template <typename Body>
void over_stretches(int64_t rows, int64_t each, Body body) {
  at::parallel_for(0, (rows + each - 1) / each, 1, [&](int64_t first, int64_t last) {
    // The pool's threads do not inherit the caller's modes.
    at::AutoDispatchBelowADInplaceOrView no_graph;
    for (int64_t stretch = first; stretch < last; ++stretch) {
      body(stretch, stretch * each, std::min(each, rows - stretch * each));
    }
  });
}

// Calls body with a value of x's element type: fp32 or bf16.
template <typename Body>
void with_type_of(const at::Tensor& x, Body body) {
  if (x.scalar_type() == at::kFloat) {
    body(float());
  } else {
    TORCH_CHECK(x.scalar_type() == at::kBFloat16, "expected fp32 or bf16, but got ", x.scalar_type());
    body(c10::BFloat16());
  }
}
