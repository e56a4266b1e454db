// fp8_grouped_gemm on sm_90: the tiles of the experts' rows, and of the rows of nobody, which sum
// nothing.
#include "cuda/fp8_operands.h"

namespace r1 {
namespace {
// Segments follow one another: rows of nobody, those of expert 0, of nobody, of expert 1, and so on.
template <int kHeights>
struct GroupedWalk {
  const int *starts, *ends;  // [experts]
  int experts, rows, columns, column_tiles, blocks;
  int64_t scale_step;  // from an expert's scales of b to the next one's
  int turn = 0, segment = 0, begin = 0, tiles_before = 0;

  __device__ int end_of(int segment) const {
    if (segment == 2 * experts) return rows;
    return segment % 2 == 0 ? starts[segment / 2] : ends[segment / 2];
  }

  __device__ bool next(Tile& tile) {
    const int index = blockIdx.x + gridDim.x * turn++;
    for (; segment <= 2 * experts; ++segment) {
      const int end = end_of(segment);
      trap_unless(end >= begin && end <= rows);
      const int row_tiles = (end - begin + kTileRows<kHeights> - 1) / kTileRows<kHeights>;
      const int place = index - tiles_before;
      if (place < row_tiles * column_tiles) {
        const int expert = segment / 2;
        tile.row = begin + place % row_tiles * kTileRows<kHeights>, tile.end_row = end;
        tile.column = place / row_tiles * kTileColumns;
        tile.b_row = expert * columns + tile.column;
        tile.first_block = 0, tile.blocks = segment % 2 == 0 ? 0 : blocks;
        tile.b_scale = expert * scale_step, tile.out = 0;
        return true;
      }
      tiles_before += row_tiles * column_tiles, begin = end;
    }
    return false;
  }
};

Tensor fp8_grouped_gemm(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, Tensor starts,
                        Tensor ends, ScalarType out_dtype, bool transposed) {
  const OnDevice device(a);
  R1_CHECK(device.is_sm90(), "fp8_grouped_gemm: device: expected compute capability 9.0");
  const int64_t rows = a.size(0), columns = b.size(transposed ? 2 : 1);
  Tensor out = new_empty(a, {rows, columns}, out_dtype);
  if (out.numel() == 0) return out;
  const Tensor from = to_dtype(starts, ScalarType::Int), to = to_dtype(ends, ScalarType::Int);
  const FP8Operands given(device, a, a_scale, b, b_scale, transposed);
  given.with_shape(device, [&](auto heights, auto by_column) {
    constexpr int kHeights = decltype(heights)::value;
    const GroupedWalk<kHeights> walk{
        data<const int>(from), data<const int>(to), static_cast<int>(b.size(0)),
        static_cast<int>(rows), static_cast<int>(columns), count_of(columns, kTileColumns),
        count_of(a.size(1), kTileBlock), given.b_scale.stride(0)};
    const int64_t row_tiles = count_of(rows, kTileRows<kHeights>) + 2 * b.size(0);
    given.launch<kHeights, decltype(by_column)::value>(device, "fp8_grouped_gemm",
                                                       row_tiles * walk.column_tiles,
                                                       output_of(out, std::nullopt, false), walk);
  });
  return out;
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cuda, m) {
  m.def(
      "fp8_grouped_gemm(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, Tensor starts, "
      "Tensor ends, ScalarType out_dtype, bool transposed) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cuda, CUDA, m) {
  m.impl("fp8_grouped_gemm", TORCH_BOX(&fp8_grouped_gemm));
}
}  // namespace r1
