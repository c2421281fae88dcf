// Causal self-attention on the CPU as an autograd function, forward and backward. Blocks of queries
// attend to the keys that they see; the scores of a block fit a core's cache (Dao et al. 2022,
// arXiv 2205.14135).
//
// Shapes: B batch, T time, H query heads, G key and value heads, K width of a head; M queries of a
// block, L keys. The conventions are those of shim.cpp.

#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>

#include "caught.h"
#include "products.h"
#include "stretches.h"

// Loops over numbers, compiled for several kinds of processors if the compiler supports it.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORISED
#endif

namespace {

using c10::BFloat16;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Queries per block, and keys per block in the backward pass.
constexpr int64_t kQueries = 64;
constexpr int64_t kKeys = 512;

constexpr int64_t even(int64_t n) { return (n + 1) / 2 * 2; }

template <typename Number>
using Scratch = std::unique_ptr<Number[]>;
template <typename Number>
Scratch<Number> scratch(int64_t count) {
  return Scratch<Number>(new Number[static_cast<size_t>(count)]);
}

// e^x for x <= 0 by Cephes' polynomial, within 2 units in the last place; 0 if the result is below
// 1e-38.
inline float exponential(float x) {
  const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float y = p * r * r + r + 1.0f;
  // An exponent below the smallest one becomes that of 0.
  const int32_t exponent = std::max(static_cast<int32_t>(n) + 127, 0) << 23;
  float power;
  std::memcpy(&power, &exponent, sizeof power);
  return y * power;
}

// Rounds a finite number to the nearest bf16, ties to even.
inline void put(BFloat16& to, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  to.x = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
template <typename Same>
inline void put(Same& to, Same x) {
  to = x;
}

// Rows of a matrix with a stride of `stride` numbers.
template <typename Number>
struct Rows {
  Number* first;
  int64_t stride;
  Number* operator[](int64_t row) const { return first + row * stride; }
  Rows from(int64_t row) const { return {(*this)[row], stride}; }
};

// The T rows of a head in x [B, T, H, K].
template <typename Number>
Rows<Number> head_of(const at::Tensor& x, int64_t batch, int64_t head) {
  using Plain = std::remove_const_t<Number>;
  auto* all = const_cast<Plain*>(x.const_data_ptr<Plain>());
  return {all + batch * x.stride(0) + head * x.stride(2), x.stride(1)};
}

// c = a b, or c += a b, in fp32; a [m, k] and c [m, n] in rows, b as `packed` or `packed_across`
// wrote it.
template <typename Number>
void product(int64_t m, int64_t n, int64_t k, Rows<const Number> a, Rows<const Number> b, Rows<float> c, bool adds) {
  at::native::cpublas::brgemm(m, n, k, a.stride, b.stride, c.stride, adds, a.first, b.first, c.first,
                              /*is_vnni=*/std::is_same_v<Number, BFloat16>);
}

// The right factor of a product in its kernel's format: fp32 unchanged, bf16 with each pair of rows
// interleaved by number. An odd last row is interleaved with zeros.
void packed(int64_t rows, int64_t n, Rows<const float> b, float* to) {
  for (int64_t i = 0; i < rows; ++i) std::copy(b[i], b[i] + n, to + i * n);
}
VECTORISED void packed(int64_t rows, int64_t n, Rows<const BFloat16> b, BFloat16* to) {
  for (int64_t i = 0; i < rows; i += 2, to += 2 * n) {
    const uint16_t* first = reinterpret_cast<const uint16_t*>(b.first + i * b.stride);
    const uint16_t* second = first + b.stride;
    auto* pairs = reinterpret_cast<uint16_t*>(to);
    if (i + 1 < rows) {
      for (int64_t j = 0; j < n; ++j) pairs[2 * j] = first[j], pairs[2 * j + 1] = second[j];
    } else {
      for (int64_t j = 0; j < n; ++j) pairs[2 * j] = first[j], pairs[2 * j + 1] = 0;
    }
  }
}

// The transpose of b [n, k] in rows of `to_stride` numbers. Processes some of b's rows at a time,
// so that the written data fits a cache.
template <typename Number, typename Out>
VECTORISED void across(int64_t n, int64_t k, Rows<const Number> b, int64_t to_stride, Out* to) {
  constexpr int64_t kAtOnce = 32;
  for (int64_t start = 0; start < n; start += kAtOnce) {
    const int64_t end = std::min(start + kAtOnce, n);
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = start; j < end; ++j) put(to[i * to_stride + j], b.first[j * b.stride + i]);
    }
  }
}

// The right factor that is the transpose of b [n, k]; k and b's stride are even. A pair then
// consists of two adjacent numbers in b.
void packed_across(int64_t n, int64_t k, Rows<const float> b, int64_t to_stride, float* to) {
  across(n, k, b, to_stride, to);
}
void packed_across(int64_t n, int64_t k, Rows<const BFloat16> b, int64_t to_stride, BFloat16* to) {
  struct Pair {
    BFloat16 of[2];
  };
  across(n, k / 2, Rows<const Pair>{reinterpret_cast<const Pair*>(b.first), b.stride / 2}, to_stride, reinterpret_cast<Pair*>(to));
}

// The softmax of `seen` scores times `scale`, before the division by the sum; the rest is 0. Also
// writes maximum and sum.
template <typename Number>
VECTORISED void softmax(float* scores, int64_t seen, int64_t all, float scale, Number* to, float* maximum, float* sum) {
  constexpr int64_t kLanes = 16;
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, -std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= seen; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] = std::max(lanes[j], scores[i + j]);
  }
  for (; i < seen; ++i) lanes[0] = std::max(lanes[0], scores[i]);
  float highest = lanes[0];
  for (float lane : lanes) highest = std::max(highest, lane);
  highest *= scale;
  for (i = 0; i < seen; ++i) scores[i] = exponential(scores[i] * scale - highest);
  std::fill(lanes, lanes + kLanes, 0.0f);
  for (i = 0; i + kLanes <= seen; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += scores[i + j];
  }
  for (; i < seen; ++i) lanes[0] += scores[i];
  float total = 0;
  for (float lane : lanes) total += lane;
  for (i = 0; i < seen; ++i) put(to[i], scores[i]);
  for (; i < all; ++i) put(to[i], 0.0f);
  *maximum = highest;
  *sum = total;
}

// Divides each row of `width` numbers by its own divisor.
template <typename Number>
VECTORISED void divided(int64_t rows, int64_t width, const float* from, const float* by, Rows<Number> to) {
  for (int64_t row = 0; row < rows; ++row) {
    Number* out = to.first + row * to.stride;
    const float factor = 1.0f / by[row];
    for (int64_t i = 0; i < width; ++i) put(out[i], from[row * width + i] * factor);
  }
}

// The sum of `count` matrices of `rows` rows, which are stored contiguously.
template <typename Number>
VECTORISED void sum_of(int64_t count, int64_t rows, int64_t width, const float* from, Rows<Number> to) {
  for (int64_t row = 0; row < rows; ++row) {
    Number* out = to.first + row * to.stride;
    for (int64_t i = 0; i < width; ++i) {
      float sum = from[row * width + i];
      for (int64_t n = 1; n < count; ++n) sum += from[(n * rows + row) * width + i];
      put(out[i], sum);
    }
  }
}

// y [B, T, H, K] and the logarithms of the softmax sums [B, H, T], of q [B, T, H, K], k and v
// [B, T, G, K].
template <typename Number>
void attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, float scale, at::Tensor& y,
            at::Tensor& logarithms) {
  const int64_t batch = q.size(0), time = q.size(1), heads = q.size(2), width = q.size(3), groups = k.size(2);
  const int64_t padded = even(time), blocks = (time + kQueries - 1) / kQueries;
  auto keys = at::empty({batch, groups, width * padded}, k.options());
  auto values = at::empty({batch, groups, padded * width}, v.options());
  over_stretches(batch * groups, 1, [&](int64_t task, int64_t, int64_t) {
    const int64_t b = task / groups, g = task % groups;
    packed_across(time, width, head_of<const Number>(k, b, g), padded, keys.mutable_data_ptr<Number>() + task * width * padded);
    packed(time, width, head_of<const Number>(v, b, g), values.mutable_data_ptr<Number>() + task * padded * width);
  });
  at::parallel_for(0, batch * heads * blocks, 1, [&](int64_t first, int64_t last) {
    auto scores = scratch<float>(kQueries * padded), sums = scratch<float>(kQueries * width);
    auto weights = scratch<Number>(kQueries * padded);
    for (int64_t task = first; task < last; ++task) {
      const int64_t b = task / (heads * blocks), h = task / blocks % heads, start = task % blocks * kQueries;
      const int64_t group = b * groups + h / (heads / groups);
      const int64_t count = std::min(kQueries, time - start), seen = start + count, all = even(seen);
      const Number* key = keys.const_data_ptr<Number>() + group * width * padded;
      const Number* value = values.const_data_ptr<Number>() + group * padded * width;
      const auto query = head_of<const Number>(q, b, h).from(start);
      product<Number>(count, seen, width, query, {key, padded}, {scores.get(), padded}, false);
      float* log_sums = logarithms.mutable_data_ptr<float>() + (b * heads + h) * time + start;
      float totals[kQueries];
      for (int64_t m = 0; m < count; ++m) {
        float highest;
        softmax(scores.get() + m * padded, start + m + 1, all, scale, weights.get() + m * padded, &highest, &totals[m]);
        log_sums[m] = highest + std::log(totals[m]);
      }
      product<Number>(count, width, std::is_same_v<Number, float> ? seen : all, {weights.get(), padded}, {value, width},
                      {sums.get(), width}, false);
      divided(count, width, sums.get(), totals, head_of<Number>(y, b, h).from(start));
    }
    at::native::cpublas::brgemm_release();
  });
}

// From a block's scores [L, M], with keys down and queries across, and the gradients of the
// weights, computes the weights and the gradients of the scores. Both are written in rows of M
// numbers, of which those from `count` on are 0. Key l is seen by queries from `first_query + l`
// on.
template <typename Number>
VECTORISED void scores_back(int64_t keys, int64_t count, int64_t padded, int64_t first_query, float scale, float* scores,
                            float* gradients, const float* log_sums, const float* means, Number* weights, Number* back) {
  for (int64_t l = 0; l < keys; ++l) {
    float* s = scores + l * count;
    const float* g = gradients + l * count;
    Number *w = weights + l * padded, *d = back + l * padded;
    const int64_t unseen = std::min(std::max<int64_t>(first_query + l, 0), count);
    for (int64_t m = 0; m < unseen; ++m) put(w[m], 0.0f), put(d[m], 0.0f);
    for (int64_t m = unseen; m < count; ++m) {
      const float weight = exponential(std::min(s[m] * scale - log_sums[m], 0.0f));
      put(w[m], weight);
      put(d[m], weight * (g[m] - means[m]) * scale);
    }
    for (int64_t m = count; m < padded; ++m) put(w[m], 0.0f), put(d[m], 0.0f);
  }
}

// The sum of a_i b_i, in fp32.
template <typename Number>
VECTORISED float dot(const Number* a, const Number* b, int64_t count) {
  constexpr int64_t kLanes = 16;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += float(a[i + j]) * float(b[i + j]);
  }
  for (; i < count; ++i) lanes[0] += float(a[i]) * float(b[i]);
  float sum = 0;
  for (float lane : lanes) sum += lane;
  return sum;
}

// The gradients dq, dk, dv of q, k, v for the gradient dy of y.
template <typename Number>
void attend_back(const at::Tensor& dy, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& y,
                 const at::Tensor& logarithms, float scale, at::Tensor& dq, at::Tensor& dk, at::Tensor& dv) {
  const int64_t batch = q.size(0), time = q.size(1), heads = q.size(2), width = q.size(3), groups = k.size(2);
  const int64_t shared = heads / groups;
  const int64_t padded_time = even(time);
  auto keys_across = at::empty({batch, groups, width * padded_time}, k.options());
  over_stretches(batch * groups, 1, [&](int64_t task, int64_t, int64_t) {
    Number* to = keys_across.mutable_data_ptr<Number>() + task * width * padded_time;
    across(time, width, head_of<const Number>(k, task / groups, task % groups), padded_time, to);
    if (padded_time > time) {
      for (int64_t i = 0; i < width; ++i) to[i * padded_time + time] = Number(0);
    }
  });
  // A head's own gradients of keys and values, which it may share with other heads.
  auto of_heads = at::empty({2, batch, heads, time * width}, logarithms.options());
  at::parallel_for(0, batch * heads, 1, [&](int64_t first, int64_t last) {
    auto scores = scratch<float>(kKeys * kQueries), gradients = scratch<float>(kKeys * kQueries);
    auto weights = scratch<Number>(kKeys * kQueries), back = scratch<Number>(kKeys * kQueries);
    auto back_packed = scratch<Number>(kKeys * kQueries);
    auto query_across = scratch<Number>(width * kQueries), dy_across = scratch<Number>(width * kQueries);
    auto query_packed = scratch<Number>(kQueries * width), dy_packed = scratch<Number>(kQueries * width);
    auto dq_across = scratch<float>(width * kQueries);
    float means[kQueries];
    for (int64_t task = first; task < last; ++task) {
      const int64_t b = task / heads, h = task % heads;
      const auto all_q = head_of<const Number>(q, b, h), all_dy = head_of<const Number>(dy, b, h);
      const auto key = head_of<const Number>(k, b, h / shared), value = head_of<const Number>(v, b, h / shared);
      const auto all_y = head_of<const Number>(y, b, h);
      const auto out = head_of<Number>(dq, b, h);
      float* dkey = of_heads.mutable_data_ptr<float>() + task * time * width;
      float* dvalue = dkey + batch * heads * time * width;
      std::fill(dkey, dkey + time * width, 0.0f);
      std::fill(dvalue, dvalue + time * width, 0.0f);
      const Number* key_across = keys_across.const_data_ptr<Number>() + (b * groups + h / shared) * width * padded_time;
      for (int64_t start = 0; start < time; start += kQueries) {
        const int64_t count = std::min(kQueries, time - start), padded = even(count), seen = start + count;
        const auto query = all_q.from(start), dy_rows = all_dy.from(start);
        packed_across(count, width, query, count, query_across.get());
        packed_across(count, width, dy_rows, count, dy_across.get());
        packed(count, width, query, query_packed.get());
        packed(count, width, dy_rows, dy_packed.get());
        const float* log_sums = logarithms.const_data_ptr<float>() + task * time + start;
        for (int64_t m = 0; m < count; ++m) means[m] = dot(dy_rows[m], all_y[start + m], width);
        for (int64_t from = 0; from < seen; from += kKeys) {
          const int64_t keys = std::min(kKeys, seen - from);
          product<Number>(keys, count, width, key.from(from), {query_across.get(), count}, {scores.get(), count}, false);
          product<Number>(keys, count, width, value.from(from), {dy_across.get(), count}, {gradients.get(), count}, false);
          scores_back(keys, count, padded, from - start, scale, scores.get(), gradients.get(), log_sums, means,
                      weights.get(), back.get());
          const int64_t m = std::is_same_v<Number, float> ? count : padded;
          product<Number>(keys, width, m, {weights.get(), padded}, {dy_packed.get(), width}, {dvalue + from * width, width}, true);
          product<Number>(keys, width, m, {back.get(), padded}, {query_packed.get(), width}, {dkey + from * width, width}, true);
          packed(keys, padded, {back.get(), padded}, back_packed.get());
          product<Number>(width, count, std::is_same_v<Number, float> ? keys : even(keys),
                          {key_across + from, padded_time}, {back_packed.get(), padded}, {dq_across.get(), count},
                          from > 0);
        }
        across<float>(width, count, {dq_across.get(), count}, out.stride, out[start]);
      }
    }
    at::native::cpublas::brgemm_release();
  });
  const float* all = of_heads.const_data_ptr<float>();
  over_stretches(batch * groups, 1, [&](int64_t task, int64_t, int64_t) {
    const int64_t b = task / groups, g = task % groups;
    for (int64_t part = 0; part < 2; ++part) {
      sum_of(shared, time, width, all + ((part * batch + b) * heads + g * shared) * time * width,
             head_of<Number>(part == 0 ? dk : dv, b, g));
    }
  });
}

// A tensor whose heads are rows of adjacent pairs of numbers.
at::Tensor by_rows(const at::Tensor& x) { return x.stride(3) == 1 && x.stride(1) % 2 == 0 ? x : x.contiguous(); }

struct CausalAttention : torch::autograd::Function<CausalAttention> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& queries, const at::Tensor& keys,
                            const at::Tensor& values, double scale) {
    const auto q = by_rows(queries), k = by_rows(keys), v = by_rows(values);
    auto y = at::empty(q.sizes(), q.options());
    auto logarithms = at::empty({q.size(0), q.size(2), q.size(1)}, q.options().dtype(at::kFloat));
    with_type_of(q, [&](auto number) { attend<decltype(number)>(q, k, v, float(scale), y, logarithms); });
    context->save_for_backward({q, k, v, y, logarithms});
    context->saved_data["scale"] = scale;
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto &q = saved[0], &k = saved[1], &v = saved[2];
    const auto dy = by_rows(gradients[0]);
    auto dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options()), dv = at::empty(v.sizes(), v.options());
    const float scale = float(context->saved_data["scale"].toDouble());
    with_type_of(q, [&](auto number) {
      attend_back<decltype(number)>(dy, q, k, v, saved[3], saved[4], scale, dq, dk, dv);
    });
    return {dq, dk, dv, at::Tensor()};
  }
};

bool has_kernels(const at::Tensor& x) {
  if (!x.is_cpu() || x.size(3) % 2 != 0) return false;
#if defined(__x86_64__)
  if (x.scalar_type() == at::kFloat) return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  return x.scalar_type() == at::kBFloat16 && products::has_bf16();
#else
  return false;
#endif
}

}  // namespace

extern "C" {

// Causal attention of q [B, T, H, K] over k and v [B, T, G, K]; each query sees the keys from the
// first to its own. The result is [B, T, H, K], a new tensor that the caller owns; null on a
// processor without kernels.
char* lm_attend(const at::Tensor* q, const at::Tensor* k, const at::Tensor* v, double scale, at::Tensor** y) {
  return caught([&] {
    *y = has_kernels(*q) ? new at::Tensor(CausalAttention::apply(*q, *k, *v, scale)) : nullptr;
  });
}

}  // extern "C"
