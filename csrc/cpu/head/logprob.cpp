// logprob and its backward pass: one read of a row of logits, and one write of its gradient.
#include "cpu/head/logprob.h"

#include <math.h>

#include "cpu/common/simd.h"

namespace r1::R1_ISA {
namespace {
constexpr int64_t kBlock = 1024;  // columns at a time: they stay in the first-level cache
static_assert(kBlock % kWidth == 0);

// Scaled logits [at, at + kBlock) of a row in fp32, with -inf after its end.
inline int64_t load_block(const LogitFormat& f, const void* row, float temperature, int64_t at,
                          float* z) {
  const int64_t count = f.columns - at < kBlock ? f.columns - at : kBlock;
  const float* wide = static_cast<const float*>(row) + at;
  const uint16_t* narrow = static_cast<const uint16_t*>(row) + at;
  const F scale = splat(f.logit_scale), per_temperature = splat(1.0f / temperature);
  const F cap = splat(f.softcap), per_cap = splat(f.softcap != 0 ? 1.0f / f.softcap : 0.0f);
  for (int64_t i = 0; i < count; i += kWidth) {
    F v;
    if (i + kWidth <= count) {
      v = f.bf16 ? load_bf16(narrow + i) : load(wide + i);
    } else {
      float tail[kWidth];
      for (int64_t j = 0; j < kWidth; ++j)
        tail[j] = i + j >= count ? -INFINITY : f.bf16 ? bf16_to_float(narrow[i + j]) : wide[i + j];
      v = load(tail);
    }
    v = v * scale;
    if (f.softcap != 0) v = tanh(v * per_cap) * cap;
    store(z + i, v * per_temperature);
  }
  for (int64_t i = count; i % kWidth != 0; ++i) z[i] = -INFINITY;
  return count;
}
}  // namespace

RowStatistics logprob_row(const LogitFormat& f, const void* row, const RowOptions& options,
                          bool entropy) {
  const int64_t target = options.target;
  float z[kBlock], max_logit = -INFINITY, target_logit = 0;
  double total = 0, weighted = 0;  // Σ e^(z - max_logit), Σ e^(z - max_logit)·(z - max_logit)
  for (int64_t at = 0; at < f.columns; at += kBlock) {
    const int64_t count = load_block(f, row, options.temperature, at, z);
    if (target >= at && target < at + count) target_logit = z[target - at];
    F lanes = load(z);
    for (int64_t i = kWidth; i < count; i += kWidth) lanes = max(lanes, load(z + i));
    float best = max_logit;
    for (int i = 0; i < kWidth; ++i) best = lanes[i] > best ? lanes[i] : best;
    if (best > max_logit && total > 0) {
      const double shift = double(max_logit) - best, factor = ::exp(shift);
      weighted = (weighted + total * shift) * factor;
      total *= factor;
    }
    max_logit = best;
    const F centre = splat(max_logit > -INFINITY ? max_logit : 0.0f);
    F block_total{}, block_weighted{};
    for (int64_t i = 0; i < count; i += kWidth) {
      const F x = load(z + i) - centre, e = exp_nonpositive(x);
      block_total += e;
      if (entropy) block_weighted += e > splat(0.0f) ? e * x : splat(0.0f);
    }
    total += sum(block_total);
    weighted += sum(block_weighted);
  }
  const double log_total = ::log(total);
  return {static_cast<float>((double(target_logit) - max_logit) - log_total),
          static_cast<float>(max_logit + log_total),
          static_cast<float>(log_total - weighted / total)};
}

void logprob_backward_row(const LogitFormat& f, const void* row, const RowOptions& options,
                          const RowGradient& r, void* gradient) {
  const int64_t target = options.target;
  float z[kBlock], dz[kBlock];
  const F g = splat(r.dlogprob), e = splat(r.dentropy), lse = splat(r.lse), h = splat(r.entropy);
  const float alpha = f.logit_scale / options.temperature;
  const float per_cap = f.softcap != 0 ? options.temperature / f.softcap : 0.0f;
  for (int64_t at = 0; at < f.columns; at += kBlock) {
    const int64_t count = load_block(f, row, options.temperature, at, z);
    for (int64_t i = 0; i < count; i += kWidth) {
      const F v = load(z + i), logp = v - lse, p = exp(logp);
      F d = -g * p;
      if (r.dentropy != 0) d = d - e * p * ((p > splat(0.0f) ? logp : splat(0.0f)) + h);
      if (f.softcap != 0) d = d * (splat(1.0f) - v * v * splat(per_cap * per_cap));
      store(dz + i, d * splat(alpha));
    }
    if (target >= at && target < at + count) {  // 1 - p without cancellation
      const float v = z[target - at], logp = v - r.lse, p = ::expf(logp);
      float d = -r.dlogprob * ::expm1f(logp);
      if (r.dentropy != 0) d -= r.dentropy * p * ((p > 0 ? logp : 0.0f) + r.entropy);
      const float bent = f.softcap != 0 ? v * per_cap : 0.0f;  // the logit may be -inf
      dz[target - at] = d * alpha * (1 - bent * bent);
    }
    if (!f.bf16) {
      memcpy(static_cast<float*>(gradient) + at, dz, count * sizeof(float));
      continue;
    }
    uint16_t* out = static_cast<uint16_t*>(gradient) + at;
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) store_bf16(out + i, load(dz + i));
    for (; i < count; ++i) out[i] = float_to_bf16(dz[i]);
  }
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "common/op.h"
#include "cpu/common/parallel.h"

namespace r1 {
namespace {
struct Logits {
  Tensor logits, target;
  std::optional<Tensor> temperature;
  LogitFormat format;
  int64_t rows, row_bytes;

  Logits(const Tensor& z, const Tensor& y, const std::optional<Tensor>& row_temperature,
         double logit_scale, std::optional<double> softcap)
      : logits(dense(z)), target(to_dtype(y, ScalarType::Long)) {
    R1_CHECK(z.dim() == 2 && y.dim() == 1 && y.size(0) == z.size(0),
             "logprob: target: expected one for each row of logits");
    rows = z.size(0);
    R1_CHECK(z.size(1) > 0, "logprob: logits: expected V ≥ 1, got 0");
    if (row_temperature) {
      R1_CHECK(row_temperature->dim() == 1 && row_temperature->size(0) == rows,
               "logprob: temperature: expected one for each row of logits");
      temperature = to_dtype(*row_temperature, ScalarType::Float);
    }
    format = {is_bf16(z), z.size(1), static_cast<float>(logit_scale),
              static_cast<float>(softcap.value_or(0.0))};
    row_bytes = format.columns * (format.bf16 ? 2 : 4);
    for (int64_t t = 0; t < rows; ++t)
      R1_CHECK(column(t) >= 0 && column(t) < format.columns, "logprob: target[", t,
               "]: expected 0 ≤ target < ", format.columns, ", got ", column(t));
  }
  const char* row(int64_t t) const { return data<char>(logits) + t * row_bytes; }
  int64_t column(int64_t t) const { return data<int64_t>(target)[t]; }
  RowOptions options(int64_t t) const {
    return {column(t), temperature ? data<float>(*temperature)[t] : 1.0f};
  }
};

std::tuple<Tensor, Tensor, Tensor> logprob(Tensor logits, Tensor target,
                                           std::optional<Tensor> temperature, double logit_scale,
                                           std::optional<double> softcap, bool want_entropy) {
  const Logits in(logits, target, temperature, logit_scale, softcap);
  Tensor value = new_empty(logits, {in.rows}, ScalarType::Float);
  Tensor lse = new_empty(logits, {in.rows}, ScalarType::Float);
  Tensor entropy = new_empty(logits, {want_entropy ? in.rows : 0}, ScalarType::Float);
  const auto kernel = R1_DISPATCH(logprob_row);
  parallel(in.rows, [&](int64_t t, int) {
    const RowStatistics row = kernel(in.format, in.row(t), in.options(t), want_entropy);
    data<float>(value)[t] = row.logprob;
    data<float>(lse)[t] = row.lse;
    if (want_entropy) data<float>(entropy)[t] = row.entropy;
  });
  return {value, entropy, lse};
}

Tensor logprob_backward(Tensor dlogprob, Tensor dentropy, Tensor logits, Tensor target, Tensor lse,
                        Tensor entropy, std::optional<Tensor> temperature, double logit_scale,
                        std::optional<double> softcap) {
  const Logits in(logits, target, temperature, logit_scale, softcap);
  auto floats = [](const Tensor& t) { return to_dtype(t, ScalarType::Float); };
  const Tensor g = floats(dlogprob), e = floats(dentropy), l = floats(lse), h = floats(entropy);
  const bool with_entropy = e.numel() > 0;
  constexpr const char* op = "logprob_backward";
  expect_numel(op, "dlogprob", g, in.rows);
  expect_numel(op, "lse", l, in.rows);
  if (with_entropy) expect_numel(op, "dentropy", e, in.rows);
  if (with_entropy) expect_numel(op, "entropy", h, in.rows);
  Tensor dlogits = new_empty(logits, {in.rows, in.format.columns}, logits.scalar_type());
  const auto kernel = R1_DISPATCH(logprob_backward_row);
  parallel(in.rows, [&](int64_t t, int) {
    RowGradient row{data<float>(g)[t], 0, data<float>(l)[t], 0};
    if (with_entropy) row.dentropy = data<float>(e)[t], row.entropy = data<float>(h)[t];
    char* out = data<char>(dlogits) + t * in.row_bytes;
    if (row.dlogprob == 0 && row.dentropy == 0)
      memset(out, 0, in.row_bytes);
    else
      kernel(in.format, in.row(t), in.options(t), row, out);
  });
  return dlogits;
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "logprob(Tensor logits, Tensor target, Tensor? temperature, float logit_scale, "
      "float? softcap, bool want_entropy) -> (Tensor, Tensor, Tensor)");
  m.def(
      "logprob_backward(Tensor dlogprob, Tensor dentropy, Tensor logits, Tensor target, "
      "Tensor lse, Tensor entropy, Tensor? temperature, float logit_scale, float? softcap) "
      "-> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("logprob", TORCH_BOX(&logprob));
  m.impl("logprob_backward", TORCH_BOX(&logprob_backward));
}
}  // namespace r1
#endif
