// group_advantage as a function, for policy_loss, which can begin with rewards.
#pragma once

#include "common/op.h"
#include "common/text.h"

namespace r1 {
Tensor group_advantage(Tensor rewards, Tensor group_ids, std::optional<Tensor> lengths,
                       Text scale, Text baseline, double eps);
}
