// One token drawn from a row of logits, whose blocks are weighed first.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace r1 {
constexpr int64_t kSampleBlock = 1024;  // of the reference too: it decides what is drawn

struct LogitRow {
  bool bf16;
  const void* logits;
  int64_t columns;
  float temperature;  // 0 for the largest logit
};
struct Sampled {
  int64_t token;
  float logprob;
};
}  // namespace r1

#ifdef R1_BASELINE
// Of blocks [begin, end) of a row: the largest logits, and the sums of weights.
R1_DECLARE(void sample_weigh(const LogitRow&, int64_t begin, int64_t end, float* block_max,
                             int64_t* weights))
// From those of all blocks of the row.
R1_DECLARE(Sampled sample_draw(const LogitRow&, double uniform, const float* block_max,
                               const int64_t* weights))
#endif
