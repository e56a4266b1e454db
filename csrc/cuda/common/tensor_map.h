// The host's side of copy_tile and store_tile: matrices described for the unit that copies tiles.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "cuda/common/hopper.h"
#include "cuda/common/stream.h"

namespace r1 {
// Looked up at run time, since it lives in the driver, which a machine that builds may lack.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                cudaEnableDefault, &result),
               "cuTensorMapEncodeTiled");
    R1_CHECK(result == cudaDriverEntryPointSuccess,
             "the driver has no cuTensorMapEncodeTiled (CUDA 12 brought it)");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  return encode;
}

// [rows, columns] elements, rows `pitch` bytes apart; address and pitch are multiples of 16. Tiles have
// `height` rows of 128 bytes.
inline TensorMap tensor_map(const void* data, ScalarType type, int64_t rows, int64_t columns,
                            int64_t pitch, int height) {
  const auto [element, size] =
      type == ScalarType::Float      ? std::pair(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4)
      : type == ScalarType::BFloat16 ? std::pair(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2)
      : type == ScalarType::Half     ? std::pair(CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2)
                                     : std::pair(CU_TENSOR_MAP_DATA_TYPE_UINT8, 1);
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(pitch)};
  const cuuint32_t tile[2] = {static_cast<cuuint32_t>(128 / size), static_cast<cuuint32_t>(height)};
  const cuuint32_t steps[2] = {1, 1};
  TensorMap map;
  const CUresult result = tensor_map_encoder()(
      &map, element, 2, const_cast<void*>(data), sizes, strides, tile, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  R1_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled: error ", static_cast<int>(result),
           " for [", rows, ", ", columns, "], ", pitch, " bytes a row");
  return map;
}
}  // namespace r1
