// fp8_grouped_gemm: each expert's rows with weights of its own, of the touched experts alone.
#include "cpu/fp8/product.h"

#ifdef R1_BASELINE
#include "cpu/fp8/tensors.h"

namespace r1 {
namespace {
constexpr const char* kOp = "fp8_grouped_gemm";

Tensor fp8_grouped_gemm(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, Tensor starts,
                        Tensor ends, ScalarType out_dtype, bool transposed) {
  const Tensor left = codes_of(kOp, "a", a, 2), weight = codes_of(kOp, "b", b, 3);
  const Tensor left_scale = scales_of(kOp, "a_scale", a_scale, 2);
  const Tensor weight_scale = scales_of(kOp, "b_scale", b_scale, 3);
  const Tensor firsts = to_dtype(starts, ScalarType::Int), lasts = to_dtype(ends, ScalarType::Int);
  const int64_t rows = a.size(0), depth = a.size(1), experts = b.size(0);
  const int64_t columns = b.size(transposed ? 2 : 1);
  R1_CHECK(b.size(transposed ? 1 : 2) == depth, kOp, ": b: expected K = ", depth);
  R1_CHECK(b_scale.size(0) == experts && firsts.numel() == experts && lasts.numel() == experts, kOp,
           ": b_scale, starts, ends: expected those of E = ", experts, " experts");
  const int32_t *first = data<int32_t>(firsts), *last = data<int32_t>(lasts);
  const Fp8Output output = output_of(kOp, out_dtype);
  Tensor out = new_output(a, {rows, columns}, out_dtype);
  const int64_t row_bytes = columns * out.element_size();
  int64_t before = 0;
  for (int64_t e = 0; e <= experts; ++e) {
    const int64_t next = e < experts ? first[e] : rows, end = e < experts ? last[e] : rows;
    R1_CHECK(before <= next && next <= end && end <= rows, kOp, ": rows of expert ", e,
             ": expected ", before, " ≤ first ≤ end ≤ ", rows, ", got ", next, " to ", end);
    std::memset(data<char>(out) + before * row_bytes, 0, (next - before) * row_bytes);
    before = end;
  }
  const DecodedRows decoded(data<uint8_t>(left), rows, depth, experts, first, last);
  const Fp8Product whole{decoded.rows.p, decoded.units, depth,
                         scale_of(kOp, "a_scale", left_scale, rows, depth),
                         data<uint8_t>(weight), b.size(2), transposed,
                         scale_of(kOp, "b_scale", weight_scale, columns, depth, transposed),
                         nullptr, out.data_ptr(), output, columns};
  const int64_t scales = weight_scale.size(1) * weight_scale.size(2);
  multiply(experts, columns, depth,
           [&](int64_t e) {
             Fp8Product product = whole;
             product.b += e * depth * columns;
             product.b_scale.p += e * scales;
             return product;
           },
           [&](int64_t e) -> int64_t { return first[e]; },
           [&](int64_t e) -> int64_t { return last[e]; });
  return out;
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "fp8_grouped_gemm(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, Tensor starts, "
      "Tensor ends, ScalarType out_dtype, bool transposed) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("fp8_grouped_gemm", TORCH_BOX(&fp8_grouped_gemm));
}
}  // namespace r1
#endif
