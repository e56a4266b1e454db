// Tiles of logits, as the kernels of linear_logprob share them. Lanes are rows, so every reduction
// over V is lane by lane.
#pragma once

#include "cpu/head/linear_logprob.h"

namespace r1::R1_ISA {
// z [cols][kRows]: scaled logits of one block of rows and `cols` columns from v0 on. The weight that
// lies `ahead` units after theirs is fetched meanwhile.
template <class T>
static void logits_tile(const Head& h, const Rows& rows, int64_t block, int64_t lanes, int64_t v0,
                        int64_t cols, float* z, int64_t ahead = 0) {
  gemm_panel<T>(cols, lanes, h.units, Left{h.weight + v0 * h.units, h.units, 1, ahead},
                rows.panels + block * h.units * kRows, z, kRows, false);
  if (h.plain) return;
  const float* factor = rows.factor + block * kRows;
  for (int64_t v = 0; v < cols; ++v) {
    const F offset = splat(h.bias ? h.bias[v0 + v] : 0.0f);
    for (int64_t n = 0; n < lanes; n += kWidth) {
      float* p = z + v * kRows + n;
      F x = load(p) + offset;
      if (h.softcap != 0) x = tanh(x * splat(h.logit_scale / h.softcap));
      store(p, x * load(factor + n));
    }
  }
}

// The tanh of the softcap is a scaled logit times this.
static inline F per_factor(const Rows& rows, int64_t row0) {
  return splat(1.0f) / load(rows.factor + row0);
}

// Derivative of a scaled logit with respect to the one before the softcap, without the factors
// that are the same for the whole row.
static inline F cap_slope(F z, F per_factor) {
  const F t = z * per_factor;
  return splat(1.0f) - t * t;
}

static inline F column_maximum(const float* z, int64_t cols, int64_t n) {
  F m = splat(kLow);
  for (int64_t v = 0; v < cols; ++v) m = max(m, load(z + v * kRows + n));
  return m;
}

static inline void clear(Statistics& s) {
  for (int64_t n = 0; n < kRows; n += kWidth) {
    store(s.max + n, splat(kLow));
    store(s.sum + n, F{});
    store(s.weighted + n, F{});
  }
}

static inline void merge(Statistics& into, int64_t n, F m, F sum, F weighted) {
  const F before = load(into.max + n), after = max(before, m);
  const F old = exp_nonpositive(before - after), add = exp_nonpositive(m - after), old_sum = load(into.sum + n);
  store(into.max + n, after);
  store(into.weighted + n, old * (load(into.weighted + n) + (before - after) * old_sum) +
                               add * (weighted + (m - after) * sum));
  store(into.sum + n, old * old_sum + add * sum);
}

// A tile as it is kept: e^(z - m) with m the tile's maximum of the row, then the maxima.
template <class T>
struct Tile {
  using Element = typename T::Element;
  static constexpr int64_t kBytes = kRows * (kCols * sizeof(Element) + sizeof(float));
  Element* elements;
  float* maxima;
  explicit Tile(uint8_t* p)
      : elements(reinterpret_cast<Element*>(p)),
        maxima(reinterpret_cast<float*>(p + kRows * kCols * sizeof(Element))) {}
};

// Exponentials of a tile of logits: into the statistics and, if asked, into a kept tile.
template <class T>
static void reduce_tile(const float* z, int64_t lanes, int64_t cols, bool weighted,
                        Statistics* statistics, uint8_t* kept) {
  for (int64_t n = 0; n < lanes; n += kWidth) {
    const F m = column_maximum(z, cols, n);
    F sum{}, products{};
    for (int64_t v = 0; v < cols; ++v) {
      const F d = load(z + v * kRows + n) - m;
      const F e = exp_nonpositive(d);
      sum = sum + e;
      if (weighted) products = products + e * max(splat(-200.0f), d);
      if (kept) T::store(Tile<T>(kept).elements + v * kRows + n, e);
    }
    if (kept) store(Tile<T>(kept).maxima + n, m);
    if (statistics) merge(*statistics, n, m, sum, products);
  }
}

static inline void pick_targets(const Rows& rows, int64_t block, const float* z, int64_t v0,
                                int64_t cols, float* target_logit) {
  for (int64_t lane = 0; lane < rows.lanes(block); ++lane) {
    const int64_t v = rows.target[block * kRows + lane] - v0;
    if (v >= 0 && v < cols) target_logit[block * kRows + lane] = z[v * kRows + lane];
  }
}

// Rows [v0, v0 + cols) of the weight as a right operand: [panel of H][unit of v][kPanel].
template <class T>
static void pack_weight(const Head& h, int64_t v0, int64_t cols, int64_t panel, uint32_t* packed) {
  const int64_t depth = ceil_div(cols, T::kPerUnit), j0 = panel * kPanel;
  const auto* weight = reinterpret_cast<const typename T::Element*>(h.weight);
  const int64_t row = h.units * T::kPerUnit, lanes = smaller(h.width - j0, kPanel);
  uint32_t* out = packed + panel * depth * kPanel;
  for (int64_t k = 0; k < depth; ++k, out += kPanel) {
    const auto* low = weight + (v0 + k * T::kPerUnit) * row + j0;
    const bool paired = T::kPerUnit == 2 && k * 2 + 1 < cols;
    int64_t n = 0;
    for (; n + kWidth <= lanes; n += kWidth)
      store_as(out + n, T::units(T::load(low + n), paired ? T::load(low + row + n) : F{}));
    for (; n < kPanel; ++n) {
      float one = n < lanes ? T::scalar(low[n]) : 0.0f;
      float two = n < lanes && paired ? T::scalar(low[row + n]) : 0.0f;
      out[n] = T::unit(one, two);
    }
  }
}
}  // namespace r1::R1_ISA
