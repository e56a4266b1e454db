// Enough of CUDA C++ to run the kernels of csrc/cuda on a CPU: a block is a thread of the system, and
// its threads are fibers that change places where they would wait. It shows what a kernel computes
// and whether it reads what has not arrived; not races between barriers, and not speed.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <algorithm>
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
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define __syncthreads() ::emulator::sync_block()
#define __shfl_down_sync(mask, value, offset) ::emulator::shuffle_down(value, offset)
#define threadIdx (::emulator::Block::mine->threads[::emulator::Block::mine->running].index)
#define blockIdx (::emulator::Block::mine->index)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t bits) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (bits % 32));
}
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
  explicit Cluster(int blocks, int threads) : blocks(blocks), meeting(blocks * threads) {}
  int blocks;
  Meeting meeting;
  std::vector<std::unique_ptr<unsigned char[]>> shared;  // of each block
};

struct Copy {
  void* to;
  const void* from;
  uint32_t bytes;
};
struct Expected {
  uint32_t bytes = 0;
  std::vector<Copy> copies;  // made when somebody waits for them, so that no one sees them before
};

struct Thread {
  dim3 index;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  unsigned announced = 0;
  bool done = false;
};

struct Block {
  inline static thread_local Block* mine = nullptr;
  static constexpr int kWarp = 32, kStack = 64 << 10;

  dim3 index;
  int rank, running = 0;
  Cluster& cluster;
  unsigned char* shared;
  std::vector<Thread> threads;
  std::vector<std::unique_ptr<Meeting>> warps;
  std::vector<float> lanes;
  Meeting all;
  std::map<void*, Expected> arrivals;
  ucontext_t scheduler;
  const std::function<void()>& kernel;

  Block(dim3 index, int rank, int count, Cluster& cluster, const std::function<void()>& kernel)
      : index(index), rank(rank), cluster(cluster), shared(cluster.shared[rank].get()),
        threads(count), lanes(count), all(count), kernel(kernel) {
    for (int w = 0; w < count / kWarp; ++w) warps.push_back(std::make_unique<Meeting>(kWarp));
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
        swapcontext(&scheduler, &threads[running].context);
      }
      std::this_thread::yield();
    }
  }
  void wait(const Meeting& meeting, unsigned round) {
    while (meeting.round == round) swapcontext(&threads[running].context, &scheduler);
  }
};

inline void sync_block() { Block::mine->wait(Block::mine->all, Block::mine->all.arrive()); }

inline float shuffle_down(float value, int offset) {
  Block& block = *Block::mine;
  const int at = block.running, lane = at % Block::kWarp;
  Meeting& warp = *block.warps[at / Block::kWarp];
  block.lanes[at] = value;
  block.wait(warp, warp.arrive());
  const float result = lane + offset < Block::kWarp ? block.lanes[at + offset] : value;
  block.wait(warp, warp.arrive());
  return result;
}

inline void run_cluster(unsigned x, unsigned y, int threads, int blocks, int shared,
                        const std::function<void()>& kernel) {
  Cluster cluster(blocks, threads);
  for (int rank = 0; rank < blocks; ++rank) {
    cluster.shared.emplace_back(new (std::align_val_t{128}) unsigned char[shared + 1]);
    std::memset(cluster.shared.back().get(), 0xff, shared);  // NaN
  }
  std::vector<std::thread> running;
  for (int rank = 0; rank < blocks; ++rank)
    running.emplace_back(
        [&, rank] { Block(dim3(x + rank, y), rank, threads, cluster, kernel).run(); });
  for (std::thread& thread : running) thread.join();
}
}  // namespace emulator
