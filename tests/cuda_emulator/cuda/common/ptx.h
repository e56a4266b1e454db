// csrc/cuda/common/ptx.h on the emulator.
#pragma once

#include "device.h"

namespace r1 {
inline float fast_exp2(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}
inline uint32_t bf16_bits(float x) {
  const uint32_t bits = __float_as_uint(x);
  if (x != x) return 0x7fff;
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
inline uint32_t pack_bf16(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }

inline uint32_t max_bf16(uint32_t a, uint32_t b) {
  auto larger = [&](int shift) {
    const float x = __uint_as_float(a >> shift << 16), y = __uint_as_float(b >> shift << 16);
    return __float_as_uint(fmaxf(x, y)) >> 16 << shift;
  };
  return larger(0) | larger(16);
}
inline uint16_t half_bits(float x) { return std::bit_cast<uint16_t>(static_cast<_Float16>(x)); }

inline uint32_t pack_half(float low, float high) {
  return half_bits(low) | uint32_t{half_bits(high)} << 16;
}

inline uint4 load_once(const uint4* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) emulator::stop("16 bytes are not aligned");
  return *p;
}

inline uint32_t e4m3_bits(float x) {
  const uint32_t sign = __float_as_uint(x) >> 24 & 0x80;
  if (x != x) return 0x7f;
  const float size = std::fabs(x), least = 0x1p-6f;
  if (size >= 464) return sign | 0x7e;  // halfway to what would be the next code
  int exponent = size < least ? -6 : std::ilogb(size);
  int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 3 - exponent)));  // ties to even
  if (steps == 16) steps = 8, ++exponent;
  const uint32_t code = steps < 8 ? steps : (exponent + 7) << 3 | (steps - 8);
  return sign | std::min(code, uint32_t{0x7e});
}
inline uint32_t pack_e4m3(float low, float high) { return e4m3_bits(low) | e4m3_bits(high) << 8; }

inline double upper_half(double x) {
  return std::bit_cast<double>(std::bit_cast<uint64_t>(x) >> 32 << 32);
}
inline double approximate_reciprocal(double x) { return upper_half(1 / x); }
inline double approximate_rsqrt(double x) { return upper_half(1 / std::sqrt(x)); }
inline float at_least(float x, float bound) { return x < bound ? bound : x; }

inline unsigned char* dynamic_shared() { return emulator::Block::mine->shared; }
inline int cluster_rank() { return emulator::Block::mine->rank; }
inline int cluster_size() { return emulator::Block::mine->cluster.blocks; }

inline emulator::Thread& this_thread() {
  return emulator::Block::mine->threads[emulator::Block::mine->running];
}
inline void cluster_arrive() {
  this_thread().announced = emulator::Block::mine->cluster.meeting.arrive();
}
inline void cluster_announce() { cluster_arrive(); }
inline void cluster_wait() {
  emulator::Block::mine->wait(emulator::Block::mine->cluster.meeting, this_thread().announced);
}
// Blocks that are launched together are a cluster here.
inline void sync_grid() {
  cluster_arrive();
  cluster_wait();
}
template <class T>
T* in_block(T* here, int rank) {
  const auto offset = reinterpret_cast<unsigned char*>(here) - dynamic_shared();
  return reinterpret_cast<T*>(emulator::Block::mine->cluster.shared[rank].get() + offset);
}

inline void publish_arrivals() {}
}  // namespace r1
