// linear_logprob_backward: the gradient of a stripe of logits, then both products with it.
#include "cpu/head/linear_logprob_tile.h"
#include "cpu/common/parallel.h"

namespace r1::R1_ISA {
template <class T>
static inline int64_t stripe_units() { return kStripe / T::kPerUnit; }

// Where one tile of logit gradients goes: both operands of the products that follow.
template <class T>
struct Gradients {
  uint32_t* by_row;                  // [unit of column][kRows]
  typename T::Element* by_column;    // [column][stride]
  int64_t stride;
  float* sums;                       // [column] or null

  void store_pair(int64_t v, int64_t n, bool both, F low, F high) const {
    store_as(by_row + v / T::kPerUnit * kRows + n, T::units(low, high));
    T::store(by_column + v * stride + n, low);
    if (T::kPerUnit == 2 && both) T::store(by_column + (v + 1) * stride + n, high);
    if (sums) sums[v] += total(low);
    if (sums && T::kPerUnit == 2 && both) sums[v + 1] += total(high);
  }
  void store_one(int64_t v, int64_t lane, float value) const {
    const auto element = T::element(value);
    if (sums) sums[v] += value - T::scalar(by_column[v * stride + lane]);
    by_column[v * stride + lane] = element;
    T::set(by_row[v / T::kPerUnit * kRows + lane], v % T::kPerUnit, element);
  }
  static float total(F v) {
    float parts[kWidth], sum = 0;
    store(parts, v);
    for (float part : parts) sum += part;
    return sum;
  }
};

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
  using Element = typename T::Element;
  const Head& h = f.head;
  const int64_t blocks = f.rows.blocks(), chunk_blocks = kChunk / kRows;
  const int64_t panels = h.lanes() / kPanel, row_units = blocks * kRows / T::kPerUnit;
  const int64_t stride = smaller(blocks, chunk_blocks) * kRows;  // elements of by_column
  for (int64_t v0 = 0; v0 < h.columns; v0 += kStripe) {
    const int64_t cols = smaller(h.columns - v0, kStripe), tiles = ceil_div(cols, kCols);
    for (int64_t b0 = 0; b0 == 0 || b0 < blocks; b0 += chunk_blocks) {
      const int64_t nb = smaller(blocks - b0, chunk_blocks);
      const bool first = b0 == 0, last = b0 + nb == blocks;
      const int64_t packs = f.dhidden && first ? panels : 0;
      parallel(packs + tiles * nb, [&](int64_t task, int) {
        if (task < packs) return pack_weight<T>(h, v0, cols, task, f.packed_weight);
        const int64_t b = (task - packs) / tiles, v = (task - packs) % tiles * kCols;
        float* sums = f.bias_parts ? f.bias_parts + b * kStripe + v : nullptr;
        const int64_t width = smaller(cols - v, kCols);
        for (int64_t i = 0; sums && i < width; ++i) sums[i] = 0;
        Gradients<T> out{
            f.by_row + (b * stripe_units<T>() + v / T::kPerUnit) * kRows,
            reinterpret_cast<Element*>(f.by_column) + v * stride + b * kRows, stride, sums};
        gradient_tile<T>(f, b0 + b, v0 + v, width, out);
      });
      const int64_t weight_tasks = f.dweight ? tiles * panels : 0;
      const int64_t hidden_tasks = f.dhidden ? nb * panels : 0;
      parallel(weight_tasks + hidden_tasks + (f.bias_parts ? 1 : 0), [&](int64_t task, int) {
        if (task < weight_tasks) {
          alignas(64) float own[kCols * kPanel];
          const int64_t v = task % tiles * kCols, p = task / tiles, j0 = p * kPanel;
          const int64_t rows = smaller(cols - v, kCols);
          float* c = f.dweight_sums ? f.dweight_sums + v * h.lanes() + j0 : own;
          const int64_t ldc = f.dweight_sums ? h.lanes() : kPanel;
          const int64_t depth = smaller(nb * kRows, f.rows.count - b0 * kRows);
          gemm_panel<T>(rows, kPanel, ceil_div(depth, T::kPerUnit),
                        Left{f.by_column + v * stride / T::kPerUnit, stride / T::kPerUnit, 1},
                        f.row_pairs + (p * row_units + b0 * kRows / T::kPerUnit) * kPanel, c, ldc,
                        !first);
          if (!last) return;
          auto* out = static_cast<Element*>(f.dweight) + (v0 + v) * h.width + j0;
          const int64_t lanes = smaller(h.width - j0, kPanel);
          for (int64_t r = 0; r < rows; ++r, out += h.width, c += ldc) {
            int64_t j = 0;
            for (; j + kWidth <= lanes; j += kWidth) T::store(out + j, load(c + j));
            for (; j < lanes; ++j) out[j] = T::element(c[j]);
          }
        } else if (task < weight_tasks + hidden_tasks) {
          const int64_t b = (task - weight_tasks) / panels, p = (task - weight_tasks) % panels;
          const int64_t depth = ceil_div(cols, T::kPerUnit);
          gemm_panel<T>(f.rows.lanes(b0 + b), kPanel, depth,
                        Left{f.by_row + b * stripe_units<T>() * kRows, 1, kRows},
                        f.packed_weight + p * depth * kPanel,
                        f.dhidden + (b0 + b) * kRows * h.lanes() + p * kPanel, h.lanes(), v0 > 0);
        } else {
          for (int64_t v = 0; v < cols; ++v) {
            float sum = first ? 0.0f : f.dbias[v0 + v];
            for (int64_t b = 0; b < nb; ++b) sum += f.bias_parts[b * kStripe + v];
            f.dbias[v0 + v] = sum;
          }
        }
      });
    }
  }
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
  const int64_t rows = hidden.size(0), per_unit = h.bf16 ? 2 : 1;
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
  const Kept tiles = Kept::of(kept, h);
  entropy_grad = entropy_grad && e.numel() > 0;

  // Blocks that were kept come first, as they were; then every other row with a gradient.
  const int64_t kept_rows = tiles.blocks * kRows;
  Order order(in), others(in), taken(in);
  auto has_gradient = [&](int64_t t) {
    return data<float>(g)[t] != 0 || (entropy_grad && data<float>(e)[t] != 0);
  };
  for (int64_t t = 0; t < rows; ++t) {
    if (in.ignored(t)) continue;
    if (order.size() < kept_rows && in.keeps(t)) order.add(t);
    else if (has_gradient(t)) others.add(t);
  }
  std::vector<const uint8_t*> kept_of_block;
  for (int64_t b = 0; b < order.size(); b += kRows) {  // leave out blocks without any gradient
    const int64_t end = smaller(b + kRows, order.size());
    bool any = false;
    for (int64_t i = b; i < end; ++i) any |= has_gradient(order.index[i]);
    if (!any) continue;
    for (int64_t i = b; i < end; ++i)
      if (has_gradient(order.index[i])) taken.add(order.index[i]);
      else taken.add_blank();
    // A row outside `keep` has a gradient after all, such as NaN: it follows in a block of its own.
    for (int64_t i = end; others.size() > 0 && i < b + kRows; ++i) taken.add_blank();
    kept_of_block.push_back(tiles.tiles() + b / kRows * Kept::tile_bytes(h));
  }
  for (int64_t t : others.index) taken.add(t);
  const int64_t padded = taken.padded(), blocks = padded / kRows;
  kept_of_block.resize(blocks, nullptr);

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

  Tensor dhidden = need_hidden
                       ? torch::stable::new_zeros(hidden, {rows, h.width})
                       : new_empty(hidden, {0, h.width}, hidden.scalar_type());
  Tensor dweight = new_output(weight, {need_weight ? h.columns : 0, h.width});
  Tensor dbias = new_empty(weight, {need_bias ? h.columns : 0}, ScalarType::Float);
  const int64_t chunk = smaller(padded, kChunk);
  Buffer<uint32_t> panels(padded * h.units), pairs(need_weight ? padded / per_unit * h.lanes() : 0);
  Buffer<uint32_t> packed(need_hidden ? kStripe / per_unit * h.lanes() : 0);
  Buffer<uint32_t> by_row(chunk * kStripe / per_unit), by_column(chunk * kStripe / per_unit);
  Buffer<float> bias_parts(need_bias ? chunk / kRows * kStripe : 0);
  Buffer<float> dhidden_sums(need_hidden ? padded * h.lanes() : 0);
  Buffer<float> dweight_sums(need_weight && padded > chunk ? kStripe * h.lanes() : 0);
  pack_panels(taken, panels.p);
  if (need_weight) pack_row_pairs(taken, pairs.p);
  R1_DISPATCH(linear_logprob_backward)(Backward{
      h, taken.rows(panels.p), entropy_grad, row_g.data(), row_e.data(), row_target.data(),
      row_lse.data(), row_entropy.data(), kept_of_block.data(),
      tiles.stride, pairs.p,
      need_hidden ? packed.p : nullptr, by_row.p, by_column.p, need_bias ? bias_parts.p : nullptr,
      need_hidden ? dhidden_sums.p : nullptr,
      need_weight && padded > chunk ? dweight_sums.p : nullptr,
      need_weight ? data<void>(dweight) : nullptr, data<float>(dbias)});
  if (need_hidden)
    parallel(taken.size(), [&](int64_t i, int) {
      if (taken.index[i] >= 0)
        store_row(data<void>(dhidden), h.bf16, taken.index[i] * h.width,
                  dhidden_sums.p + i * h.lanes(), h.width);
    });
  if (weight.scalar_type() != ScalarType::Float)
    dbias = torch::stable::to(dbias, weight.scalar_type());
  return {dhidden, dweight, dbias};
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
