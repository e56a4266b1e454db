// moe_sort as a function, for moe_route, which ends with it.
#pragma once

#include <tuple>

#include "common/op.h"

namespace r1 {
std::tuple<Tensor, Tensor, Tensor, Tensor> moe_sort(Tensor ids, int64_t num_experts, int64_t align);
}
