// sample_logprob: a row's blocks are weighed in whole numbers, in one read; then one block is drawn
// from, and one token of it. The reference in Python says why the same token comes out everywhere.
#include "cpu/head/sample_logprob.h"

#include <float.h>
#include <math.h>

#include "cpu/elementwise/elementwise.h"
#include "cpu/common/simd_double.h"

namespace r1::R1_ISA {
namespace {
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kOne = 0x1p40f;  // what a block's largest logit weighs
constexpr int64_t kMostOfBlock = kSampleBlock << 40;  // more only where there is no number

// 2^(40 + z) for z ≤ 0, 2^51 for NaN. Products and sums are rounded by themselves.
inline F power(F z) {
  z = min(max(splat(-126.0f), z), splat(11.0f));
  const F magic = splat(12582912.0f);  // 1.5·2^23: adding it rounds to an integer
  const F shifted = z + magic, f = z - (shifted - magic);
  F p = splat(0x1.5bba14p-10f * kOne);
  p = apart(p * f) + splat(0x1.3cea88p-7f * kOne);
  p = apart(p * f) + splat(0x1.c6b752p-5f * kOne);
  p = apart(p * f) + splat(0x1.ebf9bcp-3f * kOne);
  p = apart(p * f) + splat(0x1.62e42ap-1f * kOne);
  p = apart(p * f) + splat(kOne);
  return (F)((U)p + ((U)shifted << 23));
}

// The lanes as integers, to nearest even; each is too large by kExcess, which is taken off the sum.
constexpr uint64_t kExcess = 0x4330000000000000;  // 2^52 as a double: 1 is the worth of its last bit
typedef uint64_t Bits __attribute__((vector_size(8 * kDoubles)));
struct Integers {
  Bits low, high;
};
inline Integers integers(F w) {
  const D unit = splat_double(0x1p52);
#if defined(__AVX512F__)
  const D low = to_double((Singles)_mm512_maskz_extractf32x8_ps(0xff, (__m512)w, 0));
  const D high = to_double((Singles)_mm512_maskz_extractf32x8_ps(0xff, (__m512)w, 1));
#elif defined(__AVX2__)
  const D low = (D)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)w, 0));
  const D high = (D)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)w, 1));
#else
  const D low = {w[0], w[1]}, high = {w[2], w[3]};
#endif
  return {(Bits)(low + unit), (Bits)(high + unit)};
}

// What logits are times, to become exponents of 2. Finite, so that the largest one's stays 0.
inline float rate_of(const LogitRow& row) {
  const float rate = kLog2E / (row.temperature == 0 ? 1.0f : row.temperature);
  return rate < FLT_MAX ? rate : FLT_MAX;
}

// A block's logits, with -inf up to a whole chunk.
template <class T>
struct Block {
  using E = typename T::Element;
  E padded[kSampleBlock];
  const E* logits;
  int64_t count;

  Block(const LogitRow& row, int64_t block) {
    logits = static_cast<const E*>(row.logits) + block * kSampleBlock;
    count = row.columns - block * kSampleBlock;
    if (count >= kSampleBlock) count = kSampleBlock;
    if (count % kChunk == 0) return;
    memcpy(padded, logits, count * sizeof(E));
    for (; count % kChunk != 0; ++count) padded[count] = T::element(-INFINITY);
    logits = padded;
  }

  float top() const {
    F a = splat(-INFINITY), b = a;
    for (int64_t i = 0; i < count; i += kChunk) {
      const Chunk x = Chunks<T>::load(logits + i);
      a = max(x.a, a);
      b = max(x.b, b);
    }
    a = max(a, b);
    float top = a[0];
    for (int j = 1; j < kWidth; ++j) top = a[j] > top ? a[j] : top;
    return top;
  }
};

// Weights of a block's logits.
struct Weigher {
  F top, rate;
  Weigher(const LogitRow& row, float top)
      : top(splat(top > -INFINITY ? top : 0.0f)), rate(splat(rate_of(row))) {}
  Integers operator()(F logits) const { return integers(power(apart((logits - top) * rate))); }
};

template <class T>
void weigh(const LogitRow& row, int64_t begin, int64_t end, float* tops, int64_t* weights) {
  for (int64_t n = begin; n < end; ++n) {
    const Block<T> block(row, n);
    tops[n] = block.top();
    const Weigher weight_of(row, tops[n]);
    Bits sums{};
    for (int64_t i = 0; i < block.count; i += kChunk) {
      const Chunk x = Chunks<T>::load(block.logits + i);
      const Integers a = weight_of(x.a), b = weight_of(x.b);
      sums += (a.low + a.high) + (b.low + b.high);
    }
    uint64_t sum = 0;
    for (int j = 0; j < kDoubles; ++j) sum += sums[j];
    weights[n] = static_cast<int64_t>(sum - static_cast<uint64_t>(block.count) * kExcess);
  }
}

// The first place of a block whose weights, up to itself, sum to more than `target`.
template <class T>
int64_t place(const LogitRow& row, int64_t n, float top, int64_t target) {
  const Block<T> block(row, n);
  int64_t w[kSampleBlock];
  const Weigher weight_of(row, top);
  for (int64_t i = 0; i < block.count; i += kWidth) {
    const Integers at = weight_of(T::load(block.logits + i));
    store_as(w + i, at.low - kExcess);
    store_as(w + i + kDoubles, at.high - kExcess);
  }
  int64_t i = 0;
  for (; i + kWidth < block.count; i += kWidth) {
    int64_t sum = 0;
    for (int j = 0; j < kWidth; ++j) sum += w[i + j];
    if (sum > target) break;
    target -= sum;
  }
  while (i + 1 < block.count && w[i] <= target) target -= w[i++];
  return i;
}

template <class T>
int64_t place_of_top(const LogitRow& row, int64_t n, float top) {
  const Block<T> block(row, n);
  int64_t i = 0;
  while (i + 1 < block.count && T::scalar(block.logits[i]) != top) ++i;
  return i;
}

template <class T>
Sampled draw(const LogitRow& row, double uniform, const float* tops, const int64_t* weights) {
  const int64_t blocks = (row.columns + kSampleBlock - 1) / kSampleBlock;
  constexpr Sampled none{0, NAN};
  float top = -INFINITY;
  for (int64_t n = 0; n < blocks; ++n) {
    if (weights[n] > kMostOfBlock) return none;
    top = tops[n] > top ? tops[n] : top;
  }
  if (top == -INFINITY) return none;

  // What a weight of a block is worth beside those of the block with the largest logit.
  const auto worth = [&](int64_t n) {
    return double(power(splat((tops[n] - top) * rate_of(row)))[0]) * 0x1p-40;
  };
  const auto share = [&](int64_t n) { return static_cast<int64_t>(double(weights[n]) * worth(n)); };
  int64_t total = 0;
  for (int64_t n = 0; n < blocks; ++n) total += share(n);

  int64_t n = 0, token;
  if (row.temperature == 0) {
    while (tops[n] != top) ++n;
    token = place_of_top<T>(row, n, top);
  } else {
    int64_t target = static_cast<int64_t>(uniform * double(total));
    if (target >= total) target = total - 1;
    for (int64_t s; target >= (s = share(n)); ++n) target -= s;
    int64_t within = static_cast<int64_t>(double(target) / worth(n));
    if (within >= weights[n]) within = weights[n] - 1;
    token = place<T>(row, n, tops[n], within);
  }
  token += n * kSampleBlock;
  const float logit = T::scalar(static_cast<const typename T::Element*>(row.logits)[token]);
  const double temperature = row.temperature == 0 ? 1.0 : row.temperature;
  const double above = (double(logit) - double(top)) / temperature;
  return {token, static_cast<float>(above - ::log(double(total) * 0x1p-40))};
}
}  // namespace

void sample_weigh(const LogitRow& row, int64_t begin, int64_t end, float* tops, int64_t* weights) {
  (row.bf16 ? weigh<BF16> : weigh<F32>)(row, begin, end, tops, weights);
}

Sampled sample_draw(const LogitRow& row, double uniform, const float* tops,
                    const int64_t* weights) {
  return (row.bf16 ? draw<BF16> : draw<F32>)(row, uniform, tops, weights);
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include <algorithm>

#include "cpu/common/parallel.h"
#include "cpu/common/rows.h"

namespace r1 {
namespace {
std::tuple<Tensor, Tensor> sample_logprob(Tensor logits, Tensor uniform, OptionalTensor temperature) {
  constexpr const char* op = "sample_logprob";
  R1_CHECK(logits.dim() == 2, op, ": logits: expected shape [B, V]");
  const int64_t rows = logits.size(0), columns = logits.size(1);
  R1_CHECK(columns > 0, op, ": expected V ≥ 1 tokens to choose from, got 0");
  expect_numel(op, "uniform", uniform, rows);
  R1_CHECK(uniform.scalar_type() == ScalarType::Long, op, ": uniform: expected the bits of float64");
  if (temperature) expect_numel(op, "temperature", *temperature, rows);
  if (columns > 1 && logits.stride(1) != 1) logits = dense(logits);
  uniform = dense(uniform);
  if (temperature) temperature = to_dtype(*temperature, ScalarType::Float);

  const int64_t row_bytes = logits.stride(0) * logits.element_size();
  const auto row = [&](int64_t b) {
    return LogitRow{is_bf16(logits), data<char>(logits) + b * row_bytes, columns,
                    temperature ? data<float>(*temperature)[b] : 1.0f};
  };
  const int64_t blocks = (columns + kSampleBlock - 1) / kSampleBlock;
  Buffer<float> tops(rows * blocks);
  Buffer<int64_t> weights(rows * blocks);
  const auto weigh = R1_DISPATCH(sample_weigh);
  const int64_t bytes = std::min<int64_t>(columns, kSampleBlock) * sizeof(float);  // as is weighed
  parallel_ranges(rows * blocks, items_a_task(bytes), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t b = begin / blocks, first = begin % blocks;
      const int64_t last = std::min(first + end - begin, blocks);
      weigh(row(b), first, last, tops.p + b * blocks, weights.p + b * blocks);
      begin += last - first;
    }
  });

  Tensor token = new_empty(logits, {rows}, ScalarType::Long);
  Tensor logprob = new_empty(logits, {rows}, ScalarType::Float);
  const auto draw = R1_DISPATCH(sample_draw);
  parallel_ranges(rows, items_a_task(bytes), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Sampled s = draw(row(b), data<double>(uniform)[b], tops.p + b * blocks,
                             weights.p + b * blocks);
      data<int64_t>(token)[b] = s.token;
      data<float>(logprob)[b] = s.logprob;
    }
  });
  return {token, logprob};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "sample_logprob(Tensor logits, Tensor uniform, Tensor? temperature) "
      "-> (Tensor token, Tensor logprob)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) { m.impl("sample_logprob", TORCH_BOX(&sample_logprob)); }
}  // namespace r1
#endif
