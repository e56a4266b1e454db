// fp8_gemm on sm_90: one matrix, all of the reduction a tile.
#include "cuda/fp8/gemm.h"

#include "cuda/fp8/operands.h"

namespace r1 {
namespace {
template <class Shape>
struct MatrixWalk {
  Order<Shape> order;
  int rows, blocks;
  int step = -1;

  __device__ bool next(Tile& tile) {
    step = step < 0 ? order.first_step() : step + order.turn();
    const int row_steps = order.row_steps(rows);
    if (step >= row_steps * order.column_steps) return false;
    order.locate(step, row_steps, tile.row, tile.column);
    tile.end_row = rows, tile.b_row = tile.column;
    tile.first_block = 0, tile.blocks = blocks;
    tile.b_scale = tile.out_row = 0;
    return true;
  }
};

void multiply(const Tensor& a, const Tensor& a_scale, const Tensor& b, const Tensor& b_scale,
              const std::optional<Tensor>& bias, bool transposed, const Tensor& out, bool adds) {
  const OnDevice device(a);
  R1_CHECK(device.is_sm90(), "fp8_gemm: device: expected a GPU of compute capability 9.0");
  if (out.numel() == 0) return;
  const FP8Operands given(device, a, a_scale, b, b_scale, transposed);
  given.with_tiles(device, given.size_of(), [&](auto shape, Pairs pairs) {
    using Shape = decltype(shape);
    const int rows = static_cast<int>(out.size(0));
    const Order<Shape> order(pairs, out.size(1));
    given.launch<Shape>(device, "fp8_gemm", out, output_of(out, bias, adds), pairs,
                        int64_t{order.row_steps(rows)} * order.column_steps, [&](int64_t) {
                          return MatrixWalk<Shape>{order, rows, count_of(a.size(1), kTileBlock)};
                        });
  });
}

Tensor fp8_gemm(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, std::optional<Tensor> bias,
                ScalarType out_dtype, bool transposed) {
  Tensor out = new_empty(a, {a.size(0), b.size(transposed ? 1 : 0)}, out_dtype);
  const auto addend = bias ? std::optional(to_dtype(*bias, ScalarType::Float)) : std::nullopt;
  multiply(a, a_scale, b, b_scale, addend, transposed, out, false);
  return out;
}

void fp8_gemm_(Tensor accumulate, Tensor a, Tensor a_scale, Tensor b, Tensor b_scale,
               bool transposed) {
  Tensor out = dense(accumulate);
  multiply(a, a_scale, b, b_scale, std::nullopt, transposed, out, true);
  if (!accumulate.is_contiguous()) torch::stable::copy_(accumulate, out);
}

// For benchmarks: what all products take from now on, or choose again if `rows` is 0.
void fp8_force_tile(int64_t rows, int64_t columns, int64_t pair_rows, int64_t pair_columns,
                    bool direct, int64_t left_out) {
  const Pairs pairs{static_cast<int>(pair_rows), static_cast<int>(pair_columns)};
  forced_tile() = {{static_cast<int>(rows), static_cast<int>(columns), pairs},
                   static_cast<int>(left_out), direct};
}
}  // namespace

void fp8_multiply(const Tensor& a, const Tensor& a_scale, const Tensor& b, const Tensor& b_scale,
                  const std::optional<Tensor>& bias, bool transposed, const Tensor& out) {
  multiply(a, a_scale, b, b_scale, bias, transposed, out, false);
}

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cuda, m) {
  m.def(
      "fp8_gemm(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, Tensor? bias, "
      "ScalarType out_dtype, bool transposed) -> Tensor");
  m.def(
      "fp8_gemm_(Tensor(a!) accumulate, Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, "
      "bool transposed) -> ()");
  m.def(
      "fp8_force_tile(int rows, int columns, int pair_rows, int pair_columns, bool direct, "
      "int left_out) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cuda, CompositeExplicitAutograd, m) {
  m.impl("fp8_force_tile", TORCH_BOX(&fp8_force_tile));
}
STABLE_TORCH_LIBRARY_IMPL(r1_cuda, CUDA, m) {
  m.impl("fp8_gemm", TORCH_BOX(&fp8_gemm));
  m.impl("fp8_gemm_", TORCH_BOX(&fp8_gemm_));
}
}  // namespace r1
