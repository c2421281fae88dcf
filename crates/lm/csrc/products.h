// Matrix products of fp32 or bf16 matrices, on the CPU by the quickest library that libtorch has.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace products {

// Who multiplies.
enum class By {
  // What libtorch chooses.
  kLibtorch,
  // oneDNN, for fp32 weights that are trained, where it is quicker than libtorch's choice.
  kOneDnn,
  // fp32, for bf16 on a processor without instructions for it, where libtorch's own loops are a hundred times slower. The
  // result is rounded to bf16, as it is where the instructions are.
  kFp32,
};

// Whether this processor multiplies bf16 itself, and libtorch lets it.
bool has_bf16();

// Who multiplies matrices of `type` with the weight w. It depends on the weight and the processor, not on the product: a step
// gives the same bits with a graph and without.
By by(const at::Tensor& w, at::ScalarType type);
inline By by(const at::Tensor& w) { return by(w, w.scalar_type()); }

// x as `by` multiplies it. To make it once saves time where it is multiplied more than once.
at::Tensor operand(const at::Tensor& x, By by);

// a b, and y = beta y + a b, for which y is contiguous; y has the type of a before it was made an operand.
at::Tensor mm(const at::Tensor& a, const at::Tensor& b, By by);
void mm_into(at::Tensor& y, float beta, const at::Tensor& a, const at::Tensor& b, By by);

// x w + b; x [N, I], w [I, O], b [O] or none.
at::Tensor affine(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b, By by);

}  // namespace products
