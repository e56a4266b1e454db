// Log-probabilities and entropies of given logits: one block a row, one read of it; the gradient is
// one read and one write. All sums run in a fixed order.
#include "cuda/head/logprob.h"

namespace r1 {
namespace {
constexpr int kForwardThreads = 512, kBackwardThreads = 256;

template <class T, bool kPlain, bool kWeighted>
__global__ void __launch_bounds__(kForwardThreads, 2) forward(LogprobForward in) {
  constexpr int kWarps = kForwardThreads / kWarp;
  __shared__ Statistics<kWeighted> warps[kWarps];
  const int64_t t = blockIdx.x;
  RowEnd<kWarps, T, kPlain, kWeighted> end(in, t);
  auto mine = Statistics<kWeighted>::none();
  const int64_t groups = in.columns / kGroup<T>;
  add_part<kForwardThreads>(mine, in.row<T>(t), groups, end.scale, [](int) {});
  mine.merge_lanes(end.scale.log2_unit);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = mine;
  __syncthreads();
  if (threadIdx.x < kWarp) end.finish(in, t, warps);
}

struct Backward {
  const float *dlogprob, *dentropy;  // dentropy: null for none
  const void* logits;
  const int64_t* target;
  const float *lse, *entropy;
  int64_t columns;
  LogitOptions options;
  void* dlogits;  // may be the logits
};

// dz = g·(1_y - p) - e·p·(log p + H), times dz/dx, for one row.
template <bool kPlain>
struct RowGradient {
  RowScale<kPlain> scale;
  float g, e, lse, entropy;
  float log2_lse, constant, linear;  // dz = p·(constant + linear·log2 p) elsewhere
  int64_t target;

  __device__ RowGradient(const Backward& in, int64_t t)
      : scale(in.options, t), g(in.dlogprob[t]), e(in.dentropy != nullptr ? in.dentropy[t] : 0.0f),
        lse(in.lse[t]), entropy(in.dentropy != nullptr ? in.entropy[t] : 0.0f),
        log2_lse(lse * kLog2E), constant(-(g + e * entropy)),
        linear(-e * kLn2), target(in.target[t]) {}

  __device__ float operator()(float x) const {
    const float u = scale(x), log2_p = fmaf(u, scale.log2_unit, -log2_lse);
    return fast_exp2(log2_p) * fmaf(linear, fmaxf(log2_p, kNegligible), constant) * scale.slope(u);
  }
  // In the target's column: 1 - p without cancellation, 0 where p is 1.
  __device__ float own(float x) const {
    const float u = scale(x), logp = u * scale.unit - lse;
    const float d = -g * expm1f(logp) - e * expf(logp) * (fmaxf(logp, kNegligible) + entropy);
    return d * scale.slope(u);
  }

  template <int N>
  __device__ uint4 of_group(const uint4& group, int64_t column) const {
    float x[N], d[N];
    unpack(group, x);
#pragma unroll
    for (int i = 0; i < N; ++i) d[i] = (*this)(x[i]);
    const int64_t at = target - column;
    if (at >= 0 && at < N) {
      float there = 0;  // selected, since an index would put x into memory
#pragma unroll
      for (int i = 0; i < N; ++i) there = i == at ? x[i] : there;
      there = own(there);
#pragma unroll
      for (int i = 0; i < N; ++i) d[i] = i == at ? there : d[i];
    }
    return pack(d);
  }
};

constexpr int kSegment = 16 * kBackwardThreads;  // groups a block

// A row without an upstream gradient is not even read: it may hold anything.
template <class T, bool kPlain>
__global__ void __launch_bounds__(kBackwardThreads, 4) backward(Backward in) {
  constexpr int kSize = kGroup<T>;
  const int64_t t = blockIdx.x;
  const T* x = static_cast<const T*>(in.logits) + t * in.columns;
  T* out = static_cast<T*>(in.dlogits) + t * in.columns;
  const RowGradient<kPlain> row(in, t);
  const bool zero = row.g == 0 && row.e == 0;
  const int skew = reinterpret_cast<uintptr_t>(x) % 16;
  const bool together = reinterpret_cast<uintptr_t>(out) % 16 == skew;
  const int64_t head = together ? min(in.columns, int64_t{(16 - skew) % 16 / int{sizeof(T)}}) : 0;
  const int64_t groups = together ? (in.columns - head) / kSize : 0;
  const int64_t begin = int64_t{blockIdx.y} * kSegment, end = min(begin + kSegment, groups);
  for (int64_t first = begin + threadIdx.x; first < end; first += kBatch * kBackwardThreads) {
    uint4 group[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      group[k] = make_uint4(0, 0, 0, 0);
      const int64_t g = first + k * kBackwardThreads;
      if (g < end && !zero) group[k] = load_group(x + head + g * kSize, 0);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int64_t g = first + k * kBackwardThreads, column = head + g * kSize;
      if (g >= end) break;
      if (!zero) group[k] = row.template of_group<kSize>(group[k], column);
      *reinterpret_cast<uint4*>(out + column) = group[k];
    }
  }
  // What 16-byte accesses leave: both ends, or everything where x and out are skewed differently.
  if (blockIdx.y != 0) return;
  auto write = [&](int64_t v) {
    const float logit = zero ? 0.0f : to_float(x[v]);
    from_float(out[v], zero ? 0.0f : v == row.target ? row.own(logit) : row(logit));
  };
  for (int64_t v = threadIdx.x; v < head; v += kBackwardThreads) write(v);
  for (int64_t v = head + groups * kSize + threadIdx.x; v < in.columns; v += kBackwardThreads)
    write(v);
}

LogitOptions options_of(const std::optional<Tensor>& temperature, double logit_scale,
                        std::optional<double> softcap) {
  return {static_cast<float>(logit_scale), static_cast<float>(softcap.value_or(0.0)),
          data_or_null<const float>(temperature)};
}

std::optional<Tensor> floats(const std::optional<Tensor>& t) {
  if (!t) return std::nullopt;
  return to_dtype(*t, ScalarType::Float);
}

std::tuple<Tensor, Tensor, Tensor> logprob(Tensor logits, Tensor target,
                                           std::optional<Tensor> temperature, double logit_scale,
                                           std::optional<double> softcap, bool want_entropy) {
  const OnDevice device(logits);
  const Tensor x = dense(logits), y = to_dtype(target, ScalarType::Long);
  const std::optional<Tensor> per_row = floats(temperature);
  const int64_t rows = x.size(0);
  Tensor value = new_empty(x, {rows}, ScalarType::Float);
  Tensor lse = new_empty(x, {rows}, ScalarType::Float);
  Tensor entropy = new_empty(x, {want_entropy ? rows : 0}, ScalarType::Float);
  if (rows == 0) return {value, entropy, lse};
  const LogprobForward in{x.data_ptr(), data<int64_t>(y), rows, x.size(1), is_bf16(x),
                          options_of(per_row, logit_scale, softcap), data<float>(value),
                          want_entropy ? data<float>(entropy) : nullptr, data<float>(lse)};
  if (!device.is_sm90() || !logprob_on_sm90(device, in))
    with_kernel(in, [&](auto element, auto plain, auto weighted) {
      device.launch("logprob", forward<decltype(element), plain.value, weighted.value>, dim3(rows),
                    kForwardThreads, in);
    });
  return {value, entropy, lse};
}

void launch_backward(const Tensor& dlogprob, const Tensor& dentropy, const Tensor& logits,
                     const Tensor& target, const Tensor& lse, const Tensor& entropy,
                     const std::optional<Tensor>& temperature, double logit_scale,
                     std::optional<double> softcap, const Tensor& dlogits) {
  const OnDevice device(logits);
  const Tensor y = to_dtype(target, ScalarType::Long);
  const Tensor g = to_dtype(dlogprob, ScalarType::Float), e = to_dtype(dentropy, ScalarType::Float);
  const Tensor total = to_dtype(lse, ScalarType::Float), h = to_dtype(entropy, ScalarType::Float);
  const std::optional<Tensor> per_row = floats(temperature);
  const int64_t rows = logits.size(0), columns = logits.size(1);
  if (rows == 0) return;
  const Backward in{data<float>(g), e.numel() > 0 ? data<float>(e) : nullptr, logits.data_ptr(),
                    data<int64_t>(y), data<float>(total), data<float>(h), columns,
                    options_of(per_row, logit_scale, softcap), dlogits.data_ptr()};
  with_kernel(is_bf16(logits), in.options, [&](auto element, auto plain) {
    using T = decltype(element);
    const int64_t segments = (columns / kGroup<T> + kSegment - 1) / kSegment;
    device.launch("logprob_backward", backward<T, plain.value>,
                  dim3(rows, segments > 0 ? segments : 1), kBackwardThreads, in);
  });
}

Tensor logprob_backward(Tensor dlogprob, Tensor dentropy, Tensor logits, Tensor target, Tensor lse,
                        Tensor entropy, std::optional<Tensor> temperature, double logit_scale,
                        std::optional<double> softcap) {
  const Tensor x = dense(logits);
  Tensor dlogits = new_empty(x, {x.size(0), x.size(1)}, x.scalar_type());
  launch_backward(dlogprob, dentropy, x, target, lse, entropy, temperature, logit_scale, softcap,
                  dlogits);
  return dlogits;
}

void logprob_backward_(Tensor dlogprob, Tensor dentropy, Tensor logits, Tensor target, Tensor lse,
                       Tensor entropy, std::optional<Tensor> temperature, double logit_scale,
                       std::optional<double> softcap) {
  const Tensor x = dense(logits);
  launch_backward(dlogprob, dentropy, x, target, lse, entropy, temperature, logit_scale, softcap,
                  x);
  if (!logits.is_contiguous()) torch::stable::copy_(logits, x);
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cuda, m) {
  m.def(
      "logprob(Tensor logits, Tensor target, Tensor? temperature, float logit_scale, "
      "float? softcap, bool want_entropy) -> (Tensor, Tensor, Tensor)");
  m.def(
      "logprob_backward(Tensor dlogprob, Tensor dentropy, Tensor logits, Tensor target, "
      "Tensor lse, Tensor entropy, Tensor? temperature, float logit_scale, float? softcap) "
      "-> Tensor");
  m.def(
      "logprob_backward_(Tensor dlogprob, Tensor dentropy, Tensor(a!) logits, Tensor target, "
      "Tensor lse, Tensor entropy, Tensor? temperature, float logit_scale, float? softcap) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cuda, CUDA, m) {
  m.impl("logprob", TORCH_BOX(&logprob));
  m.impl("logprob_backward", TORCH_BOX(&logprob_backward));
  m.impl("logprob_backward_", TORCH_BOX(&logprob_backward_));
}
}  // namespace r1
