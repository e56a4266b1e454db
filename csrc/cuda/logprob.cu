// Log-probabilities and entropies of given logits: one block a row, one read of it; the gradient is
// one read and one write. All sums run in a fixed order.
#include <cassert>
#include <cstdint>

#include <cuda_bf16.h>

#include "common/op.h"
#include "cuda/stream.h"

namespace r1 {
namespace {
constexpr int kThreads = 512;
constexpr float kLow = -1e30f;  // stands for -inf where a difference must stay finite

struct Options {
  float temperature, logit_scale, softcap;  // softcap 0 for none

  __device__ float scale(float x) const {
    x *= logit_scale;
    if (softcap != 0) x = tanhf(x / softcap) * softcap;
    return x / temperature;
  }
  __device__ float slope(float z) const {  // of scale, at its result
    const float t = softcap != 0 ? z * temperature / softcap : 0.0f;
    return (1 - t * t) * logit_scale / temperature;
  }
};

// Running maximum, Σ e^(z - max) and Σ e^(z - max)·(z - max) of a part of a row.
struct Statistics {
  float max = kLow, sum = 0, weighted = 0;

  __device__ void merge(const Statistics& o) {
    const float m = fmaxf(max, o.max), a = expf(max - m), b = expf(o.max - m);
    weighted = a * (weighted + (max - m) * sum) + b * (o.weighted + (o.max - m) * o.sum);
    sum = a * sum + b * o.sum;
    max = m;
  }
  __device__ void shuffle_merge(int offset) {
    Statistics o;
    o.max = __shfl_down_sync(~0u, max, offset);
    o.sum = __shfl_down_sync(~0u, sum, offset);
    o.weighted = __shfl_down_sync(~0u, weighted, offset);
    merge(o);
  }
};

template <class T>
struct Vector {  // 16 bytes
  static constexpr int kSize = 16 / sizeof(T);
  alignas(16) T x[kSize];
};

__device__ float to_float(float x) { return x; }
__device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ void from_float(float& out, float x) { out = x; }
__device__ void from_float(__nv_bfloat16& out, float x) { out = __float2bfloat16(x); }

// Calls body(first column, count, pointer) for pieces of a row, 16-byte aligned ones in the middle.
template <class T, class Row, class Body>
__device__ void for_each_piece(Row* row, int64_t columns, const Body& body) {
  constexpr int kSize = Vector<T>::kSize;
  const int64_t skew = reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T);
  const int64_t head = min(columns, skew == 0 ? int64_t{0} : kSize - skew);
  const int64_t vectors = (columns - head) / kSize;
  for (int64_t i = threadIdx.x; i < vectors; i += kThreads) body(head + i * kSize, true);
  for (int64_t i = threadIdx.x; i < head; i += kThreads) body(i, false);
  for (int64_t i = head + vectors * kSize + threadIdx.x; i < columns; i += kThreads) body(i, false);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    forward(const T* logits, const int64_t* target, int64_t columns, Options options,
            bool want_entropy, float* logprob, float* entropy, float* lse) {
  constexpr int kSize = Vector<T>::kSize;
  const int64_t row = blockIdx.x;
  const T* x = logits + row * columns;
  Statistics mine;
  for_each_piece<T>(x, columns, [&](int64_t at, bool whole) {
    float z[kSize];
    const int n = whole ? kSize : 1;
    if (whole) {
      const Vector<T> v = *reinterpret_cast<const Vector<T>*>(x + at);
#pragma unroll
      for (int i = 0; i < kSize; ++i) z[i] = options.scale(to_float(v.x[i]));
    } else {
      z[0] = options.scale(to_float(x[at]));
    }
    Statistics piece;
#pragma unroll
    for (int i = 0; i < kSize; ++i)
      if (i < n) piece.max = fmaxf(piece.max, z[i]);
#pragma unroll
    for (int i = 0; i < kSize; ++i)
      if (i < n) {
        const float d = z[i] - piece.max, e = expf(d);
        piece.sum += e;
        piece.weighted += e * fmaxf(d, -200.0f);
      }
    mine.merge(piece);
  });
  __shared__ Statistics warps[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) mine.shuffle_merge(offset);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kThreads / 32; ++w) mine.merge(warps[w]);
  const int64_t y = target[row];
  assert(y >= 0 && y < columns && "logprob: target: expected 0 <= target < V");
  const float log_sum = logf(mine.sum);
  lse[row] = mine.max + log_sum;
  logprob[row] = (options.scale(to_float(x[y])) - mine.max) - log_sum;
  if (want_entropy) entropy[row] = log_sum - mine.weighted / mine.sum;
}

// dz = g·(1_y - p) - e·p·(log p + H), times the slope of the options.
template <class T>
__global__ void __launch_bounds__(kThreads)
    backward(const float* dlogprob, const float* dentropy, const T* logits, const int64_t* target,
             const float* lse, const float* entropy, int64_t columns, Options options, T* dlogits) {
  constexpr int kSize = Vector<T>::kSize;
  const int64_t row = blockIdx.x, y = target[row];
  const T* x = logits + row * columns;
  T* out = dlogits + row * columns;
  const float g = dlogprob[row], e = dentropy ? dentropy[row] : 0.0f;
  const float total = lse[row], h = dentropy ? entropy[row] : 0.0f;
  auto gradient = [&](T logit, int64_t v) {
    const float z = options.scale(to_float(logit)), logp = z - total;
    const float p = expf(logp);
    const float own = v == y ? g * -expm1f(logp) : -g * p;
    return (own - e * p * (fmaxf(logp, -200.0f) + h)) * options.slope(z);
  };
  const bool skip = g == 0 && e == 0;
  for_each_piece<T>(x, columns, [&](int64_t at, bool whole) {
    if (whole) {
      Vector<T> v = *reinterpret_cast<const Vector<T>*>(x + at);
#pragma unroll
      for (int i = 0; i < kSize; ++i) from_float(v.x[i], skip ? 0.0f : gradient(v.x[i], at + i));
      *reinterpret_cast<Vector<T>*>(out + at) = v;
    } else {
      from_float(out[at], skip ? 0.0f : gradient(x[at], at));
    }
  });
}

// Calls body(pointer of the element type) for fp32 or bf16 logits.
template <class Body>
void with_elements(const Tensor& logits, const Body& body) {
  if (is_bf16(logits)) body(data<__nv_bfloat16>(logits));
  else body(data<float>(logits));
}

Options options_of(double temperature, double logit_scale, std::optional<double> softcap) {
  return {static_cast<float>(temperature), static_cast<float>(logit_scale),
          static_cast<float>(softcap.value_or(0.0))};
}

std::tuple<Tensor, Tensor, Tensor> logprob(Tensor logits, Tensor target, double temperature,
                                           double logit_scale, std::optional<double> softcap,
                                           bool want_entropy) {
  const OnDevice device(logits);
  const Tensor x = dense(logits), y = to_dtype(target, ScalarType::Long);
  const int64_t rows = x.size(0), columns = x.size(1);
  Tensor value = new_empty(x, {rows}, ScalarType::Float), lse = new_empty(x, {rows}, ScalarType::Float);
  Tensor entropy = new_empty(x, {want_entropy ? rows : 0}, ScalarType::Float);
  if (rows > 0)
    with_elements(x, [&](auto* elements) {
      forward<<<rows, kThreads, 0, device.stream>>>(
          elements, data<int64_t>(y), columns, options_of(temperature, logit_scale, softcap),
          want_entropy, data<float>(value), data<float>(entropy), data<float>(lse));
    });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {value, entropy, lse};
}

Tensor logprob_backward(Tensor dlogprob, Tensor dentropy, Tensor logits, Tensor target, Tensor lse,
                        Tensor entropy, double temperature, double logit_scale,
                        std::optional<double> softcap) {
  const OnDevice device(logits);
  const Tensor x = dense(logits), y = to_dtype(target, ScalarType::Long);
  const Tensor g = to_dtype(dlogprob, ScalarType::Float), e = to_dtype(dentropy, ScalarType::Float);
  const Tensor total = to_dtype(lse, ScalarType::Float), h = to_dtype(entropy, ScalarType::Float);
  Tensor dlogits = new_empty(x, {x.size(0), x.size(1)}, x.scalar_type());
  if (x.size(0) > 0)
    with_elements(x, [&](auto* elements) {
      using T = std::remove_pointer_t<decltype(elements)>;
      backward<<<x.size(0), kThreads, 0, device.stream>>>(
          data<float>(g), e.numel() > 0 ? data<float>(e) : nullptr,
          static_cast<const T*>(elements), data<int64_t>(y), data<float>(total), data<float>(h),
          x.size(1), options_of(temperature, logit_scale, softcap), data<T>(dlogits));
    });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return dlogits;
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cuda, m) {
  m.def(
      "logprob(Tensor logits, Tensor target, float temperature, float logit_scale, "
      "float? softcap, bool want_entropy) -> (Tensor, Tensor, Tensor)");
  m.def(
      "logprob_backward(Tensor dlogprob, Tensor dentropy, Tensor logits, Tensor target, "
      "Tensor lse, Tensor entropy, float temperature, float logit_scale, float? softcap) "
      "-> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cuda, CUDA, m) {
  m.impl("logprob", TORCH_BOX(&logprob));
  m.impl("logprob_backward", TORCH_BOX(&logprob_backward));
}
}  // namespace r1
