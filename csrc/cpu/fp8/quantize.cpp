// fp8_quantize: tiles of 128 × 128 go through the cache once, whatever blocks and copies are wanted;
// for rows alone there are no tiles.
#include "cpu/fp8/quantize.h"

#include "cpu/fp8/tile.h"
#include "cpu/common/gemm.h"

namespace r1::R1_ISA {
namespace {
template <class T>
void load_row(const typename T::Element* from, int64_t count, float* to) {
  int64_t c = 0;
  for (; c + kWidth <= count; c += kWidth) store(to + c, T::load(from + c));
  if (c == count) return;
  typename T::Element rest[kWidth] = {};
  memcpy(rest, from + c, (count - c) * sizeof(*rest));
  store(to + c, T::load(rest));
}

// The row of x that row r of the result is, or -1 for zeros.
inline int64_t source_of(const Fp8Quantize& q, int64_t r) {
  if (!q.gather) return r;
  return q.gather[r] < 0 ? -1 : q.gather[r] / q.top_k;
}

template <class T>
void quantize_source(const Fp8Quantize& q, int64_t r0, int64_t r1) {
  using Element = typename T::Element;
  static constexpr Element kZeros[kBlock] = {};
  const auto* x = static_cast<const Element*>(q.x);
  const int64_t across = (q.columns + kBlock - 1) / kBlock;
  Element padded[kWidth][kBlock];
  for (int64_t b = 0; b < across; ++b) {
    const int64_t column = b * kBlock, left = q.columns - column;
    const int64_t columns = left < kBlock ? left : kBlock;
    const bool odd = columns % (4 * kWidth) != 0;
    const auto row = [&](int64_t r) -> const Element* {
      const int64_t from = source_of(q, r0 + r);
      if (from < 0) return kZeros;
      const Element* there = x + from * q.columns + column;
      if (!odd) return there;
      memset(padded[r % kWidth], 0, sizeof(padded[0]));
      memcpy(padded[r % kWidth], there, columns * sizeof(Element));
      return padded[r % kWidth];
    };
    quantize_rows<T>(r1 - r0, columns, row, q.power_of_two, q.data + r0 * q.columns + column, q.columns,
                     q.scale + r0 * across + b, across);
  }
}

template <class T>
void load_tile(const Fp8Quantize& q, int64_t row, int64_t column, Fp8Tile& tile) {
  const auto* x = static_cast<const typename T::Element*>(q.x);
  // Rows of zeros too: a square of transposed codes takes up to three beyond the last one.
  for (int64_t r = 0; r < kBlock && r < (tile.rows + 3) / 4 * 4; ++r) {
    const int64_t from = r < tile.rows ? source_of(q, row + r) : -1;
    if (from < 0) memset(tile.v[r], 0, sizeof(tile.v[r]));
    else load_row<T>(x + from * q.columns + column, tile.columns, tile.v[r]);
  }
}
}  // namespace

void fp8_quantize_rows(const Fp8Quantize& q, int64_t r0, int64_t r1) {
  q.bf16 ? quantize_source<BF16>(q, r0, r1) : quantize_source<F32>(q, r0, r1);
}

void fp8_quantize_tile(const Fp8Quantize& q, int64_t row, int64_t column) {
  Fp8Tile tile;
  tile.rows = q.rows - row < kBlock ? q.rows - row : kBlock;
  tile.columns = q.columns - column < kBlock ? q.columns - column : kBlock;
  q.bf16 ? load_tile<BF16>(q, row, column, tile) : load_tile<F32>(q, row, column, tile);
  const int64_t across = (q.columns + kBlock - 1) / kBlock, down = (q.rows + kBlock - 1) / kBlock;
  const int64_t bc = column / kBlock, br = row / kBlock;
  uint8_t* data = q.data + row * q.columns + column;
  if (q.block == Fp8Block::row)
    quantize_rows(tile, q.power_of_two, data, q.columns, q.scale + row * across + bc, across);
  else if (q.block == Fp8Block::square)
    quantize_square(tile, q.power_of_two, data, q.columns, q.scale + br * across + bc);
  else
    quantize_columns(tile, q.power_of_two, data, q.columns, q.scale + br * q.columns + column);
  if (q.data_t)
    quantize_transposed(tile, q.power_of_two, q.data_t + column * down * kBlock + row,
                        down * kBlock, q.scale_t + column * down + br, down);
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/fp8/tensors.h"
#include "cpu/common/parallel.h"

namespace r1 {
namespace {
std::tuple<Tensor, Tensor, Tensor, Tensor> fp8_quantize(Tensor x, OptionalTensor gather,
                                                        int64_t top_k, int64_t rows,
                                                        int64_t columns, bool power_of_two,
                                                        bool both) {
  const bool experts = x.dim() == 3;
  R1_CHECK(experts || x.dim() == 2, "fp8_quantize: x: expected shape [R, C] or [E, R, C]");
  R1_CHECK((rows == 1 || rows == kBlock) && (columns == 1 || columns == kBlock) && rows * columns > 1,
           "fp8_quantize: block: expected (1, 128), (128, 1) or (128, 128), got (", rows, ", ",
           columns, ")");
  R1_CHECK(top_k > 0 && top_k <= INT32_MAX, "fp8_quantize: top_k: expected 1 to 2^31 − 1, got ", top_k);
  R1_CHECK((!gather && !both) || (rows == 1 && !experts),
           "fp8_quantize: gather, both: expected block (1, 128) and x [R, C]");
  const int64_t copies = experts ? x.size(0) : 1, width = x.size(x.dim() - 1);
  const int64_t from = x.size(x.dim() - 2);
  OptionalTensor order;
  if (gather) {
    order = to_dtype(*gather, ScalarType::Int);
    const int32_t* slot = data<int32_t>(*order);
    for (int64_t i = 0; i < order->numel(); ++i)
      R1_CHECK(slot[i] >= -1 && slot[i] < from * top_k, "fp8_quantize: gather[", i,
               "]: expected -1 ≤ slot < ", from * top_k, ", got ", slot[i]);
  }
  const int64_t height = order ? order->numel() : from;
  const int64_t down = blocks(height), across = blocks(width);
  const int64_t scale_rows = rows == 1 ? height : down, scale_columns = columns == 1 ? width : across;
  const Tensor source = dense(x);
  auto make = [&](int64_t r, int64_t c, ScalarType dtype) {
    return experts ? new_output(x, {copies, r, c}, dtype) : new_output(x, {r, c}, dtype);
  };
  Tensor codes = make(height, width, kE4M3), scale = make(scale_rows, scale_columns, ScalarType::Float);
  Tensor codes_t = new_output(x, {both ? width : 0, both ? down * kBlock : 0}, kE4M3);
  Tensor scale_t = new_empty(x, {both ? width : 0, both ? down : 0}, ScalarType::Float);
  const Fp8Block block = rows == 1      ? Fp8Block::row
                         : columns == 1 ? Fp8Block::column
                                        : Fp8Block::square;
  const auto of_expert = [&](int64_t e) {
    return Fp8Quantize{data<char>(source) + e * height * width * x.element_size(), is_bf16(x), height,
                       width, data_or_null<int32_t>(order), top_k, block, power_of_two,
                       data<uint8_t>(codes) + e * height * width,
                       both ? data<uint8_t>(codes_t) : nullptr,
                       data<float>(scale) + e * scale_rows * scale_columns, data<float>(scale_t)};
  };
  if (block == Fp8Block::row && !both) {
    for (int64_t e = 0; e < copies; ++e) quantize_rows(of_expert(e));
    return {codes, scale, codes_t, scale_t};
  }
  const auto kernel = R1_DISPATCH(fp8_quantize_tile);
  parallel(copies * down * across, [&](int64_t task, int) {
    kernel(of_expert(task / (down * across)), task / across % down * kBlock, task % across * kBlock);
  });
  return {codes, scale, codes_t, scale_t};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "fp8_quantize(Tensor x, Tensor? gather, SymInt top_k, int rows, int columns, "
      "bool power_of_two, bool both) -> (Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) { m.impl("fp8_quantize", TORCH_BOX(&fp8_quantize)); }
}  // namespace r1
#endif
