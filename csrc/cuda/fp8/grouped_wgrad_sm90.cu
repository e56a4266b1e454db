// fp8_grouped_wgrad on sm_90: the tiles of all experts, each over its expert's part of the reduction.
#include "cuda/fp8/operands.h"

namespace r1 {
namespace {
template <class Shape>
struct WgradWalk {
  Order<Shape> order;
  Divisor of_expert;   // steps
  const int* offsets;  // [experts + 1], multiples of 128
  int experts, rows, blocks;
  int step = -1;

  __device__ bool next(Tile& tile) {
    step = step < 0 ? order.first_step() : step + order.turn();
    const int expert = of_expert.quotient(step);
    if (expert >= experts) return false;
    order.locate(step - expert * of_expert.by(), order.row_steps(rows), tile.row, tile.column);
    tile.end_row = rows, tile.b_row = tile.column;
    tile.first_block = offsets[expert] / kTileBlock;
    tile.blocks = offsets[expert + 1] / kTileBlock - tile.first_block;
    trap_unless(tile.first_block >= 0 && tile.blocks >= 0 &&
                tile.first_block + tile.blocks <= blocks);
    tile.b_scale = 0, tile.out_row = expert * rows;
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
  const int experts = static_cast<int>(out.size(0)), rows = static_cast<int>(out.size(1));
  const int blocks = count_of(left.size(1), kTileBlock);
  using Shape = FP8Shape<128, 128, true>;
  const ProductSize size{experts, rows, out.size(2), blocks / experts, true};
  const Pairs pairs = given.tile_of(size, device).pairs;
  const Order<Shape> order(pairs, out.size(2));
  const int steps = order.row_steps(rows) * order.column_steps;
  given.launch<Shape>(device, "fp8_grouped_wgrad", out, output_of(out, std::nullopt, adds), pairs,
                      int64_t{experts} * steps, [&](int64_t) {
                        return WgradWalk<Shape>{order,   Divisor(steps), data<const int>(ends),
                                                experts, rows,           blocks};
                      });
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
