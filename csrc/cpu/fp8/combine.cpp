// fp8_combine: rows in FP8 are decoded as they are added, a block of 128 columns at a time.
#include "cpu/fp8/product.h"

#include "cpu/fp8/fp8.h"

namespace r1 {
struct Fp8Combine {
  const uint8_t* codes;  // [P, H]
  const float* scale;    // [P][H/128 rounded up]
  const float* weights;  // [T, k], or null for 1
  const int32_t* inverse;
  int64_t width, top_k;
  void* out;
  Fp8Output output;
};
}  // namespace r1

namespace r1::R1_ISA {
void fp8_combine_token(const Fp8Combine& f, int64_t t) {
  const int64_t across = (f.width + kBlock - 1) / kBlock;
  for (int64_t c = 0; c < f.width; c += kBlock) {
    float sums[kBlock] = {};
    const int64_t columns = f.width - c < kBlock ? f.width - c : kBlock;
    for (int64_t j = 0; j < f.top_k; ++j) {
      const int64_t row = f.inverse[t * f.top_k + j];
      if (row < 0) continue;
      const F scale = splat(f.scale[row * across + c / kBlock]);
      const F weight = splat(f.weights ? f.weights[t * f.top_k + j] : 1.0f);
      const uint8_t* codes = f.codes + row * f.width + c;
      for (int64_t n = 0; n < columns; n += kWidth) {
        const F v = decode(load_codes(codes + n, columns - n)) * scale;
        store(sums + n, load(sums + n) + v * weight);
      }
    }
    const int64_t at = t * f.width + c;
    for (int64_t n = 0; n < columns; n += kWidth) {
      const F v = load(sums + n);
      const bool whole = columns - n >= kWidth;
      if (f.output == Fp8Output::bf16 && whole)
        store_bf16(static_cast<uint16_t*>(f.out) + at + n, v);
      else
        for (int64_t i = n; i < columns && i < n + kWidth; ++i) {
          if (f.output == Fp8Output::bf16) static_cast<uint16_t*>(f.out)[at + i] = float_to_bf16(sums[i]);
          else if (f.output == Fp8Output::fp32) static_cast<float*>(f.out)[at + i] = sums[i];
          else static_cast<_Float16*>(f.out)[at + i] = static_cast<_Float16>(sums[i]);
        }
    }
  }
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/fp8/tensors.h"
#include "cpu/moe/slots.h"

R1_DECLARE(void fp8_combine_token(const Fp8Combine&, int64_t))

namespace r1 {
namespace {
Tensor fp8_combine(Tensor codes, Tensor scale, OptionalTensor weights, Tensor inverse,
                   ScalarType dtype) {
  constexpr const char* op = "fp8_combine";
  const Tensor rows = codes_of(op, "data", codes, 2), factors = scales_of(op, "scale", scale, 2);
  const int64_t width = codes.size(1), tokens = inverse.size(0), top_k = inverse.size(1);
  R1_CHECK(scale.size(0) == codes.size(0) && scale.size(1) == blocks(width), op,
           ": scale: expected shape [", codes.size(0), ", ", blocks(width), "]");
  const Tensor order = to_dtype(inverse, ScalarType::Int);
  const int32_t* row = data<int32_t>(order);
  for (int64_t i = 0; i < order.numel(); ++i)
    R1_CHECK(row[i] >= -1 && row[i] < codes.size(0), op, ": inverse: expected rows below ",
             codes.size(0), " or -1, got ", row[i]);
  OptionalTensor w;
  if (weights) {
    R1_CHECK(weights->numel() == inverse.numel(), op, ": weights: expected the shape of inverse");
    w = to_dtype(*weights, ScalarType::Float);
  }
  Tensor out = new_empty(codes, {tokens, width}, dtype);
  const Fp8Combine f{data<uint8_t>(rows), data<float>(factors), data_or_null<float>(w), row, width,
                     top_k, out.data_ptr(), output_of(op, dtype)};
  const auto kernel = R1_DISPATCH(fp8_combine_token);
  parallel_rows(tokens, width * top_k, [&](int64_t t) { kernel(f, t); });
  return out;
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "fp8_combine(Tensor data, Tensor scale, Tensor? weights, Tensor inverse, ScalarType dtype) "
      "-> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) { m.impl("fp8_combine", TORCH_BOX(&fp8_combine)); }
}  // namespace r1
#endif
