// Matrix products, and the projections built from them as autograd functions.
//
// The conventions are those of shim.cpp.

#include "products.h"

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/custom_function.h>

#include "caught.h"

namespace at::native {
// libtorch's own result = beta result + alpha a b. No installed header declares it.
void mkldnn_matmul(const Tensor& a, const Tensor& b, const Tensor& result, float beta, float alpha);
}  // namespace at::native

namespace products {

namespace {

// Smaller weights are not worth the setup cost of a product.
constexpr int64_t kMinWeights = int64_t(1) << 12;

// ATEN_CPU_CAPABILITY can disable it.
bool libtorch_has_avx512() { return at::get_cpu_capability() == "AVX512"; }

// MKL, which libtorch uses for fp32, has AVX-512 kernels for Intel's processors, but uses AVX2
// kernels on AMD's.
bool onednn_is_quicker() {
#if defined(__x86_64__)
  static const bool quicker = at::globalContext().hasMKLDNN() && __builtin_cpu_is("amd") && libtorch_has_avx512();
  return quicker;
#else
  return false;
#endif
}

}  // namespace

bool has_bf16() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512bf16") && libtorch_has_avx512();
  return has;
#else
  return true;
#endif
}

By by(const at::Tensor& w, at::ScalarType type) {
  if (!w.is_cpu()) return By::kLibtorch;
  if (type == at::kBFloat16 && !has_bf16()) return By::kFp32;
  const bool is_fp32 = w.scalar_type() == at::kFloat;
  return is_fp32 && w.requires_grad() && w.numel() >= kMinWeights && onednn_is_quicker() ? By::kOneDnn : By::kLibtorch;
}

at::Tensor operand(const at::Tensor& x, By by) { return by == By::kFp32 ? x.to(at::kFloat) : x; }

void mm_into(at::Tensor& y, float beta, const at::Tensor& a, const at::Tensor& b, By by) {
  if (by == By::kOneDnn) {
    at::native::mkldnn_matmul(a, b, y, beta, 1);
  } else if (by == By::kFp32 && y.scalar_type() != at::kFloat) {
    const auto product = at::mm(operand(a, by), operand(b, by));
    beta == 0 ? y.copy_(product) : y.mul_(beta).add_(product);
  } else if (beta == 0) {
    at::mm_out(y, operand(a, by), operand(b, by));
  } else {
    y.addmm_(operand(a, by), operand(b, by), beta);
  }
}

at::Tensor mm(const at::Tensor& a, const at::Tensor& b, By by) {
  if (by == By::kLibtorch) return at::mm(a, b);
  if (by == By::kFp32) return at::mm(operand(a, by), operand(b, by)).to(at::kBFloat16);
  auto y = at::empty({a.size(0), b.size(1)}, a.options().requires_grad(false));
  mm_into(y, 0, a, b, by);
  return y;
}

at::Tensor affine(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b, By by) {
  if (!b.has_value()) return mm(x, w, by);
  if (by == By::kLibtorch) return at::addmm(*b, x, w);
  if (by == By::kFp32) return at::addmm(operand(*b, by), operand(x, by), operand(w, by)).to(at::kBFloat16);
  auto y = at::empty({x.size(0), w.size(1)}, x.options().requires_grad(false));
  y.copy_(b->expand_as(y));
  mm_into(y, 1, x, w, by);
  return y;
}

namespace {

// x w^T + b, or x w + b for a transposed w, with a library other than libtorch's choice.
struct Projection : torch::autograd::Function<Projection> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& w,
                            const std::optional<at::Tensor>& b, bool is_conv1d) {
    context->save_for_backward({x, w});
    context->saved_data["has_bias"] = b.has_value();
    context->saved_data["is_conv1d"] = is_conv1d;
    return affine(x, is_conv1d ? w : w.t(), b, by(w));
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &w = saved[1];
    const auto who = by(w);
    const auto dy = operand(gradients[0], who);
    const bool is_conv1d = context->saved_data["is_conv1d"].toBool();
    at::Tensor dx, db;
    if (context->needs_input_grad(0)) dx = mm(dy, is_conv1d ? w.t() : w, who);
    auto dw = is_conv1d ? mm(x.t(), dy, who) : mm(dy.t(), x, who);
    if (context->saved_data["has_bias"].toBool()) db = gradients[0].sum(0);
    return {dx, dw, db, at::Tensor()};
  }
};

}  // namespace

}  // namespace products

extern "C" {

// Whether bf16 products on the CPU use the processor's instructions; otherwise they are computed in
// fp32.
bool lm_has_bf16() { return products::has_bf16(); }

// x w^T + b, or x w + b with `is_conv1d`; x [N, I], w [O, I] or [I, O], b [O] or null: a new tensor
// that the caller owns.
char* lm_project(const at::Tensor* x, const at::Tensor* w, const at::Tensor* b, bool is_conv1d, at::Tensor** y) {
  return caught([&] {
    std::optional<at::Tensor> bias;
    if (b != nullptr) bias = *b;
    if (products::by(*w) != products::By::kLibtorch) {
      *y = new at::Tensor(products::Projection::apply(*x, *w, bias, is_conv1d));
    } else if (is_conv1d) {
      *y = new at::Tensor(products::affine(*x, *w, bias, products::By::kLibtorch));
    } else {
      *y = new at::Tensor(at::linear(*x, *w, bias));
    }
  });
}

}  // extern "C"
