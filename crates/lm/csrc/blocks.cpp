// Parts of a block as autograd functions that keep less for the backward pass, and make fewer
// passes over memory, than the operations that they consist of: RMSNorm, SwiGLU with the following
// projection, rotary positions.
//
// The conventions are those of shim.cpp. RMSNorm and rotary positions take CPU tensors only, SwiGLU
// takes any.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "caught.h"
#include "products.h"
#include "stretches.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A stretch has about this many numbers, which fit a core's cache. Its number of rows is a multiple
// of 32, so the boundaries of vectors within a row do not depend on other rows.
constexpr int64_t kStretchNumbers = int64_t(1) << 15;
constexpr int64_t kStretchRows = 32;

int64_t stretch_rows(int64_t width) {
  return kStretchRows * std::max<int64_t>(1, kStretchNumbers / (kStretchRows * std::max<int64_t>(1, width)));
}

int64_t stretches(int64_t rows, int64_t width) { return (rows + stretch_rows(width) - 1) / stretch_rows(width); }

// Calls body(stretch, first row, rows) for every stretch.
template <typename Body>
void over_rows(int64_t rows, int64_t width, Body body) {
  over_stretches(rows, stretch_rows(width), body);
}

// term(0) + ... + term(width - 1), in fp32. Sixteen parallel sums let the compiler use vectors
// without changing the order.
template <typename Term>
float sum_of(int64_t width, Term term) {
  constexpr int64_t kLanes = 16;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  }
  for (; i < width; ++i) lanes[i % kLanes] += term(i);
  float sum = 0;
  for (float lane : lanes) sum += lane;
  return sum;
}

// y = x r w with r = 1 / sqrt(mean(x^2) + eps) of each row (Zhang and Sennrich 2019, equation 4). x
// [N, D] and w [D] have the same type, y may have another. x r is rounded to x's type, as in
// transformers.
template <typename In, typename Out>
void rms_norm(const at::Tensor& x, const at::Tensor& w, double eps, at::Tensor& y, at::Tensor& r) {
  const int64_t width = x.size(1);
  const In* all_x = x.const_data_ptr<In>();
  const In* weight = w.const_data_ptr<In>();
  Out* all_y = y.mutable_data_ptr<Out>();
  float* factors = r.mutable_data_ptr<float>();
  over_rows(x.size(0), width, [=](int64_t, int64_t start, int64_t count) {
    for (int64_t row = start; row < start + count; ++row) {
      const In* from = all_x + row * width;
      Out* __restrict to = all_y + row * width;
      const float squares = sum_of(width, [=](int64_t i) { return float(from[i]) * float(from[i]); });
      const float factor = 1.0f / std::sqrt(squares / float(width) + float(eps));
      factors[row] = factor;
      for (int64_t i = 0; i < width; ++i) to[i] = Out(float(In(float(from[i]) * factor)) * float(weight[i]));
    }
  });
}

// With n = x r: dw is the sum of dy n over rows, dx = r (dy w - n mean(dy w n)).
template <typename In, typename Out>
void rms_norm_back(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w, const at::Tensor& r, at::Tensor& dx,
                   at::Tensor& dw) {
  const int64_t rows = x.size(0), width = x.size(1);
  // One sum per stretch, so that the total does not depend on the assignment of stretches to
  // threads.
  auto sums = at::empty({stretches(rows, width), width}, r.options());
  const Out* all_dy = dy.const_data_ptr<Out>();
  const In* all_x = x.const_data_ptr<In>();
  const In* weight = w.const_data_ptr<In>();
  const float* factors = r.const_data_ptr<float>();
  In* all_dx = dx.mutable_data_ptr<In>();
  float* all_sums = sums.mutable_data_ptr<float>();
  over_rows(rows, width, [=](int64_t stretch, int64_t start, int64_t count) {
    float* __restrict sum = all_sums + stretch * width;
    std::fill(sum, sum + width, 0.0f);
    for (int64_t row = start; row < start + count; ++row) {
      const Out* gradient = all_dy + row * width;
      const In* from = all_x + row * width;
      In* __restrict to = all_dx + row * width;
      const float factor = factors[row];
      const float mean = factor / float(width) * sum_of(width, [=](int64_t i) {
        return float(gradient[i]) * float(weight[i]) * float(from[i]);
      });
      for (int64_t i = 0; i < width; ++i) {
        const float n = float(from[i]) * factor;
        sum[i] += float(gradient[i]) * n;
        to[i] = In(factor * (float(gradient[i]) * float(weight[i]) - n * mean));
      }
    }
  });
  dw = sums.sum(0).to(w.scalar_type());
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& w, double eps,
                            bool is_bf16) {
    const auto x = input.contiguous();
    auto y = at::empty_like(x, x.options().dtype(is_bf16 ? at::kBFloat16 : at::kFloat));
    auto r = at::empty({x.size(0)}, x.options().dtype(at::kFloat));
    with_type_of(x, [&](auto in) {
      with_type_of(y, [&](auto out) { rms_norm<decltype(in), decltype(out)>(x, w, eps, y, r); });
    });
    context->save_for_backward({x, w, r});
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &w = saved[1], &r = saved[2];
    const auto dy = gradients[0].contiguous();
    auto dx = at::empty_like(x);
    at::Tensor dw;
    with_type_of(x, [&](auto in) {
      with_type_of(dy, [&](auto out) { rms_norm_back<decltype(in), decltype(out)>(dy, x, w, r, dx, dw); });
    });
    return {dx, dw, at::Tensor(), at::Tensor()};
  }
};

// (silu(gate) * up) w^T + b (Shazeer 2020, section 2); gate and up [N, F], w [D, F]. Only the
// factors of the gated product are kept.
struct SwiGluDown : torch::autograd::Function<SwiGluDown> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate, const at::Tensor& up, const at::Tensor& w,
                            const std::optional<at::Tensor>& b) {
    context->save_for_backward({gate, up, w});
    context->saved_data["has_bias"] = b.has_value();
    return products::affine(gated(gate, up), w.t(), b, products::by(w));
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto &gate = saved[0], &up = saved[1], &w = saved[2];
    const auto by = products::by(w);
    const auto dy = products::operand(gradients[0], by);
    // Computes dgated first, then dup in the same memory, and recomputes gated.
    auto dup = products::mm(dy, w, by);
    auto dgate = at::empty_like(gate), product = at::empty_like(gate);
    stretched(gate, [&](int64_t start, int64_t count) {
      auto part = [&](const at::Tensor& whole) { return whole.narrow(0, start, count); };
      auto d = part(dup), dg = part(dgate), h = part(product);
      const auto g = part(gate), u = part(up);
      at::mul_out(h, d, u);
      at::silu_backward_out(dg, h, g);
      at::silu_out(h, g);
      d.mul_(h);
      h.mul_(u);
    });
    auto dw = products::mm(dy.t(), product, by);
    at::Tensor db = context->saved_data["has_bias"].toBool() ? gradients[0].sum(0) : at::Tensor();
    return {dgate, dup, dw, db};
  }

 private:
  static at::Tensor gated(const at::Tensor& gate, const at::Tensor& up) {
    auto product = at::empty_like(gate);
    stretched(gate, [&](int64_t start, int64_t count) {
      auto part = product.narrow(0, start, count);
      at::silu_out(part, gate.narrow(0, start, count));
      part.mul_(up.narrow(0, start, count));
    });
    return product;
  }

  // Processes stretches of rows on the CPU, all rows at once elsewhere.
  template <typename Body>
  static void stretched(const at::Tensor& like, Body body) {
    if (!like.is_cpu()) return body(0, like.size(0));
    over_rows(like.size(0), like.size(1), [&](int64_t, int64_t start, int64_t count) { body(start, count); });
  }
};

// Rotates dimensions i and i + P of x [B, T, H, K] together by the angle a [T, P] with the given
// `cosine` and `sine` (fp32), or by -a if `direction` is -1. Dimensions from 2 P on are unchanged.
// Computes in fp32; y has x's type.
template <typename Number>
void rotate(const at::Tensor& x, const at::Tensor& cosine, const at::Tensor& sine, float direction, at::Tensor& y) {
  const int64_t time = x.size(1), heads = x.size(2), width = x.size(3), pairs = cosine.size(-1);
  const int64_t batch_stride = x.stride(0), time_stride = x.stride(1), head_stride = x.stride(2);
  const Number* all_x = x.const_data_ptr<Number>();
  const float* cosines = cosine.const_data_ptr<float>();
  const float* sines = sine.const_data_ptr<float>();
  Number* all_y = y.mutable_data_ptr<Number>();
  over_rows(x.size(0) * time, heads * width, [=](int64_t, int64_t start, int64_t count) {
    for (int64_t row = start; row < start + count; ++row) {
      const Number* from = all_x + row / time * batch_stride + row % time * time_stride;
      Number* to = all_y + row * heads * width;
      const float* c = cosines + row % time * pairs;
      const float* s = sines + row % time * pairs;
      for (int64_t head = 0; head < heads; ++head, from += head_stride, to += width) {
        for (int64_t i = 0; i < pairs; ++i) {
          const float a = float(from[i]), b = float(from[i + pairs]), turn = direction * s[i];
          to[i] = Number(a * c[i] - b * turn);
          to[i + pairs] = Number(b * c[i] + a * turn);
        }
        std::copy(from + 2 * pairs, from + width, to + 2 * pairs);
      }
    }
  });
}

at::Tensor rotated(const at::Tensor& input, const at::Tensor& cosine, const at::Tensor& sine, float direction) {
  const auto x = input.stride(3) == 1 ? input : input.contiguous();
  auto y = at::empty(x.sizes(), x.options());
  with_type_of(x, [&](auto number) { rotate<decltype(number)>(x, cosine, sine, direction, y); });
  return y;
}

struct Rotate : torch::autograd::Function<Rotate> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& cosine,
                            const at::Tensor& sine) {
    context->save_for_backward({cosine, sine});
    return rotated(x, cosine, sine, 1);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    return {rotated(gradients[0], saved[0], saved[1], -1), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

extern "C" {

// RMSNorm of x [N, D] by w [D], returned in bf16 or fp32: a new tensor that the caller owns, as
// below.
char* lm_rms_norm(const at::Tensor* x, const at::Tensor* w, double eps, bool is_bf16, at::Tensor** y) {
  return caught([&] { *y = new at::Tensor(RmsNorm::apply(*x, *w, eps, is_bf16)); });
}

// (silu(gate) * up) w^T + b; b may be null.
char* lm_swiglu_down(const at::Tensor* gate, const at::Tensor* up, const at::Tensor* w, const at::Tensor* b,
                     at::Tensor** y) {
  return caught([&] {
    std::optional<at::Tensor> bias;
    if (b != nullptr) bias = *b;
    *y = new at::Tensor(SwiGluDown::apply(*gate, *up, *w, bias));
  });
}

// x [B, T, H, K] rotated by the angles whose cosines and sines are fp32 [T, 1, P], contiguous.
char* lm_rotate(const at::Tensor* x, const at::Tensor* cosine, const at::Tensor* sine, at::Tensor** y) {
  return caught([&] { *y = new at::Tensor(Rotate::apply(*x, *cosine, *sine)); });
}

}  // extern "C"
