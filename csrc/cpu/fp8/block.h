// The length of a block that has one scale.
#pragma once

#include <cstdint>

namespace r1 {
constexpr int64_t kBlock = 128;
}
