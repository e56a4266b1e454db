// moe_combine and its backward pass: every row is read once, and every row of a gradient written
// once. Columns are sums of their own, in the order of the choices.
#include "cpu/moe/combine.h"

#include "cpu/common/gemm.h"

namespace r1::R1_ISA {
namespace {
constexpr int kVectors = 4;  // at a time: two cache lines of bf16, and enough sums to hide latency

template <class T, int N>
inline void sum_block(const MoeCombine& c, int64_t slot, int64_t at, void* out) {
  using E = typename T::Element;
  F sum[N] = {};
  for (int64_t j = slot; j < slot + c.top_k; ++j) {
    if (c.inverse[j] < 0) continue;
    const E* row = static_cast<const E*>(c.rows) + c.inverse[j] * c.width + at;
    const F w = splat(c.weights ? c.weights[j] : 1.0f);
    for (int n = 0; n < N; ++n) sum[n] += w * T::load(row + n * kWidth);
  }
  for (int n = 0; n < N; ++n) T::store(static_cast<E*>(out) + at + n * kWidth, sum[n]);
}

template <class T>
void combine(const MoeCombine& c, int64_t t, void* out) {
  using E = typename T::Element;
  const int64_t slot = t * c.top_k;
  int64_t i = 0;
  for (; i + kVectors * kWidth <= c.width; i += kVectors * kWidth)
    sum_block<T, kVectors>(c, slot, i, out);
  for (; i + kWidth <= c.width; i += kWidth) sum_block<T, 1>(c, slot, i, out);
  for (; i < c.width; ++i) {
    float sum = 0;
    for (int64_t j = slot; j < slot + c.top_k; ++j) {
      if (c.inverse[j] < 0) continue;
      const E* row = static_cast<const E*>(c.rows) + c.inverse[j] * c.width;
      sum += (c.weights ? c.weights[j] : 1.0f) * T::scalar(row[i]);
    }
    static_cast<E*>(out)[i] = T::element(sum);
  }
}

// drow = w·grad, and ⟨grad, row⟩ as the result.
template <class T>
float slot_gradient(const typename T::Element* grad, const typename T::Element* row, float weight,
                    int64_t width, typename T::Element* drow) {
  const F w = splat(weight);
  F dots[kVectors] = {};
  int64_t i = 0;
  for (; i + kVectors * kWidth <= width; i += kVectors * kWidth)
    for (int n = 0; n < kVectors; ++n) {
      const int64_t at = i + n * kWidth;
      const F g = T::load(grad + at);
      dots[n] += g * T::load(row + at);
      T::store(drow + at, w * g);
    }
  float dot = 0;
  for (; i < width; ++i) {
    const float g = T::scalar(grad[i]);
    dot += g * T::scalar(row[i]);
    drow[i] = T::element(weight * g);
  }
  const F lanes = (dots[0] + dots[1]) + (dots[2] + dots[3]);
  for (int n = 0; n < kWidth; ++n) dot += lanes[n];
  return dot;
}

template <class T>
void row_gradients(const MoeCombine& c, const MoeCombineBackward& b, int64_t p) {
  using E = typename T::Element;
  const int64_t slot = b.gather[p], at = p * c.width;
  E* drow = static_cast<E*>(b.drows) + at;
  if (slot < 0)
    memset(drow, 0, c.width * sizeof(E));
  else
    b.dweights[slot] = slot_gradient<T>(static_cast<const E*>(b.grad) + slot / c.top_k * c.width,
                                        static_cast<const E*>(c.rows) + at, c.weights[slot],
                                        c.width, drow);
}
}  // namespace

void moe_combine_token(const MoeCombine& c, int64_t t, void* out) {
  c.bf16 ? combine<BF16>(c, t, out) : combine<F32>(c, t, out);
}

void moe_combine_backward_row(const MoeCombine& c, const MoeCombineBackward& b, int64_t p) {
  c.bf16 ? row_gradients<BF16>(c, b, p) : row_gradients<F32>(c, b, p);
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/moe/slots.h"

namespace r1 {
namespace {
struct Combined {
  Slots slots;
  Tensor rows;
  OptionalTensor weights;
  int64_t row_bytes;
  MoeCombine kernel;

  Combined(const Tensor& r, const OptionalTensor& w, const Tensor& gather, const Tensor& inverse)
      : slots("moe_combine", gather, inverse), rows(dense(r)) {
    R1_CHECK(r.dim() == 2 && r.size(0) == slots.rows, "moe_combine: rows: expected shape [",
             slots.rows, ", H]");
    if (w) {
      R1_CHECK(w->numel() == inverse.numel(), "moe_combine: weights: expected shape [",
               slots.tokens, ", ", slots.top_k, "]");
      weights = to_dtype(*w, ScalarType::Float);
    }
    row_bytes = r.size(1) * r.element_size();
    kernel = {is_bf16(r),    r.size(1), slots.top_k, slots.inverse, data_or_null<float>(weights),
              rows.data_ptr()};
  }
};

Tensor moe_combine(Tensor rows, OptionalTensor weights, Tensor gather, Tensor inverse) {
  const Combined c(rows, weights, gather, inverse);
  Tensor out = new_empty(rows, {c.slots.tokens, rows.size(1)}, rows.scalar_type());
  const auto kernel = R1_DISPATCH(moe_combine_token);
  char* y = data<char>(out);
  parallel_rows(c.slots.tokens, c.row_bytes * c.slots.top_k,
                [&](int64_t t) { kernel(c.kernel, t, y + t * c.row_bytes); });
  return out;
}

std::tuple<Tensor, Tensor> moe_combine_backward(Tensor grad, Tensor rows, Tensor weights,
                                                Tensor gather, Tensor inverse) {
  const Combined c(rows, weights, gather, inverse);
  R1_CHECK(grad.dim() == 2 && grad.size(0) == c.slots.tokens && grad.size(1) == rows.size(1),
           "moe_combine_backward: grad: expected shape [", c.slots.tokens, ", ", rows.size(1), "]");
  const Tensor upstream = to_dtype(grad, rows.scalar_type());
  Tensor drows = new_empty(rows, {c.slots.rows, rows.size(1)}, rows.scalar_type());
  Tensor dweights = torch::stable::new_zeros(weights, {c.slots.tokens, c.slots.top_k});
  const MoeCombineBackward b{c.slots.gather, upstream.data_ptr(), drows.data_ptr(),
                             data<float>(dweights)};
  const auto kernel = R1_DISPATCH(moe_combine_backward_row);
  parallel_rows(c.slots.rows, 2 * c.row_bytes, [&](int64_t p) { kernel(c.kernel, b, p); });
  return {drows, dweights};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def("moe_combine(Tensor rows, Tensor? weights, Tensor gather, Tensor inverse) -> Tensor");
  m.def(
      "moe_combine_backward(Tensor grad, Tensor rows, Tensor weights, Tensor gather, "
      "Tensor inverse) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("moe_combine", TORCH_BOX(&moe_combine));
  m.impl("moe_combine_backward", TORCH_BOX(&moe_combine_backward));
}
}  // namespace r1
#endif
