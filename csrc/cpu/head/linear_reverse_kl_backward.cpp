// linear_reverse_kl_backward: the gradients of the student's logits, from what was kept or from both
// heads' logits made again.
#include "cpu/head/linear_logprob_products.h"
#include "cpu/head/linear_reverse_kl_tile.h"

namespace r1::R1_ISA {
// dz = dkl·p·((log p - log q) - KL)·slope of the softcap.
template <class T>
static void differentiate_tile(const ReverseKLBackward& f, int64_t row0, int64_t cols, const float* z,
                               const float* q, const Gradients<T>& out) {
  for (int64_t n = 0; n < kRows; n += kWidth) {
    const F g = load(f.dkl + row0 + n), kl = load(f.kl + row0 + n);
    const F lse = load(f.lse + row0 + n), teacher_lse = load(f.teacher_lse + row0 + n);
    const F per = per_factor(f.rows, row0 + n);
    auto gradient = [&](int64_t v) {
      const F logit = load(z + v * kRows + n), logp = logit - lse, p = exp(logp);
      const F logq = load(q + v * kRows + n) - teacher_lse;
      F dz = g * p * ((logp - logq) - kl);
      if (f.head.softcap != 0) dz = dz * cap_slope(logit, per);
      return (g == F{}) | (p == F{}) ? F{} : dz;  // in the padding the logits are anything
    };
    for (int64_t v = 0; v < cols; v += T::kPerUnit) {
      const bool both = v + 1 < cols;
      const F low = gradient(v);
      out.store_pair(v, n, both, low, T::kPerUnit == 2 && both ? gradient(v + 1) : F{});
    }
  }
}

// The same of a head without a softcap, from a kept tile.
template <class T>
static void decode_tile(const ReverseKLBackward& f, int64_t row0, int64_t cols, const uint8_t* kept,
                        const Gradients<T>& out) {
  const DivergenceTile<T> tile(const_cast<uint8_t*>(kept));
  for (int64_t n = 0; n < kRows; n += kWidth) {
    const F g = load(f.dkl + row0 + n), lse = load(f.lse + row0 + n);
    const F mean = (lse - load(f.teacher_lse + row0 + n)) + load(f.kl + row0 + n);
    const F factor = g * exp(load(tile.maxima + n) - lse), shift = load(tile.means + n) - mean;
    const I nothing = (g == F{}) | (factor == F{});  // blank rows hold anything, even NaN
    auto gradient = [&](int64_t v) {
      const F e = T::load(tile.shares + v * kRows + n);
      const F apart = T::load(tile.apart + v * kRows + n) + e * shift;
      const F dz = factor * (e == F{} ? e : apart);  // NaN of a row that is none, whatever e is
      return nothing ? F{} : dz;
    };
    for (int64_t v = 0; v < cols; v += T::kPerUnit) {
      const bool both = v + 1 < cols;
      const F low = gradient(v);
      out.store_pair(v, n, both, low, T::kPerUnit == 2 && both ? gradient(v + 1) : F{});
    }
  }
}

template <class T>
static void backward(const ReverseKLBackward& f) {
  multiply_gradients<T>(f, [&](int64_t block, int64_t v0, int64_t cols, const Gradients<T>& out) {
    alignas(64) float z[kCols * kRows], q[kCols * kRows];
    const int64_t row0 = block * kRows;
    const uint8_t* kept = f.kept[block] ? f.kept[block] + v0 / kCols * f.kept_stride : nullptr;
    if (!kept) {
      logits_of(f.head, f.rows, block, v0, cols, z);
      logits_of(f.teacher, f.teacher_rows, block, v0, cols, q);
    }
    if (f.head.softcap != 0) {
      differentiate_tile<T>(f, row0, cols, z, q, out);
    } else {
      // Through the same rounding as a kept tile: what was kept must not change any gradient.
      alignas(64) uint8_t scratch[DivergenceTile<T>::kBytes];
      if (!kept) diverge<T>(z, q, f.rows.lanes(block), cols, nullptr, scratch);
      decode_tile<T>(f, row0, cols, kept ? kept : scratch, out);
    }
    turn<T>(out.by_row, ceil_div(cols, T::kPerUnit));
  });
}

void linear_reverse_kl_backward(const ReverseKLBackward& f) {
  f.head.bf16 ? backward<BF16>(f) : backward<F32>(f);
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/head/linear_logprob_rows.h"

R1_DECLARE(void linear_reverse_kl_backward(const ReverseKLBackward&))

namespace r1 {
namespace {
std::tuple<Tensor, Tensor, Tensor> linear_reverse_kl_backward(
    Tensor dkl, Tensor kl, Tensor lse, Tensor teacher_lse, Tensor kept, Tensor hidden, Tensor weight,
    OptionalTensor bias, Tensor teacher_hidden, Tensor teacher_weight, OptionalTensor teacher_bias,
    OptionalTensor temperature, double logit_scale, std::optional<double> softcap,
    double teacher_logit_scale, std::optional<double> teacher_softcap, bool need_hidden,
    bool need_weight, bool need_bias) {
  constexpr const char* op = "linear_reverse_kl_backward";
  const Layer student(op, hidden, weight, bias, temperature, logit_scale, softcap);
  const Layer teacher(op, teacher_hidden, teacher_weight, teacher_bias, temperature,
                      teacher_logit_scale, teacher_softcap);
  const int64_t rows = student.rows;
  R1_CHECK(teacher.rows == rows && teacher.head.columns == student.head.columns, op,
           ": teacher_weight: expected the T and V of hidden and weight");
  auto floats = [&](const char* name, const Tensor& t) {
    expect_numel(op, name, t, rows);
    return to_dtype(t, ScalarType::Float);
  };
  const Tensor g = floats("dkl", dkl), divergence = floats("kl", kl), own = floats("lse", lse);
  const Tensor other = floats("teacher_lse", teacher_lse);

  const Kept tiles = Kept::of(op, kept, student.head, kKeptMatrices);
  R1_CHECK(tiles.blocks == 0 || !softcap, op, ": kept: expected nothing with a softcap");
  Order order(student), teacher_order(teacher);
  const auto kept_of_block = take_rows(
      order, tiles, [](int64_t) { return true; },
      [&](int64_t t) { return data<float>(g)[t] != 0; }, [](int64_t) { return -1; });
  for (int64_t t : order.index) t < 0 ? teacher_order.add_blank() : teacher_order.add(t);
  const int64_t padded = order.padded();
  std::vector<float> row_g(padded), row_kl(padded), row_lse(padded), row_teacher_lse(padded);
  for (int64_t i = 0; i < order.size(); ++i) {
    const int64_t t = order.index[i];
    if (t < 0) continue;
    row_g[i] = student.head.logit_scale / student.temperature_of(t) * data<float>(g)[t];
    row_kl[i] = data<float>(divergence)[t];
    row_lse[i] = data<float>(own)[t];
    row_teacher_lse[i] = data<float>(other)[t];
  }
  Buffer<uint32_t> teacher_panels(padded * teacher.head.units);
  pack_panels(teacher_order, teacher_panels.p);
  const HeadGradients gradients(order, need_hidden, need_weight, need_bias);
  R1_DISPATCH(linear_reverse_kl_backward)(ReverseKLBackward{
      gradients.products(), teacher.head, teacher_order.rows(teacher_panels.p), row_g.data(),
      row_kl.data(), row_lse.data(), row_teacher_lse.data(), kept_of_block.data(), tiles.stride});
  return gradients.finished();
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "linear_reverse_kl_backward(Tensor dkl, Tensor kl, Tensor lse, Tensor teacher_lse, "
      "Tensor kept, Tensor hidden, Tensor weight, Tensor? bias, Tensor teacher_hidden, Tensor teacher_weight, "
      "Tensor? teacher_bias, Tensor? temperature, float logit_scale, float? softcap, "
      "float teacher_logit_scale, float? teacher_softcap, bool need_hidden, bool need_weight, "
      "bool need_bias) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("linear_reverse_kl_backward", TORCH_BOX(&linear_reverse_kl_backward));
}
}  // namespace r1
#endif
