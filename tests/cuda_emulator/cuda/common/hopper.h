// csrc/cuda/common/hopper.h on the emulator: the same layouts in shared memory and registers. What is copied
// or multiplied behind a kernel's back is done when somebody waits for it, not before.
#pragma once

#include <chrono>
#include <cmath>
#include <mutex>

#include "cuda/common/ptx.h"

#define __grid_constant__

namespace r1 {
constexpr int kWarpGroup = 128;

inline void trap_unless(bool holds) {
  if (!holds) emulator::stop("trap");
}

// Columns in bytes.
struct TensorMap {
  unsigned char* data;
  int64_t rows, columns, pitch;
  int height, element;  // of a tile, in rows; of an element, in bytes
};
inline void prefetch(const TensorMap&) {}

// Where a tile has the byte at row r and column c.
inline int in_tile(int r, int c) { return r * 128 + (c ^ r % 8 * 16); }

// What is on its way to shared memory.
struct Coming {
  unsigned char* to;
  TensorMap from;
  int64_t row, column;
  uint32_t plain;  // bytes from from.data on, or 0 for a tile

  uint32_t bytes() const { return plain > 0 ? plain : from.height * 128; }
  void make() const {
    if (plain > 0) {
      std::memcpy(to, from.data, plain);
      return;
    }
    for (int r = 0; r < from.height; ++r)
      for (int c = 0; c < 128; ++c) {
        const bool inside = row + r >= 0 && row + r < from.rows && column + c < from.columns;
        to[in_tile(r, c)] = inside ? from.data[(row + r) * from.pitch + column + c] : 0;
      }
  }
};

struct Phases {
  uint32_t members = 0, arrived = 0, parity = 0;
  int64_t bytes = 0;
  std::vector<Coming> copies;

  void end_if_complete() {
    if (arrived == members && bytes == 0) arrived = 0, parity ^= 1;
  }
  void arrive(uint32_t expected) {
    if (++arrived > members) emulator::stop("too many arrive at a barrier");
    bytes += expected;
    end_if_complete();
  }
};

struct alignas(8) Barrier {
  uint64_t state;

  // Of the blocks of all clusters, each a thread of the system.
  static auto& all() {
    static std::map<const Barrier*, Phases> phases;
    return phases;
  }
  static std::mutex& lock() {
    static std::mutex mutex;
    return mutex;
  }
  Phases& phases() const { return all().at(this); }
  void start(uint32_t arrivals) {
    const std::lock_guard held(lock());
    all()[this] = {arrivals};
  }
  void arrive() { arrive_and_expect(0); }
  void arrive_in(int rank) { in_block(this, rank)->arrive(); }
  void arrive_and_expect(uint32_t bytes) {
    const std::lock_guard held(lock());
    phases().arrive(bytes);
  }
  void bring(const Coming& copy) {
    const std::lock_guard held(lock());
    phases().copies.push_back(copy);
  }
  // The copies are made now, if the phase that they belong to has begun.
  bool has_ended(uint32_t parity) {
    const std::lock_guard held(lock());
    Phases& now = phases();
    if (now.parity != parity) return true;
    if (now.arrived == now.members) {
      for (const Coming& copy : std::exchange(now.copies, {})) {
        copy.make();
        now.bytes -= copy.bytes();
      }
      now.end_if_complete();
    }
    return now.parity != parity;
  }
  void wait(uint32_t parity) {
    const auto begin = std::chrono::steady_clock::now();
    while (!has_ended(parity)) {
      if (std::chrono::steady_clock::now() - begin > std::chrono::seconds(60))
        emulator::stop("a barrier's phase never ends");
      emulator::Block::mine->pause();
    }
  }
};
inline void publish_barriers() {}
inline void sync_cluster(int blocks) {
  if (blocks != cluster_size()) emulator::stop("another size of clusters was launched");
  cluster_arrive();
  cluster_wait();
}

inline void copy_tile(void* to, const TensorMap& from, int row, int column, Barrier& barrier) {
  if (reinterpret_cast<uintptr_t>(to) % 1024 != 0)
    emulator::stop("tile: its place is not a multiple of 1024");
  barrier.bring({static_cast<unsigned char*>(to), from, row, column, 0});
}
inline void copy_tile_to_both(void* to, const TensorMap& from, int row, int column,
                              Barrier& barrier) {
  for (int rank = 0; rank < 2; ++rank)
    copy_tile(in_block(static_cast<unsigned char*>(to), rank), from, row, column,
              *in_block(&barrier, rank));
}
inline void copy_bytes(void* to, const void* from, uint32_t bytes, Barrier& barrier) {
  for (const auto p : {reinterpret_cast<uintptr_t>(to), reinterpret_cast<uintptr_t>(from)})
    if (p % 16 != 0) emulator::stop("copy: an address is not a multiple of 16");
  if (bytes % 16 != 0 || bytes == 0) emulator::stop("copy: the size is no multiple of 16");
  TensorMap plain{};
  plain.data = static_cast<unsigned char*>(const_cast<void*>(from));
  barrier.bring({static_cast<unsigned char*>(to), plain, 0, 0, bytes});
}

// What a thread stores by bulk copies, done when it waits for them and not before.
struct Leaving {
  TensorMap to;
  const unsigned char* from;
  int64_t row, column;
  bool adds;

  void make() const {
    for (int r = 0; r < to.height; ++r)
      for (int c = 0; c < 128; c += to.element) {
        if (row + r >= to.rows || column + c >= to.columns) continue;
        unsigned char* there = to.data + (row + r) * to.pitch + column + c;
        if (adds) {
          float sum, part;
          std::memcpy(&sum, there, 4), std::memcpy(&part, from + in_tile(r, c), 4);
          sum += part;
          std::memcpy(there, &sum, 4);
        } else {
          std::memcpy(there, from + in_tile(r, c), to.element);
        }
      }
  }
};
inline auto& leaving() {  // committed or not
  static thread_local std::map<int, std::vector<Leaving>> stores;
  return stores[emulator::Block::mine->running];
}
inline void store_tile(const TensorMap& to, const void* from, int row, int column, bool adds) {
  if (reinterpret_cast<uintptr_t>(from) % 1024 != 0)
    emulator::stop("stored tile: its place is not a multiple of 1024");
  leaving().push_back(
      {to, static_cast<const unsigned char*>(from), row, int64_t{column} * to.element, adds});
}
inline void commit_stores() {}
inline void wait_for_stores() {
  for (const Leaving& store : std::exchange(leaving(), {})) store.make();
}
inline void wait_for_reads_of_stores() { wait_for_stores(); }

inline void sync_group(int) {
  emulator::Block& block = *emulator::Block::mine;
  emulator::Meeting& group = *block.groups[block.running / 128];
  block.wait(group, group.arrive());
}
inline void wait_for_turn(int group) {
  emulator::Meeting& turn = *emulator::Block::mine->turns[group];
  emulator::Block::mine->wait(turn, turn.arrive());
}
inline void give_turn(int group) { emulator::Block::mine->turns[group]->arrive(); }
inline void store_matrices(void* row, const uint32_t (&words)[4]) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulator::stop("a row of a matrix is not aligned");
  emulator::in_warp(row, [&](int lane, auto value_of) {
    for (int m = 0; m < 4; ++m) {
      auto* there = static_cast<unsigned char*>(value_of(8 * m + lane / 4)) + lane % 4 * 4;
      std::memcpy(there, &words[m], 4);
    }
    return 0;
  });
}
inline void wait_for_earlier_kernels() {}
inline void let_later_kernels_start() {}

template <int kRegisters>
void give_up_registers() {}
template <int kRegisters>
void take_registers() {}

inline float e4m3(unsigned char code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  float x = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  if ((code & 0x7f) == 0x7f) x = NAN;
  return code & 0x80 ? -x : x;
}

template <int kColumns>
struct Product {
  static constexpr int kSums = kColumns / 2;
  float of[kSums];
  const unsigned char *a = nullptr, *b = nullptr;

  void start(const unsigned char* left, const unsigned char* right) {
    if (reinterpret_cast<uintptr_t>(left) % 1024 != 0 ||
        reinterpret_cast<uintptr_t>(right) % 1024 != 0)
      emulator::stop("product: a tile is not at a multiple of 1024");
    a = left, b = right;
    std::fill(of, of + kSums, NAN);
  }
  template <int kLater = 0>
  void finish() {
    static const auto values = [] {
      std::array<float, 256> table;
      for (int code = 0; code < 256; ++code) table[code] = e4m3(code);
      return table;
    }();
    const int t = threadIdx.x % kWarpGroup;
    for (int i = 0; i < kSums; ++i) {
      const int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + t % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < 128; ++k)
        sum += values[a[row * 128 + (k ^ row % 8 * 16)]] *
               values[b[column * 128 + (k ^ column % 8 * 16)]];
      of[i] = sum;
    }
  }
};
}  // namespace r1
