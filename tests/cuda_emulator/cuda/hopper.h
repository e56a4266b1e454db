// csrc/cuda/hopper.h on the emulator: the same layouts in shared memory and registers. What is copied
// or multiplied behind a kernel's back is done when somebody waits for it, not before.
#pragma once

#include <cmath>

#include "cuda/ptx.h"

#define __grid_constant__

namespace r1 {
constexpr int kWarpGroup = 128;

inline void trap_unless(bool holds) {
  if (!holds) emulator::stop("trap");
}

struct TensorMap {
  const unsigned char* data;
  int64_t rows, columns, pitch;
  int height;
};

struct TileCopy {
  unsigned char* to;
  TensorMap from;
  int64_t row, column;

  uint32_t bytes() const { return from.height * 128; }
  void make() const {
    for (int r = 0; r < from.height; ++r)
      for (int c = 0; c < 128; ++c) {
        const bool inside = row + r < from.rows && column + c < from.columns;
        to[r * 128 + (c ^ r % 8 * 16)] =
            inside ? from.data[(row + r) * from.pitch + column + c] : 0;
      }
  }
};

struct Phases {
  uint32_t members = 0, arrived = 0, parity = 0;
  int64_t bytes = 0;
  std::vector<TileCopy> copies;
  std::vector<emulator::Copy> plain_copies;

  void end_if_complete() {
    if (arrived == members && bytes == 0) arrived = 0, parity ^= 1;
  }
};

struct alignas(8) Barrier {
  uint64_t state;

  static auto& all() {
    static thread_local std::map<const Barrier*, Phases> phases;
    return phases;
  }
  Phases& phases() const { return all().at(this); }
  void start(uint32_t arrivals) { all()[this] = {arrivals}; }
  void arrive() { arrive_and_expect(0); }
  void arrive_and_expect(uint32_t bytes) {
    Phases& now = phases();
    if (++now.arrived > now.members) emulator::stop("too many arrive at a barrier");
    now.bytes += bytes;
    now.end_if_complete();
  }
  void wait(uint32_t parity) {
    for (int turns = 0; phases().parity == parity; ++turns) {
      Phases& now = phases();
      for (const TileCopy& copy : std::exchange(now.copies, {})) {
        copy.make();
        now.bytes -= copy.bytes();
      }
      for (const emulator::Copy& copy : std::exchange(now.plain_copies, {})) {
        std::memcpy(copy.to, copy.from, copy.bytes);
        now.bytes -= copy.bytes;
      }
      now.end_if_complete();
      if (now.parity != parity) break;
      if (turns > 100000) emulator::stop("a barrier's phase never ends");
      emulator::Block::mine->pause();
    }
  }
};

inline void copy_tile(void* to, const TensorMap& from, int row, int column, Barrier& barrier) {
  if (reinterpret_cast<uintptr_t>(to) % 1024 != 0)
    emulator::stop("tile: its place is not a multiple of 1024");
  barrier.phases().copies.push_back({static_cast<unsigned char*>(to), from, row, column});
}

inline void copy_bytes(void* to, const void* from, uint32_t bytes, Barrier& barrier) {
  for (const auto p : {reinterpret_cast<uintptr_t>(to), reinterpret_cast<uintptr_t>(from)})
    if (p % 16 != 0) emulator::stop("copy of bytes: an address is not a multiple of 16");
  if (bytes % 16 != 0) emulator::stop("copy of bytes: the size is not a multiple of 16");
  barrier.phases().plain_copies.push_back({to, from, bytes});
}

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

struct Product {
  float of[64];
  const unsigned char *a = nullptr, *b = nullptr;

  void start(const unsigned char* left, const unsigned char* right) {
    if (reinterpret_cast<uintptr_t>(left) % 1024 != 0 ||
        reinterpret_cast<uintptr_t>(right) % 1024 != 0)
      emulator::stop("product: a tile is not at a multiple of 1024");
    a = left, b = right;
    std::fill(of, of + 64, NAN);
  }
  void finish() {
    static const auto values = [] {
      std::array<float, 256> table;
      for (int code = 0; code < 256; ++code) table[code] = e4m3(code);
      return table;
    }();
    const int t = threadIdx.x % kWarpGroup;
    for (int i = 0; i < 64; ++i) {
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
