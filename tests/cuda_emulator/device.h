// Enough of CUDA C++ to run the kernels of csrc/cuda on a CPU: a block is a thread of the system, and
// its threads are fibers that change places where they would wait. It shows what a kernel computes
// and whether it reads what has not arrived; not races between barriers, and not speed.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __host__
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define __syncthreads() ::emulator::sync_block()
#define threadIdx (::emulator::Block::mine->threads[::emulator::Block::mine->running].index)
#define blockIdx (::emulator::Block::mine->index)
#define gridDim (::emulator::Block::mine->cluster.grid)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
struct alignas(8) uint2 {
  uint32_t x, y;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t bits) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (bits % 32));
}
inline uint64_t __double_as_longlong(double x) { return std::bit_cast<uint64_t>(x); }
inline double __longlong_as_double(uint64_t x) { return std::bit_cast<double>(x); }
inline int __popc(uint32_t x) { return std::popcount(x); }
inline int __ffs(uint32_t x) { return x == 0 ? 0 : std::countr_zero(x) + 1; }
inline int atomicAdd(int* p, int x) { return std::atomic_ref(*p).fetch_add(x); }
inline uint32_t __umulhi(uint32_t x, uint32_t y) {
  return static_cast<uint32_t>(uint64_t{x} * y >> 32);
}
using std::max;
using std::min;

namespace emulator {
[[noreturn]] inline void stop(const char* why) {
  std::fprintf(stderr, "CUDA emulator: %s\n", why);
  std::abort();
}

// Threads that wait for one another: one that has arrived waits until all have.
struct Meeting {
  std::atomic<int> members, present{0};
  std::atomic<unsigned> round{0};

  explicit Meeting(int members) : members(members) {}
  unsigned arrive() {
    const unsigned now = round;
    if (++present == members) present = 0, ++round;
    return now;
  }
};

struct Cluster {
  Cluster(dim3 grid, int blocks, int threads)
      : grid(grid), blocks(blocks), meeting(blocks * threads) {}
  dim3 grid;
  int blocks;
  Meeting meeting;
  std::vector<std::unique_ptr<unsigned char[]>> shared;  // of each block
};

struct Thread {
  dim3 index;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  unsigned announced = 0;
  const Meeting* awaited = nullptr;  // with its round
  unsigned round = 0;
  bool done = false;

  bool waits() const { return awaited != nullptr && awaited->round == round; }
};

struct Block {
  inline static thread_local Block* mine = nullptr;
  static constexpr int kWarp = 32, kStack = 64 << 10;

  dim3 index;
  int rank, running = 0;
  Cluster& cluster;
  unsigned char* shared;
  std::vector<Thread> threads;
  std::vector<std::unique_ptr<Meeting>> warps, groups;  // of 32 and 128 threads
  std::vector<std::unique_ptr<Meeting>> turns;          // of those of one and another group
  std::vector<uint64_t> lanes;
  Meeting all;
  ucontext_t scheduler;
  const std::function<void()>& kernel;

  Block(dim3 index, int rank, int count, Cluster& cluster, const std::function<void()>& kernel)
      : index(index), rank(rank), cluster(cluster), shared(cluster.shared[rank].get()),
        threads(count), lanes(count), all(count), kernel(kernel) {
    for (int w = 0; w < count / kWarp; ++w) warps.push_back(std::make_unique<Meeting>(kWarp));
    for (int g = 0; g < count / 128; ++g) groups.push_back(std::make_unique<Meeting>(128));
    for (int g = 0; g < 2; ++g) turns.push_back(std::make_unique<Meeting>(256));
    for (int t = 0; t < count; ++t) {
      threads[t].index.x = t, threads[t].index.y = threads[t].index.z = 0;
      threads[t].stack.reset(new char[kStack]);
      getcontext(&threads[t].context);
      threads[t].context.uc_stack.ss_sp = threads[t].stack.get();
      threads[t].context.uc_stack.ss_size = kStack;
      threads[t].context.uc_link = &scheduler;
      makecontext(&threads[t].context, [] {
        mine->kernel();
        mine->threads[mine->running].done = true;
      }, 0);
    }
  }
  void run() {
    mine = this;
    for (bool left = true; left;) {
      left = false;
      for (running = 0; running < static_cast<int>(threads.size()); ++running) {
        if (threads[running].done) continue;
        left = true;
        if (!threads[running].waits()) swapcontext(&scheduler, &threads[running].context);
      }
      std::this_thread::yield();
    }
  }
  void pause() { swapcontext(&threads[running].context, &scheduler); }
  void wait(const Meeting& meeting, unsigned round) {
    Thread& thread = threads[running];
    thread.awaited = &meeting, thread.round = round;
    while (thread.waits()) pause();
  }
};

inline void sync_block() { Block::mine->wait(Block::mine->all, Block::mine->all.arrive()); }

// see(own lane, value_of), where value_of(lane) is what that lane of the warp came with.
template <class T, class See>
auto in_warp(const T& value, const See& see) {
  Block& block = *Block::mine;
  const int at = block.running, lane = at % Block::kWarp;
  Meeting& warp = *block.warps[at / Block::kWarp];
  std::memcpy(&block.lanes[at], &value, sizeof(T));
  block.wait(warp, warp.arrive());
  const auto result = see(lane, [&](int from) {
    T other;
    std::memcpy(&other, &block.lanes[at - lane + from], sizeof(T));
    return other;
  });
  block.wait(warp, warp.arrive());
  return result;
}

template <class T, class Matches>
uint32_t lanes_where(const T& value, const Matches& matches) {
  return in_warp(value, [&](int, auto value_of) {
    uint32_t lanes = 0;
    for (int i = 0; i < Block::kWarp; ++i) lanes |= uint32_t{matches(value_of(i))} << i;
    return lanes;
  });
}

inline void run_cluster(dim3 grid, unsigned x, unsigned y, int threads, int blocks, int shared,
                        const std::function<void()>& kernel) {
  Cluster cluster(grid, blocks, threads);
  for (int rank = 0; rank < blocks; ++rank) {
    cluster.shared.emplace_back(new (std::align_val_t{1024}) unsigned char[shared + 1]);
    std::memset(cluster.shared.back().get(), 0xff, shared);  // NaN
  }
  std::vector<std::thread> running;
  for (int rank = 0; rank < blocks; ++rank)
    running.emplace_back(
        [&, rank] { Block(dim3(x + rank, y), rank, threads, cluster, kernel).run(); });
  for (std::thread& thread : running) thread.join();
}
}  // namespace emulator

// All lanes of a warp call these together, so the mask says nothing.
inline void __syncwarp() {
  ::emulator::in_warp(0, [](int, auto) { return 0; });
}
template <class T>
T __shfl_sync(uint32_t, T value, int from) {
  return ::emulator::in_warp(value, [&](int, auto value_of) { return value_of(from % 32); });
}
template <class T>
T __shfl_xor_sync(uint32_t, T value, int by) {
  return ::emulator::in_warp(value, [&](int lane, auto value_of) { return value_of(lane ^ by); });
}
template <class T>
T __shfl_up_sync(uint32_t, T value, int by) {
  return ::emulator::in_warp(
      value, [&](int lane, auto value_of) { return value_of(lane < by ? lane : lane - by); });
}
template <class T>
T __shfl_down_sync(uint32_t, T value, int by) {
  return ::emulator::in_warp(
      value, [&](int lane, auto value_of) { return value_of(lane + by < 32 ? lane + by : lane); });
}
inline uint32_t __ballot_sync(uint32_t, bool holds) {
  return ::emulator::lanes_where(holds, [](bool other) { return other; });
}
template <class T>
uint32_t __match_any_sync(uint32_t, T value) {
  return ::emulator::lanes_where(value, [&](T other) { return other == value; });
}
inline uint32_t __reduce_max_sync(uint32_t, uint32_t value) {
  return ::emulator::in_warp(value, [](int, auto value_of) {
    uint32_t most = 0;
    for (int i = 0; i < 32; ++i) most = std::max(most, value_of(i));
    return most;
  });
}
