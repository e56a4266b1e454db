// The host's side of fp8_product.h: what it needs to know of tensors, and its launch.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/fp8/choice.h"
#include "cuda/fp8/k_major.h"
#include "cuda/fp8/scales.h"
#include "cuda/common/tensor_map.h"

namespace r1 {
inline int count_of(int64_t size, int block) {
  return static_cast<int>((size + block - 1) / block);
}

// The last dimension of `out` are its columns; `bias` is of float32.
inline FP8Output output_of(const Tensor& out, const std::optional<Tensor>& bias, bool adds) {
  const ScalarType type = out.scalar_type();
  const int64_t columns = out.size(out.dim() - 1);
  const bool wide = type == ScalarType::Float;
  const auto multiple = [&](int bytes) {
    return columns * (wide ? 4 : 2) % bytes == 0 &&
           reinterpret_cast<uintptr_t>(out.data_ptr()) % bytes == 0;
  };
  return {out.data_ptr(),
          wide ? FP8Output::kFloat32 : is_bf16(out) ? FP8Output::kBFloat16 : FP8Output::kFloat16,
          columns, static_cast<int>(out.numel() / columns), static_cast<int>(columns), adds,
          multiple(wide ? 8 : 4), multiple(16) && !forced_tile().direct,
          data_or_null<const float>(bias)};
}

// a [M, K] and b [N, K] or [E, N, K], or if `transposed` […, K, N], with their scales.
struct FP8Operands {
  KMajor a, b;
  Tensor b_scale;
  int b_rows, b_blocks;  // dimensions of b's scale
  ScalesOfRows of_a;

  FP8Operands(const OnDevice& device, const Tensor& a, const Tensor& a_scale, const Tensor& b,
              const Tensor& b_scale, bool transposed)
      : a(k_major(device, a, false)), b(k_major(device, b, transposed)), b_scale(b_scale),
        b_rows(b.dim() - (transposed ? 1 : 2)), b_blocks(b.dim() - (transposed ? 2 : 1)),
        of_a(scales_of_rows(device, a_scale, this->a.rows, 0, 1)) {}

  // One for each column of a product.
  bool by_column() const { return b.rows > 1 && b_scale.size(b_rows) == b.rows; }

  static TileChoice tile_of(const ProductSize& size, const OnDevice& device) {
    const TileChoice& forced = forced_tile().tile;
    return forced.rows > 0 ? forced : choose_tile(size, device.multiprocessors());
  }

  // If all experts have as many rows.
  ProductSize size_of() const {
    return {b.experts, (a.rows + b.experts - 1) / b.experts, b.rows,
            count_of(a.columns, kTileBlock), by_column()};
  }

  // Calls body(shape, pairs) with the tiles to take.
  template <class Body>
  void with_tiles(const OnDevice& device, const ProductSize& size, const Body& body) const {
    const TileChoice tile = tile_of(size, device);
    if (size.by_column) body(FP8Shape<128, 128, true>{}, tile.pairs);
    else if (tile.rows == 256) body(FP8Shape<256, 128, false>{}, tile.pairs);
    else if (tile.columns == 192) body(FP8Shape<128, 192, false>{}, tile.pairs);
    else body(FP8Shape<128, 128, false>{}, tile.pairs);
  }

  // `walk` makes at most `steps`, so that no more blocks are launched. `walk_of` gets the step from an
  // expert's scales of b to the next one's.
  template <class Shape, class Make>
  void launch(const OnDevice& device, const char* name, const Tensor& out, const FP8Output& to,
              Pairs pairs, int64_t steps, const Make& walk_of) const {
    ScalesOfRows of_b{};
    FP8Scales squares{};
    int64_t expert_step = b_scale.dim() == 3 ? b_scale.stride(0) : 0;
    if constexpr (Shape::kByColumn) {
      of_b = scales_of_rows(device, b_scale, b.rows, b_rows, b_blocks);
      expert_step = of_b.expert_step;
    } else {
      squares = scales_of(b_scale, b.rows, b_rows, b_blocks);
    }
    const FP8Problem in{of_a.scales, of_b.scales, squares, static_cast<int>(b.rows), pairs, to,
                  kTakeTurns != ((forced_tile().left_out & kTurns) != 0), forced_tile().left_out};
    const int element = to.type == FP8Output::kFloat32 ? 4 : 2;
    const TensorMap of_codes = map_of(a, Shape::kRows / pairs.columns);
    const TensorMap of_out =
        to.in_tiles ? tensor_map(to.data, out.scalar_type(), to.rows, to.columns,
                                     to.row_step * element, kPanelRows)
                        : of_codes;
    const int blocks = std::min<int64_t>(steps, device.multiprocessors() / pairs.blocks());
    const auto walk = walk_of(expert_step);
    device.launch_early(name, fp8_product<Shape, std::remove_const_t<decltype(walk)>>,
                        dim3(blocks * pairs.blocks()), kFP8Threads, pairs.blocks(),
                        static_cast<int>(sizeof(FP8Shared<Shape>)), of_codes,
                        map_of(b, Shape::kColumns / pairs.rows), of_out, in, walk);
  }

 private:
  static TensorMap map_of(const KMajor& m, int height) {
    return tensor_map(m.codes.data_ptr(), m.codes.scalar_type(), m.experts * m.rows, m.columns,
                      m.pitch, height);
  }
};
}  // namespace r1
