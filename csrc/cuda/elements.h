// Rows of float32 or bfloat16 (held as uint16_t), read and written in groups of 16 bytes.
#pragma once

#include <cstdint>

#include "cuda/ptx.h"

namespace r1 {
template <class T>
constexpr int kGroup = 16 / sizeof(T);  // elements in 16 bytes

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(uint16_t x) { return __uint_as_float(uint32_t{x} << 16); }
__device__ inline void from_float(float& to, float x) { to = x; }
__device__ inline void from_float(uint16_t& to, float x) { to = pack_bf16(x, 0) & 0xffff; }

template <class T>
__device__ inline bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// The group at p, in one access where p is a multiple of 16 bytes.
template <class T>
__device__ inline uint4 load_group(const T* p, bool aligned) {
  if (aligned) return *reinterpret_cast<const uint4*>(p);
  uint32_t w[4];
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = __float_as_uint(p[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = p[2 * i] | uint32_t{p[2 * i + 1]} << 16;
  }
  return make_uint4(w[0], w[1], w[2], w[3]);
}

__device__ inline void unpack(const uint4& group, float (&x)[4]) {
  x[0] = __uint_as_float(group.x), x[1] = __uint_as_float(group.y);
  x[2] = __uint_as_float(group.z), x[3] = __uint_as_float(group.w);
}
__device__ inline void unpack(const uint4& group, float (&x)[8]) {
  const uint32_t w[4] = {group.x, group.y, group.z, group.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(w[i] << 16);
    x[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000);
  }
}

__device__ inline uint4 pack(const float (&x)[4]) {
  return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
                    __float_as_uint(x[3]));
}
__device__ inline uint4 pack(const float (&x)[8]) {
  return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]),
                    pack_bf16(x[6], x[7]));
}
}  // namespace r1
