// The host's side of fp8_product.h: what it needs to know of tensors, and its launch.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/fp8_k_major.h"
#include "cuda/fp8_product.h"
#include "cuda/tensor_map.h"

namespace r1 {
inline int count_of(int64_t size, int block) {
  return static_cast<int>((size + block - 1) / block);
}

// Of `rows` rows, and blocks of the reduction, along the dimensions `row_dim` and `block_dim`.
inline FP8Scales scales_of(const Tensor& scale, int64_t rows, int row_dim, int block_dim) {
  const int64_t count = scale.size(row_dim);
  return {data<const float>(scale), count == 1 ? 31 : count == rows ? 0 : 7, scale.stride(row_dim),
          scale.size(block_dim) == 1 ? 0 : scale.stride(block_dim)};
}

// The last dimension of `out` are its columns; `bias` is of float32.
inline FP8Output output_of(const Tensor& out, const std::optional<Tensor>& bias, bool adds) {
  const ScalarType type = out.scalar_type();
  const int64_t columns = out.size(out.dim() - 1);
  const bool wide = type == ScalarType::Float;
  return {out.data_ptr(),
          wide ? FP8Output::kFloat32 : is_bf16(out) ? FP8Output::kBFloat16 : FP8Output::kFloat16,
          columns, static_cast<int>(columns), adds,
          columns % 2 == 0 && reinterpret_cast<uintptr_t>(out.data_ptr()) % (wide ? 8 : 4) == 0,
          data_or_null<const float>(bias)};
}

// a [M, K] and b [N, K] or [E, N, K], or if `transposed` […, K, N], with their scales.
struct FP8Operands {
  KMajor a, b;
  Tensor a_scale, b_scale;
  FP8Scales of_a, of_b;

  FP8Operands(const OnDevice& device, const Tensor& a, const Tensor& a_scale, const Tensor& b,
              const Tensor& b_scale, bool transposed)
      : a(k_major(device, a, false)), b(k_major(device, b, transposed)), a_scale(dense(a_scale)),
        b_scale(dense(b_scale)), of_a(scales_of(this->a_scale, this->a.rows, 0, 1)),
        of_b(scales_of(this->b_scale, this->b.rows, b.dim() - (transposed ? 1 : 2),
                       b.dim() - (transposed ? 2 : 1))) {}

  // Calls body(heights, by_column), constants: tiles of 256 rows, which read less, unless those of
  // 128 end clearly earlier on all multiprocessors, if all experts have as many rows.
  template <class Body>
  void with_shape(const OnDevice& device, const Body& body) const {
    const auto turns = [&](int tile_rows) {
      const int64_t each = count_of((a.rows + b.experts - 1) / b.experts, tile_rows);
      const int64_t tiles = b.experts * each * count_of(b.rows, kTileColumns);
      return count_of(tiles, device.multiprocessors());
    };
    const bool high = 2 * turns(kTileRows<2>) * 5 <= turns(kTileRows<1>) * 6;
    auto with_heights = [&](auto heights) {
      if (of_b.shift == 0) body(heights, std::true_type{});
      else body(heights, std::false_type{});
    };
    if (high) with_heights(std::integral_constant<int, 2>{});
    else with_heights(std::integral_constant<int, 1>{});
  }

  // `tiles`: at most, so that no more blocks are launched.
  template <int kHeights, bool kByColumn, class Walk>
  void launch(const OnDevice& device, const char* name, int64_t tiles, const FP8Output& out,
              const Walk& walk) const {
    using Shared = FP8Shared<kHeights, kByColumn>;
    const FP8Problem problem{of_a, of_b, static_cast<int>(a.rows), static_cast<int>(b.rows), out};
    device.launch_clusters(name, fp8_product<kHeights, kByColumn, Walk>,
                           dim3(std::min<int64_t>(tiles, device.multiprocessors())), kFP8Threads, 1,
                           sizeof(Shared) + Shared::kRoom,
                           map_of(a, kTileRows<kHeights>), map_of(b, kTileColumns), problem, walk);
  }

 private:
  static TensorMap map_of(const KMajor& m, int height) {
    return tensor_map(m.codes.data_ptr(), m.experts * m.rows, m.columns, m.pitch, height);
  }
};
}  // namespace r1
