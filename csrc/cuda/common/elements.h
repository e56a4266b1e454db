// Rows of float32 or bfloat16 (held as uint16_t), read and written in groups of 16 bytes.
#pragma once

#include <cstdint>

#include "cuda/common/ptx.h"

namespace r1 {
template <class T>
constexpr int kGroup = 16 / sizeof(T);  // elements in 16 bytes

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(uint16_t x) { return __uint_as_float(uint32_t{x} << 16); }
__device__ inline void from_float(float& to, float x) { to = x; }
__device__ inline void from_float(uint16_t& to, float x) { to = pack_bf16(x, 0) & 0xffff; }

// The 16 bytes at p, where `skew` is p modulo 16: one access, or those to the two units of 16 bytes
// they lie in. Neither is outside the allocation, since that is made of such units.
__device__ inline uint4 load_group(const void* p, uint32_t skew) {
  if (skew == 0) return *static_cast<const uint4*>(p);
  const uint4* units = reinterpret_cast<const uint4*>(static_cast<const char*>(p) - skew);
  const uint4 low = units[0], high = units[1];
  uint32_t w[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 6; ++i) w[i] = skew & 8 ? w[i + 2] : w[i];
#pragma unroll
  for (int i = 0; i < 5; ++i) w[i] = skew & 4 ? w[i + 1] : w[i];
  const uint32_t bits = skew % 4 * 8;
  return make_uint4(__funnelshift_r(w[0], w[1], bits), __funnelshift_r(w[1], w[2], bits),
                    __funnelshift_r(w[2], w[3], bits), __funnelshift_r(w[3], w[4], bits));
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
