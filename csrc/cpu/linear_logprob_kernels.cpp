// Kernels of linear_logprob: tiles of logits are made, used and forgotten (or kept, in the forward
// pass, for the backward pass). Lanes are rows, so every reduction over V is lane by lane.
#include <sys/mman.h>

#include "cpu/linear_logprob.h"
#include "cpu/parallel.h"

namespace r1::R1_ISA {
template <class T>
static inline int64_t stripe_units() { return kStripe / T::kPerUnit; }

// z [cols][kRows]: scaled logits of one block of rows and `cols` columns from v0 on.
template <class T>
static void logits_tile(const Head& h, const uint32_t* panel, int64_t lanes, int64_t v0,
                        int64_t cols, float* z) {
  gemm_panel<T>(cols, lanes, h.units, Left{h.weight + v0 * h.units, h.units, 1}, panel, z, kRows,
                false);
  const F inverse = splat(1.0f / h.temperature), scale = splat(h.logit_scale / h.temperature);
  if (!h.bias && h.softcap == 0 && h.logit_scale == h.temperature) return;
  for (int64_t v = 0; v < cols; ++v) {
    const F offset = splat(h.bias ? h.bias[v0 + v] : 0.0f);
    for (int64_t n = 0; n < lanes; n += kWidth) {
      float* p = z + v * kRows + n;
      F x = load(p) + offset;
      if (h.softcap != 0)
        x = tanh(x * splat(h.logit_scale / h.softcap)) * splat(h.softcap) * inverse;
      else
        x = x * scale;
      store(p, x);
    }
  }
}

// Derivative of a scaled logit with respect to the one before the softcap (without logit_scale
// and temperature, which are constants).
static inline F cap_slope(const Head& h, F z) {
  F t = z * splat(h.temperature / h.softcap);
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

static void merge(Statistics& into, int64_t n, F m, F sum, F weighted) {
  const F before = load(into.max + n), after = max(before, m);
  const F old = exp(before - after), add = exp(m - after), old_sum = load(into.sum + n);
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
      const F e = exp(d);
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

template <class T>
static void forward(const Forward& f) {
  constexpr int64_t kGroup = 16;  // blocks that share a stripe of the weight while it is in cache
  const int64_t tiles = ceil_div(f.head.columns, kCols), per_split = ceil_div(tiles, kSplits);
  const int64_t blocks = f.rows.blocks(), groups = ceil_div(blocks, kGroup);
  const int64_t panel = f.head.units * kRows, in_stripe = kStripe / kCols;
  parallel(kSplits * groups, [&](int64_t task, int) {
    alignas(64) float z[kCols * kRows];
    const int64_t split = task / groups, group = task % groups;
    const int64_t first = split * per_split, last = smaller(first + per_split, tiles);
    const int64_t begin = group * kGroup, end = smaller(begin + kGroup, blocks);
    for (int64_t b = begin; b < end; ++b) clear(f.statistics[split * blocks + b]);
    for (int64_t stripe = first; stripe < last; stripe += in_stripe)
      for (int64_t b = begin; b < end; ++b)
        for (int64_t tile = stripe; tile < smaller(stripe + in_stripe, last); ++tile) {
          const int64_t v0 = tile * kCols, cols = smaller(f.head.columns - v0, kCols);
          uint8_t* kept = b < f.kept_blocks ? f.kept + tile * f.kept_stride + b * Tile<T>::kBytes
                                            : nullptr;
          const int64_t lanes = kept ? kRows : f.rows.lanes(b);  // whole blocks are kept
          logits_tile<T>(f.head, f.rows.panels + b * panel, lanes, v0, cols, z);
          pick_targets(f.rows, b, z, v0, cols, f.target_logit);
          reduce_tile<T>(z, lanes, cols, f.want_entropy, &f.statistics[split * blocks + b], kept);
        }
  });
  parallel(blocks, [&](int64_t b, int) {  // in the order of the splits
    Statistics& total = f.statistics[b];
    for (int64_t split = 1; split < kSplits; ++split) {
      const Statistics& part = f.statistics[split * blocks + b];
      for (int64_t n = 0; n < kRows; n += kWidth)
        merge(total, n, load(part.max + n), load(part.sum + n), load(part.weighted + n));
    }
  });
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

template <class T>
static void frozen(const Frozen& f) {
  const Head& h = f.head;
  const int64_t panel = h.units * kRows, panels = h.lanes() / kPanel;
  parallel(f.rows.blocks(), [&](int64_t b, int) {
    clear(f.statistics[b]);
    memset(f.expected + b * kRows * h.lanes(), 0, sizeof(float) * kRows * h.lanes());
  });
  for (int64_t v0 = 0; v0 < h.columns; v0 += kStripe) {
    const int64_t cols = smaller(h.columns - v0, kStripe);
    parallel(panels, [&](int64_t p, int) { pack_weight<T>(h, v0, cols, p, f.packed_weight); });
    parallel(f.rows.blocks(), [&](int64_t b, int worker) {
      float* z = f.logits + worker * kStripe * kRows;
      uint32_t* products = f.products + worker * kStripe * kRows;
      float* expected = f.expected + b * kRows * h.lanes();
      const int64_t lanes = f.rows.lanes(b);
      Statistics& s = f.statistics[b];
      for (int64_t v = 0; v < cols; v += kCols)
        logits_tile<T>(h, f.rows.panels + b * panel, lanes, v0 + v, smaller(cols - v, kCols),
                       z + v * kRows);
      pick_targets(f.rows, b, z, v0, cols, f.target_logit);
      alignas(64) float rescale[kRows];
      bool moved = false;
      for (int64_t n = 0; n < lanes; n += kWidth) {
        const F before = load(s.max + n), after = max(before, column_maximum(z, cols, n));
        const F factor = exp(before - after), old = load(s.sum + n);
        F sum = old * factor, weighted = (load(s.weighted + n) + (before - after) * old) * factor;
        store(rescale + n, factor);
        store(s.max + n, after);
        for (int64_t v = 0; v < cols; v += T::kPerUnit) {
          F e[2] = {};
          for (int64_t i = 0; i < T::kPerUnit && v + i < cols; ++i) {
            const F logit = load(z + (v + i) * kRows + n);
            e[i] = exp(logit - after);
            sum = sum + e[i];
            if (f.want_entropy) weighted = weighted + e[i] * max(splat(-200.0f), logit - after);
            if (h.softcap != 0) e[i] = e[i] * cap_slope(h, logit);
          }
          store_as(products + v / T::kPerUnit * kRows + n, T::units(e[0], e[1]));
        }
        store(s.sum + n, sum);
        store(s.weighted + n, weighted);
      }
      for (int64_t lane = 0; lane < lanes; ++lane) {
        moved |= rescale[lane] != 1.0f;
        const int64_t v = f.rows.target[b * kRows + lane] - v0;
        if (v >= 0 && v < cols)
          T::set(products[v / T::kPerUnit * kRows + lane], v % T::kPerUnit, 0);
      }
      for (int64_t lane = 0; moved && lane < lanes; ++lane)
        for (int64_t j = 0; j < h.lanes(); j += kWidth) {
          float* p = expected + lane * h.lanes() + j;
          store(p, load(p) * splat(rescale[lane]));
        }
      gemm<T>(lanes, h.lanes(), ceil_div(cols, T::kPerUnit), Left{products, 1, kRows},
              f.packed_weight, expected, h.lanes(), true);
    });
  }
}

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
    auto gradient = [&](int64_t v) {
      const F logit = load(z + v * kRows + n), logp = logit - lse, p = exp(logp);
      F dz = -p * (g + e * (max(splat(-200.0f), logp) + entropy));
      return f.head.softcap != 0 ? dz * cap_slope(f.head, logit) : dz;
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
  if (!kept)
    logits_tile<T>(f.head, f.rows.panels + block * f.head.units * kRows, kRows, v0, cols, z);
  if (plain) {
    // Through the same rounding as a kept tile: what was kept must not change any gradient.
    alignas(64) uint8_t scratch[Tile<T>::kBytes];
    if (!kept) reduce_tile<T>(z, kRows, cols, false, nullptr, scratch);
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
      const float t = f.head.softcap != 0 ? logit * f.head.temperature / f.head.softcap : 0.0f;
      value -= f.dentropy[row0 + lane] * exp(splat(logp))[0] * (logp + f.entropies[row0 + lane]);
      value *= 1.0f - t * t;
    }
    out.store_one(v, lane, value);
  }
}

// Whole pages of [begin, end) are read for the last time: they become no memory at all.
static inline void give_back(uint8_t* begin, uint8_t* end) {
  constexpr uintptr_t kPage = 4096;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + kPage - 1) / kPage * kPage;
  const uintptr_t last = reinterpret_cast<uintptr_t>(end) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

template <class T>
static void backward(const Backward& f) {
  using Element = typename T::Element;
  const Head& h = f.head;
  const int64_t blocks = f.rows.blocks(), chunk_blocks = kChunk / kRows;
  const int64_t panels = h.lanes() / kPanel, row_units = blocks * kRows / T::kPerUnit;
  const int64_t stride = smaller(blocks, chunk_blocks) * kRows;  // elements of by_column
  uint8_t* used = f.kept_tiles;
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
          gemm_panel<T>(rows, kPanel, nb * kRows / T::kPerUnit,
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
    if (!used) continue;
    uint8_t* end = f.kept_tiles + (v0 / kCols + tiles) * f.kept_stride;
    give_back(used, end);
    used = end - (reinterpret_cast<uintptr_t>(end) % 4096);
  }
}

void linear_logprob_forward(const Forward& f) {
  f.head.bf16 ? forward<BF16>(f) : forward<F32>(f);
}
void linear_logprob_frozen(const Frozen& f) { f.head.bf16 ? frozen<BF16>(f) : frozen<F32>(f); }
void linear_logprob_backward(const Backward& f) {
  f.head.bf16 ? backward<BF16>(f) : backward<F32>(f);
}
}  // namespace r1::R1_ISA
