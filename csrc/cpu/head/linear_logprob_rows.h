// What linear_logprob and its backward pass do around the kernels: checks of the arguments, the
// order of the rows, operands packed for gemm.h, and the memory of what is kept between the passes.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <tuple>
#include <vector>

#include "cpu/head/linear_logprob.h"
#include "cpu/common/outputs.h"
#include "cpu/common/parallel.h"
#include "cpu/common/rows.h"

namespace r1 {
namespace {  // Tensor itself is hidden in each library
// Kept tiles, [column of tiles][block], side by side at the beginning of memory for as many rows as
// may be kept: what fewer leave is never touched. At the end, how many blocks there are: other backends
// keep none, and the logits are then made again, through the same rounding.
struct Kept {
  static constexpr int64_t kState = 64;
  int64_t blocks, bytes, stride;  // bytes of a tile, and from one column of tiles to the next
  Tensor tensor;

  // `each`: matrices that a tile holds.
  static int64_t tile_bytes(const Head& h, int64_t each) {
    return each * kRows * (kCols * (h.bf16 ? 2 : 4) + 4);
  }
  // For at most `rows` rows, of which `blocks` blocks come.
  static Kept make(const Tensor& like, const Head& h, int64_t rows, int64_t blocks, int64_t each = 1) {
    const int64_t bytes = tile_bytes(h, each), most = rows / kRows * ceil_div(h.columns, kCols) * bytes;
    Kept kept{smaller(blocks, rows / kRows), bytes, 0,
              new_output(like, {most + kState}, ScalarType::Byte)};
    kept.stride = kept.blocks * bytes;
    std::memcpy(kept.state(), &kept.blocks, sizeof(kept.blocks));
    return kept;
  }
  static Kept of(const char* op, const Tensor& tensor, const Head& h, int64_t each = 1) {
    R1_CHECK(tensor.scalar_type() == ScalarType::Byte && tensor.numel() >= kState, op,
             ": kept: expected what the forward pass gave");
    Kept kept{0, tile_bytes(h, each), 0, dense(tensor)};
    std::memcpy(&kept.blocks, kept.state(), sizeof(kept.blocks));
    const int64_t most = (tensor.numel() - kState) / (ceil_div(h.columns, kCols) * kept.bytes);
    R1_CHECK(kept.blocks >= 0 && kept.blocks <= most, op,
             ": kept: expected what the forward pass gave of this head");
    kept.stride = kept.blocks * kept.bytes;
    return kept;
  }
  uint8_t* tiles() const { return data<uint8_t>(tensor); }
  const uint8_t* block(int64_t b) const { return tiles() + b * bytes; }
  uint8_t* state() const { return tiles() + tensor.numel() - kState; }
};

// The layer that a call was given, checked, as its kernels take it.
struct Layer {
  Tensor hidden, weight;
  OptionalTensor bias, temperature;
  Head head;
  int64_t rows;

  Layer(const char* op, const Tensor& h, const Tensor& w, const OptionalTensor& b,
        const OptionalTensor& row_temperature, double logit_scale, std::optional<double> softcap)
      : hidden(whole_units(h)), weight(whole_units(w)), rows(h.size(0)) {
    R1_CHECK(h.dim() == 2 && w.dim() == 2 && h.size(1) == w.size(1), op,
             ": weight: expected [V, H] with the H of hidden");
    R1_CHECK(h.scalar_type() == w.scalar_type(), op, ": weight: expected dtype of hidden");
    R1_CHECK(w.size(0) > 0, op, ": weight: expected V ≥ 1, got 0");
    if (b) {
      expect_numel(op, "bias", *b, w.size(0));
      bias = to_dtype(*b, ScalarType::Float);
    }
    if (row_temperature) {
      R1_CHECK(row_temperature->dim() == 1 && row_temperature->size(0) == rows, op,
               ": temperature: expected shape [T]");
      temperature = to_dtype(*row_temperature, ScalarType::Float);
    }
    head = Head{is_bf16(h), w.size(0), w.size(1), weight.size(1) / (is_bf16(h) ? 2 : 1),
                data<uint32_t>(weight), data<uint32_t>(hidden), data_or_null<float>(bias),
                static_cast<float>(logit_scale), static_cast<float>(softcap.value_or(0.0)),
                !b && !softcap && logit_scale == 1 && !row_temperature};
  }

  float temperature_of(int64_t t) const { return temperature ? data<float>(*temperature)[t] : 1.0f; }
};

struct Inputs : Layer {
  Tensor targets;
  OptionalTensor keep;
  int64_t ignore_index;
  bool sharded;

  Inputs(const Tensor& h, const Tensor& w, const Tensor& y, const OptionalTensor& b,
         const OptionalTensor& can_have_gradient, const OptionalTensor& row_temperature,
         double logit_scale, std::optional<double> softcap, int64_t ignored, bool is_shard)
      : Layer("linear_logprob", h, w, b, row_temperature, logit_scale, softcap),
        targets(to_dtype(y, ScalarType::Long)), ignore_index(ignored), sharded(is_shard) {
    R1_CHECK(y.dim() == 1 && y.size(0) == rows, "linear_logprob: target: expected shape [T]");
    if (can_have_gradient) {
      expect_numel("linear_logprob", "keep", *can_have_gradient, rows);
      keep = to_dtype(*can_have_gradient, ScalarType::Bool);
    }
  }

  bool ignored(int64_t t) const { return data<int64_t>(targets)[t] == ignore_index; }
  bool keeps(int64_t t) const { return !keep || data<bool>(*keep)[t]; }
  int64_t target(int64_t t) const {  // -1 where another shard has it
    const int64_t column = data<int64_t>(targets)[t];
    const bool here = column >= 0 && column < head.columns;
    R1_CHECK(here || sharded, "linear_logprob: target[", t, "]: expected 0 ≤ target < ",
             head.columns, ", got ", column);
    return here ? column : -1;
  }
};

// The order in which rows are taken. A row of index -1 is blank: it holds a place, as the padding
// after the last one does.
struct Order {
  const Layer& in;
  std::vector<int64_t> index, target;
  std::vector<float> factor;

  explicit Order(const Layer& layer) : in(layer) {}
  void add(int64_t row, int64_t column = -1) {  // its target, if it has one
    const Head& h = in.head;
    index.push_back(row);
    target.push_back(column);
    factor.push_back((h.softcap != 0 ? h.softcap : h.logit_scale) / in.temperature_of(row));
  }
  void add_blank() {
    index.push_back(-1);
    target.push_back(-1);
    factor.push_back(1.0f);
  }
  const uint32_t* row(int64_t i) const {  // null where blank
    return i < size() && index[i] >= 0 ? in.head.hidden + index[i] * in.head.units : nullptr;
  }
  int64_t size() const { return static_cast<int64_t>(index.size()); }
  int64_t padded() const { return ceil_div(size(), kRows) * kRows; }
  Rows rows(const uint32_t* panels) {
    target.resize(padded(), -1);
    factor.resize(padded(), 1.0f);
    return Rows{size(), index.data(), target.data(), factor.data(), panels};
  }
};

inline void pack_panels(const Order& order, uint32_t* panels) {
  const Head& h = order.in.head;
  parallel(order.padded() / kRows, [&](int64_t block, int) {
    for (int64_t lane = 0; lane < kRows; ++lane) {
      const int64_t i = block * kRows + lane;
      const uint32_t* row = order.row(i);
      uint32_t* out = panels + block * kRows * h.units + lane;
      for (int64_t k = 0; k < h.units; ++k) out[k * kRows] = row ? row[k] : 0;
    }
  });
}

// [panel of H][unit of rows][kPanel], a unit being one element, or those of two rows in turn.
inline void pack_row_pairs(const Order& order, uint32_t* pairs) {
  const Head& h = order.in.head;
  const int64_t per_unit = h.bf16 ? 2 : 1, depth = order.padded() / per_unit;
  auto bits = [&](int64_t i, int64_t j) -> uint32_t {
    const uint32_t* row = order.row(i);
    if (!row || j >= h.width) return 0;
    return h.bf16 ? reinterpret_cast<const uint16_t*>(row)[j] : row[j];
  };
  parallel(h.lanes() / kPanel, [&](int64_t panel, int) {
    uint32_t* out = pairs + panel * depth * kPanel;
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t n = 0; n < kPanel; ++n, ++out) {
        const int64_t j = panel * kPanel + n;
        *out = h.bf16 ? bits(2 * k, j) | bits(2 * k + 1, j) << 16 : bits(k, j);
      }
  });
}

// The rows of a backward pass: blocks that were kept come first in `taken`, as they were but without
// rows that have no gradient, then every other row that has one. `keeps` says whether the forward
// pass would keep a row, `target` its column. Returns where each block was kept: null for the others.
template <class Keeps, class HasGradient, class Target>
std::vector<const uint8_t*> take_rows(Order& taken, const Kept& kept, const Keeps& keeps,
                                      const HasGradient& has_gradient, const Target& target) {
  std::vector<int64_t> first, others;
  for (int64_t t = 0; t < taken.in.rows; ++t)
    if (std::ssize(first) < kept.blocks * kRows && keeps(t)) first.push_back(t);
    else if (has_gradient(t)) others.push_back(t);
  std::vector<const uint8_t*> kept_of_block;
  for (int64_t b = 0; b < std::ssize(first); b += kRows) {  // leave out blocks without any gradient
    const std::span block(&first[b], smaller(std::ssize(first) - b, kRows));
    if (std::none_of(block.begin(), block.end(), has_gradient)) continue;
    for (int64_t t : block) has_gradient(t) ? taken.add(t, target(t)) : taken.add_blank();
    // Rows that were not kept follow in blocks of their own.
    while (!others.empty() && taken.size() % kRows) taken.add_blank();
    kept_of_block.push_back(kept.block(b / kRows));
  }
  for (int64_t t : others) taken.add(t, target(t));
  kept_of_block.resize(taken.padded() / kRows, nullptr);
  return kept_of_block;
}

// The gradients of a layer, and the memory that they are made in.
class HeadGradients {
 public:
  HeadGradients(Order& rows, bool need_hidden, bool need_weight, bool need_bias)
      : taken(rows), h(rows.in.head), padded(rows.padded()), chunk(smaller(padded, kChunk)),
        dhidden(torch::stable::new_zeros(rows.in.hidden, {need_hidden ? rows.in.rows : 0, h.width})),
        dweight(new_output(rows.in.weight, {need_weight ? h.columns : 0, h.width})),
        dbias(new_empty(rows.in.weight, {need_bias ? h.columns : 0}, ScalarType::Float)),
        panels(padded * h.units), pairs(need_weight ? padded / per_unit() * h.lanes() : 0),
        packed(need_hidden ? kStripe / per_unit() * h.lanes() : 0),
        by_row(chunk * kStripe / per_unit()), by_column(chunk * kStripe / per_unit()),
        bias_parts(need_bias ? chunk / kRows * kStripe : 0),
        dhidden_sums(need_hidden ? padded * h.lanes() : 0),
        dweight_sums(need_weight && padded > chunk ? kStripe * h.lanes() : 0) {
    pack_panels(rows, panels.p);
    if (need_weight) pack_row_pairs(rows, pairs.p);
    of = Products{
        h, rows.rows(panels.p), pairs.p, need_hidden ? packed.p : nullptr, by_row.p, by_column.p,
        need_bias ? bias_parts.p : nullptr, need_hidden ? dhidden_sums.p : nullptr,
        need_weight && padded > chunk ? dweight_sums.p : nullptr,
        need_weight ? data<void>(dweight) : nullptr, data<float>(dbias)};
  }
  const Products& products() const { return of; }
  // Once the products are made: (dhidden, dweight, dbias), without rows where not needed.
  std::tuple<Tensor, Tensor, Tensor> finished() const {
    if (of.dhidden)
      parallel(taken.size(), [&](int64_t i, int) {
        if (taken.index[i] >= 0)
          store_row(data<void>(dhidden), h.bf16, taken.index[i] * h.width,
                    of.dhidden + i * h.lanes(), h.width);
      });
    const ScalarType dtype = dweight.scalar_type();
    const bool wide = dtype == ScalarType::Float;
    return {dhidden, dweight, wide ? dbias : torch::stable::to(dbias, dtype)};
  }

 private:
  int64_t per_unit() const { return h.bf16 ? 2 : 1; }
  const Order& taken;
  const Head& h;
  const int64_t padded, chunk;
  Tensor dhidden, dweight, dbias;
  Buffer<uint32_t> panels, pairs, packed, by_row, by_column;
  Buffer<float> bias_parts, dhidden_sums, dweight_sums;
  Products of;
};
}  // namespace
}  // namespace r1
