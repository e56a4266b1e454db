// fp8_dequantize: codes times scales, a row at a time.
#include "cpu/fp8/product.h"

#include "cpu/fp8/fp8.h"

namespace r1 {
// `count` codes whose scales are scale[c / per].
struct Fp8DecodeRow {
  const uint8_t* codes;
  const float* scale;
  int64_t per, count;
  void* out;
  Fp8Output output;
};
}  // namespace r1

namespace r1::R1_ISA {
namespace {
void store_floats(const Fp8DecodeRow& f, int64_t at, F v, int64_t count) {
  float lanes[kWidth];
  if (f.output == Fp8Output::bf16 && count >= kWidth)
    return store_bf16(static_cast<uint16_t*>(f.out) + at, v);
  if (f.output == Fp8Output::fp32 && count >= kWidth)
    return store(static_cast<float*>(f.out) + at, v);
  store(lanes, v);
  for (int64_t i = 0; i < count && i < kWidth; ++i) {
    if (f.output == Fp8Output::bf16) static_cast<uint16_t*>(f.out)[at + i] = float_to_bf16(lanes[i]);
    else if (f.output == Fp8Output::fp32) static_cast<float*>(f.out)[at + i] = lanes[i];
    else static_cast<_Float16*>(f.out)[at + i] = static_cast<_Float16>(lanes[i]);
  }
}

// The codes from begin to end; scale(c) is that of the codes from c on.
template <class Scale>
void decode_span(const Fp8DecodeRow& f, int64_t begin, int64_t end, const Scale& scale) {
  for (int64_t c = begin; c < end; c += kWidth) {
    const int64_t count = end - c;
    store_floats(f, c, decode(load_codes(f.codes + c, count)) * scale(c), count);
  }
}
}  // namespace

void fp8_decode_row(const Fp8DecodeRow& f) {
  if (f.per == 1)
    return decode_span(f, 0, f.count, [&](int64_t c) {
      F scale{};
      for (int i = 0; i < kWidth; ++i) scale[i] = f.scale[c + i < f.count ? c + i : 0];
      return scale;
    });
  // Span by span: a division for each vector took longer than its codes.
  for (int64_t c = 0; c < f.count; c += f.per) {
    const F scale = splat(f.scale[c / f.per]);
    decode_span(f, c, c + f.per < f.count ? c + f.per : f.count, [&](int64_t) { return scale; });
  }
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/fp8/tensors.h"

R1_DECLARE(void fp8_decode_row(const Fp8DecodeRow&))

namespace r1 {
namespace {
Tensor fp8_dequantize(Tensor codes, Tensor scale, ScalarType dtype) {
  constexpr const char* op = "fp8_dequantize";
  const int64_t dims = codes.dim();
  R1_CHECK(dims == 2 || dims == 3, op, ": data: expected shape [R, C] or [E, R, C]");
  const Tensor from = codes_of(op, "data", codes, dims), factors = scales_of(op, "scale", scale, dims);
  const int64_t rows = codes.size(dims - 2), columns = codes.size(dims - 1);
  const int64_t scale_rows = scale.size(dims - 2), scale_columns = scale.size(dims - 1);
  R1_CHECK(dims == 2 || scale.size(0) == codes.size(0), op, ": scale: expected one for each expert");
  const int64_t down = per_scale(op, "scale", scale_rows, rows);
  const int64_t across = per_scale(op, "scale", scale_columns, columns);
  const Fp8Output output = output_of(op, dtype);
  Tensor out = dims == 3 ? new_output(codes, {codes.size(0), rows, columns}, dtype)
                         : new_output(codes, {rows, columns}, dtype);
  const auto kernel = R1_DISPATCH(fp8_decode_row);
  const int64_t total = columns > 0 ? codes.numel() / columns : 0, size = out.element_size();
  const int64_t step = std::max<int64_t>((1 << 15) / (columns + 1), 1);
  parallel((total + step - 1) / step, [&](int64_t task, int) {
    for (int64_t i = task * step; i < std::min(total, (task + 1) * step); ++i) {
      const int64_t e = i / rows, scale_row = e * scale_rows + i % rows / down;
      kernel({data<uint8_t>(from) + i * columns, data<float>(factors) + scale_row * scale_columns,
              across, columns, data<char>(out) + i * columns * size, output});
    }
  });
  return out;
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def("fp8_dequantize(Tensor data, Tensor scale, ScalarType dtype) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) { m.impl("fp8_dequantize", TORCH_BOX(&fp8_dequantize)); }
}  // namespace r1
#endif
