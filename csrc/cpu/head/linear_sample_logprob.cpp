// linear_sample_logprob: blocks of logits are made, weighed and forgotten, and those among which the
// token lies made again. The weights are those of sample_logprob, the logits those of linear_logprob.
#include "cpu/head/linear_logprob_tile.h"
#include "cpu/head/sample_weights.h"

namespace r1 {
constexpr int64_t kTiles = kSampleBlock / kCols;  // of a block

struct LinearSample {
  Head head;
  Rows rows;
  const float *rates, *temperatures;  // [rows], padded
  float* block_max;                   // [row][block]: the largest logit
  int64_t *weights, *tile_weights;    // [row][block], and of its tiles [row][block][kTiles]
  int64_t blocks() const { return ceil_div(head.columns, kSampleBlock); }
};
}  // namespace r1

namespace r1::R1_ISA {
namespace {
using r1::smaller;  // of whole numbers

// Weights of `cols` logits of kWidth rows, summed for each row.
Integers weight_sums(const float* z, int64_t cols, F max_logit, F rate) {
  Integers sums{};
  for (int64_t v = 0; v < cols; ++v) {
    const Integers one = weights_of(load(z + v * kRows), max_logit, rate);
    sums.low += one.low;
    sums.high += one.high;
  }
  const Bits excess = Bits{} + static_cast<uint64_t>(cols) * kExcess;
  return {sums.low - excess, sums.high - excess};
}

template <class T>
void weigh(const LinearSample& f, int64_t n, float* z) {
  const int64_t v0 = n * kSampleBlock, cols = smaller(f.head.columns - v0, kSampleBlock);
  for (int64_t b = 0; b < f.rows.blocks(); ++b) {
    const int64_t lanes = f.rows.lanes(b), ahead = b == 0 ? kCols * f.head.units : 0;
    for (int64_t c = 0; c < cols; c += kCols)
      logits_tile<T>(f.head, f.rows, b, lanes, v0 + c, smaller(cols - c, kCols), z + c * kRows,
                     ahead);
    for (int64_t lane = 0; lane < lanes; lane += kWidth) {
      const int64_t row0 = b * kRows + lane, count = smaller(lanes - lane, kWidth);
      F max_logit = splat(-INFINITY);
      for (int64_t v = 0; v < cols; ++v) max_logit = max(load(z + v * kRows + lane), max_logit);
      const F rate = load(f.rates + row0), number = max_logit > splat(-INFINITY) ? max_logit : F{};
      int64_t total[kWidth] = {}, part[kWidth];
      for (int64_t c = 0; c < cols; c += kCols) {
        const float* tile = z + c * kRows + lane;
        const Integers sums = weight_sums(tile, smaller(cols - c, kCols), number, rate);
        store_as(part, sums.low);
        store_as(part + kDoubles, sums.high);
        for (int64_t i = 0; i < count; ++i) {
          f.tile_weights[((row0 + i) * f.blocks() + n) * kTiles + c / kCols] = part[i];
          total[i] += part[i];
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        f.block_max[(row0 + i) * f.blocks() + n] = max_logit[i];
        f.weights[(row0 + i) * f.blocks() + n] = total[i];
      }
    }
  }
}

// The logits of a row in a tile of a block, made again.
template <class T>
struct Column {
  float logits[kCols];
  int64_t first, count;

  Column(const LinearSample& f, int64_t row, int64_t n, int64_t tile) {
    alignas(64) float z[kCols * kRows];
    const int64_t b = row / kRows;
    first = n * kSampleBlock + tile * kCols;
    count = smaller(f.head.columns - first, kCols);
    logits_tile<T>(f.head, f.rows, b, f.rows.lanes(b), first, count, z);
    for (int64_t v = 0; v < count; ++v) logits[v] = z[v * kRows + row % kRows];
    for (int64_t v = count; v < kCols; ++v) logits[v] = -INFINITY;
  }

  int64_t index_of(float logit) const {  // or `count`
    int64_t i = 0;
    while (i < count && logits[i] != logit) ++i;
    return i;
  }

  // The first index whose weights, up to itself, sum to more than `target`.
  int64_t index_within(float max_logit, float rate, int64_t target) const {
    int64_t w[kCols];
    for (int64_t i = 0; i < kCols; i += kWidth) {
      const Integers at = weights_of(load(logits + i), splat(number_of(max_logit)), splat(rate));
      store_as(w + i, at.low - kExcess);
      store_as(w + i + kDoubles, at.high - kExcess);
    }
    int64_t i = 0;
    while (i + 1 < count && w[i] <= target) target -= w[i++];
    return i;
  }
};

template <class T>
Sampled draw(const LinearSample& f, int64_t row, double uniform) {
  const float temperature = f.temperatures[row];
  const float* block_max = f.block_max + row * f.blocks();
  const Choice choice =
      choose_block(block_max, f.weights + row * f.blocks(), f.blocks(), temperature, uniform);
  const int64_t n = choice.block;
  if (n < 0) return {0, NAN};
  const int64_t* weights = f.tile_weights + (row * f.blocks() + n) * kTiles;
  const int64_t last = ceil_div(smaller(f.head.columns - n * kSampleBlock, kSampleBlock), kCols) - 1;
  const auto drawn = [&](const Column<T>& column, int64_t i) {
    return Sampled{column.first + i, logprob_of(choice, column.logits[i], temperature)};
  };
  if (temperature == 0)
    for (int64_t tile = 0; tile <= last; ++tile) {
      if (weights[tile] < static_cast<int64_t>(kOne)) continue;  // the largest logit weighs as much
      const Column<T> column(f, row, n, tile);
      const int64_t i = column.index_of(choice.max_logit);
      if (i < column.count) return drawn(column, i);
    }
  int64_t tile = 0, target = choice.within;
  while (tile < last && weights[tile] <= target) target -= weights[tile++];
  const Column<T> column(f, row, n, tile);
  return drawn(column, column.index_within(block_max[n], f.rates[row], target));
}
}  // namespace

void linear_sample_weigh(const LinearSample& f, int64_t block, float* z) {
  f.head.bf16 ? weigh<BF16>(f, block, z) : weigh<F32>(f, block, z);
}

Sampled linear_sample_draw(const LinearSample& f, int64_t row, double uniform) {
  return f.head.bf16 ? draw<BF16>(f, row, uniform) : draw<F32>(f, row, uniform);
}

float linear_sample_rate(float temperature) { return rate_of(temperature); }
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/head/linear_logprob_rows.h"

R1_DECLARE(void linear_sample_weigh(const LinearSample&, int64_t, float*))
R1_DECLARE(Sampled linear_sample_draw(const LinearSample&, int64_t, double))

namespace r1 {
namespace {
std::tuple<Tensor, Tensor> linear_sample_logprob(Tensor hidden, Tensor weight, Tensor uniform,
                                                 OptionalTensor bias, OptionalTensor temperature,
                                                 double logit_scale, std::optional<double> softcap) {
  constexpr const char* op = "linear_sample_logprob";
  R1_CHECK(hidden.dim() == 2, op, ": hidden: expected shape [B, H]");
  const int64_t rows = hidden.size(0);
  expect_numel(op, "uniform", uniform, rows);
  R1_CHECK(uniform.scalar_type() == ScalarType::Long, op, ": uniform: expected the bits of float64");
  if (temperature) {
    expect_numel(op, "temperature", *temperature, rows);
    temperature = to_dtype(*temperature, ScalarType::Float);
  }
  uniform = dense(uniform);
  const Layer in(op, hidden, weight, bias, {}, logit_scale, softcap);
  Order order(in);
  for (int64_t t = 0; t < rows; ++t) order.add(t);
  const int64_t padded = order.padded(), blocks = ceil_div(in.head.columns, kSampleBlock);
  Buffer<uint32_t> panels(padded * in.head.units);
  pack_panels(order, panels.p);

  std::vector<float> temperatures(padded, 1.0f), rates(padded, 1.0f);
  for (int64_t t = 0; t < rows; ++t) {
    if (temperature) temperatures[t] = data<float>(*temperature)[t];
    rates[t] = scalar::linear_sample_rate(temperatures[t]);
  }
  Buffer<float> block_max(rows * blocks), logits(workers() * kSampleBlock * kRows);
  Buffer<int64_t> weights(rows * blocks), tile_weights(rows * blocks * kTiles);
  const LinearSample f{in.head, order.rows(panels.p), rates.data(), temperatures.data(),
                       block_max.p, weights.p, tile_weights.p};
  const auto weigh = R1_DISPATCH(linear_sample_weigh);
  parallel(blocks, [&](int64_t block, int worker) {
    weigh(f, block, logits.p + worker * kSampleBlock * kRows);
  });

  Tensor token = new_empty(hidden, {rows}, ScalarType::Long);
  Tensor logprob = new_empty(hidden, {rows}, ScalarType::Float);
  const auto draw = R1_DISPATCH(linear_sample_draw);
  parallel(rows, [&](int64_t t, int) {
    const Sampled s = draw(f, t, data<double>(uniform)[t]);
    data<int64_t>(token)[t] = s.token;
    data<float>(logprob)[t] = s.logprob;
  });
  return {token, logprob};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "linear_sample_logprob(Tensor hidden, Tensor weight, Tensor uniform, Tensor? bias, "
      "Tensor? temperature, float logit_scale, float? softcap) -> (Tensor token, Tensor logprob)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("linear_sample_logprob", TORCH_BOX(&linear_sample_logprob));
}
}  // namespace r1
#endif
