// linear_logprob_backward: the gradients of the logits, from kept tiles or from logits made again.
#include "cpu/head/linear_logprob_products.h"

namespace r1::R1_ISA {
// dz = -g·p for a plain head, from a kept tile.
template <class T>
static void decode_tile(const Backward& f, int64_t row0, int64_t cols, const uint8_t* kept,
                        const Gradients<T>& out) {
  const Tile<T> tile(const_cast<uint8_t*>(kept));
  for (int64_t n = 0; n < kRows; n += kWidth) {
    const F g = load(f.dlogprob + row0 + n);
    const F factor = -g * exp(load(tile.maxima + n) - load(f.lse + row0 + n));
    auto gradient = [&](int64_t v) {  // blank rows hold anything, even NaN
      return g != F{} ? T::load(tile.elements + v * kRows + n) * factor : F{};
    };
    for (int64_t v = 0; v < cols; v += T::kPerUnit) {
      const bool both = v + 1 < cols;
      const F low = gradient(v);
      out.store_pair(v, n, both, low, T::kPerUnit == 2 && both ? gradient(v + 1) : F{});
    }
  }
}

// dz = (-g·p - e·p·(log p + H))·slope of the softcap, from logits; g at the target comes later.
template <class T>
static void differentiate_tile(const Backward& f, int64_t row0, int64_t cols, const float* z,
                               const Gradients<T>& out) {
  for (int64_t n = 0; n < kRows; n += kWidth) {
    const F g = load(f.dlogprob + row0 + n), e = load(f.dentropy + row0 + n);
    const F lse = load(f.lse + row0 + n), entropy = load(f.entropies + row0 + n);
    const F per = per_factor(f.rows, row0 + n);
    auto gradient = [&](int64_t v) {
      const F logit = load(z + v * kRows + n), logp = logit - lse, p = exp(logp);
      F dz = -p * (g + e * (max(splat(-200.0f), logp) + entropy));
      return f.head.softcap != 0 ? dz * cap_slope(logit, per) : dz;
    };
    for (int64_t v = 0; v < cols; v += T::kPerUnit) {
      const bool both = v + 1 < cols;
      const F low = gradient(v);
      out.store_pair(v, n, both, low, T::kPerUnit == 2 && both ? gradient(v + 1) : F{});
    }
  }
}

template <class T>
static void gradient_tile(const Backward& f, int64_t block, int64_t v0, int64_t cols,
                          const Gradients<T>& out) {
  const int64_t row0 = block * kRows;
  alignas(64) float z[kCols * kRows];
  const bool plain = f.head.softcap == 0 && !f.entropy;
  const uint8_t* kept = f.kept[block] ? f.kept[block] + v0 / kCols * f.kept_stride : nullptr;
  const int64_t lanes = plain ? f.rows.lanes(block) : kRows;  // the padding is blank: g = 0
  if (!kept) logits_tile<T>(f.head, f.rows, block, lanes, v0, cols, z);
  if (plain) {
    // Through the same rounding as a kept tile: what was kept must not change any gradient.
    alignas(64) uint8_t scratch[Tile<T>::kBytes];
    if (!kept) reduce_tile<T>(z, lanes, cols, false, nullptr, scratch);
    decode_tile<T>(f, row0, cols, kept ? kept : scratch, out);
  } else {
    differentiate_tile<T>(f, row0, cols, z, out);
  }
  for (int64_t lane = 0; lane < f.rows.lanes(block); ++lane) {
    const int64_t v = f.rows.target[row0 + lane] - v0;
    if (v < 0 || v >= cols) continue;
    float value = f.dtarget[row0 + lane];
    if (!plain) {
      const float logit = z[v * kRows + lane], logp = logit - f.lse[row0 + lane];
      const float t = f.head.softcap != 0 ? logit / f.rows.factor[row0 + lane] : 0.0f;
      const float p = exp(splat(logp))[0];  // at −inf nothing is left of p·log p
      value -= f.dentropy[row0 + lane] * p * ((p == 0 ? 0.0f : logp) + f.entropies[row0 + lane]);
      value *= 1.0f - t * t;
    }
    out.store_one(v, lane, value);
  }
  turn<T>(out.by_row, ceil_div(cols, T::kPerUnit));
}

template <class T>
static void backward(const Backward& f) {
  multiply_gradients<T>(f, [&](int64_t block, int64_t v0, int64_t cols, const Gradients<T>& out) {
    gradient_tile<T>(f, block, v0, cols, out);
  });
}

void linear_logprob_backward(const Backward& f) {
  f.head.bf16 ? backward<BF16>(f) : backward<F32>(f);
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/head/linear_logprob_rows.h"
#include "cpu/common/outputs.h"

R1_DECLARE(void linear_logprob_backward(const Backward&))

namespace r1 {
namespace {
std::tuple<Tensor, Tensor, Tensor> linear_logprob_backward(
    Tensor dlogprob, Tensor dentropy, Tensor hidden, Tensor weight, Tensor target,
    OptionalTensor bias, OptionalTensor keep, Tensor logprob, Tensor lse, Tensor entropy,
    Tensor kept, OptionalTensor temperature, double logit_scale, std::optional<double> softcap,
    bool entropy_grad, int64_t ignore_index, bool sharded, bool need_hidden, bool need_weight,
    bool need_bias) {
  const Inputs in(hidden, weight, target, bias, keep, temperature, logit_scale, softcap,
                  ignore_index, sharded);
  const Head& h = in.head;
  const int64_t rows = hidden.size(0);
  auto floats = [](const Tensor& t) { return to_dtype(t, ScalarType::Float); };
  const Tensor g = floats(dlogprob), e = floats(dentropy), lp = floats(logprob), l = floats(lse);
  const Tensor entropies = floats(entropy);
  constexpr const char* op = "linear_logprob_backward";
  expect_numel(op, "dlogprob", g, rows);
  expect_numel(op, "logprob", lp, rows);
  expect_numel(op, "lse", l, rows);
  if (entropy_grad && e.numel() > 0) {
    expect_numel(op, "dentropy", e, rows);
    expect_numel(op, "entropy", entropies, rows);
  }
  const Kept tiles = Kept::of(op, kept, h);
  entropy_grad = entropy_grad && e.numel() > 0;

  auto keeps = [&](int64_t t) { return !in.ignored(t) && in.keeps(t); };
  auto has_gradient = [&](int64_t t) {
    return !in.ignored(t) &&
           (data<float>(g)[t] != 0 || (entropy_grad && data<float>(e)[t] != 0));
  };
  Order taken(in);
  const auto kept_of_block =
      take_rows(taken, tiles, keeps, has_gradient, [&](int64_t t) { return in.target(t); });
  const int64_t padded = taken.padded();

  std::vector<float> row_g(padded), row_e(padded), row_target(padded), row_lse(padded),
      row_entropy(padded);
  for (int64_t i = 0; i < taken.size(); ++i) {
    const int64_t t = taken.index[i];
    if (t < 0) continue;
    const float alpha = h.logit_scale / in.temperature_of(t);
    row_g[i] = alpha * data<float>(g)[t];
    row_target[i] = row_g[i] * -std::expm1(data<float>(lp)[t]);
    row_lse[i] = data<float>(l)[t];
    if (!entropy_grad) continue;
    row_e[i] = alpha * data<float>(e)[t];
    row_entropy[i] = data<float>(entropies)[t];
  }

  const HeadGradients gradients(taken, need_hidden, need_weight, need_bias);
  R1_DISPATCH(linear_logprob_backward)(Backward{
      gradients.products(), entropy_grad, row_g.data(), row_e.data(), row_target.data(),
      row_lse.data(), row_entropy.data(), kept_of_block.data(), tiles.stride});
  return gradients.finished();
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "linear_logprob_backward(Tensor dlogprob, Tensor dentropy, Tensor hidden, Tensor weight, "
      "Tensor target, Tensor? bias, Tensor? keep, Tensor logprob, Tensor lse, Tensor entropy, "
      "Tensor kept, Tensor? temperature, float logit_scale, float? softcap, bool entropy_grad, "
      "int ignore_index, bool sharded, bool need_hidden, bool need_weight, bool need_bias) "
      "-> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("linear_logprob_backward", TORCH_BOX(&linear_logprob_backward));
}
}  // namespace r1
#endif
