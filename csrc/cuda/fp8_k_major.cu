// Copies of FP8 codes whose rows are aligned, and run along the reduction.
#include "cuda/fp8_k_major.h"

#include "cuda/ptx.h"

namespace r1 {
namespace {
constexpr int kSide = 64, kThreads = 256;

struct Copied {
  const unsigned char* from;
  unsigned char* to;
  int64_t rows, columns, pitch;  // of `to`; what is behind a row's columns becomes 0
};

// A block has a square, which it reads along the rows of `from`.
template <bool kTransposed>
__global__ void __launch_bounds__(kThreads) copy_codes(Copied in) {
  __shared__ unsigned char square[kSide][kSide + 4];  // 17 words a row: all banks for a column
  const int64_t row = int64_t{blockIdx.x} * kSide, column = int64_t{blockIdx.y} * kSide;
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
  const int64_t rows = x.size(transposed ? 1 : 0), columns = x.size(transposed ? 0 : 1);
  const bool aligned = columns % 16 == 0 && reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
  if (!transposed && aligned && columns > 0) return {x, rows, columns, columns};
  const int64_t pitch = columns > 0 ? (columns + 15) / 16 * 16 : 16;
  const Tensor copy = new_empty(x, {rows, pitch}, x.scalar_type());
  const Copied in{static_cast<const unsigned char*>(x.data_ptr()),
                  static_cast<unsigned char*>(copy.data_ptr()), rows, columns, pitch};
  const dim3 grid((rows + kSide - 1) / kSide, (pitch + kSide - 1) / kSide);
  device.launch("fp8_k_major", transposed ? copy_codes<true> : copy_codes<false>, grid, kThreads,
                in);
  return {copy, rows, pitch, pitch};
}
}  // namespace r1
