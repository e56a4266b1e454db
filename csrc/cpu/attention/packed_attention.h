// What packed_attention and its backward pass hand to the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "cpu/common/gemm_operands.h"

namespace r1 {
// Element (token, head, i) is at p[token·`token` + head·`head` + i]; in bf16 both strides and the
// length of a row are whole units.
struct Heads {
  void* p;
  int64_t token, head;
};

// Some queries of one segment: of each token `heads` query heads that share a key head. Each query
// is a lane, so there are at most kPanel of them, the heads of a token side by side.
struct QueryTile {
  int64_t segment;
  int64_t begin, tokens;           // first token and their number
  int64_t head, heads;             // first one of those that share a key head
  int64_t own;                     // first token of the segment
  int64_t prefix, prefix_tokens;   // of its prefix, of which there may be none
};

struct PackedAttention {
  bool bf16;
  int64_t tokens, key_heads, group;  // query heads of a key head
  int64_t width, value_width;
  float scale;
  Heads query, key, value, out;
  float* lse;                        // [query heads][tokens]
};

struct PackedAttentionBackward {
  PackedAttention forward;  // whose out and lse are read here
  Heads dout, dquery;
};

// Gradients of a segment's keys and values, of one key head, as sums in fp32.
struct KeySums {
  int64_t first;          // token of the segment
  float *keys, *values;   // rows of `row_of_sums` elements
};

// Rows of sums are as long as what gemm.h writes: whole vectors of any instruction set.
static inline int64_t row_of_sums(int64_t width) { return (width + 15) / 16 * 16; }

// Columns of a matrix that is a right operand lie in panels of equal width.
static inline int64_t panels_of(int64_t width) { return (width + kPanel - 1) / kPanel; }
static inline int64_t panel_width(int64_t width) {
  const int64_t panels = panels_of(width);
  return row_of_sums((width + panels - 1) / panels);
}

constexpr int64_t kBlockKeys = 128;  // whose scores are there at one time
constexpr int64_t kBackwardBlockKeys = 64;

// Floats of scratch for a worker.
static inline int64_t packed_attention_scratch(int64_t width, int64_t value_width) {
  return kPanel * (row_of_sums(width) + row_of_sums(value_width) + kBlockKeys * 3 / 2);
}
static inline int64_t packed_attention_backward_scratch(int64_t width, int64_t value_width) {
  return kPanel * (2 * row_of_sums(width) + row_of_sums(value_width) +
                   kPanel * (panels_of(width) + panels_of(value_width)) + kBackwardBlockKeys * 4);
}
}  // namespace r1
