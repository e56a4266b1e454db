// What rope hands to the kernel of each instruction set, of queries or of keys.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace r1 {
struct RopeRows {  // at strides in elements; elements of a row are neighbours
  const void* from;
  void* to;
  int64_t batch, head, position;           // strides of `from`
  int64_t out_batch, out_head, out_position;
};

struct Rope {
  bool bf16, bf16_tables, interleaved, inverse;
  int64_t heads, positions, width, rotary;
  const void *cos, *sin;  // [B or 1, S, Dr]
  int64_t table_batch;    // stride, 0 where all share one
  bool heads_inside;      // whether the heads of a position follow each other, rather than positions
  RopeRows rows;
};
}  // namespace r1

#ifdef R1_BASELINE
// Rows [begin, end) of B·S·heads, in their order in memory.
R1_DECLARE(void rope_rows(const Rope&, int64_t begin, int64_t end))
#endif
