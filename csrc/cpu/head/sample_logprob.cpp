// sample_logprob: a row's blocks are weighed in whole numbers, in one read; then one block is drawn
// from, and one token of it. The reference in Python says why the same token comes out everywhere.
#include "cpu/head/sample_logprob.h"

#include <math.h>

#include "cpu/elementwise/elementwise.h"
#include "cpu/head/sample_weights.h"

namespace r1::R1_ISA {
namespace {
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

  float max_logit() const {
    F a = splat(-INFINITY), b = a;
    for (int64_t i = 0; i < count; i += kChunk) {
      const Chunk x = Chunks<T>::load(logits + i);
      a = max(x.a, a);
      b = max(x.b, b);
    }
    a = max(a, b);
    float max_logit = a[0];
    for (int j = 1; j < kWidth; ++j) max_logit = a[j] > max_logit ? a[j] : max_logit;
    return max_logit;
  }
};

template <class T>
void weigh(const LogitRow& row, int64_t begin, int64_t end, float* block_max, int64_t* weights) {
  for (int64_t n = begin; n < end; ++n) {
    const Block<T> block(row, n);
    block_max[n] = block.max_logit();
    const F max_logit = splat(number_of(block_max[n])), rate = splat(rate_of(row.temperature));
    Bits sums{};
    for (int64_t i = 0; i < block.count; i += kChunk) {
      const Chunk x = Chunks<T>::load(block.logits + i);
      const Integers a = weights_of(x.a, max_logit, rate), b = weights_of(x.b, max_logit, rate);
      sums += (a.low + a.high) + (b.low + b.high);
    }
    uint64_t sum = 0;
    for (int j = 0; j < kDoubles; ++j) sum += sums[j];
    weights[n] = static_cast<int64_t>(sum - static_cast<uint64_t>(block.count) * kExcess);
  }
}

// The first index of a block whose weights, up to itself, sum to more than `target`.
template <class T>
int64_t index_within(const LogitRow& row, int64_t n, float max_logit, int64_t target) {
  const Block<T> block(row, n);
  int64_t w[kSampleBlock];
  const F most = splat(number_of(max_logit)), rate = splat(rate_of(row.temperature));
  for (int64_t i = 0; i < block.count; i += kWidth) {
    const Integers at = weights_of(T::load(block.logits + i), most, rate);
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
int64_t index_of_max(const LogitRow& row, int64_t n, float max_logit) {
  const Block<T> block(row, n);
  int64_t i = 0;
  while (i + 1 < block.count && T::scalar(block.logits[i]) != max_logit) ++i;
  return i;
}

template <class T>
Sampled draw(const LogitRow& row, double uniform, const float* block_max, const int64_t* weights) {
  const int64_t blocks = (row.columns + kSampleBlock - 1) / kSampleBlock;
  const Choice choice = choose_block(block_max, weights, blocks, row.temperature, uniform);
  const int64_t n = choice.block;
  if (n < 0) return {0, NAN};
  const int64_t at = row.temperature == 0 ? index_of_max<T>(row, n, choice.max_logit)
                                          : index_within<T>(row, n, block_max[n], choice.within);
  const int64_t token = n * kSampleBlock + at;
  const float logit = T::scalar(static_cast<const typename T::Element*>(row.logits)[token]);
  return {token, logprob_of(choice, logit, row.temperature)};
}
}  // namespace

void sample_weigh(const LogitRow& row, int64_t begin, int64_t end, float* block_max,
                  int64_t* weights) {
  (row.bf16 ? weigh<BF16> : weigh<F32>)(row, begin, end, block_max, weights);
}

Sampled sample_draw(const LogitRow& row, double uniform, const float* block_max,
                    const int64_t* weights) {
  return (row.bf16 ? draw<BF16> : draw<F32>)(row, uniform, block_max, weights);
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
  Buffer<float> block_max(rows * blocks);
  Buffer<int64_t> weights(rows * blocks);
  const auto weigh = R1_DISPATCH(sample_weigh);
  const int64_t bytes = std::min<int64_t>(columns, kSampleBlock) * sizeof(float);  // as is weighed
  parallel_ranges(rows * blocks, items_a_task(bytes), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t b = begin / blocks, first = begin % blocks;
      const int64_t last = std::min(first + end - begin, blocks);
      weigh(row(b), first, last, block_max.p + b * blocks, weights.p + b * blocks);
      begin += last - first;
    }
  });

  Tensor token = new_empty(logits, {rows}, ScalarType::Long);
  Tensor logprob = new_empty(logits, {rows}, ScalarType::Float);
  const auto draw = R1_DISPATCH(sample_draw);
  parallel_ranges(rows, items_a_task(bytes), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Sampled s = draw(row(b), data<double>(uniform)[b], block_max.p + b * blocks,
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
