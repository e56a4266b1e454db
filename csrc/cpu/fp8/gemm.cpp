// fp8_gemm and fp8_gemm_: one product, its panels handed to threads.
#include "cpu/fp8/product.h"

#ifdef R1_BASELINE
#include "cpu/fp8/tensors.h"

namespace r1 {
namespace {
struct Gemm {
  Tensor a, a_scale, b, b_scale;
  int64_t rows, columns, depth;
  bool transposed;

  Gemm(const char* op, const Tensor& a_codes, const Tensor& a_scales, const Tensor& b_codes,
       const Tensor& b_scales, bool by_columns)
      : a(codes_of(op, "a", a_codes, 2)), a_scale(scales_of(op, "a_scale", a_scales, 2)),
        b(codes_of(op, "b", b_codes, 2)), b_scale(scales_of(op, "b_scale", b_scales, 2)),
        rows(a.size(0)), columns(b.size(by_columns ? 1 : 0)), depth(a.size(1)),
        transposed(by_columns) {
    R1_CHECK(b.size(by_columns ? 0 : 1) == depth, op, ": b: expected K = ", depth);
  }

  void run(const char* op, const void* bias, void* out, Fp8Output output) const {
    const DecodedRows left(data<uint8_t>(a), rows, depth);
    const Fp8Product product{left.rows.p, left.units, depth,
                             scale_of(op, "a_scale", a_scale, rows, depth),
                             data<uint8_t>(b), b.size(1), transposed,
                             scale_of(op, "b_scale", b_scale, columns, depth, transposed),
                             bias, out, output, columns};
    multiply(product, rows);
  }
};

Tensor fp8_gemm(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, OptionalTensor bias,
                ScalarType out_dtype, bool transposed) {
  const Gemm gemm("fp8_gemm", a, a_scale, b, b_scale, transposed);
  const Fp8Output output = output_of("fp8_gemm", out_dtype);
  const OptionalTensor addend = addend_of("fp8_gemm", bias, gemm.columns, out_dtype);
  Tensor out = new_output(a, {gemm.rows, gemm.columns}, out_dtype);
  gemm.run("fp8_gemm", addend ? addend->data_ptr() : nullptr, out.data_ptr(), output);
  return out;
}

void fp8_gemm_(Tensor accumulate, Tensor a, Tensor a_scale, Tensor b, Tensor b_scale,
               bool transposed) {
  const Gemm gemm("fp8_gemm_", a, a_scale, b, b_scale, transposed);
  R1_CHECK(accumulate.dim() == 2 && accumulate.size(0) == gemm.rows &&
               accumulate.size(1) == gemm.columns && accumulate.scalar_type() == ScalarType::Float,
           "fp8_gemm_: accumulate: expected float32 of shape [", gemm.rows, ", ", gemm.columns, "]");
  const Tensor sums = dense(accumulate);
  gemm.run("fp8_gemm_", nullptr, sums.data_ptr(), Fp8Output::add);
  if (sums.data_ptr() != accumulate.data_ptr()) torch::stable::copy_(accumulate, sums);
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "fp8_gemm(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, Tensor? bias, "
      "ScalarType out_dtype, bool transposed) -> Tensor");
  m.def(
      "fp8_gemm_(Tensor(a!) accumulate, Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, "
      "bool transposed) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("fp8_gemm", TORCH_BOX(&fp8_gemm));
  m.impl("fp8_gemm_", TORCH_BOX(&fp8_gemm_));
}
}  // namespace r1
#endif
