// What the kernels of linear_logprob are given: plain pointers, the same for every instruction set.
#pragma once

#include <cstdint>

#include "cpu/common/gemm.h"

namespace r1 {
constexpr int64_t kRows = kPanel;     // rows of a block: they share one packed panel of hidden
constexpr int64_t kCols = 64;         // columns of a tile of logits, TILE_COLS in Python
constexpr int64_t kStripe = 512;      // columns of the weight whose gradients are made together
constexpr int64_t kSplits = 16;       // parts of V in the forward pass, whatever T or the threads
constexpr int64_t kChunk = 22 * kRows;  // rows whose logit gradients exist at one time: they and
                                        // an operand of theirs fit the second-level cache
constexpr float kLow = -1e30f;        // stands for -inf where a difference must stay finite

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The layer and the options between its product and the probabilities.
struct Head {
  bool bf16;
  int64_t columns, width, units;  // V, H, and units of 32 bits in a row of H
  const uint32_t* weight;         // [V, units]
  const uint32_t* hidden;         // [T, units]
  const float* bias;              // [V] or null
  float logit_scale;
  float softcap;                  // 0 for none
  bool plain;                     // the products are the logits of every row
  int64_t lanes() const { return ceil_div(width, kPanel) * kPanel; }
};

// Rows in the order in which the kernels take them, padded to whole blocks.
struct Rows {
  int64_t count;          // of real rows
  const int64_t* index;   // row of hidden
  const int64_t* target;  // column, or -1: in another shard, or in the padding
  const float* factor;    // by which a logit is multiplied last: (softcap or logit_scale)/temperature
  const uint32_t* panels; // hidden, packed [block][unit][kRows]
  int64_t blocks() const { return ceil_div(count, kRows); }
  int64_t lanes(int64_t block) const { return smaller(count - block * kRows, kRows); }
};

// Running maximum, Σ e^(z - max), Σ e^(z - max)·(z - max), of kRows rows.
struct Statistics {
  float max[kRows], sum[kRows], weighted[kRows];
};

struct Forward {
  Head head;
  Rows rows;
  bool want_entropy;
  Statistics* statistics;  // [split][block]
  float* target_logit;     // [rows]
  uint8_t* kept;           // tiles of the first kept_blocks blocks, for the backward pass
  int64_t kept_blocks, kept_stride;  // blocks, and bytes from one column of tiles to the next
};

struct Frozen {
  Head head;
  Rows rows;
  bool want_entropy;
  Statistics* statistics;  // [block]
  float* target_logit;     // [rows]
  float* expected;         // [rows, lanes()]: Σ_v e^(z_v - max)·w_v·W_v without the target
  uint32_t* packed_weight; // scratch of one stripe
  float* logits;           // scratch [worker][kStripe][kRows]
  uint32_t* products;      // scratch [worker][kStripe][kRows]
};

// Where the gradients of hidden, weight and bias are made, from those of the logits.
struct Products {
  Head head;
  Rows rows;
  const uint32_t* row_pairs;  // hidden packed for dweight: [panel of H][units of rows][kPanel]
  uint32_t* packed_weight;    // scratch of one stripe, null when dhidden is not needed
  uint32_t* by_row;           // scratch [block of chunk][units of kStripe][kRows], operand of dhidden
  uint32_t* by_column;        // scratch [kStripe][units of chunk], operand of dweight
  float* bias_parts;          // scratch [block of chunk][kStripe], null when dbias is not needed
  float* dhidden;             // [rows, lanes()] fp32, null when not needed
  float* dweight_sums;        // scratch [kStripe, lanes()], only when there are several chunks
  void* dweight;              // [V, H] in the dtype of weight, null when not needed
  float* dbias;               // [V] fp32
};

struct Backward : Products {
  bool entropy;               // the entropy has a gradient
  const float* dlogprob;      // [rows] · logit_scale / temperature, 0 in the padding
  const float* dentropy;      // the same
  const float* dtarget;       // [rows]: dlogprob · (1 - p(target)), without cancellation
  const float* lse;           // [rows]
  const float* entropies;     // [rows]
  const uint8_t* const* kept; // [block]: its first tile, or null where the logits are made again
  int64_t kept_stride;
};
}  // namespace r1
