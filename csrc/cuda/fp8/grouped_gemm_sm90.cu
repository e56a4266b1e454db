// fp8_grouped_gemm on sm_90: the tiles of the experts' rows, and of the rows of nobody, which sum
// nothing.
#include "cuda/fp8/operands.h"

namespace r1 {
namespace {
// Segments follow one another: rows of nobody, those of expert 0, of nobody, of expert 1, and so on.
template <class Shape>
struct GroupedWalk {
  Order<Shape> order;
  const int *starts, *ends;  // [experts]
  int experts, rows, columns, blocks;
  int64_t scale_step;  // from an expert's scales of b to the next one's
  int step = -1;
  // The segment at hand, none at first.
  int segment = -1, begin = 0, end = 0, row_steps = 0, steps_before = 0, steps = 0;

  __device__ int end_of(int segment) const {
    if (segment == 2 * experts) return rows;
    return segment % 2 == 0 ? starts[segment / 2] : ends[segment / 2];
  }

  __device__ bool next(Tile& tile) {
    step = step < 0 ? order.first_step() : step + order.turn();
    while (step - steps_before >= steps) {
      if (segment == 2 * experts) return false;
      steps_before += steps, begin = end, end = end_of(++segment);
      trap_unless(end >= begin && end <= rows);
      row_steps = order.row_steps(end - begin), steps = row_steps * order.column_steps;
    }
    const int expert = segment / 2;
    order.locate(step - steps_before, row_steps, tile.row, tile.column);
    tile.row += begin, tile.end_row = end;
    tile.b_row = expert * columns + tile.column;
    tile.first_block = 0, tile.blocks = segment % 2 == 0 ? 0 : blocks;
    tile.b_scale = expert * scale_step, tile.out_row = 0;
    return true;
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
  given.with_tiles(device, given.size_of(), [&](auto shape, Pairs pairs) {
    using Shape = decltype(shape);
    const Order<Shape> order(pairs, columns);
    const int64_t row_steps = order.row_steps(static_cast<int>(rows)) + 2 * b.size(0);
    given.launch<Shape>(
        device, "fp8_grouped_gemm", out, output_of(out, std::nullopt, false), pairs,
        row_steps * order.column_steps, [&](int64_t scale_step) {
          return GroupedWalk<Shape>{order, data<const int>(from), data<const int>(to),
                                    static_cast<int>(b.size(0)), static_cast<int>(rows),
                                    static_cast<int>(columns), count_of(a.size(1), kTileBlock),
                                    scale_step};
        });
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
