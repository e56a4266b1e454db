// What products of matrices on sm_90a are made of: barriers that are used over and over, copies of
// tiles that a tensor map describes, and products by warp groups. Inline PTX, as in ptx.h.
#pragma once

#include <cuda.h>

#include "cuda/common/ptx.h"

namespace r1 {
constexpr int kWarpGroup = 128;  // threads that make a product together

// Ends the kernel with an error. An assert would say why, but calls a function, and the compiler then
// lets products wait for one another.
__device__ inline void trap_unless(bool holds) {
  if (!holds) asm volatile("trap;");
}

// A barrier of many phases: one ends when `arrivals` threads have arrived and all bytes that they
// said to expect have been copied. Phases are told apart by their parity, the first one's being 0.
struct alignas(8) Barrier {
  uint64_t state;

  __device__ void start(uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)),
                 "r"(arrivals)
                 : "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  // At the barrier that stands here in the block `rank` of the cluster.
  __device__ void arrive_in(int rank) {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
        "}" ::"r"(shared_address(this)),
        "r"(rank)
        : "memory");
  }
  __device__ void arrive_and_expect(uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_address(this)),
                 "r"(bytes)
                 : "memory");
  }
  // Returns when the last phase of this parity has ended: at once for parity 1 of a new barrier.
  __device__ void wait(uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(this)),
        "r"(parity)
        : "memory");
  }
};

// Between the start of barriers and the first use of them, by a copy or by another block.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  publish_arrivals();
}
// All threads of the block, or of a cluster of several.
__device__ inline void sync_cluster(int blocks) {
  if (blocks > 1) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }
}

// A matrix in global memory, with the size of the tiles that are taken of it, or put there.
using TensorMap = CUtensorMap;

__device__ inline void prefetch(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(&map)) : "memory");
}

// A tile of 128 columns of bytes, from a place on that may be outside the matrix, where it is 0. Its
// rows lie one after the other at `to`, a multiple of 1024 bytes, each with its groups of 16 bytes
// swapped by the row's place among eight, so that no bank of shared memory is asked twice.
__device__ inline void copy_tile(void* to, const TensorMap& from, int row, int column,
                                 Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
      "l"(reinterpret_cast<uint64_t>(&from)), "r"(column), "r"(row), "r"(shared_address(&barrier))
      : "memory");
}
// The same to both blocks of a cluster, at the same place in each, where its bytes count too.
__device__ inline void copy_tile_to_both(void* to, const TensorMap& from, int row, int column,
                                         Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
      "l"(reinterpret_cast<uint64_t>(&from)), "r"(column), "r"(row), "r"(shared_address(&barrier)),
      "h"(static_cast<uint16_t>(3))
      : "memory");
}
// Global → shared memory: addresses and size are multiples of 16 bytes.
__device__ inline void copy_bytes(void* to, const void* from, uint32_t bytes, Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(&barrier))
      : "memory");
}

// A tile that lies as copy_tile has it, 128 bytes a row → its place, or added to the float32 there;
// what is outside the matrix is left out. A thread's copies are done in the order of its groups.
__device__ inline void store_tile(const TensorMap& to, const void* from, int row, int column,
                                  bool adds) {
  const auto map = reinterpret_cast<uint64_t>(&to);
  if (adds)
    asm volatile(
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], "
        "[%1];" ::"l"(map),
        "r"(shared_address(from)), "r"(column), "r"(row)
        : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(
            map),
        "r"(shared_address(from)), "r"(column), "r"(row)
        : "memory");
}
__device__ inline void commit_stores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until this thread's stores have read what they store, or are done.
__device__ inline void wait_for_reads_of_stores() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ inline void wait_for_stores() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// The threads of a warp group wait for one another: `group` counts from 0.
__device__ inline void sync_group(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}

// Two warp groups take turns: one waits for its turn, 0 or 1, which the other gives it.
__device__ inline void wait_for_turn(int group) {
  asm volatile("bar.sync %0, 256;" ::"r"(group + 3) : "memory");
}
__device__ inline void give_turn(int group) {
  asm volatile("bar.arrive %0, 256;" ::"r"(group + 3) : "memory");
}

// Four matrices of 8 × 8 of 16 bits, of which thread t has in words[m] those in row t/4, columns
// 2·(t%4) and the next. Thread t says where row t%8 of matrix t/8 goes, a multiple of 16 bytes.
__device__ inline void store_matrices(void* row, const uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   shared_address(row)),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

// Until the kernels before this one in the stream, of which each told that it could follow, are done.
__device__ inline void wait_for_earlier_kernels() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
__device__ inline void let_later_kernels_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Registers of each thread of this warp group, from those that all were launched with. One branch of
// the kernel for each warp group's role, or the compiler ignores it.
template <int kRegisters>
__device__ inline void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Operands of inline PTX: sums from d[i] on.
#define R1_SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define R1_SUMS_8(i) R1_SUMS_4(i), R1_SUMS_4(i + 4)
#define R1_SUMS_16(i) R1_SUMS_8(i), R1_SUMS_8(i + 8)

// The product [64, kColumns] of a warp group: a · bᵀ of e4m3 codes that copy_tile laid out,
// a [64, 128] and b [kColumns, 128]. Thread t has of[4j + 2h + i] in row 16·(t/32) + (t%32)/4 + 8h and
// column 8j + 2·(t%4) + i. All threads of the group call start and finish together; between the two
// neither `of` nor the tiles may be touched.
template <int kColumns>
struct Product {
  static constexpr int kSums = kColumns / 2;
  float of[kSums];

  __device__ void start(const unsigned char* a, const unsigned char* b) {
    in_registers();
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    const uint64_t left = descriptor(a), right = descriptor(b);
#pragma unroll
    for (int k = 0; k < 128; k += 32) multiply(of, left + k / 16, right + k / 16, k != 0);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    in_registers();
  }
  // All but the last kLater products that the group started are done, this one among them.
  template <int kLater = 0>
  __device__ void finish() {
    in_registers();
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLater) : "memory");
    in_registers();
  }

 private:
  // No instruction on `of` moves across this.
  __device__ void in_registers() {
#pragma unroll
    for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(of[i])::"memory");
  }

  // Of 128 columns, rows in eights of 1024 bytes, groups of 16 bytes swapped over 128 bytes.
  __device__ static uint64_t descriptor(const unsigned char* tile) {
    return uint64_t{(shared_address(tile) & 0x3ffff) >> 4} | uint64_t{1} << 16 |
           uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
  }

  // d = a·bᵀ over 32 columns, or d += that.
  __device__ static void multiply(float (&d)[kSums], uint64_t a, uint64_t b, int adds) {
    static_assert(kColumns == 16 || kColumns == 64 || kColumns == 128 || kColumns == 192);
    if constexpr (kColumns == 16) {
      asm volatile(
          "{\n"
          ".reg .pred adds;\n"
          "setp.ne.b32 adds, %10, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {"
          "%0, %1, %2, %3, %4, %5, %6, %7"
          "}, %8, %9, adds, 1, 1;\n"
          "}"
          : R1_SUMS_8(0)
          : "l"(a), "l"(b), "r"(adds));
    } else if constexpr (kColumns == 64) {
      asm volatile(
          "{\n"
          ".reg .pred adds;\n"
          "setp.ne.b32 adds, %34, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {"
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
          "}, %32, %33, adds, 1, 1;\n"
          "}"
          : R1_SUMS_16(0), R1_SUMS_16(16)
          : "l"(a), "l"(b), "r"(adds));
    } else if constexpr (kColumns == 128) {
      asm volatile(
          "{\n"
          ".reg .pred adds;\n"
          "setp.ne.b32 adds, %66, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
          "}, %64, %65, adds, 1, 1;\n"
          "}"
          : R1_SUMS_16(0), R1_SUMS_16(16), R1_SUMS_16(32), R1_SUMS_16(48)
          : "l"(a), "l"(b), "r"(adds));
    } else {
      asm volatile(
          "{\n"
          ".reg .pred adds;\n"
          "setp.ne.b32 adds, %98, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n192k32.f32.e4m3.e4m3 {"
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
          "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
          "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
          "}, %96, %97, adds, 1, 1;\n"
          "}"
          : R1_SUMS_16(0), R1_SUMS_16(16), R1_SUMS_16(32), R1_SUMS_16(48),
            R1_SUMS_16(64), R1_SUMS_16(80)
          : "l"(a), "l"(b), "r"(adds));
    }
  }
};
#undef R1_SUMS_4
#undef R1_SUMS_8
#undef R1_SUMS_16
}  // namespace r1
