// How one source file serves several instruction sets.
//
// setup.py compiles every file of csrc/cpu once per instruction set, with R1_ISA naming the
// namespace. A file has two sections:
//
//   namespace r1::R1_ISA { … kernels on plain pointers … }   // compiled for every set
//   #ifdef R1_BASELINE
//   R1_DECLARE(void my_kernel(const MyArgs&));               // the same functions of every set
//   … checks, allocation, R1_DISPATCH(my_kernel)(args), registration …
//   #endif
//
// Kernel sections use no library templates (std::vector, std::sort, …): the linker keeps one copy
// of such a function, and it may be the one compiled for instructions this machine lacks.
#pragma once

#ifdef R1_ISA_IS_SCALAR
#define R1_BASELINE
#endif

namespace r1 {
enum class Isa { scalar, avx2, avx512, avx512bf16, amx };
Isa isa();  // the best set this machine has, or the limit that a test has set
}  // namespace r1

#define R1_DECLARE(signature)               \
  namespace r1::scalar { signature; }       \
  namespace r1::avx2 { signature; }         \
  namespace r1::avx512 { signature; }       \
  namespace r1::avx512bf16 { signature; }   \
  namespace r1::amx { signature; }

// A build may leave sets out: those of another kind of processor, or most of them under a sanitizer.
#ifndef R1_HAS_AVX2
#define R1_HAS_AVX2 0
#endif
#ifndef R1_HAS_AVX512
#define R1_HAS_AVX512 0
#endif
#ifndef R1_HAS_AVX512BF16
#define R1_HAS_AVX512BF16 0
#endif
#ifndef R1_HAS_AMX
#define R1_HAS_AMX 0
#endif
#define R1_USE_0(set, function)
#define R1_USE_1(set, function) r1::isa() == r1::Isa::set ? r1::set::function:
#define R1_USE_(has, set, function) R1_USE_##has(set, function)
#define R1_USE(has, set, function) R1_USE_(has, set, function)
#define R1_DISPATCH(function)                                                                  \
  (R1_USE(R1_HAS_AMX, amx, function) R1_USE(R1_HAS_AVX512BF16, avx512bf16, function)            \
       R1_USE(R1_HAS_AVX512, avx512, function) R1_USE(R1_HAS_AVX2, avx2, function)              \
           r1::scalar::function)
