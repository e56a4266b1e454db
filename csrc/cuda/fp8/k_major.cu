// Copies of FP8 codes whose rows are aligned, and run along the reduction.
#include "cuda/fp8/k_major.h"

#include "cuda/common/ptx.h"

namespace r1 {
namespace {
constexpr int kSide = 64, kThreads = 256;

struct Copied {
  const unsigned char* from;
  unsigned char* to;
  int64_t rows, columns, pitch;  // of an expert in `to`; what is behind a row's columns becomes 0
  int64_t squares;               // below one another in an expert
};

// A block has a square, which it reads along the rows of `from`.
template <bool kTransposed>
__global__ void __launch_bounds__(kThreads) copy_codes(Copied in) {
  __shared__ unsigned char square[kSide][kSide + 4];  // 17 words a row: all banks for a column
  const int64_t expert = blockIdx.x / in.squares;
  in.from += expert * in.rows * in.columns, in.to += expert * in.rows * in.pitch;
  const int64_t row = blockIdx.x % in.squares * kSide, column = int64_t{blockIdx.y} * kSide;
  for (int i = threadIdx.x; i < kSide * kSide; i += kThreads) {
    const int y = i / kSide, x = i % kSide;
    const int r = kTransposed ? x : y, c = kTransposed ? y : x;
    unsigned char code = 0;
    if (row + r < in.rows && column + c < in.columns)
      code = in.from[kTransposed ? (column + c) * in.rows + row + r
                                 : (row + r) * in.columns + column + c];
    square[r][c] = code;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kSide * kSide / 4; i += kThreads) {
    const int r = i / (kSide / 4), c = i % (kSide / 4) * 4;
    if (row + r < in.rows && column + c < in.pitch)
      *reinterpret_cast<uint32_t*>(in.to + (row + r) * in.pitch + column + c) =
          *reinterpret_cast<const uint32_t*>(&square[r][c]);
  }
}
}  // namespace

KMajor k_major(const OnDevice& device, const Tensor& codes, bool transposed) {
  const Tensor x = dense(codes);
  const int64_t last = x.dim() - 1, experts = last == 2 ? x.size(0) : 1;
  const int64_t rows = x.size(transposed ? last : last - 1);
  const int64_t columns = x.size(transposed ? last - 1 : last);
  const bool aligned = columns % 16 == 0 && reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
  if (!transposed && aligned && columns > 0) return {x, experts, rows, columns, columns};
  const int64_t pitch = columns > 0 ? (columns + 15) / 16 * 16 : 16;
  const Tensor copy = new_empty(x, {experts, rows, pitch}, x.scalar_type());
  const int64_t squares = (rows + kSide - 1) / kSide;
  const Copied in{static_cast<const unsigned char*>(x.data_ptr()),
                  static_cast<unsigned char*>(copy.data_ptr()), rows, columns, pitch, squares};
  const dim3 grid(experts * squares, (pitch + kSide - 1) / kSide);
  device.launch("fp8_k_major", transposed ? copy_codes<true> : copy_codes<false>, grid, kThreads,
                in);
  return {copy, experts, rows, pitch, pitch};
}
}  // namespace r1
