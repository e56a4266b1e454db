// Chooses the instruction set at run time; a test can limit it to a lesser one.
#include "cpu/common/isa.h"

#ifdef R1_BASELINE
#include <atomic>
#include <iterator>
#include <string>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "common/op.h"
#include "common/text.h"

namespace r1 {
namespace {
constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx"};

#ifdef __x86_64__
// Linux gives a process the registers of AMX when it asks.
bool may_use_tiles() {
#ifdef __linux__
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// Whether this library has each of them.
constexpr bool kBuilt[] = {true, R1_HAS_AVX2, R1_HAS_AVX512, R1_HAS_AVX512BF16, R1_HAS_AMX};

Isa best_built(Isa limit) {
  int i = static_cast<int>(limit);
  while (!kBuilt[i]) --i;
  return static_cast<Isa>(i);
}

Isa of_machine() {
#ifdef __x86_64__
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi"))
      return Isa::avx512;
    return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && may_use_tiles()
               ? Isa::amx
               : Isa::avx512bf16;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return Isa::avx2;
#endif
  return Isa::scalar;
}

Isa detect() { return best_built(of_machine()); }

std::atomic<Isa> current{detect()};

std::string isa_name() { return kNames[static_cast<int>(isa())]; }

// "" lifts the limit. Returns the set in use, which a machine may not reach.
std::string limit_isa(Text name) {
  Isa limit = detect();
  bool known = name.empty();
  for (int i = 0; i < static_cast<int>(std::size(kNames)); ++i)
    if (name == kNames[i]) {
      known = true;
      if (static_cast<Isa>(i) < limit) limit = best_built(static_cast<Isa>(i));
    }
  R1_CHECK(known, "limit_isa: name: expected scalar, avx2, avx512, avx512bf16, amx or nothing, got ", name);
  current = limit;
  return isa_name();
}
}  // namespace

Isa isa() { return current.load(std::memory_order_relaxed); }

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def("isa() -> str");
  m.def("limit_isa(str name) -> str");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&isa_name));
  m.impl("limit_isa", TORCH_BOX(&limit_isa));
}
}  // namespace r1
#endif
