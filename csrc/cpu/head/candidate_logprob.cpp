// candidate_logprob and its backward pass: products of a row with some rows of the weight, and sums
// of rows, both gathered by index. The statistics in between are those of logprob.
#include "cpu/common/gemm.h"

namespace r1 {
struct Table {
  bool bf16;
  int64_t width, units;  // elements of a row, and units of 32 bits from one row to the next
  const uint32_t* data;
};
}  // namespace r1

namespace r1::R1_ISA {
namespace {
template <class T>
void dots(const Table& table, const uint32_t* x, const int64_t* index, int64_t count, float* out) {
  constexpr int64_t kTogether = 4;  // rows that share the loads of x
  const int64_t whole = table.units / kWidth * kWidth, rest = (table.units - whole) * 4;
  U last{};
  memcpy(&last, x + whole, rest);
  for (int64_t i = 0; i < count; i += kTogether) {
    const uint32_t* row[kTogether];
    F acc[kTogether] = {};
    for (int64_t r = 0; r < kTogether; ++r)
      row[r] = table.data + index[i + r < count ? i + r : i] * table.units;
    for (int64_t k = 0; k < whole; k += kWidth) {
      const U a = load_as<U>(x + k);
      for (int64_t r = 0; r < kTogether; ++r) acc[r] = T::dot(acc[r], a, load_as<U>(row[r] + k));
    }
    for (int64_t r = 0; r < kTogether && i + r < count; ++r) {
      U tail{};
      memcpy(&tail, row[r] + whole, rest);
      out[i + r] = sum(T::dot(acc[r], last, tail));
    }
  }
}

template <class T, int N>
void add_columns(const Table& table, const int64_t* index, const float* factor, int64_t count,
                 int64_t j, float* out) {
  F acc[N] = {};
  for (int64_t i = 0; i < count; ++i) {
    const auto* row =
        reinterpret_cast<const typename T::Element*>(table.data + index[i] * table.units) + j;
    for (int n = 0; n < N; ++n) acc[n] += splat(factor[i]) * T::load(row + n * kWidth);
  }
  for (int n = 0; n < N; ++n) store(out + j + n * kWidth, acc[n]);
}

template <class T>
void weighted_rows(const Table& table, const int64_t* index, const float* factor, int64_t count,
                   float* out) {
  constexpr int64_t kMany = 8;
  int64_t j = 0;
  for (; j + kMany * kWidth <= table.width; j += kMany * kWidth)
    add_columns<T, kMany>(table, index, factor, count, j, out);
  for (; j + kWidth <= table.width; j += kWidth)
    add_columns<T, 1>(table, index, factor, count, j, out);
  for (; j < table.width; ++j) {
    out[j] = 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t* row = table.data + index[i] * table.units;
      out[j] += factor[i] * T::scalar(reinterpret_cast<const typename T::Element*>(row)[j]);
    }
  }
}
}  // namespace

// out[i] = x · table[index[i]]
void gathered_dots(const Table& table, const uint32_t* x, const int64_t* index, int64_t count,
                   float* out) {
  table.bf16 ? dots<BF16>(table, x, index, count, out) : dots<F32>(table, x, index, count, out);
}

// out = Σ factor[i]·table[index[i]], each column in the order of i.
void gathered_sum(const Table& table, const int64_t* index, const float* factor, int64_t count,
                  float* out) {
  table.bf16 ? weighted_rows<BF16>(table, index, factor, count, out)
             : weighted_rows<F32>(table, index, factor, count, out);
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include <vector>

#include "cpu/head/logprob.h"
#include "cpu/common/parallel.h"
#include "cpu/common/rows.h"

R1_DECLARE(void gathered_dots(const Table&, const uint32_t*, const int64_t*, int64_t, float*))
R1_DECLARE(void gathered_sum(const Table&, const int64_t*, const float*, int64_t, float*))

namespace r1 {
namespace {
struct Candidates {
  Tensor hidden, weight, targets, id_list, offset_list;
  OptionalTensor temperature;
  Table hidden_rows, weight_rows;
  float logit_scale, softcap;
  int64_t rows, columns, width, ignore_index;

  Candidates(const Tensor& h, const Tensor& w, const Tensor& y, const Tensor& candidate_ids,
             const Tensor& candidate_offsets, const OptionalTensor& row_temperature,
             double scale, std::optional<double> cap, int64_t ignored)
      : hidden(whole_units(h)), weight(whole_units(w)), targets(to_dtype(y, ScalarType::Long)),
        id_list(to_dtype(candidate_ids, ScalarType::Long)),
        offset_list(to_dtype(candidate_offsets, ScalarType::Long)), hidden_rows(table(hidden, h)),
        weight_rows(table(weight, w)), logit_scale(static_cast<float>(scale)),
        softcap(static_cast<float>(cap.value_or(0.0))), rows(h.size(0)), columns(w.size(0)),
        width(h.size(1)), ignore_index(ignored) {
    R1_CHECK(h.dim() == 2 && w.dim() == 2 && w.size(1) == width && h.scalar_type() == w.scalar_type(),
             "candidate_logprob: weight: expected [V, H] with the H and dtype of hidden");
    R1_CHECK(y.dim() == 1 && y.size(0) == rows, "candidate_logprob: target: expected shape [T]");
    constexpr const char* op = "candidate_logprob";
    expect_numel(op, "candidate_offsets", offset_list, rows + 1);
    R1_CHECK(begin(0) == 0 && begin(rows) == pairs(), op, ": candidate_offsets: expected 0 to ",
             pairs(), ", got ", begin(0), " to ", begin(rows));
    for (int64_t t = 0; t < rows; ++t)
      R1_CHECK(count(t) >= 0, op, ": candidate_offsets[", t + 1, "]: expected ", begin(t),
               " or more, got ", begin(t + 1));
    for (int64_t n = 0; n < pairs(); ++n)
      R1_CHECK(ids()[n] >= 0 && ids()[n] < columns, op, ": candidate_ids[", n,
               "]: expected 0 ≤ id < ", columns, ", got ", ids()[n]);
    if (row_temperature) {
      expect_numel(op, "temperature", *row_temperature, rows);
      temperature = to_dtype(*row_temperature, ScalarType::Float);
    }
  }

  static Table table(const Tensor& whole, const Tensor& given) {
    return {is_bf16(given), given.size(1), whole.size(1) / (is_bf16(given) ? 2 : 1),
            data<uint32_t>(whole)};
  }
  const int64_t* ids() const { return data<int64_t>(id_list); }
  int64_t begin(int64_t t) const { return data<int64_t>(offset_list)[t]; }
  int64_t count(int64_t t) const { return begin(t + 1) - begin(t); }
  int64_t pairs() const { return id_list.numel(); }
  bool ignored(int64_t t) const { return data<int64_t>(targets)[t] == ignore_index; }
  LogitFormat format(int64_t t) const { return {false, count(t), logit_scale, softcap}; }
  RowOptions options(int64_t t) const {
    const int64_t target = data<int64_t>(targets)[t];
    int64_t position = 0;
    while (position < count(t) && ids()[begin(t) + position] != target) ++position;
    return {position, temperature ? data<float>(*temperature)[t] : 1.0f};
  }
};

using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

ForwardResult candidate_logprob(Tensor hidden, Tensor weight, Tensor target, Tensor candidate_ids,
                                Tensor candidate_offsets, OptionalTensor bias,
                                OptionalTensor temperature, double logit_scale,
                                std::optional<double> softcap, bool want_entropy,
                                int64_t ignore_index) {
  const Candidates in(hidden, weight, target, candidate_ids, candidate_offsets, temperature,
                      logit_scale, softcap, ignore_index);
  if (bias) {
    expect_numel("candidate_logprob", "bias", *bias, in.columns);
    bias = to_dtype(*bias, ScalarType::Float);
  }
  auto zeros = [&](int64_t n) { return torch::stable::new_zeros(hidden, {n}, ScalarType::Float); };
  Tensor logprob = zeros(in.rows), entropy = zeros(want_entropy ? in.rows : 0);
  Tensor lse = zeros(in.rows), logits = zeros(in.pairs());
  const auto products = R1_DISPATCH(gathered_dots);
  const auto statistics = R1_DISPATCH(logprob_row);
  parallel(in.rows, [&](int64_t t, int) {
    if (in.ignored(t)) return;
    const int64_t* ids = in.ids() + in.begin(t);
    float* z = data<float>(logits) + in.begin(t);
    products(in.weight_rows, in.hidden_rows.data + t * in.hidden_rows.units, ids, in.count(t), z);
    for (int64_t i = 0; bias && i < in.count(t); ++i) z[i] += data<float>(*bias)[ids[i]];
    const RowStatistics row = statistics(in.format(t), z, in.options(t), want_entropy);
    data<float>(logprob)[t] = row.logprob;
    data<float>(lse)[t] = row.lse;
    if (want_entropy) data<float>(entropy)[t] = row.entropy;
  });
  return {logprob, entropy, lse, logits};
}

// The candidates of all rows that have a gradient by id, those of one id in the order of the rows.
struct ById {
  std::vector<int64_t> begin, row;
  std::vector<float> dz;

  ById(const Candidates& in, const float* dlogits, const std::vector<char>& active)
      : begin(in.columns + 1) {
    auto each = [&](auto&& visit) {
      for (int64_t t = 0; t < in.rows; ++t)
        for (int64_t n = in.begin(t); active[t] && n < in.begin(t + 1); ++n) visit(t, n);
    };
    each([&](int64_t, int64_t n) { ++begin[in.ids()[n] + 1]; });
    for (int64_t v = 0; v < in.columns; ++v) begin[v + 1] += begin[v];
    row.resize(begin.back());
    dz.resize(begin.back());
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    each([&](int64_t t, int64_t n) {
      const int64_t at = next[in.ids()[n]]++;
      row[at] = t;
      dz[at] = dlogits[n];
    });
  }
};

std::tuple<Tensor, Tensor, Tensor> candidate_logprob_backward(
    Tensor dlogprob, Tensor dentropy, Tensor hidden, Tensor weight, Tensor target,
    Tensor candidate_ids, Tensor candidate_offsets, Tensor logprob, Tensor lse, Tensor entropy,
    Tensor logits, OptionalTensor temperature, double logit_scale, std::optional<double> softcap,
    int64_t ignore_index, bool need_hidden, bool need_weight, bool need_bias) {
  const Candidates in(hidden, weight, target, candidate_ids, candidate_offsets, temperature,
                      logit_scale, softcap, ignore_index);
  auto floats = [](const Tensor& t) { return to_dtype(t, ScalarType::Float); };
  const Tensor g = floats(dlogprob), e = floats(dentropy), l = floats(lse), h = floats(entropy);
  const Tensor z = floats(logits);
  const bool with_entropy = e.numel() > 0;
  constexpr const char* op = "candidate_logprob_backward";
  expect_numel(op, "dlogprob", g, in.rows);
  expect_numel(op, "lse", l, in.rows);
  expect_numel(op, "logits", z, in.pairs());
  if (with_entropy) expect_numel(op, "dentropy", e, in.rows);
  if (with_entropy) expect_numel(op, "entropy", h, in.rows);
  Tensor dhidden = torch::stable::new_zeros(hidden, {need_hidden ? in.rows : 0, in.width});
  Tensor dweight =
      new_empty(weight, {need_weight ? in.columns : 0, in.width}, weight.scalar_type());
  Tensor dbias = torch::stable::new_zeros(weight, {need_bias ? in.columns : 0}, ScalarType::Float);
  Buffer<float> dlogits(in.pairs()), sums(workers() * in.width);
  std::vector<char> active(in.rows);
  const auto differentiate = R1_DISPATCH(logprob_backward_row);
  const auto add_rows = R1_DISPATCH(gathered_sum);
  parallel(in.rows, [&](int64_t t, int worker) {
    RowGradient row{data<float>(g)[t], 0, data<float>(l)[t], 0};
    if (with_entropy) row.dentropy = data<float>(e)[t], row.entropy = data<float>(h)[t];
    active[t] = !in.ignored(t) && (row.dlogprob != 0 || row.dentropy != 0);
    if (!active[t]) return;
    const int64_t begin = in.begin(t);
    differentiate(in.format(t), data<float>(z) + begin, in.options(t), row, dlogits.p + begin);
    if (!need_hidden) return;
    float* sum = sums.p + worker * in.width;
    add_rows(in.weight_rows, in.ids() + begin, dlogits.p + begin, in.count(t), sum);
    store_row(data<void>(dhidden), in.hidden_rows.bf16, t * in.width, sum, in.width);
  });
  if (need_weight || need_bias) {
    constexpr int64_t kTask = 64;
    const ById by_id(in, dlogits.p, active);
    parallel((in.columns + kTask - 1) / kTask, [&](int64_t task, int worker) {
      float* sum = sums.p + worker * in.width;
      for (int64_t v = task * kTask; v < in.columns && v < (task + 1) * kTask; ++v) {
        const int64_t begin = by_id.begin[v], end = by_id.begin[v + 1];
        for (int64_t n = begin; need_bias && n < end; ++n) data<float>(dbias)[v] += by_id.dz[n];
        if (!need_weight) continue;
        add_rows(in.hidden_rows, by_id.row.data() + begin, by_id.dz.data() + begin, end - begin, sum);
        store_row(data<void>(dweight), in.weight_rows.bf16, v * in.width, sum, in.width);
      }
    });
  }
  if (weight.scalar_type() != ScalarType::Float)
    dbias = torch::stable::to(dbias, weight.scalar_type());
  return {dhidden, dweight, dbias};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "candidate_logprob(Tensor hidden, Tensor weight, Tensor target, Tensor candidate_ids, "
      "Tensor candidate_offsets, Tensor? bias, Tensor? temperature, float logit_scale, "
      "float? softcap, bool want_entropy, int ignore_index) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "candidate_logprob_backward(Tensor dlogprob, Tensor dentropy, Tensor hidden, Tensor weight, "
      "Tensor target, Tensor candidate_ids, Tensor candidate_offsets, Tensor logprob, Tensor lse, "
      "Tensor entropy, Tensor logits, Tensor? temperature, float logit_scale, float? softcap, "
      "int ignore_index, bool need_hidden, bool need_weight, bool need_bias) "
      "-> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("candidate_logprob", TORCH_BOX(&candidate_logprob));
  m.impl("candidate_logprob_backward", TORCH_BOX(&candidate_logprob_backward));
}
}  // namespace r1
#endif
