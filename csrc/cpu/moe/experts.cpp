// moe_experts: tokens gathered as lanes, both products with the weights where they are, SwiGLU in
// between while the tile is in cache.
#include "cpu/moe/experts.h"

#include "cpu/moe/grouped_mm_tile.h"
#include "cpu/moe/combine.h"

namespace r1::R1_ISA {
namespace {
// silu(gate)·up of two tiles of sums, as units of the next product.
template <class T>
void swiglu(const float* gate, const float* up, int64_t columns, int64_t lanes, uint32_t* out) {
  for (int64_t n = 0; n < lanes; n += kWidth) {
    auto activation = [&](int64_t i) {
      if (i >= columns) return F{};
      const F g = T::rounded(load(gate + i * kPanel + n));
      return g / (splat(1.0f) + exp(-g)) * T::rounded(load(up + i * kPanel + n));
    };
    for (int64_t i = 0; i < columns; i += T::kPerUnit)
      store_as(out + i / T::kPerUnit * kPanel + n, T::units(activation(i), activation(i + 1)));
  }
}

template <class T>
void gate_up(const ExpertsForward& f, const Part& part, int64_t i0, int64_t i1, uint32_t* packed) {
  using Element = typename T::Element;
  alignas(64) float gate[kTile * kPanel], up[kTile * kPanel];
  const Experts& e = f.layer;
  const int64_t units = units_of(e.width, T::kPerUnit), inner = units_of(e.inner, T::kPerUnit);
  const auto* weight =
      static_cast<const uint32_t*>(e.gate_up) + part.group.expert * 2 * e.inner * units;
  const int32_t* slot = e.gather + part.first();
  for (int64_t r = 0; r < part.rows; r += kPanel)
    pack_lanes(at_most(part.rows - r, kPanel), units, [&](int64_t i) {
      const auto* x = static_cast<const uint32_t*>(f.x);
      return slot[r + i] < 0 ? nullptr : x + slot[r + i] / e.top_k * units;
    }, packed + r * units);
  for (int64_t i = i0; i < i1; i += kTile) {
    const int64_t columns = at_most(i1 - i, kTile);
    for (int64_t r = 0; r < part.rows; r += kPanel) {
      const int64_t lanes = at_most(part.rows - r, kPanel), ahead = r == 0 ? kTile * units : 0;
      gemm_panel<T>(columns, lanes, units, Left{weight + i * units, units, 1, ahead},
                    packed + r * units, gate, kPanel, false);
      gemm_panel<T>(columns, lanes, units, Left{weight + (e.inner + i) * units, units, 1, ahead},
                    packed + r * units, up, kPanel, false);
      swiglu<T>(gate, up, columns, lanes,
                f.activation + ((part.panel + r / kPanel) * inner + i / T::kPerUnit) * kPanel);
      if (!f.h) continue;
      const auto h = [&](int64_t lane) {
        return static_cast<Element*>(f.h) + (part.first() + r + lane) * 2 * e.inner + i;
      };
      store_lanes<T>(gate, columns, lanes, h);
      store_lanes<T>(up, columns, lanes, [&](int64_t lane) { return h(lane) + e.inner; });
    }
  }
}

template <class T>
void down(const ExpertsForward& f, const Part& part, int64_t c0, int64_t c1) {
  const Experts& e = f.layer;
  const int64_t units = units_of(e.inner, T::kPerUnit);
  rows_as_lanes<T>(part.rows, units, f.activation + part.panel * units * kPanel,
                   static_cast<const uint32_t*>(e.down) + part.group.expert * e.width * units, c0,
                   c1, static_cast<typename T::Element*>(f.rows) + part.first() * e.width, e.width);
}
}  // namespace

void moe_experts_gate_up(const ExpertsForward& f, const Part& part, int64_t i0, int64_t i1,
                         uint32_t* packed) {
  f.layer.bf16 ? gate_up<BF16>(f, part, i0, i1, packed) : gate_up<F32>(f, part, i0, i1, packed);
}

void moe_experts_down(const ExpertsForward& f, const Part& part, int64_t c0, int64_t c1) {
  f.layer.bf16 ? down<BF16>(f, part, c0, c1) : down<F32>(f, part, c0, c1);
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/moe/experts_layer.h"

R1_DECLARE(void moe_experts_gate_up(const ExpertsForward&, const Part&, int64_t, int64_t, uint32_t*))
R1_DECLARE(void moe_experts_down(const ExpertsForward&, const Part&, int64_t, int64_t))

namespace r1 {
namespace {
std::tuple<Tensor, Tensor> moe_experts(Tensor x, Tensor gate_up, Tensor down, Tensor weights,
                                       Tensor offsets, Tensor gather, Tensor inverse, bool keep) {
  check_experts("moe_experts", x, gate_up, down);
  const ExpertsLayer layer("moe_experts", x, whole_units(gate_up), whole_units(down), weights,
                           offsets, gather, inverse);
  const Experts& e = layer.kernel;
  const Groups& all = layer.groups;
  const int64_t size = x.element_size(), units = layer.units(e.width), inner = layer.units(e.inner);
  const Tensor tokens = whole_units(x);
  Tensor y = new_output(x, {x.size(0), e.width});
  Tensor h = new_output(x, {keep ? all.rows : 0, 2 * e.inner});
  if (keep) all.clear_others(h.data_ptr(), 2 * e.inner * size);
  Buffer<uint32_t> packed(workers() * kPartRows * units);
  Buffer<uint32_t> activation(all.panels * inner * kPanel);
  Buffer<char> rows(all.rows * e.width * size);
  const ExpertsForward f{e, tokens.data_ptr(), keep ? h.data_ptr() : nullptr, activation.p, rows.p};
  const auto first = R1_DISPATCH(moe_experts_gate_up);
  each_block(all.parts, e.inner, kTile, [&](const Part& p, int64_t i0, int64_t i1, int worker) {
    first(f, p, i0, i1, packed.p + worker * kPartRows * units);
  });
  const auto second = R1_DISPATCH(moe_experts_down);
  each_block(all.parts, e.width, kTile,
             [&](const Part& p, int64_t c0, int64_t c1, int) { second(f, p, c0, c1); });
  layer.combine(rows.p, data<float>(layer.weights), y);
  return {y, h};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "moe_experts(Tensor x, Tensor gate_up, Tensor down, Tensor weights, Tensor offsets, "
      "Tensor gather, Tensor inverse, bool keep) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) { m.impl("moe_experts", TORCH_BOX(&moe_experts)); }
}  // namespace r1
#endif
