// fp8_gemm on sm_90: one matrix, all of the reduction a tile.
#include "cuda/fp8_operands.h"

namespace r1 {
namespace {
// Bands of about 2048 rows, column after column: what runs at one time reads few rows and few
// columns again and again, and finds them in the L2 cache.
template <int kHeights>
struct MatrixWalk {
  static constexpr int kBand = 2048 / kTileRows<kHeights>;
  int rows, row_tiles, column_tiles, blocks;
  int turn = 0;

  MatrixWalk(int64_t rows, int64_t columns, int64_t k)
      : rows(rows), row_tiles(count_of(rows, kTileRows<kHeights>)),
        column_tiles(count_of(columns, kTileColumns)), blocks(count_of(k, kTileBlock)) {}

  __device__ bool next(Tile& tile) {
    const int index = blockIdx.x + gridDim.x * turn++;
    if (index >= row_tiles * column_tiles) return false;
    const int band = index / (kBand * column_tiles), place = index % (kBand * column_tiles);
    const int height = min(kBand, row_tiles - band * kBand);
    tile.row = (band * kBand + place % height) * kTileRows<kHeights>, tile.end_row = rows;
    tile.column = tile.b_row = place / height * kTileColumns;
    tile.first_block = 0, tile.blocks = blocks;
    tile.b_scale = tile.out = 0;
    return true;
  }
};

void multiply(const Tensor& a, const Tensor& a_scale, const Tensor& b, const Tensor& b_scale,
              bool transposed, const FP8Output& out) {
  const OnDevice device(a);
  R1_CHECK(device.is_sm90(), "fp8_gemm: device: expected a GPU of compute capability 9.0");
  const int64_t rows = a.size(0), columns = b.size(transposed ? 1 : 0), k = a.size(1);
  if (rows == 0 || columns == 0) return;
  const FP8Operands given(device, a, a_scale, b, b_scale, transposed);
  given.with_shape(device, [&](auto heights, auto by_column) {
    constexpr int kHeights = decltype(heights)::value;
    const MatrixWalk<kHeights> walk(rows, columns, k);
    given.launch<kHeights, decltype(by_column)::value>(
        device, "fp8_gemm", walk.row_tiles * walk.column_tiles, out, walk);
  });
}

Tensor fp8_gemm(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, std::optional<Tensor> bias,
                ScalarType out_dtype, bool transposed) {
  Tensor out = new_empty(a, {a.size(0), b.size(transposed ? 1 : 0)}, out_dtype);
  const auto addend = bias ? std::optional(to_dtype(*bias, ScalarType::Float)) : std::nullopt;
  multiply(a, a_scale, b, b_scale, transposed, output_of(out, addend, false));
  return out;
}

void fp8_gemm_(Tensor accumulate, Tensor a, Tensor a_scale, Tensor b, Tensor b_scale,
               bool transposed) {
  Tensor out = dense(accumulate);
  multiply(a, a_scale, b, b_scale, transposed, output_of(out, std::nullopt, true));
  if (!accumulate.is_contiguous()) torch::stable::copy_(accumulate, out);
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cuda, m) {
  m.def(
      "fp8_gemm(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, Tensor? bias, "
      "ScalarType out_dtype, bool transposed) -> Tensor");
  m.def(
      "fp8_gemm_(Tensor(a!) accumulate, Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, "
      "bool transposed) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cuda, CUDA, m) {
  m.impl("fp8_gemm", TORCH_BOX(&fp8_gemm));
  m.impl("fp8_gemm_", TORCH_BOX(&fp8_gemm_));
}
}  // namespace r1
