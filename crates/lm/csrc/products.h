// Matrix products of fp32 or bf16 matrices, on the CPU by the quickest library that libtorch has.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace products {

// Whether products with the weight w are oneDNN's: of fp32 weights that are trained, where it is quicker than libtorch's own
// choice. It says so of a weight, not of a product: a step gives the same bits with a graph and without.
bool are_onednn(const at::Tensor& w);

// a b, and y = beta y + a b, for which y is contiguous. `onednn` is what `are_onednn` said of the weight that is part of it.
at::Tensor mm(const at::Tensor& a, const at::Tensor& b, bool onednn);
void mm_into(at::Tensor& y, float beta, const at::Tensor& a, const at::Tensor& b, bool onednn);

// x w + b; x [N, I], w [I, O], b [O] or none.
at::Tensor affine(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b, bool onednn);

}  // namespace products
