// What tch lacks, implemented with libtorch's C++ API: resetting gradients to none, AdamW and
// clipping as one fused pass, the head and cross-entropy without all scores in memory.
//
// Every function returns null, or an error text that the caller frees with lm_free_error. A tensor
// argument is tch's pointer to an at::Tensor. src/shim.rs is the only caller.

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "caught.h"
#include "products.h"
#include "stretches.h"

namespace {

template <typename Body>
char* guarded(Body body) {
  return caught([&] {
    at::NoGradGuard no_grad;
    body();
  });
}

// Number of scores per softmax stretch, so that they fit a core's cache.
constexpr int64_t kStretchScores = int64_t(1) << 17;

// The sum of the cross-entropies of the rows of scores [N, V]. If `gradient` is set, replaces the
// scores by softmax(scores) minus the one-hot targets, in place. Both are computed in fp32.
double row_losses(at::Tensor& scores, const at::Tensor& targets, bool gradient) {
  const int64_t rows = scores.size(0);
  const int64_t each = scores.is_cpu() ? std::max<int64_t>(1, kStretchScores / scores.size(1)) : rows;
  // One sum per stretch, so that the total does not depend on the assignment of stretches to
  // threads.
  std::vector<double> sums((rows + each - 1) / each);
  over_stretches(rows, each, [&](int64_t stretch, int64_t start, int64_t count) {
    auto part = scores.narrow(0, start, count);
    auto target = targets.narrow(0, start, count).unsqueeze(1);
    auto logarithms = at::log_softmax(part, 1, at::kFloat);
    sums[stretch] = -logarithms.gather(1, target).sum(at::kDouble).item<double>();
    if (!gradient) return;
    logarithms.exp_();
    logarithms.scatter_add_(1, target, at::full({count, 1}, -1.0, logarithms.options()));
    part.copy_(logarithms);
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

// The mean over N rows of the cross-entropy of softmax(x w^T) with the targets, fp32; x [N, D] and
// w [V, D], fp32 or bf16, targets [N]. Scores are products in x's type, and fp32 from there on.
//
// Scores are computed for at_once rows at a time. Their gradient is consumed immediately: it is
// accumulated into dx (x's type) and dw (fp32), if they are requested, both for the sum over rows.
// So [N, V] never exists as a whole.
at::Tensor cross_entropy(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets, int64_t at_once,
                         at::Tensor* dx, at::Tensor* dw) {
  const int64_t rows = x.size(0);
  const auto by = products::by(weight, x.scalar_type());
  const auto w = products::operand(weight.to(x.scalar_type()), by);
  double sum = 0;
  for (int64_t start = 0; start < rows; start += at_once) {
    const int64_t count = std::min(at_once, rows - start);
    auto x_part = x.narrow(0, start, count);
    auto scores = products::mm(x_part, w.t(), by);
    const bool differentiates = dx != nullptr || dw != nullptr;
    sum += row_losses(scores, targets.narrow(0, start, count), differentiates);
    if (!differentiates) continue;
    const auto gradient = products::operand(scores, by);
    if (dx != nullptr) {
      auto dx_part = dx->narrow(0, start, count);
      products::mm_into(dx_part, 0, gradient, w, by);
    }
    if (dw == nullptr) continue;
    if (gradient.scalar_type() == at::kFloat) {
      products::mm_into(*dw, start == 0 ? 0 : 1, gradient.t(), x_part, by);
    } else {
      auto part = at::mm(gradient.t(), x_part);
      start == 0 ? dw->copy_(part) : dw->add_(part);
    }
  }
  return at::scalar_tensor(sum / static_cast<double>(rows), x.options().dtype(at::kFloat).requires_grad(false));
}

// The same as an autograd function. Gradients are computed in the forward pass; the backward pass
// only scales them.
struct CrossEntropy : torch::autograd::Function<CrossEntropy> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& w,
                            const at::Tensor& targets, int64_t at_once) {
    at::Tensor dx, dw;
    if (x.requires_grad()) dx = at::empty_like(x);
    if (w.requires_grad()) dw = at::empty_like(w, w.options().dtype(at::kFloat));
    auto loss = cross_entropy(x, w, targets, at_once, dx.defined() ? &dx : nullptr, dw.defined() ? &dw : nullptr);
    context->save_for_backward({dx, dw});
    context->saved_data["rows"] = x.size(0);
    context->saved_data["type"] = w.scalar_type();
    return loss;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list loss_gradients) {
    auto saved = context->get_saved_variables();
    auto factor = loss_gradients[0].div(context->saved_data["rows"].toInt());
    for (auto& gradient : saved) {
      if (gradient.defined()) gradient.mul_(factor);
    }
    auto &dx = saved[0], &dw = saved[1];
    if (dw.defined()) dw = dw.to(context->saved_data["type"].toScalarType());
    return {dx, dw, at::Tensor(), at::Tensor()};
  }
};

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

// torch.nn.utils.clip_grad_norm_: scales all gradients so that their joint 2-norm is at most
// max_norm. Writes the norm before scaling. Gradients within bounds are not changed.
char* lm_clip_gradients(at::Tensor* const* parameters, size_t count, double max_norm, double* norm) {
  return guarded([&] {
    auto grads = gradients(parameters, count);
    *norm = 0.0;
    if (grads.empty()) return;
    auto total = at::linalg_vector_norm(at::stack(at::_foreach_norm(grads, 2, at::kFloat)), 2);
    *norm = total.item<double>();
    double factor = max_norm / (*norm + 1e-6);
    if (factor < 1.0) at::_foreach_mul_(grads, factor);
  });
}

// The mean cross-entropy of the head `w` [V, D] over `x` [N, D], a differentiable scalar: a new
// tensor that the caller owns. `targets` [N] are int64 below V. The scores of `at_once` rows are in
// memory at a time.
char* lm_cross_entropy(const at::Tensor* x, const at::Tensor* w, const at::Tensor* targets, int64_t at_once,
                       at::Tensor** loss) {
  return caught([&] {
    const bool differentiable = at::GradMode::is_enabled() && (x->requires_grad() || w->requires_grad());
    *loss = new at::Tensor(differentiable ? CrossEntropy::apply(*x, *w, *targets, at_once)
                                          : cross_entropy(*x, *w, *targets, at_once, nullptr, nullptr));
  });
}

struct LmAdamW {
  double lr, beta1, beta2, weight_decay, eps;
  // Number of steps taken, including this one.
  double step;
};

// One AdamW step for parameters that share a weight decay. Parameters without a gradient are
// unchanged.
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
    // The kernel expects step counts that already include this step, one tensor per parameter.
    steps.assign(values.size(), at::scalar_tensor(options->step, values[0].options().dtype(at::kFloat).requires_grad(false)));
    at::_fused_adamw_(values, grads, first, second, {}, steps, options->lr, options->beta1, options->beta2,
                      options->weight_decay, options->eps, /*amsgrad=*/false, /*maximize=*/false);
  });
}

}  // extern "C"
