// group_advantage as a function, for policy_loss, which can begin with rewards.
#pragma once

#include <string>

#include "common/op.h"

namespace r1 {
Tensor group_advantage(Tensor rewards, Tensor group_ids, std::optional<Tensor> lengths,
                       std::string scale, std::string baseline, double eps);
}
