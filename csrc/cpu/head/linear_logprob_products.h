// From the gradients of logits to those of hidden, weight and bias: a stripe of the vocabulary at a
// time, of which the gradients exist as both operands of the products that follow.
#pragma once

#include "cpu/common/parallel.h"
#include "cpu/head/linear_logprob_tile.h"

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

// make_tile(block, first column, columns, Gradients<T>) makes a tile of the gradients of the logits.
// Stripe of columns by stripe, chunk of rows by chunk: all tiles, then all products with them.
template <class T, class MakeTile>
static void multiply_gradients(const Products& f, const MakeTile& make_tile) {
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
        make_tile(b0 + b, v0 + v, width, out);
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
}  // namespace r1::R1_ISA
