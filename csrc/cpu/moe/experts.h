// What the kernels of moe_experts are given: plain pointers, the same for every instruction set.
#pragma once

#include "cpu/moe/grouped_mm.h"

namespace r1 {
// The layer and where its rows come from.
struct Experts {
  bool bf16;
  int64_t width, inner, top_k;  // H, I, k
  const int32_t* gather;        // [P]: slots, of which k are a token's, or -1
  const void* gate_up;          // [E, 2I, H]
  const void* down;             // [E, H, I]
};

struct ExpertsForward {
  Experts layer;         // gate_up and down in whole units
  const void* x;         // [T, H], whole units
  void* h;               // [P, 2I], or null where nothing is kept
  uint32_t* activation;  // scratch [panel][unit of I][kPanel]
  void* rows;            // [P, H]: what the experts give
};

struct ExpertsBackward {
  Experts layer;
  const void *x, *grad;  // [T, H]
  const void* h;         // [P, 2I]
  const float* weights;  // [T, k]
  void* dh;              // [P, 2I]
  void* drows;           // [P, H]
  float* dweights;       // [P, panels of I]: parts of each row's
  uint32_t* activation;  // pairs of rows of w·a: [group][panel][unit][kPanel]; null when frozen
  uint32_t* x_pairs;     // the same of x
  void *dgate_up, *ddown;
};
}  // namespace r1
