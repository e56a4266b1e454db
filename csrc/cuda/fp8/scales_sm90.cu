// Copies of scales, one for each row, those of a block of the reduction beside each other.
#include "cuda/fp8/scales.h"

namespace r1 {
namespace {
constexpr int kSide = 32, kThreads = 256;

struct Spread {
  FP8Scales from;
  int64_t expert_step;
  float* to;  // [experts, blocks, padded]
  int rows, padded, blocks, squares;  // of an expert along its blocks
};

// A block has a square of rows and blocks, which it reads along the blocks and writes along the rows.
__global__ void __launch_bounds__(kThreads) spread(Spread in) {
  __shared__ float square[kSide][kSide + 1];
  const int64_t expert = blockIdx.y / in.squares;
  const int row = blockIdx.x * kSide, block = blockIdx.y % in.squares * kSide;
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  for (int r = y; r < kSide; r += kThreads / kSide)
    if (row + r < in.rows && block + x < in.blocks)
      square[r][x] = *in.from.of(expert * in.expert_step, row + r, block + x);
  __syncthreads();
  for (int b = y; b < kSide; b += kThreads / kSide)
    if (row + x < in.rows && block + b < in.blocks)
      in.to[(expert * in.blocks + block + b) * in.padded + row + x] = square[x][b];
}
}  // namespace

ScalesOfRows scales_of_rows(const OnDevice& device, const Tensor& scale, int64_t rows, int row_dim,
                            int block_dim) {
  const FP8Scales from = scales_of(scale, rows, row_dim, block_dim);
  const bool of_experts = scale.dim() == 3;
  const int64_t experts = of_experts ? scale.size(0) : 1;
  const int64_t expert_step = of_experts && experts > 1 ? scale.stride(0) : 0;
  const int64_t padded = (rows + 3) / 4 * 4, blocks = scale.size(block_dim);
  const bool aligned = from.block_step % 4 == 0 && expert_step % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(from.values) % 16 == 0;
  if (scale.size(row_dim) == rows && (rows == 1 || from.row_step == 1) && aligned)
    return {scale, {from.values, from.block_step, static_cast<int>(padded)}, expert_step};
  const Tensor copy = new_empty(scale, {experts, blocks, padded}, ScalarType::Float);
  const auto count = [](int64_t size) { return static_cast<int>((size + kSide - 1) / kSide); };
  const Spread in{from, expert_step, data<float>(copy), static_cast<int>(rows),
                  static_cast<int>(padded), static_cast<int>(blocks), count(blocks)};
  if (copy.numel() > 0)
    device.launch("fp8_scales", spread, dim3(count(rows), in.squares * experts), kThreads, in);
  return {copy,
          {data<const float>(copy), blocks == 1 ? 0 : padded, static_cast<int>(padded)},
          blocks * padded};
}
}  // namespace r1
