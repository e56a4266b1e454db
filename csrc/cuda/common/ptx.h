// Instructions that CUDA C++ has no name for, or only a slower one.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>

namespace r1 {
// 2^x to 2 units in the last place, denormal results flushed to zero; exp2f scales around them.
__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two bf16, rounded to nearest even, the first one in the low half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

// Two float16, likewise.
__device__ inline uint32_t pack_half(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

// The larger one of each two; the other one where one is NaN.
__device__ inline uint32_t max_bf16(uint32_t a, uint32_t b) {
  uint32_t larger;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}

// float16, rounded to nearest even, by its bits.
__device__ inline uint16_t half_bits(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

// The 16 bytes at p, which are read once: they need no place in the first cache.
__device__ inline uint4 load_once(const uint4* p) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(p));
  return x;
}

// 1/x and 1/√x to 20 bits.
__device__ inline double approximate_reciprocal(double x) {
  double y;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
  return y;
}
__device__ inline double approximate_rsqrt(double x) {
  double y;
  asm("rsqrt.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
  return y;
}

// The larger one, NaN for NaN; fmaxf returns the other one then.
__device__ inline float at_least(float x, float bound) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(bound));
  return y;
}

extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
__device__ inline unsigned char* dynamic_shared() { return dynamic_shared_memory; }

// Waits for all blocks of a launch that OnDevice::launch_together made. What a thread wrote before,
// all see after it.
__device__ inline void sync_grid() { cooperative_groups::this_grid().sync(); }

// Two e4m3 codes, rounded to nearest even and saturated, the first one in the low byte.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
__device__ inline uint32_t pack_e4m3(float low, float high) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
}
#endif

// Clusters, barriers in shared memory and bulk copies came with sm_90.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ inline int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ inline int cluster_size() {
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
// Each thread of the cluster arrives, then waits for all of them. What a thread wrote before it
// arrived, all see after they waited; not so if it only announced itself, which is cheaper.
__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ inline void cluster_announce() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
__device__ inline void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
// The address in the block `rank` of what stands at `here` in this block's shared memory.
template <class T>
__device__ inline T* in_block(T* here, int rank) {
  uint64_t there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(here), "r"(rank));
  return reinterpret_cast<T*>(there);
}

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Between the start of barriers and the first copy that counts on them, and between what threads
// wrote to shared memory and a copy that reads it.
__device__ inline void publish_arrivals() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
#endif
}  // namespace r1
