// fp8_grouped_wgrad on sm_90: the tiles of all experts, each over its expert's part of the reduction.
#include "cuda/fp8_operands.h"

namespace r1 {
namespace {
struct WgradWalk {
  const int* offsets;  // [experts + 1], multiples of 128
  int experts, rows, columns, row_tiles, column_tiles, blocks;
  int turn = 0;

  __device__ bool next(Tile& tile) {
    const int index = blockIdx.x + gridDim.x * turn++;
    const int each = row_tiles * column_tiles, expert = index / each, place = index % each;
    if (expert >= experts) return false;
    tile.row = place % row_tiles * kTileRows<1>, tile.end_row = rows;
    tile.column = tile.b_row = place / row_tiles * kTileColumns;
    tile.first_block = offsets[expert] / kTileBlock;
    tile.blocks = offsets[expert + 1] / kTileBlock - tile.first_block;
    trap_unless(tile.first_block >= 0 && tile.first_block + tile.blocks <= blocks);
    tile.b_scale = 0, tile.out = int64_t{expert} * rows * columns;
    return true;
  }
};

void multiply(const Tensor& left, const Tensor& left_scale, const Tensor& right,
              const Tensor& right_scale, const Tensor& offsets, const Tensor& out, bool adds) {
  const OnDevice device(left);
  R1_CHECK(device.is_sm90(), "fp8_grouped_wgrad: device: expected compute capability 9.0");
  if (out.numel() == 0) return;
  const Tensor ends = to_dtype(offsets, ScalarType::Int);
  const FP8Operands given(device, left, left_scale, right, right_scale, false);
  const WgradWalk walk{data<const int>(ends), static_cast<int>(out.size(0)),
                       static_cast<int>(out.size(1)), static_cast<int>(out.size(2)),
                       count_of(out.size(1), kTileRows<1>), count_of(out.size(2), kTileColumns),
                       count_of(left.size(1), kTileBlock)};
  given.launch<1, true>(device, "fp8_grouped_wgrad",
                        int64_t{walk.experts} * walk.row_tiles * walk.column_tiles,
                        output_of(out, std::nullopt, adds), walk);
}

Tensor fp8_grouped_wgrad(Tensor left, Tensor left_scale, Tensor right, Tensor right_scale,
                         Tensor offsets) {
  Tensor out = new_empty(left, {offsets.size(0) - 1, left.size(0), right.size(0)},
                         ScalarType::Float);
  multiply(left, left_scale, right, right_scale, offsets, out, false);
  return out;
}

void fp8_grouped_wgrad_(Tensor accumulate, Tensor left, Tensor left_scale, Tensor right,
                        Tensor right_scale, Tensor offsets) {
  Tensor out = dense(accumulate);
  multiply(left, left_scale, right, right_scale, offsets, out, true);
  if (!accumulate.is_contiguous()) torch::stable::copy_(accumulate, out);
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cuda, m) {
  m.def(
      "fp8_grouped_wgrad(Tensor left, Tensor left_scale, Tensor right, Tensor right_scale, "
      "Tensor offsets) -> Tensor");
  m.def(
      "fp8_grouped_wgrad_(Tensor(a!) accumulate, Tensor left, Tensor left_scale, Tensor right, "
      "Tensor right_scale, Tensor offsets) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cuda, CUDA, m) {
  m.impl("fp8_grouped_wgrad", TORCH_BOX(&fp8_grouped_wgrad));
  m.impl("fp8_grouped_wgrad_", TORCH_BOX(&fp8_grouped_wgrad_));
}
}  // namespace r1
