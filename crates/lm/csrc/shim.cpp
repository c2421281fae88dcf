// What tch lacks, over libtorch's C++ API: gradients reset to none, AdamW and clipping as one fused pass.
//
// Every function returns null, or an error text that the caller frees with lm_free_error. A tensor argument
// is tch's pointer to an at::Tensor. src/shim.rs is the only caller.

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <vector>

namespace {

template <typename Body>
char* guarded(Body body) {
  try {
    at::NoGradGuard no_grad;
    body();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an exception of an unknown type");
  }
}

std::vector<at::Tensor> gradients(at::Tensor* const* parameters, size_t count) {
  std::vector<at::Tensor> found;
  for (size_t i = 0; i < count; ++i) {
    if (parameters[i]->grad().defined()) found.push_back(parameters[i]->grad());
  }
  return found;
}

}  // namespace

extern "C" {

void lm_free_error(char* error) { std::free(error); }

// Drops every gradient, so that the next backward pass stores its own instead of adding to zeros.
char* lm_reset_gradients(at::Tensor* const* parameters, size_t count) {
  return guarded([&] {
    for (size_t i = 0; i < count; ++i) parameters[i]->mutable_grad().reset();
  });
}

// torch.nn.utils.clip_grad_norm_: scales all gradients so that their joint 2-norm is at most max_norm.
// Writes the norm before that. Gradients that are within bounds are not touched.
char* lm_clip_gradients(at::Tensor* const* parameters, size_t count, double max_norm, double* norm) {
  return guarded([&] {
    auto grads = gradients(parameters, count);
    *norm = 0.0;
    if (grads.empty()) return;
    auto total = at::linalg_vector_norm(at::stack(at::_foreach_norm(grads, 2)), 2);
    *norm = total.item<double>();
    double factor = max_norm / (*norm + 1e-6);
    if (factor < 1.0) at::_foreach_mul_(grads, factor);
  });
}

struct LmAdamW {
  double lr, beta1, beta2, weight_decay, eps;
  // Steps taken, this one included.
  double step;
};

// One AdamW step of parameters that share a weight decay. Those without a gradient are left as they are.
char* lm_adamw(at::Tensor* const* parameters, at::Tensor* const* exp_avgs, at::Tensor* const* exp_avg_sqs,
               size_t count, const LmAdamW* options) {
  return guarded([&] {
    std::vector<at::Tensor> values, grads, first, second, steps;
    for (size_t i = 0; i < count; ++i) {
      if (!parameters[i]->grad().defined()) continue;
      values.push_back(*parameters[i]);
      grads.push_back(parameters[i]->grad());
      first.push_back(*exp_avgs[i]);
      second.push_back(*exp_avg_sqs[i]);
    }
    if (values.empty()) return;
    // The kernel takes steps that are counted already, one tensor for each parameter.
    steps.assign(values.size(), at::scalar_tensor(options->step, values[0].options().dtype(at::kFloat).requires_grad(false)));
    at::_fused_adamw_(values, grads, first, second, {}, steps, options->lr, options->beta1, options->beta2,
                      options->weight_decay, options->eps, /*amsgrad=*/false, /*maximize=*/false);
  });
}

}  // extern "C"
