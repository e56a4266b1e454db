// fp8_grouped_wgrad and fp8_grouped_wgrad_: the reduction runs along the rows of each expert.
#include "cpu/fp8/product.h"

#ifdef R1_BASELINE
#include "cpu/fp8/tensors.h"

namespace r1 {
namespace {
struct Wgrad {
  Tensor left, left_scale, right, right_scale, offsets;
  int64_t height, columns, rows, experts;

  Wgrad(const char* op, const Tensor& l, const Tensor& ls, const Tensor& r, const Tensor& rs,
        const Tensor& ends)
      : left(codes_of(op, "left", l, 2)), left_scale(scales_of(op, "left_scale", ls, 2)),
        right(codes_of(op, "right", r, 2)), right_scale(scales_of(op, "right_scale", rs, 2)),
        offsets(to_dtype(ends, ScalarType::Int)), height(l.size(0)), columns(r.size(0)),
        rows(l.size(1)), experts(ends.numel() - 1) {
    R1_CHECK(r.size(1) == rows && rows % kBlock == 0, op, ": right: expected P = ", rows,
             ", a multiple of 128, got ", r.size(1));
    R1_CHECK(ls.size(0) == height && ls.size(1) == blocks(rows) && rs.size(0) == columns &&
                 rs.size(1) == blocks(rows),
             op, ": scales: expected one for each row and 128 columns");
    const int32_t* end = data<int32_t>(offsets);
    R1_CHECK(experts >= 0 && end[0] == 0, op, ": offsets: expected to start at 0");
    for (int64_t e = 0; e < experts; ++e)
      R1_CHECK(end[e] <= end[e + 1] && end[e + 1] <= rows && end[e + 1] % kBlock == 0, op,
               ": offsets[", e + 1, "]: expected a multiple of 128 from ", end[e], " to ", rows,
               ", got ", end[e + 1]);
  }

  void run(float* out, Fp8Output output) const {
    const DecodedRows decoded(data<uint8_t>(left), height, rows);
    const int32_t* end = data<int32_t>(offsets);
    int64_t longest = 0;
    for (int64_t e = 0; e < experts; ++e) longest = std::max<int64_t>(longest, end[e + 1] - end[e]);
    const int64_t across = blocks(rows);
    multiply(experts, columns, longest,
             [&](int64_t e) {
               const int64_t first = end[e], block = first / kBlock;
               return Fp8Product{decoded.rows.p + first / decoded.per, decoded.units, end[e + 1] - first,
                                 {data<float>(left_scale) + block, 1, across, 1},
                                 data<uint8_t>(right) + first, rows, false,
                                 {data<float>(right_scale) + block, 1, across, 1},
                                 nullptr, out + e * height * columns, output, columns};
             },
             [](int64_t) -> int64_t { return 0; },
             [&](int64_t e) {  // nothing is added for an expert without rows
               return output == Fp8Output::add && end[e] == end[e + 1] ? 0 : height;
             });
  }
};

Tensor fp8_grouped_wgrad(Tensor left, Tensor left_scale, Tensor right, Tensor right_scale,
                         Tensor offsets) {
  const Wgrad wgrad("fp8_grouped_wgrad", left, left_scale, right, right_scale, offsets);
  Tensor out = new_output(left, {wgrad.experts, wgrad.height, wgrad.columns}, ScalarType::Float);
  wgrad.run(data<float>(out), Fp8Output::fp32);
  return out;
}

void fp8_grouped_wgrad_(Tensor accumulate, Tensor left, Tensor left_scale, Tensor right,
                        Tensor right_scale, Tensor offsets) {
  const Wgrad wgrad("fp8_grouped_wgrad_", left, left_scale, right, right_scale, offsets);
  R1_CHECK(accumulate.dim() == 3 && accumulate.size(0) == wgrad.experts &&
               accumulate.size(1) == wgrad.height && accumulate.size(2) == wgrad.columns &&
               accumulate.scalar_type() == ScalarType::Float,
           "fp8_grouped_wgrad_: accumulate: expected float32 of shape [E, N, K]");
  const Tensor sums = dense(accumulate);
  wgrad.run(data<float>(sums), Fp8Output::add);
  if (sums.data_ptr() != accumulate.data_ptr()) torch::stable::copy_(accumulate, sums);
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "fp8_grouped_wgrad(Tensor left, Tensor left_scale, Tensor right, Tensor right_scale, "
      "Tensor offsets) -> Tensor");
  m.def(
      "fp8_grouped_wgrad_(Tensor(a!) accumulate, Tensor left, Tensor left_scale, Tensor right, "
      "Tensor right_scale, Tensor offsets) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("fp8_grouped_wgrad", TORCH_BOX(&fp8_grouped_wgrad));
  m.impl("fp8_grouped_wgrad_", TORCH_BOX(&fp8_grouped_wgrad_));
}
}  // namespace r1
#endif
