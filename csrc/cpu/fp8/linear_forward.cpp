// fp8_linear_forward: rows are quantized and multiplied in one call; of few rows, calls are a large part.
#include "cpu/fp8/product.h"
#include "cpu/fp8/quantize.h"

#ifdef R1_BASELINE
#include "cpu/fp8/tensors.h"
#include "cpu/common/parallel.h"

namespace r1 {
namespace {
constexpr const char* kOp = "fp8_linear_forward";

void quantize_tiles(const Fp8Quantize& q) {
  const auto kernel = R1_DISPATCH(fp8_quantize_tile);
  const int64_t across = blocks(q.columns);
  parallel(blocks(q.rows) * across, [&](int64_t task, int) {
    kernel(q, task / across * 128, task % across * 128);
  });
}

std::tuple<Tensor, Tensor, Tensor> fp8_linear_forward(Tensor x, Tensor weight, Tensor scale,
                                                      OptionalTensor bias, bool power_of_two,
                                                      bool both) {
  R1_CHECK(x.dim() == 2, kOp, ": x: expected shape [M, K]");
  const Tensor right = codes_of(kOp, "weight", weight, 2), factors = scales_of(kOp, "scale", scale, 2);
  const int64_t rows = x.size(0), depth = x.size(1), columns = weight.size(0);
  R1_CHECK(weight.size(1) == depth, kOp, ": weight: expected K = ", depth);
  const OptionalTensor addend = addend_of(kOp, bias, columns, x.scalar_type());
  const Tensor source = dense(x);
  Buffer<uint8_t> codes(rows * depth);
  Buffer<float> of_rows(rows * blocks(depth));
  const int64_t tall = both ? blocks(rows) : 0, wide = both ? depth : 0;
  const Tensor data_t = new_empty(x, {wide, tall * 128}, ScalarType::Float8_e4m3fn);
  const Tensor scale_t = new_empty(x, {wide, tall}, ScalarType::Float);
  const Fp8Quantize rows_of_x{
      .x = source.data_ptr(), .bf16 = is_bf16(x), .rows = rows, .columns = depth,
      .gather = nullptr, .top_k = 1, .block = Fp8Block::row, .power_of_two = power_of_two,
      .data = codes.p, .data_t = both ? data<uint8_t>(data_t) : nullptr,
      .scale = of_rows.p, .scale_t = both ? data<float>(scale_t) : nullptr};
  if (both) quantize_tiles(rows_of_x);
  else quantize_rows(rows_of_x);
  Tensor out = new_output(x, {rows, columns});
  const DecodedRows left(codes.p, rows, depth);
  const Fp8Product product{left.rows.p, left.units, depth, {of_rows.p, 1, blocks(depth), 1},
                           data<uint8_t>(right), depth, false,
                           scale_of(kOp, "scale", factors, columns, depth),
                           addend ? addend->data_ptr() : nullptr, out.data_ptr(),
                           output_of(kOp, x.scalar_type()), columns};
  multiply(product, rows);
  return {out, data_t, scale_t};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "fp8_linear_forward(Tensor x, Tensor weight, Tensor scale, Tensor? bias, bool power_of_two, "
      "bool both) -> (Tensor y, Tensor data_t, Tensor scale_t)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("fp8_linear_forward", TORCH_BOX(&fp8_linear_forward));
}
}  // namespace r1
#endif
