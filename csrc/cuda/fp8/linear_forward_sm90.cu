// fp8_linear_forward: x is quantized and multiplied in one call. What multiplies few rows begins to
// read the weight while they are quantized.
#include "cuda/fp8/few_rows.h"
#include "cuda/fp8/gemm.h"
#include "cuda/fp8/quantize.h"
#include "cuda/fp8/scales.h"
#include "cuda/common/fresh.h"
#include "cuda/common/tensor_map.h"

namespace r1 {
namespace {
constexpr const char* kOp = "fp8_linear_forward";
constexpr ScalarType kE4M3 = ScalarType::Float8_e4m3fn;

struct Layer {
  const OnDevice& device;
  RowsToQuantize x;
  Tensor weight, scale;
  const std::optional<Tensor>& bias;
  Tensor y;
  QuantizedRows transposed;
};

int64_t blocks_of(int64_t size) { return (size + kTileBlock - 1) / kTileBlock; }

// Both operands lie as copies of tiles take them, and a tile of the weight has one scale a block.
bool fits_few_rows(const Layer& layer) {
  const int depth = layer.x.columns;
  const int64_t scales = layer.scale.size(0);
  return layer.x.rows <= kFewRows && depth > 0 && depth % 16 == 0 &&
         (scales == 1 || scales == blocks_of(layer.weight.size(0))) &&
         reinterpret_cast<uintptr_t>(layer.weight.data_ptr()) % 16 == 0;
}

// The codes of x and their scales are in one piece of memory, and gone afterwards.
template <int kRows>
void few_rows(const Layer& layer) {
  const int64_t depth = layer.x.columns, columns = layer.weight.size(0), blocks = blocks_of(depth);
  const int64_t of_codes = (layer.x.rows * depth + 127) / 128 * 128;
  const Tensor memory = fresh(
      layer.y, {of_codes + blocks * kRows * int64_t{sizeof(float)}}, ScalarType::Byte);
  unsigned char* codes = data<unsigned char>(memory);
  float* x_scale = reinterpret_cast<float*>(codes + of_codes);
  quantize_rows(layer.device, layer.x, {codes, x_scale, kRows}, layer.transposed);
  const bool in_pairs =
      columns % 2 == 0 && reinterpret_cast<uintptr_t>(layer.y.data_ptr()) % 4 == 0;
  const FewRows in{x_scale, scales_of(layer.scale, columns, 0, 1), layer.y.data_ptr(),
                   layer.bias ? layer.bias->data_ptr() : nullptr, is_bf16(layer.y), layer.x.rows,
                   static_cast<int>(columns), static_cast<int>(blocks), in_pairs};
  using Shared = FewRowsShared<kRows>;
  const int64_t tiles = (columns + kWeightRows - 1) / kWeightRows;
  layer.device.launch_early(
      kOp, fp8_few_rows<kRows>, dim3(std::min<int64_t>(tiles, layer.device.multiprocessors())),
      kFewThreads, 1, static_cast<int>(sizeof(Shared) + Shared::kRoom),
      tensor_map(layer.weight.data_ptr(), kE4M3, columns, depth, depth, kWeightRows),
      tensor_map(codes, kE4M3, layer.x.rows, depth, depth, kRows), in);
}

void many_rows(const Layer& layer) {
  const Tensor codes = fresh(layer.y, {layer.x.rows, layer.x.columns}, kE4M3);
  const Tensor x_scale = new_scales(layer.y, layer.x.rows, blocks_of(layer.x.columns));
  quantize_rows(layer.device, layer.x, quantized(codes, x_scale), layer.transposed);
  const auto bias =
      layer.bias ? std::optional(to_dtype(*layer.bias, ScalarType::Float)) : std::nullopt;
  fp8_multiply(codes, x_scale, layer.weight, layer.scale, bias, false, layer.y);
}

std::tuple<Tensor, Tensor, Tensor> fp8_linear_forward(Tensor x, Tensor weight, Tensor scale,
                                                      std::optional<Tensor> bias,
                                                      bool power_of_two, bool both) {
  const OnDevice device(x);
  R1_CHECK(device.is_sm90(), kOp, ": device: expected a GPU of compute capability 9.0");
  const int64_t rows = x.size(0), depth = x.size(1), columns = weight.size(0);
  const Tensor source = x.stride(1) == 1 || depth == 1 ? x : dense(x);
  const auto addend = bias ? std::optional(dense(*bias)) : std::nullopt;
  const Tensor y = fresh(x, {rows, columns}, x.scalar_type());
  const int64_t tall = both ? blocks_of(rows) : 0, wide = both ? depth : 0;
  const Tensor data_t = fresh(x, {wide, tall * kTileBlock}, kE4M3);
  const Tensor scale_t =
      both ? new_scales(x, wide, tall) : fresh(x, {0, 0}, ScalarType::Float);
  const Layer layer{device, rows_of(source, power_of_two), dense(weight), scale, addend, y,
                    both ? quantized(data_t, scale_t) : QuantizedRows{}};
  if (rows > 0 && columns > 0) {
    if (!fits_few_rows(layer)) many_rows(layer);
    else if (rows <= 16) few_rows<16>(layer);
    else if (rows <= 64) few_rows<64>(layer);
    else few_rows<kFewRows>(layer);
  }
  return {y, data_t, scale_t};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cuda, m) {
  m.def(
      "fp8_linear_forward(Tensor x, Tensor weight, Tensor scale, Tensor? bias, bool power_of_two, "
      "bool both) -> (Tensor y, Tensor data_t, Tensor scale_t)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cuda, CUDA, m) {
  m.impl("fp8_linear_forward", TORCH_BOX(&fp8_linear_forward));
}
}  // namespace r1
