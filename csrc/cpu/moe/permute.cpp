// moe_permute: rows copied whole, so the C library's memcpy serves every machine.
#include "cpu/common/isa.h"

#ifdef R1_BASELINE
#include "cpu/common/outputs.h"
#include "cpu/moe/slots.h"

namespace r1 {
namespace {
Tensor moe_permute(Tensor x, Tensor gather, Tensor inverse) {
  const Slots slots("moe_permute", gather, inverse);
  R1_CHECK(x.dim() == 2 && x.size(0) == slots.tokens, "moe_permute: x: expected shape [",
           slots.tokens, ", H]");
  const Tensor from = dense(x);
  Tensor out = new_output(x, {slots.rows, x.size(1)});
  const int64_t bytes = x.size(1) * x.element_size();
  const char* source = data<char>(from);
  char* rows = data<char>(out);
  parallel_rows(slots.rows, bytes, [&](int64_t p) {
    const int64_t slot = slots.gather[p];
    if (slot < 0) memset(rows + p * bytes, 0, bytes);
    else memcpy(rows + p * bytes, source + slot / slots.top_k * bytes, bytes);
  });
  return out;
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def("moe_permute(Tensor x, Tensor gather, Tensor inverse) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) { m.impl("moe_permute", TORCH_BOX(&moe_permute)); }
}  // namespace r1
#endif
