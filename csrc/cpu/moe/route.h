// What the kernels of moe_route and moe_route_backward are given, the same for every instruction
// set. The terms are those of r1kernels/moe/route_reference.py.
#pragma once

#include <cstdint>

namespace r1 {
enum class Score { sigmoid, softmax, sqrtsoftplus };

// How logits [rows, experts] and choices [rows, top_k] become weights.
struct Scoring {
  const void* logits;
  bool bf16;
  int64_t rows, experts, top_k;
  Score score;
  bool of_chosen;   // order = "topk_first"
  bool normalises;  // weights are divided by the sum of the chosen scores
  double scale;
};

constexpr int64_t kMaxDoubles = 8;  // rows of scratch memory suit the vectors of every set
constexpr int64_t padded(int64_t count, int64_t to = kMaxDoubles) {
  return (count + to - 1) / to * to;
}

// Experts as blocks: the groups, or as many as one search is quick in. A block has `size` experts
// and fills `width` places.
struct Blocks {
  int64_t size, width, count;
  int64_t first(int64_t block) const { return block * size; }
  int64_t end() const { return padded(count); }  // of what there is one of for each block
};

struct MoeRoute {
  Scoring scoring;
  Blocks blocks;
  int64_t groups_used;   // 0: experts of all blocks may be chosen
  bool pairs;            // a group counts as much as the sum of its two best, else as its best
  bool by_score;         // keys are scores, else logits
  const double* bias;    // [padded(blocks)] or null
  const int64_t* replay_ids;  // [rows, top_k] or null
  int64_t valid_rows;
  float* weights;  // [rows, top_k]
  int64_t* ids;    // [rows, top_k]

  int64_t logits_room() const { return blocks.count * blocks.size + blocks.width + kMaxDoubles; }
};
}  // namespace r1
