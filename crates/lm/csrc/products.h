// Matrix products of fp32 or bf16 matrices, on the CPU with the fastest library that libtorch
// includes.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace products {

// The library that multiplies.
enum class By {
  // libtorch's default choice.
  kLibtorch,
  // oneDNN, for trained fp32 weights if it is faster than libtorch's choice.
  kOneDnn,
  // fp32, for bf16 on a processor without bf16 instructions, where libtorch's own loops are a
  // hundred times slower. The result is rounded to bf16, as it is with the instructions.
  kFp32,
};

// Whether this processor has bf16 instructions, and libtorch may use them.
bool has_bf16();

// Chooses the library for products of matrices of `type` with the weight w. The choice depends on
// the weight and the processor, not on the product: a step gives the same bits with and without
// autograd.
By by(const at::Tensor& w, at::ScalarType type);
inline By by(const at::Tensor& w) { return by(w, w.scalar_type()); }

// x in the form in which `by` multiplies it. Converting it once saves time if it is multiplied
// several times.
at::Tensor operand(const at::Tensor& x, By by);

// a b, and y = beta y + a b, where y is contiguous; y has the type that a had before it was made an
// operand.
at::Tensor mm(const at::Tensor& a, const at::Tensor& b, By by);
void mm_into(at::Tensor& y, float beta, const at::Tensor& a, const at::Tensor& b, By by);

// x w + b; x [N, I], w [I, O], b [O] or none.
at::Tensor affine(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b, By by);

}  // namespace products
