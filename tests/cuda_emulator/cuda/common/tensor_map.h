// csrc/cuda/common/tensor_map.h on the emulator, with the driver's conditions.
#pragma once

#include "cuda/common/hopper.h"
#include "cuda/common/stream.h"

namespace r1 {
inline TensorMap tensor_map(const void* data, ScalarType type, int64_t rows, int64_t columns,
                            int64_t pitch, int height) {
  const int size = type == ScalarType::Float                                      ? 4
                   : type == ScalarType::BFloat16 || type == ScalarType::Half ? 2
                                                                                  : 1;
  R1_CHECK(reinterpret_cast<uintptr_t>(data) % 16 == 0 && pitch % 16 == 0 &&
               columns * size <= pitch && rows > 0 && columns > 0 && height <= 256,
           "tensor map: not what the driver takes");
  return {static_cast<unsigned char*>(const_cast<void*>(data)), rows, columns * size, pitch, height,
          size};
}
}  // namespace r1
