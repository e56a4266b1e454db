// linear_logprob and its backward pass: argument checks, the order of rows, memory, registration.
#include "cpu/linear_logprob.h"

#ifdef R1_BASELINE
#include <atomic>
#include <cmath>
#include <vector>

#include "common/op.h"
#include "cpu/parallel.h"

R1_DECLARE(void linear_logprob_forward(const Forward&))
R1_DECLARE(void linear_logprob_frozen(const Frozen&))
R1_DECLARE(void linear_logprob_backward(const Backward&))

namespace r1 {
namespace {
using OptionalTensor = std::optional<Tensor>;

template <class T>
struct Buffer {  // uninitialised, aligned for whole vectors
  explicit Buffer(int64_t count)
      : p(static_cast<T*>(std::aligned_alloc(64, ceil_div(count * sizeof(T) + 1, 64) * 64))) {
    R1_CHECK(p, "linear_logprob: out of memory for ", count * sizeof(T), " bytes of scratch");
  }
  ~Buffer() { std::free(p); }
  Buffer(const Buffer&) = delete;
  T* p;
  T& operator[](int64_t i) { return p[i]; }
};

// Rows of H elements as rows of whole units: in place, or copied with a zero at the end where a
// bf16 row has an odd length.
Tensor whole_units(const Tensor& t) {
  if (!is_bf16(t) || t.size(1) % 2 == 0) return dense(t);
  Tensor padded = torch::stable::new_zeros(t, {t.size(0), t.size(1) + 1});
  Tensor view = torch::stable::narrow(padded, 1, 0, t.size(1));
  torch::stable::copy_(view, t);
  return padded;
}

// Kept tiles, [column of tiles][block], and after them whether they are still there. The backward
// pass takes them and they are gone; another one over the same graph makes its logits again, through
// the same rounding, so nothing but its time tells.
struct Kept {
  static constexpr int64_t kState = 64;
  int64_t blocks, stride;
  Tensor tensor;

  static int64_t tile_bytes(const Head& h) { return kRows * (kCols * (h.bf16 ? 2 : 4) + 4); }
  static Kept make(const Tensor& like, const Head& h, int64_t rows) {
    const int64_t blocks = rows / kRows, stride = blocks * tile_bytes(h);
    const int64_t bytes = ceil_div(h.columns, kCols) * stride;
    Kept kept{blocks, stride, new_empty(like, {bytes + kState}, ScalarType::Byte)};
    *kept.state() = 1;
    return kept;
  }
  static Kept take(const Tensor& tensor, const Head& h) {
    const int64_t column = ceil_div(h.columns, kCols) * tile_bytes(h);
    Kept kept{(tensor.numel() - kState) / column, 0, tensor};
    if (std::atomic_ref(*kept.state()).exchange(0) == 0) kept.blocks = 0;
    kept.stride = kept.blocks * tile_bytes(h);
    return kept;
  }
  uint8_t* tiles() const { return data<uint8_t>(tensor); }
  uint8_t* state() const { return tiles() + tensor.numel() - kState; }
};

struct Inputs {
  Tensor hidden, weight, target;
  OptionalTensor bias;
  Head head;

  Inputs(const Tensor& h, const Tensor& w, const Tensor& y, const OptionalTensor& b,
         double temperature, double logit_scale, std::optional<double> softcap)
      : hidden(whole_units(h)), weight(whole_units(w)), target(to_dtype(y, ScalarType::Long)) {
    R1_CHECK(h.dim() == 2 && w.dim() == 2 && h.size(1) == w.size(1),
             "linear_logprob: weight: expected [V, H] with the H of hidden");
    R1_CHECK(h.scalar_type() == w.scalar_type(), "linear_logprob: weight: expected dtype of hidden");
    R1_CHECK(y.dim() == 1 && y.size(0) == h.size(0), "linear_logprob: target: expected shape [T]");
    if (b) bias = to_dtype(*b, ScalarType::Float);
    head = Head{is_bf16(h), w.size(0), w.size(1), weight.size(1) / (is_bf16(h) ? 2 : 1),
                data<uint32_t>(weight), data<uint32_t>(hidden), data_or_null<float>(bias),
                static_cast<float>(logit_scale), static_cast<float>(temperature),
                static_cast<float>(softcap.value_or(0.0))};
  }
};

// The order in which rows are taken. A row of index -1 is blank: it holds a place, as the padding
// after the last one does.
struct Order {
  std::vector<int64_t> index, target;

  void add(int64_t row, int64_t column, int64_t columns) {
    R1_CHECK(column >= 0 && column < columns, "linear_logprob: target[", row, "]: expected 0 ≤ target < ",
             columns, ", got ", column);
    index.push_back(row);
    target.push_back(column);
  }
  void add_blank() {
    index.push_back(-1);
    target.push_back(-1);
  }
  const uint32_t* row(const Head& h, int64_t i) const {  // null where blank
    return i < size() && index[i] >= 0 ? h.hidden + index[i] * h.units : nullptr;
  }
  int64_t size() const { return static_cast<int64_t>(index.size()); }
  int64_t padded() const { return ceil_div(size(), kRows) * kRows; }
  Rows rows(const uint32_t* panels) {
    const int64_t count = size();
    target.resize(ceil_div(count, kRows) * kRows, -1);
    return Rows{count, index.data(), target.data(), panels};
  }
};

void pack_panels(const Head& h, const Order& order, uint32_t* panels) {
  parallel(order.padded() / kRows, [&](int64_t block, int) {
    for (int64_t lane = 0; lane < kRows; ++lane) {
      const int64_t i = block * kRows + lane;
      const uint32_t* row = order.row(h, i);
      uint32_t* out = panels + block * kRows * h.units + lane;
      for (int64_t k = 0; k < h.units; ++k) out[k * kRows] = row ? row[k] : 0;
    }
  });
}

// [panel of H][unit of rows][kPanel], a unit being one element, or those of two rows in turn.
void pack_row_pairs(const Head& h, const Order& order, uint32_t* pairs) {
  const int64_t per_unit = h.bf16 ? 2 : 1, depth = order.padded() / per_unit;
  auto bits = [&](int64_t i, int64_t j) -> uint32_t {
    const uint32_t* row = order.row(h, i);
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

void store_row(void* out, bool bf16, int64_t at, const float* row, int64_t width) {
  if (!bf16) {
    std::memcpy(static_cast<float*>(out) + at, row, width * sizeof(float));
    return;
  }
  auto* p = static_cast<uint16_t*>(out) + at;
  for (int64_t j = 0; j < width; ++j) p[j] = scalar::float_to_bf16(row[j]);
}

using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

ForwardResult linear_logprob(Tensor hidden, Tensor weight, Tensor target, OptionalTensor bias,
                             OptionalTensor keep, double temperature, double logit_scale,
                             std::optional<double> softcap, bool want_entropy, bool /*entropy_grad*/,
                             int64_t kept_rows, bool frozen_head, int64_t ignore_index) {
  const Inputs in(hidden, weight, target, bias, temperature, logit_scale, softcap);
  const Head& h = in.head;
  const int64_t rows = hidden.size(0);
  Tensor logprob = torch::stable::new_zeros(hidden, {rows}, ScalarType::Float);
  Tensor lse = torch::stable::new_zeros(hidden, {rows}, ScalarType::Float);
  Tensor entropy = torch::stable::new_zeros(hidden, {want_entropy ? rows : 0}, ScalarType::Float);
  const Kept kept = Kept::make(hidden, h, kept_rows);
  Tensor dhidden =
      torch::stable::new_zeros(hidden, {frozen_head ? rows : 0, h.width}, ScalarType::Float);

  // First the rows that can get a gradient, then the rest.
  const int64_t* y = data<int64_t>(in.target);
  const Tensor mask = keep ? dense(*keep) : Tensor();
  const bool* wanted = keep ? data<bool>(mask) : nullptr;
  Order first, rest;
  for (int64_t t = 0; t < rows; ++t)
    if (y[t] != ignore_index) (!wanted || wanted[t] ? first : rest).add(t, y[t], h.columns);
  const int64_t kept_blocks = smaller(kept.blocks, first.padded() / kRows);
  if (!frozen_head)
    for (int64_t i = 0; i < rest.size(); ++i) first.add(rest.index[i], rest.target[i], h.columns);

  auto finish = [&](const Order& order, const Statistics* statistics, const float* target_logit) {
    for (int64_t i = 0; i < order.size(); ++i) {
      const Statistics& s = statistics[i / kRows];
      const int64_t t = order.index[i], lane = i % kRows;
      const float log_sum = std::log(s.sum[lane]);
      data<float>(lse)[t] = s.max[lane] + log_sum;
      data<float>(logprob)[t] = (target_logit[i] - s.max[lane]) - log_sum;
      if (want_entropy) data<float>(entropy)[t] = log_sum - s.weighted[lane] / s.sum[lane];
    }
  };
  auto forward_only = [&](Order& order) {
    if (order.size() == 0) return;
    Buffer<uint32_t> panels(order.padded() * h.units);
    Buffer<Statistics> statistics(kSplits * order.padded() / kRows);
    Buffer<float> target_logit(order.padded());
    pack_panels(h, order, panels.p);
    R1_DISPATCH(linear_logprob_forward)(Forward{h, order.rows(panels.p), want_entropy, statistics.p,
                                                target_logit.p, kept.tiles(), kept_blocks, kept.stride});
    finish(order, statistics.p, target_logit.p);
  };
  if (!frozen_head) {
    forward_only(first);
    return {logprob, entropy, lse, kept.tensor, dhidden};
  }
  forward_only(rest);
  if (first.size() > 0) {
    const int64_t padded = first.padded();
    Buffer<uint32_t> panels(padded * h.units), packed(kStripe * h.lanes());
    Buffer<Statistics> statistics(padded / kRows);
    Buffer<float> target_logit(padded), expected(padded * h.lanes());
    Buffer<float> logits(workers() * kStripe * kRows);
    Buffer<uint32_t> products(workers() * kStripe * kRows);
    pack_panels(h, first, panels.p);
    R1_DISPATCH(linear_logprob_frozen)(Frozen{h, first.rows(panels.p), want_entropy, statistics.p,
                                              target_logit.p, expected.p, packed.p, logits.p,
                                              products.p});
    finish(first, statistics.p, target_logit.p);
    // dhidden = α·((1 - p_y)·w_y·W_y - Σ_{v≠y} p_v·w_v·W_v), w the slope of the softcap.
    parallel(first.size(), [&](int64_t i, int) {
      const int64_t t = first.index[i];
      const float sum = statistics[i / kRows].sum[i % kRows];
      const float capped = h.softcap != 0 ? target_logit[i] * h.temperature / h.softcap : 0.0f;
      const float alpha = h.logit_scale / h.temperature;
      const float own = alpha * -std::expm1(data<float>(logprob)[t]) * (1 - capped * capped);
      const uint32_t* row = h.weight + first.target[i] * h.units;
      float* out = data<float>(dhidden) + t * h.width;
      for (int64_t j = 0; j < h.width; ++j) {
        float w;
        if (h.bf16)
          w = scalar::bf16_to_float(reinterpret_cast<const uint16_t*>(row)[j]);
        else
          std::memcpy(&w, row + j, sizeof(w));
        out[j] = own * w - alpha * expected[i * h.lanes() + j] / sum;
      }
    });
  }
  return {logprob, entropy, lse, kept.tensor, dhidden};
}

std::tuple<Tensor, Tensor, Tensor> linear_logprob_backward(
    Tensor dlogprob, Tensor dentropy, Tensor hidden, Tensor weight, Tensor target,
    OptionalTensor bias, OptionalTensor keep, Tensor logprob, Tensor lse, Tensor entropy,
    Tensor kept, double temperature, double logit_scale, std::optional<double> softcap,
    bool entropy_grad, int64_t ignore_index, bool need_hidden, bool need_weight, bool need_bias) {
  const Inputs in(hidden, weight, target, bias, temperature, logit_scale, softcap);
  const Head& h = in.head;
  const int64_t rows = hidden.size(0), per_unit = h.bf16 ? 2 : 1;
  auto floats = [](const Tensor& t) { return to_dtype(t, ScalarType::Float); };
  const Tensor g = floats(dlogprob), e = floats(dentropy), lp = floats(logprob), l = floats(lse);
  const Tensor entropies = floats(entropy);
  const Kept tiles = Kept::take(kept, h);
  entropy_grad = entropy_grad && e.numel() > 0;
  const int64_t* y = data<int64_t>(in.target);

  // Blocks that were kept come first, as they were; then every other row with a gradient.
  const Tensor mask = keep ? dense(*keep) : Tensor();
  const bool* wanted = keep ? data<bool>(mask) : nullptr;
  const int64_t kept_rows = tiles.blocks * kRows;
  Order order, others;
  auto has_gradient = [&](int64_t t) {
    return data<float>(g)[t] != 0 || (entropy_grad && data<float>(e)[t] != 0);
  };
  for (int64_t t = 0; t < rows; ++t) {
    if (y[t] == ignore_index) continue;
    if (order.size() < kept_rows && (!wanted || wanted[t])) order.add(t, y[t], h.columns);
    else if (has_gradient(t)) others.add(t, y[t], h.columns);
  }
  std::vector<const uint8_t*> kept_of_block;
  Order taken;
  for (int64_t b = 0; b < order.size(); b += kRows) {  // leave out blocks without any gradient
    const int64_t end = smaller(b + kRows, order.size());
    bool any = false;
    for (int64_t i = b; i < end; ++i) any |= has_gradient(order.index[i]);
    if (!any) continue;
    R1_CHECK(end - b == kRows || others.size() == 0,
             "linear_logprob_backward: keep: a row outside it has a gradient");
    for (int64_t i = b; i < end; ++i)
      if (has_gradient(order.index[i])) taken.add(order.index[i], order.target[i], h.columns);
      else taken.add_blank();
    kept_of_block.push_back(tiles.tiles() + b / kRows * Kept::tile_bytes(h));
  }
  for (int64_t i = 0; i < others.size(); ++i)
    taken.add(others.index[i], others.target[i], h.columns);
  const int64_t padded = taken.padded(), blocks = padded / kRows;
  kept_of_block.resize(blocks, nullptr);

  std::vector<float> row_g(padded), row_e(padded), row_target(padded), row_lse(padded),
      row_entropy(padded);
  const float alpha = h.logit_scale / h.temperature;
  for (int64_t i = 0; i < taken.size(); ++i) {
    const int64_t t = taken.index[i];
    if (t < 0) continue;
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
  Tensor dweight = new_empty(weight, {need_weight ? h.columns : 0, h.width}, weight.scalar_type());
  Tensor dbias = new_empty(weight, {need_bias ? h.columns : 0}, ScalarType::Float);
  const int64_t chunk = smaller(padded, kChunk);
  Buffer<uint32_t> panels(padded * h.units), pairs(need_weight ? padded / per_unit * h.lanes() : 0);
  Buffer<uint32_t> packed(need_hidden ? kStripe / per_unit * h.lanes() : 0);
  Buffer<uint32_t> by_row(chunk * kStripe / per_unit), by_column(chunk * kStripe / per_unit);
  Buffer<float> bias_parts(need_bias ? chunk / kRows * kStripe : 0);
  Buffer<float> dhidden_sums(need_hidden ? padded * h.lanes() : 0);
  Buffer<float> dweight_sums(need_weight && padded > chunk ? kStripe * h.lanes() : 0);
  pack_panels(h, taken, panels.p);
  if (need_weight) pack_row_pairs(h, taken, pairs.p);
  R1_DISPATCH(linear_logprob_backward)(Backward{
      h, taken.rows(panels.p), entropy_grad, row_g.data(), row_e.data(), row_target.data(),
      row_lse.data(), row_entropy.data(), kept_of_block.data(),
      tiles.blocks > 0 ? tiles.tiles() : nullptr, tiles.stride, pairs.p,
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
      "linear_logprob(Tensor hidden, Tensor weight, Tensor target, Tensor? bias, Tensor? keep, "
      "float temperature, float logit_scale, float? softcap, bool want_entropy, "
      "bool entropy_grad, int kept_rows, bool frozen_head, int ignore_index) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "linear_logprob_backward(Tensor dlogprob, Tensor dentropy, Tensor hidden, Tensor weight, "
      "Tensor target, Tensor? bias, Tensor? keep, Tensor logprob, Tensor lse, Tensor entropy, "
      "Tensor kept, float temperature, float logit_scale, float? softcap, bool entropy_grad, "
      "int ignore_index, bool need_hidden, bool need_weight, bool need_bias) "
      "-> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("linear_logprob", TORCH_BOX(&linear_logprob));
  m.impl("linear_logprob_backward", TORCH_BOX(&linear_logprob_backward));
}
}  // namespace r1
#endif
