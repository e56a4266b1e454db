// One row of given logits: its statistics and their gradient.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace r1 {
// What stands between the given logits and the distribution, and how they are stored.
struct LogitFormat {
  bool bf16;
  int64_t columns;
  float logit_scale;
  float softcap;  // 0 for none
};
struct RowOptions {
  int64_t target;
  float temperature;
};
struct RowStatistics {
  float logprob, lse, entropy;
};
struct RowGradient {
  float dlogprob, dentropy, lse, entropy;
};
}  // namespace r1

#ifdef R1_BASELINE
R1_DECLARE(RowStatistics logprob_row(const LogitFormat&, const void*, const RowOptions&, bool))
R1_DECLARE(void logprob_backward_row(const LogitFormat&, const void*, const RowOptions&,
                                     const RowGradient&, void*))
#endif
