// Rows of experts as the grouped kernels take them: plain data, the same for every instruction set.
#pragma once

#include <cstdint>

namespace r1 {
constexpr int64_t kTile = 64;       // rows of a left operand that share a tile of sums
constexpr int64_t kPartRows = 192;  // rows of a part: its operands fit the second-level cache

// The rows of one expert that has some.
struct Group {
  int64_t expert, row, rows;
  int64_t units;  // of 32 bits, pairs of rows in bf16, in all groups before it
};

// Some of them, worked on together.
struct Part {
  Group group;
  int64_t row, rows;  // row counts from the group's first
  int64_t panel;      // panels of kPanel rows in all parts before it
  int64_t first() const { return group.row + row; }
};

struct GroupedMm {
  bool bf16;
  int64_t depth, columns;  // K, N
  const void* x;           // [P, K], whole units
  const void* weight;      // [E, N, K], whole units, or [E, K, N]
  void* out;               // [P, N]
};

struct GroupedMmBackward {
  bool bf16;
  int64_t left_columns, columns;  // N, K
  const void *left, *right;       // [P, N], [P, K]
  uint32_t* packed;               // right of all groups: [group][panel][unit][kPanel]
  void* out;                      // [E, N, K]
};
}  // namespace r1
