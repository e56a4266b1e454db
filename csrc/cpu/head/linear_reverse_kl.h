// What the kernels of linear_reverse_kl are given. Rows of student and teacher are the same ones, in
// one order; panels and factors are each one's own.
#pragma once

#include "cpu/head/linear_logprob.h"

namespace r1 {
constexpr int64_t kKeptMatrices = 2;  // of a tile: see linear_reverse_kl_tile.h

// Of the student: running maximum, Σ e, Σ e·(z - max), and Σ e·(z - z of the teacher), of kRows rows,
// with e = e^(z - max). Of the teacher: running maximum and Σ e.
struct Divergence {
  Statistics student, teacher;
  float apart[kRows];
};

struct ReverseKL {
  Head student, teacher;
  Rows rows, teacher_rows;
  Divergence* parts;  // [split][block]
  uint8_t* kept;      // tiles of the first kept_blocks blocks, for the backward pass
  int64_t kept_blocks, kept_stride;  // blocks, and bytes from one column of tiles to the next
};

struct ReverseKLBackward : Products {
  Head teacher;
  Rows teacher_rows;
  const float* dkl;          // [rows] · logit_scale / temperature, 0 in the padding
  const float* kl;           // [rows]
  const float* lse;          // [rows]
  const float* teacher_lse;  // [rows]
  const uint8_t* const* kept;  // [block]: its first tile, or null where the logits are made again
  int64_t kept_stride;
};
}  // namespace r1
