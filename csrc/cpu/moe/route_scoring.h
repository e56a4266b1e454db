// The arguments that moe_route and its gradient share, checked.
#pragma once

#include <string>

#include "common/op.h"
#include "cpu/moe/route.h"

namespace r1 {
// Of contiguous logits, which must outlive it.
Scoring scoring_of(const char* op, const Tensor& logits, int64_t top_k, const std::string& score,
                   const std::string& order, bool normalize, double scale);
}
