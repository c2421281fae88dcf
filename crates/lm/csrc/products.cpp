// Matrix products, and the projection that they make, as a step of a graph.
//
// The conventions are shim.cpp's.

#include "products.h"

#include <ATen/Context.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/custom_function.h>

#include "caught.h"

namespace at::native {
// result = beta result + alpha a b, of libtorch's own; no header of it is installed.
void mkldnn_matmul(const Tensor& a, const Tensor& b, const Tensor& result, float beta, float alpha);
}  // namespace at::native

namespace products {

namespace {

// Of smaller weights it is not worth the setting up of a product.
constexpr int64_t kMinWeights = int64_t(1) << 12;

// MKL, which libtorch takes for fp32, has kernels of Intel's for AVX-512 and gives AMD's processors those for AVX2.
bool onednn_is_quicker() {
#if defined(__x86_64__)
  static const bool quicker = at::globalContext().hasMKLDNN() && __builtin_cpu_is("amd") &&
                              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                              __builtin_cpu_supports("avx512dq");
  return quicker;
#else
  return false;
#endif
}

}  // namespace

bool are_onednn(const at::Tensor& w) {
  return w.is_cpu() && w.scalar_type() == at::kFloat && w.requires_grad() && w.numel() >= kMinWeights &&
         onednn_is_quicker();
}

void mm_into(at::Tensor& y, float beta, const at::Tensor& a, const at::Tensor& b, bool onednn) {
  if (onednn) {
    at::native::mkldnn_matmul(a, b, y, beta, 1);
  } else if (beta == 0) {
    at::mm_out(y, a, b);
  } else {
    y.addmm_(a, b, beta);
  }
}

at::Tensor mm(const at::Tensor& a, const at::Tensor& b, bool onednn) {
  if (!onednn) return at::mm(a, b);
  auto y = at::empty({a.size(0), b.size(1)}, a.options().requires_grad(false));
  mm_into(y, 0, a, b, true);
  return y;
}

at::Tensor affine(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b, bool onednn) {
  if (!b.has_value()) return mm(x, w, onednn);
  if (!onednn) return at::addmm(*b, x, w);
  auto y = at::empty({x.size(0), w.size(1)}, x.options().requires_grad(false));
  y.copy_(b->expand_as(y));
  mm_into(y, 1, x, w, true);
  return y;
}

namespace {

// x w^T + b, or x w + b where w stands the other way round, by oneDNN.
struct Projection : torch::autograd::Function<Projection> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& w,
                            const std::optional<at::Tensor>& b, bool is_conv1d) {
    context->save_for_backward({x, w});
    context->saved_data["has_bias"] = b.has_value();
    context->saved_data["is_conv1d"] = is_conv1d;
    return affine(x, is_conv1d ? w : w.t(), b, true);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &w = saved[1];
    const auto& dy = gradients[0];
    const bool is_conv1d = context->saved_data["is_conv1d"].toBool();
    at::Tensor dx, db;
    if (context->needs_input_grad(0)) dx = mm(dy, is_conv1d ? w.t() : w, true);
    auto dw = is_conv1d ? mm(x.t(), dy, true) : mm(dy.t(), x, true);
    if (context->saved_data["has_bias"].toBool()) db = dy.sum(0);
    return {dx, dw, db, at::Tensor()};
  }
};

}  // namespace

}  // namespace products

extern "C" {

// x w^T + b, or x w + b with `is_conv1d`; x [N, I], w [O, I] or [I, O], b [O] or null: a new tensor that the caller owns.
char* lm_project(const at::Tensor* x, const at::Tensor* w, const at::Tensor* b, bool is_conv1d, at::Tensor** y) {
  return caught([&] {
    std::optional<at::Tensor> bias;
    if (b != nullptr) bias = *b;
    if (products::are_onednn(*w)) {
      *y = new at::Tensor(products::Projection::apply(*x, *w, bias, is_conv1d));
    } else if (is_conv1d) {
      *y = new at::Tensor(products::affine(*x, *w, bias, false));
    } else {
      *y = new at::Tensor(at::linear(*x, *w, bias));
    }
  });
}

}  // extern "C"
