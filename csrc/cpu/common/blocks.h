// Large memory: what was freed stays for the next call, unless the system needs it meanwhile.
//
// A page that is new to a process takes the system longer than a kernel needs to fill it: of a loss
// whose gradient is 60 MB, a fifth of the time. malloc gives such memory back at once.
#pragma once

#include <cstdint>

namespace r1 {
// Bytes; malloc itself keeps what is much smaller. Sanitizers watch malloc's memory, and not this.
#ifdef __SANITIZE_ADDRESS__
constexpr int64_t kLeastBlock = INT64_MAX;
#else
constexpr int64_t kLeastBlock = 4 << 20;
#endif

void* take_block(int64_t bytes);  // uninitialised, at the beginning of a page; throws for want of memory
void return_block(void* block);   // as it came from take_block
}  // namespace r1
