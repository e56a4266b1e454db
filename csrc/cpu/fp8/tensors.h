// FP8 tensors: codes, and the granularity of their scales.
#pragma once

#include <algorithm>

#include "cpu/fp8/product.h"
#include "cpu/fp8/quantize.h"
#include "cpu/common/gemm.h"
#include "cpu/common/outputs.h"
#include "cpu/common/parallel.h"
#include "cpu/common/rows.h"

namespace r1 {
namespace {  // Tensor itself is hidden in each library
constexpr ScalarType kE4M3 = ScalarType::Float8_e4m3fn;

inline int64_t blocks(int64_t size) { return (size + kBlock - 1) / kBlock; }

// How many neighbouring elements of `size` have one of `count` scales.
inline int64_t per_scale(const char* op, const char* name, int64_t count, int64_t size) {
  if (count == size) return 1;
  if (count == 1) return size > 0 ? size : 1;
  R1_CHECK(count == blocks(size), op, ": ", name, ": expected 1, ", blocks(size), " or ", size,
           " scales for ", size, " elements, got ", count);
  return kBlock;
}

// The scale of a matrix [rows, columns], dense float32, of which `columns` are summed over.
inline Fp8Scale scale_of(const char* op, const char* name, const Tensor& scale, int64_t rows,
                         int64_t columns, bool transposed = false) {
  const int64_t last = scale.dim() - 1, r = scale.size(last - 1), c = scale.size(last);
  const int64_t in_rows = transposed ? c : r, in_columns = transposed ? r : c;
  const int64_t along = per_scale(op, name, in_columns, columns);
  R1_CHECK(in_columns == 1 || along == kBlock || columns <= kBlock, op, ": ", name,
           ": expected a scale for each 128 of the reduction, got ", in_columns, " for ", columns);
  return {data<float>(scale), per_scale(op, name, in_rows, rows), transposed ? 1 : c,
          in_columns == 1 ? 0 : transposed ? c : 1};
}

inline Fp8Output output_of(const char* op, ScalarType dtype) {
  R1_CHECK(dtype == ScalarType::BFloat16 || dtype == ScalarType::Float || dtype == ScalarType::Half,
           op, ": out_dtype: expected bfloat16, float32 or float16");
  return dtype == ScalarType::BFloat16 ? Fp8Output::bf16
         : dtype == ScalarType::Half   ? Fp8Output::fp16
                                       : Fp8Output::fp32;
}

inline Tensor codes_of(const char* op, const char* name, const Tensor& t, int64_t dims) {
  R1_CHECK(t.dim() == dims && t.scalar_type() == kE4M3, op, ": ", name, ": expected ", dims,
           " dimensions of float8_e4m3fn");
  return dense(t);
}

inline Tensor scales_of(const char* op, const char* name, const Tensor& t, int64_t dims) {
  R1_CHECK(t.dim() == dims && t.scalar_type() == ScalarType::Float, op, ": ", name, ": expected ",
           dims, " dimensions of float32");
  return dense(t);
}

// All rows in blocks of 1 × 128, handed to threads.
inline void quantize_rows(const Fp8Quantize& q) {
  const auto kernel = R1_DISPATCH(fp8_quantize_rows);
  const int64_t step = std::max<int64_t>((1 << 15) / (q.columns + 1) / 16 * 16, 16);
  parallel((q.rows + step - 1) / step, [&](int64_t task, int) {
    kernel(q, task * step, std::min((task + 1) * step, q.rows));
  });
}

// Rows of codes as numbers, whole units, for the time of a product: those from first[g] to last[g]
// of each group, in order; what lies between is padding, and is not read.
struct DecodedRows {
  static constexpr int32_t kFirst = 0;
  int64_t per, units;
  Buffer<uint32_t> rows;

  DecodedRows(const uint8_t* codes, int64_t count, int64_t depth, int64_t groups,
              const int32_t* first, const int32_t* last)
      : per(R1_DISPATCH(fp8_codes_per_unit)()), units((depth + per - 1) / per), rows(count * units) {
    const auto kernel = R1_DISPATCH(fp8_decode_rows);
    const int64_t step = std::max<int64_t>((1 << 15) / (depth + 1), 1);
    parallel((count + step - 1) / step, [&](int64_t task, int) {
      const int64_t begin = task * step, end = std::min(begin + step, count);
      int64_t g = std::upper_bound(last, last + groups, begin) - last;
      for (; g < groups && first[g] < end; ++g) {
        const int64_t row = std::max<int64_t>(begin, first[g]);
        const int64_t height = std::min<int64_t>(end, last[g]) - row;
        if (height > 0) kernel(codes + row * depth, depth, height, depth, rows.p + row * units);
      }
    });
  }

  DecodedRows(const uint8_t* codes, int32_t count, int64_t depth)  // all of them, one group
      : DecodedRows(codes, count, depth, 1, &kFirst, &count) {}
};

// Every panel of every product, as threads become free; first(i), last(i): the rows of product i.
// depth: the longest reduction.
template <class Product, class First, class Last>
void multiply(int64_t products, int64_t columns, int64_t depth, const Product& product,
              const First& first, const Last& last) {
  const int64_t panels = (columns + kPanel - 1) / kPanel;
  int64_t most = 0;
  for (int64_t i = 0; i < products; ++i) most = std::max<int64_t>(most, last(i) - first(i));
  const int64_t kept = most > kTileRows ? depth : 0;  // else blocks are used where they were made
  const int64_t per = R1_DISPATCH(fp8_codes_per_unit)();
  const int64_t scratch = (kept + 2 * kBlock) / per * kPanel;
  Buffer<uint32_t> packed(workers() * scratch);
  const auto kernel = R1_DISPATCH(fp8_product_panel);
  parallel(products * panels, [&](int64_t task, int worker) {
    const int64_t i = task / panels;
    if (first(i) >= last(i)) return;
    kernel(product(i), first(i), last(i), task % panels * kPanel, packed.p + worker * scratch);
  });
}

// The panels of one product.
inline void multiply(const Fp8Product& product, int64_t rows) {
  multiply(1, product.columns, product.depth, [&](int64_t) { return product; },
           [](int64_t) -> int64_t { return 0; }, [&](int64_t) { return rows; });
}

// A bias [columns], added in the dtype of the result.
inline OptionalTensor addend_of(const char* op, const OptionalTensor& bias, int64_t columns,
                                ScalarType dtype) {
  if (!bias) return std::nullopt;
  R1_CHECK(bias->numel() == columns, op, ": bias: expected shape [", columns, "]");
  return to_dtype(*bias, dtype);
}
}  // namespace
}  // namespace r1
