// The forward pass of linear_logprob that makes the gradient of hidden too, for a frozen head: the
// expected row of the weight is gathered like attention with the weight as keys and as values.
#include "cpu/head/linear_logprob_tile.h"
#include "cpu/common/parallel.h"

namespace r1::R1_ISA {
template <class T>
static void frozen(const Frozen& f) {
  const Head& h = f.head;
  const int64_t panels = h.lanes() / kPanel;
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
        logits_tile<T>(h, f.rows, b, lanes, v0 + v, smaller(cols - v, kCols), z + v * kRows);
      pick_targets(f.rows, b, z, v0, cols, f.target_logit);
      alignas(64) float rescale[kRows];
      bool moved = false;
      for (int64_t n = 0; n < lanes; n += kWidth) {
        const F before = load(s.max + n), after = max(before, column_maximum(z, cols, n));
        const F factor = exp_nonpositive(before - after), old = load(s.sum + n);
        const F per = per_factor(f.rows, b * kRows + n);
        store(rescale + n, factor);
        store(s.max + n, after);
        F sum{}, weighted{};
        // Each tile is summed from zero: one chain over V would round as often as V has columns.
        for (int64_t first = 0; first < cols; first += kCols) {
          F part{}, weighted_part{};
          for (int64_t v = first; v < smaller(first + kCols, cols); v += T::kPerUnit) {
            F e[2] = {};
            for (int64_t i = 0; i < T::kPerUnit && v + i < cols; ++i) {
              const F logit = load(z + (v + i) * kRows + n);
              e[i] = exp_nonpositive(logit - after);
              part = part + e[i];
              if (f.want_entropy)
                weighted_part = weighted_part + e[i] * max(splat(-200.0f), logit - after);
              if (h.softcap != 0) e[i] = e[i] * cap_slope(logit, per);
            }
            store_as(products + v / T::kPerUnit * kRows + n, T::units(e[0], e[1]));
          }
          sum = sum + part;
          weighted = weighted + weighted_part;
        }
        store(s.sum + n, old * factor + sum);
        store(s.weighted + n,
              (load(s.weighted + n) + (before - after) * old) * factor + weighted);
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
      turn<T>(products, ceil_div(cols, T::kPerUnit));
      gemm<T>(lanes, h.lanes(), ceil_div(cols, T::kPerUnit), Left{products, 1, kRows},
              f.packed_weight, expected, h.lanes(), true);
    });
  }
}

void linear_logprob_frozen(const Frozen& f) { f.head.bf16 ? frozen<BF16>(f) : frozen<F32>(f); }
}  // namespace r1::R1_ISA
